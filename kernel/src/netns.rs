//! Pods' network namespaces: found again by what they are, entered on threads of their own.
//!
//! Invariant: the calling thread never leaves its namespace, and a path that by now leads to another namespace is
//! never entered.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use tartan_netstate::PodNetns;

use crate::KernelError;

/// Where pods' namespaces are found: descriptors that the runtime handed over, else their paths.
#[derive(Default)]
pub(crate) struct PodNetnses {
    lent: BTreeMap<(u64, u64), OwnedFd>,
}

impl PodNetnses {
    /// Uses `fd` for this namespace until [`PodNetnses::give_back`].
    pub(crate) fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.lent.insert((ns.dev, ns.ino), fd);
    }

    pub(crate) fn give_back(&mut self, ns: &PodNetns) {
        self.lent.remove(&(ns.dev, ns.ino));
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

/// Runs `work` on a thread inside the namespace.
pub(crate) fn inside<T: Send>(
    ns: &PodNetns,
    fd: impl AsFd + Send,
    work: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    let enter = || {
        setns(fd, CloneFlags::CLONE_NEWNET).map_err(|errno| KernelError::Refused {
            doing: format!("enter network namespace {ns}"),
            errno,
            says: None,
        })?;
        work()
    };
    let outcome = std::thread::scope(|scope| scope.spawn(enter).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
