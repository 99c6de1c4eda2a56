//! From a word of the store to the kernel, for `cargo xtask bench policy`: 50,000 pods and 10,000 policies in the cluster,
//! 100 of the pods here, in a network namespace of this process's own; planners, kernel thread and kernel are the real ones.
//!
//! Prints a line of milliseconds for each question: a policy of all pods here, a policy of one of them, the labels of one of
//! them, a new pod elsewhere. Each is from World being told to the report that the kernel has it.

#[path = "shared/small.rs"]
mod small;

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use small::Small;
use tartan_model::{
    Attachment, Kind, Labels, Namespace, Node, Object, ObjectId, PerFamily, Pod, PolicyText, Revision, StoreEvent,
    World,
};
use tartan_netstate::{Mac, PodNetns};

const NAMESPACES: u32 = 1_000;
/// In each namespace: deployments, and pods of each.
const DEPLOYMENTS: u32 = 5;
const REPLICAS: u32 = 10;
const PODS: u32 = DEPLOYMENTS * REPLICAS;
const POLICIES: u32 = 10;
/// Namespaces one pod of which is on this node.
const LOCAL: u32 = 100;
const RUNS: u32 = 200;
const TIERS: [&str; 3] = ["back", "data", "front"];
const WATCHER: &str = "watcher";
const LOCAL_NODE: &str = "n0";
const ADDRESS: &str = "192.0.2.1/24";

fn main() -> Result<()> {
    small::isolate(ADDRESS)?;
    let mut bench = Bench::start()?;
    bench.measure(|run| policy_of_all(9_101 + run))?;
    bench.measure(|run| policy(run % LOCAL, run % POLICIES, 8_000 + run))?;
    bench.measure(|run| pod(run % LOCAL, 0, &format!("app{}", run % DEPLOYMENTS), TIERS[0]))?;
    bench.measure(newcomer)
}

/// The loop in small, and what it needs.
struct Bench {
    small: Small,
    /// Namespaces of the pods here, for as long as this runs.
    _netns: Vec<File>,
}

impl Bench {
    fn start() -> Result<Bench> {
        let mut netns = Vec::new();
        let small = Small::start(ADDRESS, |features| {
            let mut world = World::new(LOCAL_NODE.into(), features);
            fill(&mut world);
            for namespace in 0..LOCAL {
                let file = new_netns()?;
                world.attach(attachment(namespace, &file)?);
                netns.push(file);
            }
            Ok(world)
        })?;
        let mut bench = Bench { small, _netns: netns };
        let began = Instant::now();
        bench.small.plan_and_wait(false)?;
        let objects = bench.small.world.programmed.mirror.len();
        eprintln!("everything in the kernel after {:?}: {objects} objects", began.elapsed());
        Ok(bench)
    }

    /// Tells World one thing after the other, each when the kernel has the one before; prints how long each took, in ms.
    fn measure(&mut self, word: impl Fn(u32) -> StoreEvent) -> Result<()> {
        let mut times = Vec::new();
        for run in 0..RUNS {
            let word = word(run);
            let began = Instant::now();
            self.small.world.store(word, began);
            self.small.plan_and_wait(false)?;
            times.push(began.elapsed());
        }
        small::print(&times);
        Ok(())
    }
}

