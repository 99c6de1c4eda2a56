//! What a pod, or somebody outside, might try to get past policy: packets made by hand, helpers, translations. Each is tried
//! with the guard and, where it can be taken away, without, so that it is known to be an attack.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use netns::Netns;
use netns::judged::{CLIENT_TO_80, Judged, NOTHING_IN, NOTHING_OUT, OF_NOBODY, judged};
use netns::node::attachment;
use netns::traffic::{Over, refused, sees, serve};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tartan_datapath::nftables::policy::Mode;
use tartan_netstate::claims;

const UDP: u8 = 17;
/// Destination options (RFC 8200).
const DSTOPTS: u8 = 60;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

/// Both families of a pair of addresses: of pod 5, of pod 6, of the client.
const POD5: [&str; 2] = ["10.244.1.5", "fd00:1::5"];
const POD6: [&str; 2] = ["10.244.1.6", "fd00:1::6"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// A packet from its IP header on; its checksum is the kernel's affair, that of what is inside is not.
fn packet(from: &str, to: &str, protocol: u8, inner: &[u8]) -> Vec<u8> {
    let length = u16::try_from(inner.len()).unwrap();
    let mut bytes = match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            header.extend(from.octets().into_iter().chain(to.octets()));
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend(from.octets().into_iter().chain(to.octets()));
            header
        }
        other => panic!("{other:?}"),
    };
    bytes.extend(inner);
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Puts a checksum into what is inside a packet; IPv4's ICMP has none of the addresses in it.
fn summed(from: &str, to: &str, protocol: u8, mut inner: Vec<u8>, at: usize) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::new();
    if protocol != 1 {
        for address in [from, to] {
            match address.parse().unwrap() {
                IpAddr::V4(v4) => all.extend(v4.octets()),
                IpAddr::V6(v6) => all.extend(v6.octets()),
            }
        }
        all.extend(u32::try_from(inner.len()).unwrap().to_be_bytes());
        all.extend([0, 0, 0, protocol]);
    }
    all.extend(&inner);
    let sum = checksum(&all).to_be_bytes();
    inner[at..at + 2].copy_from_slice(&sum);
    inner
}

fn udp(from: (&str, u16), to: (&str, u16), data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let header = [from.1.to_be_bytes(), to.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    summed(from.0, to.0, UDP, [&header, data].concat(), 6)
}

/// "Port unreachable", about a packet.
fn unreachable(from: &str, to: &str, about: &[u8]) -> Vec<u8> {
    let (protocol, kind, code) = if from.contains(':') { (58, 1, 4) } else { (1, 3, 3) };
    let message = [&[kind, code, 0, 0, 0, 0, 0, 0], about].concat();
    packet(from, to, protocol, &summed(from, to, protocol, message, 2))
}

/// Sends it as it is.
fn send(from: &Netns, packet: Vec<u8>) {
    let (family, to): (_, IpAddr) = match packet[0] >> 4 {
        4 => (AddressFamily::Inet, Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()).into()),
        _ => (AddressFamily::Inet6, Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()).into()),
    };
    from.run(move || {
        let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        UdpSocket::from(raw).send_to(&packet, SocketAddr::new(to, 0)).unwrap();
    });
}

/// Counts what comes in that these matches are about, before anything else does.
fn watch(at: &Netns, matches: &[&str]) {
    at.sh("nft 'add table inet watch; add chain inet watch pre { type filter hook prerouting priority -350; }'");
    matches.iter().for_each(|rule| drop(at.sh(&format!("nft add rule inet watch pre {rule} counter"))));
}

/// By match, how many came.
fn arrived(at: &Netns) -> Vec<u64> {
    let listing = at.sh("nft list table inet watch");
    let packets = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok();
    listing.lines().filter_map(packets).collect()
}

/// All that pod 5 has sent has gone by when this has come back.
fn settle(judged: &Judged) {
    sees(&judged.lab.pods[0], Over::Udp, "192.0.2.1:9000", "10.244.1.5");
}

