//! The oracle: what should become of a connection, said as slowly and as close to the API documents as can be.
//!
//! It reads API objects, not what the dialects make of them, and shares no code with what it judges. In brackets stand
//! the documents: [NP] the comments in k8s.io/api/networking/v1/types.go, [CNP] those in network-policy-api's
//! apis/v1alpha2/clusternetworkpolicy_types.go, [ANP] apis/v1alpha1, [concepts] kubernetes.io/docs/concepts/
//! services-networking/network-policies, [overview] network-policy-api.sigs.k8s.io/api-overview. What they leave open
//! is marked (ours), with what we chose.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_api::kinds::{Namespace, Node, Pod};
use tartan_api::policy::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, NetworkPolicy};

mod cluster;
mod k8s;
mod labels;

/// Everything that bears on a connection. Objects are well-formed; each is named as in its metadata.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    /// Addresses of nodes, by name, that their objects do not tell: what their own packets to pods carry as source.
    pub node_addresses: Vec<(String, IpAddr)>,
    /// Addresses that only pods can have.
    pub pools: Vec<IpNet>,
    pub network_policies: Vec<NetworkPolicy>,
    pub cluster_policies: Vec<ClusterNetworkPolicy>,
    pub admin_policies: Vec<AdminNetworkPolicy>,
    pub baseline_policies: Vec<BaselineAdminNetworkPolicy>,
}

/// A connection's first packet.
#[derive(Clone, Debug)]
pub struct Flow {
    pub source: IpAddr,
    /// As the sender wrote it: a pod's address, or a Service's.
    pub destination: IpAddr,
    pub transport: Transport,
    /// Where a Service's address led to, on the node of the sender or on the node that the world reached first: address,
    /// and port.
    pub translated: Option<(IpAddr, u16)>,
    /// The source after a node other than the receiver's has put its own address there.
    pub masqueraded: Option<IpAddr>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `TCP`, `UDP` or `SCTP`, and the destination port.
    Port(&'static str, u16),
    /// ICMP, or anything else without ports.
    Other,
}

/// What becomes of the connection at each end; none where the end is not judged.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// Of the pod it leaves.
    pub egress: Option<Decision>,
    /// Of the pod it enters.
    pub ingress: Option<Decision>,
}

/// What one end's policies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Every line that is a reason for it: object and field. None: no policy says anything.
    pub because: Vec<(String, String)>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
enum Who<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
    /// A pod of which nothing is known.
    UnknownPod,
    /// A node, or a pod of which nothing is known.
    Disputed,
    World,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    address: IpAddr,
    who: Who<'a>,
}

/// Which side of its pod a policy speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}

/// A connection from the point of view of one pod.
#[derive(Clone, Copy, Debug)]
struct View<'a> {
    side: Side,
    pod: &'a Pod,
    peer: End<'a>,
    transport: Transport,
}

/// Whether something matches a peer of which not everything is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    /// It depends on the labels of an unknown pod.
    Perhaps,
    Yes,
}

impl From<bool> for Match {
    fn from(is: bool) -> Match {
        if is { Match::Yes } else { Match::No }
    }
}

// === impl Judgement ===

impl Judgement {
    /// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source
    /// pod and the ingress policy on the destination pod need to allow the connection." [concepts]
    pub fn allowed(&self) -> bool {
        self.egress.iter().chain(&self.ingress).all(|decision| decision.allowed)
    }
}

// === impl Cluster ===

