//! What happens to nodes while pods run on them: links, addresses, other nodes and other people's hands.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, census, lab, load, sh, wait_until_holds};
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, Node, Underlay};

fn talks(lab: &Lab) -> Result<()> {
    lab.wait_for_matrix(PATIENCE).map(drop)
}

/// Waits until a shell's test holds on the node; shows `look` if it never does.
fn wait_until(node: &Node, what: &str, look: &str, test: impl Fn(&str) -> bool) -> Result<()> {
    let mut last = String::new();
    wait_for(Duration::from_secs(15), &format!("{what} on {}", node.name()), || {
        last = sh(node, look).unwrap_or_else(|error| format!("{error:#}"));
        test(&last)
    })
    .map(drop)
    .with_context(|| format!("{look}:\n{last}\n{}", node.troubleshooting()))
}

fn default_routes(node: &str) -> String {
    format!("{node}; ip route replace default via 172.30.0.254; ip -6 route replace default via fd30::fffe")
}

#[test]
fn the_uplinks_mtu_is_followed_by_device_and_pods() -> Result<()> {
    let lab = lab("mtu", "vxlan")?;
    let check = |uplink: u32, pods: u32| -> Result<()> {
        for node in lab.nodes() {
            lab.underlay().set_uplink_mtu(node.name(), node.netns(), uplink)?;
        }
        for node in lab.nodes() {
            wait_until(node, "the device's MTU", "ip -o link show type vxlan", |text| {
                text.contains(&format!(" mtu {pods} "))
            })?;
            wait_for(PATIENCE, "the status to say so", || node.status().is_ok_and(|status| status["podMtu"] == pods))?;
        }
        // Pods that were there before.
        for pod in lab.pods() {
            for family in ["-4", "-6"] {
                let route = || pod.netns().output(&["ip", family, "route", "show", "default"]).unwrap_or_default();
                wait_for(PATIENCE, &format!("MTU {pods} in {}", pod.name()), || {
                    route().contains(&format!("mtu {pods}"))
                })
                .with_context(route)?;
            }
        }
        talks(&lab)
    };
    check(1400, 1350)?;
    check(1500, 1450)?;
    check(9000, 8950)
}

#[test]
fn an_uplink_that_goes_down_comes_back_with_all_that_went_with_it() -> Result<()> {
    for fabric in ["vxlan", "host-gw"] {
        let lab = lab(&format!("down-{fabric}"), fabric)?;
        let node = lab.node("n1")?;
        // The cable.
        lab.underlay().unplug("n1")?;
        ensure!(lab.matrix()?.check().is_err(), "n1 has no cable");
        lab.underlay().replug("n1")?;
        talks(&lab)?;
        // The link: IPv4 routes by it vanish without a word, IPv6 addresses go.
        sh(node, "ip link set eth0 down && ip link set eth0 up")?;
        sh(node, &default_routes("ip addr add fd30::1/64 dev eth0 nodad"))?;
        talks(&lab)?;
    }
    Ok(())
}

#[test]
fn addresses_flushed_and_set_again_by_a_network_manager_cost_nothing_for_long() -> Result<()> {
    for fabric in ["vxlan", "host-gw"] {
        let lab = lab(&format!("reload-{fabric}"), fabric)?;
        let node = lab.node("n1")?;
        let before = census(node)?;
        let reload = "ip addr flush dev eth0 scope global; ip route flush dev eth0; ip -6 route flush dev eth0; \
                      ip addr add 172.30.0.1/24 dev eth0; ip addr add fd30::1/64 dev eth0 nodad";
        for _ in 0..3 {
            sh(node, &default_routes(reload))?;
            talks(&lab)?;
        }
        ensure!(node.status()?["ready"] == true, "{:#}", node.status()?);
        // The uplink's own entries are the network manager's to set, and it sets fewer than the lab did.
        let ours =
            |text: &str| text.lines().filter(|line| !line.contains("eth0")).map(str::to_owned).collect::<Vec<_>>();
        let mut after = Vec::new();
        wait_for(PATIENCE, "everything of ours to be back", || {
            after = census(node).map(|text| ours(&text)).unwrap_or_default();
            after == ours(&before)
        })
        .with_context(|| format!("{:#?}\nbecame\n{after:#?}", ours(&before)))?;
    }
    Ok(())
}

