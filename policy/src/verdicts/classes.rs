//! L4 classes: the packets that all rules of a list treat alike, by protocol and destination port or ICMP message.
//!
//! Invariant: whatever number each end gives to the ports that are named, a rule matches all packets of a class or none
//! of them, source ports aside.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Icmp, L4Match, Port, Ports, ProtocolIs, protocol};
use crate::traits::{Holds, Traits};

/// Number of a class within its list of rules.
pub type Class = u32;

/// The class of every packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// In order, without gaps within a protocol.
    pub cells: Vec<Cell>,
    /// Of protocols that have no cells.
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

/// Where protocols are cut.
#[derive(Default)]
struct Cuts(BTreeMap<u8, BTreeSet<u32>>);

/// Cells in groups; what tells cells of a group apart makes two of it.
struct Groups {
    cells: Vec<Cell>,
    /// By cell.
    group: Vec<u32>,
    next: u32,
}

/// What of a match does not depend on destination ports: protocol, ICMP message or not, and whether source ports matter.
type Head = (ProtocolIs, Option<Icmp>, Option<Icmp>, bool);

const WITH_PORTS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::UDPLITE];
const ICMPS: [u8; 2] = [protocol::ICMP, protocol::ICMPV6];

// === impl Classes ===

impl Classes {
    /// Classes for these matches, where ports by name may have these numbers.
    pub fn of(matches: &[&L4Match], named: &BTreeSet<(u8, u16)>) -> Classes {
        // Thousands of rules may ask the same, or each for a port of its own.
        let matches: BTreeSet<&L4Match> = matches.iter().copied().collect();
        let mut cuts = Cuts::default();
        matches.iter().for_each(|each| cuts.by(each));
        for (protocol, port) in named {
            cuts.between(*protocol, *port, *port);
        }
        // Stands for all protocols without cells.
        let spare = (0..=u8::MAX).rev().find(|number| !cuts.0.contains_key(number));
        spare.iter().for_each(|number| cuts.between(*number, 0, u16::MAX));
        let mut groups = Groups::new(cuts.cells());
        groups.part(|cell| protocol::has_ports(cell.protocol));
        for (protocol, port) in named {
            let cell = groups.within(*protocol, *port, *port);
            groups.split(cell);
        }
        let heads: BTreeMap<Head, &L4Match> = matches.iter().map(|each| (head(each), *each)).collect();
        for each in heads.values() {
            groups.part(|cell| protocol_holds(each, cell.protocol, cell.low));
        }
        for each in matches {
            let about = WITH_PORTS.into_iter().filter(|number| protocol_holds(each, *number, 0));
            let about: Vec<u8> = about.collect();
            for ports in each.destination.one_of.iter().chain([&each.destination.none_of]) {
                let cells = groups.of_ports(&about, ports);
                groups.split(cells);
            }
        }
        groups.classes(spare)
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

    /// The classes for whose packets a match holds or may hold, source ports aside, when they go to this end.
    pub(super) fn hold(&self, wanted: &L4Match, to: &Traits) -> Vec<(Class, Holds)> {
        let ask = |class: Class| {
            let (protocol, destination) = self.samples[class as usize];
            (class, holds(wanted, protocol, destination, to))
        };
        let about: BTreeSet<Class> = match ranges(&wanted.destination) {
            Some(ranges) => ranges.flat_map(|(low, high)| self.with_ports(low, high)).collect(),
            None => (0..).take(self.samples.len()).collect(),
        };
        about.into_iter().map(ask).filter(|(_, holds)| *holds != Holds::No).collect()
    }

    /// Classes of which some packets have one of these ports.
    fn with_ports(&self, low: u16, high: u16) -> impl Iterator<Item = Class> {
        let within = move |protocol| cells_within(&self.cells, protocol, low, high);
        WITH_PORTS.into_iter().flat_map(within).map(|at| self.cells[at].class)
    }
}

// === impl Groups ===

impl Groups {
    fn new(cells: Vec<Cell>) -> Groups {
        Groups { group: vec![0; cells.len()], cells, next: 1 }
    }

