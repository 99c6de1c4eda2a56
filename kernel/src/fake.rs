//! A kernel in memory, for tests of everything above it: it fails when told to, and others change it behind our back.
//!
//! Invariant: each behaviour that is modelled here is shown once on the real kernel, by the same test
//! (`tests/behaviour.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tartan_model::{EncryptionState, Features, Host};
use tartan_netstate::claims::DYING_LINK_GROUPS;
use tartan_netstate::{
    Change, Entry, Key, Link, LinkKind, LinkName, Netns, Object, Op, Owner, PodNetns, PublicKey, State, Step,
    diff::hanging_on, stable_hash,
};

use crate::nft::fail_together;
use crate::{Failure, Kernel, KernelError, Scope, Wake, Waker};

/// The kernel that is given to who is tested. Clones are one kernel: the test keeps one to look and to meddle.
#[derive(Clone, Default)]
pub struct Fake {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inside: Mutex<Inside>,
    moved: Condvar,
}

#[derive(Default)]
struct Inside {
    state: State,
    host: Host,
    wake: Option<Waker>,
    gone_pods: BTreeSet<PodNetns>,
    /// Routes of others.
    foreign: BTreeSet<Key>,
    /// Every change so far.
    changes: Vec<Change>,
    reads: u64,
    /// Links whose carrier was waited for, and what there was then.
    waits: Vec<(LinkName, State)>,

    steps_until_failure: Option<usize>,
    failing: BTreeMap<Key, Errno>,
    interrupted_reads: usize,
    unreadable: BTreeSet<Scope>,
    vanishing: Vec<Key>,
    paused: bool,
    waiting: bool,
    /// Booted with `ipv6.disable=1`.
    without_ipv6: bool,
    without_wireguard: bool,
    /// Encrypting devices' peers with which there was a handshake.
    met: BTreeSet<(LinkName, PublicKey)>,
}

/// What others, or bad luck, do. All of it at once visible to the next call.
impl Fake {
    /// An empty kernel.
    pub fn new() -> Fake {
        Fake::default()
    }

    /// An empty kernel that was booted with `ipv6.disable=1`. No test of this repository can boot one: this much of it is
    /// from its documentation.
    pub fn without_ipv6() -> Fake {
        let fake = Fake::default();
        fake.lock().without_ipv6 = true;
        fake
    }

    /// An empty kernel that has no WireGuard, as this machine's may be.
    pub fn without_wireguard() -> Fake {
        let fake = Fake::default();
        fake.lock().without_wireguard = true;
        fake
    }

    /// What is there of ours.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Every change so far, failed steps included.
    pub fn changes(&self) -> Vec<Change> {
        self.lock().changes.clone()
    }

    /// How often something was read.
    pub fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// Links whose carrier was waited for, each with what there was then.
    pub fn waits(&self) -> Vec<(LinkName, State)> {
        self.lock().waits.clone()
    }

    /// What is there and not ours.
    pub fn set_host(&self, host: Host) {
        let mut inside = self.lock();
        inside.host = host;
        inside.tell(Wake::Host);
    }

    /// Every peer that a WireGuard or IPsec device has now answers it, of which a kernel tells nothing.
    pub fn shake_hands(&self) {
        let mut inside = self.lock();
        inside.met = inside.encrypted_peers().collect();
    }

    /// The step after `steps` more fails, and works when tried again.
    pub fn fail_after(&self, steps: usize) {
        self.lock().steps_until_failure = Some(steps);
    }

    /// Whatever is done to this object fails, until told otherwise.
    pub fn fail(&self, key: Key, errno: Option<Errno>) {
        let mut inside = self.lock();
        match errno {
            Some(errno) => drop(inside.failing.insert(key, errno)),
            None => drop(inside.failing.remove(&key)),
        }
    }

    /// So many reads fail as a dump that was interrupted or lost (EINTR, ENOBUFS) does.
    pub fn interrupt(&self, reads: usize) {
        self.lock().interrupted_reads = reads;
    }

    /// The scope cannot be read, until told otherwise.
    pub fn hide(&self, scope: Scope, hide: bool) {
        let unreadable = &mut self.lock().unreadable;
        let _changed = if hide { unreadable.insert(scope) } else { unreadable.remove(&scope) };
    }

