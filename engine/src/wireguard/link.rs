//! A device and its peers: a thread for each way of each queue, one for what time asks for, and one for who asks.
//!
//! Invariant: a thread has at most one batch of packets in its hands, and stops only between two.

use std::os::fd::AsFd;
use std::sync::{Arc, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::tunnel::{Peer, Tunnel};
use super::uapi::Uapi;
use crate::gro::Joined;
use crate::gso::{VNET, split};
use crate::inner;
use crate::link::{Queue, ROWS, put, read_batch};
use crate::outbox::Outbox;
use crate::socket::{self, Inbox, ROOM};
use crate::threads::Threads;

/// Between two looks at what time asks for.
const TICK_MILLIS: u16 = 250;

/// A device whose packets are carried. Dropped, it stops, with no packet in its hands.
pub(crate) struct Link {
    queues: Vec<Arc<Queue>>,
    shared: Arc<Shared>,
    /// Only to be dropped.
    _threads: Threads,
}

pub(crate) struct Shared {
    tunnel: RwLock<Arc<Tunnel>>,
}

impl Link {
    /// `asked` is where people's programs ask how it stands.
    pub(crate) fn start(
        queues: Vec<Arc<Queue>>,
        (tunnel, new): (Tunnel, Vec<Arc<Peer>>),
        asked: Option<Uapi>,
    ) -> std::io::Result<Link> {
        let shared = Arc::new(Shared { tunnel: RwLock::new(Arc::new(tunnel)) });
        let mut threads = Threads::new()?;
        for queue in &queues {
            let (to, tunnel) = (queue.clone(), shared.clone());
            threads.spawn("to-peers", move |stop| to_peers(&to, &tunnel, stop))?;
            let (from, tunnel) = (queue.clone(), shared.clone());
            threads.spawn("from-peers", move |stop| from_peers(&from, &tunnel, stop))?;
        }
        if let Some(first) = queues.first().cloned() {
            let tunnel = shared.clone();
            threads.spawn("timers", move |stop| timers(&first, &tunnel, stop))?;
        }
        if let Some(asked) = asked {
            let tunnel = shared.clone();
            threads.spawn("uapi", move |stop| asked.answer(&tunnel, stop))?;
        }
        let link = Link { queues, shared, _threads: threads };
        link.greet(&new);
        Ok(link)
    }

    pub(crate) fn tunnel(&self) -> Arc<Tunnel> {
        self.shared.now()
    }

    pub(crate) fn set(&self, (tunnel, new): (Tunnel, Vec<Arc<Peer>>)) {
        *self.shared.tunnel.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(tunnel);
        self.greet(&new);
    }

    fn greet(&self, new: &[Arc<Peer>]) {
        let Some(queue) = self.queues.first() else { return };
        send_by(queue, |outbox| {
            new.iter().for_each(|peer| peer.greet(&mut |to, message| outbox.add_whole(to, message)));
        });
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
    let (mut outbox, mut plain, mut packets) = (Outbox::default(), Vec::new(), Vec::new());
    while socket::wait(queue.udp.as_fd(), stop.as_fd()) {
        match inbox.receive(queue.udp.as_fd()) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(_) => return,
        }
        let tunnel = shared.now();
        plain.clear();
        packets.clear();
        for (from, datagram) in inbox.packets() {
            let mut answer = |to, message: &[u8]| outbox.add_whole(to, message);
            packets.extend(tunnel.take(from, datagram, &mut plain, &mut answer));
        }
        outbox.send(queue.udp.as_fd(), &[]);
        let mut joined = Joined::default();
        let mut write = |pieces: &[&[u8]]| put(&queue.tun, pieces);
        for packet in packets.iter().map(|packet| &plain[packet.clone()]) {
            joined.put(packet, &mut write);
        }
        joined.flush(&mut write);
    }
}
