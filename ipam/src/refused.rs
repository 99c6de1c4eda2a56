//! Why a pod gets no address, in words that name the pool or podCIDR, its numbers, and what to do.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tartan_model::{Block, Family};

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
    #[error("{family}: {0}", family = .0.family)]
    Covered(Box<Covered>),
    #[error(
        "{family}: no IPPool of this node is for pods of namespace '{namespace}' (there are {pools}); change the namespaceSelector of one, or create another"
    )]
    NoPoolForNamespace { family: Family, namespace: String, pools: String },
    #[error(
        "{family}: this node is claiming its first block of {pools}; the runtime will try again, and should get one within seconds"
    )]
    NoBlockYet { family: Family, pools: String },
    #[error(
        "{family}: this node has no block of {pools} yet, and claims none while the store is away ({why}); the runtime will try again"
    )]
    StoreAway { family: Family, pools: String, why: Arc<str> },
    #[error("{family}: no address is free: {0}", family = .0.family)]
    Exhausted(Box<Exhausted>),
    #[error(
        "{family}: the pod asks for {address}, but this node gives no {family} addresses; take it out of the request, or give the node a podCIDR or an IPPool of that family"
    )]
    WrongFamily { family: Family, address: IpAddr },
    #[error("the pod asks for {address}: {why}")]
    NotThatOne { address: IpAddr, why: Box<NotThatOne> },
}

/// A podCIDR in somebody's block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "podCIDR {cidr} of this node lies in {} of IPPool {}, which node {} has; give the Node a podCIDR outside of the pool, or make the pool smaller",
    .block.cidr, .block.pool, .block.node
)]
pub struct Covered {
    pub(crate) family: Family,
    pub(crate) cidr: IpNet,
    pub(crate) block: Arc<Block>,
}

/// What became of all addresses of the ranges that were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub(crate) family: Family,
    pub(crate) ranges: Vec<IpNet>,
    /// Names; none: the ranges are podCIDRs.
    pub(crate) pools: Vec<Arc<str>>,
    pub(crate) size: u128,
    pub(crate) used: u128,
    pub(crate) reserved: u128,
    pub(crate) resting: u128,
    /// Until the first of those that rest will do.
    pub(crate) rested_in: Option<Duration>,
    pub(crate) more: More,
}

/// Whether there is more in the pools than what was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Nothing,
    /// A range that nobody has, that a node offers, or that this one is giving up. It is being claimed.
    Claimed,
    /// As [`More::Claimed`], but that takes the store, which is away for this reason.
    StoreAway(Arc<str>),
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
    #[error(
        "{0} gives out no new addresses: it is the node's podCIDR, and pools select the node; ask for an address of {1}"
    )]
    ClosedPodCidr(IpNet, Ranges),
    #[error(
        "{0} was claimed by the Node of this name that was there before; this one takes it over, and the runtime will try again"
    )]
    OfNodeBefore(IpNet),
    #[error("this node is giving {range} up; ask for another address of {here}")]
    GivenUp { range: IpNet, here: Ranges },
    #[error("node {node} has {range}; run the pod there, or ask for an address of {here}")]
    OtherNode { node: Arc<str>, range: IpNet, here: Ranges },
    #[error("it is not in a range of this node; ask for an address of {0}")]
    NotHere(Ranges),
}

/// Ranges of this node, for users to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(pub(crate) Vec<IpNet>);

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
        let Exhausted { family: _, ranges, pools, size, used, reserved, resting, rested_in, more } = self;
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
        match (more, pools.as_slice()) {
            (More::Claimed, _) => f.write_str("; another block is being claimed, the runtime will try again"),
            (More::StoreAway(why), _) => {
                write!(f, "; another block is claimed once the store is back, which is away ({why})")
            }
            (More::Nothing, []) => f.write_str("; delete pods, or give the node a larger podCIDR or an IPPool"),
            (More::Nothing, _) => {
                f.write_str("; every block of the pool is claimed and no node has a part to spare: add an IPPool, or make room in this one by deleting pods or nodes")
            }
        }
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
