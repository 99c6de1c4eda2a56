//! Pools of pod addresses, the blocks nodes claim from them, and reservations.

use std::sync::Arc;

use ipnet::IpNet;

use crate::Selector;

/// A range pods get addresses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: Arc<str>,
    pub cidr: IpNet,
    /// Prefix length of a block.
    pub block_size: u8,
    /// Nodes that may claim from it.
    pub nodes: Selector,
    /// Namespaces whose pods may be given addresses of it.
    pub namespaces: Selector,
    /// Nothing new is given out.
    pub disabled: bool,
}

/// A node's claim on a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cidr: IpNet,
    pub pool: Arc<str>,
    pub node: Arc<str>,
    /// UID of the Node it was claimed for.
    pub node_uid: Arc<str>,
    /// Sub-ranges given away; addresses in them are no longer this block's.
    pub given: Vec<IpNet>,
}

/// Addresses that are never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub name: Arc<str>,
    pub cidrs: Vec<IpNet>,
}

impl Block {
    /// The object name of the claim on a range: `10.244.1.0/26` is `10-244-1-0-26`, so that two claims on one range
    /// meet in the store.
    pub fn name_of(range: &IpNet) -> String {
        range.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }
}
