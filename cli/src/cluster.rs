//! `tartan status --cluster`: all nodes, by what the store holds of them; no agent is asked.
//!
//! Invariant: an agent is alive if it gives a sign of life while it is listened for, and not by what a clock says: clocks
//! of nodes are never compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tartan_agent::{publish, status};
use tartan_api::kinds;
use tartan_api::status::{AgentState, Cluster, ClusterNode, ClusterPool};
use tartan_model::{Block, Condition, Config, Kind, Node, NodeNetwork, Object, ObjectId, Pool, StoreEvent};
use tartan_store::{BoxStream, Store};
use tokio::time::timeout;

use crate::output::{self, Format, table};

const KINDS: [Kind; 5] = [Kind::Node, Kind::NodeNetwork, Kind::NetworkConfig, Kind::IpPool, Kind::IpBlock];
/// How long the store may take to be listed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct From {
    /// With --cluster: boot file (YAML), which names the store
    #[arg(long, default_value = "/etc/tartan/boot.yaml", requires = "cluster")]
    config: PathBuf,
    /// With --cluster: the store, in place of the boot file's: kubernetes:/path/of/kubeconfig
    #[arg(long, requires = "cluster")]
    store: Option<String>,
}

/// What has been heard so far.
#[derive(Default)]
struct Heard {
    listed: BTreeSet<Kind>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    networks: BTreeMap<Arc<str>, NodeNetwork>,
    /// Whose sign of life has changed since it was first seen.
    alive: BTreeSet<Arc<str>>,
    pools: BTreeMap<Arc<str>, Arc<Pool>>,
    blocks: BTreeMap<Arc<str>, Arc<Block>>,
    config: Arc<Config>,
    unreadable: BTreeMap<ObjectId, Condition>,
    away: String,
}

/// Prints what the store holds of all nodes.
pub(crate) fn run(from: &From, format: Format) -> Result<ExitCode> {
    let url = match &from.store {
        Some(store) => store.clone(),
        None => boot_store(&from.config)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = runtime.block_on(async { listen(&*tartan_agent::open_store(&url)?).await })?;
    output::print(format, &cluster, text)?;
    Ok(ExitCode::SUCCESS)
}

fn boot_store(config: &Path) -> Result<String> {
    let boot = crate::agent::read(config).context("name the cluster with --store kubernetes:/path/of/kubeconfig")?;
    Ok(boot.store)
}

/// Until all is listed, and then until each agent has given a sign of life or should have.
async fn listen(store: &dyn Store) -> Result<Cluster> {
    let mut events = store.watch(&KINDS);
    let mut heard = Heard::default();
    let listed = timeout(PATIENCE, heard.until(&mut events, |heard| heard.listed.len() == KINDS.len())).await;
    if listed.is_err() {
        let why = if heard.away.is_empty() { "it does not tell all that it holds" } else { &heard.away };
        bail!("the store gave no answer within {} s: {why}", PATIENCE.as_secs());
    }
    // A beat, and half of one for one that is late.
    let beat = publish::beat(heard.config.lease) * 3 / 2;
    let all = |heard: &Heard| heard.networks.keys().all(|name| heard.alive.contains(name));
    let _some_are_silent = timeout(beat, heard.until(&mut events, all)).await;
    Ok(heard.cluster())
}

// === impl Heard ===

impl Heard {
    async fn until(&mut self, events: &mut BoxStream<'static, StoreEvent>, enough: impl Fn(&Heard) -> bool) {
        while !enough(self) {
            match poll_fn(|context| events.as_mut().poll_next(context)).await {
                Some(event) => self.take(event),
                None => return,
            }
        }
    }

    fn take(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Put(id, object, _) => self.put(id, object),
            StoreEvent::Delete(id) => self.delete(&id),
            StoreEvent::Synced(kind) => drop(self.listed.insert(kind)),
            StoreEvent::Invalid(id, condition) => drop(self.unreadable.insert(id, *condition)),
            StoreEvent::Moment(events) => events.into_iter().for_each(|event| self.take(event)),
            StoreEvent::Away(_, why) => self.away = why,
            // What a list within these seconds would leave out was there a moment ago.
            StoreEvent::Init(_) | StoreEvent::Notice(..) => {}
        }
    }

    fn put(&mut self, id: ObjectId, object: Object) {
        self.unreadable.remove(&id);
        match object {
            Object::Node(node) => drop(self.nodes.insert(id.name, node)),
            Object::NodeNetwork(network) => {
                let beat = network.advert.heartbeat;
                let before = self.networks.insert(id.name.clone(), network);
                if before.is_some_and(|before| before.advert.heartbeat != beat) {
                    self.alive.insert(id.name);
                }
            }
            Object::Config(config) => self.config = config,
            Object::Pool(pool) => drop(self.pools.insert(id.name, pool)),
            Object::Block(block) => drop(self.blocks.insert(id.name, block)),
            Object::Reservation(_) | Object::Namespace(_) | Object::Pod(_) | Object::Policy(_) | Object::Flannel(_) => {
            }
        }
    }

    fn delete(&mut self, id: &ObjectId) {
        self.unreadable.remove(id);
        match id.kind {
            Kind::Node => drop(self.nodes.remove(&id.name)),
            Kind::NodeNetwork => drop(self.networks.remove(&id.name)),
            Kind::IpPool => drop(self.pools.remove(&id.name)),
            Kind::IpBlock => drop(self.blocks.remove(&id.name)),
            _ => {}
        }
    }

    fn cluster(&self) -> Cluster {
        let names: BTreeSet<&Arc<str>> = self.nodes.keys().chain(self.networks.keys()).collect();
        Cluster {
            fabric: self.config.fabric.to_string(),
            policy: self.config.policy.to_string(),
            nodes: names.into_iter().map(|name| self.node(name)).collect(),
            pools: self.pools.values().map(|pool| self.pool(pool)).collect(),
            conditions: self.unreadable.values().map(status::condition).collect(),
        }
    }

    fn node(&self, name: &Arc<str>) -> ClusterNode {
        let node = ClusterNode { node: name.to_string(), agent: self.state(name), ..ClusterNode::default() };
        let Some(NodeNetwork { advert, conditions, version }) = self.networks.get(name) else { return node };
        ClusterNode {
            version: version.to_string(),
            addresses: advert.addresses.iter().map(|(_, ip)| ip.to_string()).collect(),
            receives: advert.accepts.iter().map(|end| end.instance.to_string()).collect(),
            sends: advert.sends.iter().map(ToString::to_string).collect(),
            mtu: advert.mtu,
            blocks: advert.blocks.iter().map(ToString::to_string).collect(),
            conditions: conditions.iter().map(tartan_store::decode::encode_condition).collect(),
            ..node
        }
    }

    fn state(&self, name: &Arc<str>) -> AgentState {
        match (self.nodes.get(name), self.networks.get(name)) {
            (_, None) => AgentState::None,
            (None, Some(_)) => AgentState::Leftover,
            _ if !self.alive.contains(name) => AgentState::Silent,
            (_, Some(network)) if network.advert.joining => AgentState::Joining,
            _ => AgentState::Alive,
        }
    }

    fn pool(&self, pool: &Pool) -> ClusterPool {
        ClusterPool {
            pool: pool.name.to_string(),
            cidr: pool.cidr.to_string(),
            block_size: pool.block_size,
            blocks: self.blocks.values().filter(|block| block.pool == pool.name).count() as u64,
            disabled: pool.disabled,
        }
    }
}

