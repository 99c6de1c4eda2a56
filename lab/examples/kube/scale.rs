//! What a large cluster costs one agent: 1,000 nodes with 20 pods each, written straight to an API server.
//!
//! Invariant: nobody is behind what is written but one agent, a release build on a node of its own with 20 pods. All else
//! that the cluster does in the minute that is measured is written from here: signs of life as often as agents and
//! kubelets give them, and pods that are replaced.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Attachment, Binaries, Lab, NAMESPACE, Netns, Network, Node, cni_args};

use crate::Programs;
use crate::control::{Control, Stack};
use crate::measure::{figure, mib};
use crate::pki::Pki;
use crate::wire::{Proxy, Request};

const NODES: usize = 1_000;
const PODS: usize = 20_000;
const OWN_PODS: usize = 20;
const NAMESPACES: usize = 50;
/// Far from the node's number.
const CONTROL_NUMBER: u8 = 100;
const MINUTE: Duration = Duration::from_secs(60);
/// 1,000 agents give a sign of life every ten seconds.
const TICK: Duration = Duration::from_millis(10);
const TICKS: usize = 6_000;
/// A kubelet writes its Node's status every five minutes: 1,000 of them every 300 ms.
const TICKS_A_NODE: usize = 30;
/// Ten pods a second are replaced.
const TICKS_A_POD: usize = 10;
const PATIENCE: Duration = Duration::from_secs(300);
const KINDS: [&str; 2] = ["crds.yaml", "pool-crds.yaml"];

/// Makes it and takes its figures.
pub(crate) fn run() -> Result<()> {
    let programs = &Programs::from_environment()?;
    let binaries = Binaries { tartan: programs.find("tartan")?, cni: programs.find("tartan-cni")? };
    let lab = Lab::builder("kube-scale").nodes(1).pods_per_node(0).binaries(binaries.clone()).build()?;
    let netns = Netns::create(&format!("{}control", lab.facts().prefix()))?;
    let seat = lab.underlay().plug_in("control", CONTROL_NUMBER, &netns)?;
    let disk = lab.facts().disk();
    fs::create_dir_all(&disk)?;
    let pki = Pki::create(&disk.join("pki"))?;
    let control = Control::bare(&netns, &seat, &pki, &disk, (programs, Stack::Both))?;
    let proxy = Proxy::start(&control, &netns)?;
    let node = lab.node("n1")?;
    fill(&control, &proxy, node)?;

    node.set_store(&format!("kubernetes:{}", control.admin().display()))?;
    let since = Instant::now();
    node.start_agent()?;
    wait_for(PATIENCE, "the agent to know the cluster", || knows_all(node)).with_context(|| node.troubleshooting())?;
    println!("# kube.rss_20000: ready with all routes after {:.1} s", since.elapsed().as_secs_f64());
    let network = Network::tartan(node, &binaries.cni)?;
    (0..OWN_PODS).try_for_each(|number| attach(&lab, node, &network, number))?;
    a_minute(&proxy, node)
}

fn knows_all(node: &Node) -> bool {
    let last = Peer(NODES);
    node.output(&["ip", "route", "get", &last.pod(2)]).is_ok_and(|route| route.contains("dev ttx"))
        && node.wait_ready().is_ok()
}

fn attach(lab: &Lab, node: &Node, network: &Network, number: usize) -> Result<()> {
    let container = format!("{}{}", lab.facts().prefix(), own_pod(number));
    let netns = Netns::create(&container)?.path();
    let (args, runtime_config) = (cni_args(&own_pod(number)), Map::new());
    network.add(node, &Attachment { container, netns, ifname: "eth0".into(), args, runtime_config }).map(drop)
}

/// The life of the cluster, and what of it the agent hears.
fn a_minute(proxy: &Proxy, node: &Node) -> Result<()> {
    let (events, bytes, cpu, since) = (events(node)?, received(node)?, node.agent_cpu()?, Instant::now());
    proxy.send(TICKS, |tick| {
        let due = TICK * tick as u32;
        // Whoever is late is late for all: what was done is divided by the time that it took.
        let _late = wait_for(MINUTE * 2, "its turn", || since.elapsed() >= due);
        life(tick)
    })?;
    let took = since.elapsed().as_secs_f64();
    let heard = (self::events(node)? - events) as f64 / took;
    println!("# kube.events_20000: a minute's writes took {took:.1} s");
    figure("events_20000", heard);
    figure("bytes_20000", (received(node)? - bytes) as f64 / took);
    figure("cpu_20000", (node.agent_cpu()? - cpu).as_secs_f64() / took);
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent_pid()?))?;
    figure("rss_20000", mib(&status, "VmRSS:").context("VmRSS")?);
    figure("rss_20000_peak", mib(&status, "VmHWM:").context("VmHWM")?);
    Ok(())
}

