//! The crates: who may depend on whom, who may use what, and how large each may grow.
//!
//! Invariant: dependencies point down only: programs → doors → planners → values. Doors never depend on each other.

use super::{Dependency, Problem, Tree};
use std::collections::{BTreeMap, BTreeSet};

/// One crate of the workspace; its folder has the same name.
pub(crate) struct Crate {
    /// Without the `tartan-` of the package name.
    pub name: &'static str,
    pub layer: &'static str,
    /// The crates of the workspace that it may depend on.
    pub uses: &'static [&'static str],
    /// Code lines, tests included. Raising one costs a line in docs/decisions.md.
    pub ceiling: usize,
}

const fn krate(name: &'static str, layer: &'static str, ceiling: usize, uses: &'static [&'static str]) -> Crate {
    Crate { name, layer, uses, ceiling }
}

#[rustfmt::skip]
pub(crate) const CRATES: &[Crate] = &[
    krate("api",      "values",      2000, &[]),
    krate("netstate", "values",      3000, &[]),
    krate("model",    "values",      3000, &["api", "netstate"]),
    krate("ipam",     "planner",     2850, &["model", "netstate"]),
    krate("fabric",   "planner",     8650, &["api", "model", "netstate"]),
    krate("policy",   "planner",     9250, &["api", "model"]),
    krate("datapath", "planner",     4000, &["model", "netstate", "policy"]),
    krate("kernel",   "door",        17850, &["model", "netstate"]),
    krate("engine",   "door",        3800, &[]),
    krate("store",    "door",        7300, &["api", "model", "netstate"]),
    krate("agent",    "program",     11700, &["api", "model", "netstate", "ipam", "fabric", "policy", "datapath", "kernel", "engine", "store"]),
    krate("cli",      "program",     4100, &["api", "model", "policy", "kernel", "engine", "store", "agent", "lab"]),
    krate("cni",      "program",     1500, &["api"]),
    krate("lab",      "development", 13900, &["api"]),
    krate("fuzz",     "development", 600, &[]),
    krate("xtask",    "development", 4650, &[]),
];

/// A dependency that only some crates may have below them, and why.
struct Confined {
    name: &'static str,
    to: &'static [&'static str],
    why: &'static str,
}

#[rustfmt::skip]
const CONFINED: &[Confined] = &[
    Confined { name: "tokio",                to: &["store", "agent", "cli"],        why: "kernel and cni block, planners are pure" },
    Confined { name: "anyhow",               to: &["agent", "cli", "lab"],          why: "a library says which errors exist" },
    Confined { name: "clap",                 to: &["cli"],                          why: "only the program for people has flags" },
    Confined { name: "netlink-packet-route", to: &["kernel", "agent", "cli"],       why: "netlink is spoken in one crate" },
    Confined { name: "inotify",              to: &["store", "agent", "cli"],        why: "files are watched in one crate" },
    Confined { name: "rustls",               to: &["store", "agent", "cli"],        why: "the API server is spoken to in one crate" },
    Confined { name: "proptest",             to: &[],                               why: "it is for tests: a dev-dependency" },
];

const PREFIX: &str = "tartan-";

/// Reads the output of `cargo tree --prefix depth --no-dedupe`: `0name v0.1.0 (path)`, below it `1name v1.2.3`, …
pub(super) fn parse_tree(text: &str) -> BTreeMap<String, BTreeSet<Dependency>> {
    let mut all: BTreeMap<String, BTreeSet<Dependency>> = BTreeMap::new();
    let mut root = String::new();
    for line in text.lines() {
        let digits = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
        let (Ok(depth), Some(name)) = (line[..digits].parse::<u32>(), line[digits..].split(' ').next()) else {
            continue;
        };
        if depth == 0 {
            root = name.to_string();
            all.entry(root.clone()).or_default();
        } else {
            let dependency = Dependency { name: name.to_string(), direct: depth == 1 };
            all.entry(root.clone()).or_default().insert(dependency);
        }
    }
    all
}

/// Each edge between crates of the workspace stands in `CRATES`, and so does each crate.
pub(super) fn edges(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (package, dependencies) in &tree.dependencies {
        let Some(krate) = find(package) else {
            problems.push(format!("{package} has no row in CRATES; say its layer and what it may use"));
            continue;
        };
        for dependency in dependencies.iter().filter(|dependency| dependency.direct) {
            let used = dependency.name.strip_prefix(PREFIX);
            if used.is_some_and(|used| !krate.uses.contains(&used)) {
                problems.push(format!("{package} ({}) may not depend on {}", krate.layer, dependency.name));
            }
            if krate.name == "xtask" {
                problems.push(format!(
                    "{package} depends on {}; with any crate it would not link on a machine without a C compiler",
                    dependency.name
                ));
            }
        }
    }
    problems
}

