//! Tables against the rules asked one by one, on random rules of the intermediate form: what no dialect of today says
//! (negations, source ports, local ranges, ICMP, Log, Reject, audit) is proved here.

use std::collections::BTreeMap;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use tartan_model::{Features, Kind, Labels, NAMELESS, NamedPort, Namespace, Node, Pod, Pool, Protocol, Selector};

use super::*;
use crate::ir::*;
use crate::traits::Traits;
use crate::walk::{self, End};

mod limits;

const RANGES: [&str; 7] =
    ["0.0.0.0/0", "10.0.0.0/24", "10.0.0.1/32", "192.0.2.0/24", "203.0.113.0/25", "::/0", "fd00::/64"];
const REMOTES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.77",
    "192.0.2.1",
    "192.0.2.2",
    "203.0.113.1",
    "203.0.113.200",
    "fd00::2",
    "2001:db8::1",
];

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn pod(node: &str, at: u8, pairs: &[(&str, &str)], account: &str, ports: &[(&str, Protocol, u16)]) -> Arc<Pod> {
    let ports =
        ports.iter().map(|(name, protocol, port)| NamedPort { name: (*name).into(), protocol: *protocol, port: *port });
    Arc::new(Pod {
        uid: 0,
        node: node.into(),
        labels: labels(pairs),
        service_account: account.into(),
        addresses: [IpAddr::from([10, 0, 0, at]), format!("fd00::{at}").parse().unwrap()].into(),
        ports: ports.collect(),
        host_network: false,
        finished: false,
    })
}

