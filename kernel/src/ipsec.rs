//! IPsec devices, their peers and the keys of their associations (docs/ipsec.md has the reasons).
//!
//! Invariant: no association is made twice. One that the kernel has lost, whoever took it, ends its key pair: nothing more is
//! made with that, and the node goes on with a new pair, so that every key there is has been used from its first packet on. Who
//! says that a pair is in use is the kernel itself, by an association that carries nothing (the anchor): it goes when the
//! others go, with a reboot or a flush. So associations stay as long as their device's pair does; what a peer may send, and what
//! is sent to it, is up to policies.
//!
//! Invariant: a peer that is answered through the device holds the other end: policies come before associations, and policies
//! that send come last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use tartan_netstate::claims::{ESP_ANCHOR, ESP_IN, ESP_KEY_PREFIX, ESP_OUT};
use tartan_netstate::{EspEnd, EspPeer, Key, LinkName, Object, Op, Owner, PublicKey, State, Step, beyond, stable_hash};

use crate::channel::Message;
use crate::echo::{Echo, Heard};
use crate::keys::{self, Keys, PrivateKey};
use crate::xfrm::{self, Direction, KEY_BYTES, Policy, Sa, Xfrm};
use crate::{Failure, KernelError};

/// SPIs up to this one mean something else (RFC 4303 section 2.1).
const LAST_RESERVED_SPI: u32 = 255;
/// What an association that is made in another's place leaves out: more than is sent while that is done, of all peers in turn.
/// The far end, which has half of a number's bits from the packets, follows less than 2^32 at once (RFC 4303 appendix A2).
const LEFT_OUT: u64 = 1 << 28;
/// Of an echo request.
const BYTES: u32 = 64;

/// See the module.
pub(crate) struct Ipsec {
    keys: Keys,
    /// None until it was asked for; then none where the kernel has no XFRM.
    xfrm: Option<Option<Xfrm>>,
    /// What is in use; none before it was read.
    devices: Option<BTreeMap<LinkName, EspEnd>>,
    peers: BTreeMap<(LinkName, PublicKey), Arc<EspPeer>>,
    /// Associations that were there or were made, by the number of their device.
    known: BTreeSet<(u32, IpAddr, u32)>,
    greetings: Greetings,
}

/// Which peers have answered through their device.
#[derive(Default)]
struct Greetings {
    echo: Option<Echo>,
    asked: BTreeMap<u64, (LinkName, PublicKey)>,
    /// Counts up: of a peer's addresses each has its turn.
    turn: usize,
    numbers: BTreeMap<(LinkName, PublicKey), u64>,
    met: BTreeSet<(LinkName, PublicKey)>,
}

/// What the kernel holds of one device.
#[derive(Default)]
struct Held {
    associations: Vec<Sa>,
    policies: Vec<Policy>,
}

/// Both numbers and both keys of the associations with a peer.
struct Pair {
    spi_in: u32,
    spi_out: u32,
    key_in: [u8; KEY_BYTES],
    key_out: [u8; KEY_BYTES],
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// The number by which the kernel tells devices apart; 0 would be none.
pub(crate) fn if_id(link: &LinkName) -> u32 {
    (stable_hash(link.as_str()) >> 32) as u32 | 1
}

/// What an association is known by at its far end. It tells nothing but who the two are.
fn spi(link: &LinkName, from: PublicKey, to: PublicKey) -> u32 {
    let all = [link.as_str().as_bytes(), &from.0, &to.0].concat();
    let [a, b, c, d, ..] = *ring::digest::digest(&ring::digest::SHA256, &all).as_ref() else { return u32::MAX };
    let spi = u32::from_be_bytes([a, b, c, d]);
    if spi > LAST_RESERVED_SPI { spi } else { spi + LAST_RESERVED_SPI + 1 }
}

/// The number of the association that says that a key pair is in use.
fn anchor_spi(link: &LinkName, own: PublicKey) -> u32 {
    spi(link, own, own)
}

/// The key of an association: of the secret and of what the two have alone; for this device, one direction, and one address.
fn derive(
    private: &PrivateKey,
    shared: &[u8],
    link: &LinkName,
    (from, to): (PublicKey, PublicKey),
    at: IpAddr,
) -> [u8; KEY_BYTES] {
    let secret = private.psk();
    let salt = secret.as_ref().map_or(&[][..], |secret| secret.bytes());
    let at = at.to_string();
    let about = [b"ipsec association".as_slice(), link.as_str().as_bytes(), &from.0, &to.0, at.as_bytes()];
    let mut key = [0; KEY_BYTES];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(shared);
    let derived = extracted.expand(&about, Length).and_then(|okm| okm.fill(&mut key));
    derived.expect("HKDF gives 36 bytes and more");
    key
}

impl Pair {
    fn of(private: &PrivateKey, link: &LinkName, peer: PublicKey, new: &EspPeer) -> Pair {
        let (own, shared) = (new.own, private.shared_with(peer));
        let derive = |between, at| derive(private, &shared, link, between, at);
        Pair {
            spi_in: spi(link, peer, own.public_key),
            spi_out: spi(link, own.public_key, peer),
            key_in: derive((peer, own.public_key), own.address),
            key_out: derive((own.public_key, peer), new.address),
        }
    }
}

impl Ipsec {
    /// In the network namespace of the calling thread, with key pairs in that directory.
    pub(crate) fn with_keys_in(dir: &Path) -> Ipsec {
        Ipsec {
            keys: Keys::of(dir),
            xfrm: None,
            devices: None,
            peers: BTreeMap::new(),
            known: BTreeSet::new(),
            greetings: Greetings::default(),
        }
    }

