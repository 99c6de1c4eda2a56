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

use crate::nft::SetName;
use crate::{Entry, Key, LinkKind, LinkName, Netns, Object, Owner, State, beyond};

/// One step. It shares its key and entries with the states it leads from and to: there may be tens of thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// See [`Op::Create`].
    Create(Arc<Key>, Arc<Entry>),
    /// See [`Op::Replace`].
    Replace { key: Arc<Key>, old: Arc<Entry>, new: Arc<Entry> },
    /// See [`Op::Delete`].
    Delete(Arc<Key>, Arc<Entry>),
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Nothing is there, and something must be. Fails if somebody else's object is there.
    Create(&'a Key, &'a Object),
    /// Ours is there and must become another.
    Replace { key: &'a Key, old: &'a Object, new: &'a Object },
    /// Ours is there and must go. To find it gone already is success.
    Delete(&'a Key, &'a Object),
}

/// An ordered difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Steps in order.
    pub steps: Vec<Step>,
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
            DiffItem::Add(key, new) => make.push(Step::Create(key.clone(), new.clone())),
            DiffItem::Update { old: (_, old), new: (key, new) } if old.object != new.object => {
                make.push(Step::Replace { key: key.clone(), old: old.clone(), new: new.clone() });
            }
            DiffItem::Update { .. } => {}
            DiffItem::Remove(key, old) if may_delete(key) => gone.push(Step::Delete(key.clone(), old.clone())),
            DiffItem::Remove(key, old) if old.object.allowed().is_some() => {
                stay.push(Step::Delete(key.clone(), old.clone()));
            }
            DiffItem::Remove(..) => {}
        }
    }
    let mut first = ranges_first(&mut make, &mut gone, stay);
    first.extend(links_first(mirror, wanted, &mut make, &mut gone));
    repeat_neighbours(mirror, wanted, &mut make);
    repeat_mtus(mirror, wanted, &mut make);
    remake_sets(wanted, &mut make, &mut gone);
    // To sort takes a second list, and there may be tens of thousands of steps.
    if !make.is_sorted_by_key(Step::needs_a_route) {
        make.sort_by_key(Step::needs_a_route);
    }
    let leaving = gone.iter().filter_map(|step| step.key().as_link()).collect();
    let along = hanging_on(mirror, &leaving);
    gone.retain(|step| *step.key().netns() == Netns::Host || !along.contains(step.key()));
    let mut steps = if first.is_empty() { make } else { first.into_iter().chain(make).collect() };
    steps.extend(gone.into_iter().rev());
    Change { steps }
}

/// Links that go first: those whose fixed parameters changed, and those that stand in the way of new ones. Whatever
/// hung on them and is still wanted, perhaps on another link of the same name, is made again.
fn links_first(mirror: &State, wanted: &State, make: &mut Vec<Step>, gone: &mut Vec<Step>) -> Vec<Step> {
    let remade = make.iter().filter_map(|step| match step.op() {
        Op::Replace { key, old: Object::Link(old), new: Object::Link(new) } => {
            (!old.kind.can_become(&new.kind)).then(|| key.clone())
        }
        _ => None,
    });
    let coming: Vec<LinkKind> = make.iter().filter_map(|step| step.makes_link().cloned()).collect();
    let in_the_way = gone.iter().filter(|step| match step.op() {
        Op::Delete(_, Object::Link(link)) => coming.iter().any(|new| link.kind.excludes(new)),
        _ => false,
    });
    let in_the_way = in_the_way.map(|step| step.key().clone()).chain(at_ports_of_others(make, gone));
    let leaving: BTreeSet<Key> = remade.chain(in_the_way).collect();
    if leaving.is_empty() {
        return Vec::new();
    }
    gone.retain(|step| !leaving.contains(step.key()));
    make_again(hanging_on(mirror, &leaving.iter().filter_map(Key::as_link).collect()), wanted, make);
    let delete = |key: Key| {
        let (key, old) = mirror.get_shared(&key)?;
        let owner = &wanted.get(key).unwrap_or(old).owner;
        Some(Step::delete(key.clone(), old.object.clone(), owner.clone()))
    };
    leaving.into_iter().filter_map(delete).collect()
}

/// What is lost on the way and still wanted is made as if it had not been there.
fn make_again(lost: BTreeSet<Key>, wanted: &State, make: &mut Vec<Step>) {
    make.retain(|step| !lost.contains(step.key()));
    let again = lost.iter().filter_map(|key| wanted.get_shared(key));
    make.extend(again.map(|(key, entry)| Step::Create(key.clone(), entry.clone())));
    make.sort_by(|a, b| a.key().cmp(b.key()));
}

