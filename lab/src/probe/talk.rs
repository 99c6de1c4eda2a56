//! One open connection, asked again and again whether it still carries anything: what a policy that is taken back must
//! end, and what nothing else may.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Pair;
use crate::echo::{ECHO_PORT, PROBE_HEADER};
use crate::netns::Family;

/// What carries the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// Datagrams between two ports.
    Udp,
}

/// A connection between a pod and another one's echo server.
#[derive(Debug)]
pub struct Talk {
    name: String,
    socket: Socket,
    words: u64,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Transport {
    /// Both.
    pub const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];
}

impl Talk {
    /// Opens one and has its first word answered; an error after so long.
    pub fn open((from, to): &Pair, family: Family, by: Transport, within: Duration) -> Result<Self> {
        let name = format!("{} → {} {family} {by:?}", from.name, to.name);
        let server = SocketAddr::new(to.address(family), ECHO_PORT);
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let open = || -> std::io::Result<Socket> {
            match by {
                Transport::Tcp => {
                    let stream = TcpStream::connect_timeout(&server, within)?;
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }
                Transport::Udp => {
                    let socket = UdpSocket::bind((any, 0))?;
                    socket.connect(server)?;
                    Ok(Socket::Udp(socket))
                }
            }
        };
        let socket = from.netns.run(open)?.with_context(|| format!("opening {name}"))?;
        let mut talk = Self { name, socket, words: 0 };
        ensure!(talk.carries(within), "no answer on {} within {within:?}", talk.name);
        Ok(talk)
    }

    /// Who talks to whom.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a new word is answered within that time. Answers to words from before do not count.
    pub fn carries(&mut self, within: Duration) -> bool {
        self.words += 1;
        let mut word = [0; PROBE_HEADER];
        word[..8].copy_from_slice(&self.words.to_be_bytes());
        let until = Instant::now() + within;
        if self.say(&word).is_err() {
            return false;
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match self.hear(left) {
                Ok(answer) if answer == word => return true,
                Ok(_) => {}
                // Silent, reset, refused, or told that there is no way: it carries nothing.
                Err(_) => return false,
            }
        }
    }

    fn say(&mut self, word: &[u8]) -> std::io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.write_all(word),
            Socket::Udp(socket) => socket.send(word).map(drop),
        }
    }

    fn hear(&mut self, left: Duration) -> std::io::Result<[u8; PROBE_HEADER]> {
        let mut answer = [0; PROBE_HEADER];
        match &mut self.socket {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.read_exact(&mut answer)?;
            }
            Socket::Udp(socket) => {
                socket.set_read_timeout(Some(left))?;
                socket.recv(&mut answer)?;
            }
        }
        Ok(answer)
    }
}
