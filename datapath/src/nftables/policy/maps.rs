//! Policy's sets and maps, and the elements of those that lead to a word: what those say is in [`tartan_netstate::policy`], what
//! a word says in [`Word`].
//!
//! ```text
//! word  ──pass, else reported, and final──► verdict
//! ```
//!
//! Invariant: a map that is asked without being known to have an answer has a catch-all element: without an answer a
//! rule ends, and the mark would stay as it is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tartan_model::Family;
use tartan_netstate::nft::{ElementData, ElementKey, Fields, Nfproto, Selector, Set, Type, Verdict};
use tartan_netstate::policy::{Row, Side, class_key, leads_to};
use tartan_netstate::{Key, Object, claims, epoch, stable_hash};
use tartan_policy::ir::protocol;
use tartan_policy::verdicts::{ANY, Class, Classes, Rows, Set as PolicySet, Word};
use tartan_policy::walk;

use super::Mode;
use super::chains::{DENIED, REJECTED};
use crate::nftables::{named, nfproto};

/// `ifname . addr` of each pod's link, or bridge, and address to its set.
pub(super) const SUBJECTS: &str = claims::NFT_SUBJECTS_MAP;
/// The same pairs: what pods may send under.
pub(super) const SOURCES: &str = "policy_sources";
/// Bridges with pods of the network before: pairs of their names, of what goes from port to port.
pub(super) const BRIDGES: &str = "policy_bridges";
/// A pod to itself, by way of a Service.
pub(super) const SELF: &str = "policy_self";
pub(super) const ADDRESSES: &str = claims::NFT_ADDRESSES_MAP;
pub(super) const RANGES: &str = claims::NFT_RANGES_MAP;
/// Whether a word lets a packet pass at once, or says nothing.
pub(super) const PASS: &str = "policy_pass";
/// Words by which a packet passes and is reported.
pub(super) const REPORTED: &str = "policy_reported";
/// What becomes of all other words.
pub(super) const FINAL: &str = "policy_final";
/// How many packets each word has decided.
pub(super) const JUDGED: &str = claims::NFT_JUDGED_SET;
pub(super) const GENERATION: &str = claims::NFT_GENERATION_SET;
pub(super) const EPOCH: &str = claims::NFT_EPOCH_MAP;
/// Messages of neighbour and group discovery that a pod may send: nobody forwards them.
pub(super) const DISCOVERY: &str = "policy_discovery";
const DISCOVERY_TYPES: [u8; 6] = [131, 132, 133, 135, 136, 143];

/// What a packet is to the pod that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) side: Side,
    /// It goes against the direction of its connection.
    pub(super) back: bool,
}

// === impl Way ===

impl Way {
    pub(super) const ALL: [Way; 4] = [
        Way { side: Side::Egress, back: false },
        Way { side: Side::Egress, back: true },
        Way { side: Side::Ingress, back: false },
        Way { side: Side::Ingress, back: true },
    ];

    /// The chain that judges it.
    pub(super) fn chain(self) -> String {
        format!("policy_{}{}", self.side.name(), if self.back { "_back" } else { "" })
    }

    /// The pod's link, its address and the other end's.
    pub(super) fn ends(self) -> [Selector; 3] {
        match (self.side == Side::Egress) != self.back {
            true => [Selector::Iifname, Selector::Saddr, Selector::Daddr],
            false => [Selector::Oifname, Selector::Daddr, Selector::Saddr],
        }
    }
}

