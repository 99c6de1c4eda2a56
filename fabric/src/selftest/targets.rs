//! Which paths there are to probe, and what probes of each need to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Advert, Family, PerFamily, World};
use tartan_netstate::claims::{FABRIC_LINK_PREFIX, MAIN_TABLE, ROUTE_METRIC};
use tartan_netstate::{Key, LinkName, Netns, Object};

use crate::{Instance, Out, PeerState, own};

/// The way to a peer, for one family of packets.
pub type Path = (Arc<str>, Family);

/// Paths that are all probed. Of more, those that pods talk over: every peer that is asked takes an entry in the tables of
/// neighbours, which have room for a thousand unless somebody says otherwise.
pub const MANY: usize = 256;

/// What a probe needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What carries packets there.
    pub at: Instance,
    /// The peer's own address among its pods'.
    pub fabric_address: IpAddr,
    /// Where outer packets go.
    pub underlay: IpAddr,
    /// Largest packet that pods of both ends may send, in bytes.
    pub mtu: u32,
    /// Our device that it goes by, if one of ours.
    pub device: Option<LinkName>,
    pub blocks: Vec<IpNet>,
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

/// Paths to live peers, as far as this kernel holds what they take. Of more than [`MANY`] only those, and at most as many, to
/// peers whose ranges hold one of the addresses somebody here talks to; none where that is not said and there are so many.
pub fn targets(out: &Out, world: &World, talked_to: Option<&BTreeSet<IpAddr>>) -> Option<BTreeMap<Path, Target>> {
    let families = out.node.fabric_addresses.iter().count();
    let talked_to = match out.peers.len() * families > MANY {
        true => Some(talked_to?),
        false => None,
    };
    let is_wanted = |peer: &PeerState| talked_to.is_none_or(|addresses| holds_any(&peer.blocks, addresses));
    let peers = out.peers.iter().map(|(name, peer)| (name, &**peer));
    let wanted = peers.filter(|(_, peer)| peer.live && is_wanted(peer) && peer.part.is_in(&world.programmed.mirror));
    let of_peer = |(name, peer): (&Arc<str>, &PeerState)| {
        let advert = world.adverts.get(name).map(|heard| heard.advert.clone())?;
        let to = |family| Some(((name.clone(), family), target(out, world, peer, &advert, family)?));
        Some(Family::ALL.into_iter().filter_map(to).collect::<Vec<_>>())
    };
    Some(wanted.filter_map(of_peer).flatten().take(MANY).collect())
}

fn holds_any(blocks: &[IpNet], addresses: &BTreeSet<IpAddr>) -> bool {
    blocks.iter().any(|block| addresses.range(block.network()..=block.broadcast()).next().is_some())
}

fn target(out: &Out, world: &World, peer: &PeerState, advert: &Advert, family: Family) -> Option<Target> {
    out.node.fabric_addresses.get(family)?;
    let fabric_address = *advert.fabric_addresses.get(family)?;
    let blocks: Vec<IpNet> = peer.blocks.iter().filter(|block| Family::of_net(block) == family).copied().collect();
    let block = blocks.iter().find(|block| block.contains(&fabric_address))?;
    let route = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: ROUTE_METRIC };
    let object = |key: &Key| Some(&world.programmed.mirror.get(key)?.object);
    let Object::Route(route) = object(&route)? else { return None };
    let device = route.dev.clone().filter(|dev| dev.as_str().starts_with(FABRIC_LINK_PREFIX));
    let at = match &device {
        None => Instance::HostGw,
        Some(device) => match object(&Key::Link { ns: Netns::Host, link: device.clone() })? {
            Object::Link(link) => Instance::of_device(link)?,
            _ => return None,
        },
    };
    // Pools may have other ranges of the peer reached otherwise; what is tested is the way to its own address.
    peer.used().find(|used| *used == at)?;
    let name = at.to_string();
    let endpoint = advert.accepts.iter().find(|end| *end.instance == *name).map(|end| end.address);
    let underlay = match at {
        Instance::HostGw => advert.addresses.get(family).copied(),
        _ => endpoint,
    }?;
    Some(Target { at, fabric_address, underlay, mtu: out.pod_mtu.min(advert.mtu), device, blocks })
}
