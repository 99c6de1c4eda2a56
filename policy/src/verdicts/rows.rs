//! The rows of one policy set in one direction: compiled once, then kept up to date identity by identity.
//!
//! Invariant: an identity has rows of its own exactly where it is treated unlike [`ANY`], so that a lookup is exact: the
//! row of the identity, else that of `ANY`. A row of its own is final; it contains what `ANY` says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::OrdMap;

use super::budget::{Budget, ROWS, Spent};
use super::classes::{Class, Classes};
use super::flatten::{Ask, Course, Line, Outcome, Packets, Part, Residual, Written, by_source};
use super::identities::{ANY, Identities, Identity};
use super::numbers::Numbers;
use super::selections::{Selection, SelectionId, Selections};
use super::word::Word;
use crate::ir::{
    DefaultAction, Direction, Entity, Is, L4Match, Mode, Peers, Program, Rank, Rule, RuleRef, Rules, Scope, Term,
};
use crate::traits::{Holds, Traits, Workload};
use crate::walk::Verdict;

/// How many lines, of all identities that are looked at together, may match them: they take 64 MiB. So few in tests that
/// these do it in parts.
const TOGETHER: usize = if cfg!(test) { 20 } else { 4 << 20 };

/// What a datapath looks up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub classes: Arc<Classes>,
    /// By identity, or [`ANY`], and class. `ANY` has every class.
    pub words: OrdMap<(u32, Class), Word>,
    /// What is asked of the packet itself before the word of the same row counts, in order.
    pub residual: OrdMap<(u32, Class), Arc<[Residual]>>,
    /// There would be too many: nothing passes, by the rule that asks for most of them.
    pub too_many: bool,
}

/// Rows, and what they were made of.
#[derive(Default)]
pub(super) struct Compiled {
    course: Course,
    /// Names that other ends give to ports, and the ports they mean to any of them.
    names: BTreeSet<Arc<str>>,
    named: BTreeSet<(u8, u16)>,
    any: Vec<Outcome>,
    rows: Rows,
    /// Of the selections, those that name ranges; how many.
    lists: BTreeMap<SelectionId, usize>,
    /// The rule that asks for most rows.
    largest: u32,
    given_up: Option<GivenUp>,
}

/// What was too large.
struct GivenUp {
    /// How much room it takes at least, as far as is known.
    needs: usize,
    /// How many identities there were without it; not yet known in the plan that gives it up.
    identities: Option<usize>,
}

/// A policy that speaks of a direction, with what each rule says of packets.
struct Speaking<'a> {
    rank: &'a Rank,
    rules: &'a Rules,
    parts: Vec<Vec<Part>>,
}

/// What rows are compiled from.
pub(super) struct Sources<'a> {
    pub(super) program: &'a Program,
    pub(super) rules: &'a Numbers<RuleRef>,
    pub(super) identities: &'a Identities,
    pub(super) selections: &'a mut Selections,
}

/// For whom.
pub(super) struct Subject<'a> {
    pub(super) policies: &'a [Rank],
    /// What it calls its ports, and all else that rules look at in it.
    pub(super) workload: &'a Workload,
}

// === impl Rows ===

impl Rows {
    /// What a datapath holds for them alone: a row each, and where classes begin and end.
    pub(super) fn size(&self) -> usize {
        self.words.len() + self.classes.cells.len()
    }
}

// === impl Compiled ===

impl Compiled {
    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn selections(&self) -> impl Iterator<Item = SelectionId> {
        self.course.lines().iter().filter_map(|line| line.remote)
    }

    /// Lists of ranges, which a datapath holds once for all who name them, with their lengths.
    pub(super) fn lists(&self) -> &BTreeMap<SelectionId, usize> {
        &self.lists
    }

    /// What a datapath would hold for these rows if there were no others.
    pub(super) fn size(&self) -> usize {
        self.rows.size() + self.lists.values().sum::<usize>()
    }

    /// Everything anew; of the rows, only those that differ are touched.
    pub(super) fn compile(&mut self, subject: &Subject<'_>, direction: Direction, sources: &mut Sources<'_>) {
        self.reopen();
        self.rows.too_many = false;
        if let Err(Spent) = self.compile_within(&Budget::default(), subject, direction, sources) {
            self.give_up(ROWS + 1);
        }
    }

