//! What time it is, for planners, which read no clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a clock on the wall said at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    at: Instant,
    since_1970: Duration,
}

impl Clock {
    /// It said that. A clock that stands before 1970 counts as one that stands there.
    pub fn new(at: Instant, said: SystemTime) -> Clock {
        Clock { at, since_1970: said.duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// What it says at another moment, unless somebody sets it.
    pub fn since_1970(&self, now: Instant) -> Duration {
        self.since_1970 + now.saturating_duration_since(self.at)
    }
}
