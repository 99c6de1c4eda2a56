//! Policy sets: which policies are for which pods of this node, and the rows that pods with the same ones share.
//!
//! Invariants: two pods share a set exactly if the same policies select them and these see no difference between them. A
//! set keeps its number while its pods move together, so that a new policy changes rows and not every place. All sets together have
//! no more than [`ROWS`]; a side that is given up for that denies everything, and what its policies mention does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tartan_model::{Labels, NAMELESS, Pod, World};

use super::budget::ROWS;
use super::identities::{Identities, is_workload, pods_of, workload};
use super::numbers::Numbers;
use super::rows::{Compiled, Rows, Sources, Subject};
use super::selections::{SelectionId, Selections};
use super::treatments::Treatments;
use crate::ir::{Direction, Is, Mode, Policy, Program, Rank, RuleRef};
use crate::traits::Workload;

/// The rows of a policy set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    pub ingress: Rows,
    pub egress: Rows,
}

/// What makes a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    policies: Vec<Rank>,
    /// As far as these policies look at their subjects' own end.
    workload: Workload,
}

/// See the module.
#[derive(Default)]
pub(super) struct Sets {
    /// Pods of this node, and one for all [`NAMELESS`], with the policies that select them.
    pods: BTreeMap<Arc<str>, Local>,
    numbers: Option<Numbers<(Arc<str>, u32)>>,
    by_key: BTreeMap<Key, u32>,
    all: BTreeMap<u32, State>,
    subjects: OrdMap<Arc<str>, u32>,
    sets: OrdMap<u32, Arc<Set>>,
    treatments: Treatments,
    seen: Seen,
}

struct Local {
    workload: Workload,
    policies: BTreeSet<Rank>,
}

struct State {
    key: Key,
    pods: BTreeSet<Arc<str>>,
    /// In the order of [`Direction::ALL`].
    compiled: [Compiled; 2],
}

#[derive(Default)]
struct Seen {
    local: Arc<str>,
    world: World,
    program: Program,
}

/// What is left to do in a plan.
#[derive(Default)]
pub(super) struct Selected {
    due: BTreeSet<Side>,
    /// What is given up in this plan.
    given_up: BTreeSet<Side>,
    /// What was given up and is tried once more; what all took when it was given up again.
    again: BTreeMap<Side, usize>,
    compiles: bool,
    /// Sides whose policies are others, or count now or do not any more: what is mentioned has to be found out first.
    pub(super) others: BTreeSet<Side>,
}

/// A set in one direction.
pub(super) type Side = (u32, Direction);

/// Ranks whose policy is another now, or none.
type Changed<'a> = Vec<(&'a Rank, Option<&'a Arc<Policy>>)>;

// === impl Sets ===

impl Sets {
    pub(super) fn subjects(&self) -> &OrdMap<Arc<str>, u32> {
        &self.subjects
    }

    pub(super) fn sets(&self) -> &OrdMap<u32, Arc<Set>> {
        &self.sets
    }

    pub(super) fn treatments(&self) -> &Treatments {
        &self.treatments
    }

    pub(super) fn held(&mut self, held: &BTreeSet<u32>) {
        self.numbers().held(held);
    }

    fn numbers(&mut self) -> &mut Numbers<(Arc<str>, u32)> {
        self.numbers.get_or_insert_with(|| Numbers::new(1, u32::MAX))
    }

    /// Brings up to date which policies are for which pods.
    pub(super) fn select(&mut self, world: &World, program: &Program) -> Selected {
        let before = std::mem::take(&mut self.seen.program);
        let policies = changed_policies(&before, program);
        let mut moving = self.changed_pods(world, program);
        self.reselect(&policies, &mut moving);
        let all: Vec<u32> = self.all.keys().copied().collect();
        let assigned = self.assign(&moving, program);
        let gone = all.into_iter().filter(|number| !self.all.contains_key(number));
        let mut others: BTreeSet<Side> = gone.flat_map(|number| Direction::ALL.map(|way| (number, way))).collect();
        let mut due = BTreeSet::new();
        for direction in Direction::ALL {
            let speaks = |policy: Option<&Arc<Policy>>| policy.is_some_and(|it| it.rules(direction).is_some());
            let touched = policies.iter().filter(|(rank, now)| speaks(*now) || speaks(before.get(*rank)));
            let touched: BTreeSet<&Rank> = touched.map(|(rank, _)| *rank).collect();
            for (number, set) in &self.all {
                let is_touched = !touched.is_empty() && set.key.policies.iter().any(|rank| touched.contains(rank));
                if is_touched || assigned.contains(number) {
                    due.insert((*number, direction));
                }
            }
        }
        due.iter().for_each(|side| self.compiled_mut(*side).reopen());
        self.seen = Seen { local: world.local.clone(), world: world.clone(), program: program.clone() };
        others.extend(&due);
        Selected { due, others, ..Selected::default() }
    }

