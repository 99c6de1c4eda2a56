//! A packet's lookups in policy's maps, one after the other, as the chains make them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use tartan_netstate::nft::ElementData;
use tartan_netstate::{Key, Object, State};

type Bytes = Box<[u8]>;

/// What one map holds: by key, or by the first key of an interval with the one after its last.
type Map = BTreeMap<Bytes, (Option<Bytes>, u32)>;

/// All maps at one time.
#[derive(Clone)]
pub(crate) struct Lookups {
    maps: BTreeMap<Arc<str>, Map>,
    /// The number of the state.
    pub(crate) epoch: usize,
}

/// What the kernel goes over to while a packet is judged: after so many of its lookups.
pub(crate) struct Change<'a> {
    pub(crate) exact: [&'a Lookups; 2],
    pub(crate) intervals: [&'a Lookups; 2],
    pub(crate) after: usize,
}

/// Whose row a rule asks for: of what is listed, or of what is around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Listed,
    Around,
}

/// What a rule decides by.
#[derive(Clone, Copy)]
enum Decides {
    /// Its own word, or, without one, anyone's; if it simply passes.
    Passing,
    Own,
    /// If there is none of its own.
    Anyones,
}

/// The rules of a chain that judges, without those that only report. (`datapath/src/nftables/policy/judge.rs`)
const RULES: [(Whose, Decides); 10] = [
    (Whose::Listed, Decides::Passing),
    (Whose::Around, Decides::Passing),
    (Whose::Listed, Decides::Own),
    (Whose::Listed, Decides::Anyones),
    (Whose::Around, Decides::Own),
    (Whose::Around, Decides::Anyones),
    (Whose::Listed, Decides::Own),
    (Whose::Listed, Decides::Anyones),
    (Whose::Around, Decides::Own),
    (Whose::Around, Decides::Anyones),
];
/// How many lookups it takes at most until the first half of them is through.
pub(crate) const LOOKUPS: usize = 40;

/// A packet that one pod's policies judge.
pub(crate) struct Packet {
    maps: Names,
    /// Link and address.
    subject: Bytes,
    remote: Bytes,
    /// Protocol and destination.
    l4: Bytes,
}

/// The maps that are looked into.
#[derive(Clone, Copy)]
struct Names {
    addresses: &'static str,
    ranges: &'static str,
    subjects: &'static str,
    classes: &'static str,
    words: &'static str,
    any: &'static str,
}

const EGRESS4: Names = Names {
    addresses: "policy_addresses4",
    ranges: "policy_ranges4",
    subjects: "policy_subjects4",
    classes: "policy_egress_classes",
    words: "policy_egress_words",
    any: "policy_egress_any",
};
const EGRESS6: Names =
    Names { addresses: "policy_addresses6", ranges: "policy_ranges6", subjects: "policy_subjects6", ..EGRESS4 };
const INGRESS4: Names =
    Names { classes: "policy_ingress_classes", words: "policy_ingress_words", any: "policy_ingress_any", ..EGRESS4 };
const INGRESS6: Names = Names { classes: INGRESS4.classes, words: INGRESS4.words, any: INGRESS4.any, ..EGRESS6 };

