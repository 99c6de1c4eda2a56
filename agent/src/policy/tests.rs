//! What a pod that comes lacks, what is said, and when nothing is planned at all.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tartan_model::{
    Config, Features, Flannel, FlannelBackend, Host, HostLink, Kind, Labels, Namespace, Object, ObjectId, PerFamily,
    Pod, PolicyText, Programmed, StoreEvent,
};
use tartan_netstate::{Generation, Mac, PodNetns};
use tartan_policy::ir::RuleRef;
use tartan_policy::verdicts::Set;

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
        addresses: PerFamily::first_of([[10, 244, 1, name.bytes().next().unwrap_or_default()].into()]),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: false,
    }
}

fn pod(node: &str) -> Pod {
    Pod { node: node.into(), service_account: "default".into(), ..Pod::default() }
}

fn put_namespace(world: &mut World) {
    world.namespaces.insert("shop".into(), Namespace { name: "shop".into(), labels: Labels::default() }.into());
}

fn policy_id(name: &str) -> ObjectId {
    ObjectId { kind: Kind::NetworkPolicy, name: format!("shop/{name}").into() }
}

fn put_policies(world: &mut World, json: &str, count: usize) {
    for number in 0..count {
        world.policies.insert(policy_id(&format!("p{number}")), PolicyText { json: json.into() }.into());
    }
}

