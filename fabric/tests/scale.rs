//! What a plan costs with thousands of nodes. Times are printed and never asserted; what is asserted is that the work
//! done for one node's change does not grow with the cluster.
//!
//! `cargo test --release -p tartan-fabric --test scale -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_fabric::selftest::{MANY, Path, Sample, Target, targets};
use tartan_fabric::{Memo, Owned, plan};
use tartan_model::{Advert, Endpoint, Features, Heard, Host, HostLink, Node, PerFamily, Programmed, StoreEvent, World};
use tartan_model::{Kind, Object, ObjectId};
use tartan_netstate::{Mac, diff};

const NODES: u32 = 5_000;
const INSTANCE: &str = "vxlan/ipv4/vni1/port8472";

fn name(i: u32) -> Arc<str> {
    format!("n{i}").into()
}

fn node(i: u32) -> Node {
    let [_, _, high, low] = i.to_be_bytes();
    Node {
        name: name(i),
        uid: format!("uid-{i}").into(),
        internal_ips: vec![format!("10.200.{high}.{low}").parse().unwrap()],
        external_ips: Vec::new(),
        pod_cidrs: vec![
            format!("10.{}.{low}.0/24", 100 + u32::from(high)).parse().unwrap(),
            format!("fd00:{i:x}::/64").parse().unwrap(),
        ],
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        placement: Default::default(),
    }
}

fn advert(i: u32, heartbeat: u64) -> Advert {
    let [_, _, high, low] = i.to_be_bytes();
    let node = node(i);
    let address = node.internal_ips[0];
    Advert {
        node: name(i),
        node_uid: node.uid,
        addresses: PerFamily { v4: Some(address), v6: None },
        fabric_addresses: PerFamily { v4: Some(node.pod_cidrs[0].network()), v6: Some(node.pod_cidrs[1].network()) },
        blocks: node.pod_cidrs,
        mtu: 1450,
        accepts: vec![Endpoint {
            instance: INSTANCE.into(),
            address,
            mac: Some(Mac([2, 0, 0, 0, high, low])),
            public_key: None,
        }],
        sends: vec![INSTANCE.into()],
        joining: false,
        leaving: [].into(),
        acknowledges: None,
        edition: 1,
        heartbeat,
    }
}

/// A world in which every node has been heard, this one among them.
fn world(now: Instant, nodes: u32) -> (World, Owned) {
    let mut world = World::new(name(0), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
    for i in 0..nodes {
        world.nodes.insert(name(i), Arc::new(node(i)));
        world.adverts.insert(name(i), Heard { advert: Arc::new(advert(i, 0)), at: now, sends_changed: now });
    }
    let link = HostLink {
        name: "eth0".into(),
        kind: "".into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec!["10.200.0.0/16".parse().unwrap()],
        accept_ra: 0,
    };
    world.host = Arc::new(Host { links: vec![link], ..Host::default() });
    let own = advert(0, 0);
    let owned = Owned { blocks: own.blocks, fabric_addresses: own.fabric_addresses, mtu_in_force: None };
    (world, owned)
}

fn say(world: &mut World, advert: Advert, now: Instant) {
    let id = ObjectId { kind: Kind::NodeNetwork, name: advert.node.clone() };
    world.store(StoreEvent::Put(id, Object::from(advert), 0.into()), now);
}

/// The middle one of many runs.
fn median(runs: usize, mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..runs).map(|_| run()).collect();
    times.sort();
    times[runs / 2]
}

/// Plans, and has the kernel hold what is planned.
fn programmed(world: &mut World, owned: &Owned, now: Instant) -> Memo {
    let mut memo = Memo::default();
    let mirror = plan(&mut memo, world, owned, now).state.clone();
    world.asked = 1;
    world.programmed = Programmed { mirror, read: true, generation: 1, ..Programmed::default() };
    memo
}

#[test]
fn of_many_paths_those_that_somebody_talks_over_are_probed() {
    let now = Instant::now();
    let (mut world, owned) = world(now, 5_000);
    let memo = programmed(&mut world, &owned, now);
    let sample = |addresses: &[IpAddr], turn, kept: &[Arc<str>]| Sample {
        talked_to: addresses.iter().copied().collect(),
        kept: kept.iter().cloned().collect(),
        turn,
    };
    let of = |sample: &Sample| targets(memo.last(), &world, Some(sample)).unwrap();
    let names = |targets: BTreeMap<Path, Target>| targets.into_keys().map(|(name, _)| name).collect::<BTreeSet<_>>();
    assert_eq!(targets(memo.last(), &world, None), None, "who is talked to has to be said");
    let some = ["10.100.7.9", "10.100.7.255", "10.103.232.0", "192.0.2.1", "fd00:9::1"].map(|it| it.parse().unwrap());
    assert_eq!(names(of(&sample(&some, 5, &[]))), BTreeSet::from([name(7), name(9), name(1_000)]));
    let everybody: Vec<IpAddr> = (0..5_000).map(|i| node(i).pod_cidrs[0].network()).collect();
    let (mut seen, mut turns) = (BTreeSet::new(), 0);
    while seen.len() < 4_999 {
        let targets = of(&sample(&everybody, turns, &[name(77)]));
        assert_eq!(targets.len(), MANY, "turn {turns}");
        let now = names(targets);
        assert!(now.contains(&name(77)), "one that is kept is left out in turn {turns}");
        seen.extend(now);
        turns += 1;
    }
    assert_eq!(turns, 4_998_u64.div_ceil(MANY as u64 / 2 - 1), "each has its turn, and none waits longer");

    let (mut world, owned) = self::world(now, 100);
    let memo = programmed(&mut world, &owned, now);
    assert_eq!(targets(memo.last(), &world, None).unwrap().len(), 2 * 99, "of few all, in both families");
}

#[test]
#[ignore = "takes a release build to mean anything"]
fn five_thousand_nodes() {
    let now = Instant::now();
    let (mut world, owned) = world(now, NODES);
    let full = median(5, || {
        let started = Instant::now();
        let out = plan(&mut Memo::default(), &world, &owned, now).clone();
        let took = started.elapsed();
        assert_eq!(out.peers.values().filter(|peer| peer.used().next().is_some()).count() as u32, NODES - 1);
        took
    });

    let mut memo = programmed(&mut world, &owned, now);
    plan(&mut memo, &world, &owned, now);
    let mut i = 0;
    let one = median(200, || {
        i += 1;
        let mut next = advert(i, 1);
        next.accepts[0].address = format!("10.201.0.{}", i % 250).parse().unwrap();
        next.addresses.v4 = Some(next.accepts[0].address);
        let started = Instant::now();
        say(&mut world, next, now);
        let out = plan(&mut memo, &world, &owned, now);
        let change = diff(&world.programmed.mirror, &out.state, |_| true);
        let took = started.elapsed();
        assert_eq!(change.steps.len(), 1, "its forwarding entry: {:?}", change.steps);
        world.programmed.mirror = out.state.clone();
        took
    });

    let mut beat = 10;
    let heartbeat = median(200, || {
        beat += 1;
        let before = memo.last().state.clone();
        let started = Instant::now();
        say(&mut world, advert(NODES - 1, beat), now);
        let out = plan(&mut memo, &world, &owned, now);
        let took = started.elapsed();
        assert_eq!(before.differing_keys(&out.state).count(), 0);
        took
    });
    println!(
        "{NODES} nodes: full plan {full:?}; one node's change, planned and compared {one:?}; a heartbeat {heartbeat:?}"
    );
}
