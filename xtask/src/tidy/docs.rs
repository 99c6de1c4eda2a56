//! Documents: what they name must exist.
//!
//! Only code counts: what stands between backticks, and fenced lines.

use super::{Problem, Tree};
use crate::{COMMANDS, bench, r#gen, test};
use std::collections::{BTreeMap, BTreeSet};

/// What these say was true when it was written.
const HISTORY: [&str; 2] = ["CHANGELOG.md", "docs/decisions.md"];

/// A walk through more files than this says that the code is cut in the wrong places.
const WALK_FILES: usize = 6;

/// Every `.rs`, `.md` or `.toml` file and every folder that a document names is there.
pub(super) fn files(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (doc, text) in living(tree) {
        for Code { line, text, .. } in code(text) {
            for path in text.split_whitespace().filter(|word| is_path(word)) {
                if !exists(tree, path) {
                    problems.push(format!("{doc}:{line}: `{path}` does not exist"));
                }
            }
        }
    }
    problems
}

/// Every `cargo xtask …` that a document shows is a command, and the groups it names are groups.
pub(super) fn commands(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (doc, text) in living(tree) {
        for Code { line, text, .. } in code(text) {
            let shown = text.split_once("cargo xtask ").map(|(_, typed)| typed.split('#').next().unwrap_or(typed));
            if let Some(unknown) = shown.and_then(unknown_word) {
                problems.push(format!("{doc}:{line}: `cargo xtask` knows no `{unknown}`"));
            }
        }
    }
    problems
}

/// Each section of ARCHITECTURE.md whose heading begins with "Walk" goes through few source files.
pub(super) fn walks(tree: &Tree) -> Vec<Problem> {
    let Some(text) = tree.files.get("ARCHITECTURE.md") else { return vec!["ARCHITECTURE.md is missing".into()] };
    let mut walks: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Code { text, heading, .. } in code(text) {
        if heading.starts_with("Walk") && is_path(text) && text.ends_with(".rs") {
            walks.entry(heading).or_default().insert(text);
        }
    }
    let long = walks.iter().filter(|(_, files)| files.len() > WALK_FILES);
    long.map(|(heading, files)| {
        format!("ARCHITECTURE.md: \"{heading}\" goes through {} files, over {WALK_FILES}", files.len())
    })
    .collect()
}

/// Every generated table says what `cargo xtask gen` would write.
pub(super) fn tables(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (doc, text) in tree.with_extension("md") {
        match r#gen::fill(text, tree) {
            Ok(filled) if filled == text => {}
            Ok(_) => problems.push(format!("{doc}: a table is out of date: run `cargo xtask gen`")),
            Err(error) => problems.push(format!("{doc}: {error}")),
        }
    }
    problems
}

fn living(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.with_extension("md").filter(|(doc, _)| !HISTORY.contains(doc))
}

/// A piece of code in a document.
#[derive(Debug, PartialEq)]
struct Code<'a> {
    line: usize,
    /// The heading it stands under.
    heading: &'a str,
    text: &'a str,
}

fn code(doc: &str) -> Vec<Code<'_>> {
    let mut pieces = Vec::new();
    let (mut fenced, mut heading) = (false, "");
    for (index, text) in doc.lines().enumerate() {
        let line = index + 1;
        if text.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            pieces.push(Code { line, heading, text });
        } else {
            if text.starts_with('#') {
                heading = text.trim_start_matches(['#', ' ']);
            }
            pieces.extend(text.split('`').skip(1).step_by(2).map(|text| Code { line, heading, text }));
        }
    }
    pieces
}

/// A name of a file or folder of this repository, not a pattern, a path of a running system or a URL.
fn is_path(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let ends = [".rs", ".md", ".toml", "/"].iter().any(|end| word.ends_with(end));
    plain && ends && !word.starts_with(['/', '.']) && word.len() > 3
}

