//! A node with pods and a client, as Tartan would lay them out.
//!
//! ```text
//!  pod 1 (10.244.1.5, port 80)            client 192.0.2.2, and behind it
//!  pod 2 (10.244.1.6, port 80)              10.244.9.9   a pod of another node
//!      │ veths in the pods' link group      192.168.9.9  not to be masqueraded
//!    node 192.0.2.1 ──── uplink ────────── 203.0.113.9  anywhere else
//! ```

use std::collections::BTreeSet;
use tartan_datapath::nftables::{Given, Nftables};
use tartan_datapath::pod::host_link;
use tartan_kernel::nft::Nft;
use tartan_model::{Attachment, Features, PerFamily, PortMapping, Protocol, World};
use tartan_netstate::{Key, Mac, Netns as Namespace, Object, PodNetns, State, Step, diff};

use super::Netns;
use super::traffic::{Over, sees, serve};

/// A node with two pods and a client.
pub struct Lab {
    pub node: Netns,
    pub client: Netns,
    pub pods: [Netns; 2],
    pub world: World,
}

/// What the node's table depends on besides its pods.
pub fn given() -> Given {
    Given {
        fabric_address: PerFamily::first_of(["10.244.1.0".parse().unwrap(), "fd00:1::".parse().unwrap()]),
        local_ranges: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()],
        non_masquerade: vec!["192.168.0.0/16".parse().unwrap(), "fc99::/16".parse().unwrap()],
        masquerade: true,
        between_nodes: BTreeSet::from([8472, 8285]),
        unwraps_at: BTreeSet::from([8472, 8285]),
        by_ipsec: false,
        encrypted_at: BTreeSet::new(),
        encrypts_from: PerFamily::default(),
        strict: false,
        nodes_in_pools: BTreeSet::new(),
    }
}

/// Pod `n`.
pub fn attachment(n: u8, ports: Vec<PortMapping>) -> Attachment {
    let addresses = [format!("10.244.1.{n}").parse().unwrap(), format!("fd00:1::{n}").parse().unwrap()];
    Attachment {
        id: format!("c{n}/eth0").into(),
        container: format!("c{n}").into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: u64::from(n), path: "/".into() },
        pod_namespace: "default".into(),
        pod_name: format!("p{n}").into(),
        addresses: PerFamily::first_of(addresses),
        mac: Mac([2, 0, 0, 0, 0, n]),
        ports,
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

/// To port 80 of the pod.
pub fn mapping(protocol: Protocol, host_ip: &str, host_port: u16) -> PortMapping {
    PortMapping { protocol, host_ip: host_ip.parse().ok(), host_port, container_port: 80 }
}

/// Namespaces, links, addresses and routes, as Tartan would lay them, without any rule.
pub fn lab() -> Lab {
    let (node, client, pods) = (Netns::new(), Netns::new(), [Netns::new(), Netns::new()]);
    node.sh(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip link add uplink type veth peer name eth0 netns {client}
         ip addr add 192.0.2.1/24 dev uplink
         ip addr add 2001:db8::1/64 dev uplink nodad
         ip link set uplink up
         ip addr add 10.244.1.0/32 dev lo scope link
         ip addr add fd00:1::/128 dev lo
         for to in 10.244.9.9 192.168.9.9 203.0.113.9; do ip route add $to via 192.0.2.2; done
         for to in fd00:9::9 fc99::9 2001:db8:9::9; do ip route add $to via 2001:db8::2; done",
        client = client.tid
    ));
    client.sh("ip addr add 192.0.2.2/24 dev eth0
         ip addr add 2001:db8::2/64 dev eth0 nodad
         ip link set eth0 up
         for own in 10.244.9.9/32 192.168.9.9/32 203.0.113.9/32; do ip addr add $own dev lo; done
         for own in fd00:9::9 fc99::9 2001:db8:9::9; do ip addr add $own/128 dev lo nodad; done
         ip route add 10.244.1.0/24 via 192.0.2.1
         ip route add fd00:1::/64 via 2001:db8::1");
    for (n, pod) in [5, 6].into_iter().zip(&pods) {
        let link = host_link(&format!("c{n}/eth0"));
        node.sh(&format!(
            "ip link add {link} address 02:00:00:00:01:0{n} group {group} type veth peer name eth0 netns {pod}
             ip link set {link} up
             sysctl -qw net.ipv4.conf.{link}.rp_filter=1
             ip route add 10.244.1.{n} dev {link}
             ip route add fd00:1::{n} dev {link}",
            group = tartan_netstate::claims::POD_LINK_GROUP,
            pod = pod.tid,
        ));
        pod.sh(&format!(
            "ip link set eth0 up
             ip addr add 10.244.1.{n}/32 dev eth0
             ip addr add fd00:1::{n}/128 dev eth0 nodad
             ip route add 169.254.1.1 dev eth0 scope link
             ip neigh add 169.254.1.1 lladdr 02:00:00:00:01:0{n} dev eth0
             ip route add default via 169.254.1.1
             ip neigh add fe80::1 lladdr 02:00:00:00:01:0{n} dev eth0
             ip -6 route add default via fe80::1 dev eth0"
        ));
        let mac = pod.sh("ip -o link show eth0 2>/dev/null | sed 's/.*ether \\([^ ]*\\).*/\\1/'");
        for address in [format!("10.244.1.{n}"), format!("fd00:1::{n}")] {
            node.sh(&format!("ip neigh add {address} lladdr {} dev {link}", mac.trim()));
        }
        serve(pod, "[::]:80");
    }
    for address in ["203.0.113.9", "192.168.9.9", "10.244.9.9", "[2001:db8:9::9]", "[fc99::9]", "[fd00:9::9]"] {
        serve(&client, &format!("{address}:80"));
    }
    serve(&client, "[::]:8080");
    // Neighbours that nobody knows yet would cost a packet each.
    for (n, pod) in [5, 6].into_iter().zip(&pods) {
        sees(pod, Over::Tcp, "192.0.2.2:8080", &format!("10.244.1.{n}"));
        sees(pod, Over::Tcp, "[2001:db8::2]:8080", &format!("fd00:1::{n}"));
    }
    let mut world = World::new("n1".into(), Features::default());
    world.attach(attachment(
        5,
        vec![mapping(Protocol::Tcp, "-", 8080), mapping(Protocol::Udp, "-", 8080), mapping(Protocol::Sctp, "-", 8080)],
    ));
    world.attach(attachment(
        6,
        vec![
            mapping(Protocol::Tcp, "192.0.2.1", 9090),
            mapping(Protocol::Udp, "2001:db8::1", 9090),
            mapping(Protocol::Tcp, "127.0.0.1", 7070),
        ],
    ));
    Lab { node, client, pods, world }
}

impl Lab {
    /// Makes the node equal to the plan, sysctls included.
    pub fn apply(&self, from: &State, given: &Given) -> State {
        let wanted = Nftables::default().plan(&self.world, given).clone();
        let change = diff(from, &wanted, |_| true);
        for key in change.steps.iter().map(Step::key) {
            if let (Key::LinkSysctl { ns: Namespace::Host, link, name }, Some(Object::Sysctl(value))) =
                (key, wanted.get(key).map(|entry| &entry.object))
            {
                let (family, name) = name.split_once('/').unwrap();
                self.node.sh(&format!("sysctl -qw net.{family}.conf.{link}.{name}={value}"));
            }
        }
        assert_eq!(self.node.change(move || Nft::open().unwrap().apply(&change.steps)), []);
        wanted
    }
}
