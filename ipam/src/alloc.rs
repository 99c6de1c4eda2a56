//! The addresses of one pod: pure, from World alone.
//!
//! The lowest address that is free and has rested for the cool-down. When all others are used, one that still rests is
//! refused with the time when it will do: a peer that still holds state for its last pod would talk to the wrong one,
//! and the runtime asks again by itself. Who asks for one address by name means it, and gets it rested or not.
//!
//! Pools for certain namespaces come before those for all, then by name.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tartan_model::{Attachment, Family, Node, PerFamily, Pool, World};

use crate::held::{self, Concerns, Held, Source};
use crate::usage::{self, Usage};
use crate::{pools, range};

/// Who wants addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Kubernetes namespace of the pod; empty where the runtime did not say it.
    pub namespace: &'a str,
    /// Addresses it wants by name; in the other families it takes any.
    pub addresses: PerFamily<IpAddr>,
}

/// Why a pod gets no address. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "node {node} has no range for pods: its Node has no podCIDR and no enabled IPPool selects it; give the Node a podCIDR, or create an IPPool whose nodeSelector matches it"
    )]
    NoRange { node: Arc<str> },
    #[error(
        "{family}: podCIDR {cidr} of this node is used by node {by}, too; give each node its own podCIDR and delete the pods of the node that had the wrong one"
    )]
    Fenced { family: Family, cidr: IpNet, by: Arc<str> },
    #[error(
        "{family}: no IPPool of this node is for pods of namespace '{namespace}' (there are {pools}); change the namespaceSelector of one, or create another"
    )]
    NoPoolForNamespace { family: Family, namespace: String, pools: String },
    #[error(
        "{family}: this node is claiming its first block of {pools}; the runtime will try again, and should get one within seconds"
    )]
    NoBlockYet { family: Family, pools: String },
    #[error("{family}: no address is free: {0}", family = .0.family)]
    Exhausted(Exhausted),
    #[error(
        "{family}: the pod asks for {address}, but this node gives no {family} addresses; take it out of the request, or give the node a podCIDR or an IPPool of that family"
    )]
    WrongFamily { family: Family, address: IpAddr },
    #[error("the pod asks for {address}: {why}")]
    NotThatOne { address: IpAddr, why: NotThatOne },
}

/// What became of all addresses of the ranges that were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    family: Family,
    ranges: Vec<IpNet>,
    /// Names; none: the ranges are podCIDRs.
    pools: Vec<Arc<str>>,
    size: u128,
    used: u128,
    reserved: u128,
    resting: u128,
    /// Until the first of those that rest will do.
    rested_in: Option<Duration>,
    /// A pool has a range that nobody has; it is being claimed.
    more_to_come: bool,
}

/// Why a pod does not get the very address it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotThatOne {
    #[error("pod {0} on this node has it; delete that pod first, or ask for another address")]
    Used(String),
    #[error("IPReservation {name} keeps {cidr}; change the reservation, or ask for another address")]
    Reserved { name: Arc<str>, cidr: IpNet },
    #[error("it is the node's own address, or the broadcast address of {0}; ask for another one")]
    Own(IpNet),
    #[error("IPPool {0} is not for this pod's namespace; change its namespaceSelector, or ask for another address")]
    OtherNamespace(Arc<str>),
    #[error(
        "{0} gives out no new addresses: its IPPool is disabled, gone or does not select this node any more; ask for an address of {1}"
    )]
    Closed(IpNet, Ranges),
    #[error("node {node} has {range}; run the pod there, or ask for an address of {here}")]
    OtherNode { node: Arc<str>, range: IpNet, here: Ranges },
    #[error("it is not in a range of this node; ask for an address of {0}")]
    NotHere(Ranges),
}

/// Ranges of this node, for users to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<IpNet>);

/// What one allocation looks at.
struct Look<'a> {
    world: &'a World,
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
}

