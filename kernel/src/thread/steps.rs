//! The rest of a difference, taken from its front a chunk at a time.
//!
//! Invariant: what has been taken takes no memory any more. The first difference of a node in a large cluster is tens of
//! thousands of steps, and the mirror grows as they are done.

use tartan_netstate::Step;

/// The next step is the last of the list, from where it is taken for nothing.
#[derive(Default)]
pub(super) struct Steps(Vec<Step>);

impl Steps {
    pub(super) fn new(mut in_order: Vec<Step>) -> Steps {
        in_order.reverse();
        Steps(in_order)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Step> {
        self.0.iter().rev()
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(&Step) -> bool) {
        self.0.retain(wanted);
    }

    /// The next ones, in order; all, if there are not so many.
    pub(super) fn take(&mut self, count: usize) -> Vec<Step> {
        let mut next = self.0.split_off(self.0.len().saturating_sub(count));
        self.0.shrink_to_fit();
        next.reverse();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartan_netstate::{Key, Netns, Object, Owner};

    #[test]
    fn they_come_in_order_and_all_of_them() {
        let step = |name: &str| {
            let key = Key::Sysctl { ns: Netns::Host, name: name.into() };
            Step::create(key, Object::Sysctl("1".into()), Owner::Node)
        };
        let all = ["a", "b", "c", "d", "e"].map(step);
        let mut steps = Steps::new(all.to_vec());
        steps.retain(|step| *step != all[1]);
        assert!(steps.iter().eq([&all[0], &all[2], &all[3], &all[4]]));
        assert_eq!(steps.take(3), [all[0].clone(), all[2].clone(), all[3].clone()]);
        assert_eq!(steps.take(3), [all[4].clone()]);
        assert!(steps.is_empty() && steps.take(1).is_empty());
    }
}
