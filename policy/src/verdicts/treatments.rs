//! How all sets of a node treat each identity, as one number: whether two are treated alike is then asked at once.
//!
//! Invariant: two identities have the same number exactly if in every set their rows say the same. The sum of what is secret
//! hashes of the rows: nobody who writes policies can make two of them meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::classes::Class;
use super::identities::ANY;
use super::rows::Rows;
use super::secret::Secret;
use super::sets::Set;
use crate::ir::Direction;

/// See the module.
#[derive(Default)]
pub(super) struct Treatments {
    /// Of identities that have rows of their own.
    all: BTreeMap<u32, u128>,
    /// The sets that they are of.
    sets: OrdMap<u32, Arc<Set>>,
    secret: Secret,
}

// === impl Treatments ===

impl Treatments {
    /// 0 for those that every set treats as [`ANY`].
    pub(super) fn of(&self, identity: u32) -> u128 {
        self.all.get(&identity).copied().unwrap_or(0)
    }

    /// Takes in the sets of now; returns the identities that are treated unlike before.
    pub(super) fn update(&mut self, now: &OrdMap<u32, Arc<Set>>) -> BTreeSet<u32> {
        let before = std::mem::replace(&mut self.sets, now.clone());
        let mut changes: BTreeMap<u32, u128> = BTreeMap::new();
        let nothing = Arc::default();
        for item in before.diff(now) {
            let (set, old, new): (&u32, &Arc<Set>, &Arc<Set>) = match item {
                DiffItem::Add(set, new) => (set, &nothing, new),
                DiffItem::Update { old: (set, old), new: (_, new) } => (set, old, new),
                DiffItem::Remove(set, old) => (set, old, &nothing),
            };
            let sides = [(&old.ingress, &new.ingress), (&old.egress, &new.egress)];
            for (direction, (old, new)) in Direction::ALL.into_iter().zip(sides) {
                for place in changed_places(old, new) {
                    let change = [old, new].map(|rows| self.row(*set, direction, rows, place));
                    *changes.entry(place.0).or_insert(0) ^= change[0] ^ change[1];
                }
            }
        }
        changes.retain(|identity, change| *identity != ANY && *change != 0);
        for (identity, change) in &changes {
            match self.of(*identity) ^ change {
                0 => drop(self.all.remove(identity)),
                sum => drop(self.all.insert(*identity, sum)),
            }
        }
        changes.into_keys().collect()
    }

    /// What the row at a place adds; nothing where there is none.
    fn row(&self, set: u32, direction: Direction, rows: &Rows, place: (u32, Class)) -> u128 {
        let Some(word) = rows.words.get(&place) else { return 0 };
        self.secret.number((set, direction, place.1, word, rows.residual.get(&place)))
    }
}

/// Where rows came, went or say something else.
fn changed_places(old: &Rows, new: &Rows) -> impl Iterator<Item = (u32, Class)> {
    let words = old.words.diff(&new.words).map(place);
    // Of others the word alone tells that they changed.
    let residual = old.residual.diff(&new.residual).map(place);
    words.chain(residual.filter(|place| old.words.get(place) == new.words.get(place)))
}

fn place<V>(item: DiffItem<'_, '_, (u32, Class), V>) -> (u32, Class) {
    let (DiffItem::Add(place, _) | DiffItem::Update { new: (place, _), .. } | DiffItem::Remove(place, _)) = item;
    *place
}
