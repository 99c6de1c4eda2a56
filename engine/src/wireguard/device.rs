//! A device as the agent wants it, and as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::tunnel::{self, Peer, Tunnel};
use super::uapi::Uapi;
use crate::link::{self, Queue};
use crate::passage::Passage;
use crate::wire::{self, Encrypted, Identity, PublicKey};

/// Peers of one device at most, and ranges.
const PEERS: usize = 20_000;
const RANGES: usize = 200_000;

/// What was told of a device, for the holder to keep. The private key is not among it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stored {
    identity: Option<Identity>,
    peers: BTreeMap<PublicKey, wire::Peer>,
    allowed: BTreeMap<IpNet, PublicKey>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Device {
    told: Stored,
    own: Option<Arc<tunnel::Identity>>,
    queues: Vec<Arc<Queue>>,
    link: Option<Link>,
    /// The way to an engine that still sends to the peers.
    before: Option<Arc<Passage>>,
}

impl Device {
    /// Goes on where an engine before left off, with what the holder had of it.
    pub(crate) fn go_on(name: &str, told: Stored, queues: Vec<Arc<Queue>>, key: Option<OwnedFd>) -> Device {
        let mut device = Device { told, queues, ..Device::default() };
        let started = device.load(key).and_then(|()| device.start(name, None));
        if let Err(error) = started {
            eprintln!("tartan engine: {name} is not carried: {error}");
        }
        device
    }

