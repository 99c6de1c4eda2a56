//! The store that lives in memory, for tests: several watchers, and everything that can go wrong on demand.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use tartan_model::{Condition, Kind, Node, Object, ObjectId, Placement, Revision, StoreEvent};
use tokio::sync::mpsc;

use crate::{BoxFuture, BoxStream, Expect, Store, Word, WriteError, decode};

/// A store in memory; clones are handles on the same one.
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<ObjectId, Held>,
    watchers: Vec<Watcher>,
    away: Option<String>,
    conflicts: usize,
    writes: u64,
    diagnoses: BTreeMap<ObjectId, Vec<Condition>>,
}

struct Held {
    object: Object,
    revision: Revision,
    /// Why it cannot be read, while it cannot.
    spoiled: Option<Condition>,
}

struct Watcher {
    kinds: Vec<Kind>,
    out: mpsc::UnboundedSender<StoreEvent>,
}

/// The reading end of a watch.
struct Watch(mpsc::UnboundedReceiver<StoreEvent>);

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// From now on the store cannot be reached.
    pub fn go_away(&self, why: &str) {
        let mut inner = self.lock();
        inner.away = Some(why.to_owned());
        inner.tell_all(|_| Some(StoreEvent::Away(None, why.to_owned())));
    }

    /// It can be reached again; every watcher is told everything anew.
    pub fn come_back(&self) {
        let mut inner = self.lock();
        inner.away = None;
        let Inner { objects, watchers, .. } = &mut *inner;
        watchers.retain(|watcher| watcher.list(objects));
    }

    /// The next `count` writes find that somebody else was faster.
    pub fn conflict(&self, count: usize) {
        self.lock().conflicts = count;
    }

    /// An object's document can no longer be read.
    pub fn spoil(&self, id: &ObjectId, condition: Condition) {
        let mut inner = self.lock();
        if let Some(held) = inner.objects.get_mut(id) {
            held.spoiled = Some(condition);
            inner.tell_of(id);
        }
    }

    /// It can be read again.
    pub fn mend(&self, id: &ObjectId) {
        let mut inner = self.lock();
        if let Some(held) = inner.objects.get_mut(id) {
            held.spoiled = None;
            inner.tell_of(id);
        }
    }

    /// Takes an object away behind everybody's back: watchers are told only if the store is not away.
    pub fn vanish(&self, id: &ObjectId) {
        let mut inner = self.lock();
        if inner.objects.remove(id).is_some() {
            inner.tell_of(id);
        }
    }

    /// What is there.
    pub fn get(&self, id: &ObjectId) -> Option<(Object, Revision)> {
        self.lock().objects.get(id).map(|held| (held.object.clone(), held.revision.clone()))
    }

    /// How many writes changed something so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// What was told last to be wrong with an object, if anything was told.
    pub fn diagnosis(&self, of: &ObjectId) -> Option<Vec<Condition>> {
        self.lock().diagnoses.get(of).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is whole before anything that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn watch(&self, kinds: &[Kind]) -> BoxStream<'static, StoreEvent> {
        let (out, events) = mpsc::unbounded_channel();
        let watcher = Watcher { kinds: kinds.to_vec(), out };
        let mut inner = self.lock();
        let open = match &inner.away {
            Some(why) => watcher.out.send(StoreEvent::Away(None, why.clone())).is_ok(),
            None => watcher.list(&inner.objects),
        };
        if open {
            inner.watchers.push(watcher);
        }
        Box::pin(Watch(events))
    }

    fn put(&self, id: ObjectId, object: Object, expect: Expect) -> BoxFuture<'_, Result<Revision, WriteError>> {
        Box::pin(async move { self.lock().put(id, object, &expect) })
    }

    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move { self.lock().delete(&id, &expect) })
    }

    fn tell(&self, about: ObjectId, word: Word) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move { self.lock().tell(about, word) })
    }
}

/// The Node as a word about it leaves it.
fn told(there: &Node, word: &Word) -> Node {
    let mut node = there.clone();
    match word {
        Word::Available(word) => {
            let startup_taint = there.placement.startup_taint && !word.available;
            node.placement = Placement { unavailable: Some(!word.available), startup_taint };
        }
        Word::Annotated(word) => {
            for (key, value) in &word.values {
                match value {
                    Some(value) => node.annotations.insert((*key).to_owned(), value.clone()),
                    None => node.annotations.remove(*key),
                };
            }
        }
        Word::Diagnosis(_) | Word::Trouble { .. } => {}
    }
    node
}

// === impl Inner ===

