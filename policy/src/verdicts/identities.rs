//! Identities: what of an address policy looks at, interned, and the number of each address and range.
//!
//! An identity is an end's traits, cut down to what any rule mentions, and the [zone](super::zones) of its address: by these two
//! every rule treats all its addresses alike. Addresses of known pods and nodes are listed one by one; any other is in the
//! smallest listed range around it, and is outside the cluster or an unknown pod's.
//!
//! Invariant: the maps are a function of World and of what is mentioned, whatever came before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use tartan_api::flannel::MANAGED;
use tartan_model::{Attachment, Block, Family, Heard, Labels, Namespace, Node, Pod, Pool, World};

use super::known::{Addresses, Claimant, Claimants};
use super::mentions::{Mentions, Ranges};
use super::numbers::Numbers;
use crate::ir::Entity;
use crate::traits::{Traits, Workload, protocol_number};

/// Stands for every identity that has no row of its own.
pub const ANY: u32 = 0;
/// Numbers below are reserved: what has no traits but its entity has the same number on every node.
const FIRST_FREE: u32 = 16;
/// Numbers above are a datapath's own, for what stands between two identities while one goes over to the other.
const LAST: u32 = u32::MAX >> 1;

/// What of an end policy looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub traits: Traits,
    /// The first range of the zone that its addresses are in; none where no rule's ranges hold them.
    pub zone: Option<IpNet>,
}

/// See the module.
pub(super) struct Identities {
    numbers: Numbers<Identity>,
    /// Identities of addresses and ranges that are there.
    live: OrdMap<u32, Arc<Identity>>,
    uses: BTreeMap<u32, usize>,
    /// Pods of this node, by the addresses that they were given here: nobody else's word counts against that.
    attached: BTreeMap<IpAddr, Arc<str>>,
    addresses: Addresses,
    ranges: BTreeMap<IpNet, u32>,
    /// Ranges that only pods have addresses of.
    pools: Ranges,
    /// Those of them that are claims whose pool is gone: a claim outlives it; all others are inside theirs.
    orphans: BTreeSet<IpNet>,
    /// By name, the ports that live identities call so, and how many of them do.
    named: BTreeMap<Arc<str>, BTreeMap<(u8, u16), usize>>,
    changed: BTreeSet<u32>,
    seen: Seen,
}

/// What an update has changed.
#[derive(Default)]
pub(super) struct Changed {
    /// Identities that came or went.
    pub(super) identities: BTreeSet<u32>,
    /// Addresses that have another one, or none.
    pub(super) addresses: Vec<IpAddr>,
    /// Some ranges have another one, or came or went.
    pub(super) ranges: bool,
}

#[derive(Default)]
struct Seen {
    local: Arc<str>,
    pods: OrdMap<Arc<str>, Arc<Pod>>,
    namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    adverts: OrdMap<Arc<str>, Heard>,
    pools: OrdMap<Arc<str>, Arc<Pool>>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    attachments: OrdMap<Arc<str>, Arc<Attachment>>,
}

/// What is on the way: addresses and ranges whose identity may differ now.
#[derive(Default)]
struct Dirty {
    /// Some more than once: there may be tens of thousands.
    addresses: Vec<IpAddr>,
    ranges: BTreeSet<IpNet>,
    /// Pods of this node: theirs are also the addresses that they were given here.
    local: BTreeSet<Arc<str>>,
}

/// The number of an identity of which nothing is known but its entity.
pub fn reserved(entity: Entity) -> Option<u32> {
    match entity {
        Entity::Pod => None,
        Entity::Host => Some(1),
        Entity::RemoteNode => Some(2),
        Entity::World => Some(3),
        Entity::ApiServer => Some(4),
        Entity::Health => Some(5),
        Entity::UnknownPod => Some(6),
        Entity::Disputed => Some(7),
    }
}

/// A pod as policy sees it; none where its namespace is not known.
pub(crate) fn workload(world: &World, key: &str, pod: &Pod) -> Option<Workload> {
    let (namespace, _) = key.split_once('/')?;
    let namespace = world.namespaces.get(namespace)?;
    Some(Workload {
        namespace: namespace.name.clone(),
        namespace_labels: namespace.labels.clone(),
        labels: pod.labels.clone(),
        service_account: pod.service_account.clone(),
        ports: pod.ports.iter().map(|port| (port.name.clone(), protocol_number(port.protocol), port.port)).collect(),
    })
}

