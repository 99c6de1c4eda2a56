//! Pods by the hundred, runtimes and agents that die: whatever happens in between, a node without pods is what it was
//! before its first one.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, census, wait_until_holds};
use serde_json::{Map, Value};
use tartan_lab::probe::{let_pass, wait_for};
use tartan_lab::{Answer, Attachment, Binaries, Lab, Netns, Network, Node, Verb, cni_args};

/// CNI's "try again later".
const TRY_LATER: u64 = 11;

/// A node without pods, its runtime, and what it held before the first call.
struct Runtime {
    lab: Lab,
    network: Network,
    before: String,
    /// Pods whose objects are in the store.
    announced: Mutex<BTreeSet<String>>,
}

/// Numbers nobody chose; the same for the same seed.
struct Random(u64);

impl Runtime {
    fn new(name: &str) -> Result<Self> {
        // Addresses are wanted again at once: the rest they are due would hide one that is given out twice.
        let builder = Lab::builder(name).nodes(1).pods_per_node(0).fabric("vxlan");
        let lab = builder.config("cooldownSeconds", 0.into()).up()?;
        let network = Network::tartan(lab.node("n1")?, &Binaries::beside_this_program()?.cni)?;
        let before = census(lab.node("n1")?)?;
        Ok(Self { lab, network, before, announced: Mutex::default() })
    }

    fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// A namespace, and the Pod of whoever is attached in it.
    fn netns(&self, name: &str) -> Result<Netns> {
        let name = format!("{}{name}", self.lab.facts().prefix());
        self.lab.announce_pod(self.node().name(), &name)?;
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Netns::create(&name)
    }

    fn call(&self, verb: Verb, at: &Attachment) -> Result<Answer> {
        self.network.call(self.node(), &self.network.plugins[0], verb, Some(at), None)
    }

    /// GC of a runtime that knows no pod.
    fn collect_garbage(&self) -> Result<Value> {
        let mut plugin = self.network.plugins[0].clone();
        plugin["cni.dev/valid-attachments"] = Value::Array(vec![]);
        self.network.call(self.node(), &plugin, Verb::Gc, None, None)?.result()
    }

    /// As a kubelet does: again while the plugin says "later".
    fn until_answered(&self, verb: Verb, at: &Attachment) -> Result<Value> {
        let start = Instant::now();
        loop {
            let answer = self.call(verb, at)?;
            if answer.status.success() || answer.error_code() != Some(TRY_LATER) || start.elapsed() > PATIENCE {
                return answer.result().with_context(|| format!("{} of {}", verb.as_str(), at.container));
            }
        }
    }

    /// No pod in the kernel, none in the journal, no DEL still to be carried out; also not for the next agent.
    fn check_nothing_left(&self) -> Result<()> {
        for pod in std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.lab.withdraw_pod(self.node().name(), &pod)?;
        }
        for _ in 0..2 {
            wait_until_holds(self.node(), &self.before)?;
            let status = self.node().status()?;
            ensure!(status["pods"] == Value::Array(vec![]), "{status:#}");
            ensure!(status["kernel"]["failures"] == Value::Array(vec![]), "{status:#}");
            let notes = self.node().state_dir().join("pending-del");
            let carried_out =
                || std::fs::read_dir(&notes).is_ok_and(|mut left| left.next().is_none()) || !notes.exists();
            wait_for(PATIENCE, "noted DELs to be carried out", carried_out)?;
            self.node().restart_agent()?;
        }
        Ok(())
    }
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Marsaglia's xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn attachment(container: String, netns: &Netns) -> Attachment {
    let args = cni_args(netns.name());
    Attachment { container, netns: netns.path(), ifname: "eth0".into(), args, runtime_config: Map::new() }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    ips.iter().filter_map(|ip| ip["address"].as_str()).map(str::to_owned).collect()
}

