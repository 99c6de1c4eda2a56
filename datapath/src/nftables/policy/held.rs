//! Which numbers of policy the kernel's maps hold.
//!
//! Invariant: equals a count of all elements of the mirror ([`held`] is that count), and costs what differs from the
//! mirror before.

use std::collections::{BTreeMap, BTreeSet};

use tartan_netstate::{Key, Object, State};
use tartan_policy::verdicts::Held;

use super::maps::{ADDRESSES, RANGES, SUBJECTS, Side};

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

/// The bits of a word that say which rule.
const RULE_BITS: u32 = 0x00ff_ffff;

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

/// What an element holds; 0 stands for nothing.
fn numbers(key: &Key, object: &Object) -> impl Iterator<Item = (Of, u32)> {
    let Key::NftElement { set, key } = key else { return [None; 3].into_iter().flatten() };
    let word = |bytes: &[u8], at: usize| {
        let four = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(four)).filter(|number| *number != 0)
    };
    let of_key = |of: Of, at: usize| word(&key.bytes, at).map(|number| (of, number));
    let data = || match object {
        Object::NftElement(data) => word(&data.0, 0),
        _ => None,
    };
    let rule = || data().map(|word| (Of::Rule, word & RULE_BITS)).filter(|(_, rule)| *rule != 0);
    let is = |name: &dyn Fn(Side) -> String| Side::BOTH.into_iter().any(|side| **set == *name(side));
    let all = match set.trim_end_matches(['4', '6']) {
        SUBJECTS => [data().map(|number| (Of::Set, number)), None, None],
        ADDRESSES | RANGES => [data().map(|number| (Of::Identity, number)), None, None],
        _ if is(&Side::words) => [of_key(Of::Set, 0), of_key(Of::Identity, 4), rule()],
        _ if is(&Side::any) => [of_key(Of::Set, 0), rule(), None],
        _ if is(&Side::classes) => [of_key(Of::Set, 0), None, None],
        _ => [None; 3],
    };
    all.into_iter().flatten()
}
