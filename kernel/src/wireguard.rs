//! WireGuard devices over generic netlink (the kernel's include/uapi/linux/wireguard.h), and the key pairs they have.
//!
//! Invariant: a private key goes from its file to the kernel; what is read back of a device is its public one. What a device's key
//! pair has of the cluster's secret is every peer's of it; a peer with anything else is read as one that is nowhere.
//!
//! A peer that moves is followed by the kernel, which then has another endpoint than it was told. As long as the peer is
//! known by its key there, that is no difference: what was told is what is read. A process that has just begun does not know what was
//! told: the endpoint of a peer with which there is a session it leaves as it finds it, and counts what is wanted first as told. The
//! other end of a session is known by its key, too, and behind a NAT what it advertises may lead nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::libc;
use tartan_netstate::claims::WIREGUARD_NOBODY;
use tartan_netstate::{Key, LinkName, Object, Op, Owner, PublicKey, State, Step, WgDevice, WgPeer};

use crate::genetlink::{Genetlink, number};
use crate::keys::Keys;
use crate::netlink::Refusal;
use crate::nfnetlink::{Attrs, attr, attrs};
use crate::secret::Psk;
use crate::{Failure, KernelError};

const WG_GENL_NAME: &str = "wireguard";
const WG_GENL_VERSION: u8 = 1;
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_KEEPALIVE: u16 = 5;
const WGPEER_A_LAST_HANDSHAKE: u16 = 6;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_UPDATE_ONLY: u32 = 4;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
/// After a handshake, a session lasts so long (REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// An attribute holds 64 KiB, and a range takes 44 bytes of it at most.
const RANGES_AT_ONCE: usize = 1024;

/// See the module.
pub(crate) struct Wireguard {
    keys: Keys,
    /// None until it was asked for; then none where the kernel has no WireGuard.
    family: Option<Option<Genetlink>>,
    devices: BTreeSet<LinkName>,
    /// Endpoints as the kernel was told.
    told: BTreeMap<(LinkName, PublicKey), SocketAddr>,
    /// Peers that were found with a session, whose endpoints are not this process's.
    found: BTreeSet<(LinkName, PublicKey)>,
    /// Public halves are worth remembering: they take longer to find than a file to read.
    public: BTreeMap<[u8; 32], PublicKey>,
    /// By the key that a device has, what that pair has of the cluster's secret.
    psks: BTreeMap<LinkName, (PublicKey, Option<Psk>)>,
}

/// A device as it was read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Device {
    public_key: Option<PublicKey>,
    listen_port: u16,
    peers: BTreeMap<PublicKey, Peer>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Peer {
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    psk: Option<Psk>,
    /// When there was a handshake, since 1970; none where there was none.
    met: Option<Duration>,
    allowed: Vec<IpNet>,
}

impl Wireguard {
    /// In the network namespace of the calling thread, with key pairs in that directory.
    pub(crate) fn with_keys_in(dir: &Path) -> Wireguard {
        Wireguard {
            keys: Keys::of(dir),
            family: None,
            devices: BTreeSet::new(),
            told: BTreeMap::new(),
            found: BTreeSet::new(),
            public: BTreeMap::new(),
            psks: BTreeMap::new(),
        }
    }

    /// Whether the kernel has it.
    pub(crate) fn is_there(&mut self) -> Result<bool, KernelError> {
        Ok(self.family()?.is_some())
    }

    /// What these devices have.
    pub(crate) fn read(&mut self, devices: BTreeSet<LinkName>, state: &mut State) -> Result<(), KernelError> {
        self.told.retain(|(link, _), _| devices.contains(link));
        self.found.retain(|(link, _)| devices.contains(link));
        self.psks.retain(|link, _| devices.contains(link));
        self.devices = devices;
        for link in self.devices.clone() {
            self.read_device(&link, state)?;
        }
        Ok(())
    }

