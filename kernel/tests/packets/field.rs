//! The ground: three nodes, two namespaces a pod, and a router that is also everybody else.
//!
//! ```text
//!   pods ═╗            ╔═ pods
//!        n1 ── outside ── n2        192.0.2.N, 2001:db8::N, and pods by host routes
//!                 │                 outside: every other address there is
//!                n3 ═ pods
//! ```
//!
//! A node's objects come from the planners through the kernel thread, as in an agent. Nobody answers but the test: pods'
//! own stacks are mute, and so are nodes' complaints.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use tartan_datapath::pod::pod_mac;
use tartan_kernel::conntrack::Conntrack;
use tartan_model::{Attachment, PerFamily};
use tartan_netstate::PodNetns;

use super::craft::Packet;
use super::faults::Fault;
use super::node::Node;
use super::station::Station;
use super::truth::{End, Seat, Truth};
use super::worlds::SLOTS;
use crate::history::{NODES, State};
use crate::netns::Netns;
use crate::place::pod_netns;

/// Links a packet crosses at most: pod, node, outside, node, pod.
const LONGEST_WAY: usize = 4;
/// Namespaces of a slot. A link that is no longer wanted goes a while after it was, and keeps its namespace so long.
pub(crate) const BODIES: usize = 4;
/// For what takes milliseconds, unless the machine is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What nobody answers to is forgotten soon, so that the table does not fill. Connections that are kept say something
/// more often.
const TIMEOUTS: &str = "for each in /proc/sys/net/netfilter/nf_conntrack_*timeout*; do
    case $each in *tcp_timeout_established|*udp_timeout_stream) ;; *) echo 15 > $each ;; esac; done";

pub(crate) struct Field {
    // Dropped in this order: kernel threads leave the namespaces first.
    nodes: Vec<Node>,
    bodies: Vec<Body>,
    outside: Station,
    outside_netns: Netns,
    sentinel: UdpSocket,
    _sentinel_netns: Netns,
    pub(crate) truth: Truth,
    /// How often each slot was made anew.
    pub(crate) lives: [usize; SLOTS],
}

/// A namespace that a pod can have.
struct Body {
    station: Station,
    real: PodNetns,
    _netns: Netns,
}

impl Field {
    pub(crate) fn new() -> Field {
        let outside_netns = Netns::new();
        outside_netns.sh(&format!(
            "{FORWARD}
             ip route add local default dev lo table main; ip -6 route add local default dev lo table main
             nft 'add table inet mute; add chain inet mute input {{ type filter hook input priority 0; policy drop; }}'"
        ));
        let nodes = (0..NODES.len()).map(|number| {
            let netns = Netns::new();
            lay_uplink(&outside_netns, &netns, NODES[number], number + 1);
            Node::new(NODES[number], netns)
        });
        let nodes: Vec<Node> = nodes.collect();
        let bodies = (0..SLOTS * BODIES).map(|_| {
            let netns = Netns::new();
            netns.sh("nft 'add table inet mute
                      add chain inet mute everything { type filter hook prerouting priority -500; policy drop; }'");
            Body { station: Station::at_the_links(&netns), real: pod_netns(&netns), _netns: netns }
        });
        let bodies = bodies.collect();
        let sentinel_netns = Netns::new();
        let sentinel = sentinel_netns.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(socket.local_addr().unwrap()).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let truth = Truth { states: [State::new(), State::new(), State::new()], seats: BTreeMap::new() };
        let outside = Station::at_the_links(&outside_netns);
        Field {
            nodes,
            bodies,
            outside,
            outside_netns,
            sentinel,
            _sentinel_netns: sentinel_netns,
            truth,
            lives: [0; SLOTS],
        }
    }

    /// Nobody is there, and nobody remembers anything.
    pub(crate) fn clear(&mut self) {
        let gone = std::mem::take(&mut self.truth.seats);
        for node in 0..NODES.len() {
            self.learn(node, &State::new(), &BTreeMap::new());
        }
        self.wait();
        // A packet that was still on its way then begins a connection of which nothing more is heard: 30 seconds with UDP.
        let deadline = Instant::now() + 2 * PATIENCE;
        for (number, node) in self.nodes.iter().enumerate() {
            let gone = gone.values().filter(|seat| seat.node == number);
            let remembered: Vec<String> = gone.map(|seat| format!("={} ", seat.addresses[0])).collect();
            while !remembered.is_empty() {
                let all = node.netns.sh("cat /proc/net/nf_conntrack");
                let is_gone = |line: &&str| remembered.iter().any(|address| line.contains(address));
                let Some(one) = all.lines().find(is_gone) else { break };
                assert!(Instant::now() < deadline, "this is not forgotten: {one}");
                pause(Duration::from_millis(1));
            }
        }
        self.nodes.iter_mut().for_each(Node::forget);
    }

    /// A node hears how things are now, and which pods it has. It has done what follows when it [`is settled`].
    ///
    /// [`is settled`]: Field::is_settled
    pub(crate) fn learn(&mut self, node: usize, state: &State, seats: &BTreeMap<usize, Seat>) {
        self.truth = self.truth.after(node, state, seats);
        self.route(node);
        let mut world = state.on(NODES[node]);
        for (body, seat) in self.truth.seats.iter().filter(|(_, seat)| seat.node == node) {
            world.attach(self.attachment(*body, seat));
        }
        self.nodes[node].learn(world);
    }

    /// A node's agent is another one.
    pub(crate) fn start_anew(&mut self, node: usize) {
        self.nodes[node].forget();
    }

    /// From now on nodes do what they should not.
    pub(crate) fn be_faulty(&mut self, fault: Option<Fault>) {
        self.nodes.iter_mut().for_each(|node| node.fault = fault);
    }

    /// Whether every node has done what it heard of.
    pub(crate) fn is_settled(&mut self) -> bool {
        self.nodes.iter_mut().map(Node::is_settled).fold(true, |all, settled| all & settled)
    }

    /// Until they have.
    pub(crate) fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_settled() {
            self.check_patience(deadline);
            pause(Duration::from_millis(1));
        }
    }

