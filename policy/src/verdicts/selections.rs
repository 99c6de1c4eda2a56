//! Which identities match a rule's peers, kept for every list of peers that a set of policies mentions.
//!
//! Invariant: a selection holds exactly the live identities that its peers match.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::identities::Identity;
use crate::ir::{Endpoints, Is, Namespaces, Peers, Term};
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
    all: BTreeMap<SelectionId, (Arc<Peers>, Selection)>,
    next: SelectionId,
    live: OrdMap<u32, Arc<Identity>>,
    /// Identities of known pods by namespace, where that is mentioned, and all others.
    pods: BTreeMap<Arc<str>, BTreeSet<u32>>,
    others: BTreeSet<u32>,
}

// === impl Selection ===

impl Selection {
    pub(super) fn holds(&self, identity: u32) -> Holds {
        self.members.get(&identity).copied().unwrap_or(Holds::No)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (u32, Holds)> {
        self.members.iter().map(|(number, holds)| (*number, *holds))
    }
}

// === impl Selections ===

impl Selections {
    /// The selection of these peers.
    pub(super) fn of(&mut self, peers: &Peers) -> SelectionId {
        if let Some(id) = self.ids.get(peers) {
            return *id;
        }
        let (peers, id) = (Arc::new(peers.clone()), self.next);
        let selection = self.select(&peers);
        self.ids.insert(peers.clone(), id);
        self.all.insert(id, (peers, selection));
        self.next += 1;
        id
    }

    pub(super) fn get(&self, id: SelectionId) -> &Selection {
        &self.all.get(&id).expect("what a set mentions is retained").1
    }

    /// Drops what nobody mentions any more.
    pub(super) fn retain(&mut self, mentioned: &BTreeSet<SelectionId>) {
        self.all.retain(|id, _| mentioned.contains(id));
        self.ids.retain(|_, id| mentioned.contains(id));
    }

    /// Takes in which identities there are; `changed` came or went.
    pub(super) fn update(&mut self, live: &OrdMap<u32, Arc<Identity>>, changed: &BTreeSet<u32>) {
        for number in changed {
            if let Some(before) = self.live.get(number).cloned() {
                self.index(*number, &before, false);
            }
            if let Some(after) = live.get(number) {
                self.index(*number, after, true);
            }
        }
        for (peers, selection) in self.all.values_mut() {
            for number in changed {
                match live.get(number).map_or(Holds::No, |identity| peers.hold_identity(identity)) {
                    Holds::No => selection.members.remove(number),
                    holds => selection.members.insert(*number, holds),
                };
            }
        }
        self.live = live.clone();
    }

    fn index(&mut self, number: u32, identity: &Identity, add: bool) {
        let workload = identity.traits.workload.as_ref();
        let namespace = workload.map(|workload| &workload.namespace).filter(|namespace| !namespace.is_empty());
        let place = match namespace {
            Some(namespace) => self.pods.entry(namespace.clone()).or_default(),
            None => &mut self.others,
        };
        let _ = if add { place.insert(number) } else { place.remove(&number) };
        if let Some(namespace) = namespace.filter(|namespace| self.pods[&**namespace].is_empty()) {
            self.pods.remove(namespace);
        }
    }

    fn select(&self, peers: &Peers) -> Selection {
        let mut selection = Selection::default();
        let mut take = |number: u32| {
            let holds = peers.hold_identity(&self.live[&number]);
            if holds != Holds::No {
                selection.members.insert(number, holds);
            }
        };
        match peers.only_namespaces() {
            Some(namespaces) => {
                let pods = namespaces.iter().filter_map(|name| self.pods.get(name)).flatten();
                pods.chain(&self.others).for_each(|number| take(*number));
            }
            None => self.live.keys().for_each(|number| take(*number)),
        }
        selection
    }
}

// === impl Peers ===

impl Peers {
    fn hold_identity(&self, identity: &Identity) -> Holds {
        self.hold(&identity.traits, identity.range.as_ref())
    }

    /// The namespaces of which they may match known pods, where these are few: every peer names one.
    fn only_namespaces(&self) -> Option<BTreeSet<Arc<str>>> {
        let Peers::OneOf(peers) = self else { return None };
        let named = |term: &'_ Term| match &term.is {
            Is::Endpoint(Endpoints { namespaces: Namespaces::Named(name), .. }) if !term.negated => Some(name.clone()),
            _ => None,
        };
        peers.iter().map(|peer| peer.0.iter().find_map(named)).collect()
    }
}