    /// What one device has.
    pub(crate) fn read_device(&mut self, link: &LinkName, state: &mut State) -> Result<(), KernelError> {
        let Some(device) = self.device(link)? else { return Ok(()) };
        self.devices.insert(link.clone());
        if let Some(public_key) = device.public_key {
            let made = WgDevice { listen_port: device.listen_port, public_key };
            state.insert(Key::WgDevice { link: link.clone() }, Object::WgDevice(made), Owner::Read);
            self.know_psk(link, public_key);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (public_key, peer) in device.peers {
            let object = Object::WgPeer(self.as_told(link, public_key, peer, now).into());
            state.insert(Key::WgPeer { link: link.clone(), public_key }, object, Owner::Read);
        }
        Ok(())
    }

    /// A peer that was read, with the endpoint that the kernel was told, as far as it is known by its key.
    fn as_told(&mut self, link: &LinkName, public_key: PublicKey, peer: Peer, now: Duration) -> WgPeer {
        let of = (link.clone(), public_key);
        let is_known = peer.psk == self.psk(link);
        let told = self.told.get(&of).copied();
        let has_session = peer.met.is_some_and(|met| met.saturating_add(SESSION) > now);
        if is_known && has_session && told.is_none() {
            self.found.insert(of);
        } else {
            self.found.remove(&of);
        }
        let nowhere = (Ipv4Addr::UNSPECIFIED, 0).into();
        let told = told.filter(|_| peer.met.is_some());
        let endpoint = told.or(peer.endpoint).filter(|_| is_known).unwrap_or(nowhere);
        WgPeer::of(endpoint, peer.keepalive, peer.allowed)
    }

    /// Remembers it of a device that has this key.
    fn know_psk(&mut self, link: &LinkName, public_key: PublicKey) {
        if self.psks.get(link).is_none_or(|(known, _)| *known != public_key)
            && let Ok(pair) = self.keys.private(public_key)
        {
            self.psks.insert(link.clone(), (public_key, pair.psk()));
        }
    }

    fn psk(&self, link: &LinkName) -> Option<Psk> {
        self.psks.get(link).and_then(|(_, psk)| *psk)
    }

    /// The public halves of the key pairs that are there.
    pub(crate) fn public_keys(&mut self) -> Result<BTreeMap<Arc<str>, PublicKey>, KernelError> {
        let all = self.keys.all().map_err(|error| key_error("read this node's key pairs", &error))?;
        let public = |(name, private): (Arc<str>, crate::keys::PrivateKey)| {
            (name, *self.public.entry(*private.bytes()).or_insert_with(|| private.public()))
        };
        Ok(all.into_iter().map(public).collect())
    }

    /// Every peer of the devices that are known, and whether there was a handshake with it.
    pub(crate) fn handshakes(&mut self) -> Result<BTreeMap<(LinkName, PublicKey), bool>, KernelError> {
        let mut handshakes = BTreeMap::new();
        for link in self.devices.clone() {
            let peers = self.device(&link)?.map(|device| device.peers).unwrap_or_default();
            handshakes
                .extend(peers.into_iter().map(|(public_key, peer)| ((link.clone(), public_key), peer.met.is_some())));
        }
        Ok(handshakes)
    }

    /// Steps that make key pairs, or take them away.
    pub(crate) fn apply_to_keys<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> Vec<Failure> {
        let done = |op: Op<'_>| match op {
            Op::Create(Key::KeyPair { name }, _) => self.keys.make(name),
            Op::Delete(Key::KeyPair { name }, _) => self.keys.remove(name),
            _ => Ok(()),
        };
        steps
            .filter_map(|step| {
                let error = done(step.op()).err()?;
                Some(Failure::of(step, key_error(&crate::namespace::doing(step.op()), &error)))
            })
            .collect()
    }

    /// Steps about devices and their peers, in order.
    pub(crate) fn apply(&mut self, steps: &[&Step]) -> Vec<Failure> {
        let (mut requests, mut about, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            if let Op::Create(Key::WgDevice { link }, Object::WgDevice(new))
            | Op::Replace { key: Key::WgDevice { link }, new: Object::WgDevice(new), .. } = step.op()
            {
                self.know_psk(link, new.public_key);
            }
            match self.requests(step) {
                Ok(of_step) => {
                    about.extend(of_step.iter().map(|_| *step));
                    requests.extend(of_step);
                }
                Err(error) => failures.push(Failure::of(step, error)),
            }
        }
        let results = match self.family() {
            Ok(Some(family)) => family.batch(WG_CMD_SET_DEVICE, &requests),
            // Without WireGuard there is no device.
            _ => vec![Err(Refusal { errno: Errno::ENODEV, says: None }); requests.len()],
        };
        for (step, result) in about.into_iter().zip(results) {
            match result {
                Ok(()) => self.note(step.op()),
                Err(refusal) if step.deletes() && refusal.errno == Errno::ENODEV => {}
                Err(refusal) => {
                    let error = refusal.doing(crate::namespace::doing(step.op()));
                    failures.push(Failure::of(step, error));
                }
            }
        }
        failures
    }

