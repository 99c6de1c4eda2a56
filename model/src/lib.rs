//! World: what a node knows, as one persistent value.

pub mod features;
pub mod host;

pub use features::Features;
pub use host::{DefaultRoute, ForwardBlock, Host, HostLink};
