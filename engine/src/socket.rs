//! UDP sockets that take and give many packets at once (udp(7): UDP_SEGMENT, UDP_GRO; sendmmsg(2), recvmmsg(2)).

#![allow(unsafe_code, reason = "control messages of each packet of a batch, which nix does not have")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};

/// What waits while nobody reads.
pub(crate) const BUFFER: usize = 8 << 20;
/// Bytes of a batch's one packet, or of several of one size in a row.
pub(crate) const ROOM: usize = 65_535;
/// The kernel's IP_PMTUDISC_OMIT and its twin of IPv6: what is too large for the path is cut, and the word of strangers about
/// the path does not count.
static PMTUDISC_OMIT: libc::c_int = 5;
/// The kernel's include/uapi/linux/udp.h.
const UDP_ENCAP: libc::c_int = 100;
static UDP_ENCAP_ESPINUDP: libc::c_int = 2;

/// One that hears peers, beside others on the same port.
pub(crate) fn listening(v6: bool, port: u16) -> io::Result<OwnedFd> {
    listen(open(v6)?, v6, port)
}

/// One that hears peers of both families and sends to them, by the same port; of IPv4 alone where the kernel has no other.
pub(crate) fn of_both(port: u16) -> io::Result<OwnedFd> {
    let (fd, v6) = match open(true) {
        Ok(fd) => (fd, true),
        Err(_) => (open(false)?, false),
    };
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        omit_pmtu(&fd, true)?;
    }
    omit_pmtu(&fd, false)?;
    enlarge_sending(&fd);
    listen(fd, v6, port)
}

/// One that only stands there, beside others on the same port: the kernel takes ESP out of what comes (RFC 3948). The rest, of
/// which nothing is for us, fills the smallest buffer there is.
pub(crate) fn of_esp(v6: bool, port: u16) -> io::Result<OwnedFd> {
    let fd = open(v6)?;
    // Before it is heard: what comes in between would be nobody's.
    set_int(&fd, libc::IPPROTO_UDP, UDP_ENCAP, &UDP_ENCAP_ESPINUDP)?;
    setsockopt(&fd, sockopt::RcvBuf, &0)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind_to_any(&fd, v6, port)?;
    Ok(fd)
}

fn listen(fd: OwnedFd, v6: bool, port: u16) -> io::Result<OwnedFd> {
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    setsockopt(&fd, sockopt::UdpGroSegment, &true)?;
    bind_to_any(&fd, v6, port)?;
    // More than an unprivileged process may have; less will do.
    let _less = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &BUFFER));
    Ok(fd)
}

fn bind_to_any(fd: &OwnedFd, v6: bool, port: u16) -> nix::Result<()> {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))
}

/// One to send by, from the address that peers know. Its port is any: so peers tell the flows of one of our queues from those
/// of another.
pub(crate) fn sending(source: IpAddr) -> io::Result<UdpSocket> {
    let v6 = source.is_ipv6();
    let fd = open(v6)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))
        .map_err(|errno| io::Error::other(format!("packets to peers cannot come from {source}: {errno}")))?;
    enlarge_sending(&fd);
    omit_pmtu(&fd, v6)?;
    Ok(fd.into())
}

fn open(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(fd)
}

fn enlarge_sending(fd: &OwnedFd) {
    let _less = setsockopt(fd, sockopt::SndBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::SndBuf, &BUFFER));
}

/// See [`PMTUDISC_OMIT`].
fn omit_pmtu(fd: &OwnedFd, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) } else { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) };
    set_int(fd, level, option, &PMTUDISC_OMIT)
}

fn set_int(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &'static libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int, which lives for ever.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(set)?;
    Ok(())
}

/// Packets of one size in a row, the last one maybe smaller, all to one peer.
pub(crate) struct Message<'a> {
    pub(crate) to: SocketAddr,
    pub(crate) size: usize,
    /// What they are made of, each of `parts` pieces of its own.
    pub(crate) pieces: Vec<&'a [u8]>,
    /// How many pieces the first of them is made of, then the next.
    pub(crate) parts: Vec<u8>,
}

/// Sends all of them. What cannot be sent is lost, as on any link.
pub(crate) fn send(socket: BorrowedFd<'_>, messages: &[Message<'_>]) {
    let iovs: Vec<Vec<libc::iovec>> = messages.iter().map(|message| iov(&message.pieces)).collect();
    let to: Vec<SockaddrStorage> = messages.iter().map(|message| message.to.into()).collect();
    let mut controls: Vec<Control> = vec![Control::EMPTY; messages.len()];
    let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let mut header = header(&iovs[index], &to[index]);
        if message.parts.len() > 1 {
            controls[index].put(&mut header, libc::SOL_UDP, libc::UDP_SEGMENT, message.size as u16);
        }
        headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
    }
    let mut done = 0;
    while done < headers.len() {
        let left = &mut headers[done..];
        // SAFETY: every header's pointers are to vectors of this function, which live until the call is over; their lengths
        // are those of the vectors.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as libc::c_uint, 0) };
        match Errno::result(sent) {
            Ok(sent) => done += sent as usize,
            Err(Errno::EINTR) => {}
            // A device that cannot make checksums, or a path that is narrower than the row's packets.
            Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE) if messages[done].parts.len() > 1 => {
                send(socket, &singly(&messages[done]));
                done += 1;
            }
            Err(_) => done += 1,
        }
    }
}

