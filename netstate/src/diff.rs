//! The difference of two states, in an order in which it can be applied.
//!
//! Order: first the deletions that stand in the way of a creation (a device that must be made again, a VXLAN device
//! whose identifier another one takes, a WireGuard peer's ranges that another one gets), then creations and replacements in key order, routes by way of a gateway after
//! those that lead to it, then all other deletions in reverse key order. So a route moves to its new device before its old device goes, and no packet is lost between.
//!
//! Invariant: applying `diff(a, b)` to `a` gives `b`, in one pass ([`Change::apply_to`] is the slow, obvious twin the
//! kernel is compared with).

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use crate::{Entry, Key, LinkKind, LinkName, Netns, Object, Owner, State, WgPeer};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing is there, and something must be. Fails if somebody else's object is there.
    Create(Key, Object),
    /// Ours is there and must become another.
    Replace { key: Key, old: Object, new: Object },
    /// Ours is there and must go. To find it gone already is success.
    Delete(Key, Object),
}

/// An ordered difference, each step with the owner of the object it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Steps in order.
    pub ops: Vec<(Op, Owner)>,
}

/// What turns `mirror` into `wanted`. An object that is there and unwanted goes only if `may_delete` says so.
///
/// Visits only what the two maps do not share: after one change in a map of thousands that is microseconds. What sits
/// inside a pod on a link that is deleted is not deleted one by one.
pub fn diff(mirror: &State, wanted: &State, may_delete: impl Fn(&Key) -> bool) -> Change {
    // There may be tens of thousands: a list that grows would be there twice each time it does.
    let differing = || mirror.map().diff(wanted.map());
    let mut make = Vec::with_capacity(differing().count());
    let (mut gone, mut stay) = (Vec::new(), Vec::new());
    for item in differing() {
        match item {
            DiffItem::Add(key, entry) => {
                make.push((Op::Create(Key::clone(key), entry.object.clone()), entry.owner.clone()))
            }
            DiffItem::Update { old: (key, old), new: (_, new) } if old.object != new.object => make.push((
                Op::Replace { key: Key::clone(key), old: old.object.clone(), new: new.object.clone() },
                new.owner.clone(),
            )),
            DiffItem::Update { .. } => {}
            DiffItem::Remove(key, entry) if may_delete(key) => gone.push((Key::clone(key), Entry::clone(entry))),
            DiffItem::Remove(key, entry) => {
                if let Object::WgPeer(peer) = &entry.object {
                    stay.push((Key::clone(key), peer.clone(), entry.owner.clone()));
                }
            }
        }
    }
    let mut first = ranges_first(&mut make, &mut gone, stay);
    first.extend(links_first(mirror, wanted, &mut make, &mut gone));
    repeat_neighbours(mirror, wanted, &mut make);
    repeat_mtus(mirror, wanted, &mut make);
    remake_sets(wanted, &mut make, &mut gone);
    // To sort takes a second list, and there may be tens of thousands of steps.
    if !make.is_sorted_by_key(|(op, _)| op.needs_a_route()) {
        make.sort_by_key(|(op, _)| op.needs_a_route());
    }
    let leaving = gone.iter().filter_map(|(key, _)| key.as_link()).collect();
    let along = hanging_on(mirror, &leaving);
    gone.retain(|(key, _)| *key.netns() == Netns::Host || !along.contains(key));
    let mut ops = if first.is_empty() { make } else { first.into_iter().chain(make).collect() };
    ops.extend(gone.into_iter().rev().map(|(key, entry)| (Op::Delete(key, entry.object), entry.owner)));
    Change { ops }
}

