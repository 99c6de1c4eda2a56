//! CoreDNS, as clusters have it: a Deployment behind the Service that every kubelet writes into its pods.
//!
//! Invariant: it is reached as any other Service is, so it works when the pod network and kube-proxy do.

use anyhow::Result;

use crate::cluster::Cluster;

const MANIFEST: &str = include_str!("coredns.yaml");

/// Applies it; does not wait for it.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    let file = cluster.file("coredns.yaml", MANIFEST.as_bytes())?;
    cluster.kubectl(&["apply", "--filename", &file]).map(drop)
}

/// Waits until names are answered.
pub(crate) fn wait_until_ready(cluster: &Cluster) -> Result<()> {
    cluster.wait_for("condition=Available", &["--namespace=kube-system", "deployment/coredns"])
}
