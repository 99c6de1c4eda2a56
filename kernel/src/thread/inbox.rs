//! What others leave for the kernel thread: the latest wanted state, and news from the kernel.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tartan_netstate::{PodNetns, State};

use crate::Wake;

/// More news than this is worth a full read.
const MOST_WAKES: usize = 10_000;

/// Never blocks who puts, longer than it takes to put.
#[derive(Default)]
pub(super) struct Inbox {
    news: Mutex<News>,
    bell: Condvar,
}

#[derive(Default)]
pub(super) struct News {
    /// Latest wins.
    pub(super) wanted: Option<(u64, State)>,
    /// In the order in which the kernel told.
    pub(super) wakes: Vec<Wake>,
    pub(super) lent: Vec<(PodNetns, OwnedFd)>,
    /// Pods to look into, each with the number of the check.
    pub(super) check: Vec<(u64, PodNetns)>,
    pub(super) stop: bool,
    /// When the first of it came.
    since: Option<Instant>,
}

impl Inbox {
    pub(super) fn put(&self, change: impl FnOnce(&mut News)) {
        let mut news = self.lock();
        news.since.get_or_insert_with(Instant::now);
        change(&mut news);
        drop(news);
        self.bell.notify_one();
    }

    pub(super) fn wake(&self, wake: Wake) {
        self.put(|news| {
            if news.wakes.len() == MOST_WAKES {
                news.wakes.clear();
                news.wakes.push(Wake::Overrun);
            }
            if news.wakes.first() != Some(&Wake::Overrun) {
                news.wakes.push(wake);
            }
        });
    }

    /// How much is there that nobody has taken, and how long the oldest of it has been.
    pub(super) fn waiting(&self) -> (usize, Duration) {
        let news = self.lock();
        (news.count(), news.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Takes everything; waits until there is something, or until then.
    pub(super) fn take(&self, until: Option<Instant>) -> News {
        let mut news = self.lock();
        while !news.is_there() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            news = match left {
                Some(left) if left.is_zero() => break,
                Some(left) => self.bell.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.bell.wait(news).unwrap_or_else(PoisonError::into_inner),
            };
        }
        std::mem::take(&mut news)
    }

    /// Whoever panicked while putting has put nothing half.
    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    fn is_there(&self) -> bool {
        self.stop || self.count() > 0
    }

    fn count(&self) -> usize {
        usize::from(self.wanted.is_some()) + self.wakes.len() + self.lent.len() + self.check.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_taken_waits() {
        let inbox = Inbox::default();
        assert_eq!(inbox.waiting(), (0, Duration::ZERO));
        inbox.put(|news| news.wanted = Some((1, State::new())));
        inbox.put(|news| news.wanted = Some((2, State::new())));
        let first = inbox.lock().since;
        inbox.wake(Wake::Host);
        assert_eq!(inbox.waiting().0, 2, "of wanted states the latest, and the news");
        assert!(first.is_some() && inbox.lock().since == first, "what comes later makes nothing younger");
        assert_eq!(inbox.take(None).wanted.map(|(generation, _)| generation), Some(2));
        assert_eq!(inbox.waiting(), (0, Duration::ZERO));
    }
}
