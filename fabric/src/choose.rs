//! Which instance carries packets to a peer: by configuration, and on the way from one to the other.
//!
//! The change of a cluster's fabric is a transition between two instances, since nodes learn of it seconds apart. Each
//! node by itself, at any skew:
//!
//! 1. It receives on the new one and lowers the pods' MTU, and only when that is read back from the kernel says so.
//! 2. It says that it will send on the new one, and when it has heard itself say so from the store, sends on it to
//!    every peer that accepts it: one route replaced.
//! 3. When no live node says that it may still send on the old one, it waits for the drain time, says that it no longer
//!    accepts it, and when it has heard itself say so and still nobody sends on it, stops receiving.
//! 4. It raises the MTU when nobody accepts the narrower instance any more.
//!
//! No packet meets a closed door, however late anything is heard: a sender says "I will" and a receiver "I won't" before
//! they do, and each looks at the other's word after its own came back. A store has all nodes' words in one order, so
//! at least one of the two has heard the other, and then the sender does not begin or the receiver does not stop. A
//! sender that has begun goes on whatever it hears, until it has something better.
//! A node without a sign of life blocks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Across, Config, Encapsulation, Encryption, FabricMode, Family, PerFamily, World};
use tartan_netstate::LinkName;

use crate::{Instance, LocalNode, flannel};

/// What the choice for every peer depends on, beside the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ground {
    /// Instances this node can hear and send on: in the kernel, read back, with pods' MTU to match.
    pub(crate) ready: BTreeSet<Instance>,
    /// Instances the cluster knows this node to send on.
    pub(crate) announced: BTreeSet<Instance>,
    /// Devices in the kernel.
    pub(crate) devices: BTreeMap<LinkName, Instance>,
    /// The kernel lets nothing go to peers' pods in clear.
    pub(crate) strict: bool,
    /// Own addresses under which the kernel can send encrypted what is for others' own ones.
    pub(crate) encrypts_from: PerFamily<IpAddr>,
}

/// What the plan for every peer depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    pub(crate) config: Arc<Config>,
    /// Pools that say for themselves how packets to their addresses cross nodes, in order.
    pub(crate) pools: Vec<(IpNet, Encapsulation)>,
    pub(crate) node: LocalNode,
    pub(crate) ground: Ground,
}

/// The outcome for one family of packets to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What the configuration asks for.
    pub target: Option<Instance>,
    /// What carries packets now.
    pub used: Option<Instance>,
    /// What will, once the cluster has heard of it.
    pub announce: Option<Instance>,
}

/// How the packets of some ranges are to cross nodes: as their pool says, or else the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manner {
    mode: FabricMode,
    /// Not on one link.
    cross_subnet: bool,
}

/// What the configuration asks for between these two nodes; none where they have no family in common to wrap packets
/// in.
pub(crate) fn target(
    config: &Config,
    manner: Manner,
    node: &LocalNode,
    theirs: &PerFamily<IpAddr>,
    packets: Family,
) -> Option<Instance> {
    let both = |family: &Family| node.uplinks.get(*family).is_some() && theirs.get(*family).is_some();
    match manner.mode {
        FabricMode::None => None,
        // It takes the place of whatever would carry packets in clear: wrapped twice, they would only be smaller.
        _ if config.encryption != Encryption::None => wrapped(config, node, config.encrypts_by()?, both),
        FabricMode::HostGw => Some(Instance::HostGw),
        _ if manner.cross_subnet && on_one_link(node, theirs, packets) => Some(Instance::HostGw),
        mode => wrapped(config, node, mode, both),
    }
}

// === impl Common ===

impl Common {
    /// Ranges of a family, by how packets to them are to cross nodes; without any, that of the configuration.
    pub(crate) fn by_manner<'a>(&self, blocks: &'a [IpNet], family: Family) -> BTreeMap<Manner, Vec<&'a IpNet>> {
        let mut by_manner: BTreeMap<Manner, Vec<&IpNet>> = BTreeMap::new();
        for block in blocks.iter().filter(|block| Family::of_net(block) == family) {
            let pool = self.pools.iter().find(|(range, _)| range.contains(block)).map(|(_, says)| *says);
            by_manner.entry(Manner::of(&self.config, pool)).or_default().push(block);
        }
        if by_manner.is_empty() {
            by_manner.insert(Manner::of(&self.config, None), Vec::new());
        }
        by_manner
    }
}

// === impl Manner ===