    fn note(&mut self, op: Op<'_>) {
        match op {
            Op::Create(Key::WgPeer { link, public_key }, Object::WgPeer(peer))
            | Op::Replace { key: Key::WgPeer { link, public_key }, new: Object::WgPeer(peer), .. } => {
                self.told.insert((link.clone(), *public_key), peer.endpoint);
                self.found.remove(&(link.clone(), *public_key));
            }
            Op::Delete(Key::WgPeer { link, public_key }, _) => drop(self.told.remove(&(link.clone(), *public_key))),
            Op::Create(Key::WgDevice { link }, _) => drop(self.devices.insert(link.clone())),
            _ => {}
        }
    }

    /// One, but for a peer of very many ranges.
    fn requests(&self, step: &Step) -> Result<Vec<Attrs>, KernelError> {
        let op = step.op();
        let (old, new) = op.sides();
        let one = match (op.key(), old, new) {
            (Key::WgDevice { link }, old, Some(Object::WgDevice(new))) => {
                let private = self.keys.private(new.public_key);
                let private = private.map_err(|error| key_error(&crate::namespace::doing(op), &error))?;
                let same_key = matches!(old, Some(Object::WgDevice(old)) if old.public_key == new.public_key);
                of_device(link, |device| {
                    // A key that is set again ends all sessions.
                    if !same_key {
                        device.bytes(WGDEVICE_A_PRIVATE_KEY, private.bytes());
                    }
                    device.bytes(WGDEVICE_A_LISTEN_PORT, &new.listen_port.to_ne_bytes());
                })
            }
            (Key::WgDevice { link }, ..) => of_device(link, |device| {
                device.bytes(WGDEVICE_A_PRIVATE_KEY, &[0; 32]);
            }),
            (Key::WgPeer { link, public_key }, old, Some(Object::WgPeer(new))) => {
                let old = old.and_then(Object::as_wg_peer);
                let found = step.changes_what_was_found() && self.found.contains(&(link.clone(), *public_key));
                // One that has gone elsewhere is still there.
                let stays = found || old.is_some_and(|old| old.endpoint == new.endpoint);
                return Ok(of_peer(link, *public_key, self.psk(link), old, new, stays));
            }
            (Key::WgPeer { link, public_key }, ..) => {
                of_device(link, |device| peers(device, |peers| remove(peers, public_key, WGPEER_F_UPDATE_ONLY)))
            }
            _ => return Ok(Vec::new()),
        };
        Ok(vec![one])
    }

    fn device(&mut self, link: &LinkName) -> Result<Option<Device>, KernelError> {
        let Some(family) = self.family()? else { return Ok(None) };
        let answers = match family.dump(WG_CMD_GET_DEVICE, &of_device(link, |_| {})) {
            Ok(answers) => answers,
            Err(Refusal { errno: Errno::ENODEV | Errno::EOPNOTSUPP, .. }) => return Ok(None),
            Err(Refusal { errno: Errno::EINTR, .. }) => return Err(KernelError::Interrupted("a WireGuard device")),
            Err(refusal) => return Err(refusal.doing(format!("read the WireGuard device {link}"))),
        };
        Ok(Some(decode(&answers)))
    }

    fn family(&mut self) -> Result<Option<&mut Genetlink>, KernelError> {
        if self.family.is_none() {
            self.family = Some(Genetlink::open(WG_GENL_NAME, WG_GENL_VERSION)?);
        }
        Ok(self.family.as_mut().and_then(Option::as_mut))
    }
}

