//! World: everything a node knows, as one value. Planners read it; only the loop changes it.
//!
//! Invariants: a clone is a snapshot and costs nothing; a list removes what it did not name only when it is complete;
//! what cannot be read leaves what was known of it in place; what is recalled from an earlier life is known, and proves
//! no absence. No clock is read here: times are part of the events.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_netstate::{Key, LinkName, Owner, PodNetns, State};

use crate::host::Part;
use crate::object::{Kind, Object, ObjectId, Revision, StoreEvent};
use crate::unlisted::Unlisted;
use crate::{
    Advert, Attachment, Block, Clock, Condition, Config, Features, Flannel, Heard, Host, HostLink, Namespace, Node,
    NodeCondition, NodeNetwork, Pod, PolicyText, Pool, Reservation, Said, Trouble,
};

/// Which packets get to a peer by an instance of a fabric, by both names; what is not known is not there.
pub type Passes = BTreeMap<(Arc<str>, Arc<str>), Passing>;

/// Which packets get through, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Passing {
    /// None.
    Nothing,
    /// Those of so many bytes and less.
    UpTo(u32),
    /// All that may be sent.
    All,
}

/// What a node knows.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// This node's name.
    pub local: Arc<str>,
    pub features: Features,
    pub config: Arc<Config>,
    pub nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// By node name.
    pub adverts: OrdMap<Arc<str>, Heard>,
    pub pools: OrdMap<Arc<str>, Arc<Pool>>,
    pub reservations: OrdMap<Arc<str>, Arc<Reservation>>,
    /// Every node's claims, by range.
    pub blocks: OrdMap<IpNet, Arc<Block>>,
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// Every node's pods, by `NAMESPACE/NAME`.
    pub pods: OrdMap<Arc<str>, Arc<Pod>>,
    /// What Flannel's ConfigMaps say, by `NAMESPACE/NAME`.
    pub flannels: OrdMap<Arc<str>, Arc<Flannel>>,
    /// Policies of every kind.
    pub policies: OrdMap<ObjectId, Arc<PolicyText>>,
    /// This node's pods, by id.
    pub attachments: OrdMap<Arc<str>, Arc<Attachment>>,
    /// When an address of this node was last given back.
    pub released: OrdMap<IpAddr, Instant>,
    /// Addresses that the network before gave to containers of this node, which still have them.
    pub given: OrdMap<IpAddr, Arc<str>>,
    /// Links and addresses of the node that are not ours.
    pub host: Arc<Host>,
    /// What went from it a moment ago, and when.
    pub missed: OrdMap<Part, Instant>,
    /// What the kernel was last read or acknowledged to hold, and what it refused.
    pub programmed: Programmed,
    /// What time it is; nothing is due by a clock where nobody has looked at one.
    pub clock: Option<Clock>,
    /// Number of the cluster's secret, where this node has one.
    pub secret: Option<u32>,
    /// What the path self-test has found.
    pub passes: Arc<Passes>,
    /// The kernel held nothing of ours when it was read first: the node is new, or has booted.
    pub began_empty: bool,
    /// When a plan of this life was first applied.
    pub up_since: Option<Instant>,
    /// When this node's Node was first heard of, or another one of that name.
    pub node_since: Option<Instant>,
    /// Generation of the state that the kernel thread was given last; see [`Programmed::generation`].
    pub asked: u64,
    /// What the publisher was given last; none before the first word of this life.
    pub said: Option<Said>,
    /// What the store holds of this node's own conditions.
    pub conditions: Vec<NodeCondition>,
    /// What nodes say is wrong with them, for who is no node; nodes with nothing to say are not there.
    pub troubles: OrdMap<Arc<str>, Arc<[Trouble]>>,
    /// Objects that cannot be read, with why.
    pub invalid: OrdMap<ObjectId, Arc<Condition>>,
    /// What the store says of its sources, e.g. files, by source.
    pub notices: OrdMap<Arc<str>, Arc<[Condition]>>,
    /// Why the store cannot be reached, as a whole or for a kind.
    away: BTreeMap<Option<Kind>, Arc<str>>,
    /// Signs of life may have been missed, since the store was last away: no lease runs out before the next full list.
    pub leases_rest: bool,
    /// Revisions of the objects this node may write; of the others', too, while their kind is not synced.
    pub revisions: OrdMap<ObjectId, Revision>,
    /// Leases run from here on at the earliest: when it was last known that signs of life come in.
    pub leases_from: Option<Instant>,
    /// What the kernel held of ours before this life changed anything; forgotten once World is whole.
    pub inherited: State,
    /// What an earlier life knew, as it was; forgotten once World is whole.
    recalled: Option<Arc<World>>,
    /// Kinds of which a list has been complete.
    complete: BTreeSet<Kind>,
    synced: BTreeSet<Kind>,
    /// For each kind whose list is under way.
    unlisted: BTreeMap<Kind, Unlisted>,
    /// Nodes whose NodeNetwork is gone while their Node is there: what they said last goes with that.
    withdrawn: BTreeSet<Arc<str>>,
}

