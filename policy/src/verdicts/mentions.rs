//! What rules that are for pods of this node look at in other ends: only that may tell identities apart.
//!
//! Invariant: the counts are the sums over the policies that speak for any side, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::Selector;

use super::sets::Side;
use super::zones::Zones;
use crate::ir::{Direction, Is, Namespaces, Policy, Rule, Term};

/// See the module.
#[derive(Default)]
pub(super) struct Mentions {
    policies: BTreeMap<Side, Vec<Arc<Policy>>>,
    /// By direction, how many sides each is for; told apart by where they are.
    uses: [Counts<usize>; 2],
    pub(super) labels: Counts<Arc<str>>,
    pub(super) namespaces: Counts<Arc<str>>,
    pub(super) namespace_labels: Counts<Arc<str>>,
    pub(super) service_accounts: Counts<Arc<str>>,
    pub(super) node_labels: Counts<Arc<str>>,
    pub(super) port_names: Counts<Arc<str>>,
    pub(super) zones: Zones,
}

/// How often each is mentioned, and which came or went since that was last asked.
pub(super) struct Counts<K> {
    counts: BTreeMap<K, usize>,
    changed: BTreeSet<K>,
}

/// Ranges, with how often each is counted in.
#[derive(Default)]
pub(super) struct Ranges {
    counts: Counts<IpNet>,
    /// How many ranges there are of each family and prefix length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts { counts: BTreeMap::new(), changed: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Counts<K> {
    pub(super) fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.counts.contains_key(key)
    }

    pub(super) fn changed(&self) -> &BTreeSet<K> {
        &self.changed
    }

    /// Whether it is the first.
    fn add(&mut self, key: &K) -> bool {
        let count = self.counts.entry(key.clone()).or_insert(0);
        *count += 1;
        let first = *count == 1;
        if first {
            self.changed.insert(key.clone());
        }
        first
    }

    /// Whether it was the last.
    fn remove(&mut self, key: &K) -> bool {
        let Some(count) = self.counts.get_mut(key) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.counts.remove(key);
            self.changed.insert(key.clone());
        }
        last
    }

    fn count(&mut self, key: &K, add: bool) {
        let _ = if add { self.add(key) } else { self.remove(key) };
    }
}

// === impl Ranges ===

impl Ranges {
    pub(super) fn contains(&self, range: &IpNet) -> bool {
        self.counts.contains(range)
    }

    /// Those that came or went since this was last called.
    pub(super) fn take_changed(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.counts.changed)
    }

    /// The smallest of them that holds all of a range.
    pub(super) fn smallest_around(&self, range: &IpNet) -> Option<IpNet> {
        let family = matches!(range, IpNet::V6(_));
        let lengths = self.lengths.range((family, 0)..=(family, range.prefix_len())).rev();
        lengths
            .map(|((_, length), _)| IpNet::new(range.addr(), *length).expect("no longer than the range's").trunc())
            .find(|around| self.contains(around))
    }

    pub(super) fn count(&mut self, range: &IpNet, add: bool) {
        let key = (matches!(range, IpNet::V6(_)), range.prefix_len());
        if add && self.counts.add(range) {
            *self.lengths.entry(key).or_insert(0) += 1;
        }
        if !add && self.counts.remove(range) {
            let count = self.lengths.entry(key).or_insert(1);
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
    }
}

// === impl Mentions ===

impl Mentions {
    /// From now on these policies speak for these sides. What is mentioned before and after is never gone in between.
    pub(super) fn update(&mut self, sides: impl Iterator<Item = (Side, Vec<Arc<Policy>>)>) {
        let mut gone: Vec<(Side, Vec<Arc<Policy>>)> = Vec::new();
        for (side, policies) in sides {
            policies.iter().for_each(|policy| self.use_of(side.1, policy, true));
            let before = match policies.is_empty() {
                true => self.policies.remove(&side),
                false => self.policies.insert(side, policies),
            };
            gone.extend(before.map(|policies| (side, policies)));
        }
        for (side, policies) in &gone {
            policies.iter().for_each(|policy| self.use_of(side.1, policy, false));
        }
        self.zones.find();
    }

    fn use_of(&mut self, direction: Direction, policy: &Arc<Policy>, add: bool) {
        let uses = &mut self.uses[direction as usize];
        let at = Arc::as_ptr(policy).addr();
        let is_first_or_last = if add { uses.add(&at) } else { uses.remove(&at) };
        if is_first_or_last {
            for rule in policy.rules(direction).iter().flat_map(|rules| &rules.rules) {
                self.count_rule(rule, direction, add);
            }
        }
    }

    /// Forgets what changed so far.
    pub(super) fn settle(&mut self) {
        let names = [
            &mut self.labels,
            &mut self.namespaces,
            &mut self.namespace_labels,
            &mut self.service_accounts,
            &mut self.node_labels,
            &mut self.port_names,
        ];
        names.into_iter().for_each(|counts| counts.changed.clear());
        self.uses.iter_mut().for_each(|counts| counts.changed.clear());
        self.zones.forget_changed();
    }

    fn count_rule(&mut self, rule: &Rule, direction: Direction, add: bool) {
        rule.remote.terms().for_each(|term| self.count_term(term, add));
        // Destination ports are named by whom a packet goes to.
        if direction == Direction::Egress {
            rule.port_names().for_each(|name| self.port_names.count(name, add));
        }
    }

    fn count_term(&mut self, term: &Term, add: bool) {
        match &term.is {
            Is::Endpoint(endpoints) => {
                count_labels(&mut self.labels, &endpoints.labels, add);
                match &endpoints.namespaces {
                    Namespaces::Any => {}
                    Namespaces::Named(name) => self.namespaces.count(name, add),
                    Namespaces::Labelled(selector) => count_labels(&mut self.namespace_labels, selector, add),
                }
                endpoints.service_accounts.iter().flatten().for_each(|name| self.service_accounts.count(name, add));
            }
            Is::In(nets) => self.zones.count(nets, add),
            Is::Node(selector) => count_labels(&mut self.node_labels, selector, add),
            Is::Entity(_) => {}
        }
    }
}

fn count_labels(counts: &mut Counts<Arc<str>>, selector: &Selector, add: bool) {
    selector.each_label(&mut |label| counts.count(&label.into(), add));
}
