//! What an agent and an engine say to each other: a question, an answer, each a length and a JSON document.
//!
//! Whatever an engine has can be read from it, and every word says how something is to be, not what is to happen: to say it
//! twice, or to an engine that was started again, does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Of this language. An engine of another version refuses to talk, and goes on.
pub const VERSION: u32 = 1;
/// Longest document, in bytes.
const LONGEST: u32 = 32 << 20;

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub version: u32,
    pub ask: Ask,
}

/// See [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// For all that the engine has.
    Read,
    /// To have it otherwise, in this order.
    Apply(Vec<Step>),
    /// For nothing: that the connection ends says that the engine has.
    Watch,
    /// To let the agent's own program go on in the engine's place, if that is another.
    Succeed(Program),
}

/// What an engine answers to a step that is for the next one. Agents tell it from what is wrong, so it stays as it is.
pub const GIVES_WAY: &str = "it is giving way to another program, which is to be told";

/// A program's file, told from others by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub size: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Carry this device's packets.
    Open { link: String, socket: Socket },
    /// Keep a socket at that port at which the kernel takes ESP out of UDP (RFC 3948): it does so as long as there is one. This
    /// device's packets it carries itself.
    Hold { link: String, socket: Socket },
    /// No longer.
    Close { link: String },
    /// These addresses are there.
    Put { link: String, dst: IpNet, address: IpAddr },
    /// They are nowhere.
    Take { link: String, dst: IpNet },
    /// Carry this device's packets by WireGuard. The file with the private key comes after the question, as a descriptor: those
    /// of several steps in their order.
    Identify { link: String, identity: Identity },
    /// This peer is there.
    Meet { link: String, public_key: PublicKey, peer: Peer },
    /// It is not, and has nothing.
    Forget { link: String, public_key: PublicKey },
    /// These addresses are that peer's.
    Allow { link: String, dst: IpNet, public_key: PublicKey },
    /// They are nobody's.
    Deny { link: String, dst: IpNet },
}

impl Step {
    /// Whether there is less after it, and nothing new.
    pub(crate) fn only_takes(&self) -> bool {
        matches!(self, Step::Close { .. } | Step::Take { .. } | Step::Forget { .. } | Step::Deny { .. })
    }
}

/// A Curve25519 public key, written in base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// What a WireGuard device is to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// UDP port, of both families.
    pub port: u16,
    pub public_key: PublicKey,
}

/// Where a WireGuard peer is, until it is heard from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub endpoint: SocketAddr,
    /// Seconds after which it is told that this end is there, if it is told nothing else; 0 is never.
    pub keepalive: u16,
}

/// By which UDP port, over the family of the address that packets to peers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    pub source: IpAddr,
    pub port: u16,
}

impl Socket {
    /// Whether it is of IPv6, and its port: what a socket cannot change once it is open.
    pub(crate) fn hears(self) -> (bool, u16) {
        (self.source.is_ipv6(), self.port)
    }
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// None: nothing is carried, the device or the socket is gone.
    pub socket: Option<Socket>,
    pub remotes: BTreeMap<IpNet, IpAddr>,
    /// What it has, if it goes by WireGuard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<Encrypted>,
    /// What is kept for it, if the kernel carries its packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Socket>,
}

/// A device that goes by WireGuard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {
    /// None: nothing is carried, the device or the socket is gone.
    pub identity: Option<Identity>,
    pub peers: BTreeMap<PublicKey, Peer>,
    pub allowed: BTreeMap<IpNet, PublicKey>,
    /// Peers with which there was a handshake.
    pub met: BTreeSet<PublicKey>,
}

/// What an engine answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// All that there is, by the names of devices.
    Holds(BTreeMap<String, Device>),
    /// Which steps failed, and why.
    Applied(BTreeMap<usize, String>),
    Done,
    Refused(String),
}

// === impl PublicKey ===

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

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<PublicKey, String> {
        let bytes = STANDARD.decode(&text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(PublicKey).ok_or_else(|| format!("'{text}' is not a WireGuard key: 32 bytes in base64"))
    }
}

// === documents ===

/// Writes one document.
///
/// # Errors
/// Nobody reads, or it is too long.
pub fn write<T: Serialize>(to: &mut impl Write, document: &T) -> io::Result<()> {
    let text = serde_json::to_vec(document)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("a document for an engine is too long"))?;
    to.write_all(&[&length.to_le_bytes(), text.as_slice()].concat())
}

/// Reads one document.
///
/// # Errors
/// It ends too early, is too long, or is not what it should be.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other(format!("a document of {length} bytes, of which {LONGEST} are taken")));
    }
    let mut text = Vec::new();
    from.take(length.into()).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
