//! Which steps come first, and which belong together.
//!
//! Invariant: what all pods stand on comes before pods, and pods come before bulk.

use std::collections::BTreeMap;
use std::sync::Arc;

use tartan_netstate::{Key, Netns, Op, Owner, Step};

/// Of steps of policy, for each owner the first: there may be hundreds of thousands.
pub(super) fn first_of_policy(steps: &[Step]) -> BTreeMap<Owner, Key> {
    let mut first = BTreeMap::new();
    for step in steps.iter().filter(|step| step.key().is_of_policy()) {
        if !first.contains_key(step.owner()) {
            first.insert(step.owner().clone(), step.key().clone());
        }
    }
    first
}

/// Steps of one pod; or of none, which are nobody's or everybody's.
pub(super) struct Group {
    pub(super) pod: Option<Arc<str>>,
    pub(super) steps: Vec<Step>,
}

/// Each pod's own steps together, in the order in which they come.
pub(super) fn by_pod(steps: Vec<Step>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: BTreeMap<Option<Arc<str>>, usize> = BTreeMap::new();
    for step in steps {
        let pod = match step.owner() {
            Owner::Pod(id) if rank(&step) == 1 => Some(id.clone()),
            _ => None,
        };
        let at = *places.entry(pod.clone()).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { pod, steps: Vec::new() });
        }
        groups[at].steps.push(step);
    }
    groups
}

/// The rank of what no pod waits for.
pub(super) const BULK: u8 = 2;

/// 0: what all pods stand on, and what stands in the way of others; 1: pods; [`BULK`]: everything else.
pub(super) fn rank(step: &Step) -> u8 {
    let key = step.key();
    match (step.op(), step.owner()) {
        _ if key.is_of_policy() => 0,
        // Those that stand in nobody's way are condemned.
        (Op::Delete(Key::Link { ns: Netns::Host, .. }, _), _) => 0,
        (_, Owner::Pod(_)) => 1,
        _ if key.is_nft() || matches!(key, Key::Sysctl { .. } | Key::UplinkSysctl { .. }) => 0,
        _ => BULK,
    }
}
