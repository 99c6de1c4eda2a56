//! How World reads a store: what each event may add, and what only a complete list may take away.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{
    Advert, Block, Condition, Config, FabricMode, Features, Flannel, FlannelBackend, Kind, Labels, Namespace, Node,
    NodeCondition, Object, ObjectId, PerFamily, Pod, PolicyMode, PolicyText, Pool, Reservation, Selector, StoreEvent,
    World,
};

use StoreEvent::{Away, Init, Invalid, Synced};

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}

/// An object of the kind, of which `seed` makes another version.
fn object(kind: Kind, name: &str, seed: u8) -> Object {
    let name: Arc<str> = name.into();
    match kind {
        Kind::Node => Object::Node(
            Node {
                name,
                uid: "u".into(),
                internal_ips: vec![IpAddr::from([192, 0, 2, seed])],
                external_ips: Vec::new(),
                pod_cidrs: Vec::new(),
                labels: Default::default(),
                annotations: Default::default(),
                placement: Default::default(),
            }
            .into(),
        ),
        Kind::NetworkConfig => {
            let fabric = if seed == 1 { FabricMode::HostGw } else { FabricMode::Vxlan };
            Object::Config(Config { fabric, ..Config::default() }.into())
        }
        Kind::NodeNetwork => Object::from(Advert {
            node: name,
            node_uid: "u".into(),
            addresses: PerFamily::default(),
            fabric_addresses: PerFamily::default(),
            blocks: Vec::new(),
            mtu: 1450,
            accepts: Vec::new(),
            sends: Vec::new(),
            joining: false,
            leaving: [].into(),
            acknowledges: None,
            edition: 0,
            heartbeat: u64::from(seed),
        }),
        Kind::IpPool => Object::Pool(
            Pool {
                name,
                cidr: format!("10.{seed}.0.0/16").parse().expect("a range"),
                block_size: 26,
                nodes: Selector::all(),
                namespaces: Selector::all(),
                disabled: false,
                encapsulation: None,
            }
            .into(),
        ),
        Kind::IpReservation => Object::Reservation(
            Reservation { name, cidrs: vec![format!("10.{seed}.0.0/16").parse().expect("a range")] }.into(),
        ),
        Kind::IpBlock => Object::Block(
            Block {
                cidr: cidr_of(&name).parse().expect("a range"),
                pool: "p".into(),
                node: format!("n{seed}").into(),
                node_uid: "u".into(),
                parts: Vec::new(),
            }
            .into(),
        ),
        Kind::Namespace => Object::Namespace(Namespace { name, labels: seeded(seed) }.into()),
        Kind::Pod => Object::Pod(
            Pod {
                uid: 0,
                node: "n1".into(),
                labels: seeded(seed),
                service_account: "default".into(),
                addresses: Box::default(),
                ports: Box::default(),
                host_network: false,
                finished: false,
            }
            .into(),
        ),
        Kind::ConfigMap => Object::Flannel(
            Flannel { networks: PerFamily::default(), backend: FlannelBackend::Other(seed.to_string().into()) }.into(),
        ),
        Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy => Object::Policy(PolicyText { json: seed.to_string().into() }.into()),
    }
}

fn seeded(seed: u8) -> Labels {
    [("seed", seed.to_string().as_str())].into_iter().collect()
}

fn seed_of(labels: &Labels) -> &str {
    labels.iter().next().map_or("", |(_, seed)| seed)
}

/// The range a claim of this name is on: `10-1-0-0-26` is on `10.1.0.0/26`.
fn cidr_of(name: &str) -> String {
    let parts: Vec<&str> = name.split('-').collect();
    format!("{}/{}", parts[..4].join("."), parts[4])
}

fn put(kind: Kind, name: &str, seed: u8) -> StoreEvent {
    StoreEvent::Put(id(kind, name), object(kind, name, seed), u128::from(seed).into())
}

fn condition(about: String) -> Condition {
    let [field, message, fix] = ["spec", "wrong", "mend it"].map(str::to_owned);
    Condition { about, field, reason: "BadValue", message, fix }
}

