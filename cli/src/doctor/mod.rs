//! `tartan doctor`: what on this node, or in its cluster, keeps the network from working or soon will; before Tartan is
//! there and after.
//!
//! Invariant: `gather` looks and changes nothing, `checks` are pure; what could not be looked at is said, never left out.

mod checks;
mod cluster;
mod found;
mod gather;
mod networks;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::output::{self, Format};
use found::Found;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// The network does not work with it.
    Error,
    /// It may not work, or not for long.
    Warning,
    /// What could not be looked at, or is good to know.
    Note,
}

/// Something found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    level: Level,
    check: &'static str,
    message: String,
    fix: String,
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    node: String,
    findings: Vec<Finding>,
}

/// A name, and what looks at what was found.
type Check = (&'static str, fn(&Found) -> Vec<(Level, String, String)>);

#[rustfmt::skip]
const CHECKS: &[Check] = &[
    ("kernel",      checks::kernel),
    ("modules",     checks::modules),
    ("sysctls",     checks::sysctls),
    ("neighbours",  checks::neighbours),
    ("firewall",    checks::firewall),
    ("ports",       checks::ports),
    ("networks",    networks::others),
    ("leftovers",   networks::leftovers),
    ("path",        cluster::path),
    ("ranges",      cluster::ranges),
    ("machine-ids", cluster::machine_ids),
    ("clock",       cluster::clock),
    ("unseen",      checks::unseen),
];

/// Looks, and prints what it found. 0: nothing but notes; 1: something to see to.
///
/// # Errors
/// The boot file is there and cannot be read, or nobody reads the output.
pub(crate) fn run(config: &Path, store: Option<&str>, format: Format) -> Result<ExitCode> {
    let boot = match config.exists() {
        true => Some(crate::agent::read(config)?),
        false => None,
    };
    let found = gather::gather(boot, store).context("doctor")?;
    let report = report(&found);
    output::print(format, &report, text)?;
    let ill = report.findings.iter().any(|finding| finding.level != Level::Note);
    Ok(if ill { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(found: &Found) -> Report {
    let of_check = |(check, look): &Check| {
        let check = *check;
        look(found).into_iter().map(move |(level, message, fix)| Finding { level, check, message, fix })
    };
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(of_check).collect();
    findings.sort();
    Report { node: found.node.clone(), findings }
}

fn text(report: &Report) -> String {
    let line = |finding: &Finding| {
        let Finding { level, check, message, fix } = finding;
        let level = match level {
            Level::Error => "ERROR  ",
            Level::Warning => "WARNING",
            Level::Note => "note   ",
        };
        let fix = if fix.is_empty() { String::new() } else { format!("\n         → {fix}") };
        format!("{level}  {check}: {message}{fix}")
    };
    let lines: Vec<String> = report.findings.iter().map(line).collect();
    let ill = report.findings.iter().filter(|finding| finding.level != Level::Note).count();
    let end = match ill {
        0 => format!("{} checks on {}: nothing to see to", CHECKS.len(), report.node),
        ill => format!("{} checks on {}: {ill} to see to", CHECKS.len(), report.node),
    };
    lines.into_iter().chain([end]).collect::<Vec<_>>().join("\n")
}
