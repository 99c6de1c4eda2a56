//! What one tier of ClusterNetworkPolicies says, and of the v1alpha1 kinds, which became its tiers.

use tartan_api::policy::{AdminPort, ClusterPeer, ClusterProtocol, LabelSelector};

use super::labels::end_is_node;
use super::{Cluster, Decision, End, Match, Side, Transport, View, Who, in_cidr, named_ports};

/// A rule of any of the kinds.
struct Rule<'a> {
    object: String,
    path: String,
    action: &'a str,
    peers: &'a [ClusterPeer],
    packets: Packets<'a>,
}

/// Which packets a rule is about.
enum Packets<'a> {
    /// "If unspecified, protocol-specific attributes will not be used to match traffic." [CNP]
    All,
    Protocols(&'a [ClusterProtocol]),
    Ports(&'a [AdminPort]),
}

/// A policy of any of the kinds, as far as order goes: priority, then (ours) kind and name.
type Standing<'a> = (u16, u8, &'a str);

impl Cluster {
    /// What a tier decides, or what comes after it.
    pub(super) fn cluster_tier(&self, tier: &str, view: View<'_>, after: &dyn Fn() -> Decision) -> Decision {
        self.first_match(&self.cluster_rules(tier, view), view, after)
    }

    /// The rules of a tier that are for the pod, in order: "Policies with lower priority values have higher precedence";
    /// "a rule that appears at the top of the ingress rules would take the highest precedence" [CNP].
    fn cluster_rules(&self, tier: &str, view: View<'_>) -> Vec<Rule<'_>> {
        let mut all: Vec<(Standing<'_>, &ClusterPeer, Vec<Rule<'_>>)> = Vec::new();
        for policy in self.cluster_policies.iter().filter(|policy| policy.spec.tier == tier) {
            let (section, rules) = match view.side {
                Side::Ingress => ("ingress", &policy.spec.ingress),
                Side::Egress => ("egress", &policy.spec.egress),
            };
            let rules = rules.iter().enumerate().map(|(i, rule)| Rule {
                object: format!("ClusterNetworkPolicy/{}", policy.metadata.name),
                path: format!("spec.{section}[{i}]"),
                action: if rule.action == "Accept" { "Allow" } else { &rule.action },
                peers: if view.side == Side::Ingress { &rule.from } else { &rule.to },
                packets: if rule.protocols.is_empty() { Packets::All } else { Packets::Protocols(&rule.protocols) },
            });
            all.push(((policy.spec.priority, 0, &policy.metadata.name), &policy.spec.subject, rules.collect()));
        }
        let (kind, v1alpha1) = match tier {
            "Admin" => ("AdminNetworkPolicy", &self.admin_policies),
            _ => ("BaselineAdminNetworkPolicy", &self.baseline_policies),
        };
        for policy in v1alpha1 {
            let (section, rules) = match view.side {
                Side::Ingress => ("ingress", &policy.spec.ingress),
                Side::Egress => ("egress", &policy.spec.egress),
            };
            let rules = rules.iter().enumerate().map(|(i, rule)| Rule {
                object: format!("{kind}/{}", policy.metadata.name),
                path: format!("spec.{section}[{i}]"),
                action: &rule.action,
                peers: if view.side == Side::Ingress { &rule.from } else { &rule.to },
                packets: rule.ports.as_deref().map_or(Packets::All, Packets::Ports),
            });
            // A Baseline policy has no priority; it comes after those that have one (ours).
            let priority = policy.spec.priority.unwrap_or(u16::MAX);
            all.push(((priority, 1, &policy.metadata.name), &policy.spec.subject, rules.collect()));
        }
        all.retain(|(_, subject, _)| self.is_subject(subject, view));
        all.sort_by_key(|(standing, ..)| *standing);
        all.into_iter().flat_map(|(_, _, rules)| rules).collect()
    }

    fn is_subject(&self, subject: &ClusterPeer, view: View<'_>) -> bool {
        let everything = LabelSelector::default();
        match (&subject.namespaces, &subject.pods) {
            (Some(namespaces), _) => self.pod_is(view.pod, namespaces, &everything),
            // Of the namespaces' selector: "if empty, it selects all Namespaces." [CNP] None is as good as an empty one.
            (None, Some(pods)) => self.pod_is(view.pod, &pods.namespace_selector, &pods.pod_selector),
            (None, None) => panic!("a subject has a field: objects of the oracle are well-formed"),
        }
    }

    /// The first rule that matches decides. What an unknown pod's labels would decide is decided against it: where a
    /// rule may match or not, the connection must be allowed either way (ours).
    fn first_match(&self, rules: &[Rule<'_>], view: View<'_>, after: &dyn Fn() -> Decision) -> Decision {
        let Some((rule, rest)) = rules.split_first() else { return after() };
        let line = || vec![(rule.object.clone(), rule.path.clone())];
        let if_it_matches = || match rule.action {
            "Allow" => Decision { allowed: true, because: line() },
            "Deny" => Decision { allowed: false, because: line() },
            // "Skips all further ClusterNetworkPolicy rules in the current tier for the selected traffic, and passes
            // evaluation to the next tier." [CNP]
            "Pass" => after(),
            other => panic!("{other} is no action: objects of the oracle are well-formed"),
        };
        let if_not = || self.first_match(rest, view, after);
        // "If an implementation sees no fields are set […] it should fail closed. For Accept rules: treat the rule as
        // matching no traffic. For Deny and Pass rules: treat the rule as a 'Deny all' rule." [CNP] We do not resolve
        // domain names, so a rule with some is as one with a field we do not know.
        if rule.peers.is_empty() || rule.peers.iter().any(|peer| !is_known(peer)) {
            return if rule.action == "Allow" { if_not() } else { Decision { allowed: false, because: line() } };
        }
        // "If any element matches the source of incoming traffic then the specified action is applied." [CNP]
        let peers = rule.peers.iter().map(|peer| self.cluster_peer_matches(peer, view.peer)).max().unwrap_or(Match::No);
        match peers.min(packets_match(&rule.packets, view)) {
            Match::No => if_not(),
            Match::Yes => if_it_matches(),
            Match::Perhaps => {
                let matched = if_it_matches();
                if matched.allowed { if_not() } else { matched }
            }
        }
    }

    fn cluster_peer_matches(&self, peer: &ClusterPeer, end: End<'_>) -> Match {
        let everything = LabelSelector::default();
        if let Some(namespaces) = &peer.namespaces {
            return self.end_is_pod(end, namespaces, &everything);
        }
        if let Some(pods) = &peer.pods {
            return self.end_is_pod(end, &pods.namespace_selector, &pods.pod_selector);
        }
        // "It selects the nodeIPs as the peer type by matching on the IPs present in the node.Status.Addresses field of
        // the node." [CNP]
        if let Some(nodes) = &peer.nodes {
            return end_is_node(end, nodes);
        }
        // "Note that cluster-internal traffic will be checked against the rule as well." [CNP]
        peer.networks.iter().any(|network| in_cidr(end.address, network)).into()
    }
}

fn is_known(peer: &ClusterPeer) -> bool {
    peer.namespaces.is_some() || peer.pods.is_some() || peer.nodes.is_some() || !peer.networks.is_empty()
}

fn packets_match(packets: &Packets<'_>, view: View<'_>) -> Match {
    match packets {
        Packets::All => Match::Yes,
        Packets::Protocols(list) => list.iter().map(|each| protocol_matches(each, view)).max().unwrap_or(Match::No),
        Packets::Ports(list) => list.iter().map(|each| admin_port_matches(each, view)).max().unwrap_or(Match::No),
    }
}

fn protocol_matches(wanted: &ClusterProtocol, view: View<'_>) -> Match {
    if let Some(name) = &wanted.destination_named_port {
        return named_port_matches(name, view);
    }
    let Transport::Port(protocol, port) = view.transport else { return Match::No };
    let attributes = match protocol {
        "TCP" => &wanted.tcp,
        "UDP" => &wanted.udp,
        _ => &wanted.sctp,
    };
    let Some(wanted) = attributes.as_ref().and_then(|attributes| attributes.destination_port.as_ref()) else {
        return Match::No;
    };
    // "PortRange defines an inclusive range of ports from the assigned Start value to End value." [CNP]
    let in_range = wanted.range.as_ref().is_some_and(|range| (range.start..=range.end).contains(&port));
    (wanted.number == Some(port) || in_range).into()
}

fn admin_port_matches(wanted: &AdminPort, view: View<'_>) -> Match {
    if let Some(name) = &wanted.named_port {
        return named_port_matches(name, view);
    }
    let Transport::Port(protocol, port) = view.transport else { return Match::No };
    // "If not specified, this field defaults to TCP." [ANP]
    let is = |wanted: &Option<String>| wanted.as_deref().unwrap_or("TCP") == protocol;
    let number = wanted.port_number.as_ref().is_some_and(|wanted| is(&wanted.protocol) && wanted.port == port);
    let range = wanted.port_range.as_ref();
    let in_range = range.is_some_and(|range| is(&range.protocol) && (range.start..=range.end).contains(&port));
    (number || in_range).into()
}

/// "DestinationNamedPort selects a destination port on a pod based on the ContainerPort name." [CNP]
fn named_port_matches(name: &str, view: View<'_>) -> Match {
    let Transport::Port(protocol, port) = view.transport else { return Match::No };
    let receiver = match (view.side, view.peer.who) {
        (Side::Ingress, _) => view.pod,
        (Side::Egress, Who::Pod(pod)) => pod,
        // It may call any port so (ours).
        (Side::Egress, Who::UnknownPod | Who::Disputed) => return Match::Perhaps,
        (Side::Egress, Who::Node(_) | Who::World) => return Match::No,
    };
    named_ports(receiver, name).any(|named| named == (protocol, port)).into()
}
