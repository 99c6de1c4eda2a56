//! All planners, in the order in which they feed each other, and their results as one plan.
//!
//! Invariant: `Planners` holds memos only. Dropping it and planning again gives the same plan.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnet::IpNet;
use tartan_datapath::nftables::{self, Nftables};
use tartan_datapath::pod::Mtu;
use tartan_fabric::Instance;
use tartan_model::{Advert, Annotations, Availability, Condition, World};
use tartan_netstate::{Conflict, Layers, State};
use tartan_policy::verdicts;

use crate::inherited::Inherited;
use crate::placement::availability;
use crate::policy::{self, Policy};
use crate::ranges::ClusterRanges;
use crate::refused;

/// Last inputs and outputs of every planner.
#[derive(Default)]
pub struct Planners {
    ipam: tartan_ipam::Memo,
    fabric: tartan_fabric::Memo,
    pods: tartan_datapath::pod::Pods,
    mtu_in_force: tartan_datapath::mtu::InForce,
    ranges: ClusterRanges,
    nftables: Nftables,
    firewall: tartan_datapath::firewall::Firewall,
    policy: Policy,
    layers: Layers<5>,
    inherited: Inherited,
}

/// What is wanted of the executors (`run.rs`), and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// For the kernel thread; none before World is known: the kernel keeps what it has.
    pub state: Option<State>,
    /// For the publisher; nothing before World is whole.
    pub advert: Option<Advert>,
    pub claims: Vec<tartan_ipam::Claim>,
    /// For those who place pods on nodes, where they do not know it.
    pub availability: Option<Availability>,
    /// For Flannel's nodes, where they do not know it.
    pub annotations: Option<Annotations>,
    /// Ranges that addresses may be given out of now.
    pub gives: Vec<IpNet>,
    /// What policy wants; none while it is off.
    pub policy: Option<verdicts::Out>,
    pub conditions: Vec<Condition>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Instant>,
}

impl Planners {
    /// What has been looked up for giving out addresses.
    pub fn ipam(&mut self) -> &mut tartan_ipam::Memo {
        &mut self.ipam
    }

    /// The fabric's last plan.
    pub fn fabric(&self) -> &tartan_fabric::Out {
        self.fabric.last()
    }

    /// The plan for this world.
    pub fn plan(&mut self, world: &World, now: Instant) -> Plan {
        let mut conditions: Vec<Condition> = said_by_the_store(world).cloned().collect();
        conditions.extend(refused::conditions(world));
        if !is_known(world) {
            return Plan { conditions, ..Plan::default() };
        }
        let ipam = tartan_ipam::plan(&mut self.ipam, world, now);
        let owned = tartan_fabric::Owned {
            blocks: ipam.blocks.clone(),
            fabric_addresses: ipam.fabric_addresses,
            mtu_in_force: self.mtu_in_force.of(&world.programmed.mirror),
        };
        let fabric = tartan_fabric::plan(&mut self.fabric, world, &owned, now);
        let mtu = Mtu { link: fabric.underlay_mtu, route: fabric.pod_mtu };
        let pods = self.pods.plan(world, mtu);
        let given = nftables::Given {
            fabric_address: owned.fabric_addresses,
            local_ranges: ipam.local.clone(),
            cluster_ranges: self.ranges.of(world, &owned.blocks, &fabric.peers),
            non_masquerade: world.config.non_masquerade.clone(),
            masquerade: world.config.masquerade,
            between_nodes: fabric.between_nodes.clone(),
            unwraps_at: fabric.receives.iter().filter_map(Instance::unwraps_at).collect(),
            by_ipsec: fabric.receives.iter().any(|at| matches!(at, Instance::Ipsec { .. })),
            encrypted_at: fabric.receives.iter().filter_map(Instance::encrypted_at).collect(),
            encrypts_from: fabric.node.encrypts_from,
            strict: fabric.strict,
            nodes_in_pools: if fabric.strict { self.ranges.nodes_in_pools(world) } else { BTreeSet::new() },
        };
        self.layers.set(0, &fabric.state);
        self.layers.set(1, pods);
        self.layers.set(2, &self.inherited.beside(world, self.nftables.plan(world, &given)));
        let policy = self.policy.plan(world, &fabric.between_nodes);
        self.layers.set(3, &policy.state);
        let firewall = self.firewall.plan(world);
        self.layers.set(4, &firewall.state);
        conditions.extend(ipam.conditions.iter().cloned());
        conditions.extend(fabric.conditions.iter().cloned());
        conditions.extend(firewall.conditions.iter().cloned());
        conditions.extend(policy::not_enforced(world, policy.out.as_ref()));
        conditions.extend(policy.out.iter().flat_map(|out| policy::cut_off(world, &out.tables)));
        conditions.extend(policy.out.iter().flat_map(|out| policy::too_many(world, &out.tables)));
        let from_before = |out: &verdicts::Out| policy::from_before(world, &out.tables, &policy.from_before);
        conditions.extend(policy.out.iter().flat_map(from_before));
        conditions
            .extend(self.layers.conflicts().chain(self.nftables.conflicts()).map(|two| conflict(&world.local, two)));
        conditions.extend((!world.is_whole()).then(|| from_memory(world)));
        let advert = fabric.advert.as_ref().filter(|_| world.is_whole());
        Plan {
            annotations: advert.and_then(|advert| annotations(world, advert)),
            state: Some(self.inherited.kept(world, self.layers.merged()).clone()),
            advert: advert.cloned(),
            claims: ipam.claims.clone(),
            availability: availability(world, fabric.open).filter(|_| world.is_whole()),
            gives: ipam.gives.clone(),
            policy: policy.out,
            conditions,
            wake_at: [ipam.wake_at, fabric.wake_at].into_iter().flatten().min(),
        }
    }
}

/// Whether everything a plan depends on is known: read, or recalled from an earlier life.
pub fn is_known(world: &World) -> bool {
    world.programmed.read && world.is_known()
}

/// This node's word for those who read annotations, as far as its Node does not say so.
fn annotations(world: &World, word: &Advert) -> Option<Annotations> {
    tartan_fabric::flannel::raise(world.flannel()?, world.local_node()?, word)
}

/// The store has not been read yet, and this node goes on with what it knew.
fn from_memory(world: &World) -> Condition {
    let why = crate::status::unread(world);
    Condition {
        about: format!("NodeNetwork/{}", world.local),
        field: String::new(),
        reason: "StoreUnread",
        message: format!("{} goes on with what it knew before it started: it waits for {why}", world.local),
        fix: "bring the store back; until then nothing of ours is taken out of the kernel but what pods leave behind"
            .into(),
    }
}

/// What the store cannot read, or has to say of its files.
pub fn said_by_the_store(world: &World) -> impl Iterator<Item = &Condition> {
    let invalid = world.invalid.values().map(|condition| &**condition);
    invalid.chain(world.notices.values().flat_map(|notices| notices.iter()))
}

fn conflict(node: &str, conflict: &Conflict) -> Condition {
    let Conflict { key, kept, lost } = conflict;
    Condition {
        about: format!("NodeNetwork/{node}"),
        field: String::new(),
        reason: "TwoWantOne",
        message: format!("{kept} and {lost} both want {key}; {kept} has it"),
        fix: "change one of the two settings that lead there".into(),
    }
}
