//! Servers that answer with the address they were called from, and clients that ask them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::Netns;

/// How long a client waits that should be answered: long enough for one retransmission, as when a neighbour was not
/// known yet.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a client waits that should not be answered; on one machine an answer takes microseconds.
const IMPATIENCE: Duration = Duration::from_millis(300);

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
        let tcp = TcpListener::bind(at).unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                // The client may have given up by now.
                let _ = stream.write_all(peer.to_string().as_bytes());
            }
        });
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
