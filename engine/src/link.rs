//! A device and its peers: a thread for each way of each queue.
//!
//! Invariant: a thread has at most one batch of packets in its hands, and stops only between two.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::uio::writev;
use nix::unistd::read;

use crate::gro::Joined;
use crate::gso::{VNET, split};
use crate::inner;
use crate::socket::{self, Inbox, Message, ROOM};
use crate::table::{Remotes, Table};
use crate::wire::Socket;

/// Packets read from the device, large or not, before they are sent.
const BATCH: usize = 16;
/// And no more bytes than a processor has close by when they are sent.
const BATCH_BYTES: usize = 128 << 10;
/// Rows of packets taken from the network at once.
const ROWS: usize = 4;
/// Packets of a row, and their bytes together: what the kernel takes (UDP_MAX_SEGMENTS, and a UDP packet's length).
const ROW: usize = 60;
const ROW_BYTES: usize = 65_000;

/// A queue of the device, and a socket that hears peers.
pub(crate) struct Queue {
    pub(crate) tun: OwnedFd,
    pub(crate) udp: OwnedFd,
}

/// A device whose packets are carried. Dropped, it stops, with no packet in its hands.
pub(crate) struct Link {
    table: Arc<Shared>,
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    table: RwLock<Arc<Table>>,
}

impl Link {
    pub(crate) fn start(
        queues: Vec<Arc<Queue>>,
        Socket { source, port }: Socket,
        remotes: &Remotes,
    ) -> std::io::Result<Link> {
        let table = Arc::new(Shared { table: RwLock::new(Arc::new(Table::of(remotes))) });
        let mut link = Link { table, stop: Arc::new(EventFd::new()?), threads: Vec::new() };
        for queue in queues {
            let out = socket::sending(source)?;
            let (table, stop, to) = (link.table.clone(), link.stop.clone(), queue.clone());
            link.spawn("to-peers", move || to_peers(&to, &out, port, &table, &stop))?;
            let (table, stop) = (link.table.clone(), link.stop.clone());
            link.spawn("from-peers", move || from_peers(&queue, &table, &stop))?;
        }
        Ok(link)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.into()).spawn(work)?);
        Ok(())
    }

    pub(crate) fn set(&self, remotes: &Remotes) {
        let table = Arc::new(Table::of(remotes));
        *self.table.table.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = table;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It cannot fail: the number is far from its end.
        let _written = self.stop.write(1);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn now(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

// === to peers ===

/// Packets to be sent: where each one's header and payload are.
#[derive(Default)]
struct Outbox {
    headers: Vec<u8>,
    rows: Vec<Row>,
}

struct Row {
    to: SocketAddr,
    size: usize,
    bytes: usize,
    /// The last one was smaller, so it is the last.
    full: bool,
    /// Of each packet: where in `headers`, in which buffer, and where in that.
    packets: Vec<(Range<usize>, usize, Range<usize>)>,
}

impl Outbox {
    fn add(&mut self, to: SocketAddr, header: &[u8], buffer: usize, payload: Range<usize>) {
        let length = header.len() + payload.len();
        let start = self.headers.len();
        self.headers.extend_from_slice(header);
        let packet = (start..self.headers.len(), buffer, payload);
        match self.rows.last_mut() {
            Some(row)
                if row.to == to
                    && !row.full
                    && length <= row.size
                    && row.packets.len() < ROW
                    && row.bytes + length <= ROW_BYTES =>
            {
                row.full = length < row.size;
                row.bytes += length;
                row.packets.push(packet);
            }
            _ => self.rows.push(Row { to, size: length, bytes: length, full: false, packets: vec![packet] }),
        }
    }

    fn send(&mut self, socket: &std::net::UdpSocket, buffers: &[Vec<u8>]) {
        let message = |row: &Row| {
            let mut message = Message { to: row.to, size: row.size, pieces: Vec::new(), parts: Vec::new() };
            for (header, buffer, payload) in &row.packets {
                let pieces = [&self.headers[header.clone()], &buffers[*buffer][payload.clone()]];
                let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
                let before = message.pieces.len();
                message.pieces.extend(pieces);
                message.parts.push((message.pieces.len() - before) as u8);
            }
            message
        };
        socket::send(socket.as_fd(), &self.rows.iter().map(message).collect::<Vec<_>>());
        self.headers.clear();
        self.rows.clear();
    }
}

fn to_peers(queue: &Queue, out: &std::net::UdpSocket, port: u16, shared: &Shared, stop: &EventFd) {
    let mut buffers = vec![vec![0; VNET + ROOM]; BATCH];
    let mut outbox = Outbox::default();
    while socket::wait(queue.tun.as_fd(), stop.as_fd()) {
        let (table, mut bytes) = (shared.now(), 0);
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let length = match read(&queue.tun, buffer) {
                Ok(length) if length > VNET => length,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => break,
                // The device is gone.
                Err(_) => return,
            };
            bytes += length;
            let Some((vnet, packet)) = buffer[..length].split_first_chunk_mut::<VNET>() else { continue };
            // The kernel sends nothing else by a route to a peer.
            let Some(remote) = inner::addresses(packet).and_then(|(_, dst)| table.get(dst)) else { continue };
            let to = SocketAddr::new(remote.address, port);
            split(vnet, packet, |header, payload| {
                outbox.add(to, header, index, payload.start + VNET..payload.end + VNET);
            });
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        outbox.send(out, &buffers);
    }
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
        let mut write = |pieces: &[&[u8]]| {
            let pieces: Vec<std::io::IoSlice<'_>> = pieces.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
            // A packet that the device does not take is lost, as on any link.
            let _lost = writev(&queue.tun, &pieces);
        };
        for (from, packet) in inbox.packets() {
            let is_theirs = |(src, _)| table.get(src).is_some_and(|remote| remote.may_send_from(from));
            if !inner::addresses(packet).is_some_and(is_theirs) {
                continue;
            }
            if !joined.take(packet) {
                joined.flush(&mut write);
                joined.take(packet);
            }
        }
        joined.flush(&mut write);
    }
}
