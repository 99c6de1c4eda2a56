//! Threads that carry packets until they are told to stop.
//!
//! Invariant: dropped, all of them have ended.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::EventFd;

/// See the module.
pub(crate) struct Threads {
    /// Can be read from when it is time to stop.
    stop: Arc<EventFd>,
    all: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn new() -> std::io::Result<Threads> {
        Ok(Threads { stop: Arc::new(EventFd::new()?), all: Vec::new() })
    }

    pub(crate) fn spawn(&mut self, name: &str, work: impl FnOnce(&EventFd) + Send + 'static) -> std::io::Result<()> {
        let stop = self.stop.clone();
        self.all.push(thread::Builder::new().name(name.into()).spawn(move || work(&stop))?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // It cannot fail: the number is far from its end.
        let _written = self.stop.write(1);
        self.all.drain(..).for_each(|thread| drop(thread.join()));
    }
}
