//! The maps of policy in the nft table that lead a packet to its word, and what their elements say.
//!
//! ```text
//! (pod's link, pod's address)  ──subjects──► set
//! other end's address  ──addresses, else ranges──► identity
//! (set, protocol, destination)  ──classes──► class
//! (set, identity, class)  ──words, else (set, class) any──► word
//! 0  ──epoch──► number of the state that all of this is of, before and after ([`epoch`](crate::epoch))
//! ```
//!
//! There are subjects, addresses and ranges for each family; classes, words and any for each [`Side`]. Ranges and classes are
//! intervals: one tree for all sets, looked into once for a connection's first packet. All that is led to is a number, in
//! the machine's order, because it travels in the packet's mark; 0 is none. What a word says is
//! `policy/src/verdicts/word.rs`'s affair; what becomes of it, and all other sets and maps of policy,
//! `datapath/src/nftables/policy/maps.rs`'s.
//!
//! The planner makes the elements, and finds by them which numbers are in use (`held.rs` there); the kernel door finds by
//! them in which order they may come into force (`kernel/src/nft/phases.rs`).
//!
//! Invariant: a row is read as it was written.

use std::net::IpAddr;
use std::sync::LazyLock;

use crate::claims::{
    NFT_ADDRESSES_MAP, NFT_ANY_SUFFIX, NFT_CLASSES_SUFFIX, NFT_EGRESS, NFT_INGRESS, NFT_POLICY_PREFIX, NFT_RANGES_MAP,
    NFT_SUBJECTS_MAP, NFT_WORDS_SUFFIX,
};
use crate::nft::{ElementData, ElementKey, Fields, Nfproto, SetName};
use crate::{Key, Object};

/// Which of a pod's policies judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Those about what leaves it.
    Egress,
    /// Those about what enters it.
    Ingress,
}

/// What an element is, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A pod's link and address; leads to its set.
    Subject,
    /// Leads to its identity.
    Address(IpAddr),
    /// Leads to the identity of what is in it and has none of its own.
    Range(Nfproto),
    /// Packets of a set; leads to their class.
    Class {
        /// Whose classes.
        side: Side,
        /// See there.
        set: u32,
    },
    /// Leads to a word.
    Row(Row),
}

/// A word's place: for an identity, or for anyone who has no word of their own, and for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose rows.
    pub side: Side,
    /// Of the pods that are judged.
    pub set: u32,
    /// Of the other end; none: anyone.
    pub identity: Option<u32>,
    /// Of the packet.
    pub class: u32,
}

/// The maps of a side.
struct Maps {
    classes: SetName,
    words: SetName,
    any: SetName,
}

/// Bytes of a number in keys and data.
const NUMBER: usize = 4;

// === impl Side ===

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Egress, Side::Ingress];

    /// As names of chains and maps have it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Egress => NFT_EGRESS,
            Side::Ingress => NFT_INGRESS,
        }
    }

    /// The map of classes.
    pub fn classes(self) -> SetName {
        self.maps().classes
    }

    /// The map of words of one identity.
    pub fn words(self) -> SetName {
        self.maps().words
    }

    /// The map of words of anyone.
    pub fn any(self) -> SetName {
        self.maps().any
    }

    fn maps(self) -> &'static Maps {
        static MAPS: LazyLock<[Maps; 2]> = LazyLock::new(|| {
            Side::BOTH.map(|side| {
                let name = |end| SetName::from(format!("{NFT_POLICY_PREFIX}{}{end}", side.name()));
                Maps { classes: name(NFT_CLASSES_SUFFIX), words: name(NFT_WORDS_SUFFIX), any: name(NFT_ANY_SUFFIX) }
            })
        });
        &MAPS[self as usize]
    }
}

/// The map of ranges of a family.
pub fn ranges(nfproto: Nfproto) -> SetName {
    format!("{NFT_RANGES_MAP}{}", nfproto.suffix()).into()
}

// === impl Element ===

