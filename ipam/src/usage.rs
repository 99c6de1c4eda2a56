//! What of a held range is taken, by what, and the address nobody has to have.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Family, PerFamily, World};

use crate::held::{self, Held, Source};
use crate::range::{self, Span};

/// A held range, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Everything that cannot be given out, merged.
    taken: Vec<Span>,
    pub size: u128,
    pub used: u128,
    pub reserved: u128,
    /// Given back less than a cool-down ago.
    pub resting: u128,
    /// When the first of these has rested enough.
    pub rested_at: Option<Instant>,
    /// When all of these have.
    pub all_rested_at: Option<Instant>,
}

/// Counts a held range. `own` are the node's own addresses, which no pod gets.
pub(crate) fn of(world: &World, held: &Held, own: &PerFamily<IpAddr>, now: Instant) -> Usage {
    let whole = Span::of(&held.cidr);
    let mut usage = Usage { size: whole.len(), ..Usage::default() };
    let mut taken: Vec<Span> = held.without.iter().filter_map(|part| whole.and(Span::of(part))).collect();
    taken.extend(own.get(held.family()).map(|own| Span::one(*own)).and_then(|own| whole.and(own)));
    taken.extend(broadcast(held));
    for pod in world.attachments.values() {
        if let Some(address) = pod.addresses.get(held.family()).filter(|address| held.cidr.contains(*address)) {
            usage.used += 1;
            taken.push(Span::one(*address));
        }
    }
    // The network before has an address of the range on its bridge.
    let host = world.host.links.iter().flat_map(|link| &link.addresses);
    let host = host.filter(|own| held.cidr.contains(&own.addr())).map(|own| Span::one(own.addr()));
    taken.extend(host);
    let given = world.given.range(held.cidr.network()..=held.cidr.broadcast()).map(|(address, _)| *address);
    for address in given {
        usage.used += 1;
        taken.push(Span::one(address));
    }
    for (address, at) in world.released.range(held.cidr.network()..=held.cidr.broadcast()) {
        let rested = *at + world.config.cooldown;
        if rested > now {
            usage.resting += 1;
            usage.rested_at = Some(usage.rested_at.map_or(rested, |first| first.min(rested)));
            usage.all_rested_at = Some(usage.all_rested_at.map_or(rested, |last| last.max(rested)));
            taken.push(Span::one(*address));
        }
    }
    let reserved = range::merged(reserved(world, held).collect());
    usage.reserved = reserved.iter().map(|span| span.len()).fold(0, u128::saturating_add);
    taken.extend(reserved);
    usage.taken = range::merged(taken);
    usage
}

fn reserved<'a>(world: &'a World, held: &'a Held) -> impl Iterator<Item = Span> + 'a {
    let all = world.reservations.values().flat_map(|reservation| &reservation.cidrs);
    let of_family = all.filter(|cidr| Family::of_net(cidr) == held.family());
    of_family.filter_map(|cidr| Span::of(&held.cidr).and(Span::of(cidr)))
}

/// Whether no pod of this node has, and none had within the cool-down, an address of the range.
pub(crate) fn is_idle(world: &World, range: &IpNet, now: Instant) -> bool {
    let mut released = world.released.range(range.network()..=range.broadcast());
    !held::has_pods(world, range) && released.all(|(_, at)| *at + world.config.cooldown <= now)
}

// === impl Usage ===

impl Usage {
    /// How many addresses can be given out now.
    pub(crate) fn free(&self) -> u128 {
        self.taken.iter().fold(self.size, |free, span| free.saturating_sub(span.len()))
    }

    /// The lowest address that can be given out now.
    pub(crate) fn first_free(&self, held: &Held) -> Option<IpAddr> {
        let number = range::first_gap(Span::of(&held.cidr), &self.taken)?;
        Some(range::address(held.family(), number))
    }

    /// Whether nothing in this range is taken.
    pub(crate) fn is_free(&self, range: Span) -> bool {
        self.taken.iter().all(|span| span.and(range).is_none())
    }
}

/// The last address of an IPv4 podCIDR: other software takes it for a broadcast. The first one is the node's own.
pub(crate) fn broadcast(held: &Held) -> Option<Span> {
    let is_subnet = held.source == Source::PodCidr && held.family() == Family::V4 && held.cidr.prefix_len() <= 30;
    is_subnet.then(|| Span::one(held.cidr.broadcast()))
}

/// The node's own address in each family, which its packets to remote pods carry: the one it has told its peers as long
/// as it can keep it, though it be reserved since, else its podCIDR's first, else the first in its blocks that no pod has.
pub(crate) fn fabric_addresses(world: &World, held: &[Held]) -> PerFamily<IpAddr> {
    let mut own = PerFamily::default();
    for family in Family::ALL {
        let ranges = || held.iter().filter(move |held| held.family() == family);
        let told = world.adverts.get(&world.local).and_then(|heard| heard.advert.fabric_addresses.get(family));
        let keep = told.filter(|told| ranges().any(|held| can_be_own(world, held, **told)));
        // Open ranges first: the others are on their way out.
        let ordered = || ranges().filter(|held| held.open).chain(ranges().filter(|held| !held.open));
        let is_clear = |held: &&Held| is_clear_of(held.cidr.network(), not_newly_own(world, held));
        let pod_cidr = ordered().filter(|held| held.source == Source::PodCidr).find(is_clear);
        let pod_cidr = pod_cidr.map(|held| held.cidr.network());
        let first = || {
            ordered().find_map(|held| {
                let taken = range::merged(not_newly_own(world, held).collect());
                let nothing_rests = Usage { taken, ..Usage::default() };
                nothing_rests.first_free(held)
            })
        };
        if let Some(address) = keep.copied().or(pod_cidr).or_else(first) {
            own.set(family, address);
        }
    }
    own
}

fn can_be_own(world: &World, held: &Held, address: IpAddr) -> bool {
    held.cidr.contains(&address) && is_clear_of(address, not_own(world, held))
}

fn is_clear_of(address: IpAddr, mut spans: impl Iterator<Item = Span>) -> bool {
    spans.all(|span| span.and(Span::one(address)).is_none())
}

/// What a new one must keep clear of.
fn not_newly_own<'a>(world: &'a World, held: &'a Held) -> impl Iterator<Item = Span> + 'a {
    not_own(world, held).chain(reserved(world, held))
}

/// What the node's own address must keep clear of: pods, and parts that are not the node's.
fn not_own<'a>(world: &'a World, held: &'a Held) -> impl Iterator<Item = Span> + 'a {
    let whole = Span::of(&held.cidr);
    let parts = held.without.iter().filter_map(move |part| whole.and(Span::of(part)));
    let pods = world.attachments.values().filter_map(|pod| pod.addresses.get(held.family()));
    let pods = pods.chain(world.given.keys());
    let pods = pods.filter(|address| held.cidr.contains(*address)).map(|address| Span::one(*address));
    parts.chain(pods)
}