    /// See [`crate::channel::Channel::port`]; none where the kernel has no XFRM.
    pub(crate) fn port(&mut self) -> Option<u32> {
        self.xfrm().ok().flatten().map(|xfrm| xfrm.port())
    }

    // === what is there ===

    /// What these devices have, which are all there are. What is left of others goes.
    pub(crate) fn read(&mut self, devices: &BTreeSet<LinkName>, state: &mut State) -> Result<(), KernelError> {
        let mut held = self.held()?;
        self.devices.get_or_insert_default().retain(|link, _| devices.contains(link));
        self.peers.retain(|(link, _), _| devices.contains(link));
        for link in devices {
            let held = held.remove(&if_id(link)).unwrap_or_default();
            self.put(link, &held, state)?;
        }
        for (number, held) in held {
            self.known.retain(|(of, ..)| *of != number);
            self.flush(number, &held)?;
        }
        Ok(())
    }

    /// What one device has.
    pub(crate) fn read_device(&mut self, link: &LinkName, state: &mut State) -> Result<(), KernelError> {
        let held = self.held()?.remove(&if_id(link)).unwrap_or_default();
        self.put(link, &held, state)
    }

    /// Whether a pair of that name was used and is not in use: the kernel has lost what was made with it. An error means unknown.
    pub(crate) fn is_spent(&self, name: &str, public_key: PublicKey) -> Result<bool, KernelError> {
        if !name.starts_with(ESP_KEY_PREFIX) || !self.keys.is_used(name) {
            return Ok(false);
        }
        let devices = self.devices.as_ref().ok_or(KernelError::Interrupted("what IPsec devices there are"))?;
        Ok(!devices.values().any(|own| own.public_key == public_key))
    }

    fn held(&mut self) -> Result<BTreeMap<u32, Held>, KernelError> {
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        let Some(xfrm) = self.xfrm()? else { return Ok(held) };
        // Policies first: one whose association is made meanwhile has not lost it.
        for policy in xfrm.policies()? {
            held.entry(policy.if_id).or_default().policies.push(policy);
        }
        for sa in xfrm.associations()? {
            held.entry(sa.if_id).or_default().associations.push(sa);
        }
        Ok(held)
    }

    fn put(&mut self, link: &LinkName, held: &Held, state: &mut State) -> Result<(), KernelError> {
        let devices = self.devices.get_or_insert_default();
        devices.remove(link);
        self.peers.retain(|(of, _), _| of != link);
        let number = if_id(link);
        let Some(own) = held.anchor(link) else { return Ok(()) };
        if self.has_lost(number, held) {
            self.known.retain(|(of, ..)| *of != number);
            let anchor = xfrm::delete_sa(own.address, anchor_spi(link, own.public_key));
            return self.send(vec![anchor], "end a key pair of which the kernel has lost an association");
        }
        self.known.extend(held.associations.iter().map(|sa| (number, sa.daddr, sa.spi)));
        self.devices.get_or_insert_default().insert(link.clone(), own);
        state.insert(Key::EspDevice { link: link.clone() }, Object::EspDevice(own), Owner::Read);
        for (public_key, peer) in held.peers(link, own) {
            let peer = Arc::new(peer);
            self.peers.insert((link.clone(), public_key), peer.clone());
            state.insert(Key::EspPeer { link: link.clone(), public_key }, Object::EspPeer(peer), Owner::Read);
        }
        self.greetings.keep(&self.peers);
        Ok(())
    }

