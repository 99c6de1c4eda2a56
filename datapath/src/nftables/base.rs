//! What is not tracked, and where addresses are translated: chains, sets and maps that are there from the start.
//!
//! All packets of pods come by `raw_prerouting`, so each rule there costs, and the hook itself: it is there only where something is
//! unwrapped. What can be asked of fewer is asked elsewhere: of what is for this node at its input, of a connection's first
//! packet where destinations are translated.
//!
//! Towards pods the source is translated to the fabric address, never masqueraded: the kernel kills masqueraded
//! connections when their output device changes, so a change of the fabric would cut them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::claims::{
    NFT_DSTNAT_PRIORITY, NFT_RAW_PRIORITY, NFT_SRCNAT_PRIORITY, POD_LINK_GROUPS, SELFTEST_PORT,
};
use tartan_netstate::nft::{AddressSide, Chain, ChainKind, HookPoint, Rule, RuleBuilder, Selector, rule};
use tartan_netstate::{Key, Object, Owner, State};
use tartan_policy::ir::protocol;

use super::{Given, hostport, masquerade, named, nfproto};

/// IPv4 in IP, and IPv6 in IP (RFC 2003, RFC 2473).
const WRAPS: [u8; 2] = [4, 41];

/// Where the sources of what came for a port of the node are translated.
const TOWARDS_PODS: &str = "towards_pods";
/// A pod's packet that passes through the node and comes back to the same pod.
pub(super) const HAIRPIN: &str = "hairpin";

/// `configured`: UDP ports at which packets between nodes are to arrive here.
pub(super) fn plan(given: &Given, configured: &BTreeSet<u16>) -> State {
    let mut state = State::new();
    state.insert(Key::NftTable, Object::NftTable, Owner::Node);
    for family in Family::ALL {
        for (name, set) in hostport::sets(family).into_iter().chain(masquerade::sets(family)) {
            state.insert(Key::NftSet { set: name.into() }, Object::NftSet(set.into()), Owner::Node);
        }
    }
    for (name, chain) in chains(given, configured) {
        state.insert(Key::NftChain { chain: name.into() }, Object::NftChain(chain.into()), Owner::Node);
    }
    state
}

fn chains(given: &Given, configured: &BTreeSet<u16>) -> Vec<(&'static str, Chain)> {
    use ChainKind::{Filter, Nat as Translate};
    // Each flow inside has a source port of its own outside, and answers come under another: an entry for each way of each
    // flow, and none that an answer meets.
    let unwrapped = given.unwraps_at.iter().map(|port| rule("between nodes").udp_dport(*port));
    // A node sends from the port at which it hears, so others' answers are told from it.
    let encrypted = given.encrypted_at.iter().map(|port| rule("encrypted between nodes").udp_between(*port));
    let outer: Vec<RuleBuilder> = unwrapped.chain(encrypted).collect();
    let mut untracked = Vec::new();
    if !outer.is_empty() {
        let came = outer.iter().cloned().map(|rule| rule.fib_local(AddressSide::Daddr).notrack());
        let came = [rule("TCP wraps nothing").l4proto(protocol::TCP).returns()].into_iter().chain(came).collect();
        let goes = outer.into_iter().map(RuleBuilder::notrack).collect();
        untracked.push(("raw_prerouting", Chain::base(Filter, HookPoint::Prerouting, NFT_RAW_PRIORITY, came)));
        untracked.push(("raw_output", Chain::base(Filter, HookPoint::Output, NFT_RAW_PRIORITY, goes)));
    }
    let to_node = || rule("ports of pods").fib_local(AddressSide::Daddr).jump(hostport::CHAIN);
    let came = [to_node(), rule("TCP wraps nothing").l4proto(protocol::TCP).returns()];
    let came = came
        .into_iter()
        .chain(wrapped(rule, &given.between_nodes).map(|rule| rule.iifgroup(POD_LINK_GROUPS).drop()))
        .collect();
    let hostports = [no_loopback_of_pods().iifgroup(POD_LINK_GROUPS).saddr(loopback()).drop()].into_iter();
    let always = [
        ("raw_input", Chain::base(Filter, HookPoint::Input, NFT_RAW_PRIORITY, to_this_node(given))),
        ("nat_prerouting", Chain::base(Translate, HookPoint::Prerouting, NFT_DSTNAT_PRIORITY, came)),
        ("nat_output", Chain::base(Translate, HookPoint::Output, NFT_DSTNAT_PRIORITY, vec![to_node()])),
        (hostport::CHAIN, Chain::regular(hostports.chain(Family::ALL.into_iter().flat_map(hostport::rules)).collect())),
        (
            "nat_postrouting",
            Chain::base(Translate, HookPoint::Postrouting, NFT_SRCNAT_PRIORITY, source_translation(given, configured)),
        ),
        (TOWARDS_PODS, Chain::regular(towards_pods(given))),
    ];
    untracked.into_iter().chain(always).collect()
}

