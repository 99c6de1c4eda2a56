//! A thousand peers in the kernel: from none to all of them, and one that changes.
//!
//! Times are of `agent/examples/peers.rs`, which runs planners, kernel thread and kernel in a process and a namespace of its
//! own, without a store.

use super::{
    figure::{Arm, Report, Samples, interleave},
    program,
};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] = &["peers.program_1000", "peers.one_change_1000"];

const ROUNDS: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    program::build()?;
    let mut peers = [Arm::new(|| {
        let said = command::capture(&mut program::undisturbed("peers"))?;
        said.lines().map(program::numbers).collect()
    })];
    interleave(ROUNDS, &mut peers)?;
    let [peers] = &peers;
    report.comment("peers.program_1000: device, routes, neighbours and forwarding entries, two families");
    report.figure("peers.program_1000", peers.value(0, Samples::p50), "ms");
    report.comment(&format!("peers.one_change_1000: p99 {:.2} ms", peers.value(1, Samples::p99).get()));
    report.figure("peers.one_change_1000", peers.value(1, Samples::p50), "ms");
    Ok(())
}