    /// Whether an association is gone that was there, or that a policy speaks of.
    fn has_lost(&self, number: u32, held: &Held) -> bool {
        let there: BTreeSet<(IpAddr, u32)> = held.associations.iter().map(|sa| (sa.daddr, sa.spi)).collect();
        let heard: BTreeSet<u32> = held.associations.iter().filter(|sa| sa.reqid == ESP_IN).map(|sa| sa.spi).collect();
        let known = self.known.iter().filter(|(of, ..)| *of == number);
        known.clone().any(|(_, daddr, spi)| !there.contains(&(*daddr, *spi)))
            || held.policies.iter().any(|policy| match policy.between {
                Some((_, daddr)) => !there.contains(&(daddr, policy.spi)),
                None => !heard.contains(&policy.spi),
            })
    }

    // === handshakes ===

    /// Every peer of the devices that are known, and whether it has answered through its device. Those that have not are asked.
    pub(crate) fn handshakes(&mut self) -> BTreeMap<(LinkName, PublicKey), bool> {
        if self.peers.is_empty() {
            return BTreeMap::new();
        }
        // Who cannot be asked has not answered.
        let _unasked = self.greetings.greet(&self.peers);
        self.peers.keys().map(|peer| (peer.clone(), self.greetings.met.contains(peer))).collect()
    }

    // === what is to be ===

    /// Before such a pair is made: one that is spent goes.
    pub(crate) fn discard_spent<'a>(&mut self, steps: impl Iterator<Item = &'a Step>) {
        for step in steps {
            if let Op::Create(Key::KeyPair { name }, _) = step.op()
                && let Ok(pairs) = self.keys.all()
                && let Some(pair) = pairs.get(name)
                && self.is_spent(name, pair.public()) == Ok(true)
            {
                // If it cannot go, making it anew says why.
                let _stays = self.keys.remove(name);
            }
        }
    }

    /// Steps about devices and their peers, in order.
    pub(crate) fn apply(&mut self, steps: &[&Step]) -> Vec<Failure> {
        let mut failures = Vec::new();
        for row in steps.chunk_by(|a, b| is_about_peer(a) && is_about_peer(b)) {
            if is_about_peer(row[0]) {
                failures.extend(self.apply_to_peers(row));
            } else if let Err(error) = self.apply_to_device(row[0].op()) {
                failures.push(Failure::of(row[0], error));
            }
        }
        failures
    }

    /// A device is about to be deleted, perhaps to be made again at once: its associations stay, its policies do not.
    pub(crate) fn link_goes(&mut self, link: &LinkName) -> Result<(), KernelError> {
        let number = if_id(link);
        let policies = self.held()?.remove(&number).unwrap_or_default().policies;
        self.peers.retain(|(of, _), _| of != link);
        self.greetings.keep(&self.peers);
        self.flush(number, &Held { policies, ..Held::default() })
    }

