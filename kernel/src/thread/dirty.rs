//! Which parts of the mirror may be wrong.
//!
//! Invariant: a part that stands apart ([`is_apart`]) and cannot be read holds up nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tartan_model::Family;
use tartan_netstate::claims::{ENCRYPTED_LINK_PREFIX, FABRIC_LINK_PREFIX};
use tartan_netstate::{Key, LinkKind, LinkName, Netns, Object, PodNetns, State};

use crate::Scope;
use crate::scope::is_sysctl;

/// Sysctls read at once.
const SYSCTLS: usize = 200;
/// After a read that failed, at first. Where everything waits for it, always.
const AGAIN: Duration = Duration::from_millis(100);
/// And at last.
const LONGEST: Duration = Duration::from_secs(60);
/// To read what fails takes at most one part in so many of this thread's time: an engine that stands still is waited for.
const REST: u32 = 5;

/// Scopes to read before the next diff.
#[derive(Default)]
pub(super) struct Dirty {
    scopes: BTreeSet<Scope>,
    /// Those whose last read failed.
    failed: BTreeMap<Scope, Failed>,
}

struct Failed {
    why: String,
    wait: Duration,
    /// Not before then.
    again: Instant,
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
        self.scopes.iter().find(|scope| self.failed.get(scope).is_none_or(|failed| failed.again <= now)).cloned()
    }

    /// When the next scope can be read; none if all is clean.
    pub(super) fn due(&self) -> Option<Instant> {
        self.scopes.iter().filter_map(|scope| self.failed.get(scope)).map(|failed| failed.again).min()
    }

    /// Whether all is as the mirror says, but for what is left out.
    pub(super) fn is_clean(&self) -> bool {
        self.scopes.iter().all(|scope| self.leaves_out(scope))
    }

    /// Says whether it could not be read before.
    pub(super) fn read(&mut self, scope: &Scope) -> bool {
        self.scopes.remove(scope);
        self.failed.remove(scope).is_some()
    }

    /// Reading it took so long and failed. Says whether that is news.
    pub(super) fn failed(&mut self, scope: &Scope, why: String, took: Duration, now: Instant) -> bool {
        let before = self.failed.get(scope);
        let news = before.is_none_or(|before| before.why != why);
        let longer = before.map_or(AGAIN, |before| before.wait * 2).max(took * (REST - 1)).min(LONGEST);
        // All else waits for what does not stand apart: a table that somebody changed meanwhile is read again at once.
        let wait = if is_apart(scope) { longer } else { AGAIN };
        self.failed.insert(scope.clone(), Failed { why, wait, again: now + wait });
        news
    }

    /// It may be otherwise now.
    pub(super) fn hurry(&mut self, scope: &Scope, now: Instant) {
        if let Some(failed) = self.failed.get_mut(scope) {
            failed.again = now;
        }
    }

    /// What cannot be read and stands apart: of it the mirror stays as it is, and nothing is done about it.
    pub(super) fn left_out(&self) -> impl Iterator<Item = &Scope> {
        self.failed.keys().filter(|scope| is_apart(scope))
    }

    pub(super) fn leaves_out(&self, scope: &Scope) -> bool {
        is_apart(scope) && self.failed.contains_key(scope)
    }

    /// Why something that is left out cannot be read, or (`apart` is false) something that everything waits for.
    pub(super) fn why(&self, apart: bool) -> Option<&str> {
        self.failed.iter().find(|(scope, _)| is_apart(scope) == apart).map(|(_, failed)| &*failed.why)
    }
}

/// What other programs hold, or files, and a device for them: whoever is asked may not answer, and the rest hangs on it no more than
/// on an object that is refused.
fn is_apart(scope: &Scope) -> bool {
    match scope {
        Scope::Engines | Scope::Encryption => true,
        Scope::Link(link) => link.as_str().starts_with(ENCRYPTED_LINK_PREFIX),
        _ => false,
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

    /// After how many milliseconds a scope is read again that takes so many to fail, time after time.
    #[test]
    fn what_cannot_be_read_is_waited_for() {
        let link = |name: &str| Scope::Link(LinkName::new(name).expect("a name"));
        let cases = [
            (Scope::Routes(Family::V4), 0, &[100, 100, 100][..]),
            (link("ttx0"), 0, &[100, 100]),
            (Scope::Nft, 3_000, &[100, 100]),
            (link("ttxs0"), 0, &[100, 200]),
            (Scope::Encryption, 0, &[100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 60_000, 60_000]),
            (Scope::Engines, 5_000, &[20_000, 40_000, 60_000, 60_000]),
        ];
        for (scope, took, wanted) in cases {
            let (mut dirty, mut now) = (Dirty::default(), Instant::now());
            dirty.mark(scope.clone());
            let waits = wanted.iter().map(|_| {
                dirty.failed(&scope, "why".into(), Duration::from_millis(took), now);
                let (from, due) = (now, dirty.due().expect("it is to be read"));
                now = due;
                (due - from).as_millis() as u64
            });
            assert_eq!(waits.collect::<Vec<_>>(), wanted, "{scope:?}");
            let apart = is_apart(&scope);
            assert_eq!((dirty.is_clean(), dirty.why(apart), dirty.why(!apart)), (apart, Some("why"), None));
            assert!(dirty.next(now - Duration::from_millis(1)).is_none() && dirty.next(now).is_some(), "{scope:?}");
            assert!(dirty.read(&scope) && !dirty.read(&scope) && dirty.is_clean() && dirty.left_out().next().is_none());
        }
    }

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
