//! Whole nodes under kernels that have what this machine's may lack: `cargo xtask vm`.

mod common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, capture, census, lab, sh, tartan, wait_until_holds, wait_until_steady};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, Pair, Running, Talk, Transport, ping, wait_for};
use tartan_lab::{ECHO_PORT, Endpoint, Family, Lab, NAMESPACE, Node, Underlay};

/// Probes answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;

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
    check_headers(&lab, underlay)
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

/// From vxlan into each of these in turn, under load, each node hearing of it so much later than the one before.
fn check_changes(mut lab: Lab, fabrics: &[&str], apart: Duration) -> Result<()> {
    lab.wait_for_matrix(PATIENCE)?;
    let mut from = "vxlan";
    for to in fabrics {
        let load = load(&lab)?;
        lab.set_fabric_apart(to, apart)?;
        wait_until_steady(&lab, to)?;
        load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
        let report = load.stop()?;
        report.check_nothing_lost().with_context(|| format!("from {from} to {to}, {apart:?} apart"))?;
        from = to;
    }
    Ok(())
}

/// Every ordered pair with ipip in it.
const OF_IPIP: [&str; 6] = ["ipip", "host-gw", "ipip", "udp", "ipip", "vxlan"];

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

// --- WireGuard ---

/// Two nodes with a pod each that talk by WireGuard over a family of underlay.
fn check_wireguard(name: &str, underlay: &str, mtu: u32) -> Result<()> {
    let lab =
        Lab::builder(name).nodes(2).pods_per_node(1).fabric("wireguard").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    let node = lab.node("n1")?;
    let said = node.status()?;
    ensure!(said["podMtu"] == mtu && said["conditions"] == json!([]), "pods' packets may hold {mtu} bytes: {said}");
    check_wg_shows_the_peer(node)?;
    let before = census(node)?;
    let shown =
        "wg show all allowed-ips; wg show all public-key; wg show all listen-port; wg show all persistent-keepalive";
    let peers = sh(node, shown)?;
    for damage in [
        "for l in $(ip -o link show group default | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        "ip route flush table main proto 84; ip -6 route flush table main proto 84",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
        wait_for(PATIENCE, "the peers to be back", || sh(node, shown).is_ok_and(|now| now == peers))
            .with_context(|| node.troubleshooting())?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// The program that everybody knows finds our device, its peer, and that both have shaken hands; no key of ours is in what
/// the agent writes.
fn check_wg_shows_the_peer(node: &Node) -> Result<()> {
    let handshakes = sh(node, "wg show all latest-handshakes")?;
    let met = |line: &str| line.split_whitespace().last().is_some_and(|at| at != "0");
    ensure!(handshakes.lines().count() == 1 && handshakes.lines().all(met), "{handshakes}");
    let private = sh(node, "wg show all private-key | cut -f2")?;
    let private = private.trim();
    ensure!(private.len() == 44, "a key is 44 letters long, and not {}", private.len());
    let told = std::fs::read_to_string(node.log_file())? + &node.status()?.to_string();
    ensure!(!told.contains(private), "the private key of {} is told to others", node.name());
    let keys = node.state_dir().join("keys");
    let modes = sh(node, &format!("stat -c %a {0} {0}/*", keys.display()))?;
    ensure!(modes == "700\n600\n", "keys are for root alone: {modes}");
    Ok(())
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_wireguard_carries_both_families_over_ipv4() -> Result<()> {
    check_wireguard("wg4", "ipv4", 1440)
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_wireguard_carries_both_families_over_ipv6() -> Result<()> {
    check_wireguard("wg6", "ipv6", 1420)
}

/// Waits until every node sends to all its peers by this instance, and has nothing left to do.
fn wait_until_sent_by(lab: &Lab, instance: &str) -> Result<()> {
    let by_it = |node: &Node| {
        let status = node.status().unwrap_or_default();
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let all = peers.iter().all(|peer| peer["fabric"].as_str().is_some_and(|by| by.starts_with(instance)));
        status["phase"] == "steady" && all
    };
    wait_for(PATIENCE, &format!("every node to send by {instance}"), || lab.nodes().iter().all(by_it))
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

fn set(lab: &mut Lab, key: &str, value: Value) -> Result<()> {
    lab.set_config(&Map::from_iter([(key.to_owned(), value)]))
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_wireguard_changes_into_it_and_out_of_it_are_not_noticed() -> Result<()> {
    check_changes(lab("wgthere", "vxlan")?, &["wireguard", "host-gw", "wireguard", "vxlan"], Duration::ZERO)
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_wireguard_encryption_and_new_keys_are_not_noticed() -> Result<()> {
    let mut lab = lab("wgkeys", "vxlan")?;
    lab.wait_for_matrix(PATIENCE)?;
    let load = load(&lab)?;
    set(&mut lab, "encryption", json!("wireguard"))?;
    wait_until_sent_by(&lab, "wireguard/ipv4/port51820/key0")?;
    let mut keys = BTreeSet::from([public_key(lab.node("n1")?)?]);
    for (rotation, instance) in [(1, "wireguard/ipv4/port51822/key1"), (2, "wireguard/ipv4/port51820/key2")] {
        let said = tartan(lab.node("n2")?, &["rotate"])?;
        ensure!(said.status.success(), "tartan rotate: {}", String::from_utf8_lossy(&said.stderr));
        wait_until_sent_by(&lab, instance)?;
        wait_for(PATIENCE, "the old key to be gone", || {
            let files =
                lab.node("n1").and_then(|node| sh(node, &format!("ls {}", node.state_dir().join("keys").display())));
            files.is_ok_and(|files| files == format!("wireguard-{rotation}.key\n"))
        })
        .with_context(|| lab.troubleshooting())?;
        ensure!(keys.insert(public_key(lab.node("n1")?)?), "the key is not new: {keys:?}");
    }
    set(&mut lab, "encryption", json!("none"))?;
    wait_until_sent_by(&lab, "vxlan")?;
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

/// Of the node's one WireGuard device.
fn public_key(node: &Node) -> Result<String> {
    let keys = sh(node, "wg show all public-key | cut -f2")?;
    ensure!(keys.lines().count() == 1, "{} has the keys {keys}", node.name());
    Ok(keys)
}

/// Counts on the wire's end at each node: what comes in under pods' addresses or wrapped in vxlan, and what comes in encrypted.
const WATCH: &str = "nft 'table netdev watch {
    chain came { type filter hook ingress device eth0 priority 0;
        ip saddr 10.244.0.0/16 counter comment \"clear\"
        ip6 saddr fd00:10:244::/48 counter comment \"clear\"
        udp dport 8472 counter comment \"clear\"
        udp dport 51820-51823 counter comment \"encrypted\"
    }
}'";

/// Packets that the watches have seen on all nodes.
fn seen(lab: &Lab, kind: &str) -> Result<u64> {
    let count = |node: &Node| {
        let listing = sh(node, "nft list table netdev watch")?;
        let of_kind = listing.lines().filter(|line| line.contains(kind));
        let packets = of_kind.filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
        Ok(packets.sum::<u64>())
    };
    lab.nodes().iter().map(count).sum()
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_wireguard_strict_lets_nothing_out_in_clear() -> Result<()> {
    let mut lab = lab("wgstrict", "vxlan")?;
    lab.wait_for_matrix(PATIENCE)?;
    let load = load(&lab)?;
    lab.nodes().iter().try_for_each(|node| sh(node, WATCH).map(drop))?;
    wait_for(PATIENCE, "packets in clear", || seen(&lab, "clear").is_ok_and(|seen| seen > 0))?;
    let strict = [("encryption", json!("wireguard")), ("strictEncryption", json!(true))];
    lab.set_config(&strict.clone().map(|(key, value)| (key.to_owned(), value)).into_iter().collect())?;
    wait_until_sent_by(&lab, "wireguard/ipv4/port51820/key0")?;
    let in_force = |node: &Node| sh(node, "nft list chain inet tartan encrypted_only").is_ok();
    wait_for(PATIENCE, "strictness to be in force", || lab.nodes().iter().all(in_force))
        .with_context(|| lab.troubleshooting())?;

    let (clear, encrypted) = (seen(&lab, "clear")?, seen(&lab, "encrypted")?);
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let [n1, b1] = ["n1", "b1"].map(|name| lab.node(name).map(Node::endpoint).or_else(|_| lab.endpoint(name)));
    let from_node = (n1?, b1?);
    for family in Family::BOTH {
        Talk::open(&from_node, family, Transport::Tcp, PATIENCE).context("from a node to a pod")?;
    }
    set(&mut lab, "wireguard", json!({"rotation": 1}))?;
    wait_until_sent_by(&lab, "wireguard/ipv4/port51822/key1")?;
    // Somebody's own way to an address of the other node's pods, and an address that nobody routes.
    let node = lab.node("n1")?;
    let peer = lab.node("n2")?.endpoint();
    let hosts = [
        ("10.244.2.250", "10.244.2.250", peer.v4.to_string()),
        ("fd00:10:244:2::fa", "[fd00:10:244:2::fa]", peer.v6.to_string()),
    ];
    for (dst, host, via) in hosts {
        sh(node, &format!("ip route add {dst} via {via} dev eth0 && ! curl --silent --max-time 2 http://{host}/"))?;
    }
    ensure!(
        seen(&lab, "clear")? == clear,
        "{} packets in clear\n{}",
        seen(&lab, "clear")? - clear,
        lab.troubleshooting()
    );
    ensure!(seen(&lab, "encrypted")? > encrypted + PROBES / 10, "nothing was seen that was encrypted");

    lab.set_config(&strict.map(|(key, _)| (key.to_owned(), Value::Null)).into_iter().collect())?;
    wait_until_sent_by(&lab, "vxlan")?;
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}
