//! What is on the node and is not ours, as far as Tartan has to know it.
//!
//! The kernel door reports it as one value; address choice, MTU, "is this peer on my link" and the foreign-firewall
//! conditions are derived from it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Links, addresses, default routes and firewalls of others, each list sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Links in the node's namespace that are not ours.
    pub links: Vec<HostLink>,
    /// Default routes, lowest metric first.
    pub default_routes: Vec<DefaultRoute>,
    /// Chains of others that drop what pods send through this node.
    pub forward_blocks: Vec<ForwardBlock>,
}

/// A link of somebody else, with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    pub name: Arc<str>,
    /// `IFLA_INFO_KIND`, e.g. `bridge`; empty for a NIC.
    pub kind: Arc<str>,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
    /// `lo`.
    pub loopback: bool,
    /// With prefix length, global scope only.
    pub addresses: Vec<IpNet>,
    /// `net.ipv6.conf.LINK.accept_ra`; 0 where IPv6 is off.
    pub accept_ra: u8,
}

/// Where packets to nowhere in particular leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    pub v6: bool,
    pub link: Arc<str>,
    pub via: Option<IpAddr>,
    pub metric: u32,
}

/// A base chain on the forward hook that is not ours and ends in a drop for pod traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardBlock {
    /// `ip`, `ip6`, `inet`, or `iptables` / `ip6tables` for the legacy tables.
    pub family: Arc<str>,
    pub table: Arc<str>,
    pub chain: Arc<str>,
    /// The rule's handle and text, or `policy drop`.
    pub rule: Arc<str>,
    /// The chain of that table where rules of ours belong; it may be `chain` itself.
    pub place: Arc<str>,
    /// Rules of ours in front of it let pod traffic pass.
    pub opened: bool,
}
