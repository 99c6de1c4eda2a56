//! Ordered rules of one subject and direction, flattened: for one other end, what becomes of each class of packets.
//!
//! Rules are taken from the last to the first, each put over what those after it decide, so that the first that matches
//! is what stays. The tier after a tier is known by then, which is what Pass needs.
//!
//! Invariant: equals what [`walk`](crate::walk) finds by asking the rules one by one.

use std::borrow::Cow;
use std::sync::Arc;

use crate::ir::{Action, Entity, L4, L4Match, Mode, Nets, Port, SourcePorts};
use crate::traits::{Holds, Traits};
use crate::walk::Verdict;

use super::classes::Classes;
use super::selections::SelectionId;

/// A verdict with the number of the rule that it rests on, as a datapath's maps hold it: the upper byte says what to
/// do, the others which rule. Rule 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(pub u32);

/// What a class cannot tell: what is left to ask of a packet itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    SourcePort(SourcePorts),
    /// The subject's own address, or that it is not one of these.
    Local {
        nets: Arc<Nets>,
        negated: bool,
    },
}

/// What becomes of packets for which all of this holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    pub asks: Vec<Ask>,
    pub word: Word,
}

/// What becomes of a class of packets: the first of the residual list that holds, else the word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) residual: Vec<Residual>,
    pub(super) word: Word,
}

/// A rule as one subject is asked it: one match of its list, or all that ask nothing of the packet itself.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) action: Action,
    pub(super) mode: Mode,
    /// Which tier it is in, counted from 0.
    pub(super) tier: usize,
    /// None: anyone.
    pub(super) remote: Option<SelectionId>,
    pub(super) packets: Packets,
    pub(super) asks: Vec<Ask>,
    /// The rule's number.
    pub(super) rule: u32,
}

/// Which classes a line is about.
#[derive(Clone)]
pub(super) enum Packets {
    All,
    Classes(Vec<Holds>),
    /// It depends on how the other end names its ports.
    ByName(Vec<L4Match>),
}

/// All that one subject is asked in one direction.
#[derive(Default)]
pub(super) struct Course {
    /// In order.
    pub(super) lines: Vec<Line>,
    /// By tier, what becomes of what no line of it matches; none: the next tier decides.
    pub(super) ends: Vec<Option<Word>>,
}

const LOGGED: u32 = 1 << 30;

// === impl Word ===

impl Word {
    /// No rule decided.
    pub(super) const DEFAULT: Word = Word(1 << 24);

    pub(super) fn new(verdict: Verdict, rule: u32) -> Word {
        let code: u32 = match verdict {
            Verdict::Allow => 1,
            Verdict::Deny => 2,
            Verdict::Reject => 3,
            Verdict::Audit => 4,
        };
        Word(code << 24 | rule)
    }

    pub(super) fn of_action(action: Action, mode: Mode, rule: u32) -> Word {
        let verdict = match action {
            Action::Allow => Verdict::Allow,
            _ if mode == Mode::Audit => Verdict::Audit,
            Action::Reject => Verdict::Reject,
            _ => Verdict::Deny,
        };
        Word::new(verdict, rule)
    }

    /// What to do.
    pub fn verdict(self) -> Verdict {
        match self.0 >> 24 & 7 {
            1 => Verdict::Allow,
            3 => Verdict::Reject,
            4 => Verdict::Audit,
            _ => Verdict::Deny,
        }
    }

    /// Number of the rule; 0: none decided.
    pub fn rule(self) -> u32 {
        self.0 & 0x00ff_ffff
    }

    /// Whether it lets pass what no rule has decided.
    pub fn is_nobodys(self) -> bool {
        self == Word::DEFAULT
    }

    /// Whether a rule asks for a report.
    pub fn is_logged(self) -> bool {
        self.0 & LOGGED != 0
    }

    fn logged(self) -> Word {
        Word(self.0 | LOGGED)
    }

    fn passes(self) -> bool {
        matches!(self.verdict(), Verdict::Allow | Verdict::Audit)
    }
}

// === impl Outcome ===

impl Outcome {
    fn only(word: Word) -> Outcome {
        Outcome { residual: Vec::new(), word }
    }

    /// Every way that packets go, with what each asks.
    fn ways(&self) -> impl Iterator<Item = (&[Ask], Word)> {
        let residual = self.residual.iter().map(|residual| (residual.asks.as_slice(), residual.word));
        residual.chain([(&[][..], self.word)])
    }

    fn logged(&self) -> Outcome {
        let residual = self.residual.iter().map(|way| Residual { word: way.word.logged(), ..way.clone() });
        Outcome { residual: residual.collect(), word: self.word.logged() }
    }

    /// This one where the asks hold, else the other.
    fn where_holds(self, asks: &[Ask], otherwise: Outcome) -> Outcome {
        if asks.is_empty() {
            return self;
        }
        let mut residual: Vec<Residual> = self
            .ways()
            .map(|(more, word)| Residual { asks: asks.iter().chain(more).cloned().collect(), word })
            .collect();
        residual.extend(otherwise.residual);
        Outcome { residual, word: otherwise.word }
    }

