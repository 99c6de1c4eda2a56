//! Whole nodes under kernels that have what this machine's may lack: `cargo xtask vm`.

mod common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, capture, census, check_changes, lab, sh, wait_until_holds, wait_until_steady};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Pair, Talk, Transport, ping, wait_for};
use tartan_lab::{ECHO_PORT, Endpoint, Family, Lab, NAMESPACE, Underlay};

/// Two nodes with a pod each that talk by ipip over a family of underlay, and what each of their packets may hold.
fn check_ipip(name: &str, underlay: &str, mtu: u32) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).pods_per_node(1).fabric("ipip").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "ipip")?;
    let node = lab.node("n1")?;
    let said = node.status()?;
    ensure!(said["podMtu"] == mtu, "pods' packets may hold {mtu} bytes, and not what {said} says");
    let before = census(node)?;
    for damage in [
        "for l in $(ip -o link show group default | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        "ip route flush table main proto 84; ip -6 route flush table main proto 84",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()?;
    check_headers(&lab, underlay)?;
    check_no_notes(&lab)
}

/// The kernel notes the MTU of no destination behind the tunnel: with each change of a route it would throw away notes, and
/// with them the packets that had just found them.
fn check_no_notes(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let notes = sh(node, "ip route show cache")?;
        ensure!(notes.trim().is_empty(), "{} has noted: {notes}", node.name());
    }
    Ok(())
}

/// One IP header in front of the other and nothing between: RFC 2003 (protocol 4), RFC 4213 (41), RFC 2473 without its option.
fn check_headers(lab: &Lab, underlay: &str) -> Result<()> {
    let outer = if underlay == "ipv4" { "ip" } else { "ip6" };
    let filter = format!("{outer} proto 4 or {outer} proto 41");
    let fields = ["ip.proto", "ipv6.nxt", "ip.src", "ipv6.src"];
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    let rows = capture(lab, &filter, &[], &fields, || {
        Family::BOTH.into_iter().for_each(|family| drop(ping(&a, b.address(family), 84, PATIENCE)));
    })?;
    let inner: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| match (underlay, row[0].as_str(), row[1].as_str()) {
            // ICMP in IPv4, ICMPv6 in IPv6, each right behind the outer header; what else pods say is of no interest.
            ("ipv4", "4,1", "") | ("ipv6", "1", "4") => Some("ipv4"),
            ("ipv4", "41", "58") | ("ipv6", "", "41,58") => Some("ipv6"),
            _ => None,
        })
        .collect();
    ensure!(inner == BTreeSet::from(["ipv4", "ipv6"]), "{rows:?}");
    let first = |row: &Vec<String>| row[if underlay == "ipv4" { 2 } else { 3 }].split(',').next().map(str::to_owned);
    let ends: BTreeSet<Option<String>> = rows.iter().map(first).collect();
    let node = |name: &str| -> Result<Option<String>> {
        let node = lab.node(name)?.endpoint();
        Ok(Some(if underlay == "ipv4" { node.v4.to_string() } else { node.v6.to_string() }))
    };
    ensure!(ends.is_subset(&BTreeSet::from([node("n1")?, node("n2")?])), "outer packets are of nodes: {rows:?}");
    Ok(())
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

/// Every ordered pair with ipip in it.
const OF_IPIP: [&str; 8] = ["ipip", "host-gw", "ipip", "udp", "ipip", "wireguard", "ipip", "vxlan"];

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed() -> Result<()> {
    check_changes(lab("there", "vxlan")?, &OF_IPIP, Duration::ZERO)
}

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed_where_nodes_hear_3_seconds_apart() -> Result<()> {
    check_changes(lab("there-3", "vxlan")?, &OF_IPIP, Duration::from_secs(3))
}

#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed_where_nodes_hear_10_seconds_apart() -> Result<()> {
    check_changes(lab("there-10", "vxlan")?, &OF_IPIP, Duration::from_secs(10))
}

#[test]
#[ignore = "wants the kernel module ip6_tunnel: `cargo xtask vm`"]
fn vm_changes_into_ipip_and_out_of_it_are_not_noticed_over_ipv6() -> Result<()> {
    let lab = Lab::builder("there6").nodes(2).pods_per_node(1).fabric("vxlan").config("underlay", json!("ipv6"));
    check_changes(lab.up()?, &OF_IPIP, Duration::ZERO)
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
    let said = lab.node("n1")?.status()?;
    let peers = said["peers"].as_array().into_iter().flatten();
    let by: Map<String, Value> =
        peers.map(|peer| (peer["node"].as_str().unwrap_or_default().to_owned(), peer["fabric"].clone())).collect();
    let is = |node: &str, fabric: &str| by[node].as_str().is_some_and(|by| by.starts_with(fabric));
    ensure!(is("n2", "host-gw") && is("n3", "ipip") && is("n4", "ipip"), "{by:?}");
    Ok(())
}

