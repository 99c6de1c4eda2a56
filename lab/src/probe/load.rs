//! Load that runs through an event: UDP probes and TCP streams started together, stopped together, one report.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::tcp::{Streams, TcpReport};
use super::udp::{Flood, UdpReport};
use super::{Pair, wait_for};

/// What is to run.
#[derive(Debug, Clone)]
pub struct Load {
    interval: Duration,
    udp: Vec<Pair>,
    mtu_sized: Vec<Pair>,
    bulk: Vec<Pair>,
    idle: Vec<Pair>,
}

/// Load under way. Dropped without `stop` (a test that fails) its threads end by themselves.
#[derive(Debug)]
#[must_use = "a load that is not stopped reports nothing"]
pub struct Running {
    flood: Flood,
    streams: Streams,
}

/// What the event cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The UDP probes.
    pub udp: UdpReport,
    /// The TCP connections.
    pub tcp: TcpReport,
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

impl Load {
    /// Nothing yet; a probe each millisecond on the flows to come.
    pub fn new() -> Self {
        Self { interval: Duration::from_millis(1), udp: vec![], mtu_sized: vec![], bulk: vec![], idle: vec![] }
    }

    /// Time between two probes on one flow.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Small UDP probes on each pair, in both families.
    pub fn udp(mut self, pairs: impl IntoIterator<Item = Pair>) -> Self {
        self.udp.extend(pairs);
        self
    }

    /// UDP probes as large as the path takes, never fragmented, in both families.
    pub fn udp_mtu_sized(mut self, pairs: impl IntoIterator<Item = Pair>) -> Self {
        self.mtu_sized.extend(pairs);
        self
    }

    /// One bulk TCP stream a pair; families take turns.
    pub fn tcp_bulk(mut self, pairs: impl IntoIterator<Item = Pair>) -> Self {
        self.bulk.extend(pairs);
        self
    }

    /// Connections that speak once at the start and once at the end, in both families.
    pub fn tcp_idle(mut self, pairs: impl IntoIterator<Item = Pair>) -> Self {
        self.idle.extend(pairs);
        self
    }

    /// Starts it all; every TCP connection is up when this returns.
    pub fn start(self) -> Result<Running> {
        let streams = Streams::start(&self.bulk, &self.idle)?;
        let flood = Flood::start(&self.udp, &self.mtu_sized, self.interval)?;
        Ok(Running { flood, streams })
    }
}

impl Running {
    /// UDP answers so far, over all flows.
    pub fn answered(&self) -> u64 {
        self.flood.answered()
    }

    /// Runs on until `more` further probes have been answered.
    pub fn wait_for_answers(&self, more: u64, deadline: Duration) -> Result<()> {
        let target = self.answered() + more;
        wait_for(deadline, &format!("{more} more UDP answers"), || self.answered() >= target).map(drop)
    }

    /// Stops it all and counts.
    pub fn stop(self) -> Result<LoadReport> {
        let udp = self.flood.stop();
        Ok(LoadReport { udp, tcp: self.streams.stop()? })
    }
}

impl LoadReport {
    /// Fails with the whole report if anything was lost, reset or broken, or if nothing was probed at all.
    pub fn check_nothing_lost(&self) -> Result<()> {
        ensure!(self.udp.probes > 0 || self.tcp.bulk + self.tcp.idle > 0, "nothing was probed");
        let clean = self.udp.lost == 0 && self.tcp.resets == 0 && self.tcp.broken.is_empty();
        ensure!(clean, "the event cost something:\n{self}");
        Ok(())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.udp, self.tcp)
    }
}
