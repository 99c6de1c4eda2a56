//! What every dialect is lowered to: tiers of policies of rules, in order, each rule with the line it came from.
//!
//! Nothing here knows an API. What depends on other objects (address sets, services, tiers) is resolved while lowering;
//! what is left depends on labels, addresses and packets only.
//!
//! ```text
//! for each tier, by order:
//!     for each policy of it that selects the subject and speaks of the direction, by order:
//!         the first rule that matches decides: Allow, Deny and Reject for good, Pass for the rest of the tier;
//!         Log goes on
//!     if none decided, and one of these policies isolates: the tier's default action
//! if no tier decided: Allow
//! ```
//!
//! Not all of it is in use. What follows is made by tests only: it is for the policies of Calico and Cilium, as docs/decisions.md
//! says ("How Calico's and Cilium's policies land in the intermediate form"), and no dialect of theirs is there yet.
//!
//! ```text
//! Calico's  Mode::Staged, Action::Log, tiers but those three of dialect/mod.rs, Rule.local, Term.negated, more than one term in
//!           a Peer, ProtocolIs::Not, more than one of Ports.one_of, Ports.none_of, SourcePorts, L4Match.not_icmp
//! Cilium's  Mode::Audit, a Rank.part that is not 0, Is::Entity, Entity::ApiServer, Entity::Health, Scope::Outside
//! of both   Action::Reject, Endpoints.service_accounts, L4Match.icmp
//! ```
//!
//! Tables, traces and the rules asked one by one have all of it, but for two things: no address is an API server's or a health
//! probe's (`verdicts/identities.rs`), and source ports and a subject's own ranges (`Rule.local`) are more than a class of packets can tell.
//! They become lists beside the words ([`Residual`](crate::verdicts::Residual)), which the datapath does not ask yet: where
//! any answer denies, it denies.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::{ObjectId, Selector};

/// All policies, in the order in which they are asked.
pub type Program = OrdMap<Rank, Arc<Policy>>;

/// Where a policy stands among all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    pub tier: Tier,
    pub order: Order,
    /// The object it was written as; between policies of one order, its kind and name decide.
    pub source: ObjectId,
    /// Tells apart the policies of one object.
    pub part: u8,
}

/// A group of policies; one may pass to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier {
    pub order: Order,
    pub name: Arc<str>,
    pub default_action: DefaultAction,
}

/// What becomes of what no rule of a tier matched, where a policy of it isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DefaultAction {
    Deny,
    /// The next tier decides.
    Pass,
}

/// Smaller comes first.
#[derive(Clone, Copy, Debug)]
pub struct Order(pub f64);

/// What one object, or a part of it, says of the subjects it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub subject: Endpoints,
    /// None: it does not speak of what comes in.
    pub ingress: Option<Rules>,
    /// None: it does not speak of what goes out.
    pub egress: Option<Rules>,
    pub mode: Mode,
}

/// How far a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforced,
    /// It decides, but what it denies passes and is reported.
    Audit,
    /// It decides nothing; only a trace asks it.
    Staged,
}

/// A policy's word on one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Where no rule of the tier matches, the tier's default action applies; the path is the field that says so.
    pub isolates: Option<Arc<str>>,
    pub rules: Vec<Rule>,
}

/// If all of it matches, the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub action: Action,
    /// The other end.
    pub remote: Peers,
    /// The subject's end, where the rule is for some of the policy's subjects or addresses only: all of them hold.
    pub local: Vec<Term>,
    pub l4: L4,
    /// Path of the field in the object, e.g. `spec.ingress[0]`.
    pub path: Arc<str>,
}

/// What a rule that matches does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// As `Deny`, and the sender is told.
    Reject,
    /// The next tier decides.
    Pass,
    /// Whatever decides is reported; the next rule is asked.
    Log,
}

/// Which way a packet goes, as the subject sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Which other ends a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    Any,
    /// One of them matches; of none, none does.
    OneOf(Vec<Peer>),
}

/// Every term holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub Vec<Term>);

/// A statement about one end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    pub is: Is,
    pub negated: bool,
}

/// See [`Term`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Is {
    /// A workload that these labels select.
    Endpoint(Endpoints),
    /// An address of these ranges.
    In(Nets),
    /// One of these.
    Entity(BTreeSet<Entity>),
    /// An address of a node with these labels.
    Node(Selector),
}

