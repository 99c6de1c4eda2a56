//! A device's peers and what to do with each packet. No sockets: it says what is to be sent, and where.
//!
//! Invariant: a peer is followed to another endpoint only by what its key has signed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use ipnet::IpNet;

use crate::inner;
use crate::table::Table;
use crate::wire;
use crate::wire::PublicKey;

/// Bytes that a data message adds, and those of the longest handshake message.
const OVERHEAD: usize = 32;
const LEAST_ROOM: usize = 148;
/// First bytes of messages (section 5.4).
const GREETING: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Packets are filled up to a multiple of this, so that their lengths tell less (section 5.4.6),
const PADDING: usize = 16;
/// unless that could be too long for a device: every one takes as much as this.
const PADDED: usize = 1280;
/// Handshakes that are answered in a second, and above that only to who has shown that it is where it says.
const HANDSHAKES: u64 = 2_000;
/// 32 bytes in base64 and the end of the line; twice, where there is something of the cluster's secret.
const LONGEST_KEYS: usize = 90;

/// Takes what is to be sent, and where.
pub(crate) type Wire<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

/// What this node is to its peers.
pub(crate) struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// What its peers and it have in common beside.
    psk: Option<[u8; 32]>,
    limiter: RateLimiter,
    /// Of the next peer. 24 bits of it name the peer in messages.
    next: AtomicU32,
}

/// The peers of a device and what is whose, at one time.
pub(crate) struct Tunnel {
    identity: Arc<Identity>,
    peers: BTreeMap<PublicKey, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    owners: Table<Arc<Peer>>,
    allowed: BTreeMap<IpNet, PublicKey>,
}

pub(crate) struct Peer {
    index: u32,
    inside: Mutex<Inside>,
}

struct Inside {
    tunn: Tunn,
    told: wire::Peer,
    endpoint: SocketAddr,
    /// There was a handshake.
    met: bool,
    /// The longest of the packets that wait for a handshake; 0 if none does.
    waiting: usize,
}

/// What became of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// A packet of a peer's pods is there.
    Packet(Range<usize>),
    /// It was for the peer itself, or is not to be taken.
    Nothing,
    /// No session of these peers can make anything of it.
    NotOurs,
}

/// How things stand with a peer.
pub(crate) struct Standing {
    pub(crate) endpoint: SocketAddr,
    pub(crate) keepalive: u16,
    pub(crate) met: bool,
    /// Since the last handshake, if there is a session.
    pub(crate) age: Option<Duration>,
    pub(crate) sent: usize,
    pub(crate) received: usize,
}

/// Whether it begins a handshake.
pub(crate) fn is_greeting(datagram: &[u8]) -> bool {
    datagram.first() == Some(&GREETING)
}

// === impl Identity ===

impl Identity {
    /// By the private key in the file, whose public half that is to be.
    pub(crate) fn load(file: &File, wanted: PublicKey) -> io::Result<Identity> {
        let mut text = [0; LONGEST_KEYS];
        let length = file.read_at(&mut text, 0)?;
        let key = |line: &[u8]| <[u8; 32]>::try_from(STANDARD.decode(line).ok()?).ok();
        let keys: Option<Vec<_>> = text[..length].trim_ascii_end().split(|byte| *byte == b'\n').map(key).collect();
        let (private, psk) = match keys.as_deref() {
            Some([private]) => (*private, None),
            Some([private, psk]) => (*private, Some(*psk)),
            _ => return Err(io::Error::other("the file that came along holds no private key")),
        };
        let identity = Identity::new(private.into(), psk)?;
        if identity.public.to_bytes() != wanted.0 {
            let found = PublicKey(identity.public.to_bytes());
            return Err(io::Error::other(format!(
                "the private key that came along is that of {found}, not of {wanted}"
            )));
        }
        Ok(identity)
    }

    pub(crate) fn new(private: x25519::StaticSecret, psk: Option<[u8; 32]>) -> io::Result<Identity> {
        let public = x25519::PublicKey::from(&private);
        let mut next = [0; 4];
        File::open("/dev/urandom")?.read_exact(&mut next)?;
        let (limiter, next) = (RateLimiter::new(&public, HANDSHAKES), AtomicU32::new(u32::from_ne_bytes(next)));
        Ok(Identity { private, public, psk, limiter, next })
    }

    /// For whoever may ask the kernel for the same.
    pub(crate) fn private_bytes(&self) -> &[u8; 32] {
        self.private.as_bytes()
    }

