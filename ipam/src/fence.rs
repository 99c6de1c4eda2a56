//! What this node would give addresses out of if it started again now, without the store, from the snapshot on its disk.
//!
//! Invariant: a range is let go of only once no snapshot that may be on the disk gives it out any more. So a start from an
//! old one cannot give an address that is another node's by now.

use std::collections::VecDeque;

use ipnet::IpNet;

/// What the snapshots that may be on the disk give out.
#[derive(Clone, Debug)]
pub struct Fence {
    /// By number, the oldest that may still be there first.
    may_be_there: VecDeque<(u64, Vec<IpNet>)>,
}

// === impl Fence ===

impl Fence {
    /// The snapshot on the disk gives out these ranges.
    pub fn of(gives: Vec<IpNet>) -> Fence {
        Fence { may_be_there: VecDeque::from([(0, gives)]) }
    }

    /// There is one, of which nothing is known.
    pub fn unknown() -> Fence {
        Fence::of(["0.0.0.0/0", "::/0"].map(|all| all.parse().expect("a prefix")).to_vec())
    }

    /// A snapshot with this number, higher than any before, may be on the disk from now on.
    pub fn handed(&mut self, number: u64, gives: &[IpNet]) {
        if self.may_be_there.back().is_none_or(|(_, last)| last != gives) {
            self.may_be_there.push_back((number, gives.to_vec()));
        }
    }

    /// The snapshot with this number is on the disk, and none from before it.
    pub fn saved(&mut self, number: u64) {
        while self.may_be_there.get(1).is_some_and(|(next, _)| *next <= number) {
            self.may_be_there.pop_front();
        }
    }

    /// Whether all that may be there give out the same.
    pub fn is_settled(&self) -> bool {
        self.may_be_there.len() <= 1
    }

    /// Whether what was decided while addresses are given out of these ranges may be told: no snapshot gives out more.
    pub fn permits(&self, gives: &[IpNet]) -> bool {
        let given = |range: &IpNet| gives.iter().any(|wider| wider.contains(range));
        self.may_be_there.iter().all(|(_, may_give)| may_give.iter().all(given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_what_no_snapshot_contradicts() {
        let ranges = |text: &str| text.split_whitespace().map(|range| range.parse().unwrap()).collect::<Vec<IpNet>>();
        let check = |fence: &Fence, gives: &str, permits: bool| {
            assert_eq!(fence.permits(&ranges(gives)), permits, "{gives}: {fence:?}");
        };
        let mut fence = Fence::of(ranges("10.0.0.0/26"));
        check(&fence, "10.0.0.0/26", true);
        check(&fence, "10.0.0.0/25", true);
        check(&fence, "10.0.0.0/27", false);
        fence.handed(1, &ranges("10.0.0.0/26"));
        fence.handed(2, &ranges("10.0.0.0/27"));
        check(&fence, "10.0.0.0/27", false);
        fence.saved(1);
        check(&fence, "10.0.0.0/27", false);
        // One that gives more may be on its way to the disk, though none that is known to be there does.
        fence.handed(3, &ranges("10.0.0.0/26 10.0.1.0/26"));
        fence.handed(4, &ranges("10.0.0.0/26"));
        fence.saved(2);
        check(&fence, "10.0.0.0/26", false);
        fence.saved(3);
        check(&fence, "10.0.0.0/26", false);
        fence.saved(4);
        check(&fence, "10.0.0.0/26", true);
        check(&Fence::unknown(), "10.0.0.0/8", false);
        check(&Fence::of(Vec::new()), "", true);
    }
}
