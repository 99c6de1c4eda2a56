//! CNI callers that wait until the kernel holds what they asked for.
//!
//! An ADD is answered once all that its pod wants in a plan that holds it, and what policy says of it, has been applied and
//! nothing of it was refused; a DEL once a plan without it has been applied for all pods; a CHECK once the kernel has been
//! looked at. Nobody waits for ever, and who hung up is not waited for: its attachment is undone.
//!
//! Invariant: of each ADD exactly one of `answered` and `undone` is said, unless it was deleted meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tartan_api::cni::{CniError, CniRequest, code};
use tartan_datapath::pod::host_link;
use tartan_model::{Attachment, Failed, Programmed, World};
use tartan_netstate::{Key, Netns, Owner};
use tokio::sync::oneshot;

use crate::attach;

/// How long the kernel may take; less than the plugin's own patience, so that the runtime is told why.
const PATIENCE: Duration = Duration::from_secs(45);

/// What a caller is told.
pub type Answer = Result<Value, CniError>;

/// The way back to a caller.
pub struct CniReply(oneshot::Sender<Answer>);

/// Everybody who waits.
#[derive(Default)]
pub struct Waiting {
    callers: Vec<Caller>,
    /// The last generation that was promised.
    generation: u64,
    /// Checks asked for so far.
    checks: u64,
    /// Somebody waits for a generation that may be applied already: nothing else would wake the loop.
    look: bool,
}

struct Caller {
    what: What,
    reply: CniReply,
    /// The plan, or the check, to wait for; none until there is one.
    number: Option<u64>,
    since: Instant,
    /// When there was a plan to wait for.
    planned: Instant,
}

enum What {
    Add { id: Arc<str>, request: Box<CniRequest> },
    Del,
    Check { request: Box<CniRequest> },
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Attachments whose runtime has been told that they work.
    pub answered: Vec<Arc<str>>,
    /// Attachments that are to go.
    pub undone: Vec<Arc<str>>,
    /// What those that were answered had waited for.
    pub waited: Waited,
}

/// How long ADDs have waited, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// A plan that holds the pod, and that the store says what policy needs to know of it.
    pub plan: Duration,
    /// The kernel to have it.
    pub kernel: Duration,
}

// === impl CniReply ===

impl CniReply {
    /// Both ends of a way back.
    pub fn channel() -> (CniReply, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        (CniReply(sender), receiver)
    }

    /// It worked.
    pub fn answer(self, result: Value) {
        self.say(Ok(result));
    }

    /// It did not.
    pub fn fail(self, error: CniError) {
        self.say(Err(error));
    }