fn invalid(kind: Kind, name: &str) -> StoreEvent {
    Invalid(id(kind, name), condition(id(kind, name).to_string()).into())
}

fn delete(kind: Kind, name: &str) -> StoreEvent {
    StoreEvent::Delete(id(kind, name))
}

/// What a world knows of the kind, as `name=seed`.
fn known(world: &World, kind: Kind) -> String {
    let names: Vec<String> = match kind {
        Kind::Node => {
            world.nodes.iter().map(|(name, node)| format!("{name}={}", octet(node.internal_ips[0], 3))).collect()
        }
        Kind::NetworkConfig => vec![format!("default={}", u8::from(world.config.fabric == FabricMode::HostGw))],
        Kind::NodeNetwork => {
            world.adverts.iter().map(|(name, heard)| format!("{name}={}", heard.advert.heartbeat)).collect()
        }
        Kind::IpPool => {
            world.pools.iter().map(|(name, pool)| format!("{name}={}", octet(pool.cidr.addr(), 1))).collect()
        }
        Kind::IpReservation => {
            world.reservations.iter().map(|(name, kept)| format!("{name}={}", octet(kept.cidrs[0].addr(), 1))).collect()
        }
        Kind::IpBlock => {
            world.blocks.iter().map(|(cidr, block)| format!("{}={}", Block::name_of(cidr), &block.node[1..])).collect()
        }
        Kind::Namespace => {
            world.namespaces.iter().map(|(name, namespace)| format!("{name}={}", seed_of(&namespace.labels))).collect()
        }
        Kind::Pod => world.pods.iter().map(|(name, pod)| format!("{name}={}", seed_of(&pod.labels))).collect(),
        Kind::ConfigMap => {
            world.flannels.iter().map(|(name, flannel)| format!("{name}={}", flannel.backend.as_str())).collect()
        }
        Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy => {
            let of_kind = world.policies.iter().filter(|(id, _)| id.kind == kind);
            of_kind.map(|(id, policy)| format!("{}={}", id.name, policy.json)).collect()
        }
    };
    names.join(" ")
}

fn octet(address: IpAddr, index: usize) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[index],
        IpAddr::V6(address) => address.octets()[index],
    }
}

/// Plays the events, and compares what is known of the kind after each.
fn check(kind: Kind, steps: Vec<(StoreEvent, &str)>) {
    let mut world = World::new("n1".into(), Features::default());
    for (step, (event, want)) in steps.into_iter().enumerate() {
        world.store(event.clone(), Instant::now());
        assert_eq!(known(&world, kind), want, "{kind}, step {step}: {event:?}");
    }
}

/// Two object names of the kind.
fn names(kind: Kind) -> (&'static str, &'static str) {
    if kind == Kind::IpBlock { ("10-1-0-0-26", "10-1-0-64-26") } else { ("a", "b") }
}

/// Every kind of which there may be several.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkConfig)
}

#[test]
fn only_a_complete_list_removes() {
    for kind in kinds() {
        let (a, b) = names(kind);
        let (a1, a2, b1) = (format!("{a}=1"), format!("{a}=2"), format!("{b}=1"));
        let both = format!("{a1} {b1}");
        check(
            kind,
            vec![
                (Init(kind), ""),
                (put(kind, a, 1), &a1),
                (put(kind, b, 1), &both),
                (Synced(kind), &both),
                (Init(kind), &both),
                (put(kind, a, 2), &format!("{a2} {b1}")),
                (Away(None, "cut off in the middle".into()), &format!("{a2} {b1}")),
                (Init(kind), &format!("{a2} {b1}")),
                (put(kind, a, 1), &both),
                (Synced(kind), &a1),
                (put(kind, b, 1), &both),
                (delete(kind, a), &b1),
                (delete(kind, a), &b1),
                (Away(Some(kind), "cut off".into()), &b1),
                (Synced(kind), &b1),
                (put(kind, a, 1), &both),
            ],
        );
    }
}

