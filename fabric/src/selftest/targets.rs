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

/// Paths to live peers, as far as this kernel holds what they take.
pub fn targets(out: &Out, world: &World) -> BTreeMap<Path, Target> {
    let peers = out.peers.iter().map(|(name, peer)| (name, &**peer));
    let live = peers.filter(|(_, peer)| peer.live && peer.part.is_in(&world.programmed.mirror));
    let of_peer = |(name, peer): (&Arc<str>, &PeerState)| {
        let advert = world.adverts.get(name).map(|heard| heard.advert.clone())?;
        let to = |family| Some(((name.clone(), family), target(out, world, peer, &advert, family)?));
        Some(Family::ALL.into_iter().filter_map(to).collect::<Vec<_>>())
    };
    live.filter_map(of_peer).flatten().collect()
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

/// At most [`MANY`] of them: where there are more, those to ranges that hold one of the addresses somebody here talks to.
pub fn sampled(targets: BTreeMap<Path, Target>, talked_to: &BTreeSet<IpAddr>) -> BTreeMap<Path, Target> {
    if targets.len() <= MANY {
        return targets;
    }
    let ranges = targets.iter().flat_map(|(path, target)| target.blocks.iter().map(move |block| (*block, path)));
    let by_range: BTreeMap<IpNet, &Path> = ranges.collect();
    let lengths: BTreeSet<u8> = by_range.keys().map(IpNet::prefix_len).collect();
    let holder = |address: &IpAddr| {
        let of_length = |len: &u8| by_range.get(&IpNet::new(*address, *len).ok()?.trunc()).copied().cloned();
        lengths.iter().find_map(of_length)
    };
    let talking: BTreeSet<Path> = talked_to.iter().filter_map(holder).take(MANY).collect();
    targets.into_iter().filter(|(path, _)| talking.contains(path)).collect()
}
