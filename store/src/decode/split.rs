//! Cuts a text into its YAML documents, before any of them is parsed, so that a broken one does not hide the others.
//!
//! A line that begins with `---` starts a document wherever it stands, even inside quotes (YAML 1.2 §9.1.2): cutting at
//! these lines is exact.

use std::ops::Range;

use tartan_model::{Kind, ObjectId};

/// Where a document stands in a text.
pub(super) struct Part {
    /// Bytes, without the `---` before and after.
    pub range: Range<usize>,
    /// Number of its first line, from 1.
    pub line: usize,
}

/// The documents of a text that hold anything.
pub(super) fn parts(text: &str) -> impl Iterator<Item = Part> {
    // A byte order mark is no part of the first document, which the parser would take for two.
    let mut at = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut found = vec![Part { range: at..at, line: 1 }];
    for (index, line) in text[at..].split_inclusive('\n').enumerate() {
        if is_separator(line) {
            found.push(Part { range: at + 3..at + line.len(), line: index + 1 });
        } else if let Some(last) = found.last_mut() {
            last.range.end = at + line.len();
        }
        at += line.len();
    }
    found.into_iter().filter(|part| !is_empty(&text[part.range.clone()]))
}

/// The object a document that does not parse was most likely meant to be, from its lines.
pub(super) fn salvage(body: &str) -> Option<ObjectId> {
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_owned());
    let mut lines = body.lines();
    let kind = value(lines.clone().find(|line| line.starts_with("kind:"))?)?;
    lines.find(|line| line.trim_end() == "metadata:")?;
    let metadata: Vec<&str> = lines.take_while(|line| line.starts_with(' ')).collect();
    let field = |key: &str| value(metadata.iter().find(|line| line.trim_start().starts_with(key))?);
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    let metadata = super::Name { name: field("name:")?, namespace: field("namespace:").unwrap_or_default() };
    super::id_of(kind, &metadata).ok()
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Blank lines, comments, directives and end marks only.
fn is_empty(body: &str) -> bool {
    body.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}