fn world() -> World {
    let mut world = World::new("n1".into(), Features::default());
    for (name, team) in [("a", "red"), ("b", "blue")] {
        let namespace = Namespace { name: name.into(), labels: labels(&[("team", team)]) };
        world.namespaces.insert(name.into(), Arc::new(namespace));
    }
    for (name, at, team) in [("n1", 1, "red"), ("n2", 2, "blue")] {
        let node = Node {
            name: name.into(),
            uid: name.into(),
            internal_ips: vec![IpAddr::from([192, 0, 2, at])],
            external_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            labels: [("team".to_owned(), team.to_owned())].into(),
            annotations: Default::default(),
            placement: Default::default(),
        };
        world.nodes.insert(name.into(), Arc::new(node));
    }
    let pool = Pool {
        name: "p".into(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        block_size: 26,
        nodes: Selector::all(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    world.pools.insert("p".into(), Arc::new(pool));
    let web = [("web", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)];
    world.pods.insert("a/p".into(), pod("n1", 1, &[("app", "x")], "sa", &web));
    world
        .pods
        .insert("a/q".into(), pod("n1", 2, &[("app", "y"), ("tier", "x")], "default", &[("web", Protocol::Tcp, 81)]));
    world.pods.insert("b/p".into(), pod("n2", 3, &[("app", "x"), ("tier", "y")], "sa", &[("dns", Protocol::Tcp, 53)]));
    world
}

/// Who has an address, with everything that is known of it.
fn end(world: &World, address: IpAddr) -> End {
    let pod = world.pods.iter().find(|(_, pod)| pod.addresses.contains(&address));
    let node = world.nodes.values().find(|node| node.internal_ips.contains(&address));
    let traits = match (pod, node) {
        (Some((key, pod)), _) => {
            let workload = identities::workload(world, key, pod);
            Traits { workload, ..Traits::of(Entity::Pod) }
        }
        (None, Some(node)) => {
            let entity = if node.name == world.local { Entity::Host } else { Entity::RemoteNode };
            Traits { node_labels: Labels::of(&node.labels).unwrap(), ..Traits::of(entity) }
        }
        _ if world.pools.values().any(|pool| pool.cidr.contains(&address)) => Traits::of(Entity::UnknownPod),
        _ => Traits::of(Entity::World),
    };
    End { traits, address }
}

fn selector() -> impl Strategy<Value = Selector> {
    let texts =
        ["", "all()", "app == 'x'", "app != 'x'", "has(tier)", "tier in {'x', 'y'} || app == 'y'", "team == 'red'"];
    select(texts.to_vec()).prop_map(|text| Selector::parse(text).unwrap())
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    let namespaces = prop_oneof![
        Just(Namespaces::Any),
        select(vec!["a", "b"]).prop_map(|name| Namespaces::Named(name.into())),
        selector().prop_map(Namespaces::Labelled),
    ];
    let accounts = prop_oneof![3 => Just(None), 1 => Just(Some(BTreeSet::from(["sa".into()])))];
    (namespaces, selector(), accounts).prop_map(|(namespaces, labels, service_accounts)| Endpoints {
        namespaces,
        labels,
        service_accounts,
    })
}

fn nets() -> impl Strategy<Value = Nets> {
    let range = || select(RANGES.to_vec()).prop_map(|text| text.parse::<IpNet>().unwrap());
    let ranges = |size| vec(range(), size).prop_map(|all| all.into_iter().collect::<Ranges>());
    (ranges(1..3), ranges(0..2), select(vec![Scope::Anyone, Scope::Anyone, Scope::Outside]))
        .prop_map(|(ranges, except, scope)| Nets { ranges, except, scope })
}

fn term() -> impl Strategy<Value = Term> {
    let entities =
        vec![Entity::Pod, Entity::UnknownPod, Entity::Disputed, Entity::Host, Entity::RemoteNode, Entity::World];
    let is = prop_oneof![
        4 => endpoints().prop_map(Is::Endpoint),
        3 => nets().prop_map(Is::In),
        1 => btree_set(select(entities), 0..3).prop_map(Is::Entity),
        1 => selector().prop_map(Is::Node),
    ];
    (is, prop::bool::weighted(0.3)).prop_map(|(is, negated)| Term { is, negated })
}

fn l4_match() -> impl Strategy<Value = L4Match> {
    let protocols = select(vec![protocol::TCP, protocol::TCP, protocol::UDP, protocol::ICMP, 47]);
    let protocol = prop_oneof![
        1 => Just(ProtocolIs::Any),
        3 => protocols.clone().prop_map(ProtocolIs::Is),
        1 => protocols.prop_map(ProtocolIs::Not),
    ];
    let port = prop_oneof![
        3 => (select(vec![0, 53, 80]), select(vec![80, 81, 65535])).prop_map(|(low, high)| Port::Range(low, high)),
        2 => select(vec!["web", "dns"]).prop_map(|name| Port::Named(name.into())),
    ];
    let destination = (prop::option::of(vec(port.clone(), 0..3)), vec(port, 0..2))
        .prop_map(|(one_of, none_of)| Ports { one_of, none_of });
    let source = prop_oneof![
        3 => Just(SourcePorts::default()),
        1 => Just(SourcePorts { one_of: Some(vec![(1000, 2000)]), none_of: vec![(1500, 1500)] }),
        1 => Just(SourcePorts { one_of: None, none_of: vec![(1024, 65535)] }),
    ];
    let icmp = || {
        prop_oneof![
            4 => Just(None),
            1 => Just(Some(Icmp { kind: 8, code: None })),
            1 => Just(Some(Icmp { kind: 3, code: Some(4) })),
        ]
    };
    (protocol, prop_oneof![Just(Ports::default()), destination], source, icmp(), icmp()).prop_map(
        |(protocol, destination, source, icmp, not_icmp)| L4Match { protocol, destination, source, icmp, not_icmp },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Reject, Action::Pass, Action::Log]);
    let peers = vec(vec(term(), 0..3).prop_map(Peer), 0..3);
    let remote = prop_oneof![1 => Just(Peers::Any), 3 => peers.prop_map(Peers::OneOf)];
    let local = prop_oneof![3 => Just(Vec::new()), 1 => vec(term(), 1..3)];
    let l4 = prop_oneof![2 => Just(L4::Any), 3 => vec(l4_match(), 0..3).prop_map(L4::OneOf)];
    (action, remote, local, l4).prop_map(|(action, remote, local, l4)| Rule {
        action,
        remote,
        local,
        l4,
        path: "".into(),
    })
}

fn policy() -> impl Strategy<Value = (Rank, Policy)> {
    let rank = (0u8..3, 0u8..3, 0u8..2, prop::bool::weighted(0.2)).prop_map(|(tier, order, name, passes)| Rank {
        tier: Tier {
            order: Order(f64::from(tier)),
            name: "t".into(),
            default_action: if passes { DefaultAction::Pass } else { DefaultAction::Deny },
        },
        order: Order(f64::from(order)),
        source: ObjectId { kind: Kind::NetworkPolicy, name: format!("x/{tier}.{order}.{name}.{passes}").into() },
        part: 0,
    });
    let rules = || prop::option::of((any::<bool>(), vec(rule(), 0..4)));
    let mode = select(vec![Mode::Enforced, Mode::Enforced, Mode::Enforced, Mode::Audit, Mode::Staged]);
    (rank, endpoints(), rules(), rules(), mode).prop_map(|(rank, subject, ingress, egress, mode)| {
        let numbered = |name: &str, (isolates, rules): (bool, Vec<Rule>)| Rules {
            isolates: isolates.then(|| name.into()),
            rules: rules
                .into_iter()
                .enumerate()
                .map(|(i, rule)| Rule { path: format!("{name}[{i}]").into(), ..rule })
                .collect(),
        };
        let ingress = ingress.map(|rules| numbered("ingress", rules));
        let egress = egress.map(|rules| numbered("egress", rules));
        (rank, Policy { subject, ingress, egress, mode })
    })
}

/// Sixty take two seconds.
fn cases() -> u32 {
    std::env::var("POLICY_RULE_CASES").map_or(60, |text| text.parse().expect("a number"))
}

fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for (of, destination) in [
        (6, 80),
        (6, 81),
        (6, 53),
        (17, 53),
        (17, 80),
        (132, 80),
        (1, 8 << 8),
        (1, 3 << 8 | 4),
        (1, 3 << 8),
        (58, 8 << 8),
        (47, 0),
    ] {
        let sources: &[u16] = if protocol::has_ports(of) { &[500, 1500, 1700, 40_000] } else { &[0] };
        packets.extend(sources.iter().map(|source| Packet { protocol: of, source_port: *source, destination }));
    }
    packets
}

/// The slow way: what has to be listed, asked of each address and range.
fn listed(all: &Tables) -> (OrdMap<IpAddr, u32>, OrdMap<IpNet, u32>) {
    let rows = |number: u32| {
        let sides = all.sets.iter().flat_map(|(set, it)| [(set, &it.ingress), (set, &it.egress)]).enumerate();
        let of = sides.flat_map(|(side, (set, rows))| {
            let words = rows.words.iter().filter(move |((of, _), _)| *of == number);
            words.map(move |(place, word)| (side, *set, place.1, *word, rows.residual.get(place).cloned()))
        });
        of.collect::<Vec<_>>()
    };
    let treatments: BTreeMap<u32, Vec<_>> = all.identities.keys().map(|number| (*number, rows(*number))).collect();
    let is_like_ranges_around = |number: u32| {
        let identity = &all.identities[&number];
        let is_of_ranges = |it: &Identity| matches!(it.traits.entity, Entity::World | Entity::UnknownPod);
        let mut around = all.identities.iter().filter(|(_, it)| it.zone == identity.zone && is_of_ranges(it));
        around.all(|(of_range, _)| treatments[of_range] == treatments[&number])
    };
    let is_like_the_wider = |range: &IpNet, number: u32| {
        let wider = range.supernet().and_then(|wider| all.identity_around(&wider));
        wider.is_some_and(|wider| treatments[&wider] == treatments[&number])
    };
    let addresses = all.addresses.iter().filter(|(_, it)| !is_like_ranges_around(**it));
    let ranges = all.ranges.iter().filter(|(range, it)| !is_like_the_wider(range, **it));
    (addresses.map(|(at, it)| (*at, *it)).collect(), ranges.map(|(at, it)| (*at, *it)).collect())
}

fn check(memo: &mut Memo, world: &World) {
    let tables = plan(memo, world).tables.clone();
    assert_eq!((tables.addresses.clone(), tables.ranges.clone()), listed(&memo.unabridged()));
    for (pod, _) in world.pods.iter().filter(|(_, pod)| pod.node == world.local) {
        for own in world.pods[pod].addresses.iter().copied() {
            let subject = end(world, own);
            for remote in REMOTES.map(|text| end(world, text.parse().unwrap())) {
                for (direction, packet) in
                    Direction::ALL.into_iter().flat_map(|way| packets().into_iter().map(move |it| (way, it)))
                {
                    let want = walk::judge(&memo.out.program, direction, &subject, &remote, &packet);
                    let got = tables.lookup(pod, direction, own, remote.address, &packet);
                    assert_eq!(
                        got,
                        Some(want),
                        "{direction:?} of {pod} at {own}, other end {}, {packet:?}",
                        remote.address
                    );
                }
            }
        }
    }
}

fn replace(memo: &mut Memo, before: Option<(Rank, Arc<Policy>)>, after: Option<(Rank, Arc<Policy>)>) {
    let Memo { rules, out, .. } = memo;
    exchange(&mut out.program, rules, before.as_slice(), after.as_slice());
}

fn attach(world: &mut World, pod: &str, address: &str) {
    let (namespace, name) = pod.split_once('/').unwrap();
    let addresses = tartan_model::PerFamily::first_of([address.parse().unwrap()]);
    world.attach(tartan_model::Attachment {
        id: format!("{pod}/eth0").into(),
        container: pod.into(),
        ifname: "eth0".into(),
        netns: tartan_netstate::PodNetns { dev: 1, ino: 1, path: "/run/netns/x".into() },
        pod_namespace: namespace.into(),
        pod_name: name.into(),
        addresses,
        mac: tartan_netstate::Mac([2, 0, 0, 0, 0, 1]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    });
}

/// Whose an address is, planned step by step and anew.
fn who(memo: &mut Memo, world: &World, address: &str) -> (Entity, Option<String>) {
    let look = |memo: &mut Memo| {
        plan(memo, world);
        let tables = memo.unabridged();
        let identity = tables.identities[&tables.identity(address.parse().unwrap())].clone();
        let app = identity.traits.workload.as_ref().and_then(|it| it.labels.to_map().get("app").cloned());
        (identity.traits.entity, app)
    };
    let found = look(memo);
    let Memo { out, .. } = memo;
    let mut anew = Memo::default();
    exchange(
        &mut anew.out.program,
        &mut anew.rules,
        &[],
        &out.program.iter().map(|(r, p)| (r.clone(), p.clone())).collect::<Vec<_>>(),
    );
    assert_eq!(found, look(&mut anew), "{address}, planned anew");
    found
}

/// Pods with these labels let those with the others in; returns the policy's place.
fn lets_in(memo: &mut Memo, subject: &str, others: Selector) -> Rank {
    let others = Term::that(Is::Endpoint(Endpoints::new(Namespaces::Any, others)));
    let remote = Peers::OneOf(vec![Peer(vec![others])]);
    let rule = Rule { action: Action::Allow, remote, local: Vec::new(), l4: L4::Any, path: "r".into() };
    let rules = Rules { isolates: Some("s".into()), rules: vec![rule] };
    let subject_labels = Endpoints::new(Namespaces::Any, Selector::parse(subject).unwrap());
    let policy = Policy { subject: subject_labels, ingress: Some(rules), egress: None, mode: Mode::Enforced };
    let tier = Tier { order: Order::FIRST, name: "t".into(), default_action: DefaultAction::Deny };
    let source = ObjectId { kind: Kind::NetworkPolicy, name: format!("x/{subject}").into() };
    let rank = Rank { tier, order: Order::FIRST, source, part: 0 };
    let before = memo.out.program.get(&rank).map(|there| (rank.clone(), there.clone()));
    replace(memo, before, Some((rank.clone(), Arc::new(policy))));
    rank
}

/// Not only equal: the very same values, so that whoever compares them sees at once that nothing is to be done.
#[test]
fn what_a_change_cannot_reach_is_not_touched() {
    let mut world = world();
    let mut memo = Memo::default();
    lets_in(&mut memo, "app == 'x'", Selector::is_in("app", ["y"]));
    let other = lets_in(&mut memo, "app == 'y'", Selector::is_in("app", ["x"]));
    let before = plan(&mut memo, &world).tables.clone();
    let set = |tables: &Tables, pod: &str| tables.sets[&tables.subjects[pod]].clone();
    let same = |after: &Tables, pod: &str| Arc::ptr_eq(&set(&before, pod), &set(after, pod));

    let quiet = plan(&mut memo, &world).tables.clone();
    assert!(quiet.addresses.ptr_eq(&before.addresses) && same(&quiet, "a/p") && same(&quiet, "a/q"));

    lets_in(&mut memo, "app == 'y'", Selector::is_in("app", ["x", "z"]));
    let after = plan(&mut memo, &world).tables.clone();
    assert!(after.addresses.ptr_eq(&before.addresses) && same(&after, "a/p"), "the policy is for another pod");
    assert_eq!(after.subjects, before.subjects, "its own pod keeps its set");

    // `tier` is looked at by nobody.
    world.pods.insert("b/p".into(), pod("n2", 3, &[("app", "x"), ("tier", "z")], "sa", &[]));
    let after = plan(&mut memo, &world).tables.clone();
    assert!(after.addresses.ptr_eq(&before.addresses) && same(&after, "a/p"), "no rule can see the difference");

    // It becomes what another pod is already.
    world.pods.insert("b/p".into(), pod("n2", 3, &[("app", "y")], "sa", &[]));
    let after = plan(&mut memo, &world).tables.clone();
    assert_eq!(after.addresses.diff(&before.addresses).count(), 2, "its two addresses");
    assert!(same(&after, "a/p"), "rows are by identity, and both were there");

    let gone = memo.out.program.get(&other).map(|there| (other.clone(), there.clone()));
    replace(&mut memo, gone, None);
    let after = plan(&mut memo, &world).tables.clone();
    assert!(same(&after, "a/p"));
    assert_eq!(after.subjects, before.subjects, "the set moves with its only pod");
}

#[test]
fn what_no_rule_tells_apart_is_not_listed() {
    let mut world = world();
    let mut memo = Memo::default();
    let lists = |memo: &mut Memo, world: &World| {
        let tables = plan(memo, world).tables.clone();
        assert_eq!((tables.addresses.clone(), tables.ranges.clone()), listed(&memo.unabridged()));
        let texts = |all: Vec<String>| all.join(" ");
        let addresses = texts(tables.addresses.keys().map(ToString::to_string).collect());
        (addresses, texts(tables.ranges.keys().map(ToString::to_string).collect()))
    };
    let check = |memo: &mut Memo, world: &World, addresses: &str, ranges: &str| {
        assert_eq!(lists(memo, world), (addresses.to_owned(), ranges.to_owned()));
    };
    let everything = "0.0.0.0/0 ::/0";
    check(&mut memo, &world, "", everything);
    // A policy for pods of other nodes, and one that is for one here and treats everybody alike.
    lets_in(&mut memo, "app == 'z'", Selector::all());
    lets_in(&mut memo, "app == 'x'", Selector::has("nobody"));
    check(&mut memo, &world, "", everything);
    let tier = "has(tier) && app == 'y'";
    let rank = lets_in(&mut memo, tier, Selector::is_in("tier", ["y"]));
    check(&mut memo, &world, "10.0.0.3 fd00::3", everything);
    world.pods.insert("b/r".into(), pod("n2", 4, &[("tier", "y")], "sa", &[]));
    world.pods.insert("b/s".into(), pod("n2", 5, &[("tier", "z")], "sa", &[]));
    check(&mut memo, &world, "10.0.0.3 10.0.0.4 fd00::3 fd00::4", everything);
    lets_in(&mut memo, tier, Selector::is_in("tier", ["z"]));
    check(&mut memo, &world, "10.0.0.5 fd00::5", everything);
    // All addresses of its family are in a range of which rules treat the rest as nobody else.
    let outside = Term::that(Is::In(Nets {
        ranges: ["0.0.0.0/0".parse().unwrap()].into_iter().collect(),
        except: Ranges::default(),
        scope: Scope::Outside,
    }));
    let policy = memo.out.program[&rank].clone();
    let mut rules = policy.ingress.clone().unwrap();
    rules.rules[0].remote = Peers::OneOf(vec![Peer(vec![outside])]);
    let other = Policy { ingress: Some(rules), ..Policy::clone(&policy) };
    replace(&mut memo, Some((rank.clone(), policy)), Some((rank.clone(), other.clone().into())));
    let v4 = "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 192.0.2.1 192.0.2.2";
    check(&mut memo, &world, v4, "0.0.0.0/0 10.0.0.0/24 ::/0");
    replace(&mut memo, Some((rank, other.into())), None);
    check(&mut memo, &world, "", everything);
}

#[test]
fn policies_for_pods_of_other_nodes_part_nobody() {
    let mut world = world();
    let mut memo = Memo::default();
    let identities = |memo: &mut Memo, world: &World| plan(memo, world).tables.identities.clone();
    lets_in(&mut memo, "app == 'x'", Selector::has("app"));
    let few = identities(&mut memo, &world);
    lets_in(&mut memo, "app == 'z'", Selector::has("tier"));
    assert_eq!(identities(&mut memo, &world), few);
    world.pods.insert("b/z".into(), pod("n2", 9, &[("app", "z")], "sa", &[]));
    let few = identities(&mut memo, &world);
    world.pods.insert("a/z".into(), pod("n1", 8, &[("app", "z")], "sa", &[]));
    let tier = |all: &OrdMap<u32, Arc<Identity>>| {
        let workloads = all.values().filter_map(|it| it.traits.workload.clone());
        workloads.filter(|it| it.labels.iter().any(|(label, _)| label == "tier")).count()
    };
    assert_eq!([tier(&few), tier(&identities(&mut memo, &world))], [0, 2], "two have a tier, and one here asks for it");
    world.pods.remove("a/z");
    assert_eq!(identities(&mut memo, &world), few);
}

#[test]
fn addresses_given_here_are_whose_they_were_given_to() {
    let mut world = world();
    let mut memo = Memo::default();
    lets_in(&mut memo, "all()", Selector::has("app"));
    let pod_named = |app: &str| (Entity::Pod, Some(app.to_owned()));

    assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::UnknownPod, None));
    attach(&mut world, "a/new", "10.0.0.9");
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::UnknownPod, None), "its labels are not known yet");
    let mut labelled = Pod::clone(&pod("n1", 9, &[("app", "new")], "sa", &[]));
    labelled.addresses = Box::default();
    world.pods.insert("a/new".into(), Arc::new(labelled.clone()));
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), pod_named("new"), "before its status tells the address");
    world.pods.insert("b/old".into(), pod("n2", 9, &[("app", "old")], "sa", &[]));
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), pod_named("new"), "whoever had it before");
    labelled.labels = labels(&[("app", "newer")]);
    world.pods.insert("a/new".into(), Arc::new(labelled));
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), pod_named("newer"));
    world.detach("a/new/eth0", std::time::Instant::now());
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), pod_named("old"));
    world.pods.insert("b/other".into(), pod("n2", 9, &[("app", "old")], "sa", &[]));
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::UnknownPod, None), "two say that it is theirs");
    let node = world.nodes.values().next().unwrap();
    let node = Node { internal_ips: vec!["10.0.0.9".parse().unwrap()], ..Node::clone(node) };
    world.nodes.insert(node.name.clone(), node.into());
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::Disputed, None), "a node among them");
}

