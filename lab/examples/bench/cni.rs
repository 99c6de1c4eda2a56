//! CNI plugins called as a runtime calls them: ours on a node with its agent, stock ones on a node without.
//!
//! Stock plugins get IPv4 only and ours both families: `ptp` with IPv6 waits a second or more for duplicate address
//! detection, and beside that any ratio would look good. Each ADD finds a namespace without an interface; what a plugin
//! leaves for later (deleting links) is waited for between two bursts, outside every clock.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Attachment, Lab, Netns, Network, Node, Verb, cni_args};

use crate::scale::PEERS;
use crate::{PATIENCE, Series, Subject, binaries, ms, scale, unknown};

/// Where Debian puts the stock plugins.
const DEBIAN: &str = "/usr/lib/cni";
/// The newest version Debian's know.
const STOCK_VERSION: &str = "1.0.0";
/// Containers attached at one time: the most that one burst wants.
const CONTAINERS: usize = 20;
const PARALLEL: usize = 16;
const IFNAME: &str = "eth0";

/// A node with our agent, one for stock plugins, and containers to attach.
pub(crate) struct Cni {
    lab: Lab,
    containers: Vec<Netns>,
    today: Option<PathBuf>,
    attached: AtomicU64,
}

/// Whose plugins, and with a port mapping or not.
struct Plan<'a> {
    node: &'a Node,
    network: Network,
    runtime_config: Map<String, Value>,
}

impl Cni {
    pub(crate) fn up(today: Option<PathBuf>) -> Result<Self> {
        // Hundreds of ADDs a minute would find every address of a /24 resting.
        let builder = Lab::builder("cni").nodes(2).pods_per_node(0).fabric("vxlan").config("cooldownSeconds", json!(1));
        let lab = builder.binaries(binaries()?).build()?;
        let node = lab.node("n1")?;
        // Known long before any clock runs, as on a node whose API server keeps up.
        (0..CONTAINERS).try_for_each(|number| lab.announce_pod("n1", &pod(number)))?;
        node.start_agent()?;
        node.wait_ready()?;
        let name = |number| format!("{}c{number}", lab.facts().prefix());
        let containers = (0..CONTAINERS).map(|number| Netns::create(&name(number))).collect::<Result<_>>()?;
        Ok(Self { lab, containers, today, attached: AtomicU64::new(0) })
    }
}

impl Subject for Cni {
    /// `seq PLUGINS COUNT`, `par PLUGINS BURSTS`: ADD and DEL times in ms, and processor time in ms of an ADD and its
    /// DEL together, the agent's included. `fill`: 5,000 nodes into the store. `relist COUNT`: as `seq ours` while the
    /// agent lists them again and again.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        match question {
            ["seq", plugins, count] => self.bursts(plugins, 1, count.parse()?),
            ["par", plugins, bursts] => self.bursts(plugins, PARALLEL, bursts.parse()?),
            ["fill"] => {
                scale::fill(&self.lab)?;
                scale::wait_for_peers(self.lab.node("n1")?)?;
                Ok(vec![vec![f64::from(PEERS)]])
            }
            ["relist", count] => {
                let count = count.parse()?;
                let (series, relists) = scale::while_relisting(&self.lab, || self.bursts("ours", 1, count))?;
                ensure!(relists > 0, "no relist ended while ADDs ran");
                Ok(series)
            }
            _ => Err(unknown(question)),
        }
    }
}

impl Cni {
    fn bursts(&self, plugins: &str, width: usize, count: usize) -> Result<Series> {
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        let before = self.processor_time()?;
        for _ in 0..count {
            let burst: Vec<Attachment> = (0..width).map(|number| self.attachment(number)).collect();
            let plan = self.plan(plugins)?;
            let (add, del) = plan.burst(&burst)?;
            adds.extend(add);
            dels.extend(del);
            self.wait_until_gone(width)?;
        }
        let spent = self.processor_time()? - before;
        Ok(vec![adds.clone(), dels, vec![ms(spent) / adds.len() as f64]])
    }

    /// A container that no plugin has seen, in one of the namespaces.
    fn attachment(&self, number: usize) -> Attachment {
        let container = format!("c{}", self.attached.fetch_add(1, Ordering::Relaxed));
        Attachment {
            args: cni_args(&pod(number)),
            container,
            netns: self.containers[number].path(),
            ifname: IFNAME.into(),
            runtime_config: Map::new(),
        }
    }