impl Inner {
    fn tell(&mut self, about: ObjectId, word: Word) -> Result<(), WriteError> {
        if let Some(why) = &self.away {
            return Err(WriteError::Away(why.clone()));
        }
        let of_uid = match &word {
            Word::Diagnosis(conditions) => {
                self.diagnoses.insert(about, conditions.clone());
                return Ok(());
            }
            Word::Trouble { .. } => return Ok(()),
            Word::Available(word) => &word.node_uid,
            Word::Annotated(word) => &word.node_uid,
        };
        let Some(Object::Node(there)) = self.objects.get(&about).map(|held| &held.object) else { return Ok(()) };
        if there.uid != *of_uid {
            return Err(WriteError::Conflict(about));
        }
        let node = told(there, &word);
        self.put(about, Object::Node(node.into()), &Expect::Any).map(drop)
    }

    fn put(&mut self, id: ObjectId, object: Object, expect: &Expect) -> Result<Revision, WriteError> {
        crate::written(&id, &object)?;
        self.check(&id, expect)?;
        let revision = decode::revision(&id, &object);
        let held = Held { object, revision: revision.clone(), spoiled: None };
        let before = self.objects.insert(id.clone(), held);
        if before.is_none_or(|before| before.revision != revision || before.spoiled.is_some()) {
            self.writes += 1;
            self.tell_of(&id);
        }
        Ok(revision)
    }

    fn delete(&mut self, id: &ObjectId, expect: &Expect) -> Result<(), WriteError> {
        self.check(id, expect)?;
        if self.objects.remove(id).is_some() {
            self.writes += 1;
            self.tell_of(id);
        }
        Ok(())
    }

    fn check(&mut self, id: &ObjectId, expect: &Expect) -> Result<(), WriteError> {
        if let Some(why) = &self.away {
            return Err(WriteError::Away(why.clone()));
        }
        if self.conflicts > 0 {
            self.conflicts -= 1;
            return Err(WriteError::Conflict(id.clone()));
        }
        let revision = |held: &Held| held.spoiled.is_none().then(|| held.revision.clone());
        let there = self.objects.get(id).map(revision);
        crate::check(id, expect, there.as_ref().map(Option::as_ref))
    }

    fn tell_of(&mut self, id: &ObjectId) {
        if self.away.is_some() {
            return;
        }
        let event = match self.objects.get(id) {
            Some(held) => held.event(id),
            None => StoreEvent::Delete(id.clone()),
        };
        self.tell_all(|watcher| watcher.kinds.contains(&id.kind).then(|| event.clone()));
    }

    fn tell_all(&mut self, event: impl Fn(&Watcher) -> Option<StoreEvent>) {
        self.watchers.retain(|watcher| event(watcher).is_none_or(|event| watcher.out.send(event).is_ok()));
    }
}

// === impl Watcher ===

impl Watcher {
    /// Tells everything; false when nobody listens any more.
    fn list(&self, objects: &BTreeMap<ObjectId, Held>) -> bool {
        let wanted = objects.iter().filter(|(id, _)| self.kinds.contains(&id.kind));
        let inits = self.kinds.iter().map(|kind| StoreEvent::Init(*kind));
        let syncs = self.kinds.iter().map(|kind| StoreEvent::Synced(*kind));
        let mut events = inits.chain(wanted.map(|(id, held)| held.event(id))).chain(syncs);
        events.all(|event| self.out.send(event).is_ok())
    }
}

impl Held {
    fn event(&self, id: &ObjectId) -> StoreEvent {
        match &self.spoiled {
            None => StoreEvent::Put(id.clone(), self.object.clone(), self.revision.clone()),
            Some(condition) => StoreEvent::Invalid(id.clone(), condition.clone().into()),
        }
    }
}

impl Stream for Watch {
    type Item = StoreEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StoreEvent>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::{self, Rig};

    impl Rig for MemoryStore {
        fn store(&self) -> Arc<dyn Store> {
            Arc::new(self.clone())
        }

        fn go_away(&self) {
            self.go_away("gone for a walk");
        }

        fn come_back(&self) {
            self.come_back();
        }

        fn vanish(&self, id: &ObjectId) {
            self.vanish(id);
        }

        fn spoil(&self, id: &ObjectId) {
            self.spoil(id, conformance::spoiled(id));
        }

        fn mend(&self, id: &ObjectId) {
            self.mend(id);
        }
    }

    #[tokio::test]
    async fn conforms() {
        conformance::conformance(MemoryStore::new).await;
    }

    #[tokio::test]
    async fn conflicts_on_demand() {
        let store = MemoryStore::new();
        let (id, pool) = conformance::pool("a", 1);
        store.conflict(2);
        for _ in 0..2 {
            let lost = store.put(id.clone(), pool.clone(), Expect::Absent).await;
            assert_eq!(lost, Err(WriteError::Conflict(id.clone())));
        }
        assert!(store.put(id, pool, Expect::Absent).await.is_ok());
        assert_eq!(store.writes(), 1);
    }
}
