//! Many nodes on one machine, in network namespaces: real agents, the real CNI binary, a network between the nodes
//! that can be broken on purpose, and probes that count what it cost.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = tartan_lab::Lab::builder("demo").nodes(3).pods_per_node(2).fabric("vxlan").up()?;
//! lab.matrix()?.check()?;
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: everything a lab makes carries its name and the holder's pid (`tt-NAME-PID-…`, `/run/tartan-lab/NAME-PID`);
//! no packet leaves its namespaces; it is removed when the `Lab` is dropped, and by the next lab if its holder died.

mod binaries;
mod cgroups;
mod cleanup;
mod cni;
mod echo;
mod facts;
mod netns;
mod node;
mod pod;
pub mod probe;
mod relay;
mod scenario;
mod signals;
mod sockopt;
mod underlay;
mod watch;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

pub use binaries::Binaries;
pub use cgroups::Hierarchy;
pub use cleanup::{Census, Difference, down, remove, remove_leftovers};
pub use cni::{Answer, Attachment, CNI_VERSION, Network, Verb};
pub use echo::{ECHO_PORT, Echo, HTTP_PORT};
pub use facts::{Facts, LAB_DIR, Member};
pub use netns::{Endpoint, Family, NETNS_DIR, Netns, Place};
pub use node::{NFT_LISTING, Node, cpu_of, cpu_of_all};
pub use pod::{NAMESPACE, Pod, cni_args};
pub use relay::Relay;
pub use scenario::Scenario;
pub use signals::{Asked, Signals};
pub use underlay::{Kind as Underlay, Seat, Underlay as UnderlayControl};
pub use watch::Seen;

/// A lab to be.
#[derive(Debug, Clone)]
pub struct Builder {
    scenario: Scenario,
    binaries: Option<Binaries>,
}

/// A running lab. Dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    // In this order they go: echo servers, agents, then (in Drop) all that carries the lab's name.
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    underlay: UnderlayControl,
    outside: Option<Echo>,
    scenario: Scenario,
    binaries: Option<Binaries>,
    facts: Facts,
}

// === impl Builder ===

impl Builder {
    /// How many nodes.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.scenario.nodes = nodes;
        self
    }

    /// How many pods on each node.
    pub fn pods_per_node(mut self, pods: u8) -> Self {
        self.scenario.pods_per_node = pods;
        self
    }

    /// How the nodes hang together.
    pub fn underlay(mut self, kind: Underlay) -> Self {
        self.scenario.underlay = kind;
        self
    }

    /// The fabric, by its name in NetworkConfig.
    pub fn fabric(self, fabric: &str) -> Self {
        self.config("fabric", fabric.into())
    }

    /// Any key of NetworkConfig's spec.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.scenario.config.insert(key.to_owned(), value);
        self
    }

    /// The programs to run; by default those beside this program.
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// Nodes, underlay and store, but no agent and no pod.
    pub fn build(self) -> Result<Lab> {
        self.scenario.check()?;
        for leftover in cleanup::remove_leftovers()? {
            eprintln!("lab: removed the leftovers of lab {leftover}, whose process is gone");
        }
        let facts = Facts::claim(&self.scenario.name)?;
        Lab::create(self.scenario, self.binaries, facts.clone()).inspect_err(|_| {
            // The error that matters is the one that led here.
            let _ = cleanup::remove(&facts);
        })
    }

    /// The whole lab: agents ready, pods attached.
    pub fn up(mut self) -> Result<Lab> {
        if self.binaries.is_none() {
            self.binaries = Some(Binaries::beside_this_program()?);
        }
        let mut lab = self.build()?;
        lab.start_agents()?;
        for number in 1..=lab.scenario.nodes {
            for pod in lab.scenario.pod_names(number) {
                lab.add_pod(&format!("n{number}"), &pod)?;
            }
        }
        Ok(lab)
    }
}

// === impl Lab ===

impl Lab {
    /// Three nodes with two pods each on one L2, unless said otherwise.
    pub fn builder(name: &str) -> Builder {
        Builder { scenario: Scenario::named(name), binaries: None }
    }

