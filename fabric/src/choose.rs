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

use tartan_model::{Config, FabricMode, Family, PerFamily};
use tartan_netstate::LinkName;

use crate::{Instance, LocalNode};

/// What the choice for every peer depends on, beside the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ground {
    /// Instances this node can hear and send on: in the kernel, read back, with pods' MTU to match.
    pub(crate) ready: BTreeSet<Instance>,
    /// Instances the cluster knows this node to send on.
    pub(crate) announced: BTreeSet<Instance>,
    /// Devices in the kernel.
    pub(crate) devices: BTreeMap<LinkName, Instance>,
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

/// What the configuration asks for between these two nodes; none where they have no family in common to wrap packets
/// in.
pub(crate) fn target(
    config: &Config,
    node: &LocalNode,
    theirs: &PerFamily<IpAddr>,
    packets: Family,
) -> Option<Instance> {
    match config.fabric {
        FabricMode::HostGw => Some(Instance::HostGw),
        FabricMode::None => None,
        _ if config.cross_subnet && on_one_link(node, theirs, packets) => Some(Instance::HostGw),
        _ => wrapped(config, |family| node.uplinks.get(*family).is_some() && theirs.get(*family).is_some()),
    }
}

/// What this node receives on by its configuration alone, whoever its peers are.
pub fn own_targets(config: &Config, node: &LocalNode) -> BTreeSet<Instance> {
    let direct = match config.fabric {
        FabricMode::HostGw => true,
        FabricMode::None => false,
        FabricMode::Vxlan | FabricMode::Ipip => config.cross_subnet,
    };
    let wrapped = wrapped(config, |family| node.uplinks.get(*family).is_some());
    wrapped.into_iter().chain(direct.then_some(Instance::HostGw)).collect()
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

/// The configured fabric's instance over the first family that will do; none for a fabric that wraps nothing.
fn wrapped(config: &Config, possible: impl Fn(&Family) -> bool) -> Option<Instance> {
    let families = config.underlay.map_or(Family::ALL.to_vec(), |family| vec![family]);
    let underlay = families.into_iter().find(possible)?;
    match config.fabric {
        FabricMode::HostGw | FabricMode::None => None,
        FabricMode::Vxlan => Some(Instance::Vxlan { underlay, vni: config.vxlan.vni, port: config.vxlan.port }),
        FabricMode::Ipip => Some(Instance::Ipip { underlay }),
    }
}

fn on_one_link(node: &LocalNode, theirs: &PerFamily<IpAddr>, family: Family) -> bool {
    match (node.uplinks.get(family), theirs.get(family)) {
        (Some(uplink), Some(theirs)) => uplink.is_on_link(*theirs),
        _ => false,
    }
}
