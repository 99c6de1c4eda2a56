//! Conditions: what a user should know, beside every value that could not be made as asked.

use std::sync::Arc;
use std::time::Instant;

/// What a node says of itself in its NodeNetwork, in the shape that Kubernetes has for it. One a type; `Ready` is always
/// there, any other type is there as long as there is such a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// `type`: `Ready`, or the reason of a [`Condition`].
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    pub message: String,
    /// `lastTransitionTime`: since when it has this status, as RFC 3339 has it.
    pub since: String,
}

/// One word for what a node says is wrong with it, which its NodeNetwork has more about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: Arc<str>,
    /// As its condition has it.
    pub since: Arc<str>,
    /// When this was first heard.
    pub heard: Instant,
}

/// Something that is not as it should be, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// The object it is about, e.g. `Node/n2` or `NetworkConfig/default`.
    pub about: String,
    /// Path of the field, e.g. `spec.vxlan.vni`; empty where no field is to blame.
    pub field: String,
    /// One word, for machines and for searching.
    pub reason: &'static str,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do.
    pub fix: String,
}

impl NodeCondition {
    /// Whether it is something that is wrong: `Ready` only sums up the others.
    pub fn is_trouble(&self) -> bool {
        self.kind != "Ready" && self.status == "True"
    }
}
