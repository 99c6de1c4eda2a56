//! Where shared state lives: one trait, and one file for each store that implements it.
//!
//! Invariant: a watch never ends and never forgets. It reconnects inside; each list or relist is `Init`, `Put`s,
//! `Synced`; what cannot be read is reported and removes nothing. All writes have one order, the same for every watcher:
//! who is told of one has been told of all before it, or is at the same [`StoreEvent::Moment`]. The change of a fabric
//! stands on that: of two nodes that have each heard their own word, one has heard the other's.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use tartan_model::{Annotations, Availability, Condition, Kind, Object, ObjectId, Revision, StoreEvent};

pub mod decode;
pub mod file;
pub mod kubernetes;
pub mod memory;

#[cfg(test)]
mod conformance;

pub use file::FileStore;
pub use kubernetes::KubernetesStore;
pub use memory::MemoryStore;

/// A future on the heap, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A stream on the heap.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// Where shared state lives.
pub trait Store: Send + Sync {
    /// Everything of these kinds, now and from now on. A kind that the store does not know is listed, and empty.
    fn watch(&self, kinds: &[Kind]) -> BoxStream<'static, StoreEvent>;
    /// Writes an object if what is there is as expected. If the future is dropped, the write may still happen, but then
    /// before every write that begins later.
    fn put(&self, id: ObjectId, object: Object, expect: Expect) -> BoxFuture<'_, Result<Revision, WriteError>>;
    /// Deletes an object if what is there is as expected. That it is gone already is success unless `At` was expected.
    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>>;
    /// Tells others than Tartan something about an object, where they look for it. In most stores nobody looks.
    fn tell(&self, _about: ObjectId, _word: Word) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Something about an object that is no part of what Tartan writes into objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// Whether a Node's network is there, for those who place pods. Once it is, the Node's startup taint goes.
    Available(Availability),
    /// What a Node's annotations are to say.
    Annotated(Annotations),
    /// What is wrong with an object, for its owner; nothing, if that list is empty.
    Diagnosis(Vec<Condition>),
    /// What a node says is wrong with it, for who looks at its Node. Told of a NodeNetwork, whose condition of that type has
    /// the words.
    Trouble {
        /// The condition's type.
        reason: Arc<str>,
        /// As its condition has it.
        since: Arc<str>,
    },
}

/// What a write expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such object.
    Absent,
    /// This state of it.
    At(Revision),
    /// Anything.
    Any,
}

/// Why a write did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// What is there is not what was expected: look again, then decide again.
    #[error("{0} has been changed by somebody else in the meantime")]
    Conflict(ObjectId),
    /// The store cannot be reached or cannot write now; trying again may help.
    #[error("store: {0}")]
    Away(String),
    /// The store will never take this.
    #[error("{0} was refused: {1}")]
    Refused(ObjectId, String),
}

/// What a write must find there, for every store alike; `there` is none where nothing is, and holds none where what is
/// there cannot be read.
fn check(id: &ObjectId, expect: &Expect, there: Option<Option<&Revision>>) -> Result<(), WriteError> {
    let as_expected = match (expect, there) {
        (Expect::Any, _) | (Expect::Absent, None) => true,
        (Expect::Absent, Some(_)) | (Expect::At(_), None) => false,
        (Expect::At(revision), Some(there)) => there == Some(revision),
    };
    if as_expected { Ok(()) } else { Err(WriteError::Conflict(id.clone())) }
}

/// The document of an object, once it is certain that it can be read back as the same.
fn written(id: &ObjectId, object: &Object) -> Result<String, WriteError> {
    let text = serde_yaml_ng::to_string(&decode::encode(id, object)).expect("documents are maps with text keys");
    match decode::documents("the object", &text).as_slice() {
        [Ok(document)] if document.id == *id && document.object == *object => Ok(text),
        [Err(refused)] => Err(WriteError::Refused(id.clone(), refused.condition.message.clone())),
        _ => Err(WriteError::Refused(id.clone(), "it would be read back as another object".to_owned())),
    }
}
