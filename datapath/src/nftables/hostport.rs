//! Ports of the node that lead to ports of its pods.
//!
//! Reached from outside, from other pods, from the pod itself and from the node, there by 127.0.0.1 too. Not by ::1: IPv6
//! has no `route_localnet`, so the kernel never lets a packet with that address leave the node's loopback.
//!
//! Invariant: a pod's ports are elements and a sysctl of its own link; no rule knows a pod.

use std::net::IpAddr;

use tartan_model::{Attachment, Family, PortMapping, Protocol};
use tartan_netstate::claims::NFT_HOSTPORTS_MAP;
use tartan_netstate::nft::{ElementData, ElementKey, Fields, Rule, Selector, Set, Type, rule};
use tartan_netstate::{Key, Netns, Object, Owner, State};

use super::base::HAIRPIN;
use super::{named, nfproto};
use crate::pod::host_link;

/// Where all packets to this node's addresses come by.
pub(super) const CHAIN: &str = "hostports";
/// Port of one address of the node → port of a pod.
const AT_ADDRESS: &str = "hostports_at";
/// Port of any address of the node → port of a pod.
const ANYWHERE: &str = NFT_HOSTPORTS_MAP;

pub(super) fn sets(family: Family) -> [(String, Set); 3] {
    let addr = Type::addr(nfproto(family));
    let pod_port = [addr, Type::InetService];
    [
        (named(AT_ADDRESS, family), Set::map(&[addr, Type::InetProto, Type::InetService], &pod_port)),
        (named(ANYWHERE, family), Set::map(&[Type::InetProto, Type::InetService], &pod_port)),
        (named(HAIRPIN, family), Set::exact(&[addr, addr])),
    ]
}

pub(super) fn rules(family: Family) -> [Rule; 2] {
    use Selector::{Daddr, Dport, L4proto};
    let nfproto = nfproto(family);
    [
        rule("ports of one address").dnat_to_map(nfproto, &[Daddr, L4proto, Dport], &named(AT_ADDRESS, family)),
        rule("ports of any address").dnat_to_map(nfproto, &[L4proto, Dport], &named(ANYWHERE, family)),
    ]
}

/// One pod's.
pub(super) fn plan(attachment: &Attachment) -> State {
    let owner = Owner::Pod(attachment.id.clone());
    let mut state = State::new();
    let mut element = |set: String, key: ElementKey, data: ElementData| {
        state.insert(Key::NftElement { set: set.into(), key }, Object::NftElement(data), owner.clone());
    };
    let mut from_loopback = false;
    for (family, pod) in attachment.addresses.iter() {
        let leading_here = attachment.ports.iter().filter(|mapping| serves(mapping, family));
        for mapping in leading_here.clone() {
            let data = Fields::new().addr(*pod).port(mapping.container_port).data();
            let (stem, fields) = match at_address(mapping) {
                Some(address) => (AT_ADDRESS, Fields::new().addr(address)),
                None => (ANYWHERE, Fields::new()),
            };
            let key = fields.proto(number(mapping.protocol)).port(mapping.host_port).key();
            element(named(stem, family), key, data);
            from_loopback |= family == Family::V4 && at_address(mapping).is_none_or(|address| address.is_loopback());
        }
        if leading_here.clone().next().is_some() {
            element(named(HAIRPIN, family), Fields::new().addr(*pod).addr(*pod).key(), ElementData::default());
        }
    }
    if from_loopback {
        let link = host_link(&attachment.id);
        let key = Key::LinkSysctl { ns: Netns::Host, link, name: "ipv4/route_localnet".into() };
        state.insert(key, Object::Sysctl("1".into()), owner.clone());
    }
    state
}

/// 0.0.0.0 and :: mean every address of their family.
fn at_address(mapping: &PortMapping) -> Option<IpAddr> {
    mapping.host_ip.filter(|address| !address.is_unspecified())
}

fn serves(mapping: &PortMapping, family: Family) -> bool {
    mapping.host_ip.is_none_or(|address| Family::of(address) == family)
}

/// `IPPROTO_*`.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
