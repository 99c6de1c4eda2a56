//! The demo as a newcomer meets it: from a fresh clone to the first matrix, and what it lost on its way.
//!
//! Cold is: a clone of what is committed, an empty target folder. Crates come from cargo's own cache where it has them:
//! how fast a network is, is not ours.

use super::figure::{Report, Value};
use crate::command::{self, Result};
use std::{fs, path::Path, process::Command, time::Instant};

pub(super) const FIGURES: &[&str] = &["demo.cold", "demo.lost"];

/// The demo's line after the first matrix.
const AFTER_MATRIX: &str = " s since the start";

pub(super) fn run(report: &mut Report) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tartan-cold-{}", std::process::id()));
    let done = cold(report, &folder);
    // What the demo's root made in the user's clone is gone with its lab; all that is left is the user's.
    fs::remove_dir_all(&folder)?;
    done
}

fn cold(report: &mut Report, folder: &Path) -> Result<()> {
    let start = Instant::now();
    command::run(Command::new("git").args(["clone", "--quiet"]).arg(command::root()).arg(folder))?;
    let mut demo = command::cargo(&["xtask", "demo", "--yes"]);
    demo.current_dir(folder).env("CARGO_TARGET_DIR", folder.join("target"));
    let (mut matrix, mut lost) = (None, None);
    let ended_well = command::stream(&mut demo, |line| {
        if line.ends_with(AFTER_MATRIX) {
            matrix.get_or_insert_with(|| start.elapsed());
        }
        lost = lost.or_else(|| lost_of(line));
    })?;
    if let Some(matrix) = matrix {
        report.figure("demo.cold", Value::once(matrix.as_secs_f64()), "s");
    }
    if let Some(lost) = lost {
        report.figure("demo.lost", Value::once(lost), "count");
    }
    if ended_well { Ok(()) } else { Err("the demo failed; what it said stands above".into()) }
}

/// The demo's own figure.
fn lost_of(line: &str) -> Option<f64> {
    line.strip_prefix("figure demo.lost ")?.strip_suffix(" count")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_own_figure_is_taken_over() {
        assert_eq!(lost_of("figure demo.lost 3 count"), Some(3.0));
        assert_eq!(lost_of("# demo.lost rounds=1 min=3 max=3"), None);
    }
}
