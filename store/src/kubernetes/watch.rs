//! One kind, listed and then followed, for as long as somebody listens.
//!
//! ```text
//!     list, page by page ──► follow from the list's version ──► follow from where it ended   (ended in order, broken,
//!      ▲ ▲                                │      │                                            nobody there: away)
//!      │ └──────── version too old ───────┘      └── refused: away
//!      └─ back-off ◄── away ◄─────────────────────────────┘
//! ```
//!
//! Invariants: after `Away` a whole list follows, or `Synced` and all that was missed; a list that fails half-way is begun
//! again with `Init`; a list is never older than what was told before (`resourceVersionMatch=NotOlderThan`), so no object
//! comes and goes because another API server is behind.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tartan_model::{Kind, ObjectId, Revision, StoreEvent};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::backoff::{Backoff, spread};
use super::client::{ANSWER, Client, Trouble, unreadable};
use super::discovery::Discovery;
use super::{ORIGIN, collection, selector};
use crate::decode;

/// Objects of one page at first: some MiB where objects are as large as Nodes. Anyone may make larger ones.
const PAGE: usize = 250;
/// How long the API server is asked to keep a watch open, at random, so that agents do not come back together.
const OPEN: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(600));
/// A watch that ends sooner than this has not worked.
const WORKED: Duration = Duration::from_secs(1);
/// Far above one object.
const LONGEST_LINE: usize = 16 << 20;
/// A list can be forgotten before its end; as often as this in a row it is no accident.
const OFTEN: u32 = 3;

/// The reading end of all watches.
pub(super) struct Events(pub(super) mpsc::Receiver<StoreEvent>);

/// Nobody listens any more.
struct Unheard;

/// How a watch ended.
enum End {
    /// In order, or broken off: it can be gone on with.
    Over,
    /// What it should have gone on from is forgotten: list again.
    TooOld,
}

/// Why there is no list.
enum NoList {
    /// The API server has no such path.
    Absent,
    TooOld,
    Trouble(Trouble),
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: ListMeta,
    /// None, or null, where a server in Go has a slice with nothing in it.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    rest: String,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    what: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    resource_version: String,
}

// === impl Meta ===

impl Meta {
    /// As an [`ObjectId`] has it.
    fn name(&self, kind: Kind) -> Arc<str> {
        if kind.is_namespaced() {
            format!("{}/{}", self.namespace, self.name).into()
        } else {
            self.name.as_str().into()
        }
    }
}

struct Follower {
    client: Arc<Client>,
    discovery: Arc<Discovery>,
    kind: Kind,
    out: mpsc::Sender<StoreEvent>,
    backoff: Backoff,
    /// Objects that are asked for at once.
    page: usize,
    /// The latest version of the collection that was heard of.
    version: Option<String>,
    /// What was last told of each object; none: that it cannot be read.
    told: BTreeMap<Arc<str>, Option<Revision>>,
    /// Away was said, and neither a list nor a watch has come since.
    away: bool,
    /// Lists in a row whose rest the API server had forgotten.
    forgotten: u32,
}

/// Follows a kind until nobody listens.
pub(super) async fn follow(client: Arc<Client>, discovery: Arc<Discovery>, kind: Kind, out: mpsc::Sender<StoreEvent>) {
    let closed = out.clone();
    let follower = Follower {
        client,
        discovery,
        kind,
        out,
        backoff: Backoff::default(),
        page: PAGE,
        version: None,
        told: BTreeMap::new(),
        away: false,
        forgotten: 0,
    };
    tokio::select! {
        _unheard = follower.run() => {}
        () = closed.closed() => {}
    }
}

// === impl Follower ===

impl Follower {
    async fn run(mut self) -> Result<(), Unheard> {
        loop {
            let mark = self.discovery.mark();
            match self.list().await? {
                Ok(()) => {
                    self.forgotten = 0;
                    if let Some(trouble) = self.watches().await? {
                        self.trouble(trouble).await?;
                    }
                }
                Err(NoList::Absent) => match self.discovery.confirm_absent(collection(self.kind)).await {
                    Ok(()) => {
                        self.nothing().await?;
                        self.discovery.changed_since(&mark).await;
                    }
                    Err(trouble) => self.trouble(trouble).await?,
                },
                Err(NoList::TooOld) => {
                    self.version = None;
                    self.forgotten += 1;
                    if self.forgotten < OFTEN {
                        pause(self.backoff.next()).await;
                    } else {
                        self.trouble(Trouble::Away("the API server finishes no list".into())).await?;
                    }
                }
                Err(NoList::Trouble(trouble)) => self.trouble(trouble).await?,
            }
        }
    }

