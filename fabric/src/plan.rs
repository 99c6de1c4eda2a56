//! The loop over peers and families, once for all fabrics.
//!
//! Invariant: `plan(memo, world) == plan(empty, world)`. Only peers whose own facts differ are computed again; all of
//! them when what they have in common differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Config, Family, PerFamily, World};
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_METRIC, UNREACHABLE_METRIC};
use tartan_netstate::{Key, LinkName, Netns, Object, Owner, Route, Scope, State};

use crate::census::{Census, Claim, Counts, Member};
use crate::choose::{Choice, Ground, choose, own_targets, target};
use crate::mtu::{device_mtu, pod_mtu};
use crate::{Hop, Instance, LocalNode, Peer, address, advert, fabric_of};

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
    /// For `tartan status`.
    pub peers: BTreeMap<Arc<str>, PeerState>,
    /// Instances this node receives on.
    pub receives: BTreeSet<Instance>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Instant>,
}

/// How things stand with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    pub choice: Choice,
    /// What carries packets to it in the kernel, when that is still another instance than chosen.
    pub leaving: Option<Instance>,
    pub live: bool,
    pub blocks: Vec<IpNet>,
    pub conditions: Vec<Condition>,
    part: State,
}

/// Last inputs and outputs.
#[derive(Default)]
pub struct Memo {
    census: Census,
    common: Option<Common>,
    out: Out,
    /// The part of `out.state` that is this node's own; no key of it can be a key of a peer's part.
    own: State,
    /// Instances that this node sends on towards live peers, or is about to.
    sends: Counts,
    uses: Counts,
    targets: Counts,
    leaving: BTreeSet<Arc<str>>,
    troubled: BTreeSet<Arc<str>>,
}

/// What the plan for every peer depends on.
#[derive(Clone, PartialEq)]
struct Common {
    config: Arc<Config>,
    node: LocalNode,
    ground: Ground,
}

/// Everything that fabrics want of this node's kernel, and what to tell the peers.
pub fn plan<'a>(memo: &'a mut Memo, world: &World, owned: &Owned, now: Instant) -> &'a Out {
    let (uplinks, mut conditions) = address::choose(world);
    let uid = world.local_node().map(|node| node.uid.clone()).unwrap_or_default();
    let node = LocalNode {
        name: world.local.clone(),
        uid,
        uplinks,
        fabric_addresses: owned.fabric_addresses,
        blocks: owned.blocks.clone(),
    };
    let mut changed = memo.census.update(world, now);
    changed.append(&mut memo.leaving);
    let (accepted_before, announced) = advert::announced(world);
    let ready = ready(world, &node, owned, &memo.receivable(&world.config, &node), &accepted_before);
    let common = Common { config: world.config.clone(), node: node.clone(), ground: Ground { ready, announced } };
    if memo.common.as_ref() != Some(&common) {
        changed.extend(memo.census.peers.keys().cloned());
        changed.extend(memo.out.peers.keys().cloned());
        memo.common = Some(common.clone());
    }
    for name in &changed {
        memo.replan_peer(world, &common, name);
    }
    let receives = memo.receives(world, &common, now);
    let underlay_mtu = node.uplinks.iter().map(|(_, uplink)| uplink.mtu).min().unwrap_or(1500);
    let in_use = receives.iter().chain(memo.census.sends()).chain(memo.census.accepts());
    let pod_mtu = pod_mtu(underlay_mtu, in_use);
    conditions.extend(memo.troubled.iter().flat_map(|name| memo.out.peers[name].conditions.iter().cloned()));
    conditions.extend(unsupported(world, &receives));
    let ready = receives.iter().copied().filter(|at| common.ground.ready.contains(at)).collect();
    let sends: BTreeSet<Instance> = memo.sends.iter().copied().collect();
    let mtu_in_force = owned.mtu_in_force.unwrap_or(0).max(pod_mtu);
    let advert = advert::advert(world, &node, mtu_in_force, &ready, &sends);
    let own = own_state(world, &node, &receives);
    replace(&mut memo.out.state, &memo.own, &own);
    memo.own = own;
    let drained_at = memo.drained_at(world).filter(|at| *at > now);
    let out = &mut memo.out;
    out.advert = (!node.uid.is_empty() || world.local_node().is_some()).then_some(advert);
    (out.conditions, out.node, out.receives) = (conditions, node, receives);
    (out.underlay_mtu, out.pod_mtu) = (underlay_mtu, pod_mtu);
    out.wake_at = [memo.census.next_expiry(), drained_at].into_iter().flatten().min();
    &memo.out
}

