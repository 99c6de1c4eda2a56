//! Configurations that the agent refuses, each with what the runtime's user is told. `bad.txt` holds them: the keys over
//! a usual configuration, then behind `>>` code and message, and what to do; `====` between two of them.

use super::*;

const TABLE: &str = include_str!("bad.txt");

/// The case as it is found to be.
fn found(case: &str) -> String {
    let (keys, _) = case.split_once("\n>> ").unwrap_or_else(|| panic!("nothing is said of\n{case}"));
    let netconf = serde_json::from_str(keys).unwrap_or_else(|error| panic!("{error} in\n{keys}"));
    let error = add_with(&whole(Instant::now()), "a", &netconf).expect_err(case);
    let details = if error.details.is_empty() { String::new() } else { format!(">> {}\n", error.details) };
    format!("{keys}\n>> {} {}\n{details}", error.code, error.msg)
}

#[test]
fn bad_configurations_are_refused_with_a_fix() {
    let found: Vec<String> = TABLE.split("====\n").map(found).collect();
    assert!(found.len() >= 30, "the table is cut");
    let found = found.join("====\n");
    assert!(found == TABLE, "bad.txt should be\n{found}");
}
