//! Servers that answer with the address they were called from, or never stop, and clients that ask them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

/// How long a client waits that should be answered: long enough for some retransmissions, as when a neighbour was not known
/// yet and the machine is busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits that should not be answered; on one machine an answer takes microseconds.
const IMPATIENCE: Duration = Duration::from_millis(300);
/// For an answer that may come or not, and which is wanted depends on the case.
const A_WHILE: Duration = Duration::from_secs(1);

/// The transport a question goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Udp,
}

/// Answers at `at`, TCP and UDP, until the process ends. `[::]` stands for IPv4 too.
pub fn serve(netns: &Netns, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    netns.run(move || {
        answer_each(TcpListener::bind(at).unwrap());
        let udp = UdpSocket::bind(at).unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 64];
            loop {
                let (_, peer) = udp.recv_from(&mut question).unwrap();
                let _ = udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
            }
        });
    });
}

/// Answers SCTP at `at`.
pub fn serve_sctp(netns: &Netns, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    netns.run(move || {
        let socket = sctp(&at).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(16).unwrap();
        answer_each(socket.into());
    });
}

/// Tells whoever connects how it is seen.
fn answer_each(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            // The client may have given up by now.
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// One-to-one, which is used as TCP is (RFC 6458, section 4).
fn sctp(of: &SocketAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(*of), Type::STREAM, Some(Protocol::from(nix::libc::IPPROTO_SCTP)))
}

/// The address under which the server at `to` sees who asks it over SCTP from `netns`; or why there was no answer.
pub fn ask_sctp(netns: &Netns, to: &str, is_answered: bool) -> Result<String, String> {
    let to: SocketAddr = to.parse().unwrap();
    let patience = if is_answered { PATIENCE } else { IMPATIENCE };
    netns.run(move || {
        let mut answer = String::new();
        let asked = sctp(&to).and_then(|socket| {
            socket.connect_timeout(&to.into(), patience)?;
            socket.set_read_timeout(Some(patience))?;
            TcpStream::from(socket).read_to_string(&mut answer)
        });
        asked.map(|_| answer).map_err(|error| error.to_string())
    })
}

/// The address under which the server at `to` sees who asks from `netns`; or why there was no answer.
fn ask(netns: &Netns, over: Over, to: &str, patience: Duration) -> Result<String, String> {
    let to: SocketAddr = to.parse().unwrap();
    netns.run(move || {
        let mut answer = String::new();
        let asked = match over {
            Over::Tcp => TcpStream::connect_timeout(&to, patience).and_then(|mut stream| {
                stream.set_read_timeout(Some(patience))?;
                stream.read_to_string(&mut answer)
            }),
            Over::Udp => ask_udp(to, patience).map(|text| {
                answer = text;
                0
            }),
        };
        asked.map(|_| answer).map_err(|error| error.to_string())
    })
}

fn ask_udp(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    socket.send(b"who am I?")?;
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

/// `from` gets an answer at `to`, from somebody who sees it as `seen`.
#[track_caller]
pub fn sees(from: &Netns, over: Over, to: &str, seen: &str) {
    assert_eq!(ask(from, over, to, PATIENCE).as_deref(), Ok(seen), "{over:?} to {to}");
}

/// `from` gets no answer at `to`.
#[track_caller]
pub fn refused(from: &Netns, over: Over, to: &str) {
    let answer = ask(from, over, to, IMPATIENCE);
    assert!(answer.is_err(), "{over:?} to {to}: answered {answer:?}");
}

/// A client that always asks from the same port, as resolvers and games do.
pub struct Persistent(UdpSocket);

impl Persistent {
    /// Speaks to `to` and to nobody else.
    pub fn new(netns: &Netns, to: &str) -> Persistent {
        let to = to.to_owned();
        Persistent(netns.run(move || {
            let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            socket.set_read_timeout(Some(A_WHILE)).unwrap();
            socket.connect(&to).unwrap();
            socket
        }))
    }

    /// Asks, and waits for a moment.
    pub fn is_answered(&self) -> bool {
        let mut answer = [0; 64];
        // What is left over from earlier: an answer, or "port unreachable".
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut answer).is_ok() {}
        let _ = self.0.take_error();
        self.0.set_nonblocking(false).unwrap();
        self.0.send(b"who am I?").is_ok() && self.0.recv(&mut answer).is_ok()
    }
}

/// Something that sends for ever, heard at its end.
pub enum Stream {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Stream {
    /// What the server at `to` never stops sending, once `from` has asked it to.
    pub fn down(from: &Netns, over: Over, server: &Netns, to: &str) -> Stream {
        let at: SocketAddr = to.parse().unwrap();
        match over {
            Over::Tcp => {
                let listener = server.run(move || TcpListener::bind(at).unwrap());
                std::thread::spawn(move || pour(listener.accept().unwrap().0));
                Stream::Tcp(from.run(move || TcpStream::connect(at).unwrap()))
            }
            Over::Udp => {
                let socket = server.run(move || UdpSocket::bind(at).unwrap());
                let asking = from.run(move || UdpSocket::bind(any(at)).unwrap());
                asking.send_to(b"go", at).unwrap();
                std::thread::spawn(move || {
                    let (_, peer) = socket.recv_from(&mut [0; 64]).unwrap();
                    drip(&socket, peer);
                });
                Stream::Udp(asking)
            }
        }
    }

