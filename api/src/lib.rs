//! Serde types of every document that crosses the edge of Tartan; no logic.
