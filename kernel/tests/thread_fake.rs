//! The kernel thread on the fake kernel: order, back-off, echoes, lost news, failures at every step.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../netstate/tests/states/mod.rs"]
mod states;
#[path = "thread_fake/sysctls.rs"]
mod sysctls;

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use states::{Choice, mac, name, pretended_pods, state};
use tartan_kernel::Scope;
use tartan_kernel::fake::Fake;
use tartan_kernel::thread::{Applied, Handle, spawn};
use tartan_netstate::nft::{ElementData, Fields};
use tartan_netstate::{
    Change, Entry, Fdb, Key, Link, LinkKind, LinkName, Neigh, Netns, Object, Op, Owner, PublicKey, Route, State, Step,
    WgPeer, claims,
};

struct Node {
    handle: Handle,
    reports: Receiver<Applied>,
    fake: Fake,
}

impl Node {
    fn on(fake: Fake) -> Node {
        let (sender, reports) = channel();
        let handle = spawn(Box::new(fake.clone()), move |applied| drop(sender.send(applied))).unwrap();
        Node { handle, reports, fake }
    }

    fn wanting(wanted: &State) -> Node {
        let node = Node::on(Fake::new());
        node.handle.want(1, wanted.clone());
        node.wait("the first state", |applied| applied.generation == 1);
        node
    }

    fn wait(&self, what: &str, is: impl Fn(&Applied) -> bool) -> Applied {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let applied = self.reports.recv_timeout(left).unwrap_or_else(|_| panic!("{what} did not come"));
            if is(&applied) {
                return applied;
            }
        }
    }

    /// The kernel becomes as wanted.
    fn becomes(&self, what: &str, wanted: &State) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is(&self.fake.state(), wanted) {
            assert!(Instant::now() < deadline, "{what}: not made good");
            // Whatever is told, it is the kernel that counts.
            let _told = self.reports.recv_timeout(Duration::from_millis(2));
        }
    }
}

/// Equal, whoever the owners are.
fn is(state: &State, wanted: &State) -> bool {
    state.len() == wanted.len() && state.holds_all(wanted)
}

fn full() -> State {
    state(&pretended_pods(), &[1; 32])
}

fn device() -> LinkName {
    name("ttx4")
}

/// Peers behind the device, as many as a large cluster has.
fn with_bulk(mut wanted: State, peers: u32) -> State {
    for peer in 0..peers {
        let owner = Owner::Peer(format!("n{peer}").into());
        let address = std::net::Ipv4Addr::from(0x0a80_0000 + peer).into();
        let [_, b, c, d] = peer.to_be_bytes();
        let mac = tartan_netstate::Mac([2, 1, b, c, d, 0]);
        wanted.insert(Key::Fdb { link: device(), mac }, Object::Fdb(Fdb { dst: address }), owner.clone());
        let key = Key::Neigh { ns: Netns::Host, link: device(), address };
        wanted.insert(key, Object::Neigh(Neigh { mac }), owner);
    }
    wanted
}

fn pod_route(number: u8) -> (Key, Object) {
    let dst = format!("10.3.0.{number}/32").parse().unwrap();
    let key = Key::Route { ns: Netns::Host, table: claims::MAIN_TABLE, dst, metric: 1024 };
    (key, Object::Route(Route::unreachable().into()))
}

/// Routes stand for pods: what counts is the owner.
fn with_pod(mut wanted: State, number: u8) -> State {
    let (key, object) = pod_route(number);
    wanted.insert(key, object, Owner::Pod(format!("pod{number}").into()));
    wanted
}

fn position(changes: &[Change], key: &Key) -> Option<usize> {
    changes.iter().position(|change| change.steps.iter().any(|step| step.key() == key))
}

