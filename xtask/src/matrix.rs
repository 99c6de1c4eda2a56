//! `cargo xtask matrix`: everything that is to work, on every fabric over every family of underlay, in `docs/matrix.md`.
//!
//! A row is one run of `lab/examples/matrix.rs`, on this machine or under a kernel of Debian's that has what it takes.
//! Invariant: a cell that a run did not speak of is a failure, and rows that were not run stay as they are.

use crate::{
    command::{self, Result},
    packages::{self, Lane},
    vm,
};
use std::{collections::BTreeMap, fs, process::Command};

const DOC: &str = "docs/matrix.md";
const FOLDER: &str = "debug";

/// Fabrics and families of underlay; of the last, what this machine's kernel lacks.
#[rustfmt::skip]
const FABRICS: &[(&str, &[&str], Option<&str>)] = &[
    ("vxlan",     &["ipv4", "ipv6"], None),
    ("udp",       &["ipv4", "ipv6"], None),
    ("wireguard", &["ipv4", "ipv6"], None),
    ("host-gw",   &["auto"],         None),
    ("ipip",      &["ipv4", "ipv6"], Some("bookworm")),
];
const ENCRYPTIONS: &[&str] = &["none"];

/// What is said on the left, and what stands above it.
const CHECKS: &[(&str, &str)] = &[
    ("ping", "ping, HTTP"),
    ("sizes", "1 byte to MTU + 1"),
    ("tcp", "bulk TCP"),
    ("restart", "agent restarted"),
    ("kill", "agent and engine killed"),
    ("change", "to another fabric and back"),
    ("loss", "a node lost"),
];

const HEAD: &str = "# What works on which fabric

Written by `cargo xtask matrix`, which does all of it with three nodes in network namespaces: IPv4 and IPv6 pods, an echo of
every size, streams, and probes through whatever happens, of which none may be lost, but by a killed engine of `wireguard`. `host-gw` has no outer packet, so both
families of underlay are one row. A kernel of Debian's runs in QEMU.

";

