//! ipip: packets in IP packets and nothing else (RFC 2003, RFC 4213, RFC 2473), which costs the least of all envelopes.
//!
//! Over IPv4 the next hop of a route says where its packets go, so one device of each kind serves all peers: `ipip` for
//! IPv4, `sit` for IPv6, whose next hops hold an IPv4 address. But `sit` keeps the way of its last outer packet, whoever
//! that was for: so there are two, one for peers on the uplink's link and one for those behind routers. Over IPv6 the
//! kernel refuses a next hop that some other route leads to, as the peer's own address is; there the route itself carries
//! the outer header's addresses, and one `ip6tnl` device in collect-metadata mode carries both families. It adds no
//! encapsulation limit: that option would cost eight bytes and is for tunnels in tunnels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, Family, Features};
use tartan_netstate::claims::FABRIC_LINK_PREFIX;
use tartan_netstate::{Encap, Key, Link, LinkKind, LinkName, Object, Route, State, stable_hash};

use crate::mtu::device_mtu;
use crate::route::{route_at, route_to};
use crate::{Fabric, Hop, Instance, LocalNode, Peer, Uplink};

pub(crate) struct Ipip;

impl Fabric for Ipip {
    /// To ask a kernel whether it can would load its modules, and with them come devices in every namespace. So nobody
    /// asks before it is wanted; what the kernel then refuses is a condition like any other.
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let Some(uplink) = at.underlay().and_then(|underlay| node.uplinks.get(underlay)) else { return State::new() };
        let mut state = State::new();
        for (device, kind) in devices(node, at, uplink) {
            let link = Link { kind, mac: None, mtu: device_mtu(uplink.mtu, at), group: 0, up: true };
            crate::device::put(&mut state, device, link, at);
        }
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let uplink = node.uplinks.get(at.underlay()?)?;
        Some(at.heard_at(uplink.advertised()))
    }

    fn hop(&self, node: &LocalNode, at: &Instance, to: &Peer<'_>, family: Family) -> Result<Hop, Condition> {
        let uplink = at.underlay().and_then(|underlay| node.uplinks.get(underlay));
        match (uplink.map(|uplink| uplink.address), to.endpoint.address) {
            (Some(IpAddr::V4(src)), IpAddr::V4(dst)) => {
                let (via, on) = match family {
                    Family::V4 => (dst.into(), None),
                    Family::V6 => (compatible(dst).into(), uplink.filter(|uplink| uplink.is_on_link(dst.into()))),
                };
                Ok(Hop { via: Some(via), dev: device(at, src, family, on), onlink: true, encap: None })
            }
            (Some(IpAddr::V6(src)), IpAddr::V6(dst)) => {
                Ok(Hop { via: None, dev: at.device(), onlink: false, encap: Some(Encap { src, dst }) })
            }
            _ => Err(of_other_family(at, to)),
        }
    }

    fn reach(&self, _: &Instance, _: &Peer<'_>, _: Family, _: &[&IpNet]) -> Vec<(Key, Object)> {
        Vec::new()
    }

    fn endpoint_in_kernel(&self, kernel: &State, at: &Instance, _: &Advert, blocks: &[&IpNet]) -> Option<Endpoint> {
        let address = blocks.iter().find_map(|block| leads_to(route_at(kernel, &route_to(block))?))?;
        Some(at.heard_at(address))
    }
}

pub(crate) fn of_other_family(at: &Instance, to: &Peer<'_>) -> Condition {
    Condition {
        about: format!("NodeNetwork/{}", to.name),
        field: "spec.accepts".into(),
        reason: "EndpointOfOtherFamily",
        message: format!("{} says it hears {at} at {}, which is of another family", to.name, to.endpoint.address),
        fix: format!("look at the agent of {}: its NodeNetwork object is written by it alone", to.name),
    }
}

/// Where a route by a device of this fabric leads.
fn leads_to(route: &Route) -> Option<IpAddr> {
    if let Some(Encap { dst, .. }) = route.encap {
        return Some(dst.into());
    }
    match route.via? {
        IpAddr::V6(via) => via.to_ipv4().map(IpAddr::V4),
        via => Some(via),
    }
}

/// All devices: a tunnel takes what comes for its own address, so over IPv4 there are some for each.
fn devices(node: &LocalNode, at: &Instance, uplink: &Uplink) -> Vec<(LinkName, LinkKind)> {
    if uplink.address.is_ipv6() {
        return vec![(at.device(), LinkKind::Ip6Tnl)];
    }
    let v4 = uplink.addresses.iter().filter_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None });
    let of_address = |local| {
        let sit = |on: Option<&Uplink>| {
            let kind = LinkKind::Sit { local, on: on.map(|uplink| uplink.link.clone()) };
            (device(at, local, Family::V6, on), kind)
        };
        let ipv6 = [Some(uplink), None].map(sit).into_iter().filter(|_| node.ipv6);
        [(device(at, local, Family::V4, None), LinkKind::Ipip { local })].into_iter().chain(ipv6)
    };
    v4.flat_map(of_address).collect()
}

/// Name of the device that carries a family of packets from an address: to peers on that link, or to all others.
fn device(at: &Instance, local: Ipv4Addr, family: Family, on: Option<&Uplink>) -> LinkName {
    let on = on.map(|uplink| format!(" on {}", uplink.link)).unwrap_or_default();
    LinkName::hashed(FABRIC_LINK_PREFIX, stable_hash(&format!("{at} from {local} for {family}{on}")))
}

/// The IPv4-compatible address (RFC 4291 section 2.5.5.1): to a `sit` device, the next hop at that IPv4 address.
fn compatible(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    Ipv6Addr::new(0, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_where_its_packets_go() {
        let dev = || LinkName::new("ttx0").unwrap();
        let peer: Ipv4Addr = "192.0.2.2".parse().unwrap();
        let (src, dst) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert_eq!(leads_to(&Route::via(peer.into(), dev())), Some(peer.into()));
        assert_eq!(leads_to(&Route::via(compatible(peer).into(), dev())), Some(peer.into()));
        let carried = Route { encap: Some(Encap { src, dst }), ..Route::on_link(dev()) };
        assert_eq!(leads_to(&carried), Some(dst.into()));
        assert_eq!(leads_to(&Route::on_link(dev())), None);
    }
}
