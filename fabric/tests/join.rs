//! A node that joins, and what keeps it waiting.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_fabric::{Memo, Out, Owned, plan};
use tartan_model::{
    Acknowledged, Advert, Config, Encryption, Endpoint, FabricMode, Features, Heard, Host, HostLink, Kind, Node,
    Object, ObjectId, PerFamily, Programmed, Revision, Said, StoreEvent, World,
};

/// What there is of a peer.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    /// It has acknowledged the word that was said last.
    Acknowledges,
    /// An earlier word.
    AcknowledgesOld,
    Silent,
    /// Its agent is too old to acknowledge.
    CannotSay,
    /// It has not said yet what it accepts: no route leads there.
    AcceptsNothing,
    /// Its lease is over.
    Dead,
}

use Peer::{AcceptsNothing, Acknowledges, AcknowledgesOld, CannotSay, Dead, Silent};

/// Whether this node asks to be acknowledged, and whether pods may be placed on it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stands {
    Waits,
    Late,
    Joined,
}

const LONGEST: Duration = Duration::from_secs(30);
const INSTANCE: &str = "host-gw";

fn node(number: u8) -> Node {
    Node {
        name: format!("n{number}").into(),
        uid: format!("uid of n{number}").into(),
        internal_ips: vec![[192, 0, 2, number + 1].into()],
        external_ips: Vec::new(),
        pod_cidrs: vec![format!("10.1.{number}.0/24").parse().unwrap()],
        labels: Default::default(),
        annotations: Default::default(),
        placement: Default::default(),
    }
}

fn advert(number: u8) -> Advert {
    let node = node(number);
    let address = node.internal_ips[0];
    Advert {
        node: node.name,
        node_uid: node.uid,
        addresses: PerFamily { v4: Some(address), v6: None },
        fabric_addresses: PerFamily { v4: Some([10, 1, number, 0].into()), v6: None },
        blocks: node.pod_cidrs,
        mtu: 1500,
        accepts: vec![Endpoint { instance: INSTANCE.into(), address, mac: None, public_key: None }],
        sends: vec![INSTANCE.into()],
        joining: false,
        leaving: [].into(),
        acknowledges: Some([].into()),
        edition: 5,
        heartbeat: 1,
    }
}

/// Node n0 a moment after its first plan was applied.
fn world(peers: &[Peer], at: Instant) -> World {
    let mut world = World::new("n0".into(), Features { ipv6: false, vxlan: true, nft: true, wireguard: true });
    world.config = Config { fabric: FabricMode::HostGw, lease: Duration::from_secs(300), ..Config::default() }.into();
    let eth0 = HostLink {
        name: "eth0".into(),
        kind: "".into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec!["192.0.2.1/24".parse().unwrap()],
        accept_ra: 0,
    };
    world.host = Arc::new(Host { links: vec![eth0], ..Host::default() });
    (world.began_empty, world.up_since, world.leases_from) = (true, Some(at), Some(at));
    world.nodes.insert("n0".into(), node(0).into());
    for (number, peer) in (1..).zip(peers) {
        let mut advert = advert(number);
        match peer {
            AcceptsNothing => advert.accepts.clear(),
            CannotSay => advert.acknowledges = None,
            Acknowledges | AcknowledgesOld | Silent | Dead => {}
        }
        let at = if *peer == Dead { at - Duration::from_secs(3600) } else { at };
        if *peer == Dead {
            world.leases_from = Some(at);
        }
        world.nodes.insert(advert.node.clone(), node(number).into());
        world.adverts.insert(advert.node.clone(), Heard { advert: advert.into(), at, sends_changed: at });
    }
    world
}

fn planned(world: &World, now: Instant) -> Out {
    let owned = Owned {
        blocks: node(0).pod_cidrs,
        fabric_addresses: PerFamily { v4: Some([10, 1, 0, 0].into()), v6: None },
        mtu_in_force: None,
    };
    plan(&mut Memo::default(), world, &owned, now).clone()
}

/// The kernel does what is planned, and the cluster hears what is said.
fn settle(world: &mut World, now: Instant) {
    for _ in 0..4 {
        let out = planned(world, now);
        world.asked = 1;
        world.programmed = Programmed { mirror: out.state, read: true, generation: 1, ..Programmed::default() };
        let advert = Arc::new(out.advert.unwrap());
        world.said = Some(Said::heard(advert.clone()));
        world.adverts.insert("n0".into(), Heard { advert, at: now, sends_changed: now });
    }
}

fn acknowledge(world: &mut World, peers: &[Peer]) {
    let edition = world.said.as_ref().unwrap().last.edition;
    for (number, peer) in (1..).zip(peers) {
        let edition = match peer {
            Acknowledges => edition,
            AcknowledgesOld => edition - 1,
            _ => continue,
        };
        let name: Arc<str> = format!("n{number}").into();
        let heard = world.adverts.get_mut(&name).unwrap();
        let words = [Acknowledged { node: "n9".into(), edition }, Acknowledged { node: "n0".into(), edition }];
        heard.advert = Advert { acknowledges: Some(words.into()), ..(*heard.advert).clone() }.into();
    }
}

fn stands(out: &Out) -> Stands {
    match (out.advert.as_ref().unwrap().joining, out.open) {
        (true, false) => Stands::Waits,
        (true, true) => Stands::Late,
        (false, true) => Stands::Joined,
        (false, false) => panic!("a node that waits for nobody is closed"),
    }
}

fn said(out: &Out) -> Vec<&str> {
    let joined = out.conditions.iter().filter(|condition| condition.reason == "JoinedUnheard");
    joined.map(|condition| &*condition.message).collect()
}

