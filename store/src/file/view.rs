//! What the files of a directory hold, and what one watcher has been told of it: readings in, events out; no I/O.
//!
//! Invariant: what a watcher knows after the events is what the files last held whole. A file that cannot be read whole
//! keeps the objects it last had; while there is one whose objects were never known, no list is called complete.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use tartan_model::{Condition, Kind, Object, ObjectId, Revision, StoreEvent};

use crate::decode;

/// What came of reading a file.
pub(super) enum Reading {
    Gone,
    Bytes(Vec<u8>),
    Failed(io::Error),
}

/// All files, and what has been told of them.
pub(super) struct View {
    kinds: Vec<Kind>,
    files: BTreeMap<Arc<str>, File>,
    /// The files that hold an object; the first one counts.
    holders: BTreeMap<ObjectId, BTreeSet<Arc<str>>>,
    told: BTreeMap<ObjectId, Told>,
    told_notices: BTreeMap<Arc<str>, Vec<Condition>>,
    /// A list has begun and is not complete.
    listing: bool,
}

/// What one file holds.
#[derive(Default)]
struct File {
    objects: BTreeMap<ObjectId, Held>,
    /// What is wrong with it beside its objects.
    said: Vec<Condition>,
    /// It may hold objects of which nothing is known.
    blind: bool,
}

enum Held {
    Good(Object, Revision),
    Bad(Condition),
}

#[derive(PartialEq)]
enum Told {
    Good(Revision),
    Bad(Condition),
}

// === impl View ===

impl View {
    pub(super) fn new(kinds: &[Kind]) -> View {
        View {
            kinds: kinds.to_vec(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            told: BTreeMap::new(),
            told_notices: BTreeMap::new(),
            listing: false,
        }
    }

    /// No file holds anything.
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Takes a reading of the whole directory: everything is told anew.
    pub(super) fn list(&mut self, readings: BTreeMap<Arc<str>, Reading>) -> Vec<StoreEvent> {
        let vanished: Vec<Arc<str>> = self.files.keys().filter(|name| !readings.contains_key(*name)).cloned().collect();
        for name in vanished {
            self.absorb(&name, Reading::Gone);
        }
        for (name, reading) in readings {
            self.absorb(&name, reading);
        }
        let before = std::mem::take(&mut self.told);
        self.listing = true;
        let mut events: Vec<StoreEvent> = self.kinds.iter().map(|kind| StoreEvent::Init(*kind)).collect();
        let ids: Vec<ObjectId> = self.holders.keys().cloned().collect();
        let told = ids.iter().filter_map(|id| self.tell(id).map(|event| (id, event))).collect::<Vec<_>>();
        // Who is told for the first time acts on nothing before the end. Others must not see half of what is new.
        let is_old = |id: &ObjectId| before.is_empty() || before.get(id) == self.told.get(id);
        let (old, new): (Vec<_>, Vec<_>) = told.into_iter().partition(|(id, _)| is_old(id));
        events.extend(old.into_iter().map(|(_, event)| event));
        if !new.is_empty() {
            events.push(StoreEvent::Moment(new.into_iter().map(|(_, event)| event).collect()));
        }
        let files: BTreeSet<Arc<str>> = self.files.keys().chain(self.told_notices.keys()).cloned().collect();
        events.extend(files.iter().filter_map(|file| self.tell_notice(file)));
        self.finish_list(&mut events);
        events
    }

    /// Takes a reading of one file.
    pub(super) fn read(&mut self, name: &Arc<str>, reading: Reading) -> Vec<StoreEvent> {
        let touched = self.absorb(name, reading);
        let mut events: Vec<StoreEvent> = touched.iter().filter_map(|id| self.tell(id)).collect();
        let holders = touched.iter().filter_map(|id| self.holders.get(id)).flatten();
        let files: BTreeSet<Arc<str>> = holders.chain([name]).cloned().collect();
        events.extend(files.iter().filter_map(|file| self.tell_notice(file)));
        self.finish_list(&mut events);
        events
    }

    /// Puts a reading in place of the file's earlier one; returns the objects of either.
    fn absorb(&mut self, name: &Arc<str>, reading: Reading) -> BTreeSet<ObjectId> {
        let before = self.files.remove(name);
        let mut touched: BTreeSet<ObjectId> = before.iter().flat_map(|file| file.objects.keys()).cloned().collect();
        for id in &touched {
            forget(&mut self.holders, id, name);
        }
        if let Some(file) = File::of(name, reading, before, &self.kinds) {
            for id in file.objects.keys() {
                self.holders.entry(id.clone()).or_default().insert(name.clone());
                touched.insert(id.clone());
            }
            self.files.insert(name.clone(), file);
        }
        touched
    }

    fn tell(&mut self, id: &ObjectId) -> Option<StoreEvent> {
        let Some(held) = self.held(id) else {
            return self.told.remove(id).map(|_| StoreEvent::Delete(id.clone()));
        };
        let (told, event) = match held {
            Held::Good(object, revision) => {
                (Told::Good(revision.clone()), StoreEvent::Put(id.clone(), object.clone(), revision.clone()))
            }
            Held::Bad(condition) => (Told::Bad(condition.clone()), StoreEvent::Invalid(id.clone(), condition.clone())),
        };
        let known = self.told.get(id) == Some(&told);
        self.told.insert(id.clone(), told);
        (!known).then_some(event)
    }

    fn tell_notice(&mut self, file: &Arc<str>) -> Option<StoreEvent> {
        let said = self.notices(file);
        let before = self.told_notices.remove(file).unwrap_or_default();
        if !said.is_empty() {
            self.told_notices.insert(file.clone(), said.clone());
        }
        (before != said).then(|| StoreEvent::Notice(file.clone(), said))
    }

    fn notices(&self, name: &Arc<str>) -> Vec<Condition> {
        let Some(file) = self.files.get(name) else { return Vec::new() };
        let second = file.objects.keys().filter_map(|id| {
            let first = self.holders.get(id)?.first()?;
            (first != name).then(|| duplicate(id, first, name))
        });
        file.said.iter().cloned().chain(second).collect()
    }

    fn held(&self, id: &ObjectId) -> Option<&Held> {
        let first = self.holders.get(id)?.first()?;
        self.files.get(first)?.objects.get(id)
    }

    fn finish_list(&mut self, events: &mut Vec<StoreEvent>) {
        if self.listing && !self.files.values().any(|file| file.blind) {
            self.listing = false;
            events.extend(self.kinds.iter().map(|kind| StoreEvent::Synced(*kind)));
        }
    }
}

fn forget(holders: &mut BTreeMap<ObjectId, BTreeSet<Arc<str>>>, id: &ObjectId, name: &Arc<str>) {
    if let Some(files) = holders.get_mut(id) {
        files.remove(name);
        if files.is_empty() {
            holders.remove(id);
        }
    }
}

// === impl File ===

impl File {
    /// What a file holds after a reading; none when it is gone.
    fn of(name: &str, reading: Reading, before: Option<File>, kinds: &[Kind]) -> Option<File> {
        let text = match reading {
            Reading::Gone => return None,
            Reading::Failed(error) => Err(unreadable(name, &error)),
            Reading::Bytes(bytes) if bytes.is_empty() => Err(empty(name)),
            Reading::Bytes(bytes) => String::from_utf8(bytes).map_err(|error| not_utf8(name, error.as_bytes())),
        };
        let mut file = File::default();
        let unsure = match text {
            Ok(text) => file.take(name, &text, kinds).or_else(|| file.cut_off(name, &text, before.as_ref())),
            Err(condition) => {
                file.said.push(condition.clone());
                Some(condition)
            }
        };
        if let Some(condition) = unsure {
            file.keep(before, &condition);
        }
        Some(file)
    }