#[test]
fn pods_go_before_bulk_and_say_so() {
    let base = full();
    let node = Node::wanting(&base);
    node.fake.pause();
    let bulk = with_bulk(base, 5_000);
    node.handle.want(2, bulk.clone());
    node.fake.wait_until_held();
    node.handle.want(3, with_pod(bulk.clone(), 1));
    node.handle.want(4, with_pod(bulk.clone(), 2));
    let before = node.fake.changes().len();
    node.fake.resume();
    let early = node.wait("the pod", |applied| applied.pods_generation == 4);
    assert!(early.generation < 4, "bulk was done as well: {}", early.generation);
    assert!(early.mirror.get(&pod_route(2).0).is_some());
    let all = node.wait("everything", |applied| applied.generation == 4);
    assert!(is(&all.mirror, &with_pod(bulk, 2)));
    let changes = node.fake.changes();
    assert!(position(&changes, &pod_route(2).0).unwrap() <= before + 1, "at most one piece of bulk was under way");
    assert_eq!(position(&changes, &pod_route(1).0), None, "the latest want wins");
}

/// Where a device takes the place of another network's, packets are lost until the routes are in.
#[test]
fn routes_to_peers_go_in_with_their_device() {
    let params = tartan_netstate::VxlanParams {
        vni: 1,
        port: 8472,
        local: std::net::Ipv4Addr::LOCALHOST.into(),
        learning: false,
        gbp: false,
    };
    let link = Link { kind: LinkKind::Vxlan(params), mac: Some(mac(1)), mtu: 1450, group: 0, up: true };
    let device_key = Key::Link { ns: Netns::Host, link: device() };
    let mut wanted = with_bulk(State::new(), 100);
    wanted.insert(device_key.clone(), Object::Link(link.into()), Owner::Node);
    let route = |peer: u8| Key::Route {
        ns: Netns::Host,
        table: claims::MAIN_TABLE,
        dst: format!("10.4.{peer}.0/24").parse().unwrap(),
        metric: claims::ROUTE_METRIC,
    };
    for peer in 0..100 {
        let object = Object::Route(Route::on_link(device()).into());
        wanted.insert(route(peer), object, Owner::Peer(format!("n{peer}").into()));
    }
    // Others make work go slowly.
    for number in 0..100 {
        let key = Key::Sysctl { ns: Netns::Host, name: format!("net/{number}").into() };
        wanted.insert(key, Object::Sysctl("1".into()), Owner::Node);
    }
    let node = Node::wanting(&wanted);
    let changes = node.fake.changes();
    let at = position(&changes, &device_key);
    assert!(at.is_some() && (0..100).all(|peer| position(&changes, &route(peer)) == at));
}

#[test]
fn pods_that_come_together_are_told_of_one_by_one() {
    let base = full();
    let node = Node::wanting(&base);
    node.fake.fail(pod_route(2).0, Some(Errno::ENOMEM));
    node.handle.want(2, (1..=4).fold(base, with_pod));
    for number in 1..=4_u8 {
        let id = format!("pod{number}");
        let told = node.wait(&id, |applied| applied.pods_ahead.get(&*id) == Some(&2));
        assert_eq!((told.pods_ahead.len(), told.pods_generation), (usize::from(number), 1));
        assert_eq!(told.mirror.get(&pod_route(number).0).is_some(), number != 2);
        assert_eq!(told.failures.iter().any(|failure| failure.key == pod_route(2).0), number >= 2);
    }
    let all = node.wait("all of them", |applied| applied.pods_generation == 2);
    assert!(all.pods_ahead.is_empty());
}

#[test]
fn a_pod_that_comes_during_the_first_pass_is_not_said_to_be_done_with_those_before_it() {
    let node = Node::on(Fake::new());
    node.fake.pause();
    let first = (2..=250).fold(with_bulk(full(), 1_000), with_pod);
    node.handle.want(1, first.clone());
    node.fake.wait_until_held();
    node.handle.want(2, with_pod(first, 1));
    node.fake.resume();
    let done = node.wait("the pod", |applied| applied.pods_generation == 2);
    assert!(done.mirror.get(&pod_route(1).0).is_some(), "said to be there, and is not");
}

