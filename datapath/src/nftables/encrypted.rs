//! Towards other nodes' pods by a device that encrypts: under which address, and, where that is strict, by no other way.
//!
//! Peers take from a node what comes from its own ranges and nothing else. So what enters the cluster through this node, or is
//! sent by it under another address of its own, leaves under its fabric address; before kube-proxy's like, whose masquerading
//! would choose the underlay's, to which pods would answer in clear.
//!
//! Strict is the last look at a packet before it leaves, whoever sent it: a pod, the node itself, or who comes through the node. A
//! device that only wraps does not pass, nor does the way out to the internet, which a range without a route would take.
//!
//! Nodes' own addresses pass before that is asked: a pool over the nodes' network, which is a mistake that is told, would cut the node
//! off from the API server, where it is mended, and from peers' encrypted packets. That opens nothing: a pod's address is in a podCIDR or
//! in an IPBlock, and an address that is in any of either is not among these, whoever says that it is a node's.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::claims::{
    ENCRYPTED_LINK_PREFIX, NFT_POLICY_PRIORITY, NFT_SRCNAT_PRIORITY, NFT_STRICT_CHAIN, POD_LINK_GROUPS,
};
use tartan_netstate::nft::{
    Chain, ChainKind, ElementData, ElementKey, HookPoint, Rule, RuleBuilder, Selector, Set, Type, rule,
};
use tartan_netstate::{Key, Object, Owner, State};

use super::{Given, masquerade, named, nfproto};

/// The ranges that all pods have their addresses from.
const CLUSTER: &str = "cluster";
/// Addresses in these that are nodes' own.
const NODES: &str = "nodes";
/// Before others translate sources.
const PRIORITY: i32 = NFT_SRCNAT_PRIORITY - 1;

pub(super) fn plan(given: &Given) -> State {
    let mut state = State::new();
    if given.encrypted_at.is_empty() && !given.by_ipsec && !given.strict {
        return state;
    }
    let mut put = |key: Key, object: Object| state.insert(key, object, Owner::Node);
    for family in Family::ALL {
        let set = Set::intervals(Type::addr(nfproto(family)));
        put(Key::NftSet { set: named(CLUSTER, family).into() }, Object::NftSet(set.into()));
    }
    for range in IpNet::aggregate(&given.cluster_ranges) {
        let set = named(CLUSTER, Family::of_net(&range)).into();
        put(Key::NftElement { set, key: ElementKey::prefix(range) }, Object::NftElement(ElementData::default()));
    }
    for family in nodes_in_pools(given) {
        let set = Set::intervals(Type::addr(nfproto(family)));
        put(Key::NftSet { set: named(NODES, family).into() }, Object::NftSet(set.into()));
    }
    for address in given.nodes_in_pools.iter().filter(|_| given.strict) {
        let set = named(NODES, Family::of(*address)).into();
        let key = ElementKey::prefix(Family::host_net(*address));
        put(Key::NftElement { set, key }, Object::NftElement(ElementData::default()));
    }
    let sources = Chain::base(ChainKind::Nat, HookPoint::Postrouting, PRIORITY, sources(given));
    put(Key::NftChain { chain: "encrypted_sources".into() }, Object::NftChain(sources.into()));
    if given.strict {
        let chain = Chain::base(ChainKind::Filter, HookPoint::Postrouting, NFT_POLICY_PRIORITY, strict(given));
        put(Key::NftChain { chain: NFT_STRICT_CHAIN.into() }, Object::NftChain(chain.into()));
    }
    state
}

fn sources(given: &Given) -> Vec<Rule> {
    let encrypted = |says: &str| rule(says).oifname_prefix(ENCRYPTED_LINK_PREFIX);
    let elsewhere =
        |rule: RuleBuilder, family, side| rule.not_within(nfproto(family), &[side], &named(CLUSTER, family));
    // What has that address already is told so, too: others who translate sources leave it alone then.
    let to_node = |(family, own): (Family, &IpAddr)| {
        elsewhere(encrypted("to a node's own address: peers know this one"), family, Selector::Daddr).snat_to(*own)
    };
    let to_pod = |(family, fabric_address): (Family, &IpAddr)| {
        elsewhere(encrypted("peers know this node's own ranges"), family, Selector::Saddr).snat_to(*fabric_address)
    };
    given.encrypts_from.iter().map(to_node).chain(given.fabric_address.iter().map(to_pod)).collect()
}

fn strict(given: &Given) -> Vec<Rule> {
    let encrypted = rule("it leaves encrypted").oifname_prefix(ENCRYPTED_LINK_PREFIX).returns();
    let by_ipsec = given.by_ipsec.then(|| rule("it is about to be encrypted").ipsec().returns());
    let to_pod = rule("to a pod here").oifgroup(POD_LINK_GROUPS).returns();
    let to_node = |family| {
        let one = rule("to a node");
        one.within(nfproto(family), &[Selector::Daddr], &named(NODES, family)).returns()
    };
    let in_clear = |family| {
        rule("to another node's pod in clear")
            .not_within(nfproto(family), &[Selector::Daddr], &named(masquerade::LOCAL, family))
            .within(nfproto(family), &[Selector::Daddr], &named(CLUSTER, family))
            .counter()
            .drop()
    };
    let to_nodes = nodes_in_pools(given).map(to_node);
    let in_clear = Family::ALL.into_iter().map(in_clear);
    [encrypted, to_pod].into_iter().chain(by_ipsec).chain(to_nodes).chain(in_clear).collect()
}

/// Families of which there are such addresses, where that matters.
fn nodes_in_pools(given: &Given) -> impl Iterator<Item = Family> {
    let has_some = |family: &Family| given.nodes_in_pools.iter().any(|address| Family::of(*address) == *family);
    Family::ALL.into_iter().filter(move |family| given.strict && has_some(family))
}
