//! Two and more ends with a wire between them that a test can cut, turn around and read.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// What stands in every packet, and never on the wire.
const CLEAR: &[u8] = b"what nobody else is to read";

struct End {
    at: SocketAddr,
    identity: Arc<Identity>,
    peers: BTreeMap<PublicKey, wire::Peer>,
    allowed: BTreeMap<IpNet, PublicKey>,
    tunnel: Tunnel,
    /// Of the engine that is to be next, while it makes sessions,
    next: Option<Tunnel>,
    /// and of the one before, when that does not send any more.
    before: Option<Tunnel>,
}

/// A message on its way.
#[derive(Clone)]
struct Message {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Field {
    ends: Vec<End>,
    wire: VecDeque<Message>,
}

fn at(number: u8) -> SocketAddr {
    match number % 2 {
        0 => ([192, 0, 2, number], 51820).into(),
        _ => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()), 51821).into(),
    }
}

/// A pod's of that end.
fn pod(of: usize, v6: bool) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(10, 0, of as u8, 7).into(),
        true => Ipv6Addr::new(0xfd00, of as u16, 0, 0, 0, 0, 0, 7).into(),
    }
}

fn nets(of: usize) -> [IpNet; 2] {
    [format!("10.0.{of}.0/24"), format!("fd00:{of:x}::/32")].map(|net| net.parse().unwrap())
}

fn packet(src: IpAddr, dst: IpAddr, length: usize) -> Vec<u8> {
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 99, 0, 0];
            header.extend(src.octets().into_iter().chain(dst.octets()));
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 99, 64];
            header.extend(src.octets().into_iter().chain(dst.octets()));
            header
        }
        _ => panic!("one family"),
    };
    packet.extend(CLEAR.iter().cycle().take(length.max(CLEAR.len())));
    let total = packet.len();
    inner::set_length(&mut packet, total);
    packet
}

impl Field {
    /// That many ends, each a peer of all others.
    fn of(count: usize) -> Field {
        Field::with_psks(&vec![None; count])
    }

    /// Each with that of a secret.
    fn with_psks(psks: &[Option<u8>]) -> Field {
        let (mut field, count) = (Field::default(), psks.len());
        for (number, psk) in psks.iter().enumerate() {
            let identity = Identity::new([number as u8 + 1; 32].into(), psk.map(|byte| [byte; 32]));
            let identity = Arc::new(identity.unwrap());
            let (tunnel, _) = Tunnel::new(identity.clone(), None, &BTreeMap::new(), &BTreeMap::new());
            let at = at(number as u8);
            let (peers, allowed) = (BTreeMap::new(), BTreeMap::new());
            field.ends.push(End { at, identity, peers, allowed, tunnel, next: None, before: None });
        }
        for end in 0..count {
            for other in (0..count).filter(|other| *other != end) {
                let (key, endpoint) = (field.key(other), field.ends[other].at);
                field.ends[end].peers.insert(key, wire::Peer { endpoint, keepalive: 25 });
                field.ends[end].allowed.extend(nets(other).map(|net| (net, key)));
            }
            field.tell(end);
        }
        field
    }

    fn key(&self, of: usize) -> PublicKey {
        PublicKey(self.ends[of].identity.public.to_bytes())
    }

    /// Has an end's tunnel take what is in `peers` and `allowed`; who is new is greeted.
    fn tell(&mut self, end: usize) {
        let End { at, identity, peers, allowed, tunnel, .. } = &mut self.ends[end];
        let (now, new) = Tunnel::new(identity.clone(), Some(tunnel), peers, allowed);
        *tunnel = now;
        for peer in new {
            peer.greet(&mut |to, bytes| self.wire.push_back(Message { from: *at, to, bytes: bytes.to_vec() }));
        }
    }

