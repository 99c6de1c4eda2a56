//! Whole nodes: real agents, the real CNI binary, packets on their way while things happen.
//!
//! Each test is one event. Probes run before, through and after it; whatever is lost or reset fails the test, and the
//! message carries the probes' own report and how to enter each namespace.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, census, condition, lab, load, sh, wait_until_holds, wait_until_steady};
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, Node, Underlay};

/// Probes answered before an event begins and after it has ended. Soak runs take more, see `long.rs`.
const PROBES: u64 = 3_000;

/// Runs `event` under load and asserts that nobody noticed.
fn unnoticed(lab: &mut Lab, event: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    common::unnoticed(lab, PROBES, event).map(drop)
}

#[test]
fn every_pod_reaches_every_other_one_by_vxlan() -> Result<()> {
    lab("vx", "vxlan")?.matrix()?.check()
}

#[test]
fn every_pod_reaches_every_other_one_by_host_gw() -> Result<()> {
    lab("hg", "host-gw")?.matrix()?.check()
}

#[test]
fn vxlan_works_over_an_ipv6_underlay() -> Result<()> {
    let lab = Lab::builder("v6ul").nodes(2).pods_per_node(1).fabric("vxlan").config("underlay", json!("ipv6")).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let mtu = lab.node("n1")?.status()?["podMtu"].clone();
    ensure!(mtu == 1430, "1500 less 70 for IPv6 is 1430, but pods have {mtu}");
    Ok(())
}

