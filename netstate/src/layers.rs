//! The plans of several planners as one state.
//!
//! Invariant: a key that several parts want belongs to the first of them, whatever came last; the others are told.
//! Only keys in which a part differs from its last version are visited.

use std::collections::BTreeMap;

use crate::{Conflict, Key, State};

/// `N` parts, most important first, and what they make together.
#[derive(Clone, Debug)]
pub struct Layers<const N: usize> {
    parts: [State; N],
    merged: State,
    conflicts: BTreeMap<Key, Vec<Conflict>>,
}

impl<const N: usize> Default for Layers<N> {
    fn default() -> Self {
        Layers { parts: std::array::from_fn(|_| State::new()), merged: State::new(), conflicts: BTreeMap::new() }
    }
}

impl<const N: usize> Layers<N> {
    /// Puts a new version of a part in place of the last one.
    pub fn set(&mut self, index: usize, part: &State) {
        let before = std::mem::replace(&mut self.parts[index], part.clone());
        for key in before.differing_keys(part) {
            self.settle(key);
        }
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
        let mut wanted = self.parts.iter().filter_map(|part| part.get(key));
        let Some(first) = wanted.next() else {
            self.merged.remove(key);
            self.conflicts.remove(key);
            return;
        };
        let lost: Vec<Conflict> = wanted
            .filter(|other| other.object != first.object)
            .map(|other| Conflict { key: key.clone(), kept: first.owner.clone(), lost: other.owner.clone() })
            .collect();
        if self.merged.get(key) != Some(first) {
            self.merged.insert(key.clone(), first.object.clone(), first.owner.clone());
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
}
