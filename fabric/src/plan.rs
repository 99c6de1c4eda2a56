//! The loop over peers, once for all fabrics.
//!
//! Invariant: `plan(memo, world) == plan(empty, world)`. Only peers whose own facts differ are computed again; all of
//! them when what they have in common differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Config, Host, Node, Passes, PerFamily, World};
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_METRIC, STANDBY_METRIC};
use tartan_netstate::{Key, LinkName, Netns, Owner, Part, PublicKey, State};

use crate::address::{self, Chosen};
use crate::advert::{self, Word};
use crate::census::{Census, Claim, Counts};
use crate::choose::{Common, Ground, own_targets, pools};
use crate::mtu::{pod_mtu, underlay_mtu};
use crate::peer::{self, PeerState};
use crate::{Instance, LocalNode, flannel, ipsec, join, nodes, own, rotation, udp};

/// Instances that a node receives on for its peers' sake alone. Whoever can write one NodeNetwork could have all nodes make devices
/// and keys without end. With these an engine has room for the node's own.
const MOST_FOR_OTHERS: usize = 8;

/// What other planners and the kernel say about this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Address ranges whose pods are here.
    pub blocks: Vec<IpNet>,
    /// One address of them per family, for the node itself.
    pub fabric_addresses: PerFamily<std::net::IpAddr>,
    /// Largest MTU of a pod's routes in the kernel; none without pods.
    pub mtu_in_force: Option<u32>,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Out {
    /// Links, addresses, routes, neighbours, forwarding entries, sysctls.
    pub state: State,
    pub conditions: Vec<Condition>,
    /// This node, and why its addresses are what they are.
    pub node: LocalNode,
    /// What this node's uplinks carry, in bytes.
    pub underlay_mtu: u32,
    /// MTU of this node's pods, in bytes.
    pub pod_mtu: u32,
    /// What to tell the peers; the heartbeat is the publisher's.
    pub advert: Option<Advert>,
    /// Pods may be placed here: their packets get to the peers and back.
    pub open: bool,
    /// Nothing may go to peers' pods in clear.
    pub strict: bool,
    /// For `tartan status`.
    pub peers: BTreeMap<Arc<str>, Box<PeerState>>,
    /// Instances this node receives on.
    pub receives: BTreeSet<Instance>,
    /// Those it is to receive on whoever its peers are.
    pub targets: BTreeSet<Instance>,
    /// UDP ports at which a node may unwrap what anybody could have sent.
    pub between_nodes: BTreeSet<u16>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Instant>,
}

/// Last inputs and outputs.
#[derive(Default)]
pub struct Memo {
    address: Option<AddressMemo>,
    census: Census,
    mirror: State,
    /// What the path self-test had found.
    passes: Arc<Passes>,
    handshakes: BTreeMap<(LinkName, PublicKey), bool>,
    common: Option<Common>,
    out: Out,
    /// The part of `out.state` that is this node's own; no key of it can be a key of a peer's part.
    own: State,
    /// What live peers are, or are about to be, sent packets on.
    sends: Counts,
    /// What the configuration asks for towards live peers.
    targets: Counts,
    /// Peers with conditions.
    troubled: BTreeSet<Arc<str>>,
    /// Peers with [`PeerState::clings`].
    clinging: BTreeSet<Arc<str>>,
}

struct AddressMemo {
    config: Arc<Config>,
    host: Arc<Host>,
    node: Option<Arc<Node>>,
    chosen: Chosen,
}

