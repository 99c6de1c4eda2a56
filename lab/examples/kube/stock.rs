//! The stock network: `ptp` and `host-local` on each node, and routes between the nodes made here.
//!
//! What Tartan's is compared with, and how the harness itself is tried.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::{Cluster, NodeCidrs};

const PLUGINS: [&str; 2] = ["host-local", "ptp"];

/// Gives every node its plugins, their configuration and its routes. The nodes get ready then.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.wait_for_pod_cidrs()?;
    for machine in cluster.machines() {
        for plugin in PLUGINS {
            let program = fs::read(cluster.programs().find(plugin)?)?;
            machine.write(&format!("/opt/cni/bin/{plugin}"), &program, "0755")?;
        }
        machine.netns.ip(&cluster.routes(&nodes, Some(&machine.name))?)?;
        let own = nodes.iter().find(|node| node.name == machine.name);
        let own = own.with_context(|| format!("{} has no Node object", machine.name))?;
        machine.write("/etc/cni/net.d/10-stock.conflist", conflist(own).to_string().as_bytes(), "0644")?;
    }
    cluster.route_to_pods(&nodes)
}

fn conflist(node: &NodeCidrs) -> serde_json::Value {
    let ranges: Vec<_> = node.pod_cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
    let ipam = json!({
        "type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    json!({"cniVersion": "1.0.0", "name": "stock", "plugins": [{"type": "ptp", "ipam": ipam}]})
}
