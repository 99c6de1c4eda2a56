//! IPsec associations between this node and its peers (RFC 4303, tunnel mode), without the keys that they have.
//!
//! Invariant: as for WireGuard, no secret is part of a state. A device has a key pair of this node's disk, of which a state
//! knows the public half; that half is also the nonce that makes its associations' keys new, and the kernel door derives those.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::PublicKey;
use crate::wireguard::in_order;

/// One end of associations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspEnd {
    /// Where packets come from, and where they are heard.
    pub address: IpAddr,
    /// Of the key pair on this node's disk that it has.
    pub public_key: PublicKey,
    /// UDP port of both ends in which packets are wrapped (RFC 3948); none: they are not.
    pub port: Option<u16>,
}

/// A peer of a device; its key is in [`crate::Key::EspPeer`]. An association each way, and policies that send to its ranges by the
/// one and take from them by the other alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspPeer {
    /// Where it is.
    pub address: IpAddr,
    /// This node's end. Both ends' keys make those of the associations.
    pub own: EspEnd,
    /// Addresses that are its own, in order. A range is one peer's of a device. A single address in a range of the peer's is
    /// its kernel's, which answers there.
    pub allowed: Arc<[IpNet]>,
}

impl EspPeer {
    /// One with these addresses.
    pub fn of(address: IpAddr, own: EspEnd, allowed: impl IntoIterator<Item = IpNet>) -> EspPeer {
        EspPeer { address, own, allowed: in_order(allowed) }
    }
}
