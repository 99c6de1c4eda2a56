//! Load between two namespaces, client on processor 0 and server on processor 1: one number a run.
//!
//! Throughput (tcp, pps) is counted where it arrives. Every server gives up when nobody comes, so a run that fails on
//! the client's side ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use tartan_lab::Netns;

/// Length of a timed run.
const RUN: Duration = Duration::from_millis(250);
/// Connections of one CRR run; all runs together stay below the number of ephemeral ports.
const CONNECTIONS: u32 = 3_000;
/// Bytes of a write of the TCP stream.
const CHUNK: usize = 128 * 1024;
/// Bytes of a datagram of the packet rate.
const DATAGRAM: usize = 64;
/// After this long without a datagram a flood is over.
const QUIET: Duration = Duration::from_millis(100);
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;

/// Who sends to whom.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    pub(crate) address: Ipv4Addr,
}

impl Pair {
    /// `tcp`: Gbit/s of one stream. `rr`: p50 in µs of one byte there and back on one connection. `crr`: connections a
    /// second, each opened, used for one byte there and back and closed. `pps`: 64-byte datagrams received a second.
    pub(crate) fn measure(&self, what: &str) -> Result<f64> {
        match what {
            "tcp" => self.tcp(receive_stream, send_stream).map(|(rate, ())| rate),
            "rr" => self.tcp(echo, round_trips).map(|((), p50)| p50),
            "crr" => self.tcp(echo_connections, connections).map(|((), rate)| rate),
            "pps" => self.pps(),
            other => bail!("`{other}` is no load; there are tcp, rr, crr and pps"),
        }
    }

    /// The same, and how long it took.
    pub(crate) fn timed(&self, what: &str) -> Result<(f64, Duration)> {
        let start = Instant::now();
        Ok((self.measure(what)?, start.elapsed()))
    }

    fn tcp<S: Send, C: Send>(
        &self,
        serve: impl FnOnce(&TcpListener) -> Result<S> + Send,
        ask: impl FnOnce(SocketAddr) -> Result<C> + Send,
    ) -> Result<(S, C)> {
        let listener = self.server.run(|| TcpListener::bind((self.address, 0)))??;
        setsockopt(&listener, ReceiveTimeout, &TimeVal::new(5, 0))?;
        let to = listener.local_addr()?;
        self.both(move || serve(&listener), move || ask(to))
    }

    fn pps(&self) -> Result<f64> {
        let server = self.server.run(|| UdpSocket::bind((self.address, 0)))??;
        let to = server.local_addr()?;
        self.both(move || receive_flood(&server), move || send_flood(to)).map(|(rate, ())| rate)
    }

    fn both<S: Send, C: Send>(
        &self,
        serve: impl FnOnce() -> Result<S> + Send,
        ask: impl FnOnce() -> Result<C> + Send,
    ) -> Result<(S, C)> {
        std::thread::scope(|scope| {
            let server = scope.spawn(|| self.server.run(|| pinned(SERVER_CPU, serve))?);
            let asked = self.client.run(|| pinned(CLIENT_CPU, ask))?;
            let served = joined(server);
            // A client that failed is why its server waited in vain.
            let asked = asked.context("client")?;
            Ok((served.context("server")?, asked))
        })
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pinned<T>(cpu: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("pinning to processor {cpu} (two are needed)"))?;
    work()
}

fn receive_stream(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; CHUNK];
    let (start, mut bytes) = (Instant::now(), 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read,
        }
    }
    Ok(bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}

fn send_stream(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    while start.elapsed() < RUN {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn echo(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn round_trips(to: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < RUN {
        let asked = Instant::now();
        there_and_back(&mut stream)?;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}

fn there_and_back(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn echo_connections(listener: &TcpListener) -> Result<()> {
    for _ in 0..CONNECTIONS {
        echo(listener)?;
    }
    Ok(())
}

fn connections(to: SocketAddr) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        there_and_back(&mut stream)?;
    }
    Ok(f64::from(CONNECTIONS) / start.elapsed().as_secs_f64())
}

fn send_flood(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let start = Instant::now();
    while start.elapsed() < RUN {
        socket.send(&[0; DATAGRAM])?;
    }
    Ok(())
}

fn receive_flood(socket: &UdpSocket) -> Result<f64> {
    let mut buffer = [0; DATAGRAM];
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.recv(&mut buffer).context("the first datagram")?;
    socket.set_read_timeout(Some(QUIET))?;
    let (start, mut count) = (Instant::now(), 0_u32);
    let mut last = start;
    while socket.recv(&mut buffer).is_ok() {
        count += 1;
        last = Instant::now();
    }
    ensure!(count > 0, "one datagram arrived, and no other");
    Ok(f64::from(count) / (last - start).as_secs_f64())
}
