//! What the network and the agent's socket may send. A stored input is a letter and what it is about: `q` and a question's
//! document, `r`, the size of packets in two bytes, and a row of them. Laws: nothing panics; what is joined and cut again is
//! what it was.

use crate::gro::Joined;
use crate::gso::{VNET, split};
use crate::{inner, wire};

fn check(bytes: &[u8]) -> String {
    match bytes {
        [b'q', document @ ..] => match serde_json::from_slice::<wire::Question>(document) {
            Ok(question) => format!("{:?}", question.ask),
            Err(error) => error.to_string(),
        },
        [b'r', a, b, row @ ..] => joined(usize::from(u16::from_be_bytes([*a, *b])).max(1), row),
        _ => "neither".into(),
    }
}

/// As a thread does that takes packets from peers.
fn joined(size: usize, row: &[u8]) -> String {
    let (mut came, mut went, mut large) = (Vec::new(), Vec::new(), 0);
    let mut joined = Joined::default();
    let mut write = |pieces: &[&[u8]]| {
        let vnet: &[u8; VNET] = pieces[0].try_into().unwrap();
        let mut packet = pieces[1..].concat();
        let mut cut: Vec<(Vec<u8>, std::ops::Range<usize>)> = Vec::new();
        assert!(split(vnet, &mut packet, |header, payload| cut.push((header.to_vec(), payload))));
        large += usize::from(cut.len() > 1);
        went.extend(cut.into_iter().map(|(header, payload)| [header, packet[payload].to_vec()].concat()));
    };
    for packet in row.chunks(size).filter(|packet| inner::addresses(packet).is_some()) {
        came.push(packet.to_vec());
        if !joined.take(packet) {
            joined.flush(&mut write);
            assert!(joined.take(packet));
        }
    }
    joined.flush(&mut write);
    assert_eq!(went, came);
    let kind = |packet: &Vec<u8>| format!("version {} protocol {:?}", packet[0] >> 4, packet.get(9));
    format!("{} packets, {large} joined, {}", came.len(), came.first().map(kind).unwrap_or_default())
}

#[test]
fn stored_inputs_of_the_engine_keep_the_laws() {
    let outcomes = tartan_fuzz::replay("engine", check);
    for part in
        ["3 packets, 1 joined, version 4", "3 packets, 1 joined, version 6", "1 packets, 0 joined", "Apply", "unknown"]
    {
        assert!(
            outcomes.iter().any(|(_, outcome)| outcome.contains(part)),
            "no stored input comes to {part:?}: {outcomes:#?}"
        );
    }
}

#[test]
#[ignore = "runs for a while: the group `fuzz`"]
fn made_inputs_of_the_engine_keep_the_laws() {
    tartan_fuzz::run("engine", check);
}
