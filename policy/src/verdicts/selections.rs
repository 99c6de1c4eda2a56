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
    all: BTreeMap<SelectionId, Entry>,
    next: SelectionId,
    live: OrdMap<u32, Arc<Identity>>,
    index: ByNamespace,
}

struct Entry {
    peers: Arc<Peers>,
    /// The namespaces of which the peers may match known pods, where these are few.
    namespaces: Option<BTreeSet<Arc<str>>>,
    selection: Selection,
}

/// Identities by the namespace of known pods, where that is mentioned; all others beside.
#[derive(Default)]
struct ByNamespace {
    pods: BTreeMap<Arc<str>, BTreeSet<u32>>,
    others: BTreeSet<u32>,
}

// === impl ByNamespace ===

impl ByNamespace {
    fn insert(&mut self, number: u32, identity: &Identity) {
        match namespace(identity) {
            Some(namespace) => self.pods.entry(namespace.clone()).or_default().insert(number),
            None => self.others.insert(number),
        };
    }

    fn remove(&mut self, number: u32, identity: &Identity) {
        let Some(namespace) = namespace(identity) else {
            self.others.remove(&number);
            return;
        };
        if let Some(pods) = self.pods.get_mut(namespace) {
            pods.remove(&number);
            if pods.is_empty() {
                self.pods.remove(namespace);
            }
        }
    }

    /// Those that peers of these namespaces may match.
    fn of<'a>(&'a self, namespaces: &'a BTreeSet<Arc<str>>) -> impl Iterator<Item = u32> + 'a {
        namespaces.iter().filter_map(|name| self.pods.get(name)).flatten().chain(&self.others).copied()
    }
}

fn namespace(identity: &Identity) -> Option<&Arc<str>> {
    let workload = identity.traits.workload.as_ref()?;
    Some(&workload.namespace).filter(|namespace| !namespace.is_empty())
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
        let namespaces = peers.only_namespaces();
        let selection = self.select(&peers, namespaces.as_ref());
        self.ids.insert(peers.clone(), id);
        self.all.insert(id, Entry { peers, namespaces, selection });
        self.next += 1;
        id
    }

    pub(super) fn get(&self, id: SelectionId) -> &Selection {
        &self.all.get(&id).expect("what a set mentions is retained").selection
    }

    /// Drops what nobody mentions any more.
    pub(super) fn retain(&mut self, mentioned: &BTreeSet<SelectionId>) {
        self.all.retain(|id, _| mentioned.contains(id));
        self.ids.retain(|_, id| mentioned.contains(id));
    }

    /// Takes in which identities there are; `changed` came or went.
    pub(super) fn update(&mut self, live: &OrdMap<u32, Arc<Identity>>, changed: &BTreeSet<u32>) {
        let mut touched = ByNamespace::default();
        for number in changed {
            if let Some(before) = self.live.get(number) {
                touched.insert(*number, before);
                self.index.remove(*number, before);
            }
            if let Some(after) = live.get(number) {
                touched.insert(*number, after);
                self.index.insert(*number, after);
            }
        }
        self.live = live.clone();
        for Entry { peers, namespaces, selection } in self.all.values_mut() {
            let mut take = |number: u32| match live.get(&number).map_or(Holds::No, |it| peers.hold_identity(it)) {
                Holds::No => drop(selection.members.remove(&number)),
                holds => drop(selection.members.insert(number, holds)),
            };
            match namespaces {
                Some(namespaces) => touched.of(namespaces).for_each(take),
                None => changed.iter().for_each(|number| take(*number)),
            }
        }
    }

    fn select(&self, peers: &Peers, namespaces: Option<&BTreeSet<Arc<str>>>) -> Selection {
        let holds = |number: u32| (number, peers.hold_identity(&self.live[&number]));
        let all: Vec<(u32, Holds)> = match namespaces {
            Some(namespaces) => self.index.of(namespaces).map(holds).collect(),
            None => self.live.keys().copied().map(holds).collect(),
        };
        Selection { members: all.into_iter().filter(|(_, holds)| *holds != Holds::No).collect() }
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
