//! What the kernel thread does next, one short piece of work after the other.
//!
//! Order: pods' steps of a new wanted state, a dirty scope, the rest of the difference, links that were condemned.
//! Between two pieces new wants are looked for, so that a pod never waits for bulk.
//!
//! Invariant: nothing is changed before the first full read, and nothing is diffed against a part of the mirror that
//! may be wrong, except what a new want changes for pods: creation is exclusive, and what fails is read again. What stands
//! apart and cannot be read (`dirty.rs`) is left out of the difference, and nothing waits for it; before the first full
//! read only where no device is there that it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{Family, Host};
use tartan_netstate::claims::{ENCRYPTED_LINK_PREFIX, FABRIC_LINK_PREFIX};
use tartan_netstate::{
    Change, Key, LinkKind, LinkName, Netns, Object, Op, Owner, PodNetns, State, Step, diff, diff::hanging_on,
};

use super::Applied;
use super::backoff::Backoff;
use super::burial::{Burial, Next};
use super::dirty::{Dirty, scope_of, scope_told, sysctls};
use super::groups::{BULK, Group, by_pod, first_of_policy, rank};
use super::handshakes::Handshakes;
use super::inbox::{Inbox, News};
use super::mirror::{
    condemn, dying, forget_link, is_dying, node_links, out_of_the_way, share, take_applied, take_read,
};
use super::newborn::Newborn;
use super::steps::Steps;
use crate::nft::phases;
use crate::scope::is_sysctl;
use crate::{Failure, Kernel, KernelError, Scope, Wake};

/// How long a piece of work may take.
const CHUNK: Duration = Duration::from_millis(5);
/// Steps that go with a fabric's device. It may come in the place of another network's, whose routes all packets to peers took;
/// and between two pieces of work the kernel's news of that would be read.
const WITH_A_DEVICE: usize = 512;
/// Everything is read again after this time, whatever the kernel told.
const FULL_READ: Duration = Duration::from_secs(300);
/// Firewalls in the legacy iptables tables tell nobody when they change, nor do most sysctls.
const LOOK: Duration = Duration::from_secs(10);
/// Reading what is not ours takes at most one part in so many of this thread's time.
const HOST_REST: u32 = 20;

pub(super) struct Worker {
    kernel: Box<dyn Kernel>,
    report: Box<dyn Fn(Applied) + Send>,
    inbox: Arc<Inbox>,

    mirror: State,
    host: Arc<Host>,
    /// What the mirror was before the first full read is nothing, not "nothing there".
    read_once: bool,
    dirty: Dirty,
    host_is_dirty: bool,
    /// Not before then: others change much, and reading all of it costs.
    host_read_at: Instant,
    full_read_at: Instant,
    look_at: Instant,
    handshakes: Handshakes,

    wanted: Option<(u64, State)>,
    /// The rest of the last difference.
    steps: Steps,
    /// The latest wanted state of which all that pods need is among those steps, or was carried out.
    planned: u64,
    /// Mirror and wanted state may differ.
    unsettled: bool,
    backoff: Backoff,
    per_chunk: usize,
    /// Descriptors we have, and the generation that was wanted before they came.
    lent: Vec<(PodNetns, u64)>,
    /// Pods whose inside could not be found when it was read last.
    hidden: BTreeSet<PodNetns>,
    burial: Burial,
    newborn: Newborn,

    generation: u64,
    pods_generation: u64,
    pods_ahead: BTreeMap<Arc<str>, u64>,
    applied: u64,
    applying: Duration,
    repaired: u64,
    /// Checks of pods: the latest one asked for, and the latest one done.
    checking: u64,
    checked: u64,
    /// Something in the next report is news.
    news: bool,
}

