//! What a plan costs with 50,000 pods and 10,000 policies, 100 of the pods here. Times are printed and never asserted;
//! what is asserted is that no more is touched than a change can reach.
//!
//! `cargo test --release -p tartan-policy --test scale -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(clippy::print_stdout, reason = "what is measured is printed")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{
    Features, Kind, Labels, NamedPort, Namespace, Object, ObjectId, Pod, PolicyText, Protocol, StoreEvent, World,
};
use tartan_policy::ends;
use tartan_policy::ir::Direction;
use tartan_policy::verdicts::{Memo, Out, Tables, plan};
use tartan_policy::walk::{self, End, Packet, Verdict};

const NAMESPACES: u32 = 1_000;
/// In each namespace: deployments, and pods of each.
const DEPLOYMENTS: u32 = 5;
const REPLICAS: u32 = 10;
const POLICIES: u32 = 10;
/// Namespaces one pod of which is on this node.
const LOCAL: u32 = 100;
const RUNS: u32 = 100;
/// Runs of what touches most of the cluster.
const FEW_RUNS: u32 = 10;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn pod_key(namespace: u32, at: u32) -> Arc<str> {
    format!("ns{namespace}/app{}-5d8c7b9f6c-{at:05}", at / REPLICAS).into()
}

fn pod(namespace: u32, at: u32) -> Pod {
    let number = namespace * DEPLOYMENTS * REPLICAS + at;
    let [_, high, middle, low] = number.to_be_bytes();
    let app = format!("app{}", at / REPLICAS);
    let tier = ["back", "data", "front"][usize::try_from(at / REPLICAS % 3).unwrap()];
    let node = if namespace < LOCAL && at == 0 { "n0".to_owned() } else { format!("n{}", 1 + number % 4_999) };
    Pod {
        uid: 0,
        node: node.into(),
        labels: labels(&[("app", &app), ("pod-template-hash", "5d8c7b9f6c"), ("tier", tier), ("version", "v1")]),
        service_account: "default".into(),
        addresses: [IpAddr::from([10, high, middle, low]), format!("fd00::{number:x}").parse().unwrap()].into(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    }
}

fn policy_id(namespace: u32, name: &str) -> ObjectId {
    ObjectId { kind: Kind::NetworkPolicy, name: format!("ns{namespace}/{name}").into() }
}

fn policy(spec: &str) -> Arc<PolicyText> {
    let spec: serde_json::Value = serde_json::from_str(spec).unwrap();
    Arc::new(PolicyText { json: serde_json::json!({ "spec": spec }).to_string().into() })
}

/// Of each namespace's policies, half are for all its pods; the first of them lets every front tier of the cluster in.
fn policy_text(namespace: u32, at: u32) -> Arc<PolicyText> {
    let subject = if at.is_multiple_of(2) {
        "{}".to_owned()
    } else {
        format!(r#"{{"matchLabels":{{"app":"app{}"}}}}"#, at % DEPLOYMENTS)
    };
    let wide = if at == 0 && namespace < 20 {
        r#"{"namespaceSelector":{},"podSelector":{"matchLabels":{"tier":"front"}}},"#
    } else {
        ""
    };
    policy(&format!(
        r#"{{"podSelector":{subject},"policyTypes":["Ingress","Egress"],
            "ingress":[{{"from":[{wide}{{"podSelector":{{"matchLabels":{{"app":"app{}"}}}}}}],"ports":[{{"port":{}}},{{"port":443}}]}},
                       {{"from":[{{"namespaceSelector":{{"matchLabels":{{"team":"team{}"}}}}}}],"ports":[{{"port":9090}}]}}],
            "egress":[{{"to":[{{"podSelector":{{}}}},{{"ipBlock":{{"cidr":"203.0.{}.0/24"}}}}]}}]}}"#,
        (at + 1) % DEPLOYMENTS,
        8000 + at,
        namespace % 50,
        namespace % 200,
    ))
}

fn pods_only() -> World {
    let now = Instant::now();
    let mut world = World::new("n0".into(), Features::default());
    for namespace in 0..NAMESPACES {
        let name: Arc<str> = format!("ns{namespace}").into();
        let team = format!("team{}", namespace % 50);
        world.namespaces.insert(name.clone(), Arc::new(Namespace { name, labels: labels(&[("team", &team)]) }));
        for at in 0..DEPLOYMENTS * REPLICAS {
            let id = ObjectId { kind: Kind::Pod, name: pod_key(namespace, at) };
            let revision = (namespace * 1000 + at) as u128;
            world.store(StoreEvent::Put(id, Object::Pod(pod(namespace, at).into()), revision.into()), now);
        }
    }
    world
}

