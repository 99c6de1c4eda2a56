//! What comes of what an agent found and what it wants, as tables.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::time::Instant;

use tartan_model::{Features, Host, Programmed};
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_METRIC};
use tartan_netstate::nft::{ElementData, ElementKey};
use tartan_netstate::{Link, LinkKind, Mac, PodNetns, Route, Scope};

use super::*;

fn route(dst: &str, dev: &str) -> (Key, Object) {
    let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: dst.parse().unwrap(), metric: ROUTE_METRIC };
    (key, Object::Route(Route::on_link(LinkName::new(dev).unwrap()).into()))
}

fn element(set: &str, range: &str) -> (Key, Object) {
    let key = Key::NftElement { set: set.into(), key: ElementKey::prefix(range.parse().unwrap()) };
    (key, Object::NftElement(ElementData::default()))
}

fn address(link: &str) -> (Key, Object) {
    let link = LinkName::new(link).unwrap();
    let address = "192.0.2.1/32".parse().unwrap();
    (Key::Address { ns: Netns::Host, link, address }, Object::Address(Scope::Link))
}

fn link(name: &str) -> (Key, Object) {
    let made = Link { kind: LinkKind::Bridge, mac: Some(Mac([2; 6])), mtu: 1500, group: 0, up: true };
    (Key::Link { ns: Netns::Host, link: LinkName::new(name).unwrap() }, Object::Link(made.into()))
}

fn in_pod(value: &str) -> (Key, Object) {
    let ns = Netns::from(PodNetns { dev: 1, ino: 2, path: "/run/netns/a".into() });
    (Key::Sysctl { ns, name: "ipv4/ip_forward".into() }, Object::Sysctl(value.into()))
}

fn state(entries: &[(Key, Object)], owner: Owner) -> State {
    entries.iter().map(|(key, object)| (key.clone(), Entry { object: object.clone(), owner: owner.clone() })).collect()
}

/// What comes of what was found, and is wanted, while World is not whole.
fn check(found: &[(Key, Object)], wanted: &[(Key, Object)], kept: &[(Key, Object)]) {
    let mut world = World::new("n1".into(), Features::default());
    let mirror = state(found, Owner::Read);
    world.programmed(
        Programmed { mirror, read: true, ..Programmed::default() },
        Arc::new(Host::default()),
        Instant::now(),
    );
    let objects = |state: &State| -> Vec<(Key, Object)> {
        state.iter().map(|(key, entry)| (key.clone(), entry.object.clone())).collect()
    };
    let mut inherited = Inherited::default();
    let once = objects(inherited.kept(&world, &state(wanted, Owner::Node)));
    assert_eq!(once, objects(&state(kept, Owner::Read)), "found {found:?}, wanted {wanted:?}");
    // What others take away from the kernel later is put back: it is no less wanted.
    world.programmed(Programmed { read: true, ..Programmed::default() }, Arc::new(Host::default()), Instant::now());
    assert_eq!(objects(inherited.kept(&world, &state(wanted, Owner::Node))), once);
}

#[test]
fn what_is_there_stays_as_it_is_and_what_is_missing_comes() {
    let there = route("10.2.0.0/24", "ttx1");
    check(&[], std::slice::from_ref(&there), std::slice::from_ref(&there));
    check(std::slice::from_ref(&there), &[], std::slice::from_ref(&there));
    check(std::slice::from_ref(&there), &[route("10.2.0.0/24", "eth0")], std::slice::from_ref(&there));
    let other = route("10.3.0.0/24", "ttx1");
    check(std::slice::from_ref(&there), std::slice::from_ref(&other), &[there.clone(), other.clone()]);
}

#[test]
fn pods_come_and_go_as_ever() {
    let pods = route("10.1.0.5/32", "ttp1");
    check(std::slice::from_ref(&pods), &[], &[]);
    check(std::slice::from_ref(&pods), &[route("10.1.0.5/32", "ttp2")], &[route("10.1.0.5/32", "ttp2")]);
    for (of_pod, of_node) in [(link("ttp1"), link("ttx1")), (address("ttp1"), address("lo"))] {
        check(&[of_pod, of_node.clone()], &[], &[of_node]);
    }
    check(&[in_pod("0")], &[], &[]);
    check(&[in_pod("0")], &[in_pod("1")], &[in_pod("1")]);
    check(&[element("hostports4", "10.0.0.0/8")], &[], &[]);
    check(&[element("inside4", "10.0.0.0/8")], &[], &[element("inside4", "10.0.0.0/8")]);
}

#[test]
fn a_table_that_is_there_takes_pods_elements_only() {
    let nft = [(Key::NftTable, Object::NftTable), element("inside4", "10.0.0.0/16")];
    let wanted = state(&nft, Owner::Node);
    let mut world = World::new("n1".into(), Features::default());
    assert_eq!(Inherited::default().beside(&world, &wanted), wanted, "there is none yet");
    world.inherited = state(&[(Key::NftTable, Object::NftTable), element("inside4", "10.0.0.0/8")], Owner::Read);
    assert!(Inherited::default().beside(&world, &wanted).is_empty(), "the two ranges overlap");
    let of_pod = state(&[element("hairpin4", "10.1.0.5/32")], Owner::Pod("a".into()));
    let mut both = wanted.clone();
    both.replace(&State::new(), &of_pod);
    assert_eq!(Inherited::default().beside(&world, &both), of_pod);
}