    fn compile_within(
        &mut self,
        budget: &Budget,
        subject: &Subject<'_>,
        direction: Direction,
        sources: &mut Sources<'_>,
    ) -> Result<(), Spent> {
        let tiers = tiers(subject.policies, direction, sources.program);
        let rules = || tiers.iter().flatten().flat_map(|each| &each.rules.rules);
        self.largest = largest(tiers.iter().flatten(), sources.rules);
        self.names.clear();
        let to = Traits { workload: Some(subject.workload.clone()), ..Traits::of(Entity::Pod) };
        let to = match direction {
            Direction::Ingress => {
                let of =
                    |name: &Arc<str>| subject.workload.ports.iter().filter(|(has, ..)| has == name).collect::<Vec<_>>();
                let named = rules().flat_map(Rule::port_names).flat_map(of);
                self.named = named.map(|(_, protocol, port)| (*protocol, *port)).collect();
                Some(to)
            }
            Direction::Egress => {
                self.names = rules().flat_map(Rule::port_names).cloned().collect();
                self.named = self.named_now(sources.identities);
                None
            }
        };
        let parts = tiers.iter().flatten().flat_map(|each| each.parts.iter().flatten());
        // Thousands of rules may ask the same.
        let lists: BTreeSet<&[L4Match]> = parts.filter_map(|(matches, _)| matches.as_deref()).collect();
        let classes = Classes::of_lists(&lists, &self.named, budget)?;
        self.course = Course::default();
        let mut written = Written::new(&classes, to.as_ref(), budget);
        for policies in &tiers {
            self.add_tier(policies, subject, &mut written, sources, budget)?;
        }
        self.rows.classes = Arc::new(classes);
        let selections: BTreeSet<SelectionId> = self.selections().collect();
        let lengths = selections.into_iter().map(|id| (id, sources.selections.ranges(id)));
        self.lists = lengths.filter(|(_, ranges)| *ranges > 0).collect();
        self.fill(sources.identities, sources.selections, budget)
    }

