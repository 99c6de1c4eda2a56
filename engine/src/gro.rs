//! Packets of one TCP stream into one large packet for the kernel, which is what makes user space fast: one write, and one
//! walk through the kernel, for tens of packets.
//!
//! Invariant: what comes out, cut again by [`crate::gso::split`], is what went in, byte for byte. Only packets with a right
//! checksum are joined, because the kernel does not look at that of a large one.

use crate::checksum::{add, fold, pseudo};
use crate::gso::{GSO_TCPV4, GSO_TCPV6, MAX_HEADER, NEEDS_CSUM, VNET};
use crate::inner::{self, TCP};

/// Packets in a large one.
const MOST: usize = 64;
/// Bytes of a large one.
const LARGEST: usize = 65_000;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Packets of a stream that follow each other, as long as they do.
#[derive(Default)]
pub(crate) struct Joined<'a> {
    /// The first, whole.
    first: &'a [u8],
    l4: usize,
    header_len: usize,
    /// Of the first, and so of all but the last.
    size: usize,
    next_seq: u32,
    bytes: usize,
    pushed: bool,
    /// A shorter one, or one with PSH, is the last.
    full: bool,
    /// Payloads after the first's.
    rest: Vec<&'a [u8]>,
}

impl<'a> Joined<'a> {
    /// Takes a packet that [`inner::addresses`] takes, if it goes with those that are there already.
    pub(crate) fn take(&mut self, packet: &'a [u8]) -> bool {
        if self.first.is_empty() {
            *self = Joined { first: packet, rest: std::mem::take(&mut self.rest), full: true, ..Joined::default() };
            if let Some((l4, header_len)) = stream(packet) {
                (self.l4, self.header_len, self.size) = (l4, header_len, packet.len() - header_len);
                (self.bytes, self.pushed) = (packet.len(), packet[l4 + 13] & PSH != 0);
                (self.full, self.next_seq) = (self.pushed, seq(packet, l4).wrapping_add(self.size as u32));
            }
            return true;
        }
        if self.full || !self.continues(packet) {
            return false;
        }
        let payload = &packet[self.header_len..];
        self.pushed = packet[self.l4 + 13] & PSH != 0;
        self.full = self.pushed || payload.len() < self.size || self.rest.len() + 2 >= MOST;
        self.next_seq = self.next_seq.wrapping_add(payload.len() as u32);
        self.bytes += payload.len();
        self.rest.push(payload);
        true
    }

    /// Takes a packet, after it has given what is there to `write` if that does not go with it.
    pub(crate) fn put(&mut self, packet: &'a [u8], write: impl FnMut(&[&[u8]])) {
        if !self.take(packet) {
            self.flush(write);
            self.take(packet);
        }
    }

    fn continues(&self, packet: &[u8]) -> bool {
        let (first, l4) = (self.first, self.l4);
        if stream(packet) != Some((l4, self.header_len)) || seq(packet, l4) != self.next_seq {
            return false;
        }
        let payload = packet.len() - self.header_len;
        if payload > self.size || self.bytes + payload > LARGEST {
            return false;
        }
        let same = |range: std::ops::Range<usize>| first[range.clone()] == packet[range];
        let same_ip = if l4 == 20 {
            same(0..2) && same(6..10) && same(12..20) && follows(first, packet, self.rest.len() + 1)
        } else {
            same(0..4) && same(6..40)
        };
        same_ip
            && same(l4..l4 + 4)
            && same(l4 + 8..l4 + 13)
            && first[l4 + 13] & !PSH == packet[l4 + 13] & !PSH
            && same(l4 + 14..l4 + 16)
            && same(l4 + 18..self.header_len)
    }

    /// Gives what is there to `write`, in pieces, and has nothing then.
    pub(crate) fn flush(&mut self, mut write: impl FnMut(&[&[u8]])) {
        let first = std::mem::take(&mut self.first);
        if first.is_empty() {
            return;
        }
        if self.rest.is_empty() {
            write(&[&[0; VNET], first]);
            return;
        }
        let mut header = [0; MAX_HEADER];
        let header = &mut header[..self.header_len];
        header.copy_from_slice(&first[..self.header_len]);
        inner::set_length(header, self.bytes);
        header[self.l4 + 13] |= if self.pushed { PSH } else { 0 };
        let sum = fold(pseudo(inner::address_bytes(header), TCP, self.bytes - self.l4));
        header[self.l4 + 16..self.l4 + 18].copy_from_slice(&sum.to_ne_bytes());
        let mut vnet = [NEEDS_CSUM, if self.l4 == 20 { GSO_TCPV4 } else { GSO_TCPV6 }, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, number) in [(2, self.header_len), (4, self.size), (6, self.l4), (8, 16)] {
            vnet[at..at + 2].copy_from_slice(&(number as u16).to_ne_bytes());
        }
        let before = [&vnet[..], &*header, &first[self.header_len..]];
        write(&before.into_iter().chain(self.rest.iter().copied()).collect::<Vec<_>>());
        self.rest.clear();
    }
}

