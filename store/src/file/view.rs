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

/// Of a file's bytes.
pub(super) use siphasher::sip128::SipHasher13 as Hasher;

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
    /// Which object is in which file; of an object's files the first one counts.
    holders: BTreeSet<(ObjectId, Arc<str>)>,
    told_notices: BTreeMap<Arc<str>, Vec<Condition>>,
    /// A list has begun and is not complete.
    listing: bool,
}

/// A read of the whole directory that is under way.
pub(super) struct Listing {
    /// Nothing has been told before.
    first: bool,
    /// Files of the view that have not been found again.
    missing: BTreeSet<Arc<str>>,
    /// Objects that are not what was told of them.
    changed: BTreeSet<ObjectId>,
}

/// What one file holds: mostly one object, and there may be thousands of files.
struct File {
    /// In order.
    objects: Box<[(ObjectId, Held)]>,
    /// What is wrong with it beside its objects.
    said: Box<[Condition]>,
    /// It may hold objects of which nothing is known.
    blind: bool,
    /// Of its bytes.
    hash: Revision,
}

/// A file while it is taken in.
#[derive(Default)]
struct Draft {
    objects: BTreeMap<ObjectId, Held>,
    said: Vec<Condition>,
    blind: bool,
}

#[derive(Clone)]
enum Held {
    Good(Object, Revision),
    Bad(Box<Condition>),
}

// === impl View ===

impl View {
    pub(super) fn new(kinds: &[Kind]) -> View {
        View {
            kinds: kinds.to_vec(),
            files: BTreeMap::new(),
            holders: BTreeSet::new(),
            told_notices: BTreeMap::new(),
            listing: false,
        }
    }

    /// No file holds anything.
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Begins to read the whole directory: everything will be told anew.
    pub(super) fn begin_list(&self) -> Listing {
        let missing = self.files.keys().cloned().collect();
        Listing { first: self.files.is_empty(), missing, changed: BTreeSet::new() }
    }

    /// Whether no file has been found.
    pub(super) fn has_found_none(&self, listing: &Listing) -> bool {
        listing.missing.len() == self.files.len()
    }

    /// The hash of a file of which all is known: one with the same bytes holds the same.
    pub(super) fn known(&self, name: &str) -> Option<&Revision> {
        self.files.get(name).filter(|file| file.said.is_empty() && !file.blind).map(|file| &file.hash)
    }

    /// Takes a reading of one of its files, perhaps once more.
    pub(super) fn take(&mut self, listing: &mut Listing, name: Arc<str>, reading: Reading) {
        if !matches!(reading, Reading::Gone) {
            listing.found(&name);
            self.list(listing, &name, reading);
        } else if self.files.contains_key(&name) {
            listing.missing.insert(name);
        }
    }

    /// Tells what there is, now that all has been read: one after the other, for there may be thousands.
    pub(super) fn end_list(&mut self, mut listing: Listing) -> impl Iterator<Item = StoreEvent> {
        for name in std::mem::take(&mut listing.missing) {
            self.list(&mut listing, &name, Reading::Gone);
        }
        if listing.first {
            self.pack();
        }
        self.listing = true;
        let changed = listing.changed;
        // Who is told for the first time acts on nothing before the end. Others must not see half of what is new.
        let moment: Vec<_> = changed.iter().filter_map(|id| Some(self.held(id)?.told(id))).collect();
        let mut last: Vec<_> = (!moment.is_empty()).then_some(StoreEvent::Moment(moment)).into_iter().collect();
        let noted = self.files.keys().filter(|name| !self.notices(name).is_empty());
        let noted: BTreeSet<Arc<str>> = noted.chain(self.told_notices.keys()).cloned().collect();
        last.extend(noted.iter().filter_map(|file| self.tell_notice(file)));
        self.finish_list(&mut last);
        let inits = self.kinds.iter().map(|kind| StoreEvent::Init(*kind));
        let as_told = self.ids().filter(move |id| !changed.contains(id));
        inits.chain(as_told.filter_map(|id| Some(self.held(id)?.told(id)))).chain(last)
    }