fn key_error(doing: &str, error: &std::io::Error) -> KernelError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    KernelError::Refused { doing: doing.to_owned(), errno, says: Some(error.to_string()) }
}

// === requests ===

fn of_device(link: &LinkName, inside: impl FnOnce(&mut Attrs)) -> Attrs {
    let mut device = Attrs::new();
    device.str(WGDEVICE_A_IFNAME, link.as_str());
    inside(&mut device);
    device
}

/// A peer with all its ranges at once: as soon as it is there it answers handshakes. Those that are to stay are not touched, nor is its
/// endpoint if that `stays`.
fn of_peer(
    link: &LinkName,
    public_key: PublicKey,
    psk: Option<Psk>,
    old: Option<&WgPeer>,
    new: &WgPeer,
    stays: bool,
) -> Vec<Attrs> {
    let added: Vec<&IpNet> = new.beyond(old).collect();
    let taken: Vec<&IpNet> = old.into_iter().flat_map(|old| old.beyond(Some(new))).collect();
    let (at_once, rest) = added.split_at(added.len().min(RANGES_AT_ONCE));
    let first = of_device(link, |device| {
        peers(device, |peers| {
            peers.nest(0, |peer| {
                peer.bytes(WGPEER_A_PUBLIC_KEY, &public_key.0);
                // Zeros are none.
                peer.bytes(WGPEER_A_PRESHARED_KEY, psk.as_ref().map_or(&[0; 32], Psk::bytes).as_slice());
                if !stays {
                    peer.bytes(WGPEER_A_ENDPOINT, &socket_address(new.endpoint));
                }
                peer.bytes(WGPEER_A_KEEPALIVE, &new.keepalive.to_ne_bytes());
                allow(peer, at_once);
            });
        });
    });
    let more = rest.chunks(RANGES_AT_ONCE).map(|ranges| of_device(link, |device| give(device, public_key, ranges)));
    let less = taken.chunks(RANGES_AT_ONCE).map(|ranges| of_device(link, |device| take(device, ranges)));
    [first].into_iter().chain(more).chain(less).collect()
}

fn peers(device: &mut Attrs, inside: impl FnOnce(&mut Attrs)) {
    device.nest(WGDEVICE_A_PEERS, inside);
}

fn give(device: &mut Attrs, to: PublicKey, ranges: &[&IpNet]) {
    peers(device, |peers| {
        peers.nest(0, |peer| {
            peer.bytes(WGPEER_A_PUBLIC_KEY, &to.0);
            peer.bytes(WGPEER_A_FLAGS, &WGPEER_F_UPDATE_ONLY.to_ne_bytes());
            allow(peer, ranges);
        });
    });
}

/// Somebody takes the ranges from whoever has them, and then goes.
fn take(device: &mut Attrs, ranges: &[&IpNet]) {
    peers(device, |peers| {
        peers.nest(0, |peer| {
            peer.bytes(WGPEER_A_PUBLIC_KEY, &WIREGUARD_NOBODY);
            allow(peer, ranges);
        });
        remove(peers, &PublicKey(WIREGUARD_NOBODY), 0);
    });
}

fn remove(peers: &mut Attrs, public_key: &PublicKey, flags: u32) {
    peers.nest(0, |peer| {
        peer.bytes(WGPEER_A_PUBLIC_KEY, &public_key.0);
        peer.bytes(WGPEER_A_FLAGS, &(WGPEER_F_REMOVE_ME | flags).to_ne_bytes());
    });
}

fn allow(peer: &mut Attrs, ranges: &[&IpNet]) {
    peer.nest(WGPEER_A_ALLOWEDIPS, |allowed| {
        for range in ranges {
            let (family, address) = match range.addr() {
                IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
                IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
            };
            allowed.nest(0, |one| {
                one.bytes(WGALLOWEDIP_A_FAMILY, &(family as u16).to_ne_bytes());
                one.bytes(WGALLOWEDIP_A_IPADDR, &address);
                one.bytes(WGALLOWEDIP_A_CIDR_MASK, &[range.prefix_len()]);
            });
        }
    });
}

