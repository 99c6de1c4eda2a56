//! Kubernetes objects, and Calico's that we read as they are, trimmed to what Tartan uses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `metadata` of any object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An object as every store holds it: type, metadata, and a body that depends on the type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(bound(
    serialize = "Spec: Serialize, Status: Serialize + Default + PartialEq",
    deserialize = "Spec: Deserialize<'de> + Default, Status: Deserialize<'de> + Default"
))]
pub struct Envelope<Spec, Status = Empty> {
    /// Not there in an API server's list of a built-in kind.
    #[serde(default)]
    pub api_version: String,
    /// As `api_version`.
    #[serde(default)]
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Spec,
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: Status,
}

/// A body with nothing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Empty {}

/// v1 Node.
pub type Node = Envelope<NodeSpec, NodeStatus>;

/// `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR", skip_serializing_if = "String::is_empty")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<NodeAddress>,
}

/// One of a Node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`.
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

/// `apiVersion` of the kinds of Calico that we read.
pub const CALICO_API_VERSION: &str = "projectcalico.org/v3";

/// projectcalico.org/v3 IPPool.
pub type IPPool = Envelope<IPPoolSpec>;

/// `spec` of an IPPool; keys of Calico's that Tartan does not act on are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct IPPoolSpec {
    pub cidr: String,
    /// Prefix length of a block; 26 and 122 where absent.
    #[cfg_attr(test, schemars(range(min = 1, max = 128)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// Nothing new is given out.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
    /// `Workload`, `Tunnel`, `LoadBalancer`; pods get addresses where it is absent or holds `Workload`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<String>,
    /// `Automatic` or `Manual`: whether addresses are given out to pods that ask for none in particular.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub assignment_mode: String,
}

/// projectcalico.org/v3 IPReservation.
pub type IPReservation = Envelope<IPReservationSpec>;

/// `spec` of an IPReservation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct IPReservationSpec {
    #[serde(rename = "reservedCIDRs")]
    pub reserved_cidrs: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