/// Links that go first: those whose fixed parameters changed, and those that stand in the way of new ones. Whatever
/// hung on them and is still wanted, perhaps on another link of the same name, is made again.
fn links_first(
    mirror: &State,
    wanted: &State,
    make: &mut Vec<(Op, Owner)>,
    gone: &mut Vec<(Key, Entry)>,
) -> Vec<(Op, Owner)> {
    let remade = make.iter().filter_map(|(op, _)| match op {
        Op::Replace { key, old: Object::Link(old), new: Object::Link(new) } => {
            (!old.kind.can_become(&new.kind)).then(|| key.clone())
        }
        _ => None,
    });
    let coming: Vec<LinkKind> = make.iter().filter_map(|(op, _)| op.makes_link().cloned()).collect();
    let in_the_way = gone.iter().filter(|(_, entry)| match &entry.object {
        Object::Link(link) => coming.iter().any(|new| link.kind.excludes(new)),
        _ => false,
    });
    let in_the_way = in_the_way.map(|(key, _)| key.clone()).chain(at_ports_of_others(make, gone));
    let leaving: BTreeSet<Key> = remade.chain(in_the_way).collect();
    if leaving.is_empty() {
        return Vec::new();
    }
    gone.retain(|(key, _)| !leaving.contains(key));
    let lost = hanging_on(mirror, &leaving.iter().filter_map(Key::as_link).collect());
    make.retain(|(op, _)| !lost.contains(op.key()));
    let again = lost.iter().filter_map(|key| wanted.get(key).map(|entry| (key, entry)));
    make.extend(again.map(|(key, entry)| (Op::Create(key.clone(), entry.object.clone()), entry.owner.clone())));
    make.sort_by(|(a, _), (b, _)| a.key().cmp(b.key()));
    let delete = |key: Key| {
        let old = mirror.get(&key)?;
        let owner = wanted.get(&key).unwrap_or(old).owner.clone();
        Some((Op::Delete(key, old.object.clone()), owner))
    };
    leaving.into_iter().filter_map(delete).collect()
}

/// WireGuard devices that go and have a port that another one gets.
fn at_ports_of_others<'a>(make: &[(Op, Owner)], gone: &'a [(Key, Entry)]) -> impl Iterator<Item = Key> + use<'a> {
    let port = |(op, _): &(Op, Owner)| match op {
        Op::Create(_, Object::WgDevice(new)) | Op::Replace { new: Object::WgDevice(new), .. } => Some(new.listen_port),
        _ => None,
    };
    let ports: BTreeSet<u16> = make.iter().filter_map(port).collect();
    gone.iter().filter_map(move |(key, entry)| match (key, &entry.object) {
        (Key::WgDevice { link }, Object::WgDevice(old)) if ports.contains(&old.listen_port) => {
            let link = Key::Link { ns: Netns::Host, link: link.clone() };
            gone.iter().any(|(key, _)| *key == link).then_some(link)
        }
        _ => None,
    })
}

/// WireGuard peers whose ranges another peer of the device gets give them up first, those that stay, too: the kernel takes a range
/// from whoever has it, and what the mirror says of that one would not be so.
fn ranges_first(
    make: &mut Vec<(Op, Owner)>,
    gone: &mut Vec<(Key, Entry)>,
    stay: Vec<(Key, Arc<WgPeer>, Owner)>,
) -> Vec<(Op, Owner)> {
    let mut gained: BTreeSet<(LinkName, IpNet)> = BTreeSet::new();
    for (op, _) in make.iter() {
        let (new, old) = match op {
            Op::Create(Key::WgPeer { .. }, Object::WgPeer(new)) => (new, None),
            Op::Replace { old: Object::WgPeer(old), new: Object::WgPeer(new), .. } => (new, Some(old)),
            _ => continue,
        };
        let Some(link) = op.key().link() else { continue };
        let is_new = |range: &&IpNet| old.is_none_or(|old| old.allowed.binary_search(range).is_err());
        gained.extend(new.allowed.iter().filter(is_new).map(|range| (link.clone(), *range)));
    }
    let loses = |key: &Key, peer: &WgPeer| -> Option<Object> {
        let is_lost = |range: &IpNet| key.link().is_some_and(|link| gained.contains(&(link.clone(), *range)));
        let kept: Arc<[IpNet]> = peer.allowed.iter().filter(|range| !is_lost(range)).copied().collect();
        (kept.len() < peer.allowed.len()).then(|| Object::WgPeer(WgPeer { allowed: kept, ..peer.clone() }.into()))
    };
    let mut first = Vec::new();
    make.retain_mut(|(op, owner)| {
        let Op::Replace { key, old, new } = op else { return true };
        let Object::WgPeer(peer) = &*old else { return true };
        let Some(kept) = loses(key, peer) else { return true };
        let old = std::mem::replace(old, kept.clone());
        first.push((Op::Replace { key: key.clone(), old, new: kept.clone() }, owner.clone()));
        *new != kept
    });
    gone.retain(|(key, entry)| match &entry.object {
        Object::WgPeer(peer) if loses(key, peer).is_some() => {
            first.push((Op::Delete(key.clone(), entry.object.clone()), entry.owner.clone()));
            false
        }
        _ => true,
    });
    first.extend(stay.into_iter().filter_map(|(key, peer, owner)| {
        let new = loses(&key, &peer)?;
        Some((Op::Replace { key, old: Object::WgPeer(peer), new }, owner))
    }));
    first
}

