//! wireguard: packets encrypted to the key of the node they are for, in UDP (the WireGuard paper, sections 5 and 6).
//!
//! A device sends a packet to the peer whose allowed addresses hold the destination, and takes one in only from the peer whose
//! hold the source. So, as for `udp`, all peers stand in it as long as it is there, whatever carries packets to them: each with
//! the key that it says is its own, which it goes on saying until its own device is gone. With keepalives their handshakes come
//! before the first packet does; and as both ends stay in each other's device, a handshake that there was is not forgotten by one.
//!
//! Where the kernel has no WireGuard the device is a TUN, and an engine knows the same of it and does the same with its packets:
//! peers cannot tell.
//!
//! Invariant: only addresses of pods and of nodes' fabric ends go through it, and what nodes say to each other if it is asked for
//! (`nodes.rs`). What goes to the API server goes as it went before, so nothing that keys are learned from depends on keys.

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Config, Endpoint, Family, Features};
use tartan_netstate::claims::WIREGUARD_KEEPALIVE_SECS;
use tartan_netstate::{Key, Link, LinkKind, Object, Owner, State, WgDevice, WgPeer};

use crate::key::{own_key, to_key_holder};
use crate::mtu::device_mtu;
use crate::ownership::Own;
use crate::{Fabric, Hop, Instance, LocalNode, Peer};

pub(crate) struct Wireguard;

impl Fabric for Wireguard {
    /// Whoever makes the device finds out.
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let mut state = State::new();
        let (Instance::Wireguard { underlay, port, .. }, Some(public_key)) = (*at, own_key(node, at)) else {
            return state;
        };
        let Some(uplink) = node.uplinks.get(underlay) else { return state };
        let label = at.to_string().into();
        let kind = if node.kernel_encrypts { LinkKind::Wireguard { label } } else { LinkKind::Tun { label } };
        let link = Link { kind, mac: None, mtu: device_mtu(uplink.mtu, at), group: 0, up: true };
        crate::device::put(&mut state, at.device(), link, at);
        let device = Object::WgDevice(WgDevice { listen_port: port, public_key });
        state.insert(Key::WgDevice { link: at.device() }, device, Owner::Fabric(at.to_string().into()));
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let uplink = node.uplinks.get(at.underlay()?)?;
        let public_key = Some(own_key(node, at)?);
        Some(Endpoint { public_key, ..at.heard_at(uplink.advertised()) })
    }

    fn hop(&self, _: &LocalNode, at: &Instance, to: &Peer<'_>, _: Family) -> Result<Hop, Condition> {
        to_key_holder(at, to)
    }

    /// The peer stands in the device already, and a range more or less would be another peer.
    fn reach(&self, _: &Instance, _: &Peer<'_>, _: Family, _: &[&IpNet]) -> Vec<(Key, Object)> {
        Vec::new()
    }

    fn admit(&self, _: &LocalNode, at: &Instance, advert: &Advert, own: &Own) -> Vec<(Key, Object)> {
        // And its own addresses, whether or not it is to send under them so: it begins when it likes.
        let itself = own.addresses.iter().map(|ip| Family::host_net(*ip));
        let end = advert.known_as(&at.to_string());
        end.and_then(|end| peer(at, end, own.blocks.iter().copied().chain(itself))).into_iter().collect()
    }
}

/// The instance over a family of underlay with the keys of that number and something of that secret. Keys of two numbers in a row and
/// both families are on devices of their own.
pub(crate) fn instance(config: &Config, underlay: Family, rotation: u32, psk: Option<u32>) -> Instance {
    let port = config.wireguard.port + u16::from(rotation % 2 == 1) * 2 + u16::from(underlay == Family::V6);
    Instance::Wireguard { underlay, port, rotation, psk }
}

/// A peer with what is its own.
fn peer(at: &Instance, end: &Endpoint, own: impl Iterator<Item = IpNet>) -> Option<(Key, Object)> {
    let (Instance::Wireguard { underlay, port, .. }, Some(public_key)) = (at, end.public_key) else { return None };
    if Family::of(end.address) != *underlay {
        return None;
    }
    let endpoint = (end.address, *port).into();
    let itself = WgPeer::of(endpoint, WIREGUARD_KEEPALIVE_SECS, own);
    Some((Key::WgPeer { link: at.device(), public_key }, Object::WgPeer(itself.into())))
}
