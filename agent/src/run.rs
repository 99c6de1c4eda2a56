//! The loop. It alone owns World, and it never waits for anything but its inbox and the clock.
//!
//! Everything that takes time is done by the executors (kernel thread, publisher, snapshot), each of
//! which takes the latest wanted value and reports back through the inbox.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tartan_api::cni::{CniRequest, Command};
use tartan_fabric::selftest::Sample;
use tartan_kernel::Failure;
use tartan_kernel::thread::Applied;
use tartan_model::{Attachment, Clock, Condition, Kind, NodeCondition, ObjectId, Programmed, StoreEvent, World};
use tartan_netstate::State;
use tartan_store::Word;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::attach::{self, Decision};
use crate::journal::{Journal, JournalError, Record};
use crate::leftover::Leftovers;
use crate::plan::{Plan, Planners};
use crate::selftest::{self, Paths, Tested};
use crate::snapshot::keeper::{Keeper, Told};
use crate::status::Outcome;
use crate::waiting::{CniReply, Waiting};
use crate::{cni_files, conditions, denied, former_network, policy, publish, recorded, secret, status};

/// Everything that can happen to an agent.
pub enum Input {
    /// The store says something.
    Store(Box<StoreEvent>),
    /// The kernel thread has come further, or has seen something change.
    Kernel(Box<Applied>),
    /// A snapshot is on the disk, or does not get there.
    Snapshot(Told),
    /// What the network before has given to containers that still run.
    Given(former_network::Given),
    /// Flannel's plugin wants to know the node's subnets; none while no Flannel is spoken.
    SubnetEnv(oneshot::Sender<Option<String>>),
    /// The cluster's secret is another one, or its file will not do.
    Secret(secret::Found),
    /// Networks of others that the container runtime uses in place of ours.
    OthersFirst(Vec<PathBuf>),
    /// Attachments whose DELs came while no agent ran, or of whose ADD nobody heard. The answer: the journal has it that they
    /// are gone.
    LetGo(Vec<Arc<str>>, oneshot::Sender<()>),
    /// A container runtime wants something; for ADD and CHECK with the pod's namespace.
    Cni(Box<CniRequest>, Option<OwnedFd>, CniReply),
    /// A user, or a scrape, wants to see how things stand.
    Look(oneshot::Sender<status::Seen>),
    /// A user wants to know what the node knows of the cluster.
    Record(oneshot::Sender<World>),
    /// A user watches what is denied, and wants it named.
    Names(oneshot::Sender<denied::Names>),
    /// A kubelet wants to know whether the loop turns, and what keeps the node from being ready.
    WaitingFor(oneshot::Sender<String>),
    /// A container runtime has heard what became of its call, or hung up before.
    Heard(Command, Outcome, Duration),
    /// The self-test wants to know which paths there are.
    /// Of how many which ones, where that matters.
    Paths(Option<Sample>, oneshot::Sender<Paths>),
    /// How they stand.
    Tested(Box<Tested>),
    /// End; the kernel keeps what it has.
    Stop,
}

/// Inputs taken at one go: a relist of thousands of objects is a few plans, not thousands.
const BATCH: usize = 1024;

/// The loop's own: World, the journal, and the ends of the channels to the executors.
pub struct Agent {
    world: World,
    journal: Journal,
    kernel: tartan_kernel::thread::Handle,
    publisher: watch::Sender<publish::Wanted>,
    writes: Arc<publish::Writes>,
    snapshot: Keeper,
    planners: Planners,
    waiting: Waiting,
    leftovers: Leftovers,
    /// Who waits until the journal has all that was let go of.
    until_written: Vec<oneshot::Sender<()>>,
    plan: Plan,
    /// Of the last state that the kernel thread was given.
    generation: u64,
    given: State,
    counters: status::Counters,
    tested: Tested,
    /// What is wrong with the file of the cluster's secret.
    secret_refused: Option<String>,
    /// Files of networks that the container runtime uses in place of ours.
    others_first: Vec<PathBuf>,
    /// What this node says of itself.
    conditions: Vec<NodeCondition>,
}

