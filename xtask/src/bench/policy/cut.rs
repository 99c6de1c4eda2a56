//! Two whole nodes: from a new pod's addresses to its first connection to a server that lets it in, and who is cut
//! meanwhile, and while agents and store go and come.

use super::super::figure::{Report, Samples, Value};
use super::super::program::Program;
use crate::command::Result;

/// How late the API server tells of a new pod's addresses, in ms, and how many pods.
const LAGS: [(u32, usize); 3] = [(0, 100), (1_000, 10), (5_000, 3)];
/// What else nobody may notice.
const EVENTS: [&str; 3] = ["restart", "relist", "away"];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = Program::start(&["policy"])?;
    let (mut first, mut cut) = (Vec::new(), Vec::new());
    for (lag, count) in LAGS {
        let answer = program.ask(&format!("connect {lag} {count}"))?;
        let [times, lost] = answer.as_slice() else { return Err("two series were wanted".into()) };
        let times = Samples::new(times.clone())?;
        let [p50, p99] = [times.p50(), times.p99()];
        report.comment(&format!(
            "addresses told {lag} ms late: first connection p50 {p50:.1} ms, p99 {p99:.1} ms after that"
        ));
        first.push(times.p99());
        cut.extend(lost);
    }
    report.figure("policy.first_connect_p99", Value::worst(&first), "ms");
    for event in EVENTS {
        let lost = program.number(event)?;
        report.comment(&format!("policy.wrongly_cut: {lost} by {event}"));
        cut.push(lost);
    }
    report.figure("policy.wrongly_cut", Value::sum(&cut), "count");
    Ok(())
}
