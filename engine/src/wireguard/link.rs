//! A device and its peers: a thread for each way of each queue, one for what time asks for, and one for who asks.
//!
//! Invariant: a thread has at most one batch of packets in its hands, and stops only between two.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::tunnel::{Peer, Taken, Tunnel, is_greeting};
use super::uapi::Uapi;
use crate::gro::Joined;
use crate::gso::{VNET, split};
use crate::inner;
use crate::link::{Queue, ROWS, put, read_batch};
use crate::outbox::Outbox;
use crate::passage::{Passage, Room};
use crate::socket::{self, Inbox, ROOM};
use crate::threads::Threads;

/// Between two looks at what time asks for.
const TICK_MILLIS: u16 = 250;
/// Datagrams that an engine before has passed on, taken before they are delivered.
const PASSED: usize = 64;

/// A device whose packets are carried. Dropped, it stops, with no packet in its hands.
pub(crate) struct Link {
    queues: Vec<Arc<Queue>>,
    shared: Arc<Shared>,
    carriers: Threads,
    /// Threads for what time asks for, and for who asks. None while another engine is to be next: what it begins must not be crossed.
    beside: Option<Threads>,
}

pub(crate) struct Shared {
    tunnel: RwLock<Arc<Tunnel>>,
    /// The way to the engine that is next, once there is one.
    next: OnceLock<Passage>,
    /// It sends to the peers.
    next_sends: AtomicBool,
}

impl Link {
    /// `asked` is where people's programs ask how it stands.
    pub(crate) fn start(
        queues: Vec<Arc<Queue>>,
        peers: (Tunnel, Vec<Arc<Peer>>),
        asked: Option<Uapi>,
    ) -> io::Result<Link> {
        let mut link = Link::idle(queues, peers.0, asked)?;
        link.send()?;
        link.hear()?;
        link.greet(&peers.1);
        Ok(link)
    }

    /// One that makes sessions of its own while another engine carries, and hears what that one passes on.
    pub(crate) fn start_beside(
        queues: Vec<Arc<Queue>>,
        peers: (Tunnel, Vec<Arc<Peer>>),
        asked: Option<Uapi>,
        passage: Arc<Passage>,
    ) -> io::Result<Link> {
        let mut link = Link::idle(queues, peers.0, asked)?;
        if let Some(first) = link.queues.first().cloned() {
            let shared = link.shared.clone();
            link.carriers.spawn("from-before", move |stop| from_before(&first, &passage, &shared, stop))?;
        }
        link.greet(&peers.1);
        Ok(link)
    }

    fn idle(queues: Vec<Arc<Queue>>, tunnel: Tunnel, asked: Option<Uapi>) -> io::Result<Link> {
        let tunnel = RwLock::new(Arc::new(tunnel));
        let shared = Arc::new(Shared { tunnel, next: OnceLock::new(), next_sends: AtomicBool::new(false) });
        let mut beside = Threads::new()?;
        if let Some(first) = queues.first().cloned() {
            let shared = shared.clone();
            beside.spawn("timers", move |stop| timers(&first, &shared, stop))?;
        }
        if let Some(asked) = asked {
            let shared = shared.clone();
            beside.spawn("uapi", move |stop| asked.answer(&shared, stop))?;
        }
        Ok(Link { queues, shared, carriers: Threads::new()?, beside: Some(beside) })
    }

