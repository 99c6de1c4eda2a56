//! Between any two transactions: in random worlds that change, every packet is judged as before the change or as after it,
//! whatever changes at once, however late the kernel is with intervals, and from wherever a change goes on that was broken
//! off.
//!
//! So it is where the kernel goes over while a packet is judged, after any of its lookups.
//!
//! No kernel is needed: maps are what [`phases`] makes of them, and a packet's lookups are made here, plainly.
//!
//! `POLICY_CASES` sets how many worlds, `POLICY_SEED` from which seed. A failure prints the seed and the shortest scenario
//! found that fails, as YAML; `POLICY_SHRINKING` sets how often a shorter one is tried.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "figures and seeds")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tartan_datapath::nftables::policy::{Mirrored, Mode, Policy};
use tartan_kernel::nft::phases;
use tartan_model::{Attachment, PerFamily, World};
use tartan_netstate::{Mac, PodNetns, State as Maps, Step, diff, epoch};
use tartan_policy::verdicts::{self, Memo};

#[allow(dead_code, reason = "shared")]
#[path = "../../../policy/tests/agree/generate.rs"]
mod generate;
#[allow(dead_code, reason = "shared")]
#[path = "../../../policy/tests/agree/history.rs"]
mod history;
#[allow(dead_code, reason = "shared")]
#[path = "../packets/worlds.rs"]
mod worlds;

mod lookups;

use history::{NODES, Op, State};
use lookups::{Change, LOOKUPS, Lookups, packets};
use worlds::{Event, Scenario, name_of};

/// Worlds of an everyday run: some seconds.
const EVERYDAY: u64 = 20;
/// Tries to make a failing scenario shorter.
const SHRINKING: u64 = 300;

/// How changes come.
#[derive(Clone, Copy, Debug)]
enum Pace {
    OneByOne,
    /// Two steps of a scenario at once.
    Together,
    /// Each change is broken off after so many transactions, one more each time, and the next one begins from there.
    BrokenOff,
}

#[derive(Default)]
struct Node {
    verdicts: Memo,
    policy: Policy,
    held: Mirrored,
    mirror: Maps,
}

/// How the steps of a change are made transactions.
type InTransactions = fn(&Maps, Vec<Step>) -> Vec<Vec<Step>>;

/// Ways that are not good enough, which has to show.
const FAULTS: [(&str, InTransactions); 4] = [
    ("all at once, with intervals that are late", |_, steps| vec![steps]),
    ("no number of the state", |mirror, steps| {
        let mut all = phases(mirror, steps);
        all.iter_mut().for_each(|steps| steps.retain(|step| !epoch::is_key(step.key())));
        all
    }),
    ("the last transaction first", |mirror, steps| {
        let mut all = phases(mirror, steps);
        all.reverse();
        all
    }),
    ("without what is between", |mirror, steps| {
        let keys: BTreeSet<_> = steps.iter().map(|step| step.key().clone()).collect();
        let mut all = phases(mirror, steps);
        all.iter_mut().for_each(|steps| steps.retain(|step| keys.contains(step.key())));
        all
    }),
];

/// Pods that are attached, by slot: node, addresses, name, how often made anew.
type Seats = BTreeMap<usize, (usize, [IpAddr; 2], String, usize)>;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn packets_are_judged_as_before_or_as_after() {
    run(Pace::OneByOne);
}

#[test]
fn packets_are_judged_as_before_or_as_after_where_much_changes_at_once() {
    run(Pace::Together);
}

#[test]
fn packets_are_judged_as_before_or_as_after_where_a_change_was_broken_off() {
    run(Pace::BrokenOff);
}

#[test]
fn every_fault_shows() {
    for (name, fault) in FAULTS {
        let mut runner = runner(100, 7);
        let shows = runner.run(&worlds::scenario(), |scenario| {
            play(&scenario, Pace::OneByOne, fault).map(drop).map_err(TestCaseError::fail)
        });
        assert!(matches!(shows, Err(TestError::Fail(..))), "nobody would notice: {name}");
    }
}

