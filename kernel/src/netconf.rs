//! What the kernel tells of sysctls of its own accord: by which it forwards, and what it does of links.
//!
//! Invariant: what comes with a new link is no news. Then all values are told at once, and those that somebody changes one by
//! one. Of other sysctls the kernel tells nothing.

use std::ops::RangeInclusive;

use nix::libc;
use tartan_netstate::claims::{IPV4_FORWARDING, IPV6_FORWARDING};
use tartan_netstate::{Key, LinkName, Netns, Object};

use crate::link;
use crate::nfnetlink::attr;

/// `RTM_NEWNETCONF`, and `RTM_DELNETCONF` when a link goes.
pub(crate) const MESSAGES: RangeInclusive<u16> = 80..=81;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_PROXY_NEIGH: u16 = 5;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// `netconfmsg` is a family; attributes follow.
const HEADER: usize = 4;

/// The sysctl that has another value now. `name_of`: a link's, by its number.
pub(crate) fn decode(payload: &[u8], name_of: impl Fn(u32) -> Option<LinkName>) -> Option<(Key, Object)> {
    let (header, attrs) = payload.split_at_checked(HEADER)?;
    let number = |id| Some(i32::from_ne_bytes(*attr(attrs, id)?.first_chunk()?));
    let of = number(NETCONFA_IFINDEX)?;
    let told = [NETCONFA_FORWARDING, NETCONFA_RP_FILTER, NETCONFA_PROXY_NEIGH].map(number);
    let (name, value) = match (i32::from(header[0]), told) {
        (libc::AF_INET, [Some(value), None, None]) if of == NETCONFA_IFINDEX_ALL => (IPV4_FORWARDING, value),
        (libc::AF_INET6, [Some(value), None, None]) if of == NETCONFA_IFINDEX_ALL => (IPV6_FORWARDING, value),
        (libc::AF_INET, [None, Some(value), None]) => ("ipv4/rp_filter", value),
        (libc::AF_INET, [None, None, Some(value)]) => ("ipv4/proxy_arp", value),
        _ => return None,
    };
    let name = name.into();
    let key = match u32::try_from(of) {
        Err(_) if of == NETCONFA_IFINDEX_ALL && told[0].is_some() => Key::Sysctl { ns: Netns::Host, name },
        Err(_) => return None,
        Ok(index) => match name_of(index)? {
            link if link::is_ours(link.as_str()) => Key::LinkSysctl { ns: Netns::Host, link, name },
            link => Key::UplinkSysctl { link, name },
        },
    };
    Some((key, Object::Sysctl(value.to_string().into())))
}
