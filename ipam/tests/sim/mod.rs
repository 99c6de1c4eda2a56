//! Two nodes and a store, in which every message may be late.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proptest::sample::Index;
use tartan_ipam::{Claim, Fence, Memo, Out, Request};
use tartan_model::{
    Advert, Attachment, Block, Family, Features, Holder, Kind, Node, Object, ObjectId, PerFamily, Pool, Revision,
    Selector, StoreEvent, World,
};
use tartan_netstate::{Mac, PodNetns};

const NAMES: [&str; 2] = ["n1", "n2"];

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A pod comes to the node.
    Attach(usize),
    /// Pods come to the node until it refuses one.
    Fill(usize),
    /// A pod that asks for this address of the pool.
    AttachAs(usize, u8),
    Detach(usize, Index),
    DetachAll(usize),
    /// The node hears of so many changes in the store.
    Hear(usize, usize),
    /// The node plans; its writes are under way from then on.
    Plan(usize),
    /// The oldest write of the node reaches the store.
    Write(usize),
    /// So many seconds pass.
    Wait(u64),
    /// The agent is killed and starts again from its journal; what it was writing is lost, or is not.
    Crash(usize, bool),
    /// The same while the node cannot reach the store: it goes on from its snapshot until it hears.
    Reboot(usize, bool),
    /// The snapshot that the node wants to be on its disk gets there,
    Save(usize),
    /// and the node learns of it.
    Saved(usize),
    /// Nothing of the node is late.
    Settle(usize),
    /// The pool is enabled or disabled.
    Enable(bool),
}

/// All that is.
pub(crate) struct Cluster {
    store: BTreeMap<ObjectId, (Object, Revision)>,
    log: Vec<StoreEvent>,
    writes: u64,
    nodes: Vec<Member>,
    pool: Pool,
    now: Instant,
    pods: u64,
    /// When addresses were given back, wherever.
    released: BTreeMap<IpAddr, Instant>,
}

struct Member {
    world: World,
    memo: Memo,
    /// How much of the log it has heard.
    heard: usize,
    under_way: Vec<Write>,
    disk: Disk,
    fence: Fence,
    /// It has not read the store in this life.
    away: bool,
}

/// A node's snapshots.
#[derive(Clone, Default)]
struct Disk {
    there: Vec<(ObjectId, Object)>,
    /// On its way there, with its number.
    next: Option<(u64, Vec<(ObjectId, Object)>)>,
    /// The last one that got there, of which the node has not learnt.
    saved: Option<u64>,
    numbers: u64,
}

enum Write {
    Claim(Claim),
    Advert(Advert),
}

// === impl Cluster ===

impl Cluster {
    /// Two nodes with podCIDRs of IPv6, and an IPv4 pool of these prefix lengths.
    pub(crate) fn new(pool: u8, block: u8) -> Cluster {
        let pool = Pool {
            name: "p".into(),
            cidr: IpNet::new(IpAddr::from([10, 0, 0, 0]), pool).expect("tests write good values"),
            block_size: block,
            nodes: Selector::all(),
            namespaces: Selector::all(),
            disabled: false,
            encapsulation: None,
        };
        let mut cluster = Cluster {
            store: BTreeMap::new(),
            log: Vec::new(),
            writes: 0,
            nodes: Vec::new(),
            pool: pool.clone(),
            now: Instant::now() + Duration::from_secs(1000),
            pods: 0,
            released: BTreeMap::new(),
        };
        for (i, name) in NAMES.iter().enumerate() {
            let node = Node {
                name: (*name).into(),
                uid: format!("uid-{name}").into(),
                internal_ips: Vec::new(),
                external_ips: Vec::new(),
                pod_cidrs: vec![format!("fd00:{i}::/64").parse().expect("tests write good values")],
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                placement: Default::default(),
            };
            cluster.write(id(Kind::Node, name), Some(Object::Node(node.into())));
        }
        cluster.write(id(Kind::IpPool, "p"), Some(Object::Pool(pool.into())));
        cluster.nodes = (0..NAMES.len()).map(|node| cluster.start(node, true)).collect();
        cluster
    }

