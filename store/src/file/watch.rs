//! Watching a directory: a thread that sleeps in poll(2) on inotify and reads the files that change.
//!
//! One session: new inotify instance, watches, then the first read (so nothing between is missed), then changes. What
//! puts the directory itself in doubt (moved, unmounted, events lost) ends the session, and the next one lists again.
//! What is read is the one directory that is watched, held open meanwhile; not between reads, for it may be a mount.
//!
//! A read takes time, and files are read in the order of their names, not of their writes: so after each read inotify is
//! asked again, and what was written meanwhile is read again, until nothing was. The kernel has told of a rename before it
//! lets the next one in the directory begin, so what has been read then is the directory at one moment, and is told as
//! one.
//! While the directory cannot be listed, watches on the way to it and a growing pause say when to try again.

use std::collections::BTreeSet;
use std::hash::Hasher as _;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use siphasher::sip128::Hasher128 as _;
use tartan_model::{Kind, Revision, StoreEvent};
use tokio::sync::mpsc;

use super::directory::{Directory, Identity};
use super::view::{Hasher, Listing, Reading, View};
use super::{is_document, write};

/// Events that wait for a slow reader before the thread does.
const AHEAD: usize = 1024;
/// Pauses between attempts at a directory that cannot be listed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is watched of the directory: files that are whole, and its own fate.
const OF_DIR: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE)
    .union(WatchMask::CREATE)
    .union(WatchMask::ATTRIB)
    .union(OF_ANCESTOR);
/// What is watched of the directories above it.
const OF_ANCESTOR: WatchMask = WatchMask::MOVE_SELF.union(WatchMask::DELETE_SELF);

/// The reading end; dropping it ends the thread.
struct Watch {
    events: mpsc::Receiver<StoreEvent>,
    stop: Arc<EventFd>,
}

/// The thread's side.
struct Watcher {
    dir: Arc<Path>,
    view: View,
    out: mpsc::Sender<StoreEvent>,
    stop: Arc<EventFd>,
    /// What was said about why the directory is away; none while it is not.
    away: Option<String>,
}

/// Inotify with a watch on the directory, if it is there, and on what leads to it.
struct Session {
    inotify: Inotify,
    dir: io::Result<Watched>,
}

/// Which directory it is.
struct Watched {
    watch: WatchDescriptor,
    identity: Identity,
}

/// What inotify said.
#[derive(Default)]
struct Changes {
    files: BTreeSet<Arc<str>>,
    /// The directory may be another one, or events were lost.
    in_doubt: bool,
}

/// The reader is gone.
struct Stopped;

/// Starts to watch.
pub(super) fn start(dir: Arc<Path>, kinds: &[Kind]) -> impl Stream<Item = StoreEvent> + Send + 'static {
    let (out, events) = mpsc::channel(AHEAD);
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("a process may open one descriptor more");
    let stop = Arc::new(stop);
    let watcher = Watcher { dir, view: View::new(kinds), out, stop: stop.clone(), away: None };
    std::thread::Builder::new()
        .name("file-store".to_owned())
        .spawn(move || watcher.run())
        .expect("a process may start one thread more");
    Watch { events, stop }
}

// === impl Watch ===

impl Stream for Watch {
    type Item = StoreEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StoreEvent>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.write(1).expect("the counter of an eventfd that is written once does not overflow");
    }
}

// === impl Watcher ===

impl Watcher {
    fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        while self.session(&mut pause).is_ok() {}
    }

    /// From one list to the next.
    fn session(&mut self, pause: &mut Duration) -> Result<(), Stopped> {
        let mut session = match Session::begin(&self.dir) {
            Ok(session) => session,
            Err(error) => return self.rest(None, &error, pause),
        };
        match self.list(&mut session) {
            Ok((listing, in_doubt)) => {
                *pause = FIRST_PAUSE;
                self.away = None;
                send(&self.out, self.view.end_list(listing))?;
                if in_doubt { Ok(()) } else { self.follow(&mut session) }
            }
            Err(error) => self.rest(Some(&mut session), &error, pause),
        }
    }

    /// Reads everything; and whether the directory is in doubt already.
    fn list(&mut self, session: &mut Session) -> io::Result<(Listing, bool)> {
        let dir = session.open(&self.dir)?;
        let mut listing = self.view.begin_list();
        for name in dir.names()? {
            if self.view.known(&name).is_some_and(|hash| is_still(&dir, &name, hash)) {
                listing.found(&name);
            } else {
                let reading = read(&dir, &name);
                self.view.take(&mut listing, name, reading);
            }
        }
        let in_doubt = session.until_still(&dir, |name, reading| self.view.take(&mut listing, name, reading));
        if self.view.has_found_none(&listing) && !self.view.is_empty() && !dir.has(write::LOCK) {
            return Err(io::Error::other("it is another directory, with nothing in it; is it not mounted?"));
        }
        Ok((listing, in_doubt))
    }

    /// Tells every change until the directory itself is in doubt.
    fn follow(&mut self, session: &mut Session) -> Result<(), Stopped> {
        loop {
            self.wait(Some(&session.inotify), PollTimeout::NONE)?;
            let Ok(dir) = session.open(&self.dir) else { return Ok(()) };
            let mut events = Vec::new();
            let in_doubt = session.until_still(&dir, |name, reading| events.extend(self.view.read(&name, reading)));
            // A slow reader must not keep it from being unmounted.
            drop(dir);
            if events.len() > 1 {
                events = vec![StoreEvent::Moment(events)];
            }
            send(&self.out, events)?;
            if in_doubt {
                return Ok(());
            }
        }
    }

    /// Says that the directory is away, and waits until something changes on the way to it, or the pause is over.
    fn rest(&mut self, session: Option<&mut Session>, error: &io::Error, pause: &mut Duration) -> Result<(), Stopped> {
        let why = format!("{}: {error}", self.dir.display());
        if self.away.as_ref() != Some(&why) {
            self.away = Some(why.clone());
            send(&self.out, [StoreEvent::Away(None, why)])?;
        }
        let timeout = PollTimeout::try_from(*pause).expect("the longest pause is a few seconds");
        *pause = LONGEST_PAUSE.min(*pause * 2);
        self.wait(session.map(|session| &session.inotify), timeout)
    }

    /// Sleeps until inotify has something, the time is over, or the reader is gone.
    fn wait(&self, inotify: Option<&Inotify>, timeout: PollTimeout) -> Result<(), Stopped> {
        let stop = PollFd::new(self.stop.as_fd(), PollFlags::POLLIN);
        let mut sources: Vec<PollFd<'_>> =
            [stop].into_iter().chain(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN))).collect();
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) if sources[0].any() != Some(true) => Ok(()),
            _ => Err(Stopped),
        }
    }
}