impl Worker {
    pub(super) fn new(kernel: Box<dyn Kernel>, report: Box<dyn Fn(Applied) + Send>, inbox: Arc<Inbox>) -> Worker {
        let now = Instant::now();
        Worker {
            kernel,
            report,
            inbox,
            mirror: State::new(),
            host: Arc::default(),
            read_once: false,
            dirty: Dirty::default(),
            host_is_dirty: true,
            host_read_at: now,
            full_read_at: now,
            look_at: now + LOOK,
            handshakes: Handshakes::new(now),
            wanted: None,
            steps: Steps::default(),
            planned: 0,
            unsettled: false,
            backoff: Backoff::default(),
            per_chunk: 64,
            lent: Vec::new(),
            hidden: BTreeSet::new(),
            burial: Burial::new(now),
            newborn: Newborn::default(),
            generation: 0,
            pods_generation: 0,
            pods_ahead: BTreeMap::new(),
            applied: 0,
            applying: Duration::ZERO,
            repaired: 0,
            checking: 0,
            checked: 0,
            news: false,
        }
    }

    /// Until told to stop.
    pub(super) fn run(mut self) {
        let inbox = self.inbox.clone();
        let subscribed = self.kernel.subscribe(Box::new(move |wake| inbox.wake(wake))).is_ok();
        let mut next = Some(Instant::now());
        loop {
            let news = self.inbox.take(next);
            if news.stop {
                return;
            }
            let now = Instant::now();
            self.hear(news, now);
            // Deaf, it has to look by itself.
            if now >= self.full_read_at {
                self.mark_all();
                self.full_read_at = now + if subscribed { FULL_READ } else { FULL_READ / 30 };
            }
            if now >= self.look_at {
                self.dirty.mark(Scope::Foreign);
                self.dirty.mark_node_sysctls(&self.mirror);
                self.host_is_dirty = true;
                self.look_at = now + LOOK;
            }
            let looks = [self.full_read_at, self.look_at];
            next = self.work(now).into_iter().chain(looks).chain(self.handshakes.next()).min();
        }
    }

    // === news ===

    fn hear(&mut self, news: News, now: Instant) {
        let generation = self.wanted.as_ref().map_or(0, |(generation, _)| *generation);
        for (ns, fd) in news.lent {
            self.kernel.lend(&ns, fd);
            self.news |= self.hidden.remove(&ns);
            self.lent.push((ns, generation));
        }
        for wake in news.wakes {
            self.woken(wake, now);
        }
        for (check, ns) in news.check {
            self.checking = check;
            self.unsettled = true;
            if let Some(scope) = super::dirty::pod(&self.mirror, &ns) {
                self.dirty.mark(scope);
            }
        }
        if let Some((generation, state)) = news.wanted {
            self.want(generation, state, now);
        }
    }

    fn woken(&mut self, wake: Wake, at: Instant) {
        match wake {
            Wake::Now(key, now) => self.told(&key, now.as_ref()),
            Wake::Changed(scope) => {
                // Whoever did not answer has ended.
                if matches!(scope, Scope::Engines | Scope::Encryption) {
                    self.dirty.hurry(&scope, at);
                }
                self.dirty.mark(scope);
            }
            Wake::Host => self.host_is_dirty = true,
            Wake::Overrun => self.mark_all(),
        }
    }

    fn told(&mut self, key: &Key, now: Option<&Object>) {
        let as_known = self.mirror.get(key).map(|entry| &entry.object) == now;
        if now.is_none() {
            self.newborn.gone(key);
        } else if self.newborn.told(key, as_known) {
            return;
        }
        // An echo, or what we have read since; or a sysctl that is none of ours.
        if as_known || is_sysctl(key) && self.mirror.get(key).is_none() {
            return;
        }
        // All that hung on it is gone, whatever has its name when we look: sysctls are not told of.
        if let (Some((ns, link)), None) = (key.as_link(), now) {
            forget_link(&mut self.mirror, &ns, &link);
            if self.burial.gone(key) {
                self.news = true;
                return;
            }
        }
        self.dirty.mark(scope_told(key));
    }

