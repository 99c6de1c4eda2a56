//! What the tools of `tartan policy` show, as they print it for programs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What becomes of one connection, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Trace {
    pub from: End,
    pub to: End,
    /// E.g. `80/tcp`.
    pub packet: String,
    /// Neither end denies it.
    pub allowed: bool,
    /// Of the pod it leaves.
    pub egress: Judged,
    /// Of the pod it enters.
    pub ingress: Judged,
}

/// An end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct End {
    /// `NAMESPACE/NAME` of a pod, a node's name, or what else it is.
    pub name: String,
    pub address: String,
    /// What a user may not expect of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the policies of one pod say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Judged {
    pub verdict: Verdict,
    /// The line that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Line>,
    /// Where no line does: why it is so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What else is about the connection, in the order in which it is asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Line>,
    /// Each of these changes would allow it, the smallest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub would_allow: Vec<Change>,
}

/// What becomes of a connection at one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    #[default]
    NotJudged,
    Allowed,
    /// A policy that is only tried would deny it.
    Audited,
    Denied,
    /// Denied, and the sender is told.
    Rejected,
}

/// A line of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Line {
    /// `KIND/NAME`, with the namespace where it has one.
    pub object: String,
    pub field: String,
    /// `FILE:LINE`, where the policies come from files.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
    pub tier: String,
    /// What it does, in a few words.
    pub says: String,
    /// What stands there.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub yaml: Value,
}

/// A change of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Change {
    pub object: String,
    /// Where to make it,
    pub field: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// why there,
    pub message: String,
    /// and what to add.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub add: Value,
}

/// What is decided alike for one pod: rows of its verdict tables, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Row {
    /// `ingress` or `egress`.
    pub direction: String,
    /// Which other ends.
    pub peers: Vec<String>,
    /// Which packets, e.g. `tcp 80,443`.
    pub packets: String,
    pub verdict: Verdict,
    /// `KIND/NAME` of the policy that decides; empty where none does.
    pub object: String,
    pub field: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
}

/// Packets between two groups whose verdict differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Difference {
    pub from: Group,
    pub to: Group,
    /// Which packets, e.g. `tcp 80,443`; of one family only, where the families differ.
    pub packets: String,
    pub now: Verdict,
    pub then: Verdict,
    /// The end that decides then, `egress` or `ingress`, and the line it goes by.
    pub end: String,
    pub object: String,
    pub field: String,
}

/// Pods that no policy can tell apart, or other addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Group {
    /// Namespace and labels of pods, or what else it is.
    pub name: String,
    /// How many pods; 0 where it is no pods.
    pub pods: usize,
    /// One of them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub example: String,
}

/// What is wrong with a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Diagnostic {
    /// `FILE:LINE`.
    pub place: String,
    /// `KIND/NAME`, as far as can be told.
    pub object: String,
    pub field: String,
    pub reason: String,
    pub message: String,
    pub fix: String,
}

/// How often a rule has decided on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Count {
    /// `KIND/NAME` of the policy; empty where none decided.
    pub object: String,
    pub field: String,
    pub verdict: Verdict,
    /// Of a connection that is allowed the first one, and one after each revocation.
    pub packets: u64,
}

/// A packet that policy denied, or would have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Denied {
    pub from: End,
    pub to: End,
    /// E.g. `80/tcp`.
    pub packet: String,
    pub verdict: Verdict,
    /// `KIND/NAME` of the policy that decides; empty where it is not there any more.
    pub object: String,
    pub field: String,
    /// At least so many went by unseen before it.
    pub lost: u64,
}
