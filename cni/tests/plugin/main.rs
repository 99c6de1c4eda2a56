//! The plugin, run as runtimes run it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bad;
mod calls;
mod delegated;
mod runtime;