    fn mark_all(&mut self) {
        self.dirty.mark_node();
        self.host_is_dirty = true;
        self.handshakes.doubt(Instant::now());
        if let (true, Some((_, wanted))) = (self.read_once, &self.wanted) {
            self.dirty.mark_wanted(&self.mirror, wanted);
        }
    }

    fn want(&mut self, generation: u64, state: State, now: Instant) {
        let before = self.wanted.replace((generation, state.clone()));
        self.unsettled = true;
        let Some((generation_before, before)) = before else {
            if self.read_once {
                self.dirty.mark_wanted(&self.mirror, &state);
            }
            return;
        };
        let mut changed: BTreeSet<Key> = before.differing_keys(&state).cloned().collect();
        self.add_rest_of_policy(&state, &mut changed);
        for key in &changed {
            self.backoff.forget(key);
        }
        self.steps.retain(|step| !changed.contains(step.key()));
        // A value is known before it is changed; those of links that come only now are not there yet.
        let unread =
            |key: &&Key| is_sysctl(key) && self.mirror.get(key).is_none() && !matches!(key, Key::LinkSysctl { .. });
        for scope in sysctls(changed.iter().filter(unread)) {
            self.dirty.mark(scope);
        }
        if self.pods_generation > 0 {
            let ahead = (self.pods_generation == generation_before).then_some(generation);
            let steps = self.pods_steps(&before, &state, &changed);
            self.pods_first(steps, ahead, now);
            if self.planned == generation_before {
                self.planned = generation;
            }
            if ahead.is_some() {
                self.pods_are_done(generation);
            }
        }
    }

    /// What is of policy is applied together: with what is still to be done, or has failed.
    fn add_rest_of_policy(&self, wanted: &State, changed: &mut BTreeSet<Key>) {
        if changed.iter().any(Key::is_of_policy) {
            changed.extend(self.mirror.differing_keys(wanted).filter(|key| key.is_of_policy()).cloned());
        }
    }

    /// What a new want changes for pods, and in the nft table for all.
    fn pods_steps(&mut self, before: &State, wanted: &State, changed: &BTreeSet<Key>) -> Vec<Step> {
        let is_pods =
            |state: &State, key: &Key| matches!(state.get(key), Some(entry) if matches!(entry.owner, Owner::Pod(_)));
        let (mut is, mut should) = (State::new(), State::new());
        // What hangs on a link is lost with it, also where the next pod wants the same.
        let there = changed.iter().filter(|key| self.mirror.get(key).is_some());
        let links = there.filter_map(Key::as_link).collect();
        for key in changed.union(&hanging_on(&self.mirror, &links)) {
            if is_pods(before, key) || is_pods(wanted, key) || key.is_nft() {
                // A pod's link may be gone before the pod is; that its address departs still has its effect.
                let departs = matches!(key, Key::Neigh { .. }) && wanted.get(key).is_none();
                let last = self.mirror.get_shared(key).or_else(|| before.get_shared(key).filter(|_| departs));
                for (state, found) in [(&mut is, last), (&mut should, wanted.get_shared(key))] {
                    if let Some((key, entry)) = found {
                        state.share(key.clone(), entry.clone());
                    }
                }
            }
        }
        self.in_order(diff(&is, &should, |_| true))
    }

    /// Pod by pod, after what all of them stand on: nobody waits for those after his own. `ahead` is the wanted state of
    /// which a pod then has everything, if it has.
    fn pods_first(&mut self, steps: Vec<Step>, ahead: Option<u64>, now: Instant) {
        // A link in the way of one pod's can be another's.
        for Group { pod, steps } in by_pod(out_of_the_way(&self.mirror, self.burial.is_under_way(), steps)) {
            self.burial.pods_are_busy(now);
            self.apply(steps, false);
            if let (Some(id), Some(generation)) = (pod, ahead) {
                self.pods_ahead.insert(id, generation);
                self.news = true;
                self.say();
            }
        }
    }

