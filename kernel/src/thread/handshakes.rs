//! When to look at keys and handshakes, of which the kernel tells nothing: again and again while one is awaited, later and
//! later.

use std::time::{Duration, Instant};

use tartan_model::EncryptionState;

/// How soon it is looked again, at first and at last.
const AT_FIRST: Duration = Duration::from_millis(20);
const AT_LAST: Duration = Duration::from_secs(5);
/// Looking takes at most one part in so many of the time of who looks: an engine may have to be waited for.
const REST: u32 = 5;

pub(super) struct Handshakes {
    look_at: Option<Instant>,
    /// How long after the next look the one after that comes.
    rest: Duration,
    known: bool,
}

impl Handshakes {
    pub(super) fn new(now: Instant) -> Handshakes {
        Handshakes { look_at: Some(now), rest: AT_FIRST, known: false }
    }

    /// Something was done that a key or a handshake comes of.
    pub(super) fn began(&mut self, now: Instant) {
        (self.look_at, self.rest) = (Some(now), AT_FIRST);
    }

    /// Anything may have changed.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.look_at.get_or_insert(now);
    }

    /// What was found, after so long; nothing where it could not be read.
    pub(super) fn looked(&mut self, found: Option<&EncryptionState>, took: Duration, now: Instant) {
        let awaited = found.is_none_or(|found| found.handshakes.values().any(|met| !met));
        self.look_at = awaited.then(|| now + self.rest.max(took * (REST - 1)));
        self.rest = (self.rest * 2).min(AT_LAST);
        self.known |= found.is_some();
    }

    /// When to look next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether they could be read once.
    pub(super) fn are_known(&self) -> bool {
        self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartan_netstate::{LinkName, PublicKey};

    fn found(met: &[bool]) -> EncryptionState {
        let peer = |(number, met): (usize, &bool)| ((LinkName::new("a").unwrap(), PublicKey([number as u8; 32])), *met);
        EncryptionState { handshakes: met.iter().enumerate().map(peer).collect(), ..EncryptionState::default() }
    }

    /// Looks whenever it is due, finds this, and says how many milliseconds after each look the next one is due.
    fn check(handshakes: &mut Handshakes, found: Option<&EncryptionState>, wanted: &[u64]) {
        let rests = wanted.iter().map(|_| {
            let now = handshakes.next().unwrap();
            handshakes.looked(found, Duration::ZERO, now);
            (handshakes.next().unwrap() - now).as_millis() as u64
        });
        assert_eq!(rests.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn they_are_looked_for_until_all_have_come_about() {
        let now = Instant::now();
        let mut handshakes = Handshakes::new(now);
        check(&mut handshakes, None, &[20, 40, 80]);
        assert!(!handshakes.are_known());
        check(&mut handshakes, Some(&found(&[true, false])), &[160, 320, 640, 1280, 2560, 5000, 5000]);
        handshakes.looked(None, Duration::from_secs(5), now);
        assert_eq!(handshakes.next(), Some(now + Duration::from_secs(20)), "who does not answer is asked less often");
        handshakes.looked(Some(&found(&[true, true])), Duration::ZERO, now);
        assert!(handshakes.are_known() && handshakes.next().is_none());
        handshakes.doubt(now);
        assert_eq!(handshakes.next(), Some(now));
        check(&mut handshakes, Some(&found(&[false])), &[5000]);
        handshakes.began(now);
        handshakes.doubt(now + AT_FIRST);
        assert_eq!(handshakes.next(), Some(now), "sooner");
        check(&mut handshakes, None, &[20]);
        assert!(handshakes.are_known(), "once is enough");
    }
}