/// Whether policy sees the pod as one: the node's own are the node, and one that has ended has no address any more.
pub(crate) fn is_workload(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

pub(crate) fn pod_addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    pod.addresses.iter().copied().filter(|_| is_workload(pod))
}

/// All addresses that mean the node.
pub(crate) fn node_addresses(
    name: &str,
    nodes: &OrdMap<Arc<str>, Arc<Node>>,
    adverts: &OrdMap<Arc<str>, Heard>,
) -> BTreeSet<IpAddr> {
    let node = nodes.get(name);
    let listed = node.into_iter().flat_map(|node| node.internal_ips.iter().chain(&node.external_ips)).copied();
    // Without its Node, an advert is what a node that is gone said last.
    let advert = adverts.get(name).filter(|_| node.is_some());
    let told = advert.into_iter().flat_map(|heard| {
        heard.advert.addresses.iter().chain(heard.advert.fabric_addresses.iter()).map(|(_, address)| *address)
    });
    // A node of Flannel's tells nobody, and has the first address of its subnet.
    let is_flannels = |node: &&Arc<Node>| node.annotations.contains_key(MANAGED);
    let firsts = node.filter(is_flannels).into_iter().flat_map(|node| node.pod_cidrs.iter().map(IpNet::network));
    listed.chain(told).chain(firsts).collect()
}

// === impl Changed ===

impl Changed {
    /// What changed later, too.
    pub(super) fn extend(&mut self, later: Changed) {
        self.identities.extend(later.identities);
        self.addresses.extend(later.addresses);
        self.ranges |= later.ranges;
    }
}

// === impl Dirty ===

impl Dirty {
    fn pods<'a>(&mut self, world: &World, pods: impl IntoIterator<Item = (&'a Arc<str>, &'a Arc<Pod>)>) {
        for (key, pod) in pods {
            self.addresses.extend(pod_addresses(pod));
            if pod.node == world.local {
                self.local.insert(key.clone());
            }
        }
    }
}

// === impl Identities ===