    fn pods_are_done(&mut self, generation: u64) {
        if self.pods_generation != generation {
            self.pods_generation = generation;
            self.pods_ahead.clear();
            self.news = true;
            self.say();
        }
    }

    // === work ===

    /// One piece of work. Says when to come back if nothing new comes before.
    fn work(&mut self, now: Instant) -> Option<Instant> {
        for link in self.newborn.overdue(now) {
            self.dirty.mark(scope_of(&link));
        }
        if let Some(scope) = self.dirty.next(now) {
            self.read(&scope);
            return Some(now);
        }
        if self.host_is_dirty && now >= self.host_read_at {
            self.read_host(now);
        }
        if self.handshakes.next().is_some_and(|at| at <= now) {
            self.read_encryption();
        }
        let host_again = self.host_is_dirty.then_some(self.host_read_at);
        if !self.dirty.is_clean() {
            return [self.dirty.due(), host_again].into_iter().flatten().min();
        }
        if !self.read_once {
            // Rules of ours in others' firewalls must not go because those have not been read yet.
            if self.host_is_dirty {
                return host_again;
            }
            // Nor must devices because what they have, or their keys, has not.
            let unread = self.dirty.left_out().next().is_some() || !self.handshakes.are_known();
            if unread && has_devices_apart(&self.mirror) {
                return [self.handshakes.next(), self.dirty.due()].into_iter().flatten().min();
            }
            self.first_read();
            return Some(now);
        }
        if !self.steps.is_empty() {
            self.next_chunk();
            return Some(now);
        }
        if self.backoff.next().is_some_and(|due| due <= now) {
            self.unsettled = true;
        }
        if self.unsettled && self.plan(now) {
            return Some(now);
        }
        let burial = self.bury(now);
        self.say();
        [self.backoff.next(), burial, host_again, self.newborn.next(), self.dirty.due()].into_iter().flatten().min()
    }

    fn first_read(&mut self) {
        self.read_once = true;
        self.news = true;
        if let Some((_, wanted)) = &self.wanted {
            self.dirty.mark_wanted(&self.mirror, wanted);
        }
        self.say();
    }

    fn read(&mut self, scope: &Scope) {
        let began = Instant::now();
        let read = self.kernel.read(scope);
        let now = Instant::now();
        match read {
            Ok(read) => self.dirty_was_read(scope, &read, now),
            // If it is gone, so is our link into it, which the kernel tells; if only its path is, it is as it was.
            Err(KernelError::NetnsGone(ns)) => {
                self.news |= self.dirty.read(scope) | self.hidden.insert(ns);
                self.unsettled = true;
            }
            Err(error) => {
                let was_left_out = self.dirty.leaves_out(scope);
                self.news |= self.dirty.failed(scope, error.to_string(), now - began, now);
                // What is planned already is about it, too.
                if self.dirty.leaves_out(scope) && !was_left_out {
                    self.steps = Steps::default();
                    self.unsettled = true;
                }
                self.say();
            }
        }
    }

    fn dirty_was_read(&mut self, scope: &Scope, read: &State, now: Instant) {
        if self.dirty.read(scope) {
            self.news = true;
            if *scope == Scope::Encryption {
                self.handshakes.began(now);
            }
        }
        if let Scope::Pod { ns, .. } = scope {
            self.news |= self.hidden.remove(ns);
        }
        self.news |= take_read(&mut self.mirror, scope, read);
        self.steps = Steps::default();
        self.unsettled = true;
    }

    fn read_host(&mut self, now: Instant) {
        self.host_is_dirty = false;
        match self.kernel.host() {
            Ok(host) => self.learn(Host { encryption: self.host.encryption.clone(), ..host }),
            Err(_) => self.host_is_dirty = true,
        }
        let ended = Instant::now();
        self.host_read_at = ended + (ended - now) * HOST_REST;
    }

