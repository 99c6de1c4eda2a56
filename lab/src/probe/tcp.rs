//! TCP through an event: bulk streams that never stop, and idle connections that must still answer at its end.
//!
//! Retransmits and resets are read from the counters of every namespace involved (RFC 4022 `tcpRetransSegs`), so both
//! ends of a stream are counted.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Pair, StopFlag, pause};
use crate::echo::ECHO_PORT;
use crate::netns::{Family, Netns};

/// Bytes sent and read back in one exchange.
const CHUNK: usize = 64 * 1024;
/// Between exchanges: six streams then carry some 100 MB/s and leave the cores to the network.
const BREATH: Duration = Duration::from_millis(3);
/// A stream silent for so long is broken, whatever TCP still hopes for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that run through an event.
#[derive(Debug)]
pub(super) struct Streams {
    stop: StopFlag,
    bulk: Vec<JoinHandle<Bulk>>,
    idle: Vec<(String, TcpStream)>,
    netns: Vec<Netns>,
    retransmits_before: u64,
}

#[derive(Debug, Default)]
struct Bulk {
    name: String,
    bytes: u64,
    resets: u64,
    broken: Vec<String>,
    longest_gap: Duration,
}

/// What the connections went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpReport {
    /// Bulk streams that ran.
    pub bulk: usize,
    /// Idle connections that were held.
    pub idle: usize,
    /// Bytes echoed and compared, over all streams.
    pub bytes: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Segments sent again, by either end.
    pub retransmits: u64,
    /// The longest time one exchange of 64 KiB took.
    pub longest_gap: Duration,
    /// On which stream.
    pub gap_on: String,
    /// One line for everything else that broke: silence, wrong bytes, no new connection.
    pub broken: Vec<String>,
}

impl Streams {
    pub(super) fn start(bulk: &[Pair], idle: &[Pair]) -> Result<Self> {
        let mut netns: Vec<Netns> = Vec::new();
        for end in bulk.iter().chain(idle).flat_map(|(from, to)| [&from.netns, &to.netns]) {
            if !netns.contains(end) {
                netns.push(end.clone());
            }
        }
        let retransmits_before = retransmits(&netns)?;
        let stop = StopFlag::default();
        let mut streams = Vec::new();
        // Families take turns: as many streams as pairs, half of them in each family.
        for (pair, family) in bulk.iter().zip(Family::BOTH.into_iter().cycle()) {
            streams.push(start_bulk(pair.clone(), family, stop.shared())?);
        }
        let mut held = Vec::new();
        for pair in idle {
            for family in Family::BOTH {
                let name = format!("{} → {} {family} idle", pair.0.name, pair.1.name);
                let mut stream = connect(pair, family).with_context(|| format!("connecting {name}"))?;
                exchange(&mut stream, b"before").with_context(|| format!("the first words on {name}"))?;
                held.push((name, stream));
            }
        }
        Ok(Self { stop, bulk: streams, idle: held, netns, retransmits_before })
    }

    pub(super) fn stop(self) -> Result<TcpReport> {
        self.stop.raise();
        let mut report = TcpReport { bulk: self.bulk.len(), idle: self.idle.len(), ..TcpReport::default() };
        for stream in self.bulk {
            report.add(stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        for (name, mut stream) in self.idle {
            if let Err(error) = exchange(&mut stream, b"after") {
                report.failed(&name, &error);
            }
        }
        report.retransmits = retransmits(&self.netns)?.saturating_sub(self.retransmits_before);
        Ok(report)
    }
}

impl TcpReport {
    fn add(&mut self, stream: Bulk) {
        self.bytes += stream.bytes;
        self.resets += stream.resets;
        self.broken.extend(stream.broken);
        if stream.longest_gap > self.longest_gap {
            self.longest_gap = stream.longest_gap;
            self.gap_on = stream.name;
        }
    }

    fn failed(&mut self, name: &str, error: &io::Error) {
        match is_reset(error) {
            true => self.resets += 1,
            false => self.broken.push(format!("{name}: {error}")),
        }
    }
}

impl fmt::Display for TcpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bulk, idle, bytes, resets, retransmits, .. } = self;
        write!(f, "TCP: {bulk} streams carried {} MB, {idle} idle; ", bytes / 1_000_000)?;
        write!(f, "resets {resets}, retransmits {retransmits}")?;
        if self.bulk > 0 {
            write!(f, ", longest gap {:.1} ms ({})", self.longest_gap.as_secs_f64() * 1e3, self.gap_on)?;
        }
        for line in &self.broken {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

fn start_bulk(pair: Pair, family: Family, stop: Arc<AtomicBool>) -> Result<JoinHandle<Bulk>> {
    let name = format!("{} → {} {family} bulk", pair.0.name, pair.1.name);
    let mut stream = connect(&pair, family).with_context(|| format!("connecting {name}"))?;
    let work = move || {
        let mut bulk = Bulk { name, ..Bulk::default() };
        while !stop.load(Ordering::Relaxed) {
            match bulk.run(&mut stream, &stop) {
                Ok(()) => break,
                Err(error) if is_reset(&error) => bulk.resets += 1,
                Err(error) => bulk.broken.push(format!("{}: {error}", bulk.name)),
            }
            match connect(&pair, family) {
                Ok(new) => stream = new,
                Err(error) => {
                    bulk.broken.push(format!("{}: no new connection: {error:#}", bulk.name));
                    break;
                }
            }
        }
        bulk
    };
    Ok(std::thread::Builder::new().name("probe-tcp".into()).spawn(work)?)
}

impl Bulk {
    fn run(&mut self, stream: &mut TcpStream, stop: &AtomicBool) -> io::Result<()> {
        let chunk: Vec<u8> = (0..CHUNK).map(|i| (i * 31 % 251) as u8).collect();
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            exchange(stream, &chunk)?;
            self.longest_gap = self.longest_gap.max(start.elapsed());
            self.bytes += chunk.len() as u64;
            pause(BREATH);
        }
        Ok(())
    }
}

fn connect((from, to): &Pair, family: Family) -> Result<TcpStream> {
    let to = SocketAddr::new(to.address(family), ECHO_PORT);
    let stream = from.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `bytes` and reads them back.
fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, format!("silent for {} s", PATIENCE.as_secs())),
        _ => error,
    })?;
    if answer != bytes {
        return Err(io::Error::new(ErrorKind::InvalidData, "the echo differs from what was sent"));
    }
    Ok(())
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

/// TCP segments sent again, over all the namespaces.
fn retransmits(netns: &[Netns]) -> Result<u64> {
    netns
        .iter()
        .map(|n| n.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?.map_err(Into::into))
        .try_fold(0, |sum, snmp: Result<String>| {
            Ok(sum + retrans_segs(&snmp?).context("RetransSegs in /proc/net/snmp")?)
        })
}

/// `Tcp:` comes twice: a line of names, then a line of values.
fn retrans_segs(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split(' ').position(|name| name == "RetransSegs")?;
    values.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmits_are_found_by_name_not_by_place() {
        let check = |snmp: &str, want| assert_eq!(retrans_segs(snmp), want, "{snmp}");
        check("Ip: Forwarding\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 17 0\n", Some(17));
        check("Tcp: RtoMin InErrs\nTcp: 200 0\n", None);
        check("Tcp: RtoMin RetransSegs\n", None);
        check("", None);
    }
}
