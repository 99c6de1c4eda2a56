//! An agent as the real one is put together: World and Memo, a kernel thread, a publisher, and feedback from both.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tartan_fabric::{Memo, Out, Owned, plan};
use tartan_model::{Advert, Clock, Config, Features, Kind, Passing, PerFamily, Programmed, StoreEvent, World};
use tartan_netstate::claims::NFT_STRICT_CHAIN;
use tartan_netstate::nft::Chain;
use tartan_netstate::{Key, Object, Owner, State, Step, diff};

use super::machine::{Machine, pod_link};
use super::store::{Store, Wire};
use super::{Delays, Rng};

/// See the module.
pub(crate) struct Agent {
    pub world: World,
    memo: Memo,
    pub out: Out,
    owned: Owned,
    /// None while the store is away.
    pub wire: Option<Wire>,
    back_at: u64,
    /// Steps of changes made to the kernel.
    pub applied: u64,
    // The kernel thread: the latest wanted state, and what it is at.
    generation: u64,
    given: State,
    waiting: Option<(u64, u64, State)>,
    at_work: Option<(u64, VecDeque<Step>)>,
    /// Somebody else changed the kernel, and that is not repaired yet.
    pub disturbed: bool,
    /// It was told something by others than the store and the kernel, and has not planned since.
    told: bool,
    reports: VecDeque<(u64, Programmed)>,
    // The publisher: the latest wanted advert, and the one that is on its way.
    wanted: Option<Advert>,
    on_its_way: Option<(u64, Advert)>,
    written: Option<Advert>,
    beat: u64,
    next_beat: u64,
}

impl Agent {
    pub(crate) fn new(machine: &Machine, wire: Wire, clock: Clock) -> Agent {
        let features = Features { ipv6: true, vxlan: true, nft: true, wireguard: true };
        let fabric_addresses = PerFamily {
            v4: machine.blocks.v4.map(|block| block.network()),
            v6: machine.blocks.v6.map(|block| block.network()),
        };
        let mut world = World::new(machine.name.clone(), features);
        world.programmed = Programmed { read: true, mirror: machine.kernel.clone(), ..Programmed::default() };
        world.host = Arc::new(machine.host());
        world.clock = Some(clock);
        world.secret = machine.secret;
        Agent {
            world,
            memo: Memo::default(),
            out: Out::default(),
            owned: Owned {
                blocks: machine.blocks.iter().map(|(_, block)| *block).collect(),
                fabric_addresses,
                mtu_in_force: None,
            },
            wire: Some(wire),
            back_at: 0,
            applied: 0,
            generation: 0,
            given: State::new(),
            waiting: None,
            at_work: None,
            disturbed: false,
            told: false,
            reports: VecDeque::new(),
            wanted: None,
            on_its_way: None,
            written: None,
            beat: 0,
            next_beat: 0,
        }
    }

    /// The store cannot be reached until then.
    pub(crate) fn cut_off(&mut self, until: u64, now: Instant) {
        self.wire = None;
        self.back_at = until;
        self.on_its_way = None;
        self.world.store(StoreEvent::Away(None, "cut off".into()), now);
    }

    /// The self-test says of each way to each peer which packets get there, by the bits of a number: whatever it says, and
    /// of some nothing.
    pub(crate) fn tested(&mut self, mut bits: u64) {
        let mut passes = std::collections::BTreeMap::new();
        for (peer, heard) in &self.world.adverts {
            for end in &heard.advert.accepts {
                bits = bits.rotate_right(1);
                let passing = match bits & 0b11 {
                    0b11 => Passing::All,
                    0b01 => Passing::UpTo(1_280 + (bits >> 32) as u32 % 256),
                    0b10 => continue,
                    _ => Passing::Nothing,
                };
                passes.insert((peer.clone(), end.instance.clone()), passing);
            }
        }
        self.world.passes = passes.into();
        self.told = true;
    }

