//! Random histories over a small vocabulary, so that what policies ask for is often there.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tartan_api::kinds::{
    Conditions, Container, ContainerPort, Empty, Envelope, IPPoolSpec, NodeAddress, NodeSpec, NodeStatus, ObjectMeta,
    Pod, PodIP, PodSpec, PodStatus,
};
use tartan_api::policy::*;
use tartan_api::tartan::NodeNetworkSpec;

use super::history::{History, NODES, Op};

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "c"];
pub(crate) const PODS: [&str; 3] = ["p", "q", "r"];
const V4: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.3/32",
    "192.0.2.0/24",
    "192.0.2.1/32",
    "203.0.113.0/24",
    "203.0.113.9/32",
];
const V6: [&str; 4] = ["::/0", "fd00:a::/64", "fd00:a::3/128", "2001:db8::/32"];
/// A range, and what may be left out of it.
const BLOCKS: [(&str, &[&str]); 6] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "10.0.0.3/32", "203.0.113.0/24"]),
    ("10.0.0.0/8", &["10.0.0.0/24", "10.0.0.3/32", "10.0.1.0/24"]),
    ("10.0.0.0/24", &["10.0.0.0/30", "10.0.0.3/32"]),
    ("203.0.113.0/24", &["203.0.113.9/32"]),
    ("::/0", &["fd00:a::/64", "2001:db8::/32"]),
    ("fd00:a::/64", &["fd00:a::3/128"]),
];

/// Of which dialects a history's policies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// NetworkPolicies.
    Kubernetes,
    /// ClusterNetworkPolicies, and what they were before.
    Cluster,
    Both,
}

pub(crate) fn history() -> impl Strategy<Value = History> {
    history_of(Mix::Both)
}

pub(crate) fn history_of(mix: Mix) -> impl Strategy<Value = History> {
    let first = vec(op(mix), 8..20);
    let then = vec(prop_oneof![4 => op(mix), 1 => (0usize..24).prop_map(Op::Gone)], 0..6);
    (base(), first, then)
        .prop_map(|(base, first, then)| History { first: base.into_iter().chain(first).collect(), then })
}

/// Nodes, a pool and most namespaces are there from the beginning, mostly.
pub(crate) fn base() -> impl Strategy<Value = Vec<Op>> {
    let nodes = NODES.map(|name| node(Just(name)).boxed()).to_vec();
    let networks = NODES.map(|name| network(Just(name)).boxed()).to_vec();
    let namespaces = NAMESPACES.map(|name| namespace(Just(name)).boxed()).to_vec();
    let all: Vec<BoxedStrategy<Op>> = [nodes, networks, namespaces, vec![pool().boxed()]].concat();
    let count = all.len();
    (all, vec(prop::bool::weighted(0.95), count))
        .prop_map(|(ops, there)| ops.into_iter().zip(there).filter_map(|(op, there)| there.then_some(op)).collect())
}

fn op(mix: Mix) -> impl Strategy<Value = Op> {
    let cluster = || prop_oneof![4 => cluster_policy(), 2 => admin_policy(), 1 => baseline_policy()];
    let policy = match mix {
        Mix::Kubernetes => network_policy().boxed(),
        Mix::Cluster => cluster().boxed(),
        Mix::Both => prop_oneof![5 => network_policy(), 7 => cluster()].boxed(),
    };
    prop_oneof![
        8 => pod(),
        12 => policy,
        1 => namespace(select(&NAMESPACES)),
        1 => node(select(&NODES)),
        1 => network(select(&NODES)),
        1 => pool(),
    ]
}

fn envelope<Spec, Status: Default>(
    version: &str,
    kind: &str,
    metadata: ObjectMeta,
    spec: Spec,
) -> Envelope<Spec, Status> {
    Envelope { api_version: version.to_owned(), kind: kind.to_owned(), metadata, spec, status: Status::default() }
}

fn named(name: &str, namespace: &str, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta { name: name.to_owned(), namespace: namespace.to_owned(), labels, ..ObjectMeta::default() }
}

fn pod_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(
        select(vec!["app", "tier", "rev"]).prop_map(str::to_owned),
        select(vec!["x", "y", ""]).prop_map(str::to_owned),
        0..3,
    )
}

