//! What the token of one node's agent may write, with `deploy/tartan.yaml` as it is.
//!
//! Invariant: nothing is written: the API server is asked what it would say.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::real::ApiServer;

const PATIENCE: Duration = Duration::from_secs(60);
const STARTUP_TAINT: &str = "tartan.dev/agent-not-ready";
/// Every Node that is made has it.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// What is said of what an agent may not do.
const OF_ANOTHER: &str = "an agent says what its own node does";
const OF_ITS_NODE: &str = "an agent takes the startup taint off its node";
const NOT_ITS: &str = "a block is its node's as long as that Node is there";
const NOT_OFFERED: &str = "takes a part that is offered";

/// The agent of node a, which has a block as node b has; that of node c is gone.
struct Agent<'a> {
    server: &'a ApiServer,
    token: String,
    uid_of_b: String,
}

/// What it wants to do, with what, and what is said of it; nothing where it may.
type Wish = (&'static str, Value, &'static str);

pub(super) async fn an_agent_writes_what_is_its_own(server: &ApiServer) {
    let agent = Agent::on_node_a(server);
    let wishes = agent.wishes();
    // Until the API server goes by what it has just taken.
    let deadline = Instant::now() + PATIENCE;
    while agent.first_wrong(&wishes).is_some() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(agent.first_wrong(&wishes), None);
}

fn block(range: &str, node: &str, uid: &str, parts: &Value) -> Value {
    let name: String = range.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    json!({
        "apiVersion": "tartan.dev/v1alpha1", "kind": "IPBlock", "metadata": {"name": name},
        "spec": {"cidr": range, "pool": "p", "node": node, "nodeUid": uid, "parts": parts},
    })
}

fn part(range: &str, state: &str, node: &str) -> Value {
    json!({"cidr": range, "state": state, "node": node, "nodeUid": format!("uid of {node}")})
}

/// A Node's spec with these and the one that it has anyway.
fn taints(keys: &[&str]) -> Value {
    let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
    json!({"taints": keys.iter().chain([&NOT_READY]).map(taint).collect::<Vec<_>>()})
}