/// All sets and maps, with those of their elements that never change.
pub(super) fn fixed(mode: Mode) -> Vec<(Key, Object)> {
    let mut all = Vec::new();
    let mut add = |name: &str, set: Set, elements: Vec<(ElementKey, Object)>| {
        all.push((Key::NftSet { set: name.into() }, Object::NftSet(set.into())));
        let element = |(key, object)| (Key::NftElement { set: name.into(), key }, object);
        all.extend(elements.into_iter().map(element));
    };
    let otherwise_none = || vec![(ElementKey::catch_all(), leads_to(0))];
    for family in Family::ALL {
        let addr = Type::addr(nfproto(family));
        add(&named(SUBJECTS, family), Set::map(&[Type::Ifname, addr], &[Type::Mark]), vec![]);
        add(&named(SOURCES, family), Set::exact(&[Type::Ifname, addr]), vec![]);
        add(&named(SELF, family), Set::exact(&[addr, addr]), vec![]);
        add(&named(ADDRESSES, family), Set::map(&[addr], &[Type::Mark]), otherwise_none());
        add(&named(RANGES, family), Set::interval_map(addr, &[Type::Mark]), vec![]);
    }
    add(BRIDGES, Set::exact(&[Type::Ifname, Type::Ifname]), vec![]);
    for side in Side::BOTH {
        let place = [Type::Mark, Type::Mark, Type::Mark];
        add(&side.classes(), Set::interval_map(Type::Integer(12), &[Type::Mark]), vec![]);
        add(&side.words(), Set::map(&place, &[Type::Mark]), otherwise_none());
        add(&side.any(), Set::map(&place[..2], &[Type::Mark]), otherwise_none());
    }
    let verdicts = |list: &[(u32, Verdict)]| {
        let element =
            |(bits, verdict): &(u32, Verdict)| (Fields::new().number(*bits).key(), Object::NftVerdict(verdict.clone()));
        list.iter().map(element).collect()
    };
    let allowed = Word::new(walk::Verdict::Allow, 0).0;
    add(PASS, Set::verdict_map(&[Type::Mark]), verdicts(&[(0, Verdict::Continue), (allowed, Verdict::Return)]));
    let finals = finals(mode);
    let passing: Vec<_> = finals.iter().filter(|(_, verdict)| *verdict == Verdict::Continue).cloned().collect();
    add(REPORTED, Set::verdict_map(&[Type::Mark]), verdicts(&passing));
    add(FINAL, Set::verdict_map(&[Type::Mark]), verdicts(&finals));
    let nothing = || Object::NftElement(ElementData::default());
    let discovery = DISCOVERY_TYPES.map(|kind| (Fields::new().proto(kind).key(), nothing()));
    add(DISCOVERY, Set::exact(&[Type::Icmpv6Type]), discovery.into());
    add(JUDGED, Set::counts(Type::Mark), vec![]);
    add(GENERATION, Set::exact(&[Type::Mark]), vec![]);
    add(EPOCH, Set::map(&[Type::Mark], &[Type::Mark]), vec![]);
    all.push(epoch::element());
    all
}

/// By the bits of words that say what to do, all of them. Those that go on pass.
fn finals(mode: Mode) -> Vec<(u32, Verdict)> {
    let becomes = |verdict| match (verdict, mode) {
        (walk::Verdict::Deny, Mode::Enforce) => Verdict::Goto(DENIED.into()),
        (walk::Verdict::Reject, Mode::Enforce) => Verdict::Goto(REJECTED.into()),
        _ => Verdict::Continue,
    };
    let of = |verdict| {
        let word = Word::new(verdict, 0).0;
        [word, word | Word::LOGGED].map(|bits| (bits, becomes(verdict)))
    };
    walk::Verdict::ALL.into_iter().flat_map(of).collect()
}

pub(super) fn rows(side: Side, set: &PolicySet) -> &Rows {
    match side {
        Side::Egress => &set.egress,
        Side::Ingress => &set.ingress,
    }
}

/// Where the identity of an address is.
pub(super) fn address(address: IpAddr) -> Key {
    Key::NftElement { set: named(ADDRESSES, Family::of(address)).into(), key: Fields::new().addr(address).key() }
}

/// Where the word of a class is, for an identity or [`ANY`]; of a class its number in the map.
pub(super) fn row(side: Side, set: u32, (identity, class): (u32, u32)) -> Key {
    Row { side, set, identity: (identity != ANY).then_some(identity), class }.key()
}