/// `sit` sends each packet the way of the one before: peers on the link and peers behind a router need one each.
#[test]
#[ignore = "wants the kernel modules ipip and sit: `cargo xtask vm`"]
fn vm_ipip_reaches_peers_on_the_link_and_behind_a_router() -> Result<()> {
    let lab = Lab::builder("racks2").nodes(4).pods_per_node(1).underlay(Underlay::Racks).fabric("ipip").up()?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// Addresses of a Service as IPVS translates them on a node: kube-proxy's mode `ipvs`, by hand.
fn ipvs_service(lab: &Lab, last: u8, backend: &str) -> Result<Endpoint> {
    let (node, to) = (lab.node("n1")?, lab.endpoint(backend)?);
    let (v4, v6) = (Ipv4Addr::new(10, 96, 0, last), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, last.into()));
    sh(node, &format!("ip addr add {v4}/32 dev kube-ipvs0; ip addr add {v6}/128 dev kube-ipvs0 nodad"))?;
    for (service, pod) in [(v4.to_string(), to.v4.to_string()), (format!("[{v6}]"), format!("[{}]", to.v6))] {
        for transport in ["t", "u"] {
            let at = format!("-{transport} {service}:{ECHO_PORT}");
            sh(node, &format!("ipvsadm -A {at} -s rr && ipvsadm -a {at} -r {pod}:{ECHO_PORT} -m"))?;
        }
    }
    Ok(Endpoint { name: format!("the service of {backend}"), netns: node.netns().clone(), v4, v6 })
}

/// Waits until all connections of a pair come about, or none does.
fn wait_until(lab: &Lab, pair: &Pair, open: bool) -> Result<()> {
    let ways = || Family::BOTH.into_iter().flat_map(|family| Transport::BOTH.map(|by| (family, by)));
    let opens = |(family, by)| Talk::open(pair, family, by, Duration::from_secs(1)).is_ok();
    let what = format!("{} to {} to be {}", pair.0.name, pair.1.name, if open { "open" } else { "shut" });
    wait_for(PATIENCE, &what, || ways().all(|way| opens(way) == open)).map(drop).with_context(|| lab.troubleshooting())
}

#[test]
#[ignore = "wants the kernel module ip_vs: `cargo xtask vm`"]
fn vm_policy_is_asked_of_what_ipvs_translates() -> Result<()> {
    let lab = Lab::builder("ipvs").nodes(2).pods_per_node(2).fabric("vxlan").up()?;
    lab.wait_for_matrix(PATIENCE)?;
    sh(lab.node("n1")?, "ip link add kube-ipvs0 type dummy && ipvsadm -l && sysctl -qw net.ipv4.vs.conntrack=1")?;
    let (near, far) = (ipvs_service(&lab, 10, "a2")?, ipvs_service(&lab, 11, "b2")?);
    let (near, far) = ((lab.endpoint("a1")?, near), (lab.endpoint("a1")?, far));
    let put = |pod: &str, rules: Value| {
        let mut spec = json!({"podSelector": {"matchLabels": {"name": pod}}});
        spec.as_object_mut().into_iter().for_each(|spec| spec.extend(rules.as_object().cloned().unwrap_or_default()));
        lab.put(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": pod, "namespace": NAMESPACE},
            "spec": spec,
        }))
    };
    let pods = |name: &str| json!([{"podSelector": {"matchLabels": {"name": name}}}]);
    for pair in [&near, &far] {
        wait_until(&lab, pair, true)?;
    }
    let mut open = Talk::open(&near, Family::V4, Transport::Udp, PATIENCE)?;
    // Of the pod it enters, by who it really is.
    for pod in ["a2", "b2"] {
        put(pod, json!({"ingress": [{"from": pods("b1")}]}))?;
    }
    for pair in [&near, &far] {
        wait_until(&lab, pair, false)?;
    }
    wait_for(PATIENCE, "the open connection to be cut", || !open.carries(Duration::from_secs(1)))?;
    for pod in ["a2", "b2"] {
        put(pod, json!({"ingress": [{"from": pods("a1")}]}))?;
    }
    for pair in [&near, &far] {
        wait_until(&lab, pair, true)?;
    }
    // Of the pod it leaves, by where it really goes.
    put("a1", json!({"policyTypes": ["Egress"], "egress": [{"to": pods("b2")}]}))?;
    wait_until(&lab, &near, false)?;
    wait_until(&lab, &far, true)?;
    put("a1", json!({"policyTypes": ["Egress"], "egress": [{"to": pods("a2")}]}))?;
    wait_until(&lab, &far, false)?;
    wait_until(&lab, &near, true)
}