/// Instances that this node can use now: all that they need is in the kernel, and no pod sends packets too large.
///
/// What peers were told stays true while a device that somebody deleted is made again.
fn ready(
    world: &World,
    node: &LocalNode,
    owned: &Owned,
    candidates: &BTreeSet<Instance>,
    accepted_before: &BTreeSet<Instance>,
) -> BTreeSet<Instance> {
    let in_kernel = |at: &Instance| {
        let part = fabric_of(at.mode()).receive(node, at);
        let mtu = at.underlay().and_then(|family| node.uplinks.get(family)).map_or(u32::MAX, |uplink| uplink.mtu);
        let fits = at.underlay().is_none() || owned.mtu_in_force.unwrap_or(0) <= device_mtu(mtu, at);
        world.programmed.read && fits && world.programmed.mirror.holds_all(&part)
    };
    let possible = |at: &Instance| {
        fabric_of(at.mode()).needs(&world.features).is_ok() && fabric_of(at.mode()).endpoint(node, at).is_some()
    };
    candidates.iter().copied().filter(|at| possible(at) && (accepted_before.contains(at) || in_kernel(at))).collect()
}

/// What this node wants whoever its peers are: forwarding, its own addresses, dead ends for dead addresses, and the
/// receive side of every instance in use.
fn own_state(world: &World, node: &LocalNode, receives: &BTreeSet<Instance>) -> State {
    let mut state = State::new();
    let mut sysctl = |key: Key, value: &str| state.insert(key, Object::Sysctl(value.into()), Owner::Node);
    let forwarding = [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")];
    for (_, name) in forwarding.into_iter().filter(|(family, _)| *family == Family::V4 || world.features.ipv6) {
        sysctl(Key::Sysctl { ns: Netns::Host, name: name.into() }, "1");
    }
    for link in world.host.links.iter().filter(|link| link.accept_ra == 1 && world.features.ipv6 && !link.loopback) {
        // A forwarding node takes no router advertisements with 1, and would lose its default route.
        if let Some(link) = LinkName::new(&link.name) {
            sysctl(Key::UplinkSysctl { link, name: "ipv6/accept_ra".into() }, "2");
        }
    }
    let lo = LinkName::new("lo").expect("lo is a link name");
    for (_, ip) in node.fabric_addresses.iter() {
        let key = Key::Address { ns: Netns::Host, link: lo.clone(), address: Family::host_net(*ip) };
        state.insert(key, Object::Address(Scope::Link), Owner::Node);
    }
    for block in &node.blocks {
        let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: UNREACHABLE_METRIC };
        state.insert(key, Object::Route(Route::unreachable()), Owner::Node);
    }
    for at in receives {
        for (key, entry) in fabric_of(at.mode()).receive(node, at).iter() {
            state.insert(key.clone(), entry.object.clone(), entry.owner.clone());
        }
    }
    state
}

fn unsupported(world: &World, receives: &BTreeSet<Instance>) -> Vec<Condition> {
    let missing = |at: &Instance| Some((*at, fabric_of(at.mode()).needs(&world.features).err()?));
    let condition = |(at, missing): (Instance, &str)| Condition {
        about: format!("Node/{}", world.local),
        field: "NetworkConfig spec.fabric".into(),
        reason: "FabricUnsupported",
        message: format!("{} cannot use {at}: {missing}", world.local),
        fix: "give the node that kernel feature, or set spec.fabric to one that every node can use".into(),
    };
    receives.iter().filter_map(missing).map(condition).collect()
}

// === impl Memo ===

impl Memo {
    /// The last plan.
    pub fn last(&self) -> &Out {
        &self.out
    }

    /// Instances this node has, or may come to have, reason to receive on.
    fn receivable(&self, config: &Config, node: &LocalNode) -> BTreeSet<Instance> {
        let own = own_targets(config, node).into_iter();
        let theirs = self.census.sends().chain(self.census.accepts());
        own.chain(theirs.copied()).chain(self.targets.iter().copied()).chain(self.uses.iter().copied()).collect()
    }

