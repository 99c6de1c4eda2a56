//! Why a connection passes or not: the line that decides, what else is about it, and what would have to be changed.
//!
//! Invariants: the verdict is that of [`walk::judge`], and so that of the tables; every change that is named for a denied
//! connection between known ends allows it, by itself.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use tartan_api::explain as api;
use tartan_model::{Family, ObjectId, PolicyText, World};

use crate::dialect;
use crate::ends::{self, Named, NotFound, Who};
use crate::ir::{Action, Direction, Mode, Program, Rank, Rule, protocol};
use crate::traits::Holds;
use crate::walk::{self, Decision, End, Fit, Packet, Verdict};
use crate::words;

pub mod changes;
mod quote;
mod written;

use changes::Change;
pub(crate) use written::PASSING;

/// What is asked of a connection beside its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    Ports {
        protocol: u8,
        source: u16,
        destination: u16,
    },
    /// Type and code; none: an echo request of the family.
    Icmp(Option<(u8, u8)>),
}

/// What one end's policies say.
#[derive(Clone, Debug)]
pub struct Side<'a> {
    pub decision: Decision,
    /// Everything that is for the subject, in order.
    pub asked: Vec<Asked<'a>>,
    /// Where it is denied.
    pub changes: Vec<Change>,
}

/// A rule, or the isolation of a policy, at its place among all that are for a subject.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub rank: &'a Rank,
    pub mode: Mode,
    pub path: &'a Arc<str>,
    /// None: the isolation, which is asked when the tier has ended.
    pub rule: Option<&'a Rule>,
    pub fit: Fit,
}

/// All policies, lowered.
pub fn program(policies: &OrdMap<ObjectId, Arc<PolicyText>>) -> Program {
    policies.iter().flat_map(|(id, text)| dialect::lower(id, text).policies).collect()
}

/// What becomes of a connection between two ends: once for each family that both have.
pub fn trace(
    world: &World,
    program: &Program,
    from: &Named,
    to: &Named,
    asking: Asking,
) -> Result<Vec<api::Trace>, NotFound> {
    let of = |end: &Named, family| end.addresses.iter().copied().find(|address| Family::of(*address) == family);
    let pairs = Family::ALL.into_iter().filter_map(|family| Some((of(from, family)?, of(to, family)?)));
    let traces: Vec<api::Trace> = pairs
        .map(|(source, destination)| {
            let packet = asking.packet(Family::of(destination));
            let egress = egress(world, program, from, (source, destination), &packet);
            let ingress = ingress(world, program, to, (source, destination), &packet);
            let denied = |it: &api::Judged| matches!(it.verdict, api::Verdict::Denied | api::Verdict::Rejected);
            api::Trace {
                from: end(from, source),
                to: end(to, destination),
                packet: words::packet(&packet),
                allowed: !denied(&egress) && !denied(&ingress),
                egress,
                ingress,
            }
        })
        .collect();
    if traces.is_empty() {
        let list = |end: &Named| end.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (from, to) = (format!("{} ({})", from.name, list(from)), format!("{} ({})", to.name, list(to)));
        return Err(NotFound(format!("{from} and {to} have no address family in common; name two of one family")));
    }
    Ok(traces)
}

fn end(named: &Named, address: IpAddr) -> api::End {
    api::End { name: named.name.clone(), address: address.to_string(), notes: named.notes.clone() }
}

fn egress(world: &World, program: &Program, from: &Named, ends: (IpAddr, IpAddr), packet: &Packet) -> api::Judged {
    let (source, destination) = ends;
    match &from.pod {
        Some(pod) if ends::addresses_of(world, pod).contains(&destination) => to_itself(),
        Some(pod) => judged(world, program, Direction::Egress, pod, source, destination, packet),
        None => not_judged(world, from, source),
    }
}

