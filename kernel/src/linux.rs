//! The real kernel: rtnetlink, nf_tables and sysctls of the namespace it was opened in, and of pods' namespaces.
//!
//! Order within a change: the node's namespace first, then each pod's, one visit each. Steps in pods depend on links
//! of the node's namespace and on each other; nothing in the node's namespace depends on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use tartan_model::{EncryptionState, Family, Features, Host};
use tartan_netstate::{
    Change, Era, Generation, Key, LinkKind, LinkName, Netns, Object, Op, Owner, PodNetns, PublicKey, Stamps, State,
    Step,
};

use crate::conntrack::{Conntrack, Effect, Flusher, Owned, Owners, arrival, effect};
use crate::foreign::Foreign;
use crate::gravedigger::Gravedigger;
use crate::ipsec::Ipsec;
use crate::namespace::Namespace;
use crate::netns::PodNetnses;
use crate::nft::{Nft, fail_together};
use crate::notify::Notifications;
use crate::under_way::wait_for_packets;
use crate::wireguard::Wireguard;
use crate::{Failure, Kernel, KernelError, Scope, Waker, strangers, sysctl};

/// The kernel, seen from one network namespace. Stays on threads of that namespace.
pub struct Linux {
    host: Namespace,
    nft: Nft,
    foreign: Foreign,
    conntrack: Conntrack,
    /// Connections carry no stamps but those of this era and, until the flusher has been there, of the one before.
    stamps_are_known: bool,
    flusher: Flusher,
    owners: Owners,
    gravedigger: Gravedigger,
    pods: PodNetnses,
    news: Option<Notifications>,
}

impl Linux {
    /// In the network namespace of the calling thread; without key pairs.
    pub fn open() -> Result<Linux, KernelError> {
        sysctl::make_writable();
        let wireguard = Some(Wireguard::with_keys_in(Path::new("")));
        let ipsec = Some(Ipsec::with_keys_in(Path::new("")));
        let host = Namespace { wireguard, ipsec, ..Namespace::open(Netns::Host, addresses_unmarked())? };
        Ok(Linux {
            host,
            nft: Nft::open()?,
            foreign: Foreign::open()?,
            conntrack: Conntrack::open()?,
            stamps_are_known: false,
            flusher: Flusher::start()?,
            owners: Owners::default(),
            gravedigger: Gravedigger::start()?,
            pods: PodNetnses::from_here()?,
            news: None,
        })
    }

    /// With this node's key pairs in a directory, which need not be there yet.
    pub fn with_keys_in(mut self, dir: &Path) -> Linux {
        self.host.wireguard = Some(Wireguard::with_keys_in(dir));
        self.host.ipsec = Some(Ipsec::with_keys_in(dir));
        self
    }

    fn wireguard_door(&mut self) -> &mut Wireguard {
        self.host.wireguard.as_mut().expect("the node's namespace has it from the start")
    }

    fn ipsec_door(&mut self) -> &mut Ipsec {
        self.host.ipsec.as_mut().expect("the node's namespace has it from the start")
    }

    /// Key pairs, but for those of which nothing more may be made.
    fn public_keys(&mut self) -> Result<BTreeMap<Arc<str>, PublicKey>, KernelError> {
        let mut keys = self.wireguard_door().public_keys()?;
        for (name, key) in keys.clone() {
            if self.ipsec_door().is_spent(&name, key)? {
                keys.remove(&name);
            }
        }
        Ok(keys)
    }

    fn read_link(&mut self, name: &LinkName) -> Result<State, KernelError> {
        let mut state = State::new();
        let links = self.host.one_link(name)?;
        let Some(index) = links.only() else { return Ok(state) };
        self.host.put_links(&links, &mut state);
        self.host.put_limits(&links, &mut state)?;
        self.host.put_addresses(&links, Some(index), &mut state)?;
        self.host.put_fdb(&links, &mut state)?;
        for device in links.of_wireguard() {
            self.wireguard_door().read_device(&device, &mut state)?;
        }
        for device in links.of_ipsec() {
            self.ipsec_door().read_device(&device, &mut state)?;
        }
        for family in Family::ALL {
            self.host.put_neighbours(&links, family, Some(index), &mut state)?;
            self.host.put_routes(&links, family, Some(index), &mut state)?;
        }
        Ok(state)
    }

