//! Packets, verdicts and rules in words.

use tartan_api::explain as api;

use crate::ir::{Action, Mode, protocol};
use crate::trace::Asked;
use crate::walk::{Packet, Verdict};

/// A protocol by its name, else by its number.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        protocol::ICMP => "icmp".into(),
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMPV6 => "icmpv6".into(),
        protocol::SCTP => "sctp".into(),
        protocol::UDPLITE => "udplite".into(),
        other => format!("protocol {other}"),
    }
}

/// E.g. `80/tcp`, `icmp 8/0`.
pub(crate) fn packet(packet: &Packet) -> String {
    let name = protocol(packet.protocol);
    let [kind, code] = packet.destination.to_be_bytes();
    match packet.protocol {
        it if protocol::has_ports(it) => format!("{}/{name}", packet.destination),
        it if protocol::is_icmp(it) => format!("{name} {kind}/{code}"),
        _ => name,
    }
}

pub(crate) fn verdict(verdict: Verdict) -> api::Verdict {
    match verdict {
        Verdict::Allow => api::Verdict::Allowed,
        Verdict::Deny => api::Verdict::Denied,
        Verdict::Reject => api::Verdict::Rejected,
        Verdict::Audit => api::Verdict::Audited,
    }
}

/// What a line does.
pub(crate) fn action(asked: &Asked<'_>) -> &'static str {
    match (asked.rule.map(|rule| rule.action), asked.mode) {
        (None, Mode::Audit) => "isolates the pod, on trial",
        (None, _) => "isolates the pod, and no rule allows it",
        (Some(Action::Allow), _) => "allows",
        (Some(Action::Deny | Action::Reject), Mode::Audit) => "denies, on trial",
        (Some(Action::Deny), _) => "denies",
        (Some(Action::Reject), _) => "rejects",
        (Some(Action::Pass), _) => "passes to the next tier",
        (Some(Action::Log), _) => "logs",
    }
}
