//! Kubernetes' own network tests with Tartan: how many specs pass. Which, and what is left out why, is printed beside.

use super::figure::{Report, Value};
use crate::{command::Result, kube};

pub(super) const FIGURES: &[&str] = &[
    "e2e.conformance.passed",
    "e2e.conformance.failed",
    "e2e.granular.passed",
    "e2e.granular.failed",
    "e2e.dual_stack.passed",
    "e2e.dual_stack.failed",
    "e2e.netpol.passed",
    "e2e.netpol.failed",
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let mut counts = Vec::new();
    // Whether specs failed is what the figures say.
    kube::e2e(kube::NEWEST, &[], |line| counts.extend(count(line)))?;
    for (figure, count) in counts {
        report.figure(figure, Value::once(count), "count");
    }
    Ok(())
}

/// `e2e.conformance.passed 47`, among all that tests print.
fn count(line: &str) -> Option<(&'static str, f64)> {
    let (name, count) = line.split_once(' ')?;
    Some((FIGURES.iter().find(|figure| **figure == name)?, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_among_what_tests_print() {
        assert_eq!(count("e2e.granular.passed 40"), Some(("e2e.granular.passed", 40.0)));
        for line in
            ["e2e.granular.passed", "e2e.granular.passed many", "e2e.other.passed 4", "passed    [sig-network] x"]
        {
            assert_eq!(count(line), None, "{line}");
        }
    }
}
