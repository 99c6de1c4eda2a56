//! Objects that the kernel refuses: each is tried again by itself, later and later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tartan_netstate::Key;

use crate::Failure;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Backoff {
    waiting: BTreeMap<Key, Waiting>,
}

struct Waiting {
    failure: Failure,
    delay: Duration,
    until: Instant,
}

impl Backoff {
    /// One more failure. Says whether its error is news.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) -> bool {
        let before = self.waiting.get(&failure.key);
        let delay = before.map_or(FIRST, |before| (before.delay * 2).min(LONGEST));
        let news = before.is_none_or(|before| before.failure != failure);
        self.waiting.insert(failure.key.clone(), Waiting { failure, delay, until: now + delay });
        news
    }

    /// It worked, or something else is wanted now: forgotten. Says whether it was failing.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        self.waiting.remove(key).is_some()
    }

    /// Whether it failed when last tried.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// Whether it is too soon to try this again.
    pub(super) fn holds(&self, key: &Key, now: Instant) -> bool {
        self.waiting.get(key).is_some_and(|waiting| now < waiting.until)
    }

    /// Lets everything be tried at once that may have failed for want of what is there now.
    pub(super) fn hurry(&mut self, keys: impl Fn(&Key) -> bool, now: Instant) {
        for (_, waiting) in self.waiting.iter_mut().filter(|(key, _)| keys(key)) {
            waiting.until = now;
        }
    }

    /// Forgets what is not among all that is to be done. Says whether there was any.
    pub(super) fn retain<'a>(&mut self, pending: impl Iterator<Item = &'a Key>) -> bool {
        let before = self.waiting.len();
        let still: BTreeSet<&Key> = pending.filter(|key| self.waiting.contains_key(key)).collect();
        self.waiting.retain(|key, _| still.contains(key));
        self.waiting.len() != before
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    pub(super) fn failures(&self) -> Vec<Failure> {
        self.waiting.values().map(|waiting| waiting.failure.clone()).collect()
    }
}
