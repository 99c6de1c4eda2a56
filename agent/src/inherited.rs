//! What an agent found in the kernel when it started, while it knows the cluster only from its snapshot: it adds to that
//! and keeps it. The snapshot may be older than what the kernel was last told, so that nothing of the two proves the
//! other wrong; only pods are this node's own business, and the journal knows all of them.
//!
//! Invariant: until World is whole, no object of the kernel that is not a pod's goes or becomes another.

use tartan_datapath::nftables;
use tartan_model::World;
use tartan_netstate::claims::POD_LINK_PREFIX;
use tartan_netstate::{Entry, Key, Layers, LinkName, Netns, Object, Owner, State};

/// The part that is kept, and below it what is wanted.
#[derive(Default)]
pub(crate) struct Inherited {
    found: State,
    kept: State,
    layers: Layers<2>,
}

// === impl Inherited ===

impl Inherited {
    /// What is wanted, but for what was found.
    pub(crate) fn kept<'a>(&'a mut self, world: &World, wanted: &'a State) -> &'a State {
        self.look(world);
        if self.kept.is_empty() {
            return wanted;
        }
        self.layers.set(0, &self.kept);
        self.layers.set(1, wanted);
        self.layers.merged()
    }

    /// What of the nft table is wanted beside what was found of it. Ranges of two ages would overlap in one set, so that
    /// a table that was there is kept as it was, but for pods.
    pub(crate) fn beside(&mut self, world: &World, nft: &State) -> State {
        self.look(world);
        if self.kept.get(&Key::NftTable).is_none() {
            return nft.clone();
        }
        let of_pods = |(_, entry): &(&Key, &Entry)| matches!(entry.owner, Owner::Pod(_));
        nft.iter().filter(of_pods).map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    fn look(&mut self, world: &World) {
        if self.found.differing_keys(&world.inherited).next().is_some() {
            // What policy's are together is its own affair.
            let not_pods = |(key, entry): &(&Key, &Entry)| !key.is_of_policy() && !is_of_a_pod(key, &entry.object);
            let kept = world.inherited.iter().filter(not_pods);
            let kept = kept.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            *self = Inherited { found: world.inherited.clone(), kept, layers: Layers::default() };
        }
    }
}

/// Whether an object that was read is some pod's.
fn is_of_a_pod(key: &Key, object: &Object) -> bool {
    let is_pod_link = |link: &LinkName| link.as_str().starts_with(POD_LINK_PREFIX);
    match (key, object) {
        (_, Object::Route(route)) if route.dev.as_ref().is_some_and(is_pod_link) => true,
        (Key::NftElement { set, .. }, _) => nftables::is_of_pods(set),
        (Key::Link { ns: Netns::Host, link }, _) => is_pod_link(link),
        _ => *key.netns() != Netns::Host || key.link().is_some_and(is_pod_link),
    }
}

#[cfg(test)]
mod tests;
