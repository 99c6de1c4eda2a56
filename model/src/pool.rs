//! Pools of pod addresses, the blocks nodes claim from them, and reservations.

use std::net::IpAddr;
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
    /// How packets to its addresses cross nodes; none: as the configuration says for all.
    pub encapsulation: Option<Encapsulation>,
}

/// How packets to a pool's addresses cross nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encapsulation {
    /// As they are.
    Never,
    Ipip(Across),
    Vxlan(Across),
}

/// Which packets are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Across {
    /// All that go to another node.
    Nodes,
    /// Those to nodes that are not on one link with this one.
    Subnets,
}

/// A node's claim on a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cidr: IpNet,
    pub pool: Arc<str>,
    pub node: Arc<str>,
    /// UID of the Node it was claimed for.
    pub node_uid: Arc<str>,
    /// Aligned sub-ranges that its owner does not use itself, disjoint.
    pub parts: Vec<Part>,
}

/// A range of a block that its owner does not use itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub cidr: IpNet,
    pub holder: Holder,
}

/// Who may use a part. Each step is a compare-and-set on the block, by the node that the step is said of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: the owner gives no new addresses out of it, and is about to offer it, or to free the block if it is
    /// all of it.
    Aside,
    /// Whoever takes it first; the owner may take it back.
    Offered,
    /// This node.
    Node { name: Arc<str>, uid: Arc<str> },
    /// This node; it gives no new addresses out of it and is about to give it back.
    Leaving { name: Arc<str>, uid: Arc<str> },
}

/// Addresses that are never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub name: Arc<str>,
    pub cidrs: Vec<IpNet>,
}

// === impl Holder ===

impl Holder {
    /// Whether it is this node, with this UID.
    pub fn is(&self, node: &str, node_uid: &str) -> bool {
        self.node().is_some_and(|(name, uid)| **name == *node && **uid == *node_uid)
    }

    /// The node's name, if it is one.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.node().map(|(name, _)| name)
    }

    /// The node's name and UID, if it is one.
    pub fn node(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        match self {
            Holder::Aside | Holder::Offered => None,
            Holder::Node { name, uid } | Holder::Leaving { name, uid } => Some((name, uid)),
        }
    }
}

// === impl Block ===

impl Block {
    /// Names of all nodes that have some of it, the owner first.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.holders().map(|(name, _)| name)
    }

    /// Their names and UIDs.
    pub fn holders(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        [(&self.node, &self.node_uid)].into_iter().chain(self.parts.iter().filter_map(|part| part.holder.node()))
    }

    /// The object name of the claim on a range: `10.244.1.0/26` is `10-244-1-0-26`, so that two claims on one range
    /// meet in the store.
    pub fn name_of(range: &IpNet) -> String {
        range.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }

    /// The range that [`Block::name_of`] calls so, if a name says it all: an IPv4 address within an IPv6 one looks as
    /// another one.
    pub fn range_of(name: &str) -> Option<IpNet> {
        let (address, length) = name.rsplit_once('-')?;
        let address: IpAddr = [".", ":"].iter().find_map(|point| address.replace('-', point).parse().ok())?;
        let range = IpNet::new(address, length.parse().ok()?).ok()?;
        let mapped = range.addr().to_string().starts_with("::ffff:");
        (Block::name_of(&range) == name && !mapped).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_name_of_a_block_has_no_range() {
        for name in
            ["", "-", "10-0-0-0", "10-0-0-0-33", "10-0-0-0-26-1", "10.0.0.0/26", "010-0-0-0-26", "fd00---064", "a-b"]
        {
            assert_eq!(Block::range_of(name), None, "{name}");
        }
        let within: IpNet = "::ffff:10.0.0.0/120".parse().unwrap();
        assert_eq!(Block::range_of(&Block::name_of(&within)), None);
    }

    proptest! {
        #[test]
        fn a_blocks_name_says_its_range(
            address in any::<IpAddr>().prop_filter("is told as IPv6", |it| !it.to_string().contains("::ffff:")),
            length in 0..=128_u8,
        ) {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let range = IpNet::new(address, length % (most + 1)).unwrap().trunc();
            // A range within `::/96` is told as an IPv4 one.
            prop_assume!(!(range.addr().is_ipv6() && range.to_string().contains('.')));
            prop_assert_eq!(Block::range_of(&Block::name_of(&range)), Some(range));
        }
    }
}