#[test]
fn a_failing_object_stops_no_other_and_is_tried_again() {
    let node = Node::wanting(&full());
    let (key, _) = pod_route(1);
    node.fake.fail(key.clone(), Some(Errno::ENOMEM));
    node.handle.want(2, with_pod(with_bulk(full(), 10), 1));
    let tried = node.wait("the rest", |applied| applied.generation == 2);
    assert_eq!(tried.failures.iter().map(|failure| &failure.key).collect::<Vec<_>>(), [&key]);
    assert_eq!(tried.failures[0].owner, Owner::Pod("pod1".into()));
    assert_eq!(tried.pods_generation, 2, "it has been tried");
    assert!(is(&tried.mirror, &with_bulk(full(), 10)));
    let tries = |node: &Node| {
        node.fake.changes().iter().filter(|change| position(&[(*change).clone()], &key) == Some(0)).count()
    };
    assert!(tries(&node) < 10, "it is not tried at every turn");
    node.fake.fail(key.clone(), None);
    let whole = node.wait("the failing one", |applied| applied.failures.is_empty());
    assert!(whole.mirror.get(&key).is_some());
}

#[test]
fn what_is_of_policy_goes_in_together() {
    let element = |port: u16| Key::NftElement { set: "policy_s".into(), key: Fields::new().port(port).key() };
    let with = |ports: &[u16]| {
        let mut state = full();
        for port in ports {
            let owner = if *port == 3 { Owner::Pod("pod3".into()) } else { Owner::Policy };
            state.insert(element(*port), Object::NftElement(ElementData::default()), owner);
        }
        state
    };
    let node = Node::wanting(&full());
    node.fake.fail(element(1), Some(Errno::ENFILE));
    for (generation, ports) in [(2, &[1, 2][..]), (3, &[1, 2, 3])] {
        node.handle.want(generation, with(ports));
        let tried = node.wait("the rest", |applied| applied.generation == generation);
        let failed: Vec<(&Key, &Owner)> = tried.failures.iter().map(|failure| (&failure.key, &failure.owner)).collect();
        let (policys, pods) = ((element(1), Owner::Policy), (element(3), Owner::Pod("pod3".into())));
        let one_each = [&policys, &pods].map(|(key, owner)| (key, owner));
        assert_eq!(failed, one_each[..generation as usize - 1]);
        assert!(is(&node.fake.state(), &full()), "a part of it went in");
    }
    node.fake.fail(element(1), None);
    node.wait("all of it", |applied| applied.failures.is_empty());
    assert!(is(&node.fake.state(), &with(&[1, 2, 3])));
    let last = node.fake.changes().pop().unwrap();
    assert_eq!(last.steps.iter().filter(|step| step.key().is_of_policy()).count(), 3, "not in one piece");
}

#[test]
fn a_failing_link_holds_up_only_what_hangs_on_it() {
    let node = Node::on(Fake::new());
    let link = Key::Link { ns: Netns::Host, link: device() };
    node.fake.fail(link.clone(), Some(Errno::EOPNOTSUPP));
    node.handle.want(1, with_bulk(full(), 10));
    let tried = node.wait("the rest", |applied| applied.generation == 1);
    assert!(tried.failures.iter().all(|failure| failure.key == link
        || failure.key.link() == Some(&device())
        || matches!(failure.key, Key::Route { .. })));
    node.fake.fail(link, None);
    let whole = node.wait("the link", |applied| applied.failures.is_empty());
    assert!(is(&whole.mirror, &with_bulk(full(), 10)));
}

#[test]
fn own_echoes_cause_no_reads() {
    let node = Node::wanting(&full());
    node.handle.want(2, with_bulk(full(), 100));
    node.wait("bulk", |applied| applied.generation == 2);
    let reads = node.fake.reads();
    for generation in 3..20 {
        node.handle.want(generation, with_bulk(full(), 100 + u32::try_from(generation).unwrap()));
        node.wait("one more", |applied| applied.generation == generation);
    }
    assert_eq!(node.fake.reads(), reads, "the fake tells of each of our own changes");
}

