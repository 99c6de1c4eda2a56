//! What carries packets to a peer while the path self-test finds that the fabric does not get there (`spec.fallback`).
//!
//! Every node hears the fallback's instance and says that it may send on it, so a pair can turn to it at once, each end by
//! itself. The way that is blocked stays in the kernel behind it, as routes of a worse metric: no packet takes them, but a
//! probe that is bound to their link does (`selftest/standby.rs`), and what it finds is when to go back.
//!
//! Invariant: routes lead by the fallback only while the others stand behind them, so the kernel itself is the memory of an
//! agent that starts anew and has tested nothing yet, and of peers whose agent is silent, which are not tested: their kernels
//! forward on.

use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Family, Passing, World};

use crate::Instance;
use crate::census::Member;
use crate::choose::{Common, wrapped};
use crate::route::standby_route;

/// What stands in for an instance towards a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fallback {
    pub(crate) to: Instance,
    /// The blocked one stands behind already.
    pub(crate) holds: bool,
}

/// The instance that the configuration has for where others are blocked, if both ends can and it may carry packets.
pub(crate) fn instance(common: &Common, member: &Member) -> Option<Instance> {
    let (node, theirs) = (&common.node, &member.advert.addresses);
    let both = |family: &Family| node.uplinks.get(*family).is_some() && theirs.get(*family).is_some();
    let at = wrapped(&common.config, node, common.config.fallback?, both)?;
    let allowed = !common.config.strict_encryption || at.is_encrypted();
    (allowed && !member.annotated && member.accepts().any(|(accepts, _)| accepts == at)).then_some(at)
}

/// What gets to the peer by `at`, as far as the self-test knows.
pub(crate) fn passing(world: &World, name: &Arc<str>, at: Instance) -> Option<Passing> {
    // There may be thousands of peers, and names are made to be looked up.
    if world.passes.is_empty() {
        return None;
    }
    world.passes.get(&(name.clone(), at.to_string().into())).copied()
}

/// Whether the peer's ranges are to be reached otherwise than by `at`, and how.
pub(crate) fn of(
    world: &World,
    common: &Common,
    (name, member): (&Arc<str>, &Member),
    at: Instance,
    blocks: &[&IpNet],
) -> Option<Fallback> {
    let to = instance(common, member).filter(|to| *to != at && !blocks.is_empty())?;
    let stands = |block: &&IpNet| world.programmed.mirror.get(&standby_route(block)).is_some();
    let blocked = match passing(world, name, at) {
        Some(passing) => passing == Passing::Nothing,
        None => blocks.iter().any(stands),
    };
    blocked.then(|| Fallback { to, holds: blocks.iter().all(stands) })
}
