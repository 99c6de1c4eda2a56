//! Ranges in order, each with what is known of the next wider one of them.
//!
//! Invariant: given in order, where what is in a range comes after it and before all that is not.

use ipnet::IpNet;

/// The ranges around the last one, the widest first, each with something.
pub(crate) struct Nesting<T>(Vec<(IpNet, T)>);

impl<T> Default for Nesting<T> {
    fn default() -> Nesting<T> {
        Nesting(Vec::new())
    }
}

impl<T> Nesting<T> {
    /// What was put to the smallest range around this one.
    pub(crate) fn around(&mut self, range: &IpNet) -> Option<&T> {
        while self.0.last().is_some_and(|(wider, _)| !wider.contains(range)) {
            self.0.pop();
        }
        self.0.last().map(|(_, what)| what)
    }

    /// Goes on with the range that was asked for last.
    pub(crate) fn put(&mut self, range: IpNet, what: T) {
        self.0.push((range, what));
    }
}