impl Identities {
    pub(super) fn new() -> Identities {
        Identities {
            numbers: Numbers::new(FIRST_FREE, LAST),
            live: OrdMap::new(),
            uses: BTreeMap::new(),
            attached: BTreeMap::new(),
            addresses: Addresses::default(),
            ranges: BTreeMap::new(),
            pools: Ranges::default(),
            orphans: BTreeSet::new(),
            named: BTreeMap::new(),
            changed: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    pub(super) fn held(&mut self, held: &BTreeSet<u32>) {
        self.numbers.held(held);
    }

    pub(super) fn live(&self) -> &OrdMap<u32, Arc<Identity>> {
        &self.live
    }

    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub(super) fn ranges(&self) -> &BTreeMap<IpNet, u32> {
        &self.ranges
    }

    /// The ports that any end calls so.
    pub(super) fn ports_named(&self, name: &str) -> impl Iterator<Item = (u8, u16)> {
        self.named.get(name).into_iter().flatten().map(|(port, _)| *port)
    }

    /// Brings everything up to date.
    pub(super) fn update(&mut self, world: &World, mentions: &Mentions) -> Changed {
        let mut dirty = Dirty::default();
        self.changed_pools(world, &mut dirty);
        self.changed_pods(world, &mut dirty);
        self.changed_nodes(world, &mut dirty);
        changed_mentions(world, mentions, &mut dirty);
        self.changed_attachments(world, &mut dirty);
        for range in mentions.zones.changed() {
            dirty.addresses.extend(self.addresses.between(range.network(), range.broadcast()));
            dirty.ranges.insert(*range);
            dirty.ranges.extend(self.ranges_in(range));
        }
        if self.ranges.is_empty() {
            dirty.ranges.extend(Family::ALL.map(Family::everything));
        }
        let mut changed = Changed::default();
        dirty.addresses.sort_unstable();
        dirty.addresses.dedup();
        let mut addresses = std::mem::take(&mut self.addresses);
        for address in dirty.addresses {
            let [before, now] = addresses.revise(address, |claimants| {
                let identity = self.identity_of(world, mentions, address, claimants);
                identity.map(|identity| self.begin(identity))
            });
            before.into_iter().for_each(|number| self.end(number));
            changed.addresses.extend((before != now).then_some(address));
        }
        addresses.pack();
        self.addresses = addresses;
        for range in dirty.ranges {
            let identity = self.identity_around(mentions, &range);
            let number = identity.map(|identity| self.begin(identity));
            let before = match number {
                Some(number) => self.ranges.insert(range, number),
                None => self.ranges.remove(&range),
            };
            before.into_iter().for_each(|number| self.end(number));
            changed.ranges |= before != number;
        }
        self.seen = Seen {
            local: world.local.clone(),
            pods: world.pods.clone(),
            namespaces: world.namespaces.clone(),
            nodes: world.nodes.clone(),
            adverts: world.adverts.clone(),
            pools: world.pools.clone(),
            blocks: world.blocks.clone(),
            attachments: world.attachments.clone(),
        };
        changed.identities = std::mem::take(&mut self.changed);
        changed
    }

    fn changed_pods(&mut self, world: &World, dirty: &mut Dirty) {
        let seen = std::mem::take(&mut self.seen.pods);
        for item in seen.diff(&world.pods) {
            let (key, before, after) = match item {
                DiffItem::Add(key, after) => (key, None, Some(after)),
                DiffItem::Update { old: (_, before), new: (key, after) } => (key, Some(before), Some(after)),
                DiffItem::Remove(key, before) => (key, Some(before), None),
            };
            for address in before.into_iter().flat_map(|pod| pod_addresses(pod)) {
                self.addresses.disclaim(&address, &Claimant::Pod(key.clone()));
            }
            for address in after.into_iter().flat_map(|pod| pod_addresses(pod)) {
                self.addresses.claim(address, Claimant::Pod(key.clone()));
            }
            dirty.pods(world, before.into_iter().chain(after).map(|pod| (key, pod)));
        }
        let namespaces = std::mem::take(&mut self.seen.namespaces);
        for item in namespaces.diff(&world.namespaces) {
            let (DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _)) = item;
            dirty.pods(world, pods_of(world, name));
        }
    }

    fn changed_attachments(&mut self, world: &World, dirty: &mut Dirty) {
        let seen = std::mem::take(&mut self.seen.attachments);
        let mut changed: Vec<(&Arc<Attachment>, bool)> = seen.diff(&world.attachments).flat_map(old_and_new).collect();
        // An address may have gone from one to another of them: who has it now counts.
        changed.sort_by_key(|(_, add)| *add);
        for (it, add) in changed {
            for (_, address) in it.addresses.iter() {
                match add {
                    true => drop(self.attached.insert(*address, it.pod().into())),
                    false => drop(self.attached.remove(address)),
                }
                dirty.addresses.push(*address);
            }
        }
        let of_these = self.attached.iter().filter(|(_, key)| dirty.local.contains(*key));
        dirty.addresses.extend(of_these.map(|(address, _)| *address));
    }

    fn changed_nodes(&mut self, world: &World, dirty: &mut Dirty) {
        let (nodes, adverts) = (std::mem::take(&mut self.seen.nodes), std::mem::take(&mut self.seen.adverts));
        let mut names = BTreeSet::new();
        for item in nodes.diff(&world.nodes) {
            let (DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _)) = item;
            names.insert(name);
        }
        for item in adverts.diff(&world.adverts) {
            let (DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _)) = item;
            names.insert(name);
        }
        if self.seen.local != world.local {
            names.extend([&self.seen.local, &world.local]);
        }
        for name in names {
            let before = node_addresses(name, &nodes, &adverts);
            let after = node_addresses(name, &world.nodes, &world.adverts);
            for address in before.difference(&after) {
                self.addresses.disclaim(address, &Claimant::Node(name.clone()));
            }
            for address in after.difference(&before) {
                self.addresses.claim(*address, Claimant::Node(name.clone()));
            }
            let relabelled = nodes.get(name).map(|node| &node.labels) != world.nodes.get(name).map(|node| &node.labels);
            if relabelled || self.seen.local != world.local {
                dirty.addresses.extend(before.union(&after));
            } else {
                dirty.addresses.extend(before.symmetric_difference(&after));
            }
        }
    }

    fn changed_pools(&mut self, world: &World, dirty: &mut Dirty) {
        let (pools, nodes) = (std::mem::take(&mut self.seen.pools), &self.seen.nodes);
        for (pool, add) in pools.diff(&world.pools).flat_map(old_and_new) {
            self.pools.count(&pool.cidr, add);
        }
        for (node, add) in nodes.diff(&world.nodes).flat_map(old_and_new) {
            node.pod_cidrs.iter().for_each(|range| self.pools.count(range, add));
        }
        if !pools.ptr_eq(&world.pools) || !self.seen.blocks.ptr_eq(&world.blocks) {
            let is_orphan = |block: &Block| !world.pools.contains_key(&block.pool);
            let orphans = world.blocks.iter().filter(|(_, block)| is_orphan(block)).map(|(range, _)| *range).collect();
            for range in self.orphans.symmetric_difference(&orphans) {
                self.pools.count(range, orphans.contains(range));
            }
            self.orphans = orphans;
        }
        // Addresses in them are whose they are.
        let changed = self.pools.take_changed();
        if !self.ranges.is_empty() {
            dirty.ranges.extend(changed.iter().flat_map(|range| self.ranges_in(range)));
        }
        dirty.ranges.extend(changed);
    }

    /// Every range inside this one, itself too.
    fn ranges_in(&self, range: &IpNet) -> impl Iterator<Item = IpNet> {
        let whole = |address: IpAddr, length: u8| IpNet::new(address, length).expect("a length of its family");
        let first = whole(range.network(), range.prefix_len());
        let last = whole(range.broadcast(), range.max_prefix_len());
        self.ranges.range(first..=last).map(|(range, _)| *range)
    }

    /// None where nobody known has the address.
    fn identity_of(
        &self,
        world: &World,
        mentions: &Mentions,
        address: IpAddr,
        claimants: &Claimants,
    ) -> Option<Identity> {
        let pod = |key: &str| match mentioned_workload(world, mentions, key) {
            Some(workload) => Traits { workload: Some(workload), ..Traits::of(Entity::Pod) },
            None => Traits::of(Entity::UnknownPod),
        };
        let traits = match (self.attached.get(&address), claimants) {
            (Some(key), _) => pod(key),
            (None, Claimants::Nobody) => return None,
            // One of them is late, or wrong: it is not known whose it is.
            (None, Claimants::Several(all)) => {
                let may_be_a_node = all.iter().any(|claimant| matches!(claimant, Claimant::Node(_)));
                Traits::of(if may_be_a_node { Entity::Disputed } else { Entity::UnknownPod })
            }
            (None, Claimants::One(Claimant::Pod(key))) => pod(key),
            (None, Claimants::One(Claimant::Node(name))) => {
                let entity = if *name == world.local { Entity::Host } else { Entity::RemoteNode };
                let labels = world.nodes.get(name).map(|node| {
                    let known = node.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                    known.filter(|(key, _)| mentions.node_labels.contains(*key)).collect::<Labels>()
                });
                Traits { node_labels: labels.unwrap_or_default(), ..Traits::of(entity) }
            }
        };
        Some(Identity { traits, zone: mentions.zones.around(&IpNet::from(address)) })
    }

    /// Of addresses that are in no smaller range; none where the range need not be listed.
    fn identity_around(&self, mentions: &Mentions, range: &IpNet) -> Option<Identity> {
        let is_pool = self.pools.contains(range);
        if range.prefix_len() > 0 && !is_pool && !mentions.zones.contains(range) {
            return None;
        }
        let in_pool = is_pool || self.pools.smallest_around(range).is_some();
        let entity = if in_pool { Entity::UnknownPod } else { Entity::World };
        Some(Identity { traits: Traits::of(entity), zone: mentions.zones.around(range) })
    }

    fn begin(&mut self, identity: Identity) -> u32 {
        let plain = identity.zone.is_none() && identity.traits == Traits::of(identity.traits.entity);
        let number = reserved(identity.traits.entity).filter(|_| plain);
        let number = number.unwrap_or_else(|| self.numbers.take(identity.clone()));
        let uses = self.uses.entry(number).or_insert(0);
        *uses += 1;
        if *uses == 1 {
            self.count_ports(&identity, true);
            self.live.insert(number, Arc::new(identity));
            self.changed.insert(number);
        }
        number
    }

    fn end(&mut self, number: u32) {
        let uses = self.uses.get_mut(&number).expect("what ends has begun");
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(&number);
            if let Some(identity) = self.live.remove(&number) {
                self.count_ports(&identity, false);
            }
            self.numbers.give_back(number);
            self.changed.insert(number);
        }
    }

    fn count_ports(&mut self, identity: &Identity, add: bool) {
        for (name, protocol, port) in identity.traits.workload.iter().flat_map(|workload| &workload.ports) {
            let ports = self.named.entry(name.clone()).or_default();
            let count = ports.entry((*protocol, *port)).or_insert(0);
            *count = if add { *count + 1 } else { *count - 1 };
            if *count == 0 {
                ports.remove(&(*protocol, *port));
            }
            if ports.is_empty() {
                self.named.remove(name);
            }
        }
    }
}

