//! `cargo xtask tidy`: the conventions that no compiler checks.
//!
//! Invariant: a check is a pure function from `Tree` to problems, each problem says where and what to do, and each
//! check has a sample that it refuses.

pub(crate) mod crates;
mod docs;
mod licences;
mod sources;

use crate::command::{self, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What is wrong, where, and what would mend it.
type Problem = String;

/// What must hold, and what finds where it does not.
type Check = (&'static str, fn(&Tree) -> Vec<Problem>);

#[rustfmt::skip]
const CHECKS: &[Check] = &[
    ("crates depend downwards only",             crates::edges),
    ("some dependencies stay where they belong", crates::confined),
    ("manifests follow the workspace",           crates::manifests),
    ("licences are those of deny.toml",          licences::licences),
    ("dependencies come from crates.io",         licences::origins),
    ("no crate outgrows its ceiling",            sources::ceilings),
    ("no file outgrows a reader",                sources::lengths),
    ("every file says what it is for",           sources::openings),
    ("unsafe stays in its crates",               sources::unsafe_code),
    ("types are named for what they are",        sources::names),
    ("a test left out says why",                 sources::ignored),
    ("no path of one machine",                   sources::machine_paths),
    ("docs name files that exist",               docs::files),
    ("docs name commands that exist",            docs::commands),
    ("walks are short",                          docs::walks),
    ("generated tables are current",             docs::tables),
];

/// What the checks look at: the text of every file of the repository, and who depends on whom.
#[derive(Default)]
pub(crate) struct Tree {
    /// By path from the root; files that are not text are left out.
    pub files: BTreeMap<String, String>,
    /// Crate of the workspace → all its dependencies, direct ones marked. Build dependencies count, dev ones do not.
    pub dependencies: BTreeMap<String, BTreeSet<Dependency>>,
    /// Crate and version → SPDX expression, empty where it names none. Dev dependencies count.
    pub licences: BTreeMap<String, String>,
}

/// A crate below another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dependency {
    pub name: String,
    pub direct: bool,
}

impl Tree {
    /// The checkout as it is: tracked files and new ones that git does not ignore.
    ///
    /// # Errors
    /// git or cargo cannot list, or a file cannot be read.
    pub(crate) fn read() -> Result<Self> {
        let listing = ["ls-files", "--cached", "--others", "--exclude-standard"];
        let mut files = BTreeMap::new();
        for path in command::capture(std::process::Command::new("git").args(listing))?.lines() {
            // Deleted, but the deletion not committed yet.
            if !Path::new(path).is_file() {
                continue;
            }
            if let Ok(text) = String::from_utf8(fs::read(path)?) {
                files.insert(path.to_string(), text);
            }
        }
        let whole = ["tree", "--workspace", "--no-dedupe", "--edges", "normal,build", "--prefix", "depth", "--quiet"];
        let dependencies = crates::parse_tree(&command::capture(&mut command::cargo(&whole))?);
        let flat = ["tree", "--workspace", "--edges", "all", "--prefix", "none", "--format", "{p}|{l}", "--quiet"];
        let licences = licences::parse_tree(&command::capture(&mut command::cargo(&flat))?);
        Ok(Self { files, dependencies, licences })
    }

    fn with_extension<'a>(&'a self, extension: &'static str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        all.filter(move |(path, _)| Path::new(path).extension().is_some_and(|end| end == extension))
    }
}

/// Runs every check on the checkout.
///
/// # Errors
/// The checkout cannot be read, or there are problems; they were printed.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut count = 0;
    for (rule, check) in CHECKS {
        let problems = check(&tree);
        println!("{} {rule}", if problems.is_empty() { "ok     " } else { "PROBLEM" });
        problems.iter().for_each(|problem| println!("          {problem}"));
        count += problems.len();
    }
    if count == 0 { Ok(()) } else { Err(format!("{count} problems").into()) }
}

#[cfg(test)]
pub(crate) fn tree(files: &[(&str, &str)]) -> Tree {
    let files = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
    Tree { files, ..Tree::default() }
}

/// `problems` are as many as `wanted`, in order, and each contains its text.
#[cfg(test)]
fn assert_problems(problems: &[Problem], wanted: &[&str]) {
    assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
    for (problem, part) in problems.iter().zip(wanted) {
        assert!(problem.contains(part), "{part:?} is not in {problem:?}");
    }
}
