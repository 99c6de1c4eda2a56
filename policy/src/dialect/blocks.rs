//! Blocks of addresses in as few lists as say the same together: what a list holds is one thing to tell apart from all else,
//! however long it is.
//!
//! Invariant: one of the lists holds an address exactly if one of the blocks does.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ipnet::IpNet;

use crate::ir::{Is, Nets, Peer, Ranges, Scope, Term};
use crate::nesting::Nesting;

/// The peers, of which those that are blocks of anyone's addresses come last and are as few as may be.
pub(super) fn united(peers: impl IntoIterator<Item = Peer>) -> Vec<Peer> {
    let (mut others, mut blocks) = (Vec::new(), Vec::new());
    for peer in peers {
        match peer.0.as_slice() {
            [Term { is: Is::In(nets), negated: false }] if nets.scope == Scope::Anyone => blocks.push(nets.clone()),
            _ => others.push(peer),
        }
    }
    others.extend(lists(&blocks).into_iter().map(|nets| Peer(vec![Term::that(Is::In(nets))])));
    others
}

/// One list for all that except nothing. Of the others, one in which none is in another, one of those that are each in one of
/// these, and so on: what one excepts, the others of its list do not hold.
fn lists(blocks: &[Nets]) -> Vec<Nets> {
    let mut whole = Vec::new();
    let mut without: BTreeMap<IpNet, Ranges> = BTreeMap::new();
    let each = blocks.iter().flat_map(|nets| nets.ranges.iter().map(|range| (range, &nets.except)));
    for (range, except) in each.filter(|(range, except)| !except.contain(range)) {
        let except: Ranges = except.iter().filter(|net| range.contains(*net)).copied().collect();
        match without.entry(*range) {
            _ if except.iter().next().is_none() => whole.push(*range),
            Entry::Vacant(there) => drop(there.insert(except)),
            Entry::Occupied(mut there) => *there.get_mut() = both(there.get(), &except),
        }
    }
    let mut nested: Vec<(Vec<IpNet>, Vec<IpNet>)> = Vec::new();
    let mut nesting = Nesting::default();
    for (range, except) in without {
        let depth = nesting.around(&range).map_or(0, |wider| wider + 1);
        nesting.put(range, depth);
        if depth == nested.len() {
            nested.push((Vec::new(), Vec::new()));
        }
        nested[depth].0.push(range);
        nested[depth].1.extend(except.iter());
    }
    let all = (!whole.is_empty()).then_some((whole, Vec::new())).into_iter().chain(nested);
    all.map(|(ranges, except)| Nets {
        ranges: ranges.into_iter().collect(),
        except: except.into_iter().collect(),
        scope: Scope::Anyone,
    })
    .collect()
}

/// What is in some of either.
fn both(one: &Ranges, other: &Ranges) -> Ranges {
    let of_one = one.iter().filter(|range| other.contain(range));
    of_one.chain(other.iter().filter(|range| one.contain(range))).copied().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of sixteen addresses.
    fn range() -> impl Strategy<Value = IpNet> {
        (0u8..16, 28u8..=32).prop_map(|(at, length)| IpNet::new([10, 0, 0, at].into(), length).unwrap().trunc())
    }

    fn block() -> impl Strategy<Value = Nets> {
        (range(), proptest::collection::vec(range(), 0..4)).prop_map(|(range, except)| Nets {
            ranges: [range].into_iter().collect(),
            except: except.into_iter().collect(),
            scope: Scope::Anyone,
        })
    }

    proptest! {
        #[test]
        fn lists_hold_what_blocks_do_and_are_few(blocks in proptest::collection::vec(block(), 0..12)) {
            let lists = lists(&blocks);
            for address in (0..16).map(|at| IpNet::from(std::net::IpAddr::from([10, 0, 0, at]))) {
                let hold = |all: &[Nets]| all.iter().any(|nets| nets.contain(&address));
                prop_assert_eq!(hold(&lists), hold(&blocks), "{} in {:?} of {:?}", address, lists, blocks);
            }
            prop_assert!(lists.len() <= 6, "one, and one for each length: {:?}", lists);
        }
    }

    #[test]
    fn what_is_no_block_stays() {
        let block = |text: &str| {
            let ranges = [text.parse().unwrap()].into_iter().collect();
            Peer(vec![Term::that(Is::In(Nets { ranges, except: Ranges::default(), scope: Scope::Anyone }))])
        };
        let other = Peer(vec![Term::that(Is::Entity([crate::ir::Entity::Host].into()))]);
        let peers = united([block("10.0.0.0/24"), other.clone(), block("192.0.2.0/24"), block("fd00::/64")]);
        assert_eq!(peers.len(), 2, "{peers:?}");
        assert_eq!(peers[0], other);
        assert_eq!(
            peers[1].0[0].is,
            Is::In(Nets {
                ranges: ["10.0.0.0/24", "192.0.2.0/24", "fd00::/64"]
                    .map(|it| it.parse().unwrap())
                    .into_iter()
                    .collect(),
                except: Ranges::default(),
                scope: Scope::Anyone,
            })
        );
    }
}
