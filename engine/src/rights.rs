//! Descriptors that go along with words on a Unix socket (unix(7), SCM_RIGHTS).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends a word, with a descriptor or without.
///
/// # Errors
/// The kernel's: nobody reads any more.
pub fn send(socket: &impl AsFd, word: &[u8], fd: Option<&OwnedFd>) -> nix::Result<()> {
    let fds: Vec<i32> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(word)], rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// How much came, and what came with it.
///
/// # Errors
/// The kernel's.
pub fn receive(socket: &impl AsFd, word: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut room = cmsg_space!([i32; 4]);
    loop {
        let mut iov = [IoSliceMut::new(word)];
        match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(message) => return Ok((message.bytes, owned(message.cmsgs()?).pop())),
        }
    }
}

#[allow(unsafe_code, reason = "received descriptors come as numbers")]
fn owned(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let numbers = messages.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
        _ => None,
    });
    // SAFETY: the kernel has just made these descriptors for us, and nobody else knows their numbers.
    numbers.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}
