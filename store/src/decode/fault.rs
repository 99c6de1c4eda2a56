//! What is wrong with a document, and how it becomes a condition a user can act on.

use serde::de::DeserializeOwned;
use tartan_model::{Condition, ObjectId};

use super::locate;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Path, e.g. `spec.vxlan.vni`; empty for the document as a whole.
    pub field: String,
    /// One word, for machines.
    pub reason: &'static str,
    pub message: String,
    pub fix: String,
    /// Line in the document, from 1, where the parser said it; else it is looked up by the field.
    pub line: Option<usize>,
}

/// Reads a document as one of the types of api.
pub(super) fn typed<T: DeserializeOwned>(body: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(body)).map_err(Fault::from_parser)
}

/// What is wrong with a JSON document; it is not for people to read, so there is no line.
pub(super) fn from_json(error: serde_path_to_error::Error<serde_json::Error>) -> Fault {
    Fault::at(error.path().to_string(), error.inner())
}

/// The candidate a mistyped word was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A longer word than any of ours is none of them mistyped, and would take a table of any size.
    let word: String = word.chars().take(64).flat_map(char::to_lowercase).collect();
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

// === impl Fault ===

impl Fault {
    pub(super) fn new(
        field: impl Into<String>,
        reason: &'static str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Fault {
        Fault { field: field.into(), reason, message: message.into(), fix: fix.into(), line: None }
    }

    /// A value that cannot be meant.
    pub(super) fn value(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        wrong: impl std::fmt::Display,
        fix: impl Into<String>,
    ) -> Fault {
        let field = field.into();
        let message = format!("{field} is `{value}`: {wrong}");
        Fault::new(field, "BadValue", message, fix)
    }

    /// A field that must be there.
    pub(super) fn missing(field: &str, fix: &str) -> Fault {
        Fault::new(field, "Missing", format!("{field} is missing"), fix)
    }

    /// A name that is none.
    pub(super) fn name(name: &str) -> Fault {
        let rule =
            "a name is 1 to 253 letters in lower case, digits, `-` and `.`, and begins and ends with a letter or digit";
        match name {
            "" => Fault::missing("metadata.name", "give the object a name"),
            _ => Fault::value("metadata.name", name, rule, "choose another name"),
        }
    }

    /// A namespace that is none.
    pub(super) fn namespace(namespace: &str) -> Fault {
        let rule =
            "a namespace is 1 to 253 letters in lower case, digits and `-`, and begins and ends with a letter or digit";
        Fault::value("metadata.namespace", namespace, rule, "write the namespace's name")
    }

    /// As users see it: with the text's name, the line, and the object if it is known.
    pub(super) fn condition(self, origin: &str, id: Option<&ObjectId>, body: &str, first_line: usize) -> Condition {
        let line = first_line - 1 + self.line.unwrap_or_else(|| locate::line(body, &self.field));
        Condition {
            about: id.map_or_else(|| origin.to_owned(), ObjectId::to_string),
            message: format!("{origin}:{line}: {}", self.message),
            field: self.field,
            reason: self.reason,
            fix: self.fix,
        }
    }

    fn from_parser(error: serde_path_to_error::Error<serde_yaml_ng::Error>) -> Fault {
        let path = error.path().to_string();
        let error = error.into_inner();
        Fault { line: error.location().map(|at| at.line()), ..Fault::at(path, &error) }
    }

    fn at(path: String, error: &dyn std::fmt::Display) -> Fault {
        let message = without_places(&error.to_string());
        let message = message.strip_prefix(&format!("{path}: ")).unwrap_or(&message);
        let field = if path == "." || path.contains('?') { String::new() } else { path };
        Fault::from_message(field, message)
    }

    /// Reads serde's own sentences, so that users need not.
    fn from_message(field: String, message: &str) -> Fault {
        if let Some((key, known)) = message.split_once("unknown field `").and_then(|(_, rest)| rest.split_once('`')) {
            let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            let fix = match nearest(key, known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            return Fault::new(&field, "UnknownKey", format!("there is no key {field}"), fix);
        }
        if let Some((found, expected)) = message
            .strip_prefix("invalid type: ")
            .or(message.strip_prefix("invalid value: "))
            .and_then(|rest| rest.split_once(", expected "))
        {
            let place = if field.is_empty() { "the document" } else { &field };
            let expected = plain(expected);
            let message = format!("{place} is {}, not {expected}", found_plain(found));
            return Fault::new(&field, "BadType", message, format!("write {expected}"));
        }
        if let Some(key) = message.strip_prefix("duplicate field `").and_then(|rest| rest.strip_suffix('`')) {
            return Fault::new(field, "BadSyntax", format!("the key {key} is there twice"), "keep one of them");
        }
        let fix = "mend the YAML; indent with blanks, and put texts with `:`, `#`, quotes or brackets in quotes";
        Fault::new("", "BadSyntax", message, fix)
    }
}

/// What serde found, in plain words.
fn found_plain(found: &str) -> String {
    match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "floating", number)) => {
            format!("the number {}", number.trim_start_matches("point ").replace('`', ""))
        }
        Some(("boolean", value)) => value.replace('`', ""),
        Some(("unit", _)) => "null".to_owned(),
        _ => plain(found).to_owned(),
    }
}

/// serde's name of a type, in plain words.
fn plain(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number from 0 on",
        "a boolean" => "true or false",
        "a string" => "a text",
        "a sequence" | "sequence" => "a list",
        expected if expected.starts_with("struct ") || matches!(expected, "a map" | "map") => {
            "a block of keys and values"
        }
        other => other,
    }
}

/// Takes ` at line 3 column 8` out: lines are counted in the whole text, not in the document.
fn without_places(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest.strip_prefix(" column ").unwrap_or(rest);
        kept.push_str(rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    kept
}

/// How many letters were mistaken, left out, added or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { table[i - 2][j - 2] + 1 } else { usize::MAX };
                swap.min(table[i - 1][j - 1] + same).min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
            };
        }
    }
    table[a.len()][b.len()]
}
