//! Policy rules on the wire.
//!
//! Invariant: a rule is ours if it carries our protocol. Several programs may have rules of one priority; deletion
//! names every property, the protocol among them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::IpProtocol;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use tartan_model::Family;
use tartan_netstate::claims::ROUTE_PROTOCOL;
use tartan_netstate::{LinkName, Rule};

use crate::family::{address_family, family};
use crate::netlink::Request;

/// `FIB_RULE_FIND_SADDR`.
const FIND_SADDR: RuleFlags = RuleFlags::from_bits_retain(0x0001_0000);

pub(crate) fn create(v6: bool, priority: u32, rule: &Rule) -> Request {
    Request { message: RouteNetlinkMessage::NewRule(message(v6, priority, rule)), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Beside the one whose place it takes. Asked to refuse what it has, the kernel takes a rule without a source for the
/// one that has one and is like it otherwise.
pub(crate) fn create_beside(v6: bool, priority: u32, rule: &Rule) -> Request {
    Request { flags: NLM_F_CREATE, ..create(v6, priority, rule) }
}

pub(crate) fn delete(v6: bool, priority: u32, rule: &Rule) -> Request {
    Request { message: RouteNetlinkMessage::DelRule(message(v6, priority, rule)), flags: 0 }
}

/// Asks for all rules.
pub(crate) fn list(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    RouteNetlinkMessage::GetRule(message)
}

fn message(v6: bool, priority: u32, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(if v6 { Family::V6 } else { Family::V4 });
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    if let Some((start, end)) = rule.udp_sport {
        let ports = RuleAttribute::SourcePortRange(RulePortRange { start, end });
        message.attributes.extend([RuleAttribute::IpProtocol(IpProtocol::Udp), ports]);
    }
    if let Some(src) = rule.src {
        message.header.src_len = Family::of(src).bits();
        message.attributes.push(RuleAttribute::Source(src));
    }
    message.header.flags.set(FIND_SADDR, rule.finds_src);
    message.attributes.extend(rule.iif.as_ref().map(|iif| RuleAttribute::Iifname(iif.to_string())));
    message
}

/// Family, priority and rule, if it is ours.
pub(crate) fn decode(message: &RuleMessage) -> Option<(bool, u32, Rule)> {
    let v6 = family(message.header.family)? == Family::V6;
    let (mut priority, mut table, mut ours) = (0, u32::from(message.header.table), false);
    let (mut src, mut iif) = (None, None);
    let (mut udp, mut ports) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Protocol(found) => ours = u8::from(*found) == ROUTE_PROTOCOL,
            RuleAttribute::Source(found) => src = Some(*found),
            RuleAttribute::Iifname(found) => iif = LinkName::new(found),
            RuleAttribute::IpProtocol(found) => udp = *found == IpProtocol::Udp,
            RuleAttribute::SourcePortRange(found) => ports = Some((found.start, found.end)),
            _ => {}
        }
    }
    let finds_src = message.header.flags.contains(FIND_SADDR);
    ours.then_some((v6, priority, Rule { src, finds_src, iif, udp_sport: ports.filter(|_| udp), table }))
}