/// What a reload of systemd-networkd does: all addresses off, and on again a moment later. Nothing is lost but what the
/// missing address itself costs, and what stands on the address is not made again.
#[test]
fn a_reload_of_the_uplinks_addresses_leaves_the_device_alone() -> Result<()> {
    let lab = lab("briefly", "vxlan")?;
    let node = lab.node("n1")?;
    let device = || sh(node, "ip -o link show type vxlan | cut -d: -f1,2");
    let (before, load) = (device()?, load(&lab, 2000)?);
    let mut longest = Duration::ZERO;
    for family in ["-4", "-6"] {
        for _ in 0..3 {
            let began = Instant::now();
            sh(node, &format!("ip {family} addr flush dev eth0 scope global; ip {family} route flush dev eth0"))?;
            let seen = || {
                sh(node, &format!("ip {family} -o addr show dev eth0 scope global")).is_ok_and(|text| text.is_empty())
            };
            wait_for(PATIENCE, "the address to be gone", seen)?;
            let again = "ip addr replace 172.30.0.1/24 dev eth0; ip addr replace fd30::1/64 dev eth0 nodad";
            sh(node, &default_routes(again))?;
            let missing = began.elapsed();
            longest = longest.max(missing);
            load.wait_for_answers(500, PATIENCE)?;
            eprintln!("address {family} missing for {missing:?}");
            ensure!(device()? == before, "{before} became {}", device()?);
        }
    }
    let report = load.stop()?;
    eprintln!("{report}");
    ensure!(report.tcp.resets == 0 && report.tcp.broken.is_empty(), "{report}");
    ensure!(report.udp.longest_gap < longest + Duration::from_secs(1), "{report}");
    ensure!(node.status()?["conditions"] == json!([]), "{:#}", node.status()?);
    Ok(())
}

fn move_node(lab: &Lab, name: &str, v4: &str, v6: &str) -> Result<()> {
    let mut object = lab.get("Node", name)?.context("a Node")?;
    object["status"]["addresses"][0]["address"] = v4.into();
    object["status"]["addresses"][1]["address"] = v6.into();
    lab.put(&object)
}

#[test]
fn a_node_that_changes_its_address_is_followed_by_its_peers() -> Result<()> {
    for fabric in ["vxlan", "host-gw"] {
        let lab = lab(&format!("moved-{fabric}"), fabric)?;
        let node = lab.node("n1")?;
        let change = "ip addr flush dev eth0 scope global; ip addr add 172.30.0.101/24 dev eth0; \
                      ip addr add fd30::101/64 dev eth0 nodad";
        sh(node, &default_routes(change))?;
        move_node(&lab, "n1", "172.30.0.101", "fd30::101")?;
        let advertised = || node.status().is_ok_and(|status| status["addresses"].to_string().contains("172.30.0.101"));
        wait_for(PATIENCE, "n1 to advertise its new address", advertised).with_context(|| lab.troubleshooting())?;
        lab.wait_for_matrix(PATIENCE)?;
        let peer = lab.node("n2")?;
        let traces = "bridge fdb show; ip route; ip -6 route; ip neigh show nud permanent";
        wait_until(peer, "no trace of the old address", traces, |text| {
            text.contains("172.30.0.101") && !text.contains("172.30.0.1 ") && !text.contains("fd30::1 ")
        })?;
    }
    Ok(())
}

/// Whatever of n3 a peer has: routes, neighbours, forwarding entries.
const OF_N3: &str =
    "ip route; ip -6 route; ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show";

fn knows_n3(text: &str) -> bool {
    ["10.244.3.", "fd00:10:244:3:", "172.30.0.3"].iter().any(|trace| text.contains(trace))
}

