//! Ports of a node that lead to ports of its pods, from everywhere packets can come from.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::PATIENCE;
use serde_json::{Map, Value, json};
use tartan_lab::probe::{http_get, wait_for};
use tartan_lab::{Binaries, ECHO_PORT, Endpoint, HTTP_PORT, Lab, NAMESPACE, Network};

/// A lab of two nodes, `web` with ports on n1, `other` beside it.
struct Case {
    lab: Lab,
}

fn mapping(host: u16, pod: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": pod, "protocol": protocol})
}

impl Case {
    fn new(name: &str, ports: Value) -> Result<Self> {
        let lab = Lab::builder(name).nodes(2).pods_per_node(0).fabric("vxlan").up()?;
        let mut case = Self { lab };
        case.lab.add_pod("n1", "other")?;
        case.lab.add_pod("n2", "far")?;
        case.add("web", ports)?;
        case.lab.wait_for_matrix(PATIENCE)?;
        Ok(case)
    }

    fn add(&mut self, pod: &str, ports: Value) -> Result<()> {
        let network = Network::tartan(self.lab.node("n1")?, &Binaries::beside_this_program()?.cni)?;
        let config = Map::from_iter([("portMappings".to_owned(), ports)]);
        self.lab.add_pod_by(network, "n1", pod, config).map(drop)
    }

    fn at(&self, name: &str) -> Result<Endpoint> {
        self.lab.endpoint(name)
    }

    /// Who answers HTTP there, as that one names itself; tried until it does.
    fn answers(&self, from: &str, to: SocketAddr, want: &str) -> Result<()> {
        let from = self.at(from)?;
        let mut last = String::new();
        let good = || {
            last = http_get(&from, to, "/").map_or_else(|error| format!("{error:#}"), |(_, body)| body);
            last.starts_with(want)
        };
        wait_for(Duration::from_secs(5), &format!("{} to reach {want} at {to}", from.name), good)
            .map(drop)
            .with_context(|| format!("{last}\n{}", self.lab.troubleshooting()))
    }

    fn closed(&self, from: &str, to: SocketAddr) -> Result<()> {
        let from = self.at(from)?;
        let open = http_get(&from, to, "/");
        ensure!(open.is_err(), "{} reaches {to}: {open:?}", from.name);
        Ok(())
    }
}

/// A datagram there and back from inside `from`.
fn udp_echo(socket: &UdpSocket, to: SocketAddr) -> bool {
    let _refused_once = socket.send_to(b"ping", to);
    matches!(socket.recv_from(&mut [0; 16]), Ok((4, _)))
}

fn udp_socket(from: &Endpoint, to: IpAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = from.netns.run(|| UdpSocket::bind((any, 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

#[test]
fn a_port_is_reached_from_everywhere_in_both_families_and_closed_with_its_pod() -> Result<()> {
    let mut case = Case::new("ports", json!([mapping(8080, HTTP_PORT, "tcp"), mapping(5353, ECHO_PORT, "udp")]))?;
    let n1 = case.at("n1")?;
    let nodes = [IpAddr::from(n1.v4), n1.v6.into()];
    for node in nodes {
        for from in ["n2", "n1", "web", "other", "far", "outside"] {
            case.answers(from, SocketAddr::new(node, 8080), "web sees ")?;
            let socket = udp_socket(&case.at(from)?, node)?;
            wait_for(Duration::from_secs(5), &format!("an echo from {from} by {node}"), || {
                udp_echo(&socket, SocketAddr::new(node, 5353))
            })
            .with_context(|| case.lab.troubleshooting())?;
        }
    }
    case.answers("n1", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), "web sees ")?;
    // Only where it was asked for: not on the other node.
    let n2 = case.at("n2")?;
    case.closed("n1", SocketAddr::new(n2.v4.into(), 8080))?;

    case.lab.remove_pod("web")?;
    for node in nodes {
        for from in ["n2", "n1", "other"] {
            case.closed(from, SocketAddr::new(node, 8080))?;
        }
    }
    case.closed("n1", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))
}

#[test]
fn a_port_of_one_address_is_open_there_alone_and_free_elsewhere() -> Result<()> {
    let at = |ip: &str| json!([{"hostPort": 8080, "containerPort": HTTP_PORT, "protocol": "tcp", "hostIP": ip}]);
    let mut case = Case::new("ports-ip", at("172.30.0.1"))?;
    let n1 = case.at("n1")?;
    case.answers("n2", SocketAddr::new(n1.v4.into(), 8080), "web sees ")?;
    case.closed("n2", SocketAddr::new(n1.v6.into(), 8080))?;
    case.closed("n1", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))?;
    // The same port of another address is another port.
    case.add("local", at("127.0.0.1"))?;
    case.answers("n1", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), "local sees ")?;
    case.answers("n2", SocketAddr::new(n1.v4.into(), 8080), "web sees ")?;
    case.add("six", at("fd30::1"))?;
    case.answers("n2", SocketAddr::new(n1.v6.into(), 8080), "six sees ")
}

