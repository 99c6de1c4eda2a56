//! Whether packets of a size get to an address: an echo request (RFC 792, RFC 4443 §4.1) that may not be fragmented.
//!
//! Invariant: what the kernel has learned of the path before is not asked; at most one request for each question.

#![allow(unsafe_code, reason = "nix knows no socket option for path MTU discovery")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Headers before the echo's own.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Where type, code and checksum end.
const CHECKSUM_END: usize = 4;
const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// Whether an answer to a packet of `bytes`, IP header included, comes within `patience`.
///
/// # Errors
/// The kernel refuses a socket (this needs CAP_NET_RAW), or there is no route.
pub fn carries(to: IpAddr, bytes: u32, patience: Duration) -> io::Result<bool> {
    let v6 = to.is_ipv6();
    let socket = raw(v6)?;
    let [a, b] = (std::process::id() as u16).to_be_bytes();
    let [c, d] = (bytes as u16).to_be_bytes();
    let ours = [a, b, c, d];
    let request = request(v6, bytes, &ours);
    match sendto(socket.as_raw_fd(), &request, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty()) {
        Ok(_) => {}
        // Larger than the link takes.
        Err(Errno::EMSGSIZE) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    let until = Instant::now() + patience;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let wait = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait)?;
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => continue,
            // Somebody on the way says that it was too large.
            Err(Errno::EMSGSIZE | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        if reply(v6, &buffer[..len]).is_some_and(|answer| answer.starts_with(&ours)) {
            return Ok(true);
        }
    }
}

/// An echo request that has so many bytes with its IP header; `ours` is its identifier, its sequence number, and what data
/// begin with.
pub(crate) fn request(v6: bool, bytes: u32, ours: &[u8]) -> Vec<u8> {
    let header = if v6 { IPV6_HEADER } else { IPV4_HEADER };
    let mut request = vec![0; (bytes as usize).saturating_sub(header).max(CHECKSUM_END + ours.len())];
    request[0] = ECHO_REQUEST[usize::from(v6)];
    request[CHECKSUM_END..CHECKSUM_END + ours.len()].copy_from_slice(ours);
    if !v6 {
        let sum = checksum(&request);
        request[2..CHECKSUM_END].copy_from_slice(&sum.to_be_bytes());
    }
    request
}

/// What an echo reply holds, from its identifier on; none if the packet is no such. Of IPv4 it begins with its header.
pub(crate) fn reply(v6: bool, packet: &[u8]) -> Option<&[u8]> {
    let skip = if v6 { 0 } else { usize::from(packet.first()? & 0xf) * 4 };
    let message = packet.get(skip..)?;
    (*message.first()? == ECHO_REPLY[usize::from(v6)]).then_some(message.get(CHECKSUM_END..)?)
}

pub(crate) fn raw(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol, level, option, probe) = match v6 {
        false => {
            let (level, option) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
            (AddressFamily::Inet, SockProtocol::Icmp, level, option, libc::IP_PMTUDISC_PROBE)
        }
        true => {
            let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
            (AddressFamily::Inet6, SockProtocol::IcmpV6, level, option, libc::IPV6_PMTUDISC_PROBE)
        }
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int, which lives through the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const probe).cast(), len) };
    Errno::result(set)?;
    Ok(socket)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(0_u32, |sum, word| sum.wrapping_add(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
