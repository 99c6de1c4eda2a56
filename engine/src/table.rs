//! Whose addresses are whose: the longest prefix, by one search in sorted places where the answer changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    pub(crate) address: IpAddr,
    /// Where it was before. Its kernel goes on sending from there for a while, whatever it has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<IpAddr>,
    /// And until when it may; counted anew by a program that goes on.
    #[serde(skip, default = "leave")]
    until: Instant,
}

/// So long, which is longer than a node counts as alive that says nothing: whoever has the address then is somebody else.
const LEAVE: Duration = Duration::from_secs(60);

fn leave() -> Instant {
    Instant::now() + LEAVE
}

/// Ranges and who has them.
pub(crate) type Remotes = BTreeMap<IpNet, Remote>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<T> {
    v4: Vec<(u128, Option<T>)>,
    v6: Vec<(u128, Option<T>)>,
}

impl Remote {
    /// One at this address, in place of the one before.
    pub(crate) fn at(address: IpAddr, before: Option<Remote>) -> Remote {
        Remote { address, previous: before.map(|before| before.address), until: leave() }
    }

    /// Whether a packet of its ranges may come from this underlay address.
    pub(crate) fn may_send_from(&self, address: IpAddr, now: impl FnOnce() -> Instant) -> bool {
        self.address == address || self.previous == Some(address) && now() < self.until
    }
}

impl<T: Clone> Table<T> {
    pub(crate) fn of(owners: &BTreeMap<IpNet, T>) -> Table<T> {
        let of_family = |v4: bool| {
            let nets = owners.iter().filter(move |(net, _)| net.addr().is_ipv4() == v4);
            changes(nets.map(|(net, owner)| (number(net.network()), number(net.broadcast()), owner.clone())).collect())
        };
        Table { v4: of_family(true), v6: of_family(false) }
    }

    pub(crate) fn get(&self, address: IpAddr) -> Option<&T> {
        let changes = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let number = number(address);
        let after = changes.partition_point(|(first, _)| *first <= number);
        changes[..after].last()?.1.as_ref()
    }
}

/// From which address on the answer is what. Ranges are equal, apart, or one is within the other.
fn changes<T: Clone>(mut ranges: Vec<(u128, u128, T)>) -> Vec<(u128, Option<T>)> {
    ranges.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
    let mut changes = Vec::with_capacity(2 * ranges.len());
    let mut around: Vec<(u128, T)> = Vec::new();
    let leave = |around: &mut Vec<(u128, T)>, changes: &mut Vec<(u128, Option<T>)>| {
        let next = around.pop().and_then(|(last, _)| last.checked_add(1));
        changes.extend(next.map(|next| (next, around.last().map(|(_, owner)| owner.clone()))));
    };
    for (first, last, owner) in ranges {
        while around.last().is_some_and(|(end, _)| *end < first) {
            leave(&mut around, &mut changes);
        }
        changes.push((first, Some(owner.clone())));
        around.push((last, owner));
    }
    while !around.is_empty() {
        leave(&mut around, &mut changes);
    }
    changes
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(remotes: &Remotes, address: IpAddr) -> Option<Remote> {
        let around = remotes.iter().filter(|(net, _)| net.contains(&address));
        around.max_by_key(|(net, _)| net.prefix_len()).map(|(_, remote)| *remote)
    }

    fn address(v6: bool, low: u32) -> IpAddr {
        // Few bits, so that ranges meet; the ends of the space among them.
        let spread = (low & 0xf) << 28 | (low >> 4 & 0xff);
        let v4 = IpAddr::V4(spread.into());
        let wide = (u128::from(low & 0xf) << 124) | u128::from(low >> 4 & 0xff);
        if v6 { IpAddr::V6(wide.into()) } else { v4 }
    }

    #[test]
    fn who_had_a_range_before_may_send_for_a_while() {
        let [first, second, other] = [1, 2, 3].map(|low| address(true, low << 4));
        let remote = Remote::at(second, Some(Remote::at(first, None)));
        let stored: Remote = serde_json::from_slice(&serde_json::to_vec(&remote).unwrap()).unwrap();
        for remote in [remote, stored] {
            let may = |from, secs| remote.may_send_from(from, || Instant::now() + Duration::from_secs(secs));
            assert_eq!(
                [first, second, other].map(|from| (may(from, 50), may(from, 70))),
                [(true, false), (true, true), (false, false)]
            );
        }
        assert!(!Remote::at(second, None).may_send_from(first, Instant::now));
    }

    proptest! {
        #[test]
        fn the_longest_prefix_has_it(
            nets in prop::collection::vec((any::<bool>(), any::<u32>(), 0u8..129), 0..20),
            asked in prop::collection::vec((any::<bool>(), any::<u32>()), 1..40),
        ) {
            let net = |(n, (v6, low, len)): (usize, &(bool, u32, u8))| {
                let len = if *v6 { *len } else { len % 33 };
                let remote = Remote::at(address(false, n as u32), None);
                (IpNet::new(address(*v6, *low), len).unwrap().trunc(), remote)
            };
            let remotes: Remotes = nets.iter().enumerate().map(net).collect();
            let table = Table::of(&remotes);
            for (v6, low) in asked {
                for address in [address(v6, low), if v6 { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" } else { "255.255.255.255" }.parse().unwrap()] {
                    prop_assert_eq!(table.get(address).copied(), slow(&remotes, address), "{}", address);
                }
            }
        }
    }
}