    fn plan(&self, plugins: &str) -> Result<Plan<'_>> {
        let (plugins, mapped) = plugins.strip_suffix("+port").map_or((plugins, false), |plugins| (plugins, true));
        let (ours, stock) = (self.lab.node("n1")?, self.lab.node("n2")?);
        let stock_plan =
            |path: PathBuf| Plan { node: stock, network: self.stock(path, mapped), runtime_config: ports(mapped) };
        match plugins {
            "ours" => {
                let network = Network::tartan(ours, &binaries()?.cni)?;
                Ok(Plan { node: ours, network, runtime_config: ports(mapped) })
            }
            "debian" => Ok(stock_plan(DEBIAN.into())),
            "today" => Ok(stock_plan(self.today.clone().context("no folder with today's plugins was named")?)),
            other => Err(unknown(&[other])),
        }
    }

    fn stock(&self, path: PathBuf, mapped: bool) -> Network {
        let data = self.lab.facts().dir.join("host-local");
        let range = json!([[{"subnet": "10.99.0.0/16"}]]);
        let ipam = json!({"type": "host-local", "dataDir": data, "ranges": range, "routes": [{"dst": "0.0.0.0/0"}]});
        let mut plugins = vec![json!({"cniVersion": STOCK_VERSION, "type": "ptp", "ipam": ipam})];
        if mapped {
            let capabilities = json!({"portMappings": true});
            plugins.push(json!({"cniVersion": STOCK_VERSION, "type": "portmap", "capabilities": capabilities}));
        }
        Network { name: "stock".into(), path: vec![path], plugins }
    }

    fn wait_until_gone(&self, width: usize) -> Result<()> {
        let gone = |netns: &Netns| netns.run(|| if_nametoindex(IFNAME).is_err()).unwrap_or(false);
        let all_gone = || self.containers[..width].iter().all(gone);
        wait_for(PATIENCE, "the interfaces of deleted containers to be gone", all_gone)?;
        // A link is out of sight before the kernel is done with it, and until then holds the lock that a change needs.
        self.containers[0].ip("link set lo up\n")
    }

    /// Of all plugins that ended, what they started included, and of our agent.
    fn processor_time(&self) -> Result<Duration> {
        let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let plugins = duration(children.user_time()) + duration(children.system_time());
        Ok(plugins + self.lab.node("n1")?.agent_cpu()?)
    }
}

/// A namespace's pod: its containers come one after the other.
fn pod(number: usize) -> String {
    format!("p{number}")
}

fn ports(mapped: bool) -> Map<String, Value> {
    let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    if mapped { Map::from_iter([("portMappings".into(), mapping)]) } else { Map::new() }
}

fn duration(time: TimeVal) -> Duration {
    Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
}

impl Plan<'_> {
    /// All at once: every ADD, then every DEL. Their times in ms.
    fn burst(&self, attachments: &[Attachment]) -> Result<(Vec<f64>, Vec<f64>)> {
        let added = self.at_once(attachments, |at| self.add(at));
        let deleted = self.at_once(attachments, |at| self.del(at));
        Ok((added?, deleted?))
    }

    fn at_once(
        &self,
        attachments: &[Attachment],
        call: impl Fn(&Attachment) -> Result<Duration> + Sync,
    ) -> Result<Vec<f64>> {
        std::thread::scope(|scope| {
            let calls: Vec<_> = attachments.iter().map(|at| scope.spawn(|| call(at))).collect();
            let times =
                calls.into_iter().map(|call| call.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            times.map(|time| Ok(ms(time?))).collect()
        })
    }

    fn add(&self, at: &Attachment) -> Result<Duration> {
        let at = Attachment { runtime_config: self.runtime_config.clone(), ..at.clone() };
        let (mut previous, mut time) = (None, Duration::ZERO);
        for plugin in &self.network.plugins {
            let answer = self.network.call(self.node, plugin, Verb::Add, Some(&at), previous.as_ref())?;
            previous = Some(answer.result().with_context(|| format!("ADD by {}", plugin["type"]))?);
            time += answer.elapsed;
        }
        Ok(time)
    }

    fn del(&self, at: &Attachment) -> Result<Duration> {
        let at = Attachment { runtime_config: self.runtime_config.clone(), ..at.clone() };
        let mut time = Duration::ZERO;
        for plugin in self.network.plugins.iter().rev() {
            let answer = self.network.call(self.node, plugin, Verb::Del, Some(&at), None)?;
            answer.result().with_context(|| format!("DEL by {}", plugin["type"]))?;
            time += answer.elapsed;
        }
        Ok(time)
    }
}