// --- as a person reads it ---

fn text(cluster: &Cluster) -> String {
    let mut text = String::new();
    let _infallible = write_all(&mut text, cluster);
    text
}

fn write_all(text: &mut String, cluster: &Cluster) -> std::fmt::Result {
    let Cluster { fabric, policy, nodes, pools, conditions } = cluster;
    writeln!(text, "Cluster   fabric {fabric}, policy {policy}, nodes {}, {}", nodes.len(), agents(nodes))?;
    for pool in pools {
        let ClusterPool { pool, cidr, block_size, blocks, disabled } = pool;
        let closed = if *disabled { ", disabled" } else { "" };
        writeln!(text, "Pool      {pool} {cidr}: {blocks} blocks of /{block_size} claimed{closed}")?;
    }
    if pools.is_empty() {
        writeln!(text, "Pools     none: pods have addresses of their node's podCIDRs")?;
    }
    let head = ["NODE", "AGENT", "VERSION", "READY", "ADDRESSES", "RECEIVES", "MTU", "BLOCKS"];
    writeln!(text, "\n{}", table(&head, &nodes.iter().map(row).collect::<Vec<_>>()))?;
    for node in nodes {
        if let Some(what) = to_do(node) {
            writeln!(text, "\n{}: {what}", node.node)?;
        }
        // That it is not ready stands in the table, and why in the others.
        let alone = node.conditions.len() == 1;
        let is_told = |it: &&kinds::Condition| if it.kind == "Ready" { alone && it.status != "True" } else { true };
        for condition in node.conditions.iter().filter(is_told) {
            let kinds::Condition { kind, status, reason, message, last_transition_time, .. } = condition;
            let what = if kind == "Ready" { format!("not ready ({status}): {reason}") } else { reason.clone() };
            writeln!(text, "\n{}: {what}, since {last_transition_time}\n  {message}", node.node)?;
        }
    }
    for condition in conditions {
        let what = format!("{}: {} {}", condition.reason, condition.about, condition.field);
        writeln!(text, "\n{}\n  {}\n  Fix: {}", what.trim_end(), condition.message, condition.fix)?;
    }
    Ok(())
}

fn agents(nodes: &[ClusterNode]) -> String {
    let mut counts = BTreeMap::new();
    nodes.iter().for_each(|node| *counts.entry(node.agent).or_insert(0) += 1);
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {}", word(state))).collect();
    if counts.is_empty() { "no agent".into() } else { format!("agents: {}", counts.join(", ")) }
}

