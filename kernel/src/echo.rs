//! Sockets of the path self-test: echo requests of a size (RFC 792, RFC 4443 §4.1), and datagrams that the peer's agent
//! answers, with a checksum left to the device or with none.
//!
//! Invariant: neither pods nor anybody who is not a peer can fill these sockets: the kernel hands on only echo replies
//! with a number that was never on a packet pods see, and only datagrams that no router has forwarded (RFC 5082), which
//! those of other nodes' pods are; this node's pods cannot reach the port (datapath/src/nftables/base.rs). Answers are as
//! small as questions, and bounded in number.

#![allow(unsafe_code, reason = "nix knows neither socket filters nor how to switch checksums off")]

use std::io::{self, IoSlice};
use std::mem::zeroed;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recvfrom, sendmsg, sendto,
    setsockopt, socket, sockopt,
};
use tartan_model::{Family, PerFamily};
use tartan_netstate::LinkName;
use tartan_netstate::claims::SELFTEST_PORT;

use crate::path;

/// `SOL_UDP` options that nix and libc do not name.
const UDP_NO_CHECK6_TX: libc::c_int = 101;
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// Where a filter finds the network header, whatever the socket's packets begin with.
const SKF_NET_OFF: u32 = 0xfff0_0000;
/// As a sender sets it, and no router leaves it.
const NOT_FORWARDED: u8 = 255;

const ASKS: [u8; 8] = *b"tartan?\0";
const ANSWERS: [u8; 8] = *b"tartan!\0";
/// Answers in a second.
const ANSWER_RATE: u32 = 500;
/// Datagrams read at one go, of each socket.
const DATAGRAMS: usize = 256;
/// And echo replies: of thousands of peers they may come between two reads, and nobody else can send any. The kernel doubles the
/// bytes that they wait in.
const REPLIES: usize = 1 << 14;
const REPLIES_BYTES: usize = 8 << 20;

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer { nonce: u64, from: IpAddr },
    Question { from: IpAddr },
}

/// See the module.
pub struct Echo {
    cookie: u64,
    requests: PerFamily<OwnedFd>,
    /// Each with the address it is bound to.
    datagrams: PerFamily<(IpAddr, OwnedFd)>,
    /// When the present second began, and the answers given in it.
    second: (Instant, u32),
}

// === impl Echo ===

