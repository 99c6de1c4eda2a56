//! What was known of a kind when a list of it began, until the list is complete: what it has not told of by then is gone.
//!
//! Invariant: it is small, for there may be tens of thousands of names: they are shared with what is known, and lie side by side.

use std::sync::Arc;

/// Names in order, and whether each has been told of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unlisted(Box<[(Arc<str>, bool)]>);

impl Unlisted {
    pub(crate) fn of(names: Vec<Arc<str>>) -> Unlisted {
        let mut names: Box<[_]> = names.into_iter().map(|name| (name, false)).collect();
        names.sort_unstable();
        Unlisted(names)
    }

    pub(crate) fn listed(&mut self, name: &str) {
        let from = self.0.partition_point(|(there, _)| **there < *name);
        self.0[from..].iter_mut().take_while(|(there, _)| **there == *name).for_each(|(_, listed)| *listed = true);
    }

    pub(crate) fn rest(self) -> impl Iterator<Item = Arc<str>> {
        self.0.into_iter().filter(|(_, listed)| !listed).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_listed_is_left() {
        let mut names = Unlisted::of(["c", "a", "b", "a", "d"].map(Arc::from).into());
        ["a", "c", "c", "e", ""].into_iter().for_each(|name| names.listed(name));
        assert_eq!(names.rest().collect::<Vec<_>>(), ["b", "d"].map(Arc::from));
        Unlisted::default().listed("a");
    }
}