/// What a pod of this node lacks, planned from nothing.
fn lacking(world: &World, attachment: &Attachment) -> String {
    let mut world = world.clone();
    world.attach(attachment.clone());
    let Wanted { state, out, .. } = Policy::default().plan(&world, &BTreeSet::new());
    let plan = Plan { state: Some(state), policy: out, ..Plan::default() };
    lacks(&world, &plan, attachment, "").unwrap_or_default()
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

/// A pod of a StatefulSet has the name of the one before it, and not its labels.
#[test]
fn a_pod_waits_for_its_own_object_and_not_for_one_of_its_name() {
    let (old, new) = ("5f2e4a10-0000-4000-8000-000000000001", "5f2e4a10-0000-4000-8000-000000000002");
    // What is known, what the runtime says, and whether the pod may start.
    for (known, said, may) in [
        (old, old, true),
        (old, new, false),
        (new, new, true),
        (old, "", true),
        ("", new, true),
        ("", "", true),
        ("9b5f4c3d2e1f00112233445566778899", "9b5f4c3d-2e1f-0011-2233-445566778899", true),
        ("a", "a", true),
        ("a", "b", false),
    ] {
        let mut world = whole();
        put_namespace(&mut world);
        world.pods.insert("shop/a".into(), Pod { uid: uid_of(known), ..pod("n1") }.into());
        let attachment = attachment("shop", "a");
        world.attach(attachment.clone());
        let Wanted { state, .. } = Policy::default().plan(&world, &BTreeSet::new());
        let plan = Plan { state: Some(state), ..Plan::default() };
        let lacks = lacks(&world, &plan, &attachment, said);
        let want = "what this node has heard of Pod shop/a is of another one that had this name";
        assert_eq!(lacks.as_deref(), (!may).then_some(want), "{known:?}, {said:?}");
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
    let tables = planner.plan(&world, &BTreeSet::new()).out.unwrap().tables;
    assert!(tables.subjects.contains_key("shop/a"));
    set_mode(&mut world, PolicyMode::Off);
    let off = planner.plan(&world, &BTreeSet::new());
    assert!(off.out.is_none() && off.state.is_empty());
    set_mode(&mut world, PolicyMode::Enforce);
    assert_eq!(planner.plan(&world, &BTreeSet::new()).out.unwrap().tables, tables);
}

#[test]
fn what_is_open_that_policies_shut_is_said() {
    let mut world = whole();
    put_namespace(&mut world);
    for name in ["a", "b"] {
        world.pods.insert(format!("shop/{name}").into(), pod("n1").into());
        world.attach(attachment("shop", name));
    }
    let said = |world: &World| {
        let out = Policy::default().plan(world, &BTreeSet::new()).out;
        not_enforced(world, out.as_ref()).map(|said| (said.reason, said.message))
    };
    for mode in [PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Off] {
        set_mode(&mut world, mode);
        assert_eq!(said(&world), None, "{mode}: there is nothing to enforce");
    }
    put_policies(&mut world, "{\"spec\":{\"podSelector\":{}}}", 1);
    let off = "1 policy is in the store and policy is off: all 2 pods of this node are open";
    assert_eq!(said(&world), Some(("PolicyOff", off.to_owned())));
    set_mode(&mut world, PolicyMode::Audit);
    let audit = "1 policy is in the store and policy is audit: what they deny is reported, and passes; 2 of 2 pods of this node are open that they isolate: shop/a, shop/b";
    assert_eq!(said(&world), Some(("PolicyAudit", audit.to_owned())));
    set_mode(&mut world, PolicyMode::Enforce);
    assert_eq!(said(&world), None);
}

#[test]
fn a_pod_that_runs_without_its_object_is_said() {
    let mut world = whole();
    world.attach(Attachment { answered: true, ..attachment("shop", "a") });
    world.attach(attachment("shop", "still-waits"));
    let said = |world: &World| {
        let out = Policy::default().plan(world, &BTreeSet::new()).out.unwrap();
        cut_off(world, &out.tables).map(|said| (said.about, said.message)).collect::<Vec<_>>()
    };
    assert_eq!(said(&world), [], "without a policy everything passes");
    put_policies(&mut world, "{\"spec\":{\"podSelector\":{}}}", 1);
    let message = "nothing passes to it or from it: this node has not heard of Pod shop/a";
    assert_eq!(said(&world), [("Pod/shop/a".to_owned(), message.to_owned())]);
    put_namespace(&mut world);
    world.pods.insert("shop/a".into(), pod("n1").into());
    assert_eq!(said(&world), []);
}

#[test]
fn pods_whose_policies_ask_for_too_much_are_said_by_rule() {
    let world = whole();
    let rule = RuleRef { source: policy_id("p"), path: "spec.ingress[3]".into() };
    let closed = Rows { too_many: true, words: OrdMap::unit((ANY, 0), Word::new(Verdict::Deny, 7)), ..Rows::default() };
    let set = |ingress: &Rows, egress: &Rows| Arc::new(Set { ingress: ingress.clone(), egress: egress.clone() });
    let tables = Tables {
        subjects: [("shop/a", 1u32), ("shop/b", 1), ("shop/c", 2), ("shop/d", 3)]
            .map(|(pod, set)| (Arc::<str>::from(pod), set))
            .into_iter()
            .collect(),
        sets: [(1u32, set(&closed, &Rows::default())), (2, set(&closed, &closed)), (3, Arc::default())]
            .into_iter()
            .collect(),
        rules: OrdMap::unit(7u32, rule.into()),
        ..Tables::default()
    };
    let said = too_many(&world, &tables).into_iter().map(|said| {
        let (passes, _) = said.message.split_once(':').unwrap();
        format!("{} {} {}: {passes}", said.reason, said.about, said.field)
    });
    let about = "TooManyVerdicts NetworkPolicy/shop/p spec.ingress[3]";
    let wanted = ["nothing passes from shop/c", "nothing passes to shop/a, shop/b, shop/c"];
    assert_eq!(said.collect::<Vec<_>>(), wanted.map(|passes| format!("{about}: {passes}")));
}

/// These addresses were given out by the network before, and are on its bridge.
fn from_before(world: &mut World, addresses: &[&str]) {
    let link = HostLink {
        name: "cni0".into(),
        kind: "bridge".into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec!["10.244.1.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        accept_ra: 0,
    };
    world.host = Host { links: vec![link], ..Host::default() }.into();
    let networks = PerFamily { v4: Some("10.244.0.0/16".parse().unwrap()), v6: Some("fd00::/16".parse().unwrap()) };
    world.flannels.insert("f".into(), Flannel { networks, backend: FlannelBackend::HostGw }.into());
    world.given = addresses.iter().map(|it| (it.parse::<IpAddr>().unwrap(), Arc::from("container"))).collect();
}

#[test]
fn what_does_not_hold_for_pods_of_the_network_before_is_said() {
    let mut world = whole();
    put_namespace(&mut world);
    from_before(&mut world, &["10.244.1.2", "10.244.1.3", "fd00::2", "198.51.100.9"]);
    let old = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
        Arc::new(Pod { addresses, ..pod("n1") })
    };
    world.pods.insert("shop/old".into(), old(&["10.244.1.2", "fd00::2"]));
    Arc::make_mut(&mut world.host).unfiltered = Family::ALL.map(|family| ("cni0".into(), family)).into();
    let said = |world: &World| -> Vec<(&str, String)> {
        let Wanted { out, from_before, .. } = Policy::default().plan(world, &BTreeSet::new());
        super::from_before(world, &out.unwrap().tables, &from_before)
            .into_iter()
            .map(|it| (it.reason, it.message))
            .collect()
    };
    assert_eq!(said(&world), [], "without a policy everything passes");
    put_policies(&mut world, "{\"spec\":{\"podSelector\":{}}}", 1);
    let bridge =
        "what pods from before on cni0 send each other by IPv4 passes, whatever policies say: br_netfilter is off";
    let nobody = "nothing passes to 10.244.1.3 or from there: the network before has given that out, and no one Pod of this node has it";
    let (bridge, nobody) = (("BridgeNotFiltered", bridge.to_owned()), ("AddressWithoutPod", nobody.to_owned()));
    assert_eq!(said(&world), [bridge.clone(), nobody]);
    world.pods.insert("shop/older".into(), old(&["10.244.1.3"]));
    assert_eq!(said(&world), [bridge]);
    Arc::make_mut(&mut world.host).unfiltered.clear();
    assert_eq!(said(&world), []);
}

#[test]
fn faults_of_policies_are_said_up_to_a_number() {
    for (faults, shown) in [(0, 0), (1, 1), (SAID, SAID), (SAID + 3, SAID + 1)] {
        let mut world = whole();
        put_policies(&mut world, "{\"spec\":{\"podSelector\":{},\"colour\":1}}", faults);
        let said = said(&Policy::default().plan(&world, &BTreeSet::new()).out.unwrap());
        assert_eq!(said.len(), shown, "{said:#?}");
        let more = said.iter().find(|it| it.reason == "MoreToSay").map(|it| it.message.clone());
        assert_eq!(more.as_deref(), (faults > SAID).then_some("3 more faults of policies are not shown"));
        assert!(said.iter().take(SAID).all(|it| it.about.starts_with("NetworkPolicy/shop/p")), "{said:#?}");
    }
}

/// What policy wants where the kernel held this when the agent started, and the store is read no further than a snapshot
/// goes.
fn start(policy: &mut Policy, world: &World, held: &State) -> (World, State) {
    let mut started = World::new("n1".into(), Features::default());
    let objects = world.pods.iter().map(|(name, pod)| (id(Kind::Pod, name), Object::Pod(pod.clone())));
    let namespaces =
        world.namespaces.iter().map(|(name, it)| (id(Kind::Namespace, name), Object::Namespace(it.clone())));
    let policies = world.policies.iter().map(|(id, it)| (id.clone(), Object::Policy(it.clone())));
    started.recall(objects.chain(namespaces).chain(policies).collect(), Instant::now());
    world.attachments.values().for_each(|it| started.attach((**it).clone()));
    (started.given, started.flannels) = (world.given.clone(), world.flannels.clone());
    started.programmed(
        Programmed { mirror: held.clone(), read: true, ..Programmed::default() },
        world.host.clone(),
        Instant::now(),
    );
    let state = policy.plan(&started, &BTreeSet::new()).state;
    (started, state)
}

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}

/// Two pods here that a policy isolates, one of the network before, and all that the kernel then holds.
fn running() -> (World, State) {
    let mut world = whole();
    put_namespace(&mut world);
    for name in ["a", "b"] {
        world.pods.insert(format!("shop/{name}").into(), pod("n1").into());
        world.attach(attachment("shop", name));
    }
    from_before(&mut world, &["10.244.1.2"]);
    world.pods.insert("shop/old".into(), Pod { addresses: [[10, 244, 1, 2].into()].into(), ..pod("n1") }.into());
    put_policies(&mut world, "{\"spec\":{\"podSelector\":{}}}", 1);
    let held = Policy::default().plan(&world, &BTreeSet::new()).state;
    (world, held)
}

fn keys(state: &State) -> BTreeSet<Key> {
    state.iter().map(|(key, _)| key.clone()).collect()
}

#[test]
fn what_the_kernel_holds_of_policies_goes_on_as_planned_if_it_is_what_was_planned() {
    let (world, held) = running();
    let mut policy = Policy::default();
    let (mut started, state) = start(&mut policy, &world, &held);
    assert_eq!(held.differing_keys(&state).count(), 0, "not even the generation");
    // A pod that the snapshot knows of is added, and one that goes is gone.
    started.detach(&Attachment::id_of("b", "eth0"), Instant::now());
    let without = policy.plan(&started, &BTreeSet::new()).state;
    assert!(without.len() < held.len(), "{without:?}");
    started.attach(attachment("shop", "b"));
    let not_generation = |state: &State| -> BTreeSet<Key> {
        keys(state).into_iter().filter(|key| Generation::of(key).is_none()).collect()
    };
    assert_eq!(not_generation(&policy.plan(&started, &BTreeSet::new()).state), not_generation(&held));
}

#[test]
fn what_the_kernel_holds_of_policies_stays_if_it_is_something_else() {
    let (mut world, held) = running();
    // The snapshot is older: there was no policy, and it knows only one of the pods.
    world.policies.clear();
    world.pods.remove("shop/b");
    let mut policy = Policy::default();
    let (mut started, state) = start(&mut policy, &world, &held);
    assert_eq!(held.differing_keys(&state).count(), 0);
    let plan = Plan { state: Some(state), ..Plan::default() };
    assert_eq!(lacks(&started, &plan, &attachment("shop", "b"), ""), None, "the kernel has it");
    // Nothing comes in that may not fit, and only what was of a pod that is gone goes.
    started.attach(attachment("shop", "c"));
    assert_eq!(keys(&policy.plan(&started, &BTreeSet::new()).state), keys(&held));
    started.detach(&Attachment::id_of("a", "eth0"), Instant::now());
    let gone = &keys(&held) - &keys(&policy.plan(&started, &BTreeSet::new()).state);
    assert_eq!(gone, nft::keys(&attachment("shop", "a")).filter(|key| held.get(key).is_some()).collect());
    // A pod of the network before goes with its address.
    let before = keys(&policy.plan(&started, &BTreeSet::new()).state);
    let of_old: BTreeSet<Key> = nft::keys_from_before(&started).filter(|key| held.get(key).is_some()).collect();
    started.given.clear();
    assert_eq!((&before - &keys(&policy.plan(&started, &BTreeSet::new()).state), of_old.len()), (of_old.clone(), 3));
    // Now all is read, and it is what the store says: judged anew, since nobody knows what was revoked meanwhile.
    for kind in Kind::ALL {
        started.store(StoreEvent::Init(kind), Instant::now());
        started.store(StoreEvent::Synced(kind), Instant::now());
    }
    let whole = policy.plan(&started, &BTreeSet::new()).state;
    let generation = |state: &State| state.iter().find_map(|(key, _)| Generation::of(key)).unwrap();
    assert!(generation(&whole) > generation(&held));
}

#[test]
fn after_a_boot_what_the_snapshot_says_is_all_there_is() {
    let (world, held) = running();
    let (_, state) = start(&mut Policy::default(), &world, &State::new());
    assert_eq!(keys(&state), keys(&held));
}
