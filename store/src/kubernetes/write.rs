//! Writes: look at what is there, check it against what was expected, write with the version that was looked at.
//!
//! Invariant: nothing is written over that was not looked at. Another's change in between makes the API server refuse,
//! and we look again; only what the caller expected decides whether that is a conflict.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tartan_model::{Kind, Object, ObjectId, Revision};

use super::client::{Client, Trouble};
use super::{ORIGIN, home};
use crate::{Expect, WriteError, decode};

/// How often we look again before we say that others write too much.
pub(super) const TRIES: usize = 16;

/// What writes.
pub(super) struct Writer {
    client: Arc<Client>,
    /// What the API server made of our own last writes. Who writes an object alone, as an agent its NodeNetwork, need
    /// not look first; if it was somebody else's turn, the version is refused.
    own: Mutex<BTreeMap<ObjectId, Found>>,
}

/// An object as the API server has it.
#[derive(Clone)]
struct Found {
    document: Map<String, Value>,
    /// None: it cannot be read.
    revision: Option<Revision>,
}

/// What became of one try.
pub(super) enum Done<T> {
    With(T),
    /// It was changed meanwhile.
    LookAgain,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(client: Arc<Client>) -> Writer {
        Writer { client, own: Mutex::default() }
    }

    pub(super) async fn put(&self, id: &ObjectId, object: &Object, expect: &Expect) -> Result<Revision, WriteError> {
        crate::written(id, object)?;
        if id.kind == Kind::Node {
            return Err(WriteError::Refused(id.clone(), "Nodes are the kubelet's to write".into()));
        }
        let revision = decode::revision(id, object);
        // That nothing needs to be written must be seen, not remembered.
        let own = self.remembered(id).filter(|own| own.revision.as_ref() != Some(&revision) && own.meets(id, expect));
        if let Some(own) = own
            && let Done::With(()) = self.replace(id, object, own).await?
        {
            return Ok(revision);
        }
        for _ in 0..TRIES {
            let there = self.look(id).await?;
            crate::check(id, expect, there.as_ref().map(|found| found.revision.as_ref()))?;
            let done = match there {
                Some(found) if found.revision.as_ref() == Some(&revision) => Done::With(()),
                Some(found) => self.replace(id, object, found).await?,
                None => self.create(id, object).await?,
            };
            if let Done::With(()) = done {
                return Ok(revision);
            }
        }
        Err(busy(id))
    }

    pub(super) async fn delete(&self, id: &ObjectId, expect: &Expect) -> Result<(), WriteError> {
        for _ in 0..TRIES {
            let there = self.look(id).await?;
            match crate::check(id, expect, there.as_ref().map(|found| found.revision.as_ref())) {
                // Gone already is success, unless a state of it was expected.
                Err(_) if there.is_none() && !matches!(expect, Expect::At(_)) => return Ok(()),
                checked => checked?,
            }
            let Some(found) = there else { return Ok(()) };
            let options = json!({"preconditions": {"resourceVersion": found.document["metadata"]["resourceVersion"]}});
            self.remember(id, None);
            match self.client.request(Method::DELETE, &path(id), Some(options.to_string())).await {
                Ok(_) => return Ok(()),
                Err(trouble) => settle::<()>(id, trouble)?,
            };
        }
        Err(busy(id))
    }

    async fn look(&self, id: &ObjectId) -> Result<Option<Found>, WriteError> {
        get(&self.client, id).await?.map(|body| Found::read(id, &body)).transpose()
    }

    async fn create(&self, id: &ObjectId, object: &Object) -> Result<Done<()>, WriteError> {
        self.send(Method::POST, &home(id).0, id, ours(id, object)).await
    }

