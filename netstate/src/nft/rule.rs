//! Rules, and a builder that reads like nft's own text.
//!
//! Invariant: a rule's fingerprint depends on its expressions and its comment only. Another build may hash the same
//! rule to another number; that costs one atomic rewrite of the chain and nothing else.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;
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
    /// `(sreg & mask) ^ xor` into a register.
    Bitwise { sreg: Reg, dreg: Reg, mask: Vec<u8>, xor: Vec<u8> },
    /// Goes on only if the key is in the set (or, inverted, is not); a map's data goes into `dreg`.
    Lookup { set: Arc<str>, sreg: Reg, dreg: Option<Reg>, inverted: bool },
    /// Does what the verdict map says of the key. If it says nothing, the rule ends.
    VerdictMap { map: Arc<str>, sreg: Reg },
    /// The packet's mark from a register.
    SetMark { sreg: Reg },
    /// The type (`RTN_*`) of one of the packet's addresses into a register.
    FibType { of: AddressSide, dreg: Reg },
    /// Whether the kernel is about to wrap the packet by IPsec, into a register.
    Ipsec { dreg: Reg },
    /// A property of the connection into a register.
    Ct { key: CtKey, dreg: Reg },
    /// The connection's mark from a register.
    SetCtMark { sreg: Reg },
    /// A constant into a register.
    Immediate { dreg: Reg, data: Vec<u8> },
    /// The packet is of no connection: conntrack leaves it alone.
    Notrack,
    /// Counts packets and bytes.
    Counter,
    /// Counts packets by key, in a set of [`super::SetKind::Counts`].
    Count { set: Arc<str>, sreg: Reg },
    /// Goes on only so often a second; this many may come at once.
    Limit { per_second: u64, burst: u32 },
    /// Tells who listens to this NFLOG group of the packet, with so many of its bytes.
    Log { group: u16, snaplen: u32 },
    /// The packet is gone, and its sender is told: by a reset, else as administratively prohibited.
    Reject { tcp_reset: bool },
    /// Translates to the address in a register, and to the port in another one.
    Nat { kind: NatKind, nfproto: Nfproto, addr: Reg, port: Option<Reg> },
    /// Translates the source to the output device's address, with a fully random port; of those from one register's to the
    /// other's, if they are said.
    Masquerade { ports: Option<[Reg; 2]> },
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
    /// The packet's mark.
    Mark,
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
    /// Which direction the packet goes in: 0 as the first one, 1 back.
    Direction,
    /// What the packet is to the connection, as bits. Packets of no connection have a state, too.
    State,
    /// The connection's mark.
    Mark,
    /// Destination port of its first packet as it came; of ICMP, type and code.
    OriginalProtoDst,
    /// Source of packets as they came in one direction.
    Saddr(CtDirection, Nfproto),
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtDirection {
    /// That of its first packet.
    Original,
    /// Back.
    Reply,
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
    /// On with the rule: only in verdict maps.
    Continue,
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
    /// Source port; of ICMP, type and code.
    Sport,
    /// Type of an ICMP message.
    IcmpType,
    /// Name of the input device.
    Iifname,
    /// Name of the output device.
    Oifname,
}

/// Groups of links, those that differ in no bit of the mask from the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Bits that matter.
    pub mask: u32,
    /// What they are.
    pub value: u32,
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
/// Bit of the state of what a connection brings about: errors, and what a helper expects.
const CT_STATE_RELATED: u32 = 1 << 2;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// `RTN_UNICAST`: the address is somebody else's, and nobody's besides.
const RTN_UNICAST: u32 = 1;
/// `RTN_LOCAL`: the address is one of this node's own.
const RTN_LOCAL: u32 = 2;

/// Begins a rule; `comment` is what an operator reads behind it.
pub fn rule(comment: impl Into<Arc<str>>) -> RuleBuilder {
    RuleBuilder { comment: comment.into(), expressions: Vec::new(), nfproto: None }
}

// === impl RuleBuilder ===

impl RuleBuilder {
    /// `iifgroup & MASK == VALUE`: came in through a link of these groups.
    pub fn iifgroup(self, groups: Groups) -> RuleBuilder {
        self.group(MetaKey::Iifgroup, CmpOp::Eq, groups)
    }

    /// `iifgroup & MASK != VALUE`: came in through another link, or is this node's own.
    pub fn not_iifgroup(self, groups: Groups) -> RuleBuilder {
        self.group(MetaKey::Iifgroup, CmpOp::Neq, groups)
    }

    /// `oifgroup & MASK == VALUE`: leaves through a link of these groups.
    pub fn oifgroup(self, groups: Groups) -> RuleBuilder {
        self.group(MetaKey::Oifgroup, CmpOp::Eq, groups)
    }

    /// `oifgroup & MASK != VALUE`: leaves through another link.
    pub fn not_oifgroup(self, groups: Groups) -> RuleBuilder {
        self.group(MetaKey::Oifgroup, CmpOp::Neq, groups)
    }

