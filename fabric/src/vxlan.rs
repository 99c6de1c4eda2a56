//! vxlan: packets in UDP (RFC 7348), every neighbour and forwarding entry permanent and ours, nothing learned.
//!
//! A remote pod's route leads to an address behind the device; the neighbour entry of that address gives the peer's
//! MAC, the forwarding entry of that MAC the underlay address. For IPv4 that address is the peer's fabric address,
//! on-link. For IPv6 it is link-local: the kernel refuses an on-link gateway that some route leads elsewhere, and while
//! the fabric changes, the very route that is being replaced does. One device carries both families of pods.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, Family, Features};
use tartan_netstate::{Fdb, Key, Link, LinkKind, Mac, Neigh, Netns, Object, State, VxlanParams, stable_hash};

use crate::mtu::device_mtu;
use crate::route::{route_at, route_to};
use crate::{Fabric, Hop, Instance, LocalNode, Peer};

pub(crate) struct Vxlan;

impl Fabric for Vxlan {
    fn needs(&self, have: &Features) -> Result<(), &'static str> {
        if have.vxlan { Ok(()) } else { Err("the kernel cannot make VXLAN devices; load or enable the vxlan module") }
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let Instance::Vxlan { underlay, vni, port, gbp } = *at else { return State::new() };
        let Some(uplink) = node.uplinks.get(underlay) else { return State::new() };
        let device = at.device();
        let link = Link {
            kind: LinkKind::Vxlan(VxlanParams { vni, port, local: uplink.address, learning: node.learning, gbp }),
            mac: Some(vtep_mac(node, at)),
            mtu: device_mtu(uplink.mtu, at),
            group: 0,
            up: true,
        };
        let mut state = State::new();
        crate::device::put(&mut state, device, link, at);
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let uplink = node.uplinks.get(at.underlay()?)?;
        Some(Endpoint { mac: Some(vtep_mac(node, at)), ..at.heard_at(uplink.advertised()) })
    }

    fn hop(&self, _: &LocalNode, at: &Instance, to: &Peer<'_>, family: Family) -> Result<Hop, Condition> {
        let condition = |reason, message| Condition {
            about: format!("NodeNetwork/{}", to.name),
            field: "spec.accepts".into(),
            reason,
            message,
            fix: format!("look at the agent of {}: its NodeNetwork object is written by it alone", to.name),
        };
        match (to.endpoint.mac, gateway(to, family)) {
            (Some(_), Some(via)) => {
                Ok(Hop { via: Some(via), dev: at.device(), onlink: family == Family::V4, encap: None })
            }
            (None, _) => {
                let message = format!("{} says it hears {at} but not under which MAC", to.name);
                Err(condition("EndpointWithoutMac", message))
            }
            (_, None) => {
                let message = format!("{} has {family} ranges but no {family} fabric address", to.name);
                Err(condition("NoFabricAddress", message))
            }
        }
    }

    fn reach(&self, at: &Instance, to: &Peer<'_>, family: Family, _: &[&IpNet]) -> Vec<(Key, Object)> {
        let (Some(mac), Some(via)) = (to.endpoint.mac, gateway(to, family)) else { return Vec::new() };
        let device = at.device();
        let neigh = Key::Neigh { ns: Netns::Host, link: device.clone(), address: via };
        let fdb = Key::Fdb { link: device, mac };
        vec![(neigh, Object::Neigh(Neigh { mac })), (fdb, Object::Fdb(Fdb { dst: to.endpoint.address }))]
    }

    fn endpoint_in_kernel(&self, kernel: &State, at: &Instance, _: &Advert, blocks: &[&IpNet]) -> Option<Endpoint> {
        let link = at.device();
        let via = blocks.iter().find_map(|block| {
            route_at(kernel, &route_to(block)).filter(|route| route.dev.as_ref() == Some(&link))?.via
        })?;
        let neigh = Key::Neigh { ns: Netns::Host, link: link.clone(), address: via };
        let Object::Neigh(Neigh { mac }) = kernel.get(&neigh)?.object else { return None };
        let Object::Fdb(Fdb { dst }) = kernel.get(&Key::Fdb { link, mac })?.object else { return None };
        Some(Endpoint { mac: Some(mac), ..at.heard_at(dst) })
    }
}

/// Where routes to the peer's ranges of a family lead.
fn gateway(to: &Peer<'_>, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => to.fabric_addresses.get(family).copied(),
        Family::V6 => to.endpoint.mac.map(|mac| link_local(mac).into()),
    }
}

/// The address behind a MAC by EUI-64 (RFC 4291 appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
}

/// The same after every restart, whatever else changes; different on every node and, but for what Flannel had, for every
/// instance.
fn vtep_mac(node: &LocalNode, at: &Instance) -> Mac {
    if let Instance::Vxlan { underlay, vni, .. } = at
        && let Some((of, mac)) = node.flannel_macs.get(*underlay)
        && of == vni
    {
        return *mac;
    }
    Mac::stable(stable_hash(&format!("{} {at}", node.name)))
}
