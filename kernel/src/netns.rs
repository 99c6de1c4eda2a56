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
    /// By all that is known of one: the number of a namespace that has gone is the next one's, and what was wanted of the
    /// one that has gone must not be done in that.
    lent: BTreeMap<PodNetns, OwnedFd>,
}

impl PodNetnses {
    /// Visits will begin and end in the namespace of the calling thread.
    pub(crate) fn from_here() -> Result<PodNetnses, KernelError> {
        let failed = |error: std::io::Error| Refusal::of(&error).doing("open this thread's network namespace");
        Ok(PodNetnses { home: File::open("/proc/thread-self/ns/net").map_err(failed)?, lent: BTreeMap::new() })
    }

    /// Uses `fd` for this namespace until [`PodNetnses::give_back`].
    pub(crate) fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.lent.insert(ns.clone(), fd);
    }

    pub(crate) fn give_back(&mut self, ns: &PodNetns) {
        self.lent.remove(ns);
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
        let fd = match self.lent.get(ns) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pods' namespaces of one number, of which the first has gone.
    #[test]
    fn a_descriptor_is_lent_for_its_own_pod_and_not_for_one_that_had_its_number_before() {
        let file = File::open("/proc/thread-self/ns/net").unwrap();
        let found = fstat(&file).unwrap();
        let ns = |path: &str| PodNetns { dev: found.st_dev, ino: found.st_ino, path: path.into() };
        let (before, now) = (ns("/run/netns/no-such-netns-before"), ns("/run/netns/no-such-netns-now"));
        let mut pods = PodNetnses::from_here().unwrap();
        pods.lend(&now, file.into());
        assert!(pods.open(&now).is_ok());
        assert!(matches!(pods.open(&before), Err(KernelError::NetnsGone(ns)) if ns == before));
        pods.give_back(&before);
        assert!(pods.open(&now).is_ok());
        pods.give_back(&now);
        assert!(pods.open(&now).is_err());
    }
}
