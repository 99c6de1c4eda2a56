//! Changes of fabric under load: every one into vxlan and out of it, and a walk through whatever chance says, with the nodes
//! hearing of each at different times. Nothing is lost and nothing is reset.
//!
//! All ordered pairs at all distances take minutes: `cargo xtask test long`, and `cargo xtask bench fabric` with figures.
//! Those of ipip are in `vm.rs`, under kernels that have it.

mod common;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use anyhow::{Context, Result};
use common::{PATIENCE, lab, unnoticed, wait_until_sent_first_by, wait_until_steady};
use tartan_lab::Lab;
use tartan_lab::probe::wait_for;

/// Probes answered before each change and after it.
const PROBES: u64 = 3_000;
const FABRICS: [&str; 4] = ["vxlan", "host-gw", "udp", "wireguard"];
/// Every ordered pair, one after the other.
const EVERY_PAIR: [&str; 12] = [
    "host-gw",
    "udp",
    "wireguard",
    "udp",
    "host-gw",
    "wireguard",
    "host-gw",
    "vxlan",
    "udp",
    "vxlan",
    "wireguard",
    "vxlan",
];
/// Those of vxlan.
const OF_VXLAN: [&str; 6] = ["host-gw", "vxlan", "udp", "vxlan", "wireguard", "vxlan"];
/// From one node's hearing of a change to the next one's.
const APART: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(10)];

/// From vxlan into each of these, in turn.
fn check(name: &str, changes: impl IntoIterator<Item = (&'static str, Duration)>) -> Result<Lab> {
    let mut lab = lab(name, "vxlan")?;
    let mut from = "vxlan";
    for (to, apart) in changes {
        let change = |lab: &mut Lab| {
            lab.set_fabric_apart(to, apart)?;
            wait_until_steady(lab, to)
        };
        let report = unnoticed(&mut lab, PROBES, change);
        let report = report.with_context(|| format!("from {from} to {to}, {apart:?} apart"))?;
        eprintln!("from {from} to {to}, {apart:?} apart: {report}");
        from = to;
    }
    Ok(lab)
}

fn all(apart: Duration, changes: &[&'static str]) -> Vec<(&'static str, Duration)> {
    changes.iter().map(|to| (*to, apart)).collect()
}

/// Steps of a walk, as a seed has them: to another fabric each time.
fn walk(seed: u64, steps: usize, apart: &[Duration]) -> Vec<(&'static str, Duration)> {
    // SplitMix64.
    let mut state = seed;
    let mut below = |limit: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % limit as u64) as usize
    };
    let mut at = "vxlan";
    let step = |_| {
        let others: Vec<&str> = FABRICS.into_iter().filter(|fabric| *fabric != at).collect();
        at = others[below(others.len())];
        (at, apart[below(apart.len())])
    };
    (0..steps).map(step).collect()
}

/// The next step is made once all nodes send by the one before: what that one leaves behind is still being taken away.
fn check_walk(name: &str, steps: usize, apart: &[Duration]) -> Result<()> {
    let seed = match std::env::var("PROPTEST_RNG_SEED") {
        Ok(seed) => seed.parse().context("PROPTEST_RNG_SEED is a number")?,
        Err(_) => RandomState::new().hash_one(name),
    };
    let steps = walk(seed, steps, apart);
    let walk = |lab: &mut Lab| {
        for (to, apart) in &steps {
            lab.set_fabric_apart(to, *apart)?;
            wait_until_sent_first_by(lab, to)?;
        }
        wait_until_steady(lab, steps[steps.len() - 1].0)
    };
    let report = unnoticed(&mut lab(name, "vxlan")?, PROBES, walk)
        .with_context(|| format!("PROPTEST_RNG_SEED={seed} does it again: {steps:?}"))?;
    eprintln!("{} steps: {report}", steps.len());
    Ok(())
}

#[test]
fn into_vxlan_and_out_of_it_while_all_hear_at_once() -> Result<()> {
    let lab = check("sw-0", all(APART[0], &OF_VXLAN))?;
    // With nothing to carry there is nobody left who would.
    for node in lab.nodes() {
        for name in ["tartan-engine", "tartan-holder"] {
            wait_for(PATIENCE, &format!("the end of {name}"), || node.processes(name).is_ok_and(|all| all.is_empty()))?;
        }
    }
    Ok(())
}

#[test]
fn into_vxlan_and_out_of_it_while_nodes_hear_3_seconds_apart() -> Result<()> {
    check("sw-3", all(APART[1], &OF_VXLAN)).map(drop)
}

#[test]
fn a_walk_through_fabrics() -> Result<()> {
    check_walk("sw-walk", 20, &APART[..2])
}

#[test]
#[ignore = "minutes"]
fn a_long_walk_through_fabrics() -> Result<()> {
    check_walk("sw-walk-20", 20, &APART)
}

#[test]
#[ignore = "minutes"]
fn every_pair_of_fabrics_at_every_distance() -> Result<()> {
    check("sw-all", APART.into_iter().flat_map(|apart| all(apart, &EVERY_PAIR))).map(drop)
}

#[test]
fn every_pair_is_on_the_list() {
    let begin = |list: &[&'static str]| -> Vec<(&str, &str)> {
        std::iter::once("vxlan").chain(list.iter().copied()).zip(list.iter().copied()).collect()
    };
    for from in FABRICS {
        for to in FABRICS.into_iter().filter(|to| *to != from) {
            assert!(begin(&EVERY_PAIR).contains(&(from, to)), "{from} to {to}");
            assert_eq!(begin(&OF_VXLAN).contains(&(from, to)), [from, to].contains(&"vxlan"), "{from} to {to}");
        }
    }
}
