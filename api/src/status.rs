//! What `tartan status` shows, as the agent answers it.

use serde::{Deserialize, Serialize};

use crate::kinds;
use crate::tartan::Condition;

/// One node, seen by its own agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub node: String,
    pub version: String,
    /// The first full pass is done and nothing failed in it.
    pub ready: bool,
    /// Why not, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waiting_for: String,
    /// Configured fabric, e.g. `vxlan`.
    pub fabric: String,
    /// `steady`, or what the change of fabric waits for.
    pub phase: String,
    /// Instances this node receives on.
    pub receives: Vec<String>,
    pub addresses: Vec<Address>,
    pub fabric_addresses: Vec<String>,
    /// MTU of pods, in bytes.
    pub pod_mtu: u32,
    pub blocks: Vec<BlockUse>,
    pub pods: Vec<Pod>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<Adopted>,
    pub peers: Vec<Peer>,
    pub kernel: Kernel,
    pub policy: Policy,
    pub conditions: Vec<Condition>,
}

/// An address this node tells its peers, and why that one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    pub address: String,
    pub link: String,
    pub mtu: u32,
    pub why: String,
}

/// A range of this node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockUse {
    pub cidr: String,
    pub used: u64,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub pod: String,
    pub addresses: Vec<String>,
    /// Host end of its link.
    pub link: String,
}

/// A pod that the network before made on this node, and that still is on its bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Adopted {
    /// Empty where no one Pod of this node has the address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    pub addresses: Vec<String>,
    pub bridge: String,
    /// The kernel holds what its policies come to.
    pub under_policy: bool,
}

/// How things stand with a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    pub node: String,
    /// It gave a sign of life within its lease.
    pub live: bool,
    /// What carries packets to it.
    pub fabric: String,
    /// What encrypts packets to its own addresses; empty: nothing does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub to_itself: String,
    pub blocks: Vec<String>,
    /// What probes say of the way there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<Path>,
}

/// What probes through the fabric say of the way to a peer, for one family of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Path {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Reason of the condition that says more; empty while all is well, or not known yet.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Of the last small packet that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_micros: Option<u64>,
    /// Largest packet that passes, in bytes: as large as pods' may be, or less if there is a fault.
    pub largest: u32,
    /// Probes, and those of them that were not answered.
    pub asked: u64,
    pub lost: u64,
}

/// How far the kernel has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kernel {
    /// Objects of ours in the kernel.
    pub objects: u64,
    /// Changes applied since the agent started.
    pub applied: u64,
    /// Of these, made because somebody else changed what was ours.
    pub repaired: u64,
    pub failures: Vec<Failure>,
}

/// An object that the kernel refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failure {
    pub object: String,
    pub owner: String,
    pub error: String,
}

/// What policies come to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// `enforce`, `audit` or `off`.
    pub mode: String,
    /// Objects of all policy kinds.
    pub policies: u64,
    /// Pods of this node whose policies are known.
    pub subjects: u64,
    /// Different sets of policies that they have.
    pub sets: u64,
    /// Verdicts of these sets.
    pub rows: u64,
    /// What addresses of the cluster and beyond are to any policy.
    pub identities: u64,
    /// Addresses whose identity is known one by one, and by range.
    pub addresses: u64,
    pub ranges: u64,
}

/// The whole cluster, from its store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cluster {
    /// Configured fabric, e.g. `vxlan`.
    pub fabric: String,
    /// `enforce`, `audit` or `off`.
    pub policy: String,
    pub nodes: Vec<ClusterNode>,
    pub pools: Vec<ClusterPool>,
    /// Objects that cannot be read.
    pub conditions: Vec<Condition>,
}

/// A node of the cluster, by what it and others say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNode {
    pub node: String,
    pub agent: AgentState,
    pub version: String,
    /// What it tells its peers to send to.
    pub addresses: Vec<String>,
    /// Instances of fabrics on which it receives.
    pub receives: Vec<String>,
    /// Instances on which it may send.
    pub sends: Vec<String>,
    /// MTU of its pods, in bytes.
    pub mtu: u32,
    /// Ranges of its pods.
    pub blocks: Vec<String>,
    /// What it says is wrong, and `Ready`.
    pub conditions: Vec<kinds::Condition>,
}

/// What is heard of a node's agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentState {
    /// It has given a sign of life while it was listened for.
    Alive,
    /// The same, and it asks its peers to acknowledge it.
    Joining,
    /// It gave none.
    Silent,
    /// It has never said anything for this Node.
    #[default]
    None,
    /// There is what it said, and no Node any more.
    Leftover,
}

/// A pool of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPool {
    pub pool: String,
    pub cidr: String,
    /// Prefix length of a block.
    pub block_size: u8,
    /// Blocks that nodes have claimed.
    pub blocks: u64,
    /// Nothing new is given out.
    pub disabled: bool,
}
