//! Which connections are tried: every pair of pods with every kind of packet and port, pods and nodes, and pods and
//! everybody else, with some of them, others each time.

use std::net::IpAddr;

use super::craft::Kind;
use super::truth::{End, Probe, Truth};
use crate::history::NODES;

/// Those that policies speak of, in ranges and by names, and one that they do not.
const PORTS: [u16; 4] = [53, 80, 81, 8080];
/// Of pods that nobody knows, and of the world.
const OUTSIDE: [&str; 9] = [
    "10.0.0.200",
    "10.0.1.200",
    "10.9.9.9",
    "198.51.100.1",
    "203.0.113.9",
    "fd00:a::ff",
    "fd00:b::1",
    "2001:db8::9",
    "2001:db9::9",
];

/// All that are worth trying. `round` says which of the many.
pub(crate) fn all(truth: &Truth, round: usize) -> Vec<Probe> {
    let pods: Vec<(End, IpAddr)> =
        truth.seats.iter().flat_map(|(body, seat)| seat.addresses.map(|address| (End::Body(*body), address))).collect();
    let nodes = (0..NODES.len()).flat_map(|node| {
        let addresses = [format!("192.0.2.{}", node + 1), format!("2001:db8::{}", node + 1)];
        addresses.map(|address| (End::Node(node), address.parse().expect("an address")))
    });
    let outside = OUTSIDE.map(|address| (End::Outside, address.parse().expect("an address")));
    let others: Vec<(End, IpAddr)> = nodes.chain(outside).collect();
    let packets: Vec<(Kind, u16)> = packets();
    let mut probes = Vec::new();
    for (i, pod) in pods.iter().enumerate() {
        for other in pods.iter().filter(|other| other.0 != pod.0 && other.1 != pod.1) {
            probes.extend(packets.iter().filter_map(|packet| probe(*pod, *other, *packet)));
        }
        for (j, other) in others.iter().enumerate() {
            for turn in 0..3 {
                let which = (5 * turn + 3 * i + j + round) % packets.len();
                probes.extend(probe(*pod, *other, packets[which]));
                probes.extend(probe(*other, *pod, packets[which]));
            }
        }
    }
    probes.extend(forged(&pods));
    probes
}

/// Under another pod's address.
fn forged<'a>(pods: &'a [(End, IpAddr)]) -> impl Iterator<Item = Probe> + 'a {
    let next = |i: usize| pods.get((i + 2) % pods.len().max(1));
    pods.iter().enumerate().filter_map(move |(i, pod)| {
        let (forged, to) = (next(i)?, next(i + 2)?);
        let own = |address| pods.contains(&(pod.0, address));
        let is_another = !own(forged.1) && !own(to.1) && to.0 != forged.0;
        is_another.then(|| probe((pod.0, forged.1), *to, (Kind::Udp, PORTS[i % PORTS.len()])))?
    })
}

/// A part of them, another each time.
pub(crate) fn some(probes: &[Probe], count: usize, round: usize) -> Vec<Probe> {
    // A step that is prime to most lengths comes by all kinds.
    (0..count.min(probes.len())).map(|i| probes[(i * 37 + round * 11) % probes.len()]).collect()
}

fn packets() -> Vec<(Kind, u16)> {
    let with_ports = [Kind::Tcp, Kind::Udp, Kind::Sctp].map(|kind| PORTS.map(|port| (kind, port)));
    with_ports.into_iter().flatten().chain([(Kind::Icmp, 0)]).collect()
}

fn probe((from, source): (End, IpAddr), (to, destination): (End, IpAddr), (kind, port): (Kind, u16)) -> Option<Probe> {
    (source.is_ipv4() == destination.is_ipv4()).then_some(Probe { from, source, to, destination, kind, port })
}
