//! Connection tracking entries on the real kernel: flushed when they would mislead packets, and counted.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use netns::node::{Lab, attachment, given, lab, mapping};
use netns::traffic::{Over, Persistent, sees};
use netns::{Netns, shell};
use tartan_kernel::Kernel as _;
use tartan_kernel::conntrack::{Conntrack, Effect, Flusher, Stats, effect};
use tartan_kernel::linux::Linux;
use tartan_model::Protocol;
use tartan_netstate::claims::NFT_GENERATION_SET;
use tartan_netstate::nft::{ElementData, Set, Type};
use tartan_netstate::{Change, Generation, Key, Object, Owner, State, diff};

fn flush(lab: &Lab, address: &str) -> usize {
    let effects = BTreeSet::from([Effect::FlushAddress(address.parse().unwrap())]);
    lab.node.run(move || Conntrack::open().unwrap().flush(&effects).unwrap())
}

fn carry_out(lab: &Lab, change: &Change) -> usize {
    let effects = change.steps.iter().filter_map(|step| effect(step.op())).collect();
    lab.node.run(move || Conntrack::open().unwrap().flush(&effects).unwrap())
}

fn entries(lab: &Lab, with: &str) -> usize {
    lab.node.sh("cat /proc/net/nf_conntrack").lines().filter(|line| line.contains(with)).count()
}

#[test]
fn a_client_that_keeps_sending_follows_the_port_to_the_next_pod() {
    let mut lab = lab();
    let first = lab.apply(&State::new(), &given());
    let clients = [Persistent::new(&lab.client, "192.0.2.1:8080"), Persistent::new(&lab.client, "[2001:db8::1]:8080")];
    assert!(clients.iter().all(Persistent::is_answered));
    // Pod 1 goes, and its port goes to pod 2.
    lab.pods[0].sh("ip link del eth0");
    lab.world.detach("c5/eth0", std::time::Instant::now());
    lab.world.attach(attachment(6, vec![mapping(Protocol::Udp, "-", 8080)]));
    lab.apply(&first, &given());
    assert!(!clients.iter().any(Persistent::is_answered), "the entry still leads to the pod that is gone");
    assert!(flush(&lab, "10.244.1.5") > 0);
    assert!(clients[0].is_answered());
    assert!(!clients[1].is_answered());
    assert!(flush(&lab, "fd00:1::5") > 0);
    assert!(clients[1].is_answered());
}

#[test]
fn a_client_that_sent_before_there_was_a_port_reaches_it_after() {
    let lab = lab();
    let none = Lab { world: Default::default(), ..lab };
    let before = none.apply(&State::new(), &given());
    let clients =
        [Persistent::new(&none.client, "192.0.2.1:8080"), Persistent::new(&none.client, "[2001:db8::1]:8080")];
    assert!(!clients.iter().any(Persistent::is_answered));
    let mut lab = none;
    lab.world.attach(attachment(5, vec![mapping(Protocol::Udp, "-", 8080)]));
    let after = lab.apply(&before, &given());
    // A translated connection to the same port number elsewhere must survive.
    let translated = Persistent::new(&lab.pods[1], "192.0.2.2:8080");
    assert!(translated.is_answered());
    assert!(!clients.iter().any(Persistent::is_answered), "the entry still knows of no translation");
    assert_eq!(carry_out(&lab, &diff(&before, &after, |_| true)), 2);
    assert!(clients.iter().all(Persistent::is_answered));
    assert_eq!(entries(&lab, "src=10.244.1.6 dst=192.0.2.2"), 1);
    assert!(translated.is_answered());
}

#[test]
fn flushing_an_address_takes_what_it_began_and_what_reaches_it_and_nothing_else() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    let [pod1, pod2] = &lab.pods;
    sees(pod1, Over::Udp, "203.0.113.9:80", "192.0.2.1");
    sees(pod2, Over::Udp, "203.0.113.9:80", "192.0.2.1");
    sees(pod2, Over::Udp, "10.244.1.5:80", "10.244.1.6");
    sees(&lab.client, Over::Tcp, "192.0.2.1:8080", "192.0.2.2");
    let others = entries(&lab, "src=10.244.1.6 dst=203.0.113.9");
    assert_eq!(others, 1);
    assert!(flush(&lab, "10.244.1.5") >= 3);
    assert_eq!(entries(&lab, "=10.244.1.5 "), 0);
    assert_eq!(entries(&lab, "src=10.244.1.6 dst=203.0.113.9"), others);
    assert_eq!(flush(&lab, "10.244.1.5"), 0);
    assert_eq!(flush(&lab, "fd00:1::77"), 0);
}

#[test]
fn the_table_is_counted() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    sees(&lab.pods[0], Over::Udp, "203.0.113.9:80", "192.0.2.1");
    let count = |name: &str| -> u32 {
        lab.node.sh(&format!("cat /proc/sys/net/netfilter/nf_conntrack_{name}")).trim().parse().unwrap()
    };
    let stats: Stats = lab.node.run(|| Conntrack::open().unwrap().stats().unwrap());
    assert!(stats.entries > 0);
    assert_eq!((stats.entries, stats.max), (count("count"), count("max")));
    assert_eq!((stats.insert_failed, stats.drop, stats.early_drop), (0, 0, 0));
}