/// A `sockaddr_in` or `sockaddr_in6`.
fn socket_address(of: SocketAddr) -> Vec<u8> {
    let (family, port) = (|family: i32| (family as u16).to_ne_bytes(), of.port().to_be_bytes());
    match of {
        SocketAddr::V4(v4) => [&family(libc::AF_INET)[..], &port, &v4.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(v6) => {
            [&family(libc::AF_INET6)[..], &port, &[0; 4], &v6.ip().octets(), &v6.scope_id().to_ne_bytes()].concat()
        }
    }
}

// === answers ===

fn of_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some((ip, port).into())
}

fn public_key(value: &[u8]) -> Option<PublicKey> {
    value.try_into().ok().map(PublicKey)
}

/// A device comes in as many parts as it takes: what is the device's own is in the first, and what is a peer's own where that
/// peer begins.
fn decode(answers: &[Vec<u8>]) -> Device {
    let mut device = Device::default();
    for (id, value) in answers.iter().flat_map(|answer| attrs(answer)) {
        match id {
            WGDEVICE_A_PUBLIC_KEY => device.public_key = public_key(value),
            WGDEVICE_A_LISTEN_PORT => device.listen_port = number(value).unwrap_or(0) as u16,
            WGDEVICE_A_PEERS => {
                for (_, found) in attrs(value) {
                    let Some(key) = attr(found, WGPEER_A_PUBLIC_KEY).and_then(public_key) else { continue };
                    device.peers.entry(key).or_default().take(found);
                }
            }
            _ => {}
        }
    }
    device
}

impl Peer {
    fn take(&mut self, found: &[u8]) {
        for (id, value) in attrs(found) {
            match id {
                WGPEER_A_ENDPOINT => self.endpoint = of_socket_address(value),
                WGPEER_A_PRESHARED_KEY => {
                    self.psk = value.try_into().ok().filter(|psk| *psk != [0; 32]).map(Psk::new);
                }
                WGPEER_A_KEEPALIVE => self.keepalive = number(value).unwrap_or(0) as u16,
                WGPEER_A_LAST_HANDSHAKE => self.met = since_1970(value),
                WGPEER_A_ALLOWEDIPS => self.allowed.extend(attrs(value).filter_map(|(_, one)| allowed(one))),
                _ => {}
            }
        }
    }
}

/// Seconds and nanoseconds; zeros are none.
fn since_1970(value: &[u8]) -> Option<Duration> {
    let seconds = u64::from_ne_bytes(*value.first_chunk()?);
    let nanoseconds = u64::from_ne_bytes(*value.get(8..)?.first_chunk()?);
    let since = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds));
    (!since.is_zero()).then_some(since)
}