/// Where TCP and its payload begin, in a packet that others may be joined to: it has a payload, says nothing but ACK and PSH,
/// and its checksum is right.
fn stream(packet: &[u8]) -> Option<(usize, usize)> {
    let (l4, header_len) = inner::tcp(packet)?;
    let flags = packet[l4 + 13];
    let plain = flags & !PSH == ACK && flags & FIN == 0 && header_len < packet.len();
    let sum = || add(pseudo(inner::address_bytes(packet), TCP, packet.len() - l4), &packet[l4..]);
    let ip_is_right = || l4 == 40 || fold(add(0, &packet[..20])) == 0xffff;
    (plain && ip_is_right() && fold(sum()) == 0xffff).then_some((l4, header_len))
}

fn seq(packet: &[u8], l4: usize) -> u32 {
    u32::from_be_bytes([packet[l4 + 4], packet[l4 + 5], packet[l4 + 6], packet[l4 + 7]])
}

/// Whether an IPv4 packet's identification is that of the `nth` after the first: what it would get again.
fn follows(first: &[u8], packet: &[u8], nth: usize) -> bool {
    let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    id(packet) == id(first).wrapping_add(nth as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gso::split;

    /// A large packet as the kernel gives it to us.
    fn large(v6: bool, options: usize, gso: usize, payload: &[u8], flags: u8) -> ([u8; VNET], Vec<u8>) {
        let (l4, tcp) = (if v6 { 40 } else { 20 }, 20 + 4 * options);
        let mut packet = vec![0; l4 + tcp];
        if v6 {
            (packet[0], packet[6], packet[7], packet[23], packet[39]) = (0x60, TCP, 64, 1, 2);
        } else {
            packet[..20]
                .copy_from_slice(&[0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        packet[l4..l4 + 8].copy_from_slice(&[1, 2, 3, 4, 0xff, 0xff, 0xff, 0]);
        (packet[l4 + 12], packet[l4 + 13]) = (((tcp / 4) as u8) << 4, flags);
        packet[l4 + 20..].fill(1);
        packet.extend(payload);
        let length = packet.len();
        inner::set_length(&mut packet, length);
        let sum = fold(pseudo(inner::address_bytes(&packet), TCP, length - l4));
        packet[l4 + 16..l4 + 18].copy_from_slice(&sum.to_ne_bytes());
        let mut vnet = [NEEDS_CSUM, if v6 { GSO_TCPV6 } else { GSO_TCPV4 }, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, number) in [(2, l4 + tcp), (4, gso), (6, l4), (8, 16)] {
            vnet[at..at + 2].copy_from_slice(&(number as u16).to_ne_bytes());
        }
        (vnet, packet)
    }

    fn cut(vnet: &[u8; VNET], packet: &[u8]) -> Vec<Vec<u8>> {
        let mut copy = packet.to_vec();
        let mut packets: Vec<(Vec<u8>, std::ops::Range<usize>)> = Vec::new();
        assert!(split(vnet, &mut copy, |header, payload| packets.push((header.to_vec(), payload))));
        packets.into_iter().map(|(header, payload)| [header, copy[payload].to_vec()].concat()).collect()
    }

    fn join(packets: &[Vec<u8>]) -> Vec<([u8; VNET], Vec<u8>)> {
        let (mut out, mut joined) = (Vec::new(), Joined::default());
        let mut write = |pieces: &[&[u8]]| out.push((pieces[0].try_into().unwrap(), pieces[1..].concat()));
        for packet in packets {
            if !joined.take(packet) {
                joined.flush(&mut write);
                assert!(joined.take(packet));
            }
        }
        joined.flush(&mut write);
        out
    }

    proptest! {
        #[test]
        fn what_is_joined_and_cut_again_is_what_it_was(
            v6 in any::<bool>(), options in 0usize..11, gso in 1usize..60,
            payload in prop::collection::vec(any::<u8>(), 1..600), psh in any::<bool>(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..)),
        ) {
            let (vnet, packet) = large(v6, options, gso, &payload, ACK | if psh { PSH } else { 0 });
            let mut packets = cut(&vnet, &packet);
            prop_assert_eq!(packets.len(), payload.len().div_ceil(gso));
            for packet in &packets {
                let (l4, _) = inner::tcp(packet).unwrap();
                prop_assert_eq!(fold(add(pseudo(inner::address_bytes(packet), TCP, packet.len() - l4), &packet[l4..])), 0xffff);
            }
            if damage.is_none() && packets.len() > 1 && packets.len() <= MOST {
                prop_assert_eq!(join(&packets), vec![(vnet, packet)]);
            }
            if let Some((which, at, bits)) = damage {
                let packet = which.get(&packets).len();
                let index = which.index(packets.len());
                packets[index][at.index(packet)] ^= bits;
            }
            // Those that are no packets any more never get so far.
            packets.retain(|packet| inner::addresses(packet).is_some());
            let again: Vec<Vec<u8>> = join(&packets).iter().flat_map(|(vnet, packet)| cut(vnet, packet)).collect();
            prop_assert_eq!(again, packets);
        }

        #[test]
        fn no_header_makes_it_panic(vnet in any::<[u8; VNET]>(), packet in prop::collection::vec(any::<u8>(), 1..200)) {
            split(&vnet, &mut packet.clone(), |_, payload| assert!(payload.end <= packet.len()));
        }
    }
}