    /// Notifications get lost.
    pub fn overrun(&self) {
        self.lock().tell(Wake::Overrun);
    }

    /// The object vanishes right before the next change is carried out.
    pub fn vanish_before_apply(&self, key: Key) {
        self.lock().vanishing.push(key);
    }

    /// Somebody removes the object.
    pub fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Somebody removes the object, and the notification is lost.
    pub fn remove_silently(&self, key: &Key) {
        let mut inside = self.lock();
        let wake = inside.wake.take();
        inside.remove(key);
        inside.wake = wake;
    }

    /// Somebody puts the object there, or changes it.
    pub fn put(&self, key: Key, object: Object) {
        let mut inside = self.lock();
        inside.state.insert(key.clone(), object.clone(), Owner::Read);
        inside.tell(Wake::Now(key, Some(object)));
    }

    /// Somebody has a route there.
    pub fn put_foreign_route(&self, key: Key) {
        self.lock().foreign.insert(key);
    }

    /// Somebody deletes the link and makes it again, just as it was: all that hung on it is gone.
    pub fn recreate(&self, link: &LinkName) {
        let mut inside = self.lock();
        let key = Key::Link { ns: Netns::Host, link: link.clone() };
        if let Some(entry) = inside.state.get(&key).cloned() {
            inside.remove(&key);
            inside.state.insert(key.clone(), entry.object.clone(), Owner::Read);
            inside.tell(Wake::Now(key, Some(entry.object)));
        }
    }

    /// The pod's namespace is gone, and with it its ends of our links.
    pub fn remove_pod(&self, ns: &PodNetns) {
        let mut inside = self.lock();
        inside.gone_pods.insert(ns.clone());
        let leads_there = |object: &Object| match object {
            Object::Link(link) => matches!(&link.kind, LinkKind::Veth { peer: Netns::Pod(pod), .. } if **pod == *ns),
            _ => false,
        };
        let links: Vec<Key> =
            inside.state.iter().filter(|(_, entry)| leads_there(&entry.object)).map(|(key, _)| key.clone()).collect();
        links.iter().for_each(|key| inside.remove(key));
    }

    /// The pod's namespace cannot be found any more, or can again; it is as it was.
    pub fn hide_pod(&self, ns: &PodNetns, hide: bool) {
        let gone = &mut self.lock().gone_pods;
        let _changed = if hide { gone.insert(ns.clone()) } else { gone.remove(ns) };
    }

