//! Blocks of nodes that are no more: freed, or handed on to who has a part of them.
//!
//! A block is an orphan once its Node is gone or has another UID, and the lease of the life that claimed it is over; it
//! then rests for the cool-down. One live node, the same in all eyes, takes care of it; if two think they are the one,
//! compare-and-set lets only one.

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Block, Node, Part, World};

use crate::blocks::Claim;
use crate::held::{self, Concerns};
use crate::{pools, usage};

/// What to write about orphans.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub claims: Vec<Claim>,
    /// When the next lease or cool-down ends.
    pub wake_at: Option<Instant>,
}

pub(crate) fn collect(world: &World, concerns: &Concerns, node: &Node, now: Instant) -> Collected {
    let mut collected = Collected::default();
    // Signs of life may have been missed.
    if world.leases_rest {
        return collected;
    }
    let mut all = None;
    for block in &concerns.orphans {
        if block.node == world.local && !usage::is_idle(world, &block.cidr, now) {
            continue;
        }
        let rests = over_at(world, &block.node, &block.node_uid, &block.cidr).filter(|rested| *rested > now);
        let next = rests.or_else(|| {
            let until = carer(all.get_or_insert_with(|| carers(world, node, now)), block);
            if until.is_none() {
                collected.claims.extend(dissolve(world, block, now));
            }
            // Should it die before it does its work, another one's turn comes.
            until
        });
        collected.wake_at = collected.wake_at.into_iter().chain(next).min();
    }
    collected
}

/// When the lease and the cool-down of the life that had the range are over; none: they are. Whose NodeNetwork is gone, too,
/// has been taken off the cluster by hand. A Node made anew, whose pods ran on, says that it has the range before it can
/// write so: that is a sign of the same life.
pub(crate) fn over_at(world: &World, name: &str, uid: &str, range: &IpNet) -> Option<Instant> {
    let heard = world.adverts.get(name)?;
    let has_it = *heard.advert.node_uid == *uid || heard.advert.blocks.contains(range);
    has_it.then(|| world.lease_until(heard.at) + world.config.cooldown)
}

/// Who can take care of a block, in the order of their names: until when each counts as live; none: this node.
fn carers(world: &World, local: &Node, now: Instant) -> Vec<Option<Instant>> {
    let until = |node: &Node| world.adverts.get(&node.name).map(|heard| world.lease_until(heard.at));
    let carer = |node: &Arc<Node>| match node.name == local.name {
        true => Some(None),
        false => until(node).filter(|until| *until > now).map(Some),
    };
    world.nodes.values().filter_map(carer).collect()
}

/// Whose turn it is. Thousands may be gone at once, and all agents ask this of all their blocks.
fn carer(carers: &[Option<Instant>], block: &Block) -> Option<Instant> {
    let at = pools::hash(block.cidr) % (carers.len() as u64).max(1);
    carers.get(at as usize).copied().flatten()
}

/// Frees the block, or makes the first who has a part of it the owner of the whole; neither while somebody who has a
/// part may only seem to be gone.
pub(crate) fn dissolve(world: &World, block: &Block, now: Instant) -> Option<Claim> {
    let holders = block.parts.iter().filter_map(|part| {
        let (name, uid) = part.holder.node()?;
        Some((name, uid, &part.cidr))
    });
    let (there, gone): (Vec<_>, Vec<_>) = holders.partition(|(name, uid, _)| held::is_there(world, name, uid));
    let Some((node, node_uid)) = there.first().map(|(name, uid, _)| ((*name).clone(), (*uid).clone())) else {
        let mut lives = gone.iter().map(|(name, uid, part)| over_at(world, name, uid, part));
        let all_over = lives.all(|over_at| over_at.is_none_or(|over_at| over_at <= now));
        return all_over.then(|| Claim::delete(world, block));
    };
    let of_others = |part: &&Part| part.holder.name().is_some_and(|name| *name != node);
    let parts = block.parts.iter().filter(of_others).cloned().collect();
    Some(Claim::put(world, Block { cidr: block.cidr, pool: block.pool.clone(), node, node_uid, parts }))
}
