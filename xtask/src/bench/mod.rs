//! `cargo xtask bench`: the groups, one file each, and the figures each owes.
//!
//! Invariant: a figure that a group lists is printed or reported missing with its reason, and a run with one missing
//! fails. Times and ratios are printed, never asserted: machines differ.

mod cni;
mod demo;
mod e2e;
mod fabric;
mod figure;
mod image;
mod kube;
mod noise;
mod path;
mod peers;
mod plan;
mod policy;
mod program;
mod repair;
mod restart;
mod selftest;
mod verdicts;
mod vm;

use crate::{
    command::Result,
    packages::{self, Lane},
};
use figure::Report;

/// Something measured, asked for by name.
pub(crate) struct Group {
    /// What is typed.
    pub name: &'static str,
    /// What it measures, and against what.
    pub about: &'static str,
    /// Every figure it prints.
    pub figures: &'static [&'static str],
    run: fn(&mut Report) -> Result<()>,
}

impl Group {
    /// To its own name, and to the first word of its figures' names.
    fn answers_to(&self, name: &str) -> bool {
        let begins = |figure: &&str| figure.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        self.name == name || self.figures.iter().any(begins)
    }
}

const fn group(
    name: &'static str,
    figures: &'static [&'static str],
    run: fn(&mut Report) -> Result<()>,
    about: &'static str,
) -> Group {
    Group { name, about, figures, run }
}

#[rustfmt::skip]
pub(crate) const GROUPS: &[Group] = &[
    group("noise",   noise::FIGURES,   noise::run,   "what two identical yardsticks differ by on this machine, now"),
    group("path",    path::FIGURES,    path::run,    "packets, beside the same devices and namespaces made by hand; 1: as good"),
    group("cni",     cni::FIGURES,     cni::run,     "ADD and DEL, beside the stock plugins; less is better"),
    group("plan",    plan::FIGURES,    plan::run,    "planning and memory with 5,000 nodes and 250 pods here"),
    group("peers",   peers::FIGURES,   peers::run,   "1,000 peers in the kernel, from none to all, and one that changes"),
    group("verdicts", verdicts::FIGURES, verdicts::run, "verdicts and packets of policy beside the oracle, counted: a million cases of each dialect, 300 worlds; wanted: none wrong"),
    group("policy",  policy::FIGURES,  policy::run,  "how soon policies are in force, whom they cut, and what they cost"),
    group("fabric",  fabric::FIGURES,  fabric::run,  "packets that a program carries, beside a bare veth pair; that program upgraded and killed; every change of fabric"),
    group("restart", restart::FIGURES, restart::run, "what packets notice of restarts and changes"),
    group("repair",  repair::FIGURES,  repair::run,  "until what was deleted by hand is there again"),
    group("selftest", selftest::FIGURES, selftest::run, "until a path broken on purpose is named; wanted: 10 s at most, nothing wrong said"),
    group("image",   image::FIGURES,   image::run,   "the container image as it is shipped, packed"),
    group("e2e",     e2e::FIGURES,     e2e::run,     "Kubernetes' own network tests with Tartan; wanted: none failed"),
    group("kube",    kube::FIGURES,    kube::run,    "a cluster through upgrades and without its API server; pods that start; the same with Flannel, and nodes that go over from it; wanted: none lost, none failed"),
    group("vm",      vm::FIGURES,      vm::run,      "tests under each of Debian's kernels; wanted: none failed"),
    group("demo",    demo::FIGURES,    demo::run,    "from a fresh clone to the demo's first matrix, and what it lost"),
];

/// Runs the named groups, all when none is named.
///
/// # Errors
/// An unknown group, or figures that are missing, by name.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    let groups = named(names)?;
    packages::ensure(&[Lane::Build, Lane::Bench])?;
    let mut missing = Vec::new();
    for group in groups {
        println!("\n=== {}: {}", group.name, group.about);
        missing.extend(measure(group));
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("missing figures: {}", missing.join(", ")).into()) }
}

fn measure(group: &Group) -> Vec<&'static str> {
    let mut report = Report::owing(group.figures);
    match (group.run)(&mut report) {
        Ok(()) => report.close("the bench ended without it"),
        Err(error) => report.close(&error.to_string()),
    }
}

fn named(names: &[&str]) -> Result<Vec<&'static Group>> {
    if names.is_empty() {
        return Ok(GROUPS.iter().collect());
    }
    let mut found = Vec::new();
    for name in names {
        let before = found.len();
        found.extend(GROUPS.iter().filter(|group| group.answers_to(name)));
        if found.len() == before {
            let all: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
            return Err(format!("`{name}` is not a group of benches; there are: {}", all.join(" ")).into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_fails_leaves_its_figures_missing() {
        let run = |report: &mut Report| {
            report.figure("x.a", figure::Value::once(1.0), "ms");
            Err("no such plugin".into())
        };
        let group = Group { name: "x", about: "", figures: &["x.a", "x.b"], run };
        assert_eq!(measure(&group), ["x.b"]);
    }

    #[test]
    fn groups_and_their_figures_have_names_of_their_own() {
        let mut figures: Vec<&str> = GROUPS.iter().flat_map(|group| group.figures).copied().collect();
        figures.sort_unstable();
        let count = figures.len();
        figures.dedup();
        assert_eq!(figures.len(), count, "one figure in two groups");
        let of = |name: &str| named(&[name]).expect("a group").iter().map(|group| group.name).collect::<Vec<_>>();
        assert_eq!(of("policy"), ["verdicts", "policy"], "all that begins with the word");
        assert_eq!(of("verdicts"), ["verdicts"]);
        for figure in figures {
            let word = figure.split('.').next().expect("a word");
            let printed = named(&[word]).expect("a group").iter().any(|group| group.figures.contains(&figure));
            assert!(printed, "`bench {word}` does not print {figure}");
        }
        assert!(named(&["nosie"]).is_err_and(|error| error.to_string().contains("there are: noise")));
    }
}
