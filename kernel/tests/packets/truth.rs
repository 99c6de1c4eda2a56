//! What should become of packets, as the oracle says, given what each node knows and who is where.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tartan_policy::oracle::{Cluster, Decision, Flow, Judgement, Transport};

use super::craft::Kind;
use crate::history::{NODES, State};

/// Where packets begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// A pod's namespace. A pod that is made anew gets its slot's other one.
    Body(usize),
    /// A node's own stack.
    Node(usize),
    /// Whatever is neither: addresses that the world has, and those of pods that nobody knows.
    Outside,
}

/// A connection to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) from: End,
    pub(crate) source: IpAddr,
    pub(crate) to: End,
    pub(crate) destination: IpAddr,
    pub(crate) kind: Kind,
    pub(crate) port: u16,
}

/// A pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) node: usize,
    pub(crate) addresses: [IpAddr; 2],
    /// `NAMESPACE/NAME`.
    pub(crate) pod: String,
    /// How often its slot was made anew.
    pub(crate) life: usize,
}

/// How everything is at one time.
#[derive(Clone)]
pub(crate) struct Truth {
    /// What each node knows.
    pub(crate) states: [State; 3],
    /// Pods that are attached, by body.
    pub(crate) seats: BTreeMap<usize, Seat>,
}

/// What may become of a packet while the truth changes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Under all of them it arrives.
    pub(crate) must: bool,
    /// Under one of them it does.
    pub(crate) may: bool,
    /// Under one of them its node lets it go.
    pub(crate) may_leave: bool,
}

// === impl Probe ===

impl Probe {
    /// What the receiver sends back, as a connection of its own.
    pub(crate) fn back(&self, source_port: u16) -> Probe {
        let Probe { from, source, to, destination, kind, .. } = *self;
        Probe { from: to, source: destination, to: from, destination: source, kind, port: source_port }
    }
}

// === impl Truth ===

impl Truth {
    /// What the pod's node knows of it, if it is there with that address and the node knows whose it is. What is not
    /// known has no connections.
    pub(crate) fn knows(&self, body: usize, address: IpAddr) -> Option<&State> {
        let seat = self.seats.get(&body).filter(|seat| seat.addresses.contains(&address))?;
        let state = &self.states[seat.node];
        let known = state.pod_at(address)? == (seat.pod.clone(), NODES[seat.node].to_owned());
        let (namespace, _) = seat.pod.split_once('/').expect("both are there");
        let namespace_known = state.cluster.namespaces.iter().any(|it| it.metadata.name == namespace);
        (known && namespace_known).then_some(state)
    }

    /// Whether the pod's node asks about its packets at all, of whatever name they are: it does while it knows of a policy.
    fn asks(&self, body: usize) -> bool {
        let Some(seat) = self.seats.get(&body) else { return true };
        let Cluster { network_policies, cluster_policies, admin_policies, baseline_policies, .. } =
            &self.states[seat.node].cluster;
        !network_policies.is_empty()
            || !cluster_policies.is_empty()
            || !admin_policies.is_empty()
            || !baseline_policies.is_empty()
    }

    /// How it is once a node knows this, and has these of the pods.
    pub(crate) fn after(&self, node: usize, state: &State, seats: &BTreeMap<usize, Seat>) -> Truth {
        let mut after = self.clone();
        after.states[node] = state.clone();
        after.seats.retain(|_, seat| seat.node != node);
        after
            .seats
            .extend(seats.iter().filter(|(_, seat)| seat.node == node).map(|(body, seat)| (*body, seat.clone())));
        after
    }

    /// Whether the sender's node lets it go.
    pub(crate) fn leaves(&self, probe: &Probe) -> bool {
        match probe.from {
            End::Body(body) if !self.asks(body) => true,
            End::Body(body) => self
                .knows(body, probe.source)
                .is_some_and(|state| judge(state, probe).egress.is_none_or(|decision| decision.allowed)),
            End::Node(_) | End::Outside => true,
        }
    }

    /// Whether the receiver's node lets it in.
    pub(crate) fn enters(&self, probe: &Probe) -> bool {
        match probe.to {
            // A node is not kept from its own pods.
            End::Body(body) if self.is_own_pod(probe, body) || !self.asks(body) => true,
            End::Body(body) => self
                .knows(body, probe.destination)
                .is_some_and(|state| judge(state, probe).ingress.is_none_or(|decision| decision.allowed)),
            End::Node(_) | End::Outside => true,
        }
    }

    /// Where an end is, if it is on a node.
    pub(crate) fn node(&self, end: End) -> Option<usize> {
        match end {
            End::Body(body) => self.seats.get(&body).map(|seat| seat.node),
            End::Node(node) => Some(node),
            End::Outside => None,
        }
    }

    pub(crate) fn is_own_pod(&self, probe: &Probe, body: usize) -> bool {
        self.seats.get(&body).is_some_and(|seat| probe.from == End::Node(seat.node))
    }

    /// The reasons, to be printed.
    pub(crate) fn because(&self, probe: &Probe) -> String {
        let of = |end: End, address: IpAddr, side: fn(Judgement) -> Option<Decision>| match end {
            End::Body(body) => match self.knows(body, address) {
                Some(state) => format!("{:?}", side(judge(state, probe))),
                None => "not known to its node".to_owned(),
            },
            End::Node(_) | End::Outside => "not judged".to_owned(),
        };
        let egress = of(probe.from, probe.source, |judgement| judgement.egress);
        let ingress = of(probe.to, probe.destination, |judgement| judgement.ingress);
        format!("egress: {egress}; ingress: {ingress}")
    }
}

fn judge(state: &State, probe: &Probe) -> Judgement {
    let transport = match probe.kind {
        Kind::Tcp => Transport::Port("TCP", probe.port),
        Kind::Udp => Transport::Port("UDP", probe.port),
        Kind::Sctp => Transport::Port("SCTP", probe.port),
        Kind::Icmp => Transport::Other,
    };
    let (source, destination) = (probe.source, probe.destination);
    state.cluster.judge(&Flow { source, destination, transport, translated: None, masqueraded: None })
}

// === impl Expected ===

impl Expected {
    /// While these follow each other, on every node at its own time.
    pub(crate) fn under(truths: &[&Truth], probe: &Probe) -> Expected {
        let leaves: Vec<bool> = truths.iter().map(|truth| truth.leaves(probe)).collect();
        let enters: Vec<bool> = truths.iter().map(|truth| truth.enters(probe)).collect();
        // While a pod is made, or goes, and while two have its address, packets may be lost; a pod of which its node knows
        // nothing does not answer it; and nothing has to arrive under a name that is not the sender's.
        let ends = [(probe.from, probe.source), (probe.to, probe.destination)];
        let moves = ends.into_iter().any(|(end, address)| match end {
            End::Body(body) => truths.iter().any(|truth| {
                let owners = truth.seats.values().filter(|seat| seat.addresses.contains(&address)).count();
                let unknown =
                    truth.knows(body, address).is_none() && (truth.is_own_pod(probe, body) || !truth.asks(body));
                owners != 1 || unknown || truth.seats.get(&body) != truths[0].seats.get(&body)
            }),
            End::Node(_) | End::Outside => false,
        });
        let may_leave = leaves.contains(&true);
        Expected {
            must: !moves && leaves.iter().chain(&enters).all(|lets| *lets),
            may: may_leave && enters.contains(&true),
            may_leave,
        }
    }
}
