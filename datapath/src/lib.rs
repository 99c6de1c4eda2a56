//! Planner: pods, NAT and filtering on one node.
//!
//! Invariant: pure and total; what cannot be honoured is a condition beside the value.

pub mod firewall;
pub mod mtu;
pub mod nftables;
pub mod pod;