fn ingress(world: &World, program: &Program, to: &Named, ends: (IpAddr, IpAddr), packet: &Packet) -> api::Judged {
    let (source, destination) = ends;
    let Some(pod) = &to.pod else { return not_judged(world, to, destination) };
    if ends::addresses_of(world, pod).contains(&source) {
        return to_itself();
    }
    match (ends::who(world, source), world.pods.get(pod)) {
        (Who::Node(node), Some(of)) if node == of.node => because(format!(
            "{node} is the node of {pod}: what a node sends to its own pods is not judged, so that probes pass"
        )),
        _ => judged(world, program, Direction::Ingress, pod, destination, source, packet),
    }
}

fn to_itself() -> api::Judged {
    because("what a pod sends to itself is not judged".into())
}

fn not_judged(world: &World, end: &Named, address: IpAddr) -> api::Judged {
    because(match ends::who(world, address) {
        Who::UnknownPod(_) | Who::Disputed(_) => "its own policies are not known here".into(),
        Who::Node(_) => format!("{} is a node: policies are for pods", end.name),
        Who::World | Who::Pod(_) => format!("{} is no pod of this cluster: policies are for pods", end.name),
    })
}

fn because(why: String) -> api::Judged {
    api::Judged { why, ..api::Judged::default() }
}

fn judged(
    world: &World,
    program: &Program,
    direction: Direction,
    pod: &str,
    own: IpAddr,
    other: IpAddr,
    packet: &Packet,
) -> api::Judged {
    match side(world, program, direction, pod, own, other, packet) {
        Some(side) => side.document(world, direction, other),
        None => api::Judged {
            verdict: api::Verdict::Denied,
            why: format!("the namespace of {pod} is not known, and so not its policies: it has no connections"),
            ..api::Judged::default()
        },
    }
}

/// What a pod's policies say of a packet between one of its addresses and another end; none where it is not known which
/// policies are for it.
pub fn side<'a>(
    world: &World,
    program: &'a Program,
    direction: Direction,
    pod: &str,
    own: IpAddr,
    other: IpAddr,
    packet: &Packet,
) -> Option<Side<'a>> {
    let subject = End { traits: ends::subject(world, pod)?, address: own };
    let judge = world.pods.get(pod).map(|pod| pod.node.clone()).unwrap_or_default();
    let remote = ends::remote(world, &judge, other);
    let decision = walk::judge(program, direction, &subject, &remote, packet);
    let asked = asked(program, direction, &subject, &remote, packet);
    let changes = if walk::passes(decision.verdict) {
        Vec::new()
    } else {
        changes::that_allow(&decision, &asked, direction, &remote, packet)
    };
    Some(Side { decision, asked, changes })
}

/// Everything that is for the subject, whatever becomes of the packet before it is asked; staged policies, too.
fn asked<'a>(
    program: &'a Program,
    direction: Direction,
    subject: &End,
    remote: &End,
    packet: &Packet,
) -> Vec<Asked<'a>> {
    let Some(workload) = &subject.traits.workload else { return Vec::new() };
    let speaking = program.iter().filter(|(_, policy)| policy.subject.select_workload(workload));
    let speaking: Vec<_> =
        speaking.filter_map(|(rank, policy)| Some((rank, policy.mode, policy.rules(direction)?))).collect();
    let always = Fit { remote: Holds::Yes, local: Holds::Yes, l4: Holds::Yes };
    let mut all = Vec::new();
    for tier in speaking.chunk_by(|(one, ..), (other, ..)| one.tier == other.tier) {
        for (rank, mode, rules) in tier {
            all.extend(rules.rules.iter().map(|rule| {
                let fit = walk::fit(rule, direction, subject, remote, packet);
                Asked { rank, mode: *mode, path: &rule.path, rule: Some(rule), fit }
            }));
        }
        let isolating = tier.iter().filter_map(|(rank, mode, rules)| {
            Some(Asked { rank, mode: *mode, path: rules.isolates.as_ref()?, rule: None, fit: always })
        });
        all.extend(isolating);
    }
    all
}

// === impl Asking ===