/// Everything that fabrics want of this node's kernel, and what to tell the peers.
pub fn plan<'a>(memo: &'a mut Memo, world: &World, owned: &Owned, now: Instant) -> &'a Out {
    let Chosen { uplinks, mut conditions, until } = memo.address(world, now).clone();
    let (word, devices) = (advert::word(world), own::devices(world));
    let (wireguard, wireguard_turns_at) = rotation::due(world, devices.values().chain(&word.accepts), now);
    let (ipsec, ipsec_turns_at) = rotation::due_of_ipsec(world, now);
    let node = LocalNode {
        name: world.local.clone(),
        uid: world.local_node().map(|node| node.uid.clone()).unwrap_or_default(),
        engine_addresses: udp::addresses(&uplinks, advert::last(world)),
        fabric_addresses: owned.fabric_addresses,
        blocks: owned.blocks.clone(),
        flannel_macs: world.local_node().map(|node| flannel::macs(node)).unwrap_or_default(),
        learning: world.config.vxlan.learning,
        ipv6: world.features.ipv6,
        kernel_encrypts: world.features.wireguard,
        encrypts_from: nodes::sources(world, &uplinks),
        wireguard,
        ipsec,
        public_keys: own::keys(world, &devices),
        uplinks,
    };
    let pools = pools(world);
    let own_targets = own_targets(world, &node);
    let mut changed = memo.census.update(world, now);
    changed.append(&mut memo.rerouted(world));
    changed.append(&mut memo.retested(world));
    changed.append(&mut memo.shook_hands(world));
    let ready = ready(world, &node, owned, devices.values(), &word);
    let strict = own::is_strict(world);
    let mut ground = Ground { ready, announced: word.sends.clone(), devices, strict, ..Ground::default() };
    ground.encrypts_from = nodes::in_force(world, &node, &ground);
    let common = Common { config: world.config.clone(), pools, node, ground };
    if memo.common.as_ref() != Some(&common) {
        changed.extend(memo.census.peers.keys().chain(memo.out.peers.keys()).cloned());
        memo.common = Some(common.clone());
    }
    let (wanted, unheard) = memo.replan(world, &common, &own_targets, &word, changed, now);

    let (node, ready) = (&common.node, &common.ground.ready);
    let in_use = memo.out.receives.iter().chain(memo.census.sends()).chain(memo.census.accepts());
    let pod_mtu = pod_mtu(node, in_use);
    let mut sends: BTreeSet<Instance> = memo.sends.iter().chain(own_targets.intersection(ready)).copied().collect();
    if !world.kernel_is_settled() {
        // The kernel may hold any plan between the one read back and the latest.
        sends.extend(&word.last_sends);
    }
    let mtu_in_force = owned.mtu_in_force.unwrap_or(0).max(pod_mtu);
    let join = join::plan(world, node, &memo.out.peers, &memo.census, now);
    let acknowledges = join::acknowledged(world, node, &memo.out.peers, &memo.census);
    let accepts = advert::endpoints(world, node, owned, &word, &(&wanted & ready));
    let may_be_there = |at: &Instance| {
        // Between the plan that was read back and the latest the kernel may hold any.
        let is_in_kernel = || common.ground.devices.values().any(|there| there == at);
        !world.kernel_is_settled() || memo.out.receives.contains(at) || is_in_kernel()
    };
    let leaving = advert::leaving(world, node, owned, &accepts, may_be_there);
    let advert = advert::advert(world, node, mtu_in_force, (accepts, leaving), &sends, (join.joining, acknowledges));
    let mut state = own::state(world, node, &memo.out.receives, &wanted);
    for (key, object) in nodes::rules(&world.config, node, common.ground.devices.values()) {
        state.insert(key, object, Owner::Node);
    }
    memo.out.state.replace(&memo.own, &state);
    memo.own = state;
    conditions.extend(own::unsupported(world, &wanted));
    conditions.extend(own::unheard(world, &unheard));
    conditions.extend(ipsec::impossible(world, node));
    conditions.extend(memo.troubled.iter().flat_map(|name| memo.out.peers[name].conditions.iter().cloned()));
    conditions.extend(join.condition.clone());
    let strict = world.config.strict_encryption && (common.ground.strict || sends.iter().all(Instance::is_encrypted));
    conditions.extend((world.config.strict_encryption && !strict).then(|| memo.strict_waits(world)));
    let drained_at = memo.drained_at(world).filter(|at| *at > now);
    // A node that is silent may hear what it said last. No one node's word takes DNS from all pods.
    let theirs = memo.census.hears().filter(|at| !at.is_at_well_known_port());
    let heard = memo.out.receives.iter().copied().chain(theirs);
    let between_nodes = heard.filter_map(|at| at.unwraps_at()).chain(world.config.ports_between_nodes()).collect();
    let out = &mut memo.out;
    out.between_nodes = between_nodes;
    out.advert = world.local_node().is_some().then_some(advert);
    (out.underlay_mtu, out.pod_mtu) = (underlay_mtu(node), pod_mtu);
    (out.conditions, out.node, out.targets) = (conditions, common.node, own_targets);
    let turns_at = [wireguard_turns_at, ipsec_turns_at];
    let wakes = [memo.census.next_expiry(world), drained_at, until, join.until].into_iter().chain(turns_at);
    out.wake_at = wakes.flatten().min();
    (out.open, out.strict) = (join.open, strict);
    &memo.out
}