fn allowed(one: &[u8]) -> Option<IpNet> {
    let address = attr(one, WGALLOWEDIP_A_IPADDR)?;
    let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).ok()?;
    IpNet::new(address, *attr(one, WGALLOWEDIP_A_CIDR_MASK)?.first()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let link = LinkName::new("ttxs0").unwrap();
        for (endpoint, dst) in [("192.0.2.1:51820", "10.0.0.0/24"), ("[2001:db8::1]:65535", "fd00:1::/64")] {
            let (endpoint, dst, key): (SocketAddr, IpNet, _) =
                (endpoint.parse().unwrap(), dst.parse().unwrap(), PublicKey([7; 32]));
            let psk = || dst.addr().is_ipv6().then(|| Psk::new([1; 32]));
            let wanted = WgPeer::of(endpoint, 25, [dst]);
            let mut first = of_peer(&link, key, psk(), None, &wanted, false).remove(0);
            first.bytes(WGDEVICE_A_PUBLIC_KEY, &[9; 32]).bytes(WGDEVICE_A_LISTEN_PORT, &51820_u16.to_ne_bytes());
            // Of many addresses some come in the next part.
            let more: IpNet = "192.0.2.0/24".parse().unwrap();
            let rest = of_device(&link, |device| give(device, key, &[&more]));
            let peer =
                Peer { endpoint: Some(endpoint), keepalive: 25, psk: psk(), met: None, allowed: vec![dst, more] };
            let wanted = Device {
                public_key: Some(PublicKey([9; 32])),
                listen_port: 51820,
                peers: BTreeMap::from([(key, peer)]),
            };
            assert_eq!(decode(&[first.0, rest.0]), wanted);
        }
    }

    /// A peer that was met so many seconds ago is found at one endpoint, and another is wanted. Whether the kernel is told so, by a
    /// process that has told it nothing before.
    #[test]
    fn a_peer_that_moved_stays_where_it_is_when_the_agent_starts_again() {
        let (link, key) = (LinkName::new("ttxs0").unwrap(), PublicKey([7; 32]));
        let now = Duration::from_secs(1_000_000);
        let [moved, advertised, next] = ["192.0.2.9:40000", "192.0.2.1:51820", "192.0.2.2:51820"]
            .map(|endpoint| endpoint.parse::<SocketAddr>().unwrap());
        let net: IpNet = "10.0.0.0/24".parse().unwrap();
        let wanted = |endpoint, nets: &[IpNet]| WgPeer::of(endpoint, 25, nets.iter().copied());
        let found = |ago: Option<u64>| Peer {
            endpoint: Some(moved),
            keepalive: 25,
            met: ago.map(|ago| now - Duration::from_secs(ago)),
            allowed: vec![net],
            ..Peer::default()
        };
        let step = |was: &WgPeer, is: &WgPeer, owner: Owner| {
            let mut state = State::new();
            let of = Key::WgPeer { link: link.clone(), public_key: key };
            state.insert(of.clone(), Object::WgPeer(was.clone().into()), owner);
            let mut next = State::new();
            next.insert(of, Object::WgPeer(is.clone().into()), Owner::Peer("n2".into()));
            tartan_netstate::diff(&state, &next, |_| true).steps.remove(0)
        };
        let tells = |wireguard: &Wireguard, step: &Step| {
            let requests = wireguard.requests(step).unwrap();
            let peers = attr(&requests[0].0, WGDEVICE_A_PEERS).unwrap();
            let (_, peer) = attrs(peers).next().unwrap();
            attr(peer, WGPEER_A_ENDPOINT).and_then(of_socket_address)
        };
        for (ago, secret, stays) in [
            (Some(5), false, true),
            (Some(179), false, true),
            (Some(181), false, false),
            (None, false, false),
            (Some(5), true, false),
        ] {
            let wireguard = &mut Wireguard::with_keys_in(Path::new("/nonexistent"));
            let mut peer = found(ago);
            peer.psk = secret.then(|| Psk::new([1; 32]));
            let read = wireguard.as_told(&link, key, peer, now);
            // Another range does not change that.
            for nets in [&[net][..], &[net, "10.0.1.0/24".parse().unwrap()]] {
                let first = step(&read, &wanted(advertised, nets), Owner::Read);
                assert_eq!(tells(wireguard, &first), (!stays).then_some(advertised), "{ago:?} {secret}");
            }
            let first = wanted(advertised, &[net]);
            wireguard.note(step(&read, &first, Owner::Read).op());
            // From then on it is as if this process had told it.
            assert_eq!(wireguard.as_told(&link, key, found(Some(5)), now), first);
            let second = step(&first, &wanted(next, &[net]), Owner::Peer("n2".into()));
            assert_eq!(tells(wireguard, &second), Some(next), "{ago:?}: it says that it is elsewhere");
        }
        // What was wanted already when it was found is not told, and still changes.
        let wireguard = &mut Wireguard::with_keys_in(Path::new("/nonexistent"));
        let read = wireguard.as_told(&link, key, found(Some(5)), now);
        let change = step(&read, &wanted(next, &[net]), Owner::Peer("n2".into()));
        assert_eq!(tells(wireguard, &change), Some(next));
    }

    #[test]
    fn nothing_that_a_kernel_says_is_too_strange() {
        for bytes in [&[][..], &[0; 3], &[8, 0, 8, 0x80, 1, 0, 0, 0], &[6, 0, 6, 0, 1, 2], &[0xff; 64]] {
            let _device = decode(&[bytes.to_vec()]);
            assert_eq!(of_socket_address(&bytes[..bytes.len().min(7)]), None);
            assert_eq!(allowed(bytes), None);
        }
    }
}