    /// Of all objects, once each.
    fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        let mut last = None;
        self.holders.iter().map(|(id, _)| id).filter(move |id| last.replace(*id) != Some(*id))
    }

    fn list(&mut self, listing: &mut Listing, name: &Arc<str>, reading: Reading) {
        let touched = self.absorb(name, reading);
        if !listing.first {
            let changed = touched.into_iter().filter(|(id, before)| self.has_changed(id, before.as_ref()));
            listing.changed.extend(changed.map(|(id, _)| id));
        }
    }

    /// Makes full nodes of the trees: what comes in order, as the files of a list do, leaves them half empty.
    fn pack(&mut self) {
        self.files = std::mem::take(&mut self.files).into_iter().collect();
        self.holders = std::mem::take(&mut self.holders).into_iter().collect();
    }

    /// Takes a reading of one file.
    pub(super) fn read(&mut self, name: &Arc<str>, reading: Reading) -> Vec<StoreEvent> {
        let touched = self.absorb(name, reading);
        let changed = touched.iter().filter(|(id, before)| self.has_changed(id, before.as_ref()));
        let mut events: Vec<StoreEvent> = changed.map(|(id, _)| self.news(id)).collect();
        let holders = touched.keys().flat_map(|id| self.holders_of(id));
        let files: BTreeSet<Arc<str>> = holders.chain([name]).cloned().collect();
        events.extend(files.iter().filter_map(|file| self.tell_notice(file)));
        self.finish_list(&mut events);
        events
    }

    /// Puts a reading in place of the file's earlier one; returns the objects of either, and what each was before.
    fn absorb(&mut self, name: &Arc<str>, reading: Reading) -> BTreeMap<ObjectId, Option<Held>> {
        let before = self.files.get(name);
        let file = File::of(name, reading, before, &self.kinds);
        let objects = before.into_iter().chain(&file).flat_map(File::ids);
        let touched = objects.map(|id| (id.clone(), self.held(id).cloned())).collect();
        for id in before.into_iter().flat_map(File::ids) {
            self.holders.remove(&(id.clone(), name.clone()));
        }
        match file {
            Some(file) => {
                self.holders.extend(file.ids().map(|id| (id.clone(), name.clone())));
                self.files.insert(name.clone(), file);
            }
            None => drop(self.files.remove(name)),
        }
        touched
    }

    fn has_changed(&self, id: &ObjectId, before: Option<&Held>) -> bool {
        match (before, self.held(id)) {
            (Some(before), Some(held)) => !before.is_as(held),
            (before, held) => before.is_some() || held.is_some(),
        }
    }

    /// What to tell of an object that has changed.
    fn news(&self, id: &ObjectId) -> StoreEvent {
        self.held(id).map_or_else(|| StoreEvent::Delete(id.clone()), |held| held.told(id))
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
        let second = file.ids().filter_map(|id| {
            let first = self.holders_of(id).next()?;
            (first != name).then(|| duplicate(id, first, name))
        });
        file.said.iter().cloned().chain(second).collect()
    }

    fn held(&self, id: &ObjectId) -> Option<&Held> {
        self.files.get(self.holders_of(id).next()?)?.get(id)
    }

    fn holders_of(&self, of: &ObjectId) -> impl Iterator<Item = &Arc<str>> {
        let from = self.holders.range((of.clone(), Arc::default())..);
        from.take_while(move |(id, _)| id == of).map(|(_, file)| file)
    }

    fn finish_list(&mut self, events: &mut Vec<StoreEvent>) {
        if self.listing && !self.files.values().any(|file| file.blind) {
            self.listing = false;
            events.extend(self.kinds.iter().map(|kind| StoreEvent::Synced(*kind)));
        }
    }
}

// === impl Listing ===

impl Listing {
    /// One of the view's files is as it was.
    pub(super) fn found(&mut self, name: &str) {
        self.missing.remove(name);
    }
}

// === impl File ===

impl File {
    fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects.iter().map(|(id, _)| id)
    }

    fn get(&self, id: &ObjectId) -> Option<&Held> {
        let at = self.objects.binary_search_by(|(there, _)| there.cmp(id)).ok()?;
        Some(&self.objects[at].1)
    }

    /// What a file holds after a reading; none when it is gone.
    fn of(name: &str, reading: Reading, before: Option<&File>, kinds: &[Kind]) -> Option<File> {
        let hash = match &reading {
            Reading::Bytes(bytes) => hash(bytes),
            Reading::Gone | Reading::Failed(_) => hash(&[]),
        };
        let text = match reading {
            Reading::Gone => return None,
            Reading::Failed(error) => Err(unreadable(name, &error)),
            Reading::Bytes(bytes) if bytes.is_empty() => Err(empty(name)),
            Reading::Bytes(bytes) => String::from_utf8(bytes).map_err(|error| not_utf8(name, error.as_bytes())),
        };
        let mut file = Draft::default();
        let unsure = match text {
            Ok(text) => file.take(name, &text, kinds).or_else(|| file.cut_off(name, &text, before)),
            Err(condition) => {
                file.said.push(condition.clone());
                Some(condition)
            }
        };
        if let Some(condition) = unsure {
            file.keep(before, &condition);
        }
        let Draft { mut objects, said, blind } = file;
        // What has not changed stays the same object: whoever was told of it holds it too.
        for (id, held) in before.iter().flat_map(|before| &before.objects) {
            if let Some(now) = objects.get_mut(id).filter(|now| now.is_as(held)) {
                *now = held.clone();
            }
        }
        Some(File { objects: objects.into_iter().collect(), said: said.into(), blind, hash })
    }
}

// === impl Held ===

impl Held {
    fn told(&self, id: &ObjectId) -> StoreEvent {
        match self {
            Held::Good(object, revision) => StoreEvent::Put(id.clone(), object.clone(), revision.clone()),
            Held::Bad(condition) => StoreEvent::Invalid(id.clone(), condition.clone()),
        }
    }

    fn is_as(&self, other: &Held) -> bool {
        match (self, other) {
            (Held::Good(_, one), Held::Good(_, other)) => one == other,
            (Held::Bad(one), Held::Bad(other)) => one == other,
            _ => false,
        }
    }
}

// === impl Draft ===

impl Draft {
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
                    (id, Held::Bad(refused.condition.into()))
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
        let less = before?.ids().any(|id| !self.objects.contains_key(id));
        (less && !text.ends_with('\n')).then(|| {
            let message = format!("{name}: ends without a newline, as if cut off; what it held before stays");
            let fix = "end it with a newline if it is whole";
            let condition = broken(name, "CutOff", message, fix);
            self.said.push(condition.clone());
            condition
        })
    }

    /// Keeps what the file held before and does not show now.
    fn keep(&mut self, before: Option<&File>, condition: &Condition) {
        let Some(before) = before else {
            self.blind = true;
            return;
        };
        self.blind = before.blind;
        for id in before.ids() {
            let about = Condition { about: id.to_string(), ..condition.clone() };
            self.objects.entry(id.clone()).or_insert(Held::Bad(about.into()));
        }
    }
}

pub(super) fn hash(bytes: &[u8]) -> Revision {
    Hasher::new().hash(bytes).as_u128().into()
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
