//! Which parts of the mirror may be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tartan_model::Family;
use tartan_netstate::claims::FABRIC_LINK_PREFIX;
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
        self.scopes.extend(Scope::of_node());
    }

    /// The inside of every pod, and the sysctls that are wanted.
    pub(super) fn mark_wanted(&mut self, mirror: &State, wanted: &State) {
        for scope in pods(mirror).into_iter().chain(sysctls(wanted.iter().map(|(key, _)| key))) {
            self.mark(scope);
        }
    }

    /// What a node has been given once for all, and what other programs think they have to say in, too. They stand in front.
    pub(super) fn mark_node_sysctls(&mut self, mirror: &State) {
        let is_node_s = |key: &&Key| matches!(key, Key::UplinkSysctl { .. } | Key::Sysctl { ns: Netns::Host, .. });
        let keys = mirror.iter().map(|(key, _)| key).take_while(is_node_s);
        sysctls(keys).into_iter().for_each(|scope| self.mark(scope));
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

/// The scope to read when the kernel tells that this object is not what the mirror says: of one of a fabric's neighbours, not
/// all that is on the link, which thousands are.
pub(super) fn scope_told(key: &Key) -> Scope {
    match key {
        Key::Neigh { link, address, .. } if link.as_str().starts_with(FABRIC_LINK_PREFIX) => {
            Scope::Neighbours(Family::of(*address))
        }
        Key::Fdb { .. } => Scope::Fdb,
        _ => scope_of(key),
    }
}

/// The scope to read when this object is not what the mirror says.
pub(super) fn scope_of(key: &Key) -> Scope {
    match key {
        Key::Link { link, .. } | Key::Qdisc { link, .. } | Key::Address { link, .. } => Scope::Link(link.clone()),
        Key::Neigh { link, .. } | Key::Proxied { link, .. } | Key::PodBridge { link } | Key::Fdb { link, .. } => {
            Scope::Link(link.clone())
        }
        Key::Route { dst, .. } => Scope::Routes(Family::of_net(dst)),
        Key::Rule { v6, .. } => Scope::Routes(if *v6 { Family::V6 } else { Family::V4 }),
        Key::Sysctl { .. } | Key::UplinkSysctl { .. } | Key::LinkSysctl { .. } => Scope::Sysctls(vec![key.clone()]),
        Key::NftTable | Key::NftSet { .. } | Key::NftChain { .. } | Key::NftElement { .. } => Scope::Nft,
        Key::ForwardOpening { .. } => Scope::Foreign,
        Key::Socket { .. } | Key::Remote { .. } => Scope::Engines,
        Key::KeyPair { .. } | Key::WgDevice { .. } | Key::WgPeer { .. } => Scope::Encryption,
        Key::EspDevice { .. } | Key::EspPeer { .. } => Scope::Encryption,
    }
}

#[cfg(test)]
mod tests {
    use tartan_netstate::{Fdb, Mac, Neigh, Object, Route};

    use super::*;

    /// What is read is what was told of, and no more than there is need for.
    #[test]
    fn what_is_told_is_read() {
        let link = |name: &str| LinkName::new(name).expect("a name");
        let neigh = |on: &str, address: &str| {
            let key = Key::Neigh { ns: Netns::Host, link: link(on), address: address.parse().expect("an address") };
            (key, Object::Neigh(Neigh { mac: Mac([2; 6]) }))
        };
        let route = |dst: &str| {
            let key = Key::Route { ns: Netns::Host, table: 254, dst: dst.parse().expect("a prefix"), metric: 0 };
            (key, Object::Route(Route::unreachable().into()))
        };
        let fdb = Fdb { dst: "192.0.2.1".parse().expect("an address") };
        let cases = [
            (neigh("ttx1", "10.0.0.1"), Scope::Neighbours(Family::V4)),
            (neigh("ttx1", "fe80::1"), Scope::Neighbours(Family::V6)),
            (neigh("ttp1", "10.0.0.1"), Scope::Link(link("ttp1"))),
            ((Key::Fdb { link: link("ttx1"), mac: Mac([2; 6]) }, Object::Fdb(fdb)), Scope::Fdb),
            (route("10.0.0.0/24"), Scope::Routes(Family::V4)),
            (route("fd00::/64"), Scope::Routes(Family::V6)),
        ];
        for ((key, object), wanted) in cases {
            let scope = scope_told(&key);
            assert_eq!(scope, wanted, "{key}");
            let covering = Scope::of_node().filter(|scope| scope.covers(&key, &object)).count();
            assert!(scope.covers(&key, &object) && covering == 1, "{key}");
        }
    }
}
