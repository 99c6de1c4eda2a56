//! What NetworkPolicies say of a connection.

use tartan_api::kinds::Pod;
use tartan_api::policy::{IntOrString, LabelSelector, NetworkPolicy, Peer, Port};

use super::labels::selects;
use super::{Cluster, Decision, Match, Side, Transport, View, Who, in_cidr, named_ports};

impl Cluster {
    /// None where no NetworkPolicy selects the pod for this side: "v1.NetworkPolicy always makes a final decision for
    /// selected pods. Further evaluation only happens for Pods not selected by a v1.NetworkPolicy." [CNP]
    pub(super) fn network_policies(&self, view: View<'_>) -> Option<Decision> {
        let selecting: Vec<&NetworkPolicy> = self
            .network_policies
            .iter()
            .filter(|policy| selects_pod(policy, view.pod) && speaks_of(policy, view.side))
            .collect();
        if selecting.is_empty() {
            return None;
        }
        // "Traffic is allowed […] if the traffic matches at least one ingress rule across all of the NetworkPolicy
        // objects whose podSelector matches the pod." [NP]
        let mut allowing = Vec::new();
        for policy in &selecting {
            for (path, peers, ports) in rules(policy, view.side) {
                if self.peers_match(policy, peers, view) && ports_match(ports, view) {
                    allowing.push((name(policy), path));
                }
            }
        }
        let denying = selecting.iter().map(|policy| (name(policy), "spec.podSelector".to_owned()));
        Some(match allowing.is_empty() {
            false => Decision { allowed: true, because: allowing },
            true => Decision { allowed: false, because: denying.collect() },
        })
    }

    /// "If this field is empty or missing, this rule matches all sources. If this field is present and contains at least
    /// one item, this rule allows traffic only if the traffic matches at least one item in the from list." [NP]
    fn peers_match(&self, policy: &NetworkPolicy, peers: &[Peer], view: View<'_>) -> bool {
        peers.is_empty() || peers.iter().any(|peer| self.peer_matches(policy, peer, view))
    }

    fn peer_matches(&self, policy: &NetworkPolicy, peer: &Peer, view: View<'_>) -> bool {
        let everything = LabelSelector::default();
        match (&peer.pod_selector, &peer.namespace_selector, &peer.ip_block) {
            // "except is a slice of CIDRs that should not be included within an IPBlock" [NP]. A block is about
            // addresses, whoever has them; that pods and nodes are among them is (ours), as the e2e tests want it.
            (None, None, Some(block)) => {
                let address = view.peer.address;
                in_cidr(address, &block.cidr) && !block.except.iter().any(|except| in_cidr(address, except))
            }
            // "If namespaceSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching
            // podSelector in the Namespaces selected by NamespaceSelector." [NP]
            (pods, Some(namespaces), None) => {
                let pods = pods.as_ref().unwrap_or(&everything);
                self.end_is_pod(view.peer, namespaces, pods) == Match::Yes
            }
            // "Otherwise it selects the pods matching podSelector in the policy's own namespace." [NP]
            (Some(pods), None, None) => match view.peer.who {
                Who::Pod(pod) => {
                    pod.metadata.namespace == policy.metadata.namespace && selects(pods, &pod.metadata.labels)
                }
                Who::UnknownPod | Who::Disputed | Who::Node(_) | Who::World => false,
            },
            // "If this field is set then neither of the other fields can be." [NP]
            _ => false,
        }
    }
}

fn name(policy: &NetworkPolicy) -> String {
    format!("NetworkPolicy/{}/{}", policy.metadata.namespace, policy.metadata.name)
}

/// "An empty selector matches all pods in the policy's namespace." [NP]
fn selects_pod(policy: &NetworkPolicy, pod: &Pod) -> bool {
    policy.metadata.namespace == pod.metadata.namespace && selects(&policy.spec.pod_selector, &pod.metadata.labels)
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that
/// contain an egress section are assumed to affect egress, and all policies (whether or not they contain an ingress
/// section) are assumed to affect ingress." [NP] An empty list of egress rules is no section: both are one to the API.
fn speaks_of(policy: &NetworkPolicy, side: Side) -> bool {
    let types = &policy.spec.policy_types;
    match (side, types.is_empty()) {
        (Side::Ingress, true) => true,
        (Side::Egress, true) => !policy.spec.egress.is_empty(),
        (Side::Ingress, false) => types.iter().any(|it| it == "Ingress"),
        (Side::Egress, false) => types.iter().any(|it| it == "Egress"),
    }
}

fn rules(policy: &NetworkPolicy, side: Side) -> Vec<(String, &[Peer], &[Port])> {
    let ingress = policy.spec.ingress.iter().map(|rule| (rule.from.as_slice(), rule.ports.as_slice()));
    let egress = policy.spec.egress.iter().map(|rule| (rule.to.as_slice(), rule.ports.as_slice()));
    let (section, rules): (_, Vec<_>) = match side {
        Side::Ingress => ("ingress", ingress.collect()),
        Side::Egress => ("egress", egress.collect()),
    };
    rules.into_iter().enumerate().map(|(i, (peers, ports))| (format!("spec.{section}[{i}]"), peers, ports)).collect()
}

/// "If this field is empty or missing, this rule matches all ports (traffic not restricted by port). If this field is
/// present and contains at least one item, then this rule allows traffic only if the traffic matches at least one port
/// in the list." [NP]
fn ports_match(ports: &[Port], view: View<'_>) -> bool {
    ports.is_empty() || ports.iter().any(|port| port_matches(port, view))
}

fn port_matches(wanted: &Port, view: View<'_>) -> bool {
    let Transport::Port(protocol, port) = view.transport else { return false };
    // "If not specified, this field defaults to TCP." [NP]
    if wanted.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    match (&wanted.port, wanted.end_port) {
        // "If this field is not provided, this matches all port names and numbers." [NP]
        (None, _) => true,
        (Some(IntOrString::Int(only)), None) => port == *only,
        // "endPort indicates that the range of ports from port to endPort if set, inclusive, should be allowed" [NP]
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&port),
        // "This can either be a numerical or named port on a pod" [NP]: the pod whose port it is.
        (Some(IntOrString::String(name)), _) => {
            let receiver = match (view.side, view.peer.who) {
                (Side::Ingress, _) => view.pod,
                (Side::Egress, Who::Pod(pod)) => pod,
                (Side::Egress, _) => return false,
            };
            named_ports(receiver, name).any(|named| named == (protocol, port))
        }
    }
}