    fn read_encryption(&mut self) {
        let began = Instant::now();
        let read = self.kernel.encryption().ok();
        let now = Instant::now();
        self.handshakes.looked(read.as_ref(), now - began, now);
        if let Some(encryption) = read {
            self.learn(Host { encryption, ..Host::clone(&self.host) });
        }
    }

    fn learn(&mut self, host: Host) {
        if host != *self.host {
            self.host = Arc::new(host);
            self.news = true;
        }
    }

    /// Finds out what is to be done. Nothing: mirror and wanted state are equal, but for what fails and what is dying.
    fn plan(&mut self, now: Instant) -> bool {
        let Some((generation, wanted)) = self.wanted.clone() else { return false };
        let mut all = diff(&self.mirror, &wanted, |_| true);
        self.look_for_hidden();
        all.steps.retain(|step| !matches!(step.key().netns(), Netns::Pod(ns) if self.hidden.contains(ns)));
        all.steps.retain(|step| !self.dirty.left_out().any(|scope| is_about(step, scope)));
        self.news |= self.backoff.retain(all.steps.iter().map(|step| step.key()));
        self.steps = Steps::new(self.in_order(all));
        self.planned = generation;
        let held = |step: &Step| self.backoff.holds(step.key(), now);
        let policy_is_held = self.steps.iter().any(|step| step.key().is_of_policy() && held(step));
        self.steps.retain(|step| !(held(step) || policy_is_held && step.key().is_of_policy()));
        if !self.steps.is_empty() {
            return true;
        }
        share(&mut self.mirror, &wanted);
        self.unsettled = false;
        self.news |= self.generation != generation || self.checked != self.checking;
        (self.generation, self.pods_generation) = (generation, generation);
        self.pods_ahead.clear();
        self.checked = self.checking;
        self.give_back();
        false
    }

    /// A pod into which no link leads any more is not hidden, but gone.
    fn look_for_hidden(&mut self) {
        if self.hidden.is_empty() {
            return;
        }
        // All pods may be hidden: one walk for all of them.
        let known = super::dirty::pods(&self.mirror);
        let leads_there =
            |ns: &PodNetns| known.iter().any(|scope| matches!(scope, Scope::Pod { ns: of, .. } if of == ns));
        let before = self.hidden.len();
        self.hidden.retain(leads_there);
        self.news |= self.hidden.len() != before;
    }

    /// What pods need before bulk, and before both what all of them stand on. Links are condemned, not deleted, unless
    /// they stand in the way of another.
    fn in_order(&mut self, change: Change) -> Vec<Step> {
        let mut steps = change.steps;
        let made = steps.iter().rposition(|step| !step.deletes()).map_or(0, |last| last + 1);
        let mut at = 0;
        steps.retain_mut(|step| {
            at += 1;
            at <= made || condemn(step)
        });
        // To sort all takes a second list, and there may be tens of thousands of steps, nearly all of them bulk.
        let mut first: Vec<_> = steps.extract_if(.., |step| rank(step) < BULK).collect();
        first.sort_by_key(rank);
        steps.splice(..0, first);
        steps
    }

    fn next_chunk(&mut self) {
        let shared = self.steps.iter().take_while(|step| rank(step) == 0).count();
        let mut count = shared.max(self.per_chunk);
        if self.steps.iter().take(count).any(makes_a_device) {
            count = count.max(WITH_A_DEVICE);
        }
        let chunk = self.steps.take(count);
        let repairs = self.wanted.as_ref().is_some_and(|(generation, _)| *generation == self.generation);
        let began = Instant::now();
        self.apply(chunk, repairs);
        match began.elapsed() {
            took if took > CHUNK => self.per_chunk = (self.per_chunk / 2).max(8),
            took if took < CHUNK / 2 => self.per_chunk = (self.per_chunk * 2).min(2048),
            _ => {}
        }
        let pods_left = self.steps.iter().next().is_some_and(|step| rank(step) < BULK);
        if !pods_left {
            self.pods_are_done(self.planned);
        }
    }