/// Instances that can be used now. What peers were told stays true while a device that somebody deleted is made again.
fn ready<'a>(
    world: &World,
    node: &LocalNode,
    owned: &Owned,
    devices: impl Iterator<Item = &'a Instance>,
    word: &'a Word,
) -> BTreeSet<Instance> {
    let is_ready = |at: &Instance| {
        own::is_possible(world, node, at) && (word.accepts.contains(at) || own::is_in_kernel(world, node, owned, at))
    };
    devices.chain([&Instance::HostGw]).chain(&word.accepts).copied().filter(is_ready).collect()
}

// === impl Memo ===

impl Memo {
    /// The last plan.
    pub fn last(&self) -> &Out {
        &self.out
    }

    fn address(&mut self, world: &World, now: Instant) -> &Chosen {
        let node = world.local_node();
        let same_node = |before: &Option<Arc<Node>>| match (before, node) {
            (Some(before), Some(node)) => Arc::ptr_eq(before, node),
            (before, node) => before.is_none() && node.is_none(),
        };
        let same = |before: &AddressMemo| {
            Arc::ptr_eq(&before.config, &world.config)
                && Arc::ptr_eq(&before.host, &world.host)
                && same_node(&before.node)
                && before.chosen.until.is_none_or(|until| now < until)
        };
        let memo = self.address.take().filter(same).unwrap_or_else(|| AddressMemo {
            config: world.config.clone(),
            host: world.host.clone(),
            node: node.cloned(),
            chosen: address::choose(world, now),
        });
        &self.address.insert(memo).chosen
    }