/// WireGuard devices that go and have a port that another one gets.
fn at_ports_of_others<'a>(make: &[Step], gone: &'a [Step]) -> impl Iterator<Item = Key> + use<'a> {
    let port = |step: &Step| match step.op() {
        Op::Create(_, Object::WgDevice(new)) | Op::Replace { new: Object::WgDevice(new), .. } => Some(new.listen_port),
        _ => None,
    };
    let ports: BTreeSet<u16> = make.iter().filter_map(port).collect();
    gone.iter().filter_map(move |step| match step.op() {
        Op::Delete(Key::WgDevice { link }, Object::WgDevice(old)) if ports.contains(&old.listen_port) => {
            let link = Key::Link { ns: Netns::Host, link: link.clone() };
            gone.iter().any(|step| *step.key() == link).then_some(link)
        }
        _ => None,
    })
}

/// Peers of encrypting devices whose ranges another peer of the device gets give them up first, those that stay, too: the kernel takes a range
/// from whoever has it, and what the mirror says of that one would not be so.
fn ranges_first(make: &mut Vec<Step>, gone: &mut Vec<Step>, stay: Vec<Step>) -> Vec<Step> {
    let mut gained: BTreeSet<(LinkName, IpNet)> = BTreeSet::new();
    for step in make.iter() {
        let (old, new) = step.op().sides();
        let [old, new] = [old, new].map(|side| side.and_then(Object::allowed));
        let (Some(link), Some(new)) = (step.key().link(), new) else { continue };
        gained.extend(beyond(new, old.unwrap_or_default()).map(|range| (link.clone(), *range)));
    }
    let keeps = |key: &Key, old: &Entry| -> Option<Arc<Entry>> {
        let allowed = old.object.allowed()?;
        let is_lost = |range: &IpNet| key.link().is_some_and(|link| gained.contains(&(link.clone(), *range)));
        let kept: Arc<[IpNet]> = allowed.iter().filter(|range| !is_lost(range)).copied().collect();
        let lost = kept.len() < allowed.len();
        lost.then(|| Entry { object: old.object.allowing(kept), owner: old.owner.clone() }.into())
    };
    let mut first = Vec::new();
    make.retain_mut(|step| {
        let Step::Replace { key, old, new } = step else { return true };
        let Some(kept) = keeps(key, old) else { return true };
        let more = new.object != kept.object;
        first.push(Step::Replace { key: key.clone(), old: std::mem::replace(old, kept.clone()), new: kept });
        more
    });
    first.extend(gone.extract_if(.., |step| matches!(step, Step::Delete(key, old) if keeps(key, old).is_some())));
    first.extend(stay.into_iter().filter_map(|step| match step {
        Step::Delete(key, old) => keeps(&key, &old).map(|new| Step::Replace { key, old, new }),
        _ => None,
    }));
    first
}

/// A set whose layout changed loses its elements, and goes only when no rule refers to it: its elements are put in
/// again, and the chains that look into it are written again.
fn remake_sets(wanted: &State, make: &mut Vec<Step>, gone: &mut Vec<Step>) {
    let remade: BTreeSet<SetName> = make
        .iter()
        .filter_map(|step| match step.op() {
            Op::Replace { key: Key::NftSet { set }, .. } => Some(*set),
            _ => None,
        })
        .collect();
    if remade.is_empty() {
        return;
    }
    let in_remade = |key: &Key| matches!(key, Key::NftElement { set, .. } if remade.contains(set));
    gone.retain(|step| !in_remade(step.key()));
    make.retain(|step| !in_remade(step.key()));
    let changed: BTreeSet<Key> = make.iter().map(|step| step.key().clone()).collect();
    for (key, entry) in wanted.iter_shared().filter(|(key, _)| !changed.contains(&***key)) {
        match &entry.object {
            Object::NftElement(_) | Object::NftVerdict(_) if in_remade(key) => {
                make.push(Step::Create(key.clone(), entry.clone()));
            }
            Object::NftChain(chain) if chain.rules.iter().any(|rule| remade.iter().any(|set| rule.looks_into(set))) => {
                make.push(Step::again(key, entry));
            }
            _ => {}
        }
    }
    make.sort_by(|a, b| a.key().cmp(b.key()));
}

/// A link that gets another MAC loses its neighbours, permanent ones too.
fn repeat_neighbours(mirror: &State, wanted: &State, make: &mut Vec<Step>) {
    let renamed: Vec<_> = make.iter().filter_map(|step| step.op().changes_mac()).collect();
    if renamed.is_empty() {
        return;
    }
    let lost = renamed.iter().flat_map(|(ns, link)| mirror.neighbours_on(ns, link)).cloned().collect();
    make_again(lost, wanted, make);
}

