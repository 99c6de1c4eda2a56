//! Packets are sent, and what became of them is compared with what should have.

use std::collections::BTreeMap;

use super::craft::{Packet, Part};
use super::field::Field;
use super::traces::Traces;
use super::truth::{End, Expected, Probe, Truth};

/// Packets under way at one time: fewer than a processor's backlog takes, which drops the rest.
const BATCH: usize = 128;
/// So many mistakes are told in words.
const TOLD: usize = 10;

/// What was found so far.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Packets of which it was clear what should become of them.
    pub(crate) checked: u64,
    /// Those that went another way.
    pub(crate) wrong: u64,
    /// Of these, the ones that went where they must not, while something changed.
    pub(crate) open: u64,
    /// Connections of which a trace was asked: each so many-th.
    pub(crate) traced: u64,
    pub(crate) trace_every: usize,
    /// Those of which it said something else than packets did.
    pub(crate) trace_wrong: u64,
    /// The first mistakes, in words.
    pub(crate) told: Vec<String>,
    number: u32,
    port: u16,
}

/// A packet of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) probe: Probe,
    pub(crate) packet: Packet,
    pub(crate) expected: Expected,
}

/// When packets are sent: what has been true since the last time that all was settled.
#[derive(Clone, Copy)]
pub(crate) struct When<'a> {
    pub(crate) truths: &'a [&'a Truth],
    /// To be printed.
    pub(crate) name: &'a str,
}

// === impl Flight ===

impl Flight {
    /// Its first packet.
    pub(crate) fn opening(probe: Probe, source_port: u16, expected: Expected) -> Flight {
        let packet = Packet {
            source: probe.source,
            destination: probe.destination,
            kind: probe.kind,
            source_port,
            destination_port: probe.port,
            part: Part::Opening,
            number: 0,
        };
        Flight { probe, packet, expected }
    }

    /// A later one.
    pub(crate) fn later(probe: Probe, source_port: u16, part: Part, expected: Expected) -> Flight {
        let mut flight = Flight::opening(probe, source_port, expected);
        flight.packet = match part.is_from_client() {
            true => Packet { part, ..flight.packet },
            false => flight.packet.back(part, 0),
        };
        flight
    }

    /// Whether another one may see it: on its way, or because that one has the address by now.
    fn may_arrive_at(&self, end: End, truths: &[&Truth]) -> bool {
        let may = |probe| Expected::under(truths, &probe).may;
        match (self.packet.part.is_from_client(), end) {
            (true, End::Outside) => self.expected.may_leave,
            (true, to) => may(Probe { to, ..self.probe }),
            (false, End::Outside) => true,
            (false, to) => {
                let [answer, own] = self.taken_for(to);
                if truths.iter().any(|truth| truth.node(self.probe.to) == truth.node(to)) {
                    return may(answer) || may(own);
                }
                // The server's node goes by the connection that it knows; that of the client has forgotten it with the
                // client, and takes this for the first packet of another one. Each asks its own pod only.
                let any = |lets: fn(&Truth, &Probe) -> bool, probe| truths.iter().any(|truth| lets(truth, &probe));
                let leaves = any(Truth::enters, answer) || any(Truth::leaves, own);
                leaves && (any(Truth::leaves, answer) || any(Truth::enters, own))
            }
        }
    }

    /// The connections that a node may take a server's packet for that somebody else gets: the client's, as if that one had
    /// begun it, or one that the server begins.
    fn taken_for(&self, to: End) -> [Probe; 2] {
        let back = self.probe.back(self.packet.destination_port);
        [Probe { from: to, ..self.probe }, Probe { to, ..back }]
    }

