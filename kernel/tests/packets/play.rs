//! A scenario is played: step by step, node by node, with packets all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::field::{BODIES, Field, PATIENCE, pause};
use super::probes;
use super::talks::{self, Talk};
use super::truth::{Expected, Probe, Seat, Truth};
use super::volley::{Flight, Tally, When};
use super::worlds::{Event, Scenario, name_of};
use crate::history::{NODES, Op, State};

/// Connections tried over and over while something changes.
const DURING: usize = 300;
/// Of these, so many between two looks at whether nodes are done.
const PASS: usize = 60;
/// After so many it is no longer done as fast as possible: where nodes get no processor, all of it has to fit the kernel's table.
const IN_A_HURRY: usize = 5_000;
/// So many of them, the last ones, are tried once more when nodes are done.
const ONCE_MORE: usize = 240;
/// Of so many changes, one is heard of by agents that have just started, and find what was there before.
const ONE_ANEW_IN: usize = 4;

/// How things are.
struct Scene {
    state: State,
    seats: BTreeMap<usize, Seat>,
    talks: Vec<Talk>,
    round: usize,
    /// Where each address was last.
    nodes: BTreeMap<IpAddr, usize>,
    /// Addresses that came to another node. The one they were on may forget their connections for a second, new ones too,
    /// if nothing it plans tells it that they are back; so none is kept that has to be remembered.
    moved: BTreeSet<IpAddr>,
}

/// Plays it and counts.
pub(crate) fn play(field: &mut Field, scenario: &Scenario, tally: &mut Tally) {
    let mut scene = Scene {
        state: State::new(),
        seats: BTreeMap::new(),
        talks: Vec::new(),
        round: 0,
        nodes: BTreeMap::new(),
        moved: BTreeSet::new(),
    };
    scene.take(field, &scenario.first);
    scene.settle(field, tally, &[]);
    for step in &scenario.then {
        scene.take(field, &step.events);
        scene.settle(field, tally, &step.order);
    }
    field.check_conntrack();
}

/// What a node let through while it changed, it does not let through for that.
fn again(field: &Field, tally: &mut Tally, tried: &[(Probe, u16)]) {
    let truths: [&Truth; 1] = [&field.truth];
    let when = When { truths: &truths, name: "after a change, in a connection that was tried during it" };
    let opening = |(probe, port): &(Probe, u16)| Flight::opening(*probe, *port, Expected::under(&truths, probe));
    tally.fly(field, when, &tried.iter().map(opening).collect::<Vec<_>>());
}

impl Scene {
    fn take(&mut self, field: &mut Field, events: &[Event]) {
        for event in events {
            match event {
                Event::Put(op) => self.state.take(op, &[]),
                Event::Gone(op) => {
                    self.state.vanish(op);
                    if let Op::Pod(pod) = op {
                        let pod = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
                        self.seats.retain(|_, seat| seat.pod != pod);
                    }
                }
                Event::New(slot, pod) => {
                    self.state.take(&Op::Pod(pod.clone()), &[]);
                    let (namespace, name) = name_of(*slot);
                    let full = format!("{namespace}/{name}");
                    self.seats.retain(|_, seat| seat.pod != full);
                    field.lives[*slot] += 1;
                    let life = field.lives[*slot];
                    let node = NODES.iter().position(|node| *node == pod.spec.node_name).expect("a node");
                    let mut addresses = pod.status.pod_ips.iter().map(|ip| ip.ip.parse().expect("an address"));
                    let addresses = [(); 2].map(|()| addresses.next().expect("one of each family"));
                    for address in addresses {
                        if self.nodes.insert(address, node).is_some_and(|before| before != node) {
                            self.moved.insert(address);
                        }
                    }
                    self.seats.insert(slot * BODIES + life % BODIES, Seat { node, addresses, pod: full, life });
                }
            }
        }
    }