impl Agent {
    /// An agent that has planned nothing yet.
    pub fn new(
        world: World,
        journal: Journal,
        kernel: tartan_kernel::thread::Handle,
        (publisher, writes): (watch::Sender<publish::Wanted>, Arc<publish::Writes>),
        snapshot: Keeper,
    ) -> Agent {
        Agent {
            world,
            journal,
            kernel,
            publisher,
            writes,
            snapshot,
            planners: Planners::default(),
            waiting: Waiting::default(),
            leftovers: Leftovers::default(),
            until_written: Vec::new(),
            plan: Plan::default(),
            generation: 0,
            given: State::new(),
            counters: status::Counters::default(),
            tested: Tested::default(),
            secret_refused: None,
            others_first: Vec::new(),
            conditions: Vec::new(),
        }
    }

    /// Runs until told to stop. The inbox, the later parameter, is dropped before `self`: the kernel thread, which `self`
    /// waits for when it is dropped, may be waiting for room in it, and so may that of the snapshot.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Input>) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake_at = [self.plan.wake_at, self.waiting.wake_at(), self.leftovers.wake_at(), self.journal.wake_at()];
            let wake_at = wake_at.into_iter().flatten().min();
            tokio::select! {
                received = inbox.recv_many(&mut batch, BATCH) => if received == 0 { return Ok(()) },
                () = until(wake_at) => {}
            }
            let now = Instant::now();
            self.world.clock = Some(Clock::new(now, SystemTime::now()));
            self.counters.waiting = (batch.len() + inbox.len()) as u64;
            for input in batch.drain(..) {
                match input {
                    Input::Store(event) => {
                        self.counters.event(&event);
                        self.world.store(*event, now);
                    }
                    Input::Kernel(applied) => self.applied(*applied, now),
                    Input::Snapshot(told) => self.snapshot.heard(told),
                    Input::Given(given) => self.world.given = given,
                    Input::Secret(Ok(secret)) => (self.world.secret, self.secret_refused) = (secret, None),
                    Input::Secret(Err(why)) => self.secret_refused = Some(why),
                    Input::OthersFirst(files) => self.others_first = files,
                    Input::SubnetEnv(reply) => {
                        drop(reply.send(former_network::subnet_env(&self.world, self.planners.fabric().pod_mtu)));
                    }
                    Input::LetGo(ids, written) => {
                        ids.iter().for_each(|id| self.let_go(id, now));
                        self.until_written.push(written);
                    }
                    Input::Cni(request, netns, reply) => self.cni(*request, netns, reply, now),
                    Input::Look(reply) => {
                        self.counters.writes = self.writes.so_far();
                        self.counters.kernel_waiting = self.kernel.waiting();
                        // Who asked and went away again is owed nothing.
                        let look = status::look(&self.world, &self.planners, &self.plan, &self.counters, &self.tested);
                        let _gone = reply.send(look);
                    }
                    Input::Record(reply) => drop(reply.send(recorded::of(&self.world))),
                    Input::Names(reply) => {
                        let rules = self.plan.policy.as_ref().map(|policy| policy.tables.rules.clone());
                        drop(reply.send((self.world.clone(), rules.unwrap_or_default())));
                    }
                    Input::WaitingFor(reply) => drop(reply.send(status::waiting_for(&self.world))),
                    Input::Heard(command, outcome, took) => self.counters.cni(command, outcome, took),
                    Input::Paths(sample, reply) => drop(reply.send(self.paths(sample.as_ref()))),
                    Input::Tested(tested) => {
                        self.world.passes = tested.passes.clone();
                        self.tested = *tested;
                    }
                    Input::Stop => return Ok(()),
                }
            }
            self.settle(now);
            self.clear_up(now);
            self.keep_the_journal(now);
            let before = std::mem::replace(&mut self.plan, self.planners.plan(&self.world, now));
            self.plan.conditions.extend(self.snapshot.condition());
            self.plan.conditions.extend(self.journal.condition(&self.world.local));
            let refused = self.secret_refused.iter().map(|why| secret::condition(&self.world.local, why));
            self.plan.conditions.extend(refused);
            let others = self.others_first.iter().map(|file| cni_files::condition(&self.world.local, file));
            self.plan.conditions.extend(others);
            self.plan.conditions.extend(selftest::conditions(&self.world.local, &self.tested));
            log(&before.conditions, &self.plan.conditions);
            self.want();
            self.waiting.promise(self.generation, lacks(&self.world, &self.plan), Instant::now());
            self.counters.plan(now.elapsed());
            self.counters.callers = self.waiting.count();
        }
    }

    fn paths(&self, sample: Option<&Sample>) -> Paths {
        let fabric = self.planners.fabric();
        let targets = tartan_fabric::selftest::targets(fabric, &self.world, sample);
        let standbys = tartan_fabric::selftest::standbys(fabric, &self.world);
        Paths { fabric_addresses: tartan_fabric::selftest::asked_at(fabric, &self.world), targets, standbys }
    }

    fn applied(&mut self, applied: Applied, now: Instant) {
        let failures = applied.failures.iter().map(Failure::told).collect();
        self.counters.applied(&applied);
        if self.world.programmed.generation == 0 && applied.generation > 0 {
            info!("ready: the first full pass is done");
        }
        let programmed = Programmed {
            generation: applied.generation,
            pods_generation: applied.pods_generation,
            pods_ahead: applied.pods_ahead,
            checked: applied.checked,
            mirror: applied.mirror,
            failures,
            hidden: applied.hidden,
            unknown: applied.unknown.map(Arc::from),
            left_out: applied.left_out.map(Arc::from),
            read: applied.read,
        };
        self.world.programmed(programmed, applied.host, now);
    }

    fn cni(&mut self, request: CniRequest, netns: Option<OwnedFd>, reply: CniReply, now: Instant) {
        match attach::decide(&self.world, self.planners.ipam(), &request, now) {
            Ok(Decision::Attach(attachment)) => {
                let written = attach::gives_up(&self.world, &attachment).map_or(Ok(()), |id| self.end(id, now));
                if let Err(error) = written.and_then(|()| self.journal.append(attach::record(&attachment))) {
                    return reply.fail(attach::not_written(&error));
                }
                if let Some(netns) = netns {
                    self.kernel.lend_netns(attachment.netns.clone(), netns);
                }
                self.waiting.arrive(&attachment, request, reply, now);
                self.world.attach(attachment);
            }
            Ok(Decision::Detach(ids)) => {
                let id = Attachment::id_of(&request.container, &request.ifname);
                // It went when its ADD failed; the next start would still know it.
                if self.journal.owes_the_end_of(&id)
                    && let Err(error) = self.journal.pay()
                {
                    return reply.fail(attach::not_written(&error));
                }
                match attach::let_go_of_each(&ids, |id| self.end(id, now)) {
                    Ok(()) => self.waiting.depart(reply, now),
                    Err(error) => reply.fail(error),
                }
            }
            Ok(Decision::Check(of)) => {
                // Where the agent cannot find the pod by its path, the runtime shows it.
                if let Some(netns) = netns {
                    self.kernel.lend_netns(of.clone(), netns);
                }
                self.kernel.check_pod(self.waiting.check(request, reply, now), of);
            }
            Ok(Decision::Answer(value)) => reply.answer(value),
            Err(error) => reply.fail(error),
        }
    }

    /// Hands every executor its part of the plan. None of them blocks.
    fn want(&mut self) {
        if let Some(state) = &self.plan.state
            && (self.generation == 0 || self.given.differing_keys(state).next().is_some())
        {
            self.generation += 1;
            self.given = state.clone();
            self.kernel.want(self.generation, state.clone());
            self.world.asked = self.generation;
        }
        self.snapshot.want(&self.world, &self.plan.gives);
        self.publish(self.snapshot.permits(&self.plan.gives));
    }

    /// `lets_go`: nothing on the disk gives out what this node is about to let go of.
    fn publish(&mut self, lets_go: bool) {
        let advert = self.plan.advert.as_ref();
        let advert =
            advert.map(|advert| if lets_go { advert.clone() } else { publish::holding_on(advert, &self.world) });
        if let Some(advert) = &advert {
            self.world.say(advert);
        }
        let before = if self.conditions.is_empty() { &self.world.conditions } else { &self.conditions };
        // Before the first full pass it is not known whether what an earlier life said still holds.
        self.conditions = match status::waiting_for(&self.world).is_empty() {
            true => conditions::of_node(before, &self.plan.conditions, SystemTime::now()),
            false => before.clone(),
        };
        let wanted = publish::Wanted {
            advert,
            conditions: self.conditions.clone(),
            beat: publish::beat(self.world.config.lease),
            acknowledging: publish::acknowledging(self.world.nodes.len()),
            words: self.words().collect(),
            claims: if lets_go { self.plan.claims.clone() } else { Vec::new() },
        };
        self.publisher.send_if_modified(|last| {
            let differs = *last != wanted;
            if differs {
                *last = wanted;
            }
            differs
        });
    }

    /// What this node's own Node is to say.
    fn words(&self) -> impl Iterator<Item = (ObjectId, Word)> {
        let available = self.plan.availability.clone().map(Word::Available);
        let annotated = self.plan.annotations.clone().map(Word::Annotated);
        let node = || ObjectId { kind: Kind::Node, name: self.world.local.clone() };
        available.into_iter().chain(annotated).map(move |word| (node(), word))
    }

    /// Answers CNI callers whose objects are in the kernel, and takes back what cannot be or is no longer wanted.
    fn settle(&mut self, now: Instant) {
        let outcome = self.waiting.settle(&self.world, lacks(&self.world, &self.plan), now);
        self.counters.waited += outcome.waited;
        for id in outcome.answered {
            self.journal.append_in_time(Record::Answered { id: id.clone() }, now);
            self.world.answered(&id);
        }
        for id in outcome.undone {
            self.let_go(&id, now);
        }
    }

    /// Takes back pods that nobody takes back.
    fn clear_up(&mut self, now: Instant) {
        for id in self.leftovers.update(&self.world, now) {
            warn!(
                "{id}: neither its Pod nor its namespace is there, and nobody has called DEL; its addresses are free again"
            );
            self.let_go(&id, now);
        }
    }

    /// Lets go of an attachment if the disk has that.
    fn end(&mut self, id: &Arc<str>, now: Instant) -> Result<(), JournalError> {
        self.journal.append(Record::Del { id: id.clone() })?;
        self.world.detach(id, now);
        self.waiting.forget(id);
        Ok(())
    }

    /// Lets go of an attachment whatever the disk says.
    fn let_go(&mut self, id: &Arc<str>, now: Instant) {
        if self.world.attachments.contains_key(id) {
            self.journal.append_in_time(Record::Del { id: id.clone() }, now);
            self.world.detach(id, now);
            self.waiting.forget(id);
        }
    }

    fn keep_the_journal(&mut self, now: Instant) {
        self.journal.catch_up(now);
        self.counters.owed = self.journal.owes();
        if self.counters.owed == 0 {
            for written in self.until_written.drain(..) {
                let _ended = written.send(());
            }
        }
    }
}

/// What an attachment lacks before it may have connections.
fn lacks<'a>(world: &'a World, plan: &'a Plan) -> impl Fn(&str, &CniRequest) -> Option<String> + 'a {
    |id, request| policy::lacks(world, plan, world.attachments.get(id)?, &request.pod.uid)
}

/// Each condition is logged when it comes, and when it has gone.
fn log(before: &[Condition], now: &[Condition]) {
    if before == now {
        return;
    }
    let (before, now): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), now.iter().collect());
    for Condition { about, field, reason, message, fix } in now.difference(&before) {
        warn!(about, field, reason, fix, "{message}");
    }
    for Condition { about, field, reason, .. } in before.difference(&now) {
        info!(about, field, reason, "no longer so");
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
