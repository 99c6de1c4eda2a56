//! A history: objects that come, change and go, and the cluster after each step, as World and as the oracle see it.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tartan_api::kinds::{IPPool, Namespace, Node, Pod};
use tartan_api::policy::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, NetworkPolicy};
use tartan_api::tartan::NodeNetwork;
use tartan_model::{Features, StoreEvent, World};
use tartan_policy::oracle::{Cluster, Flow, Transport};
use tartan_store::decode;

pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// An object comes, or takes the place of the one with its name; or goes.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Namespace(Namespace),
    Pod(Pod),
    Node(Node),
    Network(NodeNetwork),
    Pool(IPPool),
    NetworkPolicy(NetworkPolicy),
    Cluster(ClusterNetworkPolicy),
    Admin(AdminNetworkPolicy),
    Baseline(BaselineAdminNetworkPolicy),
    /// What the n-th of the steps before brought goes, if it is still there.
    Gone(usize),
}

/// Steps; the cluster is looked at after the first ones and after each of the others.
#[derive(Clone)]
pub(crate) struct History {
    pub(crate) first: Vec<Op>,
    pub(crate) then: Vec<Op>,
}

/// The cluster at one time.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) cluster: Cluster,
    pub(crate) world: World,
    networks: Vec<NodeNetwork>,
    pools: Vec<IPPool>,
}

// === impl Op ===

impl Op {
    pub(crate) fn yaml(&self) -> String {
        let text = match self {
            Op::Namespace(it) => serde_yaml_ng::to_string(it),
            Op::Pod(it) => serde_yaml_ng::to_string(it),
            Op::Node(it) => serde_yaml_ng::to_string(it),
            Op::Network(it) => serde_yaml_ng::to_string(it),
            Op::Pool(it) => serde_yaml_ng::to_string(it),
            Op::NetworkPolicy(it) => serde_yaml_ng::to_string(it),
            Op::Cluster(it) => serde_yaml_ng::to_string(it),
            Op::Admin(it) | Op::Baseline(it) => serde_yaml_ng::to_string(it),
            Op::Gone(step) => Ok(format!("# what step {step} brought goes\n")),
        };
        text.expect("documents are YAML")
    }
}

// === impl History ===

impl History {
    pub(crate) fn states(&self) -> impl Iterator<Item = State> {
        let mut state = State::new();
        let mut done: Vec<&Op> = Vec::new();
        for op in &self.first {
            state.take(op, &done);
            done.push(op);
        }
        let first = state.clone();
        let then = self.then.iter().map(move |op| {
            state.take(op, &done);
            done.push(op);
            state.clone()
        });
        std::iter::once(first).chain(then)
    }
}

/// As YAML, to be read, and to be put into a directory.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, op) in self.first.iter().chain(&self.then).enumerate() {
            let when = if step < self.first.len() { "at first" } else { "then" };
            write!(f, "--- # step {step}, {when}\n{}", op.yaml())?;
        }
        Ok(())
    }
}

// === impl State ===

impl State {
    pub(crate) fn new() -> State {
        let world = World::new("".into(), Features::default());
        State { cluster: Cluster::default(), world, networks: Vec::new(), pools: Vec::new() }
    }

    /// The world as an agent on this node knows it.
    pub(crate) fn on(&self, node: &str) -> World {
        let mut world = self.world.clone();
        world.local = node.into();
        world
    }

    pub(crate) fn take(&mut self, op: &Op, before: &[&Op]) {
        let cluster = &mut self.cluster;
        match op {
            Op::Namespace(it) => put(&mut cluster.namespaces, it, |it| it.metadata.name.clone()),
            Op::Pod(it) => put(&mut cluster.pods, it, |it| (it.metadata.namespace.clone(), it.metadata.name.clone())),
            Op::Node(it) => put(&mut cluster.nodes, it, |it| it.metadata.name.clone()),
            Op::Network(it) => put(&mut self.networks, it, |it| it.metadata.name.clone()),
            Op::Pool(it) => put(&mut self.pools, it, |it| it.metadata.name.clone()),
            Op::NetworkPolicy(it) => {
                put(&mut cluster.network_policies, it, |it| (it.metadata.namespace.clone(), it.metadata.name.clone()));
            }
            Op::Cluster(it) => put(&mut cluster.cluster_policies, it, |it| it.metadata.name.clone()),
            Op::Admin(it) => put(&mut cluster.admin_policies, it, |it| it.metadata.name.clone()),
            Op::Baseline(it) => put(&mut cluster.baseline_policies, it, |it| it.metadata.name.clone()),
            Op::Gone(step) => {
                if let Some(op) = before.get(*step) {
                    self.vanish(op);
                }
                return;
            }
        }
        let text = op.yaml();
        for document in decode::documents("history", &text) {
            let decode::Document { id, object, .. } = document.unwrap_or_else(|refused| panic!("{text}\n{refused:?}"));
            let revision = decode::revision(&id, &object);
            self.world.store(StoreEvent::Put(id, object, revision), Instant::now());
        }
        self.settle();
    }

    /// What it brought goes.
    pub(crate) fn vanish(&mut self, op: &Op) {
        self.remove(op);
        self.settle();
    }