#[test]
fn what_others_do_is_undone() {
    let wanted = with_bulk(full(), 100);
    let node = Node::wanting(&wanted);
    let keys: Vec<Key> = wanted.iter().map(|(key, _)| key.clone()).filter(told).collect();
    for key in keys.iter().step_by(7) {
        node.fake.remove(key);
        node.becomes(&key.to_string(), &wanted);
    }
    node.fake.recreate(&device());
    node.becomes("a recreated device", &wanted);
    let (key, object) = pod_route(9);
    node.fake.put(key, object);
    node.becomes("what nobody wants", &wanted);
}

/// Sysctls and what is inside pods change without a notification.
fn told(key: &Key) -> bool {
    *key.netns() == Netns::Host
        && !matches!(key, Key::Sysctl { .. } | Key::LinkSysctl { .. } | Key::UplinkSysctl { .. })
}

#[test]
fn lost_notifications_cost_a_full_read() {
    let wanted = full();
    let node = Node::wanting(&wanted);
    let silent: Vec<Key> =
        wanted.iter().map(|(key, _)| key.clone()).filter(|key| !matches!(key, Key::Link { .. })).collect();
    for key in silent.iter().step_by(5) {
        node.fake.remove_silently(key);
        node.fake.overrun();
        node.becomes(&key.to_string(), &wanted);
    }
}

#[test]
fn what_a_read_finds_gone_is_told_also_if_nobody_wants_it() {
    let key = Key::Link { ns: Netns::Host, link: name("ttpz0") };
    let kind = tartan_netstate::LinkKind::Bridge;
    let link = tartan_netstate::Link { kind, mac: Some(mac(1)), mtu: 1400, group: claims::POD_LINK_GROUP, up: true };
    let entry = Entry { object: Object::Link(link.into()), owner: Owner::Node };
    let node = Node::wanting(&State::from_iter([(key.clone(), entry)]));
    node.handle.want(9, State::new());
    node.wait("it to be condemned", |applied| applied.generation == 9);
    // Nobody buries it.
    node.fake.fail(key.clone(), Some(Errno::EBUSY));
    node.fake.remove_silently(&key);
    node.fake.overrun();
    node.wait("its end", |applied| applied.mirror.is_empty());
}

#[test]
fn what_cannot_be_read_is_not_pruned() {
    let wanted = full();
    let node = Node::wanting(&wanted);
    let changes = node.fake.changes().len();
    node.fake.interrupt(3);
    node.fake.overrun();
    let unknown = node.wait("word of it", |applied| applied.unknown.is_some());
    assert!(is(&unknown.mirror, &wanted));
    node.wait("the reads to work again", |applied| applied.unknown.is_none());
    assert_eq!(node.fake.changes().len(), changes, "nothing was changed, and nothing had to be");
}

/// A device that an engine carries, and one that encrypts, to this peer.
fn with_apart(mut state: State, peer: u8) -> State {
    for (link, kind) in [
        (name("ttx9"), LinkKind::Tun { label: "udp".into() }),
        (name("ttxs9"), LinkKind::Wireguard { label: "wireguard".into() }),
    ] {
        let link_is = Link { kind, mac: None, mtu: 1400, group: 0, up: true };
        state.insert(Key::Link { ns: Netns::Host, link }, Object::Link(link_is.into()), Owner::Node);
    }
    let address = std::net::IpAddr::from([192, 0, 2, peer]);
    let remote = Key::Remote { link: name("ttx9"), dst: "10.7.0.0/24".parse().unwrap() };
    state.insert(remote, Object::Remote(address), Owner::Node);
    let of_peer = Key::WgPeer { link: name("ttxs9"), public_key: PublicKey([7; 32]) };
    state.insert(of_peer, Object::WgPeer(WgPeer::of((address, 51820).into(), 25, []).into()), Owner::Node);
    state
}