/// A workload as far as any rule looks at it.
fn mentioned_workload(world: &World, mentions: &Mentions, key: &str) -> Option<Workload> {
    let pod = world.pods.get(key).filter(|pod| is_workload(pod))?;
    let (name, _) = key.split_once('/')?;
    let namespace = world.namespaces.get(name)?;
    let if_mentioned = |is: bool, name: &Arc<str>| if is { name.clone() } else { Arc::default() };
    let ports = pod.ports.iter().filter(|port| mentions.port_names.contains(&port.name));
    Some(Workload {
        namespace: if_mentioned(mentions.namespaces.contains(&namespace.name), &namespace.name),
        namespace_labels: namespace.labels.only(|label| mentions.namespace_labels.contains(label)),
        labels: pod.labels.only(|label| mentions.labels.contains(label)),
        service_account: if_mentioned(mentions.service_accounts.contains(&pod.service_account), &pod.service_account),
        ports: ports.map(|port| (port.name.clone(), protocol_number(port.protocol), port.port)).collect(),
    })
}

/// Whose traits may differ because rules look at something more or less.
fn changed_mentions(world: &World, mentions: &Mentions, dirty: &mut Dirty) {
    for name in mentions.namespaces.changed() {
        dirty.pods(world, pods_of(world, name));
    }
    let labels = mentions.namespace_labels.changed();
    if !labels.is_empty() {
        let affected = world.namespaces.iter().filter(|(_, it)| it.labels.iter().any(|(key, _)| labels.contains(key)));
        affected.for_each(|(name, _)| dirty.pods(world, pods_of(world, name)));
    }
    let (labels, accounts) = (mentions.labels.changed(), mentions.service_accounts.changed());
    let names = mentions.port_names.changed();
    if !(labels.is_empty() && accounts.is_empty() && names.is_empty()) {
        dirty.pods(
            world,
            world.pods.iter().filter(|(_, pod)| {
                pod.labels.iter().any(|(key, _)| labels.contains(key))
                    || accounts.contains(&pod.service_account)
                    || pod.ports.iter().any(|port| names.contains(&port.name))
            }),
        );
    }
    let labels = mentions.node_labels.changed();
    if !labels.is_empty() {
        let affected =
            world.nodes.iter().filter(|(_, node)| node.labels.keys().any(|key| labels.contains(key.as_str())));
        affected.for_each(|(name, _)| dirty.addresses.extend(node_addresses(name, &world.nodes, &world.adverts)));
    }
}

/// What went, and what came.
fn old_and_new<'a, K, V>(item: DiffItem<'a, 'a, K, V>) -> impl Iterator<Item = (&'a V, bool)> {
    let (before, after) = match item {
        DiffItem::Add(_, after) => (None, Some(after)),
        DiffItem::Update { old: (_, before), new: (_, after) } => (Some(before), Some(after)),
        DiffItem::Remove(_, before) => (Some(before), None),
    };
    before.map(|it| (it, false)).into_iter().chain(after.map(|it| (it, true)))
}

/// The pods of a namespace.
pub(super) fn pods_of<'a>(world: &'a World, namespace: &str) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Pod>)> {
    // `0` is what comes after `/`.
    let (first, last): (Arc<str>, Arc<str>) = (format!("{namespace}/").into(), format!("{namespace}0").into());
    world.pods.range(first..last)
}