    /// What `from` never stops sending to `to`, of which nothing comes back but what TCP must say.
    pub fn up(from: &Netns, over: Over, server: &Netns, to: &str) -> Stream {
        let at: SocketAddr = to.parse().unwrap();
        match over {
            Over::Tcp => {
                let listener = server.run(move || TcpListener::bind(at).unwrap());
                let sending = from.run(move || TcpStream::connect(at).unwrap());
                std::thread::spawn(move || pour(sending));
                Stream::Tcp(listener.accept().unwrap().0)
            }
            Over::Udp => {
                let socket = server.run(move || UdpSocket::bind(at).unwrap());
                let sending = from.run(move || UdpSocket::bind(any(at)).unwrap());
                std::thread::spawn(move || drip(&sending, at));
                Stream::Udp(socket)
            }
        }
    }

    /// Whether anything arrives that was not on the way already.
    pub fn flows(&mut self) -> bool {
        let deadline = Instant::now() + IMPATIENCE;
        let mut buffer = vec![0; 1 << 20];
        let mut quiet = false;
        // What was on the way is here within microseconds, or, of TCP, waits to be read.
        while !quiet && Instant::now() < deadline {
            quiet = !self.hears(&mut buffer, Duration::from_millis(50));
        }
        !quiet || self.hears(&mut buffer, IMPATIENCE)
    }

    /// Waits until something arrives.
    pub fn goes_on(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.hears(&mut [0; 64], IMPATIENCE) {
            assert!(Instant::now() < deadline, "nothing arrives");
        }
    }

    fn hears(&mut self, buffer: &mut [u8], within: Duration) -> bool {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(within)).unwrap();
                stream.read(buffer).is_ok_and(|len| len > 0)
            }
            Stream::Udp(socket) => {
                socket.set_read_timeout(Some(within)).unwrap();
                socket.recv(buffer).is_ok()
            }
        }
    }
}

/// Until the other end is gone.
fn pour(mut stream: TcpStream) {
    while stream.write_all(&[7; 4096]).is_ok() {
        pace();
    }
}

/// Until nobody can be listening any more.
fn drip(socket: &UdpSocket, to: SocketAddr) {
    for _ in 0..20_000 {
        let _ = socket.send_to(b"more", to);
        pace();
    }
}

#[allow(clippy::disallowed_methods, reason = "how fast something is sent, not a wait for anything")]
fn pace() {
    std::thread::sleep(Duration::from_millis(1));
}

fn any(like: SocketAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}

/// What names our echo requests, and the answers to them.
const ECHO_ID: u16 = 0x7474;

/// Echo requests and answers of one end.
pub struct Echo {
    raw: UdpSocket,
    to: IpAddr,
}

impl Echo {
    /// Between `from` and `to`, and all other ICMP that `from` hears.
    pub fn between(from: &Netns, to: &str) -> Echo {
        let to: IpAddr = to.parse().unwrap();
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let open = move || UdpSocket::from(socket(family, SockType::Raw, SockFlag::empty(), protocol).unwrap());
        Echo { raw: from.run(open), to }
    }

    fn kinds(&self) -> [u8; 2] {
        if self.to.is_ipv4() { [8, 0] } else { [128, 129] }
    }

    /// Sends a request, or an answer.
    pub fn send(&self, is_answer: bool) {
        let kind = self.kinds()[usize::from(is_answer)];
        let [high, low] = ECHO_ID.to_be_bytes();
        // The kernel computes that of ICMPv6; that of this message of ICMP is what is missing to all ones.
        let sum = (!u16::from_be_bytes([kind, 0])).wrapping_sub(ECHO_ID).to_be_bytes();
        self.raw.send_to(&[kind, 0, sum[0], sum[1], high, low, 0, 0], SocketAddr::new(self.to, 0)).unwrap();
    }

    /// Whether an answer comes.
    pub fn is_answered(&self) -> bool {
        let deadline = Instant::now() + A_WHILE;
        let header = if self.to.is_ipv4() { 20 } else { 0 };
        let mut message = [0; 128];
        self.raw.set_read_timeout(Some(A_WHILE)).unwrap();
        while Instant::now() < deadline {
            let Ok(len) = self.raw.recv(&mut message) else { return false };
            let id = message.get(header + 4..header + 6);
            if len > header && message[header] == self.kinds()[1] && id == Some(&ECHO_ID.to_be_bytes()) {
                return true;
            }
        }
        false
    }
}

/// Asks by UDP for what nobody answers; what the socket is told of it.
pub fn ask_in_vain(pod: &Netns, to: &'static str) -> std::io::Error {
    pod.run(move || {
        let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
        socket.set_read_timeout(Some(A_WHILE)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err()
    })
}

/// Whether an ICMP echo request is answered.
pub fn pings(from: &Netns, to: &str) -> bool {
    let echo = Echo::between(from, to);
    echo.send(false);
    echo.is_answered()
}
