//! Packets, verdicts and rules in words.

use ipnet::IpNet;
use tartan_api::explain as api;
use tartan_model::Labels;

use crate::ir::{Action, Direction, Entity, Mode, protocol};
use crate::trace::Asked;
use crate::verdicts::Identity;
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

pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Which ends an identity stands for, of whose zone these are the ranges.
pub(crate) fn identity(identity: &Identity, ranges: &[IpNet]) -> String {
    let traits = &identity.traits;
    let mut parts: Vec<String> = Vec::new();
    parts.push(match traits.entity {
        Entity::Pod => "pods".into(),
        Entity::UnknownPod => "unknown pods".into(),
        Entity::Disputed => "addresses of several".into(),
        Entity::Host => "the pod's node".into(),
        Entity::RemoteNode => "other nodes".into(),
        Entity::ApiServer => "the API server".into(),
        Entity::Health => "health probes".into(),
        Entity::World => "addresses outside".into(),
    });
    if let Some(workload) = &traits.workload {
        parts.extend((!workload.namespace.is_empty()).then(|| format!("of {}", workload.namespace)));
        let namespace = labels(&workload.namespace_labels);
        parts.extend((!namespace.is_empty()).then(|| format!("of namespaces with {namespace}")));
        let own = labels(&workload.labels);
        parts.extend((!own.is_empty()).then(|| format!("with {own}")));
        let account = &workload.service_account;
        parts.extend((!account.is_empty()).then(|| format!("as {account}")));
        let port =
            |(name, number, port): &(std::sync::Arc<str>, u8, u16)| format!("{name} at {port}/{}", protocol(*number));
        let ports: Vec<String> = workload.ports.iter().map(port).collect();
        parts.extend((!ports.is_empty()).then(|| format!("that have {}", ports.join(", "))));
    }
    let node = labels(&traits.node_labels);
    parts.extend((!node.is_empty()).then(|| format!("with {node}")));
    let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    parts.extend((!ranges.is_empty()).then(|| format!("in {}", first_of(&ranges))));
    parts.join(" ")
}

pub(crate) fn labels(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The first few of a list.
pub(crate) fn first_of(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let first = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
