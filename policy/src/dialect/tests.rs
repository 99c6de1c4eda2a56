//! What objects are lowered to, and what users are told of bad ones: two tables of documents, each with the lines that
//! `shown` makes of it. `TARTAN_BLESS=1 cargo test -p tartan-policy dialect` writes the tables again; read the difference.

use std::path::Path;

use ipnet::IpNet;
use serde_json::json;
use tartan_model::{Condition, Object};
use tartan_store::decode;

use super::*;
use crate::ir::{Direction, Is, L4, L4Match, Namespaces, Peers, Port, ProtocolIs, Rule, Term};

/// Documents are written as kind, metadata and body: `NetworkPolicy` stands for its three lines.
fn document(kind: &str, body: &str) -> String {
    let version = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        _ => "policy.networking.k8s.io/v1alpha1",
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: ns}}\n{body}\n")
}

fn lowered(kind: &str, body: &str) -> Lowered {
    let text = document(kind, body);
    match decode::documents("p.yaml", &text).pop() {
        Some(Ok(decode::Document { id, object: Object::Policy(policy), .. })) => lower(&id, &policy),
        other => panic!("{text}\n{other:?}"),
    }
}

fn shown(lowered: &Lowered) -> String {
    let said = lowered.said.iter().flat_map(|Condition { about, field, reason, message, fix }| {
        [format!(">> {about} {field} {reason}"), format!(">> {message}"), format!(">> {fix}")]
    });
    let policies = lowered.policies.iter().flat_map(|(rank, policy)| {
        let head = format!("=> {} {:?} for {}", rank.tier.name, rank.order.0, endpoints(&policy.subject));
        let rules = Direction::ALL.into_iter().flat_map(|direction| {
            let rules = policy.rules(direction);
            let isolates = rules.is_some_and(|rules| rules.isolates.is_some());
            let head = rules.map(|_| format!("=> {direction:?}{}", if isolates { " isolated" } else { "" }));
            head.into_iter().chain(rules.into_iter().flat_map(|rules| rules.rules.iter().map(rule)))
        });
        std::iter::once(head).chain(rules.collect::<Vec<_>>())
    });
    said.chain(policies).collect::<Vec<String>>().join("\n")
}

fn rule(rule: &Rule) -> String {
    let peers = match &rule.remote {
        Peers::Any => "anyone".to_owned(),
        Peers::OneOf(peers) => listed(peers.iter().map(|peer| peer.0.iter().map(term).collect::<String>())),
    };
    let l4 = match &rule.l4 {
        L4::Any => "everything".to_owned(),
        L4::OneOf(all) => listed(all.iter().map(l4_match)),
    };
    format!("=>   {:?} {peers} {l4} by {}", rule.action, rule.path)
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    format!("[{}]", parts.collect::<Vec<_>>().join(" | "))
}

fn term(term: &Term) -> String {
    match &term.is {
        Is::Endpoint(these) => endpoints(these),
        Is::In(nets) => {
            let but: Vec<&IpNet> = nets.except.iter().collect();
            nets.ranges.iter().map(|range| format!("{range} but {but:?}")).collect()
        }
        Is::Node(selector) => format!("nodes {selector}"),
        Is::Entity(entities) => format!("{entities:?}"),
    }
}

fn endpoints(endpoints: &crate::ir::Endpoints) -> String {
    match &endpoints.namespaces {
        Namespaces::Any => format!("*/{}", endpoints.labels),
        Namespaces::Named(name) => format!("{name}/{}", endpoints.labels),
        Namespaces::Labelled(selector) => format!("({selector})/{}", endpoints.labels),
    }
}

fn l4_match(l4: &L4Match) -> String {
    let protocol = match l4.protocol {
        ProtocolIs::Any => "any".to_owned(),
        ProtocolIs::Is(number) => number.to_string(),
        ProtocolIs::Not(number) => format!("not {number}"),
    };
    let port = |port: &Port| match port {
        Port::Range(low, high) if low == high => format!(":{low}"),
        Port::Range(low, high) => format!(":{low}-{high}"),
        Port::Named(name) => format!(":{name}"),
    };
    protocol + &l4.destination.one_of.iter().flatten().map(port).collect::<String>()
}

/// One case: a kind, a body, and the lines said of it.
fn check(case: &str) -> String {
    let document: Vec<&str> =
        case.lines().take_while(|line| !line.starts_with(">>") && !line.starts_with("=>")).collect();
    let (kind, body) = document.split_first().expect("a case has lines");
    format!("{}\n{}\n", document.join("\n"), shown(&lowered(kind, &body.join("\n"))))
}

fn table(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dialect/tests").join(name);
    let text = std::fs::read_to_string(&path).expect("the table is there");
    let cases: Vec<&str> = text.split("====\n").collect();
    let now: Vec<String> = cases.iter().map(|case| check(case)).collect();
    if std::env::var_os("TARTAN_BLESS").is_some() {
        std::fs::write(&path, now.join("====\n")).expect("the table can be written");
    } else {
        cases.iter().zip(&now).for_each(|(case, now)| assert_eq!(now, case, "{name}"));
    }
    now
}

#[test]
fn good_policies_mean_what_their_documents_say() {
    for case in table("good.txt") {
        assert!(!case.contains(">>"), "nothing is wrong with\n{case}");
    }
}

#[test]
fn bad_policies_are_told_and_fail_closed() {
    let cases = table("bad.txt");
    assert!(cases.len() >= 60, "the table is cut: {}", cases.len());
    for case in cases {
        assert!(case.contains(">>"), "nothing is said of\n{case}");
        let open = case.lines().any(|line| line.contains("Allow anyone everything"));
        assert!(!open, "everything is open in\n{case}");
    }
}

/// Every agent has everybody's policies.
#[test]
fn what_one_object_makes_has_an_end() {
    let of = |ingress: Vec<Value>| {
        let json = json!({"spec": {"podSelector": {}, "ingress": ingress}}).to_string().into();
        lower(&ObjectId { kind: Kind::NetworkPolicy, name: "ns/p".into() }, &PolicyText { json })
    };
    let rules = |lowered: &Lowered| lowered.policies[0].1.ingress.as_ref().unwrap().rules.len();
    let [whole, cut] = [50_000, 50_001].map(|count| of(vec![json!({}); count]));
    assert_eq!((rules(&whole), whole.said.len(), rules(&cut)), (50_000, 0, 0));
    assert!(cut.said[0].message.contains("more than 50000 items, of 50001; nothing is allowed"), "{:?}", cut.said);
    let wrong: Vec<Value> = (0..1000).map(|n| json!({"from": [{"ipBlock": {"cidr": n}}]})).collect();
    assert_eq!(of(wrong).said.len(), 100);
}