    fn ends(&self) -> (End, End) {
        let Probe { from, to, .. } = self.probe;
        if self.packet.part.is_from_client() { (from, to) } else { (to, from) }
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn tracing_each(trace_every: usize) -> Tally {
        let told = Vec::new();
        Tally { checked: 0, wrong: 0, open: 0, traced: 0, trace_every, trace_wrong: 0, told, number: 0, port: 0 }
    }

    /// A source port that no connection has had for a while.
    pub(crate) fn port(&mut self) -> u16 {
        self.port = (self.port + 1) % 40_000;
        20_000 + self.port
    }

    /// Sends first packets, and answers those that arrive: an answer must find its way wherever the first one did. Says
    /// which arrived.
    pub(crate) fn ask(&mut self, field: &Field, when: When<'_>, openings: &[Flight]) -> Vec<bool> {
        let mut all = Vec::new();
        for batch in openings.chunks(BATCH) {
            let arrived = self.fly(field, when, batch);
            all.extend(arrived.iter().map(Option::is_some));
            let answers: Vec<Flight> = batch
                .iter()
                .zip(arrived)
                .filter(|(flight, _)| flight.expected.must)
                .filter_map(|(flight, arrived)| {
                    let mut packet = arrived?.back(Part::Answer, 0);
                    // A socket for IPv6 does not say at which address it was reached.
                    packet.source = flight.probe.destination;
                    Some(Flight { packet, ..flight.clone() })
                })
                .collect();
            self.fly(field, when, &answers);
        }
        all
    }

    /// Compares what a trace of these connections says with what became of them.
    pub(crate) fn trace(&mut self, when: When<'_>, openings: &[Flight], arrived: &[bool]) {
        let [truth] = when.truths else { panic!("what a trace says is about one time") };
        let traces = Traces::of(truth);
        for (flight, arrived) in openings.iter().zip(arrived).step_by(self.trace_every) {
            if !flight.expected.must && flight.expected.may {
                continue;
            }
            self.traced += 1;
            if traces.allow(&flight.probe) != *arrived {
                self.trace_wrong += 1;
                self.tell(when, flight, "a trace says something else");
            }
        }
    }

    /// Sends, and says which arrived, as they did.
    pub(crate) fn fly(&mut self, field: &Field, when: When<'_>, flights: &[Flight]) -> Vec<Option<Packet>> {
        flights.chunks(BATCH).flat_map(|batch| self.fly_together(field, when, batch)).collect()
    }

    fn fly_together(&mut self, field: &Field, when: When<'_>, flights: &[Flight]) -> Vec<Option<Packet>> {
        let first = self.number.wrapping_add(1);
        for flight in flights {
            self.number = self.number.wrapping_add(1);
            field.send(flight.ends().0, &Packet { number: self.number, ..flight.packet });
        }
        let mut seen: BTreeMap<usize, Vec<(End, Packet)>> = BTreeMap::new();
        field.collect(|end, packet| {
            let index = packet.number.wrapping_sub(first) as usize;
            assert!(index < flights.len(), "{packet:?} came after all were in: what was seen before is worth nothing");
            seen.entry(index).or_default().push((end, packet));
        });
        let all = flights.iter().enumerate();
        all.map(|(index, flight)| self.judge(when, flight, seen.get(&index).map_or(&[], Vec::as_slice))).collect()
    }

    fn judge(&mut self, when: When<'_>, flight: &Flight, seen: &[(End, Packet)]) -> Option<Packet> {
        let Expected { must, may, .. } = flight.expected;
        let (_, to) = flight.ends();
        self.checked += u64::from(must || !may);
        let arrived = seen.iter().find(|(end, _)| *end == to).map(|(_, packet)| *packet);
        if must && arrived.is_none() {
            self.tell(when, flight, "must arrive and did not");
        }
        if !may && arrived.is_some() {
            self.open += u64::from(when.truths.len() > 1);
            self.tell(when, flight, "must not arrive and did");
        }
        for (end, _) in seen.iter().filter(|(end, _)| *end != to) {
            if !flight.may_arrive_at(*end, when.truths) {
                self.open += u64::from(when.truths.len() > 1);
                let there = match flight.packet.part.is_from_client() {
                    true => vec![Probe { to: *end, ..flight.probe }],
                    false => flight.taken_for(*end).into(),
                };
                let because = |probe| when.truths.iter().map(|truth| truth.because(probe)).collect::<Vec<_>>();
                let because: Vec<String> = there.iter().map(|probe| because(probe).join(" / then ")).collect();
                self.tell(
                    when,
                    flight,
                    &format!("was seen at {end:?} ({})", because.join("; or as begun by the server, ")),
                );
            }
        }
        arrived
    }

    fn tell(&mut self, when: When<'_>, flight: &Flight, what: &str) {
        self.wrong += 1;
        if self.told.len() < TOLD {
            let because: Vec<String> = when.truths.iter().map(|truth| truth.because(&flight.probe)).collect();
            let Flight { probe, packet, expected } = flight;
            self.told.push(format!(
                "{}: {what}: {:?} of {probe:?}, source port {}: {expected:?}: {}",
                when.name,
                packet.part,
                if packet.part.is_from_client() { packet.source_port } else { packet.destination_port },
                because.join(" / then ")
            ));
        }
    }
}