    /// `iifname "PREFIX*"`: came in through a link whose name begins so.
    pub fn iifname_prefix(self, prefix: &str) -> RuleBuilder {
        self.meta(MetaKey::Iifname, prefix.as_bytes().to_vec())
    }

    /// `oifname "PREFIX*"`: leaves through a link whose name begins so.
    pub fn oifname_prefix(self, prefix: &str) -> RuleBuilder {
        self.meta(MetaKey::Oifname, prefix.as_bytes().to_vec())
    }

    /// `rt ipsec exists`: the kernel is about to wrap the packet by IPsec.
    pub fn ipsec(self) -> RuleBuilder {
        self.then(Expr::Ipsec { dreg: Reg(0) }).compare(CmpOp::Eq, vec![1])
    }

    /// `meta nfproto FAMILY`; put in front of the first address match by itself.
    pub fn nfproto(mut self, nfproto: Nfproto) -> RuleBuilder {
        if self.nfproto == Some(nfproto) {
            return self;
        }
        self.nfproto = Some(nfproto);
        self.meta(MetaKey::Nfproto, vec![nfproto.number()])
    }

    /// `meta l4proto NUMBER`.
    pub fn l4proto(self, number: u8) -> RuleBuilder {
        self.meta(MetaKey::L4proto, vec![number])
    }

    /// `udp dport PORT`.
    pub fn udp_dport(self, port: u16) -> RuleBuilder {
        let loaded = self.l4proto(UDP).then(Selector::Dport.load(Nfproto::Ipv4, Reg(0)));
        loaded.compare(CmpOp::Eq, port.to_be_bytes().to_vec())
    }

    /// `udp sport PORT udp dport PORT`: from that port to the same.
    pub fn udp_between(self, port: u16) -> RuleBuilder {
        let from = self.l4proto(UDP).then(Selector::Sport.load(Nfproto::Ipv4, Reg(0)));
        let to = from.compare(CmpOp::Eq, port.to_be_bytes().to_vec());
        to.then(Selector::Dport.load(Nfproto::Ipv4, Reg(0))).compare(CmpOp::Eq, port.to_be_bytes().to_vec())
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

    /// `fib saddr type != local` or `fib daddr type != local`: it is not.
    pub fn not_fib_local(self, of: AddressSide) -> RuleBuilder {
        self.then(Expr::FibType { of, dreg: Reg(0) }).compare(CmpOp::Neq, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// `fib saddr type != local` and `!= unicast`, or the same of `daddr`: many have the address.
    pub fn fib_many(self, of: AddressSide) -> RuleBuilder {
        let unicast = RTN_UNICAST.to_ne_bytes().to_vec();
        self.not_fib_local(of).then(Expr::FibType { of, dreg: Reg(0) }).compare(CmpOp::Neq, unicast)
    }

    /// `ct status dnat`: the connection's destination was translated, by us or by others.
    pub fn ct_status_dnat(self) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::Status, dreg: Reg(0) })
            .masked(&IPS_DST_NAT.to_ne_bytes())
            .compare(CmpOp::Neq, vec![0; 4])
    }

