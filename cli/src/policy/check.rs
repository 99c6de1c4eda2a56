//! `tartan policy check`: what an agent would say of policies, before they are applied.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use tartan_api::explain::Diagnostic;
use tartan_model::{Condition, Object};
use tartan_policy::dialect;
use tartan_store::decode::{self, Document, Refused};

use super::source;
use super::{Answer, TROUBLE};
use crate::output::{self, Format};

/// What was found in the files.
#[derive(Default)]
struct Found {
    policies: usize,
    /// Documents of kinds that Tartan does not read.
    others: usize,
    /// A document could not be read as what it is.
    unreadable: bool,
    diagnostics: Vec<Diagnostic>,
}

pub(super) fn answer(files: &[PathBuf], format: Format) -> Result<Answer> {
    let mut found = Found::default();
    for file in files {
        let (origin, text) = source::text_of(file)?;
        found.read(&origin, &text);
    }
    let text = output::written(format, &found.diagnostics, |diagnostics| text(diagnostics, &found))?;
    let code = if found.unreadable { TROUBLE } else { u8::from(!found.diagnostics.is_empty()) };
    Ok(Answer { text, code })
}

// === impl Found ===

impl Found {
    fn read(&mut self, origin: &str, text: &str) {
        for document in decode::documents(origin, text) {
            match document {
                Ok(document) => self.lower(origin, text, &document),
                Err(refused) if is_others(&refused) => self.others += 1,
                Err(refused) => {
                    self.unreadable = true;
                    self.diagnostics.push(refused_as(origin, refused.condition));
                }
            }
        }
    }

    fn lower(&mut self, origin: &str, text: &str, document: &Document) {
        let Object::Policy(policy) = &document.object else { return self.others += 1 };
        self.policies += 1;
        let said = dialect::lower(&document.id, policy).said;
        self.diagnostics.extend(said.into_iter().map(|Condition { about, field, reason, message, fix }| {
            let place = format!("{origin}:{}", decode::line_of(text, &document.range, &field));
            Diagnostic { place, object: about, field, reason: reason.into(), message, fix }
        }));
    }
}

/// A document of a kind that is none of ours, nor one of ours mistyped.
fn is_others(refused: &Refused) -> bool {
    refused.id.is_none() && refused.condition.reason == "UnknownKind" && !refused.unsure
}

/// The decoder puts the place before the message.
fn refused_as(origin: &str, condition: Condition) -> Diagnostic {
    let Condition { about, field, reason, message, fix } = condition;
    let rest = message.strip_prefix(origin).and_then(|rest| rest.strip_prefix(':'));
    let (place, message) = match rest.and_then(|rest| rest.split_once(": ")) {
        Some((line, rest)) => (format!("{origin}:{line}"), rest.to_owned()),
        None => (origin.to_owned(), message),
    };
    Diagnostic { place, object: about, field, reason: reason.into(), message, fix }
}

fn text(diagnostics: &[Diagnostic], found: &Found) -> String {
    let mut text = String::new();
    for Diagnostic { place, object, field, reason, message, fix } in diagnostics {
        let _infallible =
            writeln!(text, "{place}: {reason}: {}\n  {message}\n  Fix: {fix}", format!("{object} {field}").trim_end());
    }
    let others = match found.others {
        0 => String::new(),
        others => format!("; documents of other kinds, not looked at: {others}"),
    };
    let said = match diagnostics.len() {
        0 => "nothing wrong".to_owned(),
        1 => "1 thing wrong".to_owned(),
        several => format!("{several} things wrong"),
    };
    format!("{text}policies: {}, {said}{others}", found.policies)
}
