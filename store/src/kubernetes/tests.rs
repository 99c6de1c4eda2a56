//! The store against an API server that says what a test wants, and against a real one.

mod absent;
mod connection;
mod real;
mod rights;
mod scripted;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tartan_model::{Availability, Kind, NodeCondition, NodeNetwork, Object, ObjectId, Placement, StoreEvent};
use tokio::sync::watch;

use self::real::{ApiServer, Behind};
use self::scripted::{Answer, Scripted};
use super::KubernetesStore;
use super::client::LARGEST;
use super::discovery::Pace;
use crate::conformance::{self, Rig as _, Watching};
use crate::{Expect, Store, Word, WriteError};

/// A list of pools, in that version: names and the second byte of their range.
fn list(version: u32, rest: &str, pools: &[(&str, u8)]) -> String {
    let items: Vec<String> = pools.iter().map(|(name, seed)| pool(name, *seed, version)).collect();
    let meta = format!(r#"{{"resourceVersion":"{version}","continue":"{rest}"}}"#);
    format!(r#"{{"kind":"IPPoolList","metadata":{meta},"items":[{}]}}"#, items.join(","))
}

fn pool(name: &str, seed: u8, version: u32) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}},"spec":{{"cidr":"10.{seed}.0.0/16","natOutgoing":true}}}}"#
    )
}

fn frame(what: &str, object: &str) -> String {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
}

