//! The transactions in which steps on the nft table come into force, one after the other.
//!
//! A packet is judged by several lookups, and the kernel goes over to what is new map by map: in between, a packet would
//! find the new answer of one map and the old one of the next. So, in this order:
//!
//! ```text
//! rows of classes that are new, classes of sets that are new    nothing leads there yet
//! addresses that come to be listed, other rows that come        an address that was not listed was judged as anyone's
//! everything else
//! addresses that are listed no more, rows and classes that go   what is around them says the same by now
//! the generation                                                no old answer is left that could be stamped with it
//! ```
//!
//! Invariant: while no identity is new, gone or another's, a packet is judged as before the change or as after it.

use std::collections::BTreeSet;

use tartan_netstate::claims::{
    NFT_ADDRESSES_MAP, NFT_ANY_SUFFIX, NFT_CLASSES_SUFFIX, NFT_WHOLE_PREFIX, NFT_WORDS_SUFFIX,
};
use tartan_netstate::nft::{ElementData, ElementKey};
use tartan_netstate::{Generation, Key, Object, Op, Owner};

/// A class of a policy set: ingress or egress, the set, the class.
type Class<'a> = (&'a str, &'a [u8], &'a [u8]);

/// Bytes of a number in keys and data of policy's maps.
const NUMBER: usize = 4;

/// The steps of each transaction.
pub(crate) fn phases(nft: Vec<&(Op, Owner)>) -> Vec<Vec<&(Op, Owner)>> {
    if nft.iter().any(|(op, _)| matches!(op.key(), Key::NftTable | Key::NftSet { .. })) {
        return vec![nft];
    }
    let places: Vec<usize> = {
        let changes = Classes::of(&nft);
        nft.iter().map(|(op, _)| changes.phase(op)).collect()
    };
    let mut phases = vec![Vec::new(); 5];
    nft.into_iter().zip(places).for_each(|(step, place)| phases[place].push(step));
    phases.retain(|steps| !steps.is_empty());
    phases
}

/// What the steps make of classes.
struct Classes<'a> {
    new: BTreeSet<Class<'a>>,
    /// Sets some classes of which were there, and sets some classes of which will be.
    were: BTreeSet<(&'a str, &'a [u8])>,
    will_be: BTreeSet<(&'a str, &'a [u8])>,
}

// === impl Classes ===

