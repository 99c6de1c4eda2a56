//! Pods' network namespaces: found again by what they are, and visited.
//!
//! Invariant: whoever visits one is home again when the visit ends, whatever happens in it, and a path that by now
//! leads to another namespace is never entered. A visit stays on the calling thread: another one would cost an ADD a
//! tenth of its time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use tartan_netstate::PodNetns;

use crate::KernelError;
use crate::netlink::Refusal;

/// Where pods' namespaces are found: descriptors that the runtime handed over, else their paths.
pub(crate) struct PodNetnses {
    home: File,
    lent: BTreeMap<(u64, u64), OwnedFd>,
}

impl PodNetnses {
    /// Visits will begin and end in the namespace of the calling thread.
    pub(crate) fn from_here() -> Result<PodNetnses, KernelError> {
        let failed = |error: std::io::Error| Refusal::of(&error).doing("open this thread's network namespace");
        Ok(PodNetnses { home: File::open("/proc/thread-self/ns/net").map_err(failed)?, lent: BTreeMap::new() })
    }

    /// Uses `fd` for this namespace until [`PodNetnses::give_back`].
    pub(crate) fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.lent.insert((ns.dev, ns.ino), fd);
    }

    pub(crate) fn give_back(&mut self, ns: &PodNetns) {
        self.lent.remove(&(ns.dev, ns.ino));
    }

    /// Does `work` inside. The calling thread is at home.
    pub(crate) fn inside<T>(
        &self,
        ns: &PodNetns,
        work: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let fd = self.open(ns)?;
        setns(fd, CloneFlags::CLONE_NEWNET).map_err(|errno| KernelError::Refused {
            doing: format!("enter network namespace {ns}"),
            errno,
            says: None,
        })?;
        let _visit = Visit { home: &self.home };
        work()
    }

    pub(crate) fn open(&self, ns: &PodNetns) -> Result<OwnedFd, KernelError> {
        let gone = || KernelError::NetnsGone(ns.clone());
        let fd = match self.lent.get(&(ns.dev, ns.ino)) {
            Some(lent) => lent.try_clone().map_err(|_| gone())?,
            None => OwnedFd::from(File::open(&*ns.path).map_err(|_| gone())?),
        };
        let found = fstat(&fd).map_err(|_| gone())?;
        if (found.st_dev, found.st_ino) == (ns.dev, ns.ino) { Ok(fd) } else { Err(gone()) }
    }
}

/// The calling thread, away from its namespace until this is dropped.
struct Visit<'a> {
    home: &'a File,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if setns(self.home, CloneFlags::CLONE_NEWNET).is_err() {
            // Lost in a pod's namespace, this thread would take it for the node's.
            std::process::abort();
        }
    }
}
