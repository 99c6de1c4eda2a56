//! What would allow a connection that is denied: the smallest changes of the policies that deny it.
//!
//! Invariant: made as it is written, each of these changes does it, by itself; where the other end is an unknown pod, it
//! takes away what denies first, and another may follow.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;
use tartan_api::explain as api;
use tartan_model::World;

use super::{Asked, decider, written};
use crate::ir::{Action, Direction, Mode, Rank, protocol};
use crate::traits::Holds;
use crate::walk::{Decision, End, Packet};
use crate::words;

/// A change of one policy, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub rank: Rank,
    pub edit: Edit,
    /// Path of the rule, or of the policy's isolation.
    pub path: Arc<str>,
    remote: IpAddr,
    packet: Packet,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The rule is about the packet's port, too.
    Port,
    /// The rule is about the other end, too.
    Peer,
    /// A rule more, after all others.
    Rule,
    /// A rule that allows it stands before the rule.
    Before,
}

/// As many as anybody wants to read.
const SHOWN: usize = 3;

/// The changes, the smallest first.
pub(super) fn that_allow(
    decision: &Decision,
    asked: &[Asked<'_>],
    direction: Direction,
    remote: &End,
    packet: &Packet,
) -> Vec<Change> {
    let Some(at) = decider(decision, asked) else { return Vec::new() };
    let change = |of: &Asked<'_>, edit| Change {
        rank: of.rank.clone(),
        edit,
        path: of.path.clone(),
        remote: remote.address,
        packet: *packet,
    };
    let decider = &asked[at];
    if decider.rule.is_some() {
        return vec![change(decider, Edit::Before)];
    }
    let near = asked.iter().filter(|it| it.rank.tier == decider.rank.tier && it.mode != Mode::Staged);
    let near = near
        .filter_map(|it| Some((it, it.rule?)))
        .filter(|(it, rule)| rule.action == Action::Allow && it.fit.local == Holds::Yes && !is_passed_over(asked, it));
    let has_port = protocol::has_ports(packet.protocol);
    let ports = near.clone().filter(|(it, _)| has_port && it.fit.remote == Holds::Yes);
    let peers = near.filter(|(it, _)| it.fit.l4 == Holds::Yes && written::can_name(it.rank, direction, remote));
    ports
        .map(|(it, _)| change(it, Edit::Port))
        .chain(peers.map(|(it, _)| change(it, Edit::Peer)))
        .take(SHOWN - 1)
        .chain([change(decider, Edit::Rule)])
        .collect()
}

/// A rule of the same tier passes before it is asked.
fn is_passed_over(asked: &[Asked<'_>], of: &Asked<'_>) -> bool {
    let before = asked.iter().take_while(|it| !(it.rank == of.rank && it.path == of.path));
    before
        .filter(|it| it.rank.tier == of.rank.tier && it.fit.whole() != Holds::No)
        .any(|it| it.rule.is_some_and(|rule| rule.action == Action::Pass))
}

// === impl Change ===

impl Change {
    /// As a user reads it.
    pub fn document(&self, world: &World, direction: Direction, other: IpAddr) -> api::Change {
        let written = written::Written::of(world, &self.rank, direction, other, &self.packet);
        let (other, packet) = (written.other(), words::packet(&self.packet));
        let (side, rules) = match direction {
            Direction::Ingress => ("from", "spec.ingress"),
            Direction::Egress => ("to", "spec.egress"),
        };
        let path = &self.path;
        let (field, message, add) = match self.edit {
            Edit::Port => {
                let field = format!("{path}.{}", written.ports_key());
                (field, format!("{path} allows {other}, but not {packet}: add"), written.port())
            }
            Edit::Peer => {
                let field = format!("{path}.{side}");
                (field, format!("{path} allows {packet}, but not {side} {other}: add"), written.peer())
            }
            Edit::Rule => {
                (rules.to_owned(), format!("a rule more that allows {packet} {side} {other}: add"), written.rule())
            }
            Edit::Before => match written.rule() {
                Value::Null => {
                    (path.to_string(), format!("{path} denies {packet} {side} {other}: change it"), Value::Null)
                }
                rule => {
                    let message = format!("a rule that allows {packet} {side} {other}: put in front of {path}");
                    (path.to_string(), message, rule)
                }
            },
        };
        api::Change { object: self.rank.source.to_string(), field, place: String::new(), message, add }
    }
}
