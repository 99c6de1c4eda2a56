//! For tests: a store that takes writes and never answers them, or refuses them.

use std::sync::{Mutex, PoisonError};

use tartan_model::{Kind, Object, ObjectId, Revision, StoreEvent};
use tartan_store::{BoxFuture, BoxStream, Expect, MemoryStore, Store, Word, WriteError};

/// Never answers writes to one kind, for a while, or refuses them.
pub(crate) struct Hanging {
    store: MemoryStore,
    kind: Mutex<Option<Kind>>,
    refuses: bool,
}

impl Hanging {
    pub(crate) fn at(store: &MemoryStore, kind: Kind) -> Hanging {
        Hanging { store: store.clone(), kind: Mutex::new(Some(kind)), refuses: false }
    }

    pub(crate) fn refusing(store: &MemoryStore, kind: Kind) -> Hanging {
        Hanging { refuses: true, ..Hanging::at(store, kind) }
    }

    pub(crate) fn answer_again(&self) {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn stuck<T: Send + 'static>(&self, id: ObjectId) -> BoxFuture<'_, Result<T, WriteError>> {
        if self.refuses {
            return Box::pin(std::future::ready(Err(WriteError::Refused(id, "a webhook says no".into()))));
        }
        Box::pin(std::future::pending())
    }

    fn hangs(&self, id: &ObjectId) -> bool {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) == Some(id.kind)
    }
}

impl Store for Hanging {
    fn watch(&self, kinds: &[Kind]) -> BoxStream<'static, StoreEvent> {
        self.store.watch(kinds)
    }

    fn put(&self, id: ObjectId, object: Object, expect: Expect) -> BoxFuture<'_, Result<Revision, WriteError>> {
        if self.hangs(&id) { self.stuck(id) } else { self.store.put(id, object, expect) }
    }

    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>> {
        if self.hangs(&id) { self.stuck(id) } else { self.store.delete(id, expect) }
    }

    fn tell(&self, about: ObjectId, word: Word) -> BoxFuture<'_, Result<(), WriteError>> {
        if self.hangs(&about) { self.stuck(about) } else { self.store.tell(about, word) }
    }
}
