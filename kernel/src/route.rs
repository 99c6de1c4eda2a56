//! Routes on the wire.
//!
//! Invariant: a route is ours if it carries our protocol. Creation is exclusive: the kernel would let us replace
//! another program's route of the same destination and metric.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use tartan_model::Family;
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_PROTOCOL};
use tartan_netstate::{Encap, Route, RouteKind, Scope};

use crate::family::{address_family, family, of_route, route_address};
use crate::link::TUNNEL_TTL;
use crate::netlink::Request;

/// The MTU's in `RTAX_LOCK`: one for each metric, by its number.
const MTU_BIT: u32 = 1 << 2;

/// The key of a route within its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) table: u32,
    pub(crate) dst: IpNet,
    pub(crate) metric: u32,
}

/// A route as the kernel tells it: links have numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) oif: Option<u32>,
    pub(crate) ours: bool,
    /// Without its `dev`.
    pub(crate) route: Route,
}

/// A route that must not be there yet.
pub(crate) fn create(place: Place, route: &Route, oif: Option<u32>) -> Request {
    Request { message: RouteNetlinkMessage::NewRoute(message(place, route, oif)), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// In place of ours that is there, in one step.
pub(crate) fn replace(place: Place, route: &Route, oif: Option<u32>) -> Request {
    Request { message: RouteNetlinkMessage::NewRoute(message(place, route, oif)), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Our route at this place, wherever it leads.
pub(crate) fn delete(place: Place) -> Request {
    let mut message = at(place);
    message.header.scope = RouteScope::NoWhere;
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
}

/// Asks for our routes, of all tables, and of one link if there is one.
pub(crate) fn list(family: Family, oif: Option<u32>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks for the main table's routes, whoever they belong to.
pub(crate) fn list_main(family: Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.attributes.push(RouteAttribute::Table(MAIN_TABLE));
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks where packets to an address go.
pub(crate) fn look_up(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(address));
    message.header.destination_prefix_length = Family::of(address).bits();
    message.attributes.push(RouteAttribute::Destination(route_address(address)));
    RouteNetlinkMessage::GetRoute(message)
}

/// Whether the answer is: they stay here.
pub(crate) fn is_local(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::Local
}

fn at(place: Place) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of_net(&place.dst));
    message.header.destination_prefix_length = place.dst.prefix_len();
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.attributes = vec![
        RouteAttribute::Destination(route_address(place.dst.network())),
        RouteAttribute::Table(place.table),
        RouteAttribute::Priority(place.metric),
    ];
    message
}

fn message(place: Place, route: &Route, oif: Option<u32>) -> RouteMessage {
    let mut message = at(place);
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
    };
    message.header.scope = match route.scope {
        Scope::Global => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
    };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes.extend(route.via.map(|via| match (place.dst, via) {
        (IpNet::V4(_), IpAddr::V6(via)) => RouteAttribute::Via(RouteVia::Inet6(via)),
        _ => RouteAttribute::Gateway(route_address(via)),
    }));
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    message.attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(route_address(src))));
    if let Some(Encap { src, dst }) = route.encap {
        let header =
            [RouteIp6Tunnel::Source(src), RouteIp6Tunnel::Destination(dst), RouteIp6Tunnel::Hoplimit(TUNNEL_TTL)];
        message.attributes.push(RouteAttribute::EncapType(RouteLwEnCapType::Ip6));
        message.attributes.push(RouteAttribute::Encap(header.map(RouteLwTunnelEncap::Ip6).into()));
    }
    let locked = route.mtu_locked.then_some(RouteMetric::Lock(MTU_BIT));
    let metrics: Vec<RouteMetric> = route.mtu.map(RouteMetric::Mtu).into_iter().chain(locked).collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// What the kernel tells about one route; none for kinds we never make.
pub(crate) fn decode(message: &RouteMessage) -> Option<Found> {
    let header = &message.header;
    let family = family(header.address_family)?;
    let (mut dst, mut table, mut metric, mut oif) = (family.everything().addr(), u32::from(header.table), 0, None);
    let (mut via, mut src, mut mtu, mut mtu_locked, mut encap) = (None, None, None, false, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(found) => dst = of_route(found)?,
            RouteAttribute::Table(found) => table = *found,
            RouteAttribute::Priority(found) => metric = *found,
            RouteAttribute::Oif(found) => oif = Some(*found),
            RouteAttribute::Gateway(found) => via = of_route(found),
            RouteAttribute::Via(RouteVia::Inet6(found)) => via = Some((*found).into()),
            RouteAttribute::PrefSource(found) => src = of_route(found),
            RouteAttribute::Encap(headers) => encap = outer(headers),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(found) => mtu = Some(*found),
                        RouteMetric::Lock(found) => mtu_locked = found & MTU_BIT != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => return None,
    };
    let link_scope = family == Family::V4 && header.scope == RouteScope::Link;
    Some(Found {
        place: Place { table, dst: IpNet::new(dst, header.destination_prefix_length).ok()?, metric },
        // IPv6 shows `lo` as the link of routes that lead nowhere.
        oif: oif.filter(|_| kind == RouteKind::Unicast),
        ours: u8::from(header.protocol) == ROUTE_PROTOCOL,
        route: Route {
            kind,
            via,
            dev: None,
            src,
            onlink: header.flags.contains(RouteFlags::Onlink),
            scope: if link_scope { Scope::Link } else { Scope::Global },
            mtu,
            mtu_locked,
            encap,
        },
    })
}

fn outer(headers: &[RouteLwTunnelEncap]) -> Option<Encap> {
    let (mut src, mut dst) = (Ipv6Addr::UNSPECIFIED, None);
    for header in headers {
        match header {
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(found)) => src = *found,
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(found)) => dst = Some(*found),
            _ => {}
        }
    }
    dst.map(|dst| Encap { src, dst })
}
