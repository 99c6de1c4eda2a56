//! Who is judged where: the chains around [`judge`].
//!
//! Forwarded packets are judged by the pod they leave, then by the pod they enter; packets to this node by the pod they
//! leave. This node's own packets to its pods are not judged, probes must pass; but what it answers to a pod whose
//! egress was revoked is. All hooks are after destinations and before sources are translated.
//!
//! What IPVS passes on (kube-proxy's mode `ipvs`) it takes from the input hook and gives to the output hook, translated: there it
//! is judged as if it were forwarded, and what tells it is its source, which is not this node's.
//!
//! A stamp says under which generation a connection was judged, and whether by one pod or by two. A connection that one has
//! judged, the other end being elsewhere, has a second one to ask from the moment that a pod of this node has that end's
//! address, whatever came first: the pod, its route, or the generation.
//!
//! Invariant: a packet that enters from a pod or leaves to one passes because its connection's stamp is of this
//! generation and of as many pods as it has here, because every pod concerned lets it pass, or because it is one of the few
//! that are never judged.

use std::collections::BTreeSet;

use tartan_model::Family;
use tartan_netstate::claims::{
    CT_MARK_GENERATION, CT_MARK_JUDGED, NFT_POLICY_INPUT_PRIORITY, NFT_POLICY_PRIORITY, NFT_RAW_PRIORITY,
    POD_LINK_GROUPS,
};
use tartan_netstate::nft::{
    AddressSide, Chain, ChainKind, CtDirection, Expr, HookPoint, Nfproto, Rule, RuleBuilder, Selector, rule,
};
use tartan_netstate::policy::Side;
use tartan_netstate::{Generation, Key, Object};
use tartan_policy::ir::protocol;

use super::Mode;
use super::judge::{self, Packets, REPORTS};
use super::maps::{self, BRIDGES, DISCOVERY, SELF, SOURCES, Way};
use crate::nftables::{base, named};

/// Where packets end, with their word as mark.
pub(super) const DENIED: &str = "policy_denied";
/// The same, and the sender is told.
pub(super) const REJECTED: &str = "policy_rejected";
/// Forwarded ones.
const THROUGH: &str = "policy_through";
/// Forwarded ones that go against the direction of their connection.
const THROUGH_BACK: &str = "policy_through_back";
const TO_NODE: &str = "policy_to_node";
const FROM_NODE: &str = "policy_from_node";

/// What IPVS passes on.
const PASSED_ON: &str = "policy_passed_on";
/// Lets pass what was judged in this generation, where there is at most one pod whose affair it is.
const JUDGED: &str = "policy_judged_here";
/// The same by all pods of this node that it comes from and goes to.
const JUDGED_BY_ALL: &str = "policy_judged_by_all";
/// What one pod has judged now gets the generation's stamp,
const STAMP: &str = "policy_stamp";
/// and what two have.
const STAMP_OF_BOTH: &str = "policy_stamp_of_both";

const EGRESS: Way = Way { side: Side::Egress, back: false };
const EGRESS_BACK: Way = Way { side: Side::Egress, back: true };
const INGRESS: Way = Way { side: Side::Ingress, back: false };
const INGRESS_BACK: Way = Way { side: Side::Ingress, back: true };

