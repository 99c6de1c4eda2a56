//! Whether a change takes anything away: whether a packet that passed before may not pass now.
//!
//! Invariant: it may say so where nothing was taken away, never the other way round. To be judged again cuts nobody; it
//! costs each connection one packet's judgement. So what is hard to tell is taken for a revocation; what happens all the
//! time, pods that come and go, is looked at closely. That a pod has come where another one's connection leads takes nothing
//! away: no stamp vouches for it ([`super::chains`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use tartan_netstate::policy::Side;
use tartan_policy::verdicts::{ANY, Class, Rows, Tables, Word};
use tartan_policy::walk;

use super::maps;
use super::{FromBefore, Mode, Seen};

/// So many addresses are looked at closely, by what they were and are.
const CLOSELY: usize = 64;

pub(super) fn is_anything(before: &Seen, after: &Seen) -> bool {
    // What nobody asks about is not taken away; and all that was stamped before is judged when somebody asks again.
    if !after.tables.judged {
        return false;
    }
    (before.mode != Mode::Enforce && after.mode == Mode::Enforce)
        || before.ipvs != after.ipvs
        || !after.between_nodes.is_subset(&before.between_nodes)
        || (!before.tables.judged && after.tables.judged)
        || subjects(before, after)
        || rows(&before.tables, &after.tables)
        || identities(&before.tables, &after.tables)
}

/// A pod that is still here and has another set, or none.
fn subjects(before: &Seen, after: &Seen) -> bool {
    before.tables.subjects.diff(&after.tables.subjects).any(|item| match item {
        DiffItem::Add(..) => false,
        DiffItem::Update { .. } => true,
        DiffItem::Remove(pod, _) => {
            let is_it = |it: &FromBefore| it.pod.as_ref() == Some(pod);
            after.from_before.iter().any(is_it) || after.attachments.values().any(|it| *it.pod() == **pod)
        }
    })
}

fn rows(before: &Tables, after: &Tables) -> bool {
    let both = |number: u32| before.identities.contains_key(&number) && after.identities.contains_key(&number);
    before.sets.diff(&after.sets).any(|item| match item {
        DiffItem::Update { old: (_, old), new: (_, new) } if old != new => Side::BOTH.into_iter().any(|side| {
            let (old, new) = (maps::rows(side, old), maps::rows(side, new));
            let mut places = maps::differing(old, new);
            old.classes != new.classes
                || places.any(|place| loses(old, new, place, place) && (place.0 == ANY || both(place.0)))
        }),
        // Without a set before there was none to pass, and without one now the pod has another.
        _ => false,
    })
}

/// Addresses and ranges that stand for another identity now. Sets have the classes they had, or it was told already.
fn identities(before: &Tables, after: &Tables) -> bool {
    let mut pairs = BTreeSet::new();
    let mut note = |was: u32, is: u32| {
        if was != is {
            pairs.insert((was, is));
        }
        pairs.len() > CLOSELY
    };
    let of_address = |address: &IpAddr| (before.identity(*address), after.identity(*address));
    let of_range = |range: &IpNet| (around(before, range), around(after, range));
    let addresses = before.addresses.diff(&after.addresses).map(|item| match item {
        DiffItem::Add(address, _) | DiffItem::Remove(address, _) | DiffItem::Update { new: (address, _), .. } => {
            of_address(address)
        }
    });
    let ranges = before.ranges.diff(&after.ranges).map(|item| match item {
        DiffItem::Add(range, _) | DiffItem::Remove(range, _) | DiffItem::Update { new: (range, _), .. } => {
            of_range(range)
        }
    });
    if addresses.chain(ranges).any(|(was, is)| note(was, is)) {
        return true;
    }
    pairs.iter().any(|(was, is)| {
        let both = before.sets.iter().filter_map(|(number, old)| Some((old, after.sets.get(number)?)));
        let mut sides =
            both.flat_map(|(old, new)| Side::BOTH.map(|side| (maps::rows(side, old), maps::rows(side, new))));
        sides.any(|(old, new)| {
            let mut own = own_classes(old, *was).chain(own_classes(new, *is));
            own.any(|class| loses(old, new, (*was, class), (*is, class)))
        })
    })
}

/// The identity of those of a range's addresses that are in no smaller one.
fn around(tables: &Tables, range: &IpNet) -> u32 {
    let mut wider = Some(*range);
    while let Some(range) = wider {
        if let Some(number) = tables.ranges.get(&range) {
            return *number;
        }
        wider = range.supernet();
    }
    ANY
}

fn own_classes(rows: &Rows, identity: u32) -> impl Iterator<Item = Class> + '_ {
    rows.words.range((identity, 0)..=(identity, Class::MAX)).map(|((_, class), _)| *class)
}

/// Whether what passed at this place does not at that one.
fn loses(before: &Rows, after: &Rows, was: (u32, Class), is: (u32, Class)) -> bool {
    let passes = |rows: &Rows, place| word(rows, place).is_some_and(|word| walk::passes(word.verdict()));
    passes(before, was) && !passes(after, is)
}

fn word(rows: &Rows, (identity, class): (u32, Class)) -> Option<Word> {
    maps::word(rows, (identity, class)).or_else(|| maps::word(rows, (ANY, class)))
}