fn exists(tree: &Tree, path: &str) -> bool {
    let below = format!("/{path}");
    tree.files.keys().any(|file| match path.ends_with('/') {
        true => file.starts_with(path),
        false => file == path || (!path.contains('/') && file.ends_with(&below)),
    })
}

/// The first word typed after `cargo xtask` that it would refuse.
fn unknown_word(typed: &str) -> Option<&str> {
    let mut words = typed.split_whitespace();
    let command = words.next()?;
    if !COMMANDS.iter().any(|(usage, _)| usage.split(' ').next() == Some(command)) {
        return Some(command);
    }
    let groups: Vec<&str> = match command {
        "test" => test::GROUPS.iter().map(|group| group.name).collect(),
        "bench" => bench::GROUPS.iter().map(|group| group.name).collect(),
        _ => return None,
    };
    let typed = words.take_while(|word| *word != "--without");
    typed.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_lowercase()) && !groups.contains(word))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{assert_problems, tree},
        *,
    };

    #[test]
    fn code_is_backticks_and_fences_with_its_heading() {
        let doc = "# One\nsee `a` and `b c`\n```sh\nx y\n```\n## Two `h`\n";
        let piece = |line, heading, text| Code { line, heading, text };
        let two = "Two `h`";
        assert_eq!(
            code(doc),
            [piece(2, "One", "a"), piece(2, "One", "b c"), piece(4, "One", "x y"), piece(6, two, "h")]
        );
    }

    #[test]
    fn files_that_are_not_there_are_refused() {
        let check = |doc: &str, wanted: &[&str]| {
            let all = [("README.md", doc), ("kernel/src/nft/encode.rs", ""), ("deny.toml", "")];
            assert_problems(&files(&tree(&all)), wanted);
        };
        check("`kernel/src/nft/encode.rs` `encode.rs` `kernel/src/` `deny.toml`", &[]);
        check("first\n`kernel/src/nft/decode.rs`", &["README.md:2: `kernel/src/nft/decode.rs`"]);
        check("`src/nft/encode.rs`", &["src/nft/encode.rs"]);
        check("`engine/` `gone.rs`", &["engine/", "gone.rs"]);
        check("gone.rs, `/etc/x.toml`, `{a,b}.rs`, `<kind>.md`, `*.rs`", &[]);
    }

    #[test]
    fn commands_that_do_not_exist_are_refused() {
        let check = |doc: &str, wanted: &[&str]| assert_problems(&commands(&tree(&[("README.md", doc)])), wanted);
        check("`cargo xtask test` `cargo xtask test unit --without vxlan` `cargo xtask bench noise`", &[]);
        check("```\ncargo xtask demo   # three nodes\ncargo xtask test [GROUP…]\n```", &[]);
        check("`cargo xtask tests`", &["no `tests`"]);
        check("`cargo xtask test unit everything`", &["no `everything`"]);
        check("`cargo xtask bench speed`", &["no `speed`"]);
        check("cargo xtask is nice", &[]);
    }

    #[test]
    fn long_walks_are_refused() {
        let walk = |files: usize| {
            let names: String = (0..files).map(|i| format!("`x/{i}.rs` then `x/0.rs`\n")).collect();
            format!("## Walk: a packet\n{names}## Where\n`x/9.rs`\n")
        };
        let check = |doc: &str, wanted: &[&str]| assert_problems(&walks(&tree(&[("ARCHITECTURE.md", doc)])), wanted);
        check(&walk(6), &[]);
        check(&walk(7), &["\"Walk: a packet\" goes through 7 files"]);
        assert_problems(&walks(&tree(&[])), &["ARCHITECTURE.md is missing"]);
    }

    #[test]
    fn tables_out_of_date_are_refused() {
        let check = |doc: &str, wanted: &[&str]| assert_problems(&tables(&tree(&[("README.md", doc)])), wanted);
        check("no table\n", &[]);
        check("<!-- table groups -->\nold\n<!-- end -->\n", &["run `cargo xtask gen`"]);
        check("<!-- table nonsense -->\n<!-- end -->\n", &["nonsense"]);
    }
}
