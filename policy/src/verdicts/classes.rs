//! L4 classes: the packets that all rules of a list treat alike, by protocol and destination port or ICMP message.
//!
//! Invariant: whatever number each end gives to the ports that are named, a rule matches all packets of a class or none
//! of them, source ports aside.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{L4Match, Port, Ports, ProtocolIs, protocol};
use crate::traits::{Holds, Traits};

/// Number of a class within its list of rules.
pub type Class = u32;

/// The class of every packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// In order, without gaps within a protocol.
    pub cells: Vec<Cell>,
    /// Of protocols that have no cells: class 0.
    pub other: Class,
    /// For each class, a packet of it: protocol and destination.
    samples: Vec<(u8, u16)>,
}

/// Destinations of one protocol that are in one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub protocol: u8,
    /// Port, or ICMP type and code, from here
    pub low: u16,
    /// to here.
    pub high: u16,
    pub class: Class,
}

/// What packets of one class have in common: what each match can tell of them, and a port that has a name.
type Likeness = (Vec<u8>, Option<(u8, u16)>);

/// Where protocols are cut.
#[derive(Default)]
struct Cuts(BTreeMap<u8, BTreeSet<u32>>);

const WITH_PORTS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::UDPLITE];
const ICMPS: [u8; 2] = [protocol::ICMP, protocol::ICMPV6];

// === impl Classes ===

impl Classes {
    /// Classes for these matches, where ports by name may have these numbers.
    pub fn of(matches: &[&L4Match], named: &BTreeSet<(u8, u16)>) -> Classes {
        let mut cuts = Cuts::default();
        matches.iter().for_each(|each| cuts.by(each));
        for (protocol, port) in named {
            cuts.between(*protocol, *port, *port);
        }
        let free = (0..=u8::MAX).rev().find(|number| !cuts.0.contains_key(number)).unwrap_or(u8::MAX);
        let mut known: BTreeMap<Likeness, Class> = BTreeMap::new();
        let mut samples = Vec::new();
        let mut class_of = |protocol: u8, destination: u16| {
            let alike = matches.iter().map(|each| signature(each, protocol, destination)).collect();
            let name = Some((protocol, destination)).filter(|port| named.contains(port));
            *known.entry((alike, name)).or_insert_with(|| {
                samples.push((protocol, destination));
                Class::try_from(samples.len() - 1).expect("protocols and destinations have 24 bits")
            })
        };
        let other = class_of(free, 0);
        let mut cells: Vec<Cell> = Vec::new();
        for (protocol, starts) in &cuts.0 {
            let ends = starts.iter().skip(1).map(|start| start - 1).chain([u32::from(u16::MAX)]);
            for (low, high) in starts.iter().zip(ends) {
                let end = |at: u32| u16::try_from(at).expect("cuts are made within a protocol");
                let (low, high) = (end(*low), end(high));
                let class = class_of(*protocol, low);
                match cells.last_mut() {
                    Some(last) if last.protocol == *protocol && last.class == class => last.high = high,
                    _ => cells.push(Cell { protocol: *protocol, low, high, class }),
                }
            }
        }
        Classes { cells, other, samples }
    }

    /// The class of a packet.
    pub fn class(&self, protocol: u8, destination: u16) -> Class {
        let at = self.cells.partition_point(|cell| (cell.protocol, cell.high) < (protocol, destination));
        self.cells.get(at).filter(|cell| cell.protocol == protocol).map_or(self.other, |cell| cell.class)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// For each class whether a match holds for its packets, source ports aside, when they go to this end.
    pub(super) fn hold(&self, wanted: &L4Match, to: &Traits) -> Vec<Holds> {
        self.samples.iter().map(|(protocol, destination)| holds(wanted, *protocol, *destination, to)).collect()
    }
}

// === impl Cuts ===

impl Cuts {
    fn by(&mut self, wanted: &L4Match) {
        let about = |all: &[u8]| match wanted.protocol {
            ProtocolIs::Is(number) => all.iter().copied().filter(|one| *one == number).collect::<Vec<u8>>(),
            ProtocolIs::Any | ProtocolIs::Not(_) => all.to_vec(),
        };
        if let ProtocolIs::Is(number) | ProtocolIs::Not(number) = wanted.protocol {
            self.between(number, 0, u16::MAX);
        }
        if !wanted.destination.are_any() || !wanted.source.are_any() {
            for protocol in about(&WITH_PORTS) {
                self.between(protocol, 0, u16::MAX);
                for port in wanted.destination.all() {
                    if let Port::Range(low, high) = port {
                        self.between(protocol, *low, *high);
                    }
                }
            }
        }
        for icmp in wanted.icmp.iter().chain(&wanted.not_icmp) {
            for protocol in about(&ICMPS) {
                self.between(protocol, 0, u16::MAX);
                let (low, high) = icmp.code.map_or((0, u8::MAX), |code| (code, code));
                self.between(protocol, u16::from_be_bytes([icmp.kind, low]), u16::from_be_bytes([icmp.kind, high]));
            }
        }
    }

    fn between(&mut self, protocol: u8, low: u16, high: u16) {
        let starts = self.0.entry(protocol).or_default();
        starts.insert(0);
        starts.insert(u32::from(low));
        if let Some(after) = high.checked_add(1).filter(|_| low <= high) {
            starts.insert(u32::from(after));
        }
    }
}

/// What of a match can be told from protocol and destination alone.
fn signature(wanted: &L4Match, protocol: u8, destination: u16) -> u8 {
    let within = |ports: &[Port]| {
        ports.iter().any(|port| matches!(port, Port::Range(low, high) if (*low..=*high).contains(&destination)))
    };
    let parts = [
        protocol_holds(wanted, protocol, destination),
        protocol::has_ports(protocol),
        wanted.destination.one_of.as_deref().is_some_and(within),
        within(&wanted.destination.none_of),
    ];
    parts.into_iter().fold(0, |bits, part| bits << 1 | u8::from(part))
}

fn protocol_holds(wanted: &L4Match, protocol: u8, destination: u16) -> bool {
    let is = match wanted.protocol {
        ProtocolIs::Any => true,
        ProtocolIs::Is(number) => number == protocol,
        ProtocolIs::Not(number) => number != protocol,
    };
    let [kind, code] = destination.to_be_bytes();
    let is_icmp = protocol::is_icmp(protocol);
    is && wanted.icmp.is_none_or(|icmp| is_icmp && icmp.is(kind, code))
        && wanted.not_icmp.is_none_or(|icmp| is_icmp && !icmp.is(kind, code))
        && (wanted.source.are_any() || protocol::has_ports(protocol))
}

fn holds(wanted: &L4Match, protocol: u8, destination: u16, to: &Traits) -> Holds {
    Holds::from(protocol_holds(wanted, protocol, destination)).min(ports_hold(
        &wanted.destination,
        protocol,
        destination,
        to,
    ))
}

fn ports_hold(wanted: &Ports, protocol: u8, port: u16, to: &Traits) -> Holds {
    if wanted.are_any() {
        return Holds::Yes;
    }
    if !protocol::has_ports(protocol) {
        return Holds::No;
    }
    let any = |ports: &[Port]| ports.iter().map(|wanted| to.port_is(wanted, protocol, port)).max().unwrap_or(Holds::No);
    let one_of = wanted.one_of.as_deref().map_or(Holds::Yes, any);
    one_of.min(!any(&wanted.none_of))
}
