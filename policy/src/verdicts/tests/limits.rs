//! What policies ask for that no node could hold, and what only looks like that.

use serde_json::{Value, json};

use super::*;

/// Pods with labels of their own, as many and some, beside those of every test.
fn crowd(pods: u8) -> World {
    let mut world = world();
    for at in 0..pods {
        world.pods.insert(format!("b/{at}").into(), pod("n2", 100 + at, &[("app", &format!("app{at}"))], "sa", &[]));
    }
    world
}

/// A policy for pods of namespace `a` with this label.
fn put(world: &mut World, name: &str, app: &str, rules: &Value) {
    let spec =
        json!({ "podSelector": { "matchLabels": { "app": app } }, "policyTypes": ["Ingress"], "ingress": rules });
    let id = ObjectId { kind: Kind::NetworkPolicy, name: format!("a/{name}").into() };
    world.policies.insert(id, Arc::new(PolicyText { json: json!({ "spec": spec }).to_string().into() }));
}

fn delete(world: &mut World, name: &str) {
    world.policies.remove(&ObjectId { kind: Kind::NetworkPolicy, name: format!("a/{name}").into() });
}

/// A rule for each of so many ports: all pods that have the label, whatever its value, for they are many other ends.
fn rule_by_rule(ports: usize) -> Value {
    let from = json!([{ "namespaceSelector": {}, "podSelector": { "matchExpressions": [{ "key": "app", "operator": "Exists" }] } }]);
    (0..ports).map(|at| json!({ "from": from, "ports": [{ "port": 1000 + 2 * at }] })).collect()
}

fn rows<'a>(tables: &'a Tables, pod: &str) -> &'a Rows {
    &tables.sets[&tables.subjects[pod]].ingress
}

#[test]
fn ports_that_no_rule_tells_apart_are_one_class() {
    let mut world = world();
    let mut memo = Memo::default();
    let mut classes = |world: &World| rows(&plan(&mut memo, world).tables, "a/p").classes.count();
    let ports: Value = (0..1_000).map(|at| json!({ "port": 10_000 + 2 * at })).collect();
    put(&mut world, "p", "x", &json!([{ "ports": ports }]));
    assert_eq!(classes(&world), 2, "these ports, and all other packets");
    put(&mut world, "other", "x", &json!([{ "ports": [{ "port": 10_000 }, { "port": 80 }] }]));
    assert_eq!(classes(&world), 4, "the port that both name, and the one that only the other does");
    put(&mut world, "other", "y", &json!([{ "ports": [{ "port": 10_000 }] }]));
    assert_eq!(classes(&world), 2, "what is for other pods cuts nothing");
}

#[test]
fn who_asks_for_more_than_a_node_holds_is_closed_until_it_fits_and_nobody_else() {
    let mut world = crowd(100);
    let mut memo = Memo::default();
    let mut verdicts = |world: &World| {
        let tables = &plan(&mut memo, world).tables;
        ["a/p", "a/q"].map(|pod| {
            let (own, other) = (world.pods[pod].addresses[0], "10.0.0.100".parse().unwrap());
            let packet = Packet { protocol: protocol::TCP, source_port: 1, destination: 1000 };
            let decision = tables.lookup(pod, Direction::Ingress, own, other, &packet).unwrap();
            let by = decision.rule.map(|rule| format!("{} {}", rule.source, rule.path)).unwrap_or_default();
            assert_eq!(rows(tables, pod).too_many, decision.verdict == Verdict::Deny);
            (decision.verdict, by)
        })
    };
    let (open, closed) = (Verdict::Allow, Verdict::Deny);
    let by = |policy: &str, rule: &str| format!("NetworkPolicy/a/{policy} spec.ingress[{rule}]");

    put(&mut world, "p", "x", &rule_by_rule(60));
    put(&mut world, "q", "y", &rule_by_rule(10));
    assert_eq!(verdicts(&world), [(closed, by("p", "59")), (open, by("q", "0"))], "more than 5,000 by itself");
    for at in 0..40 {
        world.pods.remove(format!("b/{at}").as_str());
    }
    put(&mut world, "unrelated", "nobody", &json!([]));
    world.pods.insert("b/0".into(), pod("n2", 100, &[("app", "app0")], "sa", &[]));
    assert_eq!(verdicts(&world), [(open, by("p", "0")), (open, by("q", "0"))], "an eighth of the other ends is gone");

    put(&mut world, "q", "y", &rule_by_rule(50));
    assert_eq!(verdicts(&world), [(closed, by("p", "59")), (open, by("q", "0"))], "more than 5,000 together");
    put(&mut world, "q", "y", &rule_by_rule(10));
    assert_eq!(verdicts(&world), [(open, by("p", "0")), (open, by("q", "0"))], "there is room again");
    put(&mut world, "p", "x", &rule_by_rule(200));
    assert_eq!(verdicts(&world)[0].0, closed);
    delete(&mut world, "p");
    assert_eq!(verdicts(&world), [(open, String::new()), (open, by("q", "0"))]);
}

