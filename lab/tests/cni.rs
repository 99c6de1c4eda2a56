//! The rows of the CNI spec (1.1.0) end to end: the real plugin, a real agent, real namespaces.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Answer, Attachment, Binaries, Lab, Netns, Network, Node, Verb, cni_args};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node with an agent, and what a runtime on it knows.
struct Runtime {
    lab: Lab,
    network: Network,
    /// What the node's namespace held before the first call.
    before: Vec<String>,
}

impl Runtime {
    fn new(name: &str) -> Runtime {
        let lab = Lab::builder(name).nodes(1).pods_per_node(0).up().unwrap();
        let network = Network::tartan(lab.node("n1").unwrap(), &Binaries::beside_this_program().unwrap().cni).unwrap();
        let mut runtime = Runtime { lab, network, before: Vec::new() };
        runtime.before = runtime.of_pods();
        runtime
    }

    fn node(&self) -> &Node {
        self.lab.node("n1").unwrap()
    }

    /// A namespace for a pod, and the attachment a runtime asks for in it.
    fn pod(&self, name: &str) -> (Netns, Attachment) {
        let netns = Netns::create(&format!("{}{name}", self.lab.facts().prefix())).unwrap();
        self.lab.announce_pod("n1", name).unwrap();
        let attachment = Attachment {
            container: name.into(),
            netns: netns.path(),
            ifname: "eth0".into(),
            args: cni_args(name),
            runtime_config: Map::new(),
        };
        (netns, attachment)
    }

    fn call(&self, verb: Verb, at: Option<&Attachment>, keys: &Value) -> Answer {
        let mut plugin = self.network.plugins[0].clone();
        for (key, value) in keys.as_object().unwrap() {
            plugin[key] = value.clone();
        }
        self.network.call(self.node(), &plugin, verb, at, None).unwrap()
    }

    #[track_caller]
    fn add(&self, at: &Attachment) -> Value {
        self.call(Verb::Add, Some(at), &json!({})).result().unwrap()
    }

    #[track_caller]
    fn del(&self, at: &Attachment) {
        assert_eq!(self.call(Verb::Del, Some(at), &json!({})).result().unwrap(), Value::Null);
    }

    #[track_caller]
    fn refused(&self, verb: Verb, at: Option<&Attachment>, keys: &Value, code: u64) -> String {
        let answer = self.call(verb, at, keys);
        assert_eq!((answer.status.success(), answer.error_code()), (false, Some(code)), "{answer:?}");
        serde_json::from_str::<Value>(&answer.stdout).unwrap()["msg"].as_str().unwrap().to_owned()
    }

    /// Everything on the node that is there for some pod: links, routes, neighbours, elements of our table, files.
    fn of_pods(&self) -> Vec<String> {
        let node = self.node();
        let show = |argv: &[&str]| node.output(argv).unwrap();
        let links = show(&["ip", "-o", "link"]);
        let links = links.lines().filter_map(|line| line.split(": ").nth(1)).filter(|name| name.starts_with("ttp"));
        let mut found: Vec<String> = links.map(|name| name.split('@').next().unwrap().to_owned()).collect();
        for family in ["-4", "-6"] {
            for kind in ["route", "neigh"] {
                let text = show(&["ip", family, kind, "show"]);
                found.extend(text.lines().filter(|line| line.contains("dev ttp")).map(|line| line.trim().to_owned()));
            }
        }
        let pending = fs::read_dir(node.state_dir().join("pending-del")).into_iter().flatten();
        found.extend(pending.map(|note| format!("note {:?}", note.unwrap().file_name())));
        found.sort();
        found
    }

    #[track_caller]
    fn nothing_left(&self) {
        let clean = || self.of_pods() == self.before;
        if wait_for(PATIENCE, "the node to be as before", clean).is_err() {
            panic!("left behind: {:#?}\n{}", self.of_pods(), self.lab.troubleshooting());
        }
    }
}