#[test]
fn what_stands_apart_and_cannot_be_read_holds_up_nothing_else() {
    for scope in [Scope::Engines, Scope::Encryption] {
        let node = Node::wanting(&with_apart(full(), 1));
        node.fake.hide(scope.clone(), true);
        node.fake.overrun();
        node.wait("word of it", |applied| applied.left_out.is_some() && applied.unknown.is_none());
        let next = with_pod(with_bulk(with_apart(full(), 2), 10), 1);
        node.handle.want(2, next.clone());
        let tried = node.wait("the rest", |applied| applied.generation == 2);
        let state = node.fake.state();
        let left = || next.iter().filter(|(key, entry)| !state.holds(key, &entry.object));
        assert!(left().count() == 1 && left().all(|(key, entry)| scope.covers(key, &entry.object)), "{scope:?}");
        assert_eq!(tried.failures, [], "{scope:?}");
        node.fake.hide(scope.clone(), false);
        node.wait("the end of it", |applied| applied.left_out.is_none());
        node.becomes("the rest of it", &next);
    }
}

#[test]
fn at_first_it_is_waited_for_only_where_a_device_is_there_that_it_is_about() {
    for (before, waits) in [(with_pod(State::new(), 1), false), (with_apart(State::new(), 1), true)] {
        for scope in [Scope::Engines, Scope::Encryption] {
            let fake = Fake::new();
            before.iter().for_each(|(key, entry)| fake.put(key.clone(), entry.object.clone()));
            fake.hide(scope.clone(), true);
            let node = Node::on(fake);
            node.handle.want(1, with_pod(State::new(), 2));
            let told = node.wait("word of it", |applied| applied.left_out.is_some());
            assert!(!told.read || !waits, "{scope:?}");
            if waits {
                let _told = node.reports.recv_timeout(Duration::from_millis(200));
                assert!(node.fake.changes().is_empty(), "{scope:?}: {:?}", node.fake.changes());
                node.fake.hide(scope, false);
            }
            node.wait("the first state", |applied| applied.generation == 1);
        }
    }
}

#[test]
fn nothing_is_changed_before_the_first_read() {
    let fake = Fake::new();
    let (key, object) = pod_route(9);
    fake.put(key.clone(), object);
    fake.interrupt(5);
    let node = Node::on(fake);
    node.handle.want(1, full());
    node.wait("word of it", |applied| applied.unknown.is_some() || applied.generation == 0);
    node.wait("the first state", |applied| applied.generation == 1);
    assert!(is(&node.fake.state(), &full()), "what an earlier agent left and nobody wants is gone");
}

#[test]
fn what_is_as_wanted_already_is_left_alone() {
    let fake = Fake::new();
    let first = Node::on(fake.clone());
    first.handle.want(1, full());
    first.wait("the first state", |applied| applied.generation == 1);
    drop(first);
    let changes = fake.changes().len();
    let second = Node::on(fake);
    second.handle.want(1, full());
    let applied = second.wait("the same state", |applied| applied.generation == 1);
    assert_eq!(
        (applied.applied, second.fake.changes().len()),
        (0, changes),
        "an agent that comes back changes nothing"
    );
}

#[test]
fn links_are_condemned_at_once_and_deleted_together_later() {
    let links = |count: u8| {
        let mut wanted = full();
        for number in 0..count {
            let key = Key::Link { ns: Netns::Host, link: name(&format!("ttpz{number}")) };
            let link = tartan_netstate::Link {
                kind: tartan_netstate::LinkKind::Bridge,
                mac: Some(mac(number)),
                mtu: 1400,
                group: claims::POD_LINK_GROUP,
                up: true,
            };
            wanted.insert(key, Object::Link(link.into()), Owner::Pod(format!("pod{number}").into()));
        }
        wanted
    };
    let node = Node::wanting(&links(40));
    node.handle.want(2, full());
    let gone = node.wait("the pods", |applied| applied.pods_generation == 2);
    let condemned = |state: &State| {
        let dying = |object: &Object| matches!(object, Object::Link(link) if link.group == claims::DYING_POD_LINK_GROUP && !link.up);
        state.iter().filter(|(_, entry)| dying(&entry.object)).count()
    };
    assert_eq!(condemned(&gone.mirror), 40, "cut off, and not yet waited for");
    node.wait("their links", |applied| is(&applied.mirror, &full()));
    let deleting =
        |change: &&Change| change.steps.iter().any(|step| matches!(step.op(), Op::Delete(Key::Link { .. }, _)));
    assert!(node.fake.changes().iter().filter(deleting).count() <= 2);
}