    fn apply(&mut self, steps: Vec<Step>, repairs: bool) {
        self.applied += steps.len() as u64;
        if repairs {
            let retries = steps.iter().filter(|step| self.backoff.knows(step.key())).count();
            self.repaired += (steps.len() - retries) as u64;
            self.news = true;
        }
        // A runtime may put its next pod into the namespace that the last one has just left.
        let steps = out_of_the_way(&self.mirror, self.burial.is_under_way(), steps);
        let (since, failures) = (Instant::now(), self.carry_out(steps));
        let now = Instant::now();
        self.applying += now - since;
        for failure in &failures {
            self.newborn.gone(&failure.key);
        }
        for failure in failures {
            self.dirty.mark(self.scope_of_failure(&failure.key));
            self.news |= self.backoff.failed(failure, now);
        }
        self.unsettled = true;
    }

    /// One transaction after the other. Of policy nothing more is done once one has failed: it would
    /// take away what is still in use.
    fn carry_out(&mut self, steps: Vec<Step>) -> Vec<Failure> {
        let firsts = first_of_policy(&steps);
        let (mut failures, mut stopped) = (Vec::new(), None);
        for mut steps in phases(&self.mirror, steps) {
            if stopped.is_some() {
                steps.retain(|step| !step.key().is_of_policy());
            }
            let change = Change { steps };
            let mut failed = self.kernel.apply(&change);
            failed.retain(|failure| !self.has_gone_meanwhile(failure));
            take_applied(&mut self.mirror, &change.steps, &failed);
            let now = Instant::now();
            for step in &change.steps {
                self.after(step.op(), now);
            }
            let (of_policy, others): (Vec<_>, Vec<_>) =
                failed.into_iter().partition(|failure| failure.key.is_of_policy());
            stopped = stopped.or(of_policy.into_iter().next().map(|failure| failure.error));
            failures.extend(others);
        }
        if let Some(error) = stopped {
            failures.extend(firsts.into_iter().map(|(owner, key)| Failure { key, owner, error: error.clone() }));
        }
        failures
    }

    /// Others' links come and go: what was wanted of one that is gone goes with the next look at the node.
    fn has_gone_meanwhile(&mut self, failure: &Failure) -> bool {
        let gone = matches!(failure.key, Key::UplinkSysctl { .. }) && failure.is_absence();
        self.host_is_dirty |= gone;
        gone
    }

    fn scope_of_failure(&self, key: &Key) -> Scope {
        match key.netns() {
            Netns::Host => scope_of(key),
            Netns::Pod(ns) => {
                let unlinked = || Scope::Pod { ns: PodNetns::clone(ns), ends: BTreeSet::new() };
                super::dirty::pod(&self.mirror, ns).unwrap_or_else(unlinked)
            }
        }
    }

    /// What a step that was tried means for others.
    fn after(&mut self, op: Op<'_>, now: Instant) {
        self.news |= self.backoff.forget(op.key());
        self.burial.gone(op.key());
        match op {
            Op::Create(key @ Key::Link { ns, link }, _) => {
                if *ns == Netns::Host {
                    self.newborn.made(key.clone(), now);
                }
                let on_it = |key: &Key| key.netns() == ns && key.link().is_none_or(|on| on == link);
                self.backoff.hurry(on_it, now);
            }
            // The kernel drops more than it says when a link changes or an address goes.
            Op::Replace { key: Key::Link { ns: Netns::Host, link }, new, .. } if !is_dying(new) => {
                self.dirty.mark(Scope::Link(link.clone()));
            }
            Op::Delete(Key::Address { ns: Netns::Host, address, .. }, _) => {
                self.dirty.mark(Scope::Routes(Family::of_net(address)));
            }
            // Legacy tables tell nobody that they are open now.
            op if matches!(op.key(), Key::ForwardOpening { .. }) => self.host_is_dirty = true,
            // There is a key, or a handshake begins.
            op if matches!(op.key(), Key::KeyPair { .. } | Key::WgPeer { .. } | Key::EspPeer { .. }) => {
                self.handshakes.began(now);
            }
            // With its associations a key pair is spent.
            Op::Delete(Key::EspDevice { .. }, _) => {
                self.dirty.mark(Scope::Encryption);
                self.handshakes.began(now);
            }
            _ => {}
        }
    }

