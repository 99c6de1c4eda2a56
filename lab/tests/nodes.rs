//! What nodes send each other under their own addresses, encrypted (`spec.wireguard.nodes`): by the kernel where it can
//! (`cargo xtask vm`), by an engine where it cannot.

mod common;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{GENTLE_PROBES, PATIENCE, capture, census, hex, lab, set, sh, wait_until_holds, wait_until_sent_by};
use serde_json::{Value, json};
use tartan_lab::probe::{Load, Pair, Running, Talk, Transport, let_pass, wait_for};
use tartan_lab::{Echo, Endpoint, Family, Lab, Node};

/// What is noted of a packet that was seen.
const SEEN: &str = "{ meta protocol . meta l4proto . th sport . th dport }";
/// In a node's packet.
const CLEAR: &[u8] = b"what one node says to another";

/// Three nodes that answer, of which n3 is of the control plane.
struct Nodes {
    lab: Lab,
    _answer: Vec<Echo>,
}

impl Nodes {
    fn up(name: &str) -> Result<Nodes> {
        let mut lab = lab(name, "vxlan")?;
        let mut node = lab.get("Node", "n3")?.context("n3 has a Node")?;
        node["metadata"]["labels"] = json!({"node-role.kubernetes.io/control-plane": ""});
        lab.put(&node)?;
        set(&mut lab, "encryption", json!("wireguard"))?;
        wait_until_sent_by(&lab, "wireguard/ipv4/port51820/key0")?;
        let answer = lab.nodes().iter().map(|node| Echo::serve(node.netns(), node.name())).collect::<Result<_>>()?;
        Ok(Nodes { lab, _answer: answer })
    }

    fn endpoint(&self, name: &str) -> Result<Endpoint> {
        self.lab.node(name).map(Node::endpoint)
    }

    fn pair(&self, from: &str, to: &str) -> Result<Pair> {
        Ok((self.endpoint(from)?, self.endpoint(to)?))
    }

