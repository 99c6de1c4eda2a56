//! A part of a state, for what is kept in thousands: what one planner wants for one peer, say.
//!
//! Invariant: in key order, each key once. It takes the room of its entries and no more, where a [`State`] of a few
//! entries takes kilobytes.

use std::sync::Arc;

use crate::{Entry, Key, Object, Owner, State};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part(Arc<[(Arc<Key>, Arc<Entry>)]>);

impl Part {
    /// These objects, all of one owner. Of two under one key the first stays.
    pub fn of(owner: &Owner, mut objects: Vec<(Key, Object)>) -> Part {
        objects.sort_by(|(a, _), (b, _)| a.cmp(b));
        objects.dedup_by(|(later, _), (first, _)| later == first);
        let mut entries: Vec<(Arc<Key>, Arc<Entry>)> = Vec::with_capacity(objects.len());
        for (key, object) in objects {
            let entry = match entries.last() {
                // Neighbours with one MAC, routes by one gateway: they stand side by side.
                Some((_, last)) if last.object == object => last.clone(),
                _ => Arc::new(Entry { object, owner: owner.clone() }),
            };
            entries.push((Arc::new(key), entry));
        }
        Part(entries.into())
    }

    /// Whether a state has all of it.
    pub fn is_in(&self, state: &State) -> bool {
        self.0.iter().all(|(key, entry)| state.holds(key, &entry.object))
    }

    fn has(&self, key: &Key) -> bool {
        self.0.binary_search_by(|(there, _)| (**there).cmp(key)).is_ok()
    }
}

impl State {
    /// Takes `before` out and puts `after` in, leaving alone what is the same in both. What another part has taken over
    /// since is that one's.
    pub fn replace_part(&mut self, before: &Part, after: &Part) {
        for (key, entry) in before.0.iter().filter(|(key, _)| !after.has(key)) {
            if self.get_shared(key) == Some((key, entry)) {
                self.remove(key);
            }
        }
        for (key, entry) in after.0.iter() {
            if self.get_shared(key) != Some((key, entry)) {
                self.share(key.clone(), entry.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Netns;

    fn objects(entries: &[(&str, &str)]) -> Vec<(Key, Object)> {
        let key = |name: &str| Key::Sysctl { ns: Netns::Host, name: name.into() };
        entries.iter().map(|(name, value)| (key(name), Object::Sysctl((*value).into()))).collect()
    }

    #[test]
    fn a_state_is_the_sum_of_its_parts_after_every_replacement() {
        let part = |entries: &[(&str, &str)]| Part::of(&Owner::Node, objects(entries));
        let check = |before: &[(&str, &str)], after: &[(&str, &str)]| {
            let rest = part(&[("rest", "0")]);
            let mut state = State::new();
            state.replace_part(&Part::default(), &rest);
            state.replace_part(&Part::default(), &part(before));
            state.replace_part(&part(before), &part(after));
            let wanted = objects(after).into_iter().chain(objects(&[("rest", "0")]));
            let wanted: State = wanted.map(|(key, object)| (key, Entry { object, owner: Owner::Node })).collect();
            assert_eq!(state, wanted, "{before:?} to {after:?}");
        };
        check(&[], &[("a", "1"), ("b", "1")]);
        check(&[("a", "1"), ("b", "1")], &[]);
        check(&[("b", "1"), ("a", "1")], &[("c", "1"), ("b", "2")]);
    }

    #[test]
    fn what_passes_from_one_part_to_another_is_there_whichever_changes_first() {
        let part = |owner: &str, entries: &[(&str, &str)]| Part::of(&Owner::Peer(owner.into()), objects(entries));
        let (gave, gives) = (part("z", &[("a", "1")]), part("z", &[]));
        let (took, takes) = (part("b", &[]), part("b", &[("a", "1")]));
        for takes_first in [true, false] {
            let mut state = State::new();
            state.replace_part(&Part::default(), &gave);
            let mut steps = [(&took, &takes), (&gave, &gives)];
            if !takes_first {
                steps.reverse();
            }
            steps.into_iter().for_each(|(before, after)| state.replace_part(before, after));
            let mut wanted = State::new();
            wanted.replace_part(&Part::default(), &takes);
            assert_eq!(state, wanted, "taken before given: {takes_first}");
        }
    }

    #[test]
    fn of_two_objects_under_one_key_the_first_stays() {
        assert_eq!(
            Part::of(&Owner::Node, objects(&[("b", "1"), ("a", "1"), ("b", "2")])),
            Part::of(&Owner::Node, objects(&[("a", "1"), ("b", "1")]))
        );
    }
}
