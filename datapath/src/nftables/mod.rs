//! The nft table of one node: address translation for its pods, what is not tracked, and what may not leave in clear. What
//! policies say of packets is in the same table, and planned by [`policy`] for itself.
//!
//! ```text
//! raw_prerouting     prerouting   -300  base       no connection is kept of what is unwrapped here
//! policy_source      prerouting   -300  policy     a pod sends under its own addresses only
//! nat_prerouting     prerouting   -100  base       to an address of this node ──► hostports; wrapped by a pod: dropped
//! raw_input          input        -300  base       what a pod must not send to this node: tests of paths, what is wrapped
//! policy_input       input         100  policy     is it judged: from pods to this node,
//! policy_forward     forward         0  policy     through this node,
//! policy_output      output          0  policy     and from this node to pods
//! raw_output         output       -300  base       no connection is kept of what was wrapped here
//! nat_output         output       -100  base       sent by this node to an address of its own ──► hostports
//! encrypted_only     postrouting     0  encrypted  to other nodes' pods in clear: nothing, where that is strict
//! encrypted_sources  postrouting    99  encrypted  by a device that encrypts: under an address that peers take
//! nat_postrouting    postrouting   100  base       towards pods: the fabric address; out of the cluster: masquerade
//! ```
//!
//! Chains and sets are the same on every node and never change with a pod: a pod adds elements. What depends on the
//! node's ranges is [`masquerade`], what depends on a pod is [`hostport`], and [`base`] is where both hang.
//!
//! Policy's apart, no chain accepts what is forwarded, which could not overrule anybody else's verdict; and of it only
//! [`encrypted`] drops anything, but for what pods wrap.
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

/// What it depends on besides the pods: of this node, of the fabrics that it has, and of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
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
    /// Nodes' own addresses that are within `cluster_ranges`, and that no pod can have.
    pub nodes_in_pools: BTreeSet<IpAddr>,
}

/// The table but for policy, and what it was computed from.
#[derive(Default)]
pub struct Nftables {
    given: Option<Given>,
    /// UDP ports at which packets between nodes are to arrive here.
    configured: BTreeSet<u16>,
    ranges: masquerade::Ranges,
    node: State,
    /// The part of `node` that is not ranges.
    base: State,
    ports: Memo<Arc<str>, Arc<Attachment>, (), State>,
    state: State,
    conflicts: Vec<Conflict>,
}

impl Nftables {
    /// All of the table but what is policy's.
    pub fn plan(&mut self, world: &World, given: &Given) -> &State {
        let configured = masquerade::configured(&world.config);
        let mut changed = self.given.as_ref() != Some(given) || self.configured != configured;
        if changed {
            let ranges = masquerade::Ranges::of(given);
            masquerade::replan(&mut self.node, &self.ranges, &ranges);
            self.ranges = ranges;
            let mut base = base::plan(given, &configured);
            base.replace(&State::new(), &encrypted::plan(given));
            self.node.replace(&self.base, &base);
            self.base = base;
            (self.given, self.configured) = (Some(given.clone()), configured);
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
