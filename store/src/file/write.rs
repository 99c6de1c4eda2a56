//! Writing into the directory, under its lock: look, compare, replace.
//!
//! Invariant: whoever holds the lock sees every finished write, and a file is only ever replaced by rename.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_yaml_ng::Value;
use tartan_model::{Kind, Object, ObjectId, Revision};

use super::directory::{Directory, Identity};
use super::merge::merge;
use crate::{Expect, WriteError, decode};

/// The file whose lock writers hold.
pub(super) const LOCK: &str = ".lock";
/// Becomes the new file; a crash leaves at most this one, and the next write takes it over.
const PASSING: &str = ".tartan.tmp";

/// The directory, while its lock is held.
pub(super) struct Locked {
    path: PathBuf,
    dir: Directory,
    _lock: File,
}

/// Where an object stands.
struct Found {
    file: Arc<str>,
    text: String,
    range: Range<usize>,
    /// None where it cannot be read.
    known: Option<(Object, Revision)>,
}

// === impl Locked ===

impl Locked {
    /// Takes the lock; none while somebody else holds it.
    pub(super) fn try_lock(path: &Path) -> Result<Option<Locked>, WriteError> {
        let of_lock = path.join(LOCK);
        let dir = Directory::open(path).map_err(|error| away(path, &error))?;
        let lock = dir.mark(LOCK).map_err(|error| away(&of_lock, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(away(&of_lock, &error)),
        }
        // Another directory may have come in its place since.
        let still = lock.metadata().and_then(|ours| Ok(Identity::of(&ours) == Identity::of(&fs::metadata(&of_lock)?)));
        Ok(still.unwrap_or(false).then(|| Locked { path: path.to_owned(), dir, _lock: lock }))
    }

    pub(super) fn put(&self, id: &ObjectId, object: &Object, expect: &Expect) -> Result<Revision, WriteError> {
        let plain = crate::written(id, object)?;
        let revision = decode::revision(id, object);
        let Some(found) = self.as_expected(id, expect)? else {
            let own = own_name(id);
            if self.dir.has(&own) {
                let why = format!("{own} is in the way: it holds other objects; move them to another file");
                return Err(WriteError::Refused(id.clone(), why));
            }
            return self.replace(id, &own, &plain).map(|()| revision);
        };
        if found.known.as_ref().is_some_and(|(_, there)| *there == revision) {
            return Ok(revision);
        }
        let text = found.splice(&found.merged(id, object).unwrap_or(plain));
        self.replace(id, &found.file, &text).map(|()| revision)
    }

    pub(super) fn delete(&self, id: &ObjectId, expect: &Expect) -> Result<(), WriteError> {
        let mut found = self.as_expected(id, expect)?;
        while let Some(place) = found {
            let rest = place.cut_out();
            if decode::documents(&place.file, &rest).is_empty() {
                self.dir.remove(&place.file).map_err(|error| self.away(&place.file, &error))?;
            } else {
                self.replace(id, &place.file, &rest)?;
            }
            // It may be in a second place, which would count from now on.
            found = self.find(id, |_| true)?;
        }
        Ok(())
    }

    /// The place that counts, which is as expected. Any file may hold the object, but there may be thousands that have
    /// the names of other objects' files: these are read only where without them it would not be as expected.
    fn as_expected(&self, id: &ObjectId, expect: &Expect) -> Result<Option<Found>, WriteError> {
        let own = own_name(id);
        let near = self.find(id, |name| *name == *own || !is_of_an_object(name))?;
        if near.as_ref().is_some_and(|found| crate::check(id, expect, Some(found.revision())).is_ok()) {
            return Ok(near);
        }
        let found = self.find(id, |_| true)?;
        crate::check(id, expect, found.as_ref().map(Found::revision))?;
        Ok(found)
    }

    /// The first place that holds the object, in these of the files.
    fn find(&self, id: &ObjectId, looks: impl Fn(&str) -> bool) -> Result<Option<Found>, WriteError> {
        let own = own_name(id);
        let names = self.dir.names().map_err(|error| away(&self.path, &error))?;
        for name in names.into_iter().filter(|name| looks(name)) {
            let bytes = match self.dir.read(&name) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.away(&name, &error)),
            };
            let found = place(id, &name, String::from_utf8_lossy(&bytes).into_owned(), *name == *own);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn replace(&self, id: &ObjectId, name: &str, text: &str) -> Result<(), WriteError> {
        if self.dir.is_symlink(name) {
            let why = format!("{} is a symbolic link; change the file it leads to", self.path.join(name).display());
            return Err(WriteError::Refused(id.clone(), why));
        }
        let write = || -> io::Result<()> {
            let mut file = self.dir.create(PASSING)?;
            if let Some(before) = self.dir.permissions(name) {
                file.set_permissions(before)?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            self.dir.rename(PASSING, name)
        };
        write().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidFilename => WriteError::Refused(id.clone(), format!("its name is too long: {error}")),
            _ => self.away(name, &error),
        })
    }

