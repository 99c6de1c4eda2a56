//! Deleting condemned links, by a thread of its own: the kernel lets nobody go who asks for it before no processor can
//! be using them any more, which takes tens of milliseconds, and no pod should wait for that.
//!
//! Invariant: what it deletes is told by the kernel as anybody's deletion is, because its socket is not one whose
//! requests count as our own. What it cannot delete stays condemned.

use std::sync::mpsc;
use std::thread::JoinHandle;

use tartan_netstate::claims::DYING_LINK_GROUPS;

use crate::KernelError;
use crate::link;
use crate::netlink::{Netlink, Refusal};

pub(crate) struct Gravedigger {
    calls: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Gravedigger {
    /// In the calling thread's network namespace.
    pub(crate) fn start() -> Result<Gravedigger, KernelError> {
        let mut netlink = Netlink::open()?;
        let (calls, inbox) = mpsc::channel();
        let work = move || {
            while inbox.recv().is_ok() {
                // Whoever asked sees by the links whether it worked.
                let _refused = netlink.batch(&DYING_LINK_GROUPS.map(link::bury));
            }
        };
        let thread = std::thread::Builder::new().name("gravedigger".into()).spawn(work);
        let thread = thread.map_err(|error| Refusal::of(&error).doing("start the thread that deletes links"))?;
        Ok(Gravedigger { calls: Some(calls), thread: Some(thread) })
    }

    /// Soon deletes all condemned links.
    pub(crate) fn call(&self) {
        // The thread ends only with its channel.
        let _ = self.calls.as_ref().map(|calls| calls.send(()));
    }
}

impl Drop for Gravedigger {
    fn drop(&mut self) {
        self.calls.take();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and a destructor must not.
            let _ = thread.join();
        }
    }
}
