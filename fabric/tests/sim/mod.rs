//! A cluster without a kernel and without a clock: machines, agents with a World and a Memo each, one store.
//!
//! Time goes in steps. In each, words travel, agents plan, kernels take a few changes each; and after every single
//! change every packet that got through before must get through again. Most steps are of nothing but time: then what
//! became of a packet is what became of it in the step before, and is not asked again.

pub(crate) mod agent;
pub(crate) mod any;
pub(crate) mod machine;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use tartan_fabric::Instance;
use tartan_model::{Clock, Config, Family, IpsecConfig, Node, WireguardConfig};
use tartan_netstate::{Key, LinkName, Object, PublicKey, WgDevice};

use agent::Agent;
use machine::{Machine, answers, may_shake_hands, send};
use store::{Store, Wire, Write};

/// Length of a step, in milliseconds.
const STEP: u64 = 100;
/// What clocks that are right say at the beginning, in seconds since 1970: a number that many can be divided by.
const BEGINNING: u64 = 1_000_000_800;

/// Numbers that look random and are the same for the same seed (splitmix64).
pub(crate) struct Rng(pub u64);

/// Delays, in milliseconds, each the longest of its kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    /// From a write in the store until a node hears it.
    pub word: u64,
    /// From a plan until its write is in the store.
    pub write: u64,
    /// From a plan until the kernel thread begins, and from its end until the agent knows.
    pub kernel: u64,
}

/// See the module.
pub(crate) struct Cluster {
    pub now: u64,
    base: Instant,
    pub rng: Rng,
    pub delays: Delays,
    pub store: Store,
    pub machines: BTreeMap<Arc<str>, Machine>,
    pub agents: BTreeMap<Arc<str>, Agent>,
    /// Number of the secret that nodes are to have.
    pub secret: Option<u32>,
    /// Packets that got through, and have to from now on.
    promised: BTreeSet<(Arc<str>, Arc<str>, Family)>,
    /// Packets checked against a promise.
    pub kept: u64,
    /// Something may be other than it was when the packets were last checked.
    touched: bool,
}

impl Rng {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }
}

impl Cluster {
    pub(crate) fn new(seed: u64, delays: Delays, config: Config) -> Cluster {
        Cluster {
            now: 0,
            base: Instant::now(),
            rng: Rng(seed),
            delays,
            store: Store { config, ..Store::default() },
            machines: BTreeMap::new(),
            agents: BTreeMap::new(),
            secret: None,
            promised: BTreeSet::new(),
            kept: 0,
            touched: true,
        }
    }

    /// Switches a machine on, with a Node, and with an agent.
    pub(crate) fn join(&mut self, machine: Machine) {
        let name = machine.name.clone();
        let node = Node {
            name: name.clone(),
            uid: format!("{name}-uid").into(),
            internal_ips: machine.internal_ips(),
            external_ips: Vec::new(),
            pod_cidrs: machine.blocks.iter().map(|(_, block)| *block).collect(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            placement: Default::default(),
        };
        self.machines.insert(name.clone(), Machine { on: true, ..machine });
        self.write(Write::Node(node));
        self.start(&name);
    }

    /// Starts an agent; everything it knows it has to learn.
    pub(crate) fn start(&mut self, name: &Arc<str>) {
        if self.machines[name].on && !self.agents.contains_key(name) {
            let wire = Wire::connect(self.now, self.delays.word, &mut self.rng);
            let clock = self.clock(name);
            self.agents.insert(name.clone(), Agent::new(&self.machines[name], wire, clock));
        }
    }

    fn clock(&self, name: &str) -> Clock {
        let says = BEGINNING.saturating_add_signed(self.machines[name].ahead);
        Clock::new(self.base, UNIX_EPOCH + Duration::from_secs(says))
    }

    /// Sets a machine's clock so many seconds ahead of the right time.
    pub(crate) fn set_clock(&mut self, name: &str, ahead: i64) {
        self.machines.get_mut(name).unwrap().ahead = ahead;
        let clock = self.clock(name);
        if let Some(agent) = self.agents.get_mut(name) {
            agent.set_clock(clock);
        }
    }

    /// Gives a machine the secret that nodes are to have.
    pub(crate) fn give_secret(&mut self, name: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        if std::mem::replace(&mut machine.secret, self.secret) == self.secret {
            return;
        }
        if let Some(agent) = self.agents.get_mut(name) {
            agent.set_secret(self.secret);
        }
    }

    /// The configuration as it is by now: with what clocks that are right have counted.
    pub(crate) fn due(&self) -> Config {
        let config = self.store.config.clone();
        let counted = config.wireguard.rotate_after.map_or(0, |every| (BEGINNING + self.now / 1_000) / every.as_secs());
        let rotation = config.wireguard.rotation.wrapping_add(counted as u32);
        let wireguard = WireguardConfig { rotation, ..config.wireguard };
        let counted = ((BEGINNING + self.now / 1_000) / config.ipsec.rotate_after.as_secs()) as u32;
        let ipsec = IpsecConfig { rotation: config.ipsec.rotation.wrapping_add(counted), ..config.ipsec };
        Config { wireguard, ipsec, ..config }
    }

    /// Kills an agent between any two of its steps; the kernel keeps what it has.
    pub(crate) fn kill(&mut self, name: &str) {
        self.agents.remove(name);
    }

    /// Switches a machine off: its agent and its kernel's state are gone.
    pub(crate) fn power_off(&mut self, name: &str) {
        self.kill(name);
        self.break_promises(name);
        let machine = self.machines.get_mut(name).unwrap();
        machine.on = false;
        machine.forget();
    }

    pub(crate) fn power_on(&mut self, name: &Arc<str>) {
        self.machines.get_mut(name).unwrap().on = true;
        self.start(name);
    }

    /// Takes a node out of the cluster for good.
    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        self.power_off(name);
        self.store.adverts.remove(name);
        self.write(Write::NodeGone(name.clone()));
    }

