//! Ports of the node: one pod each.

use std::net::IpAddr;

use tartan_api::cni::{CniError, code};
use tartan_model::{Family, PerFamily, PortMapping, Protocol, World};

/// Refuses a port that another pod has.
pub(super) fn refuse_taken(world: &World, id: &str, wanted: &[PortMapping]) -> Result<(), CniError> {
    for port in wanted {
        for other in world.attachments.values().filter(|other| *other.id != *id) {
            if let Some(theirs) = other.ports.iter().find(|theirs| overlap(port, theirs)) {
                let msg = format!("{} of this node belongs to {}", name(theirs), super::who(other));
                let fix = "give one of the two another hostPort or hostIP, or let them run on different nodes";
                return Err(CniError::new(code::PORT_TAKEN, msg, fix));
            }
        }
    }
    Ok(())
}

/// Refuses a port on an address of a family that the pod does not have.
pub(super) fn refuse_unreachable(wanted: &[PortMapping], pod: &PerFamily<IpAddr>) -> Result<(), CniError> {
    for port in wanted {
        if let Some(family) = port.host_ip.map(Family::of).filter(|family| pod.get(*family).is_none()) {
            let msg = format!("{} cannot lead to the pod: it has no {family} address", name(port));
            return Err(CniError::new(code::BAD_NETCONF, msg, "choose a hostIP of the pod's family"));
        }
    }
    Ok(())
}

/// Whether one packet could be meant by both. 0.0.0.0 and :: stand for all addresses of their family.
pub(super) fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    let meet = |(one, other): (IpAddr, IpAddr)| {
        one == other || (one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified()))
    };
    a.protocol == b.protocol && a.host_port == b.host_port && a.host_ip.zip(b.host_ip).is_none_or(meet)
}

/// As in `port 8080/tcp`, with the address where there is one.
pub(super) fn name(port: &PortMapping) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let at = port.host_ip.map(|ip| format!(" at {ip}")).unwrap_or_default();
    format!("port {}/{protocol}{at}", port.host_port)
}