    fn read_pod(&self, pod: &PodNetns, ends: &BTreeSet<LinkName>) -> Result<State, KernelError> {
        self.pods.inside(pod, || {
            let mut state = State::new();
            let mut namespace = Namespace::open(pod.clone().into(), self.host.addresses_unmarked)?;
            let links = namespace.links(ends)?;
            namespace.put_links(&links, &mut state);
            namespace.put_limits(&links, &mut state)?;
            namespace.put_addresses(&links, None, &mut state)?;
            for family in Family::ALL {
                namespace.put_neighbours(&links, family, None, &mut state)?;
                namespace.put_routes(&links, family, None, &mut state)?;
                namespace.put_rules(family, &mut state)?;
            }
            Ok(state)
        })
    }

    fn read_sysctls(&self, keys: &[Key]) -> Result<State, KernelError> {
        let mut state = State::new();
        let mut by_pod: BTreeMap<&PodNetns, Vec<&Key>> = BTreeMap::new();
        for key in keys {
            match key.netns() {
                Netns::Host => put_sysctl(key, &mut state)?,
                Netns::Pod(pod) => by_pod.entry(pod).or_default().push(key),
            }
        }
        for (pod, keys) in by_pod {
            self.pods.inside(pod, || keys.iter().try_for_each(|key| put_sysctl(key, &mut state)))?;
        }
        Ok(state)
    }

    /// Before an era of generations begins, no connection may carry a stamp that one of them will have.
    fn apply_nft(&mut self, mut nft: Vec<&Step>) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut era = Era::begun_by(nft.iter().copied());
        if let Some(begun) = era
            && let Err(error) = self.forget_stamps(begun)
        {
            failures.extend(fail_together(&nft, &error));
            nft.retain(|step| !step.key().is_of_policy());
            era = None;
        }
        // Nothing that an answer of before lets pass may carry the new stamp.
        if nft.iter().any(|step| matches!(step.op(), Op::Create(key, _) if Generation::of(key).is_some())) {
            wait_for_packets();
        }
        failures.extend(self.nft.apply_these(&nft));
        if let Some(begun) = era {
            self.flusher.want(Effect::ForgetStamps(begun.stamps.others()));
            // Until this transaction rules of anything gave stamps, of this era's too.
            if !begun.in_turn {
                self.flusher.want(Effect::ForgetStamps(begun.stamps));
            }
            // Refused, or not: whoever does not know walks.
            self.stamps_are_known &= !failures.iter().any(|failure| failure.key.is_of_policy());
        }
        failures
    }

    /// Waits for a walk only if there was none during the era before: its thread did not come to it, or there was no such era
    /// in this process's life.
    fn forget_stamps(&mut self, era: Era) -> Result<(), KernelError> {
        let left = self.flusher.take([Effect::ForgetStamps(era.stamps)].into_iter());
        if self.stamps_are_known && era.in_turn && left.is_empty() {
            return Ok(());
        }
        self.stamps_are_known = false;
        let all = [Stamps::Lower, Stamps::Upper].map(Effect::ForgetStamps);
        self.conntrack.flush(&all.into())?;
        self.stamps_are_known = true;
        Ok(())
    }

    /// `made`: ends there of pairs that were made a moment ago.
    fn apply_in_pod(&mut self, pod: &PodNetns, made: &BTreeSet<&LinkName>, steps: &[&Step]) -> Vec<Failure> {
        let Linux { host, pods, .. } = self;
        let visit = pods.inside(pod, || {
            let mut namespace = Namespace::open(pod.clone().into(), host.addresses_unmarked)?;
            let strangers = strangers::among(host, &mut namespace, pod, steps, made)?;
            let (theirs, ours): (Vec<_>, Vec<_>) = steps.iter().partition(|step| strangers::is_about(step, &strangers));
            let mut failures = namespace.apply(&ours, pods);
            new_links(&ours).for_each(|link| namespace.wait_for_carrier(link));
            new_addresses(&ours).filter(IpAddr::is_ipv6).for_each(|address| namespace.wait_for_address(address));
            failures.extend(theirs.into_iter().filter_map(|step| strangers::refusal(step, &strangers)));
            Ok(failures)
        });
        visit.unwrap_or_else(|error| {
            // What is to be deleted went with its namespace.
            let gone = |step: &Step| step.deletes() && matches!(error, KernelError::NetnsGone(_));
            let failed = steps.iter().filter(|step| !gone(step));
            failed.map(|step| Failure::of(step, error.clone())).collect()
        })
    }
}