#[test]
fn a_node_joins_when_its_peers_have_acknowledged_or_after_a_while() {
    let nine_and_a_silent_one = [&[Acknowledges; 9][..], &[Silent]].concat();
    let eight_and_two = [&[Acknowledges; 8][..], &[Silent; 2]].concat();
    let table: [(&[Peer], Stands, &str); 8] = [
        (&[], Stands::Joined, ""),
        (&[Acknowledges, Acknowledges], Stands::Joined, ""),
        (&[Acknowledges, Silent], Stands::Waits, "its 2 peers: 1 of them have not acknowledged it (n2)"),
        (&[AcknowledgesOld], Stands::Waits, "its 1 peers: 1 of them have not acknowledged it (n1)"),
        (&[CannotSay, Dead], Stands::Joined, ""),
        (
            &[AcceptsNothing, Acknowledges],
            Stands::Waits,
            "its 2 peers: 1 of them have not acknowledged it (n1), and its kernel does not hold the routes to n1",
        ),
        (&nine_and_a_silent_one, Stands::Joined, ""),
        (&eight_and_two, Stands::Waits, "its 10 peers: 2 of them have not acknowledged it (n10, n9)"),
    ];
    for (peers, wanted, late) in table {
        let began = Instant::now();
        let mut world = world(peers, began);
        settle(&mut world, began);
        acknowledge(&mut world, peers);
        let out = planned(&world, began);
        assert_eq!((stands(&out), said(&out)), (wanted, vec![]), "{late}");
        if wanted == Stands::Joined {
            continue;
        }
        assert!(out.wake_at.is_some_and(|at| at <= began + LONGEST), "{late}");
        let out = planned(&world, began + LONGEST);
        assert_eq!(stands(&out), Stands::Late, "{late}");
        assert!(said(&out).iter().any(|message| message.contains(late)), "{late}: {:?}", said(&out));
        // Who acknowledges later mends it.
        let later: Vec<Peer> =
            peers.iter().map(|peer| if *peer == AcceptsNothing { *peer } else { Acknowledges }).collect();
        acknowledge(&mut world, &later);
        let mended = !peers.contains(&AcceptsNothing);
        let out = planned(&world, began + LONGEST);
        assert_eq!((stands(&out) == Stands::Joined, said(&out).is_empty()), (mended, mended), "{late}");
    }
}

#[test]
fn once_joined_a_node_stays_joined_until_it_boots_or_is_made_anew() {
    let began = Instant::now();
    let mut world = world(&[Acknowledges], began);
    settle(&mut world, began);
    acknowledge(&mut world, &[Acknowledges]);
    settle(&mut world, began);
    assert_eq!(stands(&planned(&world, began)), Stands::Joined);
    world.nodes.insert("n2".into(), node(2).into());
    world.adverts.insert("n2".into(), Heard { advert: advert(2).into(), at: began, sends_changed: began });
    assert_eq!(stands(&planned(&world, began)), Stands::Joined, "another node comes");

    // An agent that starts again has said nothing yet; what it said before is in the store.
    world.said = None;
    world.began_empty = false;
    assert_eq!(stands(&planned(&world, began)), Stands::Joined, "the agent starts again");
    world.began_empty = true;
    assert_eq!(stands(&planned(&world, began)), Stands::Waits, "the node boots");
    world.began_empty = false;
    world.nodes.insert("n0".into(), Node { uid: "another".into(), ..node(0) }.into());
    assert_eq!(stands(&planned(&world, began)), Stands::Waits, "the Node is made anew");
    // However long the agent runs already, peers have all the time to hear of it.
    let made = began + LONGEST * 2;
    let id = ObjectId { kind: Kind::Node, name: "n0".into() };
    let third = Object::Node(Node { uid: "a third".into(), ..node(0) }.into());
    world.store(StoreEvent::Put(id, third, Revision::from(1)), made);
    assert_eq!(stands(&planned(&world, made + LONGEST / 2)), Stands::Waits, "once more");
    assert_eq!(stands(&planned(&world, made + LONGEST)), Stands::Late);
}

#[test]
fn a_peer_that_joins_is_acknowledged_once_its_routes_are_in_the_kernel() {
    let began = Instant::now();
    let mut world = world(&[Silent, Silent], began);
    let name: Arc<str> = "n1".into();
    world.adverts.get_mut(&name).unwrap().advert = Advert { joining: true, ..advert(1) }.into();
    let acknowledged = |world: &World| planned(world, began).advert.unwrap().acknowledges.unwrap();
    assert!(acknowledged(&world).is_empty(), "nothing is in the kernel");
    settle(&mut world, began);
    let edition = world.said.as_ref().unwrap().last.edition;
    assert_eq!(*acknowledged(&world), [Acknowledged { node: name.clone(), edition: 5 }]);
    assert_eq!(planned(&world, began).advert.unwrap().edition, edition, "an acknowledgement is no new word");
    world.adverts.get_mut(&name).unwrap().advert = advert(1).into();
    assert!(acknowledged(&world).is_empty(), "it has joined");
}

#[test]
fn a_peer_that_is_reached_in_clear_is_waited_for_like_any_other() {
    let began = Instant::now();
    let mut world = world(&[Silent], began);
    world.config = Config { encryption: Encryption::Wireguard, ..Config::clone(&world.config) }.into();
    settle(&mut world, began);
    let out = planned(&world, began);
    assert!(out.conditions.iter().any(|condition| condition.reason == "Unencrypted"), "{:?}", out.conditions);
    assert_eq!(stands(&out), Stands::Waits);
    acknowledge(&mut world, &[Acknowledges]);
    assert_eq!(stands(&planned(&world, began)), Stands::Joined);
}
