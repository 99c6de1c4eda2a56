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

const HERE: &str = "here";
/// Fabrics, families of underlay, what encrypts, and whose kernel has what that takes.
#[rustfmt::skip]
const FABRICS: &[(&str, &[&str], &str, &str)] = &[
    ("vxlan",     &["ipv4", "ipv6"], "none",      HERE),
    ("vxlan",     &["ipv4", "ipv6"], "wireguard", HERE),
    ("vxlan",     &["ipv4", "ipv6"], "ipsec",     "bookworm"),
    ("udp",       &["ipv4", "ipv6"], "none",      HERE),
    ("udp",       &["ipv4", "ipv6"], "wireguard", HERE),
    ("udp",       &["ipv4", "ipv6"], "ipsec",     "bookworm"),
    ("wireguard", &["ipv4", "ipv6"], "none",      HERE),
    ("wireguard", &["ipv4", "ipv6"], "none",      "bookworm"),
    ("ipsec",     &["ipv4", "ipv6"], "none",      "bookworm"),
    ("host-gw",   &["auto"],         "none",      HERE),
    ("host-gw",   &["ipv4", "ipv6"], "wireguard", HERE),
    ("host-gw",   &["ipv4", "ipv6"], "ipsec",     "bookworm"),
    ("ipip",      &["ipv4", "ipv6"], "none",      "bookworm"),
    ("ipip",      &["ipv4", "ipv6"], "wireguard", "bookworm"),
    ("ipip",      &["ipv4", "ipv6"], "ipsec",     "bookworm"),
];

/// What is said on the left, and what stands above it.
const CHECKS: &[(&str, &str)] = &[
    ("ping", "ping, HTTP"),
    ("sizes", "1 byte to MTU + 1"),
    ("tcp", "bulk TCP"),
    ("restart", "agent restarted"),
    ("kill", "agent and engine killed"),
    ("change", "to another fabric and back, encryption off and on"),
    (ROTATION, "keys rotated twice"),
    ("loss", "a node lost"),
];
const ROTATION: &str = "rotation";

const HEAD: &str = "# What works on which fabric

Written by `cargo xtask matrix`, which does all of it with three nodes in network namespaces: IPv4 and IPv6 pods, an echo of
every size, streams, and probes through whatever happens, of which none may be lost, but by a killed engine that encrypts. Alone, `host-gw` has no
outer packet, so both families of underlay are one row. WireGuard is a program's where it says `here`, and the kernel's under one of Debian's,
which runs in QEMU; ipip and IPsec are the kernel's. Where nothing is encrypted there are no keys.

";

/// Fabric, underlay, encryption, whose kernel.
type Key = [&'static str; 4];

/// Runs the rows that all of these words are in, and writes the document.
///
/// # Errors
/// Words that no row has, a build that fails, or cells that failed, by name.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let asked: Vec<Key> = rows().filter(|key| words.iter().all(|word| key.contains(word))).collect();
    if asked.is_empty() {
        let known: Vec<String> = rows().map(|key| key.join(" ")).collect();
        return Err(format!("no row is about all of `{}`; there are:\n{}", words.join(" "), known.join("\n")).into());
    }
    packages::ensure(&[Lane::Build, Lane::Lab, Lane::Vm])?;
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-cli", "-p", "tartan-cni"]))?;
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-lab", "--example", "matrix"]))?;
    let (mut measured, mut failed) = (BTreeMap::new(), Vec::new());
    for key in asked {
        println!("\n=== {}", key.join(" "));
        let (release, said) = measure(key)?;
        failed.extend(failures(key, &said));
        measured.insert(key.map(str::to_owned), line(key, &release, &said));
    }
    // Another run may have written its own rows meanwhile.
    let mut lines = known_lines(&fs::read_to_string(DOC).unwrap_or_default());
    lines.extend(measured);
    fs::write(DOC, document(&lines))?;
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

fn rows() -> impl Iterator<Item = Key> {
    FABRICS.iter().flat_map(|(fabric, underlays, encryption, kernel)| {
        underlays.iter().map(move |underlay| [*fabric, *underlay, *encryption, *kernel])
    })
}

/// What is to work there.
fn checks(key: Key) -> impl Iterator<Item = &'static str> {
    let has_keys = ["wireguard", "ipsec"].contains(&key[0]) || key[2] != "none";
    CHECKS.iter().map(|(name, _)| *name).filter(move |name| has_keys || *name != ROTATION)
}

