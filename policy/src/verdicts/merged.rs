//! The matches of one rule in as few matches and ranges as say the same: where ports are cut is then a matter of what
//! rules tell apart, and not of how they are written.
//!
//! Invariant: for every packet and end the list holds as it did. Of the matches that name no port none excludes any, and
//! their ranges are in order and neither overlap nor touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ir::{L4Match, Port, Ports};

/// Ports by number and by name.
#[derive(Default)]
struct Sorted {
    numbers: Vec<(u16, u16)>,
    names: BTreeSet<Arc<str>>,
}

/// See the module.
pub(super) fn merged(list: impl IntoIterator<Item = L4Match>) -> Vec<L4Match> {
    let mut apart: BTreeSet<L4Match> = BTreeSet::new();
    // By all that is said beside destinations.
    let mut wanted: BTreeMap<L4Match, Sorted> = BTreeMap::new();
    for each in list {
        let Ports { one_of, none_of } = &each.destination;
        let (all, excluded) = (one_of.as_deref().map(Sorted::of), Sorted::of(none_of));
        let names_any = !excluded.names.is_empty() || all.as_ref().is_some_and(|all| !all.names.is_empty());
        let rest = L4Match { destination: Ports::default(), ..each.clone() };
        if each.destination.are_any() {
            apart.insert(each);
        } else if names_any && !none_of.is_empty() {
            let destination = Ports { one_of: all.map(Sorted::ports), none_of: excluded.ports() };
            apart.insert(L4Match { destination, ..rest });
        } else {
            let all = all.unwrap_or_else(|| Sorted { numbers: vec![(0, u16::MAX)], names: BTreeSet::new() });
            let there = wanted.entry(rest).or_default();
            there.numbers.extend(without(&all.numbers, &excluded.numbers));
            there.names.extend(all.names);
        }
    }
    let wanted = wanted.into_iter().map(|(rest, ports)| {
        let ports = Sorted { numbers: union(ports.numbers), names: ports.names };
        L4Match { destination: Ports { one_of: Some(ports.ports()), none_of: Vec::new() }, ..rest }
    });
    wanted.chain(apart).collect()
}

impl Sorted {
    fn of(ports: &[Port]) -> Sorted {
        let mut sorted = Sorted::default();
        for port in ports {
            match port {
                Port::Range(low, high) => sorted.numbers.push((*low, *high)),
                Port::Named(name) => drop(sorted.names.insert(name.clone())),
            }
        }
        Sorted { numbers: union(sorted.numbers), ..sorted }
    }

    fn ports(self) -> Vec<Port> {
        let numbers = self.numbers.into_iter().map(|(low, high)| Port::Range(low, high));
        numbers.chain(self.names.into_iter().map(Port::Named)).collect()
    }
}

/// In order, and as few as there can be.
fn union(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut union: Vec<(u16, u16)> = Vec::new();
    for (low, high) in ranges.into_iter().filter(|(low, high)| low <= high) {
        match union.last_mut() {
            Some((_, last)) if low <= last.saturating_add(1) => *last = high.max(*last),
            _ => union.push((low, high)),
        }
    }
    union
}

/// What of these is in none of those; both are unions.
fn without(these: &[(u16, u16)], those: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = Vec::new();
    let mut those = those.iter().peekable();
    for (low, high) in these {
        let mut from = Some(*low);
        while let (Some(start), Some((first, last))) = (from, those.peek()) {
            if first > high {
                break;
            }
            if *first > start {
                left.push((start, first - 1));
            }
            if last > high {
                from = None;
                break;
            }
            from = last.checked_add(1).map(|after| after.max(start));
            those.next();
        }
        left.extend(from.filter(|start| start <= high).map(|start| (start, *high)));
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ir::protocol::{SCTP, TCP, UDP};
    use crate::ir::{Entity, L4, ProtocolIs};
    use crate::traits::Traits;
    use crate::walk::{self, Packet};

    fn of(protocol: u8, one_of: Option<&[(u16, u16)]>, none_of: &[(u16, u16)]) -> L4Match {
        let ports = |all: &[(u16, u16)]| all.iter().map(|(low, high)| Port::Range(*low, *high)).collect();
        let destination = Ports { one_of: one_of.map(ports), none_of: ports(none_of) };
        L4Match { destination, ..L4Match::protocol(ProtocolIs::Is(protocol)) }
    }

    #[test]
    fn single_ports_that_touch_are_one_range_and_what_is_excluded_is_cut_out() {
        let all: [(&[L4Match], &[L4Match]); 5] = [
            (&[of(TCP, Some(&[(80, 80)]), &[]), of(TCP, Some(&[(81, 81)]), &[])], &[of(TCP, Some(&[(80, 81)]), &[])]),
            (&[of(TCP, None, &[(80, 80)])], &[of(TCP, Some(&[(0, 79), (81, 65535)]), &[])]),
            (
                &[of(TCP, Some(&[(5, 9), (9, 20)]), &[(0, 6), (8, 8), (20, 65535)])],
                &[of(TCP, Some(&[(7, 7), (9, 19)]), &[])],
            ),
            (&[of(TCP, Some(&[(5, 9)]), &[(0, 65535)])], &[of(TCP, Some(&[]), &[])]),
            (
                &[of(UDP, None, &[]), of(TCP, Some(&[(9, 8), (65535, 65535)]), &[])],
                &[of(TCP, Some(&[(65535, 65535)]), &[]), of(UDP, None, &[])],
            ),
        ];
        for (list, wanted) in all {
            assert_eq!(merged(list.iter().cloned()), wanted);
        }
    }

    fn range() -> impl Strategy<Value = (u16, u16)> {
        let end = || prop_oneof![0u16..12, 65530u16..=65535];
        (end(), end())
    }

    proptest! {
        #[test]
        fn a_list_holds_for_the_packets_it_held_for(
            list in proptest::collection::vec(
                (proptest::sample::select(vec![TCP, UDP]), proptest::option::of(proptest::collection::vec(range(), 0..4)), proptest::collection::vec(range(), 0..3)),
                0..5,
            )
        ) {
            let list: Vec<L4Match> = list.iter().map(|(protocol, one_of, none_of)| of(*protocol, one_of.as_deref(), none_of)).collect();
            let merged = merged(list.clone());
            let to = Traits::of(Entity::World);
            for protocol in [TCP, UDP, SCTP] {
                for port in (0..14).chain(65528..=65535) {
                    let packet = Packet { protocol, source_port: 0, destination: port };
                    let holds = |list: &[L4Match]| walk::l4(&L4::OneOf(list.to_vec()), &to, &packet);
                    prop_assert_eq!(holds(&merged), holds(&list), "{} {} {:?}", protocol, port, list);
                }
            }
        }
    }
}
