//! What comes in from outside: under which licence, and from where. `deny.toml` says what is allowed and why.

use super::{Problem, Tree};
use std::collections::BTreeMap;

/// How Cargo.lock writes crates.io.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Reads the output of `cargo tree --prefix none --format {p}|{l}`: `name v1.2.3|MIT`, perhaps with ` (*)`.
pub(super) fn parse_tree(text: &str) -> BTreeMap<String, String> {
    let rows = text.lines().filter_map(|line| line.split_once('|'));
    rows.map(|(package, licence)| (package.to_string(), licence.trim_end_matches(" (*)").to_string())).collect()
}

/// Every dependency can be used under licences that deny.toml allows.
pub(super) fn licences(tree: &Tree) -> Vec<Problem> {
    let Some(deny) = tree.files.get("deny.toml") else { return vec!["deny.toml is missing".into()] };
    let allowed = allowed(deny);
    let bad = tree.licences.iter().filter(|(_, licence)| !permits(licence, &allowed));
    bad.map(|(name, licence)| {
        let licence = if licence.is_empty() { "no licence" } else { licence };
        format!("{name}: {licence}: not allowed by deny.toml; use another crate, or allow it with a reason")
    })
    .collect()
}

/// Every dependency comes from crates.io.
pub(super) fn origins(tree: &Tree) -> Vec<Problem> {
    let lock = tree.files.get("Cargo.lock").map_or("", String::as_str);
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let foreign = sources.filter(|source| source.trim_matches('"') != CRATES_IO);
    foreign.map(|source| format!("Cargo.lock: {source} is not crates.io")).collect()
}

/// The strings of `allow = [ … ]`.
fn allowed(deny: &str) -> Vec<&str> {
    let list = deny.split_once("allow = [").map_or("", |(_, rest)| rest);
    let entries = list.lines().map(str::trim).take_while(|line| !line.starts_with(']'));
    entries.filter_map(|line| line.strip_prefix('"')?.split('"').next()).collect()
}

/// Whether an SPDX expression can be fulfilled with `allowed` alone. The old `/` means OR, a `+` changes nothing.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.trim().replace('/', " OR ");
    if let [_, _, ..] = split(&expression, " OR ")[..] {
        return split(&expression, " OR ").iter().any(|part| permits(part, allowed));
    }
    if let [_, _, ..] = split(&expression, " AND ")[..] {
        return split(&expression, " AND ").iter().all(|part| permits(part, allowed));
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => permits(inner, allowed),
        None => allowed.contains(&expression.trim_end_matches('+')),
    }
}

/// Parts between `operator`, those in parentheses left whole.
fn split<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in expression.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && expression[at..].starts_with(operator) => {
                parts.push(&expression[from..at]);
                from = at + operator.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::{
        super::{assert_problems, tree},
        *,
    };

    #[test]
    fn expressions_mean_what_spdx_says() {
        for (expression, want) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("", false),
            ("GPL-3.0 OR MIT", true),
            ("MIT/GPL-2.0", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND GPL-3.0 OR ISC", true),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("(MIT OR ISC) AND GPL-3.0", false),
            ("MPL-2.0+", true),
        ] {
            assert_eq!(permits(expression, &["MIT", "ISC", "MPL-2.0"]), want, "{expression:?}");
        }
    }

    #[test]
    fn dependencies_under_other_licences_are_refused() {
        let mut tree = tree(&[("deny.toml", "[licenses]\nallow = [\n    \"MIT\", # fine\n    \"ISC\",\n]\n")]);
        tree.licences = parse_tree("a v1.0.0|MIT\n\nb v1.0.0|AGPL-3.0 (*)\nc v1.0.0|\n");
        assert_problems(&licences(&tree), &["b v1.0.0: AGPL-3.0: not allowed", "c v1.0.0: no licence"]);
    }

    #[test]
    fn dependencies_from_elsewhere_are_refused() {
        let lock = format!("name = \"a\"\nsource = \"{CRATES_IO}\"\nsource = \"git+https://example.org/x\"\n");
        assert_problems(&origins(&tree(&[("Cargo.lock", &lock)])), &["git+https://example.org/x"]);
    }
}
