//! Descriptors that another process passes over a Unix socket (SCM_RIGHTS, unix(7)).

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// The most that one message can carry (the kernel's SCM_MAX_FD). With less room the rest would stay open, unnamed.
const MOST: usize = 253;

/// Reads what there is, up to the length of `bytes`, and the first descriptor that came with it; others are closed.
/// 0 bytes: the other side will send no more.
#[expect(unsafe_code, reason = "a descriptor that was passed has no owner yet")]
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut control = nix::cmsg_space!([i32; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut passed = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
            passed.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, passed.into_iter().next()))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[track_caller]
    fn check(descriptors: &[i32], arrives: bool) {
        let (here, there) = UnixStream::pair().unwrap();
        let rights = [ControlMessage::ScmRights(descriptors)];
        let with = if descriptors.is_empty() { &[] } else { &rights[..] };
        sendmsg::<UnixAddr>(there.as_raw_fd(), &[IoSlice::new(b"hello")], with, MsgFlags::empty(), None).unwrap();
        let mut bytes = [0; 8];
        let (length, passed) = receive(here.as_fd(), &mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"hello");
        assert_eq!(passed.is_some(), arrives);
        drop(there);
        assert_eq!(receive(here.as_fd(), &mut bytes).map(|(length, _)| length), Ok(0));
    }

    #[test]
    fn bytes_come_with_and_without_descriptors() {
        let (read, _write) = std::io::pipe().unwrap();
        let fd = read.as_raw_fd();
        check(&[], false);
        check(&[fd], true);
    }

    #[test]
    fn the_first_of_many_arrives_and_the_others_are_closed() {
        let (mut read, write) = std::io::pipe().unwrap();
        check(&[write.as_raw_fd(); 7], true);
        drop(write);
        // The end of the pipe is seen only when no copy of its other end is left open.
        assert_eq!(read.read(&mut [0; 1]).unwrap(), 0);
    }
}
