//! Waits between tries: longer each time, and of random length, so that a thousand agents that lost the same API server
//! do not come back in one instant.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// How long to wait next.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// It worked: the next trouble is the first again.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        spread(longest / 2, longest)
    }
}

/// A random duration between two.
pub(super) fn spread(from: Duration, to: Duration) -> Duration {
    // Each RandomState has keys of its own.
    let random = RandomState::new().build_hasher().finish() as u32;
    from + (to - from).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits[20..].iter().all(|wait| *wait >= LONGEST / 2 && *wait <= LONGEST), "{waits:?}");
        assert!(waits[20..].iter().any(|wait| *wait != waits[20]), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