/// Addresses that nobody has, or hardly anybody.
const OTHERS: [[&[u8]; 3]; 2] = [
    [&[10, 0, 0, 200], &[203, 0, 113, 9], &[198, 51, 100, 1]],
    [
        &[0xfd, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff],
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
        &[0x20, 2, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
];

/// One for each way in which maps tell packets apart, before or after.
pub(crate) fn packets(before: &Lookups, after: &Lookups) -> Vec<Packet> {
    let mut packets = Vec::new();
    for (both, others) in [[EGRESS4, INGRESS4], [EGRESS6, INGRESS6]].into_iter().zip(OTHERS) {
        let keys = |map: &str| -> BTreeSet<Bytes> {
            [before, after].into_iter().flat_map(|maps| maps.map(map)).map(|(key, _)| key.clone()).collect()
        };
        let mut remotes = &keys(both[0].addresses) | &keys(both[0].ranges);
        remotes.extend(others.iter().map(|other| (*other).into()));
        remotes.retain(|remote| !remote.is_empty());
        for subject in keys(both[0].subjects) {
            for maps in both {
                let l4 = |lookups: &&Lookups| lookups.l4(maps, &subject);
                let l4: BTreeSet<Bytes> = [before, after].iter().flat_map(l4).collect();
                let pairs = remotes.iter().flat_map(|remote| l4.iter().map(move |l4| (remote.clone(), l4.clone())));
                packets.extend(pairs.map(|(remote, l4)| Packet { maps, subject: subject.clone(), remote, l4 }));
            }
        }
    }
    packets
}

// === impl Lookups ===

impl Lookups {
    pub(crate) fn of(state: &State) -> Lookups {
        let mut maps: BTreeMap<Arc<str>, Map> = BTreeMap::new();
        for (key, entry) in state.iter() {
            if let (Key::NftElement { set, key }, Object::NftElement(ElementData(data))) = (key, &entry.object)
                && let Ok(number) = <[u8; 4]>::try_from(&**data)
            {
                let there = (key.end.clone(), u32::from_ne_bytes(number));
                maps.entry(Arc::from(&**set)).or_default().insert(key.bytes.clone(), there);
            }
        }
        Lookups { maps, epoch: 0 }
    }

    /// Whether it passes, if what is looked up in intervals comes from others.
    pub(crate) fn judge(&self, intervals: &Lookups, packet: &Packet) -> bool {
        passes(self.word(intervals, packet).unwrap_or(0))
    }

    /// What is found, to be printed.
    pub(crate) fn found(&self, intervals: &Lookups, packet: &Packet) -> String {
        let Packet { maps, subject, remote, .. } = packet;
        let (listed, around) = (self.get(maps.addresses, remote), intervals.around(maps.ranges, remote));
        let class = self.class(intervals, packet);
        let (set, word) = (self.get(maps.subjects, subject), self.word(intervals, packet));
        format!("listed {listed:x?}, around {around:x?}, set {set:x?}, class {class:x?}, word {word:x?}")
    }

    fn word(&self, intervals: &Lookups, packet: &Packet) -> Option<u32> {
        let Packet { maps, subject, remote, .. } = packet;
        let identity = self.get(maps.addresses, remote).or_else(|| intervals.around(maps.ranges, remote))?;
        let set = self.get(maps.subjects, subject)?.to_ne_bytes();
        let class = self.class(intervals, packet)?.to_ne_bytes();
        let own = self.get(maps.words, &[set, identity.to_ne_bytes(), class].concat());
        own.or_else(|| self.get(maps.any, &[set, class].concat()))
    }

    fn class(&self, intervals: &Lookups, Packet { maps, subject, l4, .. }: &Packet) -> Option<u32> {
        let set = self.get(maps.subjects, subject)?;
        intervals.around(maps.classes, &[&set.to_ne_bytes(), &**l4].concat())
    }

    /// What the classes of a subject's set tell apart.
    fn l4(&self, maps: Names, subject: &[u8]) -> Vec<Bytes> {
        let Some(set) = self.get(maps.subjects, subject) else { return Vec::new() };
        let of_set = self.map(maps.classes).filter(|(key, _)| key.starts_with(&set.to_ne_bytes()));
        of_set.map(|(key, _)| key[4..].into()).collect()
    }

    fn map<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a Bytes, &'a (Option<Bytes>, u32))> + use<'a> {
        self.maps.get(name).into_iter().flatten()
    }

    fn get(&self, map: &str, key: &[u8]) -> Option<u32> {
        self.maps.get(map)?.get(key).map(|(_, number)| *number)
    }

    fn around(&self, map: &str, key: &[u8]) -> Option<u32> {
        let (_, (end, number)) =
            self.maps.get(map)?.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let end = end.as_ref()?;
        (end.is_empty() || *key < **end).then_some(*number)
    }
}

fn passes(word: u32) -> bool {
    matches!(word >> 24 & 0x3f, 1 | 4)
}

// === impl Change ===

impl Change<'_> {
    /// Whether it passes; what no rule decides does not.
    pub(crate) fn judge(&self, packet: &Packet) -> bool {
        let made = Cell::new(0);
        RULES.iter().find_map(|rule| self.decide(packet, *rule, &made)).is_some_and(passes)
    }

    /// The word, if this rule is the one that decides. `made`: lookups before it.
    fn decide(&self, packet: &Packet, (whose, decides): (Whose, Decides), made: &Cell<usize>) -> Option<u32> {
        let Packet { maps, subject, remote, l4 } = packet;
        let next = || usize::from(made.replace(made.get() + 1) >= self.after);
        let state = self.exact[next()].epoch;
        let listed = self.exact[next()].get(maps.addresses, remote);
        let identity = match whose {
            Whose::Listed => listed?,
            Whose::Around if listed.is_some() => return None,
            Whose::Around => self.intervals[next()].around(maps.ranges, remote)?,
        };
        let set = self.exact[next()].get(maps.subjects, subject)?.to_ne_bytes();
        let class = self.intervals[next()].around(maps.classes, &[&set, &**l4].concat())?.to_ne_bytes();
        let own = self.exact[next()].get(maps.words, &[set, identity.to_ne_bytes(), class].concat());
        let any = || self.exact[next()].get(maps.any, &[set, class].concat());
        let word = match decides {
            Decides::Own => own,
            Decides::Passing => [own, any()].into_iter().flatten().next().filter(|word| word >> 24 & 0x3f == 1),
            Decides::Anyones => any().filter(|_| own.is_none()),
        };
        word.filter(|_| self.exact[next()].epoch == state)
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { maps, subject, remote, l4 } = self;
        write!(f, "{}, pod {:?}, other end {remote:?}, protocol and port {l4:?},", maps.words, &subject[16..])
    }
}
