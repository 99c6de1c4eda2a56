//! A node: a network namespace with an uplink, mounts of its own, and an agent process of its own.
//!
//! Invariant: the agent is in a process group of its own (a Ctrl-C at the lab's terminal is not for it), and is always
//! reaped, so its pid is either running or ours to reuse.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::{Value, json};

use crate::netns::{Endpoint, Netns, Place};
use crate::probe::{http_get, wait_for};
use crate::underlay::Underlay;

/// Where each agent listens inside its node's namespace.
const LISTEN: &str = "127.0.0.1:9470";
/// How long SIGTERM may take: far above what an agent that works needs.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// An emulated processor that has to share takes longer than any other.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the agent's log shown with a failure.
const TAIL: usize = 30;

/// One node of a lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    netns: Netns,
    place: Place,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    dir: PathBuf,
    /// The program the next start runs, and the agent that runs now.
    program: Mutex<PathBuf>,
    agent: Mutex<Option<Child>>,
}

/// Lists a node's nft rules, for a shell. Whose the tables are, counts, the order of what has none, how often something was
/// revoked and how often policy changed are left out.
pub const NFT_LISTING: &str = "nft list tables; nft -s list ruleset | sed -E 's/ # progname .*//; /^\\tflags (owner)?$/{N;d}; s/^(table .*|\\})$//; \
         /ct mark/{s/0x..000000/STAMP/g; s/0x..ffffff/REST/g}; /(set policy_generation|map policy_epoch)/,/}/s/0x.*/N }/; \
         /set policy_judged/,/}/{/elements|^ *\\t*0x/d}' | \
         tr '\\n' '\\r' | sed -E 's/^\\r//; s/\\r\\r+/\\n/g' | sort";

impl Node {
    /// Makes the namespace, plugs it in and writes the agent's boot file.
    pub(crate) fn create(
        number: u8,
        netns_name: &str,
        underlay: &Underlay,
        dir: &Path,
        store: &Path,
        tartan: &Path,
    ) -> Result<Self> {
        let name = format!("n{number}");
        let netns = Netns::create(netns_name)?;
        let seat = underlay.plug_in(&name, number, &netns)?;
        let place = Place::with_own_mounts(&netns)?;
        let dir = dir.join(&name);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let (v4, v6) = (seat.v4.0, seat.v6.0);
        let node = Self {
            name,
            number,
            netns,
            place,
            v4,
            v6,
            dir,
            program: Mutex::new(tartan.to_owned()),
            agent: Mutex::default(),
        };
        node.set_store(&format!("file:{}", store.display()))?;
        Ok(node)
    }

    /// The store of the agent that is started next, as its boot file has it.
    pub fn set_store(&self, store: &str) -> Result<()> {
        Ok(fs::write(self.boot_file(), serde_yaml_ng::to_string(&self.boot(store))?)?)
    }

    fn boot(&self, store: &str) -> Value {
        json!({
            "node": self.name,
            "store": store,
            "stateDir": self.state_dir(),
            "socket": self.socket(),
            "listen": LISTEN,
            "log": "info",
        })
    }