    pub(crate) fn step(&mut self, op: &Op) {
        let anything = Request { namespace: "ns", ..Request::default() };
        match op {
            Op::Attach(node) => drop(self.attach(*node, &anything)),
            Op::Fill(node) => {
                // Bounded: while the pool is disabled pods have IPv6 alone, and of that there is no end.
                let _count = (0..80).take_while(|_| self.attach(*node, &anything)).count();
            }
            Op::AttachAs(node, host) => {
                let address = IpAddr::from([10, 0, 0, *host]);
                let addresses = PerFamily { v4: Some(address), v6: None };
                let _whether = self.attach(*node, &Request { namespace: "ns", addresses, ..Request::default() });
            }
            Op::Detach(node, which) => {
                let ids: Vec<Arc<str>> = self.nodes[*node].world.attachments.keys().cloned().collect();
                if !ids.is_empty() {
                    self.detach(*node, &ids[which.index(ids.len())]);
                }
            }
            Op::DetachAll(node) => {
                let ids: Vec<Arc<str>> = self.nodes[*node].world.attachments.keys().cloned().collect();
                ids.iter().for_each(|id| self.detach(*node, id));
            }
            Op::Hear(node, events) => self.hear(*node, *events),
            Op::Plan(node) => self.plan(*node),
            Op::Write(node) => self.carry_out(*node),
            Op::Wait(secs) => self.now += Duration::from_secs(*secs),
            Op::Crash(node, lose_writes) => self.restart(*node, *lose_writes, true),
            Op::Reboot(node, lose_writes) => self.restart(*node, *lose_writes, false),
            Op::Save(node) => self.nodes[*node].disk.save(),
            Op::Saved(node) => self.nodes[*node].learn(),
            Op::Settle(node) => drop(self.settle_one(*node)),
            Op::Enable(enabled) => {
                let pool = Pool { disabled: !enabled, ..self.pool.clone() };
                self.write(id(Kind::IpPool, "p"), Some(Object::Pool(pool.into())));
            }
        }
    }

    /// What must hold at every moment.
    pub(crate) fn check(&self) {
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (node, member) in self.nodes.iter().enumerate() {
            for pod in member.world.attachments.values() {
                for (_, address) in pod.addresses.iter() {
                    let other = seen.insert(*address, NAMES[node]);
                    assert_eq!(other, None, "{address} is on {} twice or on two nodes\n{self}", NAMES[node]);
                    assert!(self.owns(node, *address), "{address} of {} is in no range of its\n{self}", NAMES[node]);
                }
            }
        }
    }

    /// Takes all pods away and waits: each node keeps one block at most, and every address but the nodes' own is free,
    /// offered, or nobody's.
    pub(crate) fn drain(&mut self) {
        self.step(&Op::Enable(true));
        for node in 0..NAMES.len() {
            self.step(&Op::DetachAll(node));
        }
        for _ in 0..4 {
            self.now += Duration::from_secs(60);
            self.settle();
        }
        let blocks: Vec<&Block> = self.store.values().filter_map(|(object, _)| block(object)).collect();
        for name in NAMES {
            let blocks = blocks.iter().filter(|block| *block.node == *name).count();
            assert!(blocks <= 1, "{name} keeps {blocks} blocks\n{self}");
        }
        let own: Vec<IpAddr> = self.store.values().filter_map(|(object, _)| own_address(object)).collect();
        if size(&self.pool.cidr) >> (32 - self.pool.block_size) >= NAMES.len() {
            let parts = blocks.iter().flat_map(|block| &block.parts);
            for part in parts.filter(|part| part.holder != Holder::Offered) {
                let kept = own.iter().any(|own| part.cidr.contains(own));
                assert!(kept, "{} is kept away from its owner without need\n{self}", part.cidr);
            }
        }
        let offered = blocks.iter().flat_map(|block| &block.parts).filter(|part| part.holder == Holder::Offered);
        let offered: usize = offered.map(|part| size(&part.cidr)).sum();
        let claimed: usize = blocks.iter().map(|block| size(&block.cidr)).sum();
        let free: usize = (0..NAMES.len()).map(|node| self.free(node)).sum();
        assert_eq!(free + NAMES.len() + offered, claimed, "addresses have leaked\n{self}");
    }

    /// Until nothing is late and nobody wants to write.
    pub(crate) fn settle(&mut self) {
        for _ in 0..60 {
            let busy: Vec<bool> = (0..NAMES.len()).map(|node| self.settle_one(node)).collect();
            if !busy.contains(&true) {
                return;
            }
        }
        panic!("the nodes write for ever\n{self}");
    }

    /// Addresses of the pool that this node could give out now, one after another.
    pub(crate) fn free(&self, node: usize) -> usize {
        let mut world = self.nodes[node].world.clone();
        let (mut memo, mut free) = (Memo::default(), 0);
        while let Ok(addresses) = tartan_ipam::allocate(&mut memo, &world, &Request::default(), self.now) {
            free += 1;
            world.attach(pod(&format!("free{free}"), addresses));
        }
        free
    }

    pub(crate) fn pods(&self, node: usize) -> usize {
        self.nodes[node].world.attachments.len()
    }