    /// Between nodes, both ways, with connections that are open through it all.
    fn load(&self) -> Result<Running> {
        let pairs = [("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "n1")];
        let pairs = pairs.into_iter().map(|(from, to)| self.pair(from, to)).collect::<Result<Vec<Pair>>>()?;
        let load = Load::new().interval(Duration::from_millis(10)).udp(pairs.clone()).tcp_idle(pairs).start()?;
        load.wait_for_answers(GENTLE_PROBES, PATIENCE)?;
        Ok(load)
    }

    /// Waits until n1 and n2 send each other everything by this instance, or nothing, and n3 nothing in any case.
    fn wait_until_by(&self, instance: &str) -> Result<()> {
        let is_so = |node: &Node| -> Result<bool> {
            let said = node.status()?;
            let by = |peer: &Value| {
                let wanted = if [node.name(), peer["node"].as_str()?].contains(&"n3") { "" } else { instance };
                Some(peer["toItself"].as_str().unwrap_or_default() == wanted)
            };
            let peers = said["peers"].as_array().context("a node has peers")?;
            Ok(said["phase"] == "steady" && peers.len() == 2 && peers.iter().all(|peer| by(peer) == Some(true)))
        };
        let all = || self.lab.nodes().iter().all(|node| is_so(node).unwrap_or(false));
        wait_for(PATIENCE, &format!("n1 and n2 to reach each other by {instance:?}"), all)
            .map(drop)
            .with_context(|| self.lab.troubleshooting())
    }

    /// What is under way between n1 and n2, or n1 and n3, and can be read; counted where it comes in, but for neighbours' talk.
    fn watch(&self) -> Result<()> {
        let [n1, n2, n3] = ["n1", "n2", "n3"].map(|name| self.endpoint(name));
        let (n1, n2, n3) = (n1?, n2?, n3?);
        let rule = |other: &Endpoint, comment: &str| {
            let (a, b) = (format!("{{ {}, {} }}", n1.v4, other.v4), format!("{{ {}, {} }}", n1.v6, other.v6));
            format!(
                "ip saddr {a} ip daddr {a} counter add @{comment} {SEEN} comment \"{comment} ipv4\"\n\
                 ip6 saddr {b} ip6 daddr {b} meta l4proto != ipv6-icmp counter add @{comment} {SEEN} comment \"{comment} ipv6\"\n"
            )
        };
        let set = "type ether_type . inet_proto . inet_service . inet_service\nflags dynamic\n";
        let table = format!(
            "table netdev nodes {{\nset n2 {{\n{set}}}\nset n3 {{\n{set}}}\n\
             chain came {{\ntype filter hook ingress device eth0 priority 0\n\
             udp dport 51820-51823 accept\n{}{}}}\n}}\n",
            rule(&n2, "n2"),
            rule(&n3, "n3")
        );
        self.lab.nodes().iter().try_for_each(|node| node.netns().nft(&table))
    }

    /// Packets of that count so far, of both families.
    fn clear(&self, comment: &str) -> Result<u64> {
        let mut packets = 0;
        for node in self.lab.nodes() {
            let listing = sh(node, "nft list table netdev nodes")?;
            let counts = listing.lines().filter(|line| line.contains(&format!("\"{comment} ")));
            let count = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
            let counts: Vec<u64> = counts.filter_map(count).collect();
            ensure!(counts.len() == 2, "two counts were wanted in {listing}");
            packets += counts.iter().sum::<u64>();
        }
        Ok(packets)
    }

    fn check_open(&self, from: &str, to: &str) -> Result<()> {
        let pair = self.pair(from, to)?;
        for (family, by) in Family::BOTH.into_iter().flat_map(|family| Transport::BOTH.map(|by| (family, by))) {
            let opens = || Talk::open(&pair, family, by, Duration::from_secs(1)).is_ok();
            wait_for(PATIENCE, &format!("{from} to reach {to} by {family}"), opens)
                .with_context(|| self.lab.troubleshooting())?;
        }
        Ok(())
    }
}

#[test]
fn what_nodes_say_is_encrypted_and_in_clear_again_and_they_do_not_notice() -> Result<()> {
    let mut nodes = Nodes::up("nodes")?;
    let load = nodes.load()?;
    set(&mut nodes.lab, "wireguard", json!({"nodes": true}))?;
    nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| nodes.lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| nodes.lab.troubleshooting())?;

    // What was open before may go on by the route that it knows.
    let load = nodes.load()?;
    nodes.watch()?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| nodes.lab.troubleshooting())?;
    set(&mut nodes.lab, "wireguard", json!({"nodes": true, "rotation": 1}))?;
    nodes.wait_until_by("wireguard/ipv4/port51822/key1")?;
    let node = nodes.lab.node("n1")?;
    node.kill_agent()?;
    load.wait_for_answers(GENTLE_PROBES / 10, PATIENCE)?;
    node.start_agent()?;
    node.wait_ready()?;
    nodes.wait_until_by("wireguard/ipv4/port51822/key1")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| nodes.lab.troubleshooting())?;
    let [clear, left_alone] = [nodes.clear("n2")?, nodes.clear("n3")?];
    ensure!(left_alone > GENTLE_PROBES, "nothing was counted that is in clear: the count says nothing");
    if clear > 0 {
        let seen = nodes.lab.nodes().iter().map(|node| sh(node, "nft list set netdev nodes n2"));
        let seen: Vec<String> = seen.collect::<Result<_>>()?;
        bail!("{clear} packets in clear, beside {left_alone} of the control plane: {}", seen.join("\n"));
    }

    // Other ports, one of which is in use already: what is sent from all of them goes past the table meanwhile.
    set(&mut nodes.lab, "wireguard", json!({"nodes": true, "rotation": 1, "port": 51821}))?;
    nodes.wait_until_by("wireguard/ipv4/port51823/key1")?;
    load.wait_for_answers(GENTLE_PROBES / 10, PATIENCE)?;
    set(&mut nodes.lab, "wireguard", json!({"rotation": 1, "port": 51821}))?;
    nodes.wait_until_by("")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| nodes.lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| nodes.lab.troubleshooting())?;
    for node in nodes.lab.nodes() {
        let left = sh(node, "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")?;
        ensure!(
            !left.contains("table 7474") && !left.contains("lookup 7474") && !left.contains("51821"),
            "{} has left behind {left}",
            node.name()
        );
    }
    Ok(())
}

