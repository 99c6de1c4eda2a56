//! The socket options of ip_tables and ip6_tables: whole tables in, whole tables out.

#![allow(
    unsafe_code,
    reason = "nix knows no socket option of these two, and a table's length is known at run time only"
)]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// One of the two legacy tables' sockets.
pub(super) struct Sockopt {
    socket: OwnedFd,
    level: libc::c_int,
}

impl Sockopt {
    /// In the network namespace of the calling thread.
    pub(super) fn open(v6: bool) -> Result<Sockopt, Errno> {
        let (domain, level) =
            if v6 { (AddressFamily::Inet6, libc::IPPROTO_IPV6) } else { (AddressFamily::Inet, libc::IPPROTO_IP) };
        let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        Ok(Sockopt { socket, level })
    }

    /// Lets the kernel fill `buffer`, whose beginning says what is asked for.
    pub(super) fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EMSGSIZE)?;
        // SAFETY: the kernel writes at most `len` bytes, and that is the buffer's length.
        let result = unsafe {
            libc::getsockopt(self.socket.as_raw_fd(), self.level, option, buffer.as_mut_ptr().cast(), &raw mut len)
        };
        Errno::result(result).map(drop)
    }

    /// Hands `buffer` to the kernel.
    pub(super) fn set(&self, option: libc::c_int, buffer: &[u8]) -> Result<(), Errno> {
        let len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EMSGSIZE)?;
        // SAFETY: the kernel reads `len` bytes, the buffer's length. A table replacement also holds the address of a
        // counter buffer: `Sockopt::replace` alone makes one, and keeps that buffer alive through the call.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), self.level, option, buffer.as_ptr().cast(), len) };
        Errno::result(result).map(drop)
    }

    /// Replaces a table. The kernel writes the old table's counters, of which there are `old_count`, and they are given
    /// back: packets and bytes of each entry.
    pub(super) fn replace(
        &self,
        option: libc::c_int,
        replacement: impl FnOnce(u64) -> Vec<u8>,
        old_count: usize,
    ) -> Result<Vec<[u64; 2]>, Errno> {
        let mut counters = vec![[0_u64; 2]; old_count];
        let buffer = replacement(counters.as_mut_ptr() as u64);
        self.set(option, &buffer)?;
        Ok(counters)
    }
}