/// Who may send nothing must not send errors either, about what others talk of: a colluding receiver would read them.
#[test]
fn a_pod_reports_errors_of_its_own_connections_only() {
    let node_only = r#"{"podSelector":{"matchLabels":{"app":"client"}},"policyTypes":["Egress"],
        "egress":[{"to":[{"ipBlock":{"cidr":"192.0.2.1/32"}}]}]}"#;
    let judged = judged(&[("out", node_only)]);
    let [pod5, pod6] = &judged.lab.pods;
    serve(&judged.lab.node, "[::]:9000");
    watch(&judged.lab.client, &["ip saddr 10.244.1.5", "ip6 saddr fd00:1::5"]);
    watch(pod6, &["ip saddr 10.244.1.5", "ip6 saddr fd00:1::5"]);
    for family in 0..2 {
        let (client, server, pod) = (CLIENT[family], POD6[family], POD5[family]);
        // Others' connections, either way, in use.
        let asked = udp((client, 5555), (server, 80), b"?");
        send(&judged.lab.client, packet(client, server, UDP, &asked));
        let back = udp((server, 80), (client, 5555), b"!");
        for (to, about) in [(client, packet(client, server, UDP, &asked)), (server, packet(server, client, UDP, &back))]
        {
            send(pod5, unreachable(pod, to, &about));
        }
    }
    settle(&judged);
    assert_eq!((arrived(&judged.lab.client), arrived(pod6)), (vec![0, 0], vec![0, 0]));
}