    /// Encrypts at an end, if it knows to whom.
    fn seal(&mut self, end: usize, packet: &[u8]) -> bool {
        let End { at, tunnel, .. } = &self.ends[end];
        let (_, dst) = inner::addresses(packet).unwrap();
        let Some(peer) = tunnel.owner(dst) else { return false };
        let mut bytes = Vec::new();
        if let Some(to) = peer.seal(&mut packet.to_vec(), &mut bytes) {
            self.wire.push_back(Message { from: *at, to, bytes });
        }
        true
    }

    /// What an end makes of a message: a packet, maybe. Answers are on the wire.
    fn deliver(&mut self, message: &Message) -> Option<Vec<u8>> {
        let clear = message.bytes.windows(CLEAR.len()).any(|window| window == CLEAR);
        assert!(!clear, "the wire tells");
        let End { at, tunnel, next, before, .. } = self.ends.iter().find(|end| end.at == message.to)?;
        let mut plain = b"before".to_vec();
        let mut answer = |to, bytes: &[u8]| self.wire.push_back(Message { from: *at, to, bytes: bytes.to_vec() });
        let mut take = |tunnel: &Tunnel| tunnel.take(message.from, &message.bytes, &mut plain, &mut answer);
        let first = if is_greeting(&message.bytes) { next.as_ref() } else { None };
        let taken = match (take(first.unwrap_or(tunnel)), next.as_ref().or(before.as_ref())) {
            (Taken::NotOurs, Some(other)) => take(other),
            (taken, _) => taken,
        };
        assert!(plain.starts_with(b"before"));
        match taken {
            Taken::Packet(range) => Some(plain[range].to_vec()),
            Taken::Nothing | Taken::NotOurs => {
                assert_eq!(plain, b"before");
                None
            }
        }
    }

    /// An end gets an engine that is to be next, which greets its peers.
    fn begin_to_give_way(&mut self, end: usize) {
        let End { at, identity, peers, allowed, next, .. } = &mut self.ends[end];
        let (tunnel, new) = Tunnel::new(identity.clone(), None, peers, allowed);
        *next = Some(tunnel);
        for peer in new {
            peer.greet(&mut |to, bytes| self.wire.push_back(Message { from: *at, to, bytes: bytes.to_vec() }));
        }
    }

    /// From here on it sends, and tells its peers.
    fn next_sends(&mut self, end: usize) {
        let End { at, tunnel, next, before, .. } = &mut self.ends[end];
        let Some(sends) = next.take() else { return };
        for peer in sends.peers.values() {
            peer.confirm(&mut |to, bytes| self.wire.push_back(Message { from: *at, to, bytes: bytes.to_vec() }));
        }
        *before = Some(std::mem::replace(tunnel, sends));
    }

    /// Delivers until nothing is on its way, but for what is `lost`; what came out, in order.
    fn run(&mut self, mut lost: impl FnMut(&Message) -> bool) -> Vec<Vec<u8>> {
        let mut came = Vec::new();
        while let Some(message) = self.wire.pop_front() {
            if !lost(&message) {
                came.extend(self.deliver(&message));
            }
        }
        came
    }

    /// Sends a packet of each family from one end to the other, and says whether both came as they were.
    fn carries(&mut self, from: usize, to: usize) -> bool {
        let packets = [false, true].map(|v6| packet(pod(from, v6), pod(to, v6), 100));
        packets.iter().all(|packet| self.seal(from, packet)) && self.run(|_| false) == packets
    }

    fn standing(&self, end: usize, peer: usize) -> Standing {
        self.ends[end].tunnel.peers[&self.key(peer)].standing()
    }
}

fn kind(of: u8) -> impl Fn(&Message) -> bool {
    move |message| message.bytes[0] == of
}

