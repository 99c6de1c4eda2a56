//! What is on the wire, as tshark reads it, and what a kernel's device made by hand makes of it: VXLAN (RFC 7348), with and
//! without the group policy extension, learning or not. IP in IP is in `vm.rs`.

mod common;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, capture, lab, sh, unnoticed, wait_until_steady};
use serde_json::{Map, json};
use tartan_lab::probe::{ping, wait_for};
use tartan_lab::{Endpoint, Family, Lab, Node};

/// Probes answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;
/// Bytes of an echo.
const ECHO: usize = 84;

fn vxlan_headers(name: &str, underlay: &str) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).pods_per_node(1).fabric("vxlan").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "vxlan")?;
    let outer = if underlay == "ipv4" { "ip" } else { "ipv6" };
    let fields = [
        &format!("{outer}.src"),
        &format!("{outer}.dst"),
        "udp.srcport",
        "udp.dstport",
        "vxlan.flags",
        "vxlan.vni",
        "vxlan.reserved8",
        "eth.src",
    ];
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    let rows = capture(&lab, "udp port 8472", &["-d", "udp.port==8472,vxlan"], &fields, || {
        Family::BOTH.into_iter().for_each(|family| drop(ping(&a, b.address(family), ECHO, PATIENCE)));
    })?;
    let node = |name: &str| -> Result<String> {
        let node = lab.node(name)?.endpoint();
        Ok(if underlay == "ipv4" { node.v4.to_string() } else { node.v6.to_string() })
    };
    let (n1, n2) = (node("n1")?, node("n2")?);
    for row in rows {
        let [src, dst, src_port, dst_port, flags, vni, reserved, macs] = &row[..] else { panic!("{row:?}") };
        let first = |field: &str| field.split(',').next().unwrap_or_default().to_owned();
        let ends = [first(src), first(dst)];
        ensure!(ends == [n1.clone(), n2.clone()] || ends == [n2.clone(), n1.clone()], "{row:?}");
        // Section 5: the I flag alone, the identifier, nothing reserved; the port by which flows are told from each other
        // is one of the kernel's own range.
        ensure!([&first(dst_port), flags, vni, reserved] == ["8472", "0x0800", "1", "0"], "{row:?}");
        ensure!(first(src_port).parse::<u16>().is_ok_and(|port| port >= 32768), "{row:?}");
        ensure!(macs.split(',').count() == 2, "an Ethernet frame inside another: {row:?}");
    }
    Ok(())
}

#[test]
fn vxlan_headers_are_those_of_the_rfc_over_ipv4() -> Result<()> {
    vxlan_headers("wire4", "ipv4")
}

#[test]
fn vxlan_headers_are_those_of_the_rfc_over_ipv6() -> Result<()> {
    vxlan_headers("wire6", "ipv6")
}

#[test]
fn a_device_made_by_hand_is_a_peer() -> Result<()> {
    let lab = Lab::builder("hand").nodes(1).pods_per_node(1).fabric("vxlan").up()?;
    wait_until_steady(&lab, "vxlan")?;
    let outside = lab.underlay().outside();
    let (mac, uid) = ("02:00:00:00:00:99", "00000000-0000-4000-8000-000000000099");
    let told = || -> Option<String> {
        let said = lab.get("NodeNetwork", "n1").ok()??;
        let mut accepts = said["spec"]["accepts"].as_array().into_iter().flatten();
        let ours = accepts.find(|end| end["instance"].as_str().is_some_and(|at| at.starts_with("vxlan")))?;
        Some(ours["mac"].as_str()?.to_owned())
    };
    // A node whose peers are none is steady before it has said what it accepts.
    wait_for(PATIENCE, "n1 to say its MAC", || told().is_some())?;
    let ours = &told().context("told just now")?;
    let n1 = lab.node("n1")?.endpoint();
    outside.netns.ip(&format!(
        "link add hand address {mac} type vxlan id 1 dstport 8472 local {} nolearning\nlink set hand mtu 1450 up\n\
         address add 10.244.99.1/32 dev lo\naddress add fd00:10:244:99::1/128 dev lo nodad\n\
         route add 10.244.1.0/24 via 10.244.1.0 dev hand onlink src 10.244.99.1\n\
         neigh add 10.244.1.0 lladdr {ours} dev hand nud permanent\nneigh add fe80::1 lladdr {ours} dev hand nud permanent\n",
        outside.v4
    ))?;
    outside.netns.ip_of("-6", "route add fd00:10:244:1::/64 via fe80::1 dev hand src fd00:10:244:99::1\n")?;
    outside.netns.output(&["bridge", "fdb", "append", ours, "dev", "hand", "dst", &n1.v4.to_string()])?;
    let cidrs = ["10.244.99.0/24", "fd00:10:244:99::/64"];
    lab.put(&json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "hand", "uid": uid},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": [{"type": "InternalIP", "address": outside.v4}]},
    }))?;
    lab.put(&json!({
        "apiVersion": "tartan.dev/v1alpha1",
        "kind": "NodeNetwork",
        "metadata": {"name": "hand"},
        "spec": {
            "nodeUid": uid,
            "addresses": [outside.v4],
            "fabricAddresses": ["10.244.99.0", "fd00:10:244:99::"],
            "blocks": cidrs,
            "mtu": 1450,
            "accepts": [{"instance": "vxlan/ipv4/vni1/port8472", "address": outside.v4, "mac": mac}],
            "sends": ["vxlan/ipv4/vni1/port8472"],
            "edition": 1,
            "heartbeat": 1,
        },
    }))?;
    let pod = lab.pod("a1")?.endpoint();
    let hand = Endpoint { v4: "10.244.99.1".parse()?, v6: "fd00:10:244:99::1".parse()?, ..outside };
    for (from, to) in [(&pod, &hand), (&hand, &pod)] {
        for family in Family::BOTH {
            let mut last = String::new();
            let answers = || match ping(from, to.address(family), 1450, std::time::Duration::from_secs(1)) {
                Ok(_) => true,
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            };
            let what = format!("{} to reach {} by {family}", from.name, to.name);
            wait_for(PATIENCE, &what, answers).with_context(|| format!("{last}\n{}", lab.troubleshooting()))?;
        }
    }
    Ok(())
}

