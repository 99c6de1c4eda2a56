//! Which numbers of policy the kernel's maps hold.
//!
//! Invariant: equals a count of all elements of the mirror ([`held`] is that count), and costs what differs from the
//! mirror before.

use std::collections::{BTreeMap, BTreeSet};

use tartan_netstate::policy::{Element, led_to};
use tartan_netstate::{Key, Object, State};
use tartan_policy::verdicts::{Held, Word};

/// The numbers, and the mirror they were counted in.
#[derive(Default)]
pub struct Mirrored {
    seen: State,
    counts: [BTreeMap<u32, usize>; 3],
    held: Held,
}

/// What a number stands for.
#[derive(Clone, Copy)]
enum Of {
    Set,
    Identity,
    Rule,
}

/// Numbers in the maps of a mirror.
pub fn held(mirror: &State) -> Held {
    Mirrored::default().held(mirror).clone()
}

// === impl Mirrored ===

impl Mirrored {
    /// Numbers in the maps of the mirror as it is now.
    pub fn held(&mut self, mirror: &State) -> &Held {
        let before = std::mem::replace(&mut self.seen, mirror.clone());
        if before.is_empty() {
            for (key, entry) in mirror.of_policy() {
                numbers(key, &entry.object).for_each(|(of, number)| self.count(of, number, true));
            }
            return &self.held;
        }
        for key in before.differing_keys(mirror).filter(|key| key.is_of_policy()) {
            for (state, add) in [(&before, false), (mirror, true)] {
                if let Some(entry) = state.get(key) {
                    numbers(key, &entry.object).for_each(|(of, number)| self.count(of, number, add));
                }
            }
        }
        &self.held
    }

    fn count(&mut self, of: Of, number: u32, add: bool) {
        let held: &mut BTreeSet<u32> = match of {
            Of::Set => &mut self.held.sets,
            Of::Identity => &mut self.held.identities,
            Of::Rule => &mut self.held.rules,
        };
        let counts = &mut self.counts[of as usize];
        let count = counts.entry(number).or_insert(0);
        *count = if add { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(&number);
            held.remove(&number);
        } else if *count == 1 && add {
            held.insert(number);
        }
    }
}

/// What an element holds; 0 is none.
fn numbers(key: &Key, object: &Object) -> impl Iterator<Item = (Of, u32)> {
    let number = led_to(object).unwrap_or(0);
    let all = match Element::of(key) {
        Some(Element::Subject) => [Some((Of::Set, number)), None, None],
        Some(Element::Address(_) | Element::Range(_)) => [Some((Of::Identity, number)), None, None],
        Some(Element::Class { set, .. }) => [Some((Of::Set, set)), None, None],
        Some(Element::Row(row)) => {
            let identity = row.identity.map(|identity| (Of::Identity, identity));
            [Some((Of::Set, row.set)), identity, Some((Of::Rule, Word(number).rule()))]
        }
        None => [None; 3],
    };
    all.into_iter().flatten().filter(|(_, number)| *number != 0)
}
