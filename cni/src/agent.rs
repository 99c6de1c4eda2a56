//! One request to the agent over its Unix socket, and its reply; blocking, with one deadline over all of it.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use tartan_api::socket::{FrameError, Reply, Request, body_length, decode, encode};

/// Why there is no reply.
pub(crate) enum Failure {
    /// Nobody listens.
    Down(io::Error),
    /// The connection broke before the reply.
    Lost(io::Error),
    /// The deadline passed.
    Slow,
    /// The other side speaks something else.
    Garbage(FrameError),
}

impl Failure {
    /// There is no agent: not before, or not any more.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self, Failure::Down(_) | Failure::Lost(_))
    }
}

/// Asks and waits.
pub(crate) fn ask(path: &Path, request: &Request, netns: Option<&File>, until: Instant) -> Result<Reply, Failure> {
    let frame = encode(request).map_err(Failure::Garbage)?;
    let mut stream = dial(path, until)?;
    send(&stream, &frame, netns.map(AsRawFd::as_raw_fd))?;
    let mut header = [0; 4];
    receive(&mut stream, &mut header, until)?;
    let mut body = vec![0; body_length(header).map_err(Failure::Garbage)?];
    receive(&mut stream, &mut body, until)?;
    decode(&body).map_err(Failure::Garbage)
}

/// Connects. A listener whose backlog is full makes it wait, which the send timeout bounds.
fn dial(path: &Path, until: Instant) -> Result<UnixStream, Failure> {
    let down = |errno: Errno| match errno {
        Errno::EAGAIN => Failure::Slow,
        errno => Failure::Down(errno.into()),
    };
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(down)?;
    let left = TimeVal::new(left(until)?.as_secs().cast_signed() + 1, 0);
    setsockopt(&stream, SendTimeout, &left).map_err(down)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path).map_err(down)?).map_err(down)?;
    Ok(stream.into())
}

/// Sends everything, the descriptor with the first byte.
fn send(stream: &UnixStream, frame: &[u8], netns: Option<RawFd>) -> Result<(), Failure> {
    let descriptors: Vec<RawFd> = netns.into_iter().collect();
    let mut rest = frame;
    while !rest.is_empty() {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let with_first = if rest.len() == frame.len() && netns.is_some() { &rights[..] } else { &[] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(rest)], with_first, flags, None) {
            Ok(sent) => rest = &rest[sent..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Failure::Slow),
            Err(errno) => return Err(Failure::Lost(errno.into())),
        }
    }
    Ok(())
}

fn receive(stream: &mut UnixStream, mut rest: &mut [u8], until: Instant) -> Result<(), Failure> {
    while !rest.is_empty() {
        stream.set_read_timeout(Some(left(until)?)).map_err(Failure::Lost)?;
        match stream.read(rest) {
            Ok(0) => return Err(Failure::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => rest = &mut rest[read..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Failure::Slow),
            Err(error) => return Err(Failure::Lost(error)),
        }
    }
    Ok(())
}

fn left(until: Instant) -> Result<Duration, Failure> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::Slow) } else { Ok(left) }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Down(error) => write!(f, "is not running: {error}"),
            Failure::Lost(error) => write!(f, "went away before it answered: {error}"),
            Failure::Slow => write!(f, "did not answer in {} s", crate::PATIENCE.as_secs()),
            Failure::Garbage(error) => write!(f, "cannot be talked to: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Asks a listener that never answers; `ahead` others have not been accepted either.
    fn check_slow(ahead: usize) {
        let path = std::env::temp_dir().join(format!("tartan-cni-slow-{}-{ahead}", std::process::id()));
        let _leftover = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let others: Vec<_> = (0..ahead).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let start = Instant::now();
        let answer = ask(&path, &Request::Status, None, start + Duration::from_millis(100));
        assert!(matches!(answer, Err(Failure::Slow)), "{}", answer.err().map(|e| e.to_string()).unwrap_or_default());
        assert!((100..5_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        drop((listener, others));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_agent_that_never_answers_is_given_up_in_time() {
        check_slow(0);
    }

    #[test]
    fn an_agent_that_never_accepts_is_given_up_in_time() {
        // One more than the backlog that the standard library asks for.
        let backlog: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        check_slow(backlog.min(128) + 1);
    }
}