    fn away(&self, name: &str, error: &io::Error) -> WriteError {
        away(&self.path.join(name), error)
    }
}

// === impl Found ===

impl Found {
    fn revision(&self) -> Option<&Revision> {
        self.known.as_ref().map(|(_, revision)| revision)
    }

    /// The document with only what changed changed; none where that would not say what is wanted.
    fn merged(&self, id: &ObjectId, object: &Object) -> Option<String> {
        let (before, _) = self.known.as_ref()?;
        let there: Value = serde_yaml_ng::from_str(&self.text[self.range.clone()]).ok()?;
        let merged = merge(there, Some(&decode::encode(id, before)), &decode::encode(id, object));
        let text = serde_yaml_ng::to_string(&merged).ok()?;
        says(&text, id, object).then_some(text)
    }

    /// The file with another document in this one's place; comments before it stay.
    fn splice(&self, document: &str) -> String {
        let Range { start, end } = self.range;
        let body = &self.text[start..end];
        let is_comment = |line: &&str| line.trim().is_empty() || line.starts_with('#');
        let comments: usize = body.split_inclusive('\n').take_while(is_comment).map(str::len).sum();
        let before = &self.text[..start + comments];
        let newline = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        format!("{before}{newline}{document}{}", &self.text[end..])
    }

    /// The file without this document.
    fn cut_out(&self) -> String {
        let Range { start, end } = self.range;
        let before = &self.text[..start];
        format!("{}{}", before.strip_suffix("---").unwrap_or(before), &self.text[end..])
    }
}

/// Where a text holds the object first. A file with the object's own name that cannot be read holds it as a whole.
fn place(id: &ObjectId, name: &Arc<str>, text: String, own: bool) -> Option<Found> {
    let name_alone = id.name.rsplit('/').next().expect("a split has a last part");
    if !own && !text.contains(name_alone) {
        return None;
    }
    let mut unsure = text.is_empty();
    let place = decode::documents(name, &text).into_iter().find_map(|document| match document {
        Ok(document) if document.id == *id => {
            let revision = decode::revision(id, &document.object);
            Some((document.range, Some((document.object, revision))))
        }
        Err(refused) if refused.id.as_ref() == Some(id) => Some((refused.range, None)),
        Err(refused) => {
            unsure |= refused.unsure;
            None
        }
        Ok(_) => None,
    });
    let whole = (own && unsure).then_some((0..text.len(), None));
    let (range, known) = place.or(whole)?;
    Some(Found { file: name.clone(), text, range, known })
}

fn says(text: &str, id: &ObjectId, object: &Object) -> bool {
    matches!(decode::documents("", text).as_slice(), [Ok(document)] if document.id == *id && document.object == *object)
}

/// The file the store keeps an object in. A namespace holds no dot, so that two objects never share one.
fn own_name(id: &ObjectId) -> String {
    format!(
        "{}.{}.yaml",
        id.kind.as_str().to_lowercase(),
        id.name.replacen('/', ".", usize::from(id.kind.is_namespaced()))
    )
}

/// Whether the name is like those that the store gives to objects' files. It may be a user's file all the same.
fn is_of_an_object(name: &str) -> bool {
    Kind::ALL.iter().any(|kind| {
        name.strip_suffix(".yaml")
            .and_then(|name| name.strip_prefix(&kind.as_str().to_lowercase()))
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn away(path: &Path, error: &io::Error) -> WriteError {
    WriteError::Away(format!("{}: {error}", path.display()))
}
