//! A whole agent on the fake kernel and the store in memory: loop, journal, kernel thread and publisher are the real ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tartan_agent::run::Input;
use tartan_agent::status::{Outcome, Seen};
use tartan_agent::waiting::{Answer, CniReply};
use tartan_api::cni::{CniRequest, Command, NetnsFile, PodName, Version};
use tartan_api::status::Status;
use tartan_kernel::fake::Fake;
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Waker};
use tartan_model::workload::NAMESPACE_NAME_LABEL;
use tartan_model::{
    Advert, Config, DefaultRoute, EncryptionState, Endpoint, Features, Host, HostLink, Kind, Namespace, Node,
    NodeNetwork, Object, ObjectId, PerFamily, Pod, Pool, Selector, World,
};
use tartan_netstate::{Change, Key, LinkName, Mac, Netns, PodNetns, State};
use tartan_store::{Expect, MemoryStore, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The namespace of all pods; each has the name of its container.
pub(crate) const NAMESPACE: &str = "shop";

/// What the world around the agent is; it outlives the agent.
pub(crate) struct Rig {
    pub(crate) kernel: Fake,
    pub(crate) store: MemoryStore,
    pub(crate) dir: PathBuf,
    boot: String,
}

/// An agent of node n1 that runs. Dropped: killed, without a word to anybody.
pub(crate) struct Running {
    inbox: mpsc::Sender<Input>,
    agent: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A kernel whose first change is its last.
pub(crate) struct Dying(pub(crate) Fake);

// === impl Dying ===

impl Kernel for Dying {
    fn features(&mut self) -> Features {
        self.0.features()
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        self.0.subscribe(wake)
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        self.0.read(scope)
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        self.0.host()
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        self.0.encryption()
    }

    fn apply(&mut self, _: &Change) -> Vec<Failure> {
        panic!("a bug, played by the test")
    }

    fn wait_for_carrier(&mut self, _: &LinkName) {}

    fn bury(&mut self) {}

    fn lend(&mut self, _: &PodNetns, _: OwnedFd) {}

    fn give_back(&mut self, _: &PodNetns) {}
}

// === impl Rig ===

impl Rig {
    /// Node n1 with one uplink, alone in its cluster.
    pub(crate) async fn new() -> Rig {
        Rig::on(Fake::new()).await
    }

    pub(crate) async fn on(kernel: Fake) -> Rig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tartan-running-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let boot = "this boot".to_owned();
        let rig = Rig { kernel, store: MemoryStore::new(), dir, boot };
        rig.kernel.set_host(host());
        rig.put_node("n1", "172.30.0.1", &["10.127.0.0/24", "fd00:10:127::/64"]).await;
        rig.put_namespace().await;
        for name in ["a", "b", "c", "d", "good", "bad"] {
            rig.put_pod(name, pod("n1")).await;
        }
        rig
    }

    /// The namespace of all pods.
    pub(crate) async fn put_namespace(&self) {
        let labels = [(NAMESPACE_NAME_LABEL, NAMESPACE)].into_iter().collect();
        self.put(Kind::Namespace, NAMESPACE, Object::Namespace(Namespace { name: NAMESPACE.into(), labels }.into()))
            .await;
    }

    pub(crate) async fn put_pod(&self, name: &str, pod: Pod) {
        self.put(Kind::Pod, &format!("{NAMESPACE}/{name}"), Object::Pod(pod.into())).await;
    }

    pub(crate) fn start(&self) -> Running {
        self.start_on(Box::new(self.kernel.clone()))
    }

    pub(crate) fn start_on(&self, kernel: Box<dyn Kernel>) -> Running {
        let store = Arc::new(self.store.clone());
        let (inbox, agent) = tartan_agent::assemble("n1", &self.dir, &self.boot, kernel, store).unwrap();
        Running { inbox, agent: Some(tokio::spawn(agent)) }
    }

    /// Started, and ready.
    pub(crate) async fn ready(&self) -> Running {
        let running = self.start();
        running.until("the agent is ready", |status| status.ready).await;
        running
    }

    /// The machine boots: nothing is in the kernel, and no pod from before runs any more.
    pub(crate) fn reboot(&mut self) {
        self.kernel = Fake::new();
        self.kernel.set_host(host());
        self.boot.push_str(", then another");
    }

    /// Waits until the snapshot on the disk says so.
    pub(crate) async fn snapshot(&self, what: &str, says: impl Fn(&World) -> bool) {
        let is_so = || {
            let objects = tartan_agent::snapshot::load(&self.dir.join(tartan_agent::snapshot::FILE), "n1").ok()??;
            let mut world = World::new("n1".into(), Features::default());
            world.recall(objects, std::time::Instant::now());
            says(&world).then_some(())
        };
        let looking = async {
            while is_so().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, looking).await.is_ok();
        assert!(waited, "waited in vain until the snapshot holds {what}");
    }

    pub(crate) async fn put(&self, kind: Kind, name: &str, object: Object) {
        self.store.put(ObjectId { kind, name: name.into() }, object, Expect::Any).await.unwrap();
    }

    pub(crate) async fn put_config(&self, config: Config) {
        self.put(Kind::NetworkConfig, "default", Object::Config(config.into())).await;
    }

    pub(crate) async fn put_node(&self, name: &str, address: &str, ranges: &[&str]) {
        let node = Node {
            name: name.into(),
            uid: format!("uid of {name}").into(),
            internal_ips: vec![address.parse().unwrap()],
            external_ips: Vec::new(),
            pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            placement: Default::default(),
        };
        self.put(Kind::Node, name, Object::Node(node.into())).await;
    }

    /// A node elsewhere that takes part: its Node, and what it tells.
    pub(crate) async fn put_peer(&self, number: u16) {
        let [high, low] = number.to_be_bytes();
        let (name, address) = (format!("p{number}"), format!("172.29.{high}.{low}"));
        let ranges = [format!("10.{}.{low}.0/24", 128 + u16::from(high)), format!("fd00:20:{number:x}::/64")];
        self.put_node(&name, &address, &[&ranges[0], &ranges[1]]).await;
        let instance: Arc<str> = "vxlan/ipv4/vni1/port8472".into();
        let address: IpAddr = address.parse().unwrap();
        let blocks: Vec<ipnet::IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mac = Some(Mac([2, 29, 0, 0, high, low]));
        let advert = Advert {
            node: name.as_str().into(),
            node_uid: format!("uid of {name}").into(),
            addresses: PerFamily { v4: Some(address), v6: None },
            fabric_addresses: PerFamily { v4: Some(blocks[0].addr()), v6: Some(blocks[1].addr()) },
            blocks,
            mtu: 1450,
            accepts: vec![Endpoint { instance: instance.clone(), address, mac, public_key: None }],
            sends: vec![instance],
            joining: false,
            leaving: [].into(),
            acknowledges: None,
            edition: 1,
            heartbeat: 1,
        };
        self.put(Kind::NodeNetwork, &name, Object::from(advert)).await;
    }

    /// What the store holds of n1's own object.
    pub(crate) fn network(&self) -> Option<NodeNetwork> {
        match self.store.get(&ObjectId { kind: Kind::NodeNetwork, name: "n1".into() })?.0 {
            Object::NodeNetwork(network) => Some(network),
            other => panic!("a NodeNetwork is {other:?}"),
        }
    }

    /// What the store holds of n1's own word.
    pub(crate) fn advert(&self) -> Option<Arc<Advert>> {
        self.network().map(|network| network.advert)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // An agent that is not stopped yet may put a file there meanwhile, but not many.
        for _ in 0..10 {
            match std::fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

// === impl Running ===

impl Running {
    /// SIGTERM. What the agent ended with.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.inbox.send(Input::Stop).await.unwrap();
        self.agent.take().unwrap().await.unwrap()
    }

    /// Waits for the end that comes without being told.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.agent.take().unwrap().await.unwrap()
    }

    /// kill -9, and the process is gone.
    pub(crate) async fn kill(mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        assert!(agent.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn look(&self) -> Seen {
        let (reply, seen) = oneshot::channel();
        assert!(self.inbox.send(Input::Look(reply)).await.is_ok(), "the agent has ended");
        seen.await.unwrap()
    }

    pub(crate) async fn status(&self) -> Status {
        self.look().await.status
    }

    /// Looks until it is so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let mut last = self.status().await;
        let looking = async {
            while !is_so(&last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                last = self.status().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, looking).await.is_ok();
        assert!(waited, "waited in vain until {what}: {last:#?}");
        last
    }

    /// A call of the runtime that is under way. The answer comes by the other end; dropped, the caller hung up.
    pub(crate) async fn call(&self, command: Command, container: &str) -> oneshot::Receiver<Answer> {
        self.ask(request(command, container)).await
    }

    /// As [`Running::call`], with all that the call says.
    pub(crate) async fn ask(&self, request: CniRequest) -> oneshot::Receiver<Answer> {
        let (reply, answer) = CniReply::channel();
        assert!(self.inbox.send(Input::Cni(Box::new(request), None, reply)).await.is_ok(), "the agent has ended");
        answer
    }

    /// DELs that containers' plugins have noted while no agent ran. The answer: they are in the journal.
    pub(crate) async fn noted(&self, containers: &[&str]) -> oneshot::Receiver<()> {
        let ids = containers.iter().map(|container| tartan_model::Attachment::id_of(container, "eth0")).collect();
        let (written, answer) = oneshot::channel();
        assert!(self.inbox.send(Input::LetGo(ids, written)).await.is_ok(), "the agent has ended");
        answer
    }

    /// A call of the runtime, and its answer.
    pub(crate) async fn cni(&self, command: Command, container: &str) -> Answer {
        let answer = self.call(command, container).await;
        tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer")
    }

    /// An ADD that works. The addresses it gave.
    pub(crate) async fn add(&self, container: &str) -> Vec<IpAddr> {
        addresses(&self.cni(Command::Add, container).await.unwrap())
    }

    /// What the network before has given to containers that still run.
    pub(crate) async fn given(&self, given: tartan_agent::former_network::Given) {
        assert!(self.inbox.send(Input::Given(given)).await.is_ok(), "the agent has ended");
    }

    pub(crate) async fn hung_up(&self) {
        assert!(
            self.inbox.send(Input::Heard(Command::Add, Outcome::Unheard, Duration::ZERO)).await.is_ok(),
            "the agent has ended"
        );
    }
}

/// A pod as the API server has it before it has an address.
pub(crate) fn pod(node: &str) -> Pod {
    Pod { node: node.into(), service_account: "default".into(), ..Pod::default() }
}

/// The addresses in an answer to an ADD.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

/// The host end of a pod's link.
pub(crate) fn link(container: &str) -> Key {
    Key::Link { ns: Netns::Host, link: link_name(container) }
}

pub(crate) fn link_name(container: &str) -> LinkName {
    tartan_datapath::pod::host_link(&tartan_model::Attachment::id_of(container, "eth0"))
}

/// A pool for every node and pod.
pub(crate) fn pool(cidr: &str, block_size: u8) -> Object {
    Object::Pool(
        Pool {
            name: "all".into(),
            cidr: cidr.parse().unwrap(),
            block_size,
            nodes: Selector::all(),
            namespaces: Selector::all(),
            disabled: false,
            encapsulation: None,
        }
        .into(),
    )
}

/// The namespace of a container.
pub(crate) fn netns(container: &str) -> PodNetns {
    let ino = container.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
    PodNetns { dev: 4, ino, path: format!("/run/netns/{container}").into() }
}

/// A neighbour entry on the host end of a pod's link.
pub(crate) fn neighbour(state: &State, container: &str) -> Key {
    let is_it = |key: &&Key| matches!(key, Key::Neigh { ns: Netns::Host, link, .. } if *link == link_name(container));
    state.iter().map(|(key, _)| key).find(is_it).unwrap().clone()
}

pub(crate) fn request(command: Command, container: &str) -> CniRequest {
    let PodNetns { dev, ino, path } = netns(container);
    CniRequest {
        command,
        version: Version::NEWEST,
        container: container.into(),
        ifname: "eth0".into(),
        netns: Some(NetnsFile { path: path.to_string(), dev, ino }),
        pod: PodName { namespace: NAMESPACE.into(), name: container.into(), uid: String::new() },
        netconf: serde_json::from_value(json!({"cniVersion": "1.1.0", "name": "tartan", "type": "tartan-cni"}))
            .unwrap(),
        given: None,
    }
}

fn host() -> Host {
    let uplink = HostLink {
        name: "eth0".into(),
        kind: "veth".into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec!["172.30.0.1/24".parse().unwrap()],
        accept_ra: 0,
    };
    let via = Some("172.30.0.254".parse().unwrap());
    let default = DefaultRoute { v6: false, link: "eth0".into(), via, metric: 0 };
    Host { links: vec![uplink], default_routes: vec![default], ..Host::default() }
}
