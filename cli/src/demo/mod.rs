//! `tartan demo`: three nodes, six pods, and everything that usually breaks a network, in front of the reader's eyes.
//!
//! Each act is a file. Everything shown is read from the running thing: addresses from CNI results, routes from
//! `ip route`, losses from the probes' own counts.

mod break_it;
mod change;
mod policy;
mod topology;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use tartan_lab::{Asked, Census, Lab, Signals};

use crate::output::say;

/// How long the first matrix may take to become whole.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs all acts; with `yes` without waiting for Enter at the end.
pub(crate) fn run(yes: bool) -> Result<ExitCode> {
    let signals = Signals::hold_back()?;
    tartan_lab::remove_leftovers()?;
    let before = Census::take()?;
    let started = Instant::now();
    let mut lab = Lab::builder("demo").nodes(3).pods_per_node(2).fabric("vxlan").up()?;
    heading("The network")?;
    topology::draw(&lab)?;
    heading("Who reaches whom (IPv4/IPv6; ok: ping, HTTP, and the server saw the pod's own address)")?;
    say(format_args!("{}", lab.wait_for_matrix(PATIENCE)?))?;
    say(format_args!("\n{:.1} s since the start", started.elapsed().as_secs_f64()))?;
    let mut lost = 0;
    heading("Changing the fabric under load: vxlan → host-gw → vxlan")?;
    lost += change::act(&mut lab)?;
    heading("Breaking it")?;
    lost += break_it::act(&mut lab)?;
    heading("A policy, and connections that are open")?;
    policy::act(&lab)?;
    say(format_args!("\n# demo.lost rounds=1 min={lost} max={lost}\nfigure demo.lost {lost} count"))?;
    if !yes {
        stay(&signals)?;
    }
    heading("Cleaning up")?;
    drop(lab);
    let left = Census::take()?.since(&before);
    say(format_args!("left on this machine: {left}"))?;
    Ok(if left.is_nothing() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn stay(signals: &Signals) -> Result<()> {
    heading("Yours now")?;
    say(format_args!(
        "In another terminal, as root:\n\n  \
         tartan status\n  \
         tartan lab exec a1 -- curl -s b2\n  \
         tartan set fabric host-gw\n\n\
         Enter ends it and removes everything."
    ))?;
    match signals.wait(true)? {
        Asked::ByEnter | Asked::BySignal => Ok(()),
    }
}

fn heading(text: &str) -> Result<()> {
    say(format_args!("\n── {text} {}", "─".repeat(96_usize.saturating_sub(text.chars().count()))))
}
