//! When condemned links are deleted: once it disturbs no pod. All of them at once, since the kernel knows them by their group
//! only, and it tells that they are gone.
//!
//! Invariant: while the kernel is at it, it is not asked again; if it takes too long, that has failed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tartan_netstate::Key;

/// Links are deleted once they have been condemned, and pods quiet, for this long,
const QUIET: Duration = Duration::from_millis(50);
/// or after this time at the latest. As long it may take.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Burial {
    pods_busy_at: Instant,
    /// Since when there have been condemned links that nobody deletes.
    dying_since: Option<Instant>,
    /// Links that are being deleted, and since when.
    under_way: Option<(Instant, BTreeSet<Key>)>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before then, or until something is condemned.
    Wait(Option<Instant>),
    /// Delete them, and come back then.
    Bury(Instant),
    /// They are still there.
    Failed,
}

impl Burial {
    pub(super) fn new(now: Instant) -> Burial {
        Burial { pods_busy_at: now, dying_since: None, under_way: None }
    }

    pub(super) fn pods_are_busy(&mut self, now: Instant) {
        self.pods_busy_at = now;
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The link is gone, or something was done to it: what is told of it from now on may be about another one. Says whether it
    /// was being deleted.
    pub(super) fn gone(&mut self, link: &Key) -> bool {
        self.under_way.as_mut().is_some_and(|(_, links)| links.remove(link))
    }

    /// What is to be done now that these links are condemned.
    pub(super) fn next<'a>(&mut self, dying: impl Iterator<Item = &'a Key> + Clone, now: Instant) -> Next {
        if self.under_way.as_ref().is_some_and(|(_, links)| links.is_empty()) {
            self.under_way = None;
        }
        if dying.clone().next().is_none() {
            (self.dying_since, self.under_way) = (None, None);
            return Next::Wait(None);
        }
        if let Some((began, _)) = self.under_way {
            if now < began + PATIENCE {
                return Next::Wait(Some(began + PATIENCE));
            }
            self.under_way = None;
            return Next::Failed;
        }
        let since = *self.dying_since.get_or_insert(now);
        let due = (self.pods_busy_at + QUIET).max(since + QUIET).min(since + PATIENCE);
        if now < due {
            return Next::Wait(Some(due));
        }
        self.dying_since = None;
        self.under_way = Some((now, dying.cloned().collect()));
        Next::Bury(now + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartan_netstate::{LinkName, Netns};

    /// At some milliseconds, with pods busy then or not, so many links are condemned.
    fn check(burial: &mut Burial, zero: Instant, (at, busy, count): (u64, bool, usize), wanted: Next) {
        let now = zero + Duration::from_millis(at);
        if busy {
            burial.pods_are_busy(now);
        }
        assert_eq!(burial.next(links(count).iter(), now), wanted, "at {at} ms with {count}");
    }

    fn links(count: usize) -> Vec<Key> {
        let link = |number| LinkName::new(&format!("a{number}")).unwrap();
        (0..count).map(|number| Key::Link { ns: Netns::Host, link: link(number) }).collect()
    }

    #[test]
    fn links_are_deleted_when_pods_are_quiet_and_not_twice() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let wait = |ms| Next::Wait(Some(at(ms)));
        let burial = &mut Burial::new(zero);
        check(burial, zero, (0, false, 0), Next::Wait(None));
        check(burial, zero, (100, false, 1), wait(150));
        check(burial, zero, (140, true, 1), wait(190));
        check(burial, zero, (190, false, 2), Next::Bury(at(1190)));
        check(burial, zero, (200, true, 2), wait(1190));
        let told = links(3);
        assert_eq!(told.iter().map(|link| burial.gone(link)).collect::<Vec<_>>(), [true, true, false]);
        assert!(burial.is_under_way() && !burial.gone(&told[0]));
        // Another of the name, or one more.
        check(burial, zero, (300, false, 1), wait(350));
        assert!(!burial.is_under_way());
        check(burial, zero, (310, false, 0), Next::Wait(None));
        check(burial, zero, (340, false, 1), wait(390));
    }

    #[test]
    fn pods_that_are_never_quiet_put_it_off_for_a_while_and_one_that_has_not_worked_is_told() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let burial = &mut Burial::new(zero);
        for ms in (0..1000).step_by(10) {
            check(burial, zero, (ms, true, 1), Next::Wait(Some(at((ms + 50).min(1000)))));
        }
        check(burial, zero, (1000, true, 1), Next::Bury(at(2000)));
        check(burial, zero, (1999, false, 1), Next::Wait(Some(at(2000))));
        check(burial, zero, (2000, false, 1), Next::Failed);
        check(burial, zero, (2000, false, 1), Next::Wait(Some(at(2050))));
        check(burial, zero, (2050, false, 1), Next::Bury(at(3050)));
        check(burial, zero, (2060, false, 0), Next::Wait(None));
        assert!(!burial.is_under_way());
    }
}
