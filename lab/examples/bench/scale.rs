//! A cluster of 5,000 nodes, seen by one of them: what listing them costs it in memory, and others in waiting.
//!
//! The peers are objects in the store and nothing else; no packet is ever sent to them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Attachment, Lab, Netns, Network, Node, cni_args};

use crate::{PATIENCE, Series, Subject, binaries, unknown};

/// Nodes in the store beside the lab's own.
pub(crate) const PEERS: u16 = 5_000;
const PODS: u16 = 250;
/// Long enough that no peer, none of which gives a sign of life, runs out of its lease during a bench.
const LEASE_SECS: u32 = 24 * 3600;

/// One node of the lab with 250 pods, and 5,000 peers.
pub(crate) struct Scale {
    lab: Lab,
}

impl Scale {
    pub(crate) fn up() -> Result<Self> {
        let builder = Lab::builder("scale").nodes(1).pods_per_node(0).fabric("vxlan");
        let lab = builder.binaries(binaries()?).build()?;
        fill(&lab)?;
        let pod = |number: u16| format!("p{number}");
        (0..PODS).try_for_each(|number| lab.announce_pod("n1", &pod(number)))?;
        let node = lab.node("n1")?;
        node.start_agent()?;
        node.wait_ready()?;
        wait_for_peers(node)?;
        let network = Network::tartan(node, &binaries()?.cni)?;
        for number in 0..PODS {
            let container = format!("{}p{number}", lab.facts().prefix());
            let netns = Netns::create(&container)?.path();
            let runtime_config = Map::new();
            let args = cni_args(&pod(number));
            network.add(node, &Attachment { container, netns, ifname: "eth0".into(), args, runtime_config })?;
        }
        Ok(Self { lab })
    }
}

impl Subject for Scale {
    /// `rss`: MiB the agent has in memory now. `peak`: the most it had since its start. `relist`: lists all once more.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let node = self.lab.node("n1")?;
        let value = match question {
            ["rss"] => memory(node, "VmRSS")?,
            ["peak"] => memory(node, "VmHWM")?,
            ["relist"] => {
                relist(&self.lab)?;
                1.0
            }
            _ => return Err(unknown(question)),
        };
        Ok(vec![vec![value]])
    }
}

/// Writes the peers into the lab's store.
pub(crate) fn fill(lab: &Lab) -> Result<()> {
    let mut config = lab.scenario().config.clone();
    config.insert("leaseSeconds".into(), LEASE_SECS.into());
    let meta = json!({"name": "default"});
    lab.put(&json!({"apiVersion": "tartan.dev/v1alpha1", "kind": "NetworkConfig", "metadata": meta, "spec": config}))?;
    for number in 1..=PEERS {
        let peer = Peer(number);
        lab.put(&peer.advert())?;
        lab.put(&peer.node())?;
    }
    Ok(())
}

/// Waits until the node has a route to the last peer's pods.
pub(crate) fn wait_for_peers(node: &Node) -> Result<()> {
    wait_for_route(node, &Peer(PEERS), true)
}

/// Runs `work` while another thread makes the agent list the store and read the kernel again and again; gives how
/// often it did.
pub(crate) fn while_relisting<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let (done, relists) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let relisting = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                read_all(lab.node("n1")?)?;
                relist(lab)?;
                relists.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        relisting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((worked?, relists.load(Ordering::Relaxed)))
    })
}

/// Makes the agent list everything, twice, and waits for the end of each: the last peer's Node goes, and comes again,
/// behind a list in the one stream of events that a store is.
fn relist(lab: &Lab) -> Result<()> {
    let last = Peer(PEERS);
    for there in [false, true] {
        // A directory that was moved may be another one: the store lists it anew.
        lab.store_away()?;
        lab.store_back()?;
        if there {
            lab.put(&last.node())?;
        } else {
            lab.delete(&last.node())?;
        }
        wait_for_route(lab.node("n1")?, &last, there)?;
    }
    Ok(())
}

/// Makes the agent read all routes, neighbours and forwarding entries: somebody deletes one of them by hand.
fn read_all(node: &Node) -> Result<()> {
    let peer = Peer(1);
    let delete = format!(
        "dev=$(ip route get {} | grep -o 'dev ttx[^ ]*'); ip route del {}; ip neigh del {} $dev",
        peer.pod(),
        peer.ranges()[0],
        peer.range(1)
    );
    node.output(&["sh", "-c", &delete])?;
    wait_for_route(node, &peer, true)
}

fn wait_for_route(node: &Node, peer: &Peer, there: bool) -> Result<()> {
    let address = peer.pod();
    let routed = || node.output(&["ip", "route", "get", &address]).is_ok_and(|route| route.contains("dev ttx"));
    let what = format!("the route to {} to {}", peer.name(), if there { "come" } else { "go" });
    wait_for(PATIENCE, &what, || routed() == there).with_context(|| node.troubleshooting()).map(drop)
}

/// A line of /proc/PID/status, in MiB.
pub(crate) fn memory(node: &Node, line: &str) -> Result<f64> {
    let file = PathBuf::from(format!("/proc/{}/status", node.agent_pid()?));
    let status = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    let kib: f64 = value.with_context(|| format!("no {line} in {}", file.display()))?.trim().parse()?;
    Ok(kib / 1024.0)
}

/// A node that is only in the store.
struct Peer(u16);

impl Peer {
    fn bytes(&self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    fn name(&self) -> String {
        format!("p{}", self.0)
    }

    fn uid(&self) -> String {
        format!("00000000-0000-4000-9000-{:012}", self.0)
    }

    fn address(&self) -> String {
        let [high, low] = self.bytes();
        format!("172.29.{high}.{low}")
    }

    /// Inside 10.128.0.0/9, one /24 each; beside the lab's 10.244.0.0/16 as long as there are fewer than 116 · 256.
    fn range(&self, last: u8) -> String {
        let [high, low] = self.bytes();
        format!("10.{}.{low}.{last}", 128 + high)
    }

    fn pod(&self) -> String {
        self.range(2)
    }

    fn ranges(&self) -> [String; 2] {
        [format!("{}/24", self.range(0)), format!("fd00:20:{:x}::/64", self.0)]
    }

    fn node(&self) -> Value {
        let ranges = self.ranges();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name(), "uid": self.uid()},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": [{"type": "InternalIP", "address": self.address()}]},
        })
    }

    fn advert(&self) -> Value {
        let [high, low] = self.bytes();
        let instance = "vxlan/ipv4/vni1/port8472";
        let mac = format!("02:29:00:00:{high:02x}:{low:02x}");
        json!({
            "apiVersion": "tartan.dev/v1alpha1",
            "kind": "NodeNetwork",
            "metadata": {"name": self.name()},
            "spec": {
                "nodeUid": self.uid(),
                "addresses": [self.address()],
                "fabricAddresses": [self.range(1), format!("fd00:20:{:x}::1", self.0)],
                "blocks": self.ranges(),
                "mtu": 1450,
                "accepts": [{"instance": instance, "address": self.address(), "mac": mac}],
                "sends": [instance],
                "heartbeat": 1,
            },
        })
    }
}