    /// Its name: n1, n2, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address on the underlay, for probes.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { name: self.name.clone(), netns: self.netns.clone(), v4: self.v4, v6: self.v6 }
    }

    /// Its pod CIDRs, IPv4 first.
    pub fn pod_cidrs(&self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.number), format!("fd00:10:244:{:x}::/64", self.number)]
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The agent's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("tartan.sock")
    }

    /// What the agents of this node have written, over all starts.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn boot_file(&self) -> PathBuf {
        self.dir.join("boot.yaml")
    }

    /// Its Kubernetes Node object.
    pub(crate) fn object(&self) -> Value {
        let [v4, v6] = self.pod_cidrs();
        let address = |kind: &str, address: String| json!({"type": kind, "address": address});
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "uid": format!("00000000-0000-4000-8000-{:012}", self.number)},
            "spec": {"podCIDR": v4, "podCIDRs": [v4, v6]},
            "status": {"addresses": [
                address("InternalIP", self.v4.to_string()),
                address("InternalIP", self.v6.to_string()),
                address("Hostname", self.name.clone()),
            ]},
        })
    }

    /// Runs a command on the node, as a person with a shell there would, and gives its output.
    pub fn output(&self, argv: &[&str]) -> Result<String> {
        self.place.output(argv)
    }

    /// Gives the node a secret of the cluster as an admin would, or takes it away.
    pub fn give_secret(&self, secret: Option<&str>) -> Result<()> {
        let dir = self.state_dir().join("secret");
        let dir = dir.display();
        let line = match secret {
            Some(secret) => {
                format!("umask 077; mkdir -p {dir}; echo {secret} > {dir}/new; mv {dir}/new {dir}/cluster-secret")
            }
            None => format!("rm {dir}/cluster-secret"),
        };
        self.output(&["sh", "-c", &line]).map(drop)
    }

    /// Runs `work` on a thread in the node's namespaces; processes it starts live there too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.place.run(work)
    }

    // --- the agent ---

    /// Starts the agent; does not wait for it to be ready. Returns its pid.
    pub fn start_agent(&self) -> Result<u32> {
        let mut agent = self.agent.lock().expect("no holder panics");
        if let Some(running) = agent.as_mut()
            && running.try_wait()?.is_none()
        {
            bail!("the agent of {} runs already, as pid {}", self.name, running.id());
        }
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = Command::new(self.program.lock().expect("no holder panics").as_path());
        command.arg("agent").arg("--config").arg(self.boot_file());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = self.place.spawn(&mut command)?;
        let pid = child.id();
        *agent = Some(child);
        Ok(pid)
    }

    /// The pid of the running agent.
    pub fn agent_pid(&self) -> Result<u32> {
        match self.agent.lock().expect("no holder panics").as_mut() {
            None => bail!("the agent of {} was not started", self.name),
            Some(agent) => match agent.try_wait()? {
                None => Ok(agent.id()),
                Some(status) => Err(anyhow!("the agent of {} ended: {status}\n{}", self.name, self.log_tail())),
            },
        }
    }

    /// Pids of the node's processes of that name, whoever started them.
    pub fn processes(&self, name: &str) -> Result<Vec<i32>> {
        let netns = fs::metadata(self.netns.path())?.ino();
        let all = crate::cleanup::processes_in(&BTreeSet::from([netns]));
        let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        Ok(all.into_iter().filter(named).collect())
    }

    /// SIGTERM, and its exit status.
    pub fn stop_agent(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let mut status = None;
        let mut agent = self.agent.lock().expect("no holder panics");
        let child = agent.as_mut().context("the agent was signalled a moment ago")?;
        let ended = || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        };
        wait_for(STOP_PATIENCE, &format!("the end of {}'s agent after SIGTERM", self.name), ended)
            .with_context(|| self.log_tail())?;
        *agent = None;
        status.context("wait_for ended with a status")
    }

    /// SIGKILL: what a crash looks like.
    pub fn kill_agent(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = self.agent.lock().expect("no holder panics").take() {
            child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP: the node learns nothing until `resume_agent`, as one far behind would.
    pub fn pause_agent(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn resume_agent(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGTERM and a new start, ready again.
    pub fn restart_agent(&self) -> Result<Duration> {
        self.stop_agent()?;
        self.start_agent()?;
        self.wait_ready()
    }

    /// Makes the nft table one that others can change, as it is where the kernel knows no owners of tables.
    pub fn disown_nft_table(&self) -> Result<()> {
        self.kill_agent()?;
        self.output(&["sh", "-c", "nft delete table inet tartan; nft add table inet tartan"])?;
        self.start_agent()?;
        self.wait_ready().map(drop)
    }

    /// The program the next start runs: an upgrade to another build is this and `restart_agent`.
    pub fn set_program(&self, tartan: &Path) {
        *self.program.lock().expect("no holder panics") = tartan.to_owned();
    }

    /// What the agent says of itself: `tartan status -o json`.
    pub fn status(&self) -> Result<Value> {
        let (program, socket) = (self.program.lock().expect("no holder panics").clone(), self.socket());
        let [program, socket] = [&program, &socket].map(|path| path.to_str().context("a path in UTF-8"));
        let text = self.output(&[program?, "status", "--socket", socket?, "-o", "json"])?;
        let status: Value = serde_json::from_str(&text).with_context(|| format!("tartan status printed {text}"))?;
        ensure!(status["phase"].is_string(), "a status without a phase: {text}");
        Ok(status)
    }

    /// The instances by which it sends to its peers, as the agent says.
    pub fn sends_by(&self) -> Result<BTreeSet<String>> {
        let status = self.status()?;
        let by = status["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["fabric"].as_str());
        Ok(by.map(str::to_owned).collect())
    }

    /// Waits until the agent says it is ready (its first full pass is done). Returns how long that took.
    pub fn wait_ready(&self) -> Result<Duration> {
        let start = Instant::now();
        let listen = LISTEN.parse().expect("a socket address");
        let local = self.endpoint();
        let mut last = String::new();
        let ready = || -> bool {
            if let Err(dead) = self.agent_pid() {
                last = format!("{dead:#}");
                return true;
            }
            match http_get(&local, listen, "/readyz") {
                Ok((200, _)) => return true,
                Ok((code, body)) => last = format!("/readyz says {code}: {}", body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            false
        };
        let waited = wait_for(READY_PATIENCE, &format!("{}'s agent to be ready", self.name), ready);
        if waited.is_err() || self.agent_pid().is_err() {
            return Err(anyhow!("{}'s agent is not ready: {last}\n{}", self.name, self.troubleshooting()));
        }
        Ok(start.elapsed())
    }

    /// Processor time the running agent has used since its start, all threads, to a clock tick.
    pub fn agent_cpu(&self) -> Result<Duration> {
        cpu_of(i32::try_from(self.agent_pid()?)?)
    }

    /// What `/metrics` says.
    pub fn metrics(&self) -> Result<String> {
        let (code, said) = http_get(&self.endpoint(), LISTEN.parse().expect("a socket address"), "/metrics")?;
        if code == 200 { Ok(said) } else { bail!("/metrics of {} says {code}: {}", self.name, said.trim()) }
    }

    /// The last lines of the agent's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// What a person needs to look further.
    pub fn troubleshooting(&self) -> String {
        format!(
            "enter {}: {}\nlog {}, its last lines:\n{}",
            self.name,
            self.netns.enter_command(),
            self.log_file().display(),
            self.log_tail()
        )
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.agent_pid()?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("sending {signal} to {}'s agent, pid {pid}", self.name))
    }
}

impl Drop for Node {
    /// Without this a lab dropped half built would leave an unreaped agent; the namespaces are cleanup's.
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.lock().ok().and_then(|mut a| a.take()) {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Processor time a process has used since its start, all threads, to a clock tick.
pub fn cpu_of(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name (field 2) may hold spaces; utime and stime are fields 14 and 15.
    let after_name = stat.rsplit_once(") ").context("a process name in /proc/PID/stat")?.1;
    of_ticks(after_name.split(' ').skip(11).take(2))
}

/// Processor time of everything that runs here, the kernel's own included.
pub fn cpu_of_all() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("all processors in /proc/stat")?;
    // user, nice, system; then idle and waiting; then irq and softirq (proc_stat(5)).
    let fields: Vec<&str> = all.split_whitespace().take(7).collect();
    of_ticks(fields.into_iter().enumerate().filter(|(index, _)| !(3..=4).contains(index)).map(|(_, field)| field))
}

fn of_ticks<'a>(fields: impl Iterator<Item = &'a str>) -> Result<Duration> {
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks a second")?;
    Ok(Duration::from_millis(ticks * 1000 / u64::try_from(hertz)?))
}