    /// The policies that speak for a side; none for one that is given up, so that who asks for too much parts nobody's ends.
    pub(super) fn policies(&self, (number, direction): Side, program: &Program) -> Vec<Arc<Policy>> {
        let set = self.all.get(&number).filter(|set| !set.compiled[direction as usize].is_given_up());
        let all = set.into_iter().flat_map(|set| &set.key.policies).filter_map(|rank| program.get(rank));
        all.filter(|policy| policy.rules(direction).is_some()).cloned().collect()
    }

    /// Brings all rows up to date. `identities` are those of now, of which `changed` came or went since this was last called.
    /// Returns those that any set treats unlike before; none where somebody was given up, or is tried again: then it is
    /// mentioned by others what is, and this has to be called once more.
    pub(super) fn compile(
        &mut self,
        selected: &mut Selected,
        program: &Program,
        rules: &Numbers<RuleRef>,
        identities: &Identities,
        selections: &mut Selections,
        changed: &BTreeSet<u32>,
    ) -> Option<BTreeSet<u32>> {
        // All that there was before has its size of now when what is new or other is measured.
        for (number, set) in &mut self.all {
            for (direction, compiled) in Direction::ALL.into_iter().zip(&mut set.compiled) {
                let side = (*number, direction);
                if compiled.is_renamed(identities) {
                    selected.due.insert(side);
                }
                if !selected.due.contains(&side) && compiled.update(changed, identities, selections) {
                    selected.others.insert(side);
                }
            }
        }
        self.shed(selected);
        while selected.others.is_empty()
            && let Some(side) = selected.due.pop_first()
        {
            let State { key, compiled, .. } = self.all.get_mut(&side.0).expect("none goes in between");
            let subject = Subject { policies: &key.policies, workload: &key.workload };
            let sources = &mut Sources { program, rules, identities, selections };
            compiled[side.1 as usize].compile(&subject, side.1, sources);
            selected.compiles = true;
            if self.compiled(side).is_given_up() {
                selected.others.insert(side);
            }
            self.shed(selected);
        }
        if selected.others.is_empty() {
            self.try_again(selected, identities.live().len());
        }
        if !selected.others.is_empty() {
            return None;
        }
        for (number, set) in &self.all {
            let [ingress, egress] = set.compiled.each_ref().map(Compiled::rows);
            if self.sets.get(number).is_none_or(|there| !same(&there.ingress, ingress) || !same(&there.egress, egress))
            {
                let set = Set { ingress: ingress.clone(), egress: egress.clone() };
                self.sets.insert(*number, Arc::new(set));
            }
        }
        if selected.compiles {
            let compiled = self.all.values().flat_map(|set| &set.compiled);
            selections.retain(&compiled.flat_map(Compiled::selections).collect());
        }
        Some(self.treatments.update(&self.sets))
    }

    fn compiled(&self, (number, direction): Side) -> &Compiled {
        &self.all[&number].compiled[direction as usize]
    }

    fn sides(&self) -> impl Iterator<Item = (Side, &Compiled)> {
        self.all.iter().flat_map(|(number, set)| {
            Direction::ALL.into_iter().zip(&set.compiled).map(|(direction, compiled)| ((*number, direction), compiled))
        })
    }

    /// How much a datapath holds for all that is compiled: ranges that several name are there once.
    fn count(&self, selected: &Selected) -> usize {
        let all = || self.sides().filter(|(side, _)| !selected.due.contains(side)).map(|(_, compiled)| compiled);
        let lists: BTreeMap<SelectionId, usize> =
            all().flat_map(Compiled::lists).map(|(id, length)| (*id, *length)).collect();
        all().map(|compiled| compiled.rows().size()).sum::<usize>() + lists.values().sum::<usize>()
    }

    /// If that is more than a node may hold, who has most does without, but first who was tried again: who needs little never
    /// pays for others, and what is in force does not give way to what was not.
    fn shed(&mut self, selected: &mut Selected) {
        let took = self.count(selected);
        if took <= ROWS {
            return;
        }
        let open = self.sides().filter(|(_, compiled)| !compiled.is_given_up()).filter_map(|(side, compiled)| {
            let [is_due, is_again] = [selected.due.contains(&side), selected.again.contains_key(&side)];
            // What is tried again parts the ends of others before it has rows.
            (!is_due || is_again).then(|| (is_due, is_again, compiled.size(), side))
        });
        let Some((_, _, size, side)) = open.max() else { return };
        selected.due.remove(&side);
        selected.others.insert(side);
        if let Some(again) = selected.again.get_mut(&side) {
            *again = took;
        }
        self.compiled_mut(side).give_up(size);
    }