/// The kernel gives a connection that a helper expects the mark of the one it was expected by, our stamp in it.
#[test]
fn what_a_helper_expects_is_judged_as_any_other_connection() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    // As active FTP: whoever talks to port 80 is called back at port 7777.
    judged.lab.node.sh("nft 'table inet helper {
        ct expectation back { protocol tcp; dport 7777; timeout 1m; size 12; l3proto ip; }
        chain forward { type filter hook forward priority 10; ct direction original ip protocol tcp tcp dport 80 ct expectation set \"back\"; }
        }'");
    let expected = |judged: &Judged| {
        sees(&judged.lab.pods[1], Over::Tcp, "10.244.1.5:80", "10.244.1.6");
    };
    serve(&judged.lab.pods[1], "10.244.1.6:7777");
    expected(&judged);
    refused(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:7777");
    judged.mode = Mode::Audit;
    judged.apply();
    expected(&judged);
    sees(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:7777", "10.244.1.5");
}

/// A Service whose backend is a node's fabric port would wrap a pod's packets for it.
#[test]
fn a_service_does_not_lead_a_pod_to_where_nodes_unwrap() {
    let judged = judged(&[OF_NOBODY]);
    let port = 8472;
    for at in [&judged.lab.client, &judged.lab.node] {
        serve(at, &format!("[::]:{port}"));
    }
    judged.lab.node.sh(&format!(
        "nft 'add table inet service
        add chain inet service pre {{ type nat hook prerouting priority -100; }}
        add rule inet service pre udp dport 81 dnat ip to 192.0.2.2:{port}
        add rule inet service pre udp dport 82 dnat ip to 192.0.2.1:{port}
        add rule inet service pre udp dport 83 dnat ip6 to [2001:db8::2]:{port}
        add rule inet service pre udp dport 84 dnat ip6 to [2001:db8::1]:{port}'"
    ));
    let pod = &judged.lab.pods[0];
    for to in ["10.96.0.1:81", "10.96.0.1:82", "[fd96::1]:83", "[fd96::1]:84"] {
        refused(pod, Over::Udp, to);
    }
    sees(pod, Over::Udp, "192.0.2.2:8080", "192.0.2.1");
}

/// Nobody but the pod itself sends from its address to it.
#[test]
fn a_packet_that_claims_to_be_from_its_receiver_is_judged() {
    let judged = judged(&[("in", NOTHING_IN)]);
    judged.lab.node.sh("for it in all uplink; do sysctl -qw net.ipv4.conf.$it.rp_filter=0; done");
    let pod6 = &judged.lab.pods[1];
    watch(pod6, &["ip saddr 10.244.1.6", "ip6 saddr fd00:1::6"]);
    for to in POD6 {
        send(&judged.lab.client, packet(to, to, UDP, &udp((to, 5555), (to, 80), b"me")));
    }
    sees(&judged.lab.client, Over::Udp, "10.244.1.5:80", "192.0.2.2");
    assert_eq!(arrived(pod6), [0, 0]);
}

/// Headers before the transport's, and fragments, must not hide it.
#[test]
fn extension_headers_and_fragments_hide_no_port() {
    let judged = judged(&[("in", CLIENT_TO_80)]);
    serve(&judged.lab.node, "[::]:9000");
    let [pod5, pod6] = &judged.lab.pods;
    watch(pod6, &["ip protocol udp", "ip6 nexthdr 60", "ip6 nexthdr 44", "meta l4proto udp"]);
    let (from, to) = (POD5[1], POD6[1]);
    let of = |port: u16, data: &[u8]| udp((from, 5000), (to, port), data);
    let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
    // IPv6: only the last may be small.
    let fragments = |port: u16| {
        let whole = of(port, &[7; 1600]);
        let header =
            |offset: u16, more: u16| [[UDP, 0], (offset | more).to_be_bytes(), [0; 2], port.to_be_bytes()].concat();
        [(0, &whole[..1240], 1), (1240, &whole[1240..], 0)]
            .map(|(offset, part, more)| packet(from, to, FRAGMENT, &[&header(offset, more), part].concat()))
    };
    for port in [81, 80] {
        send(pod5, packet(from, to, DSTOPTS, &[&options[..], &of(port, b"?")].concat()));
        fragments(port).into_iter().for_each(|fragment| send(pod5, fragment));
        // IPv4: the first has the ports and nothing else.
        let whole = udp((POD5[0], 5000), (POD6[0], port), &[7; 64]);
        for (field, part) in [(0x2000_u16, &whole[..8]), (1, &whole[8..])] {
            let mut fragment = packet(POD5[0], POD6[0], UDP, part);
            fragment[4..8].copy_from_slice(&[port.to_be_bytes(), field.to_be_bytes()].concat());
            send(pod5, fragment);
        }
        settle(&judged);
        // Pod 6 sees what it may, and that in pieces as it came.
        let [v4, options, pieces, _] = arrived(pod6)[..] else { panic!() };
        let wanted = if port == 80 { [2, 1, 2] } else { [0; 3] };
        assert_eq!([v4, options, pieces], wanted, "port {port}");
    }
}

/// Where ports would be there is nothing: no class can be found, whatever the policies of the pod say.
#[test]
fn what_is_too_short_to_be_judged_is_dropped() {
    /// For experiments (RFC 3692).
    const EXPERIMENT: u8 = 253;
    let mut judged = judged(&[("out", NOTHING_OUT)]);
    serve(&judged.lab.node, "[::]:9000");
    // Others' marks are left alone where it is only looked at.
    judged.lab.node.sh("nft 'add table inet foreign
        add chain inet foreign pre { type filter hook prerouting priority -150; }
        add rule inet foreign pre meta l4proto 253 meta mark set 0x4001
        add chain inet foreign forward { type filter hook forward priority 10; }
        add rule inet foreign forward meta l4proto 253 meta mark != 0x4001 drop'");
    watch(&judged.lab.client, &["meta l4proto 253"]);
    let attack = |judged: &Judged| {
        let pod = &judged.lab.pods[0];
        for (from, to) in POD5.into_iter().zip(CLIENT) {
            for inner in [&b""[..], b"?", b"??", b"???"] {
                send(pod, packet(from, to, EXPERIMENT, inner));
            }
        }
        // They have gone by when this has come back.
        sees(&judged.lab.client, Over::Udp, "10.244.1.5:80", "192.0.2.2");
    };
    attack(&judged);
    assert_eq!(arrived(&judged.lab.client), [0]);
    judged.mode = Mode::Audit;
    judged.apply();
    attack(&judged);
    assert_eq!(arrived(&judged.lab.client), [8]);
}

/// No rule about nodes knows the address that the node has on the pod's link, nor those that it has with many: groups, broadcast,
/// and of the routers of a network.
#[test]
fn a_node_is_not_reached_by_addresses_that_no_rule_knows() {
    let no_nodes =
        r#"{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"nodes":{}}]}]}"#;
    let mut judged = judged(&[("cno-nodes", no_nodes)]);
    let link = tartan_datapath::pod::host_link("c5/eth0");
    judged.lab.node.sh(&format!("ip addr add fe80::1/64 dev {link} nodad"));
    judged
        .lab
        .node
        .sh("nft 'add table inet watch; add chain inet watch input { type filter hook input priority 200; }'");
    let addresses: [IpAddr; 6] = ["fe80::1", "ff02::1", "2001:db8::", "224.0.0.1", "255.255.255.255", "192.0.2.255"]
        .map(|address| address.parse().unwrap());
    for address in addresses {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let rule = format!("{family} daddr {address} udp dport 9000 counter");
        judged.lab.node.sh(&format!("nft add rule inet watch input {rule}"));
    }
    let attack = |judged: &Judged| {
        let pod = &judged.lab.pods[0];
        let scope: u32 = pod.sh("ip -o link show eth0 2>/dev/null | cut -d: -f1").trim().parse().unwrap();
        pod.run(move || {
            let socket = |own: &str| UdpSocket::bind(own).unwrap();
            let [v4, v6] = ["10.244.1.5:0", "[fd00:1::5]:0"].map(socket);
            v4.set_broadcast(true).unwrap();
            for address in addresses {
                let sent = match address {
                    IpAddr::V4(_) => v4.send_to(b"?", (address, 9000)),
                    IpAddr::V6(to) => v6.send_to(b"?", SocketAddrV6::new(to, 9000, 0, scope)),
                };
                sent.unwrap();
            }
        });
        // They have gone by when this has come back.
        sees(pod, Over::Udp, "10.244.1.6:80", "10.244.1.5");
        sees(pod, Over::Udp, "[fd00:1::6]:80", "fd00:1::5");
    };
    attack(&judged);
    assert_eq!(arrived(&judged.lab.node), [0; 6]);
    judged.mode = Mode::Audit;
    judged.apply();
    attack(&judged);
    assert_eq!(arrived(&judged.lab.node), [1; 6]);
}

/// What a pod sends to somebody elsewhere, or hears from there, that pod alone was asked about. The address may come to be that
/// of a pod of this node: whatever came first, its place in policy or its route, from then on this one is asked, too.
#[test]
fn who_comes_later_is_asked_about_connections_that_are_there() {
    let nothing = r#"{"podSelector":{"matchLabels":{"app":"server"}},"policyTypes":["Ingress","Egress"]}"#;
    let mut judged = judged(&[("silent", nothing)]);
    serve(&judged.lab.node, "[::]:9000");
    let link = format!("dev {}", tartan_datapath::pod::host_link("c6/eth0"));
    let reach_pod6 = |judged: &Judged, by: [&str; 2]| {
        let routes = POD6.into_iter().zip(by).map(|(pod, by)| format!("ip route replace {pod} {by}"));
        judged.lab.node.sh(&routes.collect::<Vec<_>>().join("; "));
    };
    let of_talk = ["ip daddr 10.244.1.6 udp sport 5555", "ip6 daddr fd00:1::6 udp sport 5555"];
    watch(&judged.lab.client, &of_talk);
    watch(&judged.lab.pods[1], &of_talk);
    watch(&judged.lab.pods[0], &of_talk.map(|rule| rule.replace("daddr", "saddr")).each_ref().map(String::as_str));
    // A connection each way, both of which go on.
    let talk = |judged: &Judged, pod6: &Netns, heard: [[u64; 2]; 3]| {
        for (own, other) in POD5.into_iter().zip(POD6) {
            send(&judged.lab.pods[0], packet(own, other, UDP, &udp((own, 5555), (other, 80), b"?")));
            send(pod6, packet(other, own, UDP, &udp((other, 5555), (own, 80), b"?")));
        }
        settle(judged);
        let Judged { lab, .. } = judged;
        assert_eq!([&lab.client, &lab.pods[0], &lab.pods[1]].map(arrived), heard);
    };
    judged.lab.world.detach("c6/eth0", std::time::Instant::now());
    judged.apply();
    reach_pod6(&judged, ["via 192.0.2.2", "via 2001:db8::2"]);
    talk(&judged, &judged.lab.client, [[1, 1], [1, 1], [0, 0]]);
    judged.lab.world.attach(attachment(6, Vec::new()));
    judged.apply();
    talk(&judged, &judged.lab.client, [[2, 2], [2, 2], [0, 0]]);
    reach_pod6(&judged, [&link; 2]);
    talk(&judged, &judged.lab.pods[1], [[2, 2], [2, 2], [0, 0]]);
    judged.policies(&[OF_NOBODY]);
    talk(&judged, &judged.lab.pods[1], [[2, 2], [3, 3], [1, 1]]);
}

/// A link that goes is put into another group and taken down, one after the other; what it brought then, and what still waits to be
/// looked at, is a pod's.
#[test]
fn what_a_link_brings_on_its_way_out_is_judged() {
    let judged = judged(&[("out", NOTHING_OUT)]);
    let Judged { lab, .. } = &judged;
    let link = tartan_datapath::pod::host_link("c5/eth0");
    let to = ["192.0.2.2:9000", "[2001:db8::2]:9000"];
    serve(&lab.client, "[::]:9000");
    let be_of_group = |group: u32| drop(lab.node.sh(&format!("ip link set {link} group {group}")));
    for group in [claims::POD_LINK_GROUP, claims::DYING_POD_LINK_GROUP] {
        be_of_group(group);
        for to in to {
            refused(&lab.pods[0], Over::Udp, to);
        }
    }
    // Of no pod's group it would go.
    be_of_group(claims::DYING_LINK_GROUP);
    sees(&lab.pods[0], Over::Udp, to[0], "192.0.2.1");
}
