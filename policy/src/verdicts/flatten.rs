//! Ordered rules of one subject and direction, flattened: for one other end, what becomes of each class of packets.
//!
//! Rules are taken from the last to the first, each put over what those after it decide, so that the first that matches
//! is what stays. The tier after a tier is known by then, which is what Pass needs. There may be thousands of rules and of
//! classes: of each class only the rules about it are asked, as far as the first that decides for sure, and of an end
//! only the classes that a rule about it speaks of.
//!
//! Invariant: equals what [`walk`](crate::walk) finds by asking the rules one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ir::{Action, Entity, L4, L4Match, Mode, Nets, SourcePorts};
use crate::traits::{Holds, Traits};
use crate::walk;

use super::budget::{Budget, Spent};
use super::classes::{Class, Classes, names_ports};
use super::merged::merged;
use super::selections::SelectionId;
use super::word::Word;

/// What a class cannot tell: what is left to ask of a packet itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    SourcePort(SourcePorts),
    /// The subject's own address, or that it is not one of these.
    Local {
        nets: Arc<Nets>,
        negated: bool,
    },
}

/// What becomes of packets for which all of this holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    Classes(Arc<[(Class, Holds)]>),
    /// It depends on how the other end names its ports.
    ByName(Arc<[L4Match]>),
}

/// What one subject is asked of packets, by what is written of them: many rules write the same.
pub(super) struct Written<'a> {
    classes: &'a Classes,
    budget: &'a Budget,
    /// Whom packets go to, where that is always the same.
    to: Option<&'a Traits>,
    packets: BTreeMap<Vec<L4Match>, Packets>,
}

/// All that one subject is asked in one direction.
#[derive(Default)]
pub(super) struct Course {
    /// In order.
    lines: Vec<Line>,
    /// By tier, what becomes of what no line of it matches; none: the next tier decides.
    ends: Vec<Option<Word>>,
    /// Those about anyone: of each class the same for all ends,
    anyone: Asked,
    /// or by how an end names its ports.
    by_name: Vec<usize>,
}

/// Lines that are asked, in order, each with whether it is about the end. What comes after one that decides for sure is
/// not asked.
#[derive(Default)]
struct Asked {
    of_all: Vec<(usize, Holds)>,
    of_some: BTreeMap<Class, Vec<(usize, Holds)>>,
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
            if walk::passes(word.verdict()) {
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
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Begins the next tier; returns its number.
    pub(super) fn begin_tier(&mut self, end: Option<Word>) -> usize {
        self.ends.push(end);
        self.ends.len() - 1
    }

    /// Adds a line to the last tier.
    pub(super) fn add(&mut self, line: Line, budget: &Budget) -> Result<(), Spent> {
        let at = self.lines.len();
        match (line.remote, &line.packets) {
            (Some(_), _) => self.lines.push(line),
            (None, Packets::ByName(_)) => {
                self.by_name.push(at);
                self.lines.push(line);
            }
            (None, packets) => {
                let packets = packets.clone();
                self.lines.push(line);
                self.anyone.add(&self.lines, at, Holds::Yes, &packets, budget)?;
            }
        }
        Ok(())
    }

    /// Lines about anyone may treat ends unlike by the names of their ports.
    pub(super) fn treats_anyone_by_name(&self) -> bool {
        !self.by_name.is_empty()
    }

    /// What becomes of each class of packets to or from an end that no line but those about anyone is about.
    pub(super) fn of_anyone(&self, classes: &Classes, end: &Traits, budget: &Budget) -> Result<Vec<Outcome>, Spent> {
        let own = self.asked(classes, &[], end, budget)?;
        all(classes).map(|class| self.outcome(class, &own, budget)).collect()
    }

    /// What becomes of packets to or from an end, of those classes that may be treated unlike anyone's. `matched` are the
    /// lines about it, in order, but for those about anyone.
    pub(super) fn of_end(
        &self,
        classes: &Classes,
        matched: &[(usize, Holds)],
        end: &Traits,
        budget: &Budget,
    ) -> Result<Vec<(Class, Outcome)>, Spent> {
        let own = self.asked(classes, matched, end, budget)?;
        let concerned: Vec<Class> = if own.of_all.is_empty() && !self.treats_anyone_by_name() {
            own.of_some.keys().copied().collect()
        } else {
            all(classes).collect()
        };
        concerned.into_iter().map(|class| Ok((class, self.outcome(class, &own, budget)?))).collect()
    }

    /// What an end is asked beside what anyone is.
    fn asked(
        &self,
        classes: &Classes,
        matched: &[(usize, Holds)],
        end: &Traits,
        budget: &Budget,
    ) -> Result<Asked, Spent> {
        let by_name = self.by_name.iter().map(|at| (*at, Holds::Yes));
        let mut lines: Vec<(usize, Holds)> = matched.iter().copied().chain(by_name).collect();
        budget.spend(lines.len())?;
        lines.sort_unstable_by_key(|(at, _)| *at);
        let mut asked = Asked::default();
        for (at, remote) in lines {
            let packets = match &self.lines[at].packets {
                Packets::ByName(matches) => Packets::Classes(hold_any(matches, classes, end, budget)?),
                packets => packets.clone(),
            };
            asked.add(&self.lines, at, remote, &packets, budget)?;
        }
        Ok(asked)
    }

    fn outcome(&self, class: Class, own: &Asked, budget: &Budget) -> Result<Outcome, Spent> {
        let mut asked: Vec<(usize, Holds)> = self.anyone.of(class).chain(own.of(class)).collect();
        budget.spend(10 + asked.len())?;
        asked.sort_unstable_by_key(|(at, _)| *at);
        let mut result = Outcome::only(Word::DEFAULT);
        for (tier, tier_end) in self.ends.iter().enumerate().rev() {
            let first = asked.partition_point(|(at, _)| self.lines[*at].tier < tier);
            let next = result.clone();
            if let Some(word) = tier_end {
                result = Outcome::only(*word);
            }
            for (at, holds) in asked.split_off(first).into_iter().rev() {
                result = self.lines[at].put_over(result, &next, holds);
            }
        }
        Ok(result)
    }
}

fn all(classes: &Classes) -> impl Iterator<Item = Class> {
    (0..).take(classes.count())
}

// === impl Asked ===

impl Asked {
    /// Lines are added in order.
    fn add(
        &mut self,
        lines: &[Line],
        at: usize,
        remote: Holds,
        packets: &Packets,
        budget: &Budget,
    ) -> Result<(), Spent> {
        match packets {
            Packets::Classes(classes) => {
                budget.spend(classes.len())?;
                for (class, holds) in classes.iter() {
                    ask(self.of_some.entry(*class).or_default(), lines, at, remote.min(*holds));
                }
            }
            Packets::All | Packets::ByName(_) => ask(&mut self.of_all, lines, at, remote),
        }
        Ok(())
    }

