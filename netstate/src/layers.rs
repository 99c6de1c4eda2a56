//! The plans of several planners as one state.
//!
//! Invariant: a key that several parts want belongs to the first of them, whatever came last; the others are told.
//! Only keys in which a part differs from its last version are visited. What they make together shares its structure
//! with the largest part, or it would cost as much memory again.

use std::collections::BTreeMap;

use crate::{Conflict, Key, State};

/// `N` parts, most important first, and what they make together.
#[derive(Clone, Debug)]
pub struct Layers<const N: usize> {
    parts: [State; N],
    merged: State,
    /// Keys that were settled since `merged` last shared all it can.
    settled: usize,
    conflicts: BTreeMap<Key, Vec<Conflict>>,
}

/// What may differ in structure from the largest part: one key in so many.
const SHARED: usize = 2;

impl<const N: usize> Default for Layers<N> {
    fn default() -> Self {
        let parts = std::array::from_fn(|_| State::new());
        Layers { parts, merged: State::new(), settled: 0, conflicts: BTreeMap::new() }
    }
}

impl<const N: usize> Layers<N> {
    /// Puts a new version of a part in place of the last one.
    pub fn set(&mut self, index: usize, part: &State) {
        let before = std::mem::replace(&mut self.parts[index], part.clone());
        let room = (self.merged.len() / SHARED).saturating_sub(self.settled);
        let changed: Vec<&Key> = before.differing_keys(part).take(room + 1).collect();
        if changed.len() > room {
            self.start_from_largest();
            return;
        }
        self.settled += changed.len();
        changed.iter().for_each(|key| self.settle(key));
    }

    fn start_from_largest(&mut self) {
        self.settled = 0;
        self.conflicts.clear();
        let mut parts: Vec<State> = self.parts.to_vec();
        parts.sort_by_key(State::len);
        self.merged = parts.pop().unwrap_or_default();
        // Of two that want one key, one is not the largest.
        parts.iter().flat_map(State::iter).for_each(|(key, _)| self.settle(key));
    }

    /// All parts together.
    pub fn merged(&self) -> &State {
        &self.merged
    }

    /// Keys that two parts want with different objects.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.values().flatten()
    }

    fn settle(&mut self, key: &Key) {
        let mut wanted = self.parts.iter().filter_map(|part| part.get_shared(key));
        let Some((shared, first)) = wanted.next() else {
            self.merged.remove(key);
            self.conflicts.remove(key);
            return;
        };
        let lost: Vec<Conflict> = wanted
            .filter(|(_, other)| other.object != first.object)
            .map(|(_, other)| Conflict { key: key.clone(), kept: first.owner.clone(), lost: other.owner.clone() })
            .collect();
        if self.merged.get_shared(key) != Some((shared, first)) {
            self.merged.share(shared.clone(), first.clone());
        }
        if lost.is_empty() {
            self.conflicts.remove(key);
        } else {
            self.conflicts.insert(key.clone(), lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Netns, Object, Owner};

    fn state(entries: &[(&str, &str)]) -> State {
        let key = |name: &str| Key::Sysctl { ns: Netns::Host, name: name.into() };
        let entry = |value: &str| crate::Entry { object: Object::Sysctl(value.into()), owner: Owner::Node };
        entries.iter().map(|(name, value)| (key(name), entry(value))).collect()
    }

    #[test]
    fn the_first_part_keeps_a_key_and_the_others_get_it_when_it_lets_go() {
        let mut layers = Layers::<2>::default();
        layers.set(1, &state(&[("a", "1"), ("b", "1")]));
        layers.set(0, &state(&[("a", "0")]));
        assert_eq!(*layers.merged(), state(&[("a", "0"), ("b", "1")]));
        assert_eq!(layers.conflicts().count(), 1);
        layers.set(0, &state(&[]));
        assert_eq!(*layers.merged(), state(&[("a", "1"), ("b", "1")]));
        assert_eq!(layers.conflicts().count(), 0);
        layers.set(1, &state(&[]));
        assert!(layers.merged().is_empty());
    }

    #[test]
    fn together_they_are_what_merging_them_in_order_gives() {
        let mut layers = Layers::<3>::default();
        let mut parts = [state(&[]), state(&[]), state(&[])];
        // Parts that shrink, grow and meet, so that each is the largest in turn.
        for step in 0..60_usize {
            let (index, size) = (step * 7 % 3, step * 5 % 13);
            let names: Vec<String> = (0..size).map(|name| (name * (index + 1)).to_string()).collect();
            let value = (step / 4).to_string();
            parts[index] = state(&names.iter().map(|name| (name.as_str(), value.as_str())).collect::<Vec<_>>());
            layers.set(index, &parts[index]);
            let (mut merged, mut conflicts) = (State::new(), Vec::new());
            parts.iter().for_each(|part| merged.merge(part, &mut conflicts));
            assert_eq!(*layers.merged(), merged, "step {step}");
            assert_eq!(layers.conflicts().count(), conflicts.len(), "step {step}");
        }
    }
}