impl Element {
    /// None where it is no element of one of these maps, or the one that stands for all that have none.
    pub fn of(key: &Key) -> Option<Element> {
        if let Some(row) = Row::of(key) {
            return Some(Element::Row(row));
        }
        let Key::NftElement { set: map, key } = key else { return None };
        if let Some(side) = Side::BOTH.into_iter().find(|side| side.classes() == *map) {
            return Some(Element::Class { side, set: number_at(&key.bytes, 0)? });
        }
        let nfproto = Nfproto::BOTH.into_iter().find(|nfproto| map.ends_with(nfproto.suffix()))?;
        match map.strip_suffix(nfproto.suffix())? {
            NFT_SUBJECTS_MAP => Some(Element::Subject),
            NFT_ADDRESSES_MAP => address_in(&key.bytes).map(Element::Address),
            NFT_RANGES_MAP => Some(Element::Range(nfproto)),
            _ => None,
        }
    }
}

/// An element's object, which leads to this number.
pub fn leads_to(number: u32) -> Object {
    Object::NftElement(Fields::new().number(number).data())
}

/// The number that an element leads to.
pub fn led_to(object: &Object) -> Option<u32> {
    match object {
        Object::NftElement(ElementData(bytes)) => number_at(bytes, 0),
        _ => None,
    }
}

// === impl Row ===

impl Row {
    /// The row that an element is.
    pub fn of(key: &Key) -> Option<Row> {
        let Key::NftElement { set: map, key } = key else { return None };
        let side = Side::BOTH.into_iter().find(|side| [side.words(), side.any()].contains(map))?;
        let number = |at| number_at(&key.bytes, at * NUMBER);
        let (identity, class) = if *map == side.words() { (Some(number(1)?), number(2)?) } else { (None, number(1)?) };
        Some(Row { side, set: number(0)?, identity, class })
    }

    /// The element that it is.
    pub fn key(self) -> Key {
        let map = if self.identity.is_some() { self.side.words() } else { self.side.any() };
        Key::NftElement { set: map, key: begin(self.set, self.identity).number(self.class).key() }
    }
}

/// How keys begin: in each map of a side those of one set, in words those of one identity of it, too.
pub fn prefix(set: u32, identity: Option<u32>) -> Box<[u8]> {
    begin(set, identity).key().bytes
}

/// The key of packets of a set, by protocol and destination.
pub fn class_key(set: u32, protocol: u8, destination: u16) -> ElementKey {
    begin(set, None).proto(protocol).port(destination).key()
}

fn begin(set: u32, identity: Option<u32>) -> Fields {
    let of_set = Fields::new().number(set);
    identity.into_iter().fold(of_set, Fields::number)
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + NUMBER)?.try_into().ok()?))
}

fn address_in(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?));
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let check = |key: &Key, wanted: Option<Element>| assert_eq!(Element::of(key), wanted, "{key}");
        for (side, identity) in Side::BOTH.into_iter().flat_map(|side| [(side, None), (side, Some(77))]) {
            let row = Row { side, set: 2, identity, class: 9 };
            check(&row.key(), Some(Element::Row(row)));
            let Key::NftElement { key, .. } = row.key() else { panic!("{row:?}") };
            assert!(key.bytes.starts_with(&prefix(2, identity)) && key.bytes.starts_with(&prefix(2, None)));
        }
        let at = |map: &str, fields: Fields| Key::NftElement { set: map.into(), key: fields.key() };
        let class = Key::NftElement { set: "policy_ingress_classes".into(), key: class_key(2, 6, 80) };
        check(&class, Some(Element::Class { side: Side::Ingress, set: 2 }));
        for address in ["10.0.0.1", "fd00::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
            let nfproto = Nfproto::of(address);
            let of = |stem: &str| format!("{stem}{}", nfproto.suffix());
            let key = || Fields::new().addr(address);
            check(&at(&of("policy_addresses"), key()), Some(Element::Address(address)));
            check(&at(&of("policy_ranges"), key()), Some(Element::Range(nfproto)));
            assert_eq!(*ranges(nfproto), *of("policy_ranges"));
            check(&at(&of("policy_subjects"), Fields::new().ifname("ttp1").addr(address)), Some(Element::Subject));
            check(&at(&of("policy_sources"), Fields::new().ifname("ttp1").addr(address)), None);
        }
        for map in ["policy_egress_words", "policy_ingress_any", "policy_addresses4"] {
            check(&Key::NftElement { set: map.into(), key: ElementKey::catch_all() }, None);
        }
        check(&Key::NftSet { set: Side::Egress.words() }, None);
        assert_eq!(led_to(&leads_to(7)), Some(7));
    }
}
