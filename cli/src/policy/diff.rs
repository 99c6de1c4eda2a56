//! `tartan policy diff`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tartan_api::explain::{Difference, Group};
use tartan_model::{Object, ObjectId};
use tartan_policy::{compare, dialect};
use tartan_store::decode;

use super::source::{self, Known};
use super::trace::word;
use super::{Answer, first_of, rule};
use crate::output::{self, Format, table};

/// What would be changed.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Change {
    /// File of YAML documents that would be applied; - for standard input
    #[arg(short, long)]
    file: Vec<PathBuf>,
    /// Object that would be deleted, e.g. NetworkPolicy/shop/web
    #[arg(long, value_name = "KIND/NAME")]
    delete: Vec<String>,
}

pub(super) fn answer(change: &Change, now: &Known, format: Format) -> Result<Answer> {
    let then = change.made(now)?;
    let differences = compare::differences(&now.world, &then.world);
    let code = u8::from(!differences.is_empty());
    Ok(Answer { text: output::written(format, &differences, |differences| text(differences, &then))?, code })
}

// === impl Change ===

impl Change {
    fn made(&self, now: &Known) -> Result<Known> {
        let mut then = now.copy();
        for text in &self.delete {
            let id = source::id_of(text)
                .with_context(|| format!("--delete {text}: write KIND/NAME or KIND/NAMESPACE/NAME"))?;
            ensure!(is_there(now, &id), "--delete {text}: there is no such object; {}", like(now, &id));
            then.delete(&id);
        }
        for file in &self.file {
            let (origin, text) = source::text_of(file)?;
            let text: Arc<str> = text.into();
            for document in decode::documents(&origin, &text) {
                match document {
                    Ok(document) => {
                        if let Object::Policy(policy) = &document.object {
                            let said = dialect::lower(&document.id, policy).said;
                            said.iter()
                                .for_each(|condition| eprintln!("tartan: {origin}: {}", source::message(condition)));
                        }
                        then.read(&origin, &text, document);
                    }
                    Err(refused) => bail!("{}; fix: {}", refused.condition.message, refused.condition.fix),
                }
            }
        }
        Ok(then)
    }
}

fn is_there(known: &Known, id: &ObjectId) -> bool {
    known.world.policies.contains_key(id)
        || known.world.namespaces.contains_key(&id.name) && id.kind == tartan_model::Kind::Namespace
}

fn like(known: &Known, id: &ObjectId) -> String {
    let of_kind = known.world.policies.keys().filter(|it| it.kind == id.kind);
    let names: Vec<String> = of_kind.take(5).map(ToString::to_string).collect();
    if names.is_empty() {
        format!("there is none of kind {}", id.kind)
    } else {
        format!("there is {}", names.join(", "))
    }
}

fn text(differences: &[Difference], then: &Known) -> String {
    if differences.is_empty() {
        return "no connection is allowed or denied that was not before".into();
    }
    let mut rows: BTreeMap<(Vec<String>, [String; 4]), Vec<String>> = BTreeMap::new();
    for it in differences {
        let (now, then_word) = (word(it.now).to_owned(), word(it.then).to_owned());
        let rest = [it.packets.clone(), now, then_word, by(it, then)];
        rows.entry((vec![group(&it.from)], rest)).or_default().push(group(&it.to));
    }
    // Those that the same becomes of towards the same are one row.
    let mut merged: BTreeMap<(Vec<String>, [String; 4]), Vec<String>> = BTreeMap::new();
    for ((from, rest), to) in rows {
        merged.entry((to, rest)).or_default().extend(from);
    }
    let cells = |((to, rest), from): (&(Vec<String>, [String; 4]), &Vec<String>)| {
        let mut cells = vec![first_of(from), first_of(to)];
        cells.extend(rest.iter().cloned());
        cells
    };
    table(&["FROM", "TO", "PACKETS", "NOW", "THEN", "BY"], &merged.iter().map(cells).collect::<Vec<_>>())
}

fn by(it: &Difference, then: &Known) -> String {
    format!("{}, {}", rule(&it.object, &it.field, &then.place(&it.object, &it.field)), it.end)
}

fn group(group: &Group) -> String {
    match group.pods {
        0 => group.name.clone(),
        1 => format!("{} (1 pod)", group.name),
        pods => format!("{} ({pods} pods)", group.name),
    }
}
