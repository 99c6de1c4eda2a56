//! How large packets may be, with real packets: everything up to the MTU passes, nothing above it leaves the pod, and pods that
//! are there follow the uplink.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, condition, lab, wait_for_condition, wait_until_steady};
use serde_json::{Map, json};
use tartan_lab::probe::{Load, let_pass, ping, wait_for};
use tartan_lab::{Family, Lab, Node, Underlay};

const SOON: Duration = Duration::from_secs(1);
/// Probes answered before and after an uplink changes, and bytes of a stream come with them.
const PROBES: u64 = 1_000;

/// What passes of packets of the underlay, in bytes, where less does than uplinks would take.
const NARROW: u32 = 1400;
const STREAMS_RUN: Duration = Duration::from_secs(3);
/// Bytes of streams that only large packets bring in that time.
const ENOUGH: u64 = 1 << 20;

/// Whether a packet of so many bytes gets from one pod to another and back.
fn passes(lab: &Lab, from: &str, to: &str, family: Family, bytes: u32) -> Result<bool> {
    let (from, to) = (lab.pod(from)?.endpoint(), lab.pod(to)?.endpoint());
    Ok(ping(&from, to.address(family), bytes as usize, SOON).is_ok())
}

fn pod_mtu(node: &Node) -> Result<u32> {
    Ok(u32::try_from(node.status()?["podMtu"].as_u64().context("an MTU of pods")?)?)
}

/// Every size that is one more or less than something, and one more than is allowed.
fn check_sizes(lab: &Lab, mtu: u32) -> Result<()> {
    ensure!(pod_mtu(lab.node("n1")?)? == mtu, "pods' MTU is not {mtu}: {}", lab.node("n1")?.status()?);
    for family in Family::BOTH {
        let header = if family == Family::V4 { 28 } else { 48 };
        let sizes = [header, header + 1, 576, 1279, 1280, 1281, mtu / 2, mtu - 2, mtu - 1, mtu];
        for bytes in sizes.into_iter().filter(|bytes| (header..=mtu).contains(bytes)) {
            ensure!(passes(lab, "a1", "b1", family, bytes)?, "{family}: {bytes} bytes of {mtu} do not pass");
        }
        ensure!(!passes(lab, "a1", "b1", family, mtu + 1)?, "{family}: {} bytes pass", mtu + 1);
    }
    Ok(())
}

fn check(name: &str, fabric: &str, underlay: &str, overhead: u32) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).pods_per_node(1).fabric(fabric).config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, fabric)?;
    check_sizes(&lab, 1500 - overhead)?;
    for uplink in [1400, 1500] {
        for node in lab.nodes() {
            lab.underlay().set_uplink_mtu(node.name(), node.netns(), uplink)?;
        }
        let follows = |node: &Node| pod_mtu(node).is_ok_and(|mtu| mtu == uplink - overhead);
        wait_for(PATIENCE, "pods to follow the uplink", || lab.nodes().iter().all(follows))?;
        check_sizes(&lab, uplink - overhead)?;
    }
    Ok(())
}

#[test]
fn host_gw_passes_what_the_uplink_does() -> Result<()> {
    check("mtu-hg", "host-gw", "auto", 0)
}

#[test]
fn vxlan_over_ipv4_passes_fifty_bytes_less() -> Result<()> {
    check("mtu-vx4", "vxlan", "ipv4", 50)
}

#[test]
fn vxlan_over_ipv6_passes_seventy_bytes_less() -> Result<()> {
    check("mtu-vx6", "vxlan", "ipv6", 70)
}

#[test]
fn udp_over_ipv4_passes_twenty_eight_bytes_less() -> Result<()> {
    check("mtu-udp", "udp", "ipv4", 28)
}

#[test]
fn wireguard_over_ipv6_passes_eighty_bytes_less() -> Result<()> {
    check("mtu-wg6", "wireguard", "ipv6", 80)
}

