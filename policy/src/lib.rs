//! Planner: policy objects to rules to verdict tables, and the oracle they must agree with.
//!
//! ```text
//! objects ──dialect──► ir ──verdicts──► tables ──► a datapath
//!    │                  └──walk──┐         │
//!    └──oracle───────────────────┴── must agree on every packet
//! ```
//!
//! Invariants: pure and total; `plan(memo, world) == plan(empty, world)`; what is not understood denies.

pub mod compare;
pub mod counts;
pub mod denied;
pub mod dialect;
pub mod effective;
pub mod ends;
pub mod ir;
mod nesting;
pub mod oracle;
mod spans;
pub mod trace;
pub mod traits;
pub mod verdicts;
pub mod walk;
mod words;
