//! Whether a device computes checksums of what it sends (ethtool's `tx-checksumming`).

#![allow(unsafe_code, reason = "ethtool is an ioctl that nix does not know")]

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tartan_netstate::LinkName;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// Whether it does.
///
/// # Errors
/// There is no such device, or it is of a kind that cannot say.
pub fn tx_checksum(link: &LinkName) -> io::Result<bool> {
    let mut value = Value { cmd: ETHTOOL_GTXCSUM, data: 0 };
    ask(link, &mut value)?;
    Ok(value.data != 0)
}

/// Has it do so, or the kernel before it.
///
/// # Errors
/// There is no such device, or it leaves no choice.
pub fn set_tx_checksum(link: &LinkName, on: bool) -> io::Result<()> {
    ask(link, &mut Value { cmd: ETHTOOL_STXCSUM, data: on.into() })
}

fn ask(link: &LinkName, value: &mut Value) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all of it may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
    // SAFETY: the kernel reads `request` and reads and writes the `Value` it points to; both live through the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) })?;
    Ok(())
}
