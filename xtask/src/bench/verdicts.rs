//! Verdicts and packets beside the oracle: how many were checked, and how many are not as it says.
//!
//! The counting is that of two tests, `policy/tests/agree` and `kernel/tests/packets`; a world in which anything goes wrong ends
//! them, and they say which. Nothing is timed: a busy machine counts as well as a quiet one. A test that fails leaves its own
//! figures missing, and the other one runs.

use super::figure::{Report, Value};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] = &[
    "policy.oracle_cases",
    "policy.oracle_wrong",
    "policy.packets_checked",
    "policy.packets_wrong",
    "policy.open_window",
    "policy.trace_wrong",
];

/// A test that prints figures.
struct Test {
    package: &'static str,
    file: &'static str,
    name: &'static str,
    figures: std::ops::Range<usize>,
}

const TESTS: [Test; 2] = [
    Test {
        package: "tartan-policy",
        file: "agree",
        name: "tables_agree_with_the_oracle_on_a_million_connections",
        figures: 0..2,
    },
    Test {
        package: "tartan-kernel",
        file: "packets",
        name: "packets_agree_with_the_oracle_in_three_hundred_worlds",
        figures: 2..6,
    },
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    for test in &TESTS {
        if let Err(error) = one(report, test) {
            report.give_up(&FIGURES[test.figures.clone()], &error.to_string());
        }
    }
    Ok(())
}

fn one(report: &mut Report, test: &Test) -> Result<()> {
    let Test { package, file, name, figures } = test;
    let mut cargo = command::cargo(&["test", "--release", "--quiet", "-p", package, "--test", file]);
    command::with_root_runner(&mut cargo);
    let said = command::capture(cargo.args(["--", "--ignored", "--nocapture", "--exact", name]))?;
    said.lines()
        .filter(|line| line.starts_with("POLICY_SEED") || line.starts_with("# policy."))
        .for_each(|line| report.comment(line.trim_start_matches("# ")));
    for name in &FIGURES[figures.clone()] {
        let value = said.lines().find_map(|line| value(line, name)).ok_or("the test ended without it")?;
        report.figure(name, Value::once(value), "count");
    }
    Ok(())
}

/// Of a line such as `figure policy.packets_wrong 0 count`.
fn value(line: &str, name: &str) -> Option<f64> {
    let number = line.strip_prefix("figure ")?.strip_prefix(name)?.strip_prefix(' ')?.strip_suffix(" count")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_of_one_test() {
        let of_tests: Vec<usize> = TESTS.into_iter().flat_map(|test| test.figures).collect();
        assert_eq!(of_tests, (0..FIGURES.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_figure_is_read_from_its_line_only() {
        let check = |line: &str, want: Option<f64>| {
            assert_eq!(value(line, "policy.packets_wrong"), want, "{line}");
        };
        check("figure policy.packets_wrong 3 count", Some(3.0));
        check("figure policy.packets_wrong_too 3 count", None);
        check("figure policy.packets_checked 3 count", None);
        check("test figure policy.packets_wrong 3 count", None);
        check("figure policy.packets_wrong many count", None);
        check("figure policy.packets_wrong 3 cases", None);
    }
}
