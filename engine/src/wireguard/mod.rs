//! WireGuard in user space, for kernels that have none (the WireGuard paper; the protocol itself is crate boringtun's).
//!
//! Invariants: what leaves is encrypted to the peer that has the destination, or does not leave; what is taken in comes from
//! the peer that has the source. A private key is in the agent's file, of which the holder has a descriptor, and in this
//! process's memory.

mod device;
mod link;
mod tunnel;
mod uapi;

pub(crate) use device::{Device, Stored};
