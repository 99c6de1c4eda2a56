//! What pods of this node add: their links and addresses, and which policy set is theirs.
//!
//! Pods of the network before are on its bridge: that is their link. No rule can tell its ports apart, so that these pods
//! could still send in each other's names, though in nobody else's.
//!
//! Invariant: a pod that has no set adds nothing, so that nothing passes to it or from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tartan_model::{Attachment, Family, HostLink, Pod, World};
use tartan_netstate::nft::{ElementData, Fields};
use tartan_netstate::policy::leads_to;
use tartan_netstate::{Key, LinkName, Object, Owner, Part, State};
use tartan_policy::verdicts::Tables;

use super::Seen;
use super::maps::{BRIDGES, SELF, SOURCES, SUBJECTS};
use crate::nftables::named;
use crate::pod::host_link;

/// A pod of the network before, as its address tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromBefore {
    pub address: IpAddr,
    /// The bridge that it is on.
    pub bridge: LinkName,
    /// `NAMESPACE/NAME`; none where no Pod of this node has the address, or several have.
    pub pod: Option<Arc<str>>,
}

/// Pods that the API server says are on this node: of all there are, what differs is looked at.
#[derive(Default)]
pub(super) struct Here {
    local: Arc<str>,
    seen: OrdMap<Arc<str>, Arc<Pod>>,
    pods: BTreeMap<Arc<str>, Arc<Pod>>,
}

// === impl Here ===

impl Here {
    /// Says whether they are others than before.
    pub(super) fn learn(&mut self, world: &World) -> bool {
        if self.local != world.local {
            *self = Here { local: world.local.clone(), ..Here::default() };
        }
        let Here { seen, pods, .. } = self;
        let mut are_others = false;
        for item in seen.diff(&world.pods) {
            let (key, pod): (&Arc<str>, Option<&Arc<Pod>>) = match item {
                DiffItem::Add(key, pod) | DiffItem::Update { new: (key, pod), .. } => (key, Some(pod)),
                DiffItem::Remove(key, _) => (key, None),
            };
            are_others |= match pod.filter(|pod| is_here(world, pod)) {
                Some(pod) => pods.insert(key.clone(), pod.clone()).as_ref() != Some(pod),
                None => pods.remove(key).is_some(),
            };
        }
        *seen = world.pods.clone();
        are_others
    }
}

/// Pods of the network before that this node has, by address; `here`: who they may be.
pub(super) fn from_before(world: &World, here: &Here, bridges: &[HostLink]) -> Vec<FromBefore> {
    if bridges.is_empty() {
        return Vec::new();
    }
    let mut owners: BTreeMap<IpAddr, Option<&Arc<str>>> = BTreeMap::new();
    for (key, pod) in &here.pods {
        for address in &pod.addresses {
            owners.entry(*address).and_modify(|owner| *owner = None).or_insert(Some(key));
        }
    }
    let ours: BTreeSet<IpAddr> =
        world.attachments.values().flat_map(|it| it.addresses.iter().map(|(_, ip)| *ip)).collect();
    let theirs = world.given.keys().filter(|address| !ours.contains(address));
    let found = theirs.filter_map(|address| {
        let bridge = LinkName::new(&bridges.iter().find(|bridge| bridge.is_on(*address))?.name)?;
        Some(FromBefore { address: *address, bridge, pod: owners.get(address).copied().flatten().cloned() })
    });
    found.collect()
}

/// The same by a look at all Pods of the cluster: for who asks once.
pub fn all_from_before(world: &World) -> Vec<FromBefore> {
    let (mut here, bridges) = (Here::default(), bridges(world));
    here.learn(world);
    from_before(world, &here, &bridges)
}

pub(super) fn bridges(world: &World) -> Vec<HostLink> {
    world.bridges_from_before().cloned().collect()
}

fn is_here(world: &World, pod: &Pod) -> bool {
    pod.node == world.local && !pod.host_network && !pod.finished
}

/// Whether the elements of a set or map are pods'.
pub fn is_of_pods(set: &str) -> bool {
    let of_pods = |stem: &str| set.strip_prefix(stem).is_some_and(|rest| matches!(rest, "4" | "6"));
    [SUBJECTS, SOURCES, SELF].into_iter().any(of_pods)
}

/// Whether this state has a set for it: then packets from and to it are judged, and else dropped.
pub fn is_judged(state: &State, attachment: &Attachment) -> bool {
    of_attachment(attachment, 0, false).all(|(key, _)| state.get(&key).is_some())
}

