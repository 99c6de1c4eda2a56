//! Nested ranges as disjoint intervals: the kernel's tree holds no others.
//!
//! Invariant: an address is in the interval of the smallest range around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::Key;
use tartan_netstate::nft::{ElementKey, Fields, SetName};

use super::maps::RANGES;
use crate::nftables::named;

/// A range: first and last address, and what it is mapped to.
type Piece = (u128, u128, u32);

/// The ranges of a family, as elements.
pub(super) fn disjoint(ranges: &OrdMap<IpNet, u32>, family: Family) -> Vec<(Key, u32)> {
    let of_family = ranges.iter().filter(|(range, _)| Family::of_net(range) == family);
    let mut pieces: Vec<Piece> =
        of_family.map(|(range, number)| (bits(range.network()), bits(range.broadcast()), *number)).collect();
    // Those around others come before them.
    pieces.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
    let set: SetName = named(RANGES, family).into();
    let element = |(first, last, number): Piece| {
        let end = last.checked_add(1).filter(|end| family == Family::V6 || *end <= u128::from(u32::MAX));
        let bytes = |at| Fields::new().addr(address(at, family)).key().bytes;
        let key = ElementKey { bytes: bytes(first), end: Some(end.map(bytes).unwrap_or_default()) };
        (Key::NftElement { set, key }, number)
    };
    cut(pieces).into_iter().map(element).collect()
}

/// Cuts what is inside another range out of it.
fn cut(nested: Vec<Piece>) -> Vec<Piece> {
    let mut cut: Vec<Piece> = Vec::new();
    let mut around: Vec<Piece> = Vec::new();
    // None: there is no address after the last one.
    let mut next = Some(0);
    let mut add = |first: u128, last: u128, number: u32| match cut.last_mut() {
        Some(before) if before.2 == number && before.1.checked_add(1) == Some(first) => before.1 = last,
        _ => cut.push((first, last, number)),
    };
    for piece in nested {
        while let Some((_, last, number)) = around.pop_if(|(_, last, _)| *last < piece.0) {
            next.filter(|next| *next <= last).into_iter().for_each(|next| add(next, last, number));
            next = last.checked_add(1).max(next);
        }
        if let (Some((_, _, number)), Some(first)) = (around.last(), next)
            && first < piece.0
        {
            add(first, piece.0 - 1, *number);
        }
        next = Some(piece.0);
        around.push(piece);
    }
    while let Some((_, last, number)) = around.pop() {
        let Some(first) = next else { break };
        if first <= last {
            add(first, last, number);
            next = last.checked_add(1);
        }
    }
    cut
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(bits: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits).expect("an IPv4 address has 32 bits")).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}