    /// Peers whose routes in the kernel are not what they were, or whose endpoint is known from there alone.
    fn rerouted(&mut self, world: &World) -> BTreeSet<Arc<str>> {
        let mut names = self.clinging.clone();
        if self.common.is_none() {
            // All of them are planned anyway.
            self.mirror = world.programmed.mirror.clone();
            return names;
        }
        for key in self.mirror.differing_keys(&world.programmed.mirror) {
            if let Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst, metric: ROUTE_METRIC | STANDBY_METRIC } = key {
                names.extend(self.census.holder(Claim::Block(*dst)).cloned());
            }
        }
        self.mirror = world.programmed.mirror.clone();
        names
    }

    /// Peers of which the path self-test says something else.
    fn retested(&mut self, world: &World) -> BTreeSet<Arc<str>> {
        if Arc::ptr_eq(&self.passes, &world.passes) {
            return BTreeSet::new();
        }
        let was = std::mem::replace(&mut self.passes, world.passes.clone());
        let ways = was.keys().chain(self.passes.keys());
        ways.filter(|way| was.get(way) != self.passes.get(way)).map(|(peer, _)| peer.clone()).collect()
    }

    /// Peers with whom a handshake came about, or has to come about again.
    fn shook_hands(&mut self, world: &World) -> BTreeSet<Arc<str>> {
        let now = &world.host.encryption.handshakes;
        if self.handshakes == *now {
            return BTreeSet::new();
        }
        let before = std::mem::replace(&mut self.handshakes, now.clone());
        let differs = |of: &&(LinkName, PublicKey)| before.get(of) != now.get(of);
        let keys: BTreeSet<PublicKey> = before.keys().chain(now.keys()).filter(differs).map(|(_, key)| *key).collect();
        keys.iter().filter_map(|key| self.census.holder(Claim::key(key)).cloned()).collect()
    }

    fn strict_waits(&self, world: &World) -> Condition {
        let sends = |peer: &PeerState| peer.sends().any(|at| !at.is_encrypted());
        let in_clear = self.out.peers.iter().filter(|(_, peer)| sends(peer));
        let peers: Vec<String> = in_clear.map(|(name, _)| name.to_string()).collect();
        Condition {
            about: "NetworkConfig/default".into(),
            field: "spec.strictEncryption".into(),
            reason: "StrictWaits",
            message: format!("{} still sends in clear to {}", world.local, peers.join(", ")),
            fix: "wait until those pairs are encrypted; where one cannot be, see its condition Unencrypted".into(),
        }
    }

    /// Plans what changed again. Returns what there is reason to receive on, and what is not received on in spite of one.
    fn replan(
        &mut self,
        world: &World,
        common: &Common,
        own_targets: &BTreeSet<Instance>,
        word: &Word,
        mut changed: BTreeSet<Arc<str>>,
        now: Instant,
    ) -> (BTreeSet<Instance>, Vec<Instance>) {
        for name in &changed {
            if self.census.not_live.contains(name) {
                self.count_out(name);
            } else {
                self.replan_peer(world, common, name);
            }
        }
        let (wanted, unheard) = self.wanted(world, common.ground.strict, own_targets, word, now);
        let mut receives = &wanted | &word.accepts;
        let there: BTreeSet<Instance> = common.ground.devices.values().copied().collect();
        // A device that has lost its key lets nothing out until it has another; without it routes would lead elsewhere.
        let is_kept = |at: &Instance| matches!(at, Instance::Ipsec { .. }) && there.contains(at);
        receives.retain(|at| own::is_possible(world, &common.node, at) || is_kept(at));
        rotation::one_a_port(&mut receives, [&word.accepts, &there, own_targets]);
        // Peers that are not live have no say in what there is: they come last, and all of them when it differs.
        if receives != self.out.receives {
            changed = self.census.not_live.clone();
            // Who may be heard by it does depend on what there is, and nothing depends on that in turn.
            if receives.symmetric_difference(&self.out.receives).any(Instance::knows_senders) {
                changed.extend(self.census.peers.keys().cloned());
            }
            self.out.receives = receives;
        } else {
            changed = changed.intersection(&self.census.not_live).cloned().collect();
        }
        for name in changed {
            self.replan_peer(world, common, &name);
        }
        (wanted, unheard)
    }

    /// Instances there is reason to receive on: those this node or a peer is configured for, those a peer may still
    /// send on, those this node sends on itself, and for the drain time whatever peers were told. And what there is no room for.
    fn wanted(
        &self,
        world: &World,
        strict: bool,
        own_targets: &BTreeSet<Instance>,
        word: &Word,
        now: Instant,
    ) -> (BTreeSet<Instance>, Vec<Instance>) {
        // Once nothing leaves in clear nothing more is taken in so, whatever peers say; who was told may go on.
        let allowed = |at: &&Instance| !strict || at.is_encrypted() || word.accepts.contains(*at);
        let own = own_targets.iter().chain(self.targets.iter().filter(allowed)).chain(self.sends.iter());
        let mut wanted: BTreeSet<Instance> = own.copied().collect();
        let room = MOST_FOR_OTHERS.saturating_sub(word.accepts.difference(&wanted).count());
        let theirs = self.census.sends_by_number().into_iter().filter(|at| allowed(&at) && !wanted.contains(at));
        let (told, mut new): (Vec<Instance>, Vec<Instance>) = theirs.partition(|at| word.accepts.contains(at));
        // Nor is a node's word to keep another's own fabrics from their ports, as it would where a device is made anew.
        new.retain(|at| !at.is_at_well_known_port() && !at.is_in_the_way(&world.config));
        let unheard = new.split_off(room.min(new.len()));
        wanted.extend(told.into_iter().chain(new));
        if self.drained_at(world).is_some_and(|at| at > now) {
            wanted.extend(&word.accepts);
        }
        (wanted, unheard)
    }

    fn drained_at(&self, world: &World) -> Option<Instant> {
        self.census.sends_changed().map(|at| at + world.config.drain)
    }

    fn replan_peer(&mut self, world: &World, common: &Common, name: &Arc<str>) {
        self.count_out(name);
        let (census, receives) = (&self.census, &self.out.receives);
        let mut after = census.peers.get(name).map(|member| peer::plan(world, common, census, receives, name, member));
        let before = self.out.peers.remove(name);
        // The state and the part share their entries, as long as a new part that says the same does not take its place.
        if let (Some(before), Some(after)) = (&before, &mut after)
            && before.part == after.part
        {
            after.part = before.part.clone();
        }
        let nothing = Part::default();
        let (was, is) = (before.as_ref().map(|peer| &peer.part), after.as_ref().map(|peer| &peer.part));
        self.out.state.replace_part(was.unwrap_or(&nothing), is.unwrap_or(&nothing));
        self.troubled.remove(name);
        self.clinging.remove(name);
        let Some(after) = after else { return };
        if after.live {
            self.targets.add(after.targets());
            self.sends.add(after.sends());
        }
        if !after.conditions.is_empty() {
            self.troubled.insert(name.clone());
        }
        if after.clings {
            self.clinging.insert(name.clone());
        }
        self.out.peers.insert(name.clone(), Box::new(after));
    }

    fn count_out(&mut self, name: &Arc<str>) {
        if let Some(before) = self.out.peers.get_mut(name).filter(|before| before.live) {
            self.targets.sub(before.targets());
            self.sends.sub(before.sends());
            before.live = false;
        }
    }
}
