//! TUN devices: what is sent into one is read by an engine, and what the engine writes has come out of it.
//!
//! rtnetlink makes no such device, so it is made by ioctl (the kernel's Documentation/networking/tuntap.rst) and made to stay;
//! from then on it is a link like any other.
//!
//! Invariant: only a device that was not there is made.

#![allow(unsafe_code, reason = "system calls that nix does not wrap")]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use tartan_netstate::LinkName;

use crate::KernelError;

/// Packets that wait for an engine that is being started again, on each of its queues.
pub(crate) const QUEUE_LEN: u32 = 1000;

/// Makes the device, in the network namespace of the calling thread. Engines open it by the same flags.
pub(crate) fn create(name: &LinkName) -> Result<(), KernelError> {
    let refused = |errno, says: Option<&str>| KernelError::Refused {
        doing: format!("add the TUN device {name}"),
        errno,
        says: says.map(str::to_owned),
    };
    if if_nametoindex(name.as_str()).is_ok() {
        return Err(refused(Errno::EEXIST, None));
    }
    let missing = "opening /dev/net/tun: load the kernel module tun, or let the agent see that device";
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    let tun = tun.map_err(|error| refused(errno(error), Some(missing)))?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // SAFETY: an ifreq is plain data, of which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call is over.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })
        .map_err(|errno| refused(errno, None))?;
    // SAFETY: TUNSETPERSIST takes a number.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
        .map_err(|errno| refused(errno, None))?;
    Ok(())
}
