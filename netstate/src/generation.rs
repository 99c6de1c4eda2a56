//! Generations of policy: the number under which a connection was judged, and what of it the connection carries.
//!
//! The rules compare a connection's stamp with a constant of theirs; the whole number is the one element of a set, where
//! whoever starts anew finds it. There are fewer stamps than numbers, so that they come round: numbers with the same
//! stamps are of different eras, and before an era begins connections lose the stamps that it will have.
//!
//! Neighbouring eras share no stamp: one has half of them, the next the other half. So there is an era's time for taking
//! away what is stamped with those of the one before, while nobody waits for it.
//!
//! Invariant: within two eras no two generations have the same stamp, and none has that of a connection never judged.

use crate::claims::{CT_MARK_BOTH_ENDS, CT_MARK_GENERATION, NFT_GENERATION_SET};
use crate::nft::{ElementKey, Fields};
use crate::{Key, Op, Step};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// The stamps of every second era.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stamps {
    /// Those of the first era, of number 0.
    Lower,
    /// Those of the second.
    Upper,
}

/// An era that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// Those of its generations.
    pub stamps: Stamps,
    /// It follows one that had the others.
    pub in_turn: bool,
}

/// How many generations an era has: half of the stamps there are besides 0.
const ERA: u32 = (CT_MARK_GENERATION >> CT_MARK_GENERATION.trailing_zeros()) / 2;

// === impl Generation ===

impl Generation {
    /// What connections carry that one pod of this node has judged under it, among the bits of [`CT_MARK_GENERATION`].
    pub fn stamp(self) -> u32 {
        (1 + self.0 % (2 * ERA)) << CT_MARK_GENERATION.trailing_zeros()
    }

    /// What they carry that two pods have, one at each end.
    pub fn stamp_of_both(self) -> u32 {
        self.stamp() | CT_MARK_BOTH_ENDS
    }

    fn era(self) -> u32 {
        self.0 / ERA
    }

    /// The one after it, whose stamp is not that of `other` either: of one that rules may still be of.
    pub fn next(self, other: Option<Generation>) -> Generation {
        let next = Generation(self.0.wrapping_add(1));
        if other.is_some_and(|other| other.stamp() == next.stamp()) { next.next(None) } else { next }
    }

    /// The element that tells it.
    pub fn key(self) -> Key {
        Key::NftElement { set: NFT_GENERATION_SET.into(), key: Fields::new().number(self.0).key() }
    }

    /// The generation that an element tells.
    pub fn of(key: &Key) -> Option<Generation> {
        match key {
            Key::NftElement { set, key: ElementKey { bytes, end: None } } if **set == *NFT_GENERATION_SET => {
                Some(Generation(u32::from_ne_bytes((**bytes).try_into().ok()?)))
            }
            _ => None,
        }
    }

    fn stamps(self) -> Stamps {
        if self.0 % (2 * ERA) < ERA { Stamps::Lower } else { Stamps::Upper }
    }
}

// === impl Stamps ===

impl Stamps {
    /// Whose stamp a connection with this mark carries.
    pub fn on(mark: u32) -> Option<Stamps> {
        let stamp = (mark & CT_MARK_GENERATION) >> CT_MARK_GENERATION.trailing_zeros();
        Some(Generation(stamp.checked_sub(1)?).stamps())
    }

    /// Those that these are not.
    pub fn others(self) -> Stamps {
        match self {
            Stamps::Lower => Stamps::Upper,
            Stamps::Upper => Stamps::Lower,
        }
    }
}

// === impl Era ===

impl Era {
    /// The one that these steps begin: then no connection may carry any of its stamps.
    pub fn begun_by<'a>(steps: impl Iterator<Item = &'a Step>) -> Option<Era> {
        let (mut before, mut after) = (None, None);
        for step in steps {
            match step.op() {
                Op::Create(key, _) => after = Generation::of(key).or(after),
                Op::Delete(key, _) => before = Generation::of(key).or(before),
                Op::Replace { .. } => {}
            }
        }
        let (before, after): (Option<Generation>, Generation) = (before, after?);
        let begins = before.is_none_or(|before| before.era() != after.era());
        let in_turn = before.is_some_and(|before| before.stamps() != after.stamps());
        begins.then_some(Era { stamps: after.stamps(), in_turn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;
    use crate::Owner;
    use crate::claims::CT_MARK_JUDGED;
    use crate::nft::ElementData;

    #[test]
    fn stamps_are_our_bits_and_differ_within_two_eras() {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..2 * ERA {
            let stamp = Generation(number).stamp();
            assert!(stamp != 0 && stamp & !CT_MARK_GENERATION == 0 && seen.insert(stamp), "{number}: {stamp:x}");
            assert_eq!(Generation(number + 2 * ERA).stamp(), stamp);
            assert_eq!(Generation::of(&Generation(number).key()), Some(Generation(number)));
            let stamps = if number < ERA { Stamps::Lower } else { Stamps::Upper };
            for mark in [Generation(number).stamp(), Generation(number).stamp_of_both() | !CT_MARK_JUDGED] {
                assert_eq!(Stamps::on(mark), Some(stamps), "{number}");
            }
        }
    }

    #[test]
    fn the_next_one_has_another_stamp() {
        let check = |now: u32, other: Option<u32>, wanted: u32| {
            assert_eq!(Generation(now).next(other.map(Generation)), Generation(wanted), "{now} {other:?}");
        };
        check(7, None, 8);
        check(7, Some(7), 8);
        check(7 + 2 * ERA, Some(8), 9 + 2 * ERA);
        check(u32::MAX, None, 0);
    }

    #[test]
    fn an_era_begins_with_a_first_generation_and_when_stamps_come_round() {
        let check = |before: Option<u32>, after: Option<u32>, wanted: Option<Era>| {
            let object = || Object::NftElement(ElementData::default());
            let gone = before.map(|number| Step::delete(Generation(number).key(), object(), Owner::Policy));
            let made = after.map(|number| Step::create(Generation(number).key(), object(), Owner::Policy));
            assert_eq!(Era::begun_by(gone.iter().chain(&made)), wanted, "{before:?} {after:?}");
        };
        let begins = |stamps, in_turn| Some(Era { stamps, in_turn });
        check(None, None, None);
        check(None, Some(7), begins(Stamps::Lower, false));
        check(Some(7), None, None);
        check(Some(7), Some(8), None);
        check(Some(ERA - 1), Some(ERA), begins(Stamps::Upper, true));
        check(Some(2 * ERA - 1), Some(2 * ERA), begins(Stamps::Lower, true));
        check(Some(3), Some(3 + 2 * ERA), begins(Stamps::Lower, false));
        check(Some(u32::MAX), Some(0), begins(Stamps::Lower, false));
    }
}