    /// Makes sessions beside an engine that still carries, and is the other end of `passage`.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn beside(
        name: &str,
        told: Stored,
        queues: Vec<Arc<Queue>>,
        key: Option<OwnedFd>,
        passage: Passage,
    ) -> io::Result<Device> {
        let passage = Arc::new(passage);
        let mut device = Device { told, queues, before: Some(passage.clone()), ..Device::default() };
        device.load(key)?;
        let (peers, asked) = (device.peers(None)?, device.asked(name));
        device.link = Some(Link::start_beside(device.queues.clone(), peers, asked, passage)?);
        Ok(device)
    }

    /// Sends to the peers in place of the engine before, if there is a session with each of them, or no matter if there is. Whether
    /// it does.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn send_if(&mut self, no_matter: bool) -> io::Result<bool> {
        let (Some(link), Some(before)) = (&mut self.link, &self.before) else { return Ok(true) };
        if no_matter || link.tunnel().peers().values().all(|peer| peer.standing().met) {
            link.send()?;
            before.say_it_sends();
            link.confirm();
            self.before = None;
        }
        Ok(self.before.is_none())
    }

    /// Carries alone, as what was told of it last, now that the engine before is gone. None: it is for others to begin anew.
    pub(crate) fn succeed(mut self, told: Stored) -> Option<Device> {
        if self.told.identity != told.identity || !self.is_running() {
            return None;
        }
        self.send_if(true).ok()?;
        self.link.as_mut()?.hear().ok()?;
        self.told = told;
        self.refresh();
        Some(self)
    }

    /// Begins to give way to an engine at the other end.
    pub(crate) fn give_way(&mut self, next: Passage) {
        if let Some(link) = &mut self.link {
            link.give_way(next);
        }
    }

    /// See [`Link::next_sends`].
    pub(crate) fn next_sends(&self) -> nix::Result<bool> {
        self.link.as_ref().map_or(Ok(true), Link::next_sends)
    }

    /// Goes on with the sessions that it has, as if there had been no other.
    pub(crate) fn go_on_alone(&mut self, name: &str) {
        let Some(before) = self.link.take().map(|link| link.tunnel()) else { return };
        if let Err(error) = self.start(name, Some(&before)) {
            eprintln!("tartan engine: {name} is not carried any more: {error}");
        }
    }

    fn load(&mut self, key: Option<OwnedFd>) -> io::Result<()> {
        let (Some(identity), Some(key)) = (self.told.identity, key) else {
            return Err(io::Error::other("its key is gone"));
        };
        self.own = Some(Arc::new(tunnel::Identity::load(&File::from(key), identity.public_key)?));
        Ok(())
    }

    fn start(&mut self, name: &str, before: Option<&Tunnel>) -> io::Result<()> {
        let (peers, asked) = (self.peers(before)?, self.asked(name));
        self.link = Some(Link::start(self.queues.clone(), peers, asked)?);
        Ok(())
    }

    fn asked(&self, name: &str) -> Option<Uapi> {
        let asked = Uapi::open(name, self.port()?);
        if let Err(error) = &asked {
            eprintln!("tartan engine: `wg show` will not find {name}: {error}");
        }
        asked.ok()
    }

    fn peers(&self, before: Option<&Tunnel>) -> io::Result<(Tunnel, Vec<Arc<Peer>>)> {
        let own = self.own.clone().ok_or_else(|| io::Error::other("it has no key"))?;
        if self.queues.is_empty() {
            return Err(io::Error::other("its descriptors are gone"));
        }
        Ok(Tunnel::new(own, before, &self.told.peers, &self.told.allowed))
    }

    /// Is this to its peers, by a key from that file; `open` gives queues where those that are there will not do.
    pub(crate) fn identify(
        &mut self,
        name: &str,
        identity: Identity,
        key: &OwnedFd,
        open: impl FnOnce() -> io::Result<Vec<Arc<Queue>>>,
    ) -> io::Result<()> {
        if self.told.identity == Some(identity) && self.is_running() {
            return Ok(());
        }
        let own = tunnel::Identity::load(&File::from(key.try_clone()?), identity.public_key)?;
        let goes_on = self.is_running() && self.port() == Some(identity.port);
        self.link = None;
        self.told.identity = Some(identity);
        self.own = Some(Arc::new(own));
        if !goes_on {
            // Whatever was open is of a device that is gone, or of another port.
            self.queues.clear();
            self.queues = open()?;
        }
        self.start(name, None)
    }

    pub(crate) fn meet(&mut self, public_key: PublicKey, peer: wire::Peer) -> io::Result<()> {
        if self.told.peers.len() >= PEERS && !self.told.peers.contains_key(&public_key) {
            return Err(io::Error::other(format!("it has {PEERS} peers already")));
        }
        self.told.peers.insert(public_key, peer);
        Ok(())
    }

    pub(crate) fn forget(&mut self, public_key: PublicKey) {
        self.told.peers.remove(&public_key);
        self.told.allowed.retain(|_, of| *of != public_key);
    }

    pub(crate) fn allow(&mut self, dst: IpNet, public_key: PublicKey) -> io::Result<()> {
        if !self.told.peers.contains_key(&public_key) {
            return Err(io::Error::other(format!("it has no peer {public_key}")));
        }
        if self.told.allowed.len() >= RANGES {
            return Err(io::Error::other(format!("it has {RANGES} ranges already")));
        }
        self.told.allowed.insert(dst, public_key);
        Ok(())
    }

    pub(crate) fn deny(&mut self, dst: IpNet) {
        self.told.allowed.remove(&dst);
    }

    /// Carries by what was told since.
    pub(crate) fn refresh(&self) {
        if let Some(link) = &self.link
            && let Ok(peers) = self.peers(Some(&link.tunnel()))
        {
            link.set(peers);
        }
    }

    /// Stops, with no packet in its hands.
    pub(crate) fn stop(&mut self) {
        self.link = None;
    }

    pub(crate) fn told(&self) -> &Stored {
        &self.told
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.told.identity.map(|identity| identity.port)
    }

    pub(crate) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Whether it carries nothing, and was told nothing that stands.
    pub(crate) fn is_nothing(&self) -> bool {
        !self.is_running() && self.told.peers.is_empty()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.link.is_some() && link::are_attached(&self.queues)
    }

    pub(crate) fn holds(&self) -> Encrypted {
        let met = self.link.iter().flat_map(|link| {
            let tunnel = link.tunnel();
            let met = tunnel.peers().iter().filter(|(_, peer)| peer.standing().met).map(|(key, _)| *key);
            met.collect::<BTreeSet<PublicKey>>()
        });
        Encrypted {
            identity: self.told.identity.filter(|_| self.is_running()),
            peers: self.told.peers.clone(),
            allowed: self.told.allowed.clone(),
            met: met.collect(),
        }
    }
}