    /// Says that packets to and from a node may be lost for now, by no fault of the fabric.
    pub(crate) fn break_promises(&mut self, name: &str) {
        self.promised.retain(|(a, b, _)| **a != *name && **b != *name);
    }

    /// Writes to the store, and tells everybody in their own time.
    pub(crate) fn write(&mut self, write: Write) {
        let event = self.store.write(write);
        for agent in self.agents.values_mut() {
            if let Some(wire) = &mut agent.wire {
                wire.carry(&event, self.now, self.delays.word, &mut self.rng);
            }
        }
    }

    /// The clock of all agents.
    pub(crate) fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    /// Lets so many milliseconds pass.
    pub(crate) fn run(&mut self, millis: u64) {
        let until = self.now + millis;
        self.touched = true;
        while self.now < until {
            self.step();
        }
    }

    /// Lets time pass until everything is as it will stay.
    pub(crate) fn settle(&mut self) {
        let quiet = 2 * (self.store.config.lease + self.store.config.drain).as_millis() as u64 + 3 * self.delays.word;
        let (began, mut quiet_since) = (self.now, self.now);
        self.touched = true;
        while self.now - quiet_since < quiet {
            assert!(self.now < began + 3_600_000, "no rest after an hour\n{}", self.describe(&"n0".into()));
            let before = (self.applied(), self.editions());
            self.step();
            if before != (self.applied(), self.editions()) {
                quiet_since = self.now;
            }
        }
    }

    fn applied(&self) -> u64 {
        self.agents.values().map(|agent| agent.applied).sum()
    }

    fn editions(&self) -> Vec<u64> {
        self.store.adverts.values().map(|advert| advert.edition).collect()
    }

    fn step(&mut self) {
        self.now += STEP;
        self.shake_hands();
        let now = self.instant();
        let names: Vec<Arc<str>> = self.agents.keys().cloned().collect();
        for name in &names {
            let (machine, agent) = (&self.machines[name], self.agents.get_mut(name).unwrap());
            self.touched |= agent.hear(&self.store, machine, self.now, now, &mut self.rng, self.delays);
            if let Some(advert) = agent.publish(self.now, &self.store.config, &mut self.rng, self.delays) {
                self.write(Write::Advert(advert));
            }
        }
        for name in &names {
            let steps = self.rng.below(8);
            for _ in 0..steps {
                let machine = self.machines.get_mut(name).unwrap();
                if !self.agents.get_mut(name).unwrap().change_kernel(machine, self.now, &mut self.rng, self.delays) {
                    break;
                }
                self.touched = true;
                self.greet(name);
                self.check();
            }
            if self.touched && self.agents[name].is_at_rest() {
                machine::check_mtu(&self.machines[name]);
            }
        }
        if std::mem::take(&mut self.touched) {
            self.check();
        } else {
            self.forget_what_nobody_trusts();
        }
    }

    /// Whom a device gets to know it greets, and if that one knows it they shake hands.
    fn greet(&mut self, name: &Arc<str>) {
        for (link, theirs) in std::mem::take(&mut self.machines.get_mut(name).unwrap().greets) {
            self.ask(name, &link, theirs);
            if let Some((b, ours)) = self.who_answers(name, &link, theirs) {
                self.meet(link, (name, ours), (&b, theirs));
            }
        }
    }

    /// A handshake that came too early is tried again after seconds.
    fn shake_hands(&mut self) {
        let names: Vec<Arc<str>> = self.machines.keys().cloned().collect();
        for name in &names {
            for (link, theirs) in self.machines[name].encrypted_peers().collect::<Vec<_>>() {
                if self.rng.below(20) == 0 {
                    self.ask(name, &link, theirs);
                }
                if let Some((b, ours)) = self.who_answers(name, &link, theirs)
                    && self.rng.below(20) == 0
                {
                    self.meet(link, (name, ours), (&b, theirs));
                }
            }
        }
    }

    /// By IPsec each asks for itself.
    fn ask(&mut self, name: &Arc<str>, link: &LinkName, theirs: PublicKey) {
        let a = &self.machines[name];
        if self.machines.values().any(|b| b.name != *name && answers(a, b, link, theirs)) {
            self.touched |= self.machines.get_mut(name).unwrap().met.insert((link.clone(), theirs));
        }
    }

