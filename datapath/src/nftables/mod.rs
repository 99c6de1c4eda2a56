//! The nft table of one node: address translation for its pods.
//!
//! Chains and sets are the same on every node and never change with a pod: a pod adds elements. What depends on the
//! node's ranges is [`masquerade`], what depends on a pod is [`hostport`], and [`base`] is where both hang.
//!
//! No chain here accepts what is forwarded, which could not overrule anybody else's verdict, and only [`encrypted`] drops of it.
//!
//! Invariant: `plan(memo, world) == plan(empty, world)`.

mod base;
mod encrypted;
mod hostport;
mod masquerade;
pub mod policy;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Attachment, Family, Memo, PerFamily, World};
use tartan_netstate::nft::Nfproto;
use tartan_netstate::{Conflict, State};

/// What address translation depends on besides the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// This node's fabric address of each family: what translated packets towards pods carry as their source.
    pub fabric_address: PerFamily<IpAddr>,
    /// The ranges this node's pods have their addresses from.
    pub local_ranges: Vec<IpNet>,
    /// The ranges all pods of the cluster have their addresses from.
    pub cluster_ranges: Vec<IpNet>,
    /// Destinations outside the cluster that see pods' own addresses.
    pub non_masquerade: Vec<IpNet>,
    /// Packets from pods to everywhere else leave under the node's address.
    pub masquerade: bool,
    /// UDP ports at which nodes of this cluster unwrap packets.
    pub between_nodes: BTreeSet<u16>,
    /// Those at which devices here do.
    pub unwraps_at: BTreeSet<u16>,
    /// IPsec encrypts: what is to be encrypted so comes by a second time, on its way out of the uplink, and is not encrypted yet.
    pub by_ipsec: bool,
    /// UDP ports at which devices hear, and that they send from, that encrypt what they carry.
    pub encrypted_at: BTreeSet<u16>,
    /// Own addresses under which those go that are for other nodes' own ones.
    pub encrypts_from: PerFamily<IpAddr>,
    /// Nothing goes to other nodes' pods in clear.
    pub strict: bool,
}

/// The table, and what it was computed from.
#[derive(Default)]
pub struct Nftables {
    nat: Option<Nat>,
    ranges: masquerade::Ranges,
    node: State,
    /// The part of `node` that is not ranges.
    base: State,
    ports: Memo<Arc<str>, Arc<Attachment>, (), State>,
    state: State,
    conflicts: Vec<Conflict>,
}

impl Nftables {
    /// What this node's pods and ranges want of the nft table.
    pub fn plan(&mut self, world: &World, nat: &Nat) -> &State {
        let mut changed = self.nat.as_ref() != Some(nat);
        if changed {
            let ranges = masquerade::Ranges::of(nat);
            masquerade::replan(&mut self.node, &self.ranges, &ranges);
            self.ranges = ranges;
            let mut base = base::plan(nat);
            base.replace(&State::new(), &encrypted::plan(nat));
            self.node.replace(&self.base, &base);
            self.base = base;
            self.nat = Some(nat.clone());
        }
        let matters = |state: Option<&State>| state.is_some_and(|state| !state.is_empty());
        self.ports.update(
            &world.attachments,
            (),
            |(), _, attachment| hostport::plan(attachment),
            |_, before, after| changed |= (matters(before) || matters(after)) && before != after,
        );
        if changed {
            self.state = self.node.clone();
            self.conflicts.clear();
            for pod in self.ports.outputs().values() {
                self.state.merge(pod, &mut self.conflicts);
            }
        }
        &self.state
    }

    /// Ports that two pods want; the first one has them.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

/// Whether the elements of a set or map are pods'.
pub fn is_of_pods(set: &str) -> bool {
    Family::ALL.into_iter().flat_map(hostport::sets).any(|(name, _)| name == set) || policy::is_of_pods(set)
}

fn nfproto(family: Family) -> Nfproto {
    match family {
        Family::V4 => Nfproto::Ipv4,
        Family::V6 => Nfproto::Ipv6,
    }
}

/// A set's or map's name: one for each family.
fn named(stem: &str, family: Family) -> String {
    let digit = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("{stem}{digit}")
}

#[cfg(test)]
mod tests;