    /// For the same.
    pub(crate) fn psk(&self) -> Option<&[u8; 32]> {
        self.psk.as_ref()
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// With these peers, and these addresses of theirs. Who was there before goes on with its sessions; who is new is told of.
    pub(crate) fn new(
        identity: Arc<Identity>,
        before: Option<&Tunnel>,
        peers: &BTreeMap<PublicKey, wire::Peer>,
        allowed: &BTreeMap<IpNet, PublicKey>,
    ) -> (Tunnel, Vec<Arc<Peer>>) {
        let (mut by_key, mut new) = (BTreeMap::new(), Vec::new());
        for (key, told) in peers {
            let known = before.and_then(|before| before.peers.get(key)).filter(|known| known.goes_on(*told));
            let peer = known.cloned().unwrap_or_else(|| {
                let peer = Arc::new(Peer::new(&identity, *key, *told));
                new.push(peer.clone());
                peer
            });
            by_key.insert(*key, peer);
        }
        let by_index = by_key.values().map(|peer| (peer.index, peer.clone())).collect();
        let owners = allowed.iter().filter_map(|(net, key)| Some((*net, by_key.get(key)?.clone())));
        let owners = Table::of(&owners.collect());
        (Tunnel { identity, peers: by_key, by_index, owners, allowed: allowed.clone() }, new)
    }

    /// Who has that address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.owners.get(address)
    }

    /// What each peer has.
    pub(crate) fn allowed(&self) -> &BTreeMap<IpNet, PublicKey> {
        &self.allowed
    }

    pub(crate) fn peers(&self) -> &BTreeMap<PublicKey, Arc<Peer>> {
        &self.peers
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes what the network brings. A packet of a peer's pods is appended to `plain`.
    pub(crate) fn take(&self, from: SocketAddr, datagram: &[u8], plain: &mut Vec<u8>, send: Wire<'_>) -> Taken {
        let Ok(packet) = Tunn::parse_incoming_packet(datagram) else { return Taken::Nothing };
        let peer = match packet {
            Packet::HandshakeInit(_) => self.who_greets(from, datagram, send),
            Packet::HandshakeResponse(packet) => self.by_index(packet.receiver_idx),
            Packet::PacketCookieReply(packet) => self.by_index(packet.receiver_idx),
            Packet::PacketData(packet) => self.by_index(packet.receiver_idx),
        };
        let Some(peer) = peer else { return Taken::NotOurs };
        let start = plain.len();
        plain.resize(start + datagram.len().max(LEAST_ROOM), 0);
        let opened = peer.open(from, datagram, &mut plain[start..], send);
        plain.truncate(start + opened.unwrap_or(0));
        let source = inner::addresses(&plain[start..]).map(|(source, _)| source);
        if source.and_then(|source| self.owner(source)).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
            return Taken::Packet(start..plain.len());
        }
        plain.truncate(start);
        if opened.is_some() { Taken::Nothing } else { Taken::NotOurs }
    }

    /// Whoever begins a handshake is found by the key that it shows; before that costs anything, it has to show that it knows
    /// ours, and when there are many, that it is where it says (sections 5.3 and 5.4.4).
    fn who_greets(&self, from: SocketAddr, datagram: &[u8], send: Wire<'_>) -> Option<&Arc<Peer>> {
        let mut cookie = [0; 64];
        match self.identity.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(packet)) => {
                let half = parse_handshake_anon(&self.identity.private, &self.identity.public, &packet).ok()?;
                self.peers.get(&PublicKey(half.peer_static_public))
            }
            Err(TunnResult::WriteToNetwork(cookie)) => {
                send(from, cookie);
                None
            }
            _ => None,
        }
    }

    fn by_index(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> 8))
    }

    /// What time asks for: handshakes begun again, keys made anew, a word that this end is there. To be called several times a
    /// second.
    pub(crate) fn tick(&self, send: Wire<'_>) {
        self.identity.limiter.reset_count();
        self.peers.values().for_each(|peer| peer.tick(send));
    }
}

// === impl Peer ===

impl Peer {
    fn new(identity: &Identity, key: PublicKey, told: wire::Peer) -> Peer {
        let index = identity.next.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
        let keepalive = Some(told.keepalive).filter(|seconds| *seconds > 0);
        let tunn = Tunn::new(identity.private.clone(), key.0.into(), identity.psk, keepalive, index, None);
        let inside = Inside { tunn, told, endpoint: told.endpoint, met: false, waiting: 0 };
        Peer { index, inside: Mutex::new(inside) }
    }

