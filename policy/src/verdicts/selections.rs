//! Which identities match a rule's peers, kept for every list of peers that a set of policies mentions.
//!
//! Invariant: a selection holds exactly the live identities that its peers match.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::OrdMap;

use super::budget::{Budget, Spent};
use super::identities::Identity;
use super::places::{self, Place, Places};
use crate::ir::{Is, Peer, Peers};
use crate::traits::Holds;

/// The identities that a list of peers matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    members: BTreeMap<u32, Holds>,
}

/// Names a selection.
pub(super) type SelectionId = u64;

/// See the module.
#[derive(Default)]
pub(super) struct Selections {
    ids: BTreeMap<Arc<Peers>, SelectionId>,
    all: BTreeMap<SelectionId, Entry>,
    next: SelectionId,
    live: OrdMap<u32, Arc<Identity>>,
    /// Where identities are,
    identities: Places<u32>,
    /// and where peers look for them,
    peers: Places<SelectionId>,
    /// with ranges of these prefix lengths; how many.
    lengths: BTreeMap<u8, usize>,
}

struct Entry {
    peers: Arc<Peers>,
    places: BTreeSet<Place>,
    selection: Selection,
}

// === impl Selection ===

impl Selection {
    pub(super) fn holds(&self, identity: u32) -> Holds {
        self.members.get(&identity).copied().unwrap_or(Holds::No)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (u32, Holds)> {
        self.members_in(0..=u32::MAX)
    }

    /// Of them, those with such numbers.
    pub(super) fn members_in(&self, numbers: RangeInclusive<u32>) -> impl Iterator<Item = (u32, Holds)> {
        self.members.range(numbers).map(|(number, holds)| (*number, *holds))
    }
}

// === impl Selections ===

impl Selections {
    /// The selection of these peers.
    pub(super) fn of(&mut self, peers: &Peers, budget: &Budget) -> Result<SelectionId, Spent> {
        if let Some(id) = self.ids.get(peers) {
            return Ok(*id);
        }
        let (peers, id) = (Arc::new(peers.clone()), self.next);
        let (mut places, mut members) = (BTreeSet::new(), BTreeMap::new());
        // There may be tens of thousands of either: each peer is asked only where it looks.
        let anyone = [Peer(Vec::new())];
        let each = match &*peers {
            Peers::Any => &anyone[..],
            Peers::OneOf(peers) => peers,
        };
        for peer in each.iter().collect::<BTreeSet<_>>() {
            for place in self.identities.of_peer(peer) {
                for number in self.identities.inside(&place) {
                    budget.spend(4)?;
                    let identity = &self.live[&number];
                    let holds = peer.holds(&identity.traits, identity.zone.as_ref());
                    if holds != Holds::No {
                        members
                            .entry(number)
                            .and_modify(|there: &mut Holds| *there = holds.max(*there))
                            .or_insert(holds);
                    }
                }
                places.insert(place);
            }
        }
        for length in lengths(&places) {
            *self.lengths.entry(length).or_insert(0) += 1;
        }
        self.ids.insert(peers.clone(), id);
        self.peers.insert(id, places.iter().cloned());
        self.all.insert(id, Entry { peers, places, selection: Selection { members } });
        self.next += 1;
        Ok(id)
    }

    pub(super) fn get(&self, id: SelectionId) -> &Selection {
        &self.all.get(&id).expect("what a set mentions is retained").selection
    }

    /// How many ranges these peers name.
    pub(super) fn ranges(&self, id: SelectionId) -> usize {
        let peers = &self.all.get(&id).expect("what a set mentions is retained").peers;
        let ranges = peers.terms().map(|term| match &term.is {
            Is::In(nets) => nets.all().count(),
            _ => 0,
        });
        ranges.sum()
    }

    /// Drops what nobody mentions any more.
    pub(super) fn retain(&mut self, mentioned: &BTreeSet<SelectionId>) {
        for (id, entry) in self.all.extract_if(.., |id, _| !mentioned.contains(id)) {
            self.ids.remove(&entry.peers);
            for length in lengths(&entry.places) {
                *self.lengths.entry(length).or_insert(1) -= 1;
            }
            self.peers.remove(id, entry.places);
        }
        self.lengths.retain(|_, count| *count > 0);
    }

    /// Takes in which identities there are; `changed` came or went.
    pub(super) fn update(&mut self, live: &OrdMap<u32, Arc<Identity>>, changed: &BTreeSet<u32>) {
        for number in changed {
            let [before, after] = [self.live.get(number), live.get(number)];
            if let Some(before) = before {
                self.identities.remove(*number, places::of_identity(before));
            }
            if let Some(after) = after {
                self.identities.insert(*number, places::of_identity(after));
            }
            let both = before.into_iter().chain(after);
            let looked_at: BTreeSet<Place> =
                both.flat_map(|identity| places::looked_at(identity, self.lengths.keys())).collect();
            let concerned: BTreeSet<SelectionId> = looked_at.iter().flat_map(|place| self.peers.at(place)).collect();
            for id in concerned {
                let Entry { peers, selection, .. } = self.all.get_mut(&id).expect("who looks is there");
                match after.map_or(Holds::No, |identity| peers.hold_identity(identity)) {
                    Holds::No => drop(selection.members.remove(number)),
                    holds => drop(selection.members.insert(*number, holds)),
                }
            }
        }
        self.live = live.clone();
    }
}

fn lengths(places: &BTreeSet<Place>) -> impl Iterator<Item = u8> {
    places.iter().filter_map(|place| match place {
        Place::Range(range) => Some(range.prefix_len()),
        _ => None,
    })
}

// === impl Peers ===

impl Peers {
    fn hold_identity(&self, identity: &Identity) -> Holds {
        self.hold(&identity.traits, identity.zone.as_ref())
    }
}
