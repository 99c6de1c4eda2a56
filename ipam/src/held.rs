//! The ranges this node holds: its podCIDRs, its blocks, and parts of other nodes' blocks.
//!
//! Invariant: a range that another node may give addresses out of is not among them, or is cut out of them. Where two
//! claims overlap, the wider one holds and the narrower one is fenced off, on every node alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::{Block, Family, Holder, Node, Pool, World};

use crate::pools;

/// A range of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Held {
    pub cidr: IpNet,
    pub source: Source,
    /// It is held under this node's UID; else only kept for pods from before.
    pub ours: bool,
    /// New addresses are given out of it; else it is only kept for the pods that have some.
    pub open: bool,
    /// Parts that are not this node's to use, or not now.
    pub without: Vec<IpNet>,
}

/// Why a range is this node's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    PodCidr,
    /// A block of the pool of that name.
    Block(Arc<str>),
    /// A part of somebody's block of the pool of that name.
    Part {
        pool: Arc<str>,
        block: IpNet,
    },
}

/// All that takes a look at every block and every node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Concerns {
    blocks: OrdMap<IpNet, Arc<Block>>,
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    local: Arc<str>,
    /// Blocks of which this node has all or a part, or had under an earlier UID.
    pub mine: BTreeMap<IpNet, Arc<Block>>,
    /// Blocks of nodes that are no more, or whose UID is another by now.
    pub orphans: Vec<Arc<Block>>,
    /// Nodes whose podCIDRs overlap this node's.
    pub rivals: Vec<Arc<str>>,
}

// === impl Concerns ===

impl Concerns {
    /// Brings it up to date with the world.
    pub(crate) fn update(&mut self, world: &World) {
        if self.local == world.local && self.blocks.ptr_eq(&world.blocks) && same_ranges(&self.nodes, &world.nodes) {
            self.nodes = world.nodes.clone();
            return;
        }
        let mine = world.blocks.values().filter(|block| block.nodes().any(|name| *name == world.local));
        let orphans = world.blocks.values().filter(|block| !is_there(world, &block.node, &block.node_uid));
        *self = Concerns {
            blocks: world.blocks.clone(),
            nodes: world.nodes.clone(),
            local: world.local.clone(),
            mine: mine.map(|block| (block.cidr, block.clone())).collect(),
            orphans: orphans.cloned().collect(),
            rivals: rivals(world),
        };
    }
}

/// Whether no node came or went, or has another UID or podCIDR.
fn same_ranges(before: &OrdMap<Arc<str>, Arc<Node>>, after: &OrdMap<Arc<str>, Arc<Node>>) -> bool {
    before.diff(after).all(|item| match item {
        imbl::ordmap::DiffItem::Update { old: (_, old), new: (_, new) } => {
            old.uid == new.uid && old.pod_cidrs == new.pod_cidrs
        }
        _ => false,
    })
}

/// Whether there is a Node of that name with that UID.
pub(crate) fn is_there(world: &World, name: &str, uid: &str) -> bool {
    world.nodes.get(name).is_some_and(|node| *node.uid == *uid)
}

fn rivals(world: &World) -> Vec<Arc<str>> {
    let Some(local) = world.local_node() else { return Vec::new() };
    let overlaps = |node: &&Arc<Node>| {
        node.name != local.name
            && node
                .pod_cidrs
                .iter()
                .any(|theirs| local.pod_cidrs.iter().any(|ours| tartan_model::overlap(theirs, ours)))
    };
    world.nodes.values().filter(overlaps).map(|node| node.name.clone()).collect()
}

// === impl Held ===

impl Held {
    pub(crate) fn family(&self) -> Family {
        Family::of_net(&self.cidr)
    }

    /// The block it is, or is a part of.
    pub(crate) fn block<'a>(&self, world: &'a World) -> Option<&'a Arc<Block>> {
        match &self.source {
            Source::PodCidr => None,
            Source::Block(_) => world.blocks.get(&self.cidr),
            Source::Part { block, .. } => world.blocks.get(block),
        }
    }

    /// The pool it is from; none: it is a podCIDR.
    pub(crate) fn pool(&self) -> Option<&Arc<str>> {
        match &self.source {
            Source::PodCidr => None,
            Source::Block(pool) | Source::Part { pool, .. } => Some(pool),
        }
    }
}

/// Everything this node holds, by range.
pub(crate) fn held(world: &World, concerns: &Concerns) -> Vec<Held> {
    let pod_cidrs = Family::ALL.into_iter().filter_map(|family| pod_cidr(world, concerns, family));
    let mut held: Vec<Held> =
        pod_cidrs.chain(concerns.mine.values().flat_map(|block| of_block(world, block))).collect();
    // Nothing of it can be in the kernel: not the node's own address, and no dead end for the rest.
    held.retain(|held| world.features.ipv6 || held.family() == Family::V4);
    held.sort_by_key(|held| held.cidr);
    held
}

