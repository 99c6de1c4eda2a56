//! Answers to users, derived from World and the last plan; and the few numbers that cannot be derived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tartan_api::cni::Command;
use tartan_api::status as api;
use tartan_api::tartan as kinds;
use tartan_datapath::nftables::policy as nft;
use tartan_fabric::selftest::{Finding, Standing};
use tartan_fabric::{Instance, Out, PeerState};
use tartan_kernel::thread::Applied;
use tartan_model::{Condition, Config, Family, Kind, ObjectId, Revision, StoreEvent, World};

use crate::plan::{Plan, Planners, is_known, said_by_the_store};
use crate::policy::said;
use crate::selftest::Tested;
use crate::waiting::Waited;

/// What has happened since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub plans: u64,
    pub planning: Duration,
    /// Kernel changes tried, and how long that took.
    pub applied: u64,
    pub applying: Duration,
    /// Of these, made because somebody else changed what was ours.
    pub repaired: u64,
    /// What the store said of objects, by kind.
    pub events: BTreeMap<Kind, u64>,
    /// How often it listed a kind, or began to.
    pub lists: BTreeMap<Kind, u64>,
    /// What this node's writes to the store came to, and how often.
    pub writes: [(&'static str, u64); 3],
    /// Inputs that the loop found waiting when it last looked.
    pub waiting: u64,
    /// What the kernel thread has not come to yet, and how long the oldest of it has waited.
    pub kernel_waiting: (usize, Duration),
    /// Calls of the CNI plugin by verb and outcome.
    pub calls: BTreeMap<(&'static str, Outcome), Times>,
    /// What the ADDs that worked have waited for.
    pub waited: Waited,
    /// Calls that wait now.
    pub callers: usize,
    /// Records of what has happened that the journal does not have yet.
    pub owed: usize,
}

/// How long things took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub count: u64,
    pub all: Duration,
    /// How many took longer than the bound before and no longer than this one.
    pub up_to: [u64; Times::BOUNDS.len()],
}

impl Times {
    /// In ms. The longest is what a caller is kept waiting at most.
    pub const BOUNDS: [u64; 10] = [2, 5, 10, 25, 50, 100, 250, 1_000, 5_000, 45_000];

    /// One more.
    pub fn add(&mut self, took: Duration) {
        self.count += 1;
        self.all += took;
        if let Some(bound) = Times::BOUNDS.iter().position(|bound| took <= Duration::from_millis(*bound)) {
            self.up_to[bound] += 1;
        }
    }
}

/// What became of a call, to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Done,
    /// Told that it did not work.
    Refused,
    /// It hung up before it was told anything.
    Unheard,
}

impl Counters {
    /// One more plan, and how long it took.
    pub fn plan(&mut self, took: Duration) {
        self.plans += 1;
        self.planning += took;
    }

    /// What the store says.
    pub fn event(&mut self, event: &StoreEvent) {
        match event {
            StoreEvent::Put(id, ..) | StoreEvent::Delete(id) | StoreEvent::Invalid(id, _) => {
                *self.events.entry(id.kind).or_default() += 1;
            }
            StoreEvent::Moment(events) => events.iter().for_each(|event| self.event(event)),
            StoreEvent::Init(kind) => *self.lists.entry(*kind).or_default() += 1,
            StoreEvent::Synced(_) | StoreEvent::Notice(..) | StoreEvent::Away(..) => {}
        }
    }

    /// A call of the CNI plugin is over.
    pub fn cni(&mut self, command: Command, outcome: Outcome, took: Duration) {
        self.calls.entry((command.as_str(), outcome)).or_default().add(took);
    }

    /// What the kernel thread did.
    pub fn applied(&mut self, applied: &Applied) {
        self.applied += applied.applied;
        self.applying += applied.applying;
        self.repaired += applied.repaired;
    }
}

/// How things stand, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub status: api::Status,
    /// The store cannot be reached, or a part of it.
    pub store_away: bool,
    pub counters: Counters,
    pub config: Arc<Config>,
    /// None where no document says what the configuration is.
    pub config_revision: Option<Revision>,
}

