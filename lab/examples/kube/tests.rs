//! Clusters with the stock network and with Tartan: nodes ready, pods of all nodes talk under their own addresses,
//! nothing stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tartan_lab::Census;
use tartan_lab::probe::{Running, wait_for};

use crate::agents::TARTAN;
use crate::cluster::{Cluster, Wants, items};
use crate::control::Stack;
use crate::flannel::Backend;
use crate::pods::{self, SERVER_PORT};
use crate::{Programs, life, mixed, nodes, operator, stock, tartan};

/// Shorter than anybody would have them, so that the end of both can be waited for.
const LEASE: Duration = Duration::from_secs(20);
const COOLDOWN: Duration = Duration::from_secs(20);

/// What the harness itself can do, and what Tartan is compared with.
#[test]
fn the_stock_network_carries_pods_and_nothing_stays() {
    pods_talk_and_nothing_stays("kube-stock", Stack::Both, stock::install);
}

#[test]
fn one_apply_and_pods_talk() {
    pods_talk_and_nothing_stays("kube-tartan", Stack::Both, tartan::install);
}

/// Nodes, pods, Services and the API server have no other addresses.
#[test]
fn pods_talk_where_there_is_ipv6_alone() {
    pods_talk_and_nothing_stays("kube-v6", Stack::V6, tartan::install);
}

/// Nobody says whence pods' addresses come: the operator, which needs none itself, makes a pool of each family once that has
/// been so for a minute, and agents claim blocks of them.
#[test]
fn pods_talk_where_nodes_have_no_pod_cidrs() {
    let wants = Wants { pools: true, ..Wants::default() };
    let mut cluster = Cluster::up("kube-pools", Programs::from_environment().unwrap(), wants).unwrap();
    tartan::define_pools(&cluster).unwrap();
    cluster.kubectl(&["apply", "--filename", &tartan::manifest(&cluster).unwrap()]).unwrap();
    cluster.wait_for_nodes().unwrap();
    cluster.wait_until_ready().unwrap();
    pods::run(&cluster, pods::one_a_node(&["n1", "n2", "n3"])).unwrap();
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    life::through(&talking, |_| Ok(())).unwrap().check_nothing_lost().unwrap();
    let blocks = cluster.get(&["ipblocks"]).unwrap();
    assert_eq!(items(&blocks).len(), 6, "one of each family for each node: {blocks:#}");
    operator::one_that_hangs_is_replaced(&cluster).unwrap();
    a_node_goes_and_comes_back_as_another(&mut cluster).unwrap();
}

/// Its blocks are free once its lease and the cool-down are over, and no sooner; then its word is gone. Started again, with
/// what it has on its disk of the life before, it claims blocks anew.
fn a_node_goes_and_comes_back_as_another(cluster: &mut Cluster) -> Result<()> {
    let config = json!({"leaseSeconds": LEASE.as_secs(), "cooldownSeconds": COOLDOWN.as_secs()});
    tartan::configure(cluster, config)?;
    let others = pods::endpoints(cluster, &TALKING[..2])?;
    let event = |_: &Running| {
        let since = Instant::now();
        let off = cluster.shut_down("n3")?;
        cluster.kubectl(&["delete", "node", "n3"])?;
        let free = || blocks_of(cluster, "n3").is_ok_and(|count| count == 0);
        let took = wait_for(3 * (LEASE + COOLDOWN), "the blocks of a node that is gone to be free", free)
            .map(|_| since.elapsed())?;
        // A sign of life may have been a part of its lease old, and so may what others know of the time.
        ensure!(took >= LEASE / 2 + COOLDOWN, "they were free after {took:?}");
        cluster.wait_for("delete", &["nodenetwork/n3"])?;
        for node in ["n1", "n2"] {
            ensure!(blocks_of(cluster, node)? == 2, "{node} has lost blocks");
        }
        cluster.boot(&off)
    };
    life::through(&others, event)?.check_nothing_lost()?;

    cluster.wait_for_nodes()?;
    nodes::look_again(cluster, "n3")?;
    cluster.wait_until_ready()?;
    cluster.kubectl(&["delete", "pod", "on-n3", "--force", "--grace-period=0", "--ignore-not-found"])?;
    pods::run(cluster, vec![pods::pod("again-n3", "n3")])?;
    let again = &pods::endpoints(cluster, &["again-n3"])?[0];
    let reached = || others.iter().all(|pod| pods::answers(pod, again) && pods::answers(again, pod));
    wait_for(pods::PATIENCE, "a pod of the node that came back to be reached", reached)?;
    ensure!(blocks_of(cluster, "n3")? == 2, "one of each family");
    Ok(())
}

