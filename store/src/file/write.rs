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
    dir: PathBuf,
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
    pub(super) fn try_lock(dir: &Path) -> Result<Option<Locked>, WriteError> {
        let path = dir.join(LOCK);
        let open = || File::options().create(true).append(true).open(&path);
        let lock = open().map_err(|error| away(&path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(away(&path, &error)),
        }
        // Another directory may have come in its place since.
        let still = lock.metadata().and_then(|ours| Ok(Identity::of(&ours) == Identity::of(&fs::metadata(&path)?)));
        Ok(still.unwrap_or(false).then(|| Locked { dir: dir.to_owned(), _lock: lock }))
    }

    pub(super) fn put(&self, id: &ObjectId, object: &Object, expect: &Expect) -> Result<Revision, WriteError> {
        let plain = crate::written(id, object)?;
        let revision = decode::revision(id, object);
        let found = self.find(id)?.into_iter().next();
        crate::check(id, expect, found.as_ref().map(Found::revision))?;
        let Some(found) = found else {
            let own = own_name(id);
            if self.dir.join(&own).exists() {
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
        let mut found = self.find(id)?.into_iter().next();
        crate::check(id, expect, found.as_ref().map(Found::revision))?;
        while let Some(place) = found {
            let rest = place.cut_out();
            if decode::documents(&place.file, &rest).is_empty() {
                let path = self.dir.join(&*place.file);
                fs::remove_file(&path).map_err(|error| away(&path, &error))?;
            } else {
                self.replace(id, &place.file, &rest)?;
            }
            // It may be in a second place, which would count from now on.
            found = self.find(id)?.into_iter().next();
        }
        Ok(())
    }

    /// Every place that holds the object; the first counts.
    fn find(&self, id: &ObjectId) -> Result<Vec<Found>, WriteError> {
        let own = own_name(id);
        let mut found = Vec::new();
        for name in Directory::open(&self.dir).and_then(|dir| dir.names()).map_err(|error| away(&self.dir, &error))? {
            if *name != *own && is_others(&name) {
                continue;
            }
            let path = self.dir.join(&*name);
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(away(&path, &error)),
            };
            found.extend(places(id, &name, &String::from_utf8_lossy(&bytes), *name == *own));
        }
        Ok(found)
    }

    fn replace(&self, id: &ObjectId, name: &str, text: &str) -> Result<(), WriteError> {
        let path = self.dir.join(name);
        let before = fs::symlink_metadata(&path).ok();
        if before.as_ref().is_some_and(fs::Metadata::is_symlink) {
            let why = format!("{} is a symbolic link; change the file it leads to", path.display());
            return Err(WriteError::Refused(id.clone(), why));
        }
        let passing = self.dir.join(PASSING);
        let write = || -> io::Result<()> {
            let mut file = File::create(&passing)?;
            if let Some(before) = &before {
                file.set_permissions(before.permissions())?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&passing, &path)
        };
        write().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidFilename => WriteError::Refused(id.clone(), format!("its name is too long: {error}")),
            _ => away(&path, &error),
        })
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

/// Where a text holds the object. A file with the object's own name that cannot be read holds it as a whole.
fn places(id: &ObjectId, name: &Arc<str>, text: &str, own: bool) -> Vec<Found> {
    let found = |range: Range<usize>, known: Option<(Object, Revision)>| Found {
        file: name.clone(),
        text: text.to_owned(),
        range,
        known,
    };
    let name_alone = id.name.rsplit('/').next().expect("a split has a last part");
    if !own && !text.contains(name_alone) {
        return Vec::new();
    }
    let mut places = Vec::new();
    let mut unsure = text.is_empty();
    for document in decode::documents(name, text) {
        match document {
            Ok(document) if document.id == *id => {
                let revision = decode::revision(id, &document.object);
                places.push(found(document.range, Some((document.object, revision))));
            }
            Err(refused) if refused.id.as_ref() == Some(id) => places.push(found(refused.range, None)),
            Err(refused) => unsure |= refused.unsure,
            Ok(_) => {}
        }
    }
    if own && unsure && places.is_empty() {
        places.push(found(0..text.len(), None));
    }
    places
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

/// Whether the name is one the store gives to the file of an object: such a file is looked into for that object only.
fn is_others(name: &str) -> bool {
    Kind::ALL.iter().any(|kind| {
        name.strip_suffix(".yaml")
            .and_then(|name| name.strip_prefix(&kind.as_str().to_lowercase()))
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn away(path: &Path, error: &io::Error) -> WriteError {
    WriteError::Away(format!("{}: {error}", path.display()))
}