#[test]
fn the_flusher_flushes_soon_and_finishes_when_it_is_dropped() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    let [pod1, pod2] = &lab.pods;
    sees(pod1, Over::Udp, "203.0.113.9:80", "192.0.2.1");
    sees(pod2, Over::Udp, "203.0.113.9:80", "192.0.2.1");
    let flusher = lab.node.run(|| Flusher::start().unwrap());
    flusher.want(Effect::FlushAddress("10.244.1.5".parse().unwrap()));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while entries(&lab, "=10.244.1.5 ") > 0 {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(entries(&lab, "src=10.244.1.6 dst=203.0.113.9"), 1);
    flusher.want(Effect::FlushAddress("10.244.1.6".parse().unwrap()));
    assert_eq!(flusher.failed(), 0);
    drop(flusher);
    assert_eq!(entries(&lab, "=10.244.1.6 "), 0);
}

/// An address that came back: its old connections are somebody else's business, and its new ones are its own.
#[test]
fn what_was_taken_from_the_flusher_it_leaves_alone() {
    let lab = lab();
    lab.apply(&State::new(), &given());
    for pod in &lab.pods {
        sees(pod, Over::Udp, "203.0.113.9:80", "192.0.2.1");
    }
    let [back, gone] = ["10.244.1.5", "10.244.1.6"].map(|address| address.parse().unwrap());
    let flusher = lab.node.run(|| Flusher::start().unwrap());
    [back, gone].map(Effect::FlushAddress).into_iter().for_each(|effect| flusher.want(effect));
    let taken = || flusher.take([Effect::FlushAddress(back)].into_iter());
    assert_eq!(taken(), BTreeSet::from([Effect::FlushAddress(back)]));
    assert_eq!(taken(), BTreeSet::new(), "it was taken already");
    drop(flusher);
    assert_eq!(entries(&lab, "src=10.244.1.5 dst=203.0.113.9"), 1);
    assert_eq!(entries(&lab, "=10.244.1.6 "), 0);
}

/// A node whose rules stamp connections, as far as this needs rules: one generation after the other, and one connection.
struct Stamping {
    kernel: Linux,
    now: State,
    connection: UdpSocket,
}

impl Stamping {
    fn begin() -> Stamping {
        shell("ip link set lo up");
        let connection = UdpSocket::bind("127.0.0.1:0").unwrap();
        Stamping { kernel: Linux::open().unwrap(), now: State::new(), connection }
    }

    fn go_to(&mut self, number: u32) {
        let mut wanted = State::new();
        let mut put = |key, object| wanted.insert(key, object, Owner::Policy);
        put(Key::NftTable, Object::NftTable);
        put(Key::NftSet { set: NFT_GENERATION_SET.into() }, Object::NftSet(Set::exact(&[Type::Mark]).into()));
        put(Generation(number).key(), Object::NftElement(ElementData::default()));
        assert_eq!(self.kernel.apply(&diff(&self.now, &wanted, |_| true)), []);
        self.now = wanted;
    }

    /// As the rules of that generation do; a bit of somebody else's comes with it.
    fn stamp(&self, number: u32) {
        let mark = Generation(number).stamp_of_both() | 0x80;
        shell(&format!(
            "nft 'add table inet foreign
            add chain inet foreign out {{ type filter hook output priority 0; }}
            add rule inet foreign out udp dport 9 ct mark set {mark}'"
        ));
        // Who forgets in its own time may have read the connection before, and write it after.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.connection.send_to(b"anything", "127.0.0.1:9").unwrap();
            if self.mark() == mark {
                break;
            }
            assert!(Instant::now() < deadline, "{:#x}, wanted {mark:#x}", self.mark());
        }
        shell("nft delete table inet foreign");
    }

    fn mark(&self) -> u32 {
        let all = shell("cat /proc/net/nf_conntrack");
        let ours = all.lines().find(|line| line.contains("dport=9 ")).unwrap();
        ours.split(' ').find_map(|word| word.strip_prefix("mark=")).unwrap().parse().unwrap()
    }
}

#[test]
fn stamps_are_forgotten_before_they_come_round() {
    const ERA: u32 = 63;
    Netns::new().run(|| {
        let mut node = Stamping::begin();
        node.stamp(0);
        node.go_to(5);
        assert_eq!(node.mark(), 0x80, "what a life before this one stamped");
        node.stamp(5);
        node.go_to(ERA);
        let deadline = Instant::now() + Duration::from_secs(10);
        while node.mark() != 0x80 {
            assert!(Instant::now() < deadline, "in its own time, while the next era is");
        }
        node.stamp(ERA + 1);
        // Its stamps come next: there is no time to wait for who does it in its own.
        node.go_to(2 * ERA);
        node.go_to(3 * ERA);
        assert_eq!(node.mark(), 0x80, "before they come round");
        node.stamp(3 * ERA);
        node.go_to(3 * ERA + 1);
        assert_ne!(node.mark(), 0x80, "within an era they stay");
    });
}