#[test]
fn what_cannot_be_read_stays() {
    for kind in kinds() {
        let (a, b) = names(kind);
        let (a1, a2) = (format!("{a}=1"), format!("{a}=2"));
        check(
            kind,
            vec![
                (Init(kind), ""),
                (invalid(kind, b), ""),
                (put(kind, a, 1), &a1),
                (Synced(kind), &a1),
                (invalid(kind, a), &a1),
                (Init(kind), &a1),
                (invalid(kind, a), &a1),
                (Synced(kind), &a1),
                (put(kind, a, 2), &a2),
                (invalid(kind, a), &a2),
                (delete(kind, a), ""),
            ],
        );
    }
}

#[test]
fn a_vanished_configuration_stays_in_force() {
    let kind = Kind::NetworkConfig;
    check(
        kind,
        vec![
            (Init(kind), "default=0"),
            (put(kind, "default", 1), "default=1"),
            (Synced(kind), "default=1"),
            (invalid(kind, "default"), "default=1"),
            (delete(kind, "default"), "default=1"),
            (Init(kind), "default=1"),
            (Synced(kind), "default=1"),
            (put(kind, "default", 2), "default=0"),
        ],
    );
}

#[test]
fn lists_of_kinds_are_apart() {
    let mut world = World::new("n1".into(), Features::default());
    for event in [Init(Kind::Node), Init(Kind::IpPool), put(Kind::Node, "a", 1), put(Kind::IpPool, "p", 1)] {
        world.store(event, Instant::now());
    }
    world.store(Synced(Kind::IpPool), Instant::now());
    assert!(world.is_synced(Kind::IpPool) && !world.is_synced(Kind::Node));
    for event in [Init(Kind::IpPool), Synced(Kind::IpPool)] {
        world.store(event, Instant::now());
    }
    assert_eq!((known(&world, Kind::Node).as_str(), known(&world, Kind::IpPool).as_str()), ("a=1", ""));
}

#[test]
fn a_first_list_counts_when_all_of_it_was_read() {
    let kind = Kind::NetworkConfig;
    let mut world = World::new("n1".into(), Features::default());
    // event, whether the kind counts as synced after it
    let steps = [
        (Init(kind), false),
        (invalid(kind, "default"), false),
        (Synced(kind), false),
        (put(kind, "default", 1), true),
        (invalid(kind, "default"), true),
        (Init(kind), true),
        (invalid(kind, "default"), true),
        (Synced(kind), true),
        (invalid(kind, "other"), true),
    ];
    for (event, want) in steps {
        world.store(event.clone(), Instant::now());
        assert_eq!(world.is_synced(kind), want, "{event:?}");
    }
    let mut other = World::new("n1".into(), Features::default());
    for event in [Init(kind), invalid(kind, "default"), Synced(kind), delete(kind, "default")] {
        other.store(event, Instant::now());
    }
    assert!(other.is_synced(kind), "what could not be read is gone");
}

/// The Node and the NodeNetwork of a node may go in any order.
#[test]
fn what_a_node_said_goes_when_both_its_objects_are_gone() {
    let (node, network) = (Kind::Node, Kind::NodeNetwork);
    let check = |steps: &[StoreEvent], wanted: &str| {
        let mut world = World::new("n1".into(), Features::default());
        for event in [put(node, "n2", 1), put(network, "n2", 1)].iter().chain(steps) {
            world.store(event.clone(), Instant::now());
        }
        assert_eq!(known(&world, network), wanted, "{steps:?}");
    };
    let gone = [delete(node, "n2"), delete(network, "n2")];
    check(&gone, "");
    check(&gone[..1], "n2=1");
    check(&gone[1..], "n2=1");
    check(&[delete(network, "n2"), delete(node, "n2")], "");
    check(&[delete(network, "n2"), put(network, "n2", 2), delete(node, "n2")], "n2=2");
    check(&[Init(network), Synced(network), delete(node, "n2")], "");
}

