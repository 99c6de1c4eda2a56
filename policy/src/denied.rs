//! A packet that a datapath reports, as a user reads it: whose it was, and the line that decided.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use tartan_api::explain as api;
use tartan_model::World;

use crate::ends;
use crate::ir::RuleRef;
use crate::verdicts::Word;
use crate::walk::Packet;
use crate::words;

/// `word` is what the datapath acted by; `rules` are those that words number now.
pub fn denied(
    world: &World,
    rules: &OrdMap<u32, Arc<RuleRef>>,
    word: Word,
    (source, destination): (IpAddr, IpAddr),
    packet: &Packet,
) -> api::Denied {
    let end = |address: IpAddr| {
        let named = ends::at(world, address);
        api::End { name: named.name, address: address.to_string(), notes: named.notes }
    };
    let rule = rules.get(&word.rule());
    api::Denied {
        from: end(source),
        to: end(destination),
        packet: words::packet(packet),
        verdict: words::verdict(word.verdict()),
        object: rule.map(|rule| rule.source.to_string()).unwrap_or_default(),
        field: rule.map(|rule| rule.path.to_string()).unwrap_or_default(),
        lost: 0,
    }
}