    /// `ct state related`.
    pub fn ct_state_related(self) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::State, dreg: Reg(0) })
            .masked(&CT_STATE_RELATED.to_ne_bytes())
            .compare(CmpOp::Neq, vec![0; 4])
    }

    /// `! ct state related`.
    pub fn not_ct_state_related(self) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::State, dreg: Reg(0) })
            .masked(&CT_STATE_RELATED.to_ne_bytes())
            .compare(CmpOp::Eq, vec![0; 4])
    }

    /// `ip saddr . ct DIRECTION ip saddr != @SET`: the packet's source and that of the connection are no pair of the set.
    pub fn source_and_ct_saddr_not_within(self, nfproto: Nfproto, direction: CtDirection, set: &str) -> RuleBuilder {
        let second = Reg(Selector::Saddr.registers(nfproto));
        self.nfproto(nfproto)
            .then(Selector::Saddr.load(nfproto, Reg(0)))
            .then(Expr::Ct { key: CtKey::Saddr(direction, nfproto), dreg: second })
            .then(Expr::Lookup { set: set.into(), sreg: Reg(0), dreg: None, inverted: true })
    }

    /// `ct direction reply`: goes back in a connection.
    pub fn ct_direction_reply(self) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::Direction, dreg: Reg(0) }).compare(CmpOp::Eq, vec![1])
    }

    /// `ct mark & MASK == VALUE`.
    pub fn ct_mark(self, mask: u32, value: u32) -> RuleBuilder {
        self.then(Expr::Ct { key: CtKey::Mark, dreg: Reg(0) })
            .masked(&mask.to_ne_bytes())
            .compare(CmpOp::Eq, value.to_ne_bytes().to_vec())
    }

    /// `ct mark set ct mark & ~MASK | VALUE`: the other bits stay.
    pub fn set_ct_mark(self, mask: u32, value: u32) -> RuleBuilder {
        let (mask, xor) = ((!mask).to_ne_bytes().to_vec(), value.to_ne_bytes().to_vec());
        self.then(Expr::Ct { key: CtKey::Mark, dreg: Reg(0) })
            .then(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask, xor })
            .then(Expr::SetCtMark { sreg: Reg(0) })
    }

    /// `limit rate N/second burst M packets`.
    pub fn limit(self, per_second: u64, burst: u32) -> RuleBuilder {
        self.then(Expr::Limit { per_second, burst })
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

    /// `notrack`.
    pub fn notrack(self) -> Rule {
        self.then(Expr::Notrack).build()
    }

    /// `masquerade fully-random`.
    pub fn masquerade(self) -> Rule {
        self.then(Expr::Masquerade { ports: None }).build()
    }

    /// `masquerade to :FIRST-LAST fully-random`.
    pub fn masquerade_to(self, ports: RangeInclusive<u16>) -> Rule {
        let of = |dreg, port: &u16| Expr::Immediate { dreg, data: port.to_be_bytes().to_vec() };
        self.then(of(Reg(0), ports.start()))
            .then(of(Reg(1), ports.end()))
            .then(Expr::Masquerade { ports: Some([Reg(0), Reg(1)]) })
            .build()
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

    fn group(self, key: MetaKey, op: CmpOp, Groups { mask, value }: Groups) -> RuleBuilder {
        self.then(Expr::Meta { key, dreg: Reg(0) })
            .masked(&mask.to_ne_bytes())
            .compare(op, value.to_ne_bytes().to_vec())
    }

    fn compare(self, op: CmpOp, data: Vec<u8>) -> RuleBuilder {
        self.then(Expr::Cmp { sreg: Reg(0), op, data })
    }

    fn masked(self, mask: &[u8]) -> RuleBuilder {
        self.then(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: mask.to_vec(), xor: vec![0; mask.len()] })
    }

    fn address(self, side: Selector, net: IpNet) -> RuleBuilder {
        let nfproto = Nfproto::of(net.addr());
        let loaded = self.nfproto(nfproto).then(side.load(nfproto, Reg(0)));
        let masked =
            if net.prefix_len() == net.max_prefix_len() { loaded } else { loaded.masked(&octets(net.netmask())) };
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
            builder = builder.then(selector.load(nfproto, Reg(next)));
            next += selector.registers(nfproto);
        }
        builder.then(Expr::Lookup { set: set.into(), sreg: Reg(0), dreg, inverted })
    }

    /// A rule that ends as it is.
    pub fn build(self) -> Rule {
        let mut hasher = SipHasher13::new();
        (&self.expressions, &self.comment).hash(&mut hasher);
        // 0 says "not as we made it" in a rule that was read back.
        let fingerprint = hasher.finish().max(1);
        Rule { fingerprint, expressions: self.expressions, comment: self.comment }
    }
}

impl Selector {
    /// Takes it from the packet, into registers from this one on.
    pub fn load(self, nfproto: Nfproto, dreg: Reg) -> Expr {
        let network = |v4, v6| {
            let offset = if nfproto == Nfproto::Ipv4 { v4 } else { v6 };
            Expr::Payload { base: PayloadBase::Network, offset, len: nfproto.addr_len().into(), dreg }
        };
        let transport = |offset, len| Expr::Payload { base: PayloadBase::Transport, offset, len, dreg };
        match self {
            Selector::Saddr => network(12, 8),
            Selector::Daddr => network(16, 24),
            Selector::L4proto => Expr::Meta { key: MetaKey::L4proto, dreg },
            Selector::Sport => transport(0, 2),
            Selector::Dport => transport(2, 2),
            Selector::IcmpType => transport(0, 1),
            Selector::Iifname => Expr::Meta { key: MetaKey::Iifname, dreg },
            Selector::Oifname => Expr::Meta { key: MetaKey::Oifname, dreg },
        }
    }

    /// How many registers it takes.
    pub fn registers(self, nfproto: Nfproto) -> u8 {
        match self {
            Selector::Saddr | Selector::Daddr => nfproto.addr_len() / 4,
            Selector::L4proto | Selector::Dport | Selector::Sport | Selector::IcmpType => 1,
            Selector::Iifname | Selector::Oifname => 4,
        }
    }
}

// === impl Rule ===

impl Rule {
    /// Whether the rule uses this set or map.
    pub fn looks_into(&self, name: &str) -> bool {
        self.expressions.iter().any(|expression| matches!(expression, Expr::Lookup { set, .. } | Expr::VerdictMap { map: set, .. } | Expr::Count { set, .. } if **set == *name))
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Rule {}
