//! Planner: how packets get from node to node. One file per mode; [`plan()`] holds the loop over peers and families, once.
//!
//! Invariant: pure and total. What cannot be honoured is a condition beside the value, and a peer that cannot be
//! reached has no route rather than a wrong one.
//!
//! A new mode is one file like [`vxlan`] and a variant of [`Instance`]; what else has to know of it, ARCHITECTURE.md lists.

pub mod address;
pub mod advert;
mod census;
pub mod choose;
mod device;
mod fallback;
pub mod flannel;
mod host_gw;
mod instance;
mod ipip;
mod ipsec;
mod join;
mod key;
mod mtu;
mod nodes;
mod own;
mod ownership;
pub mod peer;
pub mod plan;
mod rotation;
mod route;
pub mod selftest;
mod shortfall;
mod udp;
mod vxlan;
mod way;
mod wireguard;

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, Family, Features, PerFamily};
use tartan_netstate::{Encap, Key, LinkName, Object, State};

pub use address::{LocalNode, Uplink};
pub use choose::Choice;
pub use instance::Instance;
use ownership::Own;
pub use peer::PeerState;
pub use plan::{Memo, Out, Owned, plan};

/// A way for packets to cross nodes. Pure; one implementation per mode.
pub(crate) trait Fabric: Sync {
    /// Whether this kernel can do it; if not, what is missing.
    fn needs(&self, have: &Features) -> Result<(), &'static str>;

    /// All it takes to hear: devices, addresses, sysctls. Also all it takes to be able to send at all.
    fn receive(&self, node: &LocalNode, at: &Instance) -> State;

    /// What a peer has to know in order to send here; none where the instance cannot be heard on this node.
    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint>;

    /// Next hop of a family's packets to a peer, or why there is none.
    fn hop(&self, node: &LocalNode, at: &Instance, to: &Peer<'_>, family: Family) -> Result<Hop, Condition>;

    /// What that next hop takes beside the routes to these ranges of the family: neighbours, forwarding entries, remotes.
    fn reach(&self, at: &Instance, to: &Peer<'_>, family: Family, blocks: &[&IpNet]) -> Vec<(Key, Object)>;

    /// What it takes to hear a peer in particular, whatever carries packets to it: a peer may send what is of its own.
    fn admit(&self, _node: &LocalNode, _at: &Instance, _advert: &Advert, _own: &Own) -> Vec<(Key, Object)> {
        Vec::new()
    }

    /// Where packets to these ranges of a peer go in the kernel, for when it says nothing of the instance any more; none where
    /// what the kernel shows is not enough to go on sending there.
    fn endpoint_in_kernel(
        &self,
        _kernel: &State,
        _at: &Instance,
        _to: &Advert,
        _blocks: &[&IpNet],
    ) -> Option<Endpoint> {
        None
    }
}

/// A peer, as a fabric sees it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub name: &'a str,
    /// Its underlay addresses.
    pub addresses: PerFamily<IpAddr>,
    /// Its fabric addresses.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// Where it hears the instance in question.
    pub endpoint: &'a Endpoint,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// None where the device is the hop.
    pub via: Option<IpAddr>,
    pub dev: LinkName,
    pub onlink: bool,
    /// The outer header, where the route and not the device knows it.
    pub encap: Option<Encap>,
}

/// The modes there are, but for `none`, which has no instance.
pub(crate) fn fabric_of(at: &Instance) -> &'static dyn Fabric {
    match at {
        Instance::HostGw => &host_gw::HostGw,
        Instance::Vxlan { .. } => &vxlan::Vxlan,
        Instance::Ipip { .. } => &ipip::Ipip,
        Instance::Udp { .. } => &udp::Udp,
        Instance::Wireguard { .. } => &wireguard::Wireguard,
        Instance::Ipsec { .. } => &ipsec::Ipsec,
    }
}