    /// Carries what the kernel has for peers.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        for queue in self.queues.clone() {
            let shared = self.shared.clone();
            self.carriers.spawn("to-peers", move |stop| to_peers(&queue, &shared, stop))?;
        }
        Ok(())
    }

    /// Carries what comes from peers.
    pub(crate) fn hear(&mut self) -> io::Result<()> {
        for queue in self.queues.clone() {
            let shared = self.shared.clone();
            self.carriers.spawn("from-peers", move |stop| from_peers(&queue, &shared, stop))?;
        }
        Ok(())
    }

    /// Begins no handshake any more, and passes on what is not for the sessions that there are.
    pub(crate) fn give_way(&mut self, next: Passage) {
        drop(self.beside.take());
        // There was none: another one takes a link that was started anew.
        let _first = self.shared.next.set(next);
    }

    /// Whether the next engine sends to the peers, and this one does not. It begins anew with a device that it has not heard of.
    ///
    /// # Errors
    /// There is no next engine any more.
    pub(crate) fn next_sends(&self) -> nix::Result<bool> {
        let Some(next) = self.shared.next.get() else { return Ok(true) };
        if next.hears_it_sends()? {
            self.shared.next_sends.store(true, Ordering::Relaxed);
        }
        Ok(self.shared.next_sends.load(Ordering::Relaxed))
    }

    pub(crate) fn tunnel(&self) -> Arc<Tunnel> {
        self.shared.now()
    }

    pub(crate) fn set(&self, (tunnel, new): (Tunnel, Vec<Arc<Peer>>)) {
        *self.shared.tunnel.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(tunnel);
        self.greet(&new);
    }

    /// See [`Peer::confirm`].
    pub(crate) fn confirm(&self) {
        let tunnel = self.tunnel();
        self.say(|outbox| {
            tunnel.peers().values().for_each(|peer| peer.confirm(&mut |to, message| outbox.add_whole(to, message)));
        });
    }

    fn greet(&self, new: &[Arc<Peer>]) {
        self.say(|outbox| {
            new.iter().for_each(|peer| peer.greet(&mut |to, message| outbox.add_whole(to, message)));
        });
    }

    fn say(&self, fill: impl FnOnce(&mut Outbox)) {
        if let Some(queue) = self.queues.first() {
            send_by(queue, fill);
        }
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Arc<Tunnel> {
        self.tunnel.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

fn send_by(queue: &Queue, fill: impl FnOnce(&mut Outbox)) {
    let mut outbox = Outbox::default();
    fill(&mut outbox);
    outbox.send(queue.udp.as_fd(), &[]);
}

fn timers(queue: &Queue, shared: &Shared, stop: &EventFd) {
    loop {
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(TICK_MILLIS)) {
            Ok(0) => send_by(queue, |outbox| {
                shared.now().tick(&mut |to, message| outbox.add_whole(to, message));
            }),
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

fn to_peers(queue: &Queue, shared: &Shared, stop: &EventFd) {
    // What is encrypted lies elsewhere: one is enough, and stays close to the processor.
    let mut buffer = [vec![0; VNET + ROOM]];
    let (mut outbox, mut plain, mut headers, mut cut) = (Outbox::default(), Vec::new(), Vec::new(), Vec::new());
    while socket::wait(queue.tun.as_fd(), stop.as_fd()) {
        if shared.next_sends.load(Ordering::Relaxed) {
            return;
        }
        let tunnel = shared.now();
        let is_there = read_batch(&queue.tun, &mut buffer, std::iter::repeat(0), |_, vnet, packet| {
            // The kernel sends nothing else by a route to a peer.
            let Some(peer) = inner::addresses(packet).and_then(|(_, dst)| tunnel.owner(dst)) else { return };
            headers.clear();
            cut.clear();
            split(vnet, packet, |header, payload| {
                headers.extend_from_slice(header);
                cut.push((headers.len() - header.len()..headers.len(), payload));
            });
            for (header, payload) in cut.drain(..) {
                plain.clear();
                plain.extend_from_slice(&headers[header]);
                plain.extend_from_slice(&packet[payload]);
                outbox.put(|room| peer.seal(&mut plain, room));
            }
        });
        if !is_there {
            return;
        }
        outbox.send(queue.udp.as_fd(), &[]);
    }
}

fn from_peers(queue: &Queue, shared: &Shared, stop: &EventFd) {
    let mut inbox = Inbox::new(ROWS);
    let mut intake = Intake::default();
    while socket::wait(queue.udp.as_fd(), stop.as_fd()) {
        match inbox.receive(queue.udp.as_fd()) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(_) => return,
        }
        let (tunnel, next) = (shared.now(), shared.next.get());
        for (from, datagram) in inbox.packets() {
            let is_for_next = next.is_some() && is_greeting(datagram);
            let taken = if is_for_next { Taken::NotOurs } else { intake.take(&tunnel, from, datagram) };
            if let (Taken::NotOurs, Some(next)) = (taken, next) {
                next.pass(from, datagram);
            }
        }
        intake.deliver(queue);
    }
}

/// Until the engine before has ended, and everything that it passed on is taken.
fn from_before(queue: &Queue, passage: &Passage, shared: &Shared, stop: &EventFd) {
    let (mut room, mut intake) = (Room::new(), Intake::default());
    while socket::wait(passage.as_fd(), stop.as_fd()) {
        let tunnel = shared.now();
        for _ in 0..PASSED {
            match passage.receive(&mut room) {
                Ok(Some((from, datagram))) => drop(intake.take(&tunnel, from, datagram)),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Ok(None) | Err(_) => return intake.deliver(queue),
            }
        }
        intake.deliver(queue);
    }
}

/// What is made of a batch of datagrams.
#[derive(Default)]
struct Intake {
    answers: Outbox,
    plain: Vec<u8>,
    packets: Vec<Range<usize>>,
}

impl Intake {
    fn take(&mut self, tunnel: &Tunnel, from: SocketAddr, datagram: &[u8]) -> Taken {
        let mut answer = |to, message: &[u8]| self.answers.add_whole(to, message);
        let taken = tunnel.take(from, datagram, &mut self.plain, &mut answer);
        if let Taken::Packet(packet) = &taken {
            self.packets.push(packet.clone());
        }
        taken
    }

    fn deliver(&mut self, queue: &Queue) {
        self.answers.send(queue.udp.as_fd(), &[]);
        let mut joined = Joined::default();
        let mut write = |pieces: &[&[u8]]| put(&queue.tun, pieces);
        for packet in self.packets.iter().map(|packet| &self.plain[packet.clone()]) {
            joined.put(packet, &mut write);
        }
        joined.flush(&mut write);
        self.plain.clear();
        self.packets.clear();
    }
}
