//! The planner's values: the maps agree with the tables on every packet, whatever came before. What they do to packets is
//! shown in kernel/tests/policy.rs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use proptest::prelude::*;
use tartan_model::{
    Features, Kind, Labels, Namespace, Node, Object as Stored, ObjectId, PerFamily, Pod, PolicyText, Revision,
    StoreEvent,
};
use tartan_netstate::nft::{Fields, Verdict};
use tartan_netstate::{Mac, PodNetns, Step, diff};
use tartan_policy::ir::{Direction, Entity};
use tartan_policy::verdicts::{self, Word};
use tartan_policy::walk::{self, Packet};

use super::*;
use crate::nftables::named;

/// At which nodes unwrap packets: it matters to no packet here.
const PORTS: BTreeSet<u16> = BTreeSet::new();
/// What policies there may be: name, and spec.
const POLICIES: [(&str, &str); 9] = [
    ("a/nothing-in", r#"{"podSelector":{},"policyTypes":["Ingress"]}"#),
    ("a/nothing-out", r#"{"podSelector":{"matchLabels":{"app":"x"}},"policyTypes":["Egress"]}"#),
    (
        "a/x-to-80",
        r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"x"}}}],"ports":[{"port":80}]}]}"#,
    ),
    (
        "a/ports",
        r#"{"podSelector":{"matchLabels":{"app":"y"}},"ingress":[{"ports":[{"port":8000,"endPort":9000},{"port":53,"protocol":"UDP"}]}]}"#,
    ),
    (
        "a/ranges",
        r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.0.2.0/24"]}},{"ipBlock":{"cidr":"fd00::/16"}}]}]}"#,
    ),
    (
        "a/out-to-range",
        r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"10.0.2.4/30"}}],"ports":[{"port":443}]}]}"#,
    ),
    ("b/from-a", r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"ns":"a"}}}]}]}"#),
    (
        "no-x",
        r#"{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"ingress":[{"action":"Deny","from":[{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"x"}}}}]}]}"#,
    ),
    (
        "out-accept",
        r#"{"tier":"Admin","priority":2,"subject":{"namespaces":{}},"egress":[{"action":"Accept","to":[{"networks":["10.0.0.0/16"]}]}]}"#,
    ),
];

