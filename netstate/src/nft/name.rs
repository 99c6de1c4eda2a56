//! Names of sets and maps: one copy of each, for as long as the program runs.
//!
//! There are some dozens, and hundreds of thousands of keys that begin with one: keys are ordered and copied without
//! a look at the text. Invariant: equal names are at one address.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::ptr;
use std::sync::{PoisonError, RwLock};

/// The name of a set or map in our table.
#[derive(Clone, Copy, Eq)]
pub struct SetName(&'static str);

static NAMES: RwLock<BTreeSet<&'static str>> = RwLock::new(BTreeSet::new());

impl From<&str> for SetName {
    fn from(name: &str) -> SetName {
        // Nothing panics while it holds the lock, and what is there is whole.
        if let Some(known) = NAMES.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return SetName(known);
        }
        let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return SetName(known);
        }
        let name: &'static str = Box::leak(name.into());
        names.insert(name);
        SetName(name)
    }
}

impl From<String> for SetName {
    fn from(name: String) -> SetName {
        name.as_str().into()
    }
}

impl Deref for SetName {
    type Target = str;

    fn deref(&self) -> &str {
        self.0
    }
}

impl PartialEq for SetName {
    fn eq(&self, other: &SetName) -> bool {
        ptr::eq(self.0, other.0)
    }
}

impl Ord for SetName {
    fn cmp(&self, other: &SetName) -> Ordering {
        if self == other { Ordering::Equal } else { self.0.cmp(other.0) }
    }
}

impl PartialOrd for SetName {
    fn partial_cmp(&self, other: &SetName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for SetName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_their_texts() {
        let texts = ["b", "a", "", "ab", "a"];
        for (one, other) in texts.iter().flat_map(|one| texts.iter().map(move |other| (*one, *other))) {
            let names = [one, &String::from(other)].map(SetName::from);
            assert_eq!(names[0].cmp(&names[1]), one.cmp(other), "{one} {other}");
            assert_eq!(names[0] == names[1], one == other, "{one} {other}");
        }
    }
}
