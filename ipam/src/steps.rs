//! The steps this node takes about its own blocks and parts: claim, set aside, free, offer, take, leave; see
//! [`crate::blocks`] for the whole way of a range.
//!
//! Thresholds, in shares of a block, lie apart so that no step undoes the one before: claim below 1/8 free, offer down
//! to 1/4, free down to 3/8.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Block, Condition, Family, Holder, Node, Part, PerFamily, Pool, World};

use crate::blocks::Claim;
use crate::held::{self, Concerns, Held, Source};
use crate::orphans;
use crate::range::{self, Span};
use crate::supply::Supply;
use crate::usage::{self, Usage};
use crate::{pools, say};

/// The smallest part that is offered: this many bits longer than the block.
const SMALLEST_OFFER: u8 = 3;

/// A range and what of it is taken.
pub(crate) struct Counted {
    pub held: Held,
    pub usage: Usage,
}

/// Steps under construction.
pub(crate) struct Steps<'a> {
    world: &'a World,
    node: &'a Node,
    counted: &'a [Counted],
    own: &'a PerFamily<IpAddr>,
    supply: &'a Supply,
    now: Instant,
    /// One for each block: all that concerns a block is one object.
    pub claims: BTreeMap<IpNet, Claim>,
    pub conditions: Vec<Condition>,
    /// When the next holder of a part of ours is out of its lease.
    pub wake_at: Option<Instant>,
}

// === impl Counted ===

impl Counted {
    /// Whether no pod has, and none had within the cool-down, an address of it.
    fn is_idle(&self) -> bool {
        self.usage.used == 0 && self.usage.resting == 0
    }

    /// When time alone changes something: more is free, or the range is idle.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.held.source == Source::PodCidr && self.usage.free() > 0 { None } else { self.usage.rested_at }
    }
}

// === impl Steps ===