impl Asking {
    fn packet(self, family: Family) -> Packet {
        let icmp = |protocol, (kind, code): (u8, u8)| Packet {
            protocol,
            source_port: 0,
            destination: u16::from_be_bytes([kind, code]),
        };
        match (self, family) {
            (Asking::Ports { protocol, source, destination }, _) => {
                Packet { protocol, source_port: source, destination }
            }
            (Asking::Icmp(message), Family::V4) => icmp(protocol::ICMP, message.unwrap_or((8, 0))),
            (Asking::Icmp(message), Family::V6) => icmp(protocol::ICMPV6, message.unwrap_or((128, 0))),
        }
    }
}

// === impl Side ===

impl Side<'_> {
    /// Where the line that decides stands among all.
    pub fn decider(&self) -> Option<usize> {
        decider(&self.decision, &self.asked)
    }

    fn document(&self, world: &World, direction: Direction, other: IpAddr) -> api::Judged {
        let decider = self.decider();
        let line = |asked: &Asked<'_>, says: String| api::Line {
            object: asked.rank.source.to_string(),
            field: asked.path.to_string(),
            place: String::new(),
            tier: asked.rank.tier.name.to_string(),
            says,
            yaml: quote::part(world.policies.get(&asked.rank.source), asked.path),
        };
        let why = match (decider, self.asked.is_empty()) {
            (Some(_), _) => String::new(),
            (None, true) => "no policy for the pod speaks of this direction".into(),
            (None, false) => "no rule is about it, and no policy isolates the pod in this direction".into(),
        };
        let word = |at: usize| words::action(&self.asked[at]).to_owned();
        api::Judged {
            verdict: words::verdict(self.decision.verdict),
            rule: decider.map(|at| line(&self.asked[at], word(at))),
            why,
            also: self.also(decider).into_iter().map(|(asked, says)| line(asked, says)).collect(),
            would_allow: self.changes.iter().map(|change| change.document(world, direction, other)).collect(),
        }
    }

    /// What else is about the packet, and how far that counts.
    fn also(&self, decider: Option<usize>) -> Vec<(&Asked<'_>, String)> {
        let mut also = Vec::new();
        let mut passed_tier = None;
        for (at, asked) in self.asked.iter().enumerate() {
            let whole = asked.fit.whole();
            let beside = asked.rule.is_some() || decider.is_some_and(|it| it < at && self.isolates_like(it, asked));
            if Some(at) == decider || whole == Holds::No || !beside {
                continue;
            }
            let counts = match (asked.mode, decider) {
                (Mode::Staged, _) => "staged: it is not asked",
                _ if passed_tier == Some(&asked.rank.tier) => "passed over",
                (_, Some(it)) if it < at && asked.rule.is_none() => "too",
                (_, Some(it)) if it < at => "not asked any more",
                _ if whole == Holds::Maybe => "perhaps: it depends on labels that are not known",
                _ => "goes on",
            };
            if counts == "goes on" && asked.rule.is_some_and(|rule| rule.action == Action::Pass) {
                passed_tier = Some(&asked.rank.tier);
            }
            let action = words::action(asked);
            also.push((asked, if counts == "goes on" { action.to_owned() } else { format!("{action} ({counts})") }));
        }
        also
    }

    fn isolates_like(&self, decider: usize, asked: &Asked<'_>) -> bool {
        self.asked[decider].rule.is_none() && self.asked[decider].rank.tier == asked.rank.tier
    }
}

fn decider(decision: &Decision, asked: &[Asked<'_>]) -> Option<usize> {
    let rule = decision.rule.as_ref()?;
    let denies = decision.verdict != Verdict::Allow;
    // A rule and an isolation may have one path: what denies by isolation is no rule that allows.
    let acts = |it: &Asked<'_>| it.rule.is_none_or(|rule| (rule.action == Action::Allow) != denies);
    asked
        .iter()
        .position(|it| it.rank.source == rule.source && it.path == &rule.path && it.mode != Mode::Staged && acts(it))
}