#[test]
fn the_wire_shows_nothing_of_what_nodes_say() -> Result<()> {
    let mut nodes = Nodes::up("nodeswire")?;
    set(&mut nodes.lab, "wireguard", json!({"nodes": true}))?;
    nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
    let (n1, n2) = nodes.pair("n1", "n2")?;
    // One that chose no address of its own, as most programs do.
    let sockets = Family::BOTH.map(|family| match family {
        Family::V4 => n1.netns.run(|| UdpSocket::bind("0.0.0.0:0")),
        Family::V6 => n1.netns.run(|| UdpSocket::bind("[::]:0")),
    });
    let [v4, v6] = sockets;
    let (v4, v6) = (v4??, v6??);
    let filter = format!("(host {} or host {}) and not icmp6 and not arp", n2.v4, n2.v6);
    let rows = capture(&nodes.lab, &filter, &[], &["udp.dstport", "frame.len", "udp.payload"], || {
        // Nobody hears it there.
        let _refused = v4.send_to(CLEAR, (n2.v4, 9)).and(v6.send_to(CLEAR, (n2.v6, 9)));
        // A flood would leave nobody time to look.
        drop(let_pass(Duration::from_millis(10)));
    })?;
    let in_clear = hex(CLEAR);
    for row in &rows {
        ensure!(["51820", "51821"].contains(&row[0].as_str()), "{row:?}");
        ensure!(!row[2].replace(':', "").contains(&in_clear), "{row:?}");
    }
    // Each of both families has been answered, and is as long as what is in it makes it.
    let lengths: BTreeSet<&String> = rows.iter().map(|row| &row[1]).collect();
    ensure!(lengths.len() >= 2, "packets of one family alone: {rows:?}");
    Ok(())
}

#[test]
fn a_node_that_has_lost_its_keys_reaches_the_control_plane_and_then_the_others() -> Result<()> {
    let mut nodes = Nodes::up("nodeskey")?;
    set(&mut nodes.lab, "wireguard", json!({"nodes": true}))?;
    nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
    let node = nodes.lab.node("n1")?;
    node.kill_agent()?;
    let keys = node.state_dir().join("keys");
    let gone = "for l in $(ip -o link show | grep -o 'ttxs[^@:]*'); do ip link del $l; done";
    sh(node, &format!("rm -r {} && {gone}", keys.display()))?;
    // The others encrypt to a key that nobody has, but for the one by which a new one is told.
    nodes.check_open("n1", "n3")?;
    nodes.check_open("n3", "n1")?;
    node.start_agent()?;
    node.wait_ready()?;
    nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
    nodes.check_open("n1", "n2")?;
    nodes.check_open("n2", "n1")
}

#[test]
fn rules_and_routes_that_somebody_takes_away_come_back_and_wireguard_never_goes_by_its_own_way() -> Result<()> {
    let mut nodes = Nodes::up("nodesrule")?;
    set(&mut nodes.lab, "wireguard", json!({"nodes": true}))?;
    nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
    let node = nodes.lab.node("n1")?;
    let before = census(node)?;
    for damage in [
        "ip rule del iif lo ipproto udp sport 51820-51823",
        "ip -6 rule del iif lo ipproto udp sport 51820-51823",
        "ip route flush table 7474; ip -6 route flush table 7474",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
        nodes.wait_until_by("wireguard/ipv4/port51820/key0")?;
        nodes.check_open("n1", "n2")?;
    }
    Ok(())
}
