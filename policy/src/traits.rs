//! What policy knows of one end of a connection, and whether a rule's statements hold for it.
//!
//! Invariant: an unknown pod may carry any labels, and what may be a node is one and is none. What depends on that is `Maybe`, in
//! a term and in its negation alike.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Labels, Protocol};

use crate::ir::{Endpoints, Entity, Is, Namespaces, Nets, Peer, Peers, Port, Scope, Term, protocol};

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Traits {
    pub entity: Entity,
    /// Of a pod.
    pub workload: Option<Workload>,
    /// Of a node's address.
    pub node_labels: Labels,
}

/// What is written on a pod and its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    pub namespace: Arc<str>,
    pub namespace_labels: Labels,
    pub labels: Labels,
    pub service_account: Arc<str>,
    /// Name, IP protocol number, port.
    pub ports: Box<[(Arc<str>, u8, u16)]>,
}

/// Whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    No,
    Maybe,
    Yes,
}

/// The protocol's number in an IP header.
pub fn protocol_number(of: Protocol) -> u8 {
    match of {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

// === impl Holds ===

impl From<bool> for Holds {
    fn from(holds: bool) -> Holds {
        if holds { Holds::Yes } else { Holds::No }
    }
}

impl std::ops::Not for Holds {
    type Output = Holds;

    fn not(self) -> Holds {
        match self {
            Holds::No => Holds::Yes,
            Holds::Maybe => Holds::Maybe,
            Holds::Yes => Holds::No,
        }
    }
}

// === impl Traits ===

impl Traits {
    /// An end of which nothing but this is known.
    pub fn of(entity: Entity) -> Traits {
        Traits { entity, workload: None, node_labels: Labels::default() }
    }

    /// The numbers that the end gives a port's name, for a protocol; none where it may be any number.
    pub fn ports_named(&self, name: &str, protocol: u8) -> Option<BTreeSet<u16>> {
        if self.entity.may_be_any_pod() {
            return None;
        }
        let ports = self.workload.iter().flat_map(|workload| &workload.ports);
        Some(ports.filter(|(has, of, _)| **has == *name && *of == protocol).map(|(_, _, port)| *port).collect())
    }

    /// Whether a port of the end, under a protocol that has ports, is what a rule says.
    pub fn port_is(&self, wanted: &Port, protocol: u8, port: u16) -> Holds {
        match wanted {
            Port::Range(low, high) => (*low..=*high).contains(&port).into(),
            Port::Named(name) => match self.ports_named(name, protocol) {
                Some(numbers) => numbers.contains(&port).into(),
                None => Holds::Maybe,
            },
        }
    }
}

// === impl Entity ===

impl Entity {
    /// Whether it may be a pod with any labels, and ports of any names.
    pub fn may_be_any_pod(self) -> bool {
        matches!(self, Entity::UnknownPod | Entity::Disputed)
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// Whether it selects the end.
    pub fn select(&self, end: &Traits) -> Holds {
        match &end.workload {
            Some(workload) => self.select_workload(workload).into(),
            None if end.entity.may_be_any_pod() => Holds::Maybe,
            None => Holds::No,
        }
    }

    /// Whether it selects a workload.
    pub fn select_workload(&self, workload: &Workload) -> bool {
        let in_namespace = match &self.namespaces {
            Namespaces::Any => true,
            Namespaces::Named(name) => *name == workload.namespace,
            Namespaces::Labelled(selector) => selector.matches(&workload.namespace_labels),
        };
        in_namespace
            && self.labels.matches(&workload.labels)
            && self.service_accounts.as_ref().is_none_or(|names| names.contains(&workload.service_account))
    }
}

// === impl Nets ===

impl Nets {
    /// Whether they hold an end's address; `range` as for [`Nets::contain`], none where no range of any rule holds it.
    pub fn hold(&self, end: &Traits, range: Option<&IpNet>) -> bool {
        (self.scope == Scope::Anyone || end.entity == Entity::World) && range.is_some_and(|range| self.contain(range))
    }
}

// === impl Term, Peer, Peers ===

impl Term {
    /// Whether it holds for an end whose address is in `range`.
    pub fn holds(&self, end: &Traits, range: Option<&IpNet>) -> Holds {
        let is = match &self.is {
            Is::Endpoint(endpoints) => endpoints.select(end),
            Is::In(nets) => nets.hold(end, range).into(),
            Is::Entity(entities) => entities.contains(&end.entity).into(),
            Is::Node(selector) => match end.entity {
                Entity::Disputed => Holds::Maybe,
                Entity::Host | Entity::RemoteNode => selector.matches(&end.node_labels).into(),
                _ => Holds::No,
            },
        };
        if self.negated { !is } else { is }
    }
}

impl Peer {
    /// Whether every term holds.
    pub fn holds(&self, end: &Traits, range: Option<&IpNet>) -> Holds {
        self.0.iter().map(|term| term.holds(end, range)).min().unwrap_or(Holds::Yes)
    }
}

impl Peers {
    /// Whether one of them holds.
    pub fn hold(&self, end: &Traits, range: Option<&IpNet>) -> Holds {
        match self {
            Peers::Any => Holds::Yes,
            Peers::OneOf(peers) => peers.iter().map(|peer| peer.holds(end, range)).max().unwrap_or(Holds::No),
        }
    }
}