/// Workloads, by what is written on them; every field holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoints {
    pub namespaces: Namespaces,
    pub labels: Selector,
    /// None: any.
    pub service_accounts: Option<BTreeSet<Arc<str>>>,
}

/// Namespaces of workloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    Any,
    Named(Arc<str>),
    Labelled(Selector),
}

/// Ranges of addresses without some of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nets {
    pub ranges: Ranges,
    pub except: Ranges,
    pub scope: Scope,
}

/// Ranges in order, none of which is in another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges(Box<[IpNet]>);

/// Whose addresses ranges speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Pods' and nodes', too.
    Anyone,
    /// Only those outside the cluster.
    Outside,
}

/// What an address is to the cluster. An end is one of these, and may be an API server beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// A pod whose labels are known.
    Pod,
    /// An address that only a pod can have, but no known pod has: it may have any labels.
    UnknownPod,
    /// An address that several say is theirs, a node among them: it may be a node or a pod, with any labels.
    Disputed,
    /// The node that judges.
    Host,
    RemoteNode,
    ApiServer,
    Health,
    /// Anything outside.
    World,
}

/// Which packets a rule is about, of what is in their transport header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L4 {
    Any,
    /// One of them matches; of none, none does.
    OneOf(Vec<L4Match>),
}

/// Every field holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct L4Match {
    pub protocol: ProtocolIs,
    pub destination: Ports,
    pub source: SourcePorts,
    /// Only this ICMP message; holds for ICMP and ICMPv6 only.
    pub icmp: Option<Icmp>,
    /// Not this one; holds for ICMP and ICMPv6 only.
    pub not_icmp: Option<Icmp>,
}

/// An IP protocol number, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolIs {
    Any,
    Is(u8),
    Not(u8),
}

/// Ports of one end. What is not the default holds only for protocols that have ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// None: any.
    pub one_of: Option<Vec<Port>>,
    pub none_of: Vec<Port>,
}

/// Source ports, by number. What is not the default holds only for protocols that have ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourcePorts {
    /// From the first to the second, both of them too; none: any.
    pub one_of: Option<Vec<(u16, u16)>>,
    pub none_of: Vec<(u16, u16)>,
}

/// Ports by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// From the first to the second, both of them too.
    Range(u16, u16),
    /// What the end whose port it is calls so, for the protocol at hand.
    Named(Arc<str>),
}

/// An ICMP message: type, and code if it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Icmp {
    pub kind: u8,
    pub code: Option<u8>,
}

/// A rule, or the isolation of a policy, by where it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    pub source: ObjectId,
    pub path: Arc<str>,
}

/// IP protocol numbers (RFC 5237), as far as names are needed.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;

    /// Whether packets of it carry ports.
    pub fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP | UDPLITE)
    }

    /// Whether it is ICMP of either family.
    pub fn is_icmp(protocol: u8) -> bool {
        matches!(protocol, ICMP | ICMPV6)
    }
}

// === impl Order ===

impl Order {
    /// Before everything.
    pub const FIRST: Order = Order(f64::NEG_INFINITY);
    /// After everything.
    pub const LAST: Order = Order(f64::INFINITY);
}

impl PartialEq for Order {
    fn eq(&self, other: &Order) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Order) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Order) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl std::hash::Hash for Order {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

// === impl Policy ===

impl Policy {
    /// Its word on a direction.
    pub fn rules(&self, direction: Direction) -> Option<&Rules> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    /// All rules of both directions.
    pub fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flat_map(|rules| &rules.rules)
    }
}

// === impl Direction ===

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

// === impl Rule ===

impl Rule {
    /// Every destination port it names.
    pub fn port_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let matches = match &self.l4 {
            L4::Any => &[][..],
            L4::OneOf(matches) => matches,
        };
        let ports = matches.iter().flat_map(|each| each.destination.all());
        ports.filter_map(|port| match port {
            Port::Named(name) => Some(name),
            Port::Range(..) => None,
        })
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// Workloads of these namespaces with these labels, whatever their service account.
    pub fn new(namespaces: Namespaces, labels: Selector) -> Endpoints {
        Endpoints { namespaces, labels, service_accounts: None }
    }
}

// === impl Term ===

