//! Policy objects of Kubernetes, as their API documents describe them: networking.k8s.io/v1 NetworkPolicy,
//! policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy, v1alpha1 AdminNetworkPolicy and BaselineAdminNetworkPolicy.
//!
//! These types can hold well-formed objects only. What enforces policy reads the documents themselves, because it has
//! to say what is wrong with a malformed one and to deny what that would have decided.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinds::Envelope;

/// `apiVersion` of NetworkPolicy.
pub const NETWORKING_API_VERSION: &str = "networking.k8s.io/v1";
/// `apiVersion` of ClusterNetworkPolicy.
pub const CLUSTER_API_VERSION: &str = "policy.networking.k8s.io/v1alpha2";
/// `apiVersion` of AdminNetworkPolicy and BaselineAdminNetworkPolicy.
pub const ADMIN_API_VERSION: &str = "policy.networking.k8s.io/v1alpha1";

/// meta/v1 LabelSelector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// meta/v1 LabelSelectorRequirement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["key", "operator"])))]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    #[cfg_attr(test, schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"])))]
    pub operator: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// networking.k8s.io/v1 NetworkPolicy.
pub type NetworkPolicy = Envelope<NetworkPolicySpec>;

/// `spec` of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    pub pod_selector: LabelSelector,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
}

/// NetworkPolicyIngressRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// NetworkPolicyEgressRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// NetworkPolicyPeer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// IPBlock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    pub cidr: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// NetworkPolicyPort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
}

/// A number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(u16),
    String(String),
}

/// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
pub type ClusterNetworkPolicy = Envelope<ClusterNetworkPolicySpec>;

/// `spec` of a ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["tier", "priority", "subject"])))]
#[serde(default)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin`: before NetworkPolicies; or `Baseline`: where none of them is for the pod.
    #[cfg_attr(test, schemars(extend("enum" = ["Admin", "Baseline"])))]
    pub tier: String,
    /// Within its tier; 0 comes first.
    #[cfg_attr(test, schemars(range(min = 0, max = 1000)))]
    pub priority: u16,
    /// The pods that it is for: by `namespaces` or `pods`.
    #[cfg_attr(test, schemars(extend("x-kubernetes-validations" = [
        {"rule": "has(self.namespaces) || has(self.pods)", "message": "a subject is pods: write namespaces or pods"}
    ])))]
    pub subject: ClusterPeer,
    /// For packets to them; the first rule that matches decides.
    #[cfg_attr(test, schemars(length(max = 25), extend("x-kubernetes-validations" = [
        {"rule": "self.all(rule, has(rule.from) && !has(rule.to))", "message": "an ingress rule has `from`"},
        {"rule": "self.all(rule, !has(rule.from) || rule.from.all(peer, has(peer.namespaces) || has(peer.pods)))",
         "message": "packets come from namespaces or pods"}
    ])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterRule>,
    /// For packets from them; the first rule that matches decides.
    #[cfg_attr(test, schemars(length(max = 25), extend("x-kubernetes-validations" = [
        {"rule": "self.all(rule, has(rule.to) && !has(rule.from))", "message": "an egress rule has `to`"}
    ])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterRule>,
}

/// A rule of a ClusterNetworkPolicy; `from` is ingress rules', `to` is egress rules'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["action"])))]
#[serde(default)]
pub struct ClusterRule {
    /// For people.
    #[cfg_attr(test, schemars(length(max = 100)))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Accept`, `Deny`, or `Pass` to the next tier.
    #[cfg_attr(test, schemars(extend("enum" = ["Accept", "Deny", "Pass"])))]
    pub action: String,
    #[cfg_attr(test, schemars(length(min = 1, max = 25)))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ClusterPeer>,
    #[cfg_attr(test, schemars(length(min = 1, max = 25)))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ClusterPeer>,
    /// All where absent.
    #[cfg_attr(test, schemars(length(min = 1, max = 25)))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterProtocol>,
}

/// The subject of a policy, or a peer of a rule: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("minProperties" = 1, "maxProperties" = 1)))]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Address ranges, as `10.0.0.0/8` or `fd00::/8`.
    #[cfg_attr(test, schemars(length(min = 1, max = 25), inner(length(max = 43)), extend("x-kubernetes-validations" = [
        {"rule": "self.all(range, isCIDR(range))", "message": "an address range is as 10.0.0.0/8"}
    ])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Not resolved yet: a rule that has them is told of, and denies or matches nothing.
    #[cfg_attr(test, schemars(length(min = 1, max = 25)))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domain_names: Vec<String>,
}

/// Pods of some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["podSelector"])))]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    /// Those of all namespaces where absent.
    pub namespace_selector: LabelSelector,
    pub pod_selector: LabelSelector,
}

/// ClusterNetworkPolicyProtocol: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("minProperties" = 1, "maxProperties" = 1)))]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterProtocol {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TransportMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<TransportMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<TransportMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// What of a transport protocol is matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["destinationPort"])))]
#[serde(rename_all = "camelCase", default)]
pub struct TransportMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
}

/// A number or a range: exactly one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("minProperties" = 1, "maxProperties" = 1)))]
#[serde(default)]
pub struct ClusterPort {
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// From `start` to `end`, both of them too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["start", "end"], "x-kubernetes-validations" = [
    {"rule": "self.start < self.end", "message": "a range ends above its start"}
])))]
#[serde(default)]
pub struct PortRange {
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    pub start: u16,
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    pub end: u16,
}

/// policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy.
pub type AdminNetworkPolicy = Envelope<AdminNetworkPolicySpec>;
/// policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy: the same without `priority`.
pub type BaselineAdminNetworkPolicy = Envelope<AdminNetworkPolicySpec>;

/// `spec` of an AdminNetworkPolicy or BaselineAdminNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminNetworkPolicySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    pub subject: ClusterPeer,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminRule>,
}

/// A rule of either; `from` is ingress rules', `to` is egress rules'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminRule {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Allow`, `Deny` or, but in a Baseline policy, `Pass`.
    pub action: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ClusterPeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ClusterPeer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// AdminNetworkPolicyPort: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_number: Option<AdminPortNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<AdminPortRange>,
}

/// A protocol, `TCP` where it is absent, and a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminPortNumber {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    pub port: u16,
}

/// A protocol, `TCP` where it is absent, and ports from `start` to `end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminPortRange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    pub start: u16,
    pub end: u16,
}
