//! Tartan in company: stock plugins behind it in the chain, and stock plugins that choose addresses in its place.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tartan_lab::probe::{http_get, wait_for};
use tartan_lab::{Binaries, ECHO_PORT, Endpoint, HTTP_PORT, Lab, Network};

const PATIENCE: Duration = Duration::from_secs(60);
/// Debian's, and the newest version that those of Debian 12 know.
const STOCK: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";

/// Tartan on n1 with these keys in its configuration, and plugins behind it.
fn network(lab: &Lab, keys: &Value, behind: Vec<Value>) -> Network {
    let mut network = Network::tartan(lab.node("n1").unwrap(), &Binaries::beside_this_program().unwrap().cni).unwrap();
    network.path.push(STOCK.into());
    for (key, value) in keys.as_object().unwrap() {
        network.plugins[0][key] = value.clone();
    }
    network.plugins.extend(behind);
    network.plugins.iter_mut().for_each(|plugin| plugin["cniVersion"] = json!(VERSION));
    network
}

fn host_local(data: &Path, ranges: &Value) -> Value {
    json!({"ipam": {"type": "host-local", "dataDir": data, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}})
}

#[test]
fn host_local_gives_addresses_and_has_them_back() {
    let mut lab = Lab::builder("chain-ipam").nodes(2).pods_per_node(1).up().unwrap();
    let node = lab.node("n1").unwrap();
    let data = node.state_dir().join("host-local");
    let ranges = node.pod_cidrs().map(|cidr| json!([{"subnet": cidr}]));
    let network = network(&lab, &host_local(&data, &json!(ranges)), Vec::new());
    let leases = || {
        let files = std::fs::read_dir(data.join("tartan")).into_iter().flatten().flatten();
        let names = files.map(|file| file.file_name().into_string().unwrap());
        let mut leases: Vec<String> = names.filter(|name| name.starts_with(|c| "1f".contains(c))).collect();
        leases.sort();
        leases
    };

    let own = lab.add_pod_by(network, "n1", "own", Map::new()).unwrap().endpoint();
    assert_eq!(leases(), [own.v4.to_string(), own.v6.to_string()]);
    lab.wait_for_matrix(PATIENCE).unwrap();
    lab.pod("own").unwrap().check(lab.node("n1").unwrap()).unwrap();

    // What Tartan itself gave to a1.
    let taken = lab.pod("a1").unwrap().endpoint().v4.to_string();
    let only =
        json!([[{"subnet": "10.244.1.0/24", "rangeStart": taken, "rangeEnd": taken, "gateway": "10.244.1.200"}]]);
    let other = self::network(&lab, &host_local(&data, &only), Vec::new());
    let error = format!("{:#}", lab.add_pod_by(other, "n1", "second", Map::new()).unwrap_err());
    assert!(error.contains(&format!("the pod asks for {taken}: pod lab/a1 on this node has it")), "{error}");
    assert_eq!(leases(), [own.v4.to_string(), own.v6.to_string()], "what a failed ADD was given");

    lab.remove_pod("own").unwrap();
    assert_eq!(leases(), [""; 0]);
}

#[test]
fn static_addresses_are_a_pods_where_its_node_has_them() {
    let mut lab = Lab::builder("chain-static").nodes(1).pods_per_node(1).up().unwrap();
    let fixed = |v4: &str, v6: &str| {
        let addresses = [v4, v6].map(|address| json!({"address": address}));
        json!({"ipam": {"type": "static", "addresses": addresses}})
    };
    let good = network(&lab, &fixed("10.244.1.77/24", "fd00:10:244:1::77/64"), Vec::new());
    let pod = lab.add_pod_by(good.clone(), "n1", "fixed", Map::new()).unwrap().endpoint();
    assert_eq!((pod.v4.to_string(), pod.v6.to_string()), ("10.244.1.77".into(), "fd00:10:244:1::77".into()));
    lab.wait_for_matrix(PATIENCE).unwrap();

    let error = format!("{:#}", lab.add_pod_by(good, "n1", "again", Map::new()).unwrap_err());
    assert!(error.contains("pod lab/fixed on this node has it"), "{error}");
    let nowhere = network(&lab, &fixed("198.51.100.7/24", "fd00:10:244:1::78/64"), Vec::new());
    let error = format!("{:#}", lab.add_pod_by(nowhere, "n1", "nowhere", Map::new()).unwrap_err());
    assert!(error.contains("198.51.100.7: it is not in a range of this node"), "{error}");
    let missing = network(&lab, &json!({"ipam": {"type": "nobody"}}), Vec::new());
    let error = format!("{:#}", lab.add_pod_by(missing, "n1", "missing", Map::new()).unwrap_err());
    assert!(error.contains("ipam.type nobody: there is no such plugin in CNI_PATH="), "{error}");
    lab.remove_pod("fixed").unwrap();
}

