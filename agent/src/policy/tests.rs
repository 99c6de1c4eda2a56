//! What a pod that comes lacks, what is said, and when nothing is planned at all.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::time::Instant;

use tartan_model::{Config, Features, Kind, Labels, Namespace, ObjectId, PerFamily, Pod, PolicyText, StoreEvent};
use tartan_netstate::{Mac, PodNetns};

use super::*;

/// Everything of the store is read, and there is nothing in it.
fn whole() -> World {
    let mut world = World::new("n1".into(), Features::default());
    for kind in Kind::ALL {
        world.store(StoreEvent::Init(kind), Instant::now());
        world.store(StoreEvent::Synced(kind), Instant::now());
    }
    world
}

fn set_mode(world: &mut World, policy: PolicyMode) {
    world.config = Arc::new(Config { policy, ..Config::default() });
}

fn attachment(namespace: &str, name: &str) -> Attachment {
    Attachment {
        id: Attachment::id_of(name, "eth0"),
        container: name.into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: 1, path: "/run/netns/a".into() },
        pod_namespace: namespace.into(),
        pod_name: name.into(),
        addresses: PerFamily::first_of(["10.244.1.9".parse().unwrap()]),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ports: Vec::new(),
        answered: false,
    }
}

fn pod(node: &str) -> Pod {
    Pod {
        node: node.into(),
        labels: Labels::default(),
        service_account: "default".into(),
        addresses: Box::default(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    }
}

fn put_namespace(world: &mut World) {
    world.namespaces.insert("shop".into(), Namespace { name: "shop".into(), labels: Labels::default() }.into());
}

fn put_policies(world: &mut World, json: &str, count: usize) {
    for number in 0..count {
        let id = ObjectId { kind: Kind::NetworkPolicy, name: format!("shop/p{number}").into() };
        world.policies.insert(id, PolicyText { json: json.into() }.into());
    }
}

/// What a pod lacks in this world, planned from nothing.
fn lacking(world: &World, attachment: &Attachment) -> String {
    let planned = Policy::default().plan(world);
    lacks(world, planned.as_ref().map(|out| &out.tables), attachment).unwrap_or_default()
}

#[test]
fn what_a_pod_lacks_is_named() {
    type Change = fn(&mut World);
    let put = |world: &mut World, pod: Pod| drop(world.pods.insert("shop/a".into(), pod.into()));
    // What is true besides the attachment, and what is said of it.
    let table: [(Change, &str); 9] = [
        (|_| {}, "this node has not heard of Pod shop/a"),
        (put_namespace, "this node has not heard of Pod shop/a"),
        (
            |world| {
                world.pods.insert("shop/a".into(), pod("n1").into());
            },
            "this node has not heard of Namespace shop",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), pod("n2").into());
            },
            "Pod shop/a is bound to n2, as far as this node (n1) has heard",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), pod("").into());
            },
            "Pod shop/a is bound to no node, as far as this node (n1) has heard",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), Pod { host_network: true, ..pod("n1") }.into());
            },
            "Pod shop/a is of the host network, and needs no address",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), Pod { finished: true, ..pod("n1") }.into());
            },
            "Pod shop/a has ended, as far as this node has heard",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), pod("n1").into());
            },
            "",
        ),
        (
            |world| {
                put_namespace(world);
                world.pods.insert("shop/a".into(), pod("n1").into());
                put_policies(world, "{\"spec\":{\"podSelector\":7}}", 1);
            },
            "",
        ),
    ];
    for (change, want) in table {
        let mut world = whole();
        change(&mut world);
        assert_eq!(lacking(&world, &attachment("shop", "a")), want);
    }
    let mut world = whole();
    put(&mut world, pod("n1"));
    for mode in [PolicyMode::Audit, PolicyMode::Off] {
        set_mode(&mut world, mode);
        assert_eq!(lacking(&world, &attachment("shop", "a")), "", "{mode}: it may start all the same");
    }
}

#[test]
fn what_no_kubelet_started_waits_for_nothing() {
    let mut world = whole();
    let plain = attachment("", "");
    world.attach(plain.clone());
    assert_eq!(lacking(&world, &plain), "");
    // Half a name is no pod's, and no plain container's either.
    let half = attachment("shop", "");
    world.attach(half.clone());
    assert_eq!(lacking(&world, &half), "this node has not heard of Pod shop/");
}

#[test]
fn what_has_not_been_read_is_said_with_what_is_missing() {
    let mut world = World::new("n1".into(), Features::default());
    world.recall(Vec::new(), Instant::now());
    world.store(StoreEvent::Away(None, "nobody at home".into()), Instant::now());
    let want = "this node has not heard of Pod shop/a; it has not read the store: nobody at home";
    assert_eq!(lacking(&world, &attachment("shop", "a")), want);
}

#[test]
fn off_is_off_and_back_on_is_as_from_the_start() {
    let mut world = whole();
    put_namespace(&mut world);
    world.pods.insert("shop/a".into(), pod("n1").into());
    put_policies(&mut world, "{\"spec\":{\"podSelector\":{}}}", 1);
    let mut planner = Policy::default();
    let tables = planner.plan(&world).unwrap().tables;
    assert!(tables.subjects.contains_key("shop/a"));
    set_mode(&mut world, PolicyMode::Off);
    assert!(planner.plan(&world).is_none());
    assert_eq!(not_enforced(&world).unwrap().reason, "PolicyOff");
    set_mode(&mut world, PolicyMode::Enforce);
    assert_eq!(planner.plan(&world).unwrap().tables, tables);
    world.policies.clear();
    for mode in [PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Off] {
        set_mode(&mut world, mode);
        assert_eq!(not_enforced(&world), None, "{mode}: there is nothing to enforce");
    }
}

#[test]
fn faults_of_policies_are_said_up_to_a_number() {
    for (faults, shown) in [(0, 0), (1, 1), (SAID, SAID), (SAID + 3, SAID + 1)] {
        let mut world = whole();
        put_policies(&mut world, "{\"spec\":{\"podSelector\":{},\"colour\":1}}", faults);
        let said = said(&Policy::default().plan(&world).unwrap());
        assert_eq!(said.len(), shown, "{said:#?}");
        let more = said.iter().find(|it| it.reason == "MoreToSay").map(|it| it.message.clone());
        assert_eq!(more.as_deref(), (faults > SAID).then_some("3 more faults of policies are not shown"));
        assert!(said.iter().take(SAID).all(|it| it.about.starts_with("NetworkPolicy/shop/p")), "{said:#?}");
    }
}
