//! Spans of packets: protocol, and destinations from one to another, that several lists of rules treat alike.
//!
//! Invariant: spans of one list are in order, do not overlap, and together are all packets.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::protocol;
use crate::verdicts::Classes;
use crate::walk::Packet;
use crate::words;

/// Packets of one protocol with destinations from `low` to `high`; without a protocol, of all that have no span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    protocol: Option<u8>,
    low: u16,
    high: u16,
    /// The protocol of its sample.
    sample: u8,
}

/// The largest spans of which each is in one class of each list.
pub(crate) fn common(lists: &[&Classes]) -> Vec<Span> {
    let mut cuts: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
    for cell in lists.iter().flat_map(|classes| &classes.cells) {
        let starts = cuts.entry(cell.protocol).or_default();
        starts.extend([0, u32::from(cell.low), u32::from(cell.high) + 1]);
    }
    let free = (0..=u8::MAX).rev().find(|number| !cuts.contains_key(number)).unwrap_or(u8::MAX);
    let mut spans = Vec::new();
    for (protocol, starts) in cuts {
        let starts: Vec<u32> = starts.into_iter().filter(|start| *start <= u32::from(u16::MAX)).collect();
        let ends = starts.iter().skip(1).map(|start| start - 1).chain([u32::from(u16::MAX)]);
        let number = |at: u32| u16::try_from(at).expect("cuts are made within a protocol");
        spans.extend(starts.iter().zip(ends).map(|(low, high)| Span {
            protocol: Some(protocol),
            low: number(*low),
            high: number(high),
            sample: protocol,
        }));
    }
    spans.push(Span { protocol: None, low: 0, high: u16::MAX, sample: free });
    spans
}

/// In words, e.g. `tcp 80,443; all but tcp,udp`; `all` is every span of the list.
pub(crate) fn words(spans: &[Span], all: &[Span]) -> String {
    if spans == all {
        return "everything".into();
    }
    let of = |protocol: Option<u8>| spans.iter().filter(move |span| span.protocol == protocol);
    let protocols: BTreeSet<u8> = spans.iter().filter_map(|span| span.protocol).collect();
    let mut parts: Vec<String> = protocols.into_iter().map(|number| one_protocol(number, of(Some(number)))).collect();
    if of(None).next().is_some() {
        let named: BTreeSet<u8> = all.iter().filter_map(|span| span.protocol).collect();
        let named: Vec<String> = named.into_iter().map(words::protocol).collect();
        parts.push(format!("all but {}", named.join(",")));
    }
    parts.join("; ")
}

fn one_protocol<'a>(number: u8, spans: impl Iterator<Item = &'a Span>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for span in spans {
        match ranges.last_mut() {
            Some((_, high)) if high.checked_add(1) == Some(span.low) => *high = span.high,
            _ => ranges.push((span.low, span.high)),
        }
    }
    let name = words::protocol(number);
    let end = |at: u16| {
        let [kind, code] = at.to_be_bytes();
        if protocol::is_icmp(number) { format!("{kind}/{code}") } else { at.to_string() }
    };
    let range =
        |(low, high): &(u16, u16)| if low == high { end(*low) } else { format!("{}-{}", end(*low), end(*high)) };
    match ranges.as_slice() {
        [(0, u16::MAX)] => name,
        ranges => format!("{name} {}", ranges.iter().map(range).collect::<Vec<_>>().join(",")),
    }
}

// === impl Span ===

impl Span {
    /// One of its packets.
    pub(crate) fn packet(&self) -> Packet {
        Packet { protocol: self.sample, source_port: 0, destination: self.low }
    }
}
