//! Nodes, and what each tells the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_netstate::{Mac, PublicKey};

use crate::{NodeCondition, PerFamily};

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub uid: Arc<str>,
    /// In the order given; at most one per family is used.
    pub internal_ips: Vec<IpAddr>,
    /// Its other addresses: to policy they are the node, too.
    pub external_ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub placement: Placement,
}

/// What keeps pods off a Node for its network's sake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Its condition `NetworkUnavailable`; none where nobody has said anything.
    pub unavailable: Option<bool>,
    /// Its kubelet registered it with the taint that is to go once the network is there.
    pub startup_taint: bool,
}

/// What those who place pods on nodes are told of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Availability {
    /// Of no other Node of that name.
    pub node_uid: Arc<str>,
    pub available: bool,
}

/// What a Node's annotations are to say to programs that are not Tartan's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Annotations {
    /// Of no other Node of that name.
    pub node_uid: Arc<str>,
    /// None: there is to be none of that key.
    pub values: BTreeMap<&'static str, Option<String>>,
}

/// What a node tells its peers about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advert {
    pub node: Arc<str>,
    pub node_uid: Arc<str>,
    /// Underlay addresses.
    pub addresses: PerFamily<IpAddr>,
    /// Fabric addresses: what the node's own packets to remote pods carry as source.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// Address ranges whose pods are on the node.
    pub blocks: Vec<IpNet>,
    /// MTU of its pods, in force.
    pub mtu: u32,
    /// What the node can receive on, now.
    pub accepts: Vec<Endpoint>,
    /// What it no longer accepts and may still receive on and send on, where peers know each other by address or key: as long as
    /// its device may be there, they have to know it.
    pub leaving: Box<[Endpoint]>,
    /// Instances it may still send on.
    pub sends: Vec<Arc<str>>,
    /// It is new to the cluster, and asks its peers to acknowledge what it says.
    pub joining: bool,
    /// Words of joining nodes that this one acts on: what they need is in its kernel. Not a part of the edition, or two that
    /// join would acknowledge each other's acknowledgements. None: it cannot say.
    pub acknowledges: Option<Box<[Acknowledged]>>,
    /// Counted up when anything above changes, so that the node knows which of its words the cluster has heard.
    pub edition: u64,
    /// Changes with every sign of life.
    pub heartbeat: u64,
}

/// A word of another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acknowledged {
    pub node: Arc<str>,
    pub edition: u64,
}

/// All that a node writes about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    /// For its peers.
    pub advert: Arc<Advert>,
    /// For people and tools; peers ignore them.
    pub conditions: Vec<NodeCondition>,
    /// Of the agent that wrote it; empty: it does not say.
    pub version: Arc<str>,
}

/// An instance of a fabric on which a node receives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The instance's name, see `tartan_fabric::Instance`.
    pub instance: Arc<str>,
    /// Underlay address to send to.
    pub address: IpAddr,
    /// Link-layer address behind it, where the fabric has one.
    pub mac: Option<Mac>,
    /// Public key of the node there, where the fabric encrypts.
    pub public_key: Option<PublicKey>,
}

/// What this node has told the publisher, as far as the cluster need not have heard it yet.
///
/// Between what was heard back last and what was said last, any word in between may be what the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub last: Arc<Advert>,
    /// Instances that every word since the one heard back last names in `sends`.
    pub always_sends: BTreeSet<Arc<str>>,
    /// Instances that any word since the one heard back last names in `accepts`.
    pub ever_accepts: BTreeSet<Arc<str>>,
}

/// An Advert and when this node last saw it change. Clocks of nodes are never compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub advert: Arc<Advert>,
    pub at: Instant,
    /// When what it sends on last changed.
    pub sends_changed: Instant,
}

// === impl Advert ===

impl Advert {
    /// Where it hears an instance, by that name; none if it does not.
    pub fn endpoint(&self, instance: &str) -> Option<&Endpoint> {
        self.accepts.iter().find(|end| *end.instance == *instance)
    }

    /// As which it is known by an instance, by that name, whether peers may begin to send there or not.
    pub fn known_as(&self, instance: &str) -> Option<&Endpoint> {
        self.ends().find(|end| *end.instance == *instance)
    }

    /// Everything that it is known by.
    pub fn ends(&self) -> impl Iterator<Item = &Endpoint> {
        self.accepts.iter().chain(&self.leaving)
    }

    /// Whether it acknowledges that word.
    pub fn has_acknowledged(&self, node: &str, edition: u64) -> bool {
        self.acknowledges
            .iter()
            .flat_map(|words| words.iter())
            .any(|word| *word.node == *node && word.edition == edition)
    }

    /// Whether the other says the same, at another beat and whatever it acknowledges.
    pub fn same_but_heartbeat(&self, other: &Advert) -> bool {
        let Advert {
            node,
            node_uid,
            addresses,
            fabric_addresses,
            blocks,
            mtu,
            accepts,
            leaving,
            sends,
            joining,
            acknowledges: _,
            edition: _,
            heartbeat: _,
        } = self;
        (node, node_uid, addresses, fabric_addresses, blocks, mtu, accepts, leaving, sends, joining)
            == (
                &other.node,
                &other.node_uid,
                &other.addresses,
                &other.fabric_addresses,
                &other.blocks,
                &other.mtu,
                &other.accepts,
                &other.leaving,
                &other.sends,
                &other.joining,
            )
    }

    fn accepted(&self) -> impl Iterator<Item = Arc<str>> {
        self.accepts.iter().map(|end| end.instance.clone())
    }
}

// === impl Said ===

impl Said {
    /// Nothing is under way: the last word is the one that was heard.
    pub fn heard(last: Arc<Advert>) -> Said {
        let (always_sends, ever_accepts) = (last.sends.iter().cloned().collect(), last.accepted().collect());
        Said { last, always_sends, ever_accepts }
    }

    /// One more word is under way.
    pub fn and(mut self, last: Arc<Advert>) -> Said {
        self.always_sends.retain(|at| last.sends.contains(at));
        self.ever_accepts.extend(last.accepted());
        Said { last, ..self }
    }
}
