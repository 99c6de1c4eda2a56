//! Planner: pools to blocks to addresses.
//!
//! ```text
//! pools, podCIDRs ──blocks──► ranges this node holds ──alloc──► the address of one pod
//!                   │
//!                   └──► claims: compare-and-set on IPBlocks, one block each
//! ```
//!
//! Invariant: one address has one holder at every moment, whoever crashes wherever. A range changes hands only by
//! compare-and-set on the one IPBlock it belongs to, and whoever is about to let go of a range stops giving addresses
//! out of it one step earlier, in the same object; see [`blocks`]. Which addresses are used is derived from
//! attachments and nothing else.

pub mod alloc;
pub mod blocks;
mod diagnose;
pub mod fence;
mod held;
mod orphans;
mod pools;
mod range;
mod refused;
mod say;
mod steps;
mod supply;
mod usage;

pub use alloc::{Request, allocate, any_left, may_have};
pub use blocks::{Claim, Memo, Out, plan};
pub use diagnose::{abandoned, diagnose};
pub use fence::Fence;
pub use refused::{Covered, Exhausted, NotThatOne, Ranges, Refused};