/// Fabric, underlay, encryption.
type Key = [&'static str; 3];

/// Runs the rows of these fabrics, all of them when none is named, and writes the document.
///
/// # Errors
/// An unknown fabric, a build that fails, or cells that failed, by name.
pub(crate) fn run(fabrics: &[&str]) -> Result<()> {
    if let Some(unknown) = fabrics.iter().find(|name| !FABRICS.iter().any(|(known, ..)| known == *name)) {
        let known: Vec<&str> = FABRICS.iter().map(|(known, ..)| *known).collect();
        return Err(format!("`{unknown}` has no row; there are: {}", known.join(" ")).into());
    }
    packages::ensure(&[Lane::Build, Lane::Lab, Lane::Vm])?;
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-cli", "-p", "tartan-cni"]))?;
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-lab", "--example", "matrix"]))?;
    let mut lines = known_lines(&fs::read_to_string(DOC).unwrap_or_default());
    let mut failed = Vec::new();
    for (key, kernel) in rows().filter(|(key, _)| fabrics.is_empty() || fabrics.contains(&key[0])) {
        println!("\n=== {}", key.join(" "));
        let (release, said) = measure(key, kernel)?;
        failed.extend(failures(key, &said));
        lines.insert(key.map(str::to_owned), line(key, &release, &said));
    }
    fs::write(DOC, document(&lines))?;
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

fn rows() -> impl Iterator<Item = (Key, Option<&'static str>)> {
    FABRICS.iter().flat_map(|(fabric, underlays, kernel)| {
        underlays.iter().flat_map(move |underlay| {
            ENCRYPTIONS.iter().map(move |encryption| ([*fabric, *underlay, *encryption], *kernel))
        })
    })
}

/// Under which kernel, and what each check came to.
fn measure(key: Key, kernel: Option<&str>) -> Result<(String, BTreeMap<String, bool>)> {
    let program = command::target_dir().join(FOLDER).join("examples/matrix");
    let (release, mut command) = match kernel {
        Some(kernel) => vm::under_named(kernel, &program)?,
        None => (command::capture(Command::new("uname").arg("-r"))?.trim().to_owned(), command::as_root(&program)),
    };
    let mut said = BTreeMap::new();
    // What it did not speak of has failed, however it ended.
    let _ended = command::stream(command.args(key), |line| {
        said.extend(heard(line));
    })?;
    Ok((release, said))
}

/// `NAME ok` or `NAME failed WHY`.
fn heard(line: &str) -> Option<(String, bool)> {
    let (name, said) = line.trim_end().split_once(' ')?;
    let known = CHECKS.iter().any(|(known, _)| *known == name);
    let ok = said == "ok";
    (known && (ok || said.starts_with("failed "))).then(|| (name.to_owned(), ok))
}

fn failures(key: Key, said: &BTreeMap<String, bool>) -> Vec<String> {
    let failed = CHECKS.iter().filter(|(name, _)| said.get(*name) != Some(&true));
    failed.map(|(name, _)| format!("{}: {name}", key.join(" "))).collect()
}

fn line(key: Key, release: &str, said: &BTreeMap<String, bool>) -> String {
    let cell = |(name, _): &(&str, &str)| match said.get(*name) {
        Some(true) => "yes",
        _ => "**no**",
    };
    let cells = key.into_iter().chain(CHECKS.iter().map(cell)).chain([release]);
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

/// Rows of the document as it is, by what they are about.
fn known_lines(text: &str) -> BTreeMap<[String; 3], String> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let key = [cells.next()?, cells.next()?, cells.next()?].map(str::to_owned);
        Some((key, line.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// Rows in their order; one that was never run is a failure, too.
fn document(lines: &BTreeMap<[String; 3], String>) -> String {
    let head: Vec<&str> = ["fabric", "underlay", "encryption"]
        .into_iter()
        .chain(CHECKS.iter().map(|(_, title)| *title))
        .chain(["kernel"])
        .collect();
    let rule = "| --- ".repeat(head.len());
    let row = |key: Key| match lines.get(&key.map(str::to_owned)) {
        Some(line) => line.clone(),
        None => line(key, "not run", &BTreeMap::new()),
    };
    let rows: String = rows().map(|(key, _)| row(key) + "\n").collect();
    format!("{HEAD}| {} |\n{rule}|\n{rows}", head.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = ["vxlan", "ipv4", "none"];

    #[test]
    fn the_document_has_every_row_and_nothing_else() {
        let text = fs::read_to_string(command::root().join(DOC)).expect("it is part of the checkout");
        assert_eq!(document(&known_lines(&text)), text, "`cargo xtask matrix` writes it");
        assert!(!text.contains("**no**"), "something does not work, or was never tried");
    }

    #[test]
    fn a_cell_that_nobody_spoke_of_is_a_failure() {
        let mut said: BTreeMap<_, _> = CHECKS.iter().map(|(name, _)| ((*name).to_owned(), true)).collect();
        assert!(failures(KEY, &said).is_empty() && !line(KEY, "6.1", &said).contains("**no**"));
        said.remove("tcp");
        said.insert("loss".into(), false);
        assert_eq!(failures(KEY, &said), ["vxlan ipv4 none: tcp", "vxlan ipv4 none: loss"]);
        assert_eq!(line(KEY, "6.1", &said).matches("**no**").count(), 2);
    }

    #[test]
    fn only_what_it_says_of_a_check_counts() {
        assert_eq!(heard("ping ok"), Some(("ping".into(), true)));
        assert_eq!(heard("tcp failed 1 reset"), Some(("tcp".into(), false)));
        for line in ["", "ping", "ping okay", "pong ok", "ok ping", "   ping ok"] {
            assert_eq!(heard(line), None, "{line}");
        }
    }

    #[test]
    fn rows_that_were_not_run_stay() {
        let said = CHECKS.iter().map(|(name, _)| ((*name).to_owned(), true)).collect();
        let lines = BTreeMap::from([(KEY.map(str::to_owned), line(KEY, "6.1", &said))]);
        let text = document(&lines);
        assert!(text.contains("| vxlan | ipv4 | none | yes |") && text.contains("| ipip | ipv6 | none | **no** |"));
        assert_eq!(document(&known_lines(&text)), text);
    }
}