/// Pods of one worker, up to three at a time, each in a namespace that was used before.
fn attach_and_detach(runtime: &Runtime, worker: u64, pods: u64, shared: &Shared) -> Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (worker + 1));
    let netns: Vec<Netns> = (0..3).map(|n| runtime.netns(&format!("w{worker}x{n}"))).collect::<Result<_>>()?;
    let mut living: Vec<(Attachment, Vec<String>)> = Vec::new();
    for pod in 0..pods {
        if living.len() == netns.len() {
            let (at, addresses) = living.remove(0);
            shared.detach(runtime, at, &addresses, &mut random)?;
        }
        let free = netns.iter().find(|netns| living.iter().all(|(at, _)| at.netns != netns.path()));
        let at = attachment(format!("w{worker}p{pod}"), free.context("one of three is free")?);
        let addresses = addresses(&runtime.until_answered(Verb::Add, &at)?);
        shared.take(&addresses)?;
        living.push((at, addresses));
    }
    living.into_iter().try_for_each(|(at, addresses)| shared.detach(runtime, at, &addresses, &mut random))
}

/// What workers see of each other.
#[derive(Default)]
struct Shared {
    addresses: Mutex<BTreeSet<String>>,
    answered: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn take(&self, addresses: &[String]) -> Result<()> {
        ensure!(addresses.len() == 2, "one address of each family, not {addresses:?}");
        let mut taken = self.addresses.lock().expect("no holder panics");
        for address in addresses {
            ensure!(taken.insert(address.clone()), "{address} was given to two pods");
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn detach(&self, runtime: &Runtime, mut at: Attachment, addresses: &[String], random: &mut Random) -> Result<()> {
        // Given back as DEL begins: from then on another pod may have them.
        let mut taken = self.addresses.lock().expect("no holder panics");
        addresses.iter().for_each(|address| _ = taken.remove(address));
        drop(taken);
        if random.below(4) == 0 {
            // A runtime whose sandbox is gone already calls DEL without it. The link is in there still.
            at.netns = "".into();
        }
        runtime.until_answered(Verb::Del, &at)?;
        if random.below(4) == 0 {
            runtime.until_answered(Verb::Del, &at).context("DEL of what is gone already")?;
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Kills the agent, or stops it, each time some more calls have been answered. Returns how often.
fn harass(node: &Node, shared: &Shared) -> Result<u32> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut times = 0;
    loop {
        let next = shared.answered.load(Ordering::Relaxed) + 10 + random.below(40);
        let due = || shared.answered.load(Ordering::Relaxed) >= next || shared.over.load(Ordering::Relaxed);
        wait_for(PATIENCE, "calls to be answered", due)?;
        if shared.over.load(Ordering::Relaxed) {
            return Ok(times);
        }
        match random.below(3) {
            0 => drop(node.stop_agent()?),
            _ => node.kill_agent()?,
        }
        let_pass(Duration::from_millis(random.below(100)))?;
        node.start_agent()?;
        times += 1;
    }
}

fn churn(name: &str, workers: u64, pods: u64) -> Result<()> {
    let runtime = Runtime::new(name)?;
    let shared = Shared::default();
    let kills = std::thread::scope(|scope| {
        let harasser = scope.spawn(|| harass(runtime.node(), &shared));
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                let (runtime, shared) = (&runtime, &shared);
                scope.spawn(move || attach_and_detach(runtime, worker, pods, shared))
            })
            .collect();
        let ends: Vec<Result<()>> = workers.into_iter().map(|worker| worker.join().expect("a worker")).collect();
        shared.over.store(true, Ordering::Relaxed);
        let kills = harasser.join().expect("the harasser")?;
        ends.into_iter().collect::<Result<()>>().map(|()| kills)
    })
    .with_context(|| runtime.lab.troubleshooting())?;
    ensure!(kills >= 3, "the agent was killed only {kills} times");
    runtime.node().wait_ready()?;
    runtime.check_nothing_left()
}

#[test]
fn hundreds_of_pods_come_and_go_while_the_agent_is_killed() -> Result<()> {
    churn("churn-kill", 16, 13)
}

#[test]
#[ignore = "minutes: thousands of pods"]
fn thousands_of_pods_come_and_go_while_the_agent_is_killed() -> Result<()> {
    churn("churn-long", 16, 200)
}

#[test]
fn without_an_agent_add_says_later_at_once_and_del_is_carried_out_by_the_next_one() -> Result<()> {
    let runtime = Runtime::new("churn-down")?;
    let netns = runtime.netns("p1")?;
    let at = attachment("p1".into(), &netns);
    runtime.until_answered(Verb::Add, &at)?;
    runtime.node().kill_agent()?;

    let other = attachment("p2".into(), &runtime.netns("p2")?);
    let answers: Vec<Answer> = (0..5).map(|_| runtime.call(Verb::Add, &other)).collect::<Result<_>>()?;
    for answer in &answers {
        ensure!(answer.error_code() == Some(TRY_LATER), "{answer:?}");
        ensure!(answer.stdout.contains("is `tartan agent` running on this node"), "{answer:?}");
    }
    // The quickest: what else runs on the machine is not the plugin's fault.
    let quickest = answers.iter().map(|answer| answer.elapsed).min().context("five answers")?;
    ensure!(quickest < Duration::from_millis(100), "{quickest:?}");

    ensure!(runtime.call(Verb::Del, &at)?.status.success());
    ensure!(runtime.node().state_dir().join("pending-del/p1@eth0").exists());
    runtime.node().start_agent()?;
    runtime.node().wait_ready()?;
    runtime.check_nothing_left()
}

/// Starts ADD and gives it its configuration; does not wait for its answer.
fn start_add(runtime: &Runtime, at: &Attachment) -> Result<Child> {
    let mut netconf = runtime.network.plugins[0].clone();
    netconf["cniVersion"] = tartan_lab::CNI_VERSION.into();
    netconf["name"] = "tartan".into();
    let mut command = Command::new(Binaries::beside_this_program()?.cni);
    command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_PATH", "/").env("CNI_ARGS", &at.args);
    command.env("CNI_CONTAINERID", &at.container).env("CNI_NETNS", &at.netns).env("CNI_IFNAME", &at.ifname);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = runtime.node().run(|| command.spawn())??;
    child.stdin.take().context("its stdin")?.write_all(netconf.to_string().as_bytes())?;
    Ok(child)
}

#[test]
fn a_runtime_that_dies_in_the_middle_of_an_add_leaves_nothing() -> Result<()> {
    let runtime = Runtime::new("churn-client")?;
    let netns = runtime.netns("p")?;
    let mut random = Random(0x5851_f42d_4c95_7f2d);
    let mut takes = Duration::MAX;
    for round in 0..3 {
        let whole = runtime.call(Verb::Add, &attachment(format!("whole{round}"), &netns))?;
        whole.result()?;
        takes = takes.min(whole.elapsed);
        runtime.collect_garbage()?;
    }
    let takes = u64::try_from(takes.as_micros())?;
    let (mut undone, mut answered) = (0, 0);
    for round in 0..60 {
        let at = attachment(format!("p{round}"), &netns);
        let mut plugin = start_add(&runtime, &at)?;
        let_pass(Duration::from_micros(random.below(takes)))?;
        plugin.kill()?;
        plugin.wait()?;
        let gone = || runtime.node().status().is_ok_and(|status| status["pods"] == Value::Array(vec![]));
        match wait_for(Duration::from_millis(500), "the pod nobody asks for any more to go", gone) {
            Ok(_) => undone += 1,
            Err(_) => {
                // The answer was in the socket already. A runtime that starts again says which pods it knows of.
                runtime.collect_garbage()?;
                wait_for(PATIENCE, "the pod no runtime knows to go", gone)?;
                answered += 1;
            }
        }
    }
    ensure!(undone >= 10, "{undone} undone, {answered} had been answered: the blows came too late");
    runtime.check_nothing_left()
}