    /// Takes up again what there may be room for, once in a plan. If several are given up at once, any of them may only have
    /// had so much for the sake of another.
    fn try_again(&mut self, selected: &mut Selected, identities: usize) {
        let takes = self.count(selected);
        for (number, set) in &mut self.all {
            for (direction, compiled) in Direction::ALL.into_iter().zip(&mut set.compiled) {
                let side = (*number, direction);
                let took = selected.again.get(&side).copied().unwrap_or(0);
                if compiled.settle(identities, took.saturating_sub(takes)) {
                    selected.given_up.insert(side);
                }
            }
        }
        let room = |side: &Side| match selected.given_up.len() > 1 && selected.given_up.contains(side) {
            true => usize::MAX,
            false => ROWS.saturating_sub(takes),
        };
        let closed = self.sides().filter(|(side, _)| !selected.again.contains_key(side));
        let may = closed.filter_map(|(side, compiled)| Some((compiled.may_fit(room(&side), identities)?, side)));
        let Some((_, side)) = may.min() else { return };
        selected.again.insert(side, 0);
        selected.due.insert(side);
        selected.others.insert(side);
        self.compiled_mut(side).reopen();
    }

    fn compiled_mut(&mut self, (number, direction): Side) -> &mut Compiled {
        &mut self.all.get_mut(&number).expect("none goes in between").compiled[direction as usize]
    }

    /// Looks again at pods of this node that may be new, gone or not as they were; says which.
    fn changed_pods(&mut self, world: &World, program: &Program) -> BTreeSet<Arc<str>> {
        let touched = self.touched_pods(world);
        for key in &touched {
            match local(world, program, key) {
                Some(local) => drop(self.pods.insert(key.clone(), local)),
                None => drop(self.pods.remove(key)),
            }
        }
        touched
    }

    fn touched_pods(&self, world: &World) -> BTreeSet<Arc<str>> {
        let mut keys: BTreeSet<Arc<str>> = BTreeSet::new();
        let is_local = |pod: &Pod| pod.node == world.local || pod.node == self.seen.local;
        for item in self.seen.world.pods.diff(&world.pods) {
            match item {
                DiffItem::Add(key, pod) | DiffItem::Remove(key, pod) if is_local(pod) => drop(keys.insert(key.clone())),
                DiffItem::Update { old: (_, before), new: (key, after) } if is_local(before) || is_local(after) => {
                    keys.insert(key.clone());
                }
                _ => {}
            }
        }
        for item in self.seen.world.namespaces.diff(&world.namespaces) {
            let (DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _)) = item;
            keys.extend(pods_of(world, name).filter(|(_, pod)| is_local(pod)).map(|(key, _)| key.clone()));
        }
        if self.seen.local != world.local {
            keys.extend(self.pods.keys().cloned());
            keys.extend(world.pods.iter().filter(|(_, pod)| is_local(pod)).map(|(key, _)| key.clone()));
        }
        if !self.seen.world.attachments.ptr_eq(&world.attachments) {
            keys.insert(NAMELESS.into());
        }
        keys
    }

    /// Which pods are selected by policies that are not as they were.
    fn reselect(&mut self, policies: &Changed<'_>, moving: &mut BTreeSet<Arc<str>>) {
        for (rank, policy) in policies {
            for (key, pod) in self.pods.iter_mut().filter(|(key, _)| ***key != *NAMELESS) {
                let is = policy.is_some_and(|policy| selects(policy, &pod.workload));
                let was = if is { !pod.policies.insert((*rank).clone()) } else { pod.policies.remove(*rank) };
                // One that goes on selecting it may look at other parts of it than before.
                if was || is {
                    moving.insert(key.clone());
                }
            }
        }
    }

    /// Gives each of these pods its set; returns the sets that have to be compiled.
    fn assign(&mut self, moving: &BTreeSet<Arc<str>>, program: &Program) -> BTreeSet<u32> {
        let mut by_key: BTreeMap<Key, (BTreeSet<Arc<str>>, BTreeSet<u32>)> = BTreeMap::new();
        for pod in moving {
            let before = self.subjects.get(pod).copied();
            let key = self.pods.get(pod).map(|local| key(local, program));
            if let (Some(number), Some(key)) = (before, &key)
                && self.all[&number].key == *key
            {
                continue;
            }
            if let Some(number) = before {
                self.subjects.remove(pod);
                self.all.get_mut(&number).expect("a subject's set is there").pods.remove(pod);
            }
            if let Some(key) = key {
                let (pods, left) = by_key.entry(key).or_default();
                pods.insert(pod.clone());
                left.extend(before);
            }
        }
        let mut anew = BTreeSet::new();
        for (key, (pods, left)) in by_key {
            let number = self.by_key.get(&key).copied().unwrap_or_else(|| {
                let moved_together =
                    left.into_iter().find(|number| self.all[number].pods.is_empty() && !anew.contains(number));
                let number =
                    moved_together.unwrap_or_else(|| self.new_number(pods.first().expect("a pod has the key")));
                self.rekey(number, key);
                anew.insert(number);
                number
            });
            let set = self.all.get_mut(&number).expect("made just now, or there");
            set.pods.extend(pods.iter().cloned());
            self.subjects.extend(pods.into_iter().map(|pod| (pod, number)));
        }
        self.drop_empty();
        anew
    }

    /// Named for a pod, so that an agent that starts anew numbers it alike.
    fn new_number(&mut self, pod: &Arc<str>) -> u32 {
        let numbers = self.numbers();
        let turn = (0..).find(|turn| numbers.get(&(pod.clone(), *turn)).is_none()).expect("there are few sets");
        numbers.take((pod.clone(), turn))
    }

    fn rekey(&mut self, number: u32, key: Key) {
        self.by_key.insert(key.clone(), number);
        match self.all.get_mut(&number) {
            Some(set) => {
                let before = std::mem::replace(&mut set.key, key);
                self.by_key.remove(&before);
            }
            None => {
                self.all.insert(number, State { key, pods: BTreeSet::new(), compiled: Default::default() });
            }
        }
    }

    fn drop_empty(&mut self) {
        let empty: Vec<u32> =
            self.all.iter().filter(|(_, set)| set.pods.is_empty()).map(|(number, _)| *number).collect();
        for number in empty {
            let set = self.all.remove(&number).expect("listed just now");
            self.by_key.remove(&set.key);
            self.sets.remove(&number);
            self.numbers().give_back(number);
        }
    }
}

