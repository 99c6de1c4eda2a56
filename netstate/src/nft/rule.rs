//! Rules, and a builder that reads like nft's own text.
//!
//! Invariant: a rule's fingerprint depends on its expressions and its comment only. Another build may hash the same
//! rule to another number; that costs one atomic rewrite of the chain and nothing else.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use siphasher::sip::SipHasher13;

use super::Nfproto;
use super::element::octets;

/// One rule. Two rules are equal when their fingerprints are.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Hash of the content, kept in the rule's userdata in the kernel; 0 for a rule that is not as we made it.
    pub fingerprint: u64,
    /// Empty in a rule that was read back.
    pub expressions: Vec<Expr>,
    /// What `nft list ruleset` shows behind it.
    pub comment: Arc<str>,
}

/// One expression of a rule: the kernel's own, as far as we use them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A property of the packet into a register.
    Meta { key: MetaKey, dreg: Reg },
    /// Bytes of the packet into a register.
    Payload { base: PayloadBase, offset: u32, len: u32, dreg: Reg },
    /// Goes on only if the register compares so.
    Cmp { sreg: Reg, op: CmpOp, data: Vec<u8> },
    /// `reg & mask`, in place.
    Bitwise { reg: Reg, mask: Vec<u8> },
    /// Goes on only if the key is in the set (or, inverted, is not); a map's data goes into `dreg`.
    Lookup { set: Arc<str>, sreg: Reg, dreg: Option<Reg>, inverted: bool },
    /// The type (`RTN_*`) of one of the packet's addresses into a register.
    FibType { of: AddressSide, dreg: Reg },
    /// A property of the connection into a register.
    Ct { key: CtKey, dreg: Reg },
    /// A constant into a register.
    Immediate { dreg: Reg, data: Vec<u8> },
    /// Counts packets and bytes.
    Counter,
    /// Translates to the address in a register, and to the port in another one.
    Nat { kind: NatKind, nfproto: Nfproto, addr: Reg, port: Option<Reg> },
    /// Translates the source to the output device's address, with a fully random port.
    Masquerade,
    /// What becomes of the packet.
    Verdict(Verdict),
}

/// One of the sixteen 32-bit registers; an IPv6 address takes four in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg(pub u8);

/// What [`Expr::Meta`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// Address family.
    Nfproto,
    /// Layer-4 protocol number.
    L4proto,
    /// Name of the input device.
    Iifname,
    /// Name of the output device.
    Oifname,
    /// Group of the input device.
    Iifgroup,
    /// Group of the output device.
    Oifgroup,
}

/// Where [`Expr::Payload`] counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// How [`Expr::Cmp`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
}

/// One of the packet's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSide {
    /// The source.
    Saddr,
    /// The destination.
    Daddr,
}

/// What [`Expr::Ct`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// `IPS_*` bits.
    Status,
}

/// Which address [`Expr::Nat`] translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NatKind {
    /// The source.
    Snat,
    /// The destination.
    Dnat,
}

/// The end of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet passes this hook's chains of our table; later base chains still see it.
    Accept,
    /// The packet is gone.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On with another chain, and back here after it.
    Jump(Arc<str>),
    /// On with another chain for good.
    Goto(Arc<str>),
}

/// A component of a lookup's key, taken from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Source address.
    Saddr,
    /// Destination address.
    Daddr,
    /// Layer-4 protocol.
    L4proto,
    /// Destination port.
    Dport,
}

/// A rule in the making. Matches come first; what ends the rule gives it back whole.
#[derive(Clone, Debug)]
pub struct RuleBuilder {
    comment: Arc<str>,
    expressions: Vec<Expr>,
    nfproto: Option<Nfproto>,
}

/// `IPS_DST_NAT`: the connection's destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;
/// `RTN_LOCAL`: the address is one of this node's own.
const RTN_LOCAL: u32 = 2;