fn show(netns: &Netns, what: &[&str]) -> Value {
    let text = netns.output(&[&["ip", "-j"], what].concat()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_add_promises_is_there_when_it_answers() {
    let runtime = Runtime::new("cni-add");
    let (netns, at) = runtime.pod("p1");
    let result = runtime.add(&at);
    let (host, pod) = (&result["interfaces"][0], &result["interfaces"][1]);
    let link = &show(&netns, &["addr", "show", "dev", "eth0"])[0];
    assert_eq!((&link["address"], &link["mtu"]), (&pod["mac"], &pod["mtu"]), "{result}");
    assert_eq!(pod["sandbox"], json!(netns.path()));
    let addresses: Vec<String> = link["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|info| info["scope"] == "global")
        .map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]))
        .collect();
    let promised: Vec<&str> =
        result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
    assert_eq!(
        (addresses.len(), &addresses[..]),
        (2, &promised.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
    );
    for (family, route) in ["-4", "-6"].iter().zip(result["routes"].as_array().unwrap()) {
        let found = &show(&netns, &[family, "route", "show", "default"])[0];
        assert_eq!(found["gateway"], route["gw"], "{found}");
        assert_eq!(found["metrics"][0]["mtu"], route["mtu"], "{found}");
    }
    let there = &serde_json::from_str::<Value>(
        &runtime.node().output(&["ip", "-j", "link", "show", "dev", host["name"].as_str().unwrap()]).unwrap(),
    )
    .unwrap()[0];
    assert_eq!((&there["address"], &there["mtu"]), (&host["mac"], &host["mtu"]));
    runtime.del(&at);
    runtime.nothing_left();
    assert_eq!(show(&netns, &["link"]).as_array().unwrap().len(), 1, "only lo");
}

#[test]
fn every_version_is_answered_in_its_own_words() {
    let runtime = Runtime::new("cni-versions");
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (_netns, at) = runtime.pod(&format!("v{}", version.replace('.', "-")));
        let keys = json!({"cniVersion": version});
        let result = runtime.call(Verb::Add, Some(&at), &keys).result().unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ip4"].is_object(), version < "0.3.0", "{result}");
        assert_eq!(result["ips"].is_array(), version >= "0.3.0", "{result}");
        assert_eq!(result["ips"][0]["version"].is_string(), ("0.3.0".."1.0.0").contains(&version), "{result}");
        assert_eq!(result["interfaces"][0]["mtu"].is_number(), version >= "1.1.0", "{result}");
        runtime.call(Verb::Del, Some(&at), &keys).result().unwrap();
    }
    runtime.nothing_left();
}

#[test]
fn an_interface_that_exists_is_not_made_again_and_not_touched() {
    let runtime = Runtime::new("cni-exists");
    let (netns, at) = runtime.pod("p1");
    runtime.add(&at);
    let before = show(&netns, &["addr"]);
    let msg = runtime.refused(Verb::Add, Some(&at), &json!({}), 100);
    assert_eq!(msg, format!("{} already has an interface eth0", netns.path().display()));
    assert_eq!(show(&netns, &["addr"]), before);
    runtime.del(&at);

    let (netns, at) = runtime.pod("p2");
    netns.ip("link add eth0 type veth peer name other\naddr add 198.51.100.7/24 dev eth0\n").unwrap();
    let before = show(&netns, &["addr"]);
    let answer = runtime.call(Verb::Add, Some(&at), &json!({}));
    assert_eq!(answer.error_code(), Some(5));
    let why = format!("its other end is eth0 in {}: is there an interface of that name", netns.path().display());
    assert!(answer.stdout.contains("EEXIST") && answer.stdout.contains(&why), "{}", answer.stdout);
    assert_eq!(show(&netns, &["addr"]), before, "somebody else's eth0 stays as it was");
    runtime.del(&at);
    assert_eq!(show(&netns, &["addr"]), before);
    runtime.nothing_left();
}

#[test]
fn del_succeeds_whatever_is_left() {
    let runtime = Runtime::new("cni-del");
    let (netns, at) = runtime.pod("p1");
    runtime.add(&at);
    netns.delete().unwrap();
    runtime.del(&at);
    runtime.del(&at);
    runtime.del(&Attachment { netns: "".into(), ..at.clone() });
    runtime.del(&Attachment { container: "unheard-of".into(), ..at });
    runtime.nothing_left();
}