#[test]
fn streams_pass_between_nodes_of_different_uplinks_and_through_a_change() -> Result<()> {
    for (fabric, overhead) in [("vxlan", 50), ("host-gw", 0), ("udp", 28), ("wireguard", 60)] {
        let lab = lab(&format!("mtu-two-{fabric}"), fabric)?;
        wait_until_steady(&lab, fabric)?;
        let pods = lab.pod_endpoints();
        let both_ways = [(pods[0].clone(), pods[1].clone()), (pods[1].clone(), pods[0].clone())];
        let n2 = lab.node("n2")?;
        lab.underlay().set_uplink_mtu("n2", n2.netns(), 1400)?;
        wait_for(PATIENCE, "n2's pods to follow", || pod_mtu(n2).is_ok_and(|mtu| mtu == 1400 - overhead))?;
        ensure!(pod_mtu(lab.node("n1")?)? == 1500 - overhead, "n1's pods have no reason to send less");
        // Each end tells the other what it takes (the MSS of TCP): nothing is ever too large for n2.
        let load = Load::new().udp(both_ways.clone()).tcp_bulk(both_ways).start()?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        let report = load.stop()?;
        report.check_nothing_lost().with_context(|| lab.troubleshooting())?;
        let large = 1400 - overhead;
        for family in Family::BOTH {
            ensure!(passes(&lab, "a1", "b1", family, large)?, "{fabric} {family}: {large} bytes do not pass");
        }
    }
    Ok(())
}

/// A path narrower than both uplinks: pods are told what gets through, and an admin what would help.
fn check_narrow_path(name: &str, kind: Underlay, underlay: &str, overhead: u32) -> Result<()> {
    let mut lab = Lab::builder(name)
        .nodes(2)
        .pods_per_node(1)
        .underlay(kind)
        .fabric("vxlan")
        .config("underlay", json!(underlay))
        .up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    lab.underlay().set_path_mtu(Some(NARROW))?;
    // A router tells the node, if anybody does, and a kernel does not pass that on to those whose packets it wraps
    // (net.ipv4.ip_forward_use_pmtu). The self-test does.
    let told = wait_for_condition(lab.node("n1")?, "PathMtuTooSmall")?;
    ensure!(told["fix"].to_string().contains(&format!("spec.underlayMTU to {NARROW}")), "{told}");
    wait_for_condition(lab.node("n2")?, "PathMtuTooSmall")?;
    let carried = NARROW - overhead;
    let is_told = |node: &Node| {
        let routes = ["-4", "-6"].map(|family| node.output(&["ip", family, "route", "show", "proto", "84"]));
        routes.iter().all(|routes| routes.as_ref().is_ok_and(|routes| routes.contains(&format!("mtu {carried}"))))
    };
    wait_for(PATIENCE, "routes to say it", || lab.nodes().iter().all(is_told))
        .with_context(|| lab.troubleshooting())?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    // The switch would take a stream's packets for one of 64 KiB, which a card sends as many.
    if matches!(kind, Underlay::Routed) {
        let load = Load::new().tcp_bulk([(a.clone(), b.clone()), (b.clone(), a.clone())]).start()?;
        let_pass(STREAMS_RUN)?;
        let report = load.stop()?;
        report.check_nothing_lost().with_context(|| lab.troubleshooting())?;
        ensure!(report.tcp.bytes > ENOUGH, "large packets do not pass: {report}\n{}", lab.troubleshooting());
    }
    for family in Family::BOTH {
        let to = b.address(family).to_string();
        ensure!(!passes(&lab, "a1", "b1", family, 1500 - overhead)?, "{family}: it is narrow");
        let knows = a.netns.output(&["ip", "route", "get", &to])?;
        ensure!(knows.contains(&format!("mtu {carried}")), "a1 was not told: {knows}\n{}", lab.troubleshooting());
        ensure!(passes(&lab, "a1", "b1", family, carried)?, "{family}: what fits does not pass");
    }
    lab.set_config(&Map::from_iter([("underlayMTU".into(), json!(NARROW))]))?;
    let follows = |node: &Node| pod_mtu(node).is_ok_and(|mtu| mtu == carried);
    wait_for(PATIENCE, "pods to follow", || lab.nodes().iter().all(follows))?;
    for family in Family::BOTH {
        ensure!(passes(&lab, "a1", "b1", family, carried)?, "{family}: what fits does not pass");
    }
    let over = |node: &Node| condition(node, "PathMtuTooSmall").is_none() && !is_told(node);
    wait_for(PATIENCE, "nothing to be wrong", || lab.nodes().iter().all(over))
        .with_context(|| lab.troubleshooting())?;
    Ok(())
}

#[test]
fn what_a_router_calls_too_big_is_told_to_pods_and_with_the_setting_that_helps() -> Result<()> {
    check_narrow_path("mtu-ptb", Underlay::Routed, "ipv6", 70)
}

#[test]
fn what_a_switch_drops_without_a_word_is_told_to_pods_too() -> Result<()> {
    check_narrow_path("mtu-hole", Underlay::L2, "ipv4", 50)
}