impl Term {
    /// What is so.
    pub fn that(is: Is) -> Term {
        Term { is, negated: false }
    }
}

// === impl Ports ===

impl Ports {
    /// Nothing is asked of the port.
    pub fn are_any(&self) -> bool {
        self.one_of.is_none() && self.none_of.is_empty()
    }

    /// Every port that is named, wanted or not.
    pub fn all(&self) -> impl Iterator<Item = &Port> {
        self.one_of.iter().flatten().chain(&self.none_of)
    }
}

// === impl SourcePorts ===

impl SourcePorts {
    /// Nothing is asked of the port.
    pub fn are_any(&self) -> bool {
        self.one_of.is_none() && self.none_of.is_empty()
    }

    /// Whether a packet's source port is one of them.
    pub fn hold(&self, protocol: u8, port: u16) -> bool {
        let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(low, high)| (*low..=*high).contains(&port));
        self.are_any()
            || (protocol::has_ports(protocol) && self.one_of.as_deref().is_none_or(within) && !within(&self.none_of))
    }
}

// === impl L4Match ===

impl L4Match {
    /// All packets of a protocol.
    pub fn protocol(protocol: ProtocolIs) -> L4Match {
        L4Match { protocol, destination: Ports::default(), source: SourcePorts::default(), icmp: None, not_icmp: None }
    }
}

// === impl Icmp ===

impl Icmp {
    /// Whether a message is of this type, and code if it matters.
    pub fn is(self, kind: u8, code: u8) -> bool {
        self.kind == kind && self.code.is_none_or(|wanted| wanted == code)
    }
}

// === impl Peers ===

impl Peers {
    /// Every statement that is made about them.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        let all = match self {
            Peers::Any => &[][..],
            Peers::OneOf(all) => all,
        };
        all.iter().flat_map(|peer| &peer.0)
    }
}

// === impl Nets ===

impl Nets {
    /// Whether they hold a range. Either they hold all addresses of it or none, but for those in smaller [`turns`](Nets::turns).
    pub fn contain(&self, range: &IpNet) -> bool {
        self.ranges.contain(range) && !self.except.contain(range)
    }

    /// Where they begin to hold addresses, or end to: whatever else is named makes no difference.
    pub fn turns(&self) -> impl Iterator<Item = &IpNet> {
        let begins = self.ranges.iter().filter(|range| !self.except.contain(range));
        let ends = self.except.iter().filter(|range| self.ranges.contain(range) && !self.ranges.name(range));
        begins.chain(ends)
    }

    /// Every range that is named.
    pub fn all(&self) -> impl Iterator<Item = &IpNet> {
        self.ranges.iter().chain(self.except.iter())
    }
}

// === impl Ranges ===

impl Ranges {
    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpNet> {
        self.0.iter()
    }

    /// Whether a range is one of them.
    fn name(&self, range: &IpNet) -> bool {
        self.0.binary_search(range).is_ok()
    }

    /// Whether a range is in one of them. There may be tens of thousands.
    pub fn contain(&self, range: &IpNet) -> bool {
        // Between a range and what is in it there can only be others that are in it.
        let at = self.0.partition_point(|each| each <= range);
        self.0[..at].last().is_some_and(|last| last.contains(range))
    }
}

impl FromIterator<IpNet> for Ranges {
    fn from_iter<T: IntoIterator<Item = IpNet>>(all: T) -> Ranges {
        let mut all: Vec<IpNet> = all.into_iter().map(|range| range.trunc()).collect();
        all.sort_unstable();
        // Whatever is in another comes after it.
        all.dedup_by(|range, before| before.contains(&*range));
        Ranges(all.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_contain_what_one_of_them_does(
            all in proptest::collection::vec((0u32..64, 26u8..=32), 0..12),
            asked in (0u32..64, 26u8..=32),
        ) {
            let range = |(address, length): (u32, u8)| IpNet::new(std::net::Ipv4Addr::from(address).into(), length).unwrap();
            let (all, asked): (Vec<IpNet>, IpNet) = (all.into_iter().map(range).collect(), range(asked).trunc());
            let ranges: Ranges = all.iter().copied().collect();
            prop_assert_eq!(ranges.contain(&asked), all.iter().any(|each| each.trunc().contains(&asked)));
        }
    }
}
