//! What is on the node and not ours: links with their addresses, default routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoBridge, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;
use tartan_model::Family;
use tartan_model::host::{DefaultRoute, Host, HostLink};
use tartan_netstate::{Key, LinkName, Netns, RouteKind};

use crate::netlink::Netlink;
use crate::{KernelError, addr, link, route, sysctl};

/// Reads all of it; the calling thread is in the node's namespace.
pub(crate) fn read(netlink: &mut Netlink) -> Result<Host, KernelError> {
    let (mut links, mut unfiltered) = (BTreeMap::new(), BTreeSet::new());
    for message in netlink.dump("links", link::list())? {
        if let RouteNetlinkMessage::NewLink(message) = message
            && let Some(link) = host_link(&message)?
        {
            for family in Family::ALL {
                if passes_unfiltered(&message, family)? {
                    unfiltered.insert((link.name.clone(), family));
                }
            }
            links.insert(message.header.index, link);
        }
    }
    let mut passing = BTreeSet::new();
    for family in Family::ALL {
        for message in netlink.dump("addresses", addr::list(family, 0))? {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some(found) = addr::decode(&message).filter(|found| found.global && !found.marked)
                && let Some(link) = links.get_mut(&found.ifindex)
            {
                link.addresses.push(found.address);
                passing.extend(found.passing.then(|| (link.name.clone(), found.address.addr())));
            }
        }
    }
    let default_routes = default_routes(netlink, &links)?;
    let mut links: Vec<HostLink> = links.into_values().collect();
    links.iter_mut().for_each(|link| link.addresses.sort());
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Host { links, default_routes, unfiltered, passing, ..Host::default() })
}

fn host_link(message: &LinkMessage) -> Result<Option<HostLink>, KernelError> {
    let Some(name) = link::name(message).filter(|name| !link::is_ours(name.as_str())) else { return Ok(None) };
    let (mut kind, mut mtu) = (Arc::from(""), 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(found) => mtu = *found,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(found) = info {
                        kind = found.to_string().into();
                    }
                }
            }
            _ => {}
        }
    }
    let flags = message.header.flags;
    Ok(Some(HostLink {
        accept_ra: accept_ra(&name)?,
        name: name.as_str().into(),
        kind,
        mtu,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        addresses: Vec::new(),
    }))
}

/// Whether it is a bridge, and neither it nor its namespace has what it passes looked at (`br_netfilter`).
fn passes_unfiltered(message: &LinkMessage, family: Family) -> Result<bool, KernelError> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(infos)) => Some(infos),
            _ => None,
        }),
        _ => None,
    });
    let Some(infos) = infos else { return Ok(false) };
    let (itself, of_all) = match family {
        Family::V4 => (InfoBridge::NfCallIpTables(true), "bridge/bridge-nf-call-iptables"),
        Family::V6 => (InfoBridge::NfCallIp6Tables(true), "bridge/bridge-nf-call-ip6tables"),
    };
    let of_all = sysctl::read(&Key::Sysctl { ns: Netns::Host, name: of_all.into() })?;
    Ok(!infos.contains(&itself) && of_all.is_none_or(|value| *value == *"0"))
}

fn accept_ra(link: &LinkName) -> Result<u8, KernelError> {
    let key = Key::UplinkSysctl { link: link.clone(), name: "ipv6/accept_ra".into() };
    Ok(sysctl::read(&key)?.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn default_routes(netlink: &mut Netlink, links: &BTreeMap<u32, HostLink>) -> Result<Vec<DefaultRoute>, KernelError> {
    let mut routes = Vec::new();
    for family in Family::ALL {
        let listed = match netlink.dump("routes", route::list_main(family)) {
            // A family that never had a route has no table.
            Err(KernelError::Refused { errno: Errno::ENOENT, .. }) => Vec::new(),
            listed => listed?,
        };
        for message in listed {
            let RouteNetlinkMessage::NewRoute(message) = message else { continue };
            if message.header.destination_prefix_length > 0 {
                continue;
            }
            let Some(found) = route::decode(&message).filter(|found| found.route.kind == RouteKind::Unicast) else {
                continue;
            };
            if let Some(link) = found.oif.and_then(|oif| links.get(&oif)) {
                routes.push(DefaultRoute {
                    v6: Family::of_net(&found.place.dst) == Family::V6,
                    link: link.name.clone(),
                    via: found.route.via,
                    metric: found.place.metric,
                });
            }
        }
    }
    routes.sort_by(|a, b| (a.metric, a.v6, &a.link, a.via).cmp(&(b.metric, b.v6, &b.link, b.via)));
    Ok(routes)
}