#[test]
fn what_another_node_says_of_itself_holds_up_nobody() {
    for (name, counts) in [("n1", false), ("n2", true)] {
        for kind in [Kind::NodeNetwork, Kind::Node] {
            let mut world = World::new("n1".into(), Features::default());
            for event in [Init(kind), invalid(kind, name), Synced(kind)] {
                world.store(event, Instant::now());
            }
            assert_eq!(world.is_synced(kind), counts && kind == Kind::NodeNetwork, "{kind} {name}");
        }
    }
}

#[test]
fn conditions_come_and_go_with_their_objects() {
    let kind = Kind::IpPool;
    let mut world = World::new("n1".into(), Features::default());
    // event, what is invalid after it
    let steps = [
        (Init(kind), ""),
        (invalid(kind, "a"), "a"),
        (invalid(kind, "b"), "a b"),
        (invalid(kind, "c"), "a b c"),
        (Synced(kind), "a b c"),
        (put(kind, "a", 1), "b c"),
        (delete(kind, "b"), "c"),
        (Init(kind), "c"),
        (Synced(kind), ""),
    ];
    for (event, want) in steps {
        world.store(event.clone(), Instant::now());
        let invalid: Vec<&str> = world.invalid.keys().map(|id| &*id.name).collect();
        assert_eq!(invalid.join(" "), want, "{event:?}");
    }
}

#[test]
fn notices_and_absence_are_known_until_taken_back() {
    let mut world = World::new("n1".into(), Features::default());
    let said = vec![condition("a.yaml".to_owned())];
    world.store(StoreEvent::Notice("a.yaml".into(), said), Instant::now());
    assert!(world.notices.contains_key("a.yaml"));
    world.store(StoreEvent::Notice("a.yaml".into(), Vec::new()), Instant::now());
    assert!(world.notices.is_empty());
    world.store(Away(None, "no such directory".into()), Instant::now());
    assert_eq!(world.store_away().map(|why| &**why), Some("no such directory"));
    world.store(Init(Kind::Node), Instant::now());
    assert_eq!(world.store_away(), None);
    for kind in [Kind::Node, Kind::IpPool] {
        world.store(Away(Some(kind), format!("no {kind}")), Instant::now());
    }
    world.store(Synced(Kind::Node), Instant::now());
    assert_eq!(world.store_away().map(|why| &**why), Some("no IPPool"), "back without a list, but for one kind only");
}

#[test]
fn what_did_not_change_stays_shared() {
    for kind in kinds().filter(|kind| *kind != Kind::NodeNetwork) {
        let (a, _) = names(kind);
        let mut world = World::new("n1".into(), Features::default());
        world.store(put(kind, a, 1), Instant::now());
        let before = world.clone();
        world.store(put(kind, a, 1), Instant::now());
        let same = before.nodes.ptr_eq(&world.nodes)
            && before.pools.ptr_eq(&world.pools)
            && before.reservations.ptr_eq(&world.reservations)
            && before.blocks.ptr_eq(&world.blocks)
            && before.namespaces.ptr_eq(&world.namespaces)
            && before.pods.ptr_eq(&world.pods)
            && before.policies.ptr_eq(&world.policies);
        assert!(same, "{kind}: planners would see a change");
    }
}

#[test]
fn what_a_node_says_of_itself_changes_nothing_for_its_peers() {
    let well = object(Kind::NodeNetwork, "n1", 1);
    let Object::NodeNetwork(mut network) = well.clone() else { panic!("it is a NodeNetwork") };
    let [kind, status, reason, message, since] = ["Ready", "False", "R", "m", "t"].map(str::to_owned);
    network.conditions.push(NodeCondition { kind, status, reason, message, since });
    let ill = Object::NodeNetwork(network.clone());
    for (local, own) in [("n1", network.conditions), ("n2", Vec::new())] {
        let mut world = World::new(local.into(), Features::default());
        let put = |object: &Object, revision: u128| {
            StoreEvent::Put(id(Kind::NodeNetwork, "n1"), object.clone(), revision.into())
        };
        world.store(put(&well, 1), Instant::now());
        let before = world.adverts.clone();
        world.store(put(&ill, 2), Instant::now());
        assert!(before.ptr_eq(&world.adverts), "planners would see a change");
        assert_eq!(world.conditions, own, "seen by {local}");
    }
}