impl<'a> Classes<'a> {
    fn of(nft: &[&'a (Op, Owner)]) -> Classes<'a> {
        let (mut old, mut new) = (BTreeSet::new(), BTreeSet::new());
        for (op, _) in nft {
            let Some((side, key)) = policy_element(op.key(), NFT_CLASSES_SUFFIX) else { continue };
            let Some(set) = key.bytes.get(..NUMBER) else { continue };
            let (before, after) = match op {
                Op::Create(_, after) => (None, Some(after)),
                Op::Replace { old, new, .. } => (Some(old), Some(new)),
                Op::Delete(_, before) => (Some(before), None),
            };
            old.extend(before.and_then(data).map(|class| (side, set, class)));
            new.extend(after.and_then(data).map(|class| (side, set, class)));
        }
        let sets = |of: &BTreeSet<Class<'a>>| of.iter().map(|(side, set, _)| (*side, *set)).collect();
        Classes { were: sets(&old), will_be: sets(&new), new: &new - &old }
    }

    fn phase(&self, op: &Op) -> usize {
        let key = op.key();
        let of_set =
            || policy_element(key, NFT_CLASSES_SUFFIX).and_then(|(side, key)| Some((side, key.bytes.get(..NUMBER)?)));
        let of_row = || row(key).is_some_and(|class| self.new.contains(&class));
        let is_address = || matches!(key, Key::NftElement { set, .. } if is_addresses(set));
        match op {
            Op::Create(..) if of_row() || of_set().is_some_and(|set| !self.were.contains(&set)) => 0,
            Op::Create(..) if row(key).is_some() || is_address() => 1,
            Op::Delete(..) if row(key).is_some() || is_address() => 3,
            Op::Delete(..) if of_set().is_some_and(|set| !self.will_be.contains(&set)) => 3,
            _ if matches!(key, Key::NftChain { .. }) || Generation::of(key).is_some() => 4,
            _ => 2,
        }
    }
}

/// The map of identities of addresses that are listed one by one.
pub(crate) fn is_addresses(set: &str) -> bool {
    matches!(set.strip_prefix(NFT_ADDRESSES_MAP), Some("4" | "6"))
}

/// The word that a row holds.
pub(super) fn word(key: &Key, object: &Object) -> Option<u32> {
    row(key)?;
    data(object)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The class that a row is about.
fn row(key: &Key) -> Option<Class<'_>> {
    let (side, key) = policy_element(key, NFT_WORDS_SUFFIX).or_else(|| policy_element(key, NFT_ANY_SUFFIX))?;
    Some((side, key.bytes.get(..NUMBER)?, key.bytes.get(key.bytes.len().checked_sub(NUMBER)?..)?))
}

/// Whose map it is, if its name ends so.
fn policy_element<'a>(key: &'a Key, end: &str) -> Option<(&'a str, &'a ElementKey)> {
    match key {
        Key::NftElement { set, key } => Some((set.strip_prefix(NFT_WHOLE_PREFIX)?.strip_suffix(end)?, key)),
        _ => None,
    }
}

fn data(object: &Object) -> Option<&[u8]> {
    match object {
        Object::NftElement(ElementData(bytes)) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tartan_netstate::nft::{Chain, Fields, Set};

    use super::*;

    fn element(set: &str, fields: Fields) -> Key {
        Key::NftElement { set: set.into(), key: fields.key() }
    }

    fn number(number: u32) -> Object {
        Object::NftElement(Fields::new().number(number).data())
    }

    /// An interval of a set's classes.
    fn interval(set: u32, port: u16) -> Key {
        element("policy_egress_classes", Fields::new().number(set).proto(6).port(port))
    }

    fn own(set: u32, class: u32) -> Key {
        element("policy_egress_words", Fields::new().number(set).number(77).number(class))
    }

    fn any(set: u32, class: u32) -> Key {
        element("policy_egress_any", Fields::new().number(set).number(class))
    }

    fn address(last: u8) -> Key {
        element("policy_addresses4", Fields::new().addr(std::net::Ipv4Addr::new(10, 0, 0, last).into()))
    }

    #[test]
    fn what_maps_point_to_comes_before_them_and_goes_after_and_the_generation_is_last() {
        let chain = Object::NftChain(Chain::regular(Vec::new()).into());
        let create = |key: Key| Op::Create(key, number(5));
        let delete = |key: Key| Op::Delete(key, number(5));
        let replace = |key: Key| Op::Replace { key, old: number(5), new: number(6) };
        // Of set 2 class 80 comes and class 443 goes, class 9 is cut anew; sets 1 and 3 come and go as a whole.
        let steps = [
            (4, Op::Replace { key: Key::NftChain { chain: "policy_through".into() }, old: chain.clone(), new: chain }),
            (2, Op::Create(interval(2, 80), number(80))),
            (2, Op::Delete(interval(2, 443), number(443))),
            (2, Op::Replace { key: interval(2, 7), old: number(9), new: number(443) }),
            (2, Op::Create(interval(2, 8), number(9))),
            (0, Op::Create(interval(1, 80), number(80))),
            (3, Op::Delete(interval(3, 80), number(80))),
            (0, create(any(1, 80))),
            (3, delete(any(3, 80))),
            (0, create(own(2, 80))),
            (0, create(any(2, 80))),
            (1, create(own(2, 9))),
            (1, create(own(2, 443))),
            (1, create(own(4, 80))),
            (1, create(element("policy_ingress_words", Fields::new().number(2).number(77).number(80)))),
            (2, replace(own(2, 10))),
            (2, replace(any(2, 9))),
            (3, delete(own(2, 11))),
            (1, create(address(1))),
            (2, replace(address(2))),
            (3, delete(address(3))),
            (2, create(element("policy_ranges4", Fields::new().number(1)))),
            (4, Op::Create(Generation(2).key(), number(0))),
            (4, Op::Delete(Generation(1).key(), number(0))),
            (2, create(element("hostports4", Fields::new().number(1)))),
        ];
        let all: Vec<(Op, Owner)> = steps.iter().map(|(_, op)| (op.clone(), Owner::Policy)).collect();
        let wanted = (0..5).map(|phase| {
            let of_phase = steps.iter().filter(|(of, _)| *of == phase);
            of_phase.map(|(_, op)| (op.clone(), Owner::Policy)).collect::<Vec<_>>()
        });
        let in_phases = |steps: &[(Op, Owner)]| -> Vec<Vec<(Op, Owner)>> {
            phases(steps.iter().collect()).into_iter().map(|steps| steps.into_iter().cloned().collect()).collect()
        };
        assert_eq!(in_phases(&all), wanted.collect::<Vec<_>>());
        assert!(phases(Vec::new()).is_empty());
        // Where sets are made there is nothing in force that could be half old and half new.
        let set = Set::exact(&[]);
        let made =
            (Op::Create(Key::NftSet { set: "policy_egress_any".into() }, Object::NftSet(set.into())), Owner::Policy);
        let with_set = [vec![made], all].concat();
        assert_eq!(in_phases(&with_set), [with_set]);
    }
}
