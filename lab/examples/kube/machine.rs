//! A node of the cluster: namespaces of every kind, control groups, and disks of its own, on this machine's kernel.
//!
//! Invariant: killing its PID 1 ends everything on the node, and what the node writes stays below its disk folder.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tartan_lab::probe::wait_for;
use tartan_lab::{Hierarchy, Netns, Seat};

use crate::control::log_tail;
use crate::{Programs, this_program};

/// What a node is started from, on its disk.
const SPEC: &str = "spec.json";
/// A machine that is busy with three nodes and more takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets that links and sockets had no room for.
const DROPPED: &str = "ip -statistics link; grep -h ^Udp: /proc/net/snmp; grep ^Udp6 /proc/net/snmp6";

/// What a node has to know, handed over as a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// Of its control group in every hierarchy.
    pub(crate) group: String,
    /// Where it keeps what it writes.
    pub(crate) disk: PathBuf,
    /// Image archives to import.
    pub(crate) images: Vec<PathBuf>,
    /// Folders with its programs.
    pub(crate) path: Vec<PathBuf>,
    /// Its addresses, as the kubelet takes them.
    pub(crate) addresses: String,
    /// How its kube-proxy serves Services; none: it has none.
    pub(crate) proxy: Option<Proxy>,
    /// What was mounted on the machine when the node was started.
    pub(crate) hierarchies: Vec<Hierarchy>,
}

/// What kube-proxy writes its rules with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proxy {
    Nftables,
    Iptables,
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) seat: Seat,
    disk: PathBuf,
    /// `unshare`, which waits for PID 1 and takes it along when it dies.
    child: Child,
}

// === impl Spec ===

impl Spec {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", file.display()))
    }

    fn file(&self) -> PathBuf {
        self.disk.join(SPEC)
    }

    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.disk.join(format!("{program}.log"))
    }
}

// === impl Machine ===

impl Machine {
    /// Starts the node; does not wait for anything on it.
    pub(crate) fn start(spec: &Spec, netns: &Netns, seat: Seat) -> Result<Self> {
        fs::write(spec.file(), serde_json::to_vec_pretty(spec)?)?;
        let log = fs::File::create(spec.log("init"))?;
        let mut command = Command::new(this_program()?);
        command.arg("machine").arg(spec.file()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.run(|| command.spawn())?.with_context(|| format!("starting {}", spec.name))?;
        Ok(Self { name: spec.name.clone(), netns: netns.clone(), seat, disk: spec.disk.clone(), child })
    }

    /// Ends everything on the node: what it is started from again.
    pub(crate) fn end(self) -> Result<(Spec, Netns)> {
        let (spec, netns) = (Spec::read(&self.disk.join(SPEC))?, self.netns.clone());
        drop(self);
        let node = inode(&netns.path());
        let runs = |process: &Path| inode(&process.join("ns/net")) == node;
        wait_for(PATIENCE, &format!("the end of {}", spec.name), || processes_that(runs).is_empty())?;
        spec.hierarchies.iter().try_for_each(|hierarchy| hierarchy.remove(&spec.group))?;
        Ok((spec, netns))
    }

    /// Puts a file on the node.
    pub(crate) fn write(&self, file: &str, content: &[u8], mode: &str) -> Result<()> {
        let script =
            "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1.new\" && chmod \"$2\" \"$1.new\" && mv \"$1.new\" \"$1\"";
        let mut command = self.inside(&["sh", "-c", script, "sh", file, mode])?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let written = child.stdin.take().context("the child has a stdin")?.write_all(content);
        text(&child.wait_with_output()?).with_context(|| format!("writing {file} on {}", self.name))?;
        Ok(written?)
    }

    /// What a command on the node prints.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<String> {
        text(&self.inside(argv)?.output()?).with_context(|| format!("{} on {}", argv.join(" "), self.name))
    }

    /// When that program of the node was started.
    pub(crate) fn started(&self, program: &str) -> Result<SystemTime> {
        Ok(fs::metadata(self.disk.join(format!("{program}.log")))?.created()?)
    }

