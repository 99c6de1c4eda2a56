//! Large packets of the kernel into those that the underlay carries (the kernel's Documentation/networking/
//! segmentation-offloads.rst), and their checksums, which the kernel leaves to whoever reads a TUN device.

use std::ops::Range;

use crate::checksum::{add, finish, pseudo};
use crate::inner::{self, TCP, UDP};

/// Bytes of a `virtio_net_hdr`, which stands before each packet of a TUN device.
pub(crate) const VNET: usize = 10;
/// Its flag: the checksum is that of the pseudo header only.
pub(crate) const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The connection takes part in ECN.
const GSO_ECN: u8 = 0x80;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Cuts what was read from a TUN device into packets: calls `emit` with each one's header and where in `packet` its payload
/// is. False if it is none that the kernel makes.
pub(crate) fn split(vnet: &[u8; VNET], packet: &mut [u8], mut emit: impl FnMut(&[u8], Range<usize>)) -> bool {
    let number = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
    let (gso_size, l4, offset) = (number(4), number(6), number(8));
    let whole = 0..packet.len();
    if vnet[1] == GSO_NONE {
        if vnet[0] & NEEDS_CSUM != 0 && !fill_in(packet, l4, offset) {
            return false;
        }
        emit(&[], whole);
        return true;
    }
    let (protocol, field) = match vnet[1] & !GSO_ECN {
        GSO_TCPV4 | GSO_TCPV6 => (TCP, 16),
        GSO_UDP_L4 => (UDP, 6),
        _ => return false,
    };
    let header_len = match protocol {
        TCP => l4 + packet.get(l4 + 12).map_or(0, |byte| usize::from(byte >> 4) * 4),
        _ => l4 + 8,
    };
    let least = l4 + if protocol == TCP { 20 } else { 8 };
    let ip_is_sound = match packet.first().map(|byte| (byte >> 4, usize::from(byte & 15) * 4)) {
        Some((4, ip_len)) => ip_len >= 20 && ip_len == l4,
        Some((6, _)) => l4 >= 40,
        _ => false,
    };
    if !ip_is_sound || header_len < least || header_len >= packet.len() || header_len > MAX_HEADER || gso_size == 0 {
        return false;
    }
    let mut header = [0; MAX_HEADER];
    let header = &mut header[..header_len];
    header.copy_from_slice(&packet[..header_len]);
    let (id, seq) = (u16::from_be_bytes([header[4], header[5]]), l4 + 4..l4 + 8);
    let first_seq =
        u32::from_be_bytes([header[seq.start], header[seq.start + 1], header[seq.start + 2], header[seq.start + 3]]);
    let flags = packet[header_len.min(l4 + 13)];
    for (index, start) in (header_len..packet.len()).step_by(gso_size).enumerate() {
        let payload = start..(start + gso_size).min(packet.len());
        if header[0] >> 4 == 4 {
            header[4..6].copy_from_slice(&id.wrapping_add(index as u16).to_be_bytes());
        }
        inner::set_length(header, header_len + payload.len());
        if protocol == TCP {
            let at = first_seq.wrapping_add((index * gso_size) as u32);
            header[seq.clone()].copy_from_slice(&at.to_be_bytes());
            let not_first = if index > 0 { CWR } else { 0 };
            let not_last = if payload.end < packet.len() { FIN_PSH } else { 0 };
            header[l4 + 13] = flags & !not_first & !not_last;
        } else {
            header[l4 + 4..l4 + 6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        }
        header[l4 + field..l4 + field + 2].fill(0);
        let covered = header_len - l4 + payload.len();
        let sum = add(pseudo(inner::address_bytes(header), protocol, covered), &header[l4..]);
        let sum = never_zero(finish(add(sum, &packet[payload.clone()])), protocol);
        header[l4 + field..l4 + field + 2].copy_from_slice(&sum);
        emit(header, payload);
    }
    true
}

/// The longest IPv4 header and the longest of TCP; of IPv6 with as much behind it.
pub(crate) const MAX_HEADER: usize = 160;

/// Completes a checksum that is that of the pseudo header only.
fn fill_in(packet: &mut [u8], l4: usize, offset: usize) -> bool {
    let field = l4 + offset..l4 + offset + 2;
    if field.end > packet.len() {
        return false;
    }
    let protocol = if offset == 6 { UDP } else { TCP };
    let sum = never_zero(finish(add(0, &packet[l4..])), protocol);
    packet[field].copy_from_slice(&sum);
    true
}

/// In UDP zero would say that there is no checksum (RFC 768).
fn never_zero(sum: [u8; 2], protocol: u8) -> [u8; 2] {
    if protocol == UDP && sum == [0, 0] { [0xff, 0xff] } else { sum }
}
