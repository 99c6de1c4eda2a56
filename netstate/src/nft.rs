//! Objects of our one nft table: chains, sets, elements, and the few expressions rules are made of.
//!
//! Rules are never decompiled. Each carries a fingerprint of its own content in its userdata, and chains compare by
//! the list of fingerprints; sets and maps compare by element.

use std::fmt;
use std::sync::Arc;

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel calls it; none for a chain that only others jump to.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A base chain's place. The policy is always accept: the host forwards for others too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Chain type.
    pub kind: ChainKind,
    /// Netfilter hook.
    pub point: HookPoint,
    /// Order among chains of one hook.
    pub priority: i32,
}

/// `type` of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Filter.
    Filter,
    /// Address translation; sees a connection's first packet only.
    Nat,
}

/// `hook` of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// Before routing.
    Prerouting,
    /// For this node.
    Input,
    /// Through this node.
    Forward,
    /// From this node.
    Output,
    /// After routing.
    Postrouting,
}

/// One rule. Two rules are equal when their fingerprints are.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Hash of the content, kept in the rule's userdata in the kernel.
    pub fingerprint: u64,
    /// Empty in a rule that was read back.
    pub expressions: Vec<Expr>,
    /// What `nft list ruleset` shows behind it.
    pub comment: Arc<str>,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Length of a key in bytes, each component padded to four.
    pub key_len: u32,
    /// nft's datatype number of the key, so that `nft list` can print it.
    pub key_type: u32,
    /// Length of the data in bytes; 0 for a set.
    pub data_len: u32,
    /// nft's datatype number of the data.
    pub data_type: u32,
    /// An interval set (elements are starts and ends) or an exact one.
    pub interval: bool,
}

/// An element's encoded key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementKey {
    /// Bytes in network order, components padded to four.
    pub bytes: Vec<u8>,
    /// The element marks the end (exclusive) of an interval.
    pub interval_end: bool,
}

/// An element's data: bytes in network order; empty in a set.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ElementData(pub Vec<u8>);

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Rule {}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.bytes {
            write!(f, "{byte:02x}")?;
        }
        if self.interval_end { f.write_str(" (end)") } else { Ok(()) }
    }
}