    /// Watch after watch. What ended them, if it was trouble.
    async fn watches(&mut self) -> Result<Option<Trouble>, Unheard> {
        loop {
            let (since, was_away) = (Instant::now(), self.away);
            let end = match self.watch().await? {
                Ok(end) => end,
                // A thousand agents that list again are what an API server that is just back can do without.
                Err(trouble) if trouble.says_nothing() => {
                    self.trouble(trouble).await?;
                    continue;
                }
                Err(trouble) => return Ok(Some(trouble)),
            };
            if matches!(end, End::TooOld) && was_away {
                self.goes_away("what was missed while it was away is forgotten, and all is listed again").await?;
            }
            match since.elapsed() > WORKED {
                true => self.backoff.reset(),
                false => pause(self.backoff.next()).await,
            }
            if matches!(end, End::TooOld) {
                return Ok(None);
            }
        }
    }

    async fn trouble(&mut self, trouble: Trouble) -> Result<(), Unheard> {
        self.goes_away(trouble).await?;
        pause(self.backoff.next()).await;
        Ok(())
    }

    /// Told once.
    async fn goes_away(&mut self, why: impl Display) -> Result<(), Unheard> {
        if std::mem::replace(&mut self.away, true) {
            return Ok(());
        }
        self.tell(StoreEvent::Away(Some(self.kind), format!("{}: {why}", self.kind))).await
    }

    /// A kind that is not installed is known whole, and empty.
    async fn nothing(&mut self) -> Result<(), Unheard> {
        self.begin().await?;
        self.version = None;
        self.tell(StoreEvent::Synced(self.kind)).await
    }

    async fn begin(&mut self) -> Result<(), Unheard> {
        self.away = false;
        self.told.clear();
        self.tell(StoreEvent::Init(self.kind)).await
    }