#[test]
fn ends_that_know_each_other_carry_packets_of_every_size() {
    let mut field = Field::of(3);
    assert!(field.run(|_| false).is_empty());
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 0), (0, 2)] {
        let is = field.standing(from, to);
        assert!(is.met && is.age.is_some() && field.carries(from, to), "{from} to {to}");
    }
    for length in (0..3000).step_by(7).chain([65_000]) {
        for v6 in [false, true] {
            let packet = packet(pod(0, v6), pod(1, v6), length);
            assert!(field.seal(0, &packet));
            let wire = field.wire[0].bytes.len();
            assert!(wire - OVERHEAD >= packet.len() && wire - OVERHEAD - packet.len() < PADDING);
            assert!(packet.len() > PADDED || wire.is_multiple_of(PADDING), "lengths tell: {wire}");
            assert!(packet.len() <= PADDED || wire == packet.len() + OVERHEAD, "longer than a device may send");
            assert_eq!(field.run(|_| false), [packet]);
        }
    }
}

#[test]
fn what_is_sent_before_a_handshake_waits_for_it() {
    let mut field = Field::of(2);
    // Neither has heard the other yet.
    field.wire.clear();
    let packets: Vec<Vec<u8>> = (0..20).map(|n| packet(pod(0, n % 2 == 0), pod(1, n % 2 == 0), 40 * n)).collect();
    for packet in &packets {
        assert!(field.seal(0, packet));
    }
    assert!(field.wire.is_empty(), "a handshake is under way, and is not begun again for each packet");
    let mut began = Vec::new();
    field.ends[0].tunnel.peers[&field.key(1)].greet(&mut |_, bytes| began.push(bytes.to_vec()));
    let [from, to] = [0, 1].map(|end| field.ends[end].at);
    field.wire.push_back(Message { from, to, bytes: began.remove(0) });
    assert_eq!(field.run(|_| false), packets);
    assert!(field.carries(1, 0));
}

#[test]
fn whatever_message_of_a_handshake_is_lost_the_next_handshake_makes_it_good() {
    for lost in [1, RESPONSE, DATA] {
        let mut field = Field::of(2);
        field.run(kind(lost));
        assert!(lost == DATA || !(field.standing(0, 1).met || field.standing(1, 0).met));
        let (from, to, mut began) = (field.ends[0].at, field.ends[1].at, Vec::new());
        field.ends[0].tunnel.peers[&field.key(1)].greet(&mut |_, bytes| began.push(bytes.to_vec()));
        field.wire.push_back(Message { from, to, bytes: began.remove(0) });
        field.run(|_| false);
        assert!(field.carries(0, 1) && field.carries(1, 0), "after a message of kind {lost} was lost");
    }
}

#[test]
fn packets_that_are_lost_or_come_in_another_order_do_not_harm_others() {
    let mut field = Field::of(2);
    field.run(|_| false);
    let packets: Vec<Vec<u8>> = (0..900).map(|n| packet(pod(0, false), pod(1, false), n)).collect();
    packets.iter().for_each(|packet| assert!(field.seal(0, packet)));
    let messages: Vec<Message> = field.wire.drain(..).collect();
    let come: Vec<usize> = (0..900).rev().filter(|n| n % 3 > 0).collect();
    for n in &come {
        assert_eq!(field.deliver(&messages[*n]).as_ref(), Some(&packets[*n]));
    }
    // Once, and not twice.
    assert!(come.iter().all(|n| field.deliver(&messages[*n]).is_none()));
    assert!(field.carries(0, 1));
}

#[test]
fn what_was_heard_before_is_not_heard_again() {
    let mut field = Field::of(2);
    let first: Vec<Message> = field.wire.iter().cloned().collect();
    field.run(|_| false);
    let (a, before) = (field.ends[0].at, field.ends[1].tunnel.peers[&field.key(0)].standing().endpoint);
    assert_eq!(a, before);
    let b = field.ends[1].at;
    for message in first.iter().filter(|message| message.to == b) {
        let elsewhere = Message { from: at(77), ..message.clone() };
        assert!(field.deliver(&elsewhere).is_none() && field.wire.is_empty());
    }
    assert_eq!(field.standing(1, 0).endpoint, a);
    assert!(field.carries(0, 1) && field.carries(1, 0));
}