/// The node's podCIDR of a family.
pub(crate) fn own_pod_cidr(world: &World, family: Family) -> Option<IpNet> {
    world.local_node()?.pod_cidrs.iter().find(|cidr| Family::of_net(cidr) == family).copied()
}

/// The node that has this node's podCIDR, or some of it, with better right: who says that its pods are there, or else
/// the first by name.
pub(crate) fn fenced_by<'a>(world: &'a World, concerns: &Concerns, family: Family) -> Option<&'a Arc<Node>> {
    let cidr = own_pod_cidr(world, family)?;
    let says = |name: &str| {
        let advert = world.adverts.get(name).map(|heard| &heard.advert);
        advert.is_some_and(|advert| advert.blocks.iter().any(|block| tartan_model::overlap(block, &cidr)))
    };
    let stronger = |rival: &&Arc<Node>| {
        let overlaps = rival.pod_cidrs.iter().any(|theirs| tartan_model::overlap(theirs, &cidr));
        overlaps && (!says(&rival.name), &rival.name) < (!says(&world.local), &world.local)
    };
    concerns.rivals.iter().filter_map(|name| world.nodes.get(name)).find(stronger)
}

/// Other nodes' blocks whose range has addresses in common with this one.
pub(crate) fn others_over<'a>(world: &'a World, range: &'a IpNet) -> impl Iterator<Item = &'a Arc<Block>> {
    pools::blocks_over(&world.blocks, range).filter(|block| block.node != world.local)
}

fn pod_cidr(world: &World, concerns: &Concerns, family: Family) -> Option<Held> {
    let cidr = own_pod_cidr(world, family)?;
    let node = world.local_node()?;
    if fenced_by(world, concerns, family).is_some() {
        return None;
    }
    let open = pools::for_node(world, node, family).is_empty();
    let without: Vec<IpNet> = others_over(world, &cidr).map(|block| block.cidr).collect();
    let whole = !without.iter().any(|theirs| theirs.contains(&cidr));
    (whole && (open || has_pods(world, &cidr))).then_some(Held {
        cidr,
        source: Source::PodCidr,
        ours: true,
        open,
        without,
    })
}

/// What of a block is this node's: all of it but parts, or a part.
fn of_block(world: &World, block: &Block) -> Vec<Held> {
    let over: Vec<&Arc<Block>> =
        pools::blocks_over(&world.blocks, &block.cidr).filter(|other| other.node != block.node).collect();
    if over.iter().any(|other| other.cidr.contains(&block.cidr)) {
        return Vec::new();
    }
    let fitting = gives_out(world, block);
    let uid = world.local_node().map(|node| &node.uid);
    let mut held = Vec::new();
    if block.node == world.local {
        let ours = uid == Some(&block.node_uid);
        let parts = block.parts.iter().map(|part| part.cidr);
        let without = parts.chain(over.iter().map(|other| other.cidr)).collect();
        let source = Source::Block(block.pool.clone());
        held.push(Held { cidr: block.cidr, source, ours, open: ours && fitting, without });
    }
    for part in &block.parts {
        let (Holder::Node { name, uid: theirs } | Holder::Leaving { name, uid: theirs }) = &part.holder else {
            continue;
        };
        if *name == world.local {
            let ours = uid == Some(theirs);
            let open = ours && fitting && matches!(part.holder, Holder::Node { .. });
            let source = Source::Part { pool: block.pool.clone(), block: block.cidr };
            held.push(Held { cidr: part.cidr, source, ours, open, without: Vec::new() });
        }
    }
    // Claimed under another UID: not ours to use, but nobody else's yet; pods from before stay reachable.
    held.retain(|held| held.ours || has_pods(world, &held.cidr));
    held
}

/// Whether the block's pool is one that this node gets new addresses from.
fn gives_out(world: &World, block: &Block) -> bool {
    let Some(node) = world.local_node() else { return false };
    let is_its_pool = |pool: &&Arc<Pool>| pool.name == block.pool && pool.cidr.contains(&block.cidr);
    pools::for_node(world, node, Family::of_net(&block.cidr)).iter().any(is_its_pool)
}

pub(crate) fn has_pods(world: &World, range: &IpNet) -> bool {
    world.attachments.values().any(|pod| pod.addresses.iter().any(|(_, address)| range.contains(address)))
        || world.given.keys().any(|address| range.contains(address))
}
