//! The addresses of one pod: pure, from World alone; the memo only spares looks at all nodes and blocks.
//!
//! The lowest address that is free and has rested for the cool-down. When all others are used, one that still rests is
//! refused with the time when it will do: a peer that still holds state for its last pod would talk to the wrong one,
//! and the runtime asks again by itself. Who asks for one address by name means it, and gets it rested or not.
//!
//! Pools for certain namespaces come before those for all, then by name. A family of which all pools are for other
//! namespaces is none of a pod's, unless the node has a podCIDR of it: who adds a pool of another family for some leaves
//! the others as they were.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tartan_model::{Attachment, Block, FabricMode, Family, Holder, Node, PerFamily, Pool, World};

use crate::blocks::Memo;
use crate::held::{self, Concerns, Held, Source};
use crate::refused::{Covered, Exhausted, More, NotThatOne, Ranges, Refused};
use crate::supply::Supply;
use crate::usage::{self, Usage};
use crate::{pools, range, steps};

/// Who wants addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Kubernetes namespace of the pod; empty where the runtime did not say it.
    pub namespace: &'a str,
    /// Addresses it wants by name; in the other families it takes any.
    pub addresses: PerFamily<IpAddr>,
    /// Id of the attachment, which may have some of them already.
    pub id: &'a str,
}

/// What one allocation looks at.
struct Look<'a> {
    world: &'a World,
    concerns: &'a Concerns,
    supply: &'a Supply,
    held: Vec<Held>,
    /// The node's own addresses.
    own: PerFamily<IpAddr>,
    now: Instant,
}

/// Whom an address is for.
#[derive(Clone, Copy)]
enum For<'a> {
    Namespace(&'a str),
    /// Whoever may come.
    Anybody,
    /// All that may come.
    Everybody,
}

/// One address in each family in which this node gives addresses, or why not.
pub fn allocate(
    memo: &mut Memo,
    world: &World,
    request: &Request<'_>,
    now: Instant,
) -> Result<PerFamily<IpAddr>, Refused> {
    let look = Look::at(memo, world, now);
    let who = For::Namespace(request.namespace);
    let families = look.families(who, &request.addresses)?;
    if let Some((family, address)) = request.addresses.iter().find(|(family, _)| !families.contains(family)) {
        return Err(Refused::WrongFamily { family, address: *address });
    }
    let mut addresses = PerFamily::default();
    for family in families {
        let address = match request.addresses.get(family) {
            Some(address) => look.that_one(*address, who, request.id).map(|()| *address),
            None => look.any(family, who),
        };
        addresses.set(family, address?);
    }
    Ok(addresses)
}

/// Whether there is an address left in each family that is everybody's, for whichever namespace.
pub fn any_left(memo: &mut Memo, world: &World, now: Instant) -> Result<(), Refused> {
    let look = Look::at(memo, world, now);
    let of = |who| look.families(who, &PerFamily::default());
    let families = of(For::Everybody).or_else(|_| of(For::Anybody))?;
    families.into_iter().try_for_each(|family| look.any(family, For::Anybody).map(drop))
}

/// Whether a pod may have these addresses, which somebody else has chosen: nobody else has them, and peers look for them
/// on this node. What finds the way with the fabric `none` is not ours to know.
pub fn may_have(
    memo: &mut Memo,
    world: &World,
    pod: &str,
    addresses: &PerFamily<IpAddr>,
    now: Instant,
) -> Result<(), Refused> {
    let look = Look::at(memo, world, now);
    addresses.iter().try_for_each(|(_, address)| match look.that_one(*address, For::Anybody, pod) {
        Err(Refused::NotThatOne { why, .. })
            if matches!(*why, NotThatOne::NotHere(_)) && world.config.fabric == FabricMode::None =>
        {
            look.free(*address, pod)
        }
        said => said,
    })
}

// === impl Look ===

