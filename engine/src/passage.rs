//! What two engines say to each other while one gives way to the next: a socket for each device that encrypts.
//!
//! The one that gives way passes on every datagram that it can make nothing of, for that is for the next one's sessions. The
//! next one says a word once it has sessions with the device's peers, and sends to them from then on.
//!
//! Invariant: neither waits for the other to read. What does not fit is lost, as in any socket.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, sendmsg, setsockopt, socketpair, sockopt,
};

use crate::socket::{BUFFER, ROOM};

/// An address of IPv6 and a port in front of each datagram.
const FROM: usize = 18;
/// What the next engine says.
const WORD: &[u8] = b"sends";

/// One end.
pub(crate) struct Passage(OwnedFd);

impl Passage {
    /// This end, and the one for the next engine.
    pub(crate) fn pair() -> nix::Result<(Passage, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let _less = setsockopt(&ours, sockopt::SndBufForce, &BUFFER);
        Ok((Passage(ours), theirs))
    }

    pub(crate) fn of(end: OwnedFd) -> Passage {
        Passage(end)
    }

    pub(crate) fn pass(&self, from: SocketAddr, datagram: &[u8]) {
        let mut head = [0; FROM];
        let ip = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        head[..16].copy_from_slice(&ip.octets());
        head[16..].copy_from_slice(&from.port().to_be_bytes());
        let pieces = [IoSlice::new(&head), IoSlice::new(datagram)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _lost = sendmsg::<()>(self.0.as_raw_fd(), &pieces, &[], flags, None);
    }

    /// The next datagram that is there, and where it came from. None: there will be no more.
    pub(crate) fn receive<'a>(&self, room: &'a mut Room) -> nix::Result<Option<(SocketAddr, &'a [u8])>> {
        let length = recv(self.0.as_raw_fd(), &mut room.0, MsgFlags::MSG_DONTWAIT)?;
        let Some((head, datagram)) = room.0[..length].split_first_chunk::<FROM>() else { return Ok(None) };
        let ip = <[u8; 16]>::try_from(&head[..16]).map(Ipv6Addr::from).unwrap_or(Ipv6Addr::UNSPECIFIED);
        let from = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes([head[16], head[17]]));
        Ok(Some((from, datagram)))
    }

    /// That this end sends to the peers from now on.
    pub(crate) fn say_it_sends(&self) {
        // Where nobody is left to hear it, that is known by then.
        let _gone = send(self.0.as_raw_fd(), WORD, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    /// Whether the other end has said so since this was asked before.
    ///
    /// # Errors
    /// There is no other end any more.
    pub(crate) fn hears_it_sends(&self) -> nix::Result<bool> {
        let mut word = [0; WORD.len()];
        match recv(self.0.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(Errno::EPIPE),
            Ok(_) => Ok(word == WORD),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Passage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For a datagram.
pub(crate) struct Room(Vec<u8>);

impl Room {
    pub(crate) fn new() -> Room {
        Room(vec![0; FROM + ROOM])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_as_they_are_and_what_does_not_fit_holds_nobody_up() {
        let (gives_way, end) = Passage::pair().unwrap();
        let (next, mut room) = (Passage::of(end), Room::new());
        assert_eq!(next.receive(&mut room), Err(Errno::EAGAIN));
        for (from, length) in [("192.0.2.1:51820", 0), ("[2001:db8::1]:1", 1), ("192.0.2.2:65535", ROOM)] {
            let (from, datagram) = (from.parse().unwrap(), vec![7; length]);
            gives_way.pass(from, &datagram);
            assert_eq!(next.receive(&mut room), Ok(Some((from, datagram.as_slice()))));
        }
        for _ in 0..100_000 {
            gives_way.pass(([192, 0, 2, 1], 1).into(), &[7; 1500]);
        }
        assert_eq!(gives_way.hears_it_sends(), Ok(false));
        next.say_it_sends();
        assert_eq!([gives_way.hears_it_sends(), gives_way.hears_it_sends()], [Ok(true), Ok(false)]);
        drop(gives_way);
        // What was passed on before is there.
        let came = std::iter::from_fn(|| next.receive(&mut room).unwrap().map(drop)).count();
        assert!(came > 0, "the end is told after what came before it");
        let (gives_way, end) = Passage::pair().unwrap();
        drop(end);
        gives_way.pass(([192, 0, 2, 1], 1).into(), &[7]);
        assert_eq!(gives_way.hears_it_sends(), Err(Errno::EPIPE));
    }
}
