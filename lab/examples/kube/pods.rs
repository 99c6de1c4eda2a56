//! Pods that tests and benches run: made, waited for, and entered.
//!
//! Invariant: a pod is looked at from inside, through the network of its own processes; what the API server says of it
//! may be old.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tartan_lab::probe::{http_get, wait_for};
use tartan_lab::{Endpoint, Family, Netns};

use crate::cluster::Cluster;
use crate::image::AGNHOST;
use crate::machine::processes_of_pod;

pub(crate) const SERVER_PORT: u16 = 8080;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pod with a server.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    let server = json!({"name": "server", "image": AGNHOST, "args": ["netexec", format!("--http-port={SERVER_PORT}")]});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [server], "terminationGracePeriodSeconds": 0},
    })
}

/// A pod that does nothing, with that label.
pub(crate) fn paused(name: &str, node: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {label: ""}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "pause", "image": AGNHOST, "args": ["pause"]}],
        },
    })
}

/// One on each of the nodes, called `on-NODE`.
pub(crate) fn one_a_node(nodes: &[&str]) -> Vec<Value> {
    nodes.iter().map(|node| pod(&format!("on-{node}"), node)).collect()
}

/// A policy for the pods of these names, which they have as labels.
pub(crate) fn policy(name: &str, of: &[&str], mut spec: Value) -> Value {
    spec["podSelector"] = in_(of);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec,
    })
}

/// What selects the pods of these names.
pub(crate) fn in_(names: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": "name", "operator": "In", "values": names}]})
}

/// Makes the pods and waits until all are ready.
pub(crate) fn run(cluster: &Cluster, pods: Vec<Value>) -> Result<()> {
    // Pods are refused until their namespace has its account.
    cluster.wait_for("create", &["serviceaccount/default"])?;
    apply(cluster, "pods.json", pods)?;
    cluster.wait_for("condition=Ready", &["pods", "--all"])
}

pub(crate) fn apply(cluster: &Cluster, file: &str, items: Vec<Value>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = cluster.file(file, list.to_string().as_bytes())?;
    cluster.kubectl(&["apply", "--filename", &file]).map(drop)
}

pub(crate) fn uid(cluster: &Cluster, name: &str) -> Result<String> {
    let pod = cluster.get(&["pod", name])?;
    Ok(pod["metadata"]["uid"].as_str().with_context(|| format!("pod {name} has no UID"))?.to_owned())
}

/// Where probes of these pods run.
pub(crate) fn endpoints(cluster: &Cluster, names: &[&str]) -> Result<Vec<Endpoint>> {
    names.iter().map(|name| endpoint(name, &uid(cluster, name)?)).collect()
}

/// The pod as its own processes see it; waits until it has addresses of both families.
pub(crate) fn endpoint(name: &str, uid: &str) -> Result<Endpoint> {
    let mut found = None;
    wait_for(PATIENCE, &format!("pod {name} to have processes and addresses"), || {
        found = seen(name, uid);
        found.is_some()
    })?;
    found.context("wait_for ended with it")
}

/// The same, if there is anything to see.
pub(crate) fn seen(name: &str, uid: &str) -> Option<Endpoint> {
    let netns = network_of(*processes_of_pod(uid).first()?);
    let said = netns.output(&["ip", "-json", "address", "show", "dev", "eth0", "scope", "global"]).ok()?;
    let (v4, v6) = addresses_in(&serde_json::from_str(&said).ok()?)?;
    Some(Endpoint { name: name.into(), netns, v4, v6 })
}

/// Where a process is.
pub(crate) fn network_of(pid: i32) -> Netns {
    Netns::at(Path::new(&format!("/proc/{pid}/ns/net")))
}

/// Whether its server answers, in both families.
pub(crate) fn answers(from: &Endpoint, to: &Endpoint) -> bool {
    let address = |family| SocketAddr::new(to.address(family), SERVER_PORT);
    Family::BOTH
        .into_iter()
        .all(|family| http_get(from, address(family), "/hostname").is_ok_and(|(code, _)| code == 200))
}

fn addresses_in(links: &Value) -> Option<(Ipv4Addr, Ipv6Addr)> {
    let (mut v4, mut v6) = (None, None);
    let listed = links.as_array()?.iter().flat_map(|link| link["addr_info"].as_array()).flatten();
    // Of an address that was not asked for `ip` leaves an empty object.
    for address in listed.filter_map(|address| address["local"].as_str()?.parse().ok()) {
        match address {
            IpAddr::V4(address) => v4 = v4.or(Some(address)),
            IpAddr::V6(address) => v6 = v6.or(Some(address)),
        }
    }
    Some((v4?, v6?))
}

#[cfg(test)]
mod tests {
    use super::addresses_in;
    use serde_json::json;

    #[test]
    fn a_pod_without_both_families_has_no_addresses_yet() {
        let (v4, v6) = (json!({"local": "10.0.0.2"}), json!({"local": "fd00::2"}));
        let link = |addresses: &[&serde_json::Value]| addresses_in(&json!([{}, {"addr_info": addresses}]));
        assert_eq!(link(&[&v4, &v6, &json!({})]), Some(("10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap())));
        assert_eq!(link(&[&v4]), None);
        assert_eq!(link(&[]), None);
    }
}
