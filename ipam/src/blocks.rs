//! Which ranges this node holds, and which claims it wants to write.
//!
//! Everything about a block is in its one IPBlock and changes by compare-and-set on it:
//!
//! ```text
//!            create (owner)                 aside: all of it             delete
//!   nobody ────────────────► owner ─────────────────────────► owner ─────────────► nobody
//!                              ▲ │ aside: a part
//!                     take back│ ▼            offer                  take (any node)
//!                            owner ──────────────────► offered ───────────────────────► that node
//!                              ▲                                                           │ leaving
//!                              └──────────────────── give back ────────────────────────────┘
//! ```
//!
//! A node gives no address out of what it has set aside, offered or said it leaves. It takes each next step only once
//! it has read the last one back, so that no pod can slip in while a write is under way. Nothing is asked for: that no
//! block of a pool is free is seen by all, and is what makes owners offer what they do not need.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Block, Condition, Kind, Object, ObjectId, PerFamily, Revision, World};

use crate::held::{self, Concerns, Held};
use crate::steps::{Counted, Steps};
use crate::supply::Supply;
use crate::{orphans, pools, range, say, usage};

/// What has been looked up in all blocks and all nodes.
#[derive(Debug, Default)]
pub struct Memo {
    concerns: Concerns,
    supply: Supply,
    out: Out,
}

/// What this node holds, and what it wants to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Out {
    /// Ranges whose pods are here, sorted.
    pub blocks: Vec<IpNet>,
    /// The same without what other nodes have of them.
    pub local: Vec<IpNet>,
    /// What of them new addresses may be given out of, as few ranges as can be.
    pub gives: Vec<IpNet>,
    /// The node's own address in each family, in one of the blocks; no pod gets it.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// What is wrong.
    pub conditions: Vec<Condition>,
    /// What to write; at most one for each block.
    pub claims: Vec<Claim>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Instant>,
}

/// One compare-and-set on an IPBlock.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub id: ObjectId,
    /// None: delete.
    pub object: Option<Object>,
    /// The state it was decided on; none: there is no such object.
    pub expect: Option<Revision>,
}

/// What this node holds and wants to, in this world.
pub fn plan<'a>(memo: &'a mut Memo, world: &World, now: Instant) -> &'a Out {
    memo.look_up(world);
    let held = held::held(world, &memo.concerns);
    let own = usage::fabric_addresses(world, &held);
    let counted: Vec<Counted> =
        held.into_iter().map(|held| Counted { usage: usage::of(world, &held, &own, now), held }).collect();
    let mut wake_at = counted.iter().filter_map(Counted::wake_at).min();
    let mut conditions = say::conditions(world, &memo.concerns, &counted);
    let mut claims = Vec::new();
    if let Some(node) = world.local_node().filter(|_| may_claim(world)) {
        let mut steps = Steps::new(world, node, &counted, &own, &memo.supply, now);
        steps.plan(&memo.concerns);
        conditions.append(&mut steps.conditions);
        wake_at = wake_at.into_iter().chain(steps.wake_at).min();
        claims = steps.claims.into_values().collect();
        let collected = orphans::collect(world, &memo.concerns, node, now);
        claims.extend(collected.claims);
        wake_at = wake_at.into_iter().chain(collected.wake_at).min();
    }
    memo.out = Out {
        blocks: counted.iter().map(|counted| counted.held.cidr).collect(),
        local: local(world, counted.iter().map(|counted| &counted.held)),
        gives: gives(counted.iter().map(|counted| &counted.held)),
        fabric_addresses: own,
        conditions,
        claims,
        wake_at,
    };
    &memo.out
}

// === impl Memo ===

impl Memo {
    fn look_up(&mut self, world: &World) {
        self.concerns.update(world);
        self.supply.update(world);
    }

    pub(crate) fn looked_up(&mut self, world: &World) -> (&Concerns, &Supply) {
        self.look_up(world);
        (&self.concerns, &self.supply)
    }
}

/// Before all that blocks are claimed by is read, or while the store is away, what is missing proves nothing.
fn may_claim(world: &World) -> bool {
    let kinds = [Kind::Node, Kind::NodeNetwork, Kind::IpPool, Kind::IpReservation, Kind::IpBlock];
    world.store_away().is_none() && kinds.into_iter().all(|kind| world.is_synced(kind))
}

/// The owner of a block has no pods in parts that others hold.
fn local<'a>(world: &World, held: impl Iterator<Item = &'a Held>) -> Vec<IpNet> {
    let others = |block: &IpNet| {
        let block = world.blocks.get(block).filter(|block| block.node == world.local);
        let parts = block.into_iter().flat_map(|block| &block.parts);
        let elsewhere = parts.filter(|part| part.holder.name().is_some_and(|name| *name != world.local));
        elsewhere.map(|part| part.cidr).collect::<Vec<IpNet>>()
    };
    held.flat_map(|held| range::remainder(held.cidr, &others(&held.cidr))).collect()
}

fn gives<'a>(held: impl Iterator<Item = &'a Held>) -> Vec<IpNet> {
    let open = held.filter(|held| held.open);
    IpNet::aggregate(&open.flat_map(|held| range::remainder(held.cidr, &held.without)).collect())
}

// === impl Claim ===

impl Claim {
    /// Makes the block so, if it is as the world has it.
    pub(crate) fn put(world: &World, block: Block) -> Claim {
        let id = pools::id_of(&block.cidr);
        let expect = world.revisions.get(&id).cloned();
        Claim { id, object: Some(Object::Block(block.into())), expect }
    }

    /// Deletes the block, if it is as the world has it.
    pub(crate) fn delete(world: &World, block: &Block) -> Claim {
        let id = pools::id_of(&block.cidr);
        let expect = world.revisions.get(&id).cloned();
        Claim { id, object: None, expect }
    }
}