    /// Lets nodes know, all at once or one after the other.
    fn settle(&mut self, field: &mut Field, tally: &mut Tally, order: &[usize]) {
        let groups = self.groups(&field.truth, order);
        let last = groups.len() - 1;
        for (turn, group) in groups.iter().enumerate() {
            self.round += 1;
            let tried = self.change(field, tally, group);
            again(field, tally, &tried);
            talks::end(&mut self.talks, field, tally);
            let probes = probes::all(&field.truth, self.round);
            let tried = if turn == last { probes.clone() } else { probes::some(&probes, probes.len() / 4, self.round) };
            self.check(field, tally, &tried);
            let stay = |probe: &&Probe| ![probe.source, probe.destination].iter().any(|it| self.moved.contains(it));
            let probes: Vec<Probe> = probes.iter().filter(stay).copied().collect();
            talks::begin(&mut self.talks, field, tally, &probes, self.round);
        }
    }

    /// Nodes that learn of it together. An address is free only when the pod that had it has gone.
    fn groups(&self, truth: &Truth, order: &[usize]) -> Vec<Vec<usize>> {
        let taken_over = |seat: &Seat| {
            let others = self.seats.values().filter(|other| other.node != seat.node);
            others.flat_map(|other| other.addresses).any(|address| seat.addresses.contains(&address))
        };
        let loses = |node: &usize| truth.seats.values().any(|seat| seat.node == *node && taken_over(seat));
        let (losing, others): (Vec<usize>, Vec<usize>) = match order {
            [] => (0..NODES.len()).partition(loses),
            order => order.iter().partition(|node| loses(node)),
        };
        let all = [losing.clone(), others.clone()];
        let all = all.into_iter().filter(|group| !group.is_empty());
        if order.is_empty() { all.collect() } else { all.flatten().map(|node| vec![node]).collect() }
    }

    /// While these nodes make of it what follows, packets go that may be let through before or after, and packets that
    /// may never be. Gives back connections that were tried last, with their source ports.
    fn change(&mut self, field: &mut Field, tally: &mut Tally, group: &[usize]) -> Vec<(Probe, u16)> {
        let before = field.truth.clone();
        let after = group.iter().fold(before.clone(), |truth, node| truth.after(*node, &self.state, &self.seats));
        let truths = [&before, &after];
        let when = When { truths: &truths, name: "while something changes" };
        let both: Vec<Probe> = [probes::all(&before, self.round), probes::all(&after, self.round)].concat();
        let fresh: Vec<(Probe, Expected)> = probes::some(&both, DURING, self.round)
            .into_iter()
            .map(|probe| (probe, Expected::under(&truths, &probe)))
            .collect();
        let talk = talks::go_on(&self.talks, &truths);
        for node in group {
            if self.round.is_multiple_of(ONE_ANEW_IN) {
                field.start_anew(*node);
            }
            field.learn(*node, &self.state, &self.seats);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut passes = fresh.chunks(PASS).cycle();
        let mut tried = Vec::new();
        while !field.is_settled() {
            field.check_patience(deadline);
            if tried.len() > IN_A_HURRY {
                pause(Duration::from_millis(20));
            }
            let port = tally.port();
            let next = passes.next().unwrap_or_default();
            let openings = next.iter().map(|(probe, expected)| Flight::opening(*probe, port, *expected));
            let pass: Vec<Flight> = talk.iter().cloned().chain(openings).collect();
            tally.fly(field, when, &pass);
            tried.extend(next.iter().map(|(probe, _)| (*probe, port)));
        }
        tried.split_off(tried.len().saturating_sub(ONCE_MORE))
    }

    /// Now that nodes say that they are done, everything goes as it should.
    fn check(&mut self, field: &Field, tally: &mut Tally, probes: &[Probe]) {
        let truths: [&Truth; 1] = [&field.truth];
        let when = When { truths: &truths, name: "after a change" };
        tally.fly(field, when, &talks::go_on(&self.talks, &truths));
        let port = tally.port();
        let openings: Vec<Flight> =
            probes.iter().map(|probe| Flight::opening(*probe, port, Expected::under(&truths, probe))).collect();
        let arrived = tally.ask(field, when, &openings);
        tally.trace(when, &openings, &arrived);
    }
}