/// A pod of this node, or all that are [`NAMELESS`]; none where there is none that may have connections.
fn local(world: &World, program: &Program, key: &str) -> Option<Local> {
    if key == NAMELESS {
        let is_there = world.attachments.values().any(|attachment| attachment.pod() == NAMELESS);
        return is_there.then(|| Local { workload: nothing(), policies: BTreeSet::new() });
    }
    let pod = world.pods.get(key).filter(|pod| pod.node == world.local && is_workload(pod))?;
    // Without its namespace it is not known which policies are for it.
    let workload = workload(world, key, pod)?;
    let selecting = program.iter().filter(|(_, policy)| selects(policy, &workload));
    let policies = selecting.map(|(rank, _)| rank.clone()).collect();
    Some(Local { workload, policies })
}

fn selects(policy: &Policy, workload: &Workload) -> bool {
    policy.mode != Mode::Staged && policy.subject.select_workload(workload)
}

fn changed_policies<'a>(before: &'a Program, after: &'a Program) -> Changed<'a> {
    let item = |item| match item {
        DiffItem::Add(rank, policy) | DiffItem::Update { new: (rank, policy), .. } => (rank, Some(policy)),
        DiffItem::Remove(rank, _) => (rank, None),
    };
    before.diff(after).map(item).collect()
}

/// Pods that differ in nothing that these policies look at have the same.
fn key(local: &Local, program: &Program) -> Key {
    let policies: Vec<Rank> = local.policies.iter().cloned().collect();
    let all = || policies.iter().filter_map(|rank| program.get(rank));
    let mut names = BTreeSet::new();
    for rule in all().filter_map(|policy| policy.ingress.as_ref()).flat_map(|rules| &rules.rules) {
        names.extend(rule.port_names());
    }
    let ports = local.workload.ports.iter().filter(|(name, ..)| names.contains(name)).cloned().collect();
    let looks_at_labels = all().flat_map(|policy| policy.all_rules()).flat_map(|rule| &rule.local);
    let workload = if looks_at_labels.into_iter().any(|term| !matches!(term.is, Is::In(_))) {
        Workload { ports, ..local.workload.clone() }
    } else {
        Workload { ports, ..nothing() }
    };
    Key { policies, workload }
}

/// What runtimes other than a kubelet's attach: no pod of Kubernetes, so no policy is for it.
fn nothing() -> Workload {
    let [namespace_labels, labels] = [Labels::default(), Labels::default()];
    let [namespace, service_account] = [Arc::default(), Arc::default()];
    Workload { namespace, namespace_labels, labels, service_account, ports: Box::default() }
}

/// Whether nothing in them was touched.
fn same(one: &Rows, other: &Rows) -> bool {
    Arc::ptr_eq(&one.classes, &other.classes) && one.words.ptr_eq(&other.words) && one.residual.ptr_eq(&other.residual)
}
