//! The Internet checksum (RFC 1071).
//!
//! Sums are in the machine's byte order, which the ones' complement sum does not mind; [`fold`] makes the two bytes to store.

/// Adds bytes to a sum. Only the last part of a packet may have an odd length.
pub(crate) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut sum = sum;
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The sum of sixteen bits.
pub(crate) fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What a packet's own field holds: the complement of the sum over the rest.
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// The sum of what TCP and UDP cover beside themselves (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let length = (length as u32).to_be_bytes();
    add(add(add(0, addresses), &length), &[0, 0, 0, protocol])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 says it.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_rfc(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..50) {
            let fast = u16::from_be_bytes(fold(add(0, &bytes)).to_ne_bytes());
            prop_assert_eq!(fast % 0xffff, slow(&bytes) % 0xffff);
            let (a, b) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!(fold(add(add(0, a), b)) % 0xffff, fold(add(0, &bytes)) % 0xffff);
        }
    }
}
