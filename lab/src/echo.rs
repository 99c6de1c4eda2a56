//! The tiny server of each pod: UDP echo and TCP echo (port 7), and HTTP (port 80) that answers who it saw.
//!
//! Sockets are opened inside the pod's namespace; the threads that serve them are ordinary ones. Dropping the server
//! wakes and joins them all, so nothing keeps the namespace alive.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;
use crate::sockopt;

/// Where TCP and UDP echo listen: the port RFC 862 gives them.
pub const ECHO_PORT: u16 = 7;
/// Where HTTP listens.
pub const HTTP_PORT: u16 = 80;
/// The bytes of a UDP probe that carry its number: always echoed, also when the rest no longer fits the path.
pub(crate) const PROBE_HEADER: usize = 16;

/// A running server.
#[derive(Debug)]
pub struct Echo {
    stop: Option<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

/// The read end of a pipe nobody writes to: readable (hung up) once the server is to stop.
type Stopped = Arc<OwnedFd>;

/// What a listener does with one connection.
type Conversation = Arc<dyn Fn(TcpStream, &Stopped) + Send + Sync>;

impl Echo {
    /// Serves in `netns`, answering HTTP as `name`.
    pub fn serve(netns: &Netns, name: &str) -> Result<Self> {
        let (udp, tcp, http) = netns
            .run(|| -> std::io::Result<_> {
                let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                let udp = UdpSocket::bind(any(ECHO_PORT))?;
                sockopt::dont_fragment(&udp)?;
                sockopt::hold_bursts(&udp)?;
                Ok((udp, TcpListener::bind(any(ECHO_PORT))?, TcpListener::bind(any(HTTP_PORT))?))
            })?
            .with_context(|| format!("opening the echo server's sockets in {}", netns.name()))?;
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let stopped = Arc::new(stopped);
        let name: Arc<str> = name.into();
        let mut threads = vec![spawn(&format!("{name}-udp"), {
            let stopped = stopped.clone();
            move || serve_udp(&udp, &stopped)
        })?];
        let answer: Conversation = Arc::new(echo_stream);
        threads.push(listen(format!("{name}-tcp"), tcp, &stopped, answer)?);
        let answer = {
            let name = name.clone();
            Arc::new(move |stream: TcpStream, stopped: &Stopped| answer_http(stream, &name, stopped))
        };
        threads.push(listen(format!("{name}-http"), http, &stopped, answer)?);
        Ok(Self { stop: Some(stop), threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // A panic in it has been printed already; here only its end matters.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work).context("starting a thread of the echo server")
}

/// Waits until `fd` can be read; false once the server is to stop.
fn readable(fd: BorrowedFd<'_>, stopped: &Stopped) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return fds[1].revents().is_none_or(|r| r.is_empty()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

fn serve_udp(socket: &UdpSocket, stopped: &Stopped) {
    let mut buffer = [0; 65536];
    while readable(socket.as_fd(), stopped) {
        // An error here belongs to an earlier reply (ICMP unreachable) and not to what comes next.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        if socket.send_to(&buffer[..length], peer).is_err() {
            // Most likely the way back has narrowed: answer with what names the probe. Loss is the prober's to count.
            let _ = socket.send_to(&buffer[..length.min(PROBE_HEADER)], peer);
        }
    }
}

fn listen(name: String, listener: TcpListener, stopped: &Stopped, answer: Conversation) -> Result<JoinHandle<()>> {
    let stopped = stopped.clone();
    spawn(&name.clone(), move || {
        let mut connections: Vec<JoinHandle<()>> = Vec::new();
        while readable(listener.as_fd(), &stopped) {
            let Ok((stream, _)) = listener.accept() else { continue };
            connections.retain(|c| !c.is_finished());
            let (answer, stopped) = (answer.clone(), stopped.clone());
            connections.extend(spawn(&name, move || answer(stream, &stopped)));
        }
        for connection in connections {
            let _ = connection.join();
        }
    })
}

fn echo_stream(mut stream: TcpStream, stopped: &Stopped) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 65536];
    while readable(stream.as_fd(), stopped) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        }
    }
}

/// One request a connection: reads its head, answers `NAME sees ADDRESS`.
fn answer_http(mut stream: TcpStream, name: &str, stopped: &Stopped) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > 65536 || !readable(stream.as_fd(), stopped) {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
        }
    }
    let body = format!("{name} sees {}\n", unmapped(peer.ip()));
    // The client may be gone already, which is its own affair.
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// A v4 peer of a dual-stack socket, as itself.
fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}
