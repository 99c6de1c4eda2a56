//! UDP probes: on every flow one numbered datagram each interval, echoed back, never fragmented. What did not come
//! back is lost, wherever it was lost.
//!
//! One thread sends for all flows and one receives for all, so hundreds of flows cost two threads and the machine's two
//! cores are left to the network under test.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, poll};

use super::{Pair, StopFlag, pause};
use crate::echo::{ECHO_PORT, PROBE_HEADER};
use crate::netns::Family;
use crate::sockopt;

/// After the last probe, this long without any answer ends the wait for late ones.
const DRAIN: Duration = Duration::from_millis(500);

/// One socket that asks one echo server.
#[derive(Debug)]
struct Flow {
    name: String,
    family: Family,
    socket: UdpSocket,
    /// Probes as large as the path takes, instead of small ones.
    mtu_sized: bool,
}

/// A running flood.
#[derive(Debug)]
pub(super) struct Flood {
    flows: Arc<Vec<Flow>>,
    stop: StopFlag,
    answered: Arc<AtomicU64>,
    sender: JoinHandle<(Vec<Sent>, Vec<SystemTime>)>,
    receiver: JoinHandle<Vec<Received>>,
}

#[derive(Debug, Clone, Default)]
struct Sent {
    probes: u64,
    /// Probes the kernel would not send, and its last word.
    refused: u64,
    error: Option<String>,
}

#[derive(Debug, Clone)]
struct Received {
    /// Bit n: probe n was answered.
    answered: Vec<u64>,
    count: u64,
    duplicates: u64,
    last: Instant,
    longest_gap: Duration,
    slowest: Duration,
}

/// What a flood found, over all its flows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Flows that ran.
    pub flows: usize,
    /// Datagrams sent, or refused by the sender's kernel.
    pub probes: u64,
    /// Probes with no answer.
    pub lost: u64,
    /// Of the lost, those the sender's own kernel refused (no route, too big).
    pub refused: u64,
    /// Answers that came twice.
    pub duplicates: u64,
    /// The longest time between two answers on one flow.
    pub longest_gap: Duration,
    /// Where that was.
    pub gap_on: String,
    /// The slowest answer.
    pub slowest: Duration,
    /// One line for each flow that lost something.
    pub losses: Vec<String>,
}

impl Flow {
    fn open((from, to): &Pair, family: Family, mtu_sized: bool) -> Result<Self> {
        let any = match family {
            Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let size = if mtu_sized { ", MTU-sized" } else { "" };
        let name = format!("{} → {} {family}{size}", from.name, to.name);
        let open = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(any)?;
            socket.connect((to.address(family), ECHO_PORT))?;
            socket.set_nonblocking(true)?;
            sockopt::dont_fragment(&socket)?;
            sockopt::hold_bursts(&socket)?;
            Ok(socket)
        };
        let socket = from.netns.run(open)?.with_context(|| format!("opening the UDP probe {name}"))?;
        Ok(Self { name, family, socket, mtu_sized })
    }

    fn send(&self, number: u64, since_start: Duration, buffer: &mut [u8]) -> io::Result<()> {
        buffer[..8].copy_from_slice(&number.to_be_bytes());
        buffer[8..16].copy_from_slice(&(since_start.as_nanos() as u64).to_be_bytes());
        let mut tries = 3;
        loop {
            // An error can be the news of an earlier probe, or of a path that narrowed: then ask again.
            match self.size().and_then(|size| self.socket.send(&buffer[..size])) {
                Ok(_) => return Ok(()),
                Err(error) if tries == 1 => return Err(error),
                Err(_) => tries -= 1,
            }
        }
    }

    fn size(&self) -> io::Result<usize> {
        if !self.mtu_sized {
            return Ok(PROBE_HEADER);
        }
        let headers = match self.family {
            Family::V4 => 20 + 8,
            Family::V6 => 40 + 8,
        };
        Ok((sockopt::path_mtu(&self.socket, self.family)? - headers).min(BUFFER))
    }
}

/// The largest datagram we send: above any MTU of a lab.
const BUFFER: usize = 65_507;

// === impl Flood ===

impl Flood {
    pub(super) fn start(small: &[Pair], mtu_sized: &[Pair], interval: Duration) -> Result<Self> {
        let mut flows = Vec::new();
        for (pairs, sized) in [(small, false), (mtu_sized, true)] {
            for pair in pairs {
                for family in Family::BOTH {
                    flows.push(Flow::open(pair, family, sized)?);
                }
            }
        }
        let flows = Arc::new(flows);
        let stop = StopFlag::default();
        let answered = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let sender = spawn("probe-send", {
            let (flows, stop) = (flows.clone(), stop.shared());
            move || send_all(&flows, start, interval, &stop)
        })?;
        let receiver = spawn("probe-receive", {
            let (flows, stop, answered) = (flows.clone(), stop.shared(), answered.clone());
            move || receive_all(&flows, start, &stop, &answered)
        })?;
        Ok(Self { flows, stop, answered, sender, receiver })
    }

    /// Answers so far, over all flows.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) -> UdpReport {
        self.stop.raise();
        let (sent, sent_at) = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let received = self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut report = UdpReport { flows: self.flows.len(), ..UdpReport::default() };
        for ((flow, sent), received) in self.flows.iter().zip(&sent).zip(&received) {
            report.add(flow, sent, &sent_at, received);
        }
        report
    }
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(work).context("starting a probe thread")
}

