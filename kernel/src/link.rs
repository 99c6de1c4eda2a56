//! Links on the wire.
//!
//! Invariant: a link is ours in the node's namespace if its name begins with one of our prefixes, and in a pod's if a
//! link of ours names it as its other end. The kernel does not tell the other end of a veth pair, so the host end's
//! alias does: `tartan:NAME@DEV:INO:PATH`. That of a TUN or WireGuard device says what it is for: `tartan:LABEL`.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoIpTunnel, InfoKind, InfoVeth, InfoVxlan, InfoXfrm,
    Ip6TunnelFlags, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use tartan_netstate::claims::{
    DYING_LINK_GROUP, DYING_POD_LINK_GROUP, FABRIC_LINK_PREFIX, POD_LINK_GROUP, POD_LINK_PREFIX,
};
use tartan_netstate::{Link, LinkKind, LinkName, Mac, Netns, PodNetns, VxlanParams};

use crate::netlink::Request;

/// First word of the alias of a pod link's host end.
const ALIAS: &str = "tartan:";
/// Hop limit of outer headers.
pub(crate) const TUNNEL_TTL: u8 = 64;

/// Whether a link of the node's namespace is ours, by its name.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(POD_LINK_PREFIX) || name.starts_with(FABRIC_LINK_PREFIX)
}

// === requests ===

/// Makes a link with all its attributes. The other end of a veth pair appears in the namespace `peer`; `on` is the number of
/// the link that a tunnel is bound to.
///
/// Three steps, because the kernel looks at the alias and the address generation mode only of links that are there,
/// and the latter must be set before the link comes up. The far end must not come up at creation: the kernel refuses.
pub(crate) fn create(name: &LinkName, link: &Link, peer: Option<BorrowedFd<'_>>, on: Option<u32>) -> Vec<Request> {
    let mut made = named(name);
    made.attributes.extend([
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Group(link.group),
        LinkAttribute::LinkInfo(info(name, &link.kind, peer, on)),
    ]);
    made.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    if matches!(link.kind, LinkKind::Veth { .. }) {
        made.attributes.extend(one_queue());
    }
    let mut described = named(name);
    match &link.kind {
        LinkKind::Veth { peer, peer_name } => {
            described.attributes.push(LinkAttribute::IfAlias(alias(peer, peer_name)));
        }
        LinkKind::Wireguard { label } | LinkKind::Xfrm { label } => {
            described.attributes.push(LinkAttribute::IfAlias(format!("{ALIAS}{label}")));
        }
        _ => {}
    }
    described.attributes.push(no_link_local());
    let mut requests = vec![
        Request { message: RouteNetlinkMessage::NewLink(made), flags: NLM_F_CREATE | NLM_F_EXCL },
        Request { message: RouteNetlinkMessage::SetLink(described), flags: 0 },
    ];
    if link.up {
        let mut up = named(name);
        set_up(&mut up, true);
        requests.push(Request { message: RouteNetlinkMessage::SetLink(up), flags: 0 });
    }
    requests
}

/// The rest of a TUN device that was made a moment ago.
pub(crate) fn describe(name: &LinkName, link: &Link) -> Vec<Request> {
    let mut described = named(name);
    described.attributes.extend([
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Group(link.group),
        LinkAttribute::TxQueueLen(crate::tun::QUEUE_LEN),
        no_link_local(),
    ]);
    if let LinkKind::Tun { label } = &link.kind {
        described.attributes.push(LinkAttribute::IfAlias(format!("{ALIAS}{label}")));
    }
    set_up(&mut described, link.up);
    vec![Request { message: RouteNetlinkMessage::SetLink(described), flags: 0 }]
}

