//! Tartan, installed as its users install it: one `kubectl apply` of `deploy/tartan.yaml`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

const MANIFEST: &str = "deploy/tartan.yaml";
/// What the manifest says of the API server, and where a cluster in which nothing serves Services must be told better.
const STORE: &str = "store: \"kubernetes:\"";

/// Applies the manifest. The nodes get ready then.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "--filename", &manifest(cluster)?])?;
    let nodes = cluster.wait_for_pod_cidrs()?;
    cluster.route_to_pods(&nodes)
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