/// How far the kernel has come.
#[derive(Clone, Debug, Default)]
pub struct Programmed {
    /// The latest plan that is wholly applied, or has been tried.
    pub generation: u64,
    /// The latest plan whose pod-owned objects are applied, or have been tried.
    pub pods_generation: u64,
    /// Pods that have come further than that, by their ids: the latest plan whose objects of theirs are applied or tried.
    pub pods_ahead: BTreeMap<Arc<str>, u64>,
    /// The latest check of a pod that is done: it was read, and what was missing put back or tried.
    pub checked: u64,
    /// What the kernel holds of ours.
    pub mirror: State,
    pub failures: Arc<[Failed]>,
    /// Pods' namespaces that this agent cannot find, though its links lead there.
    pub hidden: BTreeSet<PodNetns>,
    /// Why a part of what the kernel holds cannot be read; none while all can.
    pub unknown: Option<Arc<str>>,
    /// Why what engines hold, or encrypting devices have, cannot be read; everything else goes on.
    pub left_out: Option<Arc<str>>,
    /// The first full read is behind us.
    pub read: bool,
}

/// An object that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub key: Key,
    pub owner: Owner,
    pub error: Arc<str>,
    pub why: Why,
}

/// Why something failed, as far as anything follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not done.
    Refused,
    /// The network namespace it should be in is gone.
    NetnsGone,
    /// The engine leaves it to the program that goes on in its place.
    EngineGivesWay,
}

// === impl World ===

impl World {
    /// A world that knows only its own name.
    pub fn new(local: Arc<str>, features: Features) -> World {
        World { local, features, ..World::default() }
    }

    /// This node's own Node object.
    pub fn local_node(&self) -> Option<&Arc<Node>> {
        self.nodes.get(&self.local)
    }

    /// The Flannel that is spoken in this cluster; none where it has none. Of two the first by name.
    pub fn flannel(&self) -> Option<&Arc<Flannel>> {
        self.flannels.values().next()
    }

    /// Bridges on which pods of the network before are: those that addresses given out by it are on. Further networks of pods
    /// (Multus) have bridges as well: theirs are no addresses that Pods have. What is among pods' links stays there, whatever
    /// becomes of ranges.
    pub fn bridges_from_before(&self) -> impl Iterator<Item = &HostLink> {
        let is_known = |link: &HostLink| {
            LinkName::new(&link.name).is_some_and(|link| self.programmed.mirror.get(&Key::PodBridge { link }).is_some())
        };
        let has_one = move |link: &&HostLink| {
            *link.kind == *"bridge" && {
                let known = is_known(link);
                self.given.keys().any(|address| link.is_on(*address) && (known || self.may_be_of_a_pod(*address)))
            }
        };
        self.host.links.iter().filter(has_one)
    }