fn add_policies(world: &mut World) {
    for namespace in 0..NAMESPACES {
        for at in 0..POLICIES {
            world.policies.insert(policy_id(namespace, &format!("p{at}")), policy_text(namespace, at));
        }
    }
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// How many places differ: addresses, ranges, subjects, rows.
fn touched(before: &Tables, after: &Tables) -> usize {
    let mut count = before.addresses.diff(&after.addresses).count() + before.ranges.diff(&after.ranges).count();
    count += before.subjects.diff(&after.subjects).count();
    for (number, set) in &after.sets {
        let Some(there) = before.sets.get(number) else {
            count += set.ingress.words.len() + set.egress.words.len();
            continue;
        };
        count +=
            there.ingress.words.diff(&set.ingress.words).count() + there.egress.words.diff(&set.egress.words).count();
    }
    count
}

/// Makes a change many times over; prints what planning took, and returns the most that one of them touched.
fn measure(what: &str, memo: &mut Memo, world: &mut World, change: impl FnMut(&mut World, u32)) -> usize {
    measure_runs(RUNS, what, memo, world, change)
}

fn measure_runs(
    runs: u32,
    what: &str,
    memo: &mut Memo,
    world: &mut World,
    mut change: impl FnMut(&mut World, u32),
) -> usize {
    let mut times: Vec<Duration> = Vec::new();
    let mut most = 0;
    for run in 0..runs {
        let before = plan(memo, world).tables.clone();
        change(world, run);
        let started = Instant::now();
        let after = &plan(memo, world).tables;
        times.push(started.elapsed());
        most = most.max(touched(&before, after));
    }
    times.sort();
    let at = |part: usize| times[times.len() * part / 100];
    println!("{what}: p50 {:?}, p99 {:?}, at most {most} places differ", at(50), at(99));
    most
}

#[test]
#[ignore = "long: takes a release build to mean anything"]
fn fifty_thousand_pods_and_ten_thousand_policies() {
    let pods = usize::try_from(NAMESPACES * DEPLOYMENTS * REPLICAS).unwrap();
    let start = resident();
    let mut world = pods_only();
    let known = resident();
    plan(&mut Memo::default(), &world);
    let mut alone = Memo::default();
    plan(&mut alone, &world);
    let planned = resident();
    println!("figure policy.world_bytes_per_pod {} bytes", (known - start) / pods);
    println!("figure policy.plan_bytes_per_pod {} bytes", planned.saturating_sub(known) / pods);
    drop(alone);

    add_policies(&mut world);
    let with_policies = resident();
    let mut memo = Memo::default();
    let started = Instant::now();
    let tables = plan(&mut memo, &world).tables.clone();
    let full = started.elapsed();
    let rows = |set: &tartan_policy::verdicts::Set| set.ingress.words.len() + set.egress.words.len();
    let (all, largest) =
        (tables.sets.values().map(|set| rows(set)).sum::<usize>(), tables.sets.values().map(|set| rows(set)).max());
    println!(
        "full plan {full:?}: {} identities, {} sets, {all} rows, {} in the largest; {} MiB for it, {} MiB in all",
        tables.identities.len(),
        tables.sets.len(),
        largest.unwrap_or_default(),
        resident().saturating_sub(with_policies) >> 20,
        resident() >> 20,
    );
    assert_eq!(tables.subjects.len(), usize::try_from(LOCAL).unwrap());

    let quiet = measure("nothing", &mut memo, &mut world, |_, _| {});
    assert_eq!(quiet, 0);
    let known_identity =
        measure("a remote pod's labels, to an identity that is there", &mut memo, &mut world, |world, run| {
            let at = 5 + run % 2 * REPLICAS;
            world.pods.insert(pod_key(500, 5), Arc::new(Pod { labels: pod(500, at).labels, ..pod(500, 5) }));
        });
    assert!(known_identity <= 2, "its two addresses: {known_identity}");
    measure("a remote pod's labels, to an identity of its own", &mut memo, &mut world, |world, run| {
        let of_its_own = labels(&[("app", &format!("new{run}")), ("tier", "front")]);
        world.pods.insert(pod_key(500, 5), Arc::new(Pod { labels: of_its_own, ..pod(500, 5) }));
    });
    let new_pod = measure("a new remote pod", &mut memo, &mut world, |world, run| {
        let at = DEPLOYMENTS * REPLICAS + run;
        let addresses = [IpAddr::from([10, 200, 0, u8::try_from(run).unwrap()])].into();
        world.pods.insert(pod_key(501, at), Arc::new(Pod { addresses, ..pod(501, 5) }));
    });
    assert!(new_pod <= 1, "its address: {new_pod}");
    measure("a local pod's labels", &mut memo, &mut world, |world, run| {
        let other = labels(&[("app", &format!("app{}", run % 2)), ("tier", "front")]);
        world.pods.insert(pod_key(30, 0), Arc::new(Pod { labels: other, ..pod(30, 0) }));
    });
    measure("a policy of one namespace, changed", &mut memo, &mut world, |world, run| {
        world.policies.insert(policy_id(40, "p0"), policy_text(40, run % POLICIES));
    });
    measure("the policy with the most rows, changed", &mut memo, &mut world, |world, run| {
        let text = policy_text(0, 0).json.replace("8000", &format!("{}", 8100 + run));
        world.policies.insert(policy_id(0, "p0"), Arc::new(PolicyText { json: text.into() }));
    });
    measure("a policy, new and gone again", &mut memo, &mut world, |world, run| {
        let id = policy_id(41, "more");
        let _ = if run.is_multiple_of(2) {
            world.policies.insert(id, policy_text(41, 1))
        } else {
            world.policies.remove(&id)
        };
    });
    measure_runs(
        FEW_RUNS,
        "a policy with a label and a range that nobody mentioned",
        &mut memo,
        &mut world,
        |world, run| {
            let id = policy_id(42, "more");
            let text = policy(
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"version":"v1"}}},{"ipBlock":{"cidr":"198.51.100.0/24"}}]}]}"#,
            );
            let _ = if run.is_multiple_of(2) { world.policies.insert(id, text) } else { world.policies.remove(&id) };
        },
    );
    measure_runs(FEW_RUNS, "a policy with the first 0.0.0.0/0", &mut memo, &mut world, |world, run| {
        let id = policy_id(42, "more");
        let text = policy(
            r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"0.0.0.0/0"}}]}]}"#,
        );
        let _ = if run.is_multiple_of(2) { world.policies.insert(id, text) } else { world.policies.remove(&id) };
    });
    measure("a namespace's labels", &mut memo, &mut world, |world, run| {
        let team = format!("team{}", run % 2);
        let namespace = Namespace { name: "ns502".into(), labels: labels(&[("team", &team)]) };
        world.namespaces.insert("ns502".into(), Arc::new(namespace));
    });
    println!("{} MiB in all", resident() >> 20);
}