#[test]
fn what_is_open_does_not_give_way_to_what_was_closed() {
    let mut world = crowd(100);
    let mut memo = Memo::default();
    let mut sizes = |world: &World| {
        let tables = &plan(&mut memo, world).tables;
        ["a/p", "a/q"].map(|pod| (rows(tables, pod).size(), rows(tables, pod).too_many))
    };
    // Of 4,000 ends of one class, whoever there is.
    let ports: Value = (0..2_000).map(|at| json!({ "port": 10_000 + 2 * at })).collect();
    put(&mut world, "p", "x", &rule_by_rule(60));
    put(&mut world, "q", "y", &json!([{ "ports": ports }]));
    let [(_, p_is_closed), (q, q_is_closed)] = sizes(&world);
    assert!(p_is_closed && !q_is_closed && (4_000..5_000).contains(&q), "{q}");
    for at in 0..60 {
        world.pods.remove(format!("b/{at}").as_str());
    }
    let after = sizes(&world);
    assert_eq!(
        after.map(|(_, closed)| closed),
        [true, false],
        "p would be smaller now than q, and there is no room: {after:?}"
    );
}

#[test]
fn a_list_is_one_end_however_long_and_costs_nobody_but_who_names_it() {
    let mut world = world();
    let mut memo = Memo::default();
    let mut plan = |list: u32| {
        let block =
            |at| json!({ "ipBlock": { "cidr": format!("{}/32", std::net::Ipv4Addr::from(0x5000_0000 + 2 * at)) } });
        put(&mut world, "p", "x", &json!([{ "from": (0..list).map(block).collect::<Value>() }]));
        put(&mut world, "q", "y", &json!([{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }]));
        super::plan(&mut memo, &world).tables.clone()
    };
    let tables = plan(4_000);
    assert!(rows(&tables, "a/p").size() < 10 && rows(&tables, "a/q").size() < 20);
    assert!((4_000..4_010).contains(&tables.ranges.len()), "{}", tables.ranges.len());
    let tables = plan(6_000);
    assert!(rows(&tables, "a/p").too_many, "more ranges than a node holds");
    assert!(!rows(&tables, "a/q").too_many && rows(&tables, "a/q").size() < 20, "all in 0.0.0.0/0, for all it matters");
    assert!(tables.ranges.len() < 10, "nobody tells them apart: {}", tables.ranges.len());
}

/// Each rule with a list of its own, so that each is another end to whoever lets in all addresses.
#[test]
fn who_asks_for_too_much_parts_nobodys_ends() {
    let rules = |count: u32| -> Value {
        let block = |at| format!("{}/32", std::net::Ipv4Addr::from(0x5000_0000 + 2 * at));
        (0..count).map(|at| json!({ "from": [{ "ipBlock": { "cidr": block(at) } }] })).collect()
    };
    let everywhere = json!([{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }]);
    let check = |memo: &mut Memo, world: &World, closed: [bool; 2], sizes: [std::ops::Range<usize>; 2]| {
        let tables = plan(memo, world).tables.clone();
        let found = ["a/p", "a/q"].map(|pod| (rows(&tables, pod).too_many, rows(&tables, pod).size()));
        assert_eq!(found.map(|(closed, _)| closed), closed, "{found:?}");
        assert!(found.iter().zip(&sizes).all(|((_, size), wanted)| wanted.contains(size)), "{found:?}, not {sizes:?}");
        let mut anew = Memo::default();
        let fresh = plan(&mut anew, world).tables.clone();
        assert_eq!(["a/p", "a/q"].map(|pod| rows(&fresh, pod).too_many), closed, "planned anew");
        assert_eq!((tables.ranges.len(), tables.addresses.len()), (fresh.ranges.len(), fresh.addresses.len()));
    };
    let (few, many) = (0..30, 1_000..1_100);
    let (mut world, mut memo) = (world(), Memo::default());
    put(&mut world, "q", "y", &everywhere);
    check(&mut memo, &world, [false, false], [few.clone(), few.clone()]);
    put(&mut world, "p", "x", &rules(1_000));
    check(&mut memo, &world, [false, false], [many.clone(), many.clone()]);
    put(&mut world, "p", "x", &rules(2_000));
    check(&mut memo, &world, [true, false], [few.clone(), few.clone()]);
    for at in 0..3 {
        put(&mut world, &format!("other{at}"), "nobody", &json!([]));
        check(&mut memo, &world, [true, false], [few.clone(), few.clone()]);
    }
    put(&mut world, "p", "x", &rules(6_000));
    check(&mut memo, &world, [true, false], [few.clone(), few.clone()]);
    put(&mut world, "p", "x", &rules(1_000));
    check(&mut memo, &world, [false, false], [many.clone(), many.clone()]);
    put(&mut world, "q", "y", &json!([]));
    check(&mut memo, &world, [false, false], [many, few]);
}

/// Each would take minutes if all were compared with all.
#[test]
fn long_lists_are_planned_at_once() {
    let exceptions: Vec<String> = (0..15_000u32).map(|at| format!("{}/32", std::net::Ipv4Addr::from(2 * at))).collect();
    let ranges: Vec<Value> = (1..15_000).map(|at| json!({ "port": at, "endPort": 40_000 - at })).collect();
    let blocks: Vec<Value> = (0..15_000u32)
        .map(|at| json!({ "ipBlock": { "cidr": format!("{}/32", std::net::Ipv4Addr::from(2 * at)) } }))
        .collect();
    let all = [
        json!([{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/8", "except": exceptions } }] }]),
        json!([{ "ports": ranges }]),
        json!([{ "from": blocks }]),
    ];
    for rules in all {
        let mut world = world();
        put(&mut world, "p", "x", &rules);
        put(
            &mut world,
            "q",
            "x",
            &json!([{ "ports": (1..5_000).map(|at| json!({ "port": 8 * at })).collect::<Value>() }]),
        );
        let mut memo = Memo::default();
        plan(&mut memo, &world);
        assert!(memo.out.said.is_empty(), "{:?}", memo.out.said);
    }
}