    /// Deletes condemned links when it disturbs nobody. Says when to look again.
    fn bury(&mut self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.as_ref().map(|(_, wanted)| wanted);
        let unwanted = |key: &Key| wanted.is_some_and(|wanted| wanted.get(key).is_none());
        let mut links = dying(&self.mirror);
        links.retain(|key, _| unwanted(key) && !self.backoff.holds(key, now));
        match self.burial.next(links.keys(), now) {
            Next::Wait(until) => until,
            Next::Bury(until) => {
                self.kernel.bury();
                Some(until)
            }
            // One by one they say why.
            Next::Failed => {
                let delete = |(key, object)| Step::delete(key, object, Owner::Read);
                self.apply(links.into_iter().map(delete).collect(), false);
                self.news = true;
                Some(now)
            }
        }
    }

    /// What was wanted with them is done. Kept longer, they would keep a namespace alive whose pod is gone.
    fn give_back(&mut self) {
        let failing = self.backoff.failures();
        if failing.iter().any(|failure| matches!(failure.owner, Owner::Pod(_))) {
            return;
        }
        let done = self.pods_generation;
        let (keep, back) = std::mem::take(&mut self.lent).into_iter().partition(|(_, before)| *before >= done);
        self.lent = keep;
        for (ns, _) in back {
            self.kernel.give_back(&ns);
        }
    }

    fn say(&mut self) {
        // Before the first full read nothing is worth knowing but why it does not come.
        if !self.news || !self.read_once && self.dirty.why(false).or(self.dirty.why(true)).is_none() {
            return;
        }
        self.news = false;
        (self.report)(Applied {
            generation: self.generation,
            pods_generation: self.pods_generation,
            pods_ahead: self.pods_ahead.clone(),
            mirror: self.mirror.clone(),
            failures: self.backoff.failures(),
            hidden: self.hidden.clone(),
            host: self.host.clone(),
            applied: std::mem::take(&mut self.applied),
            applying: std::mem::take(&mut self.applying),
            repaired: std::mem::take(&mut self.repaired),
            checked: self.checked,
            unknown: self.dirty.why(false).map(str::to_owned),
            left_out: self.dirty.why(true).map(str::to_owned),
            read: self.read_once,
        });
    }
}

/// Whether the scope covers what the step is about.
fn is_about(step: &Step, scope: &Scope) -> bool {
    let (old, new) = step.op().sides();
    [old, new].into_iter().flatten().any(|object| scope.covers(step.key(), object))
}

/// Whether a device of ours is there that another program carries, or that encrypts.
fn has_devices_apart(mirror: &State) -> bool {
    node_links(mirror).any(|(key, entry)| {
        let encrypts = |link: &LinkName| link.as_str().starts_with(ENCRYPTED_LINK_PREFIX);
        let carried = matches!(&entry.object, Object::Link(link) if matches!(link.kind, LinkKind::Tun { .. }));
        carried || matches!(key, Key::Link { link, .. } if encrypts(link))
    })
}

fn makes_a_device(step: &Step) -> bool {
    match step.op() {
        Op::Create(Key::Link { ns: Netns::Host, link }, _) => link.as_str().starts_with(FABRIC_LINK_PREFIX),
        _ => false,
    }
}