#[test]
fn a_sign_of_life_counts_from_when_it_was_heard_first() {
    let mut world = World::new("n1".into(), Features::default());
    let start = Instant::now();
    let later = start + Duration::from_secs(9);
    let heard = |world: &World| world.adverts["a"].at;
    world.store(put(Kind::NodeNetwork, "a", 1), start);
    world.store(put(Kind::NodeNetwork, "a", 1), later);
    assert_eq!(heard(&world), start, "the same words again are no sign of life");
    world.store(put(Kind::NodeNetwork, "a", 2), later);
    assert_eq!(heard(&world), later);
}

#[test]
fn what_is_recalled_is_known_and_goes_only_when_a_list_does_not_name_it() {
    for kind in kinds() {
        let (a, b) = names(kind);
        let recalled = [a, b].map(|name| match put(kind, name, 1) {
            StoreEvent::Put(id, object, _) => (id, object),
            other => panic!("{other:?}"),
        });
        let mut world = World::new("n1".into(), Features::default());
        assert!(!world.is_known());
        world.recall(recalled.to_vec(), Instant::now());
        assert!(world.is_known() && !world.is_whole() && !world.is_synced(kind));
        assert!(world.leases_rest && world.revisions.is_empty());
        let both = known(&world, kind);
        assert_eq!(both.split(' ').count(), 2, "{kind}");
        world.store(Away(None, "nobody at home".into()), Instant::now());
        world.store(Init(kind), Instant::now());
        world.store(put(kind, a, 1), Instant::now());
        assert_eq!(known(&world, kind), both, "{kind}: the list is not complete");
        world.store(Synced(kind), Instant::now());
        assert_eq!(known(&world, kind).split(' ').count(), 1, "{kind}");
        assert!(world.is_synced(kind));
    }
}

/// All kinds but these have had a complete list.
fn read_all_but(left_out: &[Kind]) -> World {
    let mut world = World::new("n1".into(), Features::default());
    for kind in Kind::ALL.into_iter().filter(|kind| !left_out.contains(kind)) {
        world.store(Init(kind), Instant::now());
        world.store(Synced(kind), Instant::now());
    }
    world
}

fn configured(policy: PolicyMode) -> StoreEvent {
    let config = Object::Config(Config { policy, ..Config::default() }.into());
    StoreEvent::Put(id(Kind::NetworkConfig, "default"), config, (policy as u128).into())
}

#[test]
fn a_world_is_whole_without_what_only_policy_looks_at_if_there_is_none() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkConfig) {
        let mut world = read_all_but(&[kind]);
        assert!(!world.is_whole(), "{kind}");
        world.store(configured(PolicyMode::Off), Instant::now());
        assert_eq!(world.is_whole(), kind.is_for_policy(), "{kind}");
        for mode in [PolicyMode::Audit, PolicyMode::Enforce] {
            world.store(configured(mode), Instant::now());
            assert!(!world.is_whole(), "{kind}, {mode}");
        }
        for event in [Init(kind), Synced(kind)] {
            world.store(event, Instant::now());
        }
        assert!(world.is_whole(), "{kind}");
    }
}