#[test]
fn a_del_without_an_agent_is_done_when_it_is_back() {
    let runtime = Runtime::new("cni-pending");
    let (netns, at) = runtime.pod("p1");
    runtime.add(&at);
    runtime.node().kill_agent().unwrap();
    let msg = runtime.refused(Verb::Add, Some(&at), &json!({}), 11);
    assert!(msg.contains("is not running"), "{msg}");
    runtime.refused(Verb::Status, None, &json!({}), 50);
    netns.delete().unwrap();
    runtime.del(&at);
    assert!(runtime.of_pods().iter().any(|left| left == r#"note "p1@eth0""#), "{:?}", runtime.of_pods());
    runtime.node().start_agent().unwrap();
    runtime.node().wait_ready().unwrap();
    runtime.nothing_left();
}

#[test]
fn check_tells_whether_all_is_as_add_left_it() {
    let runtime = Runtime::new("cni-check");
    let (netns, at) = runtime.pod("p1");
    let result = runtime.add(&at);
    let network = &runtime.network;
    network.check(runtime.node(), &at, &result).unwrap();
    let mut other = result.clone();
    other["ips"][0]["address"] = json!("198.51.100.7/32");
    assert!(network.check(runtime.node(), &at, &other).is_err());
    let (moved, _) = runtime.pod("p2");
    let elsewhere = Attachment { netns: moved.path(), ..at.clone() };
    assert!(network.check(runtime.node(), &elsewhere, &result).is_err());
    // The kernel tells nobody of what happens inside a pod: CHECK looks, and puts back what it can.
    let before = show(&netns, &["addr", "show", "dev", "eth0"]);
    netns.ip("addr flush dev eth0 scope global\n").unwrap();
    assert_ne!(show(&netns, &["addr", "show", "dev", "eth0"]), before);
    network.check(runtime.node(), &at, &result).unwrap();
    let promised = |result: &Value| result[0]["addr_info"].as_array().unwrap().len();
    assert_eq!(promised(&show(&netns, &["addr", "show", "dev", "eth0"])), promised(&before));
    // The whole link is another matter: the node's end goes with it, and of that the kernel tells.
    netns.ip("link del eth0\n").unwrap();
    wait_for(PATIENCE, "the link to be put back", || {
        network.check(runtime.node(), &at, &result).is_ok() && show(&netns, &["link"]).as_array().unwrap().len() == 2
    })
    .unwrap();
    runtime.del(&at);
    assert!(network.check(runtime.node(), &at, &result).is_err());
    runtime.nothing_left();
}

#[test]
fn gc_removes_what_the_runtime_does_not_know() {
    let runtime = Runtime::new("cni-gc");
    let pods: Vec<(Netns, Attachment)> = ["p1", "p2", "p3"].iter().map(|name| runtime.pod(name)).collect();
    let results: Vec<Value> = pods.iter().map(|(_, at)| runtime.add(at)).collect();
    pods[2].0.delete().unwrap();
    let valid = json!([{"containerID": "p1", "ifname": "eth0"}]);
    let said = runtime.call(Verb::Gc, None, &json!({"cni.dev/valid-attachments": valid}));
    assert_eq!(said.result().unwrap(), Value::Null);
    runtime.network.check(runtime.node(), &pods[0].1, &results[0]).unwrap();
    assert!(runtime.network.check(runtime.node(), &pods[1].1, &results[1]).is_err());
    let host = |result: &Value| result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let links = || runtime.of_pods().into_iter().filter(|left| !left.contains(' ')).collect::<Vec<_>>();
    wait_for(PATIENCE, "one pod to be left", || links() == [host(&results[0])]).unwrap();
    runtime.refused(Verb::Gc, None, &json!({}), 7);
    runtime.del(&pods[0].1);
    runtime.nothing_left();
}

#[test]
fn a_port_of_the_node_goes_to_one_pod() {
    let runtime = Runtime::new("cni-ports");
    let with_port = |name: &str| {
        let (netns, mut at) = runtime.pod(name);
        let port = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        at.runtime_config.insert("portMappings".into(), port);
        (netns, at)
    };
    let ((_one, first), (_two, second)) = (with_port("p1"), with_port("p2"));
    runtime.add(&first);
    let msg = runtime.refused(Verb::Add, Some(&second), &json!({}), 101);
    assert_eq!(msg, "port 8080/tcp of this node belongs to pod lab/p1");
    runtime.del(&first);
    runtime.add(&second);
    runtime.del(&second);
    runtime.nothing_left();
}

#[test]
fn status_is_fine_on_a_node_that_is() {
    let runtime = Runtime::new("cni-status");
    let fine = || runtime.call(Verb::Status, None, &json!({})).result().is_ok_and(|said| said == Value::Null);
    assert!(fine());
    // Somebody puts a route of his own where the node's has to be.
    let node = runtime.node();
    let routes = node.output(&["ip", "route", "show", "type", "unreachable"]).unwrap();
    let block = routes.split_whitespace().nth(1).unwrap().to_owned();
    let place = ["unreachable", &block, "metric", "4294967294"];
    let route = |verb| node.output(&[&["ip", "route", verb], &place[..]].concat()).unwrap();
    node.kill_agent().unwrap();
    route("del");
    route("add");
    node.start_agent().unwrap();
    wait_for(PATIENCE, "STATUS to tell", || runtime.call(Verb::Status, None, &json!({})).error_code() == Some(51))
        .unwrap();
    route("del");
    wait_for(PATIENCE, "STATUS to be fine again", fine).unwrap();
}

/// Pods come and go on many threads while the agent is killed again and again.
#[test]
fn a_storm_with_kills_leaves_nothing() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 12;
    let runtime = Runtime::new("cni-storm");
    let storm = |thread: usize| {
        for round in 0..ROUNDS {
            let (netns, at) = runtime.pod(&format!("s{thread}-{round}"));
            let added = runtime.call(Verb::Add, Some(&at), &json!({}));
            if let Ok(result) = added.result() {
                let promised = result["ips"][0]["address"].as_str().unwrap().to_owned();
                let found = show(&netns, &["-4", "addr", "show", "dev", "eth0"]);
                let found = found[0]["addr_info"][0]["local"].as_str().map(|local| format!("{local}/32"));
                assert_eq!(found, Some(promised), "an ADD that was answered holds");
            } else {
                assert_eq!(added.error_code(), Some(11), "{added:?}");
            }
            // As runtimes do after success and failure alike; a namespace may be gone before.
            if round % 3 == 0 {
                netns.delete().unwrap();
            }
            runtime.del(&at);
            netns.delete().unwrap();
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || storm(thread))).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            runtime.node().kill_agent().unwrap();
            runtime.node().start_agent().unwrap();
            runtime.node().wait_ready().unwrap();
        }
    });
    runtime.nothing_left();
}