impl Echo {
    /// `cookie` is random, and on all echo requests.
    ///
    /// # Errors
    /// The kernel refuses a socket (this needs CAP_NET_RAW).
    pub fn open(cookie: u64) -> io::Result<Echo> {
        let mut requests = PerFamily::default();
        for family in Family::ALL {
            match path::raw(family == Family::V6) {
                Ok(socket) => {
                    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                    let _as_many_as_usual = setsockopt(&socket, sockopt::RcvBufForce, &REPLIES_BYTES);
                    filter(&socket, &replies(family, cookie))?;
                    requests.set(family, socket);
                }
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Echo { cookie, requests, datagrams: PerFamily::default(), second: (Instant::now(), 0) })
    }

    /// Asks and answers datagrams at these addresses of this node from now on.
    ///
    /// # Errors
    /// An address is not there, or somebody else has the port; the other one is listened at.
    pub fn listen(&mut self, at: PerFamily<IpAddr>) -> io::Result<()> {
        let mut refused = Ok(());
        for family in Family::ALL {
            let (was, address) = (self.datagrams.get(family).map(|(address, _)| *address), at.get(family).copied());
            if was == address {
                continue;
            }
            match family {
                Family::V4 => self.datagrams.v4 = None,
                Family::V6 => self.datagrams.v6 = None,
            }
            match address.map(|address| Ok::<_, io::Error>((address, datagrams(address)?))) {
                Some(Ok(bound)) => self.datagrams.set(family, bound),
                Some(Err(error)) => refused = Err(error),
                None => {}
            }
        }
        refused
    }

    /// Sends an echo request of so many bytes, IP header included; by that link, whatever routes come first, or as packets go.
    /// What cannot be sent is as good as lost.
    pub fn request(&self, to: IpAddr, bytes: u32, nonce: u64, by: Option<&LinkName>) {
        let Some(socket) = self.requests.get(Family::of(to)) else { return };
        let message = path::request(
            to.is_ipv6(),
            bytes,
            &[&[0; 4], &self.cookie.to_be_bytes()[..], &nonce.to_be_bytes()].concat(),
        );
        let _as_good_as_lost = match by {
            Some(link) => send_by(socket, &message, SocketAddr::new(to, 0), link),
            None => send(socket, &message, SocketAddr::new(to, 0)),
        };
    }

    /// Sends a datagram that asks for an answer. What cannot be sent is as good as lost.
    pub fn ask(&self, to: IpAddr, checksum: bool, nonce: u64) {
        self.datagram(to, checksum, &[ASKS, nonce.to_be_bytes()].concat());
    }

    /// What came until something has, that time, or until there is something to read from `stop`; none then. Questions of
    /// peers are answered.
    ///
    /// # Errors
    /// The kernel cannot wait.
    pub fn wait(
        &mut self,
        until: Instant,
        stop: BorrowedFd<'_>,
        is_peer: impl Fn(IpAddr) -> bool,
    ) -> io::Result<Option<Vec<Heard>>> {
        let left = until.saturating_duration_since(Instant::now());
        // A millisecond more rather than less: to be awake too early is to spin.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let sockets = self.requests.iter().map(|(_, socket)| socket);
        let sockets = sockets.chain(self.datagrams.iter().map(|(_, (_, socket))| socket));
        let mut polled: Vec<PollFd<'_>> =
            sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        polled.push(PollFd::new(stop, PollFlags::POLLIN));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if polled.last().is_some_and(|stop| stop.any() == Some(true)) {
            return Ok(None);
        }
        let mut heard = self.replies();
        self.answers_and_questions(&mut heard, is_peer);
        Ok(Some(heard))
    }

    /// Answers to echo requests that have come.
    pub(crate) fn replies(&self) -> Vec<Heard> {
        let mut heard = Vec::new();
        for (family, socket) in self.requests.iter() {
            receive(socket, REPLIES, |bytes, from| {
                let nonce =
                    path::reply(family == Family::V6, bytes).and_then(|payload| payload.get(12..20)?.first_chunk());
                heard.extend(nonce.map(|nonce| Heard::Answer { nonce: u64::from_be_bytes(*nonce), from: from.ip() }));
            });
        }
        heard
    }

    fn answers_and_questions(&mut self, heard: &mut Vec<Heard>, is_peer: impl Fn(IpAddr) -> bool) {
        let mut questions = Vec::new();
        for (_, (_, socket)) in self.datagrams.iter() {
            receive(socket, DATAGRAMS, |bytes, from| {
                let Some((kind, nonce)) = bytes.split_first_chunk::<8>() else { return };
                let Ok(nonce) = <[u8; 8]>::try_from(nonce) else { return };
                if *kind == ANSWERS {
                    heard.push(Heard::Answer { nonce: u64::from_be_bytes(nonce), from: from.ip() });
                } else if *kind == ASKS && from.port() == SELFTEST_PORT && is_peer(from.ip()) {
                    heard.push(Heard::Question { from: from.ip() });
                    questions.push((from.ip(), nonce));
                }
            });
        }
        for (from, nonce) in questions {
            if self.may_answer() {
                self.datagram(from, false, &[ANSWERS, nonce].concat());
            }
        }
    }

    fn may_answer(&mut self) -> bool {
        let now = Instant::now();
        if now.saturating_duration_since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        self.second.1 += 1;
        self.second.1 <= ANSWER_RATE
    }

    fn datagram(&self, to: IpAddr, checksum: bool, message: &[u8]) {
        let Some((_, socket)) = self.datagrams.get(Family::of(to)) else { return };
        let (level, option) = match to {
            IpAddr::V4(_) => (libc::SOL_SOCKET, libc::SO_NO_CHECK),
            IpAddr::V6(_) => (libc::SOL_UDP, UDP_NO_CHECK6_TX),
        };
        let _as_good_as_lost = set(socket, level, option, libc::c_int::from(!checksum))
            .and_then(|()| send(socket, message, SocketAddr::new(to, SELFTEST_PORT)));
    }
}

fn datagrams(address: IpAddr) -> io::Result<OwnedFd> {
    let (family, level, ttl, offset) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, libc::IPPROTO_IP, libc::IP_TTL, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 7),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    set(&socket, level, ttl, libc::c_int::from(NOT_FORWARDED))?;
    if address.is_ipv6() {
        set(&socket, libc::SOL_UDP, UDP_NO_CHECK6_RX, 1)?;
    }
    filter(&socket, &not_forwarded(offset))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, SELFTEST_PORT)))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, message: &[u8], to: SocketAddr) -> io::Result<()> {
    sendto(socket.as_raw_fd(), message, &SockaddrStorage::from(to), MsgFlags::empty())?;
    Ok(())
}