fn bookmark(version: u32) -> String {
    frame("BOOKMARK", &format!(r#"{{"metadata":{{"resourceVersion":"{version}"}}}}"#))
}

/// Events as a line: `init`, `put a 10.1.0.0/16`, …
fn said(event: &StoreEvent) -> String {
    match event {
        StoreEvent::Init(_) => "init".into(),
        StoreEvent::Put(id, tartan_model::Object::Pool(pool), _) => format!("put {} {}", id.name, pool.cidr),
        StoreEvent::Delete(id) => format!("delete {}", id.name),
        StoreEvent::Synced(_) => "synced".into(),
        StoreEvent::Invalid(id, condition) => format!("invalid {} {}", id.name, condition.field),
        StoreEvent::Away(_, why) => format!("away {why}"),
        other => format!("{other:?}"),
    }
}

/// A thousandth of the product's. Time is not the test's own where sockets are waited for: it would leap over an answer
/// that is on its way.
const BRISK: Pace = Pace {
    ask_again: (Duration::from_millis(20), Duration::from_millis(40)),
    at_latest: (Duration::from_secs(300), Duration::from_secs(600)),
};

const LIST: &str = "/apis/projectcalico.org/v3/ippools?limit=250";

/// What the API server answers, one request after the other, and what comes of it: what was asked for (a part
/// of the path; empty: a whole list) and what was told (its beginning).
async fn check(what: &str, script: Vec<(&str, Answer)>, wanted: &[&str]) {
    let (asked, answers): (Vec<&str>, Vec<Answer>) = script.into_iter().unzip();
    let server = Scripted::start(answers).await;
    let store = KubernetesStore::paced(&server.url(), BRISK).unwrap();
    let mut watching = Watching::of(&store, &[Kind::IpPool]);
    for (at, wanted) in wanted.iter().enumerate() {
        let told = said(&watching.next().await);
        assert!(told.starts_with(wanted), "{what}: event {at} was {told:?}, not {wanted:?}");
    }
    server.all_asked().await;
    for (at, (path, wanted)) in server.asked().iter().zip(&asked).enumerate() {
        let fits = if wanted.is_empty() { path == LIST } else { path.contains(wanted) };
        assert!(fits, "{what}: request {at} was for {path}, not {wanted:?}");
    }
}

/// Whoever may make ConfigMaps in a namespace could hold up agents that start, or speak for Flannel.
#[tokio::test]
async fn a_config_map_with_the_name_of_flannels_is_nothing_elsewhere() {
    let map = |namespace: &str| {
        let conf = if namespace == "web" { "{" } else { r#"{\"Network\": \"10.244.0.0/16\"}"# };
        format!(
            r#"{{"metadata":{{"name":"kube-flannel-cfg","namespace":"{namespace}","resourceVersion":"7"}},"data":{{"net-conf.json":"{conf}"}}}}"#
        )
    };
    let items = ["kube-flannel", "web"].map(map).join(",");
    let list = format!(r#"{{"kind":"ConfigMapList","metadata":{{"resourceVersion":"7"}},"items":[{items}]}}"#);
    let frames =
        [frame("MODIFIED", &map("web")), frame("DELETED", &map("web")), frame("DELETED", &map("kube-flannel"))];
    let server = Scripted::start(vec![Answer::with(200, list), Answer::with(200, frames.concat())]).await;
    let mut watching = Watching::of(&KubernetesStore::paced(&server.url(), BRISK).unwrap(), &[Kind::ConfigMap]);
    for wanted in ["init", "Put(", "synced", "delete kube-flannel/kube-flannel-cfg"] {
        let told = said(&watching.next().await);
        assert!(told.starts_with(wanted), "{told:?}, not {wanted:?}");
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let ok = |body: String| Answer::with(200, body);
    let watch = |frames: &[String]| ok(frames.concat());
    check(
        "a watch that ends is gone on with from the last bookmark",
        vec![
            ("", ok(list(10, "", &[("a", 1)]))),
            (
                "watch=true&allowWatchBookmarks=true&resourceVersion=10&",
                watch(&[frame("ADDED", &pool("b", 2, 12)), bookmark(20)]),
            ),
            ("&resourceVersion=20&", watch(&[frame("DELETED", &pool("b", 2, 21))])),
            ("&resourceVersion=21&", Answer::Never),
        ],
        &["init", "put a 10.1.0.0/16", "synced", "put b 10.2.0.0/16", "delete b"],
    )
    .await;
    check(
        "what changed beside what we read is not told",
        vec![
            ("", ok(list(10, "", &[("a", 1)]))),
            (
                "resourceVersion=10",
                watch(&[frame("MODIFIED", &pool("a", 1, 11)), frame("MODIFIED", &pool("a", 3, 12))]),
            ),
        ],
        &["init", "put a 10.1.0.0/16", "synced", "put a 10.3.0.0/16"],
    )
    .await;
    check(
        "an object that cannot be read is reported",
        vec![
            ("", ok(list(10, "", &[("a", 1)]).replace("10.1.0.0/16", "ten"))),
            ("resourceVersion=10", watch(&[frame("MODIFIED", &pool("a", 1, 11))])),
        ],
        &["init", "invalid a spec.cidr", "synced", "put a 10.1.0.0/16"],
    )
    .await;
}

#[tokio::test]
async fn a_list_of_nothing_may_be_null() {
    let nothing = r#"{"kind":"IPPoolList","metadata":{"resourceVersion":"10"},"items":null}"#;
    check("null", vec![("", Answer::with(200, nothing.into()))], &["init", "synced"]).await;
}

/// Some tens of the largest objects there can be, of anyone who may make them, and nobody would hear of that kind any more.
#[tokio::test]
async fn a_page_that_is_too_long_is_asked_for_in_shorter_ones() {
    let ok = |body: String| Answer::with(200, body);
    let too_long = || ok(" ".repeat(LARGEST + 1));
    check(
        "of a list that had begun",
        vec![
            ("", ok(list(10, "more", &[("a", 1)]))),
            ("limit=250&continue=more", too_long()),
            ("limit=125&continue=more", too_long()),
            ("limit=62&continue=more", ok(list(10, "", &[("b", 2)]))),
            ("watch=true", Answer::Never),
        ],
        &["init", "put a 10.1.0.0/16", "put b 10.2.0.0/16", "synced"],
    )
    .await;
}

#[tokio::test]
async fn what_is_forgotten_is_listed_again() {
    let ok = |body: String| Answer::with(200, body);
    let gone = r#"{"kind":"Status","code":410,"message":"too old resource version"}"#;
    let relisted = ["init", "put a 10.1.0.0/16", "put b 10.2.0.0/16", "synced", "init", "put b 10.2.0.0/16", "synced"];
    let first = || ("", ok(list(10, "", &[("a", 1), ("b", 2)])));
    let again = || ("&resourceVersion=15&resourceVersionMatch=NotOlderThan", ok(list(30, "", &[("b", 2)])));
    let follow = || ("resourceVersion=30", Answer::Never);
    for (what, forgotten) in [
        ("an error in the watch", ok(bookmark(15) + &frame("ERROR", gone))),
        ("a line that is none", ok(bookmark(15) + "{\"type\":\n")),
    ] {
        check(what, vec![first(), ("resourceVersion=10", forgotten), again(), follow()], &relisted).await;
    }
    check(
        "a watch that is refused",
        vec![
            first(),
            ("resourceVersion=10", ok(bookmark(15))),
            ("resourceVersion=15", Answer::with(410, gone.into())),
            again(),
            follow(),
        ],
        &relisted,
    )
    .await;
    check(
        "a list whose rest is forgotten",
        vec![
            ("", ok(list(10, "more", &[("a", 1)]))),
            ("&continue=more", Answer::with(410, gone.into())),
            ("", ok(list(20, "more", &[("b", 2)]))),
            ("&continue=more", ok(list(20, "", &[("c", 3)]))),
            ("resourceVersion=20", Answer::Never),
        ],
        &["init", "put a 10.1.0.0/16", "init", "put b 10.2.0.0/16", "put c 10.3.0.0/16", "synced"],
    )
    .await;
    check(
        "lists that never end",
        vec![
            ("", Answer::with(504, "{}".into())),
            ("", Answer::with(504, "{}".into())),
            ("", Answer::with(504, "{}".into())),
            ("", ok(list(20, "", &[("a", 1)]))),
            ("resourceVersion=20", Answer::Never),
        ],
        &["away IPPool: the API server finishes no list", "init", "put a 10.1.0.0/16", "synced"],
    )
    .await;
}

#[tokio::test]
async fn trouble_is_told_once_and_a_list_follows() {
    let ok = |body: String| Answer::with(200, body);
    let status = |code: u16, message: &str| Answer::with(code, format!(r#"{{"code":{code},"message":"{message}"}}"#));
    check(
        "what we may not read",
        vec![
            ("", status(403, "ippools is forbidden")),
            ("", status(403, "ippools is forbidden")),
            ("", ok(list(5, "", &[]))),
        ],
        &[
            "away IPPool: the API server does not let us: ippools is forbidden; the configuration is people's",
            "init",
            "synced",
        ],
    )
    .await;
    check(
        "a watch that cannot be opened",
        vec![
            ("", ok(list(10, "", &[("a", 1)]))),
            ("resourceVersion=10", status(500, "etcd has no leader")),
            ("&resourceVersion=10&resourceVersionMatch=NotOlderThan", status(500, "etcd has no leader")),
            ("&resourceVersion=10&resourceVersionMatch=NotOlderThan", ok(list(11, "", &[]))),
        ],
        &[
            "init",
            "put a 10.1.0.0/16",
            "synced",
            "away IPPool: the API server answers 500: etcd has no leader",
            "init",
            "synced",
        ],
    )
    .await;
}

#[tokio::test]
async fn an_api_server_that_was_away_is_gone_on_with() {
    let ok = |body: String| Answer::with(200, body);
    let first = || ("", ok(list(10, "", &[("a", 1)])));
    let watch = |frames: &[String]| ok(frames.concat());
    let probe = "?limit=1&resourceVersion=15&resourceVersionMatch=NotOlderThan";
    check(
        "what was missed follows, and no list",
        vec![
            first(),
            ("resourceVersion=10&", ok(bookmark(15))),
            ("watch=true&allowWatchBookmarks=true&resourceVersion=15&", Answer::None),
            (probe, Answer::None),
            (probe, Answer::with(429, "{}".into())),
            (probe, ok(list(30, "more", &[("b", 2)]))),
            (
                "watch=true&allowWatchBookmarks=true&resourceVersion=15&",
                watch(&[frame("DELETED", &pool("a", 1, 16)), frame("ADDED", &pool("b", 2, 17))]),
            ),
        ],
        &["init", "put a 10.1.0.0/16", "synced", "away IPPool: ", "synced", "delete a", "put b 10.2.0.0/16"],
    )
    .await;
    let relisted = ["init", "put a 10.1.0.0/16", "synced", "away IPPool: ", "init", "put b 10.2.0.0/16", "synced"];
    let again = || ok(list(30, "", &[("b", 2)]));
    let away = || [first(), ("resourceVersion=10&", ok(bookmark(15))), ("resourceVersion=15&", Answer::None)];
    let set_back = [(probe, Answer::with(504, "{}".into())), ("", again())];
    check("one that was set back", away().into_iter().chain(set_back).collect(), &relisted).await;
    let too_old = [
        (probe, ok(list(30, "more", &[("b", 2)]))),
        ("watch=true&allowWatchBookmarks=true&resourceVersion=15&", Answer::with(410, "{}".into())),
        ("?limit=250&resourceVersion=15&", again()),
    ];
    check("one that has forgotten", away().into_iter().chain(too_old).collect(), &relisted).await;
    let said_late = [
        (probe, ok(list(30, "more", &[("b", 2)]))),
        (
            "watch=true&allowWatchBookmarks=true&resourceVersion=15&",
            watch(&[frame("ERROR", r#"{"code":410,"message":"too old"}"#)]),
        ),
        ("?limit=250&resourceVersion=15&", again()),
    ];
    let [began @ .., _, _, _] = relisted;
    let wanted = [&began[..], &["synced", "away IPPool: "], &relisted[4..]].concat();
    check("one that says so when it is watched", away().into_iter().chain(said_late).collect(), &wanted).await;
}

#[tokio::test]
#[ignore = "kube: needs etcd and kube-apiserver, which `cargo xtask kube test` builds"]
async fn conforms() {
    let server = Arc::new(ApiServer::start().await);
    conformance::conformance(|| Behind::new(server.clone())).await;
    what_is_told_arrives(&server).await;
    a_kind_that_is_installed_later_is_found(&server).await;
    of_two_that_want_to_one_leads(&server).await;
    rights::an_agent_writes_what_is_its_own(&server).await;
}

async fn what_is_told_arrives(server: &Arc<ApiServer>) {
    let rig = Behind::new(server.clone());
    let store = rig.store();
    server
        .apply(
            r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": [
                {"key": "tartan.dev/agent-not-ready", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]}}
               {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "default"},
                "spec": {"podSelector": {}}}"#,
        )
        .unwrap();
    let mut watching = Watching::of(&*store, &[Kind::Node]);
    watching.until("the Node", |world| world.nodes.contains_key("n1")).await;
    let uid = watching.world.nodes["n1"].uid.clone();
    for (available, placement) in [
        (false, Placement { unavailable: Some(true), startup_taint: true }),
        (true, Placement { unavailable: Some(false), startup_taint: false }),
    ] {
        let word = Word::Available(Availability { node_uid: uid.clone(), available });
        store.tell(node(), word).await.unwrap();
        watching.until("what was told", |world| world.nodes["n1"].placement == placement).await;
    }
    let taints = server.kubectl(&["get", "node", "n1", "--output=jsonpath={.spec.taints[*].key}"]).unwrap();
    let taints: Vec<&str> = taints.split(' ').collect();
    assert!(taints.contains(&"a") && !taints.contains(&"tartan.dev/agent-not-ready"), "{taints:?}");
    let stranger = Word::Available(Availability { node_uid: "another".into(), available: true });
    assert!(matches!(store.tell(node(), stranger).await, Err(WriteError::Refused(..))), "a Node of another UID");

    let (pool, object) = conformance::pool("p", 1);
    store.put(pool.clone(), object, Expect::Absent).await.unwrap();
    let fault = conformance::spoiled(&pool);
    for (conditions, wanted) in [(vec![fault.clone()], "False BadSyntax"), (vec![], "True AllIsWell")] {
        store.tell(pool.clone(), Word::Diagnosis(conditions)).await.unwrap();
        let path = r#"--output=jsonpath={.status.conditions[?(@.type=="Accepted")]['status','reason']}"#;
        assert_eq!(server.kubectl(&["get", "ippool", "p", path]).unwrap(), wanted);
    }
    let policy = ObjectId { kind: Kind::NetworkPolicy, name: "default/p".into() };
    for _ in 0..2 {
        store.tell(policy.clone(), Word::Diagnosis(vec![fault.clone()])).await.unwrap();
    }
    let events = ["get", "events", "--field-selector=involvedObject.name=p", "--output=jsonpath={.items[*].reason}"];
    assert_eq!(server.kubectl(&events).unwrap(), "BadSyntax", "told once");
    let (network, object) = conformance::advert("n1", 1);
    let Object::NodeNetwork(word) = object else { panic!("an advert is in a NodeNetwork") };
    let [kind, status, reason, message, since] =
        ["Blocked", "True", "Blocked", "a port is closed", "2026-01-02T03:41:59Z"].map(str::to_owned);
    let conditions = vec![NodeCondition { kind, status, reason, message, since }];
    let object = Object::NodeNetwork(NodeNetwork { conditions, ..word });
    store.put(network.clone(), object, Expect::Any).await.unwrap();
    for reason in ["Blocked", "Blocked", "Lost"] {
        let word = Word::Trouble { reason: reason.into(), since: "2026-01-02T03:41:59Z".into() };
        store.tell(network.clone(), word).await.unwrap();
    }
    let events = ["get", "events", "--field-selector=involvedObject.name=n1", "--output=jsonpath={.items[*].reason}"];
    assert_eq!(server.kubectl(&events).unwrap(), "Blocked", "told once, and what is not so is not told");
    let gone = ObjectId { kind: Kind::NetworkPolicy, name: "default/gone".into() };
    store.tell(gone, Word::Diagnosis(vec![fault])).await.unwrap();
}

async fn a_kind_that_is_installed_later_is_found(server: &Arc<ApiServer>) {
    let rig = Behind::new(server.clone());
    let mut watching = Watching::of(&*rig.store(), &[Kind::ClusterNetworkPolicy]);
    // It is looked for twice: before anything is known of what is served, and after.
    for wanted in ["init", "synced", "init", "synced"] {
        assert_eq!(said(&watching.next().await), wanted);
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/policy-crds.yaml");
    server.kubectl(&["apply", "--filename", file]).unwrap();
    let definition = "crd/clusternetworkpolicies.policy.networking.k8s.io";
    server.kubectl(&["wait", "--for=condition=Established", definition]).unwrap();
    what_a_cluster_network_policy_may_not_say(server);
    // A question comes within 40 seconds, and not at the latest that any kind is looked for: 300.
    while watching.world.policies.is_empty() {
        watching.next_within(Duration::from_secs(100)).await;
    }
}

/// The one that it may say is there then.
fn what_a_cluster_network_policy_may_not_say(server: &ApiServer) {
    let written = |spec: Value| {
        let (version, kind) = ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": spec});
        server.apply(&object.to_string())
    };
    let spec = |ingress: Value, egress: Value| json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": ingress, "egress": egress});
    let pods = json!({"pods": {"podSelector": {"matchLabels": {"a": "b"}}}});
    let port =
        |port: Value| json!([{"action": "Deny", "from": [pods], "protocols": [{"tcp": {"destinationPort": port}}]}]);
    let to = |peer: Value| spec(json!([]), json!([{"action": "Accept", "to": [peer]}]));
    for (wrong, why) in [
        (json!({"tier": "Admin", "priority": 1}), "spec.subject: Required value"),
        (json!({"tier": "High", "priority": 1, "subject": {"namespaces": {}}}), "spec.tier: Unsupported value"),
        (json!({"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}), "spec.priority: Invalid value"),
        (json!({"tier": "Admin", "priority": 1, "subject": {}}), "a subject is pods"),
        (json!({"tier": "Admin", "priority": 1, "subject": {"networks": ["10.0.0.0/8"]}}), "a subject is pods"),
        (spec(json!([{"action": "Accept", "to": [pods]}]), json!([])), "an ingress rule has `from`"),
        (spec(json!([]), json!([{"action": "Accept", "from": [pods]}])), "an egress rule has `to`"),
        (spec(json!([{"action": "Accept", "from": [{"networks": ["::/0"]}]}]), json!([])), "packets come from"),
        (spec(port(json!({"range": {"start": 9, "end": 9}})), json!([])), "a range ends above its start"),
        (spec(port(json!({"number": 0})), json!([])), "should be greater than or equal to 1"),
        (to(json!({"networks": ["10.0.0.0"]})), "an address range is as 10.0.0.0/8"),
        (to(json!({"networks": ["10.0.0.0/8"], "namespaces": {}})), "must have at most 1 item"),
        (to(json!({"addresses": ["10.0.0.0/8"]})), "unknown field"),
    ] {
        let said = written(wrong.clone()).expect_err(&wrong.to_string());
        assert!(said.contains(why), "{wrong}: {said}");
    }
    let ingress = port(json!({"range": {"start": 8, "end": 9}}));
    written(spec(ingress, json!([{"action": "Pass", "to": [{"networks": ["::/0", "10.0.0.0/8"]}]}]))).unwrap();
}

async fn of_two_that_want_to_one_leads(server: &Arc<ApiServer>) {
    let rigs = [Behind::new(server.clone()), Behind::new(server.clone())];
    let mut candidates = Vec::new();
    for (me, rig) in ["a", "b"].into_iter().zip(&rigs) {
        candidates.push(rig.kubernetes().lead("default", "l", me));
    }
    let leaders = |candidates: &[watch::Receiver<bool>]| candidates.iter().filter(|leads| *leads.borrow()).count();
    let until_one_leads = async |candidates: &[watch::Receiver<bool>], which: Option<usize>| {
        let is_so = || leaders(candidates) == 1 && which.is_none_or(|at| *candidates[at].borrow());
        for _ in 0..600 {
            assert!(leaders(candidates) <= 1);
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("nobody leads");
    };
    until_one_leads(&candidates, None).await;
    let first = candidates.iter().position(|leads| *leads.borrow()).unwrap();
    // Cut off it stops by itself, and then the other's turn comes.
    rigs[first].go_away();
    until_one_leads(&candidates, Some(1 - first)).await;
}

fn node() -> ObjectId {
    ObjectId { kind: Kind::Node, name: "n1".into() }
}

/// What is told of a node, what the API server says, and what was asked for: methods, paths and bodies.
async fn check_told(available: bool, answers: Vec<Answer>, wanted: &[(&str, &str, &[&str])]) {
    let server = Scripted::start(answers).await;
    let store = KubernetesStore::open(&server.url()).unwrap();
    let word = Word::Available(Availability { node_uid: "u1".into(), available });
    store.tell(node(), word).await.unwrap();
    server.all_asked().await;
    let requests = server.requests();
    assert_eq!(requests.len(), wanted.len(), "{requests:#?}");
    for (request, (method, path, parts)) in requests.iter().zip(wanted) {
        assert_eq!((request.method.as_str(), &*request.path), (*method, *path));
        for part in *parts {
            assert!(request.body.contains(part), "{part} is not in {}", request.body);
        }
    }
}

#[tokio::test]
async fn a_node_is_told_its_condition_and_loses_its_taint() {
    let ok = |body: &str| Answer::with(200, body.to_owned());
    let node = r#"{"metadata":{"name":"n1","resourceVersion":"7"},"spec":{"taints":[
        {"key":"a","effect":"NoExecute"},{"key":"tartan.dev/agent-not-ready","effect":"NoSchedule"}]}}"#;
    let untainted = r#"{"metadata":{"name":"n1","resourceVersion":"8"},"spec":{}}"#;
    let conflict = Answer::with(409, r#"{"message":"the object has been modified","code":409}"#.to_owned());
    let status = "/api/v1/nodes/n1/status";
    let is_up: &[&str] = &[r#""uid":"u1""#, r#""type":"NetworkUnavailable""#, r#""status":"False""#, "TartanIsUp"];
    let (look, untaint): (&[&str], &[&str]) =
        (&[], &[r#""resourceVersion":"7""#, r#""taints":[{"effect":"NoExecute","key":"a"}]"#]);
    check_told(
        false,
        vec![ok("{}")],
        &[("PATCH", status, &[r#""status":"True""#, r#""reason":"TartanJoins""#, "lastTransitionTime"])],
    )
    .await;
    check_told(true, vec![ok("{}"), ok(untainted)], &[("PATCH", status, is_up), ("GET", "/api/v1/nodes/n1", look)])
        .await;
    check_told(
        true,
        vec![ok("{}"), ok(node), conflict, ok(node), ok("{}")],
        &[
            ("PATCH", status, is_up),
            ("GET", "/api/v1/nodes/n1", look),
            ("PATCH", "/api/v1/nodes/n1", untaint),
            ("GET", "/api/v1/nodes/n1", look),
            ("PATCH", "/api/v1/nodes/n1", untaint),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_node_of_another_uid_is_left_alone() {
    let refused = r#"{"message":"Node "n1" is invalid: metadata.uid: field is immutable","code":422}"#;
    let error = told_by(422, refused).await;
    assert!(matches!(error, WriteError::Refused(..)), "{error}");
}

/// An admission policy, or a namespace that is being deleted: it must not hold up what is written next.
#[tokio::test]
async fn what_is_forbidden_for_one_object_is_not_an_api_server_that_is_away() {
    let error = told_by(403, r#"{"message":"unable to create: being terminated","code":403}"#).await;
    assert!(matches!(error, WriteError::Refused(..)), "{error}");
    let error = told_by(503, r#"{"message":"overloaded","code":503}"#).await;
    assert!(matches!(error, WriteError::Away(..)), "{error}");
}

/// What comes of a word about a node that the API server answers so.
async fn told_by(code: u16, body: &str) -> WriteError {
    let server = Scripted::start(vec![Answer::with(code, body.to_owned())]).await;
    let store = KubernetesStore::open(&server.url()).unwrap();
    let word = Word::Available(Availability { node_uid: "u1".into(), available: true });
    store.tell(node(), word).await.unwrap_err()
}
