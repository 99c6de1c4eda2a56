//! Packets and the oracle: in random worlds that change, on three nodes, every packet goes where the oracle says, at any
//! time after a change is acknowledged, and nothing goes through while it is made that neither side of it allows.
//!
//! The whole way: documents → World → verdict tables → nft objects → kernel thread → packets made by hand, TCP, UDP, SCTP
//! and ICMP, both families, new connections and old ones. What is expected comes from the oracle alone.
//!
//! `POLICY_CASES` sets how many worlds, `POLICY_SEED` from which seed. A failure prints the seed and the shortest scenario
//! found that fails, as YAML; `POLICY_SHRINKING` sets how often a shorter one is tried.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "figures and seeds")]

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

#[allow(dead_code, reason = "shared")]
#[path = "../../../policy/tests/agree/generate.rs"]
mod generate;
#[allow(dead_code, reason = "shared")]
#[path = "../../../policy/tests/agree/history.rs"]
mod history;
#[path = "../netns/mod.rs"]
mod netns;
#[path = "../place/mod.rs"]
mod place;

mod craft;
mod faults;
mod field;
mod node;
mod play;
mod probes;
mod station;
mod talks;
mod traces;
mod truth;
mod volley;
mod worlds;

use field::Field;
use volley::Tally;

/// Worlds of an everyday run.
const EVERYDAY: u64 = 8;
/// Worlds in which each fault has to show; most do in the first, and what depends on when packets come in one of five.
const PATIENCE: usize = 30;
/// Tries to make a failing scenario shorter, each on new ground.
const SHRINKING: u32 = 60;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn packets_agree_with_the_oracle() {
    report(&run(setting("POLICY_CASES", EVERYDAY), setting("POLICY_SEED", 1), 10));
}

#[test]
#[ignore = "long: three hundred worlds, minutes"]
fn packets_agree_with_the_oracle_in_three_hundred_worlds() {
    let now = std::time::UNIX_EPOCH.elapsed().expect("the clock is later than 1970");
    report(&run(setting("POLICY_CASES", 300), setting("POLICY_SEED", now.as_secs()), 1));
}

fn report(tally: &Tally) {
    let Tally { checked, wrong, open, traced, trace_wrong, .. } = tally;
    tell(&[
        format!("figure policy.packets_checked {checked} count"),
        format!("figure policy.packets_wrong {wrong} count"),
        format!("figure policy.open_window {open} count"),
        format!("# policy.trace_wrong of {traced} connections"),
        format!("figure policy.trace_wrong {trace_wrong} count"),
    ]);
}

/// Past the harness, which shows to nobody what a test prints that passes.
fn tell(lines: &[String]) {
    std::io::stdout().write_all(format!("\n{}\n", lines.join("\n")).as_bytes()).expect("somebody reads it");
}

/// Plays so many scenarios, and traces each so many-th connection. The first scenario that goes wrong is made shorter and
/// printed.
fn run(cases: u64, seed: u64, trace_every: usize) -> Tally {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let cases = u32::try_from(cases).expect("a count");
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: u32::try_from(setting("POLICY_SHRINKING", SHRINKING.into())).expect("a count"),
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    tell(&[format!("POLICY_SEED={seed} POLICY_CASES={cases}")]);
    let field = RefCell::new(None::<Field>);
    let tally = RefCell::new(Tally::tracing_each(trace_every));
    let failed = Cell::new(false);
    let result = runner.run(&worlds::scenario(), |scenario| {
        let mut field = field.borrow_mut();
        // Where something went wrong, nobody knows what is left of it.
        if failed.replace(true) {
            *field = None;
        }
        let mut tally = tally.borrow_mut();
        let field = field.get_or_insert_with(ground);
        field.clear();
        play::play(field, &scenario, &mut tally);
        let told = std::mem::take(&mut tally.told);
        if told.is_empty() {
            failed.set(false);
            return Ok(());
        }
        println!("wrong, to be made shorter:\n{}", told.join("\n"));
        Err(TestCaseError::fail(told.join("\n")))
    });
    match result {
        Ok(()) => tally.into_inner(),
        Err(TestError::Fail(reason, scenario)) => {
            panic!("POLICY_SEED={seed} POLICY_CASES={cases}:\n{reason}\n{scenario:?}")
        }
        Err(TestError::Abort(reason)) => panic!("POLICY_SEED={seed} POLICY_CASES={cases}: {reason}"),
    }
}

/// Whether all this would notice: each fault has to show, and soon.
#[test]
fn every_fault_shows() {
    let mut field = ground();
    for (name, fault) in faults::FAULTS {
        let mut runner =
            TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
        let shown = (0..PATIENCE).position(|_| {
            let scenario = worlds::scenario().new_tree(&mut runner).expect("a scenario").current();
            let mut tally = Tally::tracing_each(100);
            field.clear();
            field.be_faulty(Some(fault));
            play::play(&mut field, &scenario, &mut tally);
            field.be_faulty(None);
            tally.wrong > 0
        });
        assert!(shown.is_some(), "nobody would notice in {PATIENCE} worlds: {name}");
        println!("after {} worlds: {name}", shown.unwrap_or_default() + 1);
    }
}

/// The order of packets is kept on one processor only (see [`Field::collect`]), so this thread stays on one, each on another
/// while there are any. Those of the nodes go where they like.
fn ground() -> Field {
    let all = sched_getaffinity(Pid::this()).expect("any process may");
    sched_setaffinity(Pid::from_raw(0), &all).expect("any thread may");
    let field = Field::new();
    static GROUNDS: AtomicUsize = AtomicUsize::new(0);
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true)).collect();
    let mut one = CpuSet::new();
    one.set(cpus[GROUNDS.fetch_add(1, Ordering::Relaxed) % cpus.len()]).expect("it is there");
    sched_setaffinity(Pid::from_raw(0), &one).expect("any thread may");
    field
}
