//! The agent's Unix socket: one request frame, one reply frame; see [`Request`].

use serde::{Deserialize, Serialize};

/// What the CNI binary or the CLI asks of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub enum Request {
    /// This node, as `tartan status` shows it.
    Status,
}
