//! What Flannel keeps in a cluster: the ConfigMap with its `net-conf.json`, and the names of its annotations on Nodes.
//!
//! Flannel reads its JSON without looking at the case of keys, so these types are read from keys in lower case.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinds::ObjectMeta;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "kube-flannel-cfg";
/// Namespaces it is read from: those of Flannel's manifests, now and before. Anyone may make one of that name elsewhere.
pub const NAMESPACES: [&str; 2] = ["kube-flannel", "kube-system"];
/// Its key.
pub const NET_CONF: &str = "net-conf.json";

/// Annotation: `true` on a Node whose Flannel takes its subnet from the podCIDRs.
pub const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// Annotation: `vxlan`, `host-gw`, or another of Flannel's backends.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// Annotations: what the backend says of itself, for IPv4 and for IPv6.
pub const BACKEND_DATA: [&str; 2] =
    ["flannel.alpha.coreos.com/backend-data", "flannel.alpha.coreos.com/backend-v6-data"];
/// Annotations: where others send packets for the node, in IPv4 and in IPv6.
pub const PUBLIC_IP: [&str; 2] = ["flannel.alpha.coreos.com/public-ip", "flannel.alpha.coreos.com/public-ipv6"];

/// v1 ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMap {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub data: BTreeMap<String, String>,
}

/// `net-conf.json`, trimmed to what others have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", default)]
pub struct NetConf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(rename = "ipv6network", skip_serializing_if = "Option::is_none")]
    pub ipv6_network: Option<String>,
    #[serde(rename = "enableipv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "enableipv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    pub backend: Backend,
}

/// `Backend` of [`NetConf`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", default)]
pub struct Backend {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(rename = "directrouting", skip_serializing_if = "Option::is_none")]
    pub direct_routing: Option<bool>,
}

/// What [`BACKEND_DATA`] holds where the backend is vxlan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    #[serde(rename = "VNI")]
    pub vni: u32,
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: String,
}
