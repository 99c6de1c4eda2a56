//! The store that is a directory of YAML: the embedded default, shared by every process of a machine.
//!
//! ```text
//!     pools.yaml             a user's: any number of documents      ┐ every *.yaml and *.yml is read,
//!     networkconfig.default.yaml   the store's: one object each     ┘ in the order of the names
//!     .lock                  flocked by whoever writes
//!     .tartan.tmp            becomes a file by rename, only under the lock
//! ```
//!
//! Invariants: a file is replaced whole or not at all; a file that cannot be read whole takes nothing away; of two files
//! with one object the first by name counts. A write looks and replaces under one lock, so that of several that expect
//! the same state one wins. An object in a user's file is changed in place there: keys we do not know, other documents
//! and the comments before the document stay; comments inside it do not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tartan_model::{Kind, Object, ObjectId, Revision, StoreEvent};
use tokio::time::Instant;

use self::directory::Directory;
use self::write::Locked;
use crate::{BoxFuture, BoxStream, Expect, Store, WriteError};

mod directory;
mod merge;
mod view;
mod watch;
mod write;

const PATIENCE: Duration = Duration::from_secs(5);
/// How long until it looks at the lock again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A directory of YAML. Its futures need a tokio runtime with time.
#[derive(Clone)]
pub struct FileStore {
    dir: Arc<Path>,
    /// One writer at a time in this process, so that only processes contend for the lock.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How long a write waits for others that hold the lock.
    patience: Duration,
}

impl FileStore {
    /// The store in a directory, which need not be there yet; while it is not, the store is away.
    pub fn new(dir: impl Into<PathBuf>) -> FileStore {
        let dir = dir.into();
        // What leads to it is watched, too: a relative path would lead elsewhere after a change of directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        FileStore { dir: dir.into(), turn: Arc::default(), patience: PATIENCE }
    }

    async fn locked<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Locked) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let _turn = self.turn.lock().await;
        let deadline = Instant::now() + self.patience;
        let locked = loop {
            let dir = self.dir.clone();
            match blocking(move || Locked::try_lock(&dir)).await? {
                Some(locked) => break locked,
                None if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                None => return Err(WriteError::Away(format!("{}: somebody holds the lock", self.dir.display()))),
            }
        };
        blocking(move || work(&locked)).await
    }
}

impl Store for FileStore {
    fn watch(&self, kinds: &[Kind]) -> BoxStream<'static, StoreEvent> {
        Box::pin(watch::start(self.dir.clone(), kinds))
    }

    fn put(&self, id: ObjectId, object: Object, expect: Expect) -> BoxFuture<'_, Result<Revision, WriteError>> {
        Box::pin(self.locked(move |locked| locked.put(&id, &object, &expect)))
    }

    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(self.locked(move |locked| locked.delete(&id, &expect)))
    }
}

/// Every file of a directory that is a store, read once: name and text, in the order in which they count.
pub fn texts(dir: &Path) -> io::Result<Vec<(String, String)>> {
    let dir = Directory::open(dir)?;
    let text = |name: &str| String::from_utf8(dir.read(name)?).map_err(io::Error::other);
    let read = |name: &Arc<str>| match text(name) {
        Ok(text) => Ok((name.to_string(), text)),
        Err(error) => Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
    };
    dir.names()?.iter().map(read).collect()
}

/// Whether a file of this name is read: YAML, and not hidden as editors' and our own passing files are.
fn is_document(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WriteError> + Send + 'static,
) -> Result<T, WriteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => Err(WriteError::Away(format!("the write was broken off: {ended}"))),
    }
}

#[cfg(test)]
mod tests;
