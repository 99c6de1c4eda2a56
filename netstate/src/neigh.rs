//! Neighbours and VXLAN forwarding entries: both permanent, so that no packet ever waits for an answer; and the socket of an
//! engine, which has its own such entries.

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

/// What an engine hears peers by, at all addresses of the node of one family, and sends to them from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where packets to peers come from; of the underlay's family.
    pub source: IpAddr,
    /// UDP port, the peers' too.
    pub port: u16,
    /// It is only kept open: the kernel takes ESP out of what comes there (RFC 3948), and sends by itself.
    pub esp: bool,
}