    /// Whether the pod got its addresses.
    fn attach(&mut self, node: usize, request: &Request<'_>) -> bool {
        let now = self.now;
        let Member { memo, world, .. } = &mut self.nodes[node];
        let answer = tartan_ipam::allocate(memo, world, request, now);
        let anew = tartan_ipam::allocate(&mut Memo::default(), world, request, now);
        assert_eq!(format!("{answer:?}"), format!("{anew:?}"), "the memo makes a difference");
        let Ok(addresses) = answer else { return false };
        let own = tartan_ipam::plan(&mut Memo::default(), &self.nodes[node].world, now).fabric_addresses;
        for (family, address) in addresses.iter() {
            assert_ne!(own.get(family), Some(address), "a pod was given the node's own address");
            let rested = self.released.get(address).is_none_or(|at| *at + Duration::from_secs(30) <= now);
            assert!(rested || request.addresses.get(family).is_some(), "{address} has not rested\n{self}");
            self.released.remove(address);
        }
        self.pods += 1;
        let id = format!("pod{}", self.pods);
        self.nodes[node].world.attach(pod(&id, addresses));
        true
    }

    fn detach(&mut self, node: usize, id: &str) {
        let now = self.now;
        let world = &mut self.nodes[node].world;
        self.released.extend(world.attachments[id].addresses.iter().map(|(_, address)| (*address, now)));
        world.detach(id, now);
    }

    fn restart(&mut self, node: usize, lose_writes: bool, reaches_the_store: bool) {
        let restarted = self.start(node, reaches_the_store);
        let under_way = std::mem::replace(&mut self.nodes[node], restarted).under_way;
        if !lose_writes {
            self.nodes[node].under_way = under_way;
        }
    }

    /// A new life of an agent: the journal, its snapshot, and, if it reaches the store, a list of what that has now.
    fn start(&self, node: usize, reaches_the_store: bool) -> Member {
        let mut world = World::new(NAMES[node].into(), Features { ipv6: true, ..Features::default() });
        let mut disk = Disk::default();
        if let Some(before) = self.nodes.get(node) {
            before.world.attachments.values().for_each(|pod| world.attach((**pod).clone()));
            world.released = before.world.released.clone();
            disk = Disk { next: None, saved: None, ..before.disk.clone() };
            world.recall(disk.there.clone(), self.now);
        }
        let gives = tartan_ipam::plan(&mut Memo::default(), &world, self.now).gives.clone();
        let (memo, under_way, fence) = (Memo::default(), Vec::new(), Fence::of(gives));
        let mut member = Member { world, memo, heard: 0, under_way, disk, fence, away: true };
        if reaches_the_store {
            self.list(&mut member);
        }
        member
    }

    fn list(&self, member: &mut Member) {
        for kind in Kind::ALL {
            member.world.store(StoreEvent::Init(kind), self.now);
            for (id, (object, revision)) in self.store.iter().filter(|(id, _)| id.kind == kind) {
                member.world.store(StoreEvent::Put(id.clone(), object.clone(), revision.clone()), self.now);
            }
            member.world.store(StoreEvent::Synced(kind), self.now);
        }
        (member.heard, member.away) = (self.log.len(), false);
    }

    fn hear(&mut self, node: usize, events: usize) {
        if self.nodes[node].away {
            let mut member = self.nodes.remove(node);
            self.list(&mut member);
            self.nodes.insert(node, member);
            return;
        }
        let member = &mut self.nodes[node];
        let until = member.heard.saturating_add(events).min(self.log.len());
        for event in &self.log[member.heard..until] {
            member.world.store(event.clone(), self.now);
        }
        member.heard = until;
    }

    fn plan(&mut self, node: usize) {
        let now = self.now;
        let member = &mut self.nodes[node];
        let out: Out = tartan_ipam::plan(&mut member.memo, &member.world, now).clone();
        assert_eq!(out, *tartan_ipam::plan(&mut Memo::default(), &member.world, now), "the memo makes a difference");
        if !member.world.is_whole() {
            return;
        }
        member.disk.want(&member.world);
        member.fence.handed(member.disk.numbers, &out.gives);
        if !member.fence.permits(&out.gives) {
            return;
        }
        let advert = advert(NAMES[node], &out);
        let said = member.world.adverts.get(NAMES[node]).map(|heard| &*heard.advert);
        member.under_way.extend((said != Some(&advert)).then_some(Write::Advert(advert)));
        member.under_way.extend(out.claims.into_iter().map(Write::Claim));
    }

    fn carry_out(&mut self, node: usize) {
        if self.nodes[node].under_way.is_empty() {
            return;
        }
        match self.nodes[node].under_way.remove(0) {
            Write::Advert(advert) => self.write(id(Kind::NodeNetwork, NAMES[node]), Some(Object::from(advert))),
            Write::Claim(claim) => {
                let there = self.store.get(&claim.id).map(|(_, revision)| revision);
                if there == claim.expect.as_ref() {
                    self.write(claim.id, claim.object);
                }
            }
        }
    }