/// What is wrapped is taken for what a node has looked at already, wherever it is unwrapped: a pod that wrapped packets
/// itself could send under any address, past all policy. Where policy is enforced each of its packets is asked for it, too
/// (`policy/chains.rs`): here, of those for other nodes, what would begin a connection.
pub(super) fn wrapped(
    begun: fn(&'static str) -> RuleBuilder,
    between_nodes: &BTreeSet<u16>,
) -> impl Iterator<Item = RuleBuilder> {
    let by = move || begun("only nodes wrap packets");
    let ports = between_nodes.iter().map(move |port| by().udp_dport(*port));
    ports.chain(WRAPS.map(|wraps| by().l4proto(wraps)))
}

/// Nodes ask each other how their paths are; a pod must not be able to drown that out. Other nodes' pods cannot: what was
/// forwarded is not heard there (kernel/src/echo.rs).
///
/// A node's own connections through 127.0.0.1 to a pod are translated: their answers have that address here again.
fn to_this_node(given: &Given) -> Vec<Rule> {
    let mut rules = vec![
        rule("not from a pod").not_iifgroup(POD_LINK_GROUPS).returns(),
        rule("only nodes test paths").udp_dport(SELFTEST_PORT).drop(),
    ];
    rules.extend(wrapped(rule, &given.between_nodes).map(RuleBuilder::drop));
    rules.extend([
        rule("answers").ct_direction_reply().returns(),
        no_loopback_of_pods().daddr(loopback()).drop(),
        no_loopback_of_pods().saddr(loopback()).drop(),
    ]);
    rules
}

/// `route_localnet`, which 127.0.0.1 needs to reach a pod's port, must not open the node's own loopback to pods, nor let
/// them pass for it.
fn no_loopback_of_pods() -> RuleBuilder {
    rule("pods have no business with the node's loopback")
}

fn loopback() -> IpNet {
    "127.0.0.0/8".parse().expect("a prefix")
}

/// Answers come to this node, so other nodes' ports do not matter.
fn source_translation(given: &Given, configured: &BTreeSet<u16>) -> Vec<Rule> {
    let towards_pods = rule("a destination was translated").ct_status_dnat().jump(TOWARDS_PODS);
    let families = Family::ALL.into_iter().filter(|_| given.masquerade);
    let ports = &(&given.encrypted_at | &given.unwraps_at) | configured;
    let out = families.flat_map(|family| masquerade::rules_of(family, &ports));
    [towards_pods].into_iter().chain(out).collect()
}

/// Of what came for a port of the node.
fn towards_pods(given: &Given) -> Vec<Rule> {
    let of = |(family, fabric_address): (Family, &IpAddr)| {
        let hairpin = rule("a pod through the node to itself").within(
            nfproto(family),
            &[Selector::Saddr, Selector::Daddr],
            &named(HAIRPIN, family),
        );
        let node = rule("this node through its own port to a pod")
            .oifgroup(POD_LINK_GROUPS)
            .nfproto(nfproto(family))
            .fib_local(AddressSide::Saddr);
        [hairpin.snat_to(*fabric_address), node.snat_to(*fabric_address)]
    };
    given.fabric_address.iter().flat_map(of).collect()
}
