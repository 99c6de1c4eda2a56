//! The plan for one peer: what it owns, the way of each family's packets to it (`way.rs`), and what it takes to hear it.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Condition, Family, World};
use tartan_netstate::{Owner, Part, State};

use crate::census::{Census, Member};
use crate::choose::{Choice, Common};
use crate::ownership::Own;
use crate::shortfall::UNENCRYPTED;
use crate::way::{self, To};
use crate::{Instance, LocalNode, fabric_of, nodes, ownership};

/// How things stand with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// For each family, and in it for each way that pools ask for. Where the peer has no ranges of a family, nothing is used
    /// and only the target stands.
    pub choices: Vec<(Family, Choice)>,
    /// What carries packets to it in the kernel, and is no longer chosen.
    pub leaving: BTreeSet<Instance>,
    pub live: bool,
    /// What encrypts packets to its own addresses.
    pub to_itself: Option<Instance>,
    pub blocks: Vec<IpNet>,
    pub conditions: Vec<Condition>,
    /// The kernel uses what the peer no longer says it accepts: only the kernel knows where that leads.
    pub(crate) clings: bool,
    pub(crate) part: Part,
}

/// The plan for one peer. One that is not live is served by what there is: `receives`.
pub(crate) fn plan(
    world: &World,
    common: &Common,
    census: &Census,
    receives: &BTreeSet<Instance>,
    name: &Arc<str>,
    member: &Member,
) -> PeerState {
    let (node, advert) = (&common.node, &member.advert);
    let mut state = PeerState { live: member.live, ..PeerState::default() };
    if let Some(condition) = ownership::stolen(node, census, name, member) {
        state.conditions.extend(member.live.then_some(condition));
        return state;
    }
    state.conditions.extend(member.unclear.as_deref().cloned());
    state.blocks = ownership::blocks(node, census, name, member, &mut state.conditions);
    let to = To::new(world, common, receives, name, member);
    let mut objects = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| world.features.ipv6 || *family == Family::V4) {
        for (manner, blocks) in common.by_manner(&state.blocks, family) {
            let way = way::plan(&to, family, manner, &blocks);
            objects.extend(way.objects);
            state.choices.push((family, way.choice));
            state.leaving.extend(way.leaving);
            state.conditions.extend(way.conditions);
            state.clings |= way.clings;
        }
    }
    state.choices.shrink_to_fit();
    state.to_itself = nodes::carrier(common, member, &state);
    let own = Own { blocks: state.blocks.clone(), addresses: ownership::addresses(node, census, name, member) };
    objects.extend(state.to_itself.iter().flat_map(|at| nodes::routes(common, member, &own.addresses, at)));
    // After those that carry: of two addresses for one range the one in use stays.
    objects.extend(receives.iter().flat_map(|at| fabric_of(at).admit(node, at, advert, &own)));
    state.part = Part::of(&Owner::Peer(name.clone()), objects);
    if !member.live {
        state.conditions.clear();
    }
    state.conditions.dedup();
    state
}

// === impl PeerState ===

impl PeerState {
    /// What carries packets to the peer now; two where the families go different ways.
    pub fn used(&self) -> impl Iterator<Item = Instance> {
        distinct(self.choices.iter().filter_map(|(_, choice)| choice.used))
    }

    /// What the configuration asks for.
    pub fn targets(&self) -> impl Iterator<Item = Instance> {
        distinct(self.choices.iter().filter_map(|(_, choice)| choice.target))
    }

    /// Whether some family of packets does not yet go as the configuration asks.
    pub fn is_moving(&self) -> bool {
        let served = |family| self.blocks.iter().any(|block| Family::of_net(block) == family);
        let wrong = |(family, choice): &(Family, Choice)| served(*family) && choice.used != choice.target;
        !self.leaving.is_empty() || self.choices.iter().any(wrong)
    }

    /// Whether packets to all its ranges of which family this node has pods go their way, as the kernel was read or
    /// acknowledged to hold.
    pub(crate) fn is_reached(&self, node: &LocalNode, mirror: &State) -> bool {
        let served = |family| self.choices.iter().all(|(of, choice)| *of != family || choice.used.is_some());
        let missed = |family| node.fabric_addresses.get(family).is_some() && !served(family);
        !self.blocks.iter().any(|block| missed(Family::of_net(block))) && self.part.is_in(mirror)
    }

    /// Whether it cannot be reached as things are configured, and says why.
    pub(crate) fn is_given_up(&self) -> bool {
        self.conditions.iter().any(|condition| condition.reason != UNENCRYPTED)
    }

    /// Every instance that packets to this peer may take, now or soon.
    pub(crate) fn sends(&self) -> impl Iterator<Item = Instance> {
        let chosen = self.choices.iter().flat_map(|(_, choice)| [choice.used, choice.announce]).flatten();
        distinct(chosen.chain(self.leaving.iter().copied()))
    }
}

fn distinct(instances: impl Iterator<Item = Instance>) -> impl Iterator<Item = Instance> {
    instances.collect::<BTreeSet<_>>().into_iter()
}
