//! Numbers that stand for things, and that nobody who writes policies can know or make meet.

use std::hash::{BuildHasher, Hash, RandomState};

/// What they depend on, another one in each process.
#[derive(Default)]
pub(super) struct Secret([RandomState; 2]);

impl Secret {
    /// The same for what is equal; that two different things have one is as good as impossible.
    pub(super) fn number(&self, of: impl Hash) -> u128 {
        let [low, high] = self.0.each_ref().map(|half| u128::from(half.hash_one(&of)));
        high << 64 | low
    }
}
