//! The datapath's NAT plan on the real kernel, with packets.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use netns::node::{attachment, given, lab, mapping};
use netns::traffic::{Over, refused, sees, serve};
use tartan_datapath::nftables::Given;
use tartan_model::Protocol;
use tartan_netstate::State;

#[test]
fn the_table_reads_well() {
    let mut lab = lab();
    lab.world.detach("c6/eth0", std::time::Instant::now());
    // One element a map: a hash lists several in an order of its own.
    lab.world.attach(attachment(5, vec![mapping(Protocol::Tcp, "-", 8080)]));
    lab.apply(&State::new(), &given());
    assert_eq!(lab.node.listing(), include_str!("nat/listing.txt"));
}

#[test]
fn host_ports_from_everywhere() {
    use Over::{Tcp, Udp};
    let lab = lab();
    let (node, client, [pod1, pod2]) = (&lab.node, &lab.client, &lab.pods);
    for over in [Tcp, Udp] {
        refused(client, over, "192.0.2.1:8080");
    }
    lab.apply(&State::new(), &given());
    for over in [Tcp, Udp] {
        // From outside, from another pod: the source stays.
        sees(client, over, "192.0.2.1:8080", "192.0.2.2");
        sees(client, over, "[2001:db8::1]:8080", "2001:db8::2");
        sees(pod2, over, "192.0.2.1:8080", "10.244.1.6");
        sees(pod2, over, "[2001:db8::1]:8080", "fd00:1::6");
        // From the pod itself and from the node: the fabric address.
        sees(pod1, over, "192.0.2.1:8080", "10.244.1.0");
        sees(pod1, over, "[2001:db8::1]:8080", "fd00:1::");
        sees(node, over, "192.0.2.1:8080", "10.244.1.0");
        sees(node, over, "[2001:db8::1]:8080", "fd00:1::");
        sees(node, over, "127.0.0.1:8080", "10.244.1.0");
        sees(node, over, "127.0.0.2:8080", "10.244.1.0");
        refused(node, over, "[::1]:8080");
        // Somebody else's port of the same number is left alone.
        sees(pod1, over, "192.0.2.2:8080", "192.0.2.1");
        sees(node, over, "[2001:db8::2]:8080", "2001:db8::1");
    }
    // Ports of one address and one protocol.
    sees(client, Tcp, "192.0.2.1:9090", "192.0.2.2");
    sees(node, Tcp, "192.0.2.1:9090", "10.244.1.0");
    sees(pod2, Tcp, "192.0.2.1:9090", "10.244.1.0");
    refused(client, Udp, "192.0.2.1:9090");
    refused(client, Tcp, "10.244.1.0:9090");
    refused(node, Tcp, "127.0.0.1:9090");
    sees(client, Udp, "[2001:db8::1]:9090", "2001:db8::2");
    refused(client, Tcp, "[2001:db8::1]:9090");
    sees(node, Tcp, "127.0.0.1:7070", "10.244.1.0");
    refused(client, Tcp, "192.0.2.1:7070");
}

#[test]
fn a_port_goes_with_its_pod() {
    let mut lab = lab();
    let before = lab.apply(&State::new(), &given());
    sees(&lab.client, Over::Tcp, "192.0.2.1:8080", "192.0.2.2");
    lab.world.detach("c5/eth0", std::time::Instant::now());
    lab.apply(&before, &given());
    refused(&lab.client, Over::Tcp, "192.0.2.1:8080");
}

#[test]
fn masquerade_only_to_outside_the_cluster() {
    let lab = lab();
    let [pod1, pod2] = &lab.pods;
    let before = lab.apply(&State::new(), &given());
    for over in [Over::Tcp, Over::Udp] {
        sees(pod1, over, "203.0.113.9:80", "192.0.2.1");
        sees(pod1, over, "[2001:db8:9::9]:80", "2001:db8::1");
        sees(pod1, over, "10.244.9.9:80", "10.244.1.5");
        sees(pod1, over, "[fd00:9::9]:80", "fd00:1::5");
        sees(pod1, over, "192.168.9.9:80", "10.244.1.5");
        sees(pod1, over, "[fc99::9]:80", "fd00:1::5");
        sees(pod1, over, "10.244.1.6:80", "10.244.1.5");
        sees(pod2, over, "[fd00:1::5]:80", "fd00:1::6");
        sees(&lab.client, over, "10.244.1.5:80", "192.0.2.2");
    }
    lab.apply(&before, &Given { masquerade: false, ..given() });
    sees(pod1, Over::Tcp, "203.0.113.9:80", "10.244.1.5");
    sees(pod1, Over::Tcp, "[2001:db8:9::9]:80", "fd00:1::5");
}

/// Of what arrives at those ports no connection is kept, so that an answer there would be nobody's. Of 65 thousand random
/// ports one in eight is below 8473: a few hundred questions would not all miss that.
#[test]
fn masqueraded_packets_leave_from_no_port_that_nodes_hear_each_other_at() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    for address in ["203.0.113.9", "[2001:db8:9::9]"] {
        let to: SocketAddr = format!("{address}:7").parse().unwrap();
        let server = lab.client.run(move || UdpSocket::bind(to).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for _ in 0..300 {
            let client = lab.pods[0].run(move || ask_once(to));
            let (_, seen) = server.recv_from(&mut [0; 16]).unwrap();
            assert!(!is_of_pods(seen.ip()), "{seen}");
            assert!(seen.port() >= 8473, "{seen}");
            server.send_to(b"you", seen).unwrap();
            client.recv(&mut [0; 16]).unwrap();
        }
    }
}