    fn within(&self, protocol: u8, low: u16, high: u16) -> BTreeSet<usize> {
        cells_within(&self.cells, protocol, low, high).collect()
    }

    /// Those of these protocols that have one of the ports. What ports' names mean is cut out already.
    fn of_ports(&self, protocols: &[u8], ports: &[Port]) -> BTreeSet<usize> {
        let ranges = ports.iter().filter_map(|port| match port {
            Port::Range(low, high) => Some((*low, *high)),
            Port::Named(_) => None,
        });
        let within = |(low, high)| protocols.iter().flat_map(move |protocol| self.within(*protocol, low, high));
        ranges.flat_map(within).collect()
    }

    fn part(&mut self, apart: impl Fn(&Cell) -> bool) {
        let these = self.cells.iter().enumerate().filter(|(_, cell)| apart(cell)).map(|(at, _)| at);
        let these = these.collect();
        self.split(these);
    }

    /// These are told apart from the others.
    fn split(&mut self, these: BTreeSet<usize>) {
        let mut parts: BTreeMap<u32, u32> = BTreeMap::new();
        for at in these {
            let part = parts.entry(self.group[at]).or_insert_with(|| {
                self.next += 1;
                self.next
            });
            self.group[at] = *part;
        }
    }

    /// A class for each group, in the order of their first cells.
    fn classes(self, spare: Option<u8>) -> Classes {
        let mut known: BTreeMap<u32, Class> = BTreeMap::new();
        let (mut samples, mut other) = (Vec::new(), 0);
        let mut cells: Vec<Cell> = Vec::new();
        for (cell, group) in self.cells.into_iter().zip(self.group) {
            let class = *known.entry(group).or_insert_with(|| {
                samples.push((cell.protocol, cell.low));
                Class::try_from(samples.len() - 1).expect("protocols and destinations have 24 bits")
            });
            match cells.last_mut() {
                _ if spare == Some(cell.protocol) => other = class,
                Some(last) if last.protocol == cell.protocol && last.class == class => last.high = cell.high,
                _ => cells.push(Cell { class, ..cell }),
            }
        }
        Classes { cells, other, samples }
    }
}

// === impl Cuts ===

impl Cuts {
    /// In order.
    fn cells(&self) -> Vec<Cell> {
        let cell = |protocol, low, high| Cell { protocol, low, high, class: 0 };
        let mut cells = Vec::new();
        for (protocol, starts) in &self.0 {
            let ends = starts.iter().skip(1).map(|start| start - 1).chain([u32::from(u16::MAX)]);
            let end = |at: u32| u16::try_from(at).expect("cuts are made within a protocol");
            cells.extend(starts.iter().zip(ends).map(|(low, high)| cell(*protocol, end(*low), end(high))));
        }
        cells
    }

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

fn head(wanted: &L4Match) -> Head {
    (wanted.protocol, wanted.icmp, wanted.not_icmp, wanted.source.are_any())
}

/// The ports that are wanted, if all of them are numbers.
fn ranges(wanted: &Ports) -> Option<impl Iterator<Item = (u16, u16)>> {
    let ports = wanted.one_of.as_deref()?;
    let range = |port: &Port| match port {
        Port::Range(low, high) => Some((*low, *high)),
        Port::Named(_) => None,
    };
    ports.iter().all(|port| range(port).is_some()).then(|| ports.iter().filter_map(range))
}

/// Which of these cells have a destination from one to another; of protocols in order.
fn cells_within(cells: &[Cell], protocol: u8, low: u16, high: u16) -> impl Iterator<Item = usize> {
    let first = cells.partition_point(|cell| (cell.protocol, cell.high) < (protocol, low));
    let these = cells[first..].iter().take_while(move |cell| cell.protocol == protocol && cell.low <= high);
    (first..).zip(these).map(|(at, _)| at)
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