impl Kernel for Linux {
    fn features(&mut self) -> Features {
        Features {
            ipv6: std::path::Path::new("/proc/sys/net/ipv6/conf").exists(),
            vxlan: self.host.has_vxlan(),
            nft: self.nft.generation().is_ok(),
            wireguard: self.wireguard_door().is_there().unwrap_or(false),
        }
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        let ours = [Some(self.host.netlink.port()), Some(self.nft.port()), self.ipsec_door().port()];
        let ours: Vec<u32> = ours.into_iter().flatten().collect();
        self.news = Some(Notifications::start(ours, self.host.addresses_unmarked, wake)?);
        Ok(())
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        let mut state = State::new();
        let nobody = BTreeSet::new();
        match scope {
            Scope::Links => {
                let links = self.host.links(&nobody)?;
                self.host.put_links(&links, &mut state);
                self.host.put_limits(&links, &mut state)?;
                self.host.put_addresses(&links, None, &mut state)?;
            }
            Scope::Neighbours(family) => {
                let links = self.host.links(&nobody)?;
                self.host.put_neighbours(&links, *family, None, &mut state)?;
            }
            Scope::Fdb => {
                let links = self.host.links(&nobody)?;
                self.host.put_fdb(&links, &mut state)?;
            }
            Scope::Routes(family) => {
                let links = self.host.links(&nobody)?;
                self.host.put_routes(&links, *family, None, &mut state)?;
                self.host.put_rules(*family, &mut state)?;
            }
            Scope::Link(name) => state = self.read_link(name)?,
            Scope::Nft => {
                state = self.nft.adopt()?;
                self.nft.forget_counts(&state);
            }
            Scope::Foreign => state = self.foreign.read()?,
            // Who has engines asks them.
            Scope::Engines => {}
            Scope::Encryption => {
                let links = self.host.links(&nobody)?;
                self.wireguard_door().read(links.of_wireguard().collect(), &mut state)?;
                self.ipsec_door().read(&links.of_ipsec(), &mut state)?;
                for name in self.public_keys()?.into_keys() {
                    state.insert(Key::KeyPair { name }, Object::KeyPair, Owner::Read);
                }
            }
            Scope::Sysctls(keys) => state = self.read_sysctls(keys)?,
            Scope::Pod { ns, ends } => state = self.read_pod(ns, ends)?,
        }
        Ok(state)
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        Ok(Host { forward_blocks: self.foreign.blocks()?, ..crate::host::read(&mut self.host.netlink)? })
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        let public_keys = self.public_keys()?;
        let mut handshakes = self.wireguard_door().handshakes()?;
        handshakes.extend(self.ipsec_door().handshakes());
        Ok(EncryptionState { public_keys, handshakes })
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        let nft: Vec<&Step> = change.steps.iter().filter(|step| step.key().is_nft()).collect();
        let is_opening = |step: &&Step| matches!(step.key(), Key::ForwardOpening { .. });
        let openings: Vec<Step> = change.steps.iter().filter(is_opening).cloned().collect();
        // A bridge that is among pods' links passes only what has its elements.
        let is_judged_from_now_on = |step: &Step| matches!(step.op(), Op::Create(Key::PodBridge { .. }, _));
        let (mut here, mut bridges) = (Vec::new(), Vec::new());
        let mut in_pods: BTreeMap<&PodNetns, Vec<&Step>> = BTreeMap::new();
        for step in change.steps.iter().filter(|step| !step.key().is_nft() && !is_opening(step)) {
            match step.key().netns() {
                Netns::Host if is_judged_from_now_on(step) => bridges.push(step),
                Netns::Host => here.push(step),
                Netns::Pod(pod) => in_pods.entry(pod).or_default().push(step),
            }
        }
        // Policy before the far ends of new pods' links, where they begin to hear and to be heard.
        let of_keys = |step: &&Step| matches!(step.key(), Key::KeyPair { .. });
        self.ipsec_door().discard_spent(change.steps.iter());
        let mut failures = self.wireguard_door().apply_to_keys(change.steps.iter().filter(of_keys));
        failures.extend(self.host.apply(&here, &self.pods));
        failures.extend(self.apply_nft(nft));
        failures.extend(self.host.apply(&bridges, &self.pods));
        failures.extend(self.foreign.apply(&openings));
        let failed: BTreeSet<Key> = failures.iter().map(|failure| failure.key.clone()).collect();
        let done = || change.steps.iter().map(|step| step.op()).filter(|op| !failed.contains(op.key()));
        let mut due = BTreeSet::new();
        for op in done() {
            match (effect(op), self.owners.note(op)) {
                // Somebody else has the address already: its old connections went when that one came.
                (Some(Effect::FlushAddress(_)), Some(Owned::Still)) => {}
                (Some(effect), _) => self.flusher.want(effect),
                (None, Some(Owned::Twice(address))) => drop(due.insert(Effect::FlushAddress(address))),
                (None, _) => {}
            }
        }
        // Before the new owner's end is up.
        due.extend(self.flusher.take(done().filter_map(arrival).map(Effect::FlushAddress)));
        if !due.is_empty() && self.conntrack.flush(&due).is_err() {
            due.into_iter().for_each(|effect| self.flusher.want(effect));
        }
        let pairs: Vec<Pair<'_>> = new_pairs(&here).filter(|pair| !failed.contains(pair.key)).collect();
        for (pod, steps) in &in_pods {
            let made = pairs.iter().filter(|pair| pair.pod == *pod).map(|pair| pair.far_end).collect();
            failures.extend(self.apply_in_pod(pod, &made, steps));
        }
        // Both ends of a pair have their carrier when both are up.
        for pair in pairs.iter().filter(|pair| in_pods.contains_key(pair.pod)) {
            self.host.wait_for_carrier(pair.link);
        }
        failures
    }

