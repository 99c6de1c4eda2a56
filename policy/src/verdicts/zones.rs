//! Zones: of the ranges that rules name, those that all lists of ranges treat alike. A list of tens of thousands of ranges is
//! then one thing to tell apart from others, and not as many.
//!
//! A range stands for the addresses in it that are in no smaller one. Two ranges are in one zone if the same lists hold
//! them; the zone goes by the first of its ranges. What no list holds is in no zone.
//!
//! Invariant: the zones are a function of the lists that were counted in and not out again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::mentions::Ranges;
use super::secret::Secret;
use crate::ir::Nets;
use crate::nesting::Nesting;

/// See the module.
#[derive(Default)]
pub(super) struct Zones {
    lists: BTreeMap<Arc<Nets>, List>,
    secret: Secret,
    /// Where lists begin and end to hold addresses,
    turns: Ranges,
    /// with the sum of the marks of those that do so there.
    marks: BTreeMap<IpNet, u128>,
    /// Turns, each with its zone.
    zones: BTreeSet<(IpNet, Option<IpNet>)>,
    is_stale: bool,
    changed: BTreeSet<IpNet>,
}

struct List {
    mentions: usize,
    /// What tells it from others. Nobody can know it who writes policies, so that nobody can make two collections of lists of which
    /// the sums of marks are one.
    mark: u128,
}

// === impl Zones ===

impl Zones {
    /// Counts a mention of a list in, or out again. [`Zones::find`] has to be called before anything is asked.
    pub(super) fn count(&mut self, nets: &Nets, add: bool) {
        match (self.lists.get_mut(nets), add) {
            (Some(list), true) => list.mentions += 1,
            (Some(list), false) if list.mentions > 1 => list.mentions -= 1,
            (Some(list), false) => {
                let mark = list.mark;
                self.lists.remove(nets);
                self.turn(nets, mark, false);
            }
            (None, true) => {
                let mark = self.secret.number(nets);
                self.lists.insert(Arc::new(nets.clone()), List { mentions: 1, mark });
                self.turn(nets, mark, true);
            }
            (None, false) => {}
        }
    }

    fn turn(&mut self, nets: &Nets, mark: u128, add: bool) {
        for range in nets.turns() {
            self.turns.count(range, add);
            *self.marks.entry(*range).or_insert(0) ^= mark;
            if !self.turns.contains(range) {
                self.marks.remove(range);
            }
        }
        self.is_stale = true;
    }

    /// Finds the zones anew if lists came or went.
    pub(super) fn find(&mut self) {
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        self.turns.take_changed();
        let mut first_with: BTreeMap<u128, IpNet> = BTreeMap::new();
        let mut nesting = Nesting::default();
        let mut zones = BTreeSet::new();
        for (range, mark) in &self.marks {
            let held_by = nesting.around(range).copied().unwrap_or(0) ^ mark;
            nesting.put(*range, held_by);
            zones.insert((*range, (held_by != 0).then(|| *first_with.entry(held_by).or_insert(*range))));
        }
        self.changed.extend(self.zones.symmetric_difference(&zones).map(|(range, _)| *range));
        self.zones = zones;
    }

    /// Whether a list begins or ends to hold addresses there.
    pub(super) fn contains(&self, range: &IpNet) -> bool {
        self.turns.contains(range)
    }

    /// The zone of a range, but for what is in smaller ones.
    pub(super) fn around(&self, range: &IpNet) -> Option<IpNet> {
        let turn = self.turns.smallest_around(range)?;
        self.zones.range((turn, None)..).next().filter(|(range, _)| *range == turn).and_then(|(_, zone)| *zone)
    }

    /// Ranges that came, went or are in another zone since this was last forgotten.
    pub(super) fn changed(&self) -> &BTreeSet<IpNet> {
        &self.changed
    }

    pub(super) fn forget_changed(&mut self) {
        self.changed.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ir::Scope;

    /// Of sixteen addresses, or all.
    fn range() -> impl Strategy<Value = IpNet> {
        let some =
            (0u8..16, 28u8..=32).prop_map(|(at, length)| IpNet::new([10, 0, 0, at].into(), length).unwrap().trunc());
        prop_oneof![9 => some, 1 => Just("0.0.0.0/0".parse().unwrap())]
    }

    fn nets() -> impl Strategy<Value = Nets> {
        (vec(range(), 1..4), vec(range(), 0..4)).prop_map(|(ranges, except)| Nets {
            ranges: ranges.into_iter().collect(),
            except: except.into_iter().collect(),
            scope: Scope::Anyone,
        })
    }

    fn addresses() -> impl Iterator<Item = IpNet> {
        (0..17).map(|at| IpNet::from(std::net::IpAddr::from([10, 0, 0, at])))
    }

    proptest! {
        #[test]
        fn addresses_are_in_one_zone_that_the_same_lists_hold(all in vec((nets(), 1usize..3), 0..8), gone in 0usize..8) {
            let mut zones = Zones::default();
            for (nets, mentions) in &all {
                (0..*mentions).for_each(|_| zones.count(nets, true));
            }
            zones.find();
            let before: Vec<_> = addresses().map(|address| zones.around(&address)).collect();
            zones.forget_changed();
            let (gone, kept) = all.split_at(gone.min(all.len()));
            for (nets, mentions) in gone {
                (0..*mentions).for_each(|_| zones.count(nets, false));
            }
            zones.find();
            let mut anew = Zones::default();
            kept.iter().for_each(|(nets, _)| anew.count(nets, true));
            anew.find();
            let holders = |address: &IpNet| kept.iter().map(|(nets, _)| nets.contain(address)).collect::<Vec<_>>();
            for (address, before) in addresses().zip(before) {
                let zone = zones.around(&address);
                prop_assert_eq!(zone, anew.around(&address), "found anew");
                prop_assert_eq!(zone.is_some(), holders(&address).contains(&true), "{}", address);
                for other in addresses() {
                    let alike = holders(&address) == holders(&other);
                    prop_assert_eq!(zone == zones.around(&other), alike, "{} and {}: {:?}", address, other, kept);
                }
                if let Some(zone) = zone {
                    prop_assert_eq!(zones.around(&zone), Some(zone), "it goes by a range that is in it");
                }
                if zone != before {
                    prop_assert!(zones.changed().iter().any(|range| range.contains(&address)), "{} was not told", address);
                }
            }
        }
    }
}
