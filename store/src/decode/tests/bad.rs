//! Bad documents, each with what its user is told. `bad.txt` holds them: a document, then behind `>>` the object and
//! field at fault, what is said, and what to do; a line of `====` between two of them.

use super::documents;

const TABLE: &str = include_str!("bad.txt");

/// One bad document and the three lines about it.
fn check(case: &str) {
    let (text, said) = case.split_once("\n>> ").unwrap_or_else(|| panic!("nothing is said of\n{case}"));
    let found = documents("bad.yaml", &format!("{text}\n"));
    let [Err(refused)] = found.as_slice() else { panic!("{text}\nwas taken as {found:#?}") };
    let condition = &refused.condition;
    let place = format!("{} {}", condition.about, condition.field);
    let found = [place.trim_end(), &condition.message, &condition.fix].join("\n>> ");
    assert_eq!(found, said.trim_end(), "{text}");
}

#[test]
fn bad_documents_are_refused_with_a_fix() {
    let cases: Vec<&str> = TABLE.split("====\n").collect();
    assert!(cases.len() >= 50, "the table is cut");
    cases.into_iter().for_each(check);
}
