//! WireGuard devices and their peers (the kernel's include/uapi/linux/wireguard.h), with public keys only.
//!
//! Invariant: no private key is part of a state, which is compared, recorded and shown. A private key is a file of this node,
//! and [`crate::Key::KeyPair`] says no more than that it is there.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

/// A Curve25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// What a device is known by to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgDevice {
    /// UDP port, of both families.
    pub listen_port: u16,
    /// Of the key pair on this node's disk that it has.
    pub public_key: PublicKey,
}

/// A peer of a device; its key is in [`crate::Key::WgPeer`].
///
/// Its addresses are a part of it: a peer that is there answers handshakes, and whoever has shaken hands with it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    /// Where it is; a device goes on with another if the peer, known by its key, comes from there.
    pub endpoint: SocketAddr,
    /// Seconds after which the device says that it is there, if it says nothing else; 0 is never.
    pub keepalive: u16,
    /// Addresses that are its own, in order: what is for them goes there, what is from them comes from there alone. A range is
    /// one peer's of a device.
    pub allowed: Arc<[IpNet]>,
}

impl WgPeer {
    /// One that is there, with these addresses.
    pub fn of(endpoint: SocketAddr, keepalive: u16, allowed: impl IntoIterator<Item = IpNet>) -> WgPeer {
        WgPeer { endpoint, keepalive, allowed: in_order(allowed) }
    }

    /// Its addresses that the other does not have; all, if there is no other.
    pub fn beyond<'a>(&'a self, other: Option<&'a WgPeer>) -> impl Iterator<Item = &'a IpNet> {
        beyond(&self.allowed, other.map_or(&[], |other| &other.allowed))
    }
}

/// Each range once.
pub(crate) fn in_order(ranges: impl IntoIterator<Item = IpNet>) -> Arc<[IpNet]> {
    ranges.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those of a peer's ranges, which are in order, that another one does not have.
pub fn beyond<'a>(ranges: &'a [IpNet], other: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
    ranges.iter().filter(move |range| other.binary_search(range).is_err())
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<PublicKey, String> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(PublicKey).ok_or_else(|| {
            format!("'{text}' is not a WireGuard key; it is 32 bytes in base64, as `wg pubkey` writes them")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        for byte in [0, 1, 0x7f, 0xff] {
            let key = PublicKey([byte; 32]);
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        let text = PublicKey([7; 32]).to_string();
        for wrong in ["", "AAAA", &text[1..], &format!("{text}="), &text.replace('=', "")] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
    }
}
