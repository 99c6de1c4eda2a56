//! Pools: which of them count, whom they are for, and a free range in one.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher as _};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use siphasher::sip::SipHasher13;
use tartan_model::{Advert, Block, Family, Kind, Node, ObjectId, Pool, Selector, World};

use crate::range::{self, Span};

/// Labels that every namespace has: the first by Kubernetes, the second by Calico.
const NAMESPACE_LABELS: [&str; 2] = ["kubernetes.io/metadata.name", "projectcalico.org/name"];

/// Pools that ranges may be claimed from, by name. Of two that overlap the first by name counts, on every node alike:
/// with two block sizes over one range, claims would overlap without meeting in the store.
pub(crate) fn usable(world: &World) -> Vec<&Arc<Pool>> {
    let mut usable: Vec<&Arc<Pool>> = Vec::new();
    for pool in world.pools.values().filter(|pool| !pool.disabled) {
        if !usable.iter().any(|other| tartan_model::overlap(&other.cidr, &pool.cidr)) {
            usable.push(pool);
        }
    }
    usable
}

/// Enabled pools that do not count, each with the one it overlaps.
pub(crate) fn overlapping(world: &World) -> Vec<(&Arc<Pool>, &Arc<Pool>)> {
    let usable = usable(world);
    let not_usable =
        world.pools.values().filter(|pool| !pool.disabled && !usable.iter().any(|it| it.name == pool.name));
    not_usable
        .filter_map(|pool| Some((pool, *usable.iter().find(|other| tartan_model::overlap(&other.cidr, &pool.cidr))?)))
        .collect()
}

/// Usable pools of the family for which the node is selected.
pub(crate) fn for_node<'a>(world: &'a World, node: &Node, family: Family) -> Vec<&'a Arc<Pool>> {
    let mut pools = usable(world);
    pools.retain(|pool| Family::of_net(&pool.cidr) == family && pool.nodes.matches(&node.labels));
    pools
}

/// Whether pods of the namespace may get addresses of the pool. Of a namespace's labels only its name is known.
pub(crate) fn admits(pool: &Pool, namespace: &str) -> bool {
    let labels: BTreeMap<String, String> = match namespace {
        "" => BTreeMap::new(),
        name => NAMESPACE_LABELS.iter().map(|label| ((*label).to_owned(), name.to_owned())).collect(),
    };
    pool.namespaces.matches(&labels)
}

/// Pools for the same pods: one of them will do for another. In name order within.
pub(crate) fn groups(pools: Vec<&Arc<Pool>>) -> Vec<Vec<&Arc<Pool>>> {
    let mut groups: Vec<Vec<&Arc<Pool>>> = Vec::new();
    for pool in pools {
        let same = |group: &&mut Vec<&Arc<Pool>>| {
            group[0].namespaces == pool.namespaces && Family::of_net(&group[0].cidr) == Family::of_net(&pool.cidr)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(pool),
            None => groups.push(vec![pool]),
        }
    }
    groups
}

/// Whether the pool is for some namespaces only; such a pool is preferred by their pods.
pub(crate) fn is_specific(pool: &Pool) -> bool {
    pool.namespaces != Selector::all()
}

/// A range of the pool that nobody has, from a place on that differs from node to node, so that two nodes in search of
/// one rarely meet. Deterministic: who finds it taken in the end finds the next.
pub(crate) fn free_range(world: &World, pool: &Pool, node: &Node) -> Option<IpNet> {
    let family = Family::of_net(&pool.cidr);
    let whole = Span::of(&pool.cidr);
    let size = range::size(family, pool.block_size);
    let blocks = whole.len() / size;
    let start = whole.first + u128::from(place(node, &*pool.name)) % blocks * size;
    let mut taken: Vec<Span> =
        obstacles(world, pool).iter().filter_map(|taken| taken_blocks(whole, *taken, size)).collect();
    let behind = Span { first: start, last: whole.last };
    loop {
        taken = range::merged(taken);
        let found = range::first_gap(behind, &taken).or_else(|| range::first_gap(whole, &taken))?;
        let free = range::aligned(family, found, pool.block_size);
        // A claim that cannot be read is a claim.
        if !world.invalid.contains_key(&id_of(&free)) {
            return Some(free);
        }
        taken.push(Span::of(&free));
    }
}