    fn of(&self, class: Class) -> impl Iterator<Item = (usize, Holds)> {
        self.of_all.iter().chain(self.of_some.get(&class).into_iter().flatten()).copied()
    }
}

/// Adds a line that may change what becomes of a packet.
fn ask(asked: &mut Vec<(usize, Holds)>, lines: &[Line], at: usize, holds: Holds) {
    let decided =
        asked.last().is_some_and(|(last, holds)| lines[*last].tier == lines[at].tier && lines[*last].decides(*holds));
    if !decided && !lines[at].changes_nothing(holds) {
        asked.push((at, holds));
    }
}

// === impl Line ===

impl Line {
    /// Whether nothing after it in its tier is asked.
    fn decides(&self, holds: Holds) -> bool {
        holds == Holds::Yes && self.action != Action::Log && self.asks.is_empty()
    }

    /// What a line may allow passes only if it passes without that line.
    fn changes_nothing(&self, holds: Holds) -> bool {
        let may = holds == Holds::Maybe && self.asks.is_empty() && self.action == Action::Allow;
        holds == Holds::No || may
    }

    /// `there` is what becomes of a packet without this line, and `next` what does by the tiers after its own.
    fn put_over(&self, there: Outcome, next: &Outcome, holds: Holds) -> Outcome {
        let matched = match self.action {
            Action::Log => there.logged(),
            Action::Pass => next.clone(),
            action => Outcome::only(Word::of_action(action, self.mode, self.rule)),
        };
        let matched = match holds {
            Holds::No => return there,
            Holds::Yes => matched,
            Holds::Maybe => matched.unless_passed(&there),
        };
        matched.where_holds(&self.asks, there)
    }
}

// === impl Written ===

impl<'a> Written<'a> {
    pub(super) fn new(classes: &'a Classes, to: Option<&'a Traits>, budget: &'a Budget) -> Written<'a> {
        Written { classes, budget, to, packets: BTreeMap::new() }
    }

    /// The packets of a list of matches.
    pub(super) fn packets(&mut self, matches: &[L4Match]) -> Result<Packets, Spent> {
        if let Some(known) = self.packets.get(matches) {
            return Ok(known.clone());
        }
        let packets = match self.to {
            None if matches.iter().any(names_ports) => Packets::ByName(matches.into()),
            to => {
                let nobody = Traits::of(Entity::World);
                Packets::Classes(hold_any(matches, self.classes, to.unwrap_or(&nobody), self.budget)?)
            }
        };
        self.packets.insert(matches.to_vec(), packets.clone());
        Ok(packets)
    }
}

fn hold_any(
    matches: &[L4Match],
    classes: &Classes,
    to: &Traits,
    budget: &Budget,
) -> Result<Arc<[(Class, Holds)]>, Spent> {
    let mut any: BTreeMap<Class, Holds> = BTreeMap::new();
    for wanted in matches {
        budget.spend(classes.steps(wanted))?;
        for (class, holds) in classes.hold(wanted, to) {
            let there = any.entry(class).or_insert(holds);
            *there = holds.max(*there);
        }
    }
    Ok(any.into_iter().collect())
}

/// A part of what a rule matches: these packets, of which this is left to ask.
pub(super) type Part = (Option<Vec<L4Match>>, Vec<Ask>);

/// The matches of a rule, [`merged`]: those that ask nothing of the packet's source port, and each of the others.
pub(super) fn by_source(l4: &L4) -> Vec<Part> {
    let L4::OneOf(all) = l4 else { return vec![(None, Vec::new())] };
    let (plain, asking): (Vec<L4Match>, Vec<L4Match>) = all.iter().cloned().partition(|each| each.source.are_any());
    let plain = (!plain.is_empty()).then(|| (Some(merged(plain)), Vec::new()));
    let asking = asking.into_iter().map(|each| {
        let ask = Ask::SourcePort(each.source.clone());
        (Some(merged([each])), vec![ask])
    });
    plain.into_iter().chain(asking).collect()
}