fn blocks_of(cluster: &Cluster, node: &str) -> Result<usize> {
    let blocks = cluster.get(&["ipblocks"])?;
    Ok(items(&blocks).iter().filter(|block| block["spec"]["node"] == node).count())
}

/// An agent dies and starts again, and a pod gets another sandbox, while there is no API server; a pod is made when it is
/// back.
#[test]
fn without_an_api_server_packets_go_on_and_pods_start_again() {
    let mut cluster = with_a_pod_a_node("kube-away");
    let victim = pods::pod("victim", "n3");
    pods::run(&cluster, vec![victim]).unwrap();
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    let event = |_: &Running| life::api_server_away(&mut cluster, Duration::from_secs(10), "victim", &talking[0]);
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();

    let agents = ["--namespace=tartan-system", "pods", "--selector=app.kubernetes.io/name=tartan-agent"];
    cluster.wait_for("condition=Ready", &agents).unwrap();
    pods::run(&cluster, vec![pods::pod("late", "n2")]).unwrap();
    let late = &pods::endpoints(&cluster, &["late"]).unwrap()[0];
    assert!(talking.iter().all(|pod| pods::answers(pod, late)));
}

/// Agents are replaced, then are gone, and packets go on; and a node starts again from its disk while the others go on.
#[test]
fn without_agents_and_a_node_packets_go_on() {
    let mut cluster = with_a_pod_a_node("kube-life");
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    let event = |_: &Running| {
        assert_eq!(TARTAN.restart(&cluster)?, [""; 0], "nodes went out of service");
        Ok(())
    };
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();
    let manifest = tartan::manifest(&cluster).unwrap();
    let event = |load: &Running| TARTAN.gone(&cluster, load, &manifest);
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();

    let others = pods::endpoints(&cluster, &["on-n1", "on-n3"]).unwrap();
    let event = |_: &Running| life::reboot(&mut cluster, "n2", "on-n2", &others[0]);
    life::through(&others, event).unwrap().check_nothing_lost().unwrap();
    let back = pods::endpoints(&cluster, &TALKING).unwrap();
    life::through(&back, |_| Ok(())).unwrap().check_nothing_lost().unwrap();
}

/// Both directions, both families, at every step; pods of before go on as they are.
#[test]
fn nodes_go_over_from_flannel_one_by_one() {
    assert_eq!(mixed::swap(Backend::Vxlan).unwrap().failed, 0);
}

pub(crate) const TALKING: [&str; 3] = ["on-n1", "on-n2", "on-n3"];

pub(crate) fn with_a_pod_a_node(name: &str) -> Cluster {
    let cluster = Cluster::up(name, Programs::from_environment().unwrap(), Wants::default()).unwrap();
    tartan::install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    pods::run(&cluster, pods::one_a_node(&["n1", "n2", "n3"])).unwrap();
    cluster
}

fn pods_talk_and_nothing_stays(name: &str, stack: Stack, install: impl Fn(&Cluster) -> Result<()>) {
    let before = Census::take().unwrap();
    let wants = Wants { stack, ..Wants::default() };
    let cluster = Cluster::up(name, Programs::from_environment().unwrap(), wants).unwrap();
    install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    let nodes = cluster.get(&["nodes"]).unwrap();
    let names: Vec<&str> = items(&nodes).iter().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);

    pods::run(&cluster, pods::one_a_node(&names)).unwrap();
    let pods = addresses(&cluster);
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

/// Names and addresses, of each family, of all pods.
pub(crate) fn addresses(cluster: &Cluster) -> Vec<(String, Vec<String>)> {
    let pods = cluster.get(&["pods"]).unwrap();
    let listed = |pod: &Value| -> Vec<String> {
        let listed = pod["status"]["podIPs"].as_array().into_iter().flatten();
        listed.filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect()
    };
    let pods: Vec<_> =
        items(&pods).iter().map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), listed(pod))).collect();
    assert!(pods.iter().all(|(_, addresses)| addresses.len() == cluster.families()), "{pods:?}");
    pods
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