    /// Whether it can be what was told with the sessions that it has; if it was told to be elsewhere, it is there.
    fn goes_on(&self, told: wire::Peer) -> bool {
        let mut inside = self.lock();
        if inside.told.endpoint != told.endpoint {
            (inside.told.endpoint, inside.endpoint) = (told.endpoint, told.endpoint);
        }
        inside.told == told
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Appends what is to be sent for a packet to `room`, and says where that goes. Without a session the packet waits, and a
    /// handshake is begun. `plain` is longer after it.
    pub(crate) fn seal(&self, plain: &mut Vec<u8>, room: &mut Vec<u8>) -> Option<SocketAddr> {
        if plain.len() <= PADDED {
            plain.resize(plain.len().next_multiple_of(PADDING), 0);
        }
        let start = room.len();
        room.resize(start + (plain.len() + OVERHEAD).max(LEAST_ROOM), 0);
        let mut inside = self.lock();
        let (length, kind) = match inside.tunn.encapsulate(plain, &mut room[start..]) {
            TunnResult::WriteToNetwork(message) => (message.len(), message[0]),
            _ => (0, 0),
        };
        room.truncate(start + length);
        if kind != DATA {
            inside.waiting = inside.waiting.max(plain.len());
        }
        (length > 0).then_some(inside.endpoint)
    }

    /// Begins a handshake, whatever was before.
    pub(crate) fn greet(&self, send: Wire<'_>) {
        let mut room = [0; LEAST_ROOM];
        let mut inside = self.lock();
        if let TunnResult::WriteToNetwork(message) = inside.tunn.format_handshake_initiation(&mut room, true) {
            send(inside.endpoint, message);
        }
    }

    /// Has the peer send by this end's session, if there is one: it does once it has heard something under that.
    pub(crate) fn confirm(&self, send: Wire<'_>) {
        let mut room = [0; LEAST_ROOM];
        let mut inside = self.lock();
        if inside.met
            && let TunnResult::WriteToNetwork(message) = inside.tunn.encapsulate(&[], &mut room)
        {
            send(inside.endpoint, message);
        }
    }

    /// Decrypts a packet into `plain`, or does what a message of the handshake asks for; how long the packet is. None: it is not for
    /// a session or a handshake that there is.
    fn open(&self, from: SocketAddr, message: &[u8], plain: &mut [u8], send: Wire<'_>) -> Option<usize> {
        let mut inside = self.lock();
        let length = match inside.tunn.decapsulate(Some(from.ip()), message, plain) {
            // From a peer that is too busy to say who it is, or to one that has not shown it.
            TunnResult::WriteToNetwork(answer) if answer[0] == COOKIE => {
                send(from, answer);
                return Some(0);
            }
            TunnResult::Done if message[0] == COOKIE => return Some(0),
            TunnResult::Err(_) => return None,
            TunnResult::WriteToNetwork(answer) => {
                send(from, answer);
                0
            }
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV4(packet, _) => packet.len(),
            TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
        };
        inside.endpoint = from;
        // To who has only begun a handshake nothing may be sent yet.
        inside.met |= matches!(message[0], RESPONSE | DATA);
        if inside.waiting > 0 && inside.met {
            inside.send_what_waits(send);
        }
        Some(length)
    }

    fn tick(&self, send: Wire<'_>) {
        let mut room = [0; LEAST_ROOM];
        let mut inside = self.lock();
        match inside.tunn.update_timers(&mut room) {
            TunnResult::WriteToNetwork(message) => send(inside.endpoint, message),
            // It has tried for a while, and what waited is gone. It may come back at any time.
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                inside.waiting = 0;
                drop(inside);
                self.greet(send);
            }
            _ => {}
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        let inside = self.lock();
        let (age, sent, received, ..) = inside.tunn.stats();
        Standing { endpoint: inside.endpoint, keepalive: inside.told.keepalive, met: inside.met, age, sent, received }
    }
}

impl Inside {
    fn send_what_waits(&mut self, send: Wire<'_>) {
        let mut room = vec![0; (self.waiting + OVERHEAD).max(LEAST_ROOM)];
        loop {
            match self.tunn.decapsulate(None, &[], &mut room) {
                TunnResult::WriteToNetwork(message) if message[0] == DATA => send(self.endpoint, message),
                TunnResult::Done => {
                    self.waiting = 0;
                    return;
                }
                // It has no session after all, and goes on waiting.
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