/// When a link gets another MTU, the kernel changes that of IPv6 routes over it as it sees fit, and tells nobody.
fn repeat_mtus(mirror: &State, wanted: &State, make: &mut Vec<Step>) {
    let resized = make.iter().filter_map(|step| step.op().changes_mtu());
    let resized: BTreeSet<(Netns, LinkName)> = resized.map(|(ns, link)| (ns.clone(), link.clone())).collect();
    if resized.is_empty() {
        return;
    }
    let has_mtu = |key: &Key, object: &Object| match (key, object) {
        (Key::Route { dst, .. }, Object::Route(route)) => dst.addr().is_ipv6() && route.mtu.is_some(),
        _ => false,
    };
    for key in resized.iter().flat_map(|(ns, link)| mirror.routes_over(ns, link)) {
        // What changes anyway is written anyway.
        if let Some((key, entry)) = wanted.get_shared(key).filter(|(_, entry)| mirror.holds(key, &entry.object))
            && has_mtu(key, &entry.object)
        {
            make.push(Step::again(key, entry));
        }
    }
    make.sort_by(|a, b| a.key().cmp(b.key()));
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

// === impl Step ===

impl Step {
    /// See [`Op::Create`].
    pub fn create(key: impl Into<Arc<Key>>, new: Object, owner: Owner) -> Step {
        Step::Create(key.into(), Entry { object: new, owner }.into())
    }

    /// See [`Op::Replace`].
    pub fn replace(key: impl Into<Arc<Key>>, old: Object, new: Object, owner: Owner) -> Step {
        let [old, new] = [old, new].map(|object| Entry { object, owner: owner.clone() }.into());
        Step::Replace { key: key.into(), old, new }
    }

    /// See [`Op::Delete`].
    pub fn delete(key: impl Into<Arc<Key>>, old: Object, owner: Owner) -> Step {
        Step::Delete(key.into(), Entry { object: old, owner }.into())
    }

    /// Writes what is there once more.
    fn again(key: &Arc<Key>, entry: &Arc<Entry>) -> Step {
        Step::Replace { key: key.clone(), old: entry.clone(), new: entry.clone() }
    }

    /// What it does.
    pub fn op(&self) -> Op<'_> {
        match self {
            Step::Create(key, new) => Op::Create(key, &new.object),
            Step::Replace { key, old, new } => Op::Replace { key, old: &old.object, new: &new.object },
            Step::Delete(key, old) => Op::Delete(key, &old.object),
        }
    }

    /// What it is about.
    pub fn key(&self) -> &Key {
        self.op().key()
    }

    /// Whose object that is.
    pub fn owner(&self) -> &Owner {
        match self {
            Step::Create(_, entry) | Step::Replace { new: entry, .. } | Step::Delete(_, entry) => &entry.owner,
        }
    }

    /// Whether what it changes is as it was found, and was never as somebody wanted it.
    pub fn changes_what_was_found(&self) -> bool {
        matches!(self, Step::Replace { old, .. } if old.owner == Owner::Read)
    }

    /// Whether it takes something away.
    pub fn deletes(&self) -> bool {
        matches!(self, Step::Delete(..))
    }

    /// A route whose next hop the kernel looks up, so the route to that must be there first.
    fn needs_a_route(&self) -> bool {
        match self.op() {
            Op::Create(_, Object::Route(route)) | Op::Replace { new: Object::Route(route), .. } => {
                route.via.is_some() && !route.onlink
            }
            _ => false,
        }
    }

    /// The kind of the link that comes by this step.
    fn makes_link(&self) -> Option<&LinkKind> {
        match self.op() {
            Op::Create(_, Object::Link(link)) => Some(&link.kind),
            _ => None,
        }
    }

    /// The state after this step, with what a deleted link takes with it.
    pub fn apply_to(&self, state: &mut State) {
        if let Some((ns, link)) = self.op().changes_mac() {
            let lost: Vec<Key> = state.neighbours_on(ns, link).cloned().collect();
            lost.iter().for_each(|key| drop(state.remove(key)));
        }
        match self {
            Step::Create(key, new) | Step::Replace { key, new, .. } => {
                if let Op::Replace { key: Key::NftSet { set }, .. } = self.op() {
                    state.remove_elements(set);
                }
                state.share(key.clone(), new.clone());
            }
            Step::Delete(key, _) => match key.as_link() {
                Some(link) => hanging_on(state, &BTreeSet::from([link])).iter().for_each(|key| drop(state.remove(key))),
                None => drop(state.remove(key)),
            },
        }
    }
}

// === impl Op ===

impl<'a> Op<'a> {
    /// What it is about.
    pub fn key(self) -> &'a Key {
        match self {
            Op::Create(key, _) | Op::Replace { key, .. } | Op::Delete(key, _) => key,
        }
    }

    /// What is there, and what must be.
    pub fn sides(self) -> (Option<&'a Object>, Option<&'a Object>) {
        match self {
            Op::Create(_, new) => (None, Some(new)),
            Op::Replace { old, new, .. } => (Some(old), Some(new)),
            Op::Delete(_, old) => (Some(old), None),
        }
    }

    /// The link that gets another MTU.
    fn changes_mtu(self) -> Option<(&'a Netns, &'a LinkName)> {
        match self {
            Op::Replace { key: Key::Link { ns, link }, old: Object::Link(old), new: Object::Link(new) } => {
                (old.mtu != new.mtu).then_some((ns, link))
            }
            _ => None,
        }
    }

    /// The link that gets another MAC.
    fn changes_mac(self) -> Option<(&'a Netns, &'a LinkName)> {
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
        self.steps.is_empty()
    }

    /// The state after the change, step by step.
    pub fn apply_to(&self, state: &mut State) {
        self.steps.iter().for_each(|step| step.apply_to(state));
    }
}
