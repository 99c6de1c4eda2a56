//! What the commands print, to the letter: a table of command lines, each with its exit code, text and errors, all of one
//! small cluster. `TARTAN_BLESS=1 cargo test -p tartan-cli policy` writes the table again; read the difference.

use std::path::Path;

use clap::Parser;

use super::*;

const TABLE: &str = "src/policy/tests/golden.txt";
const STORE: &str = "src/policy/tests/shop";
/// Bad policies, each with what is to be said of it.
const BAD: &str = "../policy/src/dialect/tests/bad.txt";

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// What a command line leads to.
fn said(line: &str) -> String {
    let words = line.split(' ').skip(1);
    let of_the_shop = if line.starts_with("$ check") { None } else { Some(["--store", STORE]) };
    let words = ["policy"].into_iter().chain(words).chain(of_the_shop.into_iter().flatten());
    let parsed = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{line}\n{error}"));
    match answer(parsed.command) {
        Ok(Answer { text, code }) => format!("exit {code}\n{text}\n"),
        Err(error) => format!("exit {TROUBLE}\ntartan: {error:#}\n"),
    }
}

#[test]
fn every_command_prints_what_the_table_says() {
    // Names of files are as they are given.
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let table = std::fs::read_to_string(TABLE).unwrap();
    let now: Vec<String> = table
        .split("====\n")
        .map(|case| {
            let line = case.lines().next().expect("a case has a command line");
            format!("{line}\n{}", said(line))
        })
        .collect();
    if std::env::var_os("TARTAN_BLESS").is_some() {
        std::fs::write(TABLE, now.join("====\n")).unwrap();
    } else {
        table.split("====\n").zip(&now).for_each(|(case, now)| assert_eq!(now, case));
    }
}

/// A policy of that table, as a file.
fn document(case: &str) -> (String, Vec<String>) {
    let mut lines = case.lines();
    let kind = lines.next().expect("a case begins with a kind");
    let version = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        _ => "policy.networking.k8s.io/v1alpha1",
    };
    let body: Vec<&str> = lines.clone().take_while(|line| !line.starts_with(">>") && !line.starts_with("=>")).collect();
    let text =
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: ns}}\n{}\n", body.join("\n"));
    (text, lines.filter_map(|line| Some(line.strip_prefix(">> ")?.to_owned())).collect())
}

#[test]
fn check_prints_just_what_is_to_be_said_of_every_bad_policy() {
    let table = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(BAD)).unwrap();
    let dir = std::env::temp_dir().join(format!("tartan-check-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("p.yaml");
    let mut count = 0;
    for case in table.split("====\n") {
        let (text, want) = document(case);
        std::fs::write(&file, &text).unwrap();
        let Answer { text: json, code } = check::answer(std::slice::from_ref(&file), Format::Json).unwrap();
        let said: Vec<tartan_api::explain::Diagnostic> = serde_json::from_str(&json).unwrap();
        let lines = said
            .iter()
            .flat_map(|it| [format!("{} {} {}", it.object, it.field, it.reason), it.message.clone(), it.fix.clone()]);
        assert_eq!((lines.collect::<Vec<String>>(), code), (want, 1), "{case}");
        for place in said.iter().map(|it| &it.place) {
            let line = place.strip_prefix(&format!("{}:", file.display())).expect("the file's name comes first");
            let line: usize = line.parse().expect("a line");
            assert!((1..=text.lines().count()).contains(&line), "{place} of\n{text}");
        }
        count += 1;
    }
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(count >= 100, "the table is cut: {count}");
}