#[test]
fn who_floods_with_handshakes_has_to_show_where_it_is() {
    let mut field = Field::of(2);
    let greeting = field.wire.iter().find(|message| message.to == field.ends[1].at).cloned().unwrap();
    field.run(|_| false);
    let flood = Message { from: at(77), ..greeting };
    let cookies = (0..100).filter(|_| {
        field.deliver(&flood);
        let answer = field.wire.pop_front();
        assert!(field.wire.is_empty());
        answer.is_some_and(|answer| answer.bytes[0] == COOKIE && answer.to == at(77))
    });
    assert!(cookies.count() > 50);
    assert!(field.standing(1, 0).endpoint == field.ends[0].at && field.carries(1, 0));
}

#[test]
fn strangers_and_wrong_keys_are_not_heard() {
    let mut field = Field::of(3);
    let [b, c] = [1, 2].map(|end| field.key(end));
    // c is no peer of a's; b is known to c under a key that is not b's.
    field.ends[0].peers.remove(&c);
    field.ends[0].allowed.retain(|_, of| *of == b);
    field.tell(0);
    let wrong = PublicKey([9; 32]);
    let told = field.ends[2].peers.remove(&b).unwrap();
    field.ends[2].peers.insert(wrong, told);
    field.ends[2].allowed.values_mut().filter(|of| **of == b).for_each(|of| *of = wrong);
    field.tell(2);
    field.wire.clear();
    for end in 0..3 {
        let mut began = Vec::new();
        let peers: Vec<Arc<Peer>> = field.ends[end].tunnel.peers.values().cloned().collect();
        peers.iter().for_each(|peer| peer.greet(&mut |to, bytes| began.push((to, bytes.to_vec()))));
        let from = field.ends[end].at;
        field.wire.extend(began.into_iter().map(|(to, bytes)| Message { from, to, bytes }));
    }
    field.run(|_| false);
    assert!(field.carries(0, 1) && field.carries(1, 0));
    for (from, to) in [(2, 0), (2, 1), (1, 2)] {
        assert!(!field.carries(from, to), "{from} to {to}");
    }
    assert!(!field.standing(1, 2).met);
}

#[test]
fn nobody_speaks_for_another_peers_pods() {
    let mut field = Field::of(3);
    field.run(|_| false);
    let [b, c] = [1, 2].map(|end| field.key(end));
    let spoofed = packet(pod(1, false), pod(0, false), 10);
    assert!(field.seal(2, &spoofed) && field.run(|_| false).is_empty());
    // What is whose can change, and a longer prefix has it.
    field.ends[0].allowed.insert("10.0.1.7/32".parse().unwrap(), c);
    field.tell(0);
    assert!(field.seal(2, &spoofed));
    assert_eq!(field.run(|_| false), vec![spoofed.clone()]);
    assert!(field.seal(1, &spoofed) && field.run(|_| false).is_empty());
    field.ends[0].allowed.insert("10.0.1.7/32".parse().unwrap(), b);
    field.tell(0);
    assert!(field.carries(1, 0));
    // Nobody's: neither taken nor sent.
    field.ends[0].allowed.clear();
    field.tell(0);
    assert!(!field.carries(1, 0) && !field.carries(0, 1));
}

