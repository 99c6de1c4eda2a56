//! The operator in a real cluster: what Prometheus is told of it, and what the kubelet does about one that hangs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tartan_lab::probe::wait_for;

use crate::cluster::Cluster;
use crate::nodes::counted;
use crate::pods::PATIENCE;
use crate::tartan::NAMESPACE;

/// Where one serves its metrics on its node.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9471);
const BEGINS: &[u8] = b"/tartan\0operator\0";
const DEPLOYMENT: &str = "deployment/tartan-operator";

/// One of two leads. It hangs: the other one leads, and the kubelet starts it again.
pub(crate) fn one_that_hangs_is_replaced(cluster: &Cluster) -> Result<()> {
    cluster.wait_for("condition=Available", &[NAMESPACE, DEPLOYMENT])?;
    let says = |node: &str, name| counted(cluster, node, METRICS, name).ok().flatten();
    let that_say = |name: &'static str| -> Vec<&str> {
        let nodes = cluster.machines().iter().map(|machine| machine.name.as_str());
        nodes.filter(|node| says(node, name) == Some(1)).collect()
    };
    wait_for(PATIENCE, "one of two operators to lead", || {
        (that_say("tartan_operator_leads").len(), that_say("tartan_operator_ready").len()) == (1, 2)
    })?;
    let leader = that_say("tartan_operator_leads")[0];
    ensure!(says(leader, "tartan_store_away") == Some(0), "the store is there");

    let machine = cluster.machine(leader)?;
    let hangs = machine.process(BEGINS).with_context(|| format!("{leader} has no operator"))?;
    kill(Pid::from_raw(hangs), Signal::SIGSTOP)?;
    let another = || that_say("tartan_operator_leads").iter().any(|node| *node != leader);
    wait_for(PATIENCE, "the other operator to lead", another)?;
    let again = || machine.process(BEGINS).is_some_and(|now| now != hangs);
    wait_for(PATIENCE, "the operator that hangs to be started again", again)?;
    wait_for(PATIENCE, "both to have read the store", || that_say("tartan_operator_ready").len() == 2)?;
    let leaders = that_say("tartan_operator_leads");
    ensure!(leaders.len() == 1, "{leaders:?} lead");
    Ok(())
}
