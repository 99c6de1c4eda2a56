//! Clusters with the stock network and with Tartan: nodes ready, pods of all nodes talk under their own addresses,
//! nothing stays.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tartan_lab::Census;

use crate::cluster::{Cluster, items};
use crate::image::AGNHOST;
use crate::{Programs, stock, tartan};

const SERVER_PORT: u16 = 8080;

/// What the harness itself can do, and what Tartan is compared with.
#[test]
fn the_stock_network_carries_pods_and_nothing_stays() {
    pods_talk_and_nothing_stays("kube-stock", stock::install);
}

#[test]
fn one_apply_and_pods_talk() {
    pods_talk_and_nothing_stays("kube-tartan", tartan::install);
}

fn pods_talk_and_nothing_stays(name: &str, install: impl Fn(&Cluster) -> Result<()>) {
    let before = Census::take().unwrap();
    let cluster = Cluster::up(name, Programs::from_environment().unwrap()).unwrap();
    install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    let nodes = cluster.get(&["nodes"]).unwrap();
    let names: Vec<&str> = items(&nodes).iter().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);

    let pods = a_pod_a_node(&cluster, &names);
    let mut failed = Vec::new();
    for (from, own) in &pods {
        for (to, addresses) in pods.iter().filter(|(to, _)| to != from) {
            for (own, address) in own.iter().zip(addresses) {
                if let Err(error) = dial(&cluster, from, own, address) {
                    failed.push(format!("{from} to {to} at {address}: {error:#}"));
                }
            }
        }
    }
    assert_eq!(failed, [""; 0]);

    drop(cluster);
    let difference = Census::take().unwrap().since(&before);
    assert!(difference.is_nothing(), "{difference}");
}

/// Pods with a server each: their names and addresses, both families.
fn a_pod_a_node(cluster: &Cluster, nodes: &[&str]) -> Vec<(String, Vec<String>)> {
    // Pods are refused until their namespace has its account.
    cluster.wait_for("create", &["serviceaccount/default"]).unwrap();
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": nodes.iter().map(|node| pod(node)).collect::<Vec<_>>()});
    let file = cluster.file("pods.json", list.to_string().as_bytes()).unwrap();
    cluster.kubectl(&["apply", "--filename", &file]).unwrap();
    cluster.wait_for("condition=Ready", &["pods", "--all"]).unwrap();
    let pods = cluster.get(&["pods"]).unwrap();
    let addresses = |pod: &Value| -> Vec<String> {
        let listed = pod["status"]["podIPs"].as_array().into_iter().flatten();
        listed.filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect()
    };
    let pods: Vec<_> =
        items(&pods).iter().map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), addresses(pod))).collect();
    assert!(pods.iter().all(|(_, addresses)| addresses.len() == 2), "{pods:?}");
    pods
}

fn pod(node: &str) -> Value {
    let server = json!({"name": "server", "image": AGNHOST, "args": ["netexec", format!("--http-port={SERVER_PORT}")]});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}")},
        "spec": {"nodeName": node, "containers": [server], "terminationGracePeriodSeconds": 0},
    })
}

/// Has one pod ask another who it sees, and expects the asking pod's own address.
fn dial(cluster: &Cluster, from: &str, own: &str, to: &str) -> Result<()> {
    let pod = format!("/api/v1/namespaces/default/pods/{from}:{SERVER_PORT}/proxy");
    let question = format!("host={to}&port={SERVER_PORT}&protocol=http&request=clientip&tries=1");
    let answer = cluster.kubectl(&["get", "--raw", &format!("{pod}/dial?{question}")])?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
    let seen: std::net::SocketAddr =
        answer["responses"][0].as_str().with_context(|| format!("no response: {answer}"))?.parse()?;
    ensure!(seen.ip() == own.parse::<std::net::IpAddr>()?, "it was seen as {seen}, not as {own}");
    Ok(())
}
