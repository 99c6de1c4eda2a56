//! Dialects: policy APIs, one file each, lowered to [`ir`](crate::ir) with what is to be said of each object.
//!
//! Invariants: a dialect is total; a part it cannot honour denies what that part would have decided, and is told with
//! object, field, value, what was done and the fix. Nothing of one object depends on another.

use std::sync::Arc;

use serde_json::{Map, Value};
use tartan_model::{Condition, Kind, ObjectId, PolicyText};

pub(crate) use self::read::nearest;
use self::read::{At, Reader};
use crate::ir::{DefaultAction, Order, Policy, Rank, Tier};

mod blocks;
mod cluster;
mod k8s;
mod read;

/// What became of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    pub policies: Vec<(Rank, Arc<Policy>)>,
    pub said: Vec<Condition>,
}

/// Where NetworkPolicies stand among the policies of the default tier: Calico gives them this order.
const NETWORK_POLICY_ORDER: Order = Order(1000.0);

/// The tier before all others.
fn admin_tier() -> Tier {
    Tier { order: Order::FIRST, name: "kube-admin".into(), default_action: DefaultAction::Pass }
}

/// The tier of policies that name none; it has the order that Calico gives it.
fn default_tier() -> Tier {
    Tier { order: Order(1_000_000.0), name: "default".into(), default_action: DefaultAction::Deny }
}

/// The tier after all others.
fn baseline_tier() -> Tier {
    Tier { order: Order::LAST, name: "kube-baseline".into(), default_action: DefaultAction::Pass }
}

/// What an object means; every kind of policy on one screen.
pub fn lower(id: &ObjectId, text: &PolicyText) -> Lowered {
    let mut reader = Reader::new(id);
    let document = serde_json::from_str(&text.json).unwrap_or_else(|_| Value::Object(Map::new()));
    let root = At { value: &document, path: String::new() };
    let policies = match id.kind {
        Kind::NetworkPolicy => k8s::lower(&mut reader, id, &root),
        Kind::ClusterNetworkPolicy => cluster::lower(&mut reader, id, &root, &cluster::V1ALPHA2),
        Kind::AdminNetworkPolicy => cluster::lower(&mut reader, id, &root, &cluster::ADMIN),
        Kind::BaselineAdminNetworkPolicy => cluster::lower(&mut reader, id, &root, &cluster::BASELINE),
        Kind::Node
        | Kind::NetworkConfig
        | Kind::NodeNetwork
        | Kind::IpPool
        | Kind::IpReservation
        | Kind::IpBlock
        | Kind::Namespace
        | Kind::Pod
        | Kind::ConfigMap => Vec::new(),
    };
    let policies = policies.into_iter().map(|(rank, policy)| (rank, Arc::new(policy))).collect();
    Lowered { policies, said: reader.into_said() }
}

#[cfg(test)]
mod tests;
