//! The harness's own cluster, with the stock network: nodes ready, pods of all nodes talk, nothing stays.

use serde_json::{Value, json};
use tartan_lab::Census;

use crate::cluster::{Cluster, items};
use crate::image::AGNHOST;
use crate::{Programs, stock};

const SERVER_PORT: u16 = 8080;

#[test]
fn three_nodes_get_ready_pods_talk_and_nothing_stays() {
    let before = Census::take().unwrap();
    let cluster = Cluster::up("kube-test", Programs::from_environment().unwrap()).unwrap();
    stock::install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    let nodes = cluster.get(&["nodes"]).unwrap();
    let names: Vec<&str> = items(&nodes).iter().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);

    let pods = a_pod_a_node(&cluster, &names);
    let mut failed = Vec::new();
    for (from, _) in &pods {
        for (to, addresses) in pods.iter().filter(|(to, _)| to != from) {
            for address in addresses {
                if let Err(error) = connect(&cluster, from, address) {
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

fn connect(cluster: &Cluster, from: &str, address: &str) -> anyhow::Result<()> {
    let to = std::net::SocketAddr::new(address.parse()?, SERVER_PORT).to_string();
    cluster.kubectl(&["exec", from, "--", "/agnhost", "connect", "--timeout=3s", &to]).map(drop)
}