#[test]
fn two_pods_that_want_one_port_are_told_which_and_whose() -> Result<()> {
    let mut case = Case::new("ports-two", json!([mapping(8080, HTTP_PORT, "tcp")]))?;
    let check = |case: &mut Case, ports: Value, want: &str| -> Result<()> {
        let error = format!("{:#}", case.add("late", ports).err().context("it is taken")?);
        ensure!(error.contains(want), "{error}");
        ensure!(error.contains("give one of the two another hostPort or hostIP"), "{error}");
        Ok(())
    };
    check(&mut case, json!([mapping(8080, 81, "tcp")]), "port 8080/tcp of this node belongs to pod lab/web")?;
    let at_one = json!([{"hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "127.0.0.1"}]);
    check(&mut case, at_one, "port 8080/tcp of this node belongs to pod lab/web")?;
    // Who was there first did not notice; another protocol is another port; what was refused left nothing.
    let n1 = case.at("n1")?;
    case.answers("n2", SocketAddr::new(n1.v4.into(), 8080), "web sees ")?;
    case.add("udp", json!([mapping(8080, ECHO_PORT, "udp")]))?;
    case.lab.remove_pod("web")?;
    case.add("late", json!([mapping(8080, HTTP_PORT, "tcp")]))?;
    case.answers("n2", SocketAddr::new(n1.v4.into(), 8080), "late sees ")
}

/// A client that keeps its socket keeps its flow in the node's conntrack: it must follow the port to the next pod.
#[test]
fn a_flow_to_a_pod_that_was_replaced_goes_to_the_new_one() -> Result<()> {
    let ports = || json!([mapping(5353, ECHO_PORT, "udp")]);
    let mut case = Case::new("ports-flow", ports())?;
    let n1 = case.at("n1")?;
    let from = case.at("n2")?;
    let flows: Vec<(UdpSocket, SocketAddr)> = [IpAddr::from(n1.v4), n1.v6.into()]
        .into_iter()
        .map(|node| Ok((udp_socket(&from, node)?, SocketAddr::new(node, 5353))))
        .collect::<Result<_>>()?;
    for (socket, to) in &flows {
        wait_for(PATIENCE, "an echo of the first pod", || udp_echo(socket, *to))?;
    }
    case.lab.remove_pod("web")?;
    for (socket, to) in &flows {
        // Unanswered packets, too, leave an entry that must not outlive the port's return.
        ensure!(!udp_echo(socket, *to), "somebody answers at {to}");
    }
    case.add("next", ports())?;
    for (socket, to) in &flows {
        wait_for(Duration::from_secs(5), "an echo of the next pod", || udp_echo(socket, *to))
            .with_context(|| case.lab.troubleshooting())?;
    }
    Ok(())
}

/// A policy for `web` alone.
fn put_policy(case: &Case, spec: Value) -> Result<()> {
    let mut spec = spec;
    spec["podSelector"] = json!({"matchLabels": {"name": "web"}});
    case.lab.put(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": spec,
    }))
}

#[test]
fn what_policy_says_of_a_pod_it_says_of_its_ports_but_not_to_the_pod_itself() -> Result<()> {
    let case = Case::new("ports-policy", json!([mapping(8080, HTTP_PORT, "tcp")]))?;
    let (n1, outside) = (case.at("n1")?, case.lab.underlay().outside());
    let block = |address: IpAddr| json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}});
    let from = [block(outside.v4.into()), block(outside.v6.into())];
    // The pod's port counts, and not the node's.
    put_policy(&case, json!({"ingress": [{"from": from, "ports": [{"port": HTTP_PORT}]}]}))?;
    for node in [IpAddr::from(n1.v4), n1.v6.into()] {
        let to = SocketAddr::new(node, 8080);
        wait_for(PATIENCE, "the policy", || case.closed("other", to).is_ok())
            .with_context(|| case.lab.troubleshooting())?;
        case.closed("far", to)?;
        case.answers("outside", to, "web sees ")?;
        case.answers("web", to, "web sees ")?;
        case.answers("n1", to, "web sees ")?;
    }
    put_policy(&case, json!({"ingress": [{"from": from, "ports": [{"port": 8080}]}]}))?;
    for node in [IpAddr::from(n1.v4), n1.v6.into()] {
        let to = SocketAddr::new(node, 8080);
        wait_for(PATIENCE, "the other policy", || case.closed("outside", to).is_ok())
            .with_context(|| case.lab.troubleshooting())?;
        case.answers("web", to, "web sees ")?;
    }
    Ok(())
}

/// As NodeLocal DNSCache has it: an address of the node's own, and no connection tracking for it.
const CACHE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), 53);

#[test]
fn a_cache_on_the_node_whose_packets_nobody_tracks_is_judged_packet_by_packet() -> Result<()> {
    let case = Case::new("ports-cache", json!([]))?;
    let node = case.lab.node("n1")?;
    let address = CACHE.ip();
    node.netns().ip(&format!("addr add {address}/32 dev lo"))?;
    node.netns().nft(&format!(
        "table ip cache {{
            chain pre {{ type filter hook prerouting priority raw; ip daddr {address} udp dport 53 notrack; }}
            chain out {{ type filter hook output priority raw; ip saddr {address} udp sport 53 notrack; }}
        }}"
    ))?;
    let server = node.run(|| UdpSocket::bind(CACHE))??;
    let asker = udp_socket(&case.at("web")?, address)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = [0; 16];
            // An empty word ends it.
            while let Ok((length @ 1.., from)) = server.recv_from(&mut word) {
                let _gone = server.send_to(&word[..length], from);
            }
        });
        let answered = (|| -> Result<()> {
            let heard = |want: bool| {
                wait_for(PATIENCE, &format!("answers of the cache: {want}"), || udp_echo(&asker, CACHE) == want)
                    .map(drop)
                    .with_context(|| case.lab.troubleshooting())
            };
            heard(true)?;
            for (port, want) in [(54, false), (53, true)] {
                let to = json!([{"ipBlock": {"cidr": format!("{address}/32")}}]);
                let ports = json!([{"port": port, "protocol": "UDP"}]);
                put_policy(&case, json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]}))?;
                heard(want)?;
            }
            Ok(())
        })();
        node.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[], CACHE))??;
        answered
    })
}