impl Manner {
    /// With somebody else's fabric, that of every range; and neither a pool nor a common link takes back that packets are
    /// encrypted.
    pub(crate) fn of(config: &Config, pool: Option<Encapsulation>) -> Manner {
        let says = |mode, across| Manner { mode, cross_subnet: across == Across::Subnets };
        if config.fabric.encrypts() {
            return Manner { mode: config.fabric, cross_subnet: false };
        }
        match pool.filter(|_| config.fabric != FabricMode::None) {
            None => Manner { mode: config.fabric, cross_subnet: config.cross_subnet },
            Some(Encapsulation::Never) => Manner { mode: FabricMode::HostGw, cross_subnet: false },
            Some(Encapsulation::Ipip(across)) => says(FabricMode::Ipip, across),
            Some(Encapsulation::Vxlan(across)) => says(FabricMode::Vxlan, across),
        }
    }
}

/// Pools that say for themselves how packets to their addresses cross nodes.
pub(crate) fn pools(world: &World) -> Vec<(IpNet, Encapsulation)> {
    world.pools.values().filter_map(|pool| Some((pool.cidr, pool.encapsulation?))).collect()
}

/// What this node receives on by its configuration and its pools, whoever its peers are, and while Flannel is spoken.
pub(crate) fn own_targets(world: &World, node: &LocalNode) -> BTreeSet<Instance> {
    let config = &world.config;
    let of_pools = pools(world).into_iter().map(|(_, says)| Manner::of(config, Some(says)));
    let manners: BTreeSet<Manner> = of_pools.chain([Manner::of(config, None)]).collect();
    let has = |family: &Family| node.uplinks.get(*family).is_some();
    let encrypted = config.encrypts_by().and_then(|mode| wrapped(config, node, mode, has));
    // Peers that cannot encrypt are reached by the fabric all the same.
    let allowed = |at: &Instance| !config.strict_encryption || at.is_encrypted();
    let targets = |manner: Manner| {
        let direct = manner.mode == FabricMode::HostGw || manner.mode != FabricMode::None && manner.cross_subnet;
        let wrapped = wrapped(config, node, manner.mode, has);
        wrapped.into_iter().chain(direct.then_some(Instance::HostGw))
    };
    // Heard by everybody, or a pair could not turn to it at once.
    let fallback = config.fallback.filter(|_| config.fabric != FabricMode::None);
    let fallback = fallback.and_then(|mode| wrapped(config, node, mode, has));
    let flannel = world.flannel().into_iter().flat_map(|flannel| flannel::instances(flannel));
    manners.into_iter().flat_map(targets).chain(flannel).chain(encrypted).chain(fallback).filter(allowed).collect()
}

/// The choice for one family of packets to one peer. `usable` is what that peer hears and a next hop leads to, and
/// what the kernel uses now, which is `current`. Who does not listen hears no announcements, and none is made for it.
pub(crate) fn choose(
    ground: &Ground,
    listens: bool,
    usable: &[Instance],
    target: Option<Instance>,
    current: Option<Instance>,
) -> Choice {
    let current = current.filter(|at| usable.contains(at));
    let ready = |at: &Instance| usable.contains(at) && (ground.ready.contains(at) || current == Some(*at));
    // What works goes on working where the configured one cannot: off-link, not supported, not yet there.
    let best = target.filter(ready).or(current).or_else(|| usable.iter().copied().find(ready));
    let free = |at: &Instance| !listens || ground.announced.contains(at) || current == Some(*at);
    // Somebody may have deleted the route by hand: what both ends hold to meanwhile takes its place, not nothing.
    let agreed = || usable.iter().copied().find(|at| ready(at) && free(at));
    Choice { target, used: best.filter(free).or(current).or_else(agreed), announce: best }
}

/// The mode's instance over the first family that will do; none for a fabric that wraps nothing.
pub(crate) fn wrapped(
    config: &Config,
    node: &LocalNode,
    mode: FabricMode,
    possible: impl Fn(&Family) -> bool,
) -> Option<Instance> {
    let families = config.underlay.map_or(Family::ALL.to_vec(), |family| vec![family]);
    let underlay = families.into_iter().find(possible)?;
    match mode {
        FabricMode::HostGw | FabricMode::None => None,
        FabricMode::Vxlan => {
            Some(Instance::Vxlan { underlay, vni: config.vxlan.vni, port: config.vxlan.port, gbp: config.vxlan.gbp })
        }
        FabricMode::Ipip => Some(Instance::Ipip { underlay }),
        FabricMode::Udp => Some(Instance::Udp { underlay, port: config.udp_port }),
        FabricMode::Wireguard => node.wireguard.get(underlay).copied(),
        FabricMode::Ipsec => node.ipsec.get(underlay).copied(),
    }
}

fn on_one_link(node: &LocalNode, theirs: &PerFamily<IpAddr>, family: Family) -> bool {
    match (node.uplinks.get(family), theirs.get(family)) {
        (Some(uplink), Some(theirs)) => uplink.is_on_link(*theirs),
        _ => false,
    }
}
