//! Pods of this node that are gone and were never taken back: a runtime that lost its state calls no DEL and no GC for
//! them, and their addresses would be used for ever.
//!
//! Invariant: an attachment is left over only if two say so that know nothing of each other, all the time for [`GRACE`]: the
//! cluster has no such Pod here, or one of that name that came later, and the kernel no such network namespace. Nothing is
//! concluded before everything was read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{Attachment, Kind, NAMELESS, Pod, Why, World};
use tartan_netstate::Owner;

/// Far longer than a runtime is away while it is upgraded, and than an ADD may take.
pub const GRACE: Duration = Duration::from_secs(600);

/// Attachments that look left over, by id, and since when.
#[derive(Debug, Default)]
pub struct Leftovers(BTreeMap<Arc<str>, Instant>);

impl Leftovers {
    /// Those whose time is over.
    pub fn update(&mut self, world: &World, now: Instant) -> Vec<Arc<str>> {
        let gone = world.programmed.failures.iter().filter(|failed| failed.why == Why::NetnsGone);
        let ids = gone.filter_map(|failed| match &failed.owner {
            Owner::Pod(id) => Some(id),
            _ => None,
        });
        let known = world.store_away().is_none() && world.is_whole() && world.is_synced(Kind::Pod);
        let left = ids.filter(|id| known && world.attachments.get(*id).is_some_and(|it| has_lost_its_pod(world, it)));
        let before = std::mem::take(&mut self.0);
        self.0 = left.map(|id| (id.clone(), before.get(id).copied().unwrap_or(now))).collect();
        self.0.iter().filter(|(_, since)| **since + GRACE <= now).map(|(id, _)| id.clone()).collect()
    }

    /// When the next one's time is over.
    pub fn wake_at(&self) -> Option<Instant> {
        self.0.values().min().map(|since| *since + GRACE)
    }
}

/// A Pod of that name may have been made anew since, as those of a StatefulSet are: on another node, or with other addresses.
fn has_lost_its_pod(world: &World, attachment: &Attachment) -> bool {
    let name = attachment.pod();
    let is_it = |pod: &Arc<Pod>| {
        let mut own = attachment.addresses.iter().map(|(_, address)| address);
        pod.node == world.local && (pod.addresses.is_empty() || own.any(|address| pod.addresses.contains(address)))
    };
    name != NAMELESS && !world.pods.get(name.as_str()).is_some_and(is_it)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tartan_model::{Failed, StoreEvent};
    use tartan_netstate::{Key, Netns};

    use super::*;
    use crate::attach::tests::{attached, whole};

    /// Pod a of the journal, which the store does not have.
    fn world(now: Instant) -> World {
        let mut world = whole(now);
        attached(&mut world, "a", &json!({}));
        fail(&mut world, Why::NetnsGone);
        world
    }

    fn fail(world: &mut World, why: Why) {
        let key = Key::Link { ns: Netns::Host, link: tartan_datapath::pod::host_link("a/eth0") };
        let owner = Owner::Pod("a/eth0".into());
        world.programmed.failures = [Failed { key, owner, error: "refused".into(), why }].into();
    }

    fn some_pod() -> Pod {
        Pod { node: "n1".into(), ..Pod::default() }
    }

    #[test]
    fn a_pod_is_left_over_when_cluster_and_kernel_have_lost_it_for_long() {
        let began = Instant::now();
        let over = |change: &dyn Fn(&mut World), then: &dyn Fn(&mut World)| {
            let mut world = world(began);
            let mut leftovers = Leftovers::default();
            change(&mut world);
            assert!(leftovers.update(&world, began).is_empty(), "not at once");
            let wake_at = leftovers.wake_at();
            then(&mut world);
            let early = leftovers.update(&world, began + GRACE - Duration::from_millis(1));
            assert!(early.is_empty());
            (wake_at.is_some(), leftovers.update(&world, began + GRACE).len())
        };
        let nothing = |_: &mut World| {};
        assert_eq!(over(&nothing, &nothing), (true, 1));
        assert_eq!(over(&|it| fail(it, Why::Refused), &nothing), (false, 0), "the kernel has its namespace");
        let known = |it: &mut World| {
            let pod = it.attachments["a/eth0"].pod();
            it.pods.insert(pod.as_str().into(), some_pod().into());
        };
        assert_eq!(over(&known, &nothing), (false, 0), "the cluster has the Pod");
        let own = world(began).attachments["a/eth0"].addresses.iter().next().unwrap().1.to_string();
        let anew = |node: &str, address: &str| {
            let pod = Pod { node: node.into(), addresses: [address.parse().unwrap()].into(), ..Pod::default() };
            move |it: &mut World| {
                let name = it.attachments["a/eth0"].pod();
                it.pods.insert(name.as_str().into(), pod.clone().into());
            }
        };
        assert_eq!(over(&anew("n1", &own), &nothing), (false, 0), "it has these addresses");
        assert_eq!(over(&anew("n1", "10.244.1.77"), &nothing), (true, 1), "one of that name came here, and has others");
        assert_eq!(over(&anew("n2", &own), &nothing), (true, 1), "one of that name came to another node");
        let unanswered = |it: &mut World| {
            let attachment = it.attachments["a/eth0"].clone();
            it.attach(Attachment { answered: false, ..(*attachment).clone() });
        };
        assert_eq!(over(&unanswered, &nothing), (true, 1), "nobody was told of it");
        assert_eq!(over(&nothing, &known), (true, 0), "it comes back");
        assert_eq!(over(&nothing, &|it| fail(it, Why::Refused)), (true, 0), "it is found again");
        let away = |it: &mut World| it.store(StoreEvent::Away(None, "cut off".into()), began);
        assert_eq!(over(&away, &nothing), (false, 0), "the store is away");
        let unread = |it: &mut World| {
            let mut fresh = World::new("n1".into(), Default::default());
            (fresh.attachments, fresh.programmed) = (it.attachments.clone(), it.programmed.clone());
            *it = fresh;
        };
        assert_eq!(over(&unread, &nothing), (false, 0), "nothing has been read");
    }
}