    /// Instances this node receives on: those it or a peer is configured for, those a peer may still send on, those
    /// it still sends on itself, and for the drain time whatever else it has.
    fn receives(&self, world: &World, common: &Common, now: Instant) -> BTreeSet<Instance> {
        let mut receives: BTreeSet<Instance> = own_targets(&common.config, &common.node).into_iter().collect();
        receives.extend(self.targets.iter());
        receives.extend(self.census.sends());
        receives.extend(self.uses.iter().chain(self.sends.iter()));
        if self.drained_at(world).is_some_and(|at| at > now) {
            receives.extend(advert::announced(world).0);
        }
        receives.retain(|at| fabric_of(at.mode()).endpoint(&common.node, at).is_some());
        receives
    }

    fn drained_at(&self, world: &World) -> Option<Instant> {
        self.census.sends_changed().map(|at| at + world.config.drain)
    }

    fn replan_peer(&mut self, world: &World, common: &Common, name: &Arc<str>) {
        let before = self.out.peers.remove(name);
        self.troubled.remove(name);
        if let Some(before) = &before {
            self.targets.sub(&before.choice.target);
            self.uses.sub(&before.choice.used);
            if before.live {
                self.sends.sub(before.sends());
            }
        }
        let after = self.census.peers.get(name).map(|member| peer(world, common, &self.census, name, member));
        let nothing = State::new();
        let part = |peer: &Option<PeerState>| peer.as_ref().map_or(nothing.clone(), |peer| peer.part.clone());
        replace(&mut self.out.state, &part(&before), &part(&after));
        let Some(after) = after else { return };
        self.targets.add(&after.choice.target);
        self.uses.add(&after.choice.used);
        if after.live {
            self.sends.add(after.sends());
        }
        if after.leaving.is_some() {
            self.leaving.insert(name.clone());
        }
        if !after.conditions.is_empty() {
            self.troubled.insert(name.clone());
        }
        self.out.peers.insert(name.clone(), after);
    }
}

/// Takes `before` out and puts `after` in, leaving alone what is in both.
fn replace(state: &mut State, before: &State, after: &State) {
    for (key, _) in before.iter().filter(|(key, _)| after.get(key).is_none()) {
        state.remove(key);
    }
    for (key, entry) in after.iter().filter(|(key, entry)| before.get(key) != Some(entry)) {
        state.insert(key.clone(), entry.object.clone(), entry.owner.clone());
    }
}

fn peer(world: &World, common: &Common, census: &Census, name: &Arc<str>, member: &Member) -> PeerState {
    let advert = &member.heard.advert;
    let mut conditions = Vec::new();
    let blocks = own_blocks(common, census, name, member, &mut conditions);
    let current = current(world, common, member, &blocks);
    let target = target(&common.config, &common.node, &advert.addresses);
    let choice = choose(&common.ground, member, target, current);
    let mut part = State::new();
    let endpoint = choice.used.and_then(|used| member.accepts.iter().find(|(at, _)| *at == used));
    if let (Some((at, endpoint)), true) =
        (endpoint, addresses_are_its_own(common, census, name, member, &mut conditions))
    {
        let fabric_addresses = advert.fabric_addresses;
        let peer = Peer { name, addresses: advert.addresses, fabric_addresses, endpoint };
        let sending = fabric_of(at.mode()).send(&common.node, at, &peer);
        part = sending.state;
        conditions.extend(sending.conditions);
        for block in &blocks {
            if let Some(hop) = sending.hops.get(Family::of_net(block)) {
                let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: ROUTE_METRIC };
                let route = Object::Route(route(&common.node, Family::of_net(block), hop));
                part.insert(key, route, Owner::Peer(name.clone()));
            }
        }
    } else if member.live && choice.announce.is_none() {
        conditions.extend(unreachable(common, name, member, target));
    }
    let leaving = current.filter(|current| Some(*current) != choice.used);
    PeerState { choice, leaving, live: member.live, blocks, conditions, part }
}

fn route(node: &LocalNode, family: Family, hop: &Hop) -> Route {
    let src = node.fabric_addresses.get(family).copied();
    Route { src, onlink: hop.onlink, ..Route::via(hop.via, hop.dev.clone()) }
}