    /// The lab a YAML scenario describes.
    pub fn from_yaml(text: &str) -> Result<Builder> {
        Ok(Builder { scenario: Scenario::from_yaml(text)?, binaries: None })
    }

    fn create(scenario: Scenario, binaries: Option<Binaries>, facts: Facts) -> Result<Self> {
        let prefix = facts.prefix();
        let underlay = UnderlayControl::create(scenario.underlay, &format!("{prefix}underlay"))?;
        let store = facts.dir.join("store");
        fs::create_dir(&store)?;
        let tartan = binaries.as_ref().map_or_else(|| PathBuf::from("tartan"), |b| b.tartan.clone());
        let mut nodes = Vec::new();
        for number in 1..=scenario.nodes {
            let netns = format!("{prefix}n{number}");
            nodes.push(Node::create(number, &netns, &underlay, &facts.dir, &store, &tartan)?);
        }
        let outside = Some(Echo::serve(underlay.netns(), "outside")?);
        let mut lab = Self { pods: Vec::new(), nodes, underlay, outside, scenario, binaries, facts };
        for node in &lab.nodes {
            lab.put(&node.object())?;
        }
        lab.write_config(&lab.scenario.config)?;
        lab.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))?;
        lab.note_members()?;
        Ok(lab)
    }

    /// What it was built from; its config is what the lab itself last wrote.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The agent's program in another file, so another one to whoever tells programs apart: to upgrade to.
    pub fn another_program(&self, name: &str) -> Result<PathBuf> {
        let (program, another) =
            (&self.binaries.as_ref().context("a lab with agents")?.tartan, self.facts.dir.join(name));
        // What runs cannot be written to.
        let _none = fs::remove_file(&another);
        fs::copy(program, &another).with_context(|| format!("copying {}", program.display()))?;
        Ok(another)
    }

    /// What other processes know of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The network between the nodes, and the ways to break it.
    pub fn underlay(&self) -> &UnderlayControl {
        &self.underlay
    }

    /// All nodes, n1 first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.name() == name).ok_or_else(|| anyhow!("this lab has no node {name:?}"))
    }

    /// All pods, in the order they were made.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The pod of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.iter().find(|p| p.name() == name).ok_or_else(|| anyhow!("this lab has no pod {name:?}"))
    }

    /// Where a probe from or to `name` (a pod, a node or `outside`) runs.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint> {
        let pods = self.pods.iter().map(Pod::endpoint);
        let mut all = pods.chain(self.nodes.iter().map(Node::endpoint)).chain([self.underlay.outside()]);
        all.find(|e| e.name == name).ok_or_else(|| anyhow!("this lab has no pod or node {name:?}"))
    }

    /// All pods, for a matrix or load.
    pub fn pod_endpoints(&self) -> Vec<Endpoint> {
        self.pods.iter().map(Pod::endpoint).collect()
    }

    // --- agents ---

    /// Starts every agent and waits until all are ready.
    pub fn start_agents(&self) -> Result<()> {
        for node in &self.nodes {
            node.start_agent()?;
        }
        self.nodes.iter().try_for_each(|node| node.wait_ready().map(drop))
    }

    // --- the store all nodes share ---

    /// The directory the agents' file store reads.
    pub fn store_dir(&self) -> PathBuf {
        self.facts.dir.join("store")
    }

    /// Writes one object, replacing it whole.
    pub fn put(&self, object: &Value) -> Result<()> {
        facts::write_atomically(&self.object_file(object)?, serde_yaml_ng::to_string(object)?.as_bytes())
    }

    /// Reads one object, as the agents or the lab last wrote it.
    pub fn get(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let file = self.store_dir().join(format!("{}.{name}.yaml", kind.to_lowercase()));
        match fs::read(&file) {
            Ok(text) => {
                Ok(Some(serde_yaml_ng::from_slice(&text).with_context(|| format!("reading {}", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.store_dir().exists() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }

    /// Removes one object.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let file = self.object_file(object)?;
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }

    /// Changes keys of NetworkConfig `default`; the others stay. A null removes a key.
    pub fn set_config(&mut self, changes: &Map<String, Value>) -> Result<()> {
        let now = self.get("NetworkConfig", "default")?.unwrap_or_default();
        let mut spec = now["spec"].as_object().cloned().unwrap_or_default();
        for (key, value) in changes {
            match value {
                Value::Null => spec.remove(key),
                value => spec.insert(key.clone(), value.clone()),
            };
        }
        self.write_config(&spec)?;
        self.scenario.config = spec;
        Ok(())
    }

    /// Changes the fabric.
    pub fn set_fabric(&mut self, fabric: &str) -> Result<()> {
        self.set_config(&Map::from_iter([("fabric".to_owned(), fabric.into())]))
    }

    /// Changes the fabric; n1 hears of it at once, and every other node so much later than the one before it.
    pub fn set_fabric_apart(&mut self, fabric: &str, apart: Duration) -> Result<()> {
        if apart.is_zero() {
            return self.set_fabric(fabric);
        }
        // A stopped agent is one that has not heard yet; its kernel goes on.
        self.nodes.iter().skip(1).try_for_each(Node::pause_agent)?;
        self.set_fabric(fabric)?;
        for late in self.nodes.iter().skip(1) {
            probe::let_pass(apart)?;
            late.resume_agent()?;
        }
        Ok(())
    }

    /// Whether every agent says that it has programmed everything and uses `fabric` towards all its peers.
    pub fn is_steady(&self, fabric: &str) -> bool {
        let by_it = |peer: &Value| peer["fabric"].as_str().is_some_and(|by| by.starts_with(fabric));
        self.nodes.iter().all(|node| {
            node.status().is_ok_and(|status| {
                let peers = status["peers"].as_array().is_some_and(|peers| peers.iter().all(by_it));
                status["phase"] == "steady" && status["fabric"] == fabric && peers
            })
        })
    }

    /// Takes the store away: what an unreachable API server is to the agents.
    pub fn store_away(&self) -> Result<()> {
        fs::rename(self.store_dir(), self.store_dir().with_extension("away")).context("taking the store away")
    }

    /// Brings it back.
    pub fn store_back(&self) -> Result<()> {
        fs::rename(self.store_dir().with_extension("away"), self.store_dir()).context("bringing the store back")
    }

    fn write_config(&self, spec: &Map<String, Value>) -> Result<()> {
        self.put(&config_object(spec))
    }

    fn object_file(&self, object: &Value) -> Result<PathBuf> {
        let metadata = &object["metadata"];
        match (object["kind"].as_str(), metadata["name"].as_str()) {
            (Some(kind), Some(name)) => {
                let namespace = metadata["namespace"].as_str().map(|namespace| format!("{namespace}."));
                let namespace = namespace.unwrap_or_default();
                Ok(self.store_dir().join(format!("{}.{namespace}{name}.yaml", kind.to_lowercase())))
            }
            _ => bail!("an object needs kind and metadata.name: {object}"),
        }
    }

    // --- pods ---

    /// Makes a pod on a node through the real CNI binary.
    pub fn add_pod(&mut self, node: &str, pod: &str) -> Result<&Pod> {
        let binary = &self.binaries.as_ref().context("this lab was built without binaries")?.cni;
        let network = Network::tartan(self.node(node)?, binary)?;
        self.add_pod_by(network, node, pod, Map::new())
    }

    /// Makes a pod by any plugin list, with values for its capabilities.
    pub fn add_pod_by(
        &mut self,
        network: Network,
        node: &str,
        pod: &str,
        runtime_config: Map<String, Value>,
    ) -> Result<&Pod> {
        let netns = format!("{}{pod}", self.facts.prefix());
        let node = self.node(node)?;
        // While the store is away, a pod can only start that was announced before.
        let store_is_there = self.store_dir().exists();
        if store_is_there {
            self.announce_pod(node.name(), pod)?;
        }
        let new = Pod::create(pod, &netns, node, network, runtime_config).with_context(|| node.troubleshooting())?;
        let Endpoint { v4, v6, .. } = new.endpoint();
        if store_is_there {
            self.put_pod(node.name(), pod, &[], &[v4.into(), v6.into()])?;
        }
        self.pods.push(new);
        self.note_members()?;
        self.pod(pod)
    }

    /// Writes the Pod that a kubelet is about to start on that node.
    pub fn announce_pod(&self, node: &str, pod: &str) -> Result<()> {
        self.put_pod(node, pod, &[], &[])
    }

    /// Deletes the Pod of one that a kubelet has ended.
    pub fn withdraw_pod(&self, node: &str, pod: &str) -> Result<()> {
        self.delete(&pod::object(pod, node, &[], &[]))
    }

    /// Writes a Pod as an API server has it, with labels besides its name.
    pub fn put_pod(&self, node: &str, pod: &str, labels: &[(&str, &str)], addresses: &[IpAddr]) -> Result<()> {
        self.put(&pod::object(pod, node, labels, addresses))
    }

    /// Gives a pod labels besides its name, in place of those it was given before.
    pub fn label_pod(&self, pod: &str, labels: &[(&str, &str)]) -> Result<()> {
        let Endpoint { v4, v6, .. } = self.pod(pod)?.endpoint();
        self.put_pod(self.pod(pod)?.node(), pod, labels, &[v4.into(), v6.into()])
    }

    /// DEL, the namespace, and then its object, as a kubelet does.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let index = self.pods.iter().position(|p| p.name() == pod).with_context(|| format!("no pod {pod:?}"))?;
        let pod = self.pods.remove(index);
        let (node, name) = (pod.node().to_owned(), pod.name().to_owned());
        pod.remove(self.node(&node)?)?;
        self.withdraw_pod(&node, &name)?;
        self.note_members()
    }

    // --- probes ---

    /// Every pod to every other one: ping and HTTP, both families.
    pub fn matrix(&self) -> Result<probe::Matrix> {
        probe::matrix(&self.pod_endpoints())
    }

    /// Waits until the whole matrix is good. Routes to a pod's node may come a moment after the pod.
    pub fn wait_for_matrix(&self, deadline: Duration) -> Result<probe::Matrix> {
        let mut last = self.matrix()?;
        let good = || {
            let good = last.check().is_ok();
            if !good && let Ok(matrix) = self.matrix() {
                last = matrix;
            }
            good
        };
        let waited = probe::wait_for(deadline, "every pod to reach every other one", good);
        match waited {
            Ok(_) => Ok(last),
            Err(error) => Err(error).with_context(|| format!("{last}\n{}", self.troubleshooting())),
        }
    }

    /// How to enter each namespace, and the end of each agent's log.
    pub fn troubleshooting(&self) -> String {
        let pods = self.pods.iter().map(|p| format!("enter {}: {}", p.name(), p.netns().enter_command()));
        let underlay = format!("enter the underlay: {}", self.underlay.netns().enter_command());
        let nodes = self.nodes.iter().map(Node::troubleshooting);
        pods.chain([underlay]).chain(nodes).collect::<Vec<_>>().join("\n")
    }

    fn note_members(&mut self) -> Result<()> {
        let member =
            |e: Endpoint| Member { netns: e.netns.name().to_owned(), v4: e.v4, v6: e.v6, socket: None, node: None };
        let outside = self.underlay.outside();
        let nodes = self
            .nodes
            .iter()
            .map(|n| (n.name().to_owned(), Member { socket: Some(n.socket()), ..member(n.endpoint()) }));
        let pods = self
            .pods
            .iter()
            .map(|p| (p.name().to_owned(), Member { node: Some(p.node().to_owned()), ..member(p.endpoint()) }));
        self.facts.members = nodes.chain(pods).chain([(outside.name.clone(), member(outside))]).collect();
        self.facts.write()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("lab {} failed; what it looked like:\n{}", self.scenario.name, self.troubleshooting());
        }
        self.pods.clear();
        self.outside = None;
        self.nodes.clear();
        if let Err(error) = cleanup::remove(&self.facts) {
            eprintln!("lab: {error:#}");
        }
    }
}

fn config_object(spec: &Map<String, Value>) -> Value {
    json!({
        "apiVersion": "tartan.dev/v1alpha1",
        "kind": "NetworkConfig",
        "metadata": {"name": "default"},
        "spec": spec,
    })
}