#[test]
#[ignore = "measures; see the head of this file"]
fn a_change_of_one_namespace_is_compared_among_5_000_pods() {
    const SMALL: u32 = 100;
    let mut now = pods_only();
    add_policies(&mut now);
    let is_here = |name: &str| {
        let namespace = name.split_once('/').map_or(name, |(namespace, _)| namespace);
        namespace.strip_prefix("ns").is_some_and(|number| number.parse::<u32>().unwrap() < SMALL)
    };
    now.pods = now.pods.into_iter().filter(|(key, _)| is_here(key)).collect();
    now.namespaces = now.namespaces.into_iter().filter(|(name, _)| is_here(name)).collect();
    now.policies = now.policies.into_iter().filter(|(id, _)| is_here(&id.name)).collect();
    let mut then = now.clone();
    then.policies.insert(policy_id(40, "p0"), policy_text(40, 5));
    let began = Instant::now();
    let differences = tartan_policy::compare::differences(&now, &then);
    let (pods, policies) = (now.pods.len(), now.policies.len());
    println!("{pods} pods, {policies} policies: {} differences in {:?}", differences.len(), began.elapsed());
    let about = |name: &str| name.starts_with("ns40 ");
    assert!(!differences.is_empty() && differences.iter().all(|it| about(&it.from.name) || about(&it.to.name)));
}

/// The `number`th of many policies of one pod.
type OfOnePod = fn(u32) -> String;