/// A look at everything.
pub fn look(world: &World, planners: &Planners, plan: &Plan, counters: &Counters, tested: &Tested) -> Seen {
    let id = ObjectId { kind: Kind::NetworkConfig, name: kinds::CONFIG_NAME.into() };
    Seen {
        status: status(world, planners, plan, counters, tested),
        store_away: world.store_away().is_some(),
        counters: counters.clone(),
        config: world.config.clone(),
        config_revision: world.revisions.get(&id).cloned(),
    }
}

fn status(world: &World, planners: &Planners, plan: &Plan, counters: &Counters, tested: &Tested) -> api::Status {
    let fabric = planners.fabric();
    let waiting_for = waiting_for(world);
    let said = plan.policy.as_ref().map(said).unwrap_or_default();
    api::Status {
        node: world.local.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: waiting_for.is_empty() && world.programmed.failures.is_empty(),
        waiting_for,
        fabric: world.config.fabric.to_string(),
        phase: phase(fabric),
        receives: fabric.receives.iter().map(Instance::to_string).collect(),
        addresses: addresses(fabric),
        fabric_addresses: fabric.node.fabric_addresses.iter().map(|(_, ip)| ip.to_string()).collect(),
        pod_mtu: fabric.pod_mtu,
        blocks: blocks(world, fabric),
        pods: pods(world),
        adopted: adopted(world),
        peers: fabric.peers.iter().map(|(name, peer)| self::peer(name, peer, tested)).collect(),
        kernel: kernel(world, counters),
        policy: policy(world, plan),
        conditions: plan.conditions.iter().chain(&said).map(condition).collect(),
    }
}

/// What keeps this node from being ready; empty when nothing does.
pub fn waiting_for(world: &World) -> String {
    if !world.programmed.read {
        return "the first full read of the kernel".into();
    }
    if !is_known(world) {
        return unread(world);
    }
    if world.programmed.generation == 0 { "the first full pass".into() } else { String::new() }
}

/// What of the store has not been read yet.
pub fn unread(world: &World) -> String {
    match (world.store_away(), said_by_the_store(world).next()) {
        (Some(why), _) => format!("the store: {why}"),
        (None, Some(unread)) => format!("all of the store to be read: {}: {}", unread.about, unread.message),
        (None, None) => "the store's first list".into(),
    }
}

fn phase(fabric: &Out) -> String {
    let moving = |peer: &PeerState| peer.live && peer.is_moving();
    let to_move: Vec<&str> = fabric.peers.iter().filter(|(_, peer)| moving(peer)).map(|(name, _)| &**name).collect();
    let theirs: BTreeSet<Instance> = fabric.peers.values().flat_map(|peer| peer.targets()).collect();
    let targets = &theirs | &fabric.targets;
    let spare = fabric.receives.difference(&targets);
    let spare: Vec<String> = spare.map(Instance::to_string).collect();
    match (to_move.is_empty(), fabric.peers.is_empty() || spare.is_empty()) {
        (true, true) => "steady".into(),
        (false, _) => format!("changing: {} still to switch", to_move.join(", ")),
        (true, false) => format!("changing: still hears {}", spare.join(", ")),
    }
}

fn addresses(fabric: &Out) -> Vec<api::Address> {
    let address = |uplink: &tartan_fabric::Uplink| api::Address {
        address: uplink.advertised().to_string(),
        link: uplink.link.to_string(),
        mtu: uplink.mtu,
        why: uplink.why.clone(),
    };
    fabric.node.uplinks.iter().map(|(_, uplink)| address(uplink)).collect()
}

fn blocks(world: &World, fabric: &Out) -> Vec<api::BlockUse> {
    let addresses = || world.attachments.values().flat_map(|pod| pod.addresses.iter().map(|(_, address)| address));
    let used = |cidr: &ipnet::IpNet| addresses().filter(|address| cidr.contains(*address)).count() as u64;
    fabric.node.blocks.iter().map(|cidr| api::BlockUse { cidr: cidr.to_string(), used: used(cidr) }).collect()
}

