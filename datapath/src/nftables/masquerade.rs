//! Which packets of pods leave under the node's address: those to outside the cluster.
//!
//! Invariants: a packet to a pod, on whatever node, keeps its source; no answer comes to a port at which packets between
//! nodes arrive, of which no connection is kept.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Config, FabricMode, Family};
use tartan_netstate::claims::WIREGUARD_PORTS;
use tartan_netstate::nft::{ElementData, ElementKey, Rule, RuleBuilder, Selector, Set, SetName, Type, rule};
use tartan_netstate::{Entry, Key, Object, Owner, State};
use tartan_policy::ir::protocol;

use super::{Given, named, nfproto};

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

/// Ports at which packets between nodes are to arrive by this configuration, now or with the next keys: a connection that has one of
/// them would be lost when they do.
pub(super) fn configured(config: &Config) -> BTreeSet<u16> {
    let encrypted = match config.encrypts_by() {
        Some(FabricMode::Wireguard) => {
            (0..WIREGUARD_PORTS).filter_map(|n| config.wireguard.port.checked_add(n)).collect()
        }
        Some(FabricMode::Ipsec) => config.ipsec.port.into_iter().collect(),
        _ => BTreeSet::new(),
    };
    &config.ports_between_nodes() | &encrypted
}

/// `arrives_at`: UDP ports at which packets between nodes arrive here.
pub(super) fn rules_of(family: Family, arrives_at: &BTreeSet<u16>) -> [Rule; 2] {
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
        out(rule(comment).nfproto(nfproto).l4proto(protocol::UDP)).masquerade_to(widest_without(arrives_at)),
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

/// The ranges in each of the sets, in order and disjoint, as intervals of a set must be.
#[derive(Default)]
pub(super) struct Ranges {
    local: Vec<IpNet>,
    inside: Vec<IpNet>,
}

impl Ranges {
    pub(super) fn of(given: &Given) -> Ranges {
        let multicast = MULTICAST.map(|range| range.parse().expect("a prefix"));
        let inside = [&given.local_ranges, &given.cluster_ranges, &given.non_masquerade].into_iter().flatten().copied();
        let inside: Vec<IpNet> = inside.chain(multicast).collect();
        let [local, inside] = [&given.local_ranges, &inside].map(|ranges| {
            let mut ranges = IpNet::aggregate(ranges);
            ranges.sort_unstable();
            ranges
        });
        Ranges { local, inside }
    }

    fn sets(&self) -> [(&'static str, &Vec<IpNet>); 2] {
        [(LOCAL, &self.local), (INSIDE, &self.inside)]
    }
}

/// Takes the ranges of before out of a state and puts those of now in. What stays is left alone and not even named: there
/// may be thousands.
pub(super) fn replan(state: &mut State, before: &Ranges, now: &Ranges) {
    let entry = Arc::new(Entry { object: Object::NftElement(ElementData::default()), owner: Owner::Node });
    for ((stem, old), (_, new)) in before.sets().into_iter().zip(now.sets()) {
        let names = Family::ALL.map(|family| SetName::from(named(stem, family)));
        let element = |range: &IpNet| {
            let [v4, v6] = &names;
            let set = match Family::of_net(range) {
                Family::V4 => v4,
                Family::V6 => v6,
            };
            Key::NftElement { set: *set, key: ElementKey::prefix(*range) }
        };
        for range in old.iter().filter(|range| new.binary_search(range).is_err()) {
            state.remove(&element(range));
        }
        for range in new.iter().filter(|range| old.binary_search(range).is_err()) {
            state.share(Arc::new(element(range)), entry.clone());
        }
    }
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
