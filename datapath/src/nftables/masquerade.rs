//! Which packets of pods leave under the node's address: those to outside the cluster.
//!
//! Invariant: a packet to a pod, on whatever node, keeps its source.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::nft::{ElementData, ElementKey, Rule, Selector, Set, Type, rule};
use tartan_netstate::{Entry, Key, Object, Owner, State};

use super::{Nat, named, nfproto};

/// The ranges of this node's pods.
pub(super) const LOCAL: &str = "pods";
/// Destinations that see pods' own addresses.
const INSIDE: &str = "inside";
/// A group has no one way out whose address could stand in for the pod's.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

pub(super) fn sets(family: Family) -> [(String, Set); 2] {
    let ranges = Set::intervals(Type::addr(nfproto(family)));
    [(named(LOCAL, family), ranges.clone()), (named(INSIDE, family), ranges)]
}

pub(super) fn rule_of(family: Family) -> Rule {
    let nfproto = nfproto(family);
    rule("pods to outside the cluster")
        .within(nfproto, &[Selector::Saddr], &named(LOCAL, family))
        .not_within(nfproto, &[Selector::Daddr], &named(INSIDE, family))
        .masquerade()
}

/// Takes the ranges of before out of a state and puts those of now in, leaving alone what stays: there may be thousands.
pub(super) fn replan(state: &mut State, before: Option<&Nat>, now: &Nat) {
    let (old, new) = (before.map(elements).unwrap_or_default(), elements(now));
    for key in old.difference(&new) {
        state.remove(key);
    }
    let entry = Arc::new(Entry { object: Object::NftElement(ElementData::default()), owner: Owner::Node });
    for key in new.difference(&old) {
        state.share(Arc::new(key.clone()), entry.clone());
    }
}

fn elements(nat: &Nat) -> BTreeSet<Key> {
    let multicast = MULTICAST.map(|range| range.parse().expect("a prefix"));
    let inside = [&nat.local_ranges, &nat.cluster_ranges, &nat.non_masquerade].into_iter().flatten().copied();
    let inside: Vec<IpNet> = inside.chain(multicast).collect();
    let mut elements = BTreeSet::new();
    for (stem, ranges) in [(LOCAL, &nat.local_ranges), (INSIDE, &inside)] {
        let sets = Family::ALL.map(|family| (family, Arc::<str>::from(named(stem, family))));
        // Intervals of a set must not overlap.
        elements.extend(IpNet::aggregate(ranges).into_iter().map(|range| {
            let of_range = |(family, _): &&(Family, Arc<str>)| *family == Family::of_net(&range);
            let (_, set) = sets.iter().find(of_range).expect("a set for each family");
            Key::NftElement { set: set.clone(), key: ElementKey::prefix(range) }
        }));
    }
    elements
}
