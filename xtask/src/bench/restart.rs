//! Continuity: what packets notice of agents killed and restarted, the fabric changed and the store away. Nothing.

use super::{
    figure::{Report, Value},
    program::Program,
};
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &["restart.lost", "restart.resets"];

const EVENTS: [&str; 7] =
    ["kill", "restart", "change", "change-3s-apart", "change-10s-apart", "change-and-kill", "store-away-30s"];

/// Probes answered after each event, beside those through it.
const PROBES: u64 = 30_000;
const REPEATS: usize = 3;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = Program::start(&["restart"])?;
    let (mut lost, mut resets) = (Vec::new(), Vec::new());
    for event in EVENTS {
        let (mut probes, mut longest_gap) = (0.0, 0.0_f64);
        for _ in 0..REPEATS {
            let [sent, missing, reset, gap] = counts(&program, event)?;
            probes += sent;
            longest_gap = longest_gap.max(gap);
            lost.push(missing);
            resets.push(reset);
        }
        report.comment(&format!("restart {event}: {REPEATS} times, {probes} probes, longest gap {longest_gap:.1} ms"));
    }
    report.figure("restart.lost", Value::sum(&lost), "count");
    report.figure("restart.resets", Value::sum(&resets), "count");
    Ok(())
}

/// Probes, lost, resets, longest gap in ms.
fn counts(program: &Program, event: &str) -> Result<[f64; 4]> {
    let answer = program.ask(&format!("{event} {PROBES}"))?;
    let counts: Vec<f64> = answer.into_iter().flatten().collect();
    counts.try_into().map_err(|counts| format!("{event}: four counts were wanted, not {counts:?}").into())
}
