//! For tests: a store that takes writes and never answers them.

use std::sync::{Mutex, PoisonError};

use tartan_model::{Kind, Object, ObjectId, Revision, StoreEvent};
use tartan_store::{BoxFuture, BoxStream, Expect, MemoryStore, Store, Word, WriteError};

/// Never answers writes to one kind, for a while.
pub(crate) struct Hanging {
    store: MemoryStore,
    kind: Mutex<Option<Kind>>,
}

impl Hanging {
    pub(crate) fn at(store: &MemoryStore, kind: Kind) -> Hanging {
        Hanging { store: store.clone(), kind: Mutex::new(Some(kind)) }
    }

    pub(crate) fn answer_again(&self) {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        if self.hangs(&id) { Box::pin(std::future::pending()) } else { self.store.put(id, object, expect) }
    }

    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>> {
        if self.hangs(&id) { Box::pin(std::future::pending()) } else { self.store.delete(id, expect) }
    }

    fn tell(&self, about: ObjectId, word: Word) -> BoxFuture<'_, Result<(), WriteError>> {
        if self.hangs(&about) { Box::pin(std::future::pending()) } else { self.store.tell(about, word) }
    }
}