    /// The last line of a program's log that has this in it.
    pub(crate) fn last_said(&self, program: &str, what: &str) -> Option<String> {
        let log = fs::read_to_string(self.disk.join(format!("{program}.log"))).ok()?;
        log.lines().rfind(|line| line.contains(what)).map(str::to_owned)
    }

    /// A command that runs in all of the node's namespaces.
    fn inside(&self, argv: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid1()?.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]).args(argv);
        Ok(command)
    }

    /// The same, as a person types it.
    pub(crate) fn enter_command(&self) -> Result<String> {
        Ok(format!("nsenter --target {} --mount --uts --ipc --net --pid --cgroup", self.pid1()?))
    }

    /// The ends of its logs, and what its kernel has dropped.
    pub(crate) fn troubleshooting(&self) -> String {
        let program = |program: &str| self.disk.join(format!("{program}.log"));
        let programs = ["init", "containerd", "kubelet", "kube-proxy"].map(program);
        let logs = programs.into_iter().chain(self.logs_of_agents()).map(|log| log_tail(&log));
        let dropped = self.netns.output(&["sh", "-c", DROPPED]).unwrap_or_else(|error| format!("{error:#}"));
        logs.chain([format!("counted on {}:\n{dropped}", self.name)]).collect::<Vec<_>>().join("\n")
    }

    /// What Tartan's pods have said, each container in a file for each of its lives.
    fn logs_of_agents(&self) -> Vec<PathBuf> {
        let within = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let pods = within(self.disk.join("upper").join("var.log").join("pods"));
        let ours = pods.filter(|pod| pod.file_name().is_some_and(|name| name.to_string_lossy().contains("tartan")));
        let mut logs: Vec<PathBuf> = ours.flat_map(within).flat_map(within).collect();
        logs.sort();
        logs
    }

    /// A program in the node's own network, as a pid of the machine, by how its command line begins; none while it does
    /// not run.
    pub(crate) fn process(&self, begins: &[u8]) -> Option<i32> {
        let node = inode(&self.netns.path());
        let is_it = |process: &Path| {
            fs::read(process.join("cmdline")).is_ok_and(|line| line.starts_with(begins))
                && inode(&process.join("ns/net")) == node
        };
        processes_that(is_it).first().copied()
    }

    /// The node's first process, seen from outside.
    fn pid1(&self) -> Result<u32> {
        let unshare = self.child.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let mut pid = None;
        wait_for(PATIENCE, &format!("the first process of {}", self.name), || {
            pid = fs::read_to_string(&children).ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
            pid.is_some()
        })
        .with_context(|| self.troubleshooting())?;
        pid.context("wait_for ended with a pid")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes in the control group of the pod with that UID, all of which are in its network.
pub(crate) fn processes_of_pod(uid: &str) -> Vec<i32> {
    let group = format!("/pod{uid}/");
    processes_that(|process| fs::read_to_string(process.join("cgroup")).is_ok_and(|groups| groups.contains(&group)))
}

/// Which namespace it is that a file leads to.
pub(crate) fn inode(namespace: &Path) -> Option<u64> {
    fs::metadata(namespace).ok().map(|file| file.ino())
}

/// The pids of all processes that a look at their folder in /proc finds to be right.
fn processes_that(are_right: impl Fn(&Path) -> bool) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |process: fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        are_right(&process.path()).then_some(pid)
    };
    processes.filter_map(pid).collect()
}

/// Joins the node's control groups and goes on as PID 1 in namespaces of its own.
pub(crate) fn become_machine(spec_file: &Path) -> Result<()> {
    let spec = Spec::read(spec_file)?;
    for hierarchy in &spec.hierarchies {
        hierarchy.enter(&spec.group)?;
    }
    let flags = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child", "--propagation=private"];
    let mut unshare = Command::new("unshare");
    unshare.args(flags).arg(this_program()?).arg("init").arg(spec_file);
    unshare.env("PATH", Programs(spec.path).and_the_machines()?);
    Err(unshare.exec()).context("running `unshare` of util-linux")
}

fn text(output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