    fn apply_to_device(&mut self, op: Op<'_>) -> Result<(), KernelError> {
        let doing = crate::namespace::doing(op);
        let (Key::EspDevice { link }, new) = (op.key(), op.sides().1) else { return Ok(()) };
        let number = if_id(link);
        let held = self.held()?.remove(&number).unwrap_or_default();
        let before = held.anchor(link);
        let Some(Object::EspDevice(new)) = new else {
            self.forget(link);
            return self.flush(number, &held);
        };
        let same_pair = before.filter(|before| before.public_key == new.public_key);
        if same_pair.is_some_and(|before| before.port != new.port) {
            return Err(refused(&doing, "its key pair's associations have another UDP port, and keep it"));
        }
        if same_pair.is_none() {
            // Whatever is there was made with another pair, or with one that is spent.
            self.forget(link);
            self.flush(number, &held)?;
        }
        if if_nametoindex(link.as_str()).is_err() {
            return Err(KernelError::Refused { doing, errno: Errno::ENODEV, says: Some(format!("no link {link}")) });
        }
        if before == Some(*new) {
            // Whoever made it may not have lived to hear of it.
            self.keys.mark_used(new.public_key).map_err(|error| io_error(&doing, &error))?;
        } else {
            let pairs = self.keys.all().map_err(|error| io_error(&doing, &error))?;
            let name = pairs.iter().find(|(_, pair)| pair.public() == new.public_key).map(|(name, _)| name.clone());
            let name = name.ok_or_else(|| refused(&doing, "its key pair is not there any more"))?;
            if self.is_spent(&name, new.public_key)? {
                return Err(refused(&doing, "its key pair was in use before"));
            }
            self.keys.mark_used(new.public_key).map_err(|error| io_error(&doing, &error))?;
            let mut requests = vec![anchor(link, *new)?];
            requests.extend(same_pair.map(|before| {
                self.known.remove(&(number, before.address, anchor_spi(link, before.public_key)));
                xfrm::delete_sa(before.address, anchor_spi(link, before.public_key))
            }));
            if let Err(error) = self.send(requests, &doing) {
                // Nothing was made with it. An answer that was lost does not say so.
                if before.is_none() && self.has_no_anchor(link, *new) {
                    self.keys.unmark(&name).map_err(|error| io_error(&doing, &error))?;
                }
                return Err(error);
            }
            self.known.insert((number, new.address, anchor_spi(link, new.public_key)));
        }
        self.devices.get_or_insert_default().insert(link.clone(), *new);
        Ok(())
    }

    fn apply_to_peers(&mut self, steps: &[&Step]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut failed = |step: &Step, error: KernelError| failures.push(Failure::of(step, error));
        let mut due = Vec::new();
        for step in steps {
            match self.associate(step.op()) {
                Ok(made) => due.push((step, made)),
                Err(error) => failed(step, error),
            }
        }
        // Nothing is sent by an association before it is certain that it is the only one of its key.
        let links: BTreeSet<&LinkName> = steps.iter().filter_map(|step| step.key().link()).collect();
        let anchored: BTreeSet<&LinkName> = links.into_iter().filter(|link| self.is_anchored(link)).collect();
        for (step, requests) in due {
            let Some(link) = step.key().link() else { continue };
            let op = step.op();
            if !anchored.contains(link) && !step.deletes() {
                failed(step, refused(&crate::namespace::doing(op), "its key pair is not in use any more"));
                continue;
            }
            match self.send(requests, &crate::namespace::doing(op)) {
                Ok(()) => self.note(op),
                Err(error) => failed(step, error),
            }
        }
        failures
    }

    /// Policies of packets that come, and then both associations. Gives what is left to do, which is about packets that are sent. Of
    /// either direction all is done in the order of the steps: a range that one peer loses is another's, and its policy has no other name.
    fn associate(&mut self, op: Op<'_>) -> Result<Vec<Message>, KernelError> {
        let Key::EspPeer { link, public_key } = op.key() else { return Ok(Vec::new()) };
        let number = if_id(link);
        let (old, new) = op.sides();
        let [old, new] = [old, new].map(|side| side.and_then(Object::as_esp_peer));
        let doing = crate::namespace::doing(op);
        let [was, is] = [old, new].map(|side| side.map_or(&[][..], |side| &side.allowed));
        let taken: Vec<IpNet> = beyond(was, is).copied().collect();
        let gone = |direction| -> Vec<Message> {
            taken.iter().map(|range| xfrm::delete_policy(direction, *range, number)).collect()
        };
        let heard = [Direction::In, Direction::Forward];
        let Some(new) = new else {
            self.send(heard.into_iter().flat_map(gone).collect(), &doing)?;
            return Ok(gone(Direction::Out));
        };
        let in_use = self.devices.as_ref().and_then(|devices| devices.get(link)).map(|own| own.public_key);
        if in_use != Some(new.own.public_key) {
            return Err(refused(&doing, "its key pair is not in use"));
        }
        let private = self.keys.private(new.own.public_key).map_err(|error| io_error(&doing, &error))?;
        let pair = Pair::of(&private, link, *public_key, new);
        let same_ends = old.filter(|old| (old.address, old.own) == (new.address, new.own));
        let added: Vec<&IpNet> = beyond(&new.allowed, same_ends.map_or(&[], |old| &old.allowed)).collect();
        let policy = |direction, range: &IpNet| {
            let out = direction == Direction::Out;
            let (spi, between) =
                if out { (pair.spi_out, Some((new.own.address, new.address))) } else { (pair.spi_in, None) };
            xfrm::put_policy(&Policy { direction, range: *range, if_id: number, spi, between })
        };
        let of = |direction| {
            let mut all = gone(direction);
            all.extend(added.iter().map(|range| policy(direction, range)));
            all
        };
        self.send(heard.into_iter().flat_map(of).collect(), &doing)?;
        let (far_end, port) = (*public_key, new.own.port);
        let sa = |spi, reqid, saddr, daddr| Sa { saddr, daddr, spi, reqid, if_id: number, far_end, port, sent: 0 };
        self.ensure(&sa(pair.spi_in, ESP_IN, new.address, new.own.address), &pair.key_in, &doing)?;
        // One that moves goes at once with the policies that send by it.
        let mut rest = self.ensure(&sa(pair.spi_out, ESP_OUT, new.own.address, new.address), &pair.key_out, &doing)?;
        rest.extend(of(Direction::Out));
        Ok(rest)
    }

