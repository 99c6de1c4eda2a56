//! Records of what has happened already and the disk did not take: they are tried again, at intervals that grow.
//!
//! Invariant: they are written in their order, and before whatever comes after them. The end of an attachment that is
//! written late must not be the end of the next one of its name.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tartan_model::Condition;

use super::body::Body;
use super::{Journal, JournalError, Record, now_ms};
use crate::publish::longer;

/// How long until the disk is tried again at most.
const LONGEST: Duration = Duration::from_secs(5);

/// See the module; the oldest first.
#[derive(Debug, Default)]
pub(super) struct Owed {
    bodies: VecDeque<Body>,
    /// Why the last attempt failed.
    why: String,
    wait: Option<Duration>,
    again: Option<Instant>,
}

impl Journal {
    /// Writes a record of what has happened already: now, or once the disk takes it. See [`Journal::catch_up`].
    pub fn append_in_time(&mut self, record: Record, now: Instant) {
        self.owed.bodies.push_back(Body::from_record(&record, now_ms()));
        self.catch_up(now);
    }

    /// Tries again what the disk did not take, when it is time to; see [`Journal::wake_at`].
    pub fn catch_up(&mut self, now: Instant) {
        if self.owed.bodies.is_empty() || self.owed.again.is_some_and(|again| now < again) {
            return;
        }
        if let Err(error) = self.pay() {
            let wait = longer(self.owed.wait, LONGEST);
            (self.owed.why, self.owed.wait, self.owed.again) = (error.to_string(), Some(wait), Some(now + wait));
        }
    }

    /// When to look again though nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        self.owed.again
    }

    /// How many records of what has happened are not written.
    pub fn owes(&self) -> usize {
        self.owed.bodies.len()
    }

    /// Whether the end of this attachment is among them.
    pub fn owes_the_end_of(&self, id: &str) -> bool {
        self.owed.bodies.iter().any(|body| matches!(body, Body::Del { id: ended, .. } if **ended == *id))
    }

    /// A disk that does not take them.
    pub fn condition(&self, node: &str) -> Option<Condition> {
        (self.owes() > 0).then(|| Condition {
            about: format!("NodeNetwork/{node}"),
            field: String::new(),
            reason: "JournalNotWritten",
            message: format!(
                "{}; what has become of some pods is not in it: until it is, no pod comes or goes, and an agent that starts \
                 would take ended ones for running",
                self.owed.why
            ),
            fix: "make room on that disk; it is tried again by itself".into(),
        })
    }

    /// Writes all that is owed.
    pub(crate) fn pay(&mut self) -> Result<(), JournalError> {
        while let Some(body) = self.owed.bodies.front().cloned() {
            self.append_body(body)?;
            self.owed.bodies.pop_front();
        }
        (self.owed.wait, self.owed.again) = (None, None);
        Ok(())
    }
}
