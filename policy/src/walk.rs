//! The rules of the intermediate form, asked one by one: what a trace shows, and the twin of the verdict tables.
//!
//! Slow and obvious on purpose: no identities, no classes, no tables. An unknown pod is allowed what a pod with any
//! labels would be allowed: where a rule may match or not, both ways are gone, and one that denies wins.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::ir::{
    Action, DefaultAction, Direction, L4, L4Match, Mode, Policy, Ports, Program, ProtocolIs, Rank, Rule, RuleRef,
    Rules, protocol,
};
use crate::traits::{Holds, Traits, Workload};

/// A packet, as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub protocol: u8,
    /// Of protocols that have ports, else 0.
    pub source_port: u16,
    /// The port; of ICMP type and code, the type in the upper byte; else 0.
    pub destination: u16,
}

/// An end and its address.
#[derive(Clone, Debug)]
pub struct End {
    pub traits: Traits,
    pub address: IpAddr,
}

/// What becomes of a packet; by the number that stands for it in a [`Word`](crate::verdicts::Word).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Allow = 1,
    Deny = 2,
    /// As `Deny`, and the sender is told.
    Reject = 3,
    /// A policy that is only tried would have denied it.
    Audit = 4,
}

/// A verdict, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    pub verdict: Verdict,
    /// None: no rule decided.
    pub rule: Option<RuleRef>,
    /// A rule asked for a report.
    pub logged: bool,
}

/// How far a rule is about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// By the other end,
    pub remote: Holds,
    /// by the subject's own,
    pub local: Holds,
    /// and by what is in the transport header.
    pub l4: Holds,
}

/// The rules of one direction that are for a subject, in order.
struct Course<'a> {
    subject: &'a End,
    remote: &'a End,
    packet: &'a Packet,
    direction: Direction,
    steps: Vec<Step<'a>>,
}

/// What one policy's rules ask, or its tier's end.
#[derive(Clone, Copy)]
enum Step<'a> {
    Rule(&'a Rank, Mode, &'a Rule),
    /// The end of a tier, with the first policy of it that isolates.
    End(Option<(&'a Rank, Mode, &'a Arc<str>)>),
}

/// What the program says of a packet between the subject and the other end.
pub fn judge(program: &Program, direction: Direction, subject: &End, remote: &End, packet: &Packet) -> Decision {
    let Some(workload) = &subject.traits.workload else {
        return Decision { verdict: Verdict::Allow, rule: None, logged: false };
    };
    let steps = steps(program, direction, workload);
    Course { subject, remote, packet, direction, steps }.from(0, false)
}

fn steps<'a>(program: &'a Program, direction: Direction, subject: &Workload) -> Vec<Step<'a>> {
    let speaks = |(rank, policy): (&'a Rank, &'a Arc<Policy>)| {
        let rules = policy.rules(direction).filter(|_| policy.mode != Mode::Staged)?;
        policy.subject.select_workload(subject).then_some((rank, policy.mode, rules))
    };
    let all: Vec<(&Rank, Mode, &Rules)> = program.iter().filter_map(speaks).collect();
    let mut steps = Vec::new();
    for tier in all.chunk_by(|(one, ..), (other, ..)| one.tier == other.tier) {
        let rules = tier.iter().flat_map(|(rank, mode, rules)| rules.rules.iter().map(|rule| (*rank, *mode, rule)));
        steps.extend(rules.map(|(rank, mode, rule)| Step::Rule(rank, mode, rule)));
        let isolates = |(rank, mode, rules): &(&'a Rank, Mode, &'a Rules)| {
            let path = rules.isolates.as_ref()?;
            (rank.tier.default_action == DefaultAction::Deny).then_some((*rank, *mode, path))
        };
        steps.push(Step::End(tier.iter().find_map(isolates)));
    }
    steps
}

// === impl Course ===

