//! Objects of a store, as values of the model, and the events in which a store delivers them.

use std::fmt;
use std::sync::Arc;

use crate::{
    Advert, Block, Condition, Config, Flannel, Namespace, Node, NodeNetwork, Pod, PolicyMode, PolicyText, Pool,
    Reservation,
};

/// The kinds Tartan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    NetworkConfig,
    NodeNetwork,
    IpPool,
    IpReservation,
    IpBlock,
    Namespace,
    Pod,
    /// Flannel's alone.
    ConfigMap,
    NetworkPolicy,
    ClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
}

/// What names an object in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub kind: Kind,
    /// `NAMESPACE/NAME` where the kind [is namespaced](Kind::is_namespaced).
    pub name: Arc<str>,
}

/// A state of an object in a store; opaque, only compared. Bytes, because a number of this size would be aligned to as
/// many, and there is one beside each object of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision([u8; 16]);

/// An object of any kind. Shared: a store may keep it beside World.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Node(Arc<Node>),
    Config(Arc<Config>),
    NodeNetwork(NodeNetwork),
    Pool(Arc<Pool>),
    Reservation(Arc<Reservation>),
    Block(Arc<Block>),
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    Flannel(Arc<Flannel>),
    Policy(Arc<PolicyText>),
}

/// What a store says. Each list or relist of a kind is `Init`, `Put`s, `Synced`: what was not put between is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// A list of the kind begins.
    Init(Kind),
    /// The object is, or has become, this.
    Put(ObjectId, Object, Revision),
    /// The object is gone.
    Delete(ObjectId),
    /// The list of the kind is complete. Without a list: the store is back where it was, and what was missed follows.
    Synced(Kind),
    /// There is an object that cannot be read; what was known of it stays.
    Invalid(ObjectId, Box<Condition>),
    /// What else there is to say about a source of objects, e.g. a file whose objects cannot be told: takes the place
    /// of what was said of it before.
    Notice(Arc<str>, Vec<Condition>),
    /// All this at one moment: nobody acts on a part of it.
    Moment(Vec<StoreEvent>),
    /// The store cannot be reached, as far as this kind goes, or all of them; what is known stays. When it is back, a list
    /// follows or `Synced` alone.
    Away(Option<Kind>, String),
}

// === impl Revision ===

impl From<u128> for Revision {
    fn from(number: u128) -> Revision {
        Revision(number.to_be_bytes())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", u128::from_be_bytes(self.0))
    }
}

// === impl Object ===

impl From<Advert> for Object {
    fn from(advert: Advert) -> Object {
        Object::NodeNetwork(NodeNetwork { advert: advert.into(), conditions: Vec::new(), version: "".into() })
    }
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 13] = [
        Kind::Node,
        Kind::NetworkConfig,
        Kind::NodeNetwork,
        Kind::IpPool,
        Kind::IpReservation,
        Kind::IpBlock,
        Kind::Namespace,
        Kind::Pod,
        Kind::ConfigMap,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
        Kind::AdminNetworkPolicy,
        Kind::BaselineAdminNetworkPolicy,
    ];

    /// What plans depend on: until all of it has been heard, an absence proves nothing.
    pub fn planned(policy: PolicyMode) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| policy != PolicyMode::Off || !kind.is_for_policy())
    }

    /// Whether only policy looks at it.
    pub fn is_for_policy(self) -> bool {
        matches!(
            self,
            Kind::Namespace
                | Kind::Pod
                | Kind::NetworkPolicy
                | Kind::ClusterNetworkPolicy
                | Kind::AdminNetworkPolicy
                | Kind::BaselineAdminNetworkPolicy
        )
    }

    /// `kind` as documents have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::NetworkConfig => "NetworkConfig",
            Kind::NodeNetwork => "NodeNetwork",
            Kind::IpPool => "IPPool",
            Kind::IpReservation => "IPReservation",
            Kind::IpBlock => "IPBlock",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Kind::AdminNetworkPolicy => "AdminNetworkPolicy",
            Kind::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Pod | Kind::ConfigMap | Kind::NetworkPolicy)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}
