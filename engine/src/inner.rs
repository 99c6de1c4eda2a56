//! Packets inside: what an engine looks at of IPv4 (RFC 791), IPv6 (RFC 8200) and TCP (RFC 9293).
//!
//! Invariant: every range here was checked against the packet's length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Source and destination of a whole packet: as long as its header says, no more and no less.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let header_len = usize::from(header[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header_len < 20 || header_len > total || total != packet.len() {
                return None;
            }
            let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
            Some((address(12).into(), address(16).into()))
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            if 40 + usize::from(u16::from_be_bytes([header[4], header[5]])) != packet.len() {
                return None;
            }
            let address = |at: usize| -> Option<Ipv6Addr> { Some(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)) };
            Some((address(8)?.into(), address(24)?.into()))
        }
        _ => None,
    }
}

/// Both addresses, as the checksums of TCP and UDP cover them.
pub(crate) fn address_bytes(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] }
}

/// Writes the length of a packet whose header this is, and the checksum of that header where it has one.
pub(crate) fn set_length(header: &mut [u8], length: usize) {
    if header[0] >> 4 == 4 {
        let header_len = usize::from(header[0] & 15) * 4;
        header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        header[10..12].fill(0);
        let sum = crate::checksum::finish(crate::checksum::add(0, &header[..header_len]));
        header[10..12].copy_from_slice(&sum);
    } else {
        header[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
}

/// Where TCP begins, and its payload, in a packet that [`addresses`] takes: no fragment, no options or extension headers.
pub(crate) fn tcp(packet: &[u8]) -> Option<(usize, usize)> {
    let l4 = match packet[0] >> 4 {
        // More fragments, or not the first.
        4 if packet[6] & 0x3f != 0 || packet[7] != 0 => return None,
        4 if packet[0] & 15 == 5 && packet[9] == TCP => 20,
        6 if packet[6] == TCP => 40,
        _ => return None,
    };
    let payload = l4 + usize::from(packet.get(l4 + 12)? >> 4) * 4;
    (payload >= l4 + 20 && payload <= packet.len()).then_some((l4, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_packets_have_addresses() {
        let mut v4 = vec![0; 28];
        v4[..20].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut v6 = vec![0; 48];
        (v6[0], v6[5], v6[23], v6[39]) = (0x60, 8, 1, 2);
        let check = |packet: &[u8], wanted: Option<(&str, &str)>| {
            let wanted = wanted.map(|(src, dst)| (src.parse().unwrap(), dst.parse().unwrap()));
            assert_eq!(addresses(packet), wanted, "{packet:?}");
        };
        check(&v4, Some(("10.0.0.1", "10.0.0.2")));
        check(&v6, Some(("::1", "::2")));
        for packet in [&v4, &v6] {
            (0..packet.len()).for_each(|len| check(&packet[..len], None));
            check(&[packet.as_slice(), &[0]].concat(), None);
        }
        for ihl in [0x40, 0x44, 0x4f] {
            v4[0] = ihl;
            check(&v4, None);
        }
        check(&[0x50; 60], None);
    }
}