    /// The machine with that key, if it knows the one that asks; and that one's key.
    fn who_answers(&self, name: &Arc<str>, link: &LinkName, theirs: PublicKey) -> Option<(Arc<str>, PublicKey)> {
        let a = &self.machines[name];
        let b = self.machines.values().find(|b| b.name != *name && may_shake_hands(a, b, link, theirs))?;
        match a.kernel.get(&Key::WgDevice { link: link.clone() })?.object {
            Object::WgDevice(WgDevice { public_key, .. }) => Some((b.name.clone(), public_key)),
            _ => None,
        }
    }

    fn meet(&mut self, link: LinkName, (a, ours): (&Arc<str>, PublicKey), (b, theirs): (&Arc<str>, PublicKey)) {
        self.touched |= self.machines.get_mut(a).unwrap().met.insert((link.clone(), theirs));
        self.touched |= self.machines.get_mut(b).unwrap().met.insert((link, ours));
    }

    /// No packet that got through before is lost.
    fn check(&mut self) {
        let names: Vec<Arc<str>> = self.machines.keys().cloned().collect();
        for a in &names {
            for b in names.iter().filter(|b| *b != a) {
                for family in Family::ALL {
                    self.check_pair(a, b, family);
                }
            }
        }
    }

    fn check_pair(&mut self, a: &Arc<str>, b: &Arc<str>, family: Family) {
        let promise = (a.clone(), b.clone(), family);
        if !self.trusts(a, b) || !self.trusts(b, a) {
            self.promised.remove(&promise);
            return;
        }
        let sent = send(&self.machines[a], &self.machines[b], family);
        match sent {
            Err(why) if self.promised.contains(&promise) => panic!(
                "at {} ms {family} packets from {a} to {b} are lost: {why}\n{}\n{}",
                self.now,
                self.describe(a),
                self.describe(b)
            ),
            Err(_) => {}
            Ok(instance) if self.is_agreed(a, b, instance) => drop(self.promised.insert(promise)),
            Ok(_) => {}
        }
        self.kept += 1;
    }

    /// Time alone ends leases.
    fn forget_what_nobody_trusts(&mut self) {
        let names: Vec<Arc<str>> = self.machines.keys().cloned().collect();
        for a in &names {
            for b in names.iter().filter(|b| *b != a && !self.trusts(a, b)).collect::<Vec<_>>() {
                self.promised.retain(|(from, to, _)| (from, to) != (a, b) && (to, from) != (a, b));
            }
        }
    }

    /// Whether `a`, as far as it can tell, counts `b` as live. One whose agent is away keeps to what it has.
    fn trusts(&self, a: &Arc<str>, b: &Arc<str>) -> bool {
        let alive = self.machines[b].on && self.store.nodes.contains_key(b);
        alive && self.machines[a].on && self.agents.get(a).is_none_or(|agent| agent.trusts(b, self.instant()))
    }

    /// Whether both have heard the other's word on what is used, so that neither may go back on it alone.
    fn is_agreed(&self, a: &Arc<str>, b: &Arc<str>, instance: Instance) -> bool {
        let (Some(sender), Some(receiver)) = (self.agents.get(a), self.agents.get(b)) else { return false };
        let name: Arc<str> = instance.to_string().into();
        let says = |world: &tartan_model::World, who: &Arc<str>, sends: bool| {
            world.adverts.get(who).is_some_and(|heard| match sends {
                true => heard.advert.sends.contains(&name),
                false => heard.advert.accepts.iter().any(|end| end.instance == name),
            })
        };
        says(&sender.world, a, true)
            && says(&sender.world, b, false)
            && says(&receiver.world, a, true)
            && says(&receiver.world, b, false)
            // Where nothing may go in clear, what goes all the same for now has no promise.
            && (instance.is_encrypted() || !sender.world.config.strict_encryption)
            // Nor does what a node does not know yet to go in clear, and may be told at any time that nothing may.
            && (instance.is_encrypted() || sender.is_idle())
            && receiver.world.kernel_is_settled()
            && !sender.disturbed
            && !receiver.disturbed
            && sender.is_whole()
            && receiver.is_whole()
    }

    /// How things stand at one node, for a failure's message.
    pub(crate) fn describe(&self, name: &Arc<str>) -> String {
        let devices: Vec<String> =
            self.machines[name].devices().map(|(link, device)| format!("{link} {:?}", device.kind)).collect();
        let told = self.store.adverts.get(name).map(|advert| {
            let accepts: Vec<&str> = advert.accepts.iter().map(|end| &*end.instance).collect();
            format!("accepts {accepts:?} sends {:?} edition {}", advert.sends, advert.edition)
        });
        let agent = self.agents.get(name).map(Agent::describe);
        format!("{name}: devices {devices:?}\n  in the store: {told:?}\n  agent: {}", agent.unwrap_or_default())
    }
}