impl Cluster {
    /// What becomes of a connection.
    pub fn judge(&self, flow: &Flow) -> Judgement {
        // Policy sees pods' ports, not Services': the destination counts as it is after the Service's address was
        // replaced (ours; [concepts] leaves it open).
        let (to, port) = match (flow.translated, flow.transport) {
            (Some((address, port)), _) => (address, port),
            (None, Transport::Port(_, port)) => (flow.destination, port),
            (None, Transport::Other) => (flow.destination, 0),
        };
        let transport = match flow.transport {
            Transport::Port(protocol, _) => Transport::Port(protocol, port),
            Transport::Other => Transport::Other,
        };
        let (from, to) = (self.end(flow.source), self.end(to));
        let mut judgement = Judgement::default();
        if let Who::Pod(pod) = from.who {
            // A pod's packets to its own address never leave it; by way of a Service they come back to it, which is
            // allowed too (ours; [NP] says nothing, [overview] would ask ClusterNetworkPolicies about the latter).
            if pod_ips(pod).any(|own| own == to.address) {
                return judgement;
            }
            judgement.egress = Some(self.decide(View { side: Side::Egress, pod, peer: to, transport }));
        }
        if let Who::Pod(pod) = to.who {
            // The source as the receiver's node gets it. What that node itself replaces, it replaces afterwards (ours).
            let from = self.end(flow.masqueraded.unwrap_or(flow.source));
            // "Traffic is allowed to a pod […] if the traffic source is the pod's local node" [NP].
            let is_own_node = matches!(from.who, Who::Node(node) if node.metadata.name == pod.spec.node_name);
            if !is_own_node {
                judgement.ingress = Some(self.decide(View { side: Side::Ingress, pod, peer: from, transport }));
            }
        }
        judgement
    }

    /// "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier" [CNP]. "If a
    /// given connection wasn't allowed or denied by any of the tiers, the default kubernetes policy is applied, which
    /// says that all pods can communicate with each other" [CNP].
    fn decide(&self, view: View<'_>) -> Decision {
        let everything_goes = || Decision { allowed: true, because: Vec::new() };
        let baseline = || self.cluster_tier("Baseline", view, &everything_goes);
        let network_policies = || self.network_policies(view).unwrap_or_else(baseline);
        self.cluster_tier("Admin", view, &network_policies)
    }

    fn end(&self, address: IpAddr) -> End<'_> {
        End { address, who: self.who(address) }
    }

    fn who(&self, address: IpAddr) -> Who<'_> {
        // Pods of the host network are the node to policy [CNP: "host-networked pods are not included"; ours for NP,
        // where [concepts] leaves it open]. A pod that has ended has left its address to others [concepts].
        let is_subject =
            |pod: &&Pod| !pod.spec.host_network && !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        let pods = self.pods.iter().filter(is_subject).filter(|pod| pod_ips(pod).any(|ip| ip == address)).map(Who::Pod);
        let is_nodes = |node: &Node| {
            let more = self.node_addresses.iter().any(|(name, ip)| *name == node.metadata.name && *ip == address);
            more || node.status.addresses.iter().any(|ip| ip.address.parse() == Ok(address))
        };
        let nodes = self.nodes.iter().filter(|node| is_nodes(node)).map(Who::Node);
        let found: Vec<Who<'_>> = pods.chain(nodes).collect();
        match (found.first().copied(), found.get(1)) {
            // Without its namespace, not all of a pod's labels are known (ours).
            (Some(Who::Pod(pod)), None) if self.namespace(pod).is_none() => Who::UnknownPod,
            (Some(one), None) => one,
            // Two say that it is theirs, one of them is late: it is not known whose it is (ours).
            (Some(_), Some(_)) if found.iter().any(|it| matches!(it, Who::Node(_))) => Who::Disputed,
            (Some(_), Some(_)) => Who::UnknownPod,
            (None, _) if self.pools.iter().any(|pool| pool.contains(&address)) => Who::UnknownPod,
            (None, _) => Who::World,
        }
    }

    fn namespace(&self, pod: &Pod) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.metadata.name == pod.metadata.namespace)
    }
}

fn pod_ips(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    pod.status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok())
}

/// Whether an address is in a range, both as they are written.
fn in_cidr(address: IpAddr, cidr: &str) -> bool {
    cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&address))
}

/// Ports of a pod by a name: protocol and number. Of containers that start before the others, those count that go on beside
/// them (ours: a Service finds a port so, too).
fn named_ports<'a>(pod: &'a Pod, name: &'a str) -> impl Iterator<Item = (&'a str, u16)> {
    let sidecars = pod.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let protocol = |text: &'a str| if text.is_empty() { "TCP" } else { text };
    ports.filter(move |port| port.name == name).map(move |port| (protocol(&port.protocol), port.container_port))
}

#[cfg(test)]
mod tests;
