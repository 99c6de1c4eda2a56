//! What policies may take at most. Whoever may write a policy could otherwise hold up a node for minutes, or ask for more
//! rows than its kernel takes in one transaction, so that no policy of the node would come into force any more.

use std::cell::Cell;

/// Rows and ends of classes of all sets of a node, and ranges that their rules name: some 40 bytes of a transaction each,
/// of which a kernel takes 64 MiB at once. So few in tests that they can afford to reach it.
pub const ROWS: usize = if cfg!(test) { 5_000 } else { 500_000 };
/// Steps of some ten nanoseconds that the rows of one set may take in one direction: far more than as many rows as a node
/// holds take, however they come about.
const STEPS: usize = 120 * ROWS;

/// Steps that are left.
pub(super) struct Budget(Cell<usize>);

/// There are none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent;

impl Default for Budget {
    fn default() -> Budget {
        Budget::of(STEPS)
    }
}

impl Budget {
    pub(super) fn of(steps: usize) -> Budget {
        Budget(Cell::new(steps))
    }

    pub(super) fn spend(&self, steps: usize) -> Result<(), Spent> {
        self.0.set(self.0.get().checked_sub(steps).ok_or(Spent)?);
        Ok(())
    }
}
