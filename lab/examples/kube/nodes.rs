//! What befalls one node: programs that are killed, pods that come by the dozen and are deleted by force, a Node that is
//! made anew.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tartan_lab::Endpoint;
use tartan_lab::probe::{Running, http_get, wait_for};

use crate::cluster::Cluster;
use crate::life;
use crate::pods::{self, PATIENCE};
use crate::tests::{TALKING, with_a_pod_a_node};

const KUBELET: &str = "kubelet\0";
pub(crate) const CONTAINERD: &str = "containerd\0";
/// Where an agent serves its metrics on its node.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9470);
/// Where a kubelet says that it works.
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10248);
const CHURN_ROUNDS: u64 = 3;
const CHURN_PODS: u64 = 30;
/// A runtime takes its time over dozens of pods that nobody waits for.
const GOODBYE: Duration = Duration::from_secs(180);

/// Kubelet and runtime are killed, dozens of pods come and are deleted by force, and the Node is deleted and comes again:
/// who talks to whom elsewhere notices nothing, and new pods of the node are reached.
#[test]
fn what_befalls_one_node_is_nothing_to_other_pods() {
    let cluster = with_a_pod_a_node("kube-node");
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    let event = |_: &Running| {
        life::kill_process(&cluster, "n2", KUBELET)?;
        // One that finds no runtime when it starts ends.
        let local = local(&cluster, "n2")?;
        let healthy = || http_get(&local, HEALTHZ, "/healthz").is_ok_and(|(code, _)| code == 200);
        wait_for(PATIENCE, "the kubelet to be healthy", healthy)?;
        life::kill_process(&cluster, "n2", CONTAINERD)?;
        churn(&cluster, "n2")
    };
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();

    let others = pods::endpoints(&cluster, &["on-n1", "on-n3"]).unwrap();
    let event = |_: &Running| made_anew(&cluster, "n2");
    life::through(&others, event).unwrap().check_nothing_lost().unwrap();
    cluster.kubectl(&["delete", "pod", "on-n2", "--force", "--grace-period=0", "--ignore-not-found"]).unwrap();
    pods::run(&cluster, vec![pods::pod("again-n2", "n2")]).unwrap();
    let again = &pods::endpoints(&cluster, &["again-n2"]).unwrap()[0];
    let reached = || others.iter().all(|pod| pods::answers(pod, again) && pods::answers(again, pod));
    wait_for(PATIENCE, "a pod of the node that was made anew to be reached", reached).unwrap();
}

/// Dozens of pods start on a node and are deleted by force, again and again; its agent lets go of each.
fn churn(cluster: &Cluster, node: &str) -> Result<()> {
    let pods_there = || metric(cluster, node, "tartan_pods")?.context("tartan_pods");
    let before = pods_there()?;
    for round in 0..CHURN_ROUNDS {
        let pods = (0..CHURN_PODS).map(|number| pods::paused(&format!("churn-{round}-{number}"), node, "churn"));
        pods::apply(cluster, "churn.json", pods.collect())?;
        cluster.wait_for("condition=Ready", &["pods", "--selector=churn"])?;
        ensure!(pods_there()? >= before + CHURN_PODS, "the agent counts the pods that are ready");
        cluster.kubectl(&["delete", "pods", "--selector=churn", "--force", "--grace-period=0", "--wait=false"])?;
    }
    let gone = || pods_there().is_ok_and(|pods| pods == before);
    wait_for(GOODBYE, "the addresses of pods that were deleted by force to be free", gone).map(drop)
}

/// What the node's agent counts; none of what it has no line for.
pub(crate) fn metric(cluster: &Cluster, node: &str, name: &str) -> Result<Option<u64>> {
    counted(cluster, node, METRICS, name)
}

/// The same of whoever serves metrics there on the node.
pub(crate) fn counted(cluster: &Cluster, node: &str, at: SocketAddr, name: &str) -> Result<Option<u64>> {
    let (_, metrics) = http_get(&local(cluster, node)?, at, "/metrics")?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?)
}

/// The Node is deleted and registers anew: another UID, other pod CIDRs.
fn made_anew(cluster: &Cluster, node: &str) -> Result<()> {
    let said = |field: &str| cluster.kubectl(&["get", "node", node, "--output", &format!("jsonpath={{{field}}}")]);
    let before = said(".metadata.uid")?;
    cluster.kubectl(&["delete", "node", node])?;
    // A kubelet registers its Node when it starts.
    life::kill_process(cluster, node, KUBELET)?;
    let anew = || said(".metadata.uid").is_ok_and(|now| !now.is_empty() && now != before);
    wait_for(PATIENCE, &format!("another Node {node}"), anew)?;
    look_again(cluster, node)?;
    let ready = || said(r#".status.conditions[?(@.type=="Ready")].status"#).is_ok_and(|status| status == "True");
    wait_for(PATIENCE, &format!("Node {node} to be ready"), ready).map(drop)
}

/// To make a CSINode a kubelet may have looked for its Node half a dozen times in vain, and would look again after two minutes and
/// not be ready before. One that starts finds it.
pub(crate) fn look_again(cluster: &Cluster, node: &str) -> Result<()> {
    life::kill_process(cluster, node, KUBELET)
}

/// The node itself, for a look at what listens there.
fn local(cluster: &Cluster, node: &str) -> Result<Endpoint> {
    let machine = cluster.machine(node)?;
    let (v4, v6) = (machine.seat.v4.0, machine.seat.v6.0);
    Ok(Endpoint { name: node.into(), netns: machine.netns.clone(), v4, v6 })
}