    /// Whether there was still somebody to hear it.
    fn say(self, answer: Answer) -> bool {
        self.0.send(answer).is_ok()
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

// === impl Waited ===

impl std::ops::AddAssign for Waited {
    fn add_assign(&mut self, more: Waited) {
        self.plan += more.plan;
        self.kernel += more.kernel;
    }
}

// === impl Waiting ===

impl Waiting {
    /// An ADD waits for the next plan.
    pub fn arrive(&mut self, attachment: &Attachment, request: CniRequest, reply: CniReply, now: Instant) {
        self.push(What::Add { id: attachment.id.clone(), request: Box::new(request) }, None, reply, now);
    }

    /// A DEL or a GC waits for the next plan.
    pub fn depart(&mut self, reply: CniReply, now: Instant) {
        self.push(What::Del, None, reply, now);
    }

    /// A CHECK waits until the kernel has been looked at. The number of the check.
    pub fn check(&mut self, request: CniRequest, reply: CniReply, now: Instant) -> u64 {
        self.checks += 1;
        self.push(What::Check { request: Box::new(request) }, Some(self.checks), reply, now);
        self.checks
    }

    /// The attachment is given up: who still waits to see it added learns that.
    pub fn forget(&mut self, id: &str) {
        let of_it = |caller: &mut Caller| matches!(&caller.what, What::Add { id: added, .. } if **added == *id);
        for caller in self.callers.extract_if(.., of_it) {
            caller.reply.fail(given_up(id));
        }
    }

    /// There is a plan for all that came so far: this generation; 0 while nothing can be planned. `lacks` says what an
    /// attachment, asked for like this, still lacks to be one that may have connections.
    pub fn promise(&mut self, generation: u64, lacks: impl Fn(&str, &CniRequest) -> Option<String>, now: Instant) {
        for caller in self.callers.iter_mut().filter(|caller| caller.number.is_none()) {
            match &caller.what {
                // A plan without it is to come, and there is none with it.
                What::Del if generation == 0 => caller.number = Some(0),
                _ if generation == 0 => continue,
                What::Add { id, request } if lacks(id, request).is_some() => continue,
                _ => (caller.number, caller.planned) = (Some(generation), now),
            }
            self.look |= generation == self.generation;
        }
        self.generation = generation;
    }

    /// Answers whom it can. Called for each change of what is programmed, and at [`Waiting::wake_at`].
    pub fn settle(
        &mut self,
        world: &World,
        lacks: impl Fn(&str, &CniRequest) -> Option<String>,
        now: Instant,
    ) -> Outcome {
        self.look = false;
        for caller in &mut self.callers {
            // What it had may have been taken back before the kernel had it.
            if matches!(&caller.what, What::Add { id, request } if lacks(id, request).is_some()) {
                caller.number = None;
            }
        }
        let mut outcome = Outcome::default();
        let programmed = &world.programmed;
        let due =
            |caller: &mut Caller| caller.is_done(programmed) || caller.reply.is_gone() || caller.deadline() <= now;
        for caller in self.callers.extract_if(.., due).collect::<Vec<_>>() {
            let done = caller.is_done(programmed);
            match caller.what {
                What::Add { id, request } => {
                    let verdict = match (done, lacks(&id, &request)) {
                        (true, _) => added(world, &id, &request),
                        (false, Some(what)) => Err(unknown(world, &id, &what)),
                        (false, None) => Err(too_slow(world)),
                    };
                    let worked = verdict.is_ok();
                    let told = caller.reply.say(verdict);
                    if worked && told {
                        outcome.waited.plan += caller.planned.saturating_duration_since(caller.since);
                        outcome.waited.kernel += now.saturating_duration_since(caller.planned);
                        outcome.answered.push(id);
                    } else if !outcome.undone.contains(&id) {
                        outcome.undone.push(id);
                    }
                }
                What::Check { request } => {
                    let verdict = if done { attach::check(world, &request) } else { Err(too_slow(world)) };
                    caller.reply.say(verdict.map(|()| Value::Null));
                }
                What::Del => drop(caller.reply.say(if done { Ok(Value::Null) } else { Err(too_slow(world)) })),
            }
        }
        // Two ADDs of one attachment: as long as one of them was told that it works or may still be, it stays.
        let waits =
            |id: &Arc<str>| self.callers.iter().any(|c| matches!(&c.what, What::Add { id: of, .. } if of == id));
        outcome.undone.retain(|id| !outcome.answered.contains(id) && !waits(id));
        outcome
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.callers.len()
    }

    /// When to settle though nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let first = self.callers.iter().min_by_key(|caller| caller.since)?;
        Some(if self.look { first.since } else { first.deadline() })
    }

    fn push(&mut self, what: What, number: Option<u64>, reply: CniReply, now: Instant) {
        self.callers.push(Caller { what, reply, number, since: now, planned: now });
    }
}

impl Caller {
    fn is_done(&self, programmed: &Programmed) -> bool {
        let done = match &self.what {
            What::Check { .. } => programmed.checked,
            What::Add { id, .. } => {
                programmed.pods_generation.max(programmed.pods_ahead.get(id).copied().unwrap_or_default())
            }
            What::Del => programmed.pods_generation,
        };
        self.number.is_some_and(|number| number <= done)
    }

    fn deadline(&self) -> Instant {
        self.since + PATIENCE
    }
}

fn given_up(id: &str) -> CniError {
    let why = "the runtime called DEL or GC before ADD had ended, or ADD again for other addresses, or its Pod is gone";
    CniError::new(code::TRY_LATER, format!("{id} was given up while it was being added"), why)
}

/// The answer to an ADD whose plan has been applied, or tried.
fn added(world: &World, id: &Arc<str>, request: &CniRequest) -> Answer {
    let owner = Owner::Pod(id.clone());
    let Some(attachment) = world.attachments.get(id) else { return Err(given_up(id)) };
    match world.programmed.failures.iter().find(|failed| failed.owner == owner) {
        Some(failed) => Err(refused(attachment, failed)),
        None => attach::result(world, attachment, request),
    }
}

fn refused(attachment: &Attachment, failed: &Failed) -> CniError {
    let is_pair = failed.key == Key::Link { ns: Netns::Host, link: host_link(&attachment.id) };
    let Attachment { ifname, netns, .. } = attachment;
    let hint = if is_pair {
        format!("; its other end is {ifname} in {}: is there an interface of that name already?", netns.path)
    } else {
        String::new()
    };
    CniError::new(code::IO, format!("the kernel refused {}", failed.key), format!("{}{hint}", failed.error))
}

/// Without its labels nobody can tell what may reach it.
fn unknown(world: &World, id: &str, what: &str) -> CniError {
    let pod = world.attachments.get(id).map_or_else(|| id.to_owned(), |attachment| format!("pod {}", attachment.pod()));
    let msg = format!("{pod} cannot start before its policies are known: {what}");
    let fix = "the runtime tries again by itself; if this stays, see `tartan status` on this node, and whether the API server has the object";
    CniError::new(code::TRY_LATER, msg, fix)
}

fn too_slow(world: &World) -> CniError {
    let programmed = &world.programmed;
    let msg = format!("the kernel did not get there in {} s", PATIENCE.as_secs());
    let refused = programmed.failures.first().map(|failed| format!("; refused: {}: {}", failed.key, failed.error));
    let details = format!("applied so far: plan {}{}", programmed.pods_generation, refused.unwrap_or_default());
    CniError::new(code::TRY_LATER, msg, details)
}

#[cfg(test)]
mod tests;