    async fn list(&mut self) -> Result<Result<(), NoList>, Unheard> {
        let mut rest = String::new();
        let mut begun = false;
        loop {
            let page = match self.client.request(Method::GET, &self.list_path(&rest), None).await {
                Ok(page) => page,
                Err(Trouble::TooLong) if self.page > 1 => {
                    self.page /= 2;
                    continue;
                }
                Err(trouble) => return Ok(Err(NoList::from(trouble))),
            };
            let page: Page<'_> = match serde_json::from_slice(&page) {
                Ok(page) => page,
                Err(error) => return Ok(Err(NoList::Trouble(unreadable(collection(self.kind), &error)))),
            };
            if !std::mem::replace(&mut begun, true) {
                self.begin().await?;
            }
            for item in page.items.into_iter().flatten() {
                self.object(item.get()).await?;
            }
            rest = page.metadata.rest;
            if rest.is_empty() {
                self.version = Some(page.metadata.resource_version);
                self.tell(StoreEvent::Synced(self.kind)).await?;
                return Ok(Ok(()));
            }
        }
    }

    fn list_path(&self, rest: &str) -> String {
        let path = format!("{}?{}limit={}", collection(self.kind), selector(self.kind), self.page);
        match (&self.version, rest) {
            (Some(version), "") => format!("{path}&resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
            (None, "") => path,
            (_, rest) => format!("{path}&continue={rest}"),
        }
    }

    async fn watch(&mut self) -> Result<Result<End, Trouble>, Unheard> {
        let version = self.version.clone().unwrap_or_default();
        if self.away
            && let Err(trouble) = self.client.request(Method::GET, &self.probe_path(&version), None).await
        {
            return Ok(match NoList::from(trouble) {
                NoList::Trouble(trouble) => Err(trouble),
                NoList::Absent | NoList::TooOld => {
                    self.version = None;
                    Ok(End::TooOld)
                }
            });
        }
        let open = spread(OPEN.0, OPEN.1);
        let path = format!(
            "{}?{}watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={}",
            collection(self.kind),
            selector(self.kind),
            open.as_secs()
        );
        match self.client.stream(&path).await {
            Ok(body) => {
                if std::mem::take(&mut self.away) {
                    self.tell(StoreEvent::Synced(self.kind)).await?;
                }
                // Who answers pings and has forgotten the watch would be listened to for ever.
                self.frames(body, tokio::time::Instant::now() + open + ANSWER).await.map(Ok)
            }
            Err(Trouble::Status { code: StatusCode::GONE | StatusCode::NOT_FOUND, .. }) => Ok(Ok(End::TooOld)),
            Err(trouble) => Ok(Err(trouble)),
        }
    }

    /// A list of one, which an API server that was set back (its etcd restored) refuses; a watch it would leave silent until
    /// it gets there again.
    fn probe_path(&self, version: &str) -> String {
        let (collection, selector) = (collection(self.kind), selector(self.kind));
        format!("{collection}?{selector}limit=1&resourceVersion={version}&resourceVersionMatch=NotOlderThan")
    }

    /// Lines of JSON, one an event.
    async fn frames(&mut self, mut body: Incoming, until: tokio::time::Instant) -> Result<End, Unheard> {
        let mut buffer: Vec<u8> = Vec::new();
        while let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await {
            let Ok(data) = frame.into_data() else { continue };
            // Only what is new can hold the end of a line.
            let mut searched = buffer.len();
            buffer.extend_from_slice(&data);
            while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=searched + at).collect();
                searched = 0;
                match self.frame(&line).await? {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            }
            if buffer.len() > LONGEST_LINE {
                return Ok(End::TooOld);
            }
        }
        Ok(End::Over)
    }

    async fn frame(&mut self, line: &[u8]) -> Result<Option<End>, Unheard> {
        // What follows a line that is none cannot be trusted: a list can.
        let Ok(Frame { what, object }) = serde_json::from_slice(line) else { return Ok(Some(End::TooOld)) };
        let Ok(Header { metadata }) = serde_json::from_str(object.get()) else { return Ok(Some(End::TooOld)) };
        match what {
            "ADDED" | "MODIFIED" => self.object(object.get()).await?,
            "DELETED" => self.deleted(metadata.name(self.kind)).await?,
            "BOOKMARK" => {}
            // 410, or whatever else the API server cannot go on after.
            _ => return Ok(Some(End::TooOld)),
        }
        self.version = Some(metadata.resource_version);
        Ok(None)
    }

    /// Tells what an object is, unless that is what was told last. No selector leaves out namespaces: of what is called as
    /// Flannel's ConfigMap is, only that one is an object of ours.
    async fn object(&mut self, json: &str) -> Result<(), Unheard> {
        let Ok(Header { metadata }) = serde_json::from_str(json) else { return Ok(()) };
        let name = metadata.name(self.kind);
        if self.kind == Kind::ConfigMap && !decode::is_flannels(&name) {
            return Ok(());
        }
        let id = ObjectId { kind: self.kind, name: name.clone() };
        match decode::from_json(&id, ORIGIN, json) {
            Ok(object) => {
                let revision = decode::revision(&id, &object);
                let before = self.told.insert(name, Some(revision.clone()));
                if before == Some(Some(revision.clone())) {
                    return Ok(());
                }
                self.tell(StoreEvent::Put(id, object, revision)).await
            }
            Err(condition) => {
                self.told.insert(name, None);
                self.tell(StoreEvent::Invalid(id, condition.into())).await
            }
        }
    }

    async fn deleted(&mut self, name: Arc<str>) -> Result<(), Unheard> {
        match self.told.remove(&name) {
            Some(_) => self.tell(StoreEvent::Delete(ObjectId { kind: self.kind, name })).await,
            None => Ok(()),
        }
    }

    async fn tell(&self, event: StoreEvent) -> Result<(), Unheard> {
        self.out.send(event).await.map_err(|_| Unheard)
    }
}

impl From<Trouble> for NoList {
    fn from(trouble: Trouble) -> NoList {
        match trouble {
            Trouble::Status { code: StatusCode::NOT_FOUND, .. } => NoList::Absent,
            // The rest of the list is forgotten; or the API server has been set back to before what we know.
            Trouble::Status { code: StatusCode::GONE | StatusCode::GATEWAY_TIMEOUT, .. } => NoList::TooOld,
            trouble => NoList::Trouble(trouble),
        }
    }
}

async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}

impl Stream for Events {
    type Item = StoreEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StoreEvent>> {
        self.0.poll_recv(cx)
    }
}
