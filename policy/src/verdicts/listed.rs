//! Which addresses and ranges a datapath has to know one by one: those that some rule of this node's pods tells apart from
//! what is around them.
//!
//! An address that is not listed is taken for one of the smallest listed range around it. Nobody can see the difference
//! while neither its own identity nor the range's has rows of its own in any set: both are then treated as
//! [`ANY`](super::ANY) is. What the smallest range around an address is, is not asked: an identity holds the smallest
//! mentioned range around its addresses, and so does that of whatever smaller range there is; so of all ranges around it
//! only those count whose identity holds the same one.
//!
//! Invariant: the lists are a function of all addresses and ranges and of who has rows; of every address, a lookup by them
//! finds the rows that its own identity has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::identities::{Changed, Identities, Identity};
use super::mentions::Mentions;
use super::sets::Sets;
use crate::ir::Entity;

/// See the module.
#[derive(Default)]
pub(super) struct Listed {
    addresses: OrdMap<IpAddr, u32>,
    ranges: OrdMap<IpNet, u32>,
    /// Identities whose addresses are listed.
    apart: BTreeSet<u32>,
    /// Identities of ranges that have rows, by the mentioned range.
    around: BTreeSet<(Option<IpNet>, u32)>,
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

    /// Brings the lists up to date with what has changed; identities have changed, too, if they have rows now and had none,
    /// or the other way round.
    pub(super) fn update(&mut self, identities: &Identities, mentions: &Mentions, sets: &Sets, changed: &Changed) {
        let live = std::mem::replace(&mut self.live, identities.live().clone());
        let regrouped = self.regroup(&live, sets, &changed.identities);
        let flipped = self.part(&live, sets, &changed.identities, &regrouped);
        for address in &changed.addresses {
            self.list_address(address, identities.addresses().identity(address));
        }
        if !flipped.is_empty() {
            let of_these = identities.addresses().iter().filter(|(_, number)| flipped.contains(number));
            of_these.for_each(|(address, number)| self.list_address(address, Some(number)));
        }
        if !regrouped.is_empty() || changed.ranges {
            self.list_ranges(identities.ranges(), mentions);
        }
    }

    /// The mentioned ranges whose own identities have come to have rows, or to have none.
    fn regroup(
        &mut self,
        before: &OrdMap<u32, Arc<Identity>>,
        sets: &Sets,
        touched: &BTreeSet<u32>,
    ) -> BTreeSet<Option<IpNet>> {
        let groups = |around: &BTreeSet<(Option<IpNet>, u32)>| -> BTreeSet<Option<IpNet>> {
            around.iter().map(|(range, _)| *range).collect()
        };
        let last = groups(&self.around);
        for number in touched {
            if let Some(identity) = before.get(number) {
                self.around.remove(&(identity.range, *number));
            }
            if let Some(identity) = self.live.get(number).filter(|it| is_of_ranges(it) && sets.has_rows(*number)) {
                self.around.insert((identity.range, *number));
            }
        }
        groups(&self.around).symmetric_difference(&last).copied().collect()
    }

    /// The identities that were there and whose addresses have to be listed now, or not any more.
    fn part(
        &mut self,
        before: &OrdMap<u32, Arc<Identity>>,
        sets: &Sets,
        touched: &BTreeSet<u32>,
        regrouped: &BTreeSet<Option<IpNet>>,
    ) -> BTreeSet<u32> {
        let mut concerned = touched.clone();
        if !regrouped.is_empty() {
            let of_these = self.live.iter().filter(|(_, identity)| regrouped.contains(&identity.range));
            concerned.extend(of_these.map(|(number, _)| *number));
        }
        let mut flipped = BTreeSet::new();
        for number in concerned {
            let identity = self.live.get(&number);
            let is_apart = identity.is_some_and(|it| sets.has_rows(number) || self.is_around(it.range));
            let was_apart = if is_apart { !self.apart.insert(number) } else { self.apart.remove(&number) };
            // All addresses of others came or went.
            if is_apart != was_apart && identity.is_some() && before.contains_key(&number) {
                flipped.insert(number);
            }
        }
        flipped
    }

    /// Whether the rest of a mentioned range, without the smaller ones in it, has rows.
    fn is_around(&self, range: Option<IpNet>) -> bool {
        self.around.range((range, 0)..=(range, u32::MAX)).next().is_some()
    }

    fn list_address(&mut self, address: &IpAddr, number: Option<u32>) {
        let number = number.filter(|number| self.apart.contains(number));
        replace(&mut self.addresses, *address, number);
    }

    /// All of them: one that comes or goes is another one around those in it.
    fn list_ranges(&mut self, all: &BTreeMap<IpNet, u32>, mentions: &Mentions) {
        let gone: Vec<IpNet> = self.ranges.keys().filter(|range| !all.contains_key(*range)).copied().collect();
        for range in gone {
            self.ranges.remove(&range);
        }
        for (range, number) in all {
            let own = self.live[number].range;
            let wider = || range.supernet().and_then(|wider| mentions.ranges.smallest_around(&wider));
            // A lookup must find something.
            let is_listed =
                range.prefix_len() == 0 || self.is_around(own) || (own == Some(*range) && self.is_around(wider()));
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

/// Whether addresses that nobody known has are of this identity.
fn is_of_ranges(identity: &Identity) -> bool {
    matches!(identity.traits.entity, Entity::World | Entity::UnknownPod)
}
