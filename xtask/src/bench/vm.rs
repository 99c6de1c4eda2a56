//! Under how many of Debian's kernels the tests for other kernels ran, and how many of them failed.

use super::figure::{Report, Value};
use crate::{command::Result, vm};

pub(super) const FIGURES: &[&str] = &["vm.kernels", "vm.failed"];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let args: Vec<&str> = vm::kernels().flat_map(|name| ["--kernel", name]).collect();
    let under = vm::measure(&args)?;
    let failed: Vec<f64> = under.iter().map(|(_, failed)| f64::from(*failed)).collect();
    report.comment(
        &under.iter().map(|(release, failed)| format!("{release}: {failed} failed")).collect::<Vec<_>>().join(", "),
    );
    report.figure("vm.kernels", Value::once(under.len() as f64), "count");
    report.figure("vm.failed", Value::sum(&failed), "count");
    Ok(())
}