/// Under which kernel, and what each check came to.
fn measure(key: Key) -> Result<(String, BTreeMap<String, bool>)> {
    let program = command::target_dir().join(FOLDER).join("examples/matrix");
    let [row @ .., kernel] = key;
    let (release, mut command) = match kernel {
        HERE => (command::capture(Command::new("uname").arg("-r"))?.trim().to_owned(), command::as_root(&program)),
        kernel => vm::under_named(kernel, &program)?,
    };
    let mut said = BTreeMap::new();
    // What it did not speak of has failed, however it ended.
    let _ended = command::stream(command.args(row), |line| {
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
    let failed = checks(key).filter(|name| said.get(*name) != Some(&true));
    failed.map(|name| format!("{}: {name}", key.join(" "))).collect()
}

fn line(key: Key, release: &str, said: &BTreeMap<String, bool>) -> String {
    let wanted: Vec<&str> = checks(key).collect();
    let cell = |(name, _): &(&str, &str)| match said.get(*name) {
        _ if !wanted.contains(name) => "",
        Some(true) => "yes",
        _ => "**no**",
    };
    let cells = key.into_iter().chain(CHECKS.iter().map(cell)).chain([release]);
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

/// Rows of the document as it is, by what they are about.
fn known_lines(text: &str) -> BTreeMap<[String; 4], String> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let key = [cells.next()?, cells.next()?, cells.next()?, cells.next()?].map(str::to_owned);
        Some((key, line.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// Rows in their order; one that was never run is a failure, too.
fn document(lines: &BTreeMap<[String; 4], String>) -> String {
    let head: Vec<&str> = ["fabric", "underlay", "encryption", "on"]
        .into_iter()
        .chain(CHECKS.iter().map(|(_, title)| *title))
        .chain(["kernel"])
        .collect();
    let rule = "| --- ".repeat(head.len());
    let row = |key: Key| match lines.get(&key.map(str::to_owned)) {
        Some(line) => line.clone(),
        None => line(key, "not run", &BTreeMap::new()),
    };
    let rows: String = rows().map(|key| row(key) + "\n").collect();
    format!("{HEAD}| {} |\n{rule}|\n{rows}", head.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = ["vxlan", "ipv4", "none", HERE];
    const ENCRYPTED: Key = ["vxlan", "ipv4", "wireguard", HERE];

    fn all_well() -> BTreeMap<String, bool> {
        CHECKS.iter().map(|(name, _)| ((*name).to_owned(), true)).collect()
    }

    #[test]
    fn the_document_has_every_row_and_nothing_else() {
        let text = fs::read_to_string(command::root().join(DOC)).expect("it is part of the checkout");
        assert_eq!(document(&known_lines(&text)), text, "`cargo xtask matrix` writes it");
        assert!(!text.contains("**no**"), "something does not work, or was never tried");
    }

    #[test]
    fn a_cell_that_nobody_spoke_of_is_a_failure() {
        let mut said = all_well();
        assert!(failures(KEY, &said).is_empty() && !line(KEY, "6.1", &said).contains("**no**"));
        said.remove("tcp");
        said.insert("loss".into(), false);
        assert_eq!(failures(KEY, &said), ["vxlan ipv4 none here: tcp", "vxlan ipv4 none here: loss"]);
        assert_eq!(line(KEY, "6.1", &said).matches("**no**").count(), 2);
    }

    #[test]
    fn keys_are_rotated_where_there_are_some() {
        let mut said = all_well();
        said.remove(ROTATION);
        assert_eq!((failures(KEY, &said).len(), line(KEY, "6.1", &said).matches("**no**").count()), (0, 0));
        assert_eq!(failures(ENCRYPTED, &said), ["vxlan ipv4 wireguard here: rotation"]);
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
        let lines = BTreeMap::from([(KEY.map(str::to_owned), line(KEY, "6.1", &all_well()))]);
        let text = document(&lines);
        assert!(text.contains("| vxlan | ipv4 | none | here | yes |"));
        assert!(text.contains("| ipip | ipv6 | none | bookworm | **no** |"));
        assert_eq!(document(&known_lines(&text)), text);
    }
}
