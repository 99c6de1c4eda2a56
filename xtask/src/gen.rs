//! `cargo xtask gen`: tables in documents that repeat what code already says, and the definitions in `deploy/`.
//!
//! Invariant: between `<!-- table NAME -->` and `<!-- end -->` stands what `TABLES` makes of the code; tidy compares.

use crate::{
    COMMANDS, bench,
    command::{self, Result},
    test,
    tidy::{Tree, crates::CRATES},
};
use std::fs;

/// Name of a table, and what makes it.
type Table = (&'static str, fn(&Tree) -> String);

const TABLES: &[Table] = &[("commands", commands), ("crates", crates), ("figures", figures), ("groups", groups)];

const BEGIN: &str = "<!-- table ";
const END: &str = "<!-- end -->";

/// Writes every document whose tables are out of date.
///
/// # Errors
/// The checkout cannot be read or written, or a table is not known.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    for (path, text) in tree.files.iter().filter(|(path, _)| path.ends_with(".md")) {
        let filled = fill(text, &tree).map_err(|error| format!("{path}: {error}"))?;
        if filled != *text {
            fs::write(path, filled)?;
            println!("wrote {path}");
        }
    }
    definitions()
}

/// The CustomResourceDefinitions are made where their types are, by the test that compares them.
fn definitions() -> Result<()> {
    let mut cargo = command::cargo(&["test", "--quiet", "-p", "tartan-api", "--lib", "crds"]);
    command::capture(cargo.env("TARTAN_GEN", "1"))?;
    // The chart is made of the manifest, where `tartan install` varies it.
    let mut cargo = command::cargo(&["test", "--quiet", "-p", "tartan-cli", "--bin", "tartan", "chart"]);
    command::capture(cargo.env("TARTAN_GEN", "1")).map(drop)
}

/// `doc` with its tables written anew.
///
/// # Errors
/// A table that does not exist, or one without its end.
pub(crate) fn fill(doc: &str, tree: &Tree) -> Result<String> {
    let mut out = String::new();
    let mut rest = doc;
    while let Some(at) = rest.find(BEGIN) {
        let (before, table) = rest.split_at(at);
        let (head, body) = table.split_once('\n').unwrap_or((table, ""));
        let name = head.trim_start_matches(BEGIN).trim_end_matches("-->").trim();
        let (_, make) = TABLES.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(name))?;
        let (_, after) = body.split_once(END).ok_or_else(|| format!("the table {name} has no `{END}`"))?;
        out += &format!("{before}{head}\n\n{}\n{END}", make(tree));
        rest = after;
    }
    Ok(out + rest)
}

fn unknown(name: &str) -> String {
    let known: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
    format!("there is no table `{name}`; there are: {}", known.join(" "))
}

fn commands(_: &Tree) -> String {
    table(
        &["command", "what it does"],
        COMMANDS
            .iter()
            .map(|(usage, about)| vec![format!("`cargo xtask {}`", usage.replace('|', "\\|")), (*about).into()]),
    )
}

fn crates(tree: &Tree) -> String {
    table(
        &["crate", "layer", "what it is", "may use"],
        CRATES.iter().map(|krate| {
            let manifest = tree.files.get(&format!("{}/Cargo.toml", krate.name)).map_or("", String::as_str);
            let described = manifest.lines().find_map(|line| line.strip_prefix("description = "));
            let about = described.map_or("", |text| text.trim_matches('"'));
            vec![format!("`{}`", krate.name), krate.layer.into(), about.into(), krate.uses.join(", ")]
        }),
    )
}

fn figures(_: &Tree) -> String {
    table(
        &["group", "what it measures", "figures"],
        bench::GROUPS.iter().map(|group| {
            let figures: Vec<String> = group.figures.iter().map(|figure| format!("`{figure}`")).collect();
            vec![group.name.into(), group.about.into(), figures.join(" ")]
        }),
    )
}

fn groups(_: &Tree) -> String {
    table(
        &["group", "what it proves", "when"],
        test::GROUPS.iter().map(|group| {
            vec![group.name.into(), group.about.into(), if group.always() { "always" } else { "by name" }.into()]
        }),
    )
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let rule: Vec<String> = head.iter().map(|_| "---".to_string()).collect();
    line(&head) + &line(&rule) + &rows.map(|row| line(&row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let tree = tree(&[("api/Cargo.toml", "[package]\ndescription = \"Types of the edge\"\n")]);
        let doc =
            "before\n<!-- table crates -->\nold\n<!-- end -->\nbetween\n<!-- table groups -->\n<!-- end -->\nafter\n";
        let filled = fill(doc, &tree).expect("both tables exist");
        assert!(
            filled.starts_with("before\n<!-- table crates -->\n\n| crate |")
                && filled.ends_with("<!-- end -->\nafter\n")
        );
        assert!(
            filled.contains("| `api` | values | Types of the edge |") && filled.contains("<!-- end -->\nbetween\n")
        );
        assert!(!filled.contains("old"));
        assert_eq!(fill(&filled, &tree).expect("as before"), filled, "writing again changes nothing");
    }

    #[test]
    fn a_table_that_cannot_be_written_is_an_error() {
        for (doc, part) in [("<!-- table x -->\n<!-- end -->", "no table `x`"), ("<!-- table groups -->\n", "has no")] {
            let error = fill(doc, &tree(&[])).expect_err(doc).to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}
