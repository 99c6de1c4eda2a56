//! Pods by the container runtime's protocol, proven with the stock `ptp` and `host-local` plugins of Debian's
//! containernetworking-plugins: no agent needed.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, json};
use tartan_lab::{Attachment, Lab, Network, Verb, probe};

const STOCK: &str = "/usr/lib/cni";

fn stock_network(state: &Path) -> Network {
    assert!(Path::new(STOCK).join("ptp").exists(), "apt-get install containernetworking-plugins");
    let range = |subnet: &str| json!([{"subnet": subnet}]);
    let ptp = json!({
        "cniVersion": "1.0.0",
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "dataDir": state,
            "ranges": [range("10.244.1.0/24"), range("fd00:10:244:1::/64")],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    Network { name: "stock".into(), path: vec![STOCK.into()], plugins: vec![ptp] }
}

#[test]
fn pods_of_a_stock_plugin_talk_and_go() {
    let mut lab = Lab::builder("stock").nodes(1).build().unwrap();
    let network = stock_network(&lab.node("n1").unwrap().state_dir());
    for pod in ["a1", "a2"] {
        lab.add_pod_by(network.clone(), "n1", pod, Map::new()).unwrap();
    }
    lab.wait_for_matrix(Duration::from_secs(10)).unwrap();
    let a1 = lab.pod("a1").unwrap();
    assert!(a1.result()["ips"][0]["address"].as_str().unwrap().starts_with("10.244.1."));
    a1.check(lab.node("n1").unwrap()).unwrap();

    // Another process finds the pod by name, with names resolving.
    let facts = tartan_lab::Facts::find(Some("stock")).unwrap();
    let seen = lab.store_dir().join("seen");
    let script = format!("curl --silent --show-error --max-time 5 http://a2/ > {}", seen.display());
    assert!(facts.exec("a1", &["sh", "-c", &script]).unwrap().success());
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.starts_with("a2 sees "), "{seen}");
    assert!(facts.exec("a1", &["false"]).unwrap().code() == Some(1));
    let unknown = facts.exec("a9", &["true"]).unwrap_err();
    assert!(unknown.to_string().contains("it has a1, a2, n1, outside"), "{unknown}");

    let a2 = lab.endpoint("a2").unwrap();
    lab.remove_pod("a2").unwrap();
    probe::ping(&lab.endpoint("a1").unwrap(), a2.v4.into(), 84, Duration::from_millis(300)).unwrap_err();
    assert!(!a2.netns.path().exists());
}

#[test]
fn a_plugin_that_fails_says_so_and_leaves_no_namespace() {
    let mut lab = Lab::builder("failing").nodes(1).build().unwrap();
    let mut network = stock_network(&lab.node("n1").unwrap().state_dir());
    network.plugins[0]["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/31"}]]);
    let error = format!("{:#}", lab.add_pod_by(network.clone(), "n1", "a1", Map::new()).unwrap_err());
    assert!(error.contains("attaching pod a1 on n1") && error.contains("too small"), "{error}");
    assert!(!Path::new("/run/netns").join(format!("{}a1", lab.facts().prefix())).exists());

    // The raw answer is there for tests of codes and bytes.
    let node = lab.node("n1").unwrap();
    let at = Attachment {
        container: "x".into(),
        netns: "".into(),
        ifname: "eth0".into(),
        args: String::new(),
        runtime_config: Map::new(),
    };
    let answer = network.call(node, &network.plugins[0], Verb::Add, Some(&at), None).unwrap();
    assert!(!answer.status.success() && answer.error_code().is_some(), "{answer:?}");
    let version = network.call(node, &network.plugins[0], Verb::Version, None, None).unwrap().result().unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.0.0")), "{version}");
    network.plugins[0]["type"] = "no-such".into();
    let missing = network.call(node, &network.plugins[0], Verb::Version, None, None).unwrap_err();
    assert!(missing.to_string().contains("no-such is not in"), "{missing}");
}
