//! Chains, sets and maps of the table, all of them there from the start.
//!
//! ```text
//! raw_prerouting    filter -300   what a pod must not send: loopback, wrapped packets, tests; what no connection is kept of
//! raw_output        filter -300   what no connection is kept of
//! nat_prerouting    nat    -100   to an address of this node  ──► hostports
//! nat_output        nat    -100   the same, sent by this node ──► hostports
//! nat_postrouting   nat     100   towards pods: the fabric address; out of the cluster: masquerade
//! ```
//!
//! Towards pods the source is translated to the fabric address, never masqueraded: the kernel kills masqueraded
//! connections when their output device changes, so a change of the fabric would cut them.

use tartan_model::Family;
use tartan_netstate::claims::{
    NFT_DSTNAT_PRIORITY, NFT_RAW_PRIORITY, NFT_SRCNAT_PRIORITY, POD_LINK_GROUP, SELFTEST_PORT,
};
use tartan_netstate::nft::{AddressSide, Chain, ChainKind, HookPoint, Rule, Selector, rule};
use tartan_netstate::{Key, Object, Owner, State};

use super::{Nat, hostport, masquerade, named, nfproto};

/// IPv4 in IP, and IPv6 in IP (RFC 2003, RFC 2473).
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;

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

fn chains(nat: &Nat) -> [(&'static str, Chain); 6] {
    use ChainKind::{Filter, Nat as Translate};
    // Each flow inside has a source port of its own outside, and answers come under another: an entry for each way of each
    // flow, and none that an answer meets.
    let outer = |port| rule("packets between nodes are looked at inside").udp_dport(port);
    let ports = [nat.vxlan_port, nat.udp_port];
    let came_in = ports.map(|port| outer(port).fib_local(AddressSide::Daddr).notrack());
    let to_node = || vec![rule("ports of pods").fib_local(AddressSide::Daddr).jump(hostport::CHAIN)];
    [
        (
            "raw_prerouting",
            Chain::base(
                Filter,
                HookPoint::Prerouting,
                NFT_RAW_PRIORITY,
                no_loopback_from_pods()
                    .into_iter()
                    .chain(no_outer_packets_from_pods(ports))
                    .chain([no_selftest_from_pods()])
                    .chain(came_in)
                    .collect(),
            ),
        ),
        (
            "raw_output",
            Chain::base(Filter, HookPoint::Output, NFT_RAW_PRIORITY, ports.map(|port| outer(port).notrack()).into()),
        ),
        ("nat_prerouting", Chain::base(Translate, HookPoint::Prerouting, NFT_DSTNAT_PRIORITY, to_node())),
        ("nat_output", Chain::base(Translate, HookPoint::Output, NFT_DSTNAT_PRIORITY, to_node())),
        (hostport::CHAIN, Chain::regular(Family::ALL.into_iter().flat_map(hostport::rules).collect())),
        (
            "nat_postrouting",
            Chain::base(Translate, HookPoint::Postrouting, NFT_SRCNAT_PRIORITY, source_translation(nat)),
        ),
    ]
}

/// `route_localnet`, which 127.0.0.1 needs to reach a pod's port, must not open the node's own loopback to pods. Before
/// conntrack even a true answer does not carry such an address.
fn no_loopback_from_pods() -> [Rule; 2] {
    let loopback = "127.0.0.0/8".parse().expect("a prefix");
    let from_pod = || rule("pods have no business with the node's loopback").iifgroup(POD_LINK_GROUP);
    [from_pod().daddr(loopback).drop(), from_pod().saddr(loopback).drop()]
}

/// What is wrapped is taken for what a node has looked at already, wherever it is unwrapped: a pod that wrapped packets
/// itself could send under any address, past all policy.
fn no_outer_packets_from_pods([vxlan, udp]: [u16; 2]) -> [Rule; 4] {
    let from_pod = || rule("only nodes wrap packets").iifgroup(POD_LINK_GROUP);
    [
        from_pod().udp_dport(vxlan).drop(),
        from_pod().udp_dport(udp).drop(),
        from_pod().l4proto(IPPROTO_IPIP).drop(),
        from_pod().l4proto(IPPROTO_IPV6).drop(),
    ]
}

/// Nodes ask each other how their paths are; a pod must not be able to drown that out. Other nodes' pods cannot: what was
/// forwarded is not heard there (kernel/src/echo.rs).
fn no_selftest_from_pods() -> Rule {
    let from_pod = rule("only nodes test paths").iifgroup(POD_LINK_GROUP);
    from_pod.udp_dport(SELFTEST_PORT).fib_local(AddressSide::Daddr).drop()
}

fn source_translation(nat: &Nat) -> Vec<Rule> {
    let towards_pods = nat.fabric_address.iter().flat_map(|(family, fabric_address)| {
        let hairpin = rule("a pod through the node to itself").within(
            nfproto(family),
            &[Selector::Saddr, Selector::Daddr],
            &named(HAIRPIN, family),
        );
        let node = rule("this node through its own port to a pod")
            .oifgroup(POD_LINK_GROUP)
            .nfproto(nfproto(family))
            .fib_local(AddressSide::Saddr)
            .ct_status_dnat();
        [hairpin.snat_to(*fabric_address), node.snat_to(*fabric_address)]
    });
    let out = Family::ALL.into_iter().filter(|_| nat.masquerade).map(masquerade::rule_of);
    towards_pods.chain(out).collect()
}