/// One address in each family in which this node gives addresses, or why not.
pub fn allocate(world: &World, request: &Request<'_>, now: Instant) -> Result<PerFamily<IpAddr>, Refused> {
    let look = Look::at(world, now);
    let families = look.families()?;
    if let Some((family, address)) = request.addresses.iter().find(|(family, _)| !families.contains(family)) {
        return Err(Refused::WrongFamily { family, address: *address });
    }
    let mut addresses = PerFamily::default();
    for family in families {
        let address = match request.addresses.get(family) {
            Some(address) => look.that_one(*address, request.namespace).map(|()| *address),
            None => look.any(family, For::Namespace(request.namespace)),
        };
        addresses.set(family, address?);
    }
    Ok(addresses)
}

/// Whether there is an address left in each family, for whichever namespace.
pub fn any_left(world: &World, now: Instant) -> Result<(), Refused> {
    let look = Look::at(world, now);
    look.families()?.into_iter().try_for_each(|family| look.any(family, For::Anybody).map(drop))
}

// === impl Look ===

impl<'a> Look<'a> {
    fn at(world: &'a World, now: Instant) -> Look<'a> {
        let held = held::held(world, &Concerns::of_local(world));
        let own = usage::fabric_addresses(world, &held);
        Look { world, held, own, now }
    }

    /// Families in which pods of this node get addresses.
    fn families(&self) -> Result<Vec<Family>, Refused> {
        let node = self.world.local.clone();
        let families: Vec<Family> =
            Family::ALL.into_iter().filter(|family| gives(self.world, &self.held, *family)).collect();
        if families.is_empty() { Err(Refused::NoRange { node }) } else { Ok(families) }
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
        let more_to_come = fitting.iter().any(|pool| has_more(self.world, pool, node));
        if counted.is_empty() && more_to_come {
            return Refused::NoBlockYet { family, pools: names(&fitting) };
        }
        let sum =
            |count: fn(&Usage) -> u128| counted.iter().map(|(_, usage)| count(usage)).fold(0, u128::saturating_add);
        let rested_at = counted.iter().filter_map(|(_, usage)| usage.rested_at).min();
        Refused::Exhausted(Exhausted {
            family,
            ranges: counted.iter().map(|(held, _)| held.cidr).collect(),
            pools: fitting.iter().map(|pool| pool.name.clone()).collect(),
            size: sum(|usage| usage.size),
            used: sum(|usage| usage.used),
            reserved: sum(|usage| usage.reserved),
            resting: sum(|usage| usage.resting),
            rested_in: rested_at.map(|at| at.saturating_duration_since(self.now)),
            more_to_come,
        })
    }

    fn why_no_pod_cidr(&self, family: Family) -> Refused {
        let concerns = Concerns::of_local(self.world);
        let cidr = held::own_pod_cidr(self.world, family);
        match (cidr, held::fenced_by(self.world, &concerns, family)) {
            (Some(cidr), Some(by)) => Refused::Fenced { family, cidr, by: by.name.clone() },
            _ => Refused::NoRange { node: self.world.local.clone() },
        }
    }

    /// Whether this very address can be had.
    fn that_one(&self, address: IpAddr, namespace: &str) -> Result<(), Refused> {
        let family = Family::of(address);
        let why = match self.held.iter().find(|held| usable(held, address)) {
            None => self.why_not_here(address),
            Some(held) if !held.open => NotThatOne::Closed(held.cidr, self.ranges(family)),
            Some(held) if !self.admits(held, For::Namespace(namespace)) => {
                NotThatOne::OtherNamespace(held.pool().cloned().unwrap_or_default())
            }
            Some(held) => match self.why_taken(held, address) {
                Some(why) => why,
                None => return Ok(()),
            },
        };
        Err(Refused::NotThatOne { address, why })
    }

    fn why_taken(&self, held: &Held, address: IpAddr) -> Option<NotThatOne> {
        let has = |pod: &&Arc<Attachment>| pod.addresses.iter().any(|(_, theirs)| *theirs == address);
        if let Some(pod) = self.world.attachments.values().find(has) {
            return Some(NotThatOne::Used(pod_name(pod)));
        }
        let broadcast = usage::broadcast(held).is_some_and(|span| span.first == range::number(address));
        if broadcast || self.own.iter().any(|(_, own)| *own == address) {
            return Some(NotThatOne::Own(held.cidr));
        }
        self.world.reservations.values().find_map(|reservation| {
            let cidr = *reservation.cidrs.iter().find(|cidr| cidr.contains(&address))?;
            Some(NotThatOne::Reserved { name: reservation.name.clone(), cidr })
        })
    }

    fn why_not_here(&self, address: IpAddr) -> NotThatOne {
        let here = self.ranges(Family::of(address));
        let host = Family::host_net(address);
        let other = pools::blocks_over(&self.world.blocks, &host).find_map(|block| {
            let part = block.parts.iter().find(|part| part.cidr.contains(&address));
            let node = match part.map(|part| &part.holder) {
                Some(tartan_model::Holder::Node { name, .. } | tartan_model::Holder::Leaving { name, .. }) => name,
                _ => &block.node,
            };
            (*node != self.world.local).then(|| (node.clone(), part.map_or(block.cidr, |part| part.cidr)))
        });
        let pod_cidr = || {
            let has =
                |node: &Arc<Node>| Some((node.name.clone(), *node.pod_cidrs.iter().find(|it| it.contains(&address))?));
            self.world.nodes.values().filter(|node| node.name != self.world.local).find_map(has)
        };
        match other.or_else(pod_cidr) {
            Some((node, range)) => NotThatOne::OtherNode { node, range, here },
            None => NotThatOne::NotHere(here),
        }
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
        }
    }
}

