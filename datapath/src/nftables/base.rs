//! Chains, sets and maps of the table, all of them there from the start.
//!
//! ```text
//! raw_prerouting    filter -300   what is wrapped: pods must not, and no connection is kept of it
//! raw_input         filter -300   what a pod must not send to this node: to its loopback, tests of paths
//! raw_output        filter -300   what no connection is kept of
//! nat_prerouting    nat    -100   to an address of this node  ──► hostports
//! nat_output        nat    -100   the same, sent by this node ──► hostports
//! nat_postrouting   nat     100   towards pods: the fabric address; out of the cluster: masquerade
//! ```
//!
//! All packets of pods come by `raw_prerouting`, so each rule there costs: what can be asked of fewer is asked elsewhere.
//!
//! Towards pods the source is translated to the fabric address, never masqueraded: the kernel kills masqueraded
//! connections when their output device changes, so a change of the fabric would cut them.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::claims::{
    NFT_DSTNAT_PRIORITY, NFT_RAW_PRIORITY, NFT_SRCNAT_PRIORITY, POD_LINK_GROUPS, SELFTEST_PORT,
};
use tartan_netstate::nft::{AddressSide, Chain, ChainKind, HookPoint, Rule, RuleBuilder, Selector, rule};
use tartan_netstate::{Key, Object, Owner, State};
use tartan_policy::ir::protocol;

use super::{Nat, hostport, masquerade, named, nfproto};

/// IPv4 in IP, and IPv6 in IP (RFC 2003, RFC 2473).
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;

/// Where wrapped packets go.
const OUTER: &str = "outer";
/// Where the sources of what came for a port of the node are translated.
const TOWARDS_PODS: &str = "towards_pods";
/// A pod's packet that passes through the node and comes back to the same pod.
pub(super) const HAIRPIN: &str = "hairpin";

pub(super) fn plan(nat: &Nat) -> State {
    let mut state = State::new();
    state.insert(Key::NftTable, Object::NftTable, Owner::Node);
    for family in Family::ALL {
        for (name, set) in hostport::sets(family).into_iter().chain(masquerade::sets(family)) {
            state.insert(Key::NftSet { set: name.into() }, Object::NftSet(set.into()), Owner::Node);
        }
    }
    for (name, chain) in chains(nat) {
        state.insert(Key::NftChain { chain: name.into() }, Object::NftChain(chain.into()), Owner::Node);
    }
    state
}

fn chains(nat: &Nat) -> [(&'static str, Chain); 9] {
    use ChainKind::{Filter, Nat as Translate};
    // Each flow inside has a source port of its own outside, and answers come under another: an entry for each way of each
    // flow, and none that an answer meets.
    let outer = |port| rule("packets between nodes are looked at inside").udp_dport(port);
    // Nobody can wrap anything so who has no key. A node sends from the port at which it hears, so others' answers are told from it.
    let encrypted = || nat.encrypted_at.iter().map(|port| rule("encrypted between nodes").udp_between(*port));
    let to_node = || vec![rule("ports of pods").fib_local(AddressSide::Daddr).jump(hostport::CHAIN)];
    let hostports = [no_loopback_of_pods().iifgroup(POD_LINK_GROUPS).saddr(loopback()).drop()].into_iter();
    [
        (
            "raw_prerouting",
            Chain::base(
                Filter,
                HookPoint::Prerouting,
                NFT_RAW_PRIORITY,
                [rule("TCP wraps nothing").l4proto(protocol::TCP).returns()]
                    .into_iter()
                    .chain(nat.between_nodes.map(|port| outer(port).goto(OUTER)))
                    .chain(encrypted().map(|rule| rule.fib_local(AddressSide::Daddr).notrack()))
                    .chain([IPPROTO_IPIP, IPPROTO_IPV6].map(|wrapped| only_nodes(wraps().l4proto(wrapped)).drop()))
                    .collect(),
            ),
        ),
        (
            OUTER,
            Chain::regular(vec![
                only_nodes(wraps()).drop(),
                rule("to this node").fib_local(AddressSide::Daddr).notrack(),
            ]),
        ),
        ("raw_input", Chain::base(Filter, HookPoint::Input, NFT_RAW_PRIORITY, to_this_node())),
        (
            "raw_output",
            Chain::base(
                Filter,
                HookPoint::Output,
                NFT_RAW_PRIORITY,
                nat.between_nodes.into_iter().map(outer).chain(encrypted()).map(RuleBuilder::notrack).collect(),
            ),
        ),
        ("nat_prerouting", Chain::base(Translate, HookPoint::Prerouting, NFT_DSTNAT_PRIORITY, to_node())),
        ("nat_output", Chain::base(Translate, HookPoint::Output, NFT_DSTNAT_PRIORITY, to_node())),
        (hostport::CHAIN, Chain::regular(hostports.chain(Family::ALL.into_iter().flat_map(hostport::rules)).collect())),
        (
            "nat_postrouting",
            Chain::base(Translate, HookPoint::Postrouting, NFT_SRCNAT_PRIORITY, source_translation(nat)),
        ),
        (TOWARDS_PODS, Chain::regular(towards_pods(nat))),
    ]
}

/// What is wrapped is taken for what a node has looked at already, wherever it is unwrapped: a pod that wrapped packets
/// itself could send under any address, past all policy.
fn only_nodes(wraps: RuleBuilder) -> RuleBuilder {
    wraps.iifgroup(POD_LINK_GROUPS)
}

fn wraps() -> RuleBuilder {
    rule("only nodes wrap packets")
}

/// Nodes ask each other how their paths are; a pod must not be able to drown that out. Other nodes' pods cannot: what was
/// forwarded is not heard there (kernel/src/echo.rs).
///
/// A node's own connections through 127.0.0.1 to a pod are translated: their answers have that address here again.
fn to_this_node() -> Vec<Rule> {
    vec![
        rule("not from a pod").not_iifgroup(POD_LINK_GROUPS).returns(),
        rule("only nodes test paths").udp_dport(SELFTEST_PORT).drop(),
        rule("answers").ct_direction_reply().returns(),
        no_loopback_of_pods().daddr(loopback()).drop(),
        no_loopback_of_pods().saddr(loopback()).drop(),
    ]
}

/// `route_localnet`, which 127.0.0.1 needs to reach a pod's port, must not open the node's own loopback to pods, nor let
/// them pass for it.
fn no_loopback_of_pods() -> RuleBuilder {
    rule("pods have no business with the node's loopback")
}

fn loopback() -> IpNet {
    "127.0.0.0/8".parse().expect("a prefix")
}

fn source_translation(nat: &Nat) -> Vec<Rule> {
    let towards_pods = rule("a destination was translated").ct_status_dnat().jump(TOWARDS_PODS);
    let families = Family::ALL.into_iter().filter(|_| nat.masquerade);
    let ports = nat.encrypted_at.iter().copied().chain(nat.between_nodes).collect();
    let out = families.flat_map(|family| masquerade::rules_of(family, &ports));
    [towards_pods].into_iter().chain(out).collect()
}

/// Of what came for a port of the node.
fn towards_pods(nat: &Nat) -> Vec<Rule> {
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
    nat.fabric_address.iter().flat_map(of).collect()
}