    /// Whether it is in a range of which this node's pods have their addresses, now or before.
    fn may_be_of_a_pod(&self, address: IpAddr) -> bool {
        let own = self.local_node().into_iter().flat_map(|node| &node.pod_cidrs);
        let of_flannel = self.flannels.values().flat_map(|flannel| flannel.networks.iter().map(|(_, range)| range));
        let of_pools = self.pools.values().map(|pool| &pool.cidr);
        own.chain(of_flannel).chain(of_pools).any(|range| range.contains(&address))
    }

    /// Whether everything of the kind has been known once: a list was complete, and nothing in it stayed unread. Before,
    /// an absence proves nothing.
    pub fn is_synced(&self, kind: Kind) -> bool {
        self.synced.contains(&kind)
    }

    /// Whether all kinds that plans depend on are synced: an absence proves something.
    pub fn is_whole(&self) -> bool {
        Kind::planned(self.config.policy).all(|kind| self.is_synced(kind))
    }

    /// Whether everything is known, from the store or from an earlier life: enough to add and to keep.
    pub fn is_known(&self) -> bool {
        self.recalled.is_some() || self.is_whole()
    }

    /// What policy goes by; none before there is anything. Kinds are read one after the other: a policy of today with
    /// pods of yesterday could open what neither of the two days did. So until World is whole it is what an earlier life
    /// knew, as a whole, and this node's own pods.
    pub fn of_one_moment(&self) -> Option<Cow<'_, World>> {
        if self.is_whole() {
            return Some(Cow::Borrowed(self));
        }
        let recalled = self.recalled.as_ref()?;
        Some(Cow::Owned(World { attachments: self.attachments.clone(), ..World::clone(recalled) }))
    }

    /// Takes what an earlier life knew last. Nothing of it counts as synced, and nobody's lease runs out before the store
    /// has been heard.
    pub fn recall(&mut self, objects: Vec<(ObjectId, Object)>, at: Instant) {
        objects.into_iter().for_each(|(id, object)| self.put(id, object, at));
        self.recalled = Some(Arc::new(self.of_the_cluster()));
        self.leases_rest = true;
    }

    /// What a snapshot is made of: the objects, and nothing of this node's pods and kernel.
    pub fn of_the_cluster(&self) -> World {
        World {
            local: self.local.clone(),
            config: self.config.clone(),
            nodes: self.nodes.clone(),
            adverts: self.adverts.clone(),
            pools: self.pools.clone(),
            reservations: self.reservations.clone(),
            blocks: self.blocks.clone(),
            namespaces: self.namespaces.clone(),
            pods: self.pods.clone(),
            flannels: self.flannels.clone(),
            policies: self.policies.clone(),
            ..World::default()
        }
    }

    /// Whether this node, with this UID, has claimed just this range, as a block or as a part of somebody's block.
    pub fn is_claimed(&self, range: &IpNet, node: &str, uid: &str) -> bool {
        let mut covering = (0..=range.prefix_len()).filter_map(|prefix| {
            let wider = IpNet::new(range.addr(), prefix).expect("shorter than a prefix length that is one").trunc();
            self.blocks.get(&wider)
        });
        covering.any(|block| {
            let whole = block.cidr == *range && *block.node == *node && *block.node_uid == *uid;
            whole || block.parts.iter().any(|part| part.cidr == *range && part.holder.is(node, uid))
        })
    }

    /// When the lease of a node that was heard at `at` runs out, if nothing more is heard of it.
    pub fn lease_until(&self, at: Instant) -> Instant {
        self.leases_from.map_or(at, |from| from.max(at)) + self.config.lease
    }

    /// Why the store cannot be reached, or a part of it; none while all can.
    pub fn store_away(&self) -> Option<&Arc<str>> {
        self.away.values().next()
    }

    /// Takes what the store says, which came in at `at`.
    pub fn store(&mut self, event: StoreEvent, at: Instant) {
        match event {
            StoreEvent::Init(kind) => {
                self.is_back(kind);
                self.unlisted.insert(kind, Unlisted::of(self.names(kind)));
            }
            StoreEvent::Put(id, object, revision) => {
                self.listed(&id);
                self.forget_invalid(&id);
                if self.keeps_revision(&id) {
                    self.revisions.insert(id.clone(), revision);
                }
                let kind = id.kind;
                self.put(id, object, at);
                self.settle(kind);
            }
            StoreEvent::Delete(id) => {
                self.delete(&id);
                self.settle(id.kind);
            }
            StoreEvent::Synced(kind) => {
                self.is_back(kind);
                self.finish_list(kind, at);
                self.settle(kind);
            }
            StoreEvent::Invalid(id, condition) => {
                self.listed(&id);
                self.invalid.insert(id, condition.into());
            }
            StoreEvent::Notice(source, said) if said.is_empty() => drop(self.notices.remove(&source)),
            StoreEvent::Notice(source, said) => drop(self.notices.insert(source, said.into())),
            StoreEvent::Moment(events) => events.into_iter().for_each(|event| self.store(event, at)),
            StoreEvent::Away(kind, why) => {
                self.away.insert(kind, why.into());
                self.leases_rest |= kind.is_none_or(|kind| kind == Kind::NodeNetwork);
            }
        }
    }

    /// Takes what the kernel thread reports.
    pub fn programmed(&mut self, programmed: Programmed, host: Arc<Host>, now: Instant) {
        if !self.programmed.read && !self.is_whole() {
            self.inherited = programmed.mirror.clone();
        }
        if !self.programmed.read {
            self.began_empty = programmed.mirror.is_empty();
        }
        if programmed.generation > 0 {
            self.up_since.get_or_insert(now);
        }
        self.programmed = programmed;
        if *self.host != *host {
            self.missed = self.host.missed(&self.missed, &host, now);
            self.host = host;
        }
    }

    /// Whether all that the kernel thread was asked for is done, or has been tried.
    pub fn kernel_is_settled(&self) -> bool {
        self.programmed.read && self.programmed.generation >= self.asked
    }

    /// Notes what the publisher is given to tell the cluster.
    pub fn say(&mut self, advert: &Advert) {
        if self.said.as_ref().is_some_and(|said| said.last.edition == advert.edition) {
            return;
        }
        let advert = Arc::new(advert.clone());
        let heard = self.adverts.get(&self.local).map(|heard| Said::heard(heard.advert.clone()));
        self.said = Some(match self.said.take().or(heard) {
            Some(said) => said.and(advert),
            None => Said { always_sends: BTreeSet::new(), ..Said::heard(advert) },
        });
        self.hear_own();
    }

    /// Once the last word is heard back, no other is under way.
    fn hear_own(&mut self) {
        let heard = self.adverts.get(&self.local).map(|heard| &heard.advert);
        if let (Some(said), Some(heard)) = (&mut self.said, heard)
            && said.last.edition == heard.edition
        {
            *said = Said::heard(heard.clone());
        }
    }

    /// Adds or changes a pod of this node.
    pub fn attach(&mut self, attachment: Attachment) {
        for (_, address) in attachment.addresses.iter() {
            self.released.remove(address);
        }
        self.attachments.insert(attachment.id.clone(), Arc::new(attachment));
    }

    /// The runtime was told that a pod is attached.
    pub fn answered(&mut self, id: &str) {
        if let Some(attachment) = self.attachments.get(id) {
            let answered = Attachment { answered: true, ..(**attachment).clone() };
            self.attachments.insert(attachment.id.clone(), Arc::new(answered));
        }
    }

    /// Takes a pod of this node away; its addresses rest from `at` on.
    pub fn detach(&mut self, id: &str, at: Instant) {
        if let Some(attachment) = self.attachments.remove(id) {
            for (_, address) in attachment.addresses.iter() {
                self.released.insert(*address, at);
            }
        }
    }

    fn listed(&mut self, id: &ObjectId) {
        if let Some(names) = self.unlisted.get_mut(&id.kind) {
            names.listed(&id.name);
        }
    }

    fn put(&mut self, id: ObjectId, object: Object, at: Instant) {
        match object {
            Object::Node(node) => {
                if id.name == self.local && self.local_node().is_none_or(|known| known.uid != node.uid) {
                    self.node_since = Some(at);
                }
                put(&mut self.nodes, id.name, node);
            }
            Object::Config(config) if self.config != config => self.config = config,
            Object::Config(_) => {}
            Object::NodeNetwork(NodeNetwork { advert, conditions, .. }) => {
                self.withdrawn.remove(&id.name);
                if id.name == self.local {
                    self.conditions = conditions;
                } else if self.local.is_empty() {
                    self.hear_troubles(&id.name, &conditions, at);
                }
                let before = self.adverts.get(&id.name);
                if before.is_none_or(|heard| heard.advert != advert) {
                    let same_sends = before.filter(|heard| heard.advert.sends == advert.sends);
                    let sends_changed = same_sends.map_or(at, |heard| heard.sends_changed);
                    self.adverts.insert(id.name, Heard { advert, at, sends_changed });
                    self.hear_own();
                }
            }
            Object::Pool(pool) => put(&mut self.pools, id.name, pool),
            Object::Reservation(reservation) => put(&mut self.reservations, id.name, reservation),
            Object::Block(block) => put(&mut self.blocks, block.cidr, block),
            Object::Namespace(namespace) => put(&mut self.namespaces, id.name, namespace),
            Object::Pod(pod) => put(&mut self.pods, id.name, pod),
            Object::Flannel(flannel) => put(&mut self.flannels, id.name, flannel),
            Object::Policy(policy) => put(&mut self.policies, id, policy),
        }
    }

    fn hear_troubles(&mut self, node: &Arc<str>, said: &[NodeCondition], at: Instant) {
        let known = self.troubles.get(node).cloned().unwrap_or_default();
        let troubles = said.iter().filter(|it| it.is_trouble()).map(|it| {
            let known = known.iter().find(|known| *known.reason == *it.reason && *known.since == *it.since);
            let new = || Trouble { reason: it.reason.as_str().into(), since: it.since.as_str().into(), heard: at };
            known.cloned().unwrap_or_else(new)
        });
        let troubles: Arc<[Trouble]> = troubles.collect();
        match troubles.is_empty() {
            true => drop(self.troubles.remove(node)),
            false if troubles == known => {}
            false => drop(self.troubles.insert(node.clone(), troubles)),
        }
    }

    /// Removing what is not there would make another map of it, and who remembers the last one would look again.
    fn forget_invalid(&mut self, id: &ObjectId) {
        if self.invalid.contains_key(id) {
            self.invalid.remove(id);
        }
    }

    fn delete(&mut self, id: &ObjectId) {
        self.forget_invalid(id);
        self.revisions.remove(id);
        match id.kind {
            Kind::Node => {
                self.nodes.remove(&id.name);
                if self.withdrawn.remove(&id.name) {
                    self.forget_word(&id.name);
                }
            }
            // The last good configuration outlives its document: an accidental delete must not turn the network over.
            Kind::NetworkConfig => {}
            // A node that is there stays reachable as it was last, until it says otherwise or its Node is gone.
            Kind::NodeNetwork if self.nodes.contains_key(&id.name) => drop(self.withdrawn.insert(id.name.clone())),
            Kind::NodeNetwork => self.forget_word(&id.name),
            Kind::IpPool => drop(self.pools.remove(&id.name)),
            Kind::IpReservation => drop(self.reservations.remove(&id.name)),
            Kind::IpBlock => {
                let sought = || self.blocks.keys().find(|range| Block::name_of(range) == *id.name).copied();
                if let Some(range) = Block::range_of(&id.name).or_else(sought) {
                    self.blocks.remove(&range);
                }
            }
            Kind::Namespace => drop(self.namespaces.remove(&id.name)),
            Kind::Pod => drop(self.pods.remove(&id.name)),
            Kind::ConfigMap => drop(self.flannels.remove(&id.name)),
            Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy => drop(self.policies.remove(id)),
        }
    }

    fn forget_word(&mut self, node: &Arc<str>) {
        self.adverts.remove(node);
        self.troubles.remove(node);
    }

    /// The first list counts once all that it named has been read: a node that starts must not plan the network as if
    /// an object with a typo were not there. Later ones need not wait, because what was known before stays. Nor does any
    /// wait for another node's word: what one node says of itself keeps no other from starting.
    fn settle(&mut self, kind: Kind) {
        let waits_for = |id: &ObjectId| id.kind == kind && (kind != Kind::NodeNetwork || id.name == self.local);
        let unread = self.invalid.keys().any(|id| waits_for(id) && !self.revisions.contains_key(id));
        if self.complete.contains(&kind) && !unread && self.synced.insert(kind) {
            let others: Vec<ObjectId> = self.revisions.keys().filter(|id| !self.keeps_revision(id)).cloned().collect();
            for id in &others {
                self.revisions.remove(id);
            }
        }
        // Not only a list makes it so: with `policy: off` fewer kinds are waited for.
        if (self.recalled.is_some() || !self.inherited.is_empty()) && self.is_whole() {
            (self.recalled, self.inherited) = (None, State::new());
        }
    }

    /// Of objects that this node never writes, and there may be very many, revisions only tell which have been read.
    fn keeps_revision(&self, id: &ObjectId) -> bool {
        match id.kind {
            Kind::NetworkConfig | Kind::IpPool | Kind::IpReservation | Kind::IpBlock => true,
            // Who is no node, as the operator, clears up behind all of them.
            Kind::NodeNetwork if id.name == self.local || self.local.is_empty() => true,
            kind => !self.is_synced(kind),
        }
    }

    fn is_back(&mut self, kind: Kind) {
        self.away.retain(|away, _| away.is_some_and(|away| away != kind));
    }

    fn finish_list(&mut self, kind: Kind, at: Instant) {
        self.complete.insert(kind);
        if kind == Kind::NodeNetwork {
            // While the store was away nobody could give a sign of life; leases start anew.
            self.leases_rest = false;
            self.leases_from = Some(at);
        }
        for name in self.unlisted.remove(&kind).into_iter().flat_map(Unlisted::rest) {
            self.delete(&ObjectId { kind, name });
        }
    }

    fn names(&self, kind: Kind) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = match kind {
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::NetworkConfig => Vec::new(),
            Kind::NodeNetwork => self.adverts.keys().cloned().collect(),
            Kind::IpPool => self.pools.keys().cloned().collect(),
            Kind::IpReservation => self.reservations.keys().cloned().collect(),
            Kind::IpBlock => self.blocks.keys().map(|range| Block::name_of(range).into()).collect(),
            Kind::Namespace => self.namespaces.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::ConfigMap => self.flannels.keys().cloned().collect(),
            Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy => {
                self.policies.keys().filter(|id| id.kind == kind).map(|id| id.name.clone()).collect()
            }
        };
        names.extend(self.invalid.keys().filter(|id| id.kind == kind).map(|id| id.name.clone()));
        names
    }
}

/// Inserts unless the very same is there, so that an unchanged object stays shared and planners see no change.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut OrdMap<K, Arc<V>>, key: K, value: Arc<V>) {
    if map.get(&key).is_none_or(|there| **there != *value) {
        map.insert(key, value);
    }
}
