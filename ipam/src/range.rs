//! Addresses as numbers, for both families: what lies in a range, and the first gap in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tartan_model::Family;

/// Numbers from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub first: u128,
    pub last: u128,
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address with that number.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => {
            Ipv4Addr::from_bits(u32::try_from(number).expect("numbers come from ranges of the family")).into()
        }
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// The aligned range of that prefix length that holds the number.
pub(crate) fn aligned(family: Family, number: u128, prefix: u8) -> IpNet {
    IpNet::new(address(family, number), prefix).expect("prefix lengths come from ranges of the family").trunc()
}

/// How many addresses a range of that prefix length has; the largest number for all of IPv6.
pub(crate) fn size(family: Family, prefix: u8) -> u128 {
    1_u128.checked_shl(u32::from(family.bits() - prefix)).unwrap_or(u128::MAX)
}

/// What is left of a range without parts of it, in aligned ranges.
pub(crate) fn remainder(range: IpNet, without: &[IpNet]) -> Vec<IpNet> {
    if without.iter().any(|part| part.contains(&range)) {
        return Vec::new();
    }
    if !without.iter().any(|part| range.contains(part)) {
        return vec![range];
    }
    let halves = range.subnets(range.prefix_len() + 1).expect("a range that holds a part is longer than one address");
    halves.flat_map(|half| remainder(half, without)).collect()
}

// === impl Span ===

impl Span {
    pub(crate) fn of(range: &IpNet) -> Span {
        Span { first: number(range.network()), last: number(range.broadcast()) }
    }

    pub(crate) fn one(address: IpAddr) -> Span {
        Span { first: number(address), last: number(address) }
    }

    /// How many numbers; the largest number for all of IPv6.
    pub(crate) fn len(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// What two spans have in common.
    pub(crate) fn and(self, other: Span) -> Option<Span> {
        let common = Span { first: self.first.max(other.first), last: self.last.min(other.last) };
        (common.first <= common.last).then_some(common)
    }
}

/// Sorted, disjoint and not adjacent.
pub(crate) fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged
}

/// The lowest number of the whole that no span holds. `spans` as [`merged`] gives them.
pub(crate) fn first_gap(whole: Span, spans: &[Span]) -> Option<u128> {
    let mut candidate = whole.first;
    for span in spans {
        if span.first > candidate {
            break;
        }
        if span.last >= candidate {
            candidate = span.last.checked_add(1)?;
        }
    }
    (candidate <= whole.last).then_some(candidate)
}
