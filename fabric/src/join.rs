//! A node's way into the cluster: nobody should place pods on it before their packets get to the other nodes and back.
//!
//! Invariant: a node joins once a boot and a Node object. While it does, its word says so, and peers acknowledge that word
//! once their kernels hold what it takes to reach the node. The word itself is the memory: who has said that it joins no
//! longer has joined, and an agent that starts again while the kernel works goes by what it said before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{Acknowledged, Condition, World};

use crate::LocalNode;
use crate::census::Census;
use crate::peer::PeerState;

/// A node that some peers keep waiting takes pods after that all the same: most of what they need may work.
const LONGEST: Duration = Duration::from_secs(30);
/// Of a hundred peers so many must have acknowledged: one that is ill must not keep others out.
const ENOUGH: usize = 90;
/// Names of peers in a message.
const NAMED: usize = 3;

/// How far this node has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Join {
    /// Peers are asked to acknowledge.
    pub(crate) joining: bool,
    /// Pods may be placed here.
    pub(crate) open: bool,
    pub(crate) condition: Option<Condition>,
    pub(crate) until: Option<Instant>,
}

/// Peers that are missed, by name.
#[derive(Default)]
struct Missed<'a> {
    /// No way to them is in the kernel.
    unreached: Vec<&'a str>,
    /// They have not acknowledged.
    silent: Vec<&'a str>,
    /// All that were asked.
    asked: usize,
}

/// Where this node stands. Peers that cannot be reached as things are configured have conditions of their own, and those
/// that are not live or cannot acknowledge keep nobody waiting.
pub(crate) fn plan(
    world: &World,
    node: &LocalNode,
    peers: &BTreeMap<Arc<str>, Box<PeerState>>,
    census: &Census,
    now: Instant,
) -> Join {
    if has_joined(world) {
        return Join { open: true, ..Join::default() };
    }
    // While the store was away nobody could acknowledge.
    let (Some(up_since), Some(heard_since)) = (world.up_since, world.leases_from) else {
        return Join { joining: true, ..Join::default() };
    };
    let missed = missed(world, node, peers, census);
    if world.kernel_is_settled() && missed.unreached.is_empty() && missed.are_few() {
        return Join { open: true, ..Join::default() };
    }
    let until = up_since.max(heard_since).max(world.node_since.unwrap_or(up_since)) + LONGEST;
    let late = until <= now;
    Join {
        joining: true,
        open: late,
        condition: late.then(|| missed.condition(&world.local)),
        until: (!late).then_some(until),
    }
}

/// The words of joining peers that this node acts on, as far as it can: one that it cannot reach as things are configured
/// has a condition of its own, and keeps nobody waiting.
pub(crate) fn acknowledged(
    world: &World,
    node: &LocalNode,
    peers: &BTreeMap<Arc<str>, Box<PeerState>>,
    census: &Census,
) -> Vec<Acknowledged> {
    let acted = |name: &&Arc<str>| {
        let mirror = &world.programmed.mirror;
        peers.get(*name).is_some_and(|peer| peer.is_reached(node, mirror) || peer.is_given_up())
    };
    let word =
        |name: &Arc<str>| Some(Acknowledged { node: name.clone(), edition: census.peers.get(name)?.advert.edition });
    census.joining.iter().filter(acted).filter_map(word).collect()
}

fn has_joined(world: &World) -> bool {
    let heard = world.adverts.get(&world.local).map(|heard| &heard.advert);
    let last = world.said.as_ref().map(|said| &said.last).or(heard.filter(|_| !world.began_empty));
    let uid = world.local_node().map(|node| &node.uid);
    last.is_some_and(|word| !word.joining && uid == Some(&word.node_uid))
}

fn missed<'a>(
    world: &World,
    node: &LocalNode,
    peers: &'a BTreeMap<Arc<str>, Box<PeerState>>,
    census: &Census,
) -> Missed<'a> {
    let edition = world.said.as_ref().map(|said| said.last.edition);
    let mut missed = Missed::default();
    for (name, peer) in peers.iter().filter(|(_, peer)| peer.live && !peer.is_given_up()) {
        if !peer.is_reached(node, &world.programmed.mirror) {
            missed.unreached.push(name);
        }
        let Some(advert) = census.peers.get(name).map(|member| &member.advert) else { continue };
        // An agent of an earlier version does not know of this.
        if advert.acknowledges.is_none() {
            continue;
        }
        missed.asked += 1;
        if !edition.is_some_and(|edition| advert.has_acknowledged(&world.local, edition)) {
            missed.silent.push(name);
        }
    }
    missed
}

// === impl Missed ===

impl Missed<'_> {
    fn are_few(&self) -> bool {
        (self.asked - self.silent.len()) * 100 >= self.asked * ENOUGH
    }

    fn condition(&self, node: &str) -> Condition {
        let unreached = match self.unreached.as_slice() {
            [] => String::new(),
            names => format!(", and its kernel does not hold the routes to {}", some(names)),
        };
        let silent = match self.silent.as_slice() {
            [] => "all of them have acknowledged it".into(),
            names => format!("{} of them have not acknowledged it ({})", names.len(), some(names)),
        };
        let asked = self.asked;
        Condition {
            about: format!("NodeNetwork/{node}"),
            field: String::new(),
            reason: "JoinedUnheard",
            message: format!(
                "{node} takes pods after {} seconds of waiting for its {asked} peers: {silent}{unreached}",
                LONGEST.as_secs()
            ),
            fix: "look at the agents of those nodes, and at `tartan status` there; pods here may not reach theirs until then"
                .into(),
        }
    }
}

fn some(names: &[&str]) -> String {
    match names.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..NAMED].join(", ")),
    }
}
