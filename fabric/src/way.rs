//! One way to a peer: what carries a family's packets to some of its ranges, and the routes, neighbours and forwarding entries
//! that takes.
//!
//! Invariant: what the kernel uses is not taken away before something better can be used, whatever the peer says meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Condition, Endpoint, FabricMode, Family, Passing, World};
use tartan_netstate::{Key, LinkName, Netns, Object, Route};

use crate::census::Member;
use crate::choose::{Choice, Common, Manner, choose, target};
use crate::mtu::{MIN_MTU, carried, held};
use crate::route::{carrier, route_at, route_by, route_to, standby_route};
use crate::shortfall::{fallen_back, shortfall};
use crate::{Instance, Peer, fabric_of, fallback};

/// A peer, as all ways to it see it.
pub(crate) struct To<'a> {
    world: &'a World,
    common: &'a Common,
    receives: &'a BTreeSet<Instance>,
    name: &'a Arc<str>,
    member: &'a Member,
    hears: Vec<Hears<'a>>,
}

/// An instance, and the peer where it hears that.
type Hears<'a> = (Instance, Peer<'a>);

/// What comes of one way.
#[derive(Default)]
pub(crate) struct Way {
    pub(crate) choice: Choice,
    pub(crate) objects: Vec<(Key, Object)>,
    /// See [`crate::PeerState::leaving`].
    pub(crate) leaving: Vec<Instance>,
    pub(crate) conditions: Vec<Condition>,
    /// See [`crate::PeerState::clings`].
    pub(crate) clings: bool,
}

/// The way of a family's packets to these ranges, which are to be reached in this manner. Without any only the target stands.
pub(crate) fn plan(to: &To<'_>, family: Family, manner: Manner, blocks: &[&IpNet]) -> Way {
    let To { world, common, name, member, .. } = *to;
    let configured = to.configured(family, manner);
    let instead = configured.and_then(|at| fallback::of(world, common, (name, member), at, blocks));
    let target = instead.filter(|instead| instead.holds).map(|instead| instead.to).or(configured);
    if blocks.is_empty() {
        return Way { choice: Choice { target, ..Choice::default() }, ..Way::default() };
    }
    let in_kernel = to.in_kernel(blocks);
    let current = target.filter(|at| in_kernel.contains(at)).or_else(|| in_kernel.first().copied());
    let clung_to = current.filter(|at| to.clings_to(at));
    let endpoint = clung_to.and_then(|at| to.last_endpoint(&at, blocks));
    let mut hears = to.hears.clone();
    hears.extend(clung_to.zip(endpoint.as_ref()).map(|(at, endpoint)| (at, to_peer(name, member, endpoint))));
    let usable = to.usable(&hears, family, current);
    let listens = member.live && !member.annotated;
    let choice = choose(&common.ground, listens, &usable, target, current);

    let heard = |at: Option<Instance>| hears.iter().find(|(hears, _)| Some(*hears) == at);
    let mut objects = Vec::new();
    if let Some((at, peer)) = heard(choice.used) {
        objects.extend(carry(common, at, peer, (family, blocks), to.narrowed(at, blocks), route_to));
    }
    // No route leads by a device that is yet to be made.
    let can_stand_by = |at: &Instance| instead.is_some_and(|instead| instead.holds || common.ground.ready.contains(at));
    if let Some((at, peer)) = heard(configured.filter(can_stand_by)) {
        objects.extend(carry(common, at, peer, (family, blocks), None, standby_route));
    }
    let shortfall = shortfall(common, name, member, &hears, family, &choice);
    let conditions = shortfall.into_iter().chain(fallen_back(name, configured, &choice)).collect();
    let leaving = in_kernel.into_iter().filter(|at| Some(*at) != choice.used).collect();
    Way { choice, objects, leaving, conditions, clings: clung_to.is_some() }
}

fn to_peer<'a>(name: &'a str, member: &Member, endpoint: &'a Endpoint) -> Peer<'a> {
    let advert = &member.advert;
    Peer { name, addresses: advert.addresses, fabric_addresses: advert.fabric_addresses, endpoint }
}

/// The routes to these ranges, and what their next hop takes.
fn carry(
    common: &Common,
    at: &Instance,
    to: &Peer<'_>,
    (family, blocks): (Family, &[&IpNet]),
    mtu: Option<u32>,
    key: impl Fn(&IpNet) -> Key,
) -> Vec<(Key, Object)> {
    let fabric = fabric_of(at);
    let Ok(hop) = fabric.hop(&common.node, at, to, family) else { return Vec::new() };
    let held = held(&common.node, at, family);
    let route = Route { mtu: mtu.or(held), mtu_locked: held.is_some(), ..route_by(&hop, &common.node, family) };
    let routes = blocks.iter().map(|block| (key(block), Object::Route(route.clone().into())));
    fabric.reach(at, to, family, blocks).into_iter().chain(routes).collect()
}

// === impl To ===

