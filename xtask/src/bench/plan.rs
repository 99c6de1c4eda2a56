//! Planning in a cluster of 5,000 nodes with 250 pods here: how long, and how much memory.
//!
//! Times are of `agent/examples/plan.rs`, which plans a World in its own process; memory is that of a real agent which
//! reads all that from a file store.

use super::{
    figure::{Arm, Report, Samples, Value, interleave},
    program::{self, Program},
};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] = &["plan.full_5000", "plan.one_change", "plan.rss_5000", "plan.rss_5000_peak"];

const ROUNDS: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    program::build()?;
    let mut plans = [Arm::new(plan)];
    interleave(ROUNDS, &mut plans)?;
    let [plans] = &plans;
    report.figure("plan.full_5000", plans.value(0, Samples::p50), "ms");
    report.comment("plan.one_change: another node says something new; planning and diff");
    report.figure("plan.one_change", plans.value(1, Samples::p50), "ms");
    let program = Program::start(&["scale"])?;
    program.ask("relist")?;
    report.figure("plan.rss_5000", Value::once(program.number("rss")?), "mib");
    report.comment("plan.rss_5000_peak: VmHWM through the start, 250 ADDs and two relists");
    report.figure("plan.rss_5000_peak", Value::once(program.number("peak")?), "mib");
    Ok(())
}

/// Full plans and plans after one change, in ms: one line each.
fn plan() -> Result<Vec<Vec<f64>>> {
    let said = command::capture(&mut program::undisturbed("plan"))?;
    said.lines().map(program::numbers).collect()
}
