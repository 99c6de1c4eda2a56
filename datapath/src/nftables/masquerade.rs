//! Which packets of pods leave under the node's address: those to outside the cluster.
//!
//! Invariants: a packet to a pod, on whatever node, keeps its source; no answer comes to a port at which packets between
//! nodes arrive, of which no connection is kept.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::nft::{ElementData, ElementKey, Rule, RuleBuilder, Selector, Set, Type, rule};
use tartan_netstate::{Entry, Key, Object, Owner, State};
use tartan_policy::ir::protocol;

use super::{Nat, named, nfproto};

/// The ranges of this node's pods.
pub(super) const LOCAL: &str = "pods";
/// Destinations that see pods' own addresses.
const INSIDE: &str = "inside";
/// A group has no one way out whose address could stand in for the pod's.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];
/// The first port that anybody may take.
const UNPRIVILEGED: u16 = 1024;

pub(super) fn sets(family: Family) -> [(String, Set); 2] {
    let ranges = Set::intervals(Type::addr(nfproto(family)));
    [(named(LOCAL, family), ranges.clone()), (named(INSIDE, family), ranges)]
}

/// `between_nodes`: UDP ports at which packets between nodes arrive.
pub(super) fn rules_of(family: Family, between_nodes: &BTreeSet<u16>) -> [Rule; 2] {
    let nfproto = nfproto(family);
    let out = |rule: RuleBuilder| {
        rule.within(nfproto, &[Selector::Saddr], &named(LOCAL, family)).not_within(
            nfproto,
            &[Selector::Daddr],
            &named(INSIDE, family),
        )
    };
    let comment = "pods to outside the cluster";
    [
        out(rule(comment).nfproto(nfproto).l4proto(protocol::UDP)).masquerade_to(widest_without(between_nodes)),
        out(rule(comment)).masquerade(),
    ]
}

/// The most ports in a row, of those that take no privilege, without these.
fn widest_without(ports: &BTreeSet<u16>) -> RangeInclusive<u16> {
    let left_out = || ports.range(UNPRIVILEGED..);
    let firsts = [UNPRIVILEGED].into_iter().chain(left_out().filter_map(|port| port.checked_add(1)));
    let lasts = left_out().map(|port| port - 1).chain([u16::MAX]);
    firsts.zip(lasts).map(|(first, last)| first..=last).max_by_key(|ports| ports.len()).expect("there are few ports")
}

/// Takes the ranges of before out of a state and puts those of now in, leaving alone what stays: there may be thousands.
pub(super) fn replan(state: &mut State, before: Option<&Nat>, now: &Nat) {
    let (old, new) = (before.map(elements).unwrap_or_default(), elements(now));
    for key in old.difference(&new) {
        state.remove(key);
    }
    let entry = Arc::new(Entry { object: Object::NftElement(ElementData::default()), owner: Owner::Node });
    for key in new.into_iter().filter(|key| !old.contains(key)) {
        state.share(Arc::new(key), entry.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_most_in_a_row() {
        let check = |without: &[u16], wanted| {
            let without = without.iter().copied().collect();
            assert_eq!(widest_without(&without), wanted, "{without:?}");
        };
        check(&[], 1024..=65535);
        check(&[8472, 8285], 8473..=65535);
        check(&[4789, 8285], 8286..=65535);
        check(&[40000, 8285], 8286..=39999);
        check(&[65535, 8285], 8286..=65534);
        check(&[1024, 789], 1025..=65535);
        check(&[60000, 60000], 1024..=59999);
        check(&[8472, 8285, 51820, 51822], 8473..=51819);
    }
}