/// Gives a link that is there the attributes in which it differs from `old`.
///
/// No more than those: to set the MAC a link has already throws its neighbours away, and a VXLAN device refuses even
/// to be told the same again.
pub(crate) fn set(name: &LinkName, old: Option<&Link>, new: &Link) -> Vec<Request> {
    let differs = |field: fn(&Link) -> u32| old.is_none_or(|old| field(old) != field(new));
    let mut message = named(name);
    if old.is_none_or(|old| old.mac != new.mac) {
        message.attributes.extend(new.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    }
    message.attributes.extend(differs(|link| link.mtu).then_some(LinkAttribute::Mtu(new.mtu)));
    message.attributes.extend(differs(|link| link.group).then_some(LinkAttribute::Group(new.group)));
    set_up(&mut message, new.up);
    let mut requests = vec![Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }];
    if let LinkKind::Vxlan(params) = &new.kind
        && old.is_some_and(|old| old.kind != new.kind)
    {
        let mut moved = named(name);
        let infos = vec![vxlan_local(params), InfoVxlan::Learning(params.learning)];
        let data = LinkInfo::Data(InfoData::Vxlan(infos));
        moved.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), data]));
        requests.push(Request { message: RouteNetlinkMessage::NewLink(moved), flags: 0 });
    }
    requests
}

/// Puts a link that is not ours into the group of pods' links, or back into the one that links are in from the start.
pub(crate) fn group_with_pods(index: u32, with: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Group(if with { POD_LINK_GROUP } else { 0 }));
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// The group in which a link of that group is on its way out: a pod's is a pod's for all rules until it is gone.
pub(crate) fn dying_group(group: u32) -> u32 {
    match group {
        POD_LINK_GROUP | DYING_POD_LINK_GROUP => DYING_POD_LINK_GROUP,
        _ => DYING_LINK_GROUP,
    }
}

/// Takes a link down and puts it among those that [`bury`] deletes with that group.
pub(crate) fn condemn(name: &LinkName, dying_group: u32) -> Request {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Group(dying_group));
    set_up(&mut message, false);
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Deletes all links of a group at once: 32 in the time that two take one by one.
pub(crate) fn bury(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// Asks for all links, without their counters.
pub(crate) fn list() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for one link.
pub(crate) fn look_up(name: &LinkName) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for one link by its number.
pub(crate) fn look_up_index(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Where the other end of a pair of ours is, and its name there.
pub(crate) fn leads_to(answer: &RouteNetlinkMessage) -> Option<(Netns, LinkName)> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let alias = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    });
    name(message).filter(|name| is_ours(name.as_str())).and(alias).and_then(parse_alias)
}

/// Asks for what no kernel makes.
pub(crate) fn incomplete_vxlan() -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]));
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn named(name: &LinkName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn set_up(message: &mut LinkMessage, up: bool) {
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
}

/// Nobody talks to our links themselves, so they need no address of their own making.
fn no_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])])
}

/// What a veth uses unless told otherwise. Not told, it makes one for each processor, with files in sysfs, and takes
/// them away again.
fn one_queue() -> [LinkAttribute; 2] {
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]
}

fn info(name: &LinkName, kind: &LinkKind, peer: Option<BorrowedFd<'_>>, on: Option<u32>) -> Vec<LinkInfo> {
    match kind {
        LinkKind::Veth { peer_name, .. } => {
            let mut far = named(peer_name);
            far.attributes.extend(peer.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
            far.attributes.extend(one_queue());
            vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far)))]
        }
        LinkKind::VethPeer => vec![LinkInfo::Kind(InfoKind::Veth)],
        LinkKind::Vxlan(params) => {
            vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan_info(params)))]
        }
        LinkKind::Ipip { local } => tunnel(InfoKind::IpIp, vec![InfoIpTunnel::Local((*local).into()), tunnel_ttl()]),
        LinkKind::Sit { local, .. } => {
            let infos = [InfoIpTunnel::Local((*local).into()), tunnel_ttl()];
            tunnel(InfoKind::SitTun, infos.into_iter().chain(on.map(InfoIpTunnel::Link)).collect())
        }
        LinkKind::Ip6Tnl => {
            let any = InfoIpTunnel::Protocol(IpProtocol::from(0));
            let no_limit = InfoIpTunnel::Ipv6Flags(Ip6TunnelFlags::IgnEncapLimit);
            tunnel(InfoKind::Ip6Tnl, vec![any, no_limit, InfoIpTunnel::CollectMetadata])
        }
        LinkKind::Tun { .. } => vec![LinkInfo::Kind(InfoKind::Tun)],
        LinkKind::Wireguard { .. } => vec![LinkInfo::Kind(InfoKind::Wireguard)],
        LinkKind::Xfrm { .. } => {
            let data = InfoData::Xfrm(vec![InfoXfrm::IfId(crate::ipsec::if_id(name))]);
            vec![LinkInfo::Kind(InfoKind::Xfrm), LinkInfo::Data(data)]
        }
        LinkKind::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
    }
}

