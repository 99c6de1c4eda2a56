//! IPsec by the real kernel: no key is used twice, whoever takes associations away, and what is there is gone on with.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use netns::Netns;
use tartan_kernel::linux::Linux;
use tartan_kernel::{Failure, Kernel, Scope, Wake};
use tartan_netstate::{
    EspEnd, EspPeer, Key, Link, LinkKind, LinkName, Netns as Ns, Object, Owner, PublicKey, State, diff,
};

const PAIR: &str = "ipsec-ipv4-0";
const PEER: PublicKey = PublicKey([9; 32]);
/// Keys are in order, and so are steps about them.
const BEFORE_IT: PublicKey = PublicKey([8; 32]);
const RANGES: &[&str] = &["10.2.0.0/24", "10.2.0.0/32", "fd02::/64"];

fn link() -> LinkName {
    LinkName::new("ttxs0").unwrap()
}

/// A node that has what is wanted; a new door each time, as of an agent that has just started.
struct Node {
    kernel: Linux,
    state: State,
    /// Of ESP in UDP.
    port: Option<u16>,
}

impl Node {
    fn start(dir: &Path) -> Node {
        let mut kernel = Linux::open().unwrap().with_keys_in(dir);
        let state = read(&mut kernel);
        Node { kernel, state, port: None }
    }

    fn public_key(&mut self) -> PublicKey {
        self.kernel.encryption().unwrap().public_keys[PAIR]
    }

    /// Has the kernel be so, as far as it will.
    fn become_(&mut self, wanted: &State) -> Vec<Failure> {
        let failures = self.kernel.apply(&diff(&self.state, wanted, |_| true));
        self.state = read(&mut self.kernel);
        failures
    }

    /// A pair, a device and a peer, at these addresses.
    fn wanted(&mut self, own: &str, peer: &str) -> State {
        let mut wanted = State::new();
        wanted.insert(Key::KeyPair { name: PAIR.into() }, Object::KeyPair, Owner::Node);
        let failures = self.become_(&wanted);
        assert!(failures.is_empty(), "{failures:?}");
        let kind = LinkKind::Xfrm { label: "ipsec/ipv4".into() };
        let made = Link { kind, mac: None, mtu: 1443, group: 0, up: true };
        wanted.insert(Key::Link { ns: Ns::Host, link: link() }, Object::Link(made.into()), Owner::Node);
        let own = EspEnd { address: own.parse().unwrap(), public_key: self.public_key(), port: self.port };
        wanted.insert(Key::EspDevice { link: link() }, Object::EspDevice(own), Owner::Node);
        put_peer(&mut wanted, PEER, EspPeer::of(peer.parse().unwrap(), own, ranges(RANGES)));
        wanted
    }

    /// All of it, without another key than there is.
    fn wanted_again(&mut self, own: &str, peer: &str) -> State {
        let mut wanted = self.state.clone();
        let own = EspEnd { address: own.parse().unwrap(), public_key: self.public_key(), port: self.port };
        wanted.insert(Key::EspDevice { link: link() }, Object::EspDevice(own), Owner::Node);
        let Object::EspPeer(was) = wanted.get(&Key::EspPeer { link: link(), public_key: PEER }).unwrap().object.clone()
        else {
            panic!("a peer is a peer")
        };
        let peer = EspPeer::of(peer.parse().unwrap(), own, was.allowed.iter().copied());
        wanted.insert(Key::EspPeer { link: link(), public_key: PEER }, Object::EspPeer(peer.into()), Owner::Node);
        wanted
    }
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|range| range.parse().unwrap()).collect()
}

fn put_peer(wanted: &mut State, public_key: PublicKey, peer: EspPeer) {
    wanted.insert(Key::EspPeer { link: link(), public_key }, Object::EspPeer(peer.into()), Owner::Node);
}

fn read(kernel: &mut Linux) -> State {
    let read = [Scope::Links, Scope::Encryption].map(|scope| kernel.read(&scope).unwrap());
    read.iter().flat_map(|state| state.iter().map(|(key, entry)| (key.clone(), entry.clone()))).collect()
}