/// Each dependency of `CONFINED` is below the crates of its row only.
pub(super) fn confined(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (package, dependencies) in &tree.dependencies {
        let krate = package.strip_prefix(PREFIX).unwrap_or(package);
        for Confined { name, to, why } in CONFINED {
            if !to.contains(&krate) && dependencies.iter().any(|dependency| dependency.name == *name) {
                problems.push(format!("{package} has {name} below it, which may only {}: {why}", to.join(", ")));
            }
        }
    }
    problems
}

/// Every crate takes lints and versions from the workspace and has no features.
pub(super) fn manifests(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for krate in CRATES {
        let path = format!("{}/Cargo.toml", krate.name);
        let Some(text) = tree.files.get(&path) else { continue };
        if !text.contains("[lints]\nworkspace = true") {
            problems.push(format!("{path}: add `[lints]` with `workspace = true`"));
        }
        if text.contains("[features]") {
            problems.push(format!("{path}: no cargo features: every build is the same build"));
        }
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            } else if section.ends_with("dependencies]") && line.contains('=') && !line.contains("workspace = true") {
                problems.push(format!("{path}: `{line}`: the version belongs in [workspace.dependencies]"));
            }
        }
    }
    problems
}

fn find(package: &str) -> Option<&'static Crate> {
    CRATES.iter().find(|krate| package.strip_prefix(PREFIX) == Some(krate.name))
}

#[cfg(test)]
mod tests {
    use super::{super::assert_problems, *};

    fn tree(text: &str) -> Tree {
        Tree { dependencies: parse_tree(text), ..Tree::default() }
    }

    #[test]
    fn edges_that_point_up_or_sideways_are_refused() {
        let check = |text: &str, wanted: &[&str]| assert_problems(&edges(&tree(text)), wanted);
        check("0tartan-agent v0.1.0 (/x/agent)\n1tartan-kernel v0.1.0 (/x/kernel)\n2tartan-model v0.1.0\n", &[]);
        check(
            "0tartan-store v0.1.0\n1tartan-kernel v0.1.0\n",
            &["tartan-store (door) may not depend on tartan-kernel"],
        );
        check("0tartan-model v0.1.0\n1tartan-ipam v0.1.0\n", &["may not depend on tartan-ipam"]);
        check("0tartan-lab v0.1.0\n1tartan-api v0.1.0\n2tartan-kernel v0.1.0\n", &[]);
        check("0tartan-new v0.1.0\n", &["tartan-new has no row in CRATES"]);
        check("0tartan-xtask v0.1.0\n1serde_json v1.0.1\n", &["without a C compiler"]);
    }

    #[test]
    fn confined_dependencies_are_found_at_any_depth() {
        let check = |text: &str, wanted: &[&str]| assert_problems(&confined(&tree(text)), wanted);
        check("0tartan-agent v0.1.0\n1tokio v1.47.1\n", &[]);
        check("0tartan-kernel v0.1.0\n1thing v1.0.0\n2tokio v1.47.1\n", &["tartan-kernel has tokio below it"]);
        check("0tartan-model v0.1.0\n1anyhow v1.0.0\n1proptest v1.0.0\n", &["anyhow", "proptest"]);
    }

    #[test]
    fn manifests_that_go_their_own_way_are_refused() {
        let check = |text: &str, wanted: &[&str]| {
            assert_problems(&manifests(&super::super::tree(&[("model/Cargo.toml", text)])), wanted);
        };
        let lints = "[lints]\nworkspace = true\n";
        check(
            &format!("[dependencies]\nimbl.workspace = true\nnix = {{ workspace = true, features = [] }}\n{lints}"),
            &[],
        );
        check("[package]\n", &["add `[lints]`"]);
        check(&format!("[features]\n{lints}"), &["no cargo features"]);
        check(&format!("[dev-dependencies]\nrand = \"0.9\"\n{lints}"), &["`rand = \"0.9\"`"]);
    }

    #[test]
    fn the_table_itself_points_down() {
        for (index, krate) in CRATES.iter().enumerate() {
            for used in krate.uses {
                let below = CRATES.iter().position(|other| other.name == *used);
                // The lab is a tool for the cli, not a layer of the product.
                assert!(below.is_some_and(|below| below < index) || *used == "lab", "{} uses {used}", krate.name);
            }
        }
    }
}