fn runner(cases: u64, seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let [cases, max_shrink_iters] =
        [cases, setting("POLICY_SHRINKING", SHRINKING)].map(|number| u32::try_from(number).expect("a count"));
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn run(pace: Pace) {
    let now = std::time::UNIX_EPOCH.elapsed().expect("the clock is later than 1970");
    let (cases, seed) = (setting("POLICY_CASES", EVERYDAY), setting("POLICY_SEED", now.as_secs()));
    let mut runner = runner(cases, seed);
    let judged = Cell::new(0);
    let result = runner.run(&worlds::scenario(), |scenario| {
        judged.set(judged.get() + play(&scenario, pace, phases).map_err(TestCaseError::fail)?);
        Ok(())
    });
    match result {
        Ok(()) => println!("# {pace:?}: {} packets judged, POLICY_SEED={seed}", judged.get()),
        Err(TestError::Fail(reason, scenario)) => {
            panic!("{pace:?}, POLICY_SEED={seed} POLICY_CASES={cases}:\n{reason}\n{scenario:?}")
        }
        Err(TestError::Abort(reason)) => panic!("POLICY_SEED={seed} POLICY_CASES={cases}: {reason}"),
    }
}

/// Plays it; says how many packets were judged between transactions.
fn play(scenario: &Scenario, pace: Pace, in_transactions: InTransactions) -> Result<u64, String> {
    let (mut state, mut seats, mut lives) = (State::new(), Seats::new(), BTreeMap::new());
    let mut nodes: Vec<Node> = NODES.iter().map(|_| Node::default()).collect();
    let mut judged = 0;
    let at_once = if matches!(pace, Pace::Together) { 2 } else { 1 };
    let first = std::iter::once(scenario.first.clone());
    let then = scenario.then.chunks(at_once).map(|steps| steps.iter().flat_map(|step| step.events.clone()).collect());
    for (turn, events) in first.chain(then).enumerate() {
        take(&mut state, &mut seats, &mut lives, &events);
        let stop = if matches!(pace, Pace::BrokenOff) { turn } else { usize::MAX };
        for (node, name) in nodes.iter_mut().zip(NODES) {
            let done = node.learn(world(&state, &seats, name), stop, in_transactions);
            judged += done.map_err(|why| format!("step {turn}, {name}: {why}"))?;
        }
    }
    Ok(judged)
}

fn take(state: &mut State, seats: &mut Seats, lives: &mut BTreeMap<usize, usize>, events: &[Event]) {
    for event in events {
        match event {
            Event::Put(op) => state.take(op, &[]),
            Event::Gone(op) => {
                state.vanish(op);
                if let Op::Pod(pod) = op {
                    let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
                    seats.retain(|_, (_, _, pod, _)| *pod != name);
                }
            }
            Event::New(slot, pod) => {
                state.take(&Op::Pod(pod.clone()), &[]);
                let life = lives.entry(*slot).or_default();
                *life += 1;
                let (namespace, name) = name_of(*slot);
                let node = NODES.iter().position(|node| *node == pod.spec.node_name).expect("a node");
                let mut addresses = pod.status.pod_ips.iter().map(|ip| ip.ip.parse().expect("an address"));
                let addresses = [(); 2].map(|()| addresses.next().expect("one of each family"));
                seats.insert(*slot, (node, addresses, format!("{namespace}/{name}"), *life));
            }
        }
    }
}

/// What a node knows, with the pods that it has.
fn world(state: &State, seats: &Seats, node: &str) -> World {
    let mut world = state.on(node);
    for (slot, (at, addresses, pod, life)) in seats.iter().filter(|(_, (at, ..))| NODES[*at] == node) {
        let container = format!("c{slot}x{life}");
        let (namespace, name) = pod.split_once('/').unwrap();
        let ino = (slot * 1000 + life * 10 + at).try_into().unwrap();
        world.attach(Attachment {
            id: Attachment::id_of(&container, "eth0"),
            container: container.into(),
            ifname: "eth0".into(),
            netns: PodNetns { dev: 4, ino, path: "/".into() },
            pod_namespace: namespace.into(),
            pod_name: name.into(),
            addresses: PerFamily::first_of(*addresses),
            mac: Mac([2; 6]),
            ports: Vec::new(),
            limits: Default::default(),
            network: None,
            answered: true,
        });
    }
    world
}

// === impl Node ===

impl Node {
    /// Goes over to what follows from that, or so many transactions of the way. Says how many packets were judged.
    fn learn(&mut self, mut world: World, stop: usize, in_transactions: InTransactions) -> Result<u64, String> {
        world.programmed.mirror = self.mirror.clone();
        let tables = &verdicts::plan(&mut self.verdicts, &world).tables;
        let wanted = self.policy.plan(&world, tables, Mode::Enforce, &BTreeSet::new()).clone();
        let all = in_transactions(&self.mirror, diff::diff(&self.mirror, &wanted, |_| true).steps);
        let broken_off = stop < all.len() && !self.mirror.is_empty();
        let judged = self.go_over(&wanted, &all[..if broken_off { stop } else { all.len() }])?;
        if !broken_off && (self.mirror.len() != wanted.len() || !self.mirror.holds_all(&wanted)) {
            return Err("all transactions together are not the change".into());
        }
        self.verdicts.held(self.held.held(&self.mirror));
        Ok(judged)
    }

    fn go_over(&mut self, wanted: &Maps, transactions: &[Vec<Step>]) -> Result<u64, String> {
        let (before, after) = (Lookups::of(&self.mirror), Lookups::of(wanted));
        let packets = if self.mirror.is_empty() { Vec::new() } else { packets(&before, &after) };
        let wanted: Vec<[bool; 2]> =
            packets.iter().map(|packet| [&before, &after].map(|maps| maps.judge(maps, packet))).collect();
        let mut last = before.clone();
        let mut judged = 0;
        for (turn, steps) in transactions.iter().enumerate() {
            steps.iter().for_each(|step| step.apply_to(&mut self.mirror));
            let mut now = Lookups::of(&self.mirror);
            now.epoch = last.epoch + usize::from(steps.iter().any(|step| epoch::is_key(step.key())));
            for (number, (packet, wanted)) in packets.iter().zip(&wanted).enumerate() {
                // Each packet is met in another place.
                let after = (number + turn) % LOOKUPS;
                for intervals in [[&last, &now], [&last, &last]] {
                    judged += 1;
                    let passes = Change { exact: [&last, &now], intervals, after }.judge(packet);
                    if !wanted.contains(&passes) {
                        let (turn, of) = (turn + 1, transactions.len());
                        return Err(format!(
                            "transaction {turn} of {of} after lookup {after}: {packet} is judged unlike before and after"
                        ));
                    }
                }
            }
            for (intervals, late) in [(&now, ""), (&last, ", intervals are late")] {
                for (packet, wanted) in packets.iter().zip(&wanted) {
                    judged += 1;
                    let passes = now.judge(intervals, packet);
                    if !wanted.contains(&passes) {
                        let (turn, of) = (turn + 1, transactions.len());
                        let found = [(&before, &before), (&now, intervals), (&after, &after)]
                            .map(|(exact, intervals)| exact.found(intervals, packet));
                        return Err(format!(
                            "transaction {turn} of {of}{late}: {packet} is judged unlike before and after:\n{}",
                            found.join("\n")
                        ));
                    }
                }
            }
            last = now;
        }
        Ok(judged)
    }
}