#[test]
fn a_failure_at_any_step_is_made_good() {
    let wanted = full();
    for steps in 0..wanted.len() {
        let fake = Fake::new();
        fake.fail_after(steps);
        let node = Node::on(fake);
        node.handle.want(1, wanted.clone());
        let whole = |applied: &Applied| applied.generation == 1 && applied.failures.is_empty();
        let applied = node.wait("the state", whole);
        assert!(is(&applied.mirror, &wanted) && is(&node.fake.state(), &wanted), "after failure of step {steps}");
    }
}

#[test]
fn an_object_may_vanish_between_read_and_apply() {
    let wanted = with_bulk(full(), 20);
    let node = Node::wanting(&wanted);
    let mut generation = 1;
    for (key, _) in wanted.iter().filter(|(key, _)| told(key)).step_by(3) {
        node.fake.vanish_before_apply(key.clone());
        generation += 1;
        let next = with_pod(wanted.clone(), u8::try_from(generation % 2).unwrap());
        node.handle.want(generation, next.clone());
        node.wait("the state", |applied| applied.generation == generation);
        node.becomes(&key.to_string(), &next);
    }
}

#[test]
fn the_next_pod_in_a_namespace_gets_all_of_its_own() {
    let pods = pretended_pods();
    let mut choice = [0; 32];
    let mut attached = |look| {
        choice[..4].copy_from_slice(&[1, look, 1, 1]);
        let owned = |(key, entry): (&Key, &Entry)| {
            (key.clone(), Entry { object: entry.object.clone(), owner: Owner::Pod(look.to_string().into()) })
        };
        state(&pods, &choice).iter().map(owned).collect::<State>()
    };
    let (last, next) = (attached(0), attached(1));
    // At once, and after the last one was condemned; told by this agent, and found by the next one.
    for between in [false, true] {
        for restarted in [false, true] {
            let mut node = Node::wanting(&last);
            if restarted {
                let Node { fake, handle, .. } = node;
                drop(handle);
                node = Node::on(fake);
            }
            if between {
                node.handle.want(2, State::new());
                node.wait("the end of the last pod", |applied| applied.pods_generation == 2);
            }
            node.handle.want(3, next.clone());
            let there = node.wait("the next pod", |applied| applied.pods_generation == 3);
            assert!(there.mirror.holds_all(&next), "between: {between}, restarted: {restarted}");
            node.becomes("the next pod alone", &next);
        }
    }
}

/// What may happen to a node.
#[derive(Clone, Debug)]
enum Event {
    Want(Choice),
    Remove(prop::sample::Index),
    Recreate,
    FailAfter(usize),
    Interrupt(usize),
    Overrun,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<Choice>().prop_map(Event::Want),
        any::<prop::sample::Index>().prop_map(Event::Remove),
        Just(Event::Recreate),
        (0_usize..20).prop_map(Event::FailAfter),
        (1_usize..4).prop_map(Event::Interrupt),
        Just(Event::Overrun),
    ]
}

