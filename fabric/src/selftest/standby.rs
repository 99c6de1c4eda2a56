//! Ways that carry nothing while a fallback does, and when they are good again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Family, Passes, World};
use tartan_netstate::claims::FABRIC_LINK_PREFIX;
use tartan_netstate::{Key, Netns, Object};

use super::{Finding, Path, Standing, Target};
use crate::fallback::standby_route;
use crate::{Instance, Out, PeerState};

/// Rounds in a row that have to be well until packets go back: a way that comes and goes is none.
const STEADY: u8 = 5;

/// Ways that stand behind others in this kernel. Probes have to be bound to their link, or they go as packets do.
pub fn standbys(out: &Out, world: &World) -> BTreeMap<Path, Target> {
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
    let fabric_address = *advert.fabric_addresses.get(family)?;
    let blocks: Vec<IpNet> = peer.blocks.iter().filter(|block| Family::of_net(block) == family).copied().collect();
    let block = blocks.iter().find(|block| block.contains(&fabric_address))?;
    let object = |key: &Key| Some(&world.programmed.mirror.get(key)?.object);
    let Object::Route(route) = object(&standby_route(block))? else { return None };
    let dev = route.dev.as_ref()?;
    let device = || match object(&Key::Link { ns: Netns::Host, link: dev.clone() }) {
        Some(Object::Link(link)) => Instance::of_device(link),
        _ => None,
    };
    let at = if dev.as_str().starts_with(FABRIC_LINK_PREFIX) { device()? } else { Instance::HostGw };
    let name = at.to_string();
    let endpoint = advert.accepts.iter().find(|end| *end.instance == *name)?;
    let mtu = out.pod_mtu.min(advert.mtu);
    Some(Target { at, fabric_address, underlay: endpoint.address, mtu, device: Some(dev.clone()), blocks })
}

/// Which instances get through to which peers, as far as that is known: those that carry packets, and those that stand by.
pub fn passes(carrying: &BTreeMap<Path, Standing>, standing_by: &BTreeMap<Path, Standing>) -> Passes {
    let carries = |it: &Standing| match it.finding {
        Some(Finding::Blocked { .. }) => Some(false),
        // Another way would be no better.
        _ => it.round_trip.map(|_| true),
    };
    let is_back = |it: &Standing| match it.finding {
        Some(_) => Some(false),
        None => (it.well >= STEADY).then_some(true),
    };
    let mut passes = Passes::new();
    let carrying = carrying.iter().map(|(path, it)| (path, it, carries(it)));
    let standing_by = standing_by.iter().map(|(path, it)| (path, it, is_back(it)));
    for ((peer, _), it, known) in carrying.chain(standing_by) {
        if let Some(known) = known {
            let name = Arc::from(it.target.at.to_string());
            // Of two families, or of two words, the worse one counts.
            *passes.entry((peer.clone(), name)).or_insert(true) &= known;
        }
    }
    passes
}