/// Names the claim on a range.
pub(crate) fn id_of(range: &IpNet) -> ObjectId {
    ObjectId { kind: Kind::IpBlock, name: Block::name_of(range).into() }
}

/// Blocks whose range has addresses in common with this one.
pub(crate) fn blocks_over<'a>(
    blocks: &'a OrdMap<IpNet, Arc<Block>>,
    range: &'a IpNet,
) -> impl Iterator<Item = &'a Arc<Block>> {
    let wider = (0..range.prefix_len()).filter_map(|prefix| {
        blocks.get(&range::aligned(Family::of_net(range), range::number(range.network()), prefix))
    });
    let within = blocks.range(range.trunc()..).map(|(_, block)| block);
    wider.chain(within.take_while(|block| range.contains(&block.cidr.network())))
}

/// The aligned blocks that a span touches.
fn taken_blocks(whole: Span, taken: Span, size: u128) -> Option<Span> {
    let common = whole.and(taken)?;
    let first = whole.first + (common.first - whole.first) / size * size;
    let last = whole.first + (common.last - whole.first) / size * size + (size - 1);
    Some(Span { first, last })
}

/// What a claim must keep clear of: claims, podCIDRs that are or may come into use, reservations of whole blocks, and nodes.
fn obstacles(world: &World, pool: &Pool) -> Vec<Span> {
    let claims = blocks_over(&world.blocks, &pool.cidr).map(|block| block.cidr);
    let reserved = world.reservations.values().flat_map(|reservation| reservation.cidrs.iter().copied());
    let reserved = reserved.filter(|cidr| cidr.prefix_len() <= pool.block_size);
    let family = Family::of_net(&pool.cidr);
    let usable: Vec<&Arc<Pool>> =
        usable(world).into_iter().filter(|pool| Family::of_net(&pool.cidr) == family).collect();
    let pod_cidrs = world.nodes.values().filter_map(|node| {
        let cidr = node.pod_cidrs.iter().find(|cidr| Family::of_net(cidr) == family)?;
        (tartan_model::overlap(cidr, &pool.cidr) && may_use_pod_cidr(world, &usable, node, cidr)).then_some(*cidr)
    });
    // Whoever has a route to the block would find the node there no more.
    let nodes = world.nodes.values().flat_map(|node| &node.internal_ips).filter(|ip| pool.cidr.contains(*ip));
    let nodes = nodes.map(|ip| Family::host_net(*ip));
    let same_family = |cidr: &IpNet| Family::of_net(cidr) == family;
    claims.chain(reserved).chain(pod_cidrs).chain(nodes).filter(same_family).map(|cidr| Span::of(&cidr)).collect()
}

/// Whether no pool of its family selects the node, or it says that it has pods there from before one did.
fn may_use_pod_cidr(world: &World, usable: &[&Arc<Pool>], node: &Node, cidr: &IpNet) -> bool {
    let says_so = |advert: &Advert| advert.blocks.iter().any(|block| tartan_model::overlap(block, cidr));
    !usable.iter().any(|pool| pool.nodes.matches(&node.labels))
        || world.adverts.get(&node.name).is_some_and(|heard| says_so(&heard.advert))
}

/// Where a node begins to search: the same every time, another for every node.
pub(crate) fn place(node: &Node, what: impl Hash) -> u64 {
    hash((&*node.name, &*node.uid, what))
}

/// The same in all agents.
pub(crate) fn hash(what: impl Hash) -> u64 {
    let mut hasher = SipHasher13::new();
    what.hash(&mut hasher);
    hasher.finish()
}
