//! Which parts of the mirror may be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tartan_netstate::{Key, LinkKind, LinkName, Netns, Object, PodNetns, State};

use crate::Scope;
use crate::scope::is_sysctl;

/// Sysctls read at once.
const SYSCTLS: usize = 200;
/// After a read that failed.
const AGAIN: Duration = Duration::from_millis(100);

/// Scopes to read before the next diff.
#[derive(Default)]
pub(super) struct Dirty {
    scopes: BTreeSet<Scope>,
    /// Not before then: a read failed.
    not_before: BTreeMap<Scope, Instant>,
}

impl Dirty {
    pub(super) fn mark(&mut self, scope: Scope) {
        self.scopes.insert(scope);
    }

    /// Everything that is not inside pods and no sysctl: what has to be read before those are known.
    pub(super) fn mark_node(&mut self) {
        for scope in [Scope::Links, Scope::Neighbours, Scope::Routes, Scope::Nft, Scope::Foreign] {
            self.mark(scope);
        }
    }

    /// The inside of every pod, and the sysctls that are wanted.
    pub(super) fn mark_wanted(&mut self, mirror: &State, wanted: &State) {
        for scope in pods(mirror).into_iter().chain(sysctls(wanted.iter().map(|(key, _)| key))) {
            self.mark(scope);
        }
    }

    /// A scope to read now.
    pub(super) fn next(&self, now: Instant) -> Option<Scope> {
        self.scopes.iter().find(|scope| self.not_before.get(scope).is_none_or(|then| *then <= now)).cloned()
    }

    /// When the next scope can be read; none if all is clean.
    pub(super) fn due(&self) -> Option<Instant> {
        self.scopes.iter().filter_map(|scope| self.not_before.get(scope)).min().copied()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.scopes.is_empty()
    }

    pub(super) fn read(&mut self, scope: &Scope) {
        self.scopes.remove(scope);
        self.not_before.remove(scope);
    }

    pub(super) fn failed(&mut self, scope: &Scope, now: Instant) {
        self.not_before.insert(scope.clone(), now + AGAIN);
    }
}

/// The pods that our links lead into, with the ends of those links.
pub(super) fn pods(mirror: &State) -> Vec<Scope> {
    let mut pods: BTreeMap<&PodNetns, BTreeSet<LinkName>> = BTreeMap::new();
    for (_, entry) in super::mirror::node_links(mirror) {
        if !super::mirror::is_dying(&entry.object)
            && let Object::Link(link) = &entry.object
            && let LinkKind::Veth { peer: Netns::Pod(ns), peer_name } = &link.kind
        {
            pods.entry(ns).or_default().insert(peer_name.clone());
        }
    }
    pods.into_iter().map(|(ns, ends)| Scope::Pod { ns: ns.clone(), ends }).collect()
}

/// The pod's own among [`pods`]; none if no link of ours leads into it.
pub(super) fn pod(mirror: &State, of: &PodNetns) -> Option<Scope> {
    pods(mirror).into_iter().find(|scope| matches!(scope, Scope::Pod { ns, .. } if ns == of))
}

/// Sysctls among these keys, in scopes of bounded size, each of one namespace.
pub(super) fn sysctls<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<Scope> {
    let mut by_ns: BTreeMap<&Netns, Vec<Key>> = BTreeMap::new();
    for key in keys.filter(|key| is_sysctl(key)) {
        by_ns.entry(key.netns()).or_default().push(key.clone());
    }
    let chunks = by_ns.values().flat_map(|keys| keys.chunks(SYSCTLS));
    chunks.map(|keys| Scope::Sysctls(keys.to_vec())).collect()
}

/// The scope to read when this object is not what the mirror says.
pub(super) fn scope_of(key: &Key) -> Scope {
    match key {
        Key::Link { link, .. } | Key::Qdisc { link, .. } | Key::Address { link, .. } => Scope::Link(link.clone()),
        Key::Neigh { link, .. } | Key::Fdb { link, .. } => Scope::Link(link.clone()),
        Key::Route { .. } | Key::Rule { .. } => Scope::Routes,
        Key::Sysctl { .. } | Key::UplinkSysctl { .. } | Key::LinkSysctl { .. } => Scope::Sysctls(vec![key.clone()]),
        Key::NftTable | Key::NftSet { .. } | Key::NftChain { .. } | Key::NftElement { .. } => Scope::Nft,
        Key::ForwardOpening { .. } => Scope::Foreign,
    }
}