/// The one vxlan device, by its number and as `ip` shows it.
fn device(node: &Node) -> Result<(String, String)> {
    let shown = sh(node, "ip -d -o link show type vxlan")?;
    let (index, _) = shown.split_once(':').with_context(|| format!("one device in {shown:?}"))?;
    Ok((index.to_owned(), shown))
}

#[test]
fn devices_learn_from_packets_where_they_are_told_to_and_nobody_notices() -> Result<()> {
    let mut lab = lab("learn", "vxlan")?;
    wait_until_steady(&lab, "vxlan")?;
    let (before, shown) = device(lab.node("n1")?)?;
    ensure!(shown.contains("nolearning"), "{shown}");
    unnoticed(&mut lab, PROBES, |lab| {
        for learning in [true, false] {
            lab.set_config(&Map::from_iter([("vxlan".into(), json!({"learning": learning}))]))?;
            let follows = |node: &Node| device(node).is_ok_and(|(_, shown)| shown.contains("nolearning") != learning);
            wait_for(PATIENCE, "devices to follow", || lab.nodes().iter().all(follows))?;
            let (now, shown) = device(lab.node("n1")?)?;
            ensure!(now == before, "the device is another one: {shown}");
        }
        Ok(())
    })
    .map(drop)
}

#[test]
fn marks_cross_nodes_where_the_group_policy_extension_is_on() -> Result<()> {
    let mut lab = lab("gbp", "vxlan")?;
    wait_until_steady(&lab, "vxlan")?;
    // The kernel has one kind of device at a port.
    unnoticed(&mut lab, PROBES, |lab| {
        lab.set_config(&Map::from_iter([("vxlan".into(), json!({"gbp": true, "port": 8473}))]))?;
        let only = json!(["vxlan/ipv4/vni1/port8473/gbp"]);
        let went_over =
            |node: &Node| node.status().is_ok_and(|said| said["phase"] == "steady" && said["receives"] == only);
        wait_for(PATIENCE, "the cluster to go over", || lab.nodes().iter().all(went_over))
            .map(drop)
            .with_context(|| lab.troubleshooting())
    })?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    lab.node("n1")?.netns().nft(&format!(
        "table inet group {{\nchain forward {{\ntype filter hook forward priority 10\nip daddr {} meta mark set 0x42\n}}\n}}\n",
        b.v4
    ))?;
    lab.node("n2")?.netns().nft(&format!(
        "table inet group {{\nchain came {{\ntype filter hook prerouting priority -310\n\
         ip daddr {} meta mark and 0xffff == 0x42 counter\n}}\n}}\n",
        b.v4
    ))?;
    let rows = capture(
        &lab,
        "udp port 8473",
        &["-d", "udp.port==8473,vxlan"],
        &["vxlan.flag_g", "vxlan.gbp", "ip.dst"],
        || {
            drop(ping(&a, b.v4.into(), ECHO, PATIENCE));
        },
    )?;
    let marked: Vec<&Vec<String>> = rows.iter().filter(|row| row[1] == "66").collect();
    ensure!(!marked.is_empty() && marked.iter().all(|row| row[2].ends_with(&b.v4.to_string())), "{rows:?}");
    let counted = sh(lab.node("n2")?, "nft list table inet group")?;
    ensure!(!counted.contains("packets 0 "), "{counted}");
    Ok(())
}

#[test]
fn a_capture_that_hears_nothing_is_no_proof() -> Result<()> {
    let lab = Lab::builder("deaf").nodes(1).pods_per_node(0).fabric("none").up()?;
    let heard = capture(&lab, "udp port 1", &[], &["udp.dstport"], || {});
    ensure!(heard.is_err(), "{heard:?}");
    Ok(())
}
