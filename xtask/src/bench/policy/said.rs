//! Verdicts and packets beside the oracle: how many were checked, and how many are not as it says.
//!
//! The counting is that of two tests, `policy/tests/agree` and `kernel/tests/packets`; a world in which anything goes wrong ends
//! them, and they say which.

use super::super::figure::{Report, Value};
use crate::command::{self, Result};

/// A test that prints figures.
struct Test {
    package: &'static str,
    file: &'static str,
    name: &'static str,
    figures: &'static [&'static str],
    unit: &'static str,
}

const ORACLE: Test = Test {
    package: "tartan-policy",
    file: "agree",
    name: "tables_agree_with_the_oracle_on_a_million_connections",
    figures: &["policy.oracle_cases", "policy.oracle_wrong"],
    unit: "cases",
};
const PACKETS: Test = Test {
    package: "tartan-kernel",
    file: "packets",
    name: "packets_agree_with_the_oracle_in_three_hundred_worlds",
    figures: &["policy.packets_checked", "policy.packets_wrong", "policy.open_window", "policy.trace_wrong"],
    unit: "packets",
};

pub(super) fn oracle(report: &mut Report) -> Result<()> {
    run(report, &ORACLE)
}

pub(super) fn packets(report: &mut Report) -> Result<()> {
    run(report, &PACKETS)
}

fn run(report: &mut Report, test: &Test) -> Result<()> {
    let Test { package, file, name, figures, unit } = test;
    let mut cargo = command::cargo(&["test", "--release", "--quiet", "-p", package, "--test", file]);
    command::with_root_runner(&mut cargo);
    let said = command::capture(cargo.args(["--", "--ignored", "--nocapture", "--exact", name]))?;
    said.lines()
        .filter(|line| line.starts_with("POLICY_SEED") || line.starts_with("# policy."))
        .for_each(|line| report.comment(line.trim_start_matches("# ")));
    for name in *figures {
        let value = said.lines().find_map(|line| value(line, name, unit)).ok_or("the test ended without it")?;
        report.figure(name, Value::once(value), unit);
    }
    Ok(())
}

/// Of a line such as `figure policy.packets_wrong 0 packets`.
fn value(line: &str, name: &str, unit: &str) -> Option<f64> {
    let number = line.strip_prefix("figure ")?.strip_prefix(name)?.strip_prefix(' ')?.strip_suffix(unit)?;
    number.strip_suffix(' ')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_from_its_line_only() {
        let check = |line: &str, want: Option<f64>| {
            assert_eq!(value(line, "policy.packets_wrong", "packets"), want, "{line}");
        };
        check("figure policy.packets_wrong 3 packets", Some(3.0));
        check("figure policy.packets_wrong_too 3 packets", None);
        check("figure policy.packets_checked 3 packets", None);
        check("test figure policy.packets_wrong 3 packets", None);
        check("figure policy.packets_wrong many packets", None);
        check("figure policy.packets_wrong 3 cases", None);
    }
}