    /// Takes every document; returns what is said of the first that leaves unsure what the file should hold.
    fn take(&mut self, name: &str, text: &str, kinds: &[Kind]) -> Option<Condition> {
        let mut unsure = None;
        for document in decode::documents(name, text) {
            let (id, held) = match document {
                Ok(document) => {
                    let revision = decode::revision(&document.id, &document.object);
                    (document.id, Held::Good(document.object, revision))
                }
                Err(refused) => {
                    if refused.unsure && unsure.is_none() {
                        unsure = Some(refused.condition.clone());
                    }
                    let Some(id) = refused.id else {
                        self.said.push(refused.condition);
                        continue;
                    };
                    (id, Held::Bad(refused.condition))
                }
            };
            if !kinds.contains(&id.kind) {
                continue;
            }
            match self.objects.entry(id) {
                Entry::Vacant(place) => drop(place.insert(held)),
                Entry::Occupied(place) => self.said.push(duplicate(place.key(), name, name)),
            }
        }
        unsure
    }

    /// Says so if a file that held more before now ends in the middle of a line: its writer may not be done.
    fn cut_off(&mut self, name: &str, text: &str, before: Option<&File>) -> Option<Condition> {
        let less = before?.objects.keys().any(|id| !self.objects.contains_key(id));
        (less && !text.ends_with('\n')).then(|| {
            let message = format!("{name}: ends without a newline, as if cut off; what it held before stays");
            let fix = "end it with a newline if it is whole";
            let condition = broken(name, "CutOff", message, fix);
            self.said.push(condition.clone());
            condition
        })
    }

    /// Keeps what the file held before and does not show now.
    fn keep(&mut self, before: Option<File>, condition: &Condition) {
        let Some(before) = before else {
            self.blind = true;
            return;
        };
        self.blind = before.blind;
        for id in before.objects.into_keys() {
            let about = Condition { about: id.to_string(), ..condition.clone() };
            self.objects.entry(id).or_insert(Held::Bad(about));
        }
    }
}

fn duplicate(id: &ObjectId, first: &str, second: &str) -> Condition {
    Condition {
        about: id.to_string(),
        field: String::new(),
        reason: "Duplicate",
        message: format!("{id} is in {first}, which counts, and again in {second}"),
        fix: format!("take {id} out of one of them"),
    }
}

fn broken(name: &str, reason: &'static str, message: String, fix: &str) -> Condition {
    Condition { about: name.to_owned(), field: String::new(), reason, message, fix: fix.to_owned() }
}

fn empty(name: &str) -> Condition {
    let message = format!("{name}: the file is empty; what it held before stays");
    broken(name, "Empty", message, "finish writing it, or delete it if its objects are to go")
}

fn unreadable(name: &str, error: &io::Error) -> Condition {
    let message = format!("{name}: cannot be read: {error}; what it held before stays");
    broken(name, "Unreadable", message, "let the agent's user read it, or delete it if its objects are to go")
}

fn not_utf8(name: &str, bytes: &[u8]) -> Condition {
    let good = std::str::from_utf8(bytes).err().map_or(bytes.len(), |error| error.valid_up_to());
    let line = 1 + bytes[..good].iter().filter(|byte| **byte == b'\n').count();
    let message = format!("{name}:{line}: not UTF-8; what the file held before stays");
    broken(name, "BadSyntax", message, "write the file as UTF-8, or delete it if its objects are to go")
}

#[cfg(test)]
mod tests;