fn sh(line: &str) -> String {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Objects without owners, which the kernel does not keep.
fn objects(state: &State) -> Vec<(Key, Object)> {
    state.iter().map(|(key, entry)| (key.clone(), entry.object.clone())).collect()
}

fn check(test: &str, body: impl FnOnce(&Path) + Send + 'static) {
    let dir = std::env::temp_dir().join(format!("tartan-ipsec-{test}-{}", std::process::id()));
    // The secret's part is a matter of the pair's name, and this pair has none.
    let keys = dir.join("keys");
    Netns::new().run(move || {
        sh("ip link set lo up; ip addr add 192.0.2.1/24 dev lo; ip addr add 192.0.2.7/24 dev lo");
        body(&keys);
    });
    std::fs::remove_dir_all(dir).unwrap();
}

/// Keys of associations, in order.
fn keys_in_kernel() -> Vec<String> {
    let all = sh("ip xfrm state | grep -o '0x[0-9a-f]\\{72\\}' | sort");
    all.lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_an_agent_that_starts_again_goes_on_with_what_is_there() {
    check("again", |dir| {
        let mut node = Node::start(dir);
        let wanted = node.wanted("192.0.2.1", "192.0.2.2");
        assert_eq!(node.become_(&wanted), []);
        assert_eq!(objects(&node.state), objects(&wanted));
        let before = keys_in_kernel();
        assert_eq!(before.len(), 3, "one each way, and the one that nothing is sent by");
        let mut again = Node::start(dir);
        assert_eq!(objects(&again.state), objects(&wanted));
        assert_eq!(again.public_key(), node.public_key());
        // A peer that goes and comes back goes on by what it had.
        let mut without = wanted.clone();
        without.remove(&Key::EspPeer { link: link(), public_key: PEER });
        assert_eq!(again.become_(&without), []);
        assert_eq!(objects(&again.state), objects(&without));
        assert_eq!(sh("ip xfrm policy"), "");
        assert_eq!(again.become_(&wanted), []);
        assert_eq!(keys_in_kernel(), before);
        // With its device all of it goes, and so does the pair.
        let mut nothing = State::new();
        nothing.insert(Key::KeyPair { name: PAIR.into() }, Object::KeyPair, Owner::Node);
        assert_eq!(again.become_(&nothing), []);
        assert_eq!(objects(&again.state), [], "a pair that was used is none");
        assert_eq!(sh("ip xfrm state; ip xfrm policy"), "");
    });
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_what_somebody_takes_away_is_made_anew_with_other_keys() {
    for damage in
        ["ip xfrm state flush", "ip xfrm state flush; ip xfrm policy flush", "ip xfrm state deleteall dst 192.0.2.2"]
    {
        for sees in [true, false] {
            check("lost", move |dir| {
                let mut node = Node::start(dir);
                let wanted = node.wanted("192.0.2.1", "192.0.2.2");
                assert_eq!(node.become_(&wanted), []);
                let (first, keys) = (node.public_key(), keys_in_kernel());
                sh(damage);
                if sees {
                    // Of the loss it does not know yet, and asks for a range more.
                    let mut more = wanted.clone();
                    let Object::EspPeer(was) =
                        more.get(&Key::EspPeer { link: link(), public_key: PEER }).unwrap().object.clone()
                    else {
                        panic!()
                    };
                    let ranges = was.allowed.iter().copied().chain(["10.9.0.0/24".parse().unwrap()]);
                    let peer = EspPeer::of(was.address, was.own, ranges);
                    more.insert(
                        Key::EspPeer { link: link(), public_key: PEER },
                        Object::EspPeer(peer.into()),
                        Owner::Node,
                    );
                    let failures = node.kernel.apply(&diff(&wanted, &more, |_| true));
                    assert_eq!(failures.len(), 1, "{failures:?}");
                } else {
                    node = Node::start(dir);
                }
                node.state = read(&mut node.kernel);
                assert_eq!(node.state.get(&Key::KeyPair { name: PAIR.into() }), None, "{damage}");
                let wanted = node.wanted("192.0.2.1", "192.0.2.2");
                assert_eq!(node.become_(&wanted), [], "{damage}");
                assert_eq!(objects(&node.state), objects(&wanted), "{damage}");
                assert_ne!(node.public_key(), first);
                assert!(keys_in_kernel().iter().all(|key| !keys.contains(key)), "{damage}: a key came back");
            });
        }
    }
}

/// A peer that has another key, as after a boot, and ranges that go from one node to another.
#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_a_range_that_passes_to_another_key_is_heard_from_that_one() {
    check("passes", |dir| {
        let mut node = Node::start(dir);
        let alone = node.wanted("192.0.2.1", "192.0.2.2");
        let own = EspEnd { address: "192.0.2.1".parse().unwrap(), public_key: node.public_key(), port: None };
        let [first, rest] = [&RANGES[..1], &RANGES[1..]];
        let none: &[&str] = &[];
        for (of_peer, of_other) in
            [(RANGES, none), (none, RANGES), (first, rest), (rest, first), (none, rest), (RANGES, none)]
        {
            let mut wanted = alone.clone();
            wanted.remove(&Key::EspPeer { link: link(), public_key: PEER });
            for (public_key, address, of) in [(PEER, "192.0.2.2", of_peer), (BEFORE_IT, "192.0.2.3", of_other)] {
                if !of.is_empty() {
                    put_peer(&mut wanted, public_key, EspPeer::of(address.parse().unwrap(), own, ranges(of)));
                }
            }
            assert_eq!(node.become_(&wanted), [], "{of_peer:?} {of_other:?}");
            assert_eq!(objects(&node.state), objects(&wanted), "{of_peer:?} {of_other:?}");
        }
    });
}

/// A part of one node's block that another one has taken.
#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_of_ranges_in_each_other_the_smaller_one_has_its_packets_whichever_came_first() {
    let sent = |far_end: &str| -> u64 {
        let text = sh(&format!("ip -s xfrm state list src 192.0.2.1 dst {far_end}"));
        let count = text.lines().find_map(|line| line.strip_suffix("(packets)")?.split_once("(bytes), "));
        count.unwrap().1.parse().unwrap()
    };
    for part_comes_first in [false, true] {
        check("nested", move |dir| {
            let mut node = Node::start(dir);
            let whole = node.wanted("192.0.2.1", "192.0.2.2");
            let own = EspEnd { address: "192.0.2.1".parse().unwrap(), public_key: node.public_key(), port: None };
            let mut both = whole.clone();
            put_peer(&mut both, BEFORE_IT, EspPeer::of("192.0.2.3".parse().unwrap(), own, ranges(&["10.2.0.64/28"])));
            let mut part = both.clone();
            part.remove(&Key::EspPeer { link: link(), public_key: PEER });
            assert_eq!(node.become_(if part_comes_first { &part } else { &whole }), []);
            assert_eq!(node.become_(&both), []);
            sh("ip addr add 10.1.0.1/32 dev lo; ip route add 10.2.0.0/24 dev ttxs0 src 10.1.0.1");
            for (to, far_end, other) in
                [("10.2.0.70", "192.0.2.3", "192.0.2.2"), ("10.2.0.9", "192.0.2.2", "192.0.2.3")]
            {
                let before = [far_end, other].map(sent);
                let socket = std::net::UdpSocket::bind("10.1.0.1:0").unwrap();
                socket.send_to(b"x", (to, 9)).unwrap();
                let [by_it, by_other] = [far_end, other].map(sent);
                assert!(by_it > before[0] && by_other == before[1], "{to}, {part_comes_first}");
            }
        });
    }
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_what_a_node_takes_away_itself_is_no_loss_that_it_is_told_of() {
    check("told", |dir| {
        let mut node = Node::start(dir);
        let wanted = node.wanted("192.0.2.1", "192.0.2.2");
        assert_eq!(node.become_(&wanted), []);
        let (tell, told) = std::sync::mpsc::channel();
        node.kernel.subscribe(Box::new(move |wake| tell.send(wake).unwrap_or_default())).unwrap();
        let mut without = wanted.clone();
        without.remove(&Key::EspPeer { link: link(), public_key: PEER });
        assert_eq!(node.become_(&without), []);
        // Of each sort one is told after the other, in turn: after so many addresses nothing is left that came before them.
        let is_last = |wake: &Wake| matches!(wake, Wake::Now(Key::Address { address, .. }, _) if address.to_string() == "198.51.100.30/32");
        sh("for n in $(seq 30); do ip addr add 198.51.100.$n/32 dev lo; done");
        let loss = Wake::Changed(Scope::Encryption);
        let next = || told.recv_timeout(Duration::from_secs(10)).unwrap();
        let before: Vec<Wake> = std::iter::from_fn(|| Some(next()).filter(|wake| !is_last(wake))).collect();
        assert!(!before.contains(&loss), "{before:?}");
        let between = "src 10.99.0.0/24 dst 10.98.0.0/24 dir in";
        sh(&format!("ip xfrm policy add {between}; ip xfrm policy delete {between}"));
        while next() != loss {}
    });
}

/// Somebody has an association by the number of the anchor.
#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_a_pair_that_the_kernel_took_nothing_of_is_as_new() {
    check("refused", |dir| {
        let mut node = Node::start(dir);
        let wanted = node.wanted("192.0.2.1", "192.0.2.2");
        let own = node.public_key();
        let all = [link().as_str().as_bytes(), &own.0, &own.0].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &all);
        let spi: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let theirs = format!("src 192.0.2.1 dst 192.0.2.1 proto esp spi 0x{spi}");
        let key = "5a".repeat(36);
        sh(&format!("ip xfrm state add {theirs} mode tunnel aead 'rfc4106(gcm(aes))' 0x{key} 128"));
        let refused = node.become_(&wanted);
        assert!(refused.iter().any(|failure| failure.key == Key::EspDevice { link: link() }), "{refused:?}");
        sh(&format!("ip xfrm state delete dst 192.0.2.1 proto esp spi 0x{spi}"));
        assert_eq!(node.become_(&wanted), []);
        assert_eq!(objects(&node.state), objects(&wanted));
        assert_eq!(node.public_key(), own);
    });
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_associations_wrap_packets_in_udp_and_say_so() {
    check("udp", |dir| {
        let mut node = Node { port: Some(4500), ..Node::start(dir) };
        let wanted = node.wanted("192.0.2.1", "192.0.2.2");
        assert_eq!(node.become_(&wanted), []);
        assert_eq!(objects(&Node::start(dir).state), objects(&wanted));
        let wraps = sh("ip xfrm state | grep 'encap type espinudp sport 4500 dport 4500'");
        assert_eq!(wraps.lines().count(), 3, "{}", sh("ip xfrm state"));
        // As long as they are there, they stay what they are.
        let mut other = Node { port: Some(4501), ..Node::start(dir) };
        let moved = other.wanted_again("192.0.2.1", "192.0.2.2");
        assert!(!other.become_(&moved).is_empty());
        assert_eq!(sh("ip xfrm state | grep 'encap type espinudp'"), wraps);
    });
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_addresses_that_change_take_no_number_back() {
    check("moved", |dir| {
        let mut node = Node::start(dir);
        let wanted = node.wanted("192.0.2.1", "192.0.2.2");
        assert_eq!(node.become_(&wanted), []);
        let numbers = || {
            let all =
                sh("ip -s xfrm state | grep -e '^src 192.0.2.. dst 192.0.2.2$' -e oseq | grep -A1 'dst 192.0.2.2$'");
            all.lines().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert!(numbers().contains("src 192.0.2.1 dst 192.0.2.2") && numbers().contains("oseq 0x0"), "{}", numbers());
        // This node's own: the same key, further on.
        let keys = keys_in_kernel();
        let moved = node.wanted_again("192.0.2.7", "192.0.2.2");
        assert_eq!(node.become_(&moved), []);
        assert_eq!(objects(&node.state), objects(&moved));
        assert!(
            numbers().contains("src 192.0.2.7 dst 192.0.2.2") && numbers().contains("oseq 0x1000000"),
            "{}",
            numbers()
        );
        // What peers still send to the old address is heard, by the key that it had; the new address has another.
        assert_eq!(keys_in_kernel().iter().filter(|key| keys.contains(key)).count(), 2);
        assert_eq!(keys_in_kernel().len(), 4, "{}", sh("ip xfrm state"));
        // And the peer's: there and back.
        let all = keys_in_kernel();
        let moved = node.wanted_again("192.0.2.7", "192.0.2.3");
        assert_eq!(node.become_(&moved), []);
        assert_eq!(objects(&node.state), objects(&moved));
        assert_eq!(keys_in_kernel().len(), all.len() + 1);
        let back = node.wanted_again("192.0.2.7", "192.0.2.2");
        assert_eq!(node.become_(&back), []);
        assert_eq!(objects(&node.state), objects(&back));
        assert_eq!(keys_in_kernel().len(), all.len() + 1);
    });
}
