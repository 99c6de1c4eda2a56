//! Intervals of one map in two states, laid over each other.
//!
//! Invariant: an overlap lies within one interval of each state, and every key that is in an interval of both is in
//! exactly one overlap.

use tartan_netstate::nft::{ElementKey, SetName};
use tartan_netstate::policy::led_to;
use tartan_netstate::{Key, Object, State};

/// An interval, and the number that it leads to.
pub(super) type Interval = (ElementKey, u32);

/// What an interval of each of the states has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    pub(super) key: ElementKey,
    pub(super) old: u32,
    pub(super) new: u32,
}

/// The elements of a map whose keys begin so, in order.
pub(super) fn elements<'a>(
    state: &'a State,
    map: SetName,
    prefix: &[u8],
) -> impl Iterator<Item = (&'a Key, &'a Object)> + use<'a> {
    let first = Key::NftElement { set: map, key: ElementKey { bytes: prefix.into(), end: None } };
    let prefix: Box<[u8]> = prefix.into();
    let begins =
        move |key: &Key| matches!(key, Key::NftElement { set, key } if *set == map && key.bytes.starts_with(&prefix));
    state.entries_from(&first).take_while(move |(key, _)| begins(key)).map(|(key, entry)| (key, &entry.object))
}

/// Those of them that are intervals.
pub(super) fn of(state: &State, map: SetName, prefix: &[u8]) -> Vec<Interval> {
    let interval = |(key, object): (&Key, &Object)| match key {
        Key::NftElement { key, .. } if key.end.is_some() => Some((key.clone(), led_to(object)?)),
        _ => None,
    };
    elements(state, map, prefix).filter_map(interval).collect()
}

/// Of disjoint intervals in order.
pub(super) fn overlaps(old: &[Interval], new: &[Interval]) -> Vec<Overlap> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut overlaps = Vec::new();
    while let (Some((one, was)), Some((other, is))) = (old.peek(), new.peek()) {
        let first = one.bytes.clone().max(other.bytes.clone());
        let ends = [end(one), end(other)];
        let last = if reaches_further(ends[0], ends[1]) { ends[1] } else { ends[0] };
        if last.is_empty() || *first < *last {
            overlaps.push(Overlap { key: ElementKey { bytes: first, end: Some(last.into()) }, old: *was, new: *is });
        }
        if reaches_further(ends[0], ends[1]) {
            new.next()
        } else {
            old.next()
        };
    }
    overlaps
}

/// Empty: it reaches up to the last key.
fn end(key: &ElementKey) -> &[u8] {
    key.end.as_deref().unwrap_or_default()
}

fn reaches_further(one: &[u8], other: &[u8]) -> bool {
    match (one.is_empty(), other.is_empty()) {
        (_, true) => false,
        (true, false) => true,
        (false, false) => one > other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one byte; 0 as end is none.
    fn intervals(list: &[(u8, u8, u32)]) -> Vec<Interval> {
        let end = |end: u8| if end == 0 { Box::default() } else { [end].into() };
        list.iter().map(|(first, last, n)| (ElementKey { bytes: [*first].into(), end: Some(end(*last)) }, *n)).collect()
    }

    #[test]
    fn every_key_of_both_is_in_one_overlap() {
        let check = |old: &[(u8, u8, u32)], new: &[(u8, u8, u32)], wanted: &[(u8, u8, u32, u32)]| {
            let found = overlaps(&intervals(old), &intervals(new));
            let flat: Vec<(u8, u8, u32, u32)> = found
                .iter()
                .map(|it| (it.key.bytes[0], it.key.end.as_ref().unwrap().first().copied().unwrap_or(0), it.old, it.new))
                .collect();
            assert_eq!(flat, wanted, "{old:?} {new:?}");
        };
        check(&[], &[(1, 0, 1)], &[]);
        check(&[(0, 0, 1)], &[(0, 0, 2)], &[(0, 0, 1, 2)]);
        check(&[(0, 0, 1)], &[(0, 5, 1), (5, 7, 2), (7, 0, 1)], &[(0, 5, 1, 1), (5, 7, 1, 2), (7, 0, 1, 1)]);
        check(&[(0, 5, 1), (5, 0, 2)], &[(0, 5, 3), (5, 0, 2)], &[(0, 5, 1, 3), (5, 0, 2, 2)]);
        // With gaps that no packet is in.
        check(&[(0, 3, 1), (4, 9, 2)], &[(0, 7, 3), (8, 9, 4)], &[(0, 3, 1, 3), (4, 7, 2, 3), (8, 9, 2, 4)]);
        check(&[(2, 4, 1)], &[(4, 6, 2)], &[]);
    }
}