fn pods(world: &World) -> Vec<api::Pod> {
    let pod = |attachment: &tartan_model::Attachment| api::Pod {
        pod: format!("{}/{}", attachment.pod_namespace, attachment.pod_name),
        addresses: attachment.addresses.iter().map(|(_, ip)| ip.to_string()).collect(),
        link: tartan_datapath::pod::host_link(&attachment.id).to_string(),
    };
    world.attachments.values().map(|attachment| pod(attachment)).collect()
}

/// Pods of the network before. An address of which no one Pod is known stands by itself.
fn adopted(world: &World) -> Vec<api::Adopted> {
    let mut pods: BTreeMap<(String, String), api::Adopted> = BTreeMap::new();
    for found in nft::all_from_before(world) {
        let judged = nft::is_judged_on_its_bridge(&world.programmed.mirror, &found);
        let (address, bridge) = (found.address.to_string(), found.bridge.to_string());
        let name = found.pod.as_deref().unwrap_or_default().to_owned();
        let at = (bridge.clone(), if name.is_empty() { address.clone() } else { name.clone() });
        let new = || api::Adopted { pod: name, addresses: Vec::new(), bridge, under_policy: true };
        let pod = pods.entry(at).or_insert_with(new);
        pod.addresses.push(address);
        pod.under_policy &= judged;
    }
    pods.into_values().collect()
}

fn peer(name: &Arc<str>, peer: &PeerState, tested: &Tested) -> api::Peer {
    let path = |family: Family| Some(path(family, tested.standings.get(&(name.clone(), family))?));
    api::Peer {
        node: name.to_string(),
        live: peer.live,
        fabric: peer.used().map(|at| at.to_string()).collect::<Vec<_>>().join(", "),
        to_itself: peer.to_itself.map(|at| at.to_string()).unwrap_or_default(),
        blocks: peer.blocks.iter().map(ToString::to_string).collect(),
        paths: Family::ALL.into_iter().filter_map(path).collect(),
    }
}

fn path(family: Family, standing: &Standing) -> api::Path {
    let largest = match standing.finding {
        None if standing.round_trip.is_some() => standing.target.mtu,
        Some(Finding::Narrow { largest }) => largest,
        _ => 0,
    };
    api::Path {
        family: family.to_string(),
        fault: standing.finding.map_or_else(String::new, |finding| finding.reason().into()),
        round_trip_micros: standing.round_trip.and_then(|time| time.as_micros().try_into().ok()),
        largest,
        asked: standing.asked,
        lost: standing.lost,
    }
}

fn kernel(world: &World, counters: &Counters) -> api::Kernel {
    let failure = |failed: &tartan_model::Failed| api::Failure {
        object: failed.key.to_string(),
        owner: failed.owner.to_string(),
        error: failed.error.to_string(),
    };
    api::Kernel {
        objects: world.programmed.mirror.len() as u64,
        applied: counters.applied,
        repaired: counters.repaired,
        failures: world.programmed.failures.iter().map(failure).collect(),
    }
}

fn policy(world: &World, plan: &Plan) -> api::Policy {
    let tables = plan.policy.as_ref().map(|policy| policy.tables.clone()).unwrap_or_default();
    let rows = tables.sets.values().flat_map(|set| [&set.ingress, &set.egress]).map(|rows| rows.words.len() as u64);
    api::Policy {
        mode: world.config.policy.to_string(),
        policies: world.policies.len() as u64,
        subjects: tables.subjects.len() as u64,
        sets: tables.sets.len() as u64,
        rows: rows.sum(),
        identities: tables.identities.len() as u64,
        addresses: tables.addresses.len() as u64,
        ranges: tables.ranges.len() as u64,
    }
}

/// A condition as documents have it.
pub fn condition(condition: &Condition) -> kinds::Condition {
    kinds::Condition {
        about: condition.about.clone(),
        field: condition.field.clone(),
        reason: condition.reason.into(),
        message: condition.message.clone(),
        fix: condition.fix.clone(),
    }
}