#[test]
fn a_peer_is_followed_by_what_it_has_signed_alone() {
    let mut field = Field::of(2);
    field.run(|_| false);
    let (known, roams) = (field.ends[1].at, at(99));
    let reaches = packet(pod(1, false), pod(0, false), 30);
    assert!(field.seal(1, &reaches));
    let message = field.wire.pop_front().unwrap();
    let mut forged = Message { from: at(66), ..message.clone() };
    *forged.bytes.last_mut().unwrap() ^= 1;
    assert!(field.deliver(&forged).is_none() && field.standing(0, 1).endpoint == known);
    assert_eq!(field.deliver(&Message { from: roams, ..message }), Some(reaches));
    field.ends[1].at = roams;
    assert!(field.carries(0, 1));
    // It stays where it was heard last, until something else is told than was told before.
    field.tell(0);
    assert_eq!(field.standing(0, 1).endpoint, roams);
    let key = field.key(1);
    field.ends[0].peers.get_mut(&key).unwrap().endpoint = known;
    field.tell(0);
    assert_eq!(field.standing(0, 1).endpoint, roams);
    field.ends[0].peers.get_mut(&key).unwrap().endpoint = at(42);
    field.ends[1].at = at(42);
    field.tell(0);
    assert!(field.wire.is_empty() && field.carries(0, 1), "sessions go on");
}

#[test]
fn peers_come_and_go_and_the_others_go_on() {
    let mut field = Field::of(3);
    field.run(|_| false);
    let b = field.key(1);
    let (told, had) = (field.ends[0].peers.remove(&b).unwrap(), field.ends[0].allowed.clone());
    field.ends[0].allowed.retain(|_, of| *of != b);
    field.tell(0);
    assert!(!field.carries(0, 1) && !field.carries(1, 0));
    assert!(field.wire.is_empty() && field.carries(0, 2) && field.carries(2, 0));
    field.ends[0].peers.insert(b, told);
    field.ends[0].allowed = had;
    field.tell(0);
    field.run(|_| false);
    assert!(field.carries(0, 1) && field.carries(1, 0));
}

#[test]
fn an_end_that_lost_its_sessions_makes_new_ones_at_once() {
    let mut field = Field::of(2);
    field.run(|_| false);
    assert!(field.carries(0, 1));
    let End { identity, peers, allowed, .. } = &field.ends[0];
    let (tunnel, new) = Tunnel::new(identity.clone(), None, peers, allowed);
    // What comes under the old ones meanwhile is lost.
    let under_old = packet(pod(1, true), pod(0, true), 9);
    field.ends[0].tunnel = tunnel;
    assert!(field.seal(1, &under_old) && field.run(|_| false).is_empty());
    let (from, to) = (field.ends[0].at, field.ends[1].at);
    new.iter().for_each(|peer| {
        peer.greet(&mut |_, bytes| field.wire.push_back(Message { from, to, bytes: bytes.to_vec() }));
    });
    field.run(|_| false);
    assert!(field.carries(1, 0) && field.carries(0, 1));
}

/// An engine gives way to another one in between packets of both directions, with one message after the other lost, and at both ends
/// at once or not.
#[test]
fn an_engine_that_gives_way_loses_nothing() {
    for (both, lost) in [(false, 0), (false, DATA), (true, 0), (true, RESPONSE), (true, DATA)] {
        let mut field = Field::of(2);
        field.run(|_| false);
        let ends = if both { vec![0, 1] } else { vec![0] };
        let packets = [(0, 1), (1, 0)].map(|(from, to)| packet(pod(from, true), pod(to, true), 77));
        let under_way = |field: &mut Field| (0..2).for_each(|end| assert!(field.seal(end, &packets[end])));
        let all_came = |field: &mut Field, times: usize, lost: &mut dyn FnMut(&Message) -> bool| {
            let came = field.run(lost);
            assert_eq!(came.len(), 2 * times, "{both}");
            assert!(came.iter().all(|packet| packets.contains(packet)));
        };
        under_way(&mut field);
        ends.iter().for_each(|end| field.begin_to_give_way(*end));
        under_way(&mut field);
        // What is lost is what the next ones say, not what carries packets.
        let mut loses =
            |message: &Message| message.bytes[0] == lost && message.bytes.len() < 80 + OVERHEAD && lost != 0;
        all_came(&mut field, 2, &mut loses);
        under_way(&mut field);
        if lost == RESPONSE {
            ends.iter().for_each(|end| {
                let End { at, next, .. } = &field.ends[*end];
                for peer in next.iter().flat_map(|next| next.peers.values()) {
                    peer.greet(&mut |to, bytes| {
                        field.wire.push_back(Message { from: *at, to, bytes: bytes.to_vec() });
                    });
                }
            });
        }
        all_came(&mut field, 1, &mut |_| false);
        ends.iter().for_each(|end| field.next_sends(*end));
        under_way(&mut field);
        all_came(&mut field, 1, &mut |_| false);
        ends.iter().for_each(|end| field.ends[*end].before = None);
        assert!(field.carries(0, 1) && field.carries(1, 0), "{both} {lost}");
    }
}

