//! udp: packets in UDP and nothing else, carried by an engine in user space, for where the kernel has no tunnel.
//!
//! The engine reads from and writes to a TUN device. It looks up where a packet goes by the packet's destination, and takes
//! one in only if it comes from the node that has the source: so it must know the ranges of every peer that may send, before
//! that peer does. All peers there are stand in its table as long as it listens, whatever carries packets to them.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, Family, Features, PerFamily};
use tartan_netstate::{Key, Link, LinkKind, Object, Owner, Socket, State};

use crate::mtu::device_mtu;
use crate::ownership::Own;
use crate::{Fabric, Hop, Instance, LocalNode, Peer, Uplink};

pub(crate) struct Udp;

impl Fabric for Udp {
    /// Whoever makes the device finds out.
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let Instance::Udp { underlay, port } = *at else { return State::new() };
        let Some(uplink) = node.uplinks.get(underlay) else { return State::new() };
        let kind = LinkKind::Tun { label: at.to_string().into() };
        let link = Link { kind, mac: None, mtu: device_mtu(uplink.mtu, at), group: 0, up: true };
        let mut state = State::new();
        crate::device::put(&mut state, at.device(), link, at);
        let source = node.engine_addresses.get(underlay).copied().unwrap_or(uplink.address);
        let socket = Socket { source, port, esp: false };
        let owner = Owner::Fabric(at.to_string().into());
        state.insert(Key::Socket { link: at.device() }, Object::Socket(socket), owner);
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let underlay = at.underlay()?;
        let uplink = node.uplinks.get(underlay)?;
        let ours = node.engine_addresses.get(underlay).copied().unwrap_or(uplink.address);
        Some(at.heard_at(uplink.public.unwrap_or(ours)))
    }

    fn hop(&self, _: &LocalNode, at: &Instance, to: &Peer<'_>, _: Family) -> Result<Hop, Condition> {
        if Some(Family::of(to.endpoint.address)) != at.underlay() {
            return Err(crate::ipip::of_other_family(at, to));
        }
        Ok(Hop { via: None, dev: at.device(), onlink: false, encap: None })
    }

    fn reach(&self, at: &Instance, to: &Peer<'_>, family: Family, blocks: &[&IpNet]) -> Vec<(Key, Object)> {
        let of_family = blocks.iter().filter(|block| Family::of_net(block) == family);
        of_family.map(|block| (remote(at, block), Object::Remote(to.endpoint.address))).collect()
    }

    fn admit(&self, _: &LocalNode, at: &Instance, advert: &Advert, own: &Own) -> Vec<(Key, Object)> {
        let Instance::Udp { underlay, .. } = at else { return Vec::new() };
        let told = advert.known_as(&at.to_string()).map(|end| end.address);
        let address = told.or_else(|| advert.addresses.get(*underlay).copied());
        let address = address.filter(|address| Family::of(*address) == *underlay);
        address
            .iter()
            .flat_map(|address| own.blocks.iter().map(|block| (remote(at, block), Object::Remote(*address))))
            .collect()
    }

    fn endpoint_in_kernel(&self, kernel: &State, at: &Instance, _: &Advert, blocks: &[&IpNet]) -> Option<Endpoint> {
        let address = blocks.iter().find_map(|block| match kernel.get(&remote(at, block))?.object {
            Object::Remote(address) => Some(address),
            _ => None,
        })?;
        Some(at.heard_at(address))
    }
}

/// Where an engine's packets come from: as long as the node has it, the address that peers were told, since from another they
/// take nothing.
pub(crate) fn addresses(uplinks: &PerFamily<Uplink>, said: Option<&Advert>) -> PerFamily<IpAddr> {
    let told: Vec<&Endpoint> = said.into_iter().flat_map(Advert::ends).collect();
    let mut addresses = PerFamily::default();
    for (family, uplink) in uplinks.iter() {
        let by_engine = |end: &&Endpoint| {
            let at = end.instance.parse::<Instance>().ok();
            at.is_some_and(|at| matches!(at, Instance::Udp { underlay, .. } if underlay == family))
        };
        let told = told.iter().copied().find(by_engine).map(|end| end.address);
        addresses.set(family, told.filter(|told| uplink.addresses.contains(told)).unwrap_or(uplink.address));
    }
    addresses
}

/// What the engine keeps of a peer's range.
fn remote(at: &Instance, block: &IpNet) -> Key {
    Key::Remote { link: at.device(), dst: *block }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_send_is_known_by_the_address_it_has_told() {
        let at = |underlay| Instance::Udp { underlay, port: 8285 };
        let check = |at: Instance, told: &str, wanted: Option<&str>| {
            let accepts = Endpoint {
                instance: at.to_string().into(),
                address: told.parse().unwrap(),
                mac: None,
                public_key: None,
            };
            let advert = Advert {
                node: "n2".into(),
                addresses: PerFamily { v4: Some("192.0.2.2".parse().unwrap()), v6: None },
                mtu: 1500,
                accepts: if told == "::" { Vec::new() } else { vec![accepts] },
                edition: 1,
                heartbeat: 1,
                ..Advert::default()
            };
            let blocks: Vec<IpNet> = ["10.0.0.0/24", "fd00::/64"].map(|block| block.parse().unwrap()).into();
            let of = |address: &str| {
                let object = Object::Remote(address.parse().unwrap());
                blocks.iter().map(|block| (remote(&at, block), object.clone())).collect()
            };
            assert_eq!(
                Udp.admit(&LocalNode::default(), &at, &advert, &Own { blocks: blocks.clone(), ..Own::default() }),
                wanted.map_or(Vec::new(), of),
                "{at} {told}"
            );
        };
        check(at(Family::V4), "::", Some("192.0.2.2"));
        check(at(Family::V4), "192.0.2.9", Some("192.0.2.9"));
        check(at(Family::V4), "2001:db8::2", None);
        check(at(Family::V6), "::", None);
        check(at(Family::V6), "2001:db8::2", Some("2001:db8::2"));
        check(Instance::HostGw, "192.0.2.9", None);
    }
}
