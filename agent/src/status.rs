//! Answers to users, derived from World and the last plan; and the few numbers that cannot be derived.

use std::sync::Arc;
use std::time::Duration;

use tartan_api::status as api;
use tartan_api::tartan as kinds;
use tartan_fabric::{Instance, Out, PeerState};
use tartan_kernel::thread::Applied;
use tartan_model::{Condition, Config, Kind, ObjectId, Revision, World};

use crate::plan::{Plan, Planners, is_known, said_by_the_store};
use crate::policy::said;

/// What has happened since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub plans: u64,
    pub planning: Duration,
    /// Kernel changes tried.
    pub applied: u64,
    /// Of these, made because somebody else changed what was ours.
    pub repaired: u64,
}

impl Counters {
    /// One more plan, and how long it took.
    pub fn plan(&mut self, took: Duration) {
        self.plans += 1;
        self.planning += took;
    }

    /// What the kernel thread did.
    pub fn applied(&mut self, applied: &Applied) {
        self.applied += applied.applied;
        self.repaired += applied.repaired;
    }
}

/// How things stand, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub status: api::Status,
    pub counters: Counters,
    pub config: Arc<Config>,
    /// None where no document says what the configuration is.
    pub config_revision: Option<Revision>,
}

/// A look at everything.
pub fn look(world: &World, planners: &Planners, plan: &Plan, counters: &Counters) -> Seen {
    let id = ObjectId { kind: Kind::NetworkConfig, name: kinds::CONFIG_NAME.into() };
    Seen {
        status: status(world, planners, plan, counters),
        counters: counters.clone(),
        config: world.config.clone(),
        config_revision: world.revisions.get(&id).cloned(),
    }
}

fn status(world: &World, planners: &Planners, plan: &Plan, counters: &Counters) -> api::Status {
    let fabric = planners.fabric();
    let waiting_for = waiting_for(world);
    let said = plan.policy.as_ref().map(said).unwrap_or_default();
    api::Status {
        node: world.local.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: waiting_for.is_empty() && world.programmed.failures.is_empty(),
        waiting_for,
        fabric: world.config.fabric.to_string(),
        phase: phase(world, fabric),
        receives: fabric.receives.iter().map(Instance::to_string).collect(),
        addresses: addresses(fabric),
        fabric_addresses: fabric.node.fabric_addresses.iter().map(|(_, ip)| ip.to_string()).collect(),
        pod_mtu: fabric.pod_mtu,
        blocks: blocks(world, fabric),
        pods: pods(world),
        peers: fabric.peers.iter().map(|(name, peer)| self::peer(name, peer)).collect(),
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

fn phase(world: &World, fabric: &Out) -> String {
    let moving = |peer: &PeerState| peer.live && peer.is_moving();
    let to_move: Vec<&str> = fabric.peers.iter().filter(|(_, peer)| moving(peer)).map(|(name, _)| &**name).collect();
    // Whoever the peers are, this node hears what it is configured for; and Flannel's for as long as that is spoken.
    let spoken = world.flannel().into_iter().flat_map(|flannel| tartan_fabric::flannel::instances(flannel));
    let targets = fabric.peers.values().flat_map(|peer| peer.targets());
    let targets: std::collections::BTreeSet<Instance> = targets.chain(spoken).collect();
    let targets = &targets | &tartan_fabric::choose::own_targets(&world.config, &fabric.node);
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

fn peer(name: &str, peer: &PeerState) -> api::Peer {
    api::Peer {
        node: name.into(),
        live: peer.live,
        fabric: peer.used().map(|at| at.to_string()).collect::<Vec<_>>().join(", "),
        blocks: peer.blocks.iter().map(ToString::to_string).collect(),
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
