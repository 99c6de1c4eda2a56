//! Pods of the network before, on its bridge: judged as all others, their neighbours on the bridge as well.
//!
//! ```text
//!  pod 8 (10.244.2.8, app=client)   pod 9 (10.244.2.9, app=server, port 80)
//!      └────────── cni0 10.244.2.1 ──────────┘
//!               the node of netns/node.rs with pods 5 and 6, and its client
//! ```

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::IpAddr;
use std::sync::Arc;

use netns::Netns;
use netns::judged::{Judged, NOTHING_IN, NOTHING_OUT, OF_NOBODY, judged};
use netns::traffic::{Over, refused, sees, serve};
use tartan_kernel::linux::Linux;
use tartan_kernel::{Kernel, Scope};
use tartan_model::{Family, Flannel, FlannelBackend, Kind, Object as Stored, PerFamily, Pod};
use tartan_netstate::{Key, LinkName, Object, Owner, State, diff};

const BRIDGE: &str = "cni0";
const BOTH: [Over; 2] = [Over::Tcp, Over::Udp];
const SERVER: [&str; 2] = ["10.244.2.9:80", "[fd00:2::9]:80"];
const CLIENT: [&str; 2] = ["192.0.2.2:8080", "[2001:db8::2]:8080"];
const NODE: [&str; 2] = ["10.244.2.1:9000", "[fd00:2::1]:9000"];

struct Bridged {
    judged: Judged,
    client: Netns,
    server: Netns,
}

fn addresses(number: u8) -> [String; 2] {
    [format!("10.244.2.{number}"), format!("fd00:2::{number}")]
}

