//! Repair: how long until what somebody deleted by hand is there again, with all that hung on it.

use super::{
    figure::{Arm, Report, Samples, Value, interleave, number},
    program::Program,
};
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &["repair.worst"];

const DAMAGES: [&str; 7] =
    ["vxlan-device", "route", "neighbour", "fdb-entry", "nft-table", "node-address", "forwarding"];

const ROUNDS: usize = 10;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = &Program::start(&["repair"])?;
    let mut arms = DAMAGES.map(|damage| Arm::new(move || program.ask(damage)));
    interleave(ROUNDS, &mut arms)?;
    let mut worst = Vec::new();
    for (damage, arm) in DAMAGES.iter().zip(&arms) {
        let value = |statistic: fn(&Samples) -> f64| arm.value(0, statistic).get();
        report.comment(&format!(
            "repair {damage}: ms p50={} worst={} of {ROUNDS}",
            number(value(Samples::p50)),
            number(value(Samples::most))
        ));
        worst.push(value(Samples::most));
    }
    report.figure("repair.worst", Value::worst(&worst), "ms");
    Ok(())
}
