//! What rules report by NFLOG (nfnetlink_log): the mark and the first headers of each packet.
//!
//! A thread reads and tells; who is told must not block, or the kernel's queue runs over. Invariant: what is lost is told,
//! and no bytes of a packet make this panic.

use std::io::{self, PipeWriter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::KernelError;
use crate::netlink::{Refusal, parts, receive};
use crate::nfnetlink::{Attrs, NFGEN_HEADER, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attr, attr_u32, write_header};

/// A burst of reports waits here; rules bound their rate.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Of a packet, enough for the headers that are read: IPv6 with a few extensions, and the ports.
const COPIED_BYTES: u32 = 128;

const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_MARK: u16 = 2;
const NFULA_PAYLOAD: u16 = 9;

/// What a rule reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Packet(Report),
    /// More came than could be read.
    Lost,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The packet's mark as the rule left it; 0 where it has none.
    pub mark: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of protocols that have ports, else 0, and in all fragments but the first.
    pub source_port: u16,
    /// Likewise; of ICMP type and code, the type in the upper byte.
    pub destination_port: u16,
}

/// A thread that listens to one group. It ends when this is dropped.
pub struct Listener {
    _stop: PipeWriter,
}

impl Listener {
    /// Listens in the network namespace of the calling thread; each report after this is told. Nobody else may listen to
    /// the group.
    pub fn start(group: u16, tell: impl Fn(Told) + Send + 'static) -> Result<Listener, KernelError> {
        let failed = |error: io::Error| {
            // What the kernel says to whoever touches a group that another socket has.
            let taken = error.raw_os_error() == Some(libc::EPERM);
            let says = taken.then(|| "somebody else listens to it".to_owned());
            Refusal { says, ..Refusal::of(&error) }.doing(format!("listen to NFLOG group {group}"))
        };
        let (stopped, stop) = io::pipe().map_err(failed)?;
        let socket = bound(group).map_err(failed)?;
        let thread = std::thread::Builder::new().name("reports".into());
        thread.spawn(move || listen(&socket, stopped.as_fd(), tell)).map_err(failed)?;
        Ok(Listener { _stop: stop })
    }
}

fn bound(group: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    let mode = [&COPIED_BYTES.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
    for (sequence, (attr, value)) in (1..).zip([
        (NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND][..]),
        (NFULA_CFG_MODE, &mode),
        // Each at once: they are rare, and somebody waits for them.
        (NFULA_CFG_QTHRESH, &1_u32.to_be_bytes()),
    ]) {
        socket.send(&configuration(group, sequence, attr, value), 0)?;
        acknowledged(&socket, sequence)?;
    }
    Ok(socket)
}

/// `nlmsghdr`, `nfgenmsg` with the group as its resource, and one attribute.
fn configuration(group: u16, sequence: u32, attr: u16, value: &[u8]) -> Vec<u8> {
    let mut attrs = Attrs::new();
    attrs.bytes(attr, value);
    let mut message = Vec::new();
    let kind = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG;
    write_header(&mut message, kind, NLM_F_REQUEST | NLM_F_ACK, sequence, 0, group, &attrs.0);
    message
}

/// Reports may come before the answer.
fn acknowledged(socket: &Socket, sequence: u32) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        receive(socket, &mut buffer, 0)?;
        let answer = parts(&buffer).find(|part| part.kind == NLMSG_ERROR && part.sequence == sequence);
        if let Some(answer) = answer {
            let code = answer.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
    }
}

fn listen(socket: &Socket, stopped: BorrowedFd<'_>, tell: impl Fn(Told)) {
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        let mut ready = [PollFd::new(stopped, PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return tell(Told::Lost),
            Ok(_) => {}
        }
        let [stop, news] = ready.map(|fd| fd.any().unwrap_or(false));
        if stop {
            return;
        }
        if news {
            match receive(socket, &mut buffer, libc::MSG_DONTWAIT) {
                Ok(()) => {
                    let packets = parts(&buffer).filter(|part| part.kind == NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET);
                    let reports = packets.filter_map(|part| report(part.payload().get(NFGEN_HEADER..)?));
                    reports.for_each(|report| tell(Told::Packet(report)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // ENOBUFS: the queue ran over.
                Err(_) => tell(Told::Lost),
            }
        }
    }
}

fn report(attrs: &[u8]) -> Option<Report> {
    packet(attr_u32(attrs, NFULA_MARK).unwrap_or(0), attr(attrs, NFULA_PAYLOAD)?)
}

/// A packet from its IP header on; none where that is not whole.
fn packet(mark: u32, bytes: &[u8]) -> Option<Report> {
    let (source, destination, protocol, transport) = match bytes.first()? >> 4 {
        4 => v4(bytes)?,
        6 => v6(bytes)?,
        _ => return None,
    };
    let word =
        |at: usize| transport.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_be_bytes(*word));
    let (source_port, destination_port) = match i32::from(protocol) {
        libc::IPPROTO_TCP | libc::IPPROTO_UDP | libc::IPPROTO_SCTP | libc::IPPROTO_UDPLITE => (word(0), word(2)),
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => (0, word(0)),
        _ => (0, 0),
    };
    Some(Report { mark, source, destination, protocol, source_port, destination_port })
}

/// Ends, protocol, and what follows.
type Headers<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

/// RFC 791 §3.1.
fn v4(bytes: &[u8]) -> Option<Headers<'_>> {
    let header = bytes.get(..20)?;
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?)));
    let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let transport = bytes.get(usize::from(header[0] & 0xf) * 4..).filter(|_| is_first).unwrap_or_default();
    Some((address(12)?, address(16)?, header[9], transport))
}

