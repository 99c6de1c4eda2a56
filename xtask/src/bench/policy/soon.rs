//! From a word of the store to the kernel: `agent/examples/policy.rs`, which is planners, kernel thread and kernel in a
//! process of its own, without a store.

use super::super::figure::{Report, Samples, Value};
use super::super::program;
use crate::command::{self, Result};

const NAMES: [&str; 3] = ["policy.enforce_100_p99", "policy.label_change_p99", "policy.new_pod_p99"];

pub(super) fn run(report: &mut Report) -> Result<()> {
    program::build()?;
    let said = command::capture(&mut program::undisturbed("policy"))?;
    let series: Vec<Samples> = said.lines().map(|line| Samples::new(program::numbers(line)?)).collect::<Result<_>>()?;
    if series.len() != NAMES.len() {
        return Err(format!("{} lines of times were wanted, not {}", NAMES.len(), series.len()).into());
    }
    report.comment("50,000 pods and 10,000 policies in the cluster, 100 of the pods here; until the kernel has it");
    for (name, times) in NAMES.into_iter().zip(&series) {
        report.comment(&format!("{name}: p50 {:.2} ms, most {:.2} ms", times.p50(), times.most()));
        report.figure(name, Value::once(times.p99()), "ms");
    }
    Ok(())
}