/// Begins a rule; `comment` is what an operator reads behind it.
pub fn rule(comment: impl Into<Arc<str>>) -> RuleBuilder {
    RuleBuilder { comment: comment.into(), expressions: Vec::new(), nfproto: None }
}

// === impl RuleBuilder ===

impl RuleBuilder {
    /// `iifgroup GROUP`: came in through a link of this group.
    pub fn iifgroup(self, group: u32) -> RuleBuilder {
        self.meta(MetaKey::Iifgroup, group.to_ne_bytes().to_vec())
    }

    /// `oifgroup GROUP`: leaves through a link of this group.
    pub fn oifgroup(self, group: u32) -> RuleBuilder {
        self.meta(MetaKey::Oifgroup, group.to_ne_bytes().to_vec())
    }

    /// `iifname "PREFIX*"`: came in through a link whose name begins so.
    pub fn iifname_prefix(self, prefix: &str) -> RuleBuilder {
        self.meta(MetaKey::Iifname, prefix.as_bytes().to_vec())
    }

    /// `oifname "PREFIX*"`: leaves through a link whose name begins so.
    pub fn oifname_prefix(self, prefix: &str) -> RuleBuilder {
        self.meta(MetaKey::Oifname, prefix.as_bytes().to_vec())
    }

    /// `meta nfproto FAMILY`; put in front of the first address match by itself.
    pub fn nfproto(mut self, nfproto: Nfproto) -> RuleBuilder {
        if self.nfproto == Some(nfproto) {
            return self;
        }
        self.nfproto = Some(nfproto);
        self.meta(MetaKey::Nfproto, vec![nfproto.number()])
    }

    /// `ip saddr NET`.
    pub fn saddr(self, net: IpNet) -> RuleBuilder {
        self.address(Selector::Saddr, net)
    }

    /// `ip daddr NET`.
    pub fn daddr(self, net: IpNet) -> RuleBuilder {
        self.address(Selector::Daddr, net)
    }

    /// `SELECTORS @SET`: the concatenation is in the set.
    pub fn within(self, nfproto: Nfproto, selectors: &[Selector], set: &str) -> RuleBuilder {
        self.lookup(nfproto, selectors, set, None, false)
    }

    /// `SELECTORS != @SET`: the concatenation is not in the set.
    pub fn not_within(self, nfproto: Nfproto, selectors: &[Selector], set: &str) -> RuleBuilder {
        self.lookup(nfproto, selectors, set, None, true)
    }

