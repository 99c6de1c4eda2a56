//! Clusters with the stock network and with Tartan: nodes ready, pods of all nodes talk under their own addresses,
//! nothing stays.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tartan_lab::Census;
use tartan_lab::probe::wait_for;

use crate::cluster::{Cluster, Wants, items};
use crate::image::AGNHOST;
use crate::{Programs, stock, tartan};

pub(crate) const SERVER_PORT: u16 = 8080;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the harness itself can do, and what Tartan is compared with.
#[test]
fn the_stock_network_carries_pods_and_nothing_stays() {
    pods_talk_and_nothing_stays("kube-stock", stock::install);
}

#[test]
fn one_apply_and_pods_talk() {
    pods_talk_and_nothing_stays("kube-tartan", tartan::install);
}

/// An agent dies and starts again while there is no API server; a pod is made when it is back.
#[test]
fn without_an_api_server_packets_go_on() {
    let mut cluster = Cluster::up("kube-away", Programs::from_environment().unwrap(), Wants::default()).unwrap();
    tartan::install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    let pods = a_pod_a_node(&cluster, &["n1", "n2", "n3"]);
    reach_all(&cluster, "n1", &pods).unwrap();

    cluster.control_mut().unwrap().kill_api_server().unwrap();
    reach_all(&cluster, "n1", &pods).unwrap();
    let machine = cluster.machine("n2").unwrap();
    let killed = machine.agent().unwrap();
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    reach_all(&cluster, "n1", &pods).unwrap();
    wait_for(PATIENCE, "another agent on n2", || machine.agent().is_some_and(|agent| agent != killed)).unwrap();
    reach_all(&cluster, "n2", &pods).unwrap();

    cluster.control_mut().unwrap().start_api_server().unwrap();
    let agents = ["--namespace=tartan-system", "pods", "--selector=app.kubernetes.io/name=tartan-agent"];
    cluster.wait_for("condition=Ready", &agents).unwrap();
    let file = cluster.file("late.json", pod("late", "n2").to_string().as_bytes()).unwrap();
    cluster.kubectl(&["apply", "--filename", &file]).unwrap();
    cluster.wait_for("condition=Ready", &["pod/late"]).unwrap();
    let late = cluster.get(&["pod", "late"]).unwrap();
    reach_all(&cluster, "n3", &[("late".into(), addresses(&late))]).unwrap();
}

/// From a node to each address of the pods.
fn reach_all(cluster: &Cluster, from: &str, pods: &[(String, Vec<String>)]) -> Result<()> {
    let agnhost = cluster.programs().find("agnhost")?.display().to_string();
    let netns = &cluster.machine(from)?.netns;
    for (pod, addresses) in pods {
        for address in addresses {
            let to = SocketAddr::new(address.parse()?, SERVER_PORT).to_string();
            netns.output(&[&agnhost, "connect", "--timeout=3s", &to]).with_context(|| format!("{from} to {pod}"))?;
        }
    }
    Ok(())
}

fn pods_talk_and_nothing_stays(name: &str, install: impl Fn(&Cluster) -> Result<()>) {
    let before = Census::take().unwrap();
    let cluster = Cluster::up(name, Programs::from_environment().unwrap(), Wants::default()).unwrap();
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
    run_pods(cluster, nodes.iter().map(|node| pod(&format!("on-{node}"), node)).collect())
}

/// Makes the pods and waits until they are ready: their names and addresses, both families.
pub(crate) fn run_pods(cluster: &Cluster, pods: Vec<Value>) -> Vec<(String, Vec<String>)> {
    // Pods are refused until their namespace has its account.
    cluster.wait_for("create", &["serviceaccount/default"]).unwrap();
    apply(cluster, "pods.json", pods);
    cluster.wait_for("condition=Ready", &["pods", "--all"]).unwrap();
    let pods = cluster.get(&["pods"]).unwrap();
    let pods: Vec<_> =
        items(&pods).iter().map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), addresses(pod))).collect();
    assert!(pods.iter().all(|(_, addresses)| addresses.len() == 2), "{pods:?}");
    pods
}

pub(crate) fn apply(cluster: &Cluster, file: &str, items: Vec<Value>) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = cluster.file(file, list.to_string().as_bytes()).unwrap();
    cluster.kubectl(&["apply", "--filename", &file]).unwrap();
}

fn addresses(pod: &Value) -> Vec<String> {
    let listed = pod["status"]["podIPs"].as_array().into_iter().flatten();
    listed.filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect()
}

pub(crate) fn pod(name: &str, node: &str) -> Value {
    let server = json!({"name": "server", "image": AGNHOST, "args": ["netexec", format!("--http-port={SERVER_PORT}")]});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [server], "terminationGracePeriodSeconds": 0},
    })
}

/// Has one pod ask another who it sees, and expects the asking pod's own address.
fn dial(cluster: &Cluster, from: &str, own: &str, to: &str) -> Result<()> {
    let seen: SocketAddr = ask(cluster, from, to, SERVER_PORT, "clientip")?.parse()?;
    ensure!(seen.ip() == own.parse::<std::net::IpAddr>()?, "it was seen as {seen}, not as {own}");
    Ok(())
}

/// Has a pod put a question to a server, by address or name: its answer.
pub(crate) fn ask(cluster: &Cluster, from: &str, to: &str, port: u16, request: &str) -> Result<String> {
    let pod = format!("/api/v1/namespaces/default/pods/{from}:{SERVER_PORT}/proxy");
    let question = format!("host={to}&port={port}&protocol=http&request={request}&tries=1");
    let answer = cluster.kubectl(&["get", "--raw", &format!("{pod}/dial?{question}")])?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
    Ok(answer["responses"][0].as_str().with_context(|| format!("no response: {answer}"))?.to_owned())
}
