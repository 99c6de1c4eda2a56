//! What this node could claim next, of each pool. A search looks at all claims and all nodes, so it is kept for as long
//! as nothing that it depends on differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use tartan_model::{Block, Condition, Family, Heard, Node, ObjectId, Pool, Reservation, World};

use crate::pools;

#[derive(Clone, Debug, Default)]
pub(crate) struct Supply {
    local: Arc<str>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    pools: OrdMap<Arc<str>, Arc<Pool>>,
    reservations: OrdMap<Arc<str>, Arc<Reservation>>,
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    adverts: OrdMap<Arc<str>, Heard>,
    invalid: OrdMap<ObjectId, Arc<Condition>>,
    free: BTreeMap<Arc<str>, IpNet>,
}

impl Supply {
    /// Brings it up to date with the world.
    pub(crate) fn update(&mut self, world: &World) {
        let same = self.local == world.local
            && self.blocks.ptr_eq(&world.blocks)
            && self.pools.ptr_eq(&world.pools)
            && self.reservations.ptr_eq(&world.reservations)
            && self.invalid.ptr_eq(&world.invalid)
            && self.nodes.diff(&world.nodes).next().is_none()
            && same_blocks(&self.adverts, &world.adverts);
        let free = if same { std::mem::take(&mut self.free) } else { search(world) };
        *self = Supply {
            local: world.local.clone(),
            blocks: world.blocks.clone(),
            pools: world.pools.clone(),
            reservations: world.reservations.clone(),
            nodes: world.nodes.clone(),
            adverts: world.adverts.clone(),
            invalid: world.invalid.clone(),
            free,
        };
    }

    /// A range of the pool that nobody has.
    pub(crate) fn free(&self, pool: &Pool) -> Option<IpNet> {
        self.free.get(&pool.name).copied()
    }
}

fn search(world: &World) -> BTreeMap<Arc<str>, IpNet> {
    let Some(node) = world.local_node() else { return BTreeMap::new() };
    let pools = Family::ALL.into_iter().flat_map(|family| pools::for_node(world, node, family));
    pools.filter_map(|pool| Some((pool.name.clone(), pools::free_range(world, pool, node)?))).collect()
}

/// Whether every node says of the same ranges that its pods are there.
fn same_blocks(before: &OrdMap<Arc<str>, Heard>, after: &OrdMap<Arc<str>, Heard>) -> bool {
    before.diff(after).all(|item| match item {
        DiffItem::Update { old: (_, old), new: (_, new) } => old.advert.blocks == new.advert.blocks,
        DiffItem::Add(_, heard) | DiffItem::Remove(_, heard) => heard.advert.blocks.is_empty(),
    })
}