/// A set whose layout changed loses its elements, and goes only when no rule refers to it: its elements are put in
/// again, and the chains that look into it are written again.
fn remake_sets(wanted: &State, make: &mut Vec<(Op, Owner)>, gone: &mut Vec<(Key, Entry)>) {
    let remade: BTreeSet<Arc<str>> = make
        .iter()
        .filter_map(|(op, _)| match op {
            Op::Replace { key: Key::NftSet { set }, .. } => Some(set.clone()),
            _ => None,
        })
        .collect();
    if remade.is_empty() {
        return;
    }
    let in_remade = |key: &Key| matches!(key, Key::NftElement { set, .. } if remade.contains(set));
    gone.retain(|(key, _)| !in_remade(key));
    make.retain(|(op, _)| !in_remade(op.key()));
    let changed: BTreeSet<Key> = make.iter().map(|(op, _)| op.key().clone()).collect();
    for (key, Entry { object, owner }) in wanted.iter().filter(|(key, _)| !changed.contains(key)) {
        match object {
            Object::NftElement(_) | Object::NftVerdict(_) if in_remade(key) => {
                make.push((Op::Create(key.clone(), object.clone()), owner.clone()));
            }
            Object::NftChain(chain) if chain.rules.iter().any(|rule| remade.iter().any(|set| rule.looks_into(set))) => {
                let op = Op::Replace { key: key.clone(), old: object.clone(), new: object.clone() };
                make.push((op, owner.clone()));
            }
            _ => {}
        }
    }
    make.sort_by(|(a, _), (b, _)| a.key().cmp(b.key()));
}

/// A link that gets another MAC loses its neighbours, permanent ones too.
fn repeat_neighbours(mirror: &State, wanted: &State, make: &mut Vec<(Op, Owner)>) {
    let renamed: Vec<_> = make.iter().filter_map(|(op, _)| op.changes_mac()).collect();
    if renamed.is_empty() {
        return;
    }
    let lost: BTreeSet<Key> = renamed.iter().flat_map(|(ns, link)| mirror.neighbours_on(ns, link)).cloned().collect();
    make.retain(|(op, _)| !lost.contains(op.key()));
    let again = lost.iter().filter_map(|key| wanted.get(key).map(|entry| (key, entry)));
    make.extend(again.map(|(key, entry)| (Op::Create(key.clone(), entry.object.clone()), entry.owner.clone())));
    make.sort_by(|(a, _), (b, _)| a.key().cmp(b.key()));
}

/// When a link gets another MTU, the kernel changes that of IPv6 routes over it as it sees fit, and tells nobody.
fn repeat_mtus(mirror: &State, wanted: &State, make: &mut Vec<(Op, Owner)>) {
    let resized: BTreeSet<(Netns, LinkName)> =
        make.iter().filter_map(|(op, _)| op.changes_mtu()).map(|(ns, link)| (ns.clone(), link.clone())).collect();
    if resized.is_empty() {
        return;
    }
    let has_mtu = |key: &Key, object: &Object| match (key, object) {
        (Key::Route { dst, .. }, Object::Route(route)) => dst.addr().is_ipv6() && route.mtu.is_some(),
        _ => false,
    };
    for key in resized.iter().flat_map(|(ns, link)| mirror.routes_over(ns, link)) {
        // What changes anyway is written anyway.
        if let Some(Entry { object, owner }) = wanted.get(key).filter(|entry| mirror.holds(key, &entry.object))
            && has_mtu(key, object)
        {
            make.push((Op::Replace { key: key.clone(), old: object.clone(), new: object.clone() }, owner.clone()));
        }
    }
    make.sort_by(|(a, _), (b, _)| a.key().cmp(b.key()));
}

/// The links themselves, the far ends of veth pairs among them, and every entry of `state` that goes when they go.
pub fn hanging_on(state: &State, links: &BTreeSet<(Netns, LinkName)>) -> BTreeSet<Key> {
    let mut all = links.clone();
    for (ns, link) in links {
        if let Some(Entry { object: Object::Link(made), .. }) =
            state.get(&Key::Link { ns: ns.clone(), link: link.clone() })
            && let LinkKind::Veth { peer, peer_name } = &made.kind
        {
            all.insert((peer.clone(), peer_name.clone()));
        }
    }
    all.iter().flat_map(|(ns, link)| state.on_link(ns, link)).cloned().collect()
}