fn tunnel(kind: InfoKind, data: Vec<InfoIpTunnel>) -> Vec<LinkInfo> {
    vec![LinkInfo::Kind(kind), LinkInfo::Data(InfoData::IpTunnel(data))]
}

/// Of the outer header: what gets it to the peer, and not what the inner one has left (RFC 2003 section 3.1).
fn tunnel_ttl() -> InfoIpTunnel {
    InfoIpTunnel::Ttl(TUNNEL_TTL)
}

/// Checksums, TTL and DF stay the kernel's defaults, which are Flannel's too.
fn vxlan_info(params: &VxlanParams) -> Vec<InfoVxlan> {
    let mut info = vec![InfoVxlan::Id(params.vni), InfoVxlan::Port(params.port), InfoVxlan::Learning(params.learning)];
    info.push(vxlan_local(params));
    info.extend(params.gbp.then_some(InfoVxlan::Gbp));
    info
}

fn vxlan_local(params: &VxlanParams) -> InfoVxlan {
    match params.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }
}

// === answers ===

/// A link's name, whoever it belongs to.
pub(crate) fn name(message: &LinkMessage) -> Option<LinkName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => LinkName::new(name),
        _ => None,
    })
}

/// Whether the link is in the group of pods' links.
pub(crate) fn is_with_pods(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Group(POD_LINK_GROUP)))
}

/// Whether what is given to the link is sent.
pub(crate) fn has_carrier(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::OperState(State::Up)))
}

/// The number of the link that a tunnel is bound to.
pub(crate) fn bound_to(message: &LinkMessage) -> Option<u32> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::IpTunnel(infos)) => infos.iter().find_map(|info| match info {
            InfoIpTunnel::Link(index) => Some(*index).filter(|index| *index > 0),
            _ => None,
        }),
        _ => None,
    })
}

