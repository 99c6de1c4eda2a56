//! One node: what it knows, the planners, and the kernel thread, tied together as the agent's loop does it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use tartan_datapath::nftables::policy::{Mirrored, Mode, Policy};
use tartan_datapath::nftables::{Given, Nftables};
use tartan_datapath::pod::{Mtu, Pods};
use tartan_kernel::Failure;
use tartan_kernel::linux::Linux;
use tartan_kernel::thread::{Applied, Handle, spawn};
use tartan_model::{PerFamily, Programmed, World};
use tartan_netstate::{Layers, State};
use tartan_policy::verdicts;

use super::faults::Fault;
use super::station::Station;
use crate::netns::Netns;

pub(crate) struct Node {
    // Dropped in this order: the thread leaves the namespace first.
    handle: Handle,
    reports: Receiver<Applied>,
    pub(crate) station: Station,
    pub(crate) netns: Netns,
    name: &'static str,
    planners: Planners,
    world: World,
    pub(crate) fault: Option<Fault>,
    /// What the kernel refuses; tried again.
    pub(crate) failures: Vec<Failure>,
    asked: u64,
    wanted: State,
    /// What is wanted after that.
    next: VecDeque<State>,
    /// What policy wanted last, and what of it the node was told to want.
    policy: State,
    told: State,
}

#[derive(Default)]
struct Planners {
    pods: Pods,
    nftables: Nftables,
    verdicts: verdicts::Memo,
    policy: Policy,
    held: Mirrored,
    layers: Layers<3>,
}

impl Node {
    pub(crate) fn new(name: &'static str, netns: Netns) -> Node {
        let (sender, reports) = channel();
        let handle = netns.run(move || {
            let report = move |applied| drop(sender.send(applied));
            spawn(Box::new(Linux::open().unwrap()), report).unwrap()
        });
        let station = Station::in_the_stack(&netns);
        let (planners, world, wanted) = (Planners::default(), World::default(), State::new());
        let (next, policy, told) = (VecDeque::new(), State::new(), State::new());
        Node {
            handle,
            reports,
            station,
            netns,
            name,
            planners,
            world,
            fault: None,
            failures: Vec::new(),
            asked: 0,
            wanted,
            next,
            policy,
            told,
        }
    }

    /// As an agent that starts anew.
    pub(crate) fn forget(&mut self) {
        self.planners = Planners::default();
        let Planners { verdicts, held, .. } = &mut self.planners;
        verdicts.held(held.held(&self.world.programmed.mirror));
    }

    pub(crate) fn learn(&mut self, mut world: World) {
        world.programmed = self.world.programmed.clone();
        world.features = tartan_model::Features { ipv6: true, vxlan: true, nft: true, wireguard: true };
        self.world = world;
        self.think();
    }

    /// Whether the kernel has all that follows from what the node knows, and nothing more follows from that.
    pub(crate) fn is_settled(&mut self) -> bool {
        while let Ok(applied) = self.reports.try_recv() {
            assert_eq!(applied.unknown, None, "{}", self.name);
            self.failures = applied.failures;
            let programmed = Programmed {
                generation: applied.generation,
                pods_generation: applied.pods_generation,
                mirror: applied.mirror,
                read: true,
                ..Programmed::default()
            };
            self.world.programmed(programmed, applied.host, Instant::now());
            let Planners { verdicts, held, .. } = &mut self.planners;
            verdicts.held(held.held(&self.world.programmed.mirror));
            self.think();
        }
        let is_done = self.world.programmed.generation == self.asked;
        if is_done && let Some(next) = self.next.pop_front() {
            self.want(next);
            return false;
        }
        is_done && self.failures.is_empty()
    }

    fn think(&mut self) {
        let Planners { pods, nftables, verdicts, policy, layers, .. } = &mut self.planners;
        let tables = &verdicts::plan(verdicts, &self.world).tables;
        let policy = policy.plan(&self.world, tables, Mode::Enforce, &given().between_nodes).clone();
        layers.set(0, pods.plan(&self.world, Mtu { link: 1500, route: 1500 }));
        layers.set(1, nftables.plan(&self.world, &given()));
        let before = std::mem::replace(&mut self.policy, policy.clone());
        let steps = match self.fault {
            Some(fault) if before.differing_keys(&policy).next().is_some() => fault(&self.told, &policy),
            Some(_) => Vec::new(),
            None => vec![policy],
        };
        for step in steps {
            layers.set(2, &step);
            self.told = step;
            self.next.push_back(layers.merged().clone());
        }
        if let Some(first) = self.next.pop_front() {
            self.want(first);
        }
    }

    fn want(&mut self, state: State) {
        if self.asked == 0 || state.differing_keys(&self.wanted).next().is_some() {
            self.asked += 1;
            self.wanted = state;
            self.handle.want(self.asked, self.wanted.clone());
        }
    }
}

fn given() -> Given {
    let ranges = ["10.0.0.0/16", "fd00:a::/64"].map(|range| range.parse().unwrap()).to_vec();
    Given {
        fabric_address: PerFamily::default(),
        local_ranges: ranges.clone(),
        cluster_ranges: ranges,
        non_masquerade: Vec::new(),
        masquerade: true,
        between_nodes: BTreeSet::from([8472, 8285]),
        unwraps_at: BTreeSet::from([8472, 8285]),
        by_ipsec: false,
        encrypted_at: BTreeSet::new(),
        encrypts_from: PerFamily::default(),
        strict: false,
        nodes_in_pools: BTreeSet::new(),
    }
}
