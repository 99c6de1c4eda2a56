//! How the holder of a lab is asked to end it: Enter, Ctrl-C or SIGTERM, so that destructors run.
//!
//! Invariant: `hold_back` is called before the first other thread starts; a thread that does not block the signals
//! would be ended by them, and the whole process with it.

use std::io::stdin;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT and SIGTERM, held back until asked for.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// What ended the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A line, or the end, of standard input.
    ByEnter,
    /// SIGINT or SIGTERM.
    BySignal,
}

impl Signals {
    /// From here on the two signals wait for `wait`. Processes started in a lab's places still take them at once.
    pub fn hold_back() -> Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().context("blocking SIGINT and SIGTERM")?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("making a signalfd")?))
    }

    /// Waits for a signal or, if `enter`, a line on standard input.
    pub fn wait(&self, enter: bool) -> Result<Asked> {
        let stdin = stdin();
        let mut fds =
            vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        fds.truncate(1 + usize::from(enter));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any() == Some(true) => return Ok(Asked::BySignal),
                Ok(_) => return Ok(Asked::ByEnter),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("waiting for a signal"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_waits_until_it_is_asked_for() {
        let signals = Signals::hold_back().unwrap();
        // To this thread only: the test runner's others do not block it.
        nix::sys::pthread::pthread_kill(nix::sys::pthread::pthread_self(), Signal::SIGTERM).unwrap();
        assert_eq!(signals.wait(false).unwrap(), Asked::BySignal);
    }
}
