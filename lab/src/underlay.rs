//! The network under the nodes: one namespace that is the switches and the router, with an uplink `eth0` into each
//! node, and the ways to break it.
//!
//! ```text
//!     n1 eth0 ══ n1 ┐
//!     n2 eth0 ══ n2 ┤ br0          L2: one segment, 172.30.0.0/24
//!     n3 eth0 ══ n3 ┘
//!     n1 eth0 ══ n1 ─ br1 ┐
//!     n2 eth0 ══ n2 ─ br2 ┤ router Routed: a segment a node, 172.30.1.0/24, 172.30.2.0/24, …
//!     n1 eth0 ══ n1 ┬ br1 ┐
//!     n2 eth0 ══ n2 ┘     ┤ router Racks: a segment for two nodes each
//!     n3 eth0 ══ n3 ─ br2 ┘
//! ```
//!
//! The bridges' own addresses are the nodes' gateways and the lab's outside world: what is neither pod nor node.
//! Invariant: the port of a node in the underlay carries the node's name, so a rule about nodes is a rule about ports.
//! There is no delay control: it needs netem or fq, which the smallest kernels we run on lack.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::netns::{Endpoint, Netns};
use crate::probe::wait_for;
use crate::relay::Relay;

/// The kernel looks after links once a second, where it is at leisure.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the nodes' uplinks hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All nodes on one Ethernet segment.
    #[default]
    L2,
    /// Each node in a subnet of its own behind one router.
    Routed,
    /// Two nodes a subnet, the subnets behind one router.
    Racks,
}

/// Where one node sits in the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The node's address and prefix length.
    pub v4: (Ipv4Addr, u8),
    /// The node's address and prefix length.
    pub v6: (Ipv6Addr, u8),
    /// Its default gateway.
    pub gateway_v4: Ipv4Addr,
    /// Its default gateway.
    pub gateway_v6: Ipv6Addr,
}

/// The underlay of one lab.
#[derive(Debug)]
pub struct Underlay {
    kind: Kind,
    netns: Netns,
    /// What is dropped from whom to whom.
    cut: Mutex<Cut>,
}

/// Ordered pairs of nodes: what the first sends never reaches the second. And the number of each node there is, which
/// marks what came from it: a packet may leave by another bridge than it entered.
#[derive(Debug, Default)]
struct Cut {
    pairs: Vec<(String, String)>,
    marks: BTreeMap<String, u8>,
}

impl Kind {
    /// The number of the segment that node `number` (from 1) is on.
    fn segment(self, number: u8) -> u8 {
        match self {
            Kind::L2 => 0,
            Kind::Routed => number,
            Kind::Racks => number.div_ceil(2),
        }
    }

    /// Where node `number` (from 1) sits.
    pub fn seat(self, number: u8) -> Seat {
        let segment = self.segment(number);
        let v6 = |host| Ipv6Addr::new(0xfd30, 0, 0, segment.into(), 0, 0, 0, host);
        Seat {
            v4: (Ipv4Addr::new(172, 30, segment, number), 24),
            v6: (v6(number.into()), 64),
            gateway_v4: Ipv4Addr::new(172, 30, segment, 254),
            gateway_v6: v6(0xfffe),
        }
    }
}

impl Underlay {
    /// Makes the namespace.
    pub fn create(kind: Kind, netns_name: &str) -> Result<Self> {
        let netns = Netns::create(netns_name)?;
        // Addresses on segments nobody else talks on need no duplicate detection.
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        for family in ["iptables", "ip6tables"] {
            let key = format!("bridge/bridge-nf-call-{family}");
            // Where br_netfilter is loaded, bridges would reassemble and refragment what they carry.
            if Path::new("/proc/sys/net").join(&key).exists() {
                netns.sysctl(&key, "0")?;
            }
        }
        Ok(Self { kind, netns, cut: Mutex::default() })
    }

    /// How the nodes hang together.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its namespace, for a look or for rules of a test's own.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The lab's outside world, for traffic that leaves the cluster.
    pub fn outside(&self) -> Endpoint {
        let seat = self.kind.seat(1);
        Endpoint { name: "outside".into(), netns: self.netns.clone(), v4: seat.gateway_v4, v6: seat.gateway_v6 }
    }

