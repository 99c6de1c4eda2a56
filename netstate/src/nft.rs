//! Objects of our one nft table: chains, sets, elements, and the few expressions rules are made of.
//!
//! Rules are never decompiled. Each carries a fingerprint of its own content in its userdata, and chains compare by
//! the list of fingerprints; sets and maps compare by element. An interval is one element with a start and an end.
//!
//! A set is never redefined under its name: what changes its layout changes its name.

mod element;
mod name;
mod rule;

pub use element::{ElementData, ElementKey, Fields};
pub use name::SetName;
pub use rule::{
    AddressSide, CmpOp, CtDirection, CtKey, Expr, Groups, MetaKey, NatKind, PayloadBase, Reg, Rule, RuleBuilder,
    Selector, Verdict, rule,
};

use std::net::IpAddr;

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

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Length of a key in bytes; in a concatenation each component is padded to four.
    pub key_len: u32,
    /// nft's datatype number of the key, so that `nft list` can print it.
    pub key_type: u32,
    /// Length of the data in bytes; 0 for a set.
    pub data_len: u32,
    /// nft's datatype number of the data; 0 for a set.
    pub data_type: u32,
    /// What its elements are.
    pub kind: SetKind,
}

/// What elements a set has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Keys.
    Exact,
    /// Intervals of keys, with a start and an end.
    Intervals,
    /// Keys that rules put in, each with a count of packets ([`Expr::Count`]). They are nobody's wish, and no part of a
    /// state.
    Counts,
}

/// What a component of a set's key or of a map's data is, to nft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `ipv4_addr`
    Ipv4Addr,
    /// `ipv6_addr`
    Ipv6Addr,
    /// `inet_proto`
    InetProto,
    /// `inet_service`, a port
    InetService,
    /// `mark`, and any other number of four bytes
    Mark,
    /// `ifname`
    Ifname,
    /// `icmpv6_type`
    Icmpv6Type,
    /// `integer` of so many bytes: what nft cannot print as anything else
    Integer(u8),
}

/// The family of the packets a rule or a set is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nfproto {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

// === impl Chain ===

impl Chain {
    /// A base chain: the kernel calls it at `hook`.
    pub fn base(kind: ChainKind, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Chain {
        Chain { hook: Some(Hook { kind, point, priority }), rules }
    }

    /// A chain that others jump to.
    pub fn regular(rules: Vec<Rule>) -> Chain {
        Chain { hook: None, rules }
    }
}

/// The datatype of verdicts.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// What a 64-bit kernel says of it.
const VERDICT_LEN: u32 = 16;

// === impl Set ===

impl Set {
    /// A set of exact keys.
    pub fn exact(key: &[Type]) -> Set {
        Set::map(key, &[])
    }

    /// A map from exact keys to data.
    pub fn map(key: &[Type], data: &[Type]) -> Set {
        Set {
            key_len: Type::len_of(key),
            key_type: Type::number_of(key),
            data_len: Type::len_of(data),
            data_type: Type::number_of(data),
            kind: SetKind::Exact,
        }
    }

    /// A set of keys that packets are counted by.
    pub fn counts(key: Type) -> Set {
        Set { kind: SetKind::Counts, ..Set::exact(&[key]) }
    }

    /// A set of intervals; their elements must not overlap.
    pub fn intervals(key: Type) -> Set {
        Set { kind: SetKind::Intervals, ..Set::exact(&[key]) }
    }

    /// A map from intervals to data; they must not overlap.
    pub fn interval_map(key: Type, data: &[Type]) -> Set {
        Set { kind: SetKind::Intervals, ..Set::map(&[key], data) }
    }

    /// A map from exact keys to verdicts.
    pub fn verdict_map(key: &[Type]) -> Set {
        Set { data_len: VERDICT_LEN, data_type: NFT_DATA_VERDICT, ..Set::exact(key) }
    }
}

// === impl Type ===

impl Type {
    /// The datatype of an address of this family.
    pub fn addr(nfproto: Nfproto) -> Type {
        match nfproto {
            Nfproto::Ipv4 => Type::Ipv4Addr,
            Nfproto::Ipv6 => Type::Ipv6Addr,
        }
    }

    fn len(self) -> u32 {
        match self {
            Type::Ipv4Addr => 4,
            Type::Ipv6Addr => 16,
            Type::InetProto => 1,
            Type::InetService => 2,
            Type::Mark => 4,
            Type::Ifname => 16,
            Type::Icmpv6Type => 1,
            Type::Integer(len) => len.into(),
        }
    }

    /// nft's own number (`enum datatypes`).
    pub fn number(self) -> u32 {
        match self {
            Type::Ipv4Addr => 7,
            Type::Ipv6Addr => 8,
            Type::InetProto => 12,
            Type::InetService => 13,
            Type::Mark => 19,
            Type::Ifname => 41,
            Type::Icmpv6Type => 29,
            Type::Integer(_) => 4,
        }
    }

    fn len_of(types: &[Type]) -> u32 {
        match types {
            [one] => one.len(),
            many => many.iter().map(|each| each.len().next_multiple_of(4)).sum(),
        }
    }

    /// A concatenation's number has six bits for each component.
    fn number_of(types: &[Type]) -> u32 {
        types.iter().fold(0, |number, each| number << 6 | each.number())
    }
}

// === impl Nfproto ===

impl Nfproto {
    /// Both, IPv4 first.
    pub const BOTH: [Nfproto; 2] = [Nfproto::Ipv4, Nfproto::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Nfproto {
        if address.is_ipv4() { Nfproto::Ipv4 } else { Nfproto::Ipv6 }
    }

    /// `NFPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Nfproto::Ipv4 => 2,
            Nfproto::Ipv6 => 10,
        }
    }

    /// Length of an address in bytes.
    pub fn addr_len(self) -> u8 {
        match self {
            Nfproto::Ipv4 => 4,
            Nfproto::Ipv6 => 16,
        }
    }

    /// How names of per-family sets end.
    pub fn suffix(self) -> &'static str {
        match self {
            Nfproto::Ipv4 => "4",
            Nfproto::Ipv6 => "6",
        }
    }
}