impl<'a> Look<'a> {
    fn at(memo: &'a mut Memo, world: &'a World, now: Instant) -> Look<'a> {
        let (concerns, supply) = memo.looked_up(world);
        let held = held::held(world, concerns);
        let own = usage::fabric_addresses(world, &held);
        Look { world, concerns, supply, held, own, now }
    }

    /// Families in which they get addresses, these among them.
    fn families(&self, who: For<'_>, asked: &PerFamily<IpAddr>) -> Result<Vec<Family>, Refused> {
        let given = Family::ALL.into_iter().filter(|family| self.gives(*family, For::Anybody));
        let is_theirs = |family: &Family| self.gives(*family, who) || asked.get(*family).is_some();
        let (theirs, others): (Vec<Family>, Vec<Family>) = given.partition(is_theirs);
        match others.first() {
            _ if !theirs.is_empty() => Ok(theirs),
            Some(family) => Err(self.why_none(*family, who, &[])),
            None => Err(Refused::NoRange { node: self.world.local.clone() }),
        }
    }

    /// Whether they get addresses of the family: this node has a podCIDR, or a pool for them.
    fn gives(&self, family: Family, who: For<'_>) -> bool {
        if family == Family::V6 && !self.world.features.ipv6 {
            return false;
        }
        let pools = self.world.local_node().map(|node| pools::for_node(self.world, node, family));
        pools.is_some_and(|pools| pools.into_iter().any(|pool| who.is_for(pool)))
            || held::own_pod_cidr(self.world, family).is_some()
    }

    /// Any address of the family.
    fn any(&self, family: Family, who: For<'_>) -> Result<IpAddr, Refused> {
        let mut ranges: Vec<&Held> = self.held.iter().filter(|held| held.family() == family && held.open).collect();
        ranges.retain(|held| self.admits(held, who));
        ranges.sort_by_key(|held| (!self.is_specific(held), held.pool(), held.cidr));
        let mut counted = Vec::new();
        for held in ranges {
            let usage = usage::of(self.world, held, &self.own, self.now);
            if let Some(address) = usage.first_free(held) {
                return Ok(address);
            }
            counted.push((held, usage));
        }
        Err(self.why_none(family, who, &counted))
    }

    fn why_none(&self, family: Family, who: For<'_>, counted: &[(&Held, Usage)]) -> Refused {
        let Some(node) = self.world.local_node() else { return Refused::NoRange { node: self.world.local.clone() } };
        let pools = pools::for_node(self.world, node, family);
        if pools.is_empty() && counted.is_empty() {
            return self.why_no_pod_cidr(family);
        }
        let fitting: Vec<&Arc<Pool>> = pools.iter().copied().filter(|pool| who.is_for(pool)).collect();
        if let (For::Namespace(namespace), true, false) = (who, fitting.is_empty(), pools.is_empty()) {
            return Refused::NoPoolForNamespace { family, namespace: namespace.to_owned(), pools: names(&pools) };
        }
        let more = self.more(&fitting);
        match &more {
            More::Claimed if counted.is_empty() => return Refused::NoBlockYet { family, pools: names(&fitting) },
            More::StoreAway(why) if counted.is_empty() => {
                return Refused::StoreAway { family, pools: names(&fitting), why: why.clone() };
            }
            _ => {}
        }
        let sum =
            |count: fn(&Usage) -> u128| counted.iter().map(|(_, usage)| count(usage)).fold(0, u128::saturating_add);
        let rested_at = counted.iter().filter_map(|(_, usage)| usage.rested_at).min();
        Refused::Exhausted(Box::new(Exhausted {
            family,
            ranges: counted.iter().map(|(held, _)| held.cidr).collect(),
            pools: fitting.iter().map(|pool| pool.name.clone()).collect(),
            size: sum(|usage| usage.size),
            used: sum(|usage| usage.used),
            reserved: sum(|usage| usage.reserved),
            resting: sum(|usage| usage.resting),
            rested_in: rested_at.map(|at| at.saturating_duration_since(self.now)),
            more,
        }))
    }

    /// What this node can get of these pools, from the pools, from other nodes, or back from what it is giving up.
    fn more(&self, pools: &[&Arc<Pool>]) -> More {
        let is_to_get = |block: &Block, holder: &Holder| match holder {
            Holder::Offered => true,
            Holder::Aside => block.node == self.world.local,
            Holder::Leaving { name, .. } => *name == self.world.local,
            Holder::Node { .. } => false,
        };
        let of_block = |block: &Arc<Block>| {
            block.parts.iter().any(|part| is_to_get(block, &part.holder))
                && pools.iter().any(|pool| pool.name == block.pool)
        };
        let more =
            pools.iter().any(|pool| self.supply.free(pool).is_some()) || self.world.blocks.values().any(of_block);
        match self.world.store_away() {
            _ if !more => More::Nothing,
            None => More::Claimed,
            Some(why) => More::StoreAway(why.clone()),
        }
    }

    fn why_no_pod_cidr(&self, family: Family) -> Refused {
        let no_range = || Refused::NoRange { node: self.world.local.clone() };
        let Some(cidr) = held::own_pod_cidr(self.world, family) else { return no_range() };
        if let Some(rival) = held::fenced_by(self.world, self.concerns, family) {
            return Refused::Fenced { family, cidr, by: rival.name.clone() };
        }
        let covers = held::others_over(self.world, &cidr).find(|block| block.cidr.contains(&cidr)).cloned();
        covers.map_or_else(no_range, |block| Refused::Covered(Box::new(Covered { family, cidr, block })))
    }

    /// Whether this very address can be had by a pod, which may have it already.
    fn that_one(&self, address: IpAddr, who: For<'_>, pod: &str) -> Result<(), Refused> {
        let why = match self.held.iter().find(|held| usable(held, address)) {
            None => self.why_not_here(address),
            Some(held) if !held.open => self.why_closed(held),
            Some(held) if !self.admits(held, who) => {
                NotThatOne::OtherNamespace(held.pool().cloned().unwrap_or_default())
            }
            Some(held) => match self.why_taken(held, address, who, pod) {
                Some(why) => why,
                None => return Ok(()),
            },
        };
        Err(Refused::NotThatOne { address, why: Box::new(why) })
    }

    fn why_closed(&self, held: &Held) -> NotThatOne {
        let (range, here) = (held.cidr, self.ranges(held.family()));
        match &held.source {
            Source::PodCidr => NotThatOne::ClosedPodCidr(range, here),
            Source::Part { .. } if steps::is_on_its_way(self.world, held) => NotThatOne::GivenUp { range, here },
            _ if !held.ours => NotThatOne::OfNodeBefore(range),
            _ => NotThatOne::Closed(range, here),
        }
    }

    /// Whether no other pod has it.
    fn free(&self, address: IpAddr, pod: &str) -> Result<(), Refused> {
        let has = |other: &&Arc<Attachment>| {
            *other.id != *pod && other.addresses.iter().any(|(_, theirs)| *theirs == address)
        };
        let used = self.world.attachments.values().find(has).map(|other| NotThatOne::Used(pod_name(other)));
        used.map_or(Ok(()), |why| Err(Refused::NotThatOne { address, why: Box::new(why) }))
    }

    fn why_taken(&self, held: &Held, address: IpAddr, who: For<'_>, pod: &str) -> Option<NotThatOne> {
        if let Err(Refused::NotThatOne { why, .. }) = self.free(address, pod) {
            return Some(*why);
        }
        let broadcast = usage::broadcast(held).is_some_and(|span| span.first == range::number(address));
        if broadcast || self.own.iter().any(|(_, own)| *own == address) {
            return Some(NotThatOne::Own(held.cidr));
        }
        let reserved = self.world.reservations.values().find_map(|reservation| {
            let cidr = *reservation.cidrs.iter().find(|cidr| cidr.contains(&address))?;
            Some(NotThatOne::Reserved { name: reservation.name.clone(), cidr })
        });
        reserved.or_else(|| self.why_from_before(held, address, who))
    }

    /// What the network before has given out, or has on its bridge. Who was chosen by another plugin may be the one it was
    /// given to just now.
    fn why_from_before(&self, held: &Held, address: IpAddr, who: For<'_>) -> Option<NotThatOne> {
        let For::Namespace(_) = who else { return None };
        let given = self.world.given.get(&address).map(|container| NotThatOne::Used(container.to_string()));
        let mut host = self.world.host.links.iter().flat_map(|link| &link.addresses);
        given.or_else(|| host.any(|own| own.addr() == address).then_some(NotThatOne::Own(held.cidr)))
    }

    fn why_not_here(&self, address: IpAddr) -> NotThatOne {
        let here = self.ranges(Family::of(address));
        let host = Family::host_net(address);
        let block = pools::blocks_over(&self.world.blocks, &host).find_map(|block| {
            let part = block.parts.iter().find(|part| part.cidr.contains(&address));
            let node = part.and_then(|part| part.holder.name()).unwrap_or(&block.node);
            let range = part.map_or(block.cidr, |part| part.cidr);
            match part.map(|part| &part.holder) {
                _ if *node != self.world.local => {
                    Some(NotThatOne::OtherNode { node: node.clone(), range, here: here.clone() })
                }
                Some(Holder::Aside | Holder::Offered) => Some(NotThatOne::GivenUp { range, here: here.clone() }),
                _ => None,
            }
        });
        let pod_cidr = || {
            let has = |node: &Arc<Node>| {
                let range = *node.pod_cidrs.iter().find(|it| it.contains(&address))?;
                Some(NotThatOne::OtherNode { node: node.name.clone(), range, here: here.clone() })
            };
            self.world.nodes.values().filter(|node| node.name != self.world.local).find_map(has)
        };
        block.or_else(pod_cidr).unwrap_or(NotThatOne::NotHere(here))
    }

    fn ranges(&self, family: Family) -> Ranges {
        Ranges(self.held.iter().filter(|held| held.open && held.family() == family).map(|held| held.cidr).collect())
    }

    fn pool_of(&self, held: &Held) -> Option<&Arc<Pool>> {
        self.world.pools.get(held.pool()?)
    }

    fn admits(&self, held: &Held, who: For<'_>) -> bool {
        held.source == Source::PodCidr || self.pool_of(held).is_some_and(|pool| who.is_for(pool))
    }

    fn is_specific(&self, held: &Held) -> bool {
        self.pool_of(held).is_some_and(|pool| pools::is_specific(pool))
    }
}

// === impl For ===

impl For<'_> {
    fn is_for(self, pool: &Pool) -> bool {
        match self {
            For::Namespace(namespace) => pools::admits(pool, namespace),
            For::Anybody => true,
            For::Everybody => !pools::is_specific(pool),
        }
    }
}

fn usable(held: &Held, address: IpAddr) -> bool {
    held.cidr.contains(&address) && !held.without.iter().any(|part| part.contains(&address))
}

fn pod_name(pod: &Attachment) -> String {
    if pod.pod_name.is_empty() { pod.id.to_string() } else { format!("{}/{}", pod.pod_namespace, pod.pod_name) }
}

fn names(pools: &[&Arc<Pool>]) -> String {
    let names: Vec<String> = pools.iter().map(|pool| format!("IPPool {} ({})", pool.name, pool.cidr)).collect();
    names.join(", ")
}
