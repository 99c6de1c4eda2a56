//! What the policies of one pod come to: the rows of its verdict tables, in words.
//!
//! Invariant: the rows of a direction together say what the tables say of every packet; those of named ends come before
//! what counts for anyone else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use tartan_api::explain as api;
use tartan_model::World;

use crate::ends::{self, NotFound};
use crate::ir::{Direction, Program};
use crate::spans::{self, Span};
use crate::verdicts::{self, ANY, Identity, Memo, Rows, Tables, Word};
use crate::words;

/// The rows of a pod, both directions.
pub fn rows(world: &World, program: &Program, pod: &str) -> Result<Vec<api::Row>, NotFound> {
    if !pod.contains('/') {
        return Err(NotFound(format!("{pod} is no pod; write it as NAMESPACE/NAME")));
    }
    let named = ends::find(world, program, pod)?;
    let node = world.pods.get(pod).map(|pod| pod.node.clone()).unwrap_or_default();
    let Some(key) = named.pod else { return Err(NotFound(named.notes.join("; "))) };
    let mut on_its_node = world.clone();
    on_its_node.local = node;
    let mut memo = Memo::default();
    verdicts::plan(&mut memo, &on_its_node);
    // With all ranges: ends are named for those they are in.
    let tables = &memo.unabridged();
    let Some(set) = tables.subjects.get(&key).and_then(|set| tables.sets.get(set)) else {
        let why = format!("the namespace of {key} is not known, and so not its policies: it has no connections");
        return Err(NotFound(format!("{why}; make it known to the store")));
    };
    let own = named.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let ranges = ranges_of(tables);
    let directions = [(Direction::Ingress, &set.ingress), (Direction::Egress, &set.egress)];
    let rows = directions.into_iter().flat_map(|(direction, rows)| of_direction(tables, &ranges, direction, rows, own));
    Ok(rows.collect())
}

fn of_direction(
    tables: &Tables,
    ranges: &BTreeMap<u32, Vec<IpNet>>,
    direction: Direction,
    rows: &Rows,
    own: IpAddr,
) -> Vec<api::Row> {
    let all = spans::common(&[&rows.classes]);
    let by_word = |identity: u32| {
        let mut by_word: BTreeMap<Word, Vec<Span>> = BTreeMap::new();
        for span in &all {
            by_word.entry(rows.word(identity, own, &span.packet())).or_default().push(*span);
        }
        by_word
    };
    // Ends that are treated alike are one row, whatever tells them apart elsewhere.
    let mut alike: BTreeMap<BTreeMap<Word, Vec<Span>>, Vec<String>> = BTreeMap::new();
    let mut named: Vec<u32> = rows.words.keys().map(|(identity, _)| *identity).filter(|it| *it != ANY).collect();
    named.dedup();
    for identity in &named {
        let of = ranges.get(identity).map_or(&[][..], Vec::as_slice);
        let name = tables.identities.get(identity).map(|it| words::identity(it, of));
        let name = name.unwrap_or_else(|| identity.to_string());
        alike.entry(by_word(*identity)).or_default().push(name);
    }
    let anyone = if named.is_empty() { "anyone" } else { "anyone else" };
    let groups = alike.into_iter().chain([(by_word(ANY), vec![anyone.to_owned()])]);
    groups
        .flat_map(|(by_word, peers)| by_word.into_iter().map(move |(word, spans)| (peers.clone(), word, spans)))
        .map(|(peers, word, of)| {
            let rule = tables.rules.get(&word.rule());
            api::Row {
                direction: words::direction(direction).into(),
                peers,
                packets: spans::words(&of, &all),
                verdict: words::verdict(word.verdict()),
                object: rule.map(|rule| rule.source.to_string()).unwrap_or_default(),
                field: rule.map(|rule| rule.path.to_string()).unwrap_or_default(),
                place: String::new(),
            }
        })
        .collect()
}

/// Of each identity, the ranges that its addresses are in; of those in no zone, which are in none that a rule names, nothing.
fn ranges_of(tables: &Tables) -> BTreeMap<u32, Vec<IpNet>> {
    let mut by_zone: BTreeMap<IpNet, Vec<(u32, IpNet)>> = BTreeMap::new();
    for (range, number) in &tables.ranges {
        if let Some(zone) = tables.identities.get(number).and_then(|it| it.zone) {
            by_zone.entry(zone).or_default().push((*number, *range));
        }
    }
    let of = |(number, identity): (&u32, &Arc<Identity>)| {
        let all = by_zone.get(&identity.zone?)?;
        // Ranges of pods and of others are identities of their own, and all other identities may be in either.
        let is_of_ranges = all.iter().any(|(of, _)| of == number);
        let own = all.iter().filter(|(of, _)| !is_of_ranges || of == number);
        Some((*number, own.map(|(_, range)| *range).collect()))
    };
    tables.identities.iter().filter_map(of).collect()
}
