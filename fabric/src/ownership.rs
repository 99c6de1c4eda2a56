//! What of a peer's word is its own to say: ranges, addresses, MACs and keys that nobody else has.
//!
//! Invariant: two peers never want the same key of the kernel, and no packet goes to a node that only claims to be the
//! right one.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::{Condition, Family};

use crate::census::{Census, Claim, Member};
use crate::{LocalNode, address};

/// What is a peer's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) blocks: Vec<IpNet>,
    /// Of the node itself.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The peer's ranges, without those that somebody else has: this node, or a peer that comes first.
pub(crate) fn blocks(
    node: &LocalNode,
    census: &Census,
    name: &str,
    member: &Member,
    conditions: &mut Vec<Condition>,
) -> Vec<IpNet> {
    let mut refuse = |block: &IpNet, message: &str, fix: &str| {
        conditions.push(Condition {
            about: format!("NodeNetwork/{name}"),
            field: "spec.blocks".into(),
            reason: "RangeNotItsOwn",
            message: format!("{name} says {block} is its own, but {message}; no route leads there"),
            fix: fix.into(),
        });
    };
    for block in &member.unproven {
        let fix = "wait, or look at the Node's spec.podCIDRs and at the IPBlock object";
        refuse(block, "neither its Node's podCIDRs nor an IPBlock says so", fix);
    }
    let mut own = Vec::new();
    for block in member.blocks() {
        match not_its_own(node, census, name, member, block) {
            Some((message, fix)) => refuse(block, &message, fix),
            None => own.push(*block),
        }
    }
    own.shrink_to_fit();
    own
}

/// Why no route may lead there, and what to do.
fn not_its_own(
    node: &LocalNode,
    census: &Census,
    name: &str,
    member: &Member,
    block: &IpNet,
) -> Option<(String, &'static str)> {
    let different = "give the two nodes different ranges";
    let elsewhere = "take pods' addresses from a range that holds no node's address";
    // The part of a block and what is left of it are two ranges: the route of the part is the more specific one.
    let is_part = |mine: &IpNet| census.is_part(mine, block, name) || census.is_part(block, mine, &node.name);
    let overlaps = |mine: &&IpNet| (mine.contains(block) || block.contains(*mine)) && !is_part(mine);
    if let Some(mine) = node.blocks.iter().find(overlaps) {
        return Some((format!("it overlaps this node's {mine}"), different));
    }
    if let Some(holder) = census.holder(Claim::Block(*block)).filter(|holder| &***holder != name) {
        return Some((format!("{holder} has it"), different));
    }
    // A node goes back to its podCIDR while others have blocks there, which are claimed and stay theirs.
    let is_of_pool = census.is_of_pool(block, name);
    let is_anothers = |(wider, holder): &(IpNet, &std::sync::Arc<str>)| {
        let counts = if is_of_pool { census.is_of_pool(wider, holder) } else { census.is_regular(wider, holder) };
        &***holder != name && counts && !census.is_part(wider, block, name)
    };
    if let Some((wider, holder)) = census.around(*block).find(is_anothers) {
        return Some((format!("{holder} has {wider} around it"), different));
    }
    // The way to the peer would lead through the peer.
    let between = node.uplinks.iter().map(|(_, uplink)| uplink.address);
    let mut ends = member.advert.addresses.iter().map(|(_, ip)| *ip).chain(between);
    if let Some(end) = ends.find(|ip| block.contains(ip)) {
        return Some((format!("it holds the node address {end}"), elsewhere));
    }
    // Where nobody else says that pods are there it may be anything. A pool that is over nodes is asked for, and its claims
    // keep clear of nodes; what they hold after that no node's word may take from them.
    let (end, of) = census.node_in(block).filter(|_| !census.is_regular(block, name))?;
    Some((format!("it is of no IPPool and holds {end}, the address of {of}"), elsewhere))
}

/// The peer's own addresses, without those that are in ranges of somebody else: packets for pods there would go to it.
pub(crate) fn addresses(node: &LocalNode, census: &Census, name: &str, member: &Member) -> Vec<IpAddr> {
    let is_anothers = |ip: &IpAddr| {
        // A range over a node that the cluster knows is none, unless the cluster's configuration has it there.
        let counts =
            |range: &IpNet, holder: &str| !member.node.internal_ips.contains(ip) || census.is_regular(range, holder);
        let mut around = census.around(Family::host_net(*ip));
        node.blocks.iter().any(|mine| mine.contains(ip))
            || around.any(|(range, holder)| &**holder != name && counts(&range, holder))
    };
    member.advert.addresses.iter().map(|(_, ip)| *ip).filter(|ip| !is_anothers(ip)).collect()
}

/// Why the peer's addresses are not its own: two nodes with one address, and packets to one would reach the other.
pub(crate) fn stolen(node: &LocalNode, census: &Census, name: &str, member: &Member) -> Option<Condition> {
    let advert = &member.advert;
    let addresses = advert.addresses.iter().chain(advert.fabric_addresses.iter()).map(|(_, ip)| *ip);
    let mine = |ip: &IpAddr| {
        node.uplinks.iter().any(|(_, uplink)| uplink.advertised() == *ip)
            || node.fabric_addresses.iter().any(|(_, own)| own == ip)
    };
    let rival = |ip: IpAddr| {
        let holder = if mine(&ip) { Some(&node.name) } else { census.holder(Claim::Address(ip)) };
        let holder = holder.filter(|holder| &***holder != name)?;
        Some((format!("address is {ip}"), holder))
    };
    let macs = advert.ends().filter_map(|end| end.mac);
    let twin = |mac| {
        let holder = census.holder(Claim::Mac(mac))?;
        (**holder != *name).then(|| (format!("address is {mac}"), holder))
    };
    let keys = advert.ends().filter_map(|end| end.public_key);
    let impostor = |key| {
        let mine = node.public_keys.values().any(|own| *own == key);
        let holder = if mine { Some(&node.name) } else { census.holder(Claim::key(&key)) };
        Some((format!("key is {key}"), holder.filter(|holder| &***holder != name)?))
    };
    let rival = addresses.into_iter().find_map(rival).or_else(|| macs.into_iter().find_map(twin));
    let (what, holder) = rival.or_else(|| keys.into_iter().find_map(impostor))?;
    Some(Condition {
        about: format!("Node/{name}"),
        field: "status.addresses".into(),
        reason: "TwoNodesOneAddress",
        message: format!("{name} and {holder} both say their {what}; {name} is not reached"),
        fix: format!("correct the InternalIP of one of them, or set {} on it", address::ANNOTATION_CIDRS),
    })
}
