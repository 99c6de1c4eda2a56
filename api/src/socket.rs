//! The agent's Unix socket: one request frame, one reply frame, each a length (u32, big-endian) and that much JSON. Where
//! more is asked for than a frame holds, reply frames follow each other until the agent closes the connection.
//!
//! ADD and CHECK carry the pod's network namespace as SCM_RIGHTS with the first byte. Invariant: no bytes make the
//! functions here panic or allocate more than [`MAX_FRAME`].

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni::{CniError, CniRequest};

/// Longest JSON text of a frame, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// What the CNI binary or the CLI asks of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask", expecting = "a request")]
pub enum Request {
    /// A call of the CNI plugin; the result is what the plugin prints, null for nothing.
    Cni(Box<CniRequest>),
    /// This node, as `tartan status` shows it; the result is a [`crate::status::Status`].
    Status,
    /// What the node knows of the cluster; the results are texts that together are a snapshot, as `tartan record` writes
    /// it. It says itself whether it is whole.
    World,
    /// What policy denies from now on; each result is a [`crate::explain::Denied`].
    Denied,
    /// How often each rule of policies has decided here; the result is a list of [`crate::explain::Count`].
    Counts,
    /// YAML documents for the store; the result is the list of the objects written.
    Apply {
        /// What the user calls them, e.g. a file name; for errors.
        source: String,
        documents: String,
    },
    /// One key of NetworkConfig `default`; the result is the list of the objects written.
    Set {
        /// Path below `spec`, e.g. `vxlan.vni`.
        key: String,
        /// As YAML; `null` takes the key out.
        value: String,
    },
    /// New keys for all nodes; the result is as for `Set`.
    Rotate,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    Result(Value),
    /// Codes are those of CNI, for whatever was asked.
    Error(CniError),
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// That many bytes are announced or would have to be sent.
    TooLong(usize),
    /// What the JSON parser says.
    NotJson(String),
}

/// A message as it is on the wire.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|error| FrameError::NotJson(error.to_string()))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let header = u32::try_from(length).expect("MAX_FRAME fits into 32 bits").to_be_bytes();
    frame[..4].copy_from_slice(&header);
    Ok(frame)
}

/// How many bytes of JSON follow a header.
pub fn body_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// The message in a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| FrameError::NotJson(error.to_string()))
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong(length) => write!(f, "a message of {length} bytes; the most is {MAX_FRAME}"),
            FrameError::NotJson(why) => write!(f, "not a message of Tartan's socket: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let frame = encode(&Request::Status).unwrap();
        assert_eq!(body_length(frame[..4].try_into().unwrap()), Ok(frame.len() - 4));
        assert_eq!(decode::<Request>(&frame[4..]), Ok(Request::Status));
    }

    #[test]
    fn a_frame_is_a_mebibyte_at_most() {
        let text = |length: usize| "x".repeat(length - 2);
        assert!(encode(&text(MAX_FRAME)).is_ok());
        assert_eq!(encode(&text(MAX_FRAME + 1)), Err(FrameError::TooLong(MAX_FRAME + 1)));
        assert_eq!(body_length([0, 0x10, 0, 1]), Err(FrameError::TooLong(MAX_FRAME + 1)));
        assert_eq!(body_length([0xff; 4]), Err(FrameError::TooLong(u32::MAX as usize)));
    }
}