impl Course<'_> {
    /// What the steps from this one on decide. There may be tens of thousands, more than a stack has room for.
    fn from(&self, at: usize, logged: bool) -> Decision {
        for (at, step) in self.steps.iter().enumerate().skip(at) {
            match *step {
                Step::End(None) => {}
                Step::End(Some((rank, mode, path))) => return decided(Action::Deny, mode, rank, path, logged),
                Step::Rule(rank, mode, rule) => match self.matches(rule) {
                    Holds::No => {}
                    Holds::Yes => return self.take(at, rank, mode, rule, logged),
                    Holds::Maybe => {
                        let taken = self.take(at, rank, mode, rule, logged);
                        if !passes(taken.verdict) {
                            return taken;
                        }
                    }
                },
            }
        }
        Decision { verdict: Verdict::Allow, rule: None, logged }
    }

    fn take(&self, at: usize, rank: &Rank, mode: Mode, rule: &Rule, logged: bool) -> Decision {
        match rule.action {
            Action::Log => self.from(at + 1, true),
            Action::Pass => {
                let end = self.steps[at..].iter().position(|step| matches!(step, Step::End(_)));
                self.from(at + end.expect("every tier has its end") + 1, logged)
            }
            action => decided(action, mode, rank, &rule.path, logged),
        }
    }

    fn matches(&self, rule: &Rule) -> Holds {
        fit(rule, self.direction, self.subject, self.remote, self.packet).whole()
    }
}

// === impl Fit ===

impl Fit {
    /// Whether the rule is about the packet.
    pub fn whole(self) -> Holds {
        self.remote.min(self.local).min(self.l4)
    }
}

/// How far a rule is about a packet between the subject and the other end.
pub fn fit(rule: &Rule, direction: Direction, subject: &End, remote: &End, packet: &Packet) -> Fit {
    let range = |end: &End| IpNet::from(end.address);
    let local = rule.local.iter().map(|term| term.holds(&subject.traits, Some(&range(subject)))).min();
    let to = match direction {
        Direction::Ingress => subject,
        Direction::Egress => remote,
    };
    Fit {
        remote: rule.remote.hold(&remote.traits, Some(&range(remote))),
        local: local.unwrap_or(Holds::Yes),
        l4: l4(&rule.l4, &to.traits, packet),
    }
}

/// How far a packet to this end is one that a rule is about.
pub(crate) fn l4(l4: &L4, to: &Traits, packet: &Packet) -> Holds {
    match l4 {
        L4::Any => Holds::Yes,
        L4::OneOf(matches) => matches.iter().map(|each| one_l4(each, to, packet)).max().unwrap_or(Holds::No),
    }
}

fn one_l4(wanted: &L4Match, to: &Traits, packet: &Packet) -> Holds {
    let Packet { protocol, source_port, destination } = *packet;
    let protocol_is = match wanted.protocol {
        ProtocolIs::Any => true,
        ProtocolIs::Is(number) => number == protocol,
        ProtocolIs::Not(number) => number != protocol,
    };
    let [kind, code] = destination.to_be_bytes();
    let icmp_is = wanted.icmp.is_none_or(|icmp| protocol::is_icmp(protocol) && icmp.is(kind, code))
        && wanted.not_icmp.is_none_or(|icmp| protocol::is_icmp(protocol) && !icmp.is(kind, code));
    let by_number = Holds::from(protocol_is && icmp_is && wanted.source.hold(protocol, source_port));
    by_number.min(ports(&wanted.destination, to, protocol, destination))
}

fn ports(wanted: &Ports, end: &Traits, protocol: u8, port: u16) -> Holds {
    if wanted.are_any() {
        return Holds::Yes;
    }
    if !protocol::has_ports(protocol) {
        return Holds::No;
    }
    let one_of = |list: &[crate::ir::Port]| {
        list.iter().map(|wanted| end.port_is(wanted, protocol, port)).max().unwrap_or(Holds::No)
    };
    wanted.one_of.as_deref().map_or(Holds::Yes, one_of).min(!one_of(&wanted.none_of))
}

fn decided(action: Action, mode: Mode, rank: &Rank, path: &Arc<str>, logged: bool) -> Decision {
    let verdict = match action {
        Action::Allow => Verdict::Allow,
        Action::Deny | Action::Reject if mode == Mode::Audit => Verdict::Audit,
        Action::Reject => Verdict::Reject,
        _ => Verdict::Deny,
    };
    Decision { verdict, rule: Some(RuleRef { source: rank.source.clone(), path: path.clone() }), logged }
}

// === impl Verdict ===

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 4] = [Verdict::Allow, Verdict::Deny, Verdict::Reject, Verdict::Audit];
}

/// Whether the packet goes on.
pub fn passes(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Allow | Verdict::Audit)
}