    /// From now on changes wait until [`Fake::resume`].
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Returns once a change waits.
    pub fn wait_until_held(&self) {
        let mut inside = self.lock();
        while !inside.waiting {
            inside = self.shared.moved.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets changes go on.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.shared.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.shared.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn tell(&self, wake: Wake) {
        if let Some(tell) = &self.wake {
            tell(wake);
        }
    }

    fn can_read(&self, scope: &Scope) -> Result<(), KernelError> {
        let refused = || KernelError::Refused { doing: format!("read {scope:?}"), errno: Errno::EIO, says: None };
        if self.unreadable.contains(scope) { Err(refused()) } else { Ok(()) }
    }

    fn encrypted_peers(&self) -> impl Iterator<Item = (LinkName, PublicKey)> {
        self.state.iter().filter_map(|(key, _)| match key {
            Key::WgPeer { link, public_key } | Key::EspPeer { link, public_key } => Some((link.clone(), *public_key)),
            _ => None,
        })
    }

    /// With a link goes what hangs on it, and of that the kernel tells nothing but the link.
    fn remove(&mut self, key: &Key) {
        match key.as_link() {
            Some(link) => {
                for key in hanging_on(&self.state, &BTreeSet::from([link])) {
                    self.state.remove(&key);
                }
            }
            None => drop(self.state.remove(key)),
        }
        self.tell(Wake::Now(key.clone(), None));
    }

    fn step(&mut self, op: Op<'_>) -> Result<(), KernelError> {
        let refused = |errno| KernelError::Refused { doing: format!("do {op:?}"), errno, says: None };
        if let Some(left) = self.steps_until_failure {
            self.steps_until_failure = left.checked_sub(1);
            if left == 0 {
                return Err(refused(Errno::ENOMEM));
            }
        }
        if self.without_ipv6 && is_ipv6(op.key()) {
            return Err(refused(Errno::EAFNOSUPPORT));
        }
        if let Some(errno) = self.failing.get(op.key()) {
            return Err(refused(*errno));
        }
        if let Netns::Pod(ns) = op.key().netns()
            && self.gone_pods.contains(ns)
        {
            return if matches!(op, Op::Delete(..)) {
                Ok(())
            } else {
                Err(KernelError::NetnsGone(PodNetns::clone(ns)))
            };
        }
        match op {
            Op::Delete(key, _) => self.remove(key),
            Op::Create(key, new) | Op::Replace { key, new, .. } => self.put(key, new).map_err(|error| match error {
                Missing::Link => refused(Errno::ENODEV),
                Missing::Pod(ns) => KernelError::NetnsGone(ns),
                Missing::Room => KernelError::Conflict { what: key.to_string(), theirs: "somebody's".into() },
                Missing::Nothing => refused(Errno::EEXIST),
            })?,
        }
        Ok(())
    }

    fn put(&mut self, key: &Key, new: &Object) -> Result<(), Missing> {
        if self.foreign.contains(key) {
            return Err(Missing::Room);
        }
        let ns = key.netns().clone();
        let dev = if let Object::Route(route) = new { route.dev.as_ref() } else { None };
        let is_there = |state: &State, link: &LinkName| {
            let link = Key::Link { ns: ns.clone(), link: link.clone() };
            // Links that are not ours are not modelled: they are there.
            state.get(&link).is_some() || (ns == Netns::Host && !crate::link::is_ours(key_link(&link)))
        };
        if key.link().or(dev).is_some_and(|link| !is_there(&self.state, link)) {
            return Err(Missing::Link);
        }
        if let (Key::Link { .. }, Object::Link(link)) = (key, new) {
            self.put_link(key, link)?;
        }
        // One that is made again begins with nothing.
        if let Key::NftSet { set } = key
            && self.state.get(key).is_some_and(|entry| entry.object != *new)
        {
            self.state.remove_elements(set);
        }
        self.state.insert(key.clone(), new.clone(), Owner::Read);
        self.tell(Wake::Now(key.clone(), Some(new.clone())));
        Ok(())
    }

    fn put_link(&mut self, key: &Key, new: &Link) -> Result<(), Missing> {
        let old = match self.state.get(key).map(|entry| entry.object.clone()) {
            Some(Object::Link(old)) => Some(old),
            _ => None,
        };
        match (&old, &new.kind) {
            (None, LinkKind::VethPeer) => return Err(Missing::Link),
            (None, LinkKind::Veth { peer: Netns::Pod(ns), peer_name }) => {
                if self.gone_pods.contains(ns) {
                    return Err(Missing::Pod(PodNetns::clone(ns)));
                }
                let far = Link { kind: LinkKind::VethPeer, up: false, group: 0, ..new.clone() };
                let far_key = Key::Link { ns: Netns::Pod(ns.clone()), link: peer_name.clone() };
                if self.state.get(&far_key).is_some() {
                    return Err(Missing::Nothing);
                }
                self.state.insert(far_key, Object::Link(far.into()), Owner::Read);
            }
            (Some(old), kind) if !old.kind.can_become(kind) => return Err(Missing::Nothing),
            _ => {}
        }
        if old.is_some_and(|old| old.mac != new.mac) {
            let neighbours = |key: &Key| matches!(key, Key::Neigh { .. });
            let (ns, link) = key.as_link().expect("it is a link's key");
            let on_it = |other: &Key| neighbours(other) && *other.netns() == ns && other.link() == Some(&link);
            let lost: Vec<Key> = self.state.iter().map(|(key, _)| key).filter(|key| on_it(key)).cloned().collect();
            lost.iter().for_each(|key| drop(self.state.remove(key)));
        }
        Ok(())
    }
}

/// What a new object lacks.
enum Missing {
    Link,
    Pod(PodNetns),
    Room,
    Nothing,
}

/// Whether only a kernel with IPv6 has such a thing.
fn is_ipv6(key: &Key) -> bool {
    match key {
        Key::Sysctl { name, .. } | Key::UplinkSysctl { name, .. } | Key::LinkSysctl { name, .. } => {
            name.starts_with("ipv6/")
        }
        Key::Address { address, .. } => address.addr().is_ipv6(),
        Key::Neigh { address, .. } => address.is_ipv6(),
        Key::Proxied { .. } => true,
        Key::Route { dst, .. } => dst.addr().is_ipv6(),
        Key::Rule { v6, .. } => *v6,
        _ => false,
    }
}

fn key_link(key: &Key) -> &str {
    match key {
        Key::Link { link, .. } => link.as_str(),
        _ => "",
    }
}

impl Kernel for Fake {
    fn features(&mut self) -> Features {
        let inside = self.lock();
        Features { ipv6: !inside.without_ipv6, vxlan: true, nft: true, wireguard: !inside.without_wireguard }
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        self.lock().wake = Some(wake);
        Ok(())
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        let mut inside = self.lock();
        inside.reads += 1;
        if inside.interrupted_reads > 0 {
            inside.interrupted_reads -= 1;
            return Err(KernelError::Interrupted("the fake kernel"));
        }
        inside.can_read(scope)?;
        match scope {
            Scope::Pod { ns, .. } if inside.gone_pods.contains(ns) => Err(KernelError::NetnsGone(ns.clone())),
            _ => {
                let covered = inside.state.iter().filter(|(key, entry)| scope.covers(key, &entry.object));
                Ok(covered.map(|(key, entry)| (key.clone(), entry.clone())).collect())
            }
        }
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        Ok(self.lock().host.clone())
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        let inside = self.lock();
        inside.can_read(&Scope::Encryption)?;
        let key_pair = |(key, _): (&Key, &Entry)| match key {
            // Any key will do that is this name's alone.
            Key::KeyPair { name } => Some((name.clone(), PublicKey([stable_hash(name).to_be_bytes()[0]; 32]))),
            _ => None,
        };
        let handshakes = inside.encrypted_peers().map(|peer| (peer.clone(), inside.met.contains(&peer))).collect();
        Ok(EncryptionState { public_keys: inside.state.iter().filter_map(key_pair).collect(), handshakes })
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        let mut inside = self.lock();
        inside.waiting = inside.paused;
        self.shared.moved.notify_all();
        while inside.paused {
            inside = self.shared.moved.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
        inside.waiting = false;
        inside.changes.push(change.clone());
        for key in std::mem::take(&mut inside.vanishing) {
            inside.remove(&key);
        }
        let mut failures = Vec::new();
        // What is of policy is refused together.
        let mut of_policy = change.steps.iter().map(Step::key).filter(|key| key.is_of_policy());
        let refused = of_policy.find_map(|key| inside.failing.get(key).copied());
        let refused = refused.map(|errno| KernelError::Refused { doing: "do all of it".into(), errno, says: None });
        failures
            .extend(refused.iter().flat_map(|error| fail_together(&change.steps.iter().collect::<Vec<_>>(), error)));
        for step in change.steps.iter().filter(|step| refused.is_none() || !step.key().is_of_policy()) {
            if let Err(error) = inside.step(step.op()) {
                failures.push(Failure::of(step, error));
            }
        }
        failures
    }

    fn wait_for_carrier(&mut self, link: &LinkName) {
        let mut inside = self.lock();
        let there = inside.state.clone();
        inside.waits.push((link.clone(), there));
    }

    fn bury(&mut self) {
        let mut inside = self.lock();
        let dying = |(key, entry): (&Key, &Entry)| match &entry.object {
            Object::Link(link) if !inside.failing.contains_key(key) => {
                DYING_LINK_GROUPS.contains(&link.group).then(|| key.clone())
            }
            _ => None,
        };
        let dying: Vec<Key> = inside.state.iter().filter_map(dying).collect();
        dying.iter().for_each(|key| inside.remove(key));
    }

    fn lend(&mut self, _: &PodNetns, _: OwnedFd) {}

    fn give_back(&mut self, _: &PodNetns) {}
}
