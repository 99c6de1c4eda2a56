//! From a word of the store to the kernel: `agent/examples/policy.rs`, which is planners, kernel thread and kernel in a
//! process of its own, without a store.

use super::super::figure::{Report, Samples, Value};
use super::super::program;
use crate::command::{self, Result};

/// What the program prints times of, in its order, and the figure that they come to.
const SERIES: [(&str, Option<&str>); 4] = [
    ("a port in a policy of all 100 pods here, each with policies of its own beside", None),
    ("a policy of one namespace", Some("policy.enforce_100_p99")),
    ("the labels of a pod here", Some("policy.label_change_p99")),
    ("a new pod elsewhere, unlike all others every other time", Some("policy.new_pod_p99")),
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    program::build()?;
    let said = command::capture(&mut program::undisturbed("policy"))?;
    let series: Vec<Samples> = said.lines().map(|line| Samples::new(program::numbers(line)?)).collect::<Result<_>>()?;
    if series.len() != SERIES.len() {
        return Err(format!("{} lines of times were wanted, not {}", SERIES.len(), series.len()).into());
    }
    report.comment("50,000 pods and 10,000 policies in the cluster, 100 of the pods here; until the kernel has it");
    for ((what, figure), times) in SERIES.into_iter().zip(&series) {
        let [p50, p99, most] = [times.p50(), times.p99(), times.most()];
        report.comment(&format!("policy: {what}: p50 {p50:.2} ms, p99 {p99:.2} ms, most {most:.2} ms"));
        if let Some(figure) = figure {
            report.figure(figure, Value::once(p99), "ms");
        }
    }
    Ok(())
}