impl<'a> Steps<'a> {
    pub(crate) fn new(
        world: &'a World,
        node: &'a Node,
        counted: &'a [Counted],
        own: &'a PerFamily<IpAddr>,
        supply: &'a Supply,
        now: Instant,
    ) -> Steps<'a> {
        let (claims, conditions) = (BTreeMap::new(), Vec::new());
        Steps { world, node, counted, own, supply, now, claims, conditions, wake_at: None }
    }

    pub(crate) fn plan(&mut self, concerns: &Concerns) {
        concerns.mine.values().for_each(|block| self.keep_up(block));
        let mut grouped = Vec::new();
        for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || self.world.features.ipv6) {
            for group in pools::groups(pools::for_node(self.world, self.node, family)) {
                self.group(&group);
                grouped.extend(group);
            }
        }
        let in_none = |counted: &&Counted| !grouped.iter().any(|pool| is_of(&counted.held, pool));
        for counted in self.counted.iter().filter(in_none) {
            self.let_go(counted, true);
        }
    }

    /// What has nothing to do with room: claims of an earlier life, and parts whose holders are gone.
    fn keep_up(&mut self, block: &Arc<Block>) {
        if block.node != self.world.local {
            return self.adopt_parts(block);
        }
        if block.node_uid != self.node.uid {
            if held::has_pods(self.world, &block.cidr) {
                self.put(Block { node_uid: self.node.uid.clone(), ..(**block).clone() });
            }
            return;
        }
        let mut left = block.parts.clone();
        left.retain(|part| !self.is_gone(part));
        if left != block.parts {
            self.put(Block { parts: left, ..(**block).clone() });
        }
    }

    /// Whether the holder's Node and its lease are gone.
    fn is_gone(&mut self, part: &Part) -> bool {
        let (Holder::Node { name, uid } | Holder::Leaving { name, uid }) = &part.holder else { return false };
        if held::is_there(self.world, name, uid) || self.world.leases_rest {
            return false;
        }
        let over_at = orphans::over_at(self.world, name, uid, &part.cidr).filter(|over_at| *over_at > self.now);
        self.wake_at = self.wake_at.into_iter().chain(over_at).min();
        over_at.is_none()
    }

    /// This node's Node was made anew while its pods ran on.
    fn adopt_parts(&mut self, block: &Block) {
        let mut adopted = block.clone();
        for part in &mut adopted.parts {
            if let Holder::Node { name, uid } | Holder::Leaving { name, uid } = &mut part.holder
                && *name == self.world.local
                && held::has_pods(self.world, &part.cidr)
            {
                *uid = self.node.uid.clone();
            }
        }
        if adopted != *block {
            self.put(adopted);
        }
    }

    /// Room for the pods that a group of pools is for.
    fn group(&mut self, group: &[&'a Arc<Pool>]) {
        let ranges: Vec<&'a Counted> =
            self.counted.iter().filter(|it| it.held.ours && group.iter().any(|pool| is_of(&it.held, pool))).collect();
        let open = ranges.iter().filter(|it| it.held.open);
        let room = open.map(|it| it.usage.free()).fold(0, u128::saturating_add);
        let block = range::size(Family::of_net(&group[0].cidr), group[0].block_size);
        let low = (block / 8).max(1);
        if room < low {
            self.get_more(group, &ranges, room);
            return;
        }
        // What nobody has taken yet can be had back.
        let mut spare =
            ranges.iter().map(|it| it.usage.free() + self.not_taken(&it.held)).fold(0, u128::saturating_add);
        for counted in &ranges {
            let free = counted.usage.free() + self.not_taken(&counted.held);
            if is_on_its_way(self.world, &counted.held) {
                self.let_go(counted, false);
            } else if self.can_go(counted) && spare.saturating_sub(free) >= low * 3 {
                self.let_go(counted, false);
                spare -= free;
            }
        }
        let exhausted = group.iter().all(|pool| self.supply.free(pool).is_none());
        let mut room = room;
        for counted in &ranges {
            room = self.offer(counted, exhausted, room, low * 2);
        }
    }

    /// What is quickest first: take back, claim, take what another node offers.
    fn get_more(&mut self, group: &[&'a Arc<Pool>], ranges: &[&'a Counted], room: u128) {
        if ranges.iter().any(|counted| self.take_back(&counted.held)) {
            return;
        }
        for pool in group {
            if let Some(cidr) = self.supply.free(pool) {
                let (node, node_uid) = (self.node.name.clone(), self.node.uid.clone());
                return self.put(Block { cidr, pool: pool.name.clone(), node, node_uid, parts: Vec::new() });
            }
        }
        let is_offer = |part: &Part| part.holder == Holder::Offered;
        let of_group = |block: &&Arc<Block>| group.iter().any(|pool| pool.name == block.pool);
        let offers = self.world.blocks.values().filter(of_group);
        let offers =
            offers.flat_map(|block| block.parts.iter().filter(|part| is_offer(part)).map(move |part| (block, part)));
        if let Some((block, part)) = offers.min_by_key(|(_, part)| pools::place(self.node, part.cidr)) {
            let (name, uid) = (self.node.name.clone(), self.node.uid.clone());
            return self.put(with_holder(block, &part.cidr, Some(Holder::Node { name, uid })));
        }
        self.conditions.push(say::exhausted(group, ranges, room));
    }

    /// Makes what was to go usable again; whether there was something.
    fn take_back(&mut self, held: &Held) -> bool {
        let Some(block) = held.block(self.world) else { return false };
        let ours = |part: &Part| match (&held.source, &part.holder) {
            (Source::Block(_), Holder::Aside | Holder::Offered) => true,
            (Source::Part { .. }, Holder::Leaving { .. }) => part.cidr == held.cidr,
            _ => false,
        };
        let Some(part) = block.parts.iter().find(|part| ours(part)) else { return false };
        let back = match &part.holder {
            Holder::Leaving { name, uid } => Some(Holder::Node { name: name.clone(), uid: uid.clone() }),
            _ => None,
        };
        self.put(with_holder(block, &part.cidr, back));
        true
    }

    /// The next step on the way out of a range, if there is no pod in it. One with the node's own address is kept,
    /// unless nothing is given out of it any more and there is another for it.
    fn let_go(&mut self, counted: &Counted, closed: bool) {
        let held = &counted.held;
        let Some(block) = held.block(self.world).filter(|_| held.ours) else { return };
        let on_its_way = is_on_its_way(self.world, held);
        if !counted.is_idle() || (self.has_own(held) && !(closed && self.has_open(held.family()))) {
            if on_its_way {
                self.take_back(held);
            }
            return;
        }
        match (&held.source, on_its_way) {
            (Source::PodCidr, _) => {}
            (Source::Block(_), true) => {
                if let Some(claim) = orphans::dissolve(self.world, block, self.now) {
                    self.claims.entry(block.cidr).or_insert(claim);
                }
            }
            // What nobody has taken yet comes back first.
            (Source::Block(_), false) if self.not_taken(held) > 0 => drop(self.take_back(held)),
            (Source::Block(_), false) => {
                let rest = remainder(block.cidr, &block.parts);
                let parts = block.parts.iter().cloned().chain(rest.into_iter().map(aside)).collect();
                self.put(Block { parts, ..(**block).clone() });
            }
            (Source::Part { .. }, true) => self.put(with_holder(block, &held.cidr, None)),
            (Source::Part { .. }, false) => {
                let (name, uid) = (self.node.name.clone(), self.node.uid.clone());
                self.put(with_holder(block, &held.cidr, Some(Holder::Leaving { name, uid })));
            }
        }
    }

    /// Offers a part of a block when no block of its pools is free, takes it back when there is; what room is left.
    fn offer(&mut self, counted: &Counted, exhausted: bool, room: u128, keep: u128) -> u128 {
        let held = &counted.held;
        let (Source::Block(_), Some(block)) = (&held.source, held.block(self.world)) else { return room };
        let under_way = |part: &&Part| matches!(part.holder, Holder::Aside | Holder::Offered);
        match block.parts.iter().find(under_way) {
            Some(_) if is_on_its_way(self.world, held) => {}
            Some(_) if !exhausted => drop(self.take_back(held)),
            Some(Part { cidr, holder: Holder::Aside }) => {
                let idle = usage::is_idle(self.world, cidr, self.now);
                self.put(with_holder(block, cidr, idle.then_some(Holder::Offered)));
            }
            Some(_) => {}
            None if exhausted && held.open && !self.claims.contains_key(&block.cidr) => {
                if let Some(cidr) = spare_part(counted, room.saturating_sub(keep)) {
                    let mut parts = block.parts.clone();
                    parts.push(aside(cidr));
                    self.put(Block { parts, ..(**block).clone() });
                    return room - Span::of(&cidr).len();
                }
            }
            None => {}
        }
        room
    }

    /// Whether the range could go: no pod is in it, nor the node's own address.
    fn can_go(&self, counted: &Counted) -> bool {
        counted.held.open && counted.is_idle() && !self.has_own(&counted.held)
    }

    /// How much of a block of ours we have set aside or offer, and could have back.
    fn not_taken(&self, held: &Held) -> u128 {
        let (Source::Block(_), Some(block)) = (&held.source, held.block(self.world)) else { return 0 };
        if is_on_its_way(self.world, held) {
            return 0;
        }
        let ours = |part: &&Part| matches!(part.holder, Holder::Aside | Holder::Offered);
        block.parts.iter().filter(ours).map(|part| Span::of(&part.cidr).len()).sum()
    }

    fn has_open(&self, family: Family) -> bool {
        self.counted.iter().any(|it| it.held.family() == family && it.held.open)
    }

    fn has_own(&self, held: &Held) -> bool {
        self.own.get(held.family()).is_some_and(|own| held.cidr.contains(own))
    }

    fn put(&mut self, block: Block) {
        self.claims.entry(block.cidr).or_insert_with(|| Claim::put(self.world, block));
    }
}