fn ask_once(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"me?").unwrap();
    socket
}

fn is_of_pods(address: IpAddr) -> bool {
    let mut ranges = given().cluster_ranges.into_iter();
    ranges.any(|range| range.contains(&address))
}

/// `route_localnet` without the guard would let a pod that may forge packets into what listens on 127.0.0.1.
#[test]
fn a_pod_does_not_reach_the_nodes_loopback() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    lab.node.sh("nft 'add table inet watch
              add chain inet watch input { type filter hook input priority 0; }
              add rule inet watch input ip daddr 127.0.0.1 udp dport 7777 counter'");
    let arrived = || lab.node.sh("nft list chain inet watch input").contains("packets 1 ");
    let pod = &lab.pods[0];
    pod.sh("ip route del local 127.0.0.0/8 dev lo table local
         ip route del local 127.0.0.1 dev lo table local
         ip addr flush dev lo
         ip route add 127.0.0.1 via 169.254.1.1 dev eth0 src 10.244.1.5");
    refused(pod, Over::Udp, "127.0.0.1:7777");
    assert!(!arrived());
    // The same without the guard, to know that it is the guard.
    lab.node.sh("nft flush chain inet tartan raw_input");
    refused(pod, Over::Udp, "127.0.0.1:7777");
    assert!(arrived());
}

/// A node that unwraps asks nobody who wrapped.
#[test]
fn a_pod_does_not_speak_for_nodes() {
    let lab = lab();
    serve(&lab.client, "[::]:8472");
    serve(&lab.node, "[::]:8472");
    lab.apply(&State::new(), &given());
    let pod = &lab.pods[0];
    for to in ["192.0.2.1", "[2001:db8::1]", "192.0.2.2", "[2001:db8::2]"] {
        refused(pod, Over::Udp, &format!("{to}:8472"));
    }
    sees(pod, Over::Tcp, "192.0.2.2:8472", "192.0.2.1");
    sees(pod, Over::Udp, "192.0.2.2:8080", "192.0.2.1");
    sees(&lab.node, Over::Udp, "192.0.2.2:8472", "192.0.2.1");
}

/// Two addresses outside of the node's own range count as another node's pods; the way to them wraps nothing.
#[test]
fn nothing_goes_to_other_nodes_pods_in_clear_where_that_is_strict() {
    let lab = lab();
    let [pod1, pod2] = &lab.pods;
    let theirs = ["10.244.9.9:80", "[fd00:9::9]:80"];
    let before = lab.apply(
        &State::new(),
        &Given { encrypted_at: BTreeSet::from([51820]), by_ipsec: true, strict: true, ..given() },
    );
    for over in [Over::Tcp, Over::Udp] {
        for from in [pod1, &lab.node] {
            theirs.iter().for_each(|to| refused(from, over, to));
        }
        // Within the node, out of the cluster, from outside, and between nodes.
        sees(pod2, over, "10.244.1.5:80", "10.244.1.6");
        sees(pod1, over, "[2001:db8:9::9]:80", "2001:db8::1");
        sees(&lab.client, over, "10.244.1.5:80", "192.0.2.2");
        sees(&lab.node, over, "10.244.1.6:80", "192.0.2.1");
        sees(&lab.node, over, "192.0.2.2:8080", "192.0.2.1");
    }
    // The same addresses, where they are nodes'.
    let strict = Given { encrypted_at: BTreeSet::from([51820]), by_ipsec: true, strict: true, ..given() };
    let nodes_in_pools = ["10.244.9.9", "fd00:9::9"].map(|address| address.parse().unwrap()).into();
    let with_nodes = lab.apply(&before, &Given { nodes_in_pools, ..strict.clone() });
    theirs.iter().zip(["10.244.1.5", "fd00:1::5"]).for_each(|(to, seen)| sees(pod1, Over::Tcp, to, seen));
    let before = lab.apply(&with_nodes, &strict);
    theirs.iter().for_each(|to| refused(pod1, Over::Tcp, to));
    // What leaves by a device that encrypts is another matter.
    lab.client.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
    lab.node.sh(&format!(
        "ip link add ttxs0 type veth peer name enc netns {client}
         ip addr add 192.0.3.1/24 dev ttxs0; ip addr add 2001:db8:3::1/64 dev ttxs0 nodad; ip link set ttxs0 up
         ip route replace 10.244.9.9 via 192.0.3.2; ip route replace fd00:9::9 via 2001:db8:3::2",
        client = lab.client.tid
    ));
    lab.client.sh("ip addr add 192.0.3.2/24 dev enc; ip addr add 2001:db8:3::2/64 dev enc nodad; ip link set enc up");
    theirs.iter().zip(["10.244.1.5", "fd00:1::5"]).for_each(|(to, seen)| sees(pod1, Over::Tcp, to, seen));
    // Under an address that peers take from this node.
    theirs.iter().zip(["10.244.1.0", "fd00:1::"]).for_each(|(to, seen)| sees(&lab.node, Over::Tcp, to, seen));
    lab.node.sh("ip route replace 10.244.9.9 via 192.0.2.2; ip route replace fd00:9::9 via 2001:db8::2");
    theirs.iter().for_each(|to| refused(pod1, Over::Tcp, to));
    lab.apply(&before, &given());
    theirs.iter().zip(["10.244.1.5", "fd00:1::5"]).for_each(|(to, seen)| sees(pod1, Over::Tcp, to, seen));
}
