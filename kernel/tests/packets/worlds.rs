//! Random worlds of nine pods, and what happens in them: policies, labels and namespaces change, pods are made anew
//! elsewhere or where they were, and take over addresses of pods that went.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tartan_api::kinds::Pod;

use crate::generate::{self, NAMESPACES, PODS, Written};
use crate::history::{NODES, Op};

pub(crate) const SLOTS: usize = NAMESPACES.len() * PODS.len();

/// Addresses there are, by number: some are nobody's.
const ADDRESSES: std::ops::RangeInclusive<u8> = 1..=12;

/// One thing that happens.
#[derive(Clone)]
pub(crate) enum Event {
    Put(Op),
    Gone(Op),
    /// A pod that is made anew, whether it was there before or not.
    New(usize, Pod),
}

/// What happens at once.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) events: Vec<Event>,
    /// The order in which nodes learn of it; empty: all at once.
    pub(crate) order: Vec<usize>,
}

#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) first: Vec<Event>,
    pub(crate) then: Vec<Step>,
}

/// A step before it is known who is where.
#[derive(Clone, Debug)]
enum Wish {
    Put(Box<Op>),
    /// Of the policies that are there, the n-th goes.
    PolicyGone(usize),
    Relabel(usize, Written),
    /// With the address it has.
    Restart(usize, Written),
    /// With the address that became free last.
    Move(usize, usize, Written),
    /// The second one goes, the first one takes its address.
    Replace(usize, usize, usize, Written),
    Leave(usize),
}

/// Who is where while a scenario is made.
struct Places {
    pods: [Option<(usize, u8, Written)>; SLOTS],
    /// Last freed last.
    free: Vec<u8>,
    policies: Vec<Op>,
}

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    let pods = vec((0..NODES.len(), generate::written()), SLOTS);
    let addresses = Just(ADDRESSES.collect::<Vec<u8>>()).prop_shuffle();
    let policies = vec(policy(), 3..9);
    let then = vec((wish(), order()), 3..6);
    (generate::base(), pods, addresses, policies, then).prop_map(|(base, pods, mut free, policies, then)| {
        let mut first: Vec<Event> = base.into_iter().map(Event::Put).collect();
        let mut places = Places { pods: [const { None }; SLOTS], free: Vec::new(), policies: Vec::new() };
        for (slot, (node, written)) in pods.into_iter().enumerate() {
            places.pods[slot] = Some((node, free.pop().expect("more addresses than pods"), written));
            first.push(places.new_pod(slot));
        }
        places.free = free;
        first.extend(policies.into_iter().map(|policy| places.put(policy)));
        let then = then.into_iter().map(|(wish, order)| Step { events: places.grant(wish), order }).collect();
        Scenario { first, then }
    })
}

fn policy() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => generate::network_policy(),
        3 => generate::cluster_policy(),
        1 => generate::admin_policy(),
        1 => generate::baseline_policy(),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    let slot = || 0..SLOTS;
    let node = || 0..NODES.len();
    prop_oneof![
        5 => policy().prop_map(|op| Wish::Put(op.into())),
        2 => (0usize..16).prop_map(Wish::PolicyGone),
        4 => (slot(), generate::written()).prop_map(|(slot, written)| Wish::Relabel(slot, written)),
        1 => (slot(), generate::written()).prop_map(|(slot, written)| Wish::Restart(slot, written)),
        2 => (slot(), node(), generate::written()).prop_map(|(slot, node, written)| Wish::Move(slot, node, written)),
        2 => (slot(), slot(), node(), generate::written())
            .prop_map(|(slot, other, node, written)| Wish::Replace(slot, other, node, written)),
        1 => slot().prop_map(Wish::Leave),
        2 => generate::namespace(select(&NAMESPACES)).prop_map(|op| Wish::Put(op.into())),
        1 => generate::node(select(&NODES)).prop_map(|op| Wish::Put(op.into())),
        1 => generate::pool().prop_map(|op| Wish::Put(op.into())),
    ]
}

fn order() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(Vec::new()), Just((0..NODES.len()).collect::<Vec<_>>()).prop_shuffle()]
}

/// Namespace and name of a slot's pod.
pub(crate) fn name_of(slot: usize) -> (&'static str, &'static str) {
    (NAMESPACES[slot / PODS.len()], PODS[slot % PODS.len()])
}

// === impl Places ===

impl Places {
    fn pod(&self, slot: usize) -> Option<Pod> {
        let (namespace, name) = name_of(slot);
        let (node, at, written) = self.pods[slot].clone()?;
        Some(generate::pod_at(namespace, name, NODES[node], at, written))
    }

    fn new_pod(&self, slot: usize) -> Event {
        Event::New(slot, self.pod(slot).expect("it was just put there"))
    }

    fn put(&mut self, op: Op) -> Event {
        if matches!(op, Op::NetworkPolicy(_) | Op::Cluster(_) | Op::Admin(_) | Op::Baseline(_)) {
            self.policies.push(op.clone());
        }
        Event::Put(op)
    }

    fn leave(&mut self, slot: usize) -> Option<Event> {
        let gone = self.pod(slot)?;
        let (_, at, _) = self.pods[slot].take()?;
        self.free.push(at);
        Some(Event::Gone(Op::Pod(gone)))
    }

    fn come(&mut self, slot: usize, node: usize, written: Written) -> Event {
        let at = self.free.pop().expect("more addresses than pods");
        if let Some((_, before, _)) = self.pods[slot].replace((node, at, written)) {
            self.free.insert(0, before);
        }
        self.new_pod(slot)
    }

    /// What has to happen for a wish.
    fn grant(&mut self, wish: Wish) -> Vec<Event> {
        match wish {
            Wish::Put(op) => vec![self.put(*op)],
            Wish::PolicyGone(_) if self.policies.is_empty() => Vec::new(),
            Wish::PolicyGone(which) => {
                let which = which % self.policies.len();
                vec![Event::Gone(self.policies.remove(which))]
            }
            Wish::Relabel(slot, written) => match self.pods[slot].as_mut() {
                Some((_, _, before)) => {
                    *before = written;
                    vec![Event::Put(Op::Pod(self.pod(slot).expect("it is there")))]
                }
                None => vec![self.come(slot, slot % NODES.len(), written)],
            },
            Wish::Restart(slot, written) => match self.pods[slot].as_mut() {
                Some((_, _, before)) => {
                    *before = written;
                    vec![self.new_pod(slot)]
                }
                None => vec![self.come(slot, slot % NODES.len(), written)],
            },
            Wish::Move(slot, node, written) => vec![self.come(slot, node, written)],
            Wish::Replace(slot, other, node, written) if slot != other => {
                let gone = self.leave(other);
                gone.into_iter().chain([self.come(slot, node, written)]).collect()
            }
            Wish::Replace(slot, ..) | Wish::Leave(slot) => self.leave(slot).into_iter().collect(),
        }
    }
}

/// As YAML, to be read.
impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.first {
            write!(f, "--- # at first{}", Text(event))?;
        }
        for (step, Step { events, order }) in self.then.iter().enumerate() {
            for event in events {
                write!(f, "--- # step {step}, nodes in order {order:?}{}", Text(event))?;
            }
        }
        Ok(())
    }
}

struct Text<'a>(&'a Event);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Put(op) => write!(f, "\n{}", op.yaml()),
            Event::Gone(op) => write!(f, ", gone\n{}", op.yaml()),
            Event::New(slot, pod) => write!(f, ", made anew, slot {slot}\n{}", Op::Pod(pod.clone()).yaml()),
        }
    }
}
