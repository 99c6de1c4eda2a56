//! What of a peer's word is its own to say: ranges, addresses, MACs and keys that nobody else has.
//!
//! Invariant: two peers never want the same key of the kernel, and no packet goes to a node that only claims to be the
//! right one.

use ipnet::IpNet;
use tartan_model::Condition;

use crate::census::{Census, Claim, Member};
use crate::{LocalNode, address};

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
        let fix = "give the two nodes different ranges";
        let overlaps = |mine: &&IpNet| mine.contains(block) || block.contains(*mine);
        let between = || node.uplinks.iter().map(|(_, uplink)| uplink.address);
        let ends = member.advert.addresses.iter().map(|(_, ip)| *ip).chain(between());
        if let Some(mine) = node.blocks.iter().find(overlaps) {
            refuse(block, &format!("it overlaps this node's {mine}"), fix);
        } else if let Some(holder) = census.holder(Claim::Block(*block)).filter(|holder| &***holder != name) {
            refuse(block, &format!("{holder} has it"), fix);
        } else if let Some(end) = ends.into_iter().find(|ip| block.contains(ip)) {
            // The way to the peer would lead through the peer.
            let fix = "take pods' addresses from a range that holds no node's address";
            refuse(block, &format!("it holds the node address {end}"), fix);
        } else {
            own.push(*block);
        }
    }
    own.shrink_to_fit();
    own
}

/// Why the peer's addresses are not its own: two nodes with one address, and packets to one would reach the other.
pub(crate) fn stolen(node: &LocalNode, census: &Census, name: &str, member: &Member) -> Option<Condition> {
    let advert = &member.advert;
    let addresses = advert.addresses.iter().chain(advert.fabric_addresses.iter()).map(|(_, ip)| *ip);
    let mine = |ip: &std::net::IpAddr| {
        node.uplinks.iter().any(|(_, uplink)| uplink.advertised() == *ip)
            || node.fabric_addresses.iter().any(|(_, own)| own == ip)
    };
    let rival = |ip: std::net::IpAddr| {
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