/// What the store has said to the agent, of all kinds.
fn events(node: &Node) -> Result<u64> {
    let metrics = node.metrics()?;
    let values = metrics.lines().filter(|line| line.starts_with("tartan_store_events_total{"));
    values.map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<u64>()?)).sum()
}

/// Bytes that came to the node: on its uplink is nothing but the API server.
fn received(node: &Node) -> Result<u64> {
    Ok(node.output(&["cat", "/sys/class/net/eth0/statistics/rx_bytes"])?.trim().parse()?)
}

// --- what is written ---

fn fill(control: &Control, proxy: &Proxy, node: &Node) -> Result<()> {
    let since = Instant::now();
    for file in KINDS {
        let file = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        control.kubectl(&["apply", "--filename", &file])?;
    }
    control.kubectl(&["wait", "--for=condition=Established", "crd", "--all"])?;
    proxy.send(NAMESPACES + 1, namespace)?;
    let [v4, v6] = node.pod_cidrs();
    let own = node_object("n1", &[node.endpoint().v4.to_string()], &[v4, v6]);
    proxy.send(1, |_| vec![post("/api/v1/nodes", own.clone())])?;
    proxy.send(NODES, |number| Peer(number + 1).objects())?;
    proxy.send(OWN_PODS, |number| vec![post(&pods(NAMESPACE), pod(&own_pod(number), number, "n1"))])?;
    proxy.send(PODS, |number| running(&pod_name(number, 0), number))?;
    println!("# kube.rss_20000: {NODES} nodes and {PODS} pods were written in {:.0} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// What happens in one tick.
fn life(tick: usize) -> Vec<Request> {
    let beating = Peer(tick % NODES + 1);
    let mut requests = vec![patch(
        format!("/apis/tartan.dev/v1alpha1/nodenetworks/{}", beating.name()),
        json!({"spec": {"heartbeat": tick + 2}}),
    )];
    if tick.is_multiple_of(TICKS_A_NODE) {
        let node = Peer(tick / TICKS_A_NODE + 1).name();
        requests.push(patch(format!("/api/v1/nodes/{node}/status"), json!({"status": conditions(tick)})));
    }
    if tick.is_multiple_of(TICKS_A_POD) {
        let number = tick / TICKS_A_POD;
        let old = format!("{}/{}", pods(&namespace_of(number)), pod_name(number, 0));
        requests.push(Request { method: "DELETE", path: old, body: json!({"gracePeriodSeconds": 0}) });
        requests.extend(running(&pod_name(number, 1), number));
    }
    requests
}

/// A namespace with a policy; the last one is that of the node's own pods. Nobody makes accounts here.
fn namespace(number: usize) -> Vec<Request> {
    let name = if number == NAMESPACES { NAMESPACE.to_owned() } else { format!("space-{number}") };
    let labels = json!({"team": format!("team-{}", number % 5)});
    let from = json!([{"namespaceSelector": {"matchLabels": {"team": "team-1"}}, "podSelector": {"matchLabels": {"tier": "front"}}}]);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "from-front"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": [{"port": 8080}]}]},
    });
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    vec![
        post(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        ),
        post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account),
        post(&format!("/apis/networking.k8s.io/v1/namespaces/{name}/networkpolicies"), policy),
    ]
}

fn namespace_of(pod: usize) -> String {
    format!("space-{}", pod % NAMESPACES)
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn own_pod(number: usize) -> String {
    format!("own-{number}")
}

fn pod_name(number: usize, life: usize) -> String {
    format!("app-{}-7d9c5b8f6d-{number:05}{life}", number % 400)
}

/// A pod that has started, as its kubelet tells it.
fn running(name: &str, number: usize) -> Vec<Request> {
    let peer = Peer(number % NODES + 1);
    let collection = pods(&namespace_of(number));
    let [v4, v6] = [peer.pod((number / NODES + 2) as u8), format!("fd00:20:{:x}::{:x}", peer.0, number / NODES + 2)];
    let status = json!({"status": {
        "phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}], "hostIP": peer.address(),
        "conditions": conditions(number)["conditions"], "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": [{
            "name": "server", "ready": true, "restartCount": 0, "image": IMAGE, "imageID": format!("{IMAGE}@sha256:{number:064x}"),
            "containerID": format!("containerd://{number:064x}"), "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
        }],
    }});
    let path = format!("{collection}/{name}/status");
    vec![post(&collection, pod(name, number, &peer.name())), patch(path, status)]
}

const IMAGE: &str = "registry.example.org/team/application-server:2026.1.7-build.4711";

/// As large as a Deployment's pods are.
fn pod(name: &str, number: usize, node: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 1});
    let env: Vec<Value> =
        (0..8).map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-{n}")})).collect();
    let tier = ["front", "middle", "back", "batch"][number % 4];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": format!("app-{}", number % 400), "tier": tier, "pod-template-hash": "7d9c5b8f6d"},
            "annotations": {"checksum/config": format!("{number:064x}")},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{}-7d9c5b8f6d", number % 400),
                "uid": format!("00000000-0000-4000-8000-{:012}", number % 400), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false,
            "containers": [{
                "name": "server", "image": IMAGE, "env": env, "readinessProbe": probe, "livenessProbe": probe,
                "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/app", "readOnly": true}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": format!("app-{}", number % 400)}}],
        },
    })
}

