//! Ways that carry nothing while a fallback does, and when they are good again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tartan_model::{Family, Passes, Passing, World};

use super::targets::{carried_by, way};
use super::{Finding, Path, Standing, Target};
use crate::mtu::MIN_MTU;
use crate::route::standby_route;
use crate::{Out, PeerState};

/// Rounds in a row that have to be well until packets go back: a way that comes and goes is none.
const STEADY: u8 = 5;

/// Ways that stand behind others in this kernel. Probes have to be bound to their link, or they go as packets do.
pub fn standbys(out: &Out, world: &World) -> BTreeMap<Path, Target> {
    // There may be thousands of peers, and without a fallback no way stands behind another.
    if world.config.fallback.is_none() {
        return BTreeMap::new();
    }
    let peers = out.peers.iter().map(|(name, peer)| (name, &**peer)).filter(|(_, peer)| peer.live);
    let of_peer = |(name, peer): (&Arc<str>, &PeerState)| {
        let to = |family| Some(((name.clone(), family), target(out, world, (name, peer), family)?));
        Family::ALL.into_iter().filter_map(to).collect::<Vec<_>>()
    };
    peers.flat_map(of_peer).collect()
}

fn target(out: &Out, world: &World, (name, peer): (&Arc<str>, &PeerState), family: Family) -> Option<Target> {
    out.node.fabric_addresses.get(family)?;
    let advert = &world.adverts.get(name)?.advert;
    let (fabric_address, route) = way(world, peer, advert, family, standby_route)?;
    let device = Some(route.dev.clone()?);
    let at = carried_by(world, route)?;
    let underlay = advert.endpoint(&at.to_string())?.address;
    let itself_too = peer.to_itself.is_some();
    Some(Target { at, fabric_address, underlay, itself_too, mtu: out.pod_mtu.min(advert.mtu), device })
}

/// What gets through to which peers by which instances, as far as that is known: those that carry packets, and those that stand by.
pub fn passes(carrying: &BTreeMap<Path, Standing>, standing_by: &BTreeMap<Path, Standing>) -> Passes {
    let carries = |it: &Standing| match it.finding {
        Some(Finding::Blocked { .. }) => Some(Passing::Nothing),
        Some(Finding::Narrow { largest }) => Some(Passing::UpTo(largest)),
        // Another way would be no better. How large packets may be is not known before one that large got there.
        _ => it.full.then_some(Passing::All),
    };
    let is_back = |it: &Standing| match it.finding {
        // No way is left for that, and none is what carries less than each has to.
        Some(Finding::Narrow { largest }) if largest >= MIN_MTU => Some(Passing::UpTo(largest)),
        Some(_) => Some(Passing::Nothing),
        None => (it.well >= STEADY).then_some(Passing::All),
    };
    let (mut passes, mut unknown) = (Passes::new(), BTreeSet::new());
    let carrying = carrying.iter().map(|(path, it)| (path, it, carries(it)));
    let standing_by = standing_by.iter().map(|(path, it)| (path, it, is_back(it)));
    for ((peer, _), it, known) in carrying.chain(standing_by) {
        let way = (peer.clone(), Arc::from(it.target.at.to_string()));
        if let Some(known) = known {
            // Of two families, or of two words, the worse one counts.
            let worst = passes.entry(way).or_insert(known);
            *worst = known.min(*worst);
        } else if it.finding.is_none() {
            unknown.insert(way);
        }
    }
    passes.retain(|way, passing| *passing != Passing::All || !unknown.contains(way));
    passes
}