#[test]
fn an_address_goes_from_one_pod_to_another_between_two_looks() {
    let (mut world, mut memo) = (world(), Memo::default());
    lets_in(&mut memo, "all()", Selector::has("app"));
    for name in ["a/k", "a/z"] {
        let unplaced = Pod { addresses: Box::default(), ..Pod::clone(&pod("n1", 9, &[("app", name)], "sa", &[])) };
        world.pods.insert(name.into(), unplaced.into());
    }
    for (before, now) in [("a/k", "a/z"), ("a/z", "a/k"), ("a/k", "a/z")] {
        world.detach(&format!("{before}/eth0"), std::time::Instant::now());
        attach(&mut world, now, "10.0.0.9");
        assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::Pod, Some(now.to_owned())));
    }
}

#[test]
fn what_is_no_pod_has_a_set_that_no_policy_is_for() {
    let mut world = world();
    let mut memo = Memo::default();
    lets_in(&mut memo, "all()", Selector::has("nobody"));
    let get = Packet { protocol: 6, source_port: 40_000, destination: 80 };
    let [own, remote] = ["10.0.0.9", "10.0.0.3"].map(|address| address.parse().unwrap());
    let word = |tables: &Tables, pod: &str| {
        tables.lookup(pod, Direction::Ingress, own, remote, &get).map(|decision| decision.verdict)
    };
    assert_eq!(word(&plan(&mut memo, &world).tables, NAMELESS), None);
    attach(&mut world, NAMELESS, "10.0.0.9");
    let tables = plan(&mut memo, &world).tables.clone();
    assert_eq!(word(&tables, NAMELESS), Some(Verdict::Allow));
    assert_eq!(word(&tables, "a/p"), Some(Verdict::Deny));
    assert_eq!(who(&mut memo, &world, "10.0.0.9"), (Entity::UnknownPod, None), "to others");
    // Rules that come later are not for it either.
    lets_in(&mut memo, "!has(app)", Selector::has("nobody"));
    assert_eq!(word(&plan(&mut memo, &world).tables, NAMELESS), Some(Verdict::Allow));
    world.detach("//eth0", std::time::Instant::now());
    assert_eq!(plan(&mut memo, &world).tables.subjects.get(NAMELESS), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// Rules come one after the other, each in place of what has its rank; then some go.
    #[test]
    fn tables_agree_with_the_rules_asked_one_by_one(policies in vec(policy(), 1..7), gone in 0usize..4) {
        let world = world();
        let mut memo = Memo::default();
        for (step, (rank, policy)) in policies.iter().enumerate() {
            let before = memo.out.program.get(rank).map(|there| (rank.clone(), there.clone()));
            replace(&mut memo, before, Some((rank.clone(), Arc::new(policy.clone()))));
            if step + 2 >= policies.len() {
                check(&mut memo, &world);
            }
        }
        for rank in memo.out.program.keys().take(gone).cloned().collect::<Vec<_>>() {
            let before = memo.out.program.get(&rank).map(|there| (rank.clone(), there.clone()));
            replace(&mut memo, before, None);
        }
        check(&mut memo, &world);
    }
}