/// Begins a rule about packets of pods, with a comment.
type Begun = fn(&'static str) -> RuleBuilder;

/// By which packets come to be judged. `ipvs`: it is in use.
pub(super) fn hooks(mode: Mode, ipvs: bool, generation: Generation) -> [(Key, Object); 4] {
    let base =
        |name: &str, point, priority, rules| object(name, Chain::base(ChainKind::Filter, point, priority, rules));
    // First, and without a jump, because nearly all packets end here.
    let by_all = judged_by_all(generation).map(|rule| not_of_others(rule).returns());
    let others = [
        rule("from a pod").iifgroup(POD_LINK_GROUPS).goto(THROUGH),
        rule("to a pod").oifgroup(POD_LINK_GROUPS).goto(THROUGH),
    ];
    let forwarded = by_all.into_iter().chain(others).collect();
    let to_node = vec![rule("from a pod").iifgroup(POD_LINK_GROUPS).goto(TO_NODE)];
    // Where there is no IPVS, nothing that a pod sent leaves by this hook.
    let mut from_node: Vec<Rule> = if ipvs { Family::ALL.map(from_a_pod).into() } else { Vec::new() };
    from_node.push(rule("to a pod").oifgroup(POD_LINK_GROUPS).goto(FROM_NODE));
    [
        base("policy_source", HookPoint::Prerouting, NFT_RAW_PRIORITY, sources(mode)),
        base("policy_forward", HookPoint::Forward, NFT_POLICY_PRIORITY, forwarded),
        base("policy_input", HookPoint::Input, NFT_POLICY_INPUT_PRIORITY, to_node),
        base("policy_output", HookPoint::Output, NFT_POLICY_PRIORITY, from_node),
    ]
}

/// Everything that is there whatever pods and policies there are, but for what [`judging`] and [`generation`] give.
pub(super) fn fixed(mode: Mode) -> Vec<(Key, Object)> {
    let mut all = maps::fixed(mode);
    let mut add = |name: &str, chain| all.push(object(name, chain));
    for way in Way::ALL {
        let mut dispatch = Vec::new();
        for nfproto in Nfproto::BOTH {
            for icmp in [true, false] {
                let packets = Packets { way, nfproto, icmp };
                let these = rule("").nfproto(nfproto);
                let these = if icmp { these.l4proto(maps::icmp(nfproto)) } else { these };
                dispatch.push(these.goto(&packets.chain()));
                add(&packets.chain(), Chain::regular(judge::chain(packets, mode)));
            }
        }
        add(&way.chain(), Chain::regular(dispatch));
    }
    add(DENIED, Chain::regular(vec![report(), rule("denied").counter().drop()]));
    let reset = rule("rejected").l4proto(protocol::TCP).then(Expr::Reject { tcp_reset: true }).build();
    let told = rule("rejected").then(Expr::Reject { tcp_reset: false }).build();
    add(REJECTED, Chain::regular(vec![report(), reset, told]));
    all
}

/// All that holds the generation, beside the first rules of forwarded packets, and no more: it is written while somebody waits.
pub(super) fn generation(generation: Generation) -> [(Key, Object); 4] {
    let stamp = |value| vec![rule("allowed").set_ct_mark(CT_MARK_JUDGED, value).build()];
    [
        (JUDGED, vec![of_this(rule("judged in this generation"), generation).accept()]),
        (JUDGED_BY_ALL, judged_by_all(generation).map(RuleBuilder::accept).into()),
        (STAMP, stamp(generation.stamp())),
        (STAMP_OF_BOTH, stamp(generation.stamp_of_both())),
    ]
    .map(regular)
}

/// The chains around those of pods. `between_nodes`: UDP ports at which nodes unwrap packets.
pub(super) fn judging(mode: Mode, between_nodes: &BTreeSet<u16>) -> [(Key, Object); 5] {
    [
        (THROUGH, through(mode, between_nodes)),
        (THROUGH_BACK, through_back()),
        (TO_NODE, to_node(mode, between_nodes)),
        (FROM_NODE, from_node()),
        (PASSED_ON, passed_on(mode, between_nodes)),
    ]
    .map(regular)
}

fn through(mode: Mode, between_nodes: &BTreeSet<u16>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL.map(|family| to_itself(from_pod, family)).into();
    rules.extend(others_errors(mode, from_pod));
    rules.extend(errors_about_judged(JUDGED_BY_ALL));
    rules.extend(stale_errors(mode));
    rules.extend(to_be_unwrapped(mode, from_pod, between_nodes));
    rules.extend([
        discovery(rule("discovery on a bridge"))
            .within(Nfproto::Ipv6, &[Selector::Iifname, Selector::Oifname], BRIDGES)
            .returns(),
        rule("answers").ct_direction_reply().goto(THROUGH_BACK),
        rule("of the pod it leaves").iifgroup(POD_LINK_GROUPS).jump(&EGRESS.chain()),
        rule("of the pod it enters").oifgroup(POD_LINK_GROUPS).jump(&INGRESS.chain()),
        stamped_by_both(from_pod),
        stamped(),
    ]);
    rules
}

fn through_back() -> Vec<Rule> {
    vec![
        rule("of the pod that began it").oifgroup(POD_LINK_GROUPS).jump(&EGRESS_BACK.chain()),
        rule("of the pod that answers").iifgroup(POD_LINK_GROUPS).jump(&INGRESS_BACK.chain()),
        stamped_by_both(from_pod),
        stamped(),
    ]
}

fn to_node(mode: Mode, between_nodes: &BTreeSet<u16>) -> Vec<Rule> {
    let mut rules = vec![judged(JUDGED)];
    rules.extend(others_errors(mode, from_pod));
    rules.extend([
        rule("answers to this node").ct_direction_reply().returns(),
        discovery(rule("discovery ends here")).returns(),
    ]);
    rules.extend(by_other_addresses(mode));
    rules.extend(errors_about_judged(JUDGED));
    rules.extend(stale_errors(mode));
    rules.extend(to_be_unwrapped(mode, from_pod, between_nodes));
    rules.extend([rule("of the pod it leaves").jump(&EGRESS.chain()), stamped()]);
    rules
}

fn from_node() -> Vec<Rule> {
    let mut rules = vec![judged(JUDGED)];
    rules.extend(errors("of this node").map(RuleBuilder::returns));
    rules.extend([
        rule("answers to a pod").ct_direction_reply().jump(&EGRESS_BACK.chain()),
        rule("of others, passed on").not_fib_local(AddressSide::Saddr).jump(&INGRESS.chain()),
        stamped(),
    ]);
    rules
}

fn passed_on(mode: Mode, between_nodes: &BTreeSet<u16>) -> Vec<Rule> {
    let mut rules = vec![judged(JUDGED_BY_ALL)];
    rules.extend(Family::ALL.map(|family| to_itself(from_anywhere, family)));
    rules.extend(others_errors(mode, from_anywhere));
    rules.extend(errors_about_judged(JUDGED_BY_ALL));
    rules.extend(to_be_unwrapped(mode, from_anywhere, between_nodes));
    rules.extend([
        rule("of the pod it leaves").jump(&EGRESS.chain()),
        rule("of the pod it enters").oifgroup(POD_LINK_GROUPS).jump(&INGRESS.chain()),
        stamped_by_both(from_anywhere),
        stamped(),
    ]);
    rules
}

fn judged(chain: &str) -> Rule {
    not_of_others(rule("may have been judged")).jump(chain)
}

fn errors_about_judged(chain: &str) -> [Rule; 2] {
    errors("may be about what was judged").map(|error| error.jump(chain))
}

fn stamped() -> Rule {
    rule("allowed").goto(STAMP)
}

fn stamped_by_both(from: Begun) -> Rule {
    from("allowed by both").oifgroup(POD_LINK_GROUPS).goto(STAMP_OF_BOTH)
}

/// By all pods of this node that it comes from and goes to. What has come by no link, or leaves by none, has no group: a rule that
/// asks for it ends. Packets between two pods of the node come first: the rest of their way is the shortest.
fn judged_by_all(generation: Generation) -> [RuleBuilder; 3] {
    let judged = || of_this(rule("judged in this generation"), generation);
    [
        rule("judged by both").ct_mark(CT_MARK_JUDGED, generation.stamp_of_both()),
        judged().not_iifgroup(POD_LINK_GROUPS),
        judged().not_oifgroup(POD_LINK_GROUPS),
    ]
}

fn of_this(rule: RuleBuilder, generation: Generation) -> RuleBuilder {
    rule.ct_mark(CT_MARK_GENERATION, generation.stamp())
}

/// What a helper expects has its parent's mark from its first packet on, and an error is sent by anybody.
fn not_of_others(rule: RuleBuilder) -> RuleBuilder {
    rule.not_ct_state_related()
}

fn regular((name, rules): (&str, Vec<Rule>)) -> (Key, Object) {
    object(name, Chain::regular(rules))
}

fn object(name: &str, chain: Chain) -> (Key, Object) {
    (Key::NftChain { chain: name.into() }, Object::NftChain(chain.into()))
}

/// Before connection tracking, so that no packet under a false name is taken for part of somebody's connection.
fn sources(mode: Mode) -> Vec<Rule> {
    if mode != Mode::Enforce {
        return Vec::new();
    }
    let own = |family| {
        let pair = [Selector::Iifname, Selector::Saddr];
        rule("its own address").within(crate::nftables::nfproto(family), &pair, &named(SOURCES, family)).returns()
    };
    let from = |net: &str| discovery(rule("discovery").saddr(net.parse().expect("a prefix"))).returns();
    let mut rules = vec![rule("not from a pod").not_iifgroup(POD_LINK_GROUPS).returns()];
    rules.extend(Family::ALL.map(own));
    rules.extend([from("fe80::/10"), from("::/128")]);
    rules.push(rule("not its own address").counter().drop());
    rules
}

fn discovery(rule: RuleBuilder) -> RuleBuilder {
    let icmpv6 = rule.nfproto(Nfproto::Ipv6).l4proto(protocol::ICMPV6);
    icmpv6.within(Nfproto::Ipv6, &[Selector::IcmpType], DISCOVERY)
}

/// By the pair that stands for what has come by no link.
fn from_a_pod(family: Family) -> Rule {
    let pair = [Selector::Iifname, Selector::Saddr];
    rule("of a pod, passed on").within(crate::nftables::nfproto(family), &pair, &named(SOURCES, family)).goto(PASSED_ON)
}

fn to_itself(from: Begun, family: Family) -> Rule {
    let ends = [Selector::Saddr, Selector::Daddr];
    from("a pod to itself").within(crate::nftables::nfproto(family), &ends, &named(SELF, family)).returns()
}

/// An error is part of the connection it is about, and says nothing of who began that: until its connection has been
/// judged again by a packet of its own, it does not pass.
fn stale_errors(mode: Mode) -> [Rule; 2] {
    errors("error about a connection to be judged again").map(|error| match mode {
        Mode::Enforce => error.drop(),
        Mode::Audit | Mode::Off => error.returns(),
    })
}

/// Who knows of a connection could have anything delivered to its ends as an error. A pod has something to say only of its
/// own connections: of those it began, and of those that lead to it.
fn others_errors(mode: Mode, from: Begun) -> Vec<Rule> {
    let about_others = |family| {
        let (nfproto, own) = (crate::nftables::nfproto(family), named(SELF, family));
        from("error about a connection of others")
            .nfproto(nfproto)
            .l4proto(maps::icmp(nfproto))
            .ct_state_related()
            .source_and_ct_saddr_not_within(nfproto, CtDirection::Original, &own)
            .source_and_ct_saddr_not_within(nfproto, CtDirection::Reply, &own)
            .counter()
            .drop()
    };
    if mode == Mode::Enforce { Family::ALL.map(about_others).into() } else { Vec::new() }
}

fn errors(comment: &'static str) -> [RuleBuilder; 2] {
    [protocol::ICMP, protocol::ICMPV6].map(|icmp| rule(comment).l4proto(icmp).ct_state_related())
}

/// A node is also reached by the address that it has on the pod's link, and by those that many have: groups, broadcast,
/// anycast. No rule about nodes knows any of them.
fn by_other_addresses(mode: Mode) -> Vec<Rule> {
    let by = || rule("the node has other addresses");
    let of = |net: &str| by().daddr(net.parse().expect("a prefix"));
    let all = [of("fe80::/10"), of("ff00::/8"), by().fib_many(AddressSide::Daddr)];
    if mode == Mode::Enforce { all.map(|rule| rule.counter().drop()).into() } else { Vec::new() }
}

/// A Service may have led it there, or an older connection, from before the port was one of nodes.
fn to_be_unwrapped(mode: Mode, from: Begun, between_nodes: &BTreeSet<u16>) -> Vec<Rule> {
    let all = base::wrapped(from, between_nodes).map(|rule| rule.counter().drop());
    if mode == Mode::Enforce { all.collect() } else { Vec::new() }
}

fn from_pod(comment: &'static str) -> RuleBuilder {
    rule(comment).iifgroup(POD_LINK_GROUPS)
}

/// What IPVS passes on has come by no link that could be asked for.
fn from_anywhere(comment: &'static str) -> RuleBuilder {
    rule(comment)
}

fn report() -> Rule {
    judge::told(rule("reported").limit(REPORTS.0, REPORTS.1)).build()
}