fn pod(judged: &mut Judged, number: u8, app: &str) {
    let pod = Pod {
        uid: 0,
        node: "n1".into(),
        labels: [("app", app)].into_iter().collect(),
        service_account: "default".into(),
        addresses: addresses(number).map(|address| address.parse().unwrap()).into(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    };
    judged.store(Kind::Pod, &format!("default/p{number}"), Stored::Pod(pod.into()));
}

/// What the kernel door finds on the node goes into the world, as the agent has it.
fn look(judged: &mut Judged) {
    judged.lab.world.host = judged.lab.node.run(|| Linux::open().unwrap().host().unwrap()).into();
}

/// Makes the bridge one of pods' links, or no more.
fn among_pods_links(judged: &Judged, is: bool) {
    let mut with = State::new();
    with.insert(Key::PodBridge { link: LinkName::new(BRIDGE).unwrap() }, Object::PodBridge, Owner::Node);
    let (before, after) = if is { (State::new(), with.clone()) } else { (with.clone(), State::new()) };
    let change = diff(&before, &after, |_| true);
    assert_eq!(judged.lab.node.change(move || Linux::open().unwrap().apply(&change)), []);
    let found = judged.lab.node.run(|| Linux::open().unwrap().read(&Scope::Links).unwrap());
    assert_eq!(found.holds_all(&with), is, "{found:?}");
}

fn bridged(policies: &[(&str, &str)]) -> Bridged {
    let mut judged = judged(policies);
    let node = &judged.lab.node;
    node.sh("ip link add cni0 type bridge
         ip addr add 10.244.2.1/24 dev cni0
         ip addr add fd00:2::1/64 dev cni0 nodad
         ip link set cni0 up");
    serve(node, "[::]:9000");
    judged.lab.client.sh("ip route add 10.244.2.0/24 via 192.0.2.1; ip route add fd00:2::/64 via 2001:db8::1");
    let pods = [8, 9].map(|number| {
        let (pod, [v4, v6]) = (Netns::new(), addresses(number));
        node.sh(&format!(
            "ip link add veth{number} type veth peer name eth0 netns {tid}
             ip link set veth{number} master cni0 up",
            tid = pod.tid
        ));
        pod.sh(&format!(
            "ip link set eth0 up
             ip addr add {v4}/24 dev eth0
             ip addr add {v6}/64 dev eth0 nodad
             ip route add default via 10.244.2.1
             ip -6 route add default via fd00:2::1"
        ));
        serve(&pod, "[::]:80");
        pod
    });
    for (number, app) in [(8, "client"), (9, "server")] {
        self::pod(&mut judged, number, app);
        let given = addresses(number).map(|address| (address.parse::<IpAddr>().unwrap(), Arc::from("container")));
        judged.lab.world.given.extend(given);
    }
    let networks = ["10.244.0.0/16", "fd00::/16"].map(|net| net.parse().unwrap());
    let networks = PerFamily { v4: Some(networks[0]), v6: Some(networks[1]) };
    let flannel = Flannel { networks, backend: FlannelBackend::HostGw };
    judged.lab.world.flannels.insert("kube-flannel/kube-flannel-cfg".into(), flannel.into());
    look(&mut judged);
    judged.apply();
    among_pods_links(&judged, true);
    let [client, server] = pods;
    Bridged { judged, client, server }
}

impl Bridged {
    /// Who asks whom, in both families over both protocols, and whether there is an answer, also where nobody knows
    /// anybody's MAC.
    fn check(&self, from: &Netns, to: [&str; 2], answered: bool) {
        for pod in [&self.client, &self.server] {
            pod.sh("ip neigh flush all; ip -6 neigh flush all");
        }
        for (over, to) in BOTH.into_iter().flat_map(|over| to.map(|to| (over, to))) {
            match answered {
                true => {
                    let own = from.sh(&format!(
                        "ip route get {} | sed -n 's/.* src \\([^ ]*\\).*/\\1/p'",
                        to.rsplit_once(':').unwrap().0.trim_matches(['[', ']'])
                    ));
                    sees(from, over, to, own.trim());
                }
                false => refused(from, over, to),
            }
        }
    }
}

#[test]
fn pods_of_before_are_judged_as_all_others() {
    let mut it = bridged(&[OF_NOBODY]);
    let answers = |it: &Bridged, servers: bool, out: bool| {
        let lab = &it.judged.lab;
        for from in [&lab.client, &lab.pods[1]] {
            it.check(from, SERVER, servers);
        }
        it.check(&it.client, SERVER, servers && out);
        it.check(&lab.node, SERVER, true);
        it.check(&it.client, ["10.244.1.5:80", "[fd00:1::5]:80"], out);
        it.check(&it.client, CLIENT, out);
        it.check(&it.client, NODE, out);
        it.check(&it.server, NODE, true);
        it.check(&it.server, ["10.244.2.8:80", "[fd00:2::8]:80"], true);
    };
    answers(&it, true, true);
    it.judged.policies(&[("in", NOTHING_IN)]);
    answers(&it, false, true);
    it.judged.policies(&[("out", NOTHING_OUT)]);
    answers(&it, true, false);
    it.judged.policies(&[]);
    answers(&it, true, true);
}

/// Of one that no Pod is known for nobody knows which policies are for it.
#[test]
fn who_is_not_known_has_no_connections() {
    let mut it = bridged(&[OF_NOBODY]);
    it.check(&it.client, SERVER, true);
    it.judged.store_nothing(Kind::Pod, "default/p8");
    it.judged.apply();
    for to in [SERVER, CLIENT, NODE] {
        it.check(&it.client, to, false);
    }
    it.check(&it.server, CLIENT, true);
    // Two that say that they have it: one of them is late.
    pod(&mut it.judged, 8, "client");
    it.judged.apply();
    it.check(&it.client, SERVER, true);
    let late = Pod { labels: Default::default(), ..Pod::clone(&it.judged.lab.world.pods["default/p8"]) };
    it.judged.store(Kind::Pod, "default/late", Stored::Pod(late.into()));
    it.judged.apply();
    it.check(&it.client, SERVER, false);
}

#[test]
fn nobody_on_the_bridge_sends_in_the_name_of_a_pod_elsewhere() {
    let it = bridged(&[OF_NOBODY]);
    let lab = &it.judged.lab;
    let own =
        |netns: &Netns, address: &str, what: &str| drop(netns.sh(&format!("ip addr {what} {address} dev eth0 nodad")));
    lab.client.sh("nft 'add table inet watch; add chain inet watch pre { type filter hook prerouting priority -350; }
        add rule inet watch pre ip saddr { 10.244.1.5, 10.244.2.77 } counter
        add rule inet watch pre ip6 saddr { fd00:1::5, fd00:2::77 } counter'");
    lab.node.sh("for it in all cni0; do sysctl -qw net.ipv4.conf.$it.rp_filter=0; done");
    // Of a pod of ours, and of nobody.
    for [v4, v6] in [["10.244.1.5", "fd00:1::5"], ["10.244.2.77", "fd00:2::77"]] {
        own(&it.client, &format!("{v4}/32"), "add");
        own(&it.client, &format!("{v6}/128"), "add");
        for (address, to) in [v4, v6].into_iter().zip(CLIENT) {
            let (at, to) =
                (format!("{}:0", if address.contains(':') { format!("[{address}]") } else { address.into() }), to);
            it.client.run(move || std::net::UdpSocket::bind(at).unwrap().send_to(b"?", to).unwrap());
        }
    }
    // All of that has gone by when this has come back.
    it.check(&it.server, CLIENT, true);
    let seen = lab.client.sh("nft list table inet watch");
    assert_eq!(seen.matches("counter packets 0").count(), 2, "{seen}");
}

/// What is said of a bridge is what happens on it.
#[test]
fn a_bridge_whose_packets_no_rule_sees_is_found() {
    let mut it = bridged(&[("in", NOTHING_IN)]);
    let unfiltered = |it: &mut Bridged| {
        look(&mut it.judged);
        it.judged.lab.world.host.unfiltered.clone()
    };
    assert!(unfiltered(&mut it).is_empty());
    it.check(&it.client, SERVER, false);
    let switch = |it: &Bridged, on: u8| {
        it.judged.lab.node.sh(&format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}"
        ));
    };
    switch(&it, 0);
    assert_eq!(unfiltered(&mut it), Family::ALL.map(|family| (BRIDGE.into(), family)).into());
    it.check(&it.client, SERVER, true);
    it.check(&it.judged.lab.client, SERVER, false);
    // The bridge itself has a switch as well.
    it.judged.lab.node.sh("ip link set cni0 type bridge nf_call_iptables 1");
    assert_eq!(unfiltered(&mut it), [(BRIDGE.into(), Family::V6)].into());
    among_pods_links(&it.judged, false);
    it.check(&it.judged.lab.client, SERVER, true);
}