    /// `fib saddr type local` or `fib daddr type local`: the address is one of this node's own.
    pub fn fib_local(self, of: AddressSide) -> RuleBuilder {
        self.then(Expr::FibType { of, dreg: Reg(0) }).compare(CmpOp::Eq, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// `ct status dnat`: the connection's destination was translated, by us or by others.
    pub fn ct_status_dnat(self) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::Status, dreg: Reg(0) })
            .then(Expr::Bitwise { reg: Reg(0), mask: IPS_DST_NAT.to_ne_bytes().to_vec() })
            .compare(CmpOp::Neq, vec![0; 4])
    }

    /// `counter`.
    pub fn counter(self) -> RuleBuilder {
        self.then(Expr::Counter)
    }

    /// `dnat to SELECTORS map @MAP`: to the address and port found in the map; goes on when there is none.
    pub fn dnat_to_map(self, nfproto: Nfproto, selectors: &[Selector], map: &str) -> Rule {
        let port = Reg(nfproto.addr_len() / 4);
        self.lookup(nfproto, selectors, map, Some(Reg(0)), false)
            .then(Expr::Nat { kind: NatKind::Dnat, nfproto, addr: Reg(0), port: Some(port) })
            .build()
    }

    /// `snat to ADDRESS`.
    pub fn snat_to(self, address: IpAddr) -> Rule {
        let nfproto = Nfproto::of(address);
        self.nfproto(nfproto)
            .then(Expr::Immediate { dreg: Reg(0), data: octets(address) })
            .then(Expr::Nat { kind: NatKind::Snat, nfproto, addr: Reg(0), port: None })
            .build()
    }

    /// `masquerade fully-random`.
    pub fn masquerade(self) -> Rule {
        self.then(Expr::Masquerade).build()
    }

    /// `accept`.
    pub fn accept(self) -> Rule {
        self.then(Expr::Verdict(Verdict::Accept)).build()
    }

    /// `drop`.
    pub fn drop(self) -> Rule {
        self.then(Expr::Verdict(Verdict::Drop)).build()
    }

    /// `return`.
    pub fn returns(self) -> Rule {
        self.then(Expr::Verdict(Verdict::Return)).build()
    }

    /// `jump CHAIN`.
    pub fn jump(self, chain: &str) -> Rule {
        self.then(Expr::Verdict(Verdict::Jump(chain.into()))).build()
    }

    /// `goto CHAIN`.
    pub fn goto(self, chain: &str) -> Rule {
        self.then(Expr::Verdict(Verdict::Goto(chain.into()))).build()
    }

    /// Any other expression, as it is.
    pub fn then(mut self, expression: Expr) -> RuleBuilder {
        self.expressions.push(expression);
        self
    }

    fn meta(self, key: MetaKey, data: Vec<u8>) -> RuleBuilder {
        self.then(Expr::Meta { key, dreg: Reg(0) }).compare(CmpOp::Eq, data)
    }

    fn compare(self, op: CmpOp, data: Vec<u8>) -> RuleBuilder {
        self.then(Expr::Cmp { sreg: Reg(0), op, data })
    }

    fn address(self, side: Selector, net: IpNet) -> RuleBuilder {
        let nfproto = Nfproto::of(net.addr());
        let loaded = self.nfproto(nfproto).load(nfproto, side, Reg(0));
        let masked = if net.prefix_len() == net.max_prefix_len() {
            loaded
        } else {
            loaded.then(Expr::Bitwise { reg: Reg(0), mask: octets(net.netmask()) })
        };
        masked.compare(CmpOp::Eq, octets(net.network()))
    }

    fn lookup(
        self,
        nfproto: Nfproto,
        selectors: &[Selector],
        set: &str,
        dreg: Option<Reg>,
        inverted: bool,
    ) -> RuleBuilder {
        let mut next = 0;
        let mut builder = self.nfproto(nfproto);
        for selector in selectors {
            builder = builder.load(nfproto, *selector, Reg(next));
            next += selector.registers(nfproto);
        }
        builder.then(Expr::Lookup { set: set.into(), sreg: Reg(0), dreg, inverted })
    }

    fn load(self, nfproto: Nfproto, selector: Selector, dreg: Reg) -> RuleBuilder {
        let network = |v4, v6| {
            let offset = if nfproto == Nfproto::Ipv4 { v4 } else { v6 };
            Expr::Payload { base: PayloadBase::Network, offset, len: nfproto.addr_len().into(), dreg }
        };
        self.then(match selector {
            Selector::Saddr => network(12, 8),
            Selector::Daddr => network(16, 24),
            Selector::L4proto => Expr::Meta { key: MetaKey::L4proto, dreg },
            Selector::Dport => Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg },
        })
    }

    fn build(self) -> Rule {
        let mut hasher = SipHasher13::new();
        (&self.expressions, &self.comment).hash(&mut hasher);
        // 0 says "not as we made it" in a rule that was read back.
        let fingerprint = hasher.finish().max(1);
        Rule { fingerprint, expressions: self.expressions, comment: self.comment }
    }
}

impl Selector {
    fn registers(self, nfproto: Nfproto) -> u8 {
        match self {
            Selector::Saddr | Selector::Daddr => nfproto.addr_len() / 4,
            Selector::L4proto | Selector::Dport => 1,
        }
    }
}

// === impl Rule ===

impl Rule {
    /// Whether the rule uses this set or map.
    pub fn looks_into(&self, name: &str) -> bool {
        self.expressions.iter().any(|expression| matches!(expression, Expr::Lookup { set, .. } if **set == *name))
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Rule {}