/// Whether the range came from the pool, as the pool is now.
fn is_of(held: &Held, pool: &Pool) -> bool {
    held.pool() == Some(&pool.name) && pool.cidr.contains(&held.cidr)
}

/// Whether this node has said that it lets go of all that it has of the range. What it only wants to offer is never all.
pub(crate) fn is_on_its_way(world: &World, held: &Held) -> bool {
    let Some(block) = held.block(world) else { return false };
    let is_aside = |part: &Part| part.holder == Holder::Aside;
    match held.source {
        Source::Block(_) => block.parts.iter().any(is_aside) && remainder(block.cidr, &block.parts).is_empty(),
        _ => block.parts.iter().any(|part| part.cidr == held.cidr && matches!(part.holder, Holder::Leaving { .. })),
    }
}

/// What no part holds, in aligned ranges.
fn remainder(range: IpNet, parts: &[Part]) -> Vec<IpNet> {
    range::remainder(range, &parts.iter().map(|part| part.cidr).collect::<Vec<_>>())
}

fn aside(cidr: IpNet) -> Part {
    Part { cidr, holder: Holder::Aside }
}

/// The largest aligned part of at most that many addresses, none of which is taken.
fn spare_part(counted: &Counted, at_most: u128) -> Option<IpNet> {
    let block = &counted.held.cidr;
    let longest = (block.prefix_len() + SMALLEST_OFFER).min(counted.held.family().bits());
    let sizes =
        (block.prefix_len() + 1..=longest).filter(|prefix| range::size(counted.held.family(), *prefix) <= at_most);
    sizes
        .flat_map(|prefix| block.subnets(prefix).expect("longer than the block's own prefix"))
        .find(|part| counted.usage.is_free(Span::of(part)))
}

/// The block with another holder of a part; none: the part is the owner's again.
fn with_holder(block: &Block, part: &IpNet, holder: Option<Holder>) -> Block {
    let mut parts: Vec<Part> = block.parts.iter().filter(|other| other.cidr != *part).cloned().collect();
    parts.extend(holder.map(|holder| Part { cidr: *part, holder }));
    parts.sort_by_key(|part| part.cidr);
    Block { parts, ..block.clone() }
}
