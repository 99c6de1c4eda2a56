//! The kernel thread: makes the kernel equal to the latest wanted state, and keeps it so.
//!
//! ```text
//!     Handle::want ──► inbox (latest wins) ──► worker: read what is dirty, diff, apply ──► report(Applied)
//!     kernel's own news ──►─┘                          mirror
//! ```
//!
//! Invariant: nobody who hands something in ever waits. What pods need goes before everything else; what fails is
//! tried again by itself, later and later, and holds nothing up.

mod backoff;
mod burial;
mod dirty;
mod groups;
mod handshakes;
mod inbox;
mod mirror;
mod newborn;
mod steps;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tartan_model::Host;
use tartan_netstate::{PodNetns, State};

use crate::{Failure, Kernel};
use inbox::Inbox;
use worker::Worker;

/// How the kernel stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The latest wanted state that is wholly applied, or has been tried; 0 before the first.
    pub generation: u64,
    /// The latest wanted state whose pod-owned objects are applied, or have been tried.
    pub pods_generation: u64,
    /// Pods whose own objects are applied, or have been tried, as of a later wanted state: that one, by their ids.
    pub pods_ahead: BTreeMap<Arc<str>, u64>,
    /// What is there of ours, as it was read or acknowledged.
    pub mirror: State,
    /// What the kernel refuses, each with its last error. Tried again without being asked.
    pub failures: Vec<Failure>,
    /// Pods' namespaces that cannot be found, though links of ours lead there. Nothing is tried in them.
    pub hidden: BTreeSet<PodNetns>,
    /// What is there and not ours.
    pub host: Arc<Host>,
    /// Steps tried since the last report.
    pub applied: u64,
    /// How long that took.
    pub applying: Duration,
    /// Of those, the ones no new wanted state asked for: somebody else changed what is ours.
    pub repaired: u64,
    /// The latest check of a pod that is done: it was read, and what was missing put back or tried.
    pub checked: u64,
    /// Why a part of the kernel's state cannot be read. While it cannot, only pods' wants are carried out.
    pub unknown: Option<String>,
    /// Why what an engine holds, or what encrypting devices have, cannot be read. It stays as it is, and nothing waits for it.
    pub left_out: Option<String>,
    /// The first full read is done; what is told before says only why it is not.
    pub read: bool,
}

/// The kernel thread. It ends when this is dropped; the kernel keeps what it has.
pub struct Handle {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread. `report` is called on it: after the first full read, whenever something in [`Applied`] changed
/// that is worth knowing, and before where that read fails.
pub fn spawn(kernel: Box<dyn Kernel>, report: impl Fn(Applied) + Send + 'static) -> io::Result<Handle> {
    let inbox = Arc::new(Inbox::default());
    let worker = Worker::new(kernel, Box::new(report), inbox.clone());
    let thread = std::thread::Builder::new().name("kernel".into()).spawn(move || worker.run())?;
    Ok(Handle { inbox, thread: Some(thread) })
}

// === impl Handle ===

impl Handle {
    /// Wants this state from now on. Generations count up from 1.
    pub fn want(&self, generation: u64, state: State) {
        self.inbox.put(|news| news.wanted = Some((generation, state)));
    }

    /// Hands over a descriptor of a pod's namespace, for what is wanted next. It is closed once that is done; later the
    /// namespace is found by its path.
    pub fn lend_netns(&self, ns: PodNetns, fd: OwnedFd) {
        self.inbox.put(|news| news.lent.push((ns, fd)));
    }

    /// Reads the inside of a pod again, and repairs it. Checks count up from 1; see [`Applied::checked`].
    pub fn check_pod(&self, check: u64, ns: PodNetns) {
        self.inbox.put(|news| news.check.push((check, ns)));
    }

    /// How much was handed in, or told by the kernel, that the thread has not come to; and how long the oldest of it has waited.
    pub fn waiting(&self) -> (usize, Duration) {
        self.inbox.waiting()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.put(|news| news.stop = true);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed there.
            let _panicked = thread.join();
        }
    }
}