fn team_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(Just("team".to_owned()), select(vec!["red", "blue"]).prop_map(str::to_owned), 0..2)
}

pub(crate) fn namespace(name: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Op> {
    (name, team_labels())
        .prop_map(|(name, labels)| Op::Namespace(envelope("v1", "Namespace", named(name, "", labels), Empty {})))
}

/// What several nodes may say is theirs.
const SHARED: &str = "203.0.113.200";

pub(crate) fn node(name: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Op> {
    (name, team_labels(), weighted(0.2, Just(())), weighted(0.3, Just(())), weighted(0.2, Just(()))).prop_map(
        |(name, labels, external, shared, cidr)| {
            let number = &name[1..];
            let address = |kind: &str, address: String| NodeAddress { kind: kind.to_owned(), address };
            let mut addresses = vec![
                address("InternalIP", format!("192.0.2.{number}")),
                address("InternalIP", format!("2001:db8::{number}")),
                address("Hostname", name.to_owned()),
            ];
            addresses.extend(external.map(|()| address("ExternalIP", format!("203.0.113.{number}"))));
            addresses.extend(shared.map(|()| address("ExternalIP", SHARED.to_owned())));
            let spec = NodeSpec {
                pod_cidr: String::new(),
                pod_cidrs: cidr.map(|()| format!("10.0.{number}.0/24")).into_iter().collect(),
                ..NodeSpec::default()
            };
            Op::Node(Envelope {
                status: NodeStatus { addresses, ..NodeStatus::default() },
                ..envelope("v1", "Node", named(name, "", labels), spec)
            })
        },
    )
}

pub(crate) fn network(name: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Op> {
    (name, any::<bool>()).prop_map(|(name, fabric)| {
        let number = &name[1..];
        let spec = NodeNetworkSpec {
            addresses: vec![format!("192.0.2.{number}"), format!("2001:db8::{number}")],
            fabric_addresses: if fabric {
                vec![format!("10.0.9.{number}"), format!("fd00:a::9:{number}")]
            } else {
                Vec::new()
            },
            ..NodeNetworkSpec::default()
        };
        let network: Envelope<_, Conditions> =
            envelope("tartan.dev/v1alpha1", "NodeNetwork", named(name, "", BTreeMap::new()), spec);
        Op::Network(network)
    })
}

pub(crate) fn pool() -> impl Strategy<Value = Op> {
    select(vec![("p", "10.0.0.0/16"), ("p", "10.0.0.0/24"), ("q", "fd00:a::/64"), ("r", "10.0.1.0/24")]).prop_map(
        |(name, cidr)| {
            let spec = IPPoolSpec { cidr: cidr.to_owned(), ..IPPoolSpec::default() };
            Op::Pool(envelope("projectcalico.org/v3", "IPPool", named(name, "", BTreeMap::new()), spec))
        },
    )
}

/// Addresses are few, so that pods follow each other on one, and sometimes two say that they have it.
fn pod() -> impl Strategy<Value = Op> {
    let who = (select(&NAMESPACES), select(&PODS), select(&NODES));
    let state = (prop::bool::weighted(0.06), prop::bool::weighted(0.06), weighted(0.05, Just(())), 1u8..8);
    let before_others = weighted(0.2, select(vec!["Always", ""]));
    (who, written(), state, before_others).prop_map(|((namespace, name, node), written, state, before_others)| {
        let (host, finished, lost, at) = state;
        let mut pod = pod_at(namespace, name, node, at, written);
        if let Some(restart_policy) = before_others {
            let containers = std::mem::take(&mut pod.spec.containers).into_iter();
            let early = |it| Container { restart_policy: restart_policy.to_owned(), ..it };
            pod.spec.init_containers = containers.map(early).collect();
        }
        pod.spec.host_network = host;
        if host {
            pod.status.pod_ips = vec![PodIP { ip: format!("192.0.2.{}", &node[1..]) }];
        }
        if lost.is_some() {
            pod.status.pod_ips.clear();
        }
        if finished {
            pod.status.phase = "Failed".to_owned();
        }
        pod.status.pod_ip = pod.status.pod_ips.first().map(|ip| ip.ip.clone()).unwrap_or_default();
        Op::Pod(pod)
    })
}

/// What is written on a pod: labels, and ports with names.
pub(crate) type Written = (BTreeMap<String, String>, Vec<ContainerPort>);

pub(crate) fn written() -> impl Strategy<Value = Written> {
    (pod_labels(), vec(container_port(), 0..3)).prop_map(|(labels, mut ports)| {
        ports.sort_by(|a, b| (&a.name, &a.protocol).cmp(&(&b.name, &b.protocol)));
        ports.dedup_by(|a, b| (&a.name, &a.protocol) == (&b.name, &b.protocol));
        (labels, ports)
    })
}

/// A pod that runs there, with the addresses of that number.
pub(crate) fn pod_at(namespace: &str, name: &str, node: &str, at: u8, (labels, ports): Written) -> Pod {
    let ips = vec![format!("10.0.0.{at}"), format!("fd00:a::{at}")];
    let spec = PodSpec {
        node_name: node.to_owned(),
        service_account_name: "default".to_owned(),
        containers: vec![Container { ports, ..Container::default() }],
        ..PodSpec::default()
    };
    let status = PodStatus {
        phase: "Running".to_owned(),
        pod_ip: ips[0].clone(),
        pod_ips: ips.into_iter().map(|ip| PodIP { ip }).collect(),
    };
    Envelope { status, ..envelope("v1", "Pod", named(name, namespace, labels), spec) }
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    (select(vec!["web", "dns"]), select(vec![80, 81, 53, 8080]), select(vec!["", "TCP", "UDP", "SCTP"])).prop_map(
        |(name, container_port, protocol)| ContainerPort {
            name: name.to_owned(),
            container_port,
            // An absent protocol is TCP; written out, so that two of one name are seen as such.
            protocol: if protocol.is_empty() { "TCP" } else { protocol }.to_owned(),
        },
    )
}

fn selector(keys: Vec<&'static str>, values: Vec<&'static str>) -> impl Strategy<Value = LabelSelector> + Clone {
    let text = |texts: Vec<&'static str>| select(texts).prop_map(str::to_owned);
    let requirement =
        (text(keys.clone()), select(vec!["In", "NotIn", "Exists", "DoesNotExist"]), vec(text(values.clone()), 1..3))
            .prop_map(|(key, operator, values)| Requirement {
                key,
                operator: operator.to_owned(),
                values: if operator.ends_with("In") { values } else { Vec::new() },
            });
    let labels = btree_map(text(keys), text(values), 0..2);
    let requirements = prop_oneof![3 => Just(Vec::new()), 1 => vec(requirement, 1..3)];
    (labels, requirements)
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn pods_selector() -> impl Strategy<Value = LabelSelector> + Clone {
    selector(vec!["app", "tier"], vec!["x", "y"])
}

fn team_selector() -> impl Strategy<Value = LabelSelector> + Clone {
    prop_oneof![
        3 => selector(vec!["team"], vec!["red", "blue"]),
        1 => selector(vec!["kubernetes.io/metadata.name"], NAMESPACES.to_vec()),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        3 => pods_selector().prop_map(|it| Peer { pod_selector: Some(it), ..Peer::default() }),
        2 => team_selector().prop_map(|it| Peer { namespace_selector: Some(it), ..Peer::default() }),
        2 => (pods_selector(), team_selector()).prop_map(|(pods, namespaces)| Peer {
            pod_selector: Some(pods),
            namespace_selector: Some(namespaces),
            ..Peer::default()
        }),
        3 => ip_block().prop_map(|it| Peer { ip_block: Some(it), ..Peer::default() }),
    ]
}

fn ip_block() -> impl Strategy<Value = IpBlock> {
    let plain = select([&V4[..], &V6].concat()).prop_map(|cidr| IpBlock { cidr: cidr.to_owned(), except: Vec::new() });
    let carved = select(&BLOCKS).prop_flat_map(|(cidr, parts)| {
        subsequence(parts.to_vec(), 1..=parts.len()).prop_map(move |except| IpBlock {
            cidr: cidr.to_owned(),
            except: except.into_iter().map(str::to_owned).collect(),
        })
    });
    prop_oneof![plain, carved]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = option::of(select(vec!["TCP", "UDP", "SCTP"]).prop_map(str::to_owned));
    let port = prop_oneof![
        2 => Just((None, None)),
        4 => select(vec![80, 81, 53]).prop_map(|port| (Some(IntOrString::Int(port)), None)),
        3 => select(vec!["web", "dns"]).prop_map(|name| (Some(IntOrString::String(name.to_owned())), None)),
        2 => (select(vec![1, 53, 80]), select(vec![80, 81, 65535])).prop_map(|(low, high)| (Some(IntOrString::Int(low)), Some(high))),
    ];
    (protocol, port).prop_map(|(protocol, (port, end_port))| Port { protocol, port, end_port })
}

pub(crate) fn network_policy() -> impl Strategy<Value = Op> {
    let types =
        prop_oneof![Just(vec![]), Just(vec!["Ingress"]), Just(vec!["Egress"]), Just(vec!["Ingress", "Egress"]),];
    let rules = || vec((vec(peer(), 0..3), prop_oneof![Just(Vec::new()), vec(port(), 1..3)]), 0..3);
    (select(&NAMESPACES), select(vec!["np1", "np2", "np3"]), pods_selector(), types, rules(), rules()).prop_map(
        |(namespace, name, pod_selector, types, ingress, egress)| {
            let spec = NetworkPolicySpec {
                pod_selector,
                policy_types: types.into_iter().map(str::to_owned).collect(),
                ingress: ingress.into_iter().map(|(from, ports)| IngressRule { from, ports }).collect(),
                egress: egress.into_iter().map(|(to, ports)| EgressRule { to, ports }).collect(),
            };
            Op::NetworkPolicy(envelope(
                NETWORKING_API_VERSION,
                "NetworkPolicy",
                named(name, namespace, BTreeMap::new()),
                spec,
            ))
        },
    )
}

fn workloads() -> impl Strategy<Value = ClusterPeer> {
    prop_oneof![
        team_selector().prop_map(|it| ClusterPeer { namespaces: Some(it), ..ClusterPeer::default() }),
        (team_selector(), pods_selector()).prop_map(|(namespace_selector, pod_selector)| ClusterPeer {
            pods: Some(NamespacedPod { namespace_selector, pod_selector }),
            ..ClusterPeer::default()
        }),
    ]
}

fn anyone() -> impl Strategy<Value = ClusterPeer> {
    prop_oneof![
        4 => workloads(),
        2 => selector(vec!["team"], vec!["red", "blue"]).prop_map(|it| ClusterPeer { nodes: Some(it), ..ClusterPeer::default() }),
        3 => vec(select([&V4[..], &V6].concat()).prop_map(str::to_owned), 1..3).prop_map(|networks| ClusterPeer { networks, ..ClusterPeer::default() }),
    ]
}

fn cluster_protocol() -> impl Strategy<Value = ClusterProtocol> {
    let range = (select(vec![1, 53, 80]), select(vec![81, 65535])).prop_map(|(start, end)| PortRange { start, end });
    let port = prop_oneof![
        select(vec![80, 81, 53]).prop_map(|number| ClusterPort { number: Some(number), range: None }),
        range.prop_map(|range| ClusterPort { number: None, range: Some(range) }),
    ];
    let transport = port.prop_map(|port| Some(TransportMatch { destination_port: Some(port) }));
    prop_oneof![
        3 => (0..3, transport).prop_map(|(which, it)| match which {
            0 => ClusterProtocol { tcp: it, ..ClusterProtocol::default() },
            1 => ClusterProtocol { udp: it, ..ClusterProtocol::default() },
            _ => ClusterProtocol { sctp: it, ..ClusterProtocol::default() },
        }),
        1 => select(vec!["web", "dns"]).prop_map(|name| ClusterProtocol {
            destination_named_port: Some(name.to_owned()),
            ..ClusterProtocol::default()
        }),
    ]
}

fn admin_port() -> impl Strategy<Value = AdminPort> {
    let protocol = || option::of(select(vec!["TCP", "UDP", "SCTP"]).prop_map(str::to_owned));
    prop_oneof![
        (protocol(), select(vec![80, 81, 53])).prop_map(|(protocol, port)| AdminPort {
            port_number: Some(AdminPortNumber { protocol, port }),
            ..AdminPort::default()
        }),
        (protocol(), select(vec![1, 53, 80]), select(vec![81, 65535])).prop_map(|(protocol, start, end)| AdminPort {
            port_range: Some(AdminPortRange { protocol, start, end }),
            ..AdminPort::default()
        }),
        select(vec!["web", "dns"])
            .prop_map(|name| AdminPort { named_port: Some(name.to_owned()), ..AdminPort::default() }),
    ]
}

/// Action, peers, packets. Nodes and networks name no ports.
fn rules<P: std::fmt::Debug + Clone + 'static>(
    actions: Vec<&'static str>,
    peers: BoxedStrategy<ClusterPeer>,
    packets: BoxedStrategy<P>,
    is_name: fn(&P) -> bool,
) -> impl Strategy<Value = Vec<(String, Vec<ClusterPeer>, Vec<P>)>> {
    let packets = prop_oneof![Just(Vec::new()), vec(packets, 1..3)];
    let rule = (select(actions).prop_map(str::to_owned), vec(peers, 1..3), packets);
    let rule = rule.prop_map(move |(action, peers, mut packets)| {
        if peers.iter().any(|peer| peer.nodes.is_some() || !peer.networks.is_empty()) {
            packets.retain(|each| !is_name(each));
        }
        (action, peers, packets)
    });
    vec(rule, 0..4)
}

pub(crate) fn cluster_policy() -> impl Strategy<Value = Op> {
    let rules = |peers: BoxedStrategy<ClusterPeer>| {
        rules(vec!["Accept", "Deny", "Pass"], peers, cluster_protocol().boxed(), |it| {
            it.destination_named_port.is_some()
        })
    };
    let head = (select(vec!["c1", "c2", "c3"]), select(vec!["Admin", "Baseline"]), 0u16..3, workloads());
    (head, rules(workloads().boxed()), rules(anyone().boxed())).prop_map(
        |((name, tier, priority, subject), ingress, egress)| {
            let rule = |(action, protocols)| ClusterRule { action, protocols, ..ClusterRule::default() };
            let spec = ClusterNetworkPolicySpec {
                tier: tier.to_owned(),
                priority,
                subject,
                ingress: ingress
                    .into_iter()
                    .map(|(action, from, protocols)| ClusterRule { from, ..rule((action, protocols)) })
                    .collect(),
                egress: egress
                    .into_iter()
                    .map(|(action, to, protocols)| ClusterRule { to, ..rule((action, protocols)) })
                    .collect(),
            };
            Op::Cluster(envelope(CLUSTER_API_VERSION, "ClusterNetworkPolicy", named(name, "", BTreeMap::new()), spec))
        },
    )
}

fn admin_spec(actions: Vec<&'static str>, priority: Option<u16>) -> impl Strategy<Value = AdminNetworkPolicySpec> {
    let rules = move |peers: BoxedStrategy<ClusterPeer>| {
        rules(actions.clone(), peers, admin_port().boxed(), |it: &AdminPort| it.named_port.is_some())
    };
    (workloads(), rules(workloads().boxed()), rules(anyone().boxed())).prop_map(move |(subject, ingress, egress)| {
        let rule = |action, ports: Vec<AdminPort>| {
            let ports = (!ports.is_empty()).then_some(ports);
            AdminRule { action, ports, ..AdminRule::default() }
        };
        AdminNetworkPolicySpec {
            priority,
            subject,
            ingress: ingress
                .into_iter()
                .map(|(action, from, ports)| AdminRule { from, ..rule(action, ports) })
                .collect(),
            egress: egress.into_iter().map(|(action, to, ports)| AdminRule { to, ..rule(action, ports) }).collect(),
        }
    })
}

pub(crate) fn admin_policy() -> impl Strategy<Value = Op> {
    let spec = (0u16..3).prop_flat_map(|priority| admin_spec(vec!["Allow", "Deny", "Pass"], Some(priority)));
    (select(vec!["a1", "a2"]), spec).prop_map(|(name, spec)| {
        Op::Admin(envelope(ADMIN_API_VERSION, "AdminNetworkPolicy", named(name, "", BTreeMap::new()), spec))
    })
}

pub(crate) fn baseline_policy() -> impl Strategy<Value = Op> {
    admin_spec(vec!["Allow", "Deny"], None).prop_map(|spec| {
        Op::Baseline(envelope(
            ADMIN_API_VERSION,
            "BaselineAdminNetworkPolicy",
            named("default", "", BTreeMap::new()),
            spec,
        ))
    })
}
