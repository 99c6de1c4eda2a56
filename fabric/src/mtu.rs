//! MTU: one rule for devices, one for pods.

use tartan_model::Family;

use crate::{Instance, LocalNode};

/// The smallest MTU we ever set: what IPv6 needs (RFC 8200 §5).
pub(crate) const MIN_MTU: u32 = 1280;

/// MTU of a node without an uplink.
const DEFAULT_MTU: u32 = 1500;

/// MTU of an instance's device, or of what can be sent through it: the underlay's less the overhead.
pub(crate) fn device_mtu(underlay_mtu: u32, at: &Instance) -> u32 {
    underlay_mtu.saturating_sub(at.overhead()).max(MIN_MTU)
}

/// Largest packet that this node gets through an instance; none where it has no uplink for it.
pub(crate) fn carried(node: &LocalNode, at: &Instance) -> Option<u32> {
    match at.underlay() {
        Some(family) => node.uplinks.get(family).map(|uplink| device_mtu(uplink.mtu, at)),
        None => node.uplinks.iter().map(|(_, uplink)| device_mtu(uplink.mtu, at)).min(),
    }
}

/// What a route of this family by the instance is to say, and to be held to. For each destination in IPv4 the kernel's ipip devices
/// note what they pass, though it be what they pass anyway, and any change of any route has such notes renewed: a packet
/// that has just found the one before is lost then.
pub(crate) fn held(node: &LocalNode, at: &Instance, family: Family) -> Option<u32> {
    let notes = family == Family::V4 && matches!(at, Instance::Ipip { .. });
    if notes { carried(node, at) } else { None }
}

/// MTU of pods: what fits through every instance that is in use anywhere, so that it is lowered before the first
/// packet takes the narrower way and raised after the last one did.
pub(crate) fn pod_mtu<'a>(node: &LocalNode, in_use: impl IntoIterator<Item = &'a Instance>) -> u32 {
    let widest = underlay_mtu(node).max(MIN_MTU);
    in_use.into_iter().filter_map(|at| carried(node, at)).min().unwrap_or(widest)
}

/// What this node's uplinks carry.
pub(crate) fn underlay_mtu(node: &LocalNode) -> u32 {
    node.uplinks.iter().map(|(_, uplink)| uplink.mtu).min().unwrap_or(DEFAULT_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Uplink;
    use tartan_netstate::LinkName;

    fn check(v4: Option<u32>, v6: Option<u32>, in_use: &[Instance], want: u32) {
        let uplink = |mtu, address: &str| Uplink {
            link: LinkName::new("eth0").unwrap(),
            address: address.parse().unwrap(),
            public: None,
            addresses: Vec::new(),
            subnets: Vec::new(),
            mtu,
            why: String::new(),
        };
        let mut node = LocalNode::default();
        node.uplinks.v4 = v4.map(|mtu| uplink(mtu, "192.0.2.1"));
        node.uplinks.v6 = v6.map(|mtu| uplink(mtu, "2001:db8::1"));
        assert_eq!(pod_mtu(&node, in_use), want, "{v4:?} {v6:?} {in_use:?}");
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        let vxlan = |underlay| Instance::Vxlan { underlay, vni: 1, port: 8472, gbp: false };
        let (host_gw, v4, v6) = (Instance::HostGw, vxlan(Family::V4), vxlan(Family::V6));
        check(None, None, &[], 1500);
        check(None, None, &[v4], 1500);
        check(Some(1500), None, &[], 1500);
        check(Some(1500), Some(1400), &[], 1400);
        check(Some(1500), None, &[host_gw], 1500);
        check(Some(1500), None, &[v4], 1450);
        check(Some(1500), Some(1500), &[v6], 1430);
        check(Some(9000), Some(9000), &[host_gw, v6], 8930);
        check(Some(9000), Some(1500), &[v4], 8950);
        check(Some(9000), Some(1500), &[host_gw], 1500);
        check(Some(9000), None, &[v4, v6], 8950);
        check(Some(1300), None, &[v4], 1280);
        let ipip = |underlay| Instance::Ipip { underlay };
        check(Some(1500), None, &[ipip(Family::V4)], 1480);
        check(Some(1500), Some(1500), &[ipip(Family::V6)], 1460);
        check(Some(1500), Some(1500), &[ipip(Family::V4), v6], 1430);
        let udp = |underlay| Instance::Udp { underlay, port: 8285 };
        check(Some(1500), None, &[udp(Family::V4)], 1472);
        check(Some(1500), Some(1500), &[udp(Family::V6)], 1452);
        let wireguard = |underlay| Instance::Wireguard { underlay, port: 51820, rotation: 0, psk: None };
        check(Some(1500), None, &[wireguard(Family::V4), v4], 1440);
        check(Some(1500), Some(1500), &[wireguard(Family::V6), v6], 1420);
        let ipsec = |underlay, port| Instance::Ipsec { underlay, port, rotation: 0, psk: 0 };
        check(Some(1500), None, &[ipsec(Family::V4, None)], 1443);
        check(Some(1500), Some(1500), &[ipsec(Family::V6, Some(4500)), v6], 1415);
    }
}
