//! Neighbours and VXLAN forwarding entries: both permanent, so that no packet ever waits for an answer.

use std::net::IpAddr;

use crate::Mac;

/// A permanent neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neigh {
    /// Link-layer address.
    pub mac: Mac,
}

/// A permanent forwarding entry of a VXLAN device: frames for this MAC go to that address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fdb {
    /// Underlay address of the remote node.
    pub dst: IpAddr,
}