    /// Makes an association, if it never was. One that this node sends by from another address goes on from where it was: what that
    /// takes is given.
    fn ensure(&mut self, sa: &Sa, key: &[u8; KEY_BYTES], doing: &str) -> Result<Vec<Message>, KernelError> {
        let place = (sa.if_id, sa.daddr, sa.spi);
        let Some(xfrm) = self.xfrm()? else { return Err(no_xfrm(doing)) };
        let there = xfrm.association(sa.daddr, sa.spi).map_err(|refusal| refusal.doing(doing))?;
        let known = self.known.contains(&place);
        match there {
            None if known => Err(refused(doing, "the kernel has lost an association, so its key is not used again")),
            None => {
                // Even if it is not known what becomes of the request.
                self.known.insert(place);
                self.send(vec![xfrm::create_sa(sa, key)], doing).map(|()| Vec::new())
            }
            Some(there)
                if (there.if_id, there.reqid, there.far_end, there.port)
                    != (sa.if_id, sa.reqid, sa.far_end, sa.port) =>
            {
                let theirs = format!("SPI {:#010x} at {} is taken; `tartan rotate` gives all others", sa.spi, sa.daddr);
                Err(KernelError::Conflict { what: doing.to_owned(), theirs })
            }
            Some(there) if sa.reqid == ESP_OUT && there.saddr != sa.saddr => {
                let goes_on = Sa { sent: there.sent + LEFT_OUT, ..sa.clone() };
                Ok(vec![xfrm::delete_sa(sa.daddr, sa.spi), xfrm::create_sa(&goes_on, key)])
            }
            Some(_) => {
                self.known.insert(place);
                Ok(Vec::new())
            }
        }
    }

    /// Whether the kernel says that there is none.
    fn has_no_anchor(&mut self, link: &LinkName, own: EspEnd) -> bool {
        let Ok(xfrm) = self.xfrm() else { return false };
        xfrm.is_none_or(|xfrm| matches!(xfrm.association(own.address, anchor_spi(link, own.public_key)), Ok(None)))
    }

    /// Whether the kernel says so now.
    fn is_anchored(&mut self, link: &LinkName) -> bool {
        let own = self.devices.as_ref().and_then(|devices| devices.get(link)).copied();
        let Some(EspEnd { address, public_key, .. }) = own else { return false };
        let Ok(Some(xfrm)) = self.xfrm() else { return false };
        matches!(xfrm.association(address, anchor_spi(link, public_key)), Ok(Some(there)) if there.far_end == public_key)
    }

    fn note(&mut self, op: Op<'_>) {
        let Key::EspPeer { link, public_key } = op.key() else { return };
        let peer = (link.clone(), *public_key);
        match op.sides().1 {
            Some(Object::EspPeer(new)) => drop(self.peers.insert(peer, new.clone())),
            _ => drop(self.peers.remove(&peer)),
        }
        self.greetings.keep(&self.peers);
    }

    fn forget(&mut self, link: &LinkName) {
        let number = if_id(link);
        self.devices.get_or_insert_default().remove(link);
        self.peers.retain(|(of, _), _| of != link);
        self.known.retain(|(of, ..)| *of != number);
        self.greetings.keep(&self.peers);
    }

    fn flush(&mut self, number: u32, held: &Held) -> Result<(), KernelError> {
        let policies = held.policies.iter().map(|policy| xfrm::delete_policy(policy.direction, policy.range, number));
        let associations = held.associations.iter().map(|sa| xfrm::delete_sa(sa.daddr, sa.spi));
        self.send(policies.chain(associations).collect(), "delete what an IPsec device had")
    }

