//! Tartan, installed as its users install it: one `kubectl apply` of `deploy/tartan.yaml`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

const MANIFEST: &str = "deploy/tartan.yaml";
/// What the manifest says of the API server, and where this cluster must be told better: nothing serves Services here.
const STORE: &str = "store: \"kubernetes:\"";

/// Applies the manifest. The nodes get ready then.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MANIFEST);
    let manifest = fs::read_to_string(&file).with_context(|| format!("reading {MANIFEST}"))?;
    let server = format!("store: \"kubernetes:{}\"", cluster.server()?);
    let told = manifest.replace(STORE, &server);
    ensure!(told != manifest, "{MANIFEST} has no line {STORE}");
    let file = cluster.file("tartan.yaml", told.as_bytes())?;
    cluster.kubectl(&["apply", "--filename", &file])?;
    let nodes = cluster.wait_for_pod_cidrs()?;
    cluster.route_to_pods(&nodes)
}