/// RFC 8200 §4.
fn v6(bytes: &[u8]) -> Option<Headers<'_>> {
    let (header, mut rest) = bytes.split_at_checked(40)?;
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?)));
    let mut next = header[6];
    // Each of them is at least 8 bytes long.
    while let Some(length) = match i32::from(next) {
        libc::IPPROTO_HOPOPTS | libc::IPPROTO_ROUTING | libc::IPPROTO_DSTOPTS => {
            rest.get(1).map(|length| 8 + usize::from(*length) * 8)
        }
        libc::IPPROTO_AH => rest.get(1).map(|length| 8 + usize::from(*length) * 4),
        libc::IPPROTO_FRAGMENT => Some(8),
        _ => None,
    } {
        let offset = rest.get(2..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_be_bytes(*word));
        let is_later_fragment = i32::from(next) == libc::IPPROTO_FRAGMENT && offset & 0xfff8 != 0;
        next = *rest.first()?;
        rest = rest.get(length..).filter(|_| !is_later_fragment).unwrap_or_default();
    }
    Some((address(8)?, address(24)?, next, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 20] = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1];
    const PORTS: [u8; 4] = [0x9c, 0x40, 0, 80];

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let ends = ["fd00::1", "2001:db8::1"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets()).concat();
        [&[0x60, 0, 0, 0, 0, 0, next, 64], &*ends, rest].concat()
    }

    #[test]
    fn headers_are_read_as_far_as_they_are_there() {
        let with = |at: usize, byte: u8| {
            let mut header = V4;
            header[at] = byte;
            header
        };
        for (bytes, want) in [
            ([&V4[..], &PORTS].concat(), Some((6, 40_000, 80))),
            // Options.
            ([&with(0, 0x46)[..], &[0; 4], &PORTS].concat(), Some((6, 40_000, 80))),
            ([&with(9, 1)[..], &[8, 0, 1, 2]].concat(), Some((1, 0, 0x800))),
            ([&with(9, 47)[..], &PORTS].concat(), Some((47, 0, 0))),
            // A later fragment, and one that is cut.
            ([&with(7, 1)[..], &PORTS].concat(), Some((6, 0, 0))),
            (V4.to_vec(), Some((6, 0, 0))),
            (V4[..19].to_vec(), None),
            (vec![], None),
            (vec![0x50; 60], None),
            (ipv6(17, &PORTS), Some((17, 40_000, 80))),
            (ipv6(58, &[128, 0]), Some((58, 0, 0x8000))),
            (ipv6(0, &[&[60, 0, 0, 0, 0, 0, 0, 0][..], &[17, 1], &[0; 14], &PORTS].concat()), Some((17, 40_000, 80))),
            (ipv6(44, &[&[6, 0, 0, 1, 0, 0, 0, 0][..], &PORTS].concat()), Some((6, 40_000, 80))),
            (ipv6(44, &[&[6, 0, 0, 9, 0, 0, 0, 0][..], &PORTS].concat()), Some((6, 0, 0))),
            (ipv6(0, &[]), Some((0, 0, 0))),
            (ipv6(6, &[])[..39].to_vec(), None),
        ] {
            let report = packet(7, &bytes);
            let got = report.as_ref().map(|it| (it.protocol, it.source_port, it.destination_port));
            assert_eq!(got, want, "{bytes:02x?}");
            assert!(report.is_none_or(|it| it.mark == 7 && !it.source.is_unspecified()));
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        for first in [0x45, 0x4f, 0x40, 0x60] {
            for byte in 0..=u8::MAX {
                for length in 0..=COPIED_BYTES as usize {
                    let mut bytes = vec![byte; length];
                    if let Some(version) = bytes.first_mut() {
                        *version = first;
                    }
                    let _any = packet(0, &bytes);
                }
            }
        }
    }
}