/// What was sent on each flow, and when each number was.
fn send_all(flows: &[Flow], start: Instant, interval: Duration, stop: &AtomicBool) -> (Vec<Sent>, Vec<SystemTime>) {
    let mut sent_at = Vec::new();
    let mut sent = vec![Sent::default(); flows.len()];
    let mut buffer = vec![0; BUFFER];
    let mut due = Instant::now();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sent_at.push(SystemTime::now());
        for (flow, sent) in flows.iter().zip(&mut sent) {
            sent.probes += 1;
            if let Err(error) = flow.send(number, start.elapsed(), &mut buffer) {
                sent.refused += 1;
                sent.error = Some(error.to_string());
            }
        }
        due += interval;
        match due.checked_duration_since(Instant::now()) {
            Some(early) => pause(early),
            // Behind schedule: go on from here. Catching up in a burst would measure the burst.
            None => due = Instant::now(),
        }
    }
    (sent, sent_at)
}

fn receive_all(flows: &[Flow], start: Instant, stop: &AtomicBool, answered: &AtomicU64) -> Vec<Received> {
    let mut received: Vec<Received> = flows.iter().map(|_| Received::since(start)).collect();
    let mut fds: Vec<PollFd<'_>> = flows.iter().map(|f| PollFd::new(f.socket.as_fd(), PollFlags::POLLIN)).collect();
    let mut quiet_since = None;
    loop {
        let ready = poll(&mut fds, 20u8).unwrap_or(0);
        let new: u64 = if ready == 0 {
            0
        } else {
            let ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
            let flows = flows.iter().zip(&mut received).zip(ready);
            flows.filter(|(_, ready)| *ready).map(|((flow, received), _)| received.drain(&flow.socket, start)).sum()
        };
        answered.fetch_add(new, Ordering::Relaxed);
        if !stop.load(Ordering::Relaxed) {
            continue;
        }
        // Stopped: late answers still count, until none came for a while.
        let since = *quiet_since.get_or_insert_with(Instant::now);
        if new > 0 {
            quiet_since = None;
        } else if since.elapsed() > DRAIN {
            return received;
        }
    }
}

// === impl Received ===

impl Received {
    fn since(start: Instant) -> Self {
        let zero = Duration::ZERO;
        Self { answered: Vec::new(), count: 0, duplicates: 0, last: start, longest_gap: zero, slowest: zero }
    }

    /// Takes what waits in the socket; gives the number of new answers.
    fn drain(&mut self, socket: &UdpSocket, start: Instant) -> u64 {
        let mut header = [0; PROBE_HEADER];
        let before = self.count;
        loop {
            match socket.recv(&mut header) {
                Ok(PROBE_HEADER) => self.take(&header, start),
                // Not ours, or the news of an earlier probe (ICMP unreachable): a loss is seen by its number missing.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.count - before,
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, header: &[u8; PROBE_HEADER], start: Instant) {
        let word = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (number, asked) = (word(0), Duration::from_nanos(word(8)));
        let (index, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.answered.len() <= index {
            self.answered.resize(index + 1, 0);
        }
        if self.answered[index] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        self.answered[index] |= bit;
        self.count += 1;
        let now = Instant::now();
        self.longest_gap = self.longest_gap.max(now - self.last);
        self.last = now;
        self.slowest = self.slowest.max(start.elapsed().saturating_sub(asked));
    }

    /// The first and last probe of `probes` without an answer.
    fn missing(&self, probes: u64) -> Option<(u64, u64)> {
        let answered = |n: &u64| self.answered.get((n / 64) as usize).is_some_and(|w| w & (1 << (n % 64)) != 0);
        let first = (0..probes).find(|n| !answered(n))?;
        let last = (0..probes).rev().find(|n| !answered(n))?;
        Some((first, last))
    }
}

// === impl UdpReport ===

impl UdpReport {
    /// `sent_at`: when each number was sent, by the clock that agents' logs go by.
    fn add(&mut self, flow: &Flow, sent: &Sent, sent_at: &[SystemTime], received: &Received) {
        self.probes += sent.probes;
        self.refused += sent.refused;
        self.duplicates += received.duplicates;
        self.slowest = self.slowest.max(received.slowest);
        if received.longest_gap > self.longest_gap {
            self.longest_gap = received.longest_gap;
            self.gap_on = flow.name.clone();
        }
        let lost = sent.probes - received.count;
        self.lost += lost;
        if let Some((first, last)) = received.missing(sent.probes) {
            let error = sent.error.as_ref().map(|e| format!(", {} refused: {e}", sent.refused)).unwrap_or_default();
            let at = |number: u64| clock(sent_at[number as usize]);
            let when = format!("numbers {first} to {last}, sent {} to {}", at(first), at(last));
            self.losses.push(format!("{}: lost {lost} of {} ({when}){error}", flow.name, sent.probes));
        }
    }
}

/// The time of day, to the millisecond, as in an agent's log.
fn clock(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (day, millis) = (since.as_secs() % 86_400, since.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}", day / 3600, day / 60 % 60, day % 60)
}

impl fmt::Display for UdpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        write!(f, "UDP: {} probes on {} flows, lost {}", self.probes, self.flows, self.lost)?;
        if self.refused > 0 {
            write!(f, " ({} refused by the sender's kernel)", self.refused)?;
        }
        if self.probes > 0 {
            write!(f, ", longest gap {:.1} ms ({})", ms(self.longest_gap), self.gap_on)?;
            write!(f, ", slowest answer {:.1} ms", ms(self.slowest))?;
        }
        for loss in &self.losses {
            write!(f, "\n  {loss}")?;
        }
        Ok(())
    }
}