/// Whether pods of this node get addresses of the family: it has ranges, or should have.
fn gives(world: &World, held: &[Held], family: Family) -> bool {
    if family == Family::V6 && !world.features.ipv6 {
        return false;
    }
    let should = world.local_node().is_some_and(|node| !pools::for_node(world, node, family).is_empty());
    should || held::own_pod_cidr(world, family).is_some() || held.iter().any(|it| it.open && it.family() == family)
}

/// Whether this node can get more of the pool, from the pool or from another node.
fn has_more(world: &World, pool: &Pool, node: &Node) -> bool {
    let offered = |block: &Arc<tartan_model::Block>| {
        block.pool == pool.name && block.parts.iter().any(|part| part.holder == tartan_model::Holder::Offered)
    };
    pools::free_range(world, pool, node).is_some() || world.blocks.values().any(offered)
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

// === impl Ranges ===

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("this node's ranges, once it has any");
        }
        f.write_str(&join(&self.0))
    }
}

// === impl Exhausted ===

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted { family: _, ranges, pools, size, used, reserved, resting, rested_in, more_to_come } = self;
        match (ranges.as_slice(), pools.as_slice()) {
            ([], _) => write!(f, "this node has no block of IPPool {}", join(pools))?,
            (_, []) => write!(f, "podCIDR {}", join(ranges))?,
            _ => write!(f, "{} of IPPool {}", join(ranges), join(pools))?,
        }
        if !ranges.is_empty() {
            write!(f, " ({size} addresses: {used} used, {reserved} reserved, {resting} resting after use)")?;
        }
        if let Some(wait) = rested_in {
            write!(f, "; the next one has rested in {} s", wait.as_secs() + 1)?;
        }
        match (more_to_come, pools.as_slice()) {
            (true, _) => f.write_str("; another block is being claimed, the runtime will try again"),
            (false, []) => f.write_str("; delete pods, or give the node a larger podCIDR or an IPPool"),
            (false, _) => {
                f.write_str("; every block of the pool is claimed and no node has a part to spare: add an IPPool, or make room in this one by deleting pods or nodes")
            }
        }
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