    fn wait_for_carrier(&mut self, link: &LinkName) {
        self.host.wait_for_carrier(link);
    }

    fn bury(&mut self) {
        self.gravedigger.call();
    }

    fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.pods.lend(ns, fd);
    }

    fn give_back(&mut self, ns: &PodNetns) {
        self.pods.give_back(ns);
    }
}

/// Links that come by these steps.
fn new_links<'a>(steps: &[&'a Step]) -> impl Iterator<Item = &'a LinkName> {
    steps.iter().filter_map(|step| match step.op() {
        Op::Create(Key::Link { link, .. }, _) => Some(link),
        _ => None,
    })
}

/// Addresses that come by these steps.
fn new_addresses(steps: &[&Step]) -> impl Iterator<Item = IpAddr> {
    steps.iter().filter_map(|step| match step.op() {
        Op::Create(Key::Address { address, .. }, _) => Some(address.addr()),
        _ => None,
    })
}

/// A pod's link that comes by a step, and where it leads.
struct Pair<'a> {
    key: &'a Key,
    link: &'a LinkName,
    pod: &'a PodNetns,
    far_end: &'a LinkName,
}

fn new_pairs<'a>(steps: &[&'a Step]) -> impl Iterator<Item = Pair<'a>> {
    steps.iter().filter_map(|step| match step.op() {
        Op::Create(key @ Key::Link { link, .. }, Object::Link(made)) => match &made.kind {
            LinkKind::Veth { peer: Netns::Pod(pod), peer_name } => Some(Pair { key, link, pod, far_end: peer_name }),
            _ => None,
        },
        _ => None,
    })
}

fn put_sysctl(key: &Key, state: &mut State) -> Result<(), KernelError> {
    if let Some(value) = sysctl::read(key)? {
        state.insert(key.clone(), Object::Sysctl(value), Owner::Read);
    }
    Ok(())
}

/// Whether the kernel is older than 5.18, which keeps an address's protocol.
fn addresses_unmarked() -> bool {
    let Ok(system) = nix::sys::utsname::uname() else { return true };
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) < (Some(5), Some(18))
}

impl Namespace {
    /// Asks for a VXLAN device without parameters: a kernel that has the kind finds fault with those, not with it.
    fn has_vxlan(&mut self) -> bool {
        match self.netlink.batch(&[crate::link::incomplete_vxlan()]).pop() {
            Some(Err(refusal)) => refusal.errno != Errno::EOPNOTSUPP,
            _ => true,
        }
    }
}
