//! Which instance carries packets to a peer: by configuration, and on the way from one to the other.
//!
//! The change of a cluster's fabric is a transition between two instances, since nodes learn of it seconds apart. Each
//! node by itself, at any skew: (1) receive on the new one and lower the pods' MTU, and only when that is read back
//! from the kernel say so; (2) per peer, say that one will send on the new one, then send on it, once that peer accepts
//! it; (3) stop receiving on the old one when no live node may still send on it, after a drain time; (4) raise the MTU
//! when nobody uses the narrower instance any more. A node without a sign of life blocks nobody.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tartan_model::{Config, FabricMode, Family, PerFamily};

use crate::census::Member;
use crate::{Instance, LocalNode};

/// What the choice for every peer depends on, beside the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    /// Instances this node can hear and send on: in the kernel, read back, with pods' MTU to match.
    pub(crate) ready: BTreeSet<Instance>,
    /// Instances this node has told the cluster it may send on.
    pub(crate) announced: BTreeSet<Instance>,
}

/// The outcome for one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What the configuration asks for.
    pub target: Option<Instance>,
    /// What carries packets now.
    pub used: Option<Instance>,
    /// What will, once the cluster has heard of it.
    pub announce: Option<Instance>,
}

/// What the configuration asks for between these two nodes; none where they have no family in common.
pub(crate) fn target(config: &Config, node: &LocalNode, theirs: &PerFamily<IpAddr>) -> Option<Instance> {
    let both = |family: &Family| node.uplinks.get(*family).is_some() && theirs.get(*family).is_some();
    let underlay = match config.underlay {
        Some(family) => both(&family).then_some(family)?,
        None => Family::ALL.into_iter().find(both)?,
    };
    let vxlan = Instance::Vxlan { underlay, vni: config.vxlan.vni, port: config.vxlan.port };
    match config.fabric {
        FabricMode::HostGw => Some(Instance::HostGw),
        FabricMode::Vxlan if config.vxlan.direct_routing && on_one_link(node, theirs) => Some(Instance::HostGw),
        FabricMode::Vxlan => Some(vxlan),
    }
}

/// What this node receives on by its configuration alone, whoever its peers are.
pub(crate) fn own_targets(config: &Config, node: &LocalNode) -> Vec<Instance> {
    let own = PerFamily {
        v4: node.uplinks.get(Family::V4).map(|uplink| uplink.address),
        v6: node.uplinks.get(Family::V6).map(|uplink| uplink.address),
    };
    let encapsulated =
        Config { vxlan: tartan_model::VxlanConfig { direct_routing: false, ..config.vxlan.clone() }, ..config.clone() };
    let direct = (config.fabric == FabricMode::Vxlan && config.vxlan.direct_routing).then_some(Instance::HostGw);
    target(&encapsulated, node, &own).into_iter().chain(direct).collect()
}

/// The choice for one peer. `current` is what the kernel uses towards it now.
pub(crate) fn choose(ground: &Ground, member: &Member, target: Option<Instance>, current: Option<Instance>) -> Choice {
    let accepted = |at: &Instance| member.accepts.iter().any(|(accepts, _)| accepts == at);
    let ready = |at: &Instance| accepted(at) && (ground.ready.contains(at) || current == Some(*at));
    let best = target
        .filter(ready)
        .or_else(|| current.filter(|at| accepted(at)))
        .or_else(|| member.accepts.iter().map(|(at, _)| *at).find(ready));
    let used = match best {
        Some(at) if ground.announced.contains(&at) || current == Some(at) => Some(at),
        _ => current.filter(accepted),
    };
    Choice { target, used, announce: best }
}

/// Whether the peer is on a link of this node in every family that both have.
fn on_one_link(node: &LocalNode, theirs: &PerFamily<IpAddr>) -> bool {
    let shared = Family::ALL.into_iter().filter_map(|family| Some((node.uplinks.get(family)?, theirs.get(family)?)));
    let mut direct = shared.map(|(uplink, ip)| uplink.subnets.iter().any(|subnet| subnet.contains(ip))).peekable();
    direct.peek().is_some() && direct.all(|on| on)
}
