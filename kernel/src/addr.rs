//! Addresses on the wire.
//!
//! Invariant: an address is ours if it carries our protocol. Kernels before 5.18 keep no protocol: there every address
//! on a link of ours is, and on others' links those that look as only ours do: one address alone, on `lo`, scope link
//! (IPv4) or without a prefix route (IPv6).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope};
use tartan_model::Family;
use tartan_netstate::Scope;
use tartan_netstate::claims::ADDRESS_PROTOCOL;

use crate::family::address_family;
use crate::netlink::Request;

/// `IFA_F_TEMPORARY` of IPv6 is `IFA_F_SECONDARY` of IPv4. An address that failed its check is tentative for good.
const PASSING: AddressFlags = AddressFlags::Secondary.union(AddressFlags::Deprecated).union(AddressFlags::Tentative);

/// An address as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) ifindex: u32,
    pub(crate) address: IpNet,
    /// IPv6 has none that one could choose: always global.
    pub(crate) scope: Scope,
    /// Global scope in the kernel's sense.
    pub(crate) global: bool,
    /// It carries our protocol.
    pub(crate) marked: bool,
    /// It is there for a while, or beside another of its range.
    pub(crate) passing: bool,
    /// It looks as ours do where the kernel keeps no protocol.
    pub(crate) shaped: bool,
}

/// An address that must not be there yet: the kernel would let us put our mark on another program's.
pub(crate) fn create(ifindex: u32, address: IpNet, scope: Scope) -> Request {
    let message = RouteNetlinkMessage::NewAddress(message(ifindex, address, scope));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(crate) fn delete(ifindex: u32, address: IpNet, scope: Scope) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(message(ifindex, address, scope)), flags: 0 }
}

/// Asks for the addresses of a link, or of all.
pub(crate) fn list(family: Family, ifindex: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(family);
    message.header.index = ifindex;
    RouteNetlinkMessage::GetAddress(message)
}

fn message(ifindex: u32, address: IpNet, scope: Scope) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of_net(&address));
    message.header.prefix_len = address.prefix_len();
    message.header.index = ifindex;
    message.header.scope = match scope {
        Scope::Global => AddressScope::Universe,
        Scope::Link => AddressScope::Link,
    };
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)),
    ];
    if address.addr().is_ipv6() {
        let mut flags = AddressFlags::Nodad;
        flags.set(AddressFlags::Noprefixroute, address.prefix_len() == address.max_prefix_len());
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// What the kernel tells about one address.
pub(crate) fn decode(message: &AddressMessage) -> Option<Found> {
    let (mut local, mut peer, mut marked, mut flags) = (None, None, false, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Address(found) => peer = Some(*found),
            AddressAttribute::Protocol(found) => marked = u8::from(*found) == ADDRESS_PROTOCOL,
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    let address: IpAddr = local.or(peer)?;
    let address = IpNet::new(address, message.header.prefix_len).ok()?;
    let alone = address.prefix_len() == address.max_prefix_len();
    let linked = message.header.scope == AddressScope::Link;
    let v4 = address.addr().is_ipv4();
    Some(Found {
        ifindex: message.header.index,
        address,
        scope: if v4 && linked { Scope::Link } else { Scope::Global },
        global: message.header.scope == AddressScope::Universe,
        marked,
        passing: flags.intersects(PASSING),
        shaped: alone && if v4 { linked } else { flags.contains(AddressFlags::Noprefixroute) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_for_a_while_is_told_from_what_stays() {
        // As in the kernel's include/uapi/linux/if_addr.h.
        let (temporary_or_secondary, nodad, deprecated, tentative, permanent, manages_temporary) =
            (0x01, 0x02, 0x20, 0x40, 0x80, 0x100);
        let cases = [
            ("192.0.2.1/24", permanent, false),
            ("192.0.2.2/24", permanent | temporary_or_secondary, true),
            ("192.0.2.3/24", permanent | deprecated, true),
            ("2001:db8::1/64", permanent | nodad, false),
            ("2001:db8::2/64", manages_temporary, false),
            ("2001:db8::3/64", temporary_or_secondary, true),
            ("2001:db8::4/64", deprecated, true),
            ("2001:db8::5/64", permanent | tentative, true),
        ];
        for (address, flags, passing) in cases {
            let mut told = message(1, address.parse().unwrap(), Scope::Global);
            told.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
            told.attributes.push(AddressAttribute::Flags(AddressFlags::from_bits_retain(flags)));
            let found = decode(&told).unwrap();
            assert_eq!((found.address.to_string().as_str(), found.passing), (address, passing));
        }
    }
}