    /// Whether the node wrote something.
    fn settle_one(&mut self, node: usize) -> bool {
        let before = self.writes;
        self.hear(node, usize::MAX);
        while !self.nodes[node].under_way.is_empty() {
            self.carry_out(node);
        }
        self.hear(node, usize::MAX);
        self.plan(node);
        self.nodes[node].disk.save();
        self.nodes[node].learn();
        self.plan(node);
        while !self.nodes[node].under_way.is_empty() {
            self.carry_out(node);
        }
        self.hear(node, usize::MAX);
        self.writes != before
    }

    fn write(&mut self, id: ObjectId, object: Option<Object>) {
        self.writes += 1;
        let revision = Revision::from(u128::from(self.writes));
        self.log.push(match &object {
            Some(object) => StoreEvent::Put(id.clone(), object.clone(), revision.clone()),
            None => StoreEvent::Delete(id.clone()),
        });
        match object {
            Some(object) => drop(self.store.insert(id, (object, revision))),
            None => drop(self.store.remove(&id)),
        }
    }

    /// Whether the store says so, whatever the node believes.
    fn owns(&self, node: usize, address: IpAddr) -> bool {
        if Family::of(address) == Family::V6 {
            return format!("fd00:{node}::/64").parse::<IpNet>().expect("tests write good values").contains(&address);
        }
        let mut blocks = self.store.values().filter_map(|(object, _)| block(object));
        blocks.any(|block| block.cidr.contains(&address) && holder_of(block, address) == Some(NAMES[node]))
    }
}

// === impl Member ===

impl Member {
    fn learn(&mut self) {
        if let Some(number) = self.disk.saved.take() {
            self.fence.saved(number);
        }
    }
}

// === impl Disk ===

impl Disk {
    fn want(&mut self, world: &World) {
        self.numbers += 1;
        let nodes = world.nodes.values().map(|it| (id(Kind::Node, &it.name), Object::Node((**it).clone().into())));
        let pools = world.pools.values().map(|it| (id(Kind::IpPool, &it.name), Object::Pool((**it).clone().into())));
        let adverts =
            world.adverts.iter().map(|(name, it)| (id(Kind::NodeNetwork, name), Object::from((*it.advert).clone())));
        let blocks = world
            .blocks
            .values()
            .map(|it| (id(Kind::IpBlock, &Block::name_of(&it.cidr)), Object::Block((**it).clone().into())));
        self.next = Some((self.numbers, nodes.chain(pools).chain(adverts).chain(blocks).collect()));
    }

    fn save(&mut self) {
        if let Some((number, objects)) = self.next.take() {
            (self.there, self.saved) = (objects, Some(number));
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (object, revision) in self.store.values() {
            if let Object::Block(block) = object {
                writeln!(f, "store: {} of {} at {}: {:?}", block.cidr, block.node, revision, block.parts)?;
            }
        }
        for (name, member) in NAMES.iter().zip(&self.nodes) {
            let addresses: Vec<_> = member.world.attachments.values().map(|pod| pod.addresses.v4).collect();
            writeln!(f, "{name}: pods {addresses:?}, late by {}", self.log.len() - member.heard)?;
            let on_disk = member.disk.there.iter().filter_map(|(_, object)| block(object));
            writeln!(f, "  disk: {:?}", on_disk.map(|block| (block.cidr, &block.parts)).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Who may have a pod with the address. Nobody may while it is offered.
fn holder_of(block: &Block, address: IpAddr) -> Option<&str> {
    match block.parts.iter().find(|part| part.cidr.contains(&address)).map(|part| &part.holder) {
        None | Some(Holder::Aside) => Some(&block.node),
        Some(Holder::Offered) => None,
        Some(Holder::Node { name, .. } | Holder::Leaving { name, .. }) => Some(name),
    }
}

fn advert(node: &str, out: &Out) -> Advert {
    Advert {
        node: node.into(),
        node_uid: format!("uid-{node}").into(),
        fabric_addresses: out.fabric_addresses,
        blocks: out.blocks.clone(),
        mtu: 1500,
        ..Advert::default()
    }
}

fn pod(id: &str, addresses: PerFamily<IpAddr>) -> Attachment {
    Attachment {
        id: id.into(),
        container: id.into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 0, ino: 0, path: "/".into() },
        pod_namespace: "ns".into(),
        pod_name: id.into(),
        addresses,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}
fn block(object: &Object) -> Option<&Block> {
    match object {
        Object::Block(block) => Some(block),
        _ => None,
    }
}

fn own_address(object: &Object) -> Option<IpAddr> {
    match object {
        Object::NodeNetwork(network) => network.advert.fabric_addresses.v4,
        _ => None,
    }
}

fn size(range: &IpNet) -> usize {
    1 << (32 - range.prefix_len())
}