impl<'a> To<'a> {
    pub(crate) fn new(
        world: &'a World,
        common: &'a Common,
        receives: &'a BTreeSet<Instance>,
        name: &'a Arc<str>,
        member: &'a Member,
    ) -> To<'a> {
        let mut to = To { world, common, receives, name, member, hears: Vec::new() };
        let counted = member.accepts().filter(|(at, _)| to.counts(at));
        to.hears = counted.map(|(at, endpoint)| (at, to_peer(name, member, endpoint))).collect();
        to
    }

    /// Whether a way by it is one of ours: with somebody else's fabric none is, whatever the peer says; and who is not live is
    /// served by what there is.
    fn counts(&self, at: &Instance) -> bool {
        self.common.config.fabric != FabricMode::None && (self.member.live || self.receives.contains(at))
    }

    /// Whether there is a next hop by it.
    fn leads(&self, (at, peer): &Hears<'_>, family: Family) -> bool {
        fabric_of(at).hop(&self.common.node, at, peer, family).is_ok()
    }

    /// What packets are meant to go by, if it gets there. Whatever is configured, with Flannel the way that it takes: without
    /// encapsulation first, where it does that.
    fn configured(&self, family: Family, manner: Manner) -> Option<Instance> {
        let Common { config, node, .. } = self.common;
        let of_flannel = || self.hears.iter().find(|heard| self.leads(heard, family)).or(self.hears.first());
        let of_flannel = self.member.annotated.then(of_flannel).flatten().map(|(at, _)| *at);
        of_flannel.or_else(|| target(config, manner, node, &self.member.advert.addresses, family))
    }

    /// What carries packets to these ranges in the kernel, as far as it was read or acknowledged.
    fn in_kernel(&self, blocks: &[&IpNet]) -> BTreeSet<Instance> {
        self.routes_in_kernel(blocks).map(|(at, _)| at).collect()
    }

    fn routes_in_kernel(&self, blocks: &[&IpNet]) -> impl Iterator<Item = (Instance, &'a Route)> {
        let of_device = |device: &LinkName| self.common.ground.devices.get(device).copied();
        let routes = blocks.iter().filter_map(|block| route_at(&self.world.programmed.mirror, &route_to(block)));
        routes.filter_map(move |route| Some((carrier(route, of_device)?, route)))
    }

    /// The largest packet that gets to the peer, where that is less than pods may send: the kernel says so to who sends a larger
    /// one, as it does of a link (RFC 1191, RFC 8201). Of a way that is not tested yet, or not now, the kernel knows.
    fn narrowed(&self, at: &Instance, blocks: &[&IpNet]) -> Option<u32> {
        let below = carried(&self.common.node, at).unwrap_or(MIN_MTU);
        let in_kernel = || {
            let routes = self.routes_in_kernel(blocks).filter(|(by, route)| by == at && !self.says_its_devices(route));
            routes.filter_map(|(_, route)| route.mtu).filter(|mtu| (MIN_MTU..below).contains(mtu)).min()
        };
        match fallback::passing(self.world, self.name, *at) {
            Some(Passing::UpTo(bytes)) => Some(MIN_MTU.max(bytes)),
            Some(Passing::Nothing | Passing::All) => None,
            None => in_kernel(),
        }
    }

    /// Whether the MTU of a route in the kernel is just that of its device.
    fn says_its_devices(&self, route: &Route) -> bool {
        let key = route.dev.clone().map(|link| Key::Link { ns: Netns::Host, link });
        let entry = key.and_then(|key| self.world.programmed.mirror.get(&key));
        matches!(entry.map(|entry| &entry.object), Some(Object::Link(link)) if Some(link.mtu) == route.mtu)
    }

    /// Whether what the kernel uses is kept though the peer does not accept it. One that says "I won't" has not heard yet that
    /// packets come: it will when it hears, and waits for that. Who has gone over to Flannel will never hear.
    fn clings_to(&self, at: &Instance) -> bool {
        let accepted = || self.hears.iter().any(|(hears, _)| hears == at);
        self.counts(at) && !self.member.annotated && !accepted()
    }

    /// Where the peer heard what it no longer accepts, as it says itself or the kernel knows.
    fn last_endpoint(&self, at: &Instance, blocks: &[&IpNet]) -> Option<Endpoint> {
        let advert = &self.member.advert;
        let in_kernel = || fabric_of(at).endpoint_in_kernel(&self.world.programmed.mirror, at, advert, blocks);
        advert.known_as(&at.to_string()).cloned().or_else(in_kernel)
    }

    /// What may be used. A pair goes over to encryption when its kernels have shaken hands, and not before: a handshake that
    /// the other end was not ready for is tried again only after seconds.
    fn usable(&self, hears: &[Hears<'_>], family: Family, current: Option<Instance>) -> Vec<Instance> {
        let Common { config, ground, .. } = self.common;
        let works = |at: &Instance| current == Some(*at);
        let allowed = |at: &Instance| at.is_encrypted() || !ground.strict && (!config.strict_encryption || works(at));
        let leading = hears.iter().filter(|heard| self.leads(heard, family)).map(|(at, _)| *at);
        let mut usable: Vec<Instance> = leading.filter(allowed).collect();
        let waits = |at: &Instance| hears.iter().any(|(of, peer)| of == at && self.awaits_handshake(at, peer));
        let is_there = |at: &Instance| works(at) || ground.ready.contains(at) && !waits(at);
        if usable.iter().any(is_there) {
            usable.retain(|at| works(at) || !waits(at));
        }
        usable
    }

    /// Whether the pair would have to shake hands first, which by ipsec takes addresses of one family.
    fn awaits_handshake(&self, at: &Instance, peer: &Peer<'_>) -> bool {
        let own = &self.common.node.fabric_addresses;
        let in_common = |(family, _): (Family, &IpAddr)| own.get(family).is_some();
        if matches!(at, Instance::Ipsec { .. }) && !peer.fabric_addresses.iter().any(in_common) {
            return false;
        }
        let handshakes = &self.world.host.encryption.handshakes;
        peer.endpoint.public_key.is_some_and(|key| handshakes.get(&(at.device(), key)) != Some(&true))
    }
}
