//! What those who place pods on nodes are told of this one.
//!
//! Invariant: a node whose kernel was empty is unavailable until packets get to its peers and back; one whose kernel works
//! is never said to be unavailable. Nothing is told that the Node says already.

use tartan_model::{Availability, World};

/// What is to be told, if anything. `open`: pods may be placed here.
pub fn availability(world: &World, open: bool) -> Option<Availability> {
    let node = world.local_node()?;
    let known = match node.placement.unavailable {
        _ if !open && !world.began_empty => true,
        said => said == Some(!open) && !(open && node.placement.startup_taint),
    };
    (!known).then(|| Availability { node_uid: node.uid.clone(), available: open })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tartan_model::{Features, Node, Placement};

    use super::*;

    #[test]
    fn a_node_is_told_what_it_does_not_say() {
        let check = |open: bool, began_empty: bool, unavailable: Option<bool>, startup_taint: bool| {
            let mut world = World::new("n1".into(), Features::default());
            world.began_empty = began_empty;
            let node = Node {
                name: "n1".into(),
                uid: "u1".into(),
                internal_ips: Vec::new(),
                external_ips: Vec::new(),
                pod_cidrs: Vec::new(),
                labels: Default::default(),
                annotations: Default::default(),
                placement: Placement { unavailable, startup_taint },
            };
            world.nodes.insert("n1".into(), Arc::new(node));
            let word = availability(&world, open);
            assert!(word.as_ref().is_none_or(|word| &*word.node_uid == "u1"));
            word.map(|word| word.available)
        };
        // open, began empty, what the Node says, its taint; what it is told
        let table = [
            (false, true, None, false, Some(false)),
            (false, true, Some(false), true, Some(false)),
            (false, true, Some(true), true, None),
            (false, false, None, true, None),
            (false, false, Some(false), false, None),
            (true, true, Some(true), false, Some(true)),
            (true, false, None, false, Some(true)),
            (true, false, Some(false), true, Some(true)),
            (true, true, Some(false), false, None),
        ];
        for (open, began_empty, unavailable, taint, told) in table {
            assert_eq!(
                check(open, began_empty, unavailable, taint),
                told,
                "{open} {began_empty} {unavailable:?} {taint}"
            );
        }
        assert_eq!(availability(&World::default(), true), None, "a node without a Node");
    }
}
