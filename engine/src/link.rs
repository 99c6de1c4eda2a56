//! A device and its peers: a thread for each way of each queue.
//!
//! Invariant: a thread has at most one batch of packets in its hands, and stops only between two.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::uio::writev;
use nix::unistd::read;

use crate::gro::Joined;
use crate::gso::{VNET, split};
use crate::inner;
use crate::outbox::Outbox;
use crate::socket::{self, Inbox, ROOM};
use crate::table::{Remote, Remotes, Table};
use crate::threads::Threads;
use crate::tun;
use crate::wire::Socket;

/// Packets read from the device, large or not, before they are sent.
const BATCH: usize = 16;
/// And no more bytes than a processor has close by when they are sent.
const BATCH_BYTES: usize = 128 << 10;
/// Rows of packets taken from the network at once.
pub(crate) const ROWS: usize = 4;

/// A queue of the device, and a socket that hears peers.
pub(crate) struct Queue {
    pub(crate) tun: OwnedFd,
    pub(crate) udp: OwnedFd,
}

/// Whether the device of these queues is still there.
pub(crate) fn are_attached(queues: &[Arc<Queue>]) -> bool {
    queues.iter().all(|queue| tun::is_attached(queue.tun.as_fd()))
}

/// A device whose packets are carried. Dropped, it stops, with no packet in its hands.
pub(crate) struct Link {
    table: Arc<Shared>,
    /// Only to be dropped.
    _threads: Threads,
}

struct Shared {
    table: RwLock<Arc<Table<Remote>>>,
}

impl Link {
    pub(crate) fn start(
        queues: Vec<Arc<Queue>>,
        Socket { source, port }: Socket,
        remotes: &Remotes,
    ) -> std::io::Result<Link> {
        let table = Arc::new(Shared { table: RwLock::new(Arc::new(Table::of(remotes))) });
        let mut threads = Threads::new()?;
        for queue in queues {
            let out = socket::sending(source)?;
            let (shared, to) = (table.clone(), queue.clone());
            threads.spawn("to-peers", move |stop| to_peers(&to, &out, port, &shared, stop))?;
            let shared = table.clone();
            threads.spawn("from-peers", move |stop| from_peers(&queue, &shared, stop))?;
        }
        Ok(Link { table, _threads: threads })
    }

    pub(crate) fn set(&self, remotes: &Remotes) {
        let table = Arc::new(Table::of(remotes));
        *self.table.table.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = table;
    }
}

impl Shared {
    fn now(&self) -> Arc<Table<Remote>> {
        self.table.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

// === to peers ===

fn to_peers(queue: &Queue, out: &std::net::UdpSocket, port: u16, shared: &Shared, stop: &EventFd) {
    let mut buffers = vec![vec![0; VNET + ROOM]; BATCH];
    let mut outbox = Outbox::default();
    while socket::wait(queue.tun.as_fd(), stop.as_fd()) {
        let table = shared.now();
        let is_there = read_batch(&queue.tun, &mut buffers, 0..BATCH, |turn, vnet, packet| {
            // The kernel sends nothing else by a route to a peer.
            let Some(remote) = inner::addresses(packet).and_then(|(_, dst)| table.get(dst)) else { return };
            let to = SocketAddr::new(remote.address, port);
            split(vnet, packet, |header, payload| {
                outbox.add(to, header, turn, payload.start + VNET..payload.end + VNET);
            });
        });
        if !is_there {
            return;
        }
        outbox.send(out.as_fd(), &buffers);
    }
}

/// Reads what the kernel has for peers, each packet into the buffer whose turn it is, until there is no more or it is as much as
/// is sent at once. False: the device is gone.
pub(crate) fn read_batch(
    tun: &OwnedFd,
    buffers: &mut [Vec<u8>],
    turns: impl Iterator<Item = usize>,
    mut take: impl FnMut(usize, &mut [u8; VNET], &mut [u8]),
) -> bool {
    let mut bytes = 0;
    for turn in turns {
        let length = match read(tun, &mut buffers[turn]) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => break,
            Err(_) => return false,
        };
        bytes += length;
        if let Some((vnet, packet)) = buffers[turn][..length].split_first_chunk_mut::<VNET>() {
            take(turn, vnet, packet);
        }
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    true
}

// === from peers ===

fn from_peers(queue: &Queue, shared: &Shared, stop: &EventFd) {
    let mut inbox = Inbox::new(ROWS);
    while socket::wait(queue.udp.as_fd(), stop.as_fd()) {
        match inbox.receive(queue.udp.as_fd()) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(_) => return,
        }
        let table = shared.now();
        let mut joined = Joined::default();
        let mut write = |pieces: &[&[u8]]| put(&queue.tun, pieces);
        for (from, packet) in inbox.packets() {
            let is_theirs =
                |(src, _)| table.get(src).is_some_and(|remote| remote.may_send_from(from.ip(), Instant::now));
            if !inner::addresses(packet).is_some_and(is_theirs) {
                continue;
            }
            joined.put(packet, &mut write);
        }
        joined.flush(&mut write);
    }
}

/// Writes a packet, in pieces, to a device.
pub(crate) fn put(tun: &OwnedFd, pieces: &[&[u8]]) {
    let pieces: Vec<std::io::IoSlice<'_>> = pieces.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
    // A packet that the device does not take is lost, as on any link.
    let _lost = writev(tun, &pieces);
}