#[test]
fn vxlan_crosses_routers_and_direct_routing_stays_on_the_link() -> Result<()> {
    let lab = Lab::builder("routed").nodes(2).pods_per_node(1).underlay(Underlay::Routed).fabric("vxlan").up()?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

#[test]
fn no_connection_is_kept_of_packets_between_nodes() -> Result<()> {
    let mut lab = lab("untracked", "vxlan")?;
    for (fabric, port) in [("vxlan", 8472), ("udp", 8285), ("wireguard", 51820)] {
        lab.set_fabric(fabric)?;
        wait_until_steady(&lab, fabric)?;
        lab.matrix()?.check()?;
        for node in lab.nodes() {
            let kept = sh(node, "cat /proc/net/nf_conntrack")?;
            ensure!(kept.contains("dport=80 "), "nothing of what pods say is there, so this proves nothing:\n{kept}");
            ensure!(!kept.contains(&format!("dport={port} ")), "{} keeps those of {fabric}:\n{kept}", node.name());
        }
    }
    Ok(())
}

#[test]
fn none_leaves_the_way_between_nodes_to_somebody_else() -> Result<()> {
    let lab = Lab::builder("none").nodes(2).pods_per_node(1).fabric("none").up()?;
    for (node, other) in [("n1", 2), ("n2", 1)] {
        let node = lab.node(node)?;
        // Somebody else's routes: refused if there were one of ours in their place.
        sh(node, &format!("ip route add 10.244.{other}.0/24 via 172.30.0.{other} metric 1024"))?;
        sh(node, &format!("ip -6 route add fd00:10:244:{other}::/64 via fd30::{other} metric 1024"))?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let said = lab.node("n1")?.status()?;
    ensure!(said["podMtu"] == 1500 && said["conditions"] == json!([]), "{said}");
    Ok(())
}

#[test]
fn host_gw_names_the_peer_behind_a_router() -> Result<()> {
    let lab = Lab::builder("offlink").nodes(2).pods_per_node(1).underlay(Underlay::Routed).fabric("host-gw").up()?;
    let mut last = Value::Null;
    wait_for(PATIENCE, "the condition PeerOffLink", || {
        last = lab.nodes()[0].status().unwrap_or_default();
        last["conditions"].as_array().is_some_and(|all| all.iter().any(|c| c["reason"] == "PeerOffLink"))
    })
    .with_context(|| format!("{last}\n{}", lab.troubleshooting()))?;
    ensure!(last["conditions"].to_string().contains("set spec.fabric to vxlan"), "{last}");
    Ok(())
}

#[test]
fn kill_of_an_agent_is_not_noticed_and_needs_no_change_of_the_kernel() -> Result<()> {
    let mut lab = lab("kill", "vxlan")?;
    unnoticed(&mut lab, |lab| {
        let node = lab.node("n1")?;
        node.kill_agent()?;
        node.start_agent()?;
        node.wait_ready().map(drop)
    })?;
    let applied = lab.node("n1")?.status()?["kernel"]["applied"].clone();
    ensure!(applied == 0, "the new agent changed the kernel {applied} times\n{}", lab.troubleshooting());
    Ok(())
}

#[test]
fn restart_of_an_agent_is_not_noticed() -> Result<()> {
    let mut lab = lab("restart", "vxlan")?;
    unnoticed(&mut lab, |lab| lab.node("n2")?.restart_agent().map(drop))
}

#[test]
fn the_store_can_go_away_and_come_back() -> Result<()> {
    let mut lab = lab("away", "vxlan")?;
    unnoticed(&mut lab, |lab| {
        lab.store_away()?;
        lab.node("n1")?.output(&["ip", "route"])?;
        lab.store_back()
    })?;
    lab.set_fabric("host-gw")?;
    wait_until_steady(&lab, "host-gw")
}

#[test]
fn an_agent_that_starts_without_its_store_repairs_serves_and_takes_nothing_away() -> Result<()> {
    let mut lab = lab("memory", "vxlan")?;
    wait_until_steady(&lab, "vxlan")?;
    let node = lab.node("n1")?;
    let knows_all = || {
        let text = std::fs::read_to_string(node.state_dir().join("snapshot.json")).unwrap_or_default();
        let says = |line: &&str| line.contains("NodeNetwork") && line.contains("\"sends\":[\"vxlan/");
        text.lines().filter(says).count() == 3 && text.contains("\"late\"")
    };
    lab.announce_pod("n1", "late")?;
    wait_for(PATIENCE, "the snapshot to hold what all nodes say, and a pod that is to start", knows_all)?;
    let unread = |node: &Node| condition(node, "StoreUnread").is_some();
    // What an agent told the kernel after its last snapshot.
    let unknown = "10.244.77.0/24 via 172.30.0.2 dev eth0 proto 84 metric 1024";
    lab.store_away()?;
    node.kill_agent()?;
    sh(node, &format!("ip route add {unknown}"))?;
    let before = census(node)?;
    let wiped = "ip link del $(ip -o link show type vxlan | cut -d: -f2); nft delete table inet tartan; \
                 ip route flush proto 84; ip -6 route flush proto 84";
    for damage in ["true", wiped] {
        if damage == wiped {
            node.kill_agent()?;
            sh(node, &format!("{wiped}; ip route add {unknown}"))?;
        }
        node.start_agent()?;
        node.wait_ready()?;
        wait_until_holds(node, &before).with_context(|| damage)?;
        lab.wait_for_matrix(PATIENCE)?;
        ensure!(unread(node), "{:#}", node.status()?);
    }
    lab.add_pod("n1", "late")?;
    lab.wait_for_matrix(PATIENCE)?;
    let node = lab.node("n1")?;
    ensure!(sh(node, "ip route")?.contains("10.244.77.0/24"), "{}", sh(node, "ip route")?);
    lab.store_back()?;
    let caught_up = || !unread(node) && sh(node, "ip route").is_ok_and(|routes| !routes.contains("10.244.77.0/24"));
    wait_for(PATIENCE, "n1 to go by the store again", caught_up).with_context(|| lab.troubleshooting())?;
    wait_until_steady(&lab, "vxlan")?;
    lab.remove_pod("late")?;
    lab.matrix()?.check()
}

#[test]
fn what_others_delete_is_repaired() -> Result<()> {
    let lab = lab("repair", "vxlan")?;
    let node = lab.node("n1")?;
    let device = node.output(&["sh", "-c", "ip -o link show type vxlan | awk -F': ' '{print $2}'"])?.trim().to_owned();
    let pod = lab.pod("a1")?.endpoint();
    node.disown_nft_table()?;
    for damage in [
        format!("ip link del {device}"),
        "ip route del 10.244.2.0/24".into(),
        "ip -6 route del fd00:10:244:2::/64".into(),
        format!("ip route del {}", pod.v4),
        format!("ip neigh del 10.244.2.0 dev {device}"),
        format!(
            "bridge fdb show dev {device} | head -1 | while read mac rest; do bridge fdb del $mac dev {device}; done"
        ),
        "nft delete table inet tartan".into(),
        "ip addr del 10.244.1.0/32 dev lo".into(),
        "sysctl -qw net.ipv4.ip_forward=0".into(),
        "sysctl -qw net.ipv6.conf.all.forwarding=0".into(),
    ] {
        node.output(&["sh", "-c", &damage]).with_context(|| damage.clone())?;
        lab.wait_for_matrix(Duration::from_secs(5)).with_context(|| damage.clone())?;
        let whole = || node.status().is_ok_and(|status| status["ready"] == true);
        wait_for(Duration::from_secs(5), "the node to be whole", whole).with_context(|| damage.clone())?;
    }
    let repaired = node.status()?["kernel"]["repaired"].as_u64().unwrap_or(0);
    ensure!(repaired >= 10, "{repaired} repairs\n{}", lab.troubleshooting());
    Ok(())
}

#[test]
fn a_quiet_node_changes_nothing() -> Result<()> {
    let mut lab = lab("quiet", "vxlan")?;
    let counts = |lab: &Lab| -> Result<Vec<Value>> {
        lab.nodes().iter().map(|node| Ok(node.status()?["kernel"]["applied"].clone())).collect()
    };
    let before = counts(&lab)?;
    // A lease of four seconds makes every node give signs of life each second: the same traffic, sooner.
    lab.set_config(&Map::from_iter([("leaseSeconds".into(), json!(4))]))?;
    let load = load(&lab, PROBES)?;
    load.wait_for_answers(5 * PROBES, PATIENCE)?;
    load.stop()?.check_nothing_lost()?;
    ensure!(counts(&lab)? == before, "{before:?} became {:?}", counts(&lab)?);
    Ok(())
}

#[test]
fn pods_come_and_go_and_leave_nothing() -> Result<()> {
    let mut lab = Lab::builder("churn").nodes(1).pods_per_node(0).fabric("host-gw").up()?;
    let before = census(lab.node("n1")?)?;
    for round in 0..3 {
        for pod in 0..8 {
            lab.add_pod("n1", &format!("p{round}x{pod}"))?;
        }
        lab.wait_for_matrix(PATIENCE)?.check()?;
        for pod in 0..8 {
            lab.remove_pod(&format!("p{round}x{pod}"))?;
        }
    }
    wait_until_holds(lab.node("n1")?, &before)
}

#[test]
fn a_pool_that_changes_how_it_is_reached_is_not_noticed() -> Result<()> {
    let mut lab = lab("pools", "vxlan")?;
    let pool = |name: &str, cidr: &str, block_size: u8, mode: &str| {
        json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPPool",
            "metadata": {"name": name},
            "spec": {"cidr": cidr, "blockSize": block_size, "disabled": true, "ipipMode": "Never", "vxlanMode": mode},
        })
    };
    unnoticed(&mut lab, |lab| {
        for (mode, fabric) in [("Never", "host-gw"), ("Always", "vxlan"), ("CrossSubnet", "host-gw")] {
            // Of n2's pods, whichever node they are reached from.
            lab.put(&pool("of-n2", "10.244.2.0/24", 26, mode))?;
            lab.put(&pool("of-n2-v6", "fd00:10:244:2::/64", 122, mode))?;
            let by = |node: &str, peer: &str, fabric: &str| -> Result<bool> {
                let said = lab.node(node)?.status()?;
                let mut peers = said["peers"].as_array().into_iter().flatten();
                let is = |it: &&Value| it["node"] == peer;
                Ok(peers.find(is).is_some_and(|it| it["fabric"].as_str().is_some_and(|by| by.starts_with(fabric))))
            };
            let settled = || -> Result<bool> {
                Ok(by("n1", "n2", fabric)?
                    && by("n3", "n2", fabric)?
                    && by("n2", "n1", "vxlan")?
                    && by("n1", "n3", "vxlan")?)
            };
            wait_for(PATIENCE, "n2's pods to be reached otherwise, and nobody else's", || settled().unwrap_or(false))
                .with_context(|| lab.troubleshooting())?;
        }
        Ok(())
    })
}