fn send(out: &mpsc::Sender<StoreEvent>, events: impl IntoIterator<Item = StoreEvent>) -> Result<(), Stopped> {
    events.into_iter().try_for_each(|event| out.blocking_send(event)).map_err(|_| Stopped)
}

// === impl Session ===

impl Session {
    fn begin(dir: &Path) -> io::Result<Session> {
        let inotify = Inotify::init().map_err(|error| {
            io::Error::new(error.kind(), format!("{error}; raise fs.inotify.max_user_instances, if it is used up"))
        })?;
        let mut watches = inotify.watches();
        let mut watch = || Watched::begin(dir, &mut watches);
        let first = watch();
        let mut of_ancestor =
            if first.is_err() { WatchMask::CREATE | WatchMask::MOVED_TO | OF_ANCESTOR } else { OF_ANCESTOR };
        for ancestor in dir.ancestors().skip(1) {
            if inotify.watches().add(ancestor, WatchMask::ONLYDIR | of_ancestor).is_ok() {
                of_ancestor = OF_ANCESTOR;
            }
        }
        // It may have come before its parent was watched.
        let dir = first.or_else(|_| watch());
        Ok(Session { inotify, dir })
    }

    /// Fails where another directory is in its place.
    fn open(&self, path: &Path) -> io::Result<Directory> {
        let watched = self.dir.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        let dir = Directory::open(path)?;
        match dir.identity()? == watched.identity {
            true => Ok(dir),
            false => Err(io::Error::other("another directory has come in its place")),
        }
    }

    /// Reads what has changed until nothing does. Whether the directory itself is in doubt.
    fn until_still(&mut self, dir: &Directory, mut take: impl FnMut(Arc<str>, Reading)) -> bool {
        loop {
            let changes = self.changes(dir);
            let still = changes.files.is_empty();
            for name in changes.files {
                let reading = read(dir, &name);
                take(name, reading);
            }
            if still || changes.in_doubt {
                return changes.in_doubt;
            }
        }
    }

    /// Takes everything inotify has.
    fn changes(&mut self, dir: &Directory) -> Changes {
        let mut changes = Changes::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            match self.inotify.read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        let ours = self.dir.as_ref().is_ok_and(|ours| ours.watch == event.wd);
                        let name = event.name.and_then(|name| name.to_str()).filter(|name| ours && is_document(name));
                        changes.take(dir, event.mask, name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    changes.in_doubt = true;
                    return changes;
                }
            }
        }
    }
}

// === impl Watched ===

impl Watched {
    /// What has its path once the watch is there is what is watched, or the watch tells that it was moved.
    fn begin(dir: &Path, watches: &mut Watches) -> io::Result<Watched> {
        let watch = watches.add(dir, WatchMask::ONLYDIR | OF_DIR)?;
        Ok(Watched { watch, identity: Directory::open(dir)?.identity()? })
    }
}

// === impl Changes ===

impl Changes {
    fn take(&mut self, dir: &Directory, mask: EventMask, name: Option<&str>) {
        let doubt = EventMask::Q_OVERFLOW
            | EventMask::UNMOUNT
            | EventMask::IGNORED
            | EventMask::MOVE_SELF
            | EventMask::DELETE_SELF;
        self.in_doubt |= mask.intersects(doubt);
        let Some(name) = name else { return };
        // A new file is read when its writer closes it.
        if !mask.contains(EventMask::CREATE) || dir.is_whole(name) {
            self.files.insert(name.into());
        }
    }
}

fn read(dir: &Directory, name: &str) -> Reading {
    match dir.read(name) {
        Ok(bytes) => Reading::Bytes(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Gone,
        Err(error) => Reading::Failed(error),
    }
}

/// Whether a file's bytes have that hash. A list, which mostly finds that they do, has no more than a few of them in memory.
pub(super) fn is_still(dir: &Directory, name: &str, hash: &Revision) -> bool {
    let hash_of = || {
        let (file, _) = dir.document(name)?;
        let (mut bytes, mut hasher) = (BufReader::new(file), Hasher::new());
        loop {
            let part = bytes.fill_buf()?;
            hasher.write(part);
            match part.len() {
                0 => return io::Result::Ok(Revision::from(hasher.finish128().as_u128())),
                length => bytes.consume(length),
            }
        }
    };
    hash_of().is_ok_and(|there| there == *hash)
}