fn singly<'a>(message: &Message<'a>) -> Vec<Message<'a>> {
    let mut pieces = message.pieces.iter().copied();
    let one = |parts: &u8| {
        let pieces: Vec<&[u8]> = pieces.by_ref().take(usize::from(*parts)).collect();
        Message { to: message.to, size: pieces.iter().map(|piece| piece.len()).sum(), pieces, parts: vec![*parts] }
    };
    message.parts.iter().map(one).collect()
}

fn iov(pieces: &[&[u8]]) -> Vec<libc::iovec> {
    pieces
        .iter()
        .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() })
        .collect()
}

fn header(iov: &[libc::iovec], name: &SockaddrStorage) -> libc::msghdr {
    use nix::sys::socket::SockaddrLike;
    // SAFETY: a msghdr is plain data, of which all zeros is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = name.as_ptr().cast_mut().cast();
    header.msg_namelen = name.len();
    header.msg_iov = iov.as_ptr().cast_mut();
    header.msg_iovlen = iov.len() as _;
    header
}

/// Room for one control message of a number, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Control {
    const EMPTY: Control = Control([0; 64]);

    fn put(&mut self, header: &mut libc::msghdr, level: libc::c_int, kind: libc::c_int, value: u16) {
        let size = size_of::<u16>() as libc::c_uint;
        header.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: the room holds a control message of two bytes, and the header says so before it is looked for.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size) as _;
            let message = libc::CMSG_FIRSTHDR(header);
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(value);
        }
    }

    /// The number, where there is one.
    fn get(header: &libc::msghdr, level: libc::c_int, kind: libc::c_int) -> Option<usize> {
        // SAFETY: the kernel has filled the room and said how much of it; the macros stay within that.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while !message.is_null() {
                if ((*message).cmsg_level, (*message).cmsg_type) == (level, kind) {
                    return usize::try_from(libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned()).ok();
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        None
    }
}

/// Room for packets that come.
pub(crate) struct Inbox {
    buffers: Vec<Vec<u8>>,
    came: Vec<Came>,
}

/// What came in one buffer.
struct Came {
    from: SocketAddr,
    len: usize,
    /// Of each packet but the last.
    size: usize,
}

impl Inbox {
    pub(crate) fn new(rows: usize) -> Inbox {
        Inbox { buffers: vec![vec![0; ROOM]; rows], came: Vec::with_capacity(rows) }
    }

    /// Takes what is there, and does not wait.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> nix::Result<()> {
        self.came.clear();
        let rows = self.buffers.len();
        let iovs: Vec<[libc::iovec; 1]> = self
            .buffers
            .iter_mut()
            .map(|buffer| [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }])
            .collect();
        // SAFETY: addresses are plain data, of which all zeros is a value.
        let mut names: Vec<libc::sockaddr_storage> = vec![unsafe { zeroed() }; rows];
        let mut controls = vec![Control::EMPTY; rows];
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(rows);
        for ((iov, name), control) in iovs.iter().zip(&mut names).zip(&mut controls) {
            // SAFETY: as in `header`.
            let mut header: libc::msghdr = unsafe { zeroed() };
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = iov.as_ptr().cast_mut();
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len() as _;
            headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
        // SAFETY: every header's pointers are to vectors of this function or buffers of `self`, which live until the call is
        // over and are borrowed by nobody else; their lengths are those of the vectors.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                rows as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let count = Errno::result(count)? as usize;
        for (header, name) in headers[..count].iter().zip(&names) {
            let len = (header.msg_len as usize).min(ROOM);
            let size = Control::get(&header.msg_hdr, libc::SOL_UDP, libc::UDP_GRO).filter(|size| *size > 0);
            let from = address(name).unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
            self.came.push(Came { from, len, size: size.unwrap_or(len).max(1) });
        }
        Ok(())
    }

    /// Each packet that came, and from where.
    pub(crate) fn packets(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.came
            .iter()
            .zip(&self.buffers)
            .flat_map(|(came, buffer)| buffer[..came.len].chunks(came.size).map(|packet| (came.from, packet)))
    }
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name: *const libc::sockaddr_storage = name;
    // SAFETY: the family says which address is in the storage, which is aligned for and larger than each.
    unsafe {
        match i32::from((*name).ss_family) {
            libc::AF_INET => {
                let v4 = &*name.cast::<libc::sockaddr_in>();
                Some((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*name.cast::<libc::sockaddr_in6>();
                // One of IPv4, where a socket hears both families.
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr).to_canonical();
                Some((ip, u16::from_be(v6.sin6_port)).into())
            }
            _ => None,
        }
    }
}

/// Waits until one of the two can be read. False when it is the second: the time to stop.
pub(crate) fn wait(packets: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let mut fds = [PollFd::new(packets.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) if fds[1].any() != Some(false) => return false,
            Ok(_) => return fds[0].revents().is_none_or(|events| events.contains(PollFlags::POLLIN)),
        }
    }
}
