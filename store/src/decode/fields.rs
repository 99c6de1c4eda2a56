//! Values that several kinds have: ranges, addresses, words and bounded numbers.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::fault::{self, Fault};

/// A range in CIDR notation; one address stands for the range that holds only it.
pub(super) fn cidr(field: &str, text: &str) -> Result<IpNet, Fault> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        Fault::value(
            field,
            text,
            "not an address range",
            "write an address and a prefix length, e.g. 10.244.0.0/16 or fd00::/64",
        )
    })?;
    if net != net.trunc() {
        let wrong = format!("bits are set after the first {}", net.prefix_len());
        return Err(Fault::value(field, text, wrong, format!("write {}, if that is what is meant", net.trunc())));
    }
    Ok(net)
}

/// A list of ranges.
pub(super) fn cidrs(field: &str, texts: &[String]) -> Result<Vec<IpNet>, Fault> {
    texts.iter().enumerate().map(|(i, text)| cidr(&format!("{field}[{i}]"), text)).collect()
}

/// An address, without prefix length.
pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, Fault> {
    text.parse()
        .map_err(|_| Fault::value(field, text, "not an address", "write one address, e.g. 192.0.2.1 or 2001:db8::1"))
}

/// A list of addresses.
pub(super) fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, Fault> {
    texts.iter().enumerate().map(|(i, text)| address(&format!("{field}[{i}]"), text)).collect()
}

/// One of a few words.
pub(super) fn word<T: Copy>(field: &str, text: &str, words: &[(&'static str, T)]) -> Result<T, Fault> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let known = || words.iter().map(|(word, _)| *word);
        let fix = match fault::nearest(text, known()) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("write one of {}", known().collect::<Vec<_>>().join(", ")),
        };
        Fault::value(field, text, "unknown", fix)
    })
}

/// A number within bounds.
pub(super) fn number(field: &str, value: u32, bounds: RangeInclusive<u32>, unit: &str) -> Result<u32, Fault> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    let (low, high) = bounds.into_inner();
    Err(Fault::value(field, value, "out of bounds", format!("write a number from {low} to {high}{unit}")))
}