    /// Nodes do not take for ever.
    pub(crate) fn check_patience(&self, deadline: Instant) {
        let failures = || self.nodes.iter().flat_map(|node| &node.failures).take(3).collect::<Vec<_>>();
        assert!(Instant::now() < deadline, "nodes do not end with what they heard of: {:?}", failures());
    }

    /// Sends, as if it came from there.
    pub(crate) fn send(&self, from: End, packet: &Packet) {
        match from {
            End::Body(body) => &self.bodies[body].station,
            End::Node(node) => &self.nodes[node].station,
            End::Outside => &self.outside,
        }
        .send(packet);
    }

    /// Everything that arrived, once nothing is under way any more.
    ///
    /// All that the test's thread sends goes through the backlog of its processor, one link after the other, and what a
    /// link brings is queued behind what is there. So when a packet of ours has come through, all before it have moved on
    /// by a link, or have been dropped.
    pub(crate) fn collect(&self, mut each: impl FnMut(End, Packet)) {
        for _ in 0..LONGEST_WAY {
            self.sentinel.send(b"?").unwrap();
            self.sentinel.recv(&mut [0; 1]).expect("what is sent over loopback comes back");
        }
        for (body, Body { station, .. }) in self.bodies.iter().enumerate() {
            station.drain(|packet| each(End::Body(body), packet));
        }
        for (number, node) in self.nodes.iter().enumerate() {
            node.station.drain(|packet| each(End::Node(number), packet));
        }
        self.outside.drain(|packet| each(End::Outside, packet));
    }

    /// No packet was lost because connections were too many: then what was seen says nothing about policy.
    pub(crate) fn check_conntrack(&self) {
        for node in &self.nodes {
            let stats = node.netns.run(|| Conntrack::open().unwrap().stats().unwrap());
            assert_eq!((stats.drop, stats.early_drop), (0, 0), "connections do not fit: {stats:?}");
        }
    }

    fn attachment(&self, body: usize, seat: &Seat) -> Attachment {
        let container = format!("c{body}x{}", seat.life);
        let id = Attachment::id_of(&container, "eth0");
        let (namespace, name) = seat.pod.split_once('/').unwrap();
        Attachment {
            mac: pod_mac(&id),
            id,
            container: container.into(),
            ifname: "eth0".into(),
            netns: self.bodies[body].real.clone(),
            pod_namespace: namespace.into(),
            pod_name: name.into(),
            addresses: PerFamily::first_of(seat.addresses),
            ports: Vec::new(),
            limits: Default::default(),
            network: None,
            answered: true,
        }
    }

    /// Packets to pods of a node go there.
    fn route(&self, node: usize) {
        let (name, number) = (NODES[node], node + 1);
        let lines: Vec<String> = self
            .truth
            .seats
            .values()
            .filter(|seat| seat.node == node)
            .flat_map(|seat| seat.addresses)
            .map(|address| match address {
                IpAddr::V4(address) => format!("route replace {address} via 192.0.2.{number} dev {name}"),
                IpAddr::V6(address) => format!("route replace {address} via 2001:db8::{number} dev {name}"),
            })
            .collect();
        if !lines.is_empty() {
            self.outside_netns.sh(&format!("ip -batch - <<'END'\n{}\nEND", lines.join("\n")));
        }
    }
}

/// Leaves the processor to those who are waited for.
#[allow(clippy::disallowed_methods, reason = "between two looks at a condition")]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}

const FORWARD: &str = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0";

/// A node's one way out. Neighbours are permanent, so that no packet waits for one.
fn lay_uplink(outside: &Netns, node: &Netns, name: &str, number: usize) {
    outside.sh(&format!(
        "ip link add {name} address 02:00:00:00:02:0{number} type veth peer name uplink address 02:00:00:00:01:0{number} netns {}
         ip link set {name} up
         ip addr add 192.0.2.254/32 dev {name}; ip addr add 2001:db8::fe/128 dev {name} nodad
         ip route add 192.0.2.{number} dev {name}; ip -6 route add 2001:db8::{number} dev {name}
         ip neigh add 192.0.2.{number} lladdr 02:00:00:00:01:0{number} dev {name}
         ip neigh add 2001:db8::{number} lladdr 02:00:00:00:01:0{number} dev {name}",
        node.tid
    ));
    node.sh(&format!(
        "{FORWARD} net.ipv4.icmp_echo_ignore_all=1 net.ipv6.icmp.echo_ignore_all=1
         ip link set uplink up
         ip addr add 192.0.2.{number}/32 dev uplink; ip addr add 2001:db8::{number}/128 dev uplink nodad
         ip neigh add 192.0.2.254 lladdr 02:00:00:00:02:0{number} dev uplink
         ip neigh add 2001:db8::fe lladdr 02:00:00:00:02:0{number} dev uplink
         ip route add 192.0.2.254 dev uplink; ip route add default via 192.0.2.254 dev uplink
         ip -6 route add 2001:db8::fe dev uplink; ip -6 route add default via 2001:db8::fe dev uplink
         nft -f - <<'END'
         table inet mute {{
             chain output {{
                 type filter hook output priority -450;
                 tcp flags & rst == rst drop
                 icmp type destination-unreachable drop
                 icmpv6 type destination-unreachable drop
             }}
         }}
END
         {TIMEOUTS}"
    ));
}
