//! Which addresses and ranges a datapath has to know one by one: those that some rule of this node's pods tells apart from
//! what is around them.
//!
//! An address that is not listed is taken for one of the smallest listed range around it. Nobody can see the difference
//! while every set treats both alike. What the smallest range around an address is, is not asked: it is in the address's own
//! zone, or known or not known to be pods', and there are no more than two identities of ranges in a zone.
//!
//! Invariant: the lists are a function of all addresses and ranges and of how sets treat them; of every address, a lookup by
//! them finds what is treated as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::identities::{Changed, Identities, Identity};
use super::treatments::Treatments;
use crate::ir::Entity;
use crate::nesting::Nesting;

/// What goes by its first range.
type Zone = Option<IpNet>;

/// See the module.
#[derive(Default)]
pub(super) struct Listed {
    addresses: OrdMap<IpAddr, u32>,
    ranges: OrdMap<IpNet, u32>,
    /// Identities whose addresses are listed.
    apart: BTreeSet<u32>,
    /// Identities of ranges, by zone; and all others.
    of_ranges: BTreeSet<(Zone, u32)>,
    of_addresses: BTreeSet<(Zone, u32)>,
    /// How ranges of a zone are treated, where all of them are alike.
    around: BTreeMap<Zone, u128>,
    /// Identities of ranges with those of the next wider ones, and whether they are treated alike.
    nested: BTreeMap<(u32, u32), bool>,
    /// Identities that were there last time.
    live: OrdMap<u32, Arc<Identity>>,
}

// === impl Listed ===

impl Listed {
    pub(super) fn addresses(&self) -> &OrdMap<IpAddr, u32> {
        &self.addresses
    }

    pub(super) fn ranges(&self) -> &OrdMap<IpNet, u32> {
        &self.ranges
    }

    /// Brings the lists up to date with what has changed; identities have changed, too, if they are treated unlike before.
    pub(super) fn update(&mut self, identities: &Identities, treatments: &Treatments, changed: &Changed) {
        let before = std::mem::replace(&mut self.live, identities.live().clone());
        let zones = self.sort(&before, &changed.identities);
        let mut concerned = changed.identities.clone();
        for zone in zones {
            if self.look_around(zone, treatments) {
                concerned.extend(in_zone(&self.of_addresses, zone).chain(in_zone(&self.of_ranges, zone)));
            }
        }
        let flipped = self.part(&before, treatments, concerned);
        for address in &changed.addresses {
            self.list_address(address, identities.addresses().identity(address));
        }
        if !flipped.is_empty() {
            let of_these = identities.addresses().iter().filter(|(_, number)| flipped.contains(number));
            of_these.for_each(|(address, number)| self.list_address(address, Some(number)));
        }
        let is_alike = |(one, other): (u32, u32)| treatments.of(one) == treatments.of(other);
        if changed.ranges || self.nested.iter().any(|(pair, alike)| is_alike(*pair) != *alike) {
            self.list_ranges(identities.ranges(), treatments);
        }
    }

    /// Notes where these identities are now; returns the zones that have, or had, one of them that ranges are of.
    fn sort(&mut self, before: &OrdMap<u32, Arc<Identity>>, touched: &BTreeSet<u32>) -> BTreeSet<Zone> {
        let mut zones = BTreeSet::new();
        for number in touched {
            let mut note = |identity: &Identity, is_there: bool| {
                let of_ranges = is_of_ranges(identity);
                zones.extend(of_ranges.then_some(identity.zone));
                let all = if of_ranges { &mut self.of_ranges } else { &mut self.of_addresses };
                match is_there {
                    true => all.insert((identity.zone, *number)),
                    false => all.remove(&(identity.zone, *number)),
                };
            };
            before.get(number).into_iter().for_each(|identity| note(identity, false));
            self.live.get(number).into_iter().for_each(|identity| note(identity, true));
        }
        zones
    }

    /// How a zone's ranges are treated now; whether they were treated otherwise.
    fn look_around(&mut self, zone: Zone, treatments: &Treatments) -> bool {
        let mut all = in_zone(&self.of_ranges, zone).map(|number| treatments.of(number));
        let first = all.next().filter(|first| all.all(|other| other == *first));
        let before = match first {
            Some(treatment) => self.around.insert(zone, treatment),
            None => self.around.remove(&zone),
        };
        before != first
    }

    /// The identities that were there and whose addresses have to be listed now, or not any more.
    fn part(
        &mut self,
        before: &OrdMap<u32, Arc<Identity>>,
        treatments: &Treatments,
        concerned: BTreeSet<u32>,
    ) -> BTreeSet<u32> {
        let mut flipped = BTreeSet::new();
        for number in concerned {
            let identity = self.live.get(&number);
            let is_apart = identity.is_some_and(|it| self.around.get(&it.zone) != Some(&treatments.of(number)));
            let was_apart = if is_apart { !self.apart.insert(number) } else { self.apart.remove(&number) };
            // All addresses of others came or went.
            if is_apart != was_apart && identity.is_some() && before.contains_key(&number) {
                flipped.insert(number);
            }
        }
        flipped
    }

    fn list_address(&mut self, address: &IpAddr, number: Option<u32>) {
        let number = number.filter(|number| self.apart.contains(number));
        replace(&mut self.addresses, *address, number);
    }

    /// All of them: one that comes or goes is another one around those in it.
    fn list_ranges(&mut self, all: &BTreeMap<IpNet, u32>, treatments: &Treatments) {
        let gone: Vec<IpNet> = self.ranges.keys().filter(|range| !all.contains_key(*range)).copied().collect();
        for range in gone {
            self.ranges.remove(&range);
        }
        self.nested.clear();
        let mut nesting = Nesting::default();
        for (range, number) in all {
            // Without one around it, it is all addresses of its family: a lookup must find something.
            let is_listed = nesting.around(range).is_none_or(|wider: &u32| {
                let alike = || treatments.of(*number) == treatments.of(*wider);
                !*self.nested.entry((*number, *wider)).or_insert_with(alike)
            });
            nesting.put(*range, *number);
            replace(&mut self.ranges, *range, is_listed.then_some(*number));
        }
    }
}

/// What stays is not touched: whoever compares the maps must not find a difference.
fn replace<K: Ord + Clone>(map: &mut OrdMap<K, u32>, key: K, number: Option<u32>) {
    match (map.get(&key).copied(), number) {
        (before, Some(number)) if before != Some(number) => drop(map.insert(key, number)),
        (Some(_), None) => drop(map.remove(&key)),
        _ => {}
    }
}

fn in_zone(all: &BTreeSet<(Zone, u32)>, zone: Zone) -> impl Iterator<Item = u32> {
    all.range((zone, 0)..=(zone, u32::MAX)).map(|(_, number)| *number)
}

/// Whether addresses that nobody known has are of this identity.
fn is_of_ranges(identity: &Identity) -> bool {
    matches!(identity.traits.entity, Entity::World | Entity::UnknownPod)
}
