//! Serde types of every document that crosses the edge of Tartan, as it is on the wire or on disk; no logic.
//!
//! Invariant: what is written here is compatibility. A field once released keeps its name and meaning; unknown fields
//! are ignored when read from a store that others write to.

pub mod boot;
pub mod cni;
#[cfg(test)]
mod crds;
pub mod explain;
pub mod flannel;
pub mod kinds;
pub mod policy;
pub mod socket;
pub mod status;
pub mod tartan;