    /// Takes in identities that came or went; whether it had to be given up for them.
    pub(super) fn update(&mut self, changed: &BTreeSet<u32>, identities: &Identities, selections: &Selections) -> bool {
        if self.is_given_up() {
            return false;
        }
        let budget = Budget::default();
        for number in &self.touched(changed, selections) {
            let mut rows = BTreeMap::new();
            if let Some(identity) = identities.live().get(number) {
                let matched = self.matched(*number, selections);
                if let Err(Spent) = self.column(*number, identity, &matched, &mut rows, &budget) {
                    self.give_up(ROWS + 1);
                    return true;
                }
            }
            let places = (*number, 0)..=(*number, Class::MAX);
            let before: Vec<(u32, Class)> = self.rows.words.range(places).map(|(place, _)| *place).collect();
            for place in before.into_iter().filter(|place| !rows.contains_key(place)) {
                self.remove(&place);
            }
            rows.into_iter().for_each(|(place, outcome)| self.put(place, outcome));
        }
        false
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// Denies everything; it `needs` so much room, as far as is known.
    pub(super) fn give_up(&mut self, needs: usize) {
        let word = Word::new(Verdict::Deny, self.largest);
        let closed = Compiled {
            rows: Rows {
                classes: Arc::new(Classes::one()),
                words: OrdMap::unit((ANY, 0), word),
                residual: OrdMap::new(),
                too_many: true,
            },
            largest: self.largest,
            given_up: Some(GivenUp { needs, identities: None }),
            ..Compiled::default()
        };
        *self = closed;
    }

    /// What was given up is to be compiled again; until then it denies everything.
    pub(super) fn reopen(&mut self) {
        self.given_up = None;
    }

    /// How much room what was given up needs, if it may have it: there is so much, or an eighth of all identities that there
    /// were without it is gone. Nobody may make it be tried each time that a pod comes or goes.
    pub(super) fn may_fit(&self, room: usize, identities: usize) -> Option<usize> {
        let fits =
            |then: &&GivenUp| then.needs <= room || then.identities.is_some_and(|then| identities <= then / 8 * 7);
        self.given_up.as_ref().filter(fits).map(|then| then.needs)
    }

    /// Notes how many identities there are without what was given up in this plan, and how much room it took all in all, as
    /// far as that is known; whether there is such a thing.
    pub(super) fn settle(&mut self, identities: usize, took: usize) -> bool {
        let Some(GivenUp { needs, identities: then @ None }) = &mut self.given_up else { return false };
        (*needs, *then) = (took.max(*needs), Some(identities));
        true
    }

    /// Those of the identities that have rows of their own, or may have.
    fn touched(&self, changed: &BTreeSet<u32>, selections: &Selections) -> BTreeSet<u32> {
        if self.course.treats_anyone_by_name() {
            return changed.clone();
        }
        let mut touched = BTreeSet::new();
        for selection in self.selections().map(|id| selections.get(id)) {
            if selection.len() < changed.len() {
                touched.extend(selection.members().map(|(number, _)| number).filter(|number| changed.contains(number)));
            } else {
                touched.extend(changed.iter().copied().filter(|number| selection.holds(*number) != Holds::No));
            }
        }
        if self.rows.words.len() < changed.len() {
            touched.extend(self.rows.words.keys().map(|(number, _)| *number).filter(|number| changed.contains(number)));
        } else {
            let has_rows = |number: &u32| self.rows.words.range((*number, 0)..=(*number, Class::MAX)).next().is_some();
            touched.extend(changed.iter().copied().filter(has_rows));
        }
        touched
    }

    /// Whether ports that are asked for by name now mean others.
    pub(super) fn is_renamed(&self, identities: &Identities) -> bool {
        !self.names.is_empty() && self.named_now(identities) != self.named
    }

    fn named_now(&self, identities: &Identities) -> BTreeSet<(u8, u16)> {
        self.names.iter().flat_map(|name| identities.ports_named(name)).collect()
    }

    fn add_tier(
        &mut self,
        policies: &[Speaking<'_>],
        subject: &Subject<'_>,
        written: &mut Written<'_>,
        sources: &mut Sources<'_>,
        budget: &Budget,
    ) -> Result<(), Spent> {
        let isolating = policies.iter().find_map(|Speaking { rank, rules, .. }| {
            let path = rules.isolates.as_ref().filter(|_| rank.tier.default_action == DefaultAction::Deny)?;
            let audited = sources.program[*rank].mode == Mode::Audit;
            let verdict = if audited { Verdict::Audit } else { Verdict::Deny };
            Some(Word::new(verdict, number(sources.rules, rank, path)))
        });
        let tier = self.course.begin_tier(isolating);
        for Speaking { rank, rules, parts } in policies {
            let mode = sources.program[*rank].mode;
            for (rule, parts) in rules.rules.iter().zip(parts) {
                let Some(local) = local_asks(&rule.local, subject.workload) else { continue };
                let remote = match &rule.remote {
                    Peers::Any => None,
                    peers => Some(sources.selections.of(peers, budget)?),
                };
                for (matches, asks) in parts {
                    let packets = match matches {
                        Some(matches) => written.packets(matches)?,
                        None => Packets::All,
                    };
                    let asks = local.iter().chain(asks).cloned().collect();
                    let (action, rule) = (rule.action, number(sources.rules, rank, &rule.path));
                    self.course.add(Line { action, mode, tier, remote, packets, asks, rule }, budget)?;
                }
            }
        }
        Ok(())
    }

    /// All rows, for the lines as they are.
    fn fill(&mut self, identities: &Identities, selections: &Selections, budget: &Budget) -> Result<(), Spent> {
        let nobody = Traits::of(Entity::World);
        self.any = self.course.of_anyone(&self.rows.classes, &nobody, budget)?;
        let mut rows: BTreeMap<(u32, Class), Outcome> =
            self.any.iter().enumerate().map(|(class, outcome)| ((ANY, class_number(class)), outcome.clone())).collect();
        for part in self.parts(selections, budget)? {
            let mut matched: BTreeMap<u32, Vec<(usize, Holds)>> = BTreeMap::new();
            for (at, selection) in self.selected(selections) {
                for (number, holds) in selection.members_in(part.clone()) {
                    matched.entry(number).or_default().push((at, holds));
                }
            }
            if self.course.treats_anyone_by_name() {
                for (number, _) in identities.live().range(part) {
                    matched.entry(*number).or_default();
                }
            }
            for (number, lines) in &matched {
                self.column(*number, &identities.live()[number], lines, &mut rows, budget)?;
            }
        }
        let gone: Vec<(u32, Class)> =
            self.rows.words.keys().filter(|place| !rows.contains_key(place)).copied().collect();
        gone.iter().for_each(|place| self.remove(place));
        rows.into_iter().for_each(|(place, outcome)| self.put(place, outcome));
        Ok(())
    }

    /// All identities, in as many parts as it takes to look at each with all the lines that match it.
    fn parts(&self, selections: &Selections, budget: &Budget) -> Result<Vec<RangeInclusive<u32>>, Spent> {
        let selected = || self.selected(selections).map(|(_, selection)| selection);
        selected().try_for_each(|selection| budget.spend(selection.len()))?;
        if selected().map(Selection::len).sum::<usize>() <= TOGETHER {
            return Ok(vec![0..=u32::MAX]);
        }
        let mut lines: BTreeMap<u32, usize> = BTreeMap::new();
        for (number, _) in selected().flat_map(Selection::members) {
            *lines.entry(number).or_insert(0) += 1;
        }
        let (mut parts, mut first, mut together) = (Vec::new(), 0, 0);
        for (number, lines) in lines {
            together += lines;
            if together > TOGETHER && number > first {
                parts.push(first..=number - 1);
                (first, together) = (number, lines);
            }
        }
        parts.push(first..=u32::MAX);
        Ok(parts)
    }

    /// What lines select, by where they are.
    fn selected<'a>(&self, selections: &'a Selections) -> impl Iterator<Item = (usize, &'a Selection)> {
        let lines = self.course.lines().iter().enumerate();
        lines.filter_map(|(at, line)| Some((at, selections.get(line.remote?))))
    }

    fn matched(&self, number: u32, selections: &Selections) -> Vec<(usize, Holds)> {
        let holds = self.selected(selections).map(|(at, selection)| (at, selection.holds(number)));
        holds.filter(|(_, holds)| *holds != Holds::No).collect()
    }

    /// The rows that an identity must have of its own.
    fn column(
        &self,
        number: u32,
        identity: &Identity,
        matched: &[(usize, Holds)],
        rows: &mut BTreeMap<(u32, Class), Outcome>,
        budget: &Budget,
    ) -> Result<(), Spent> {
        let outcomes = self.course.of_end(&self.rows.classes, matched, &identity.traits, budget)?;
        let unlike = outcomes.into_iter().filter(|(class, outcome)| *outcome != self.any[*class as usize]);
        rows.extend(unlike.map(|(class, outcome)| ((number, class), outcome)));
        if rows.len() > ROWS { Err(Spent) } else { Ok(()) }
    }

    fn remove(&mut self, place: &(u32, Class)) {
        self.rows.words.remove(place);
        self.remove_residual(place);
    }

    /// Taking away what is not there would make another map of it.
    fn remove_residual(&mut self, place: &(u32, Class)) {
        if self.rows.residual.contains_key(place) {
            self.rows.residual.remove(place);
        }
    }

    fn put(&mut self, place: (u32, Class), outcome: Outcome) {
        if self.rows.words.get(&place) != Some(&outcome.word) {
            self.rows.words.insert(place, outcome.word);
        }
        if outcome.residual.is_empty() {
            self.remove_residual(&place);
        } else if self.rows.residual.get(&place).is_none_or(|there| **there != *outcome.residual) {
            self.rows.residual.insert(place, outcome.residual.into());
        }
    }
}

/// The policies that speak of a direction, by tier.
fn tiers<'a>(policies: &'a [Rank], direction: Direction, program: &'a Program) -> Vec<Vec<Speaking<'a>>> {
    let mut tiers: Vec<Vec<Speaking<'_>>> = Vec::new();
    for rank in policies {
        let Some(rules) = program.get(rank).and_then(|policy| policy.rules(direction)) else { continue };
        let parts = rules.rules.iter().map(|rule| by_source(&rule.l4)).collect();
        let speaking = Speaking { rank, rules, parts };
        match tiers.last_mut() {
            Some(tier) if tier[0].rank.tier == rank.tier => tier.push(speaking),
            _ => tiers.push(vec![speaking]),
        }
    }
    tiers
}

/// The rule that names most ports; 0 if there is none.
fn largest<'a>(policies: impl Iterator<Item = &'a Speaking<'a>>, numbers: &Numbers<RuleRef>) -> u32 {
    let ports = |parts: &[Part]| {
        let matches = parts.iter().flat_map(|(matches, _)| matches.iter().flatten());
        matches.map(|each| each.destination.all().count()).sum::<usize>()
    };
    let rules = policies.flat_map(|Speaking { rank, rules, parts }| {
        rules.rules.iter().zip(parts).map(|(rule, parts)| (ports(parts), *rank, &rule.path))
    });
    let most = rules.max_by_key(|(ports, ..)| *ports);
    most.map_or(0, |(_, rank, path)| number(numbers, rank, path))
}

fn number(numbers: &Numbers<RuleRef>, rank: &Rank, path: &Arc<str>) -> u32 {
    let rule = RuleRef { source: rank.source.clone(), path: path.clone() };
    numbers.get(&rule).expect("every rule of the program has a number")
}

/// What is left to ask of the subject's end; none where the rule is not for it.
fn local_asks(terms: &[Term], subject: &Workload) -> Option<Vec<Ask>> {
    let subject = Traits { workload: Some(subject.clone()), ..Traits::of(Entity::Pod) };
    let mut asks = Vec::new();
    for term in terms {
        match &term.is {
            Is::In(nets) if nets.scope == Scope::Anyone => {
                asks.push(Ask::Local { nets: Arc::new(nets.clone()), negated: term.negated });
            }
            _ if term.holds(&subject, None) == Holds::Yes => {}
            _ => return None,
        }
    }
    Some(asks)
}

fn class_number(class: usize) -> Class {
    Class::try_from(class).expect("classes are numbered so")
}
