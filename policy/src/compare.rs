//! What a change of policies would do: every connection whose verdict differs between two worlds, by groups of pods.
//!
//! All pods are planned as if they were on one node. What is compared is sets with identities, never pods with pods:
//!
//! ```text
//! pods ──namespace, labels, (set now, then), (identity now, then)──► groups
//! (set now, then) × (identity now, then), where either side differs ──► candidates ──► both ends judged, now and then
//! ```
//!
//! Invariant: two groups are named exactly if a connection between them that is looked at by policy has another verdict.
//! What a node sends to its own pods is not looked at; that other nodes send is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_api::explain as api;
use tartan_model::{Family, Labels, Pod, World};

use crate::ends;
use crate::ir::{Direction, Entity};
use crate::spans::{self, Span};
use crate::trace::PASSING;
use crate::verdicts::identities::{is_workload, node_addresses, pod_addresses};
use crate::verdicts::{self, ANY, Memo, Rows, Set, Tables, Word};
use crate::walk;
use crate::words;

/// A number now and then.
type Pair = (u32, u32);

/// Members of a group that nothing tells apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    name: String,
    /// None: no pods.
    sets: Option<Pair>,
    /// By family.
    identities: [Option<Pair>; 2],
}

/// Them.
struct Unit {
    like: Likeness,
    count: usize,
    example: String,
    addresses: [Option<IpAddr>; 2],
    /// The nodes of these pods, or the node that it is.
    nodes: BTreeSet<Arc<str>>,
}

struct Comparison {
    now: Tables,
    then: Tables,
    units: Vec<Unit>,
}

/// One end's word on one span of packets, now and then.
#[derive(Clone, Copy)]
struct Words {
    direction: Direction,
    now: Word,
    then: Word,
}