// === impl LinkKind ===

impl LinkKind {
    /// Whether the kernel can turn one into the other in place; if not, the device is made again.
    pub fn can_become(&self, other: &LinkKind) -> bool {
        match (self, other) {
            (LinkKind::Vxlan(old), LinkKind::Vxlan(new)) => {
                let same_family = old.local.is_ipv4() == new.local.is_ipv4();
                same_family && crate::VxlanParams { local: new.local, learning: new.learning, ..old.clone() } == *new
            }
            (old, new) => old == new,
        }
    }

    /// Whether the two cannot be there at the same time.
    ///
    /// Two VXLAN devices with one port and underlay family share a socket, so they must differ in their identifier and
    /// agree on the group policy extension. Of tunnels there is one an address. Two veth pairs cannot end under one name in one namespace.
    fn excludes(&self, other: &LinkKind) -> bool {
        match (self, other) {
            (LinkKind::Veth { peer: one, peer_name: a }, LinkKind::Veth { peer: two, peer_name: b }) => {
                one == two && a == b
            }
            (LinkKind::Vxlan(one), LinkKind::Vxlan(two)) => {
                let one_socket = one.port == two.port && one.local.is_ipv4() == two.local.is_ipv4();
                one_socket && (one.vni == two.vni || one.gbp != two.gbp)
            }
            (LinkKind::Ipip { .. }, LinkKind::Ipip { .. }) | (LinkKind::Sit { .. }, LinkKind::Sit { .. }) => {
                self == other
            }
            (LinkKind::Ip6Tnl, LinkKind::Ip6Tnl) => true,
            _ => false,
        }
    }
}

// === impl Op ===

impl Op {
    /// What the step is about.
    pub fn key(&self) -> &Key {
        match self {
            Op::Create(key, _) | Op::Delete(key, _) | Op::Replace { key, .. } => key,
        }
    }

    /// A route whose next hop the kernel looks up, so the route to that must be there first.
    fn needs_a_route(&self) -> bool {
        match self {
            Op::Create(_, Object::Route(route)) | Op::Replace { new: Object::Route(route), .. } => {
                route.via.is_some() && !route.onlink
            }
            _ => false,
        }
    }

    /// The kind of the link that comes by this step.
    fn makes_link(&self) -> Option<&LinkKind> {
        match self {
            Op::Create(_, Object::Link(link)) => Some(&link.kind),
            _ => None,
        }
    }

    /// The link that gets another MTU by this step.
    fn changes_mtu(&self) -> Option<(&Netns, &LinkName)> {
        match self {
            Op::Replace { key: Key::Link { ns, link }, old: Object::Link(old), new: Object::Link(new) } => {
                (old.mtu != new.mtu).then_some((ns, link))
            }
            _ => None,
        }
    }

    /// The state after this step, with what a deleted link takes with it.
    pub fn apply_to(&self, state: &mut State, owner: &Owner) {
        match self {
            Op::Replace { key: Key::NftSet { set }, new, .. } => {
                state.remove_elements(set);
                state.insert(Key::NftSet { set: set.clone() }, new.clone(), owner.clone());
            }
            Op::Create(key, object) | Op::Replace { key, new: object, .. } => {
                if let Some((ns, link)) = self.changes_mac() {
                    let lost: Vec<Key> = state.neighbours_on(ns, link).cloned().collect();
                    lost.iter().for_each(|key| drop(state.remove(key)));
                }
                state.insert(key.clone(), object.clone(), owner.clone());
            }
            Op::Delete(Key::Link { ns, link }, _) => {
                for key in hanging_on(state, &BTreeSet::from([(ns.clone(), link.clone())])) {
                    state.remove(&key);
                }
            }
            Op::Delete(key, _) => drop(state.remove(key)),
        }
    }

    /// The link that gets another MAC by this step.
    fn changes_mac(&self) -> Option<(&Netns, &LinkName)> {
        match self {
            Op::Replace { key: Key::Link { ns, link }, old: Object::Link(old), new: Object::Link(new) } => {
                (old.mac != new.mac).then_some((ns, link))
            }
            _ => None,
        }
    }
}

// === impl Change ===

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The state after the change, step by step.
    pub fn apply_to(&self, state: &mut State) {
        self.ops.iter().for_each(|(op, owner)| op.apply_to(state, owner));
    }
}
