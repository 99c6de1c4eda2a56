//! Where a World to be asked comes from: a recorded one, a directory that is a store, or the agent that runs.
//!
//! Invariant: all commands work on one value, whatever it was read from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use tartan_agent::snapshot;
use tartan_api::explain::Line;
use tartan_model::{Condition, Features, Kind, Object, ObjectId, PolicyMode, StoreEvent, World};
use tartan_store::{decode, file};

use crate::client;

/// Which world is asked; by default what the running agent knows.
#[derive(Clone, Debug, Args)]
pub(crate) struct Source {
    /// File that `tartan record` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    world: Option<PathBuf>,
    /// Directory of YAML, as the store `file:` is
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    at: client::At,
}

/// A world, and where its policies stand.
pub(super) struct Known {
    pub(super) world: World,
    places: BTreeMap<ObjectId, Place>,
}

/// A document in a file.
struct Place {
    file: String,
    text: Arc<str>,
    document: Range<usize>,
}

// === impl Source ===

impl Source {
    pub(super) fn open(&self) -> Result<Known> {
        let known = match (&self.world, &self.store) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
                Known::of_record(&text, file)?
            }
            (None, Some(dir)) => Known::of_directory(dir)?,
            (None, None) => {
                let socket = self.at.socket().context("name a world with --world FILE or --store DIR")?;
                Known::of_record(&client::record(&socket)?, Path::new("the agent's answer"))?
            }
        };
        match known.world.config.policy {
            PolicyMode::Enforce => {}
            PolicyMode::Audit => {
                warn("policy is `audit` in NetworkConfig/default: what is denied here passes, and is told")
            }
            PolicyMode::Off => warn("policy is `off` in NetworkConfig/default: nothing of this is enforced"),
        }
        Ok(known)
    }
}

/// What a reader must know beside the answer, and a program need not.
fn warn(what: &str) {
    eprintln!("tartan: {what}");
}

// === impl Known ===

impl Known {
    pub(super) fn of_record(text: &str, origin: &Path) -> Result<Known> {
        let (node, objects) = snapshot::decode_all(text.as_bytes(), origin).map_err(|refused| match refused {
            snapshot::Refused::Foreign(path) => {
                anyhow::anyhow!(
                    "{}: this is not what `tartan record` writes; a directory of YAML goes with --store",
                    path.display()
                )
            }
            other => anyhow::anyhow!("{other}").context("record it once more"),
        })?;
        let mut known = Known::new(&node);
        objects.into_iter().for_each(|(id, object)| known.put(id, object));
        Ok(known)
    }

    fn of_directory(dir: &Path) -> Result<Known> {
        let mut known = Known::new("");
        let texts = file::texts(dir).with_context(|| format!("reading the store {}", dir.display()))?;
        for (name, text) in texts {
            let file = dir.join(name).display().to_string();
            let text: Arc<str> = text.into();
            for document in decode::documents(&file, &text) {
                match document {
                    // Of two files with one object the first counts.
                    Ok(document) if known.places.contains_key(&document.id) => {
                        warn(&format!("{file}: {} is there a second time; the first one counts", document.id));
                    }
                    Ok(document) => known.read(&file, &text, document),
                    Err(refused) => warn(&format!("{}; it is left out", refused.condition.message)),
                }
            }
        }
        Ok(known)
    }

    fn new(node: &str) -> Known {
        Known { world: World::new(node.into(), Features::default()), places: BTreeMap::new() }
    }

    /// Takes a document of a file in place of what was known of its object.
    pub(super) fn read(&mut self, file: &str, text: &Arc<str>, document: decode::Document) {
        let decode::Document { id, object, range } = document;
        self.places.insert(id.clone(), Place { file: file.to_owned(), text: text.clone(), document: range });
        self.put(id, object);
    }

    fn put(&mut self, id: ObjectId, object: Object) {
        let revision = decode::revision(&id, &object);
        self.world.store(StoreEvent::Put(id, object, revision), Instant::now());
    }

    /// Takes an object away.
    pub(super) fn delete(&mut self, id: &ObjectId) {
        self.places.remove(id);
        self.world.store(StoreEvent::Delete(id.clone()), Instant::now());
    }

    /// The same world, to be changed.
    pub(super) fn copy(&self) -> Known {
        let places = self.places.iter().map(|(id, place)| (id.clone(), place.copy())).collect();
        Known { world: self.world.clone(), places }
    }

    /// `FILE:LINE` of a field, where it is known.
    pub(super) fn place(&self, object: &str, field: &str) -> String {
        let Some(place) = id_of(object).and_then(|id| self.places.get(&id)) else { return String::new() };
        format!("{}:{}", place.file, decode::line_of(&place.text, &place.document, field))
    }

    /// Says where the line stands.
    pub(super) fn locate(&self, line: &mut Line) {
        line.place = self.place(&line.object, &line.field);
    }
}

impl Place {
    fn copy(&self) -> Place {
        Place { file: self.file.clone(), text: self.text.clone(), document: self.document.clone() }
    }
}

/// The object that `KIND/NAME` names.
pub(super) fn id_of(text: &str) -> Option<ObjectId> {
    let (kind, name) = text.split_once('/')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(kind))?;
    Some(ObjectId { kind, name: name.into() })
}

/// A text that a user names, by its name; `-` is standard input.
pub(super) fn text_of(file: &Path) -> Result<(String, String)> {
    if file == Path::new("-") {
        let text = std::io::read_to_string(std::io::stdin()).context("reading standard input")?;
        return Ok(("standard input".into(), text));
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok((file.display().to_string(), text))
}

/// A condition about a document of a text that was read.
pub(super) fn message(condition: &Condition) -> String {
    format!("{}: {}; fix: {}", condition.about, condition.message, condition.fix)
}