    /// This one where it denies, else the other: what is uncertain passes only if it does either way.
    fn unless_passed(&self, otherwise: &Outcome) -> Outcome {
        let mut residual = Vec::new();
        for (asks, word) in self.ways() {
            if word.passes() {
                residual.extend(otherwise.ways().map(|(more, word)| Residual { asks: [asks, more].concat(), word }));
            } else {
                residual.push(Residual { asks: asks.to_vec(), word });
            }
        }
        // The last way of either asks nothing, so that the list ends with what is left.
        let last = residual.pop().expect("an outcome has a way at least");
        Outcome { residual, word: last.word }
    }
}

// === impl Course ===

impl Course {
    /// What becomes of each class of packets to or from an end. `matched` are the lines about it, in order, but for
    /// those about anyone.
    pub(super) fn flatten(&self, classes: &Classes, matched: &[(usize, Holds)], end: &Traits) -> Vec<Outcome> {
        let anyone = self.lines.iter().enumerate().filter(|(_, line)| line.remote.is_none());
        let mut asked: Vec<(usize, Holds)> =
            anyone.map(|(at, _)| (at, Holds::Yes)).chain(matched.iter().copied()).collect();
        asked.sort_unstable_by_key(|(at, _)| *at);
        let mut result = vec![Outcome::only(Word::DEFAULT); classes.count()];
        for (tier, tier_end) in self.ends.iter().enumerate().rev() {
            let first = asked.partition_point(|(at, _)| self.lines[*at].tier < tier);
            let asked_here = asked.split_off(first);
            let passes = asked_here.iter().any(|(at, _)| self.lines[*at].action == Action::Pass);
            let next = passes.then(|| result.clone());
            if let Some(word) = tier_end {
                result.fill(Outcome::only(*word));
            }
            for (at, remote) in asked_here.into_iter().rev() {
                self.lines[at].put_over(&mut result, next.as_deref(), classes, remote, end);
            }
        }
        result
    }
}

// === impl Line ===

impl Line {
    fn put_over(
        &self,
        result: &mut [Outcome],
        next: Option<&[Outcome]>,
        classes: &Classes,
        remote: Holds,
        end: &Traits,
    ) {
        let packets = self.packets.hold(classes, end);
        for (class, there) in result.iter_mut().enumerate() {
            let holds = packets.as_ref().map_or(Holds::Yes, |holds| holds[class]).min(remote);
            let matched = match self.action {
                Action::Log => there.logged(),
                Action::Pass => next.map_or_else(|| there.clone(), |next| next[class].clone()),
                action => Outcome::only(Word::of_action(action, self.mode, self.rule)),
            };
            let matched = match holds {
                Holds::No => continue,
                Holds::Yes => matched,
                Holds::Maybe => matched.unless_passed(there),
            };
            let otherwise = std::mem::replace(there, Outcome::only(Word::DEFAULT));
            *there = matched.where_holds(&self.asks, otherwise);
        }
    }
}

// === impl Packets ===

impl Packets {
    /// For each class; none where all of it is meant.
    fn hold(&self, classes: &Classes, end: &Traits) -> Option<Cow<'_, [Holds]>> {
        match self {
            Packets::All => None,
            Packets::Classes(holds) => Some(Cow::Borrowed(holds)),
            Packets::ByName(matches) => Some(Cow::Owned(hold_any(matches, classes, end))),
        }
    }

    /// Those of a list of matches; `to` is whom packets go to, where that is always the same.
    pub(super) fn of(matches: &[L4Match], classes: &Classes, to: Option<&Traits>) -> Packets {
        let by_name = |each: &L4Match| each.destination.all().any(|port| matches!(port, Port::Named(_)));
        match to {
            None if matches.iter().any(by_name) => Packets::ByName(matches.to_vec()),
            _ => Packets::Classes(hold_any(matches, classes, to.unwrap_or(&Traits::of(Entity::World)))),
        }
    }
}

fn hold_any(matches: &[L4Match], classes: &Classes, to: &Traits) -> Vec<Holds> {
    let mut any = vec![Holds::No; classes.count()];
    for wanted in matches {
        for (any, holds) in any.iter_mut().zip(classes.hold(wanted, to)) {
            *any = (*any).max(holds);
        }
    }
    any
}

/// The matches of a rule: those that ask nothing of the packet's source port, and each of the others.
pub(super) fn by_source(l4: &L4) -> Vec<(Option<Vec<L4Match>>, Vec<Ask>)> {
    let L4::OneOf(all) = l4 else { return vec![(None, Vec::new())] };
    let (plain, asking): (Vec<L4Match>, Vec<L4Match>) = all.iter().cloned().partition(|each| each.source.are_any());
    let plain = (!plain.is_empty()).then_some((Some(plain), Vec::new()));
    let asking = asking.into_iter().map(|each| {
        let ask = Ask::SourcePort(each.source.clone());
        (Some(vec![each]), vec![ask])
    });
    plain.into_iter().chain(asking).collect()
}