impl<'a> Agent<'a> {
    fn on_node_a(server: &'a ApiServer) -> Agent<'a> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tartan.yaml");
        server.kubectl(&["apply", "--filename", manifest]).unwrap();
        let spec = taints(&[STARTUP_TAINT, "other"]);
        let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-a", "namespace": "tartan-system"},
            "spec": {
                "nodeName": "a", "serviceAccountName": "tartan-agent", "containers": [{"name": "agent", "image": "tartan"}],
            },
        });
        server.apply(&[node("a"), node("b"), pod].map(|object| object.to_string()).concat()).unwrap();
        let uid_of_b = server.kubectl(&["get", "node", "b", "--output=jsonpath={.metadata.uid}"]).unwrap();
        let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent-a"];
        let token = ["create", "token", "tartan-agent", "--namespace=tartan-system"];
        let token = server.kubectl(&[&token[..], &bound[..]].concat()).unwrap().trim().to_owned();
        let agent = Agent { server, token, uid_of_b };
        let (of_a, of_c) = (block("10.8.0.64/26", "a", "", &json!([])), block("10.8.0.128/26", "c", "", &json!([])));
        server
            .apply(&[agent.block_of_b(&agent.parts()), of_a, of_c].map(|object| object.to_string()).concat())
            .unwrap();
        agent
    }

    fn block_of_b(&self, parts: &Value) -> Value {
        block("10.8.0.0/26", "b", &self.uid_of_b, parts)
    }

    /// Of b's block: one is offered, one a has, one d has, and one b has only set aside.
    fn parts(&self) -> Value {
        json!([
            {"cidr": "10.8.0.0/29", "state": "offered"}, part("10.8.0.8/29", "given", "a"),
            part("10.8.0.16/29", "given", "d"), {"cidr": "10.8.0.24/29", "state": "aside"},
        ])
    }

    /// b's block with another list of parts.
    fn with(&self, change: impl FnOnce(&mut Vec<Value>)) -> Value {
        let mut parts = self.parts().as_array().unwrap().clone();
        change(&mut parts);
        self.block_of_b(&parts.into())
    }

    fn wishes(&self) -> Vec<Wish> {
        let network = |name: &str, kind: &str| json!({"apiVersion": "tartan.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": {}});
        let none = json!([]);
        let mut other_pool = self.block_of_b(&self.parts());
        other_pool["spec"]["pool"] = "q".into();
        let mut misnamed = block("10.8.1.0/26", "a", "", &none);
        misnamed["metadata"]["name"] = "mine".into();
        let node = |name: &str, what: Value| {
            let mut patch = what;
            patch["metadata"]["name"] = name.into();
            patch
        };
        vec![
            ("create", network("a", "NodeNetwork"), ""),
            ("create", network("b", "NodeNetwork"), OF_ANOTHER),
            ("create", network("default", "NetworkConfig"), "cannot create resource"),
            ("create", block("10.8.0.192/26", "a", "", &none), ""),
            ("create", block("10.8.0.192/26", "b", "", &none), OF_ANOTHER),
            ("create", block("10.8.0.0/16", "a", "", &none), "no block is larger than a /20"),
            ("create", misnamed, "a claim is named after its range"),
            // Its own, also on its way to who has a part of it.
            ("replace", block("10.8.0.64/26", "a", "", &json!([{"cidr": "10.8.0.64/29", "state": "offered"}])), ""),
            ("replace", block("10.8.0.64/26", "d", "", &none), ""),
            ("delete", block("10.8.0.64/26", "a", "", &none), ""),
            // Of a Node that is gone.
            ("replace", block("10.8.0.128/26", "a", "", &none), ""),
            ("delete", block("10.8.0.128/26", "c", "", &none), ""),
            // Of a Node that is there.
            ("delete", self.block_of_b(&none), NOT_ITS),
            ("replace", block("10.8.0.0/26", "a", &self.uid_of_b, &self.parts()), NOT_ITS),
            ("replace", other_pool, NOT_ITS),
            ("replace", self.with(|parts| parts[0] = part("10.8.0.0/29", "given", "a")), ""),
            ("replace", self.with(|parts| parts[0] = part("10.8.0.0/29", "given", "d")), NOT_OFFERED),
            ("replace", self.with(|parts| drop(parts.remove(0))), NOT_OFFERED),
            ("replace", self.with(|parts| parts[1] = part("10.8.0.8/29", "leaving", "a")), ""),
            ("replace", self.with(|parts| drop(parts.remove(1))), ""),
            ("replace", self.with(|parts| parts[2] = part("10.8.0.16/29", "given", "a")), NOT_OFFERED),
            ("replace", self.with(|parts| drop(parts.remove(2))), NOT_OFFERED),
            ("replace", self.with(|parts| parts[3] = part("10.8.0.24/29", "given", "a")), NOT_OFFERED),
            ("replace", self.with(|parts| parts.push(part("10.8.0.32/29", "given", "a"))), NOT_OFFERED),
            ("replace", self.with(|parts| parts[0] = parts[1].clone()), NOT_OFFERED),
            // Its Node, and another.
            (
                "patch",
                node("a", json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"}}})),
                "",
            ),
            ("patch", node("b", json!({"metadata": {"annotations": {"x": "y"}}})), OF_ANOTHER),
            ("patch", node("a", json!({"metadata": {"labels": {"x": "y"}}})), OF_ITS_NODE),
            ("patch", node("a", json!({"spec": {"unschedulable": true}})), OF_ITS_NODE),
            ("patch", node("a", json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}})), OF_ITS_NODE),
            ("patch", node("a", json!({"spec": taints(&["other"])})), ""),
            ("patch", node("a", json!({"spec": taints(&[STARTUP_TAINT])})), OF_ITS_NODE),
            ("patch", node("a", json!({"spec": taints(&[STARTUP_TAINT, "other", "mine"])})), OF_ITS_NODE),
        ]
    }

    /// The first of them of which something else is said.
    fn first_wrong(&self, wishes: &[Wish]) -> Option<String> {
        wishes.iter().find_map(|(verb, object, wanted)| {
            let said = self.ask(verb, object).err().unwrap_or_default();
            let is_right = if wanted.is_empty() { said.is_empty() } else { said.contains(wanted) };
            (!is_right).then(|| format!("{verb} {object}: wanted {wanted:?}, got {said:?}"))
        })
    }

    fn ask(&self, verb: &str, object: &Value) -> Result<String, String> {
        let text = object.to_string();
        let file = self.server.file("wish.json", &text);
        let args = match verb {
            "patch" => vec!["node", object["metadata"]["name"].as_str().unwrap(), "--type=merge", "--patch", &text],
            _ => vec!["--filename", &file],
        };
        self.server.kubectl_as(&self.token, &[&[verb, "--dry-run=server"], &args[..]].concat())
    }
}