    /// Our part in place of what was there of it; everything else stays.
    async fn replace(&self, id: &ObjectId, object: &Object, there: Found) -> Result<Done<()>, WriteError> {
        let Found { mut document, .. } = there;
        let mut new = ours(id, object);
        new.remove("metadata");
        document.append(&mut new);
        self.send(Method::PUT, &path(id), id, document).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        id: &ObjectId,
        document: Map<String, Value>,
    ) -> Result<Done<()>, WriteError> {
        match self.client.request(method, path, Some(Value::Object(document).to_string())).await {
            Ok(body) => {
                self.remember(id, Found::read(id, &body).ok());
                Ok(Done::With(()))
            }
            Err(trouble) => {
                self.remember(id, None);
                settle(id, trouble)
            }
        }
    }

    fn remembered(&self, id: &ObjectId) -> Option<Found> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn remember(&self, id: &ObjectId, found: Option<Found>) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Some(found) => own.insert(id.clone(), found),
            None => own.remove(id),
        };
    }
}

// === impl Found ===

impl Found {
    fn read(id: &ObjectId, body: &[u8]) -> Result<Found, WriteError> {
        let text = String::from_utf8_lossy(body);
        let document = document(id, text.as_bytes())?;
        let object = decode::from_json(id, ORIGIN, &text);
        Ok(Found { document, revision: object.ok().map(|object| decode::revision(id, &object)) })
    }

    fn meets(&self, id: &ObjectId, expect: &Expect) -> bool {
        crate::check(id, expect, Some(self.revision.as_ref())).is_ok()
    }
}

/// The object as it is there; none: it is not.
pub(super) async fn read(client: &Client, id: &ObjectId) -> Result<Option<Value>, WriteError> {
    get(client, id).await?.map(|body| document(id, &body)).transpose()
}

async fn get(client: &Client, id: &ObjectId) -> Result<Option<Bytes>, WriteError> {
    match client.request(Method::GET, &path(id), None).await {
        Ok(body) => Ok(Some(body)),
        Err(Trouble::Status { code: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(trouble) => Err(refused(id, trouble)),
    }
}

/// What the API server gives as that object.
pub(super) fn document<T: DeserializeOwned>(id: &ObjectId, body: &[u8]) -> Result<T, WriteError> {
    serde_json::from_slice(body)
        .map_err(|error| WriteError::Away(format!("the API server's {id} is not an object: {error}")))
}

/// The object's document, as a whole.
fn ours(id: &ObjectId, object: &Object) -> Map<String, Value> {
    match serde_json::to_value(decode::encode(id, object)) {
        Ok(Value::Object(document)) => document,
        other => unreachable!("documents are maps with text keys, not {other:?}"),
    }
}

/// What a failed write means: look again, or an error.
pub(super) fn settle<T>(id: &ObjectId, trouble: Trouble) -> Result<Done<T>, WriteError> {
    match trouble {
        // Changed, there already, or gone.
        Trouble::Status { code: StatusCode::CONFLICT, .. } => Ok(Done::LookAgain),
        Trouble::Status { code: StatusCode::NOT_FOUND, ref message } if message.contains(home(id).1) => {
            Ok(Done::LookAgain)
        }
        trouble => Err(refused(id, trouble)),
    }
}

/// What the API server says of one object, an admission policy or a namespace that is being deleted included, says nothing of
/// the next one.
pub(super) fn refused(id: &ObjectId, trouble: Trouble) -> WriteError {
    match trouble {
        Trouble::Status { code: StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST, message } => {
            WriteError::Refused(id.clone(), message)
        }
        Trouble::Status { code: StatusCode::FORBIDDEN, .. } => WriteError::Refused(id.clone(), trouble.to_string()),
        trouble => WriteError::Away(trouble.to_string()),
    }
}

pub(super) fn busy(id: &ObjectId) -> WriteError {
    WriteError::Away(format!("{id} was changed by others each of {TRIES} times we wanted to"))
}

pub(super) fn path(id: &ObjectId) -> String {
    let (collection, name) = home(id);
    format!("{collection}/{name}")
}
