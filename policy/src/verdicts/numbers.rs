//! Numbers for things that a datapath's maps know by number only.
//!
//! Invariants: a thing keeps its number while it is there. The number is a hash of the thing, so that an agent that
//! starts anew finds the numbers that the kernel's maps hold already. A number that maps hold still is given to nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use imbl::OrdMap;
use siphasher::sip::SipHasher13;

/// See the module.
pub(super) struct Numbers<K> {
    lowest: u32,
    highest: u32,
    of: BTreeMap<Arc<K>, u32>,
    /// What each number stands for.
    known: OrdMap<u32, Arc<K>>,
    /// Numbers of what is gone, or was there before we were: maps may hold them.
    resting: BTreeMap<u32, Option<Arc<K>>>,
}

impl<K: Ord + Hash> Numbers<K> {
    /// From the lowest to the highest, both of them too.
    pub(super) fn new(lowest: u32, highest: u32) -> Numbers<K> {
        Numbers { lowest, highest, of: BTreeMap::new(), known: OrdMap::new(), resting: BTreeMap::new() }
    }

    pub(super) fn known(&self) -> &OrdMap<u32, Arc<K>> {
        &self.known
    }

    pub(super) fn get(&self, key: &K) -> Option<u32> {
        self.of.get(key).copied()
    }

    /// The thing's number, from now on at the latest.
    pub(super) fn take(&mut self, key: K) -> u32 {
        if let Some(number) = self.get(&key) {
            return number;
        }
        let mut number = self.first(&key);
        while self.known.contains_key(&number) || !self.is_free_for(number, &key) {
            number = if number == self.highest { self.lowest } else { number + 1 };
        }
        let key = Arc::new(key);
        self.resting.remove(&number);
        self.of.insert(key.clone(), number);
        self.known.insert(number, key);
        number
    }

    /// The thing is gone.
    pub(super) fn give_back(&mut self, number: u32) {
        if let Some(key) = self.known.remove(&number) {
            self.of.remove(&*key);
            self.resting.insert(number, Some(key));
        }
    }

    /// Maps hold these numbers, and no others.
    pub(super) fn held(&mut self, held: &BTreeSet<u32>) {
        self.resting.retain(|number, _| held.contains(number));
        for number in held.iter().filter(|number| !self.known.contains_key(*number)) {
            self.resting.entry(*number).or_insert(None);
        }
    }

    /// A number that was there before us is taken to stand for what it is the hash of.
    fn is_free_for(&self, number: u32, key: &K) -> bool {
        match self.resting.get(&number) {
            None => true,
            Some(Some(there)) => **there == *key,
            Some(None) => number == self.first(key),
        }
    }

    fn first(&self, key: &K) -> u32 {
        let mut hasher = SipHasher13::new();
        key.hash(&mut hasher);
        let span = u64::from(self.highest - self.lowest) + 1;
        self.lowest + u32::try_from(hasher.finish() % span).expect("less than a span of u32")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(numbers: &[u32]) -> BTreeSet<u32> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn a_number_stays_and_is_found_again() {
        let mut numbers = Numbers::new(16, u32::MAX);
        let [a, b] = ["a", "b"].map(|key| numbers.take(key));
        assert_ne!(a, b);
        assert_eq!(numbers.take("a"), a);
        numbers.give_back(a);
        assert_eq!(numbers.get(&"a"), None);
        assert_eq!(numbers.take("a"), a, "it comes back as it was");
        let mut later = Numbers::new(16, u32::MAX);
        later.held(&held(&[a, b]));
        assert_eq!([later.take("b"), later.take("a")], [b, a], "adopted, whatever the order");
    }

    #[test]
    fn a_number_that_maps_hold_goes_to_nothing_else() {
        // So few that they all meet.
        let mut numbers = Numbers::new(1, 4);
        let all = ["a", "b", "c"].map(|key| numbers.take(key));
        assert_eq!(held(&all).len(), 3);
        numbers.give_back(all[0]);
        let fourth = numbers.take("d");
        assert!(!all.contains(&fourth), "{fourth} may still be in maps as a");
        numbers.held(&held(&all[1..]));
        assert_eq!(numbers.take("e"), all[0], "now no map holds it");
    }
}
