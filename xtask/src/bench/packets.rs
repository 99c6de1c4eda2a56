//! Packets in random worlds beside the oracle: how many were checked, how many went where they should not.
//!
//! The counting is a test's, `kernel/tests/packets`; a world in which anything goes wrong ends it, and it says which.

use super::figure::{Report, Value};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] =
    &["policy.packets_checked", "policy.packets_wrong", "policy.open_window", "policy.trace_wrong"];

const TEST: &str = "packets_agree_with_the_oracle_in_three_hundred_worlds";

pub(super) fn run(report: &mut Report) -> Result<()> {
    let mut test = command::cargo(&["test", "--release", "--quiet", "-p", "tartan-kernel", "--test", "packets"]);
    command::with_root_runner(&mut test);
    let said = command::capture(test.args(["--", "--ignored", "--nocapture", "--exact", TEST]))?;
    said.lines()
        .filter(|line| line.starts_with("POLICY_SEED") || line.starts_with("# policy."))
        .for_each(|line| report.comment(line));
    for name in FIGURES {
        let value = said.lines().find_map(|line| value(line, name)).ok_or("the test ended without it")?;
        report.figure(name, Value::once(value), "packets");
    }
    Ok(())
}

/// Of a line such as `figure policy.packets_wrong 0 packets`.
fn value(line: &str, name: &str) -> Option<f64> {
    let number = line.strip_prefix("figure ")?.strip_prefix(name)?.strip_prefix(' ')?.strip_suffix(" packets")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_from_its_line_only() {
        let check = |line: &str, want: Option<f64>| assert_eq!(value(line, "policy.packets_wrong"), want, "{line}");
        check("figure policy.packets_wrong 3 packets", Some(3.0));
        check("figure policy.packets_wrong_too 3 packets", None);
        check("figure policy.packets_checked 3 packets", None);
        check("test figure policy.packets_wrong 3 packets", None);
        check("figure policy.packets_wrong many packets", None);
    }
}
