//! What `tartan policy trace` says of a connection, each end's policies asked on the node that judges it.

use tartan_policy::ir::{Direction, Program, protocol};
use tartan_policy::trace;
use tartan_policy::walk::{self, Packet};

use super::craft::Kind;
use super::truth::{End, Probe, Truth};

pub(crate) struct Traces<'a> {
    truth: &'a Truth,
    /// Of each node.
    programs: Vec<Program>,
}

impl<'a> Traces<'a> {
    pub(crate) fn of(truth: &'a Truth) -> Traces<'a> {
        let programs = truth.states.iter().map(|state| trace::program(&state.world.policies)).collect();
        Traces { truth, programs }
    }

    /// Whether both ends let it through.
    pub(crate) fn allow(&self, probe: &Probe) -> bool {
        let Probe { from, source, to, destination, .. } = *probe;
        let side = |end, own, direction, other| match end {
            End::Body(body) if self.truth.is_own_pod(probe, body) => true,
            End::Body(body) => self.truth.knows(body, own).is_some_and(|state| {
                let seat = &self.truth.seats[&body];
                let program = &self.programs[seat.node];
                let side = trace::side(&state.world, program, direction, &seat.pod, own, other, &packet(probe));
                side.is_some_and(|side| walk::passes(side.decision.verdict))
            }),
            End::Node(_) | End::Outside => true,
        };
        side(from, source, Direction::Egress, destination) && side(to, destination, Direction::Ingress, source)
    }
}

fn packet(probe: &Probe) -> Packet {
    let (protocol, destination) = match probe.kind {
        Kind::Tcp => (protocol::TCP, probe.port),
        Kind::Udp => (protocol::UDP, probe.port),
        Kind::Sctp => (protocol::SCTP, probe.port),
        // An echo request.
        Kind::Icmp if probe.source.is_ipv6() => (protocol::ICMPV6, 128 << 8),
        Kind::Icmp => (protocol::ICMP, 8 << 8),
    };
    Packet { protocol, source_port: 20_000, destination }
}
