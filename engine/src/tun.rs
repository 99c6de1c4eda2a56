//! The queues of a TUN device (the kernel's Documentation/networking/tuntap.rst). The agent makes the device; here it is
//! opened, once for each queue.

#![allow(unsafe_code, reason = "system calls that nix does not wrap")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

/// The kernel may leave checksums and the cutting of large TCP packets to us; of UDP too, since Linux 6.2.
const OFFLOADS: [libc::c_uint; 2] = [0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x01 | 0x02 | 0x04];

/// Opens one more queue of a device that is there.
pub(crate) fn open(link: &str) -> std::io::Result<OwnedFd> {
    // Else one would be made, and that is not ours to do.
    nix::net::if_::if_nametoindex(link)?;
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = named(link);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call is over.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    let mut offloads = OFFLOADS.into_iter().map(|offload| {
        // SAFETY: TUNSETOFFLOAD takes a number.
        Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offload)) })
    });
    offloads.find(Result::is_ok).ok_or(Errno::EOPNOTSUPP)??;
    let flags = OFlag::from_bits_retain(fcntl(&tun, FcntlArg::F_GETFL)?);
    fcntl(&tun, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(tun.into())
}

/// Whether the queue's device is still there.
pub(crate) fn is_attached(queue: BorrowedFd<'_>) -> bool {
    let mut request = named("");
    // SAFETY: TUNGETIFF writes one ifreq, which lives until the call is over.
    Errno::result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF as _, &mut request) }).is_ok()
}

fn named(link: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, of which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less than there is room for: the last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request
}