    /// To find gone what is to go is success.
    fn send(&mut self, requests: Vec<Message>, doing: &str) -> Result<(), KernelError> {
        if requests.is_empty() {
            return Ok(());
        }
        let Some(xfrm) = self.xfrm()? else { return Err(no_xfrm(doing)) };
        let refused = xfrm.batch(&requests).into_iter().zip(&requests).find_map(|(result, request)| {
            result
                .err()
                .filter(|refusal| !(xfrm::deletes(request) && [Errno::ENOENT, Errno::ESRCH].contains(&refusal.errno)))
        });
        refused.map_or(Ok(()), |refusal| Err(refusal.doing(doing)))
    }

    fn xfrm(&mut self) -> Result<Option<&mut Xfrm>, KernelError> {
        if self.xfrm.is_none() {
            self.xfrm = Some(Xfrm::open()?);
        }
        Ok(self.xfrm.as_mut().and_then(Option::as_mut))
    }
}

fn is_about_peer(step: &Step) -> bool {
    matches!(step.key(), Key::EspPeer { .. })
}

/// It carries nothing: nobody knows its key.
fn anchor(link: &LinkName, own: EspEnd) -> Result<Message, KernelError> {
    let key = keys::random::<KEY_BYTES>().map_err(|error| io_error("make a key that nobody knows", &error))?;
    let spi = anchor_spi(link, own.public_key);
    let EspEnd { address, public_key, port } = own;
    let (saddr, daddr, if_id) = (address, address, if_id(link));
    let sa = Sa { saddr, daddr, spi, reqid: ESP_ANCHOR, if_id, far_end: public_key, port, sent: 0 };
    Ok(xfrm::create_sa(&sa, &key))
}

fn no_xfrm(doing: &str) -> KernelError {
    KernelError::Refused { doing: doing.to_owned(), errno: Errno::EPROTONOSUPPORT, says: None }
}

/// By ourselves.
fn refused(doing: &str, why: &str) -> KernelError {
    io_error(doing, &io::Error::other(why))
}

fn io_error(doing: &str, error: &io::Error) -> KernelError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
    KernelError::Refused { doing: doing.to_owned(), errno, says: Some(error.to_string()) }
}

// === impl Held ===

impl Held {
    /// This node's end, as the anchor has it.
    fn anchor(&self, link: &LinkName) -> Option<EspEnd> {
        let is_anchor = |sa: &&Sa| sa.reqid == ESP_ANCHOR && sa.spi == anchor_spi(link, sa.far_end);
        let anchor = self.associations.iter().find(is_anchor)?;
        Some(EspEnd { address: anchor.daddr, public_key: anchor.far_end, port: anchor.port })
    }

    /// Peers with policies. One whose parts do not fit together is read as one that is nowhere.
    fn peers(&self, link: &LinkName, own: EspEnd) -> BTreeMap<PublicKey, EspPeer> {
        let far_ends: BTreeSet<PublicKey> =
            self.associations.iter().filter(|sa| sa.reqid != ESP_ANCHOR).map(|sa| sa.far_end).collect();
        let mut by_spi: BTreeMap<(Direction, u32), Vec<&Policy>> = BTreeMap::new();
        for policy in &self.policies {
            by_spi.entry((policy.direction, policy.spi)).or_default().push(policy);
        }
        let associations: BTreeMap<(IpAddr, u32), &Sa> =
            self.associations.iter().map(|sa| ((sa.daddr, sa.spi), sa)).collect();
        let peer = |public_key: PublicKey| {
            let (spi_in, spi_out) = (spi(link, public_key, own.public_key), spi(link, own.public_key, public_key));
            let with = |direction, spi| by_spi.get(&(direction, spi)).map_or(&[][..], Vec::as_slice);
            let (input, forward, out) =
                (with(Direction::In, spi_in), with(Direction::Forward, spi_in), with(Direction::Out, spi_out));
            let ranges = |of: &[&Policy]| of.iter().map(|policy| policy.range).collect::<BTreeSet<_>>();
            let [heard, passed, sent] = [input, forward, out].map(ranges);
            let all: BTreeSet<IpNet> = heard.iter().chain(&passed).chain(&sent).copied().collect();
            let between: BTreeSet<_> = out.iter().filter_map(|policy| policy.between).collect();
            let ends = between.first().copied().filter(|_| between.len() == 1 && heard == sent && passed == sent);
            let whole = ends.filter(|(local, remote)| {
                let sends = associations.get(&(*remote, spi_out)).is_some_and(|sa| sa.saddr == *local);
                sends && associations.contains_key(&(*local, spi_in))
            });
            let (local, remote) = whole.unwrap_or((own.address, std::net::Ipv4Addr::UNSPECIFIED.into()));
            let own = EspEnd { address: local, ..own };
            (!all.is_empty()).then(|| (public_key, EspPeer::of(remote, own, all)))
        };
        far_ends.into_iter().filter_map(peer).collect()
    }
}

