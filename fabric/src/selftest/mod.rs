//! The path self-test: what probes through the fabric itself say of the way to each peer.
//!
//! ```text
//! plan ──targets──► Prober ──probes──► sockets (agent/src/selftest.rs)
//!                     ▲  └─standings─► conditions, status, metrics
//!                     └─answers, and what peers were heard to ask
//! ```
//!
//! Invariant: pure; time is an argument. What answers a probe has seen its nonce, which is on no packet that a pod can see;
//! so nobody but the peer can make a path look well, and nobody but the network can make it look ill.

mod judge;
mod prober;
mod standby;
mod targets;

pub use judge::{Finding, conditions, lose_checksums};
pub use prober::{PERIOD, Probe, Prober, Standing};
pub use standby::{passes, standbys};
pub use targets::{MANY, Path, Sample, Target, asked_at, targets};