    fn remove(&mut self, op: &Op) {
        let cluster = &mut self.cluster;
        match op {
            Op::Namespace(it) => cluster.namespaces.retain(|other| other.metadata.name != it.metadata.name),
            Op::Pod(it) => cluster.pods.retain(|other| {
                (&other.metadata.namespace, &other.metadata.name) != (&it.metadata.namespace, &it.metadata.name)
            }),
            Op::Node(it) => cluster.nodes.retain(|other| other.metadata.name != it.metadata.name),
            Op::Pool(it) => self.pools.retain(|other| other.metadata.name != it.metadata.name),
            Op::NetworkPolicy(it) => cluster.network_policies.retain(|other| {
                (&other.metadata.namespace, &other.metadata.name) != (&it.metadata.namespace, &it.metadata.name)
            }),
            Op::Cluster(it) => cluster.cluster_policies.retain(|other| other.metadata.name != it.metadata.name),
            Op::Admin(it) => cluster.admin_policies.retain(|other| other.metadata.name != it.metadata.name),
            Op::Baseline(it) => cluster.baseline_policies.retain(|other| other.metadata.name != it.metadata.name),
            // What a node said last stays, as in World.
            Op::Network(_) | Op::Gone(_) => return,
        }
        for document in decode::documents("history", &op.yaml()).into_iter().flatten() {
            self.world.store(StoreEvent::Delete(document.id), Instant::now());
        }
    }

    /// What the oracle knows of addresses, from the objects that tell them.
    fn settle(&mut self) {
        let nets =
            |texts: &[String]| texts.iter().map(|text| text.parse::<IpNet>().expect("a range")).collect::<Vec<_>>();
        let of_pools = self.pools.iter().map(|pool| pool.spec.cidr.clone()).collect::<Vec<_>>();
        let of_nodes = self.cluster.nodes.iter().flat_map(|node| node.spec.pod_cidrs.clone()).collect::<Vec<_>>();
        self.cluster.pools = [nets(&of_pools), nets(&of_nodes)].concat();
        let told = self.networks.iter().flat_map(|network| {
            let spec = &network.spec;
            let addresses = spec.addresses.iter().chain(&spec.fabric_addresses);
            addresses.map(|text| (network.metadata.name.clone(), text.parse().expect("an address")))
        });
        self.cluster.node_addresses = told.collect();
    }

    /// The pod that alone has an address, and its node.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<(String, String)> {
        let pod = self.cluster.pods.iter().filter(|pod| !pod.spec.host_network).find(|pod| {
            let finished = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
            !finished && pod.status.pod_ips.iter().any(|ip| ip.ip.parse() == Ok(address))
        })?;
        Some((format!("{}/{}", pod.metadata.namespace, pod.metadata.name), pod.spec.node_name.clone()))
    }

    /// Connections between all kinds of ends, in both families, with Services and masquerading in between.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        let mut ends: Vec<IpAddr> = self
            .cluster
            .pods
            .iter()
            .flat_map(|pod| &pod.status.pod_ips)
            .map(|ip| ip.ip.parse().expect("an address"))
            .collect();
        ends.extend(
            self.cluster
                .nodes
                .iter()
                .flat_map(|node| &node.status.addresses)
                .filter_map(|ip| ip.address.parse::<IpAddr>().ok()),
        );
        ends.extend(self.cluster.node_addresses.iter().map(|(_, address)| *address));
        let more = ["10.0.0.200", "10.0.1.200", "203.0.113.9", "198.51.100.1", "10.9.9.9", "fd00:a::ff", "2001:db8::9"];
        ends.extend(more.map(|text| text.parse::<IpAddr>().expect("an address")));
        ends.sort();
        ends.dedup();
        let transports = [("TCP", 80), ("TCP", 81), ("UDP", 53), ("UDP", 80), ("SCTP", 80), ("TCP", 8080)]
            .map(|(protocol, port)| Transport::Port(protocol, port));
        let pods: Vec<IpAddr> = ends.iter().copied().filter(|end| self.pod_at(*end).is_some()).collect();
        let mut flows = Vec::new();
        for (i, source) in ends.iter().enumerate() {
            for (j, destination) in ends.iter().enumerate().filter(|(_, to)| to.is_ipv4() == source.is_ipv4()) {
                if !pods.contains(source) && !pods.contains(destination) {
                    continue;
                }
                let transport = transports[(i + j) % transports.len()];
                let plain =
                    Flow { source: *source, destination: *destination, transport, translated: None, masqueraded: None };
                for transport in [transport, transports[(i * 3 + j) % transports.len()], Transport::Other] {
                    flows.push(Flow { transport, ..plain.clone() });
                }
                if let Transport::Port(protocol, port) = transport {
                    let service = Flow {
                        destination: "10.96.0.1".parse().expect("an address"),
                        transport: Transport::Port(protocol, 443),
                        translated: Some((*destination, port)),
                        ..plain
                    };
                    let nodes = self.cluster.node_addresses.iter().map(|(_, address)| *address);
                    let masqueraded = nodes.filter(|node| node.is_ipv4() == source.is_ipv4()).nth(j % 3);
                    flows.push(Flow { masqueraded, ..service.clone() });
                    flows.push(service);
                }
            }
        }
        flows
    }
}

fn put<T: Clone, K: PartialEq>(all: &mut Vec<T>, new: &T, key: impl Fn(&T) -> K) {
    match all.iter_mut().find(|there| key(there) == key(new)) {
        Some(there) => *there = new.clone(),
        None => all.push(new.clone()),
    }
}
