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
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MANIFEST);
    let manifest = fs::read_to_string(&file).with_context(|| format!("reading {MANIFEST}"))?;
    let manifest = if cluster.has_services() { manifest } else { told_the_server(&manifest, cluster.server()?)? };
    let file = cluster.file("tartan.yaml", manifest.as_bytes())?;
    cluster.kubectl(&["apply", "--filename", &file])?;
    let nodes = cluster.wait_for_pod_cidrs()?;
    cluster.route_to_pods(&nodes)
}

fn told_the_server(manifest: &str, server: &str) -> Result<String> {
    let told = manifest.replace(STORE, &format!("store: \"kubernetes:{server}\""));
    ensure!(told != manifest, "{MANIFEST} has no line {STORE}");
    Ok(told)
}