fn word(state: AgentState) -> &'static str {
    match state {
        AgentState::Alive => "alive",
        AgentState::Joining => "joining",
        AgentState::Silent => "silent",
        AgentState::None => "none",
        AgentState::Leftover => "leftover",
    }
}

fn row(node: &ClusterNode) -> Vec<String> {
    let ready = node.conditions.iter().find(|it| it.kind == "Ready").map_or("-", |it| &it.status);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        node.node.clone(),
        word(node.agent).into(),
        or_dash(node.version.clone()),
        ready.to_owned(),
        or_dash(node.addresses.join(", ")),
        or_dash(node.receives.join(", ")),
        if node.mtu == 0 { "-".into() } else { node.mtu.to_string() },
        or_dash(node.blocks.join(", ")),
    ]
}

fn to_do(node: &ClusterNode) -> Option<String> {
    let pod = format!("kubectl --namespace tartan-system get pods --field-selector spec.nodeName={}", node.node);
    match node.agent {
        AgentState::Alive | AgentState::Joining => None,
        AgentState::Silent => {
            Some(format!("its agent gave no sign of life; packets go on, changes do not reach it\n  Fix: {pod}"))
        }
        AgentState::None => Some(format!("no agent has ever run on it: pods there have no network\n  Fix: {pod}")),
        AgentState::Leftover => {
            Some("there is no such Node any more; `tartan operator` removes what is left of it".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use tartan_store::decode;

    use super::*;

    const OBJECTS: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1, uid: u1}
---
apiVersion: v1
kind: Node
metadata: {name: n2, uid: u2}
---
apiVersion: v1
kind: Node
metadata: {name: n3, uid: u3}
---
apiVersion: tartan.dev/v1alpha1
kind: NodeNetwork
metadata: {name: n1}
spec:
  nodeUid: u1
  version: 1.2.3
  addresses: [172.30.0.1, 'fd30::1']
  blocks: [10.244.1.0/24]
  mtu: 1450
  accepts: [{instance: vxlan/ipv4/vni1/port8472, address: 172.30.0.1, mac: '02:00:00:00:00:01'}]
  sends: [vxlan/ipv4/vni1/port8472]
  heartbeat: 7
status: {conditions: [{type: Ready, status: 'True', reason: AllProgrammed, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}]}
---
apiVersion: tartan.dev/v1alpha1
kind: NodeNetwork
metadata: {name: n2}
spec: {nodeUid: u2, mtu: 1450, heartbeat: 3}
status:
  conditions:
  - {type: Ready, status: 'False', reason: PeerOffLink, message: see the conditions PeerOffLink, lastTransitionTime: '2026-01-01T00:00:00Z'}
  - {type: PeerOffLink, status: 'True', reason: PeerOffLink, message: n1 is behind a router, lastTransitionTime: '2026-01-01T00:00:00Z'}
---
apiVersion: tartan.dev/v1alpha1
kind: NodeNetwork
metadata: {name: gone}
spec: {nodeUid: u9, mtu: 1450, heartbeat: 1}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.244.0.0/16, blockSize: 24}
";

    const TEXT: &str = "\
Cluster   fabric vxlan, policy enforce, nodes 4, agents: 1 alive, 1 silent, 1 none, 1 leftover
Pool      default 10.244.0.0/16: 0 blocks of /24 claimed

NODE  AGENT     VERSION  READY  ADDRESSES            RECEIVES                  MTU   BLOCKS
gone  leftover  -        -      -                    -                         1450  -
n1    alive     1.2.3    True   172.30.0.1, fd30::1  vxlan/ipv4/vni1/port8472  1450  10.244.1.0/24
n2    silent    -        False  -                    -                         1450  -
n3    none      -        -      -                    -                         -     -

gone: there is no such Node any more; `tartan operator` removes what is left of it

n2: its agent gave no sign of life; packets go on, changes do not reach it
  Fix: kubectl --namespace tartan-system get pods --field-selector spec.nodeName=n2

n2: PeerOffLink, since 2026-01-01T00:00:00Z
  n1 is behind a router

n3: no agent has ever run on it: pods there have no network
  Fix: kubectl --namespace tartan-system get pods --field-selector spec.nodeName=n3
";

    fn put(heard: &mut Heard, text: &str) {
        for document in decode::documents("test", text) {
            let document = document.unwrap_or_else(|refused| panic!("{}", refused.condition.message));
            let revision = decode::revision(&document.id, &document.object);
            heard.take(StoreEvent::Put(document.id, document.object, revision));
        }
    }

    #[test]
    fn who_beats_while_we_listen_is_alive_and_the_rest_comes_with_what_to_do() {
        let mut heard = Heard::default();
        put(&mut heard, OBJECTS);
        assert!(heard.cluster().nodes.iter().all(|node| node.agent != AgentState::Alive), "nobody has beaten yet");
        put(&mut heard, OBJECTS);
        assert!(heard.alive.is_empty(), "the same word again is no sign of life");
        put(&mut heard, &OBJECTS.replace("heartbeat: 7", "heartbeat: 8"));
        assert_eq!(text(&heard.cluster()), TEXT);
    }
}
