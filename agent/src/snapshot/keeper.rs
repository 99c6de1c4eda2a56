//! The thread that keeps the snapshot up to date: latest World wins, no faster than the disk can bear.
//!
//! Invariant: who hands a World in never waits. What differs only in signs of life is not written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tartan_ipam::Fence;
use tartan_model::{Condition, World};

/// Between two looks at what came at least,
const REST: Duration = Duration::from_secs(1);
/// and so many times as long as the last one took.
const RESTS: u32 = 20;
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// The loop's end. The thread ends when this is dropped.
pub struct Keeper {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    fence: Fence,
    handed: World,
    number: u64,
    /// Why the disk does not take the latest.
    refused: Option<String>,
}

/// What the thread tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The snapshot with this number is on the disk.
    Saved(u64),
    /// It does not get there, for this reason. It is tried again.
    Refused(String),
}

#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    bell: Condvar,
}

#[derive(Default)]
struct News {
    /// Latest wins; with its number, and whether its arrival on the disk is waited for.
    world: Option<(u64, World, bool)>,
    stop: bool,
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    inbox: Arc<Inbox>,
    tell: Box<dyn Fn(Told) + Send>,
    /// What the file holds; none if it is not known to hold it.
    there: Option<World>,
    /// What was told last, if it was a refusal.
    refused: Option<String>,
}

/// Starts the thread. `fence` says what the file there gives out; `tell` is called on the thread.
pub fn spawn(path: &Path, fence: Fence, tell: impl Fn(Told) + Send + 'static) -> io::Result<Keeper> {
    let inbox = Arc::new(Inbox::default());
    let (path, tell) = (path.to_owned(), Box::new(tell));
    let writer = Writer { path: path.clone(), inbox: inbox.clone(), tell, there: None, refused: None };
    let thread = std::thread::Builder::new().name("snapshot".into()).spawn(move || writer.run())?;
    Ok(Keeper { inbox, thread: Some(thread), path, fence, handed: World::default(), number: 0, refused: None })
}

// === impl Keeper ===

impl Keeper {
    /// Wants this world on the disk, in which addresses are given out of these ranges. Only a whole one will do.
    pub fn want(&mut self, world: &World, gives: &[IpNet]) {
        if world.is_whole() && !is_shared(&self.handed, world) {
            self.number += 1;
            self.fence.handed(self.number, gives);
            self.handed = world.of_the_cluster();
            let waited_for = !self.fence.is_settled();
            self.inbox.lock().world = Some((self.number, self.handed.clone(), waited_for));
            self.inbox.bell.notify_one();
        }
    }

    /// The thread has told this.
    pub fn heard(&mut self, told: Told) {
        match told {
            Told::Saved(number) => {
                self.fence.saved(number);
                self.refused = None;
            }
            Told::Refused(why) => self.refused = Some(why),
        }
    }

    /// A disk that takes nothing.
    pub fn condition(&self) -> Option<Condition> {
        let (path, why) = (self.path.display(), self.refused.as_ref()?);
        Some(Condition {
            about: format!("NodeNetwork/{}", self.handed.local),
            field: String::new(),
            reason: "SnapshotNotWritten",
            message: format!(
                "{path} cannot be written: {why}; until it is, this node lets go of no addresses and claims none, and a \
                 start while the store is away would go by an older one"
            ),
            fix: "make room on that disk, and see that the directory is writable".into(),
        })
    }

    /// Whether what was decided while addresses are given out of these ranges may be told; see [`Fence`].
    pub fn permits(&self, gives: &[IpNet]) -> bool {
        self.fence.permits(gives)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.inbox.lock().stop = true;
        self.inbox.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed there.
            let _panicked = thread.join();
        }
    }
}

// === impl Inbox ===

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, News> {
        // Whoever panicked while putting has put nothing half.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest world, not before then; none when told to stop.
    fn take(&self, not_before: Instant) -> Option<(u64, World, bool)> {
        let mut news = self.lock();
        loop {
            if news.stop {
                return None;
            }
            let left = not_before.saturating_duration_since(Instant::now());
            if left.is_zero() && news.world.is_some() {
                return news.world.take();
            }
            news = match news.world {
                Some(_) => self.bell.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.bell.wait(news).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Puts one back that did not get to the disk, unless there is a later one.
    fn put_back(&self, world: (u64, World, bool)) {
        self.lock().world.get_or_insert(world);
    }
}

// === impl Writer ===

impl Writer {
    fn run(mut self) {
        let mut not_before = Instant::now();
        while let Some((number, world, waited_for)) = self.inbox.take(not_before) {
            let began = Instant::now();
            if self.there.as_ref().is_none_or(|there| !is_same(there, &world)) {
                // Until it is done the file may be either.
                self.there = None;
                if let Err(error) = super::save(&self.path, &world) {
                    self.refused(&error);
                    self.inbox.put_back((number, world, waited_for));
                    not_before = Instant::now() + AGAIN;
                    continue;
                }
            }
            not_before = Instant::now() + (began.elapsed() * RESTS).max(REST);
            self.there = Some(world);
            if self.refused.take().is_some() || waited_for {
                (self.tell)(Told::Saved(number));
            }
        }
    }

    /// A disk that stays full is told of once.
    fn refused(&mut self, error: &io::Error) {
        let why = error.to_string();
        if self.refused.as_ref() != Some(&why) {
            self.refused = Some(why.clone());
            (self.tell)(Told::Refused(why));
        }
    }
}

/// Whether nothing at all has happened to it.
fn is_shared(a: &World, b: &World) -> bool {
    Arc::ptr_eq(&a.config, &b.config)
        && a.nodes.ptr_eq(&b.nodes)
        && a.adverts.ptr_eq(&b.adverts)
        && a.pools.ptr_eq(&b.pools)
        && a.reservations.ptr_eq(&b.reservations)
        && a.blocks.ptr_eq(&b.blocks)
        && a.namespaces.ptr_eq(&b.namespaces)
        && a.pods.ptr_eq(&b.pods)
        && a.flannels.ptr_eq(&b.flannels)
        && a.policies.ptr_eq(&b.policies)
}

/// Whether the two would be written alike.
fn is_same(a: &World, b: &World) -> bool {
    a.config == b.config
        && a.nodes.diff(&b.nodes).next().is_none()
        && a.adverts.diff(&b.adverts).all(|item| match item {
            imbl::ordmap::DiffItem::Update { old: (_, old), new: (_, new) } => {
                old.advert.same_but_heartbeat(&new.advert) && old.advert.edition == new.advert.edition
            }
            _ => false,
        })
        && a.pools.diff(&b.pools).next().is_none()
        && a.reservations.diff(&b.reservations).next().is_none()
        && a.blocks.diff(&b.blocks).next().is_none()
        && a.namespaces.diff(&b.namespaces).next().is_none()
        && a.pods.diff(&b.pods).next().is_none()
        && a.flannels.diff(&b.flannels).next().is_none()
        && a.policies.diff(&b.policies).next().is_none()
}
