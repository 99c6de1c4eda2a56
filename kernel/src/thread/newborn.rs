//! Links that were just made. The kernel tells of each step of their making (it is there, it has an alias, it is up) as
//! of a change by anybody, and none of that is news: read again for each, they would cost as much as they cost to make.
//!
//! Invariant: from the moment that the kernel has told of a link as it was made, everything told of it counts. If it
//! does not tell that in time, the link is read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tartan_netstate::Key;

/// The kernel has told all of it before it says that it is done; it is only to be listened to.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Newborn {
    /// By when each must have been told of as it was made.
    due: BTreeMap<Key, Instant>,
}

impl Newborn {
    pub(super) fn made(&mut self, link: Key, now: Instant) {
        self.due.insert(link, now + PATIENCE);
    }

    /// The kernel tells that the link is there, and whether as it was made. Says whether that belongs to its making.
    pub(super) fn told(&mut self, link: &Key, as_made: bool) -> bool {
        if as_made { self.due.remove(link).is_some() } else { self.due.contains_key(link) }
    }

    pub(super) fn gone(&mut self, link: &Key) {
        self.due.remove(link);
    }

    /// Those that were not told of in time, once.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Key> {
        self.due.extract_if(.., |_, due| *due <= now).map(|(link, _)| link).collect()
    }

    /// When the next one is overdue.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartan_netstate::{LinkName, Netns};

    #[test]
    fn what_belongs_to_the_making_ends_with_the_link_as_it_was_made() {
        let link = |name| Key::Link { ns: Netns::Host, link: LinkName::new(name).unwrap() };
        let (mut newborn, now) = (Newborn::default(), Instant::now());
        newborn.made(link("a"), now);
        newborn.made(link("b"), now);
        assert!(newborn.told(&link("a"), false) && newborn.told(&link("a"), true));
        assert!(!newborn.told(&link("a"), false), "somebody changed it");
        assert!(!newborn.told(&link("c"), false), "nobody made it");
        assert!(newborn.overdue(now).is_empty());
        assert_eq!(newborn.next(), Some(now + PATIENCE));
        assert_eq!(newborn.overdue(now + PATIENCE), [link("b")]);
        assert_eq!((newborn.overdue(now + PATIENCE), newborn.next()), (vec![], None));
        newborn.made(link("a"), now);
        newborn.gone(&link("a"));
        assert!(!newborn.told(&link("a"), false), "another of its name");
    }
}
