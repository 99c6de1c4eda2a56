//! `spec.fallback`: where the fabric is blocked between two nodes, and only there, udp carries their packets, and no longer than
//! that.

mod common;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, condition, lab, sh, wait_until_steady};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, wait_for};
use tartan_lab::{Lab, Node};

/// Probes answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;

/// How the node reaches that peer.
fn by(node: &Node, peer: &str) -> Result<String> {
    let said = node.status()?;
    let mut peers = said["peers"].as_array().into_iter().flatten();
    let peer = peers.find(|it| it["node"] == peer).with_context(|| format!("no {peer} in {said}"))?;
    Ok(peer["fabric"].as_str().unwrap_or_default().to_owned())
}

/// Waits until each of these reaches that peer so, and everybody else is reached by vxlan.
fn wait_until_reached(lab: &Lab, fabric: &str) -> Result<()> {
    let pairs = [("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "n1"), ("n2", "n3"), ("n3", "n2")];
    let right = |(node, peer): &(&str, &str)| -> Result<bool> {
        let wanted = if [*node, *peer].contains(&"n3") { "vxlan" } else { fabric };
        Ok(by(lab.node(node)?, peer)?.starts_with(wanted))
    };
    let all = || pairs.iter().all(|pair| right(pair).unwrap_or(false));
    wait_for(PATIENCE, &format!("n1 and n2 to reach each other by {fabric}"), all)
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

#[test]
fn where_vxlan_is_blocked_udp_carries_that_pair_and_it_climbs_back() -> Result<()> {
    let mut lab = lab("fallback", "vxlan")?;
    lab.set_config(&Map::from_iter([("fallback".into(), json!("udp"))]))?;
    let hears = |node: &Node| {
        let said = node.status().unwrap_or_default();
        said["receives"]
            .as_array()
            .is_some_and(|all| all.iter().any(|at| at.as_str().is_some_and(|at| at.starts_with("udp"))))
    };
    wait_for(PATIENCE, "everybody to hear udp, too", || lab.nodes().iter().all(hears))?;
    wait_until_steady(&lab, "vxlan")?;
    let pod = |name: &str| lab.pod(name).map(|pod| pod.endpoint());
    // Whom it does not concern.
    let others = [(pod("a1")?, pod("c1")?), (pod("b1")?, pod("c1")?)];
    let load = Load::new().udp(others.clone()).udp_mtu_sized(others.clone()).tcp_idle(others).start()?;
    load.wait_for_answers(PROBES, PATIENCE)?;

    let block = "table bridge pair {\nchain forward {\ntype filter hook forward priority 0\n\
                 iifname { n1, n2 } oifname { n1, n2 } udp dport 8472 counter drop\n}\n}\n";
    lab.underlay().netns().nft(block)?;
    wait_until_reached(&lab, "udp")?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    for (node, peer) in [("n1", "n2"), ("n2", "n1")] {
        let node = lab.node(node)?;
        let told = || condition(node, "FabricFallback").is_some_and(|it| it["about"] == format!("Node/{peer}"));
        wait_for(PATIENCE, "it to be told", told)
            .with_context(|| format!("{:#}", node.status().unwrap_or_default()))?;
        ensure!(condition(node, "FabricBlocked").is_none(), "{:#}", node.status()?);
    }
    load.wait_for_answers(PROBES, PATIENCE)?;

    // An agent that starts anew has tested nothing, and goes by what its kernel has: no packet is lost to the blocked way.
    let pair = [(pod("a1")?, pod("b1")?), (pod("b1")?, pod("a1")?)];
    let between = Load::new().udp(pair.clone()).udp_mtu_sized(pair.clone()).tcp_idle(pair).start()?;
    between.wait_for_answers(PROBES, PATIENCE)?;
    let node = lab.node("n1")?;
    node.kill_agent()?;
    node.start_agent()?;
    node.wait_ready()?;
    between.wait_for_answers(2 * PROBES, PATIENCE)?;

    lab.underlay().netns().nft("delete table bridge pair\n")?;
    wait_until_reached(&lab, "vxlan")?;
    between.wait_for_answers(PROBES, PATIENCE)?;
    between.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    let quiet = |node: &Node| node.status().is_ok_and(|said| said["conditions"] == Value::Array(Vec::new()));
    wait_for(PATIENCE, "nothing to be wrong", || lab.nodes().iter().all(quiet))
        .with_context(|| lab.troubleshooting())?;
    for node in lab.nodes() {
        let standing = sh(node, "ip route show metric 2048; ip -6 route show metric 2048")?;
        ensure!(standing.is_empty(), "{} has a way that stands behind another still:\n{standing}", node.name());
    }
    Ok(())
}
