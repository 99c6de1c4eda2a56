//! Policy, from a word of the store to the kernel, and from a new pod's addresses to its first connection.
//!
//! The first are of `agent/examples/policy.rs`: planners, kernel thread and kernel in a process of its own, without a store;
//! the second of two whole nodes.

use super::{
    figure::{Report, Samples, Value},
    program::{self, Program},
};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] = &[
    "policy.enforce_100_p99",
    "policy.label_change_p99",
    "policy.new_pod_p99",
    "policy.first_connect_p99",
    "policy.wrongly_cut",
];

/// How late the API server tells of a new pod's addresses, in ms, and how many pods.
const LAGS: [(u32, usize); 3] = [(0, 100), (1_000, 10), (5_000, 3)];

pub(super) fn run(report: &mut Report) -> Result<()> {
    program::build()?;
    let said = command::capture(&mut program::undisturbed("policy"))?;
    let series: Vec<Samples> = said.lines().map(|line| Samples::new(program::numbers(line)?)).collect::<Result<_>>()?;
    let [policy, label, pod] = series.as_slice() else {
        return Err(format!("three lines of times were wanted, not {}", series.len()).into());
    };
    report.comment("50,000 pods and 10,000 policies in the cluster, 100 of the pods here; until the kernel has it");
    for (name, times) in
        [("policy.enforce_100_p99", policy), ("policy.label_change_p99", label), ("policy.new_pod_p99", pod)]
    {
        report.comment(&format!("{name}: p50 {:.2} ms, most {:.2} ms", times.p50(), times.most()));
        report.figure(name, Value::once(times.p99()), "ms");
    }
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
    report.figure("policy.wrongly_cut", Value::sum(&cut), "count");
    Ok(())
}
