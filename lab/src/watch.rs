//! What comes in at nodes, counted on the wire's end of their uplinks: what is of pods and can be read, and what is encrypted.
//!
//! The kernel counts every packet, so none is missed as by a capture that falls behind.

use anyhow::{Context, Result};

use crate::{Lab, Node};

/// Whatever is of pods' ranges, or wrapped in vxlan, udp or ipip, and what ESP, also in UDP, and WireGuard's ports carry. A packet is counted once.
const TABLE: &str = "nft 'table netdev watch {
    chain came { type filter hook ingress device eth0 priority 0;
        ip protocol 50 counter accept comment \"encrypted\"
        ip6 nexthdr 50 counter accept comment \"encrypted\"
        udp dport { 4500, 51820-51823 } counter accept comment \"encrypted\"
        udp dport { 8472, 8285 } counter accept comment \"clear\"
        ip protocol { 4, 41 } counter accept comment \"clear\"
        ip6 nexthdr { 4, 41 } counter accept comment \"clear\"
        ip saddr 10.244.0.0/16 counter accept comment \"clear\"
        ip daddr 10.244.0.0/16 counter accept comment \"clear\"
        ip6 saddr fd00:10:244::/48 counter accept comment \"clear\"
        ip6 daddr fd00:10:244::/48 counter accept comment \"clear\"
    }
}'";

/// Packets counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub clear: u64,
    pub encrypted: u64,
}

impl Lab {
    /// Begins to count, at all nodes.
    pub fn watch(&self) -> Result<()> {
        self.nodes().iter().try_for_each(|node| node.output(&["sh", "-c", TABLE]).map(drop))
    }

    /// What all nodes have counted.
    pub fn seen(&self) -> Result<Seen> {
        let mut seen = Seen { clear: 0, encrypted: 0 };
        for node in self.nodes() {
            let listing = node.output(&["nft", "list", "table", "netdev", "watch"])?;
            seen.clear += counted(node, &listing, "clear")?;
            seen.encrypted += counted(node, &listing, "encrypted")?;
        }
        Ok(seen)
    }
}

fn counted(node: &Node, listing: &str, kind: &str) -> Result<u64> {
    let rules: Vec<&str> = listing.lines().filter(|line| line.contains(&format!("\"{kind}\""))).collect();
    let packets = |rule: &&str| rule.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let counts: Option<Vec<u64>> = rules.iter().map(packets).collect();
    let counts = counts.filter(|counts| !counts.is_empty());
    Ok(counts.with_context(|| format!("{} does not count what is {kind}: {listing}", node.name()))?.iter().sum())
}