/// A link as we know it; none for kinds we never make. `far` says that it is the far end of a pair, `on` which link it is
/// [`bound_to`].
pub(crate) fn decode(message: &LinkMessage, far: bool, on: Option<LinkName>) -> Option<Link> {
    let (mut mac, mut mtu, mut group, mut text, mut kind, mut data) = (None, 0, 0, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Group(value) => group = *value,
            LinkAttribute::IfAlias(alias) => text = Some(alias.as_str()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found),
                        LinkInfo::Data(found) => data = Some(found),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = match (kind?, data) {
        (InfoKind::Veth, _) if far => LinkKind::VethPeer,
        (InfoKind::Veth, _) => match text.and_then(parse_alias) {
            Some((peer, peer_name)) => LinkKind::Veth { peer, peer_name },
            // Nobody wants such a pair, so it goes.
            None => LinkKind::Veth { peer: Netns::Host, peer_name: name(message)? },
        },
        (InfoKind::Vxlan, Some(InfoData::Vxlan(infos))) => LinkKind::Vxlan(vxlan_params(infos)),
        (InfoKind::IpIp, Some(InfoData::IpTunnel(infos))) => LinkKind::Ipip { local: local_of(infos) },
        (InfoKind::SitTun, Some(InfoData::IpTunnel(infos))) => LinkKind::Sit { local: local_of(infos), on },
        (InfoKind::Ip6Tnl, _) => LinkKind::Ip6Tnl,
        (InfoKind::Tun, _) => LinkKind::Tun { label: label(text) },
        (InfoKind::Wireguard, _) => LinkKind::Wireguard { label: label(text) },
        (InfoKind::Xfrm, _) => LinkKind::Xfrm { label: label(text) },
        (InfoKind::Bridge, _) => LinkKind::Bridge,
        _ => return None,
    };
    // Kernels give such a device one, and nobody asks for it.
    let mac = mac.filter(|_| !matches!(kind, LinkKind::Xfrm { .. }));
    Some(Link { kind, mac, mtu, group, up: message.header.flags.contains(LinkFlags::Up) })
}

/// What a device is for.
fn label(alias: Option<&str>) -> Arc<str> {
    alias.and_then(|text| text.strip_prefix(ALIAS)).unwrap_or_default().into()
}

/// Whether the kernel has only one of the two: VXLAN devices of one VNI at one port of one family.
pub(crate) fn is_rival(one: &Link, other: &Link) -> bool {
    match (&one.kind, &other.kind) {
        (LinkKind::Vxlan(one), LinkKind::Vxlan(other)) => {
            (one.vni, one.port, one.local.is_ipv4()) == (other.vni, other.port, other.local.is_ipv4())
        }
        _ => false,
    }
}

fn local_of(infos: &[InfoIpTunnel]) -> Ipv4Addr {
    let local = infos.iter().find_map(|info| match info {
        InfoIpTunnel::Local(IpAddr::V4(local)) => Some(*local),
        _ => None,
    });
    local.unwrap_or(Ipv4Addr::UNSPECIFIED)
}

fn vxlan_params(infos: &[InfoVxlan]) -> VxlanParams {
    let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
    let mut params = VxlanParams { vni: 0, port: 0, local: unspecified, learning: false, gbp: false };
    for info in infos {
        match info {
            InfoVxlan::Id(vni) => params.vni = *vni,
            InfoVxlan::Port(port) => params.port = *port,
            InfoVxlan::Local(local) => params.local = (*local).into(),
            InfoVxlan::Local6(local) => params.local = (*local).into(),
            InfoVxlan::Learning(learning) => params.learning = *learning,
            InfoVxlan::Gbp => params.gbp = true,
            _ => {}
        }
    }
    params
}

fn alias(peer: &Netns, peer_name: &LinkName) -> String {
    match peer {
        Netns::Host => format!("{ALIAS}{peer_name}@host"),
        Netns::Pod(pod) => format!("{ALIAS}{peer_name}@{}:{}:{}", pod.dev, pod.ino, pod.path),
    }
}

fn parse_alias(text: &str) -> Option<(Netns, LinkName)> {
    let (name, place) = text.strip_prefix(ALIAS)?.split_once('@')?;
    let name = LinkName::new(name)?;
    if place == "host" {
        return Some((Netns::Host, name));
    }
    let mut parts = place.splitn(3, ':');
    let dev = parts.next()?.parse().ok()?;
    let ino = parts.next()?.parse().ok()?;
    Some((PodNetns { dev, ino, path: parts.next()?.into() }.into(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_reads_back_and_foreign_ones_do_not() {
        let pod = |path: &str| Netns::from(PodNetns { dev: 4, ino: 4_026_532_000, path: path.into() });
        for peer in [Netns::Host, pod("/run/netns/cni-1"), pod("/proc/7/ns/net:with:colons@and at")] {
            let name = LinkName::new("et@h:0").unwrap_or_else(|| LinkName::new("eth0").unwrap());
            let name = if name.as_str().contains('@') { LinkName::new("eth0").unwrap() } else { name };
            assert_eq!(parse_alias(&alias(&peer, &name)), Some((peer, name)));
        }
        for text in ["", "uplink", "tartan:", "tartan:eth0", "tartan:eth0@x:1:/p", "tartan:eth0@1:2", "tartan:a/b@host"]
        {
            assert_eq!(parse_alias(text), None, "{text}");
        }
    }
}
