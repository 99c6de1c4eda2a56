//! Which paths there are to probe, and what probes of each need to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Advert, Family, PerFamily, World};
use tartan_netstate::{Key, LinkName, Netns, Object, Route};

use crate::route::{carrier, is_ours, route_at, route_to};
use crate::{Instance, Out, PeerState, own};

/// The way to a peer, for one family of packets.
pub type Path = (Arc<str>, Family);

/// Paths that are all probed. Of more, those that pods talk over: every peer that is asked takes an entry in the tables of
/// neighbours, which have room for a thousand unless somebody says otherwise.
pub const MANY: usize = 256;

/// Which of more paths than that are probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Addresses that somebody here talks to.
    pub talked_to: BTreeSet<IpAddr>,
    /// Peers that stay as long as they are talked to: something is wrong on the way there.
    pub kept: BTreeSet<Arc<str>>,
    /// Counts up: of the others each has its turn.
    pub turn: u64,
}

/// What a probe needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What carries packets there.
    pub at: Instance,
    /// The peer's own address among its pods'.
    pub fabric_address: IpAddr,
    /// Where outer packets go.
    pub underlay: IpAddr,
    /// What is sent to the peer's own address goes by the same: it is no other way.
    pub itself_too: bool,
    /// Largest packet that pods of both ends may send, in bytes.
    pub mtu: u32,
    /// Our device that it goes by, if one of ours.
    pub device: Option<LinkName>,
}

/// This node's own addresses at which peers can ask, now that its kernel has them.
pub fn asked_at(out: &Out, world: &World) -> PerFamily<IpAddr> {
    let mut addresses = PerFamily::default();
    let there = |ip: &IpAddr| world.programmed.mirror.get(&own::fabric_address(*ip)).is_some();
    for (family, ip) in out.node.fabric_addresses.iter().filter(|(_, ip)| there(ip)) {
        addresses.set(family, *ip);
    }
    addresses
}

/// Paths to live peers, as far as this kernel holds what they take. Of more than [`MANY`] a sample of those to peers whose ranges
/// hold one of the addresses somebody here talks to; none where that is not said and there are so many.
pub fn targets(out: &Out, world: &World, sample: Option<&Sample>) -> Option<BTreeMap<Path, Target>> {
    let families = out.node.fabric_addresses.iter().count();
    let live = out.peers.iter().map(|(name, peer)| (name, &**peer)).filter(|(_, peer)| peer.live);
    let chosen = match out.peers.len() * families > MANY {
        true => sample?.of(live, MANY / families),
        false => live.collect(),
    };
    let of_peer = |(name, peer): (&Arc<str>, &PeerState)| {
        let advert = world.adverts.get(name).map(|heard| heard.advert.clone())?;
        let to = |family| Some(((name.clone(), family), target(out, world, peer, &advert, family)?));
        Some(Family::ALL.into_iter().filter_map(to).collect::<Vec<_>>())
    };
    let reached = chosen.into_iter().filter(|(_, peer)| peer.part.is_in(&world.programmed.mirror));
    Some(reached.filter_map(of_peer).flatten().collect())
}

// === impl Sample ===

impl Sample {
    /// At most so many of these peers: first those that are kept, then a window over the others, that moves on with each turn.
    fn of<'a>(
        &self,
        peers: impl Iterator<Item = (&'a Arc<str>, &'a PeerState)>,
        most: usize,
    ) -> Vec<(&'a Arc<str>, &'a PeerState)> {
        let talked_to = peers.filter(|(_, peer)| holds_any(&peer.blocks, &self.talked_to));
        let (mut chosen, others): (Vec<_>, Vec<_>) = talked_to.partition(|(name, _)| self.kept.contains(*name));
        chosen.truncate(most);
        let room = (most - chosen.len()).min(others.len());
        let first = self.turn.wrapping_mul(room as u64).checked_rem(others.len() as u64).unwrap_or(0);
        chosen.extend(others.iter().cycle().skip(first as usize).take(room));
        chosen
    }
}

fn holds_any(blocks: &[IpNet], addresses: &BTreeSet<IpAddr>) -> bool {
    blocks.iter().any(|block| addresses.range(block.network()..=block.broadcast()).next().is_some())
}

fn target(out: &Out, world: &World, peer: &PeerState, advert: &Advert, family: Family) -> Option<Target> {
    out.node.fabric_addresses.get(family)?;
    let (fabric_address, route) = way(world, peer, advert, family, route_to)?;
    let at = carried_by(world, route)?;
    // Pools may have other ranges of the peer reached otherwise; what is tested is the way to its own address.
    peer.used().find(|used| *used == at)?;
    let underlay = match at {
        Instance::HostGw => *advert.addresses.get(family)?,
        _ => advert.endpoint(&at.to_string())?.address,
    };
    let device = route.dev.clone().filter(is_ours);
    let itself_too = peer.to_itself.is_some();
    Some(Target { at, fabric_address, underlay, itself_too, mtu: out.pod_mtu.min(advert.mtu), device })
}

/// The peer's own address among its pods', and the route that this kernel has at that place for the range around it.
pub(super) fn way<'a>(
    world: &'a World,
    peer: &PeerState,
    advert: &Advert,
    family: Family,
    place: impl Fn(&IpNet) -> Key,
) -> Option<(IpAddr, &'a Route)> {
    let fabric_address = *advert.fabric_addresses.get(family)?;
    let block = peer.blocks.iter().find(|block| block.contains(&fabric_address))?;
    Some((fabric_address, route_at(&world.programmed.mirror, &place(block))?))
}

/// What carries packets that take this route, by the devices in this kernel.
pub(super) fn carried_by(world: &World, route: &Route) -> Option<Instance> {
    let of_device = |device: &LinkName| {
        let link = Key::Link { ns: Netns::Host, link: device.clone() };
        match &world.programmed.mirror.get(&link)?.object {
            Object::Link(link) => Instance::of_device(link),
            _ => None,
        }
    };
    carrier(route, of_device)
}