// === impl Greetings ===

impl Greetings {
    /// Forgets those who are not peers any more.
    fn keep(&mut self, peers: &BTreeMap<(LinkName, PublicKey), Arc<EspPeer>>) {
        self.met.retain(|peer| peers.contains_key(peer));
        self.numbers.retain(|peer, _| peers.contains_key(peer));
        let numbers = &self.numbers;
        self.asked.retain(|number, peer| numbers.get(peer) == Some(number));
    }

    /// Hears who has answered, and asks the others.
    fn greet(&mut self, peers: &BTreeMap<(LinkName, PublicKey), Arc<EspPeer>>) -> io::Result<()> {
        let echo = match self.echo.take() {
            Some(echo) => self.echo.insert(echo),
            None => self.echo.insert(Echo::open(number()?)?),
        };
        for heard in echo.replies() {
            if let Heard::Answer { nonce, from } = heard
                && let Some(peer) = self.asked.get(&nonce)
                && peers.get(peer).is_some_and(|of| answers(&of.allowed).contains(&from))
            {
                self.met.insert(peer.clone());
            }
        }
        self.turn = self.turn.wrapping_add(1);
        for (peer, of) in peers.iter().filter(|(peer, _)| !self.met.contains(*peer)) {
            let answers = answers(&of.allowed);
            let Some(to) = answers.get(self.turn % answers.len().max(1)).copied() else { continue };
            let number = match self.numbers.get(peer) {
                Some(number) => *number,
                None => *self.numbers.entry(peer.clone()).or_insert(number()?),
            };
            self.asked.insert(number, peer.clone());
            echo.request(to, BYTES, number, Some(&peer.0));
        }
        Ok(())
    }
}

/// Where a peer may answer: its fabric addresses, which lie in ranges of its own. Where its blocks are single addresses the fabric
/// address is one of these and nothing tells it from pods', so it is any of them: whoever answers does so through the peer's kernel.
fn answers(allowed: &[IpNet]) -> Vec<IpAddr> {
    let (single, ranges): (Vec<&IpNet>, Vec<&IpNet>) =
        allowed.iter().partition(|range| range.prefix_len() == range.max_prefix_len());
    let (inside, beside): (Vec<&IpNet>, Vec<&IpNet>) =
        single.into_iter().partition(|address| ranges.iter().any(|range| range.contains(*address)));
    let known = if inside.is_empty() { beside } else { inside };
    known.into_iter().map(IpNet::addr).collect()
}

fn number() -> io::Result<u64> {
    keys::random().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_asked_where_its_kernel_answers() {
        let check = |allowed: &[&str], wanted: &[&str]| {
            let allowed: Vec<IpNet> = allowed.iter().map(|range| range.parse().unwrap()).collect();
            let wanted: Vec<IpAddr> = wanted.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(answers(&allowed), wanted, "{allowed:?}");
        };
        check(&[], &[]);
        check(&["10.2.0.0/24"], &[]);
        check(&["10.2.0.0/24", "10.2.0.0/32"], &["10.2.0.0"]);
        check(&["10.2.0.0/24", "10.2.0.9/32", "fd02::/64", "fd02::/128"], &["10.2.0.9", "fd02::"]);
        // A pod's that comes first.
        check(&["10.1.0.7/32", "10.2.0.0/24", "10.2.0.0/32"], &["10.2.0.0"]);
        check(&["10.1.0.7/32", "fd02::/64", "fd02::/128"], &["fd02::"]);
        // One of these.
        check(&["10.1.0.7/32", "10.1.0.9/32", "fd02::5/128"], &["10.1.0.7", "10.1.0.9", "fd02::5"]);
    }
}
