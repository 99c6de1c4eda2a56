//! L4 classes: the packets that all rules of a list treat alike, by protocol and destination port or ICMP message.
//!
//! Thousands of ports of one rule are one class, if no other rule tells them apart.
//!
//! Invariant: whatever number each end gives to the ports that are named, a rule matches all packets of a class or none
//! of them, source ports aside.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Budget, Spent};
use super::merged::merged;
use crate::ir::{L4Match, Port, Ports, ProtocolIs, protocol};
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
    /// One of these protocols; none: each has cells.
    spare: Option<u8>,
    count: usize,
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

const WITH_PORTS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::UDPLITE];
const ICMPS: [u8; 2] = [protocol::ICMP, protocol::ICMPV6];

// === impl Classes ===

impl Classes {
    /// Classes for rules that match this each, where ports by name may have these numbers.
    pub fn of(rules: &[&L4Match], named: &BTreeSet<(u8, u16)>) -> Classes {
        let lists: Vec<Vec<L4Match>> = rules.iter().map(|each| merged([(*each).clone()])).collect();
        let lists = lists.iter().map(Vec::as_slice).collect();
        Classes::of_lists(&lists, named, &Budget::of(usize::MAX)).expect("a budget without end")
    }

    /// The same for lists of rules, each [`merged`].
    pub(super) fn of_lists(
        lists: &BTreeSet<&[L4Match]>,
        named: &BTreeSet<(u8, u16)>,
        budget: &Budget,
    ) -> Result<Classes, Spent> {
        let mut cuts = Cuts::default();
        for each in lists.iter().copied().flatten() {
            budget.spend(1 + each.destination.all().count())?;
            cuts.by(each);
        }
        for (protocol, port) in named {
            cuts.between(*protocol, *port, *port);
        }
        // Stands for all protocols without cells.
        let spare = (0..=u8::MAX).rev().find(|number| !cuts.0.contains_key(number));
        spare.iter().for_each(|number| cuts.between(*number, 0, u16::MAX));
        let mut groups = Groups::new(cuts.cells());
        for (protocol, port) in named {
            let cell = groups.within(*protocol, *port, *port);
            groups.split(cell);
        }
        for list in lists {
            let (by_name, by_number): (Vec<&L4Match>, Vec<&L4Match>) = list.iter().partition(|each| names_ports(each));
            let mut any = BTreeSet::new();
            for each in by_number {
                let cells = groups.of_match(each);
                budget.spend(cells.len())?;
                any.extend(cells);
            }
            groups.split(any);
            for each in by_name {
                budget.spend(groups.cells.len())?;
                groups.split_by_name(each);
            }
        }
        Ok(groups.classes(spare))
    }

    /// One class of all packets.
    pub(super) fn one() -> Classes {
        Classes { count: 1, ..Classes::default() }
    }

    /// The class of a packet.
    pub fn class(&self, protocol: u8, destination: u16) -> Class {
        let at = self.cells.partition_point(|cell| (cell.protocol, cell.high) < (protocol, destination));
        self.cells.get(at).filter(|cell| cell.protocol == protocol).map_or(self.other, |cell| cell.class)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The classes for whose packets a match of one of the lists holds or may hold, source ports aside, when they go to this
    /// end; as all of its list does, where it names no port. A class may be there several times.
    pub(super) fn hold<'a>(&'a self, wanted: &'a L4Match, to: &'a Traits) -> impl Iterator<Item = (Class, Holds)> + 'a {
        let by_name = names_ports(wanted);
        let ask = move |protocol, destination| match by_name {
            true => Holds::from(protocol_holds(wanted, protocol, destination)).min(ports_hold(
                &wanted.destination,
                protocol,
                destination,
                to,
            )),
            false => protocol_holds(wanted, protocol, destination).into(),
        };
        let of_cell = move |at: usize| (self.cells[at].class, ask(self.cells[at].protocol, self.cells[at].low));
        let other = self.spare.filter(|_| wanted.destination.are_any()).map(|number| (self.other, ask(number, 0)));
        cells_of(&self.cells, wanted).map(of_cell).chain(other).filter(|(_, holds)| *holds != Holds::No)
    }

    /// How many steps that takes.
    pub(super) fn steps(&self, wanted: &L4Match) -> usize {
        cells_of(&self.cells, wanted).count() + 1
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

    /// Those for which a match holds that names no port.
    fn of_match(&self, wanted: &L4Match) -> BTreeSet<usize> {
        let cells = cells_of(&self.cells, wanted);
        cells.filter(|at| protocol_holds(wanted, self.cells[*at].protocol, self.cells[*at].low)).collect()
    }

    /// What it may hold for, and what each of its lists names by number. What ports' names mean is cut out already.
    fn split_by_name(&mut self, wanted: &L4Match) {
        let may = |cell: &Cell| protocol::has_ports(cell.protocol) && protocol_holds(wanted, cell.protocol, cell.low);
        let all: BTreeSet<usize> = (0..self.cells.len()).filter(|at| may(&self.cells[*at])).collect();
        let destination = &wanted.destination;
        let numbers = [destination.one_of.as_deref().unwrap_or_default(), &destination.none_of].map(|ports| {
            let groups = &*self;
            let within = |(low, high)| WITH_PORTS.into_iter().flat_map(move |of| groups.within(of, low, high));
            let cells: BTreeSet<usize> = ranges(ports).flat_map(within).collect();
            cells.intersection(&all).copied().collect()
        });
        [all].into_iter().chain(numbers).for_each(|cells| self.split(cells));
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
        let mut other = 0;
        let mut cells: Vec<Cell> = Vec::new();
        for (cell, group) in self.cells.into_iter().zip(self.group) {
            let next = known.len();
            let number = || Class::try_from(next).expect("protocols and destinations have 24 bits");
            let class = *known.entry(group).or_insert_with(number);
            match cells.last_mut() {
                _ if spare == Some(cell.protocol) => other = class,
                Some(last) if last.protocol == cell.protocol && last.class == class => last.high = cell.high,
                _ => cells.push(Cell { class, ..cell }),
            }
        }
        Classes { cells, other, spare, count: known.len() }
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

/// Whether it depends on how an end names its ports.
pub(super) fn names_ports(wanted: &L4Match) -> bool {
    wanted.destination.all().any(|port| matches!(port, Port::Named(_)))
}

fn ranges(ports: &[Port]) -> impl Iterator<Item = (u16, u16)> {
    ports.iter().filter_map(|port| match port {
        Port::Range(low, high) => Some((*low, *high)),
        Port::Named(_) => None,
    })
}

/// Of these cells, all whose packets a match may be about.
fn cells_of<'a>(cells: &'a [Cell], wanted: &'a L4Match) -> Box<dyn Iterator<Item = usize> + 'a> {
    match &wanted.destination.one_of {
        Some(ports) if !names_ports(wanted) => {
            let of = move |protocol, (low, high)| cells_within(cells, protocol, low, high);
            let within = move |ports| WITH_PORTS.into_iter().flat_map(move |protocol| of(protocol, ports));
            Box::new(ranges(ports).flat_map(within))
        }
        _ => Box::new(0..cells.len()),
    }
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
