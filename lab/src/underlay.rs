//! The network under the nodes: one namespace that is a switch (L2) or a router (one subnet a node), with an uplink
//! `eth0` into each node, and the ways to break it.
//!
//! ```text
//!     n1 ──eth0══n1─┐                              n1 ──eth0══n1 .254 ┐
//!     n2 ──eth0══n2─┤ br0 172.30.0.254  (L2)       n2 ──eth0══n2 .254 ├ forwards  (Routed)
//!     n3 ──eth0══n3─┘                              n3 ──eth0══n3 .254 ┘
//! ```
//!
//! The underlay's own gateway address is also the lab's outside world: what pods see as "not a pod, not a node".
//! Invariant: the port of a node in the underlay carries the node's name, so a rule about nodes is a rule about ports.
//! There is no delay control: this needs netem or fq, which the smallest kernels we run on lack.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::netns::{Endpoint, Netns};

/// How the nodes' uplinks hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All nodes on one Ethernet segment.
    #[default]
    L2,
    /// Each node in a subnet of its own behind one router.
    Routed,
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
    /// Ordered pairs of nodes: what the first sends never reaches the second.
    cut: Mutex<BTreeSet<(String, String)>>,
}

/// The name of our nft table in the underlay's namespace.
const TABLE: &str = "cut";

impl Kind {
    /// Where node `number` (from 1) sits.
    pub fn seat(self, number: u8) -> Seat {
        let n = u16::from(number);
        match self {
            Kind::L2 => Seat {
                v4: (Ipv4Addr::new(172, 30, 0, number), 24),
                v6: (Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, n), 64),
                gateway_v4: Ipv4Addr::new(172, 30, 0, 254),
                gateway_v6: Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 0xfffe),
            },
            Kind::Routed => Seat {
                v4: (Ipv4Addr::new(172, 30, number, 1), 24),
                v6: (Ipv6Addr::new(0xfd30, 0, 0, n, 0, 0, 0, 1), 64),
                gateway_v4: Ipv4Addr::new(172, 30, number, 254),
                gateway_v6: Ipv6Addr::new(0xfd30, 0, 0, n, 0, 0, 0, 0xfffe),
            },
        }
    }

    /// The family whose forward hook sees what goes from port to port.
    fn nft_family(self) -> &'static str {
        match self {
            Kind::L2 => "bridge",
            Kind::Routed => "inet",
        }
    }
}

impl Underlay {
    /// Makes the namespace and, on an L2, its switch.
    pub fn create(kind: Kind, netns_name: &str) -> Result<Self> {
        let netns = Netns::create(netns_name)?;
        // Addresses of a switch nobody else talks on need no duplicate detection.
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        match kind {
            Kind::L2 => {
                let Seat { gateway_v4, gateway_v6, .. } = kind.seat(1);
                netns.ip(&format!(
                    "link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
                     link set br0 up\n\
                     address add {gateway_v4}/24 dev br0\n\
                     address add {gateway_v6}/64 dev br0 nodad\n"
                ))?;
            }
            Kind::Routed => {
                netns.sysctl("ipv4/ip_forward", "1")?;
                netns.sysctl("ipv6/conf/all/forwarding", "1")?;
            }
        }
        Ok(Self { kind, netns, cut: Mutex::default() })
    }

    /// L2 or routed.
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
        self.netns.ip(&format!("link add {node} type veth peer name eth0 netns {}\n", inside.name()))?;
        self.netns.ip(&match self.kind {
            Kind::L2 => format!("link set {node} master br0 up\n"),
            Kind::Routed => format!(
                "address add {gateway_v4}/24 dev {node}\n\
                 address add {gateway_v6}/64 dev {node} nodad\n\
                 link set {node} up\n"
            ),
        })?;
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
        Ok(seat)
    }

    /// Sets the MTU of a node's uplink, both ends of the cable.
    pub fn set_uplink_mtu(&self, node: &str, inside: &Netns, mtu: u32) -> Result<()> {
        self.netns.ip(&format!("link set {node} mtu {mtu}\n"))?;
        inside.ip(&format!("link set eth0 mtu {mtu}\n"))
    }

    /// Narrows the path between all nodes, uplinks as they were. A router answers "packet too big"; a switch drops
    /// what is too big without a word, as real ones do. `None` lifts it.
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
            Kind::Routed => {
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
        self.change_cuts(|cut| {
            cut.insert((from.to_owned(), to.to_owned()));
        })
    }

    /// Cuts every pair with one node in each group, both ways.
    pub fn partition(&self, one: &[&str], other: &[&str]) -> Result<()> {
        self.change_cuts(|cut| {
            for a in one {
                for b in other {
                    cut.insert(((*a).to_owned(), (*b).to_owned()));
                    cut.insert(((*b).to_owned(), (*a).to_owned()));
                }
            }
        })
    }

    /// Undoes every drop and partition.
    pub fn heal(&self) -> Result<()> {
        self.change_cuts(BTreeSet::clear)
    }

    /// How many packets `drop_one_way` or `partition` took from what `from` sent to `to`.
    pub fn dropped(&self, from: &str, to: &str) -> Result<u64> {
        let rules = self.netns.output(&["nft", "list", "table", self.kind.nft_family(), TABLE])?;
        let rule = format!("iifname \"{from}\" oifname \"{to}\" counter packets ");
        let Some(rest) = rules.lines().find_map(|line| line.trim().strip_prefix(&rule)) else {
            bail!("nothing is dropped between {from} and {to}");
        };
        rest.split(' ').next().and_then(|n| n.parse().ok()).with_context(|| format!("an nft counter in: {rest}"))
    }

    fn change_cuts(&self, change: impl FnOnce(&mut BTreeSet<(String, String)>)) -> Result<()> {
        let mut cut = self.cut.lock().expect("no change of the set panics");
        change(&mut cut);
        let family = self.kind.nft_family();
        let rules: String =
            cut.iter().map(|(from, to)| format!("iifname \"{from}\" oifname \"{to}\" counter drop\n")).collect();
        self.netns.nft(&format!(
            "table {family} {TABLE}; delete table {family} {TABLE}\n\
             table {family} {TABLE} {{ chain forward {{ type filter hook forward priority 0\n{rules}}}\n}}\n"
        ))
    }
}

/// `ip -6 route` prints its default preference, which `ip route replace` does not take back in that place.
fn without_preference(route: &str) -> &str {
    route.split(" pref ").next().unwrap_or(route).trim_end()
}
