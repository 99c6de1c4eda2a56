//! Planner: how packets get from node to node. One file per mode; [`plan()`] holds the loop over peers and families, once.
//!
//! Invariant: pure and total. What cannot be honoured is a condition beside the value, and a peer that cannot be
//! reached has no route rather than a wrong one.
//!
//! A new mode is one file like [`vxlan`] and a row in [`fabric_of`].

pub mod address;
pub mod advert;
mod census;
pub mod choose;
mod host_gw;
mod instance;
mod mtu;
pub mod plan;
mod vxlan;

use std::net::IpAddr;

use tartan_model::{Condition, Endpoint, FabricMode, Family, Features, PerFamily};
use tartan_netstate::{LinkName, State};

pub use address::{LocalNode, Uplink};
pub use instance::Instance;
pub use plan::{Memo, Out, Owned, PeerState, plan};

/// A way for packets to cross nodes. Pure; one implementation per mode.
pub trait Fabric: Sync {
    /// Whether this kernel can do it; if not, what is missing.
    fn needs(&self, have: &Features) -> Result<(), &'static str>;

    /// Bytes that it adds to a packet on an underlay of that family.
    fn overhead(&self, underlay: Family) -> u32;

    /// All it takes to hear: devices, addresses, sysctls. Also all it takes to be able to send at all.
    fn receive(&self, node: &LocalNode, at: &Instance) -> State;

    /// What a peer has to know in order to send here; none where the instance cannot be heard on this node.
    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint>;

    /// What it takes to reach one peer: neighbours, forwarding entries, and the next hop of each family.
    fn send(&self, node: &LocalNode, at: &Instance, to: &Peer<'_>) -> Sending;
}

/// A peer, as a fabric sees it.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    pub name: &'a str,
    /// Its underlay addresses.
    pub addresses: PerFamily<IpAddr>,
    /// Its fabric addresses.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// Where it hears the instance in question.
    pub endpoint: &'a Endpoint,
}

/// How a peer is reached.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    /// Neighbours and forwarding entries.
    pub state: State,
    /// Next hop of packets of each family; none where the fabric has no way.
    pub hops: PerFamily<Hop>,
    /// Why a family has no next hop.
    pub conditions: Vec<Condition>,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub via: IpAddr,
    pub dev: LinkName,
    pub onlink: bool,
}

/// The modes there are.
pub fn fabric_of(mode: FabricMode) -> &'static dyn Fabric {
    match mode {
        FabricMode::HostGw => &host_gw::HostGw,
        FabricMode::Vxlan => &vxlan::Vxlan,
    }
}
