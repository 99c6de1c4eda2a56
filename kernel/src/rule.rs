//! Policy rules on the wire.
//!
//! Invariant: a rule is ours if it carries our protocol. Several programs may have rules of one priority; deletion
//! names every property, the protocol among them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use tartan_model::Family;
use tartan_netstate::claims::ROUTE_PROTOCOL;
use tartan_netstate::{LinkName, Rule};

use crate::family::{address_family, family};
use crate::netlink::Request;

pub(crate) fn create(v6: bool, priority: u32, rule: &Rule) -> Request {
    Request { message: RouteNetlinkMessage::NewRule(message(v6, priority, rule)), flags: NLM_F_CREATE | NLM_F_EXCL }
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
    if let Some((mark, mask)) = rule.fwmark {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    if let Some(src) = rule.src {
        message.header.src_len = Family::of(src).bits();
        message.attributes.push(RuleAttribute::Source(src));
    }
    message.attributes.extend(rule.iif.as_ref().map(|iif| RuleAttribute::Iifname(iif.to_string())));
    message
}

/// Family, priority and rule, if it is ours.
pub(crate) fn decode(message: &RuleMessage) -> Option<(bool, u32, Rule)> {
    let v6 = family(message.header.family)? == Family::V6;
    let (mut priority, mut table, mut ours) = (0, u32::from(message.header.table), false);
    let (mut src, mut iif) = (None, None);
    let (mut mark, mut mask) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Protocol(found) => ours = u8::from(*found) == ROUTE_PROTOCOL,
            RuleAttribute::Source(found) => src = Some(*found),
            RuleAttribute::Iifname(found) => iif = LinkName::new(found),
            RuleAttribute::FwMark(found) => mark = Some(*found),
            RuleAttribute::FwMask(found) => mask = Some(*found),
            _ => {}
        }
    }
    // The kernel leaves out a mark of 0 and shows its mask.
    let fwmark = mask.map(|mask| (mark.unwrap_or(0), mask));
    ours.then_some((v6, priority, Rule { fwmark, src, iif, table }))
}
