//! Our own kinds, group `tartan.dev/v1alpha1`: only what nobody has.

use serde::{Deserialize, Serialize};

use crate::kinds::{Conditions, Empty, Envelope};

/// `apiVersion` of our kinds.
pub const API_VERSION: &str = "tartan.dev/v1alpha1";
/// Name of the one NetworkConfig that counts.
pub const CONFIG_NAME: &str = "default";

/// Key of the taint that a kubelet may register its Node with (`--register-with-taints=tartan.dev/agent-not-ready:NoSchedule`);
/// the agent takes it off once the node's network is there.
pub const STARTUP_TAINT: &str = "tartan.dev/agent-not-ready";

/// The configuration of the cluster's network.
pub type NetworkConfig = Envelope<NetworkConfigSpec>;

/// `spec` of NetworkConfig; unknown keys are refused, because a typo must not pass for a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NetworkConfigSpec {
    /// `vxlan`, `ipip`, `udp`, `wireguard`, `ipsec`, `host-gw`, or `none`, which leaves the way to other nodes to somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["vxlan", "ipip", "udp", "wireguard", "ipsec", "host-gw", "none"])))]
    pub fabric: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpSpec>,
    /// `udp`: what carries packets between two nodes while the path self-test finds that the fabric is blocked between them.
    /// `none`: nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["none", "udp"])))]
    pub fallback: Option<String>,
    /// `none`, `wireguard` or `ipsec`, which wants a secret of the cluster: what carries packets between two nodes that both can, in the fabric's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["none", "wireguard", "ipsec"])))]
    pub encryption: Option<String>,
    /// Nothing goes to pods of other nodes in clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_encryption: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipsec: Option<IpsecSpec>,
    /// Peers on one of this node's links are reached without encapsulation, whatever the fabric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_subnet: Option<bool>,
    /// `auto`, `ipv4` or `ipv6`: the family of packets between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["auto", "ipv4", "ipv6"])))]
    pub underlay: Option<String>,
    /// MTU of the underlay, where the uplink's own is not to be believed.
    #[serde(rename = "underlayMTU", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1280, max = 65535)))]
    pub underlay_mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    #[serde(rename = "nonMasqueradeCIDRs", skip_serializing_if = "Option::is_none")]
    pub non_masquerade_cidrs: Option<Vec<String>>,
    /// `open` or `report`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["open", "report"])))]
    pub host_firewall: Option<String>,
    /// `enforce`, `audit` (say what would be denied, and let it pass) or `"off"`, which kubectl wants in quotes: it reads
    /// YAML 1.1, where a bare `off` is a boolean.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("enum" = ["enforce", "audit", "off"])))]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_address: Option<NodeAddressSpec>,
    /// How long a released address stays unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(max = 86400)))]
    pub cooldown_seconds: Option<u32>,
    /// How long after its last sign of life a node counts as live.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 3, max = 86400)))]
    pub lease_seconds: Option<u32>,
    /// How long the receive side of a fabric outlives its last sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(max = 3600)))]
    pub drain_seconds: Option<u32>,
}

/// Parameters of the vxlan fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VxlanSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1, max = 16777215)))]
    pub vni: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    pub port: Option<u16>,
    /// The kernel learns from packets where MACs are that no node told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// Packets carry the lower 16 bits of their mark to the other node (the group policy extension). It takes a port of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbp: Option<bool>,
}

/// Parameters of the udp fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UdpSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    pub port: Option<u16>,
}

/// Parameters of WireGuard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WireguardSpec {
    /// The first of four UDP ports in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1, max = 65532)))]
    pub port: Option<u16>,
    /// Counted up, every node makes itself a new key and goes over to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 0, max = 4294967295u32)))]
    pub rotation: Option<u32>,
    /// Keys are made anew whenever so much time has passed, too, by the nodes' clocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 10, max = 31536000)))]
    pub rotate_after_seconds: Option<u32>,
    /// What nodes send each other under their own addresses is encrypted as well, but for nodes of the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<bool>,
}