    /// Plugs node `number` in: `eth0` in its namespace, with addresses and default routes.
    pub fn plug_in(&self, node: &str, number: u8, inside: &Netns) -> Result<Seat> {
        let seat = self.kind.seat(number);
        let Seat { v4, v6, gateway_v4, gateway_v6 } = &seat;
        let segment = self.kind.segment(number);
        if number == 1 || self.kind.segment(number - 1) != segment {
            // A bridge without an address of its own takes a new one with each port, and peers would lose it.
            self.netns.ip(&format!(
                "link add br{segment} address 02:00:00:00:ff:{segment:02x} type bridge forward_delay 0 mcast_snooping 0\n\
                 link set br{segment} up\n\
                 address add {gateway_v4}/24 dev br{segment}\n\
                 address add {gateway_v6}/64 dev br{segment} nodad\n"
            ))?;
        }
        self.netns.ip(&format!(
            "link add {node} type veth peer name eth0 netns {}\n\
             link set {node} master br{segment} up\n",
            inside.name()
        ))?;
        self.cut().marks.insert(node.to_owned(), number);
        inside.sysctl("ipv6/conf/eth0/accept_dad", "0")?;
        inside.sysctl("ipv6/conf/eth0/accept_ra", "0")?;
        inside.ip(&format!(
            "address add {}/{} dev eth0\n\
             address add {}/{} dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway_v4}\n\
             route add default via {gateway_v6}\n",
            v4.0, v4.1, v6.0, v6.1
        ))?;
        // The kernel takes up a link some time after it was told to, and drops what is sent until then.
        for (netns, link) in [(inside, "eth0"), (&self.netns, node), (&self.netns, &*format!("br{segment}"))] {
            let is_up = || netns.output(&["ip", "-o", "link", "show", link]).is_ok_and(|it| it.contains(" state UP "));
            wait_for(PATIENCE, &format!("link {link} of {} to be up", netns.name()), is_up)?;
        }
        Ok(seat)
    }

    /// Sets the MTU of a node's uplink, both ends of the cable.
    pub fn set_uplink_mtu(&self, node: &str, inside: &Netns, mtu: u32) -> Result<()> {
        self.netns.ip(&format!("link set {node} mtu {mtu}\n"))?;
        inside.ip(&format!("link set eth0 mtu {mtu}\n"))
    }

    /// Narrows the path between nodes, uplinks as they were: on an L2 the switch, which drops what is too big without a
    /// word, as real ones do; else the router, which answers "packet too big". `None` lifts it.
    pub fn set_path_mtu(&self, mtu: Option<u32>) -> Result<()> {
        match self.kind {
            Kind::L2 => self.netns.nft(&match mtu {
                Some(mtu) => format!(
                    "table bridge path; delete table bridge path\n\
                     table bridge path {{ chain forward {{ type filter hook forward priority 0\n\
                     meta length > {mtu} counter drop\n}}\n}}\n"
                ),
                None => "table bridge path; delete table bridge path\n".into(),
            }),
            Kind::Routed | Kind::Racks => {
                // Every crossing leaves the router by the connected route of the far node's subnet.
                let locked = mtu.map(|mtu| format!(" mtu lock {mtu}")).unwrap_or_default();
                for family in ["-4", "-6"] {
                    let routes = self.netns.output(&["ip", family, "-o", "route", "show", "proto", "kernel"])?;
                    let lines: String = routes
                        .lines()
                        .filter(|line| !line.starts_with("fe80:"))
                        .map(|line| line.split(" mtu ").next().unwrap_or(line))
                        .map(|route| format!("route replace {} proto kernel{locked}\n", without_preference(route)))
                        .collect();
                    self.netns.ip_of(family, &lines)?;
                }
                Ok(())
            }
        }
    }

