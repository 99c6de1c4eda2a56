//! Continuity over long runs: what a user must never notice, many times, each under tens of thousands of probes.
//!
//! MTU-sized UDP that is never fragmented, idle TCP, bulk TCP and a node's own TCP to a remote pod run through every
//! event, in both families. Lost 0, reset 0. The short versions are in `live.rs`.
//! `TARTAN_REPEATS=2 cargo test -p tartan-lab --test long -- --ignored --nocapture` for a first look.

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, lab, unnoticed, wait_until_steady};
use serde_json::Value;
use tartan_lab::probe::{let_pass, wait_for};
use tartan_lab::{Binaries, Lab};

/// Answered before an event begins, and again after it has ended.
const PROBES: u64 = 15_000;
const REPEATS: u32 = 10;

/// One event at a time: two under full load would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

fn repeats() -> Result<u32> {
    match std::env::var("TARTAN_REPEATS") {
        Ok(number) => number.parse().with_context(|| format!("TARTAN_REPEATS={number} is no number")),
        Err(_) => Ok(REPEATS),
    }
}

/// Repeats `event` in one lab, each time under load, and prints what it cost.
fn check(name: &str, mut event: impl FnMut(&mut Lab) -> Result<()>) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(|failed_before| failed_before.into_inner());
    let mut lab = lab(name, "vxlan")?;
    for round in 1..=repeats()? {
        let report = unnoticed(&mut lab, PROBES, &mut event).with_context(|| format!("{name}, round {round}"))?;
        eprintln!("{name} {round}: {report}");
    }
    Ok(())
}

#[test]
#[ignore = "minutes"]
fn kill() -> Result<()> {
    check("long-kill", |lab| {
        let node = lab.node("n1")?;
        node.kill_agent()?;
        node.start_agent()?;
        node.wait_ready().map(drop)
    })
}

#[test]
#[ignore = "minutes"]
fn restart() -> Result<()> {
    check("long-restart", |lab| lab.node("n2")?.restart_agent().map(drop))
}

#[test]
#[ignore = "minutes"]
fn upgrade() -> Result<()> {
    // The same sources by other compiler settings: no byte of the program is where it was. There is no release yet whose
    // formats could differ.
    let dev = Binaries::beside_this_program()?.tartan;
    let target = dev.parent().and_then(Path::parent).context("a target directory")?;
    let demo = target.join("demo/tartan");
    ensure!(demo.exists(), "{} is missing: run `cargo build --profile demo -p tartan-cli`", demo.display());
    let mut builds = [demo, dev].into_iter().cycle();
    check("long-upgrade", |lab| {
        let next = builds.next().context("the two take turns for ever")?;
        for node in lab.nodes() {
            node.set_program(&next);
            node.restart_agent()?;
        }
        Ok(())
    })
}

/// Sixty seconds of traffic, signs of life and timers: no change is even tried.
#[test]
#[ignore = "a minute"]
fn a_quiet_node_tries_nothing_for_a_minute() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(|failed_before| failed_before.into_inner());
    let mut lab = lab("long-quiet", "vxlan")?;
    wait_until_steady(&lab, "vxlan")?;
    let counts = |lab: &Lab| -> Result<Vec<Value>> {
        lab.nodes().iter().map(|node| Ok(node.status()?["kernel"]["applied"].clone())).collect()
    };
    let before = counts(&lab)?;
    unnoticed(&mut lab, PROBES, |_| let_pass(Duration::from_secs(60)))?;
    ensure!(counts(&lab)? == before, "{before:?} became {:?}", counts(&lab)?);
    Ok(())
}

/// There and back, the nodes learning of it `skew` apart.
fn change(name: &str, skew: Duration) -> Result<()> {
    check(name, |lab| {
        for fabric in ["host-gw", "vxlan"] {
            lab.set_fabric_apart(fabric, skew)?;
            wait_until_steady(lab, fabric)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "minutes"]
fn change_that_all_learn_of_at_once() -> Result<()> {
    change("long-change-0", Duration::ZERO)
}

#[test]
#[ignore = "minutes"]
fn change_that_nodes_learn_of_3_seconds_apart() -> Result<()> {
    change("long-change-3", Duration::from_secs(3))
}

#[test]
#[ignore = "minutes"]
fn change_that_nodes_learn_of_10_seconds_apart() -> Result<()> {
    change("long-change-10", Duration::from_secs(10))
}

#[test]
#[ignore = "minutes"]
fn change_with_an_agent_killed_in_its_midst() -> Result<()> {
    check("long-change-kill", |lab| {
        for fabric in ["host-gw", "vxlan"] {
            // While n3 has not heard, the others hear by both ways and send by the old one: phase 2.
            lab.node("n3")?.pause_agent()?;
            lab.set_fabric(fabric)?;
            let node = lab.node("n2")?;
            let midst = || {
                node.status().is_ok_and(|status| {
                    status["fabric"] == fabric
                        && status["phase"].as_str().is_some_and(|phase| phase.starts_with("changing"))
                        && status["receives"].as_array().is_some_and(|receives| receives.len() > 1)
                })
            };
            wait_for(PATIENCE, "n2 to be in the midst of it", midst)?;
            node.kill_agent()?;
            lab.node("n3")?.resume_agent()?;
            let_pass(Duration::from_secs(5))?;
            node.start_agent()?;
            wait_until_steady(lab, fabric)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "minutes"]
fn store_away_for_half_a_minute() -> Result<()> {
    check("long-away", |lab| {
        lab.store_away()?;
        let_pass(Duration::from_secs(30))?;
        lab.store_back()?;
        // It is heard again.
        for fabric in ["host-gw", "vxlan"] {
            lab.set_fabric(fabric)?;
            wait_until_steady(lab, fabric)?;
        }
        Ok(())
    })
}