/// Places whose words may not be what they were.
pub(super) fn differing<'a>(before: &'a Rows, after: &'a Rows) -> impl Iterator<Item = (u32, Class)> + use<'a> {
    use imbl::ordmap::DiffItem::{Add, Remove, Update};
    let words = before.words.diff(&after.words).map(|item| match item {
        Add(place, _) | Remove(place, _) | Update { new: (place, _), .. } => *place,
    });
    let residual = before.residual.diff(&after.residual).map(|item| match item {
        Add(place, _) | Remove(place, _) | Update { new: (place, _), .. } => *place,
    });
    words.chain(residual)
}

/// The word at a place. What is asked of the packet itself is asked nowhere yet: where any answer denies, it is denied.
pub(super) fn word(rows: &Rows, place: (u32, Class)) -> Option<Word> {
    let word = rows.words.get(&place)?;
    let mut ways = rows.residual.get(&place).into_iter().flat_map(|list| list.iter()).map(|way| way.word);
    Some(ways.find(|way| !walk::passes(way.verdict())).unwrap_or(*word))
}

/// The numbers that classes have in the maps, by class: the number says which packets these are, so that it never comes to
/// stand for others. A packet may be judged while the kernel goes over from old classes to new ones.
pub(super) fn numbers(classes: &Classes) -> Vec<u32> {
    let mut packets = vec![String::new(); classes.count()];
    for cell in &classes.cells {
        packets[cell.class as usize] += &format!("{} {}-{} ", cell.protocol, cell.low, cell.high);
    }
    // What it stands for is all that no cell has.
    if let Some(others) = packets.get_mut(classes.other as usize) {
        classes.cells.iter().for_each(|cell| *others += &format!("not {} {}-{} ", cell.protocol, cell.low, cell.high));
    }
    let mut taken = BTreeSet::new();
    let number = |packets: &String| {
        // 0 is what the map says of packets that have no class.
        let mut number = stable_hash(packets) as u32 & !claims::NFT_BETWEEN;
        while number == 0 || !taken.insert(number) {
            number = (number + 1) & !claims::NFT_BETWEEN;
        }
        number
    };
    packets.iter().map(number).collect()
}

/// The class of every packet, as disjoint intervals of protocol and destination.
pub(super) fn classes(side: Side, set: u32, classes: &Classes) -> Vec<(Key, u32)> {
    let mut all = Vec::new();
    let numbers = numbers(classes);
    let mut add = |from: (u8, u16), to: (u8, u16), class: Class| {
        let of = |(protocol, destination)| class_key(set, protocol, destination);
        // What comes after the last key, though no packet has it: then two intervals never touch.
        let mut end = of(to);
        end.bytes[11] = 1;
        let key = ElementKey { end: Some(end.bytes), ..of(from) };
        all.push((Key::NftElement { set: side.classes(), key }, numbers[class as usize]));
    };
    if classes.count() == 0 {
        return all;
    }
    let mut next = Some(0_u8);
    for cells in classes.cells.chunk_by(|one, other| one.protocol == other.protocol) {
        let protocol = cells[0].protocol;
        if let Some(first) = next.filter(|first| *first < protocol) {
            add((first, 0), (protocol - 1, u16::MAX), classes.other);
        }
        cells.iter().for_each(|cell| add((protocol, cell.low), (protocol, cell.high), cell.class));
        next = protocol.checked_add(1);
    }
    if let Some(first) = next {
        add((first, 0), (u8::MAX, u16::MAX), classes.other);
    }
    all
}

/// The ICMP of a family.
pub(super) fn icmp(nfproto: Nfproto) -> u8 {
    match nfproto {
        Nfproto::Ipv4 => protocol::ICMP,
        Nfproto::Ipv6 => protocol::ICMPV6,
    }
}
