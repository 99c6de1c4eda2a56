//! Packets to be sent, in rows of one size to one peer: the kernel takes a row at once.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::socket::{self, Message};

/// Packets of a row, and their bytes together: what the kernel takes (UDP_MAX_SEGMENTS, and a UDP packet's length).
const ROW: usize = 60;
const ROW_BYTES: usize = 65_000;

/// Packets to be sent: where each one's header and payload are.
#[derive(Default)]
pub(crate) struct Outbox {
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
    /// A header, and where its payload is.
    pub(crate) fn add(&mut self, to: SocketAddr, header: &[u8], buffer: usize, payload: Range<usize>) {
        let start = self.headers.len();
        self.headers.extend_from_slice(header);
        self.push(to, (start..self.headers.len(), buffer, payload));
    }

    /// A packet that is there as a whole.
    pub(crate) fn add_whole(&mut self, to: SocketAddr, packet: &[u8]) {
        self.add(to, packet, 0, 0..0);
    }

    /// A packet that is all header, as `write` appends it to what is there; it says where that goes, if anywhere.
    pub(crate) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<SocketAddr>) {
        let start = self.headers.len();
        match write(&mut self.headers) {
            Some(to) => self.push(to, (start..self.headers.len(), 0, 0..0)),
            None => self.headers.truncate(start),
        }
    }

    fn push(&mut self, to: SocketAddr, packet: (Range<usize>, usize, Range<usize>)) {
        let length = packet.0.len() + packet.2.len();
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

    /// Sends all of them; payloads are in `buffers`.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, buffers: &[Vec<u8>]) {
        let message = |row: &Row| {
            let mut message = Message { to: row.to, size: row.size, pieces: Vec::new(), parts: Vec::new() };
            for (header, buffer, payload) in &row.packets {
                let payload = buffers.get(*buffer).map_or(&[][..], |buffer| &buffer[payload.clone()]);
                let pieces = [&self.headers[header.clone()], payload];
                let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
                let before = message.pieces.len();
                message.pieces.extend(pieces);
                message.parts.push((message.pieces.len() - before) as u8);
            }
            message
        };
        socket::send(socket, &self.rows.iter().map(message).collect::<Vec<_>>());
        self.headers.clear();
        self.rows.clear();
    }
}
