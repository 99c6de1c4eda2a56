//! Tartan, installed as its users install it: one `kubectl apply` of `deploy/tartan.yaml`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;

const MANIFEST: &str = "deploy/tartan.yaml";
#[cfg(test)]
const POOLS: &str = "deploy/pool-crds.yaml";
pub(crate) const NAMESPACE: &str = "--namespace=tartan-system";
/// What the manifest says of the API server, and where a cluster in which nothing serves Services must be told better.
const STORE: &str = "store: \"kubernetes:\"";

/// Applies the manifest. The nodes get ready then.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "--filename", &manifest(cluster)?])?;
    let nodes = cluster.wait_for_pod_cidrs()?;
    cluster.route_to_pods(&nodes)
}

/// Lets the API server know pools and reservations.
#[cfg(test)]
pub(crate) fn define_pools(cluster: &Cluster) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(POOLS);
    cluster.kubectl(&["apply", "--filename", &file.display().to_string()])?;
    cluster.wait_for("condition=Established", &["crd/ippools.projectcalico.org"])
}

/// The cluster's one NetworkConfig says this from now on.
#[cfg(test)]
pub(crate) fn configure(cluster: &Cluster, spec: Value) -> Result<()> {
    let config = serde_json::json!({
        "apiVersion": "tartan.dev/v1alpha1", "kind": "NetworkConfig", "metadata": {"name": "default"}, "spec": spec,
    });
    crate::pods::apply(cluster, "config.json", vec![config])
}

/// The manifest as this cluster must have it: its path.
pub(crate) fn manifest(cluster: &Cluster) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MANIFEST);
    told(cluster, &file, "tartan.yaml")
}

/// The same of the release before.
pub(crate) fn previous_manifest(cluster: &Cluster) -> Result<String> {
    told(cluster, &cluster.programs().find("tartan-previous.yaml")?, "previous.yaml")
}

/// What `tartan` says in the container of a node's agent; how it exits is for those who ask by hand.
pub(crate) fn said(cluster: &Cluster, node: &str, args: &[&str]) -> Result<Value> {
    let of_node = format!("--field-selector=spec.nodeName={node}");
    let agent = ["--selector=app.kubernetes.io/name=tartan-agent", &of_node, "--output=name"];
    let agents = cluster.kubectl(&[&["get", "pods", NAMESPACE], &agent[..]].concat())?;
    let agent = agents.lines().next().with_context(|| format!("{node} has no agent"))?;
    let said = cluster.run_client(|kubectl, admin| {
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(admin).args(["exec", NAMESPACE, agent, "--", "/tartan"]);
        command.args(args).arg("--output=json").output()
    })?;
    serde_json::from_slice(&said.stdout)
        .with_context(|| format!("tartan {} on {node}: {}", args.join(" "), String::from_utf8_lossy(&said.stderr)))
}

fn told(cluster: &Cluster, file: &Path, name: &str) -> Result<String> {
    let manifest = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let manifest = if cluster.has_services() { manifest } else { told_the_server(&manifest, cluster.server()?)? };
    cluster.file(name, manifest.as_bytes())
}

fn told_the_server(manifest: &str, server: &str) -> Result<String> {
    let told = manifest.replace(STORE, &format!("store: \"kubernetes:{server}\""));
    ensure!(told != manifest, "the manifest has no line {STORE}");
    Ok(told)
}
