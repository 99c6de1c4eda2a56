//! Probes between endpoints: wait for a condition, ping, HTTP, the all-pairs matrix, and load that runs through an
//! event and counts what it cost.
//!
//! Nothing here waits for time to pass: `wait_for` polls a condition until its deadline, and load paces itself by the
//! clock. Every socket is opened inside the namespace of the endpoint it speaks for.

mod load;
mod matrix;
mod ping;
mod talk;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use load::{Load, LoadReport, Running};
pub use matrix::{Matrix, Reach, http_get, matrix};
pub use ping::ping;
pub use talk::{Talk, Transport};
pub use tcp::TcpReport;
pub use udp::UdpReport;

use crate::netns::Endpoint;

/// An ordered pair: who asks, who answers.
pub type Pair = (Endpoint, Endpoint);

/// Ends the threads of a load, at the latest when it is dropped.
#[derive(Debug, Default)]
struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    fn shared(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for StopFlag {
    fn drop(&mut self) {
        self.raise();
    }
}

/// Polls `condition` until it holds; says `what` was waited for when `deadline` passes first.
pub fn wait_for(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    let mut step = Duration::from_micros(200);
    loop {
        let look = Instant::now();
        if condition() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > deadline {
            bail!("waited {:.1} s in vain for: {what}", deadline.as_secs_f64());
        }
        // A look that starts a program takes an emulated processor from what it looks at.
        pause(step.max(look.elapsed()));
        step = (step * 2).min(Duration::from_millis(20));
    }
}

/// Lets time pass where time is what an event consists of.
pub fn let_pass(time: Duration) -> Result<()> {
    let start = Instant::now();
    wait_for(time * 2 + Duration::from_secs(1), "time to pass", || start.elapsed() >= time).map(drop)
}

/// The one place that lets time pass: between two looks at a condition, and between two packets of a paced load.
#[allow(clippy::disallowed_methods, reason = "the primitive wait_for and paced load are made of")]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Each endpoint with each other one, once.
pub fn pairs(endpoints: &[Endpoint]) -> Vec<Pair> {
    let later = |i: usize| endpoints[i + 1..].iter();
    endpoints.iter().enumerate().flat_map(|(i, a)| later(i).map(move |b| (a.clone(), b.clone()))).collect()
}

/// Each endpoint with the next one, the last with the first.
pub fn around(endpoints: &[Endpoint]) -> Vec<Pair> {
    endpoints.iter().cloned().zip(endpoints.iter().cloned().cycle().skip(1)).collect()
}
