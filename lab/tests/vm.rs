//! Whole nodes under kernels that have what this machine's may lack: `cargo xtask vm`.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, census, lab, sh, status, wait_until_holds, wait_until_steady};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, Pair, Running};
use tartan_lab::{Lab, Underlay};

/// Probes answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;

/// Two nodes with a pod each that talk by ipip over a family of underlay, and what each of their packets may hold.
fn check_ipip(name: &str, underlay: &str, mtu: u32) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).pods_per_node(1).fabric("ipip").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "ipip")?;
    let node = lab.node("n1")?;
    let said = status(node)?;
    ensure!(said["podMtu"] == mtu, "pods' packets may hold {mtu} bytes, and not what {said} says");
    let before = census(node)?;
    for damage in [
        "for l in $(ip -o link show group default | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        "ip route flush table main proto 84; ip -6 route flush table main proto 84",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()
}

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_ipip_carries_both_families_over_ipv4() -> Result<()> {
    check_ipip("ipip4", "ipv4", 1480)
}

#[test]
#[ignore = "wants the kernel module ip6_tunnel: `cargo xtask vm`"]
fn vm_ipip_carries_both_families_over_ipv6() -> Result<()> {
    check_ipip("ipip6", "ipv6", 1460)
}

/// Into each of these from the one before, under load.
fn check_changes(mut lab: Lab, fabrics: &[&str]) -> Result<()> {
    lab.wait_for_matrix(PATIENCE)?;
    let load = load(&lab)?;
    for fabric in fabrics {
        lab.set_fabric(fabric)?;
        wait_until_steady(&lab, fabric)?;
    }
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

/// As much as an emulated processor bears: bulk TCP fills its queues, and what they drop is not the change's doing.
fn load(lab: &Lab) -> Result<Running> {
    let pods = lab.pod_endpoints();
    let pairs: Vec<Pair> = pods.iter().zip(pods.iter().cycle().skip(1)).map(|(a, b)| (a.clone(), b.clone())).collect();
    let load = Load::new().interval(Duration::from_millis(10)).udp_mtu_sized([pairs[0].clone()]);
    let load = load.udp(pairs.clone()).tcp_idle(pairs).start()?;
    load.wait_for_answers(PROBES, PATIENCE)?;
    Ok(load)
}

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed() -> Result<()> {
    check_changes(lab("there", "vxlan")?, &["ipip", "host-gw", "ipip", "vxlan"])
}

#[test]
#[ignore = "wants the kernel module ip6_tunnel: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed_over_ipv6() -> Result<()> {
    let lab = Lab::builder("there6").nodes(2).pods_per_node(1).fabric("vxlan").config("underlay", json!("ipv6"));
    check_changes(lab.up()?, &["ipip", "host-gw", "ipip", "vxlan"])
}

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_ipip_is_for_peers_behind_a_router_where_it_is_for_those_only() -> Result<()> {
    let lab = Lab::builder("racks")
        .nodes(4)
        .pods_per_node(1)
        .underlay(Underlay::Racks)
        .fabric("ipip")
        .config("crossSubnet", json!(true))
        .up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let said = status(lab.node("n1")?)?;
    let peers = said["peers"].as_array().into_iter().flatten();
    let by: Map<String, Value> =
        peers.map(|peer| (peer["node"].as_str().unwrap_or_default().to_owned(), peer["fabric"].clone())).collect();
    let is = |node: &str, fabric: &str| by[node].as_str().is_some_and(|by| by.starts_with(fabric));
    ensure!(is("n2", "host-gw") && is("n3", "ipip") && is("n4", "ipip"), "{by:?}");
    Ok(())
}
