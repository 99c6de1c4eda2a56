//! What an agent and an engine say to each other: a question, an answer, each a length and a JSON document.
//!
//! Whatever an engine has can be read from it, and every word says how something is to be, not what is to happen: to say it
//! twice, or to an engine that was started again, does no harm.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;

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
    /// No longer.
    Close { link: String },
    /// These addresses are there.
    Put { link: String, dst: IpNet, address: IpAddr },
    /// They are nowhere.
    Take { link: String, dst: IpNet },
}

impl Step {
    /// Whether there is less after it, and nothing new.
    pub(crate) fn only_takes(&self) -> bool {
        matches!(self, Step::Close { .. } | Step::Take { .. })
    }
}

/// By which UDP port, over the family of the address that packets to peers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    pub source: IpAddr,
    pub port: u16,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// None: nothing is carried, the device or the socket is gone.
    pub socket: Option<Socket>,
    pub remotes: BTreeMap<IpNet, IpAddr>,
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