#[test]
fn of_a_removed_node_nothing_is_left_on_others_also_when_they_were_down() -> Result<()> {
    for fabric in ["vxlan", "host-gw"] {
        let mut lab = lab(&format!("gone-{fabric}"), fabric)?;
        lab.set_config(&Map::from_iter([("leaseSeconds".into(), json!(4))]))?;
        let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
        ensure!(knows_n3(&sh(n1, OF_N3)?) && knows_n3(&sh(n2, OF_N3)?), "{}", sh(n1, OF_N3)?);
        n2.kill_agent()?;
        lab.node("n3")?.kill_agent()?;
        lab.delete(&lab.get("Node", "n3")?.context("a Node")?)?;
        wait_until(n1, "nothing of n3", OF_N3, |text| !knows_n3(text))?;
        // It died knowing it.
        ensure!(knows_n3(&sh(n2, OF_N3)?), "{}", sh(n2, OF_N3)?);
        n2.start_agent()?;
        n2.wait_ready()?;
        wait_until(n2, "nothing of n3", OF_N3, |text| !knows_n3(text))?;
        let peers = n1.status()?["peers"].clone();
        ensure!(peers.as_array().is_some_and(|peers| peers.len() == 1), "{peers:#}");
    }
    Ok(())
}

#[test]
fn a_node_that_registers_again_under_another_uid_keeps_its_pods_talking() -> Result<()> {
    let lab = lab("uid", "vxlan")?;
    let object = lab.get("Node", "n2")?.context("a Node")?;
    let mut again = object.clone();
    again["metadata"]["uid"] = "00000000-0000-4000-8000-00000000beef".into();
    // At once, and as a kubelet does: gone for a while, then another.
    lab.put(&again)?;
    talks(&lab)?;
    lab.delete(&object)?;
    lab.put(&object)?;
    lab.wait_for_matrix(PATIENCE)?;
    let node = lab.node("n2")?;
    let good = || node.status().is_ok_and(|status| status["ready"] == true && status["conditions"] == json!([]));
    wait_for(PATIENCE, "n2 to be well", good).with_context(|| format!("{:#}", node.status().unwrap_or_default()))?;
    Ok(())
}

#[test]
fn what_is_flushed_by_hand_comes_back_to_the_last_entry() -> Result<()> {
    let lab = lab("flush", "vxlan")?;
    let node = lab.node("n1")?;
    node.disown_nft_table()?;
    let before = census(node)?;
    for damage in [
        "ip route flush proto 84; ip -6 route flush proto 84",
        "nft flush ruleset",
        "ip neigh flush nud permanent; ip -6 neigh flush nud permanent",
        "ip route flush table main proto 84; nft flush ruleset; ip link del $(ip -o link show type vxlan | cut -d: -f2)",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
        talks(&lab).with_context(|| damage)?;
    }
    Ok(())
}

#[test]
fn direct_routing_is_used_inside_a_rack_and_vxlan_across() -> Result<()> {
    let lab = Lab::builder("racks")
        .nodes(4)
        .pods_per_node(1)
        .underlay(Underlay::Racks)
        .fabric("vxlan")
        .config("crossSubnet", json!(true))
        .up()?;
    lab.wait_for_matrix(PATIENCE)?;
    let by: Value = lab.node("n1")?.status()?["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|peer| (peer["node"].as_str().unwrap_or_default().to_owned(), peer["fabric"].clone()))
        .collect::<Map<_, _>>()
        .into();
    let is = |node: &str, fabric: &str| by[node].as_str().is_some_and(|by| by.starts_with(fabric));
    ensure!(is("n2", "host-gw") && is("n3", "vxlan") && is("n4", "vxlan"), "{by}");
    let routes = sh(lab.node("n1")?, "ip route; ip -6 route")?;
    for direct in ["10.244.2.0/24 via 172.30.1.2 dev eth0", "fd00:10:244:2::/64 via fd30:0:0:1::2 dev eth0"] {
        ensure!(routes.contains(direct), "{direct} is not in:\n{routes}");
    }
    Ok(())
}