/// Parameters of IPsec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IpsecSpec {
    /// UDP port in which packets are wrapped (RFC 3948; 4500 is usual), where IP protocol 50 does not get through; unless it is said, they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 1, max = 65535)))]
    pub udp_port: Option<u16>,
    /// Counted up, all nodes make themselves new keys and go over to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 0, max = 4294967295u32)))]
    pub rotation: Option<u32>,
    /// Keys are made anew whenever so much time has passed, too, by the nodes' clocks; a day, unless it is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(range(min = 10, max = 604800)))]
    pub rotate_after_seconds: Option<u32>,
}

/// How a node finds the address it tells its peers; the first that is set counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[cfg_attr(test, schemars(extend("maxProperties" = 1)))]
pub struct NodeAddressSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_regex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidrs: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_reach: Option<String>,
}

/// Instances that a node may say that it sends on. Others come to hear some of them for its sake, and say so.
pub const MOST_SENDS: usize = 64;
/// And that it hears, or no longer accepts.
pub const MOST_ENDS: usize = 128;

/// What a node tells its peers (the Advert) and the cluster about itself; named as the node.
pub type NodeNetwork = Envelope<NodeNetworkSpec, Conditions>;

/// `spec` of NodeNetwork: the Advert.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNetworkSpec {
    /// UID of the Node object it was written for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_uid: String,
    /// Underlay addresses, at most one per family.
    pub addresses: Vec<String>,
    /// Fabric addresses, at most one per family.
    pub fabric_addresses: Vec<String>,
    /// Address ranges whose pods are on this node.
    pub blocks: Vec<String>,
    /// MTU of this node's pods, in force.
    pub mtu: u32,
    /// What this node can receive on, now.
    #[cfg_attr(test, schemars(length(max = MOST_ENDS)))]
    pub accepts: Vec<Endpoint>,
    /// What it no longer accepts and may still hear, with the address and the key it has there: peers know its packets by them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, schemars(length(max = MOST_ENDS)))]
    pub leaving: Vec<Endpoint>,
    /// Names of all instances this node may still send on.
    #[cfg_attr(test, schemars(length(max = MOST_SENDS)))]
    pub sends: Vec<String>,
    /// This node is new, and asks its peers to acknowledge what it says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub joining: bool,
    /// Words of joining nodes that this one's kernel acts on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledges: Option<Vec<Acknowledged>>,
    /// Counted up when anything above changes.
    pub edition: u64,
    /// Counted up with every sign of life; that it changes is what counts.
    pub heartbeat: u64,
    /// Of the agent that wrote this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A word of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Acknowledged {
    pub node: String,
    /// The node's `edition` when it said it.
    pub edition: u64,
}

/// One instance of a fabric on which a node receives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// The instance's name, which holds all its parameters: `host-gw`, `vxlan/ipv4/vni1/port8472`.
    pub instance: String,
    /// Underlay address to send to.
    pub address: String,
    /// Link-layer address behind it, where the fabric has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Public key that what is sent there is encrypted for, where the fabric encrypts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub public_key: String,
}

/// Something a user should know or do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The object it is about, e.g. `NodeNetwork/n1`.
    pub about: String,
    /// Field of the object, e.g. `spec.fabric`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// One word, for machines.
    pub reason: String,
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// The claim of a node on a range of a pool; named after the range. Written by compare-and-set only.
pub type IPBlock = Envelope<IPBlockSpec, Empty>;

/// `spec` of IPBlock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct IPBlockSpec {
    #[cfg_attr(test, schemars(length(max = 49)))]
    pub cidr: String,
    /// Name of the pool it is from.
    pub pool: String,
    /// Owner's name.
    pub node: String,
    /// Owner's Node UID: a node that came back under the same name is another one.
    pub node_uid: String,
    /// Parts of the block that its owner does not use itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<IPBlockPart>,
}

/// A part of an IPBlock, on its way to another node or back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct IPBlockPart {
    pub cidr: String,
    /// `aside`, `offered`, `given` or `leaving`.
    #[cfg_attr(test, schemars(extend("enum" = ["aside", "offered", "given", "leaving"])))]
    pub state: String,
    /// Who has it, where it is given or leaving.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// UID of that Node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_uid: String,
}
