//! Neighbours, addresses that are answered for, and VXLAN forwarding entries on the wire.
//!
//! Invariant: a neighbour is ours if it is permanent and carries our protocol, and what is answered for if it carries our
//! protocol. Forwarding entries keep no protocol: all permanent ones of a VXLAN device of ours are ours.
//!
//! The kernel tells nobody when an address that is answered for comes or goes.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tartan_model::Family;
use tartan_netstate::claims::NEIGH_PROTOCOL;
use tartan_netstate::{Fdb, Mac, Neigh};

use crate::family::{address_family, neighbour_address, of_neighbour};
use crate::netlink::Request;

/// A neighbour or forwarding entry of ours as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Neigh { ifindex: u32, address: IpAddr, neigh: Neigh },
    Proxied { ifindex: u32, address: Ipv6Addr },
    Fdb { ifindex: u32, mac: Mac, fdb: Fdb },
}

/// Puts a neighbour in, also in place of what the kernel learned by itself.
pub(crate) fn put(ifindex: u32, address: IpAddr, neigh: Neigh) -> Request {
    let mut message = neighbour(ifindex, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.extend([
        NeighbourAttribute::LinkLayerAddress(neigh.mac.0.to_vec()),
        NeighbourAttribute::Protocol(RouteProtocol::Other(NEIGH_PROTOCOL)),
    ]);
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

pub(crate) fn delete(ifindex: u32, address: IpAddr) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, address)), flags: 0 }
}

/// Has the node answer for an address.
pub(crate) fn put_proxied(ifindex: u32, address: Ipv6Addr) -> Request {
    let mut message = proxied(ifindex, address);
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(NEIGH_PROTOCOL)));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

pub(crate) fn delete_proxied(ifindex: u32, address: Ipv6Addr) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(proxied(ifindex, address)), flags: 0 }
}

/// Puts a forwarding entry in; a MAC has one.
pub(crate) fn put_fdb(ifindex: u32, mac: Mac, fdb: Fdb) -> Request {
    Request {
        message: RouteNetlinkMessage::NewNeighbour(forwarding(ifindex, mac, fdb)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

pub(crate) fn delete_fdb(ifindex: u32, mac: Mac, fdb: Fdb) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(forwarding(ifindex, mac, fdb)), flags: 0 }
}

/// Asks for the neighbours of a link, or of all.
pub(crate) fn list(family: Family, ifindex: Option<u32>) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(family);
    message.attributes.extend(ifindex.map(NeighbourAttribute::IfIndex));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for what is answered for on a link, or on all.
pub(crate) fn list_proxied(ifindex: Option<u32>) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.flags = NeighbourFlags::Proxy;
    message.attributes.extend(ifindex.map(NeighbourAttribute::IfIndex));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for the forwarding entries of a VXLAN device.
pub(crate) fn list_fdb(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    RouteNetlinkMessage::GetNeighbour(message)
}

fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(address)));
    message
}

fn proxied(ifindex: u32, address: Ipv6Addr) -> NeighbourMessage {
    let mut message = neighbour(ifindex, address.into());
    message.header.flags = NeighbourFlags::Proxy;
    message
}

fn forwarding(ifindex: u32, mac: Mac, fdb: Fdb) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(neighbour_address(fdb.dst)),
    ];
    message
}

/// What the kernel tells about one entry; none if it is not ours.
pub(crate) fn decode(message: &NeighbourMessage) -> Option<Found> {
    let ours = message.header.family == AddressFamily::Bridge || message.attributes.iter().any(is_our_protocol);
    let stays = message.header.state == NeighbourState::Permanent || is_proxied(message);
    if ours && stays { decode_any(message) } else { None }
}

/// The same of one that may be anybody's: what is told when an entry goes, or stops being permanent.
pub(crate) fn decode_any(message: &NeighbourMessage) -> Option<Found> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(found) => address = of_neighbour(found),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    let ifindex = message.header.ifindex;
    // An entry on its way out may have lost its MAC.
    let mac = mac.unwrap_or(Mac([0; 6]));
    Some(match message.header.family {
        _ if is_proxied(message) => match address? {
            IpAddr::V6(address) => Found::Proxied { ifindex, address },
            IpAddr::V4(_) => return None,
        },
        AddressFamily::Bridge => Found::Fdb { ifindex, mac, fdb: Fdb { dst: address? } },
        _ => Found::Neigh { ifindex, address: address?, neigh: Neigh { mac } },
    })
}

fn is_proxied(message: &NeighbourMessage) -> bool {
    message.header.flags.contains(NeighbourFlags::Proxy)
}

fn is_our_protocol(attribute: &NeighbourAttribute) -> bool {
    matches!(attribute, NeighbourAttribute::Protocol(found) if u8::from(*found) == NEIGH_PROTOCOL)
}