    /// Its file of the cluster's secret is another one.
    pub(crate) fn set_secret(&mut self, secret: Option<u32>) {
        self.world.secret = secret;
        self.told = true;
        // What was refused for it is tried again.
        self.disturbed();
    }

    /// Its clock was set.
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.world.clock = Some(clock);
        self.told = true;
    }

    /// Takes in what has come, and plans if anything has, or if it is time to. Returns whether it is.
    pub(crate) fn hear(
        &mut self,
        store: &Store,
        machine: &Machine,
        millis: u64,
        now: Instant,
        rng: &mut Rng,
        delays: Delays,
    ) -> bool {
        if self.wire.is_none() && self.back_at <= millis {
            self.wire = Some(Wire::connect(millis, delays.word, rng));
        }
        let mut anything = std::mem::take(&mut self.told) || self.out.wake_at.is_some_and(|at| at <= now);
        let arrivals = self.wire.as_mut().map(|wire| wire.arrivals(store, millis)).unwrap_or_default();
        for event in arrivals {
            self.world.store(event, now);
            anything = true;
        }
        while self.reports.front().is_some_and(|(at, _)| *at <= millis) {
            let (_, programmed) = self.reports.pop_front().unwrap();
            let host = self.world.host.clone();
            self.world.programmed(programmed, host, now);
            anything = true;
        }
        if *self.world.host != machine.host() {
            self.world.host = Arc::new(machine.host());
            anything = true;
        }
        if anything && self.is_whole() {
            self.plan(millis, now, rng, delays);
        }
        anything
    }

    fn plan(&mut self, millis: u64, now: Instant, rng: &mut Rng, delays: Delays) {
        let (pod_key, pod) = pod_link();
        self.owned.mtu_in_force = self.world.programmed.mirror.get(&pod_key).map(|entry| match &entry.object {
            Object::Link(link) => link.mtu,
            other => panic!("a pod's link is {other:?}"),
        });
        self.out = plan(&mut self.memo, &self.world, &self.owned, now).clone();
        if rng.below(4) == 0 {
            let afresh = self.plan_afresh(now);
            assert_eq!(self.out, afresh, "a plan depends on the plans before");
        }
        assert!(self.out.wake_at.is_none_or(|at| at > now), "a plan wants to be made again at once");
        let mut state = self.out.state.clone();
        state.insert(pod_key, pod(self.out.pod_mtu), Owner::Pod("p".into()));
        if self.out.strict {
            let chain = Chain::regular(Vec::new());
            state.insert(Key::NftChain { chain: NFT_STRICT_CHAIN.into() }, Object::NftChain(chain.into()), Owner::Node);
        }
        if self.generation == 0 || self.given != state {
            self.generation += 1;
            self.given = state.clone();
            self.world.asked = self.generation;
            self.waiting = Some((millis + rng.below(delays.kernel), self.generation, state));
        }
        if let Some(advert) = &self.out.advert {
            self.world.say(advert);
            self.wanted = Some(advert.clone());
        }
    }

    /// The plan that an agent without a memory would make.
    pub(crate) fn plan_afresh(&self, now: Instant) -> Out {
        plan(&mut Memo::default(), &self.world, &self.owned, now).clone()
    }

    /// Somebody else changed the kernel: what it was at is void, and the latest wanted state is wanted again.
    pub(crate) fn disturbed(&mut self) {
        self.at_work = None;
        self.disturbed = true;
        if self.generation > 0 && self.waiting.is_none() {
            self.waiting = Some((0, self.generation, self.given.clone()));
        }
    }

    /// One step of the kernel thread; false if there is none to make.
    pub(crate) fn change_kernel(&mut self, machine: &mut Machine, millis: u64, rng: &mut Rng, delays: Delays) -> bool {
        if self.at_work.is_none() {
            let Some((_, generation, state)) = self.waiting.take_if(|(at, ..)| *at <= millis) else { return false };
            let change = diff(&machine.kernel, &state, |_| true);
            self.at_work = Some((generation, change.steps.into()));
        }
        let Some((generation, ops)) = &mut self.at_work else { return false };
        let op = ops.pop_front();
        if let Some(op) = &op {
            machine.apply(op);
            self.applied += 1;
        }
        // In the middle of a change it may tell how far it has come.
        if ops.is_empty() || rng.below(4) == 0 {
            let generation = if ops.is_empty() { *generation } else { *generation - 1 };
            let programmed =
                Programmed { generation, mirror: machine.kernel.clone(), read: true, ..Programmed::default() };
            let after = self.reports.back().map_or(0, |(at, _)| *at);
            self.reports.push_back((after.max(millis + rng.below(delays.kernel)), programmed));
        }
        if ops.is_empty() {
            self.at_work = None;
            self.disturbed = false;
        }
        true
    }

    /// The publisher's next write, once it is in the store.
    pub(crate) fn publish(&mut self, millis: u64, config: &Config, rng: &mut Rng, delays: Delays) -> Option<Advert> {
        self.wire.as_ref()?;
        let wanted = self.wanted.as_ref()?;
        let due = self.written.as_ref() != Some(wanted) || millis >= self.next_beat;
        if self.on_its_way.is_none() && due {
            self.on_its_way = Some((millis + rng.below(delays.write), wanted.clone()));
        }
        let (_, advert) = self.on_its_way.take_if(|(at, _)| *at <= millis)?;
        self.written = Some(advert.clone());
        self.beat = self.beat.max(millis) + 1;
        self.next_beat = millis + config.lease.as_millis() as u64 / 4;
        Some(Advert { heartbeat: self.beat, ..advert })
    }

    /// Everything was listed.
    pub(crate) fn is_whole(&self) -> bool {
        self.world.programmed.read && Kind::ALL.into_iter().all(|kind| self.world.is_synced(kind))
    }

    /// Whether it counts a node as live. Before it knows anything it keeps to what the kernel has.
    pub(crate) fn trusts(&self, peer: &Arc<str>, now: Instant) -> bool {
        if !self.is_whole() {
            return true;
        }
        let heard = self.world.adverts.get(peer);
        self.world.nodes.contains_key(peer)
            && heard.is_some_and(|heard| self.world.leases_rest || self.world.lease_until(heard.at) > now)
    }

    /// The kernel is not in the middle of a change.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.at_work.is_none()
    }

    /// Nothing is on its way to the kernel.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_none() && self.at_work.is_none() && self.reports.is_empty()
    }

    /// What it knows, wants and is at, for a failure's message.
    pub(crate) fn describe(&self) -> String {
        let at_work: BTreeSet<String> =
            self.at_work.iter().flat_map(|(_, ops)| ops.iter().map(|step| step.key().to_string())).collect();
        let config = &self.world.config;
        let heard = self.world.adverts.iter().map(|(name, heard)| {
            let Advert { accepts, sends, edition, .. } = &*heard.advert;
            let accepts: Vec<&str> = accepts.iter().map(|end| &*end.instance).collect();
            format!("\n    heard of {name}: accepts {accepts:?} sends {sends:?} edition {edition}")
        });
        let peers = self.out.peers.iter().map(|(name, peer)| {
            let tartan_fabric::PeerState { choices, leaving, live, conditions, .. } = &**peer;
            format!("\n    {name}: live {live} {choices:?} leaving {leaving:?} {conditions:?}")
        });
        format!(
            "{:?} {:?} {:?} receives {:?}\n    {:?}\n    settled {}, at work {at_work:?}{}{}",
            config.fabric,
            config.vxlan,
            config.underlay,
            self.out.receives,
            self.world.said,
            self.world.kernel_is_settled(),
            heard.collect::<String>(),
            peers.collect::<String>(),
        )
    }
}