/// The routes of that link alone are looked at (ip(7) IP_PKTINFO, RFC 3542 section 6.2).
fn send_by(socket: &OwnedFd, message: &[u8], to: SocketAddr, link: &LinkName) -> io::Result<()> {
    let index = if_nametoindex(link.as_str())?;
    // SAFETY: both are plain data, of which all zeros is a value.
    let (mut v4, mut v6) = unsafe { (zeroed::<libc::in_pktinfo>(), zeroed::<libc::in6_pktinfo>()) };
    v4.ipi_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    v6.ipi6_ifindex = index;
    let by = if to.is_ipv4() { ControlMessage::Ipv4PacketInfo(&v4) } else { ControlMessage::Ipv6PacketInfo(&v6) };
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(message)], &[by], MsgFlags::empty(), Some(&to))?;
    Ok(())
}

/// Reads what is there, as far as it is of an internet family, and at most so much.
fn receive(socket: &OwnedFd, most: usize, mut each: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = [0; 256];
    for _ in 0..most {
        // An echo reply is as large as its request; its first bytes are enough.
        let Ok((len, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) else { return };
        let v4 = || from.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
        let v6 = || from.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()));
        if let Some(from) = v4().or_else(v6) {
            each(&buffer[..len.min(buffer.len())], from);
        }
    }
}

// --- what nix does not name ---

/// Echo replies with this cookie. An IPv4 packet begins with its header, an IPv6 one after it.
fn replies(family: Family, cookie: u64) -> Vec<libc::sock_filter> {
    let (length, reply) = match family {
        Family::V4 => (step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0), 0),
        Family::V6 => (step(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 0), 129),
    };
    let word = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, at);
    let mut code = vec![length, step(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0), unless(reply, 5)];
    code.extend([word(8), unless((cookie >> 32) as u32, 3), word(12), unless(cookie as u32, 1)]);
    code.extend([step(libc::BPF_RET | libc::BPF_K, u32::MAX), step(libc::BPF_RET | libc::BPF_K, 0)]);
    code
}

/// Packets with the highest time to live, which this offset of the network header holds.
fn not_forwarded(offset: u32) -> Vec<libc::sock_filter> {
    vec![
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, SKF_NET_OFF + offset),
        unless(NOT_FORWARDED.into(), 1),
        step(libc::BPF_RET | libc::BPF_K, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

fn step(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Leaves out so many steps unless what was loaded is this.
fn unless(is: u32, skip: u8) -> libc::sock_filter {
    libc::sock_filter { jf: skip, ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, is) }
}

fn filter(socket: &OwnedFd, code: &[libc::sock_filter]) -> io::Result<()> {
    // The kernel only reads.
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    set_raw(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_raw(socket, level, option, &value)
}

fn set_raw<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, and of a filter the steps it points to; both live through the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    Errno::result(set)?;
    Ok(())
}