/// Kinds are read one after the other, and nothing of that is seen by policy.
#[test]
fn policy_sees_one_moment_until_all_is_read() {
    let for_policy = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Node];
    let known = |world: &World| {
        let seen = world.of_one_moment().expect("something is known");
        for_policy.map(|kind| known(&seen, kind)).join(" ")
    };
    let mut world = World::new("n1".into(), Features::default());
    assert!(world.of_one_moment().is_none(), "nothing is known");
    let recalled = for_policy.map(|kind| (id(kind, "a"), object(kind, "a", 1)));
    world.recall(recalled.to_vec(), Instant::now());
    let before = "a=1 a=1 a=1 a=1";
    assert_eq!(known(&world), before);
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pod) {
        world.store(Init(kind), Instant::now());
        if for_policy.contains(&kind) {
            world.store(put(kind, "b", 2), Instant::now());
        }
        world.store(Synced(kind), Instant::now());
        assert_eq!(known(&world), before, "after {kind}");
    }
    for event in [Init(Kind::Pod), put(Kind::Pod, "a", 3), put(Kind::Pod, "b", 3)] {
        world.store(event.clone(), Instant::now());
        assert_eq!(known(&world), before, "after {event:?}");
    }
    world.store(Synced(Kind::Pod), Instant::now());
    assert_eq!(known(&world), "b=2 a=3 b=3 b=2 b=2", "now it is what the store says");
    // A later list is no reason to look back: it takes nothing away before its end.
    for event in [Away(None, "gone".into()), Init(Kind::Pod), put(Kind::Pod, "b", 4)] {
        world.store(event, Instant::now());
    }
    assert_eq!(known(&world), "b=2 a=3 b=4 b=2 b=2");
}

#[test]
fn a_list_starts_all_leases_anew_and_a_sign_of_life_its_own() {
    let start = Instant::now();
    let after = |secs| start + Duration::from_secs(secs);
    let mut world = World::new("n1".into(), Features::default());
    let check = |world: &World, wanted: [Instant; 2]| {
        let until = ["a", "b"].map(|name| world.lease_until(world.adverts[name].at));
        assert_eq!(until, wanted.map(|from| from + world.config.lease));
    };
    world.store(put(Kind::NodeNetwork, "a", 1), after(0));
    world.store(put(Kind::NodeNetwork, "b", 1), after(1));
    check(&world, [after(0), after(1)]);
    world.store(Init(Kind::NodeNetwork), after(2));
    world.store(put(Kind::NodeNetwork, "a", 1), after(3));
    world.store(put(Kind::NodeNetwork, "b", 1), after(3));
    check(&world, [after(0), after(1)]);
    world.store(Synced(Kind::NodeNetwork), after(4));
    check(&world, [after(4), after(4)]);
    world.store(put(Kind::NodeNetwork, "b", 2), after(5));
    check(&world, [after(4), after(5)]);
    world.store(Away(Some(Kind::NodeNetwork), "gone".into()), after(6));
    assert!(world.leases_rest);
    world.store(Synced(Kind::NodeNetwork), after(7));
    assert!(!world.leases_rest);
    check(&world, [after(7), after(7)]);
}

#[test]
fn revisions_are_kept_of_what_this_node_may_write() {
    for (kind, name, kept) in [
        (Kind::Node, "n1", false),
        (Kind::NodeNetwork, "n1", true),
        (Kind::NodeNetwork, "n2", false),
        (Kind::IpPool, "a", true),
        (Kind::IpBlock, "10-1-0-0-26", true),
        (Kind::Namespace, "a", false),
    ] {
        let mut world = World::new("n1".into(), Features::default());
        world.store(Init(kind), Instant::now());
        world.store(put(kind, name, 1), Instant::now());
        assert!(world.revisions.contains_key(&id(kind, name)), "{kind}/{name}: its kind is not synced");
        world.store(Synced(kind), Instant::now());
        assert_eq!(world.revisions.contains_key(&id(kind, name)), kept, "{kind}/{name}");
        world.store(put(kind, name, 2), Instant::now());
        assert_eq!(world.revisions.contains_key(&id(kind, name)), kept, "{kind}/{name}");
    }
}

/// Who remembers a map looks again when it is another one.
#[test]
fn an_object_that_was_never_wrong_leaves_the_map_of_those_that_are_as_it_is() {
    let mut world = World::new("n1".into(), Features::default());
    let now = Instant::now();
    for kind in [Kind::IpPool, Kind::Node] {
        world.store(invalid(kind, "wrong"), now);
    }
    world.store(put(Kind::Node, "wrong", 1), now);
    for event in [put(Kind::Node, "n2", 1), delete(Kind::Node, "n2")] {
        let before = world.invalid.clone();
        world.store(event, now);
        assert!(before.ptr_eq(&world.invalid));
    }
}