#[test]
fn whatever_happens_the_last_want_comes_true() {
    let pods = pretended_pods();
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(proptest::collection::vec(event(), 1..12), any::<Choice>()), |(events, last)| {
        let node = Node::on(Fake::new());
        let mut generation = 0;
        let mut want = |choice: &Choice| {
            generation += 1;
            node.handle.want(generation, state(&pods, choice));
            generation
        };
        for event in events {
            match event {
                Event::Want(choice) => drop(want(&choice)),
                Event::Remove(index) => {
                    let state = node.fake.state();
                    let keys: Vec<&Key> = state.iter().map(|(key, _)| key).filter(|key| told(key)).collect();
                    if !keys.is_empty() {
                        node.fake.remove(keys[index.index(keys.len())]);
                    }
                }
                Event::Recreate => node.fake.recreate(&device()),
                Event::FailAfter(steps) => node.fake.fail_after(steps),
                Event::Interrupt(reads) => node.fake.interrupt(reads),
                Event::Overrun => node.fake.overrun(),
            }
        }
        let generation = want(&last);
        let wanted = state(&pods, &last);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(applied) = node.reports.recv_timeout(left) else {
                return Err(TestCaseError::fail(format!("stuck: {:#?}", node.fake.state())));
            };
            // News of what happened before may still be under way; what it brings about is reported, too.
            let done = applied.generation == generation && applied.failures.is_empty();
            if done && is(&applied.mirror, &wanted) && is(&node.fake.state(), &wanted) {
                return Ok(());
            }
        }
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn policy_that_is_refused_half_way_says_what_was_said_and_goes_on_from_there() {
    let ports = |low: u16, high: u16| {
        let of = |port| Fields::new().number(2).proto(6).port(port);
        Key::NftElement { set: "policy_egress_classes".into(), key: of(low).key_up_to(of(high)) }
    };
    let any =
        |class| Key::NftElement { set: "policy_egress_any".into(), key: Fields::new().number(2).number(class).key() };
    let policy = |elements: &[(Key, u32)]| {
        let mut state = full();
        for (key, number) in elements {
            let data = Object::NftElement(Fields::new().number(*number).data());
            state.insert(key.clone(), data, Owner::Policy);
        }
        state
    };
    let before = policy(&[(ports(0, 9), 8), (any(8), 1)]);
    let node = Node::wanting(&before);
    node.fake.fail(ports(0, 9), Some(Errno::ENOMEM));
    let wanted = policy(&[(ports(0, 5), 9), (ports(5, 9), 10), (any(9), 1), (any(10), 2)]);
    node.handle.want(2, wanted.clone());
    let refused = node.wait("the refusal", |applied| !applied.failures.is_empty());
    assert!(refused.failures.iter().all(|failure| failure.owner == Owner::Policy), "{:?}", refused.failures);
    assert!(before.iter().all(|(key, entry)| node.fake.state().holds(key, &entry.object)), "some of it is gone");
    node.fake.fail(ports(0, 9), None);
    let done = node.wait("the change", |applied| applied.generation == 2 && applied.failures.is_empty());
    assert!(is(&done.mirror, &wanted));
    assert!(is(&node.fake.state(), &wanted), "what stood between is left");
}

#[test]
fn a_handshake_is_looked_for_until_it_has_come_about_though_nobody_tells() {
    let name_of_key = || Key::KeyPair { name: "wireguard-0".into() };
    let link = name("ttxs0");
    let mut wanted = State::new();
    wanted.insert(name_of_key(), Object::KeyPair, Owner::Node);
    let kind = LinkKind::Wireguard { label: "wireguard".into() };
    let device = Link { kind, mac: None, mtu: 1420, group: 0, up: true };
    wanted.insert(Key::Link { ns: Netns::Host, link: link.clone() }, Object::Link(device.into()), Owner::Node);
    let node = Node::on(Fake::new());
    node.handle.want(1, wanted.clone());
    let told = node.wait("the public half of the key", |applied| !applied.host.encryption.public_keys.is_empty());
    assert!(told.host.encryption.handshakes.is_empty());

    let public_key = PublicKey([7; 32]);
    let peer = WgPeer::of("192.0.2.2:51820".parse().unwrap(), 25, []);
    wanted.insert(Key::WgPeer { link: link.clone(), public_key }, Object::WgPeer(peer.into()), Owner::Node);
    node.handle.want(2, wanted.clone());
    let of = (link, public_key);
    node.wait("the peer without a handshake", |applied| applied.host.encryption.handshakes.get(&of) == Some(&false));
    node.fake.shake_hands();
    node.wait("the handshake", |applied| applied.host.encryption.handshakes.get(&of) == Some(&true));
    wanted.remove(&name_of_key());
    node.handle.want(3, wanted);
    node.wait("the end of the key", |applied| applied.host.encryption.public_keys.is_empty());
}