fn attachment(number: u8) -> Attachment {
    let namespace = if number.is_multiple_of(2) { "a" } else { "b" };
    Attachment {
        id: format!("c{number}/eth0").into(),
        container: format!("c{number}").into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: number.into(), path: "/".into() },
        pod_namespace: namespace.into(),
        pod_name: format!("p{number}").into(),
        addresses: PerFamily::first_of(addresses(number)),
        mac: Mac([2, 0, 0, 0, 0, number]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

/// Pods below 4 are this node's.
fn addresses(number: u8) -> [IpAddr; 2] {
    let third = if number < 4 { 1 } else { 2 };
    [IpAddr::from([10, 0, third, number]), format!("fd00:{third}::{number}").parse().unwrap()]
}

fn pod_id(number: u8) -> ObjectId {
    let namespace = if number.is_multiple_of(2) { "a" } else { "b" };
    ObjectId { kind: Kind::Pod, name: format!("{namespace}/p{number}").into() }
}

fn pod(number: u8, app: &str) -> Pod {
    Pod {
        uid: 0,
        node: if number < 4 { "n1" } else { "n2" }.into(),
        labels: [("app", app)].into_iter().collect(),
        service_account: "default".into(),
        addresses: addresses(number).into(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    }
}

fn store(world: &mut World, id: ObjectId, object: Option<Stored>) {
    let event = match object {
        Some(object) => StoreEvent::Put(id, object, Revision::from(1)),
        None => StoreEvent::Delete(id),
    };
    world.store(event, Instant::now());
}

fn world() -> World {
    let mut world = World::new("n1".into(), Features::default());
    for name in ["a", "b"] {
        let labels: Labels = [("ns", name)].into_iter().collect();
        let id = ObjectId { kind: Kind::Namespace, name: name.into() };
        store(&mut world, id, Some(Stored::Namespace(Namespace { name: name.into(), labels }.into())));
    }
    for (name, number) in [("n1", 1), ("n2", 2)] {
        let pod_cidrs = [format!("10.0.{number}.0/24"), format!("fd00:{number}::/64")];
        let node = Node {
            name: name.into(),
            internal_ips: vec![format!("192.0.2.{number}").parse().unwrap()],
            pod_cidrs: pod_cidrs.iter().map(|range| range.parse().unwrap()).collect(),
            uid: "".into(),
            external_ips: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            placement: Default::default(),
        };
        world.nodes.insert(name.into(), node.into());
    }
    world
}

/// kube-proxy begins to translate by IPVS, or ends it.
fn ipvs(world: &mut World, there: bool) {
    let links = &mut Arc::make_mut(&mut world.host).links;
    links.retain(|link| *link.name != *IPVS_LINK);
    links.extend(there.then(|| host_link(IPVS_LINK, "dummy")));
}

fn host_link(name: &str, kind: &str) -> tartan_model::HostLink {
    let (name, kind) = (name.into(), kind.into());
    tartan_model::HostLink { name, kind, mtu: 1500, up: false, loopback: false, addresses: Vec::new(), accept_ra: 0 }
}

/// The bridge of the network before, and whether this pod is on it.
const BRIDGE: &str = "cni0";
fn from_before(world: &mut World, number: u8) {
    if !world.host.links.iter().any(|link| &*link.name == BRIDGE) {
        let addresses = ["10.0.1.254/24", "fd00:1::ff/64"].map(|net| net.parse().unwrap()).into();
        Arc::make_mut(&mut world.host).links.push(tartan_model::HostLink { addresses, ..host_link(BRIDGE, "bridge") });
    }
    for address in addresses(number) {
        if world.given.remove(&address).is_none() {
            world.given.insert(address, "container".into());
        }
    }
}

/// Something happens to the world; what, say two bytes.
fn step(world: &mut World, what: u8, which: u8) {
    let number = which % 8;
    match what % 8 {
        6 => ipvs(world, !world.host.links.iter().any(|link| &*link.name == IPVS_LINK)),
        7 => from_before(world, number % 4),
        0 | 1 => {
            let (name, spec) = POLICIES[usize::from(which) % POLICIES.len()];
            let kind = if name.contains('/') { Kind::NetworkPolicy } else { Kind::ClusterNetworkPolicy };
            let id = ObjectId { kind, name: name.into() };
            if world.policies.remove(&id).is_none() {
                let json = format!(r#"{{"spec":{spec}}}"#).into();
                world.policies.insert(id, Arc::new(PolicyText { json }));
            }
        }
        2 | 3 => {
            let app = ["x", "y", "z"][usize::from(which) / 8 % 3];
            store(world, pod_id(number), Some(Stored::Pod(pod(number, app).into())));
        }
        4 => store(world, pod_id(number), None),
        _ if world.attachments.contains_key(&attachment(number % 4).id) => {
            world.detach(&attachment(number % 4).id, Instant::now());
        }
        _ => world.attach(attachment(number % 4)),
    }
}

/// All ends and packets that any of these policies can tell apart.
fn questions() -> Vec<(IpAddr, Packet)> {
    let pods = (0..8).flat_map(addresses);
    let others = ["10.0.1.99", "10.0.2.5", "10.0.2.99", "10.9.9.9", "192.0.2.9", "fd00:9::9", "2001:db8::9"];
    let ends: Vec<IpAddr> = pods.chain(others.map(|other| other.parse().unwrap())).collect();
    let packet = |protocol, destination| Packet { protocol, source_port: 40_000, destination };
    let tcp = [79, 80, 81, 443, 7999, 8000, 9000, 9001].map(|port| packet(6, port));
    let more = [packet(17, 53), packet(17, 80), packet(132, 80), packet(1, 0x0800), packet(58, 0x8000), packet(47, 0)];
    let packets: Vec<Packet> = tcp.into_iter().chain(more).collect();
    ends.iter().flat_map(|end| packets.iter().map(|packet| (*end, *packet))).collect()
}

/// What the maps of a state say of a packet: none where a lookup finds nothing, so that the packet is dropped.
fn ask(state: &State, link: &str, own: IpAddr, side: Side, end: IpAddr, packet: &Packet) -> Option<Word> {
    let data = |set: &str, key: ElementKey| match &state.get(&Key::NftElement { set: set.into(), key })?.object {
        Object::NftElement(data) => Some(u32::from_ne_bytes(data.0[..].try_into().unwrap())),
        other => panic!("{other:?}"),
    };
    let otherwise = |set: &str, key| data(set, key).or_else(|| data(set, ElementKey::catch_all()));
    let family = Family::of(end);
    let fields = Fields::new;
    let set = data(&named(maps::SUBJECTS, family), fields().ifname(link).addr(own).key())?;
    let listed = otherwise(&named(maps::ADDRESSES, family), fields().addr(end).key())?;
    let around = || interval(state, &named(maps::RANGES, family), &fields().addr(end).key().bytes);
    let identity = if listed == 0 { around()? } else { listed };
    let of_class = fields().number(set).proto(packet.protocol).port(packet.destination).key();
    let class = interval(state, &side.classes(), &of_class.bytes)?;
    let own_word = otherwise(&side.words(), fields().number(set).number(identity).number(class).key())?;
    let any = otherwise(&side.any(), fields().number(set).number(class).key())?;
    Some(Word(if own_word == 0 { any } else { own_word }))
}

/// What the one interval around a key is mapped to.
fn interval(state: &State, set: &str, key: &[u8]) -> Option<u32> {
    let mut found = state.iter().filter_map(|(there, entry)| match (there, &entry.object) {
        (Key::NftElement { set: of, key: ElementKey { bytes, end: Some(end) } }, Object::NftElement(data))
            if **of == *set && **bytes <= *key && (end.is_empty() || *key < **end) =>
        {
            Some(u32::from_ne_bytes(data.0[..].try_into().unwrap()))
        }
        _ => None,
    });
    let first = found.next();
    assert_eq!(found.next(), None, "two intervals of {set} hold {key:?}");
    first
}

fn direction(side: Side) -> Direction {
    match side {
        Side::Egress => Direction::Egress,
        Side::Ingress => Direction::Ingress,
    }
}

/// Pods of this node with their links and addresses: attached, or else of before and known.
fn subjects(world: &World) -> Vec<(String, String, PerFamily<IpAddr>)> {
    let number = |number: u8| match world.attachments.get(&attachment(number).id) {
        Some(it) => Some((it.pod(), crate::pod::host_link(&it.id).to_string(), it.addresses)),
        None if world.given.contains_key(&addresses(number)[0]) && world.pods.contains_key(&*pod_id(number).name) => {
            Some((pod_id(number).name.to_string(), BRIDGE.into(), PerFamily::first_of(addresses(number))))
        }
        None => None,
    };
    (0..4).filter_map(number).collect()
}

/// What passes, by pod, side, end and packet.
type Passing = std::collections::BTreeSet<(Arc<str>, bool, IpAddr, Packet)>;

/// Asserts that the maps agree with the tables; gives back what passes.
fn passing(world: &World, tables: &Tables, state: &State) -> Passing {
    let mut passing = Passing::new();
    for (pod, link, addresses) in subjects(world) {
        for (side, (end, packet)) in
            Side::BOTH.into_iter().flat_map(|side| questions().into_iter().map(move |q| (side, q)))
        {
            let Some(own) = addresses.get(Family::of(end)) else { continue };
            let wanted = tables.lookup(&pod, direction(side), *own, end, &packet).map(|decision| decision.verdict);
            let found = ask(state, &link, *own, side, end, &packet).map(Word::verdict);
            assert_eq!(found, wanted, "{pod} {side:?} {end} {packet:?}");
            // What no chain asks about passes: it is right only where there is nothing that the answer would stop.
            assert!(tables.judged || wanted.is_none_or(walk::passes), "{pod} {side:?} {end} {packet:?}");
            if !tables.judged || wanted.is_some_and(walk::passes) {
                passing.insert((pod.as_str().into(), side == Side::Egress, end, packet));
            }
        }
    }
    passing
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The memo's law, the twin's, and that nothing is taken away without a new generation.
    #[test]
    fn maps_agree_with_tables_and_who_loses_is_judged_again(
        steps in prop::collection::vec(prop::collection::vec((any::<u8>(), any::<u8>()), 1..4), 1..8)
    ) {
        let (mut world, mut memo, mut policy) = (world(), verdicts::Memo::default(), Policy::default());
        (0..4).for_each(|number| world.attach(attachment(number)));
        let mut mirrored = Mirrored::default();
        let mut before: Option<(Passing, Generation)> = None;
        for several in steps {
            several.into_iter().for_each(|(what, which)| step(&mut world, what, which));
            let tables = verdicts::plan(&mut memo, &world).tables.clone();
            let state = policy.plan(&world, &tables, Mode::Enforce, &PORTS).clone();
            world.programmed.mirror = state.clone();
            let anew = Policy::default().plan(&world, &tables, Mode::Enforce, &PORTS).clone();
            let hooks = chains::hooks(Mode::Enforce, true, Generation(0));
            let asked_by = hooks.iter().filter(|(key, _)| state.get(key).is_some()).count();
            prop_assert_eq!(asked_by, if tables.judged { 4 } else { 0 });
            prop_assert!(state == anew, "{:#?}", diff(&state, &anew, |_| true));
            prop_assert_eq!(format!("{:?}", mirrored.held(&state)), format!("{:?}", held(&state)));
            memo.held(&held(&state));
            let passes = passing(&world, &tables, &state);
            let generation = generation_in(&state).expect("there is one");
            if let Some((passed, last)) = before {
                let here = subjects(&world);
                let lost = passed.difference(&passes).find(|(pod, ..)| here.iter().any(|(it, ..)| **it == **pod));
                prop_assert!(lost.is_none() || generation != last, "{lost:?} in the same generation");
            }
            before = Some((passes, generation));
        }
    }
}

#[test]
fn nested_ranges_are_cut() {
    let check = |ranges: &[(&str, u32)], wanted: &[(&str, u32)]| {
        let ranges: OrdMap<IpNet, u32> =
            ranges.iter().map(|(range, number)| (range.parse::<IpNet>().unwrap(), *number)).collect();
        let found = Family::ALL.into_iter().flat_map(|family| ranges::disjoint(&ranges, family));
        let found: Vec<(String, u32)> = found
            .map(|(key, number)| match key {
                Key::NftElement { key, .. } => (key.to_string(), number),
                other => panic!("{other}"),
            })
            .collect();
        let wanted: Vec<(String, u32)> = wanted.iter().map(|(key, number)| ((*key).to_owned(), *number)).collect();
        assert_eq!(found, wanted, "{ranges:?}");
    };
    check(&[], &[]);
    check(&[("0.0.0.0/0", 3)], &[("00000000-", 3)]);
    check(
        &[("0.0.0.0/0", 3), ("10.0.0.0/8", 7), ("10.0.0.0/16", 8), ("10.0.255.0/24", 9)],
        &[
            ("00000000-0a000000", 3),
            ("0a000000-0a00ff00", 8),
            ("0a00ff00-0a010000", 9),
            ("0a010000-0b000000", 7),
            ("0b000000-", 3),
        ],
    );
    // The first and the last addresses, and neighbours that are alike.
    check(&[("0.0.0.0/0", 3), ("0.0.0.0/1", 4), ("128.0.0.0/1", 4)], &[("00000000-", 4)]);
    check(&[("255.255.255.255/32", 5), ("0.0.0.0/0", 3)], &[("00000000-ffffffff", 3), ("ffffffff-", 5)]);
    check(&[("10.0.0.0/24", 5), ("10.0.2.0/24", 5)], &[("0a000000-0a000100", 5), ("0a000200-0a000300", 5)]);
    check(
        &[("ffff::/16", 5), ("::/0", 3)],
        &[
            ("00000000000000000000000000000000-ffff0000000000000000000000000000", 3),
            ("ffff0000000000000000000000000000-", 5),
        ],
    );
}

/// Where the kernel has gone over to new classes in one map only, no number may mean other packets than in the next.
#[test]
fn the_number_of_a_class_says_which_packets_it_has() {
    let classes = |ports: &str| {
        let mut world = world();
        world.attach(attachment(0));
        store(&mut world, pod_id(0), Some(Stored::Pod(pod(0, "x").into())));
        let id = ObjectId { kind: Kind::NetworkPolicy, name: "a/ports".into() };
        let json = format!(r#"{{"spec":{{"podSelector":{{}},"ingress":[{{"ports":[{ports}]}}]}}}}"#);
        store(&mut world, id, Some(Stored::Policy(PolicyText { json: json.into() }.into())));
        let mut memo = verdicts::Memo::default();
        let tables = verdicts::plan(&mut memo, &world).tables.clone();
        let set = tables.sets[&tables.subjects["a/p0"]].clone();
        let numbers = maps::numbers(&set.ingress.classes);
        move |port| numbers[set.ingress.classes.class(6, port) as usize]
    };
    let singles = r#"{"port":80},{"port":443}"#;
    let (one, other) = (classes(singles), classes(r#"{"port":80},{"port":400,"endPort":500}"#));
    for port in [80, 443, 450, 9] {
        assert_ne!(one(port), other(port), "other packets are in its class now: {port}");
    }
    let by_two = |second: &str| classes(&format!(r#"{{"port":80}}]}},{{"ports":[{{"port":80}},{second}"#));
    let (one, other) = (by_two(r#"{"port":443}"#), by_two(r#"{"port":400,"endPort":500}"#));
    assert_eq!(one(80), other(80), "the port that both rules name is in a class of its own");
    assert_ne!(one(443), other(443));
    let one = classes(singles);
    let again = classes(singles);
    assert!([80, 443, 450, 9].into_iter().all(|port| one(port) == again(port)));
}

/// One server, one policy, and one pod elsewhere: who is allowed what nobody else is, and who could be denied what anyone may.
const ALLOWED: [(u8, u8); 4] = [(5, 0), (2, 0), (0, 2), (2, 4)];
const NOT_DENIED: [(u8, u8); 4] = [(5, 0), (2, 0), (0, 7), (2, 12)];

/// What becomes of such a world: what differs in the state, and whether a generation began.
fn change(steps: [(u8, u8); 4], of: impl FnOnce(&mut World)) -> (tartan_netstate::Change, bool) {
    let (mut world, mut memo, mut policy) = (world(), verdicts::Memo::default(), Policy::default());
    for (what, which) in steps {
        step(&mut world, what, which);
    }
    let before = policy.plan(&world, &verdicts::plan(&mut memo, &world).tables, Mode::Enforce, &PORTS).clone();
    of(&mut world);
    let after = policy.plan(&world, &verdicts::plan(&mut memo, &world).tables, Mode::Enforce, &PORTS).clone();
    (diff(&before, &after, |_| true), generation_in(&before) != generation_in(&after))
}

#[test]
fn what_comes_and_goes_is_elements_and_what_takes_away_begins_a_generation() {
    let check = |what: &str, revokes: bool, of: &dyn Fn(&mut World)| {
        let (change, began) = change(ALLOWED, of);
        assert_eq!(began, revokes, "{what}");
        let is_element = |key: &Key| matches!(key, Key::NftElement { .. });
        let chains = change.steps.iter().filter(|step| !is_element(step.key())).count();
        let all_hooks = if what == "no policy is left" { 4 } else { 0 };
        assert_eq!(chains, all_hooks + if revokes { 5 } else { 0 }, "{what}: {change:#?}");
        assert!(change.steps.len() < 40, "{what}: {} steps", change.steps.len());
    };
    let put = |number: u8, app: &'static str| {
        move |world: &mut World| store(world, pod_id(number), Some(Stored::Pod(pod(number, app).into())))
    };
    check("nothing", false, &|_| {});
    check("a pod elsewhere, allowed", false, &put(6, "x"));
    check("a pod elsewhere, not allowed", false, &put(6, "y"));
    check("the allowed pod is gone", true, &|world| store(world, pod_id(4), None));
    check("the allowed pod has another label", true, &put(4, "y"));
    check("a label that nobody mentions", false, &|world| {
        let labels: Labels = [("app", "x"), ("version", "2")].into_iter().collect();
        store(world, pod_id(4), Some(Stored::Pod(Pod { labels, ..pod(4, "x") }.into())));
    });
    check("a pod here", false, &|world| {
        world.attach(attachment(1));
        put(1, "z")(world);
    });
    check("the pod here is gone", false, &|world| {
        world.detach(&attachment(0).id, Instant::now());
        store(world, pod_id(0), None);
    });
    check("the pod here is not known any more", true, &|world| store(world, pod_id(0), None));
    check("a policy that is for others", false, &|world| step(world, 0, 6));
    check("a policy that isolates", true, &|world| step(world, 0, 5));
    check("no policy is left", false, &|world| step(world, 0, 2));
}

/// An older connection may lead to a port that is one of nodes from now on.
#[test]
fn a_port_at_which_nodes_come_to_unwrap_begins_a_generation() {
    let (mut world, mut memo, mut policy) = (world(), verdicts::Memo::default(), Policy::default());
    for (what, which) in ALLOWED {
        step(&mut world, what, which);
    }
    let tables = verdicts::plan(&mut memo, &world).tables.clone();
    for (ports, generation) in [(&[8472, 8285][..], 0), (&[4789, 8472, 8285], 1), (&[4789, 8285], 1), (&[53, 8285], 2)]
    {
        let ports = ports.iter().copied().collect();
        let state = policy.plan(&world, &tables, Mode::Enforce, &ports);
        assert_eq!(generation_in(state), Some(Generation(generation)), "{ports:?}");
        let drops: Vec<_> = chains::judging(Mode::Enforce, &ports).into();
        assert!(drops.iter().all(|(key, object)| state.holds(key, object)), "{ports:?}");
    }
}

#[test]
fn who_comes_to_be_denied_what_anyone_may_is_judged_again() {
    let pod = |app: &'static str| Some(Stored::Pod(pod(4, app).into()));
    let begins = |app| change(NOT_DENIED, |world| store(world, pod_id(4), pod(app))).1;
    assert_eq!(["x", "z"].map(begins), [true, false]);
}

/// Without policies nothing begins a generation: what was stamped before is judged again when there is one.
#[test]
fn where_nobody_asks_nothing_is_taken_away() {
    let (mut world, mut memo, mut policy) = (world(), verdicts::Memo::default(), Policy::default());
    let mut plan = |world: &World| {
        let tables = verdicts::plan(&mut memo, world).tables.clone();
        generation_in(policy.plan(world, &tables, Mode::Enforce, &PORTS)).expect("there is one").0
    };
    for (what, which) in [(5, 0), (2, 0), (0, 2)] {
        step(&mut world, what, which);
    }
    assert_eq!(plan(&world), 0);
    step(&mut world, 0, 2);
    assert_eq!(plan(&world), 0, "no policy is left");
    world.attach(attachment(1));
    assert_eq!(plan(&world), 0, "a pod comes");
    step(&mut world, 0, 2);
    assert_eq!(plan(&world), 1, "nobody was judged before");
    world.attach(attachment(2));
    assert_eq!(plan(&world), 1, "a pod comes");
}

#[test]
fn a_start_goes_on_where_the_last_life_ended_and_off_leaves_nothing() {
    let mut world = world();
    for (what, which) in [(5, 0), (2, 0), (0, 2), (2, 4)] {
        step(&mut world, what, which);
    }
    let plan = |policy: &mut Policy, world: &mut World, mode| {
        let tables = verdicts::plan(&mut verdicts::Memo::default(), world).tables.clone();
        world.programmed.mirror = policy.plan(world, &tables, mode, &PORTS).clone();
        generation_in(&world.programmed.mirror)
    };
    let at = |number| Some(Generation(number));
    let mut policy = Policy::default();
    assert_eq!(plan(&mut policy, &mut world, Mode::Enforce), at(0));
    assert_eq!(plan(&mut Policy::default(), &mut world, Mode::Enforce), at(0), "nothing happened meanwhile");
    step(&mut world, 2, 6);
    assert_eq!(plan(&mut Policy::default(), &mut world, Mode::Enforce), at(1), "something did, and who knows what");
    let mut fewer = world.clone();
    step(&mut fewer, 4, 6);
    assert_eq!(plan(&mut Policy::default(), &mut fewer, Mode::Enforce), at(2), "something went");
    assert_eq!(plan(&mut policy, &mut world, Mode::Audit), at(0), "audit takes nothing away");
    assert_eq!(plan(&mut policy, &mut world, Mode::Off), None);
    assert!(world.programmed.mirror.is_empty());
    assert_eq!(plan(&mut policy, &mut world, Mode::Audit), at(1), "what was stamped before is judged again");
    assert_eq!(plan(&mut policy, &mut world, Mode::Enforce), at(2), "what only audit let pass is judged again");
    let policies = std::mem::take(&mut world.policies);
    assert_eq!(plan(&mut Policy::default(), &mut world, Mode::Enforce), at(3), "who knows what there was");
    assert_eq!(plan(&mut Policy::default(), &mut world, Mode::Enforce), at(3), "nothing happened meanwhile");
    world.policies = policies;
    assert_eq!(plan(&mut Policy::default(), &mut world, Mode::Enforce), at(4), "what nobody judged is judged");
}

#[test]
fn audit_stops_nothing() {
    let verdicts = |mode| {
        let of_final = move |(key, object): (Key, Object)| match (key, object) {
            (Key::NftElement { set, key }, Object::NftVerdict(verdict)) if *set == *maps::FINAL => {
                Some((u32::from_ne_bytes(key.bytes[..].try_into().unwrap()) >> 24, verdict))
            }
            _ => None,
        };
        chains::fixed(mode).into_iter().filter_map(of_final).collect::<BTreeMap<u32, Verdict>>()
    };
    let enforced = verdicts(Mode::Enforce);
    assert_eq!(enforced.len(), 8, "all verdicts, logged or not");
    assert_eq!(enforced[&2], Verdict::Goto(chains::DENIED.into()));
    assert_eq!(enforced[&0x43], Verdict::Goto(chains::REJECTED.into()));
    assert!(verdicts(Mode::Audit).into_values().all(|verdict| verdict == Verdict::Continue));
    let drops = |mode: Mode| {
        let judging =
            chains::judging(mode, &BTreeSet::from([8472])).into_iter().chain(chains::generation(Generation(0)));
        let all = chains::fixed(mode).into_iter().chain(chains::hooks(mode, true, Generation(0))).chain(judging);
        let chains = all.filter_map(|(key, object)| match object {
            Object::NftChain(chain) if key != denied() => Some(chain),
            _ => None,
        });
        let rules: Vec<_> = chains.flat_map(|chain| chain.rules.clone()).collect();
        let is_drop = |rule: &&tartan_netstate::nft::Rule| {
            rule.expressions.contains(&tartan_netstate::nft::Expr::Verdict(Verdict::Drop))
        };
        rules.iter().filter(is_drop).count()
    };
    assert!(drops(Mode::Enforce) > 16);
    assert_eq!(drops(Mode::Audit), 0);
}

#[test]
fn where_a_packet_itself_would_have_to_be_asked_the_answer_that_denies_is_taken() {
    use walk::Verdict::{Allow, Deny, Reject};
    let [allow, other, deny, reject] =
        [(Allow, 1), (Allow, 2), (Deny, 3), (Reject, 4)].map(|(what, by)| Word::new(what, by));
    let check = |ways: &[Word], word: Word, want: Word| {
        let way =
            |word: &Word| verdicts::Residual { asks: vec![verdicts::Ask::SourcePort(Default::default())], word: *word };
        let rows = Rows {
            words: [((7, 0), word)].into_iter().collect(),
            residual: [((7, 0), ways.iter().map(way).collect::<Arc<[_]>>())].into_iter().collect(),
            ..Rows::default()
        };
        assert_eq!(maps::word(&rows, (7, 0)), Some(want), "{ways:?}, {word:?}");
        let plain = Rows { words: rows.words.clone(), ..Rows::default() };
        assert_eq!(maps::differing(&plain, &rows).collect::<Vec<_>>(), [(7, 0)]);
    };
    check(&[other], allow, allow);
    check(&[allow], deny, deny);
    check(&[deny], allow, deny);
    check(&[allow, reject, deny], allow, reject);
}

#[test]
fn who_comes_to_be_judged_by_a_word_that_asks_the_packet_is_judged_again() {
    let [allow, deny] = [walk::Verdict::Allow, walk::Verdict::Deny].map(|verdict| Word::new(verdict, 1));
    let way = |word| verdicts::Residual { asks: vec![verdicts::Ask::SourcePort(Default::default())], word };
    // Anyone's word asks the packet; `own` is that of one whom anyone's is nothing to, who has the identity `number`.
    let seen = |own: Option<Word>, anyones: Word, number: u32| {
        let words = own.map(|word| ((7, 0), word)).into_iter().chain([((verdicts::ANY, 0), allow)]).collect();
        let residual = OrdMap::unit((verdicts::ANY, 0), [way(anyones)].into());
        let ingress = Rows { words, residual, ..Rows::default() };
        let set = Set { ingress, egress: Rows::default() };
        let nobody = verdicts::Identity { traits: tartan_policy::traits::Traits::of(Entity::World), zone: None };
        let nobody = Arc::new(nobody);
        let tables = Tables {
            judged: true,
            sets: OrdMap::unit(1, set.into()),
            addresses: OrdMap::unit("10.0.0.1".parse().unwrap(), number),
            identities: [(7_u32, nobody.clone()), (8, nobody)].into_iter().collect(),
            ..Tables::default()
        };
        Seen { mode: Mode::Enforce, tables, ..Seen::default() }
    };
    let check = |before: &Seen, after: &Seen, wanted| assert_eq!(revoked::is_anything(before, after), wanted);
    let own = seen(Some(allow), deny, 7);
    check(&own, &seen(None, deny, 7), true);
    check(&own, &seen(Some(allow), deny, 8), true);
    check(&seen(None, allow, 7), &seen(None, deny, 7), true);
    check(&seen(None, deny, 7), &seen(None, allow, 7), false);
    check(&seen(None, deny, 7), &own, false);
    check(&seen(None, deny, 8), &own, false);
}

#[test]
fn what_ipvs_passes_on_is_of_the_pod_whose_address_it_has() {
    for there in [true, false] {
        let (change, begun) = change(ALLOWED, |world| ipvs(world, there));
        assert_eq!(begun, there, "what was judged before may have been translated since");
        let of_no_link = change.steps.iter().filter(|step| match step.key() {
            Key::NftElement { key, .. } => key.bytes.starts_with(&[0; 16]) && key.bytes.len() > 16,
            _ => false,
        });
        // Of the one pod of this node, in both families: its set, and that it is its own.
        assert_eq!(of_no_link.count(), if there { 4 } else { 0 });
        let rules = |step: &Step| matches!(step.key(), Key::NftChain { chain } if **chain == *"policy_output");
        assert_eq!(change.steps.iter().any(rules), there);
    }
}

fn denied() -> Key {
    Key::NftChain { chain: chains::DENIED.into() }
}
