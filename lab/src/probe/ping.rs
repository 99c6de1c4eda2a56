//! ICMP echo (RFC 792, RFC 4443) over a raw socket: one question, one answer, never fragmented.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, socket,
};
use std::os::fd::AsFd;

use crate::netns::Endpoint;
use crate::sockopt;

/// Type, code, checksum, identifier, sequence.
const HEADER: usize = 8;
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Pings `to` from inside `from`'s namespace, `packet` bytes long in all (IP header included) and never fragmented.
/// Gives the round trip. `TimedOut` when nothing came back; a packet larger than the path the kernel knows of is
/// refused with EMSGSIZE.
pub fn ping(from: &Endpoint, to: IpAddr, packet: usize, timeout: Duration) -> anyhow::Result<Duration> {
    Ok(from.netns.run(|| ask(to, packet, timeout))??)
}

/// The same from the calling thread's namespace.
pub(super) fn ask(to: IpAddr, packet: usize, timeout: Duration) -> io::Result<Duration> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let socket = open(to)?;
    let ((request, reply), ip_header) = if to.is_ipv4() { (ECHO_V4, 20) } else { (ECHO_V6, 40) };
    let question = echo_request(request, id, packet.saturating_sub(ip_header).max(HEADER), to.is_ipv4());
    let start = Instant::now();
    send(&socket, &question, to)?;
    let mut buffer = [0; 65536];
    while let Some(left) = timeout.checked_sub(start.elapsed()) {
        if !readable(&socket, left)? {
            break;
        }
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        // A raw IPv4 socket hands over the IP header too; an IPv6 one does not.
        let skip = if to.is_ipv4() { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let answer = buffer[..length].get(skip..).unwrap_or_default();
        if answer.first() == Some(&reply) && answer.get(4..6) == Some(&id.to_be_bytes()) {
            return Ok(start.elapsed());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {to} in {} ms", timeout.as_millis())))
}

fn open(to: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    sockopt::dont_fragment(&socket)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, question: &[u8], to: IpAddr) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    match SocketAddr::new(to, 0) {
        SocketAddr::V4(to) => {
            sendto(fd, question, &SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0)), MsgFlags::empty())
        }
        SocketAddr::V6(to) => {
            sendto(fd, question, &SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0)), MsgFlags::empty())
        }
    }?;
    Ok(())
}

fn readable(socket: &OwnedFd, within: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    // Rounded up, or the last millisecond would spin.
    let millis = PollTimeout::try_from(within + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut fds, millis)? > 0)
}

/// The kernel fills in the checksum for IPv6 (it covers addresses we do not know); for IPv4 it is ours to do.
fn echo_request(kind: u8, id: u16, length: usize, with_checksum: bool) -> Vec<u8> {
    let mut message = vec![0; length];
    message[0] = kind;
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..8].copy_from_slice(&1u16.to_be_bytes());
    if with_checksum {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_to_zero() {
        for length in [8, 9, 64, 1471] {
            assert_eq!(checksum(&echo_request(8, 0xbeef, length, true)), 0, "length {length}");
        }
    }
}