/// What is the same of several spans.
type Outcome = (api::Verdict, api::Verdict, &'static str, String, String);

/// Every connection whose verdict differs.
pub fn differences(now: &World, then: &World) -> Vec<api::Difference> {
    let mut memo = Memo::default();
    // With all addresses and ranges: a group is named for what they are.
    let mut tables = |world: &World| {
        verdicts::plan(&mut memo, &on_one_node(world));
        memo.unabridged()
    };
    let (now_tables, then_tables) = (tables(now), tables(then));
    let units = units(now, then, &now_tables, &then_tables);
    let comparison = Comparison { now: now_tables, then: then_tables, units };
    comparison.differences()
}

/// The world with all pods on one node, which is none of the nodes there are.
fn on_one_node(world: &World) -> World {
    let node: Arc<str> = "*".into();
    let moved = |pod: &Arc<Pod>| Arc::new(Pod { node: node.clone(), ..(**pod).clone() });
    let mut world = world.clone();
    world.pods = world.pods.iter().map(|(key, pod)| (key.clone(), moved(pod))).collect();
    world.local = node;
    world
}

fn units(now: &World, then: &World, now_tables: &Tables, then_tables: &Tables) -> Vec<Unit> {
    let mut units: BTreeMap<Likeness, Unit> = BTreeMap::new();
    let mut add =
        |like: Likeness, count: usize, example: &str, addresses: [Option<IpAddr>; 2], node: Option<&Arc<str>>| {
            let new =
                || Unit { like: like.clone(), count: 0, example: example.into(), addresses, nodes: BTreeSet::new() };
            let unit = units.entry(like.clone()).or_insert_with(new);
            unit.count += count;
            unit.nodes.extend(node.cloned());
        };
    let identities = |addresses: [Option<IpAddr>; 2]| {
        addresses.map(|address| address.map(|it| (now_tables.identity(it), then_tables.identity(it))))
    };
    for (key, pod) in now.pods.iter().filter(|(key, pod)| is_workload(pod) && then.pods.contains_key(*key)) {
        let addresses = by_family(pod_addresses(pod));
        let set = |tables: &Tables| tables.subjects.get(key).copied().unwrap_or(0);
        let sets = Some((set(now_tables), set(then_tables)));
        let like = Likeness { name: group_name(key, &pod.labels), sets, identities: identities(addresses) };
        add(like, 1, key, addresses, Some(&pod.node));
    }
    for name in now.nodes.keys() {
        for address in node_addresses(name, &now.nodes, &now.adverts) {
            let addresses = by_family([address].into_iter());
            let like = Likeness { name: format!("node {name}"), sets: None, identities: identities(addresses) };
            add(like, 0, "", addresses, Some(name));
        }
    }
    let ranges: BTreeSet<&IpNet> = now_tables.ranges.keys().chain(then_tables.ranges.keys()).collect();
    for range in ranges {
        let pair = now_tables.identity_around(range).zip(then_tables.identity_around(range));
        let at = usize::from(Family::of_net(range) == Family::V6);
        let mut identities = [None, None];
        identities[at] = pair;
        let is_of_pods = pair.and_then(|(_, then)| then_tables.identities.get(&then));
        let is_of_pods = is_of_pods.is_some_and(|it| it.traits.entity == Entity::UnknownPod);
        let name = match (is_of_pods, range.prefix_len()) {
            (true, _) => format!("unknown pods in {range}"),
            (false, 0) => ends::WORLD.to_owned(),
            (false, _) => range.to_string(),
        };
        add(Likeness { name, sets: None, identities }, 0, "", [None, None], None);
    }
    units.into_values().collect()
}

fn by_family(addresses: impl Iterator<Item = IpAddr>) -> [Option<IpAddr>; 2] {
    let addresses: Vec<IpAddr> = addresses.collect();
    Family::ALL.map(|family| addresses.iter().copied().find(|address| Family::of(*address) == family))
}

/// Namespace and labels, without those that tell apart the pods of one workload.
fn group_name(key: &str, labels: &Labels) -> String {
    let namespace = key.split_once('/').map_or(key, |(namespace, _)| namespace);
    let labels = words::labels(&labels.only(|label| !PASSING.contains(&label)));
    if labels.is_empty() { format!("{namespace} (no labels)") } else { format!("{namespace} {labels}") }
}

// === impl Comparison ===

impl Comparison {
    fn differences(&self) -> Vec<api::Difference> {
        let mut found: BTreeMap<(api::Group, api::Group, String, Outcome), [bool; 2]> = BTreeMap::new();
        for (from, to, family) in self.candidates() {
            let (from, to) = (&self.units[from], &self.units[to]);
            for (packets, outcome) in self.pair(from, to, family) {
                found.entry((from.group(), to.group(), packets, outcome)).or_default()[family] = true;
            }
        }
        let both = |from: &api::Group, to: &api::Group| {
            let has = |group: &api::Group| {
                let of = self.units.iter().filter(|unit| unit.group() == *group);
                of.fold([false, false], |has, unit| [0, 1].map(|at| has[at] || unit.like.identities[at].is_some()))
            };
            let (from, to) = (has(from), has(to));
            [0, 1].map(|at| from[at] && to[at])
        };
        let difference =
            |((from, to, packets, outcome), families): ((api::Group, api::Group, String, Outcome), [bool; 2])| {
                let (now, then, end, object, field) = outcome;
                let packets = match families {
                    it if it == both(&from, &to) => packets,
                    [true, _] => format!("{packets} (IPv4)"),
                    [false, _] => format!("{packets} (IPv6)"),
                };
                api::Difference { from, to, packets, now, then, end: end.into(), object, field }
            };
        found.into_iter().map(difference).collect()
    }

    /// Pairs of units of which one end's word may differ, with the family.
    fn candidates(&self) -> BTreeSet<(usize, usize, usize)> {
        let mut by_sets: BTreeMap<Pair, Vec<usize>> = BTreeMap::new();
        let mut by_identities: BTreeMap<(usize, Pair), Vec<usize>> = BTreeMap::new();
        for (at, unit) in self.units.iter().enumerate() {
            unit.like.sets.into_iter().for_each(|sets| by_sets.entry(sets).or_default().push(at));
            for (family, pair) in unit.like.identities.iter().enumerate() {
                pair.iter().for_each(|pair| by_identities.entry((family, *pair)).or_default().push(at));
            }
        }
        let mut candidates = BTreeSet::new();
        for (sets, subjects) in &by_sets {
            let is_same_set = match (self.now.sets.get(&sets.0), self.then.sets.get(&sets.1)) {
                (Some(now), Some(then)) => Arc::ptr_eq(now, then),
                (now, then) => now.is_none() && then.is_none(),
            };
            for direction in Direction::ALL {
                let spans = self.spans(&[(*sets, direction)]);
                for ((family, pair), others) in &by_identities {
                    let is_same = is_same_set && pair.0 == pair.1;
                    if is_same || !self.one_side_differs(*sets, direction, *pair, &spans) {
                        continue;
                    }
                    for (subject, other) in subjects.iter().flat_map(|it| others.iter().map(move |other| (*it, *other)))
                    {
                        let (from, to) =
                            if direction == Direction::Egress { (subject, other) } else { (other, subject) };
                        if !self.is_itself(from, to, *family) && !self.is_own_node(from, to) {
                            candidates.insert((from, to, *family));
                        }
                    }
                }
            }
        }
        candidates
    }

    /// One pod, or two that say they have one address: what a pod sends to itself is not looked at.
    fn is_itself(&self, from: usize, to: usize, family: usize) -> bool {
        let (from, to) = (&self.units[from], &self.units[to]);
        from.count == 1 && to.count == 1 && from.addresses[family] == to.addresses[family]
    }

    /// A node, and pods that are all its own.
    fn is_own_node(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.units[from], &self.units[to]);
        from.count == 0 && !from.nodes.is_empty() && to.nodes == from.nodes
    }

    fn one_side_differs(&self, sets: Pair, direction: Direction, pair: Pair, spans: &[Span]) -> bool {
        spans.iter().any(|span| {
            let Words { now, then, .. } = self.words(sets, direction, pair, None, span);
            now.verdict() != then.verdict()
        })
    }

    fn rows(tables: &Tables, set: u32, direction: Direction) -> Option<&Rows> {
        let set: &Set = tables.sets.get(&set)?;
        Some(match direction {
            Direction::Ingress => &set.ingress,
            Direction::Egress => &set.egress,
        })
    }

    /// Spans that are each in one class of all these rows.
    fn spans(&self, of: &[(Pair, Direction)]) -> Vec<Span> {
        let rows = of.iter().flat_map(|((now, then), direction)| {
            [Self::rows(&self.now, *now, *direction), Self::rows(&self.then, *then, *direction)]
        });
        spans::common(&rows.flatten().map(|rows| &*rows.classes).collect::<Vec<_>>())
    }

    fn words(&self, sets: Pair, direction: Direction, pair: Pair, own: Option<IpAddr>, span: &Span) -> Words {
        let own = own.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let word = |tables: &Tables, set, identity| match Self::rows(tables, set, direction) {
            Some(rows) => rows.word(identity, own, &span.packet()),
            // Without a set a pod has no connections, which is what a word of no rows says.
            None => Rows::default().word(ANY, own, &span.packet()),
        };
        Words { direction, now: word(&self.now, sets.0, pair.0), then: word(&self.then, sets.1, pair.1) }
    }

    /// What differs between two units: packets in words, and what becomes of them.
    fn pair(&self, from: &Unit, to: &Unit, family: usize) -> Vec<(String, Outcome)> {
        let (Some(source), Some(destination)) = (from.like.identities[family], to.like.identities[family]) else {
            return Vec::new();
        };
        let egress = from.like.sets.map(|sets| (sets, Direction::Egress, destination, from.addresses[family]));
        let ingress = to.like.sets.map(|sets| (sets, Direction::Ingress, source, to.addresses[family]));
        let sides: Vec<_> = egress.into_iter().chain(ingress).collect();
        let all = self.spans(&sides.iter().map(|(sets, direction, ..)| (*sets, *direction)).collect::<Vec<_>>());
        let mut by_outcome: BTreeMap<Outcome, Vec<Span>> = BTreeMap::new();
        for span in &all {
            let words =
                sides.iter().map(|(sets, direction, pair, own)| self.words(*sets, *direction, *pair, *own, span));
            if let Some(outcome) = self.outcome(&words.collect::<Vec<_>>()) {
                by_outcome.entry(outcome).or_default().push(*span);
            }
        }
        by_outcome.into_iter().map(|(outcome, of)| (spans::words(&of, &all), outcome)).collect()
    }

    /// None: nothing differs.
    fn outcome(&self, ends: &[Words]) -> Option<Outcome> {
        let stops = |word: Word| !walk::passes(word.verdict());
        let whole = |word: fn(&Words) -> Word| {
            let first = ends
                .iter()
                .map(word)
                .find(|it| stops(*it))
                .or_else(|| ends.iter().map(word).max_by_key(|it| it.verdict()));
            first.map_or(api::Verdict::NotJudged, |it| words::verdict(it.verdict()))
        };
        let (now, then) = (whole(|it| it.now), whole(|it| it.then));
        if now == then {
            return None;
        }
        // The end that denies it then, or that denied it.
        let end = ends
            .iter()
            .find(|it| stops(it.then))
            .or_else(|| ends.iter().rfind(|it| it.now.verdict() != it.then.verdict()))?;
        let rule = self.then.rules.get(&end.then.rule());
        let object = rule.map(|rule| rule.source.to_string()).unwrap_or_default();
        let field = rule.map(|rule| rule.path.to_string()).unwrap_or_default();
        Some((now, then, words::direction(end.direction), object, field))
    }
}

// === impl Unit ===

impl Unit {
    fn group(&self) -> api::Group {
        api::Group { name: self.like.name.clone(), pods: self.count, example: self.example.clone() }
    }
}
