//! Elements of sets and maps, as the bytes the kernel holds.
//!
//! Invariant: bytes are in network order; in a concatenation each component is padded to four bytes, a lone one is not.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// An element's encoded key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementKey {
    /// The key, or the start of an interval.
    pub bytes: Box<[u8]>,
    /// The first key after an interval; empty if it has no end, i.e. reaches up to the last possible key.
    /// None in a set that has no intervals.
    pub end: Option<Box<[u8]>>,
}

/// An element's data; empty in a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ElementData(pub Box<[u8]>);

/// Components of a key or of data, in order.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    last_len: usize,
}

// === impl Fields ===

impl Fields {
    /// Nothing yet.
    pub fn new() -> Fields {
        Fields::default()
    }

    /// Then an address.
    pub fn addr(self, address: IpAddr) -> Fields {
        match address {
            IpAddr::V4(v4) => self.push(&v4.octets()),
            IpAddr::V6(v6) => self.push(&v6.octets()),
        }
    }

    /// Then a layer-4 protocol number.
    pub fn proto(self, number: u8) -> Fields {
        self.push(&[number])
    }

    /// Then a number in the machine's order, as marks are.
    pub fn number(self, number: u32) -> Fields {
        self.push(&number.to_ne_bytes())
    }

    /// Then a device's name.
    pub fn ifname(self, name: &str) -> Fields {
        let mut padded = [0; 16];
        let len = name.len().min(padded.len() - 1);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.push(&padded)
    }

    /// Then a port.
    pub fn port(self, port: u16) -> Fields {
        self.push(&port.to_be_bytes())
    }

    /// As the key of an exact set or map.
    pub fn key(self) -> ElementKey {
        ElementKey { bytes: self.finish().into(), end: None }
    }

    /// The keys from this one on, as an interval, up to one that is not among them.
    pub fn key_up_to(self, end: Fields) -> ElementKey {
        ElementKey { bytes: self.finish().into(), end: Some(end.finish().into()) }
    }

    /// As the data of a map.
    pub fn data(self) -> ElementData {
        ElementData(self.finish().into())
    }

    fn push(mut self, component: &[u8]) -> Fields {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend_from_slice(component);
        self.last_len = component.len();
        self
    }

    fn finish(mut self) -> Vec<u8> {
        if self.bytes.len() > self.last_len {
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
        self.bytes
    }
}

// === impl ElementKey ===

impl ElementKey {
    /// Stands for all keys that no other element is about.
    pub fn catch_all() -> ElementKey {
        ElementKey { bytes: Box::default(), end: None }
    }

    /// See [`ElementKey::catch_all`].
    pub fn is_catch_all(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All addresses of a prefix, as an interval.
    pub fn prefix(net: IpNet) -> ElementKey {
        let first = octets(net.network());
        let mut end = octets(net.broadcast());
        for byte in end.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return ElementKey { bytes: first.into(), end: Some(end.into()) };
            }
        }
        ElementKey { bytes: first.into(), end: Some(Box::default()) }
    }
}

/// An address in network order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        if self.is_catch_all() {
            return f.write_str("*");
        }
        hex(f, &self.bytes)?;
        match &self.end {
            None => Ok(()),
            Some(end) => {
                f.write_str("-")?;
                hex(f, end)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_pad_concatenations_only() {
        let check = |fields: Fields, wanted: &[u8]| assert_eq!(*fields.key().bytes, *wanted);
        check(Fields::new().port(80), &[0, 80]);
        check(Fields::new().proto(6).port(80), &[6, 0, 0, 0, 0, 80, 0, 0]);
        check(Fields::new().addr([10, 0, 0, 1].into()).port(443), &[10, 0, 0, 1, 1, 187, 0, 0]);
        check(Fields::new().addr([10, 0, 0, 1].into()), &[10, 0, 0, 1]);
    }

    #[test]
    fn prefixes_are_half_open_intervals() {
        let check = |net: &str, wanted: &str| {
            assert_eq!(ElementKey::prefix(net.parse().unwrap()).to_string(), wanted, "{net}");
        };
        check("10.0.0.0/8", "0a000000-0b000000");
        check("10.1.2.3/32", "0a010203-0a010204");
        check("10.0.255.0/24", "0a00ff00-0a010000");
        check("0.0.0.0/0", "00000000-");
        check("255.0.0.0/8", "ff000000-");
        check("fd00::/64", "fd000000000000000000000000000000-fd000000000000010000000000000000");
        check("10.9.8.7/8", "0a000000-0b000000");
    }
}
