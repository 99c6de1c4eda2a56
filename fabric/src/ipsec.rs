//! ipsec: packets in ESP (RFC 4303, tunnel mode), encrypted to the node they are for by keys that only the two can make
//! (docs/ipsec.md).
//!
//! As with WireGuard, all peers stand in a device as long as it is there, whatever carries packets to them: an association each
//! way, and policies that take from a peer its own ranges alone. A device without a policy for a packet drops it. That the
//! other end is there as well, a peer's kernel says by an answer through the device; until then a pair stays where it is.
//!
//! Invariant: without a secret of the cluster there is no such instance.

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, FabricMode, Family, Features, World};
use tartan_netstate::claims::{MAIN_TABLE, PROBE_METRICS};
use tartan_netstate::{EspEnd, EspPeer, Key, Link, LinkKind, Netns, Object, Owner, Route, Socket, State, stable_hash};

use crate::key::{own_key, to_key_holder};
use crate::mtu::device_mtu;
use crate::ownership::Own;
use crate::{Fabric, Hop, Instance, LocalNode, Peer};

pub(crate) struct Ipsec;

impl Fabric for Ipsec {
    /// Whoever makes the device finds out.
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let mut state = State::new();
        let Some(uplink) = at.underlay().and_then(|underlay| node.uplinks.get(underlay)) else { return state };
        let kind = LinkKind::Xfrm { label: at.to_string().into() };
        let link = Link { kind, mac: None, mtu: device_mtu(uplink.mtu, at), group: 0, up: true };
        crate::device::put(&mut state, at.device(), link, at);
        let owner = Owner::Fabric(at.to_string().into());
        if let Some(port) = at.encrypted_at() {
            // Several of them can stand side by side: who they are for, packets say themselves.
            let socket = Socket { source: uplink.address, port, esp: true };
            state.insert(Key::Socket { link: at.device() }, Object::Socket(socket), owner.clone());
        }
        if let Some(own) = own_end(node, at) {
            state.insert(Key::EspDevice { link: at.device() }, Object::EspDevice(own), owner);
        }
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let EspEnd { address, public_key, .. } = own_end(node, at)?;
        Some(Endpoint { public_key: Some(public_key), ..at.heard_at(address) })
    }

    fn hop(&self, _: &LocalNode, at: &Instance, to: &Peer<'_>, _: Family) -> Result<Hop, Condition> {
        to_key_holder(at, to)
    }

    /// The peer stands in the device already.
    fn reach(&self, _: &Instance, _: &Peer<'_>, _: Family, _: &[&IpNet]) -> Vec<(Key, Object)> {
        Vec::new()
    }

    fn admit(&self, node: &LocalNode, at: &Instance, advert: &Advert, own: &Own) -> Vec<(Key, Object)> {
        let end = advert.known_as(&at.to_string());
        let end = end.and_then(|end| Some((end.address, end.public_key?)));
        let end = end.filter(|(address, _)| Some(Family::of(*address)) == at.underlay());
        let (Some(own_end), Some((address, public_key))) = (own_end(node, at), end) else { return Vec::new() };
        // Where its kernel answers questions that this one can ask.
        let common = advert.fabric_addresses.iter().filter(|(family, _)| node.fabric_addresses.get(*family).is_some());
        let answers: Vec<IpNet> = common
            .filter(|(_, ip)| own.blocks.iter().any(|block| block.contains(*ip)))
            .map(|(_, ip)| Family::host_net(*ip))
            .collect();
        let allowed: Vec<IpNet> = own.blocks.iter().chain(&answers).copied().collect();
        if allowed.is_empty() {
            return Vec::new();
        }
        let asks_by_route = answers.iter().all(|range| range.addr().is_ipv6());
        let routes = own.blocks.iter().filter(|block| asks_by_route && block.addr().is_ipv6());
        let key = Key::EspPeer { link: at.device(), public_key };
        let peer = Object::EspPeer(EspPeer::of(address, own_end, allowed).into());
        [(key, peer)].into_iter().chain(routes.map(|block| question_route(node, at, block))).collect()
    }
}

/// Over IPv6 a kernel sends by a device only what it has a route for by that device. Nothing else takes this one: it comes last.
fn question_route(node: &LocalNode, at: &Instance, block: &IpNet) -> (Key, Object) {
    let number = stable_hash(at.device().as_str()) % u64::from(PROBE_METRICS.end - PROBE_METRICS.start);
    let metric = PROBE_METRICS.start + number as u32;
    let route = Route { src: node.fabric_addresses.v6, ..Route::on_link(at.device()) };
    (Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric }, Object::Route(route.into()))
}

/// Behind a NAT a node has none: it changes the address that keys are made for.
fn own_end(node: &LocalNode, at: &Instance) -> Option<EspEnd> {
    let uplink = node.uplinks.get(at.underlay()?).filter(|uplink| uplink.public.is_none())?;
    Some(EspEnd { address: uplink.address, public_key: own_key(node, at)?, port: at.encrypted_at() })
}

/// Why nothing can be encrypted so, if that is asked for.
pub(crate) fn impossible(world: &World, node: &LocalNode) -> Option<Condition> {
    if world.config.encrypts_by() != Some(FabricMode::Ipsec) {
        return None;
    }
    let condition = |reason, message, fix: &str| Condition {
        about: format!("Node/{}", world.local),
        field: "NetworkConfig spec.encryption".into(),
        reason,
        message,
        fix: fix.into(),
    };
    if world.secret.is_none() {
        let message = format!("{} has no secret of the cluster, and ipsec makes its keys with that", world.local);
        let fix = "give every node the same secret, as docs/fabrics.md says, or set spec.encryption to `wireguard`";
        return Some(condition("SecretMissing", message, fix));
    }
    let has_uplink = node.uplinks.iter().next().is_some();
    let is_hidden = has_uplink && node.uplinks.iter().all(|(_, uplink)| uplink.public.is_some());
    let message = || format!("{} is behind a NAT, which ipsec does not get through", world.local);
    let fix = "set spec.encryption to `wireguard`, or take the annotation tartan.dev/public-address off the node";
    is_hidden.then(|| condition("IpsecBehindNat", message(), fix))
}