    /// Drops what nodes send to a UDP port of each other, as a firewall between them would. `None` lifts it.
    pub fn block_udp_port(&self, port: Option<u16>) -> Result<()> {
        let chain = port.map(|port| {
            format!(
                "table bridge blocked {{ chain forward {{ type filter hook forward priority 0\n\
                 udp dport {port} counter drop\n}}\n}}\n"
            )
        });
        self.netns.nft(&format!("table bridge blocked; delete table bridge blocked\n{}", chain.unwrap_or_default()))
    }

    /// Gives a node a network card whose driver leaves checksums inside vxlan undone, until what this returns is dropped.
    pub fn break_checksums(&self, node: &str) -> Result<Relay> {
        let number = *self.cut().marks.get(node).with_context(|| format!("no node {node:?} is plugged in"))?;
        Relay::start(&self.netns, node, &format!("br{}", self.kind.segment(number)))
    }

    /// Pulls a node's cable: its `eth0` loses carrier.
    pub fn unplug(&self, node: &str) -> Result<()> {
        self.netns.ip(&format!("link set {node} down\n"))
    }

    /// Puts the cable back.
    pub fn replug(&self, node: &str) -> Result<()> {
        self.netns.ip(&format!("link set {node} up\n"))
    }

    /// Drops, silently, what `from` sends to `to`; the other way still works.
    pub fn drop_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.change_cuts(|pairs| pairs.push((from.to_owned(), to.to_owned())))
    }

    /// Cuts every pair with one node in each group, both ways.
    pub fn partition(&self, one: &[&str], other: &[&str]) -> Result<()> {
        self.change_cuts(|pairs| {
            for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                pairs.push((a.to_owned(), b.to_owned()));
                pairs.push((b.to_owned(), a.to_owned()));
            }
        })
    }

    /// Undoes every drop and partition.
    pub fn heal(&self) -> Result<()> {
        self.change_cuts(Vec::clear)
    }

    /// How many packets `drop_one_way` or `partition` took from what `from` sent to `to`.
    pub fn dropped(&self, from: &str, to: &str) -> Result<u64> {
        let chain = chain_name(from, to);
        let rules = self.netns.output(&["nft", "list", "chain", "bridge", "cut", &chain])?;
        let counter = rules.lines().find_map(|line| line.trim().strip_prefix("counter packets "));
        let packets = counter.and_then(|rest| rest.split(' ').next()?.parse().ok());
        packets.with_context(|| format!("a counter in chain {chain}:\n{rules}"))
    }

    fn cut(&self) -> MutexGuard<'_, Cut> {
        self.cut.lock().expect("no holder panics")
    }

    /// What enters is marked with the number of the node it came from; what leaves to a node, from its segment (forward)
    /// or from the router (output), is dropped by that mark.
    fn change_cuts(&self, change: impl FnOnce(&mut Vec<(String, String)>)) -> Result<()> {
        let mut cut = self.cut();
        change(&mut cut.pairs);
        cut.pairs.sort();
        cut.pairs.dedup();
        let (mut enter, mut leave, mut chains) = (String::new(), String::new(), String::new());
        for (node, mark) in &cut.marks {
            enter += &format!("iifname \"{node}\" meta mark set {mark}\n");
        }
        for (from, to) in &cut.pairs {
            let mark = cut.marks.get(from).with_context(|| format!("no node {from:?} is plugged in"))?;
            let chain = chain_name(from, to);
            chains += &format!("chain {chain} {{\ncounter drop\n}}\n");
            leave += &format!("oifname \"{to}\" meta mark {mark} jump {chain}\n");
        }
        self.netns.nft(&format!(
            "table bridge cut; delete table bridge cut\n\
             table bridge cut {{\n{chains}\
             chain enter {{\ntype filter hook prerouting priority 0\n{enter}}}\n\
             chain forward {{\ntype filter hook forward priority 0\n{leave}}}\n\
             chain output {{\ntype filter hook output priority 0\n{leave}}}\n}}\n"
        ))
    }
}

fn chain_name(from: &str, to: &str) -> String {
    format!("{from}_to_{to}")
}

/// `ip -6 route` prints its default preference, which `ip route replace` does not take back in that place.
fn without_preference(route: &str) -> &str {
    route.split(" pref ").next().unwrap_or(route).trim_end()
}
