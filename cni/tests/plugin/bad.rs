//! Environments and network configurations that the plugin refuses, each with what the runtime is told. `bad.txt` holds
//! them: CNI_* variables, each in a line, then `stdin` and what is there; behind `>>` code and message, and what to do;
//! a line of `====` between two of them. There is no agent: what is not refused would be told that.

use crate::runtime::{Dir, call};

const TABLE: &str = include_str!("bad.txt");

/// The case as it is found to be.
fn found(dir: &Dir, case: &str) -> String {
    let (input, _) = case.split_once("\n>> ").unwrap_or_else(|| panic!("nothing is said of\n{case}"));
    let (environment, stdin) = input.split_once("stdin").unwrap_or_else(|| panic!("no stdin in\n{case}"));
    let environment: Vec<(&str, &str)> = environment.lines().map(|line| line.split_once('=').unwrap()).collect();
    let said = call(&environment, stdin.trim_start());
    let error = said.json();
    assert!(!said.success && said.stderr.is_empty(), "{input}\n{said:?}");
    assert!(dir.pending().is_empty(), "{input}");
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let details = if text("details").is_empty() { String::new() } else { format!(">> {}\n", text("details")) };
    format!("{input}\n>> {} {}\n{details}", error["code"], text("msg"))
}

#[test]
fn bad_calls_are_refused_with_a_fix() {
    let dir = Dir::new();
    let found: Vec<String> = TABLE.split("====\n").map(|case| found(&dir, case)).collect();
    assert!(found.len() >= 30, "the table is cut");
    let found = found.join("====\n");
    assert!(found == TABLE, "bad.txt should be\n{found}");
}