/// The same of a pod of the network before, whose link is its bridge.
pub fn is_judged_on_its_bridge(state: &State, pod: &FromBefore) -> bool {
    let link = || pod.bridge.clone();
    let own = elements(link(), pod.address, 0, false).map(|(key, _)| key);
    own.chain([Key::PodBridge { link: link() }]).all(|key| state.get(&key).is_some())
}

/// All elements that may be its.
pub fn keys(attachment: &Attachment) -> impl Iterator<Item = Key> {
    of_attachment(attachment, 0, true).map(|(key, _)| key)
}

/// All elements that pods of the network before may have.
pub fn keys_from_before(world: &World) -> impl Iterator<Item = Key> {
    let all = from_before(world, &Here::default(), &bridges(world)).into_iter();
    all.flat_map(|it| elements(it.bridge, it.address, 0, true)).map(|(key, _)| key)
}

/// What it adds; none without a set.
pub(super) fn part(attachment: &Attachment, seen: &Seen) -> Option<Part> {
    let set = *seen.tables.subjects.get(&*attachment.pod())?;
    Some(Part::of(&Owner::Pod(attachment.id.clone()), of_attachment(attachment, set, seen.ipvs).collect()))
}

/// What pods of the network before add.
pub(super) fn part_from_before(seen: &Seen) -> Part {
    let bridge = |bridge: &LinkName| {
        let pair = Fields::new().ifname(bridge.as_str()).ifname(bridge.as_str()).key();
        (Key::NftElement { set: BRIDGES.into(), key: pair }, Object::NftElement(ElementData::default()))
    };
    let judged = |it: &FromBefore| Some((it.bridge.clone(), it.address, set_of(it, &seen.tables)?));
    let pods = seen.from_before.iter().filter_map(judged);
    let pods = pods.flat_map(|(link, address, set)| elements(link, address, set, seen.ipvs));
    Part::of(&Owner::Policy, pods.chain(seen.from_before.iter().map(|it| bridge(&it.bridge))).collect())
}

/// None for one that no policy can be found for, so that nothing passes to it or from it.
pub fn set_of(pod: &FromBefore, tables: &Tables) -> Option<u32> {
    tables.subjects.get(&**pod.pod.as_ref()?).copied()
}

fn of_attachment(attachment: &Attachment, set: u32, ipvs: bool) -> impl Iterator<Item = (Key, Object)> {
    let link = host_link(&attachment.id);
    attachment.addresses.iter().flat_map(move |(_, address)| elements(link.clone(), *address, set, ipvs))
}

fn elements(link: LinkName, address: IpAddr, set: u32, ipvs: bool) -> impl Iterator<Item = (Key, Object)> {
    let element = |stem: &str, fields: Fields, object: Object| {
        (Key::NftElement { set: named(stem, Family::of(address)).into(), key: fields.key() }, object)
    };
    let nothing = || Object::NftElement(ElementData::default());
    let ends = |link: &str| Fields::new().ifname(link).addr(address);
    let own = [
        element(SUBJECTS, ends(link.as_str()), leads_to(set)),
        element(SOURCES, ends(link.as_str()), nothing()),
        element(SELF, Fields::new().addr(address).addr(address), nothing()),
    ];
    // What IPVS passes on has come by no link; that its source is its own was seen when it came from the pod.
    let passed_on = [element(SUBJECTS, ends(""), leads_to(set)), element(SOURCES, ends(""), nothing())];
    own.into_iter().chain(passed_on.into_iter().filter(move |_| ipvs))
}

/// Attachments whose part may differ.
pub(super) fn changed(before: &Seen, after: &Seen) -> BTreeSet<Arc<str>> {
    if before.ipvs != after.ipvs {
        return before.attachments.keys().chain(after.attachments.keys()).cloned().collect();
    }
    let mut ids: BTreeSet<Arc<str>> = BTreeSet::new();
    for item in before.attachments.diff(&after.attachments) {
        let (DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _)) = item;
        ids.insert(id.clone());
    }
    let pods: BTreeSet<&str> = before.tables.subjects.diff(&after.tables.subjects).map(|item| pod(&item)).collect();
    if !pods.is_empty() {
        let theirs = after.attachments.iter().filter(|(_, it)| pods.contains(&*it.pod()));
        ids.extend(theirs.map(|(id, _)| id.clone()));
    }
    ids
}

fn pod<'a>(item: &DiffItem<'a, 'a, Arc<str>, u32>) -> &'a str {
    match item {
        DiffItem::Add(pod, _) | DiffItem::Update { new: (pod, _), .. } | DiffItem::Remove(pod, _) => pod,
    }
}