/// What the kernel uses towards a peer now.
fn current(world: &World, common: &Common, member: &Member, blocks: &[IpNet]) -> Option<Instance> {
    let dev = blocks.iter().find_map(|block| {
        let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: ROUTE_METRIC };
        match world.programmed.mirror.get(&key).map(|entry| &entry.object) {
            Some(Object::Route(route)) => route.dev.clone(),
            _ => None,
        }
    })?;
    if common.node.uplinks.iter().any(|(_, uplink)| uplink.link == dev) {
        return Some(Instance::HostGw);
    }
    let known = member.accepts.iter().map(|(at, _)| at).chain(&common.ground.announced).chain(&common.ground.ready);
    known.copied().find(|at| at.mode() != tartan_model::FabricMode::HostGw && at.device() == dev)
}

/// The peer's ranges, without those that somebody else has: this node, or a peer that comes first.
fn own_blocks(
    common: &Common,
    census: &Census,
    name: &Arc<str>,
    member: &Member,
    conditions: &mut Vec<Condition>,
) -> Vec<IpNet> {
    let mut refuse = |block: &IpNet, message: String, fix: &str| {
        conditions.push(Condition {
            about: format!("NodeNetwork/{name}"),
            field: "spec.blocks".into(),
            reason: "RangeNotItsOwn",
            message: format!("{name} says {block} is its own, but {message}; no route leads there"),
            fix: fix.into(),
        });
    };
    for block in &member.unproven {
        refuse(
            block,
            "neither its Node's podCIDRs nor an IPBlock says so".into(),
            "wait, or look at the Node's spec.podCIDRs and at the IPBlock object",
        );
    }
    let mut own = Vec::new();
    for block in &member.blocks {
        let overlaps = |mine: &&IpNet| mine.contains(block) || block.contains(*mine);
        match (common.node.blocks.iter().find(overlaps), census.holder(Claim::Block(*block))) {
            (Some(mine), _) => {
                refuse(block, format!("it overlaps this node's {mine}"), "give the two nodes different ranges")
            }
            (None, Some(holder)) if holder != name => {
                refuse(block, format!("{holder} has it"), "give the two nodes different ranges");
            }
            _ => own.push(*block),
        }
    }
    own
}

/// Two nodes with one address: packets to one would reach the other.
fn addresses_are_its_own(
    common: &Common,
    census: &Census,
    name: &Arc<str>,
    member: &Member,
    conditions: &mut Vec<Condition>,
) -> bool {
    let advert = &member.heard.advert;
    for (_, ip) in advert.addresses.iter().chain(advert.fabric_addresses.iter()) {
        let mine = common.node.uplinks.iter().any(|(_, uplink)| uplink.advertised() == *ip)
            || common.node.fabric_addresses.iter().any(|(_, own)| own == ip);
        let holder = if mine { Some(&common.node.name) } else { census.holder(Claim::Address(*ip)) };
        if let Some(holder) = holder.filter(|holder| *holder != name) {
            conditions.push(Condition {
                about: format!("Node/{name}"),
                field: "status.addresses".into(),
                reason: "TwoNodesOneAddress",
                message: format!("{name} and {holder} both say their address is {ip}; {name} is not reached"),
                fix: format!("correct the InternalIP of one of them, or set {} on it", address::ANNOTATION_CIDRS),
            });
            return false;
        }
    }
    true
}

fn unreachable(common: &Common, name: &Arc<str>, member: &Member, target: Option<Instance>) -> Option<Condition> {
    let theirs: Vec<String> = member.heard.advert.accepts.iter().map(|end| end.instance.to_string()).collect();
    let (message, fix) = match target {
        None => (
            format!("{name} and {} have no address family in common that spec.underlay allows", common.node.name),
            "give both an address of one family, or change spec.underlay",
        ),
        // A peer that accepts nothing yet is about to; one that accepts only other things is a matter for its admin.
        Some(_) if theirs.is_empty() => return None,
        Some(target) if member.accepts.iter().any(|(at, _)| *at == target) => return None,
        Some(target) => (
            format!("{} sends by {target}, but {name} hears only {}", common.node.name, theirs.join(", ")),
            "look at the agent there: it has not taken the present configuration, or cannot",
        ),
    };
    Some(Condition {
        about: format!("Node/{name}"),
        field: "NetworkConfig spec.fabric".into(),
        reason: "NoCommonFabric",
        message,
        fix: fix.into(),
    })
}

// === impl PeerState ===

impl PeerState {
    /// Every instance that packets to this peer may take, now or soon.
    fn sends(&self) -> impl Iterator<Item = &Instance> {
        [&self.choice.used, &self.choice.announce, &self.leaving].into_iter().flatten()
    }
}
