//! Peers, ports and rules as a policy of each API would have them written, for what a trace says to add.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tartan_model::workload::NAMESPACE_NAME_LABEL;
use tartan_model::{Kind, Labels, World};

use crate::ends::{self, Who};
use crate::ir::{Direction, Entity, Rank, protocol};
use crate::walk::{End, Packet};

/// Labels that controllers put on single pods or revisions: no rule should name them.
pub(crate) const PASSING: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// What is to be written: for one policy, the other end and a packet.
pub(super) struct Written<'a> {
    world: &'a World,
    rank: &'a Rank,
    direction: Direction,
    address: IpAddr,
    who: Who,
    packet: &'a Packet,
}

/// Whether the policy's API has words for the other end; a rule of ClusterNetworkPolicy has them for pods only where it
/// says who may come in.
pub(super) fn can_name(rank: &Rank, direction: Direction, remote: &End) -> bool {
    rank.source.kind == Kind::NetworkPolicy
        || direction == Direction::Egress
        || matches!(remote.traits.entity, Entity::Pod)
}

// === impl Written ===

impl<'a> Written<'a> {
    pub(super) fn of(
        world: &'a World,
        rank: &'a Rank,
        direction: Direction,
        address: IpAddr,
        packet: &'a Packet,
    ) -> Written<'a> {
        Written { world, rank, direction, address, who: ends::who(world, address), packet }
    }

    /// The other end, as a person calls it.
    pub(super) fn other(&self) -> String {
        match &self.who {
            Who::Pod(key) => key.to_string(),
            Who::Node(name) => format!("node {name}"),
            Who::UnknownPod(_) | Who::Disputed(_) | Who::World => self.address.to_string(),
        }
    }

    pub(super) fn ports_key(&self) -> &'static str {
        if self.rank.source.kind == Kind::ClusterNetworkPolicy { "protocols" } else { "ports" }
    }

    /// An item of the list of peers; null where the API has no words for it.
    pub(super) fn peer(&self) -> Value {
        let range = IpNet::from(self.address).to_string();
        let is_namespaced = self.rank.source.kind == Kind::NetworkPolicy;
        match (&self.who, self.direction) {
            (Who::Pod(key), _) => self.pod(key),
            (_, _) if is_namespaced => json!({ "ipBlock": { "cidr": range } }),
            (_, Direction::Egress) => json!({ "networks": [range] }),
            (_, Direction::Ingress) => Value::Null,
        }
    }

    fn pod(&self, key: &str) -> Value {
        let (namespace, _) = key.split_once('/').unwrap_or(("", key));
        let own = self.rank.source.name.split_once('/').map(|(namespace, _)| namespace);
        let labels = self.world.pods.get(key).map(|pod| pod.labels.only(|label| !PASSING.contains(&label)));
        let pods = selector(&labels.unwrap_or_default());
        let namespaces = json!({ "matchLabels": { NAMESPACE_NAME_LABEL: namespace } });
        match own {
            Some(own) if own == namespace => json!({ "podSelector": pods }),
            Some(_) => json!({ "namespaceSelector": namespaces, "podSelector": pods }),
            None => json!({ "pods": { "namespaceSelector": namespaces, "podSelector": pods } }),
        }
    }

    /// An item of the list of ports; null where the API has no words for the packet.
    pub(super) fn port(&self) -> Value {
        let (upper, lower) = match self.packet.protocol {
            protocol::TCP => ("TCP", "tcp"),
            protocol::UDP => ("UDP", "udp"),
            protocol::SCTP => ("SCTP", "sctp"),
            _ => return Value::Null,
        };
        let port = self.packet.destination;
        match self.rank.source.kind {
            Kind::ClusterNetworkPolicy => json!({ lower: { "destinationPort": { "number": port } } }),
            Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy => {
                json!({ "portNumber": { "protocol": upper, "port": port } })
            }
            _ => json!({ "port": port, "protocol": upper }),
        }
    }

    /// An item of the list of rules. Without words for the packet it is about all packets, without words for the other
    /// end there is none.
    pub(super) fn rule(&self) -> Value {
        let (peer, port) = (self.peer(), self.port());
        if peer.is_null() {
            return Value::Null;
        }
        let mut rule = Map::new();
        match self.rank.source.kind {
            Kind::NetworkPolicy => {}
            Kind::ClusterNetworkPolicy => drop(rule.insert("action".into(), "Accept".into())),
            _ => drop(rule.insert("action".into(), "Allow".into())),
        }
        let side = if self.direction == Direction::Ingress { "from" } else { "to" };
        rule.insert(side.into(), json!([peer]));
        if !port.is_null() {
            rule.insert(self.ports_key().into(), json!([port]));
        }
        rule.into()
    }
}

fn selector(labels: &Labels) -> Value {
    let labels: Map<String, Value> = labels.iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    if labels.is_empty() { json!({}) } else { json!({ "matchLabels": labels }) }
}