/// Each with something of its own: peers, ports, both, ranges, or a name for the port of the other end.
const OF_ONE_POD: [(&str, OfOnePod); 6] = [
    ("labels", |n| format!(r#""ingress":[{{"from":[{{"podSelector":{{"matchLabels":{{"app":"a{n}"}}}}}}]}}]"#)),
    ("ports", |n| format!(r#""ingress":[{{"ports":[{{"port":{}}}]}}]"#, 1 + n)),
    ("labels and ports", |n| {
        let from = format!(r#"{{"podSelector":{{"matchLabels":{{"app":"a{n}"}}}}}}"#);
        format!(r#""ingress":[{{"from":[{from}],"ports":[{{"port":{}}},{{"port":443}}]}}]"#, 1000 + n)
    }),
    ("namespaces", |n| {
        let labels = format!(r#"{{"matchLabels":{{"kubernetes.io/metadata.name":"ns{}"}}}}"#, n % 1000);
        format!(r#""ingress":[{{"from":[{{"namespaceSelector":{labels}}}],"ports":[{{"port":{}}}]}}]"#, 1 + n)
    }),
    ("ranges", |n| {
        let [_, _, high, low] = n.to_be_bytes();
        format!(r#""egress":[{{"to":[{{"ipBlock":{{"cidr":"198.{high}.{low}.0/24"}}}}],"ports":[{{"port":443}}]}}]"#)
    }),
    ("named ports", |n| {
        let to = format!(r#"{{"podSelector":{{"matchLabels":{{"app":"a{n}"}}}}}}"#);
        format!(r#""egress":[{{"to":[{to}],"ports":[{{"port":"web"}}]}}]"#)
    }),
];

#[test]
fn hundreds_of_policies_select_one_pod() {
    many_select_one_pod([150, 300]);
}

#[test]
#[ignore = "measures; see the head of this file"]
fn thousands_of_policies_select_one_pod() {
    many_select_one_pod([1_250, 2_500, 5_000, 10_000]);
}

/// Each of these many policies as [`OF_ONE_POD`] has them: the tables say what the rules say, asked one by one, and have a
/// few rows for each policy, however many there are.
fn many_select_one_pod<const N: usize>(counts: [u32; N]) {
    for (what, of) in OF_ONE_POD {
        for many in counts {
            let world = one_pod(many, of);
            let began = Instant::now();
            let mut memo = Memo::default();
            let out = plan(&mut memo, &world);
            let rows: usize =
                out.tables.sets.values().map(|set| set.ingress.words.len() + set.egress.words.len()).sum();
            println!("{many} policies of one pod, {what}: {:?}, {rows} rows", began.elapsed());
            // Of what a policy names, and of two other ends: its port, 443, and all others.
            assert!(rows <= 3 * (many as usize + 2), "{many}, {what}: {rows} rows");
            let verdicts = [0, 1, many / 2, many - 1].map(|number| agrees(&world, out, many, number)).concat();
            for verdict in [Verdict::Allow, Verdict::Deny] {
                assert!(verdicts.contains(&verdict), "{many}, {what}: none of the packets is one to {verdict:?}");
            }
        }
    }
}

/// Asks tables and rules about the pod's packets to and from what the `number`th policy is about, and others; what they say.
fn agrees(world: &World, out: &Out, many: u32, number: u32) -> Vec<Verdict> {
    let [_, high, middle, low] = number.to_be_bytes();
    let remotes =
        [[10, high, middle, low], [198, middle, low, 7], [198, middle, low.wrapping_add(1), 7], [192, 0, 2, 7]];
    let name = format!("ns0/p{many}");
    let own = ends::addresses_of(world, &name)[0];
    let subject = End { traits: ends::subject(world, &name).unwrap(), address: own };
    let mut said = Vec::new();
    for remote in remotes.map(|address| ends::remote(world, "n0", address.into())) {
        for port in [1 + number, 1_000 + number, 443, 8_080, 20_000] {
            for (direction, protocol) in Direction::ALL.into_iter().flat_map(|way| [(way, 6), (way, 17)]) {
                let packet = Packet { protocol, source_port: 40_000, destination: u16::try_from(port).unwrap() };
                let wanted = walk::judge(&out.program, direction, &subject, &remote, &packet);
                let found = out.tables.lookup(&name, direction, own, remote.address, &packet);
                assert_eq!(found.as_ref(), Some(&wanted), "{direction:?}, other end {}, {packet:?}", remote.address);
                said.push(wanted.verdict);
            }
        }
    }
    said
}

/// A pod that so many policies select, and as many others elsewhere, each with a label of its own.
fn one_pod(many: u32, of: OfOnePod) -> World {
    let now = Instant::now();
    let mut world = World::new("n0".into(), Features::default());
    let name: Arc<str> = "ns0".into();
    let of_itself = labels(&[("kubernetes.io/metadata.name", "ns0")]);
    world.namespaces.insert(name.clone(), Arc::new(Namespace { name, labels: of_itself }));
    for number in 0..=many {
        let [_, high, middle, low] = number.to_be_bytes();
        let app = format!("a{number}");
        let pod = Pod {
            node: if number == many { "n0".into() } else { "n1".into() },
            labels: labels(&[("app", &app)]),
            addresses: [IpAddr::from([10, high, middle, low])].into(),
            ports: [NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            ..pod(0, 0)
        };
        let id = ObjectId { kind: Kind::Pod, name: format!("ns0/p{number}").into() };
        world.store(StoreEvent::Put(id, Object::Pod(pod.into()), u128::from(number).into()), now);
        if number < many {
            world.policies.insert(
                policy_id(0, &format!("p{number}")),
                policy(&format!(r#"{{"podSelector":{{}},{}}}"#, of(number))),
            );
        }
    }
    world
}