#[test]
fn stock_plugins_work_behind_it() {
    let mut lab = Lab::builder("chain-stock").nodes(2).pods_per_node(1).up().unwrap();
    let behind = vec![
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.eth0.log_martians": "1"}}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
    ];
    // What the others are there for is not Tartan's here.
    let network = network(&lab, &json!({"capabilities": {}}), behind);
    let config = json!({
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 400_000},
        "portMappings": [{"hostPort": 8088, "containerPort": HTTP_PORT, "protocol": "tcp"}],
    });
    let config: Map<String, Value> = config.as_object().unwrap().clone();
    let pod = lab.add_pod_by(network, "n1", "tuned", config).unwrap();
    let link = pod.result()["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let inside = |argv: &[&str]| pod.netns().output(argv).unwrap();
    assert_eq!(inside(&["cat", "/proc/sys/net/core/somaxconn"]).trim(), "500");
    assert_eq!(inside(&["cat", "/proc/sys/net/ipv4/conf/eth0/log_martians"]).trim(), "1");
    let node = lab.node("n1").unwrap();
    let shown = node.output(&["tc", "qdisc", "show", "dev", &link]).unwrap();
    assert!(shown.contains("tbf") && shown.contains("rate 8Mbit"), "{shown}");
    lab.wait_for_matrix(PATIENCE).unwrap();
    let there = (node.endpoint().v4, 8088).into();
    let (code, said) = http_get(&lab.node("n2").unwrap().endpoint(), there, "/").unwrap();
    assert!(code == 200 && said.starts_with("tuned"), "{code} {said}");

    // The agent finds what others have put beside its own, and leaves it.
    node.restart_agent().unwrap();
    let pod = lab.pod("tuned").unwrap();
    // Debian 12's portmap looks for IPv4's rules among IPv6's where a pod has both.
    let mut checked = pod.network().clone();
    checked.plugins.pop();
    checked.check(node, pod.attachment(), pod.result()).unwrap();
    assert_eq!(node.output(&["tc", "qdisc", "show", "dev", &link]).unwrap(), shown);
    lab.remove_pod("tuned").unwrap();
    let node = lab.node("n1").unwrap();
    let gone = || node.output(&["ip", "link"]).is_ok_and(|links| !links.contains(&link));
    wait_for(PATIENCE, "the pod's link to go", gone).unwrap();
}

/// By what the runtime is told of a pod's annotations.
#[test]
fn a_pod_hears_and_says_no_more_than_its_bandwidth() {
    const RATE: u64 = 8_000_000;
    const BURST: u64 = 400_000;
    const BYTES: usize = 2 << 20;
    let mut lab = Lab::builder("chain-rate").nodes(1).pods_per_node(2).up().unwrap();
    let (from, free) = (lab.endpoint("a1").unwrap(), lab.endpoint("a2").unwrap());
    let quick = there_and_back(&from, &free, BYTES);
    for (name, way) in [("deaf", "ingress"), ("mute", "egress")] {
        let limits = json!({format!("{way}Rate"): RATE, format!("{way}Burst"): BURST});
        let config = Map::from_iter([("bandwidth".to_owned(), limits)]);
        let network = network(&lab, &json!({}), Vec::new());
        let slow = lab.add_pod_by(network, "n1", name, config).unwrap().endpoint();
        let took = there_and_back(&from, &slow, BYTES);
        let least = (BYTES as u64 * 8 - BURST) as f64 / RATE as f64;
        assert!(
            took.as_secs_f64() >= least,
            "{name}: {BYTES} bytes took {took:?}, and {least:.2} s is what {way} allows"
        );
        assert!(quick < took / 4, "without a limit it took {quick:?}, with one {took:?}");
    }
}

/// How long that many bytes take to an echo server and back.
fn there_and_back(from: &Endpoint, to: &Endpoint, bytes: usize) -> Duration {
    let talk = || {
        let start = Instant::now();
        let mut stream = TcpStream::connect((to.v4, ECHO_PORT)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut writing = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || writing.write_all(&vec![7; bytes]).unwrap());
            let mut back = vec![0; bytes];
            stream.read_exact(&mut back).unwrap();
            assert!(back.iter().all(|byte| *byte == 7));
        });
        start.elapsed()
    };
    from.netns.run(talk).unwrap()
}