/// A namespace that lives as long as the file.
fn new_netns() -> Result<File> {
    let opened = std::thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    opened.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

// --- the cluster ---

fn fill(world: &mut World) {
    let now = Instant::now();
    for kind in Kind::ALL {
        world.store(StoreEvent::Init(kind), now);
    }
    world.store(node(), now);
    for namespace in 0..NAMESPACES {
        world.store(self::namespace(namespace), now);
        for at in 0..PODS {
            let deployment = at / REPLICAS;
            world.store(pod(namespace, at, &format!("app{deployment}"), TIERS[deployment as usize % TIERS.len()]), now);
        }
        for at in 0..POLICIES {
            world.store(policy(namespace, at, 8_000 + at), now);
        }
    }
    world.store(pod(LOCAL, PODS, WATCHER, TIERS[0]), now);
    world.store(policy_of_all(9_100), now);
    for kind in Kind::ALL {
        world.store(StoreEvent::Synced(kind), now);
    }
}

fn put(kind: Kind, name: String, object: Object) -> StoreEvent {
    StoreEvent::Put(ObjectId { kind, name: name.into() }, object, Revision::from(1))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn node() -> StoreEvent {
    let ranges = ["10.0.0.0/9", "fd00::/64"].map(|range| range.parse().expect("a range"));
    let node = Node {
        name: LOCAL_NODE.into(),
        uid: LOCAL_NODE.into(),
        internal_ips: vec![IpAddr::from([192, 0, 2, 1])],
        external_ips: Vec::new(),
        pod_cidrs: ranges.to_vec(),
        labels: Default::default(),
        annotations: Default::default(),
        placement: Default::default(),
    };
    put(Kind::Node, LOCAL_NODE.to_owned(), Object::Node(node.into()))
}

fn namespace(number: u32) -> StoreEvent {
    let name = format!("ns{number}");
    let team = format!("team{}", number % 50);
    let namespace = Namespace { name: name.as_str().into(), labels: labels(&[("team", &team)]) };
    put(Kind::Namespace, name, Object::Namespace(namespace.into()))
}

fn pod_name(at: u32) -> String {
    format!("app{}-5d8c7b9f6c-{at:05}", at / REPLICAS)
}

fn addresses(namespace: u32, at: u32) -> [IpAddr; 2] {
    let number = 256 + namespace * 1_024 + at;
    let [_, high, middle, low] = number.to_be_bytes();
    let v6 = format!("fd00::{:x}:{:x}", number >> 16, number & 0xffff);
    [IpAddr::from([10, high, middle, low]), v6.parse().expect("an address")]
}

fn pod(namespace: u32, at: u32, app: &str, tier: &str) -> StoreEvent {
    let is_local = namespace < LOCAL && at == 0;
    let pod = Pod {
        uid: 0,
        node: if is_local { LOCAL_NODE.into() } else { format!("n{}", 1 + (namespace * PODS + at) % 4_999).into() },
        labels: labels(&[("app", app), ("pod-template-hash", "5d8c7b9f6c"), ("tier", tier), ("version", "v1")]),
        service_account: "default".into(),
        addresses: addresses(namespace, at).into(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    };
    put(Kind::Pod, format!("ns{namespace}/{}", pod_name(at)), Object::Pod(pod.into()))
}

/// A pod more of a namespace whose policies let it in here: like another one, or like none.
fn newcomer(run: u32) -> StoreEvent {
    let (namespace, at) = (run % LOCAL, PODS + run);
    match run.is_multiple_of(2) {
        true => pod(namespace, at, "app1", TIERS[1]),
        false => pod(namespace, at, &format!("new{run}"), TIERS[2]),
    }
}

/// Who watches all pods of the cluster may reach them at a port, whatever their own policies say.
fn policy_of_all(port: u32) -> StoreEvent {
    let json = format!(
        r#"{{"spec":{{"tier":"Admin","priority":10,"subject":{{"namespaces":{{}}}},"ingress":[{{"action":"Accept","from":[{{"pods":{{"namespaceSelector":{{}},"podSelector":{{"matchLabels":{{"app":"{WATCHER}"}}}}}}}}],"protocols":[{{"tcp":{{"destinationPort":{{"number":{port}}}}}}}]}}]}}}}"#
    );
    let text = PolicyText { json: json.into() };
    put(Kind::ClusterNetworkPolicy, "watch".to_owned(), Object::Policy(text.into()))
}

/// Of each namespace's policies, half are for all its pods; the first of some lets every front tier of the cluster in.
fn policy(namespace: u32, at: u32, port: u32) -> StoreEvent {
    let subject = match at.is_multiple_of(2) {
        true => "{}".to_owned(),
        false => format!(r#"{{"matchLabels":{{"app":"app{}"}}}}"#, at % DEPLOYMENTS),
    };
    let wide = match at == 0 && namespace < 20 {
        true => r#"{"namespaceSelector":{},"podSelector":{"matchLabels":{"tier":"front"}}},"#,
        false => "",
    };
    let json = format!(
        r#"{{"spec":{{"podSelector":{subject},"policyTypes":["Ingress","Egress"],"ingress":[{{"from":[{wide}{{"podSelector":{{"matchLabels":{{"app":"app{}"}}}}}}],"ports":[{{"port":{port}}},{{"port":443}}]}},{{"from":[{{"namespaceSelector":{{"matchLabels":{{"team":"team{}"}}}}}}],"ports":[{{"port":9090}}]}}],"egress":[{{"to":[{{"podSelector":{{}}}},{{"ipBlock":{{"cidr":"203.0.{}.0/24"}}}}]}}]}}}}"#,
        (at + 1) % DEPLOYMENTS,
        namespace % 50,
        namespace % 200,
    );
    put(Kind::NetworkPolicy, format!("ns{namespace}/p{at}"), Object::Policy(PolicyText { json: json.into() }.into()))
}

fn attachment(namespace: u32, netns: &File) -> Result<Attachment> {
    let container = format!("c{namespace}");
    let found = netns.metadata()?;
    Ok(Attachment {
        id: Attachment::id_of(&container, "eth0"),
        container: container.into(),
        ifname: "eth0".into(),
        netns: PodNetns {
            dev: found.dev(),
            ino: found.ino(),
            path: format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into(),
        },
        pod_namespace: format!("ns{namespace}").into(),
        pod_name: pod_name(0).into(),
        addresses: PerFamily::first_of(addresses(namespace, 0)),
        mac: Mac([2, 0, 0, 0, 1, u8::try_from(namespace)?]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    })
}