fn conditions(number: usize) -> Value {
    let at = format!("2026-01-01T{:02}:{:02}:{:02}Z", number / 3600 % 24, number / 60 % 60, number % 60);
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at, "lastHeartbeatTime": at, "reason": "AsItShould", "message": "all is as it should be"});
    let conditions = ["Ready", "Initialized", "ContainersReady", "PodScheduled"].map(condition);
    json!({"conditions": conditions})
}

/// A node that is only in the store; numbered from 1.
struct Peer(usize);

impl Peer {
    fn name(&self) -> String {
        format!("p{}", self.0)
    }

    fn address(&self) -> String {
        format!("172.29.{}.{}", self.0 / 256, self.0 % 256)
    }

    /// Of its /24, beside the lab's own 10.244.0.0/16.
    fn pod(&self, last: u8) -> String {
        format!("10.{}.{}.{last}", 128 + self.0 / 256, self.0 % 256)
    }

    fn objects(&self) -> Vec<Request> {
        let ranges = [format!("{}/24", self.pod(0)), format!("fd00:20:{:x}::/64", self.0)];
        let instance = "vxlan/ipv4/vni1/port8472";
        let mac = format!("02:29:00:00:{:02x}:{:02x}", self.0 / 256, self.0 % 256);
        let advert = json!({
            "apiVersion": "tartan.dev/v1alpha1", "kind": "NodeNetwork", "metadata": {"name": self.name()},
            "spec": {
                "nodeUid": "", "addresses": [self.address()], "blocks": ranges, "mtu": 1450,
                "fabricAddresses": [self.pod(0), format!("fd00:20:{:x}::", self.0)],
                "accepts": [{"instance": instance, "address": self.address(), "mac": mac}],
                "sends": [instance], "edition": 1, "heartbeat": 1,
            },
        });
        vec![
            post("/api/v1/nodes", node_object(&self.name(), &[self.address()], &ranges)),
            post("/apis/tartan.dev/v1alpha1/nodenetworks", advert),
        ]
    }
}

/// As large as a kubelet makes it, with the images that it lists.
fn node_object(name: &str, addresses: &[String], ranges: &[String; 2]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|it| json!({"type": "InternalIP", "address": it})).collect();
    let image = |n: usize| json!({"names": [format!("{IMAGE}@sha256:{n:064x}"), format!("{IMAGE}-{n}")], "sizeBytes": 50_000_000 + n});
    let images: Vec<Value> = (0..30).map(image).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": addresses, "conditions": conditions(0)["conditions"], "images": images,
            "capacity": {"cpu": "4", "memory": "16Gi", "pods": "110"}, "allocatable": {"cpu": "4", "memory": "15Gi", "pods": "110"}},
    })
}

fn post(path: &str, body: Value) -> Request {
    Request { method: "POST", path: path.to_owned(), body }
}

fn patch(path: String, body: Value) -> Request {
    Request { method: "PATCH", path, body }
}

#[cfg(test)]
mod tests {
    use super::{NODES, TICKS, TICKS_A_NODE, TICKS_A_POD, life};

    #[test]
    fn a_minute_has_six_beats_of_each_agent_and_the_rest_at_its_rate() {
        let requests: Vec<_> = (0..TICKS).flat_map(life).collect();
        let count = |part: &str| requests.iter().filter(|request| request.path.contains(part)).count();
        assert_eq!(count("/nodenetworks/"), 6 * NODES);
        assert_eq!((count("/api/v1/nodes/"), count("/pods")), (TICKS / TICKS_A_NODE, 3 * TICKS / TICKS_A_POD));
    }
}