#[test]
fn only_who_has_the_same_of_the_secret_is_understood() {
    for (psks, carries) in [([Some(1), Some(1)], true), ([Some(1), Some(2)], false), ([Some(1), None], false)] {
        let mut field = Field::with_psks(&psks);
        field.run(|_| false);
        assert_eq!(field.carries(0, 1), carries, "{psks:?}");
    }
}

#[test]
fn only_a_file_with_the_right_key_will_do() {
    let path = std::env::temp_dir().join(format!("tartan-identity-{}", std::process::id()));
    let private = [7; 32];
    let public = PublicKey(x25519::PublicKey::from(&x25519::StaticSecret::from(private)).to_bytes());
    let check = |text: &str, wanted: PublicKey, error: Option<&str>| {
        fs::write(&path, text).unwrap();
        match (Identity::load(&File::open(&path).unwrap(), wanted), error) {
            (Ok(identity), None) => {
                assert_eq!(*identity.private_bytes(), private);
                assert_eq!(identity.psk().copied(), text.trim_end().contains('\n').then_some([9; 32]));
            }
            (Err(said), Some(part)) => {
                let said = said.to_string();
                assert!(said.contains(part) && !said.contains(&STANDARD.encode(private)), "{said}");
            }
            (Ok(_), Some(part)) => panic!("{text:?} is taken, and not refused with {part:?}"),
            (Err(said), None) => panic!("{said}"),
        }
    };
    let text = STANDARD.encode(private);
    check(&format!("{text}\n"), public, None);
    check(&text, public, None);
    let two = format!("{text}\n{}\n", STANDARD.encode([9; 32]));
    check(&two, public, None);
    check(&text, PublicKey([8; 32]), Some("is that of"));
    check(&two[..80], public, Some("no private key"));
    for wrong in ["", "\n", "AAAA", &text[1..], &"A".repeat(300)] {
        check(wrong, public, Some("no private key"));
    }
    fs::remove_file(path).unwrap();
}

proptest! {
    /// Whatever comes, and whatever becomes of what was right, nothing panics and nothing false is taken.
    #[test]
    fn only_what_a_peer_sent_is_taken(
        kinds in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..300)), 1..30),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..30),
    ) {
        let mut field = Field::of(2);
        field.run(|_| false);
        let (from, to) = (at(0), at(1));
        for (kind, mut bytes) in kinds {
            let length = [bytes.len(), 148, 92, 64, bytes.len(), bytes.len()][usize::from(kind)];
            bytes.resize(length, kind);
            bytes.splice(..bytes.len().min(4), [kind, 0, 0, 0].into_iter().take(length.min(4)));
            let came = field.deliver(&Message { from, to, bytes });
            prop_assert!(came.is_none());
            field.wire.clear();
        }
        for (index, flip) in flips {
            assert!(field.seal(0, &packet(pod(0, true), pod(1, true), 50)));
            let mut message = field.wire.pop_front().unwrap();
            let byte = index.index(message.bytes.len());
            message.bytes[byte] ^= flip;
            prop_assert!(field.deliver(&message).is_none());
        }
        prop_assert!(field.carries(0, 1));
    }
}
