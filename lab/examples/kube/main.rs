//! A real Kubernetes on this machine: etcd, API server, controller manager, scheduler, and nodes with real kubelet,
//! containerd and runc, each node a set of namespaces. `cargo xtask kube` builds all of it and runs this.
//!
//! ```text
//! up      starts `hold` and returns when the nodes are ready; with the network `tartan`, `stock` or `flannel`
//! hold    makes the cluster and keeps it until SIGTERM (it is the lab's holder)
//! down    ends a cluster that `up` made
//! e2e     Kubernetes' own network tests on a cluster made for them; all that Tartan is held to, or those in focus
//! measure figures of clusters made for them; all, or those of the parts named: tartan, first, flannel, mixed, scale
//! machine (internal) joins a node's cgroups and becomes its namespaces
//! init    (internal) PID 1 of a node
//! flannel-plugin (internal) stands in for Flannel's plugin
//! first-packet (internal) stands in for the plugin and says when a pod had its first answer
//! ```
//!
//! Invariant: like any lab, all of it carries the holder's name and pid and goes with the holder.
#![allow(clippy::print_stdout, reason = "its output is its product")]

mod agents;
mod at_once;
mod beside;
mod cluster;
mod control;
mod dns;
#[cfg(test)]
mod engine;
mod first;
mod flannel;
mod flannel_plugin;
mod image;
mod init;
mod life;
mod machine;
mod measure;
mod mixed;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod operator;
mod pki;
mod pods;
#[cfg(test)]
mod policies;
#[cfg(test)]
mod runtime;
mod scale;
#[cfg(test)]
mod services;
mod stock;
mod suite;
mod tartan;
#[cfg(test)]
mod tests;
mod tools;
#[cfg(test)]
mod user;
mod wire;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tartan_lab::probe::wait_for;
use tartan_lab::{Facts, Signals};

use crate::cluster::{Cluster, Wants};
use crate::flannel::Backend;
use crate::machine::Proxy;

/// Name of the lab, for people and for `down`.
const NAME: &str = "kube";
/// Three nodes are ready in a quarter of a minute; a busy machine may take longer.
const UP_PATIENCE: Duration = Duration::from_secs(180);

/// Where a machine's own programs are.
const MACHINE_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where the programs of the cluster are: folders, as in PATH.
#[derive(Clone, Debug)]
struct Programs(Vec<PathBuf>);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["up", network] => up(network),
        ["hold", network] => hold(network),
        ["down"] => down(),
        ["e2e", focus @ ..] => suite::run(focus),
        ["measure", parts @ ..] => measure::run(parts),
        ["first-packet", plugin, targets @ ..] => first::run(plugin, targets),
        ["flannel-plugin"] => flannel_plugin::run(),
        ["machine", spec] => machine::become_machine(Path::new(spec)),
        ["init", spec] => init::run(Path::new(spec)),
        other => bail!("`{}` is not a command: up, down, e2e, measure", other.join(" ")),
    }
}

/// Starts a holder that outlives us, and waits until it says that the cluster is up.
fn up(network: &str) -> Result<()> {
    if let Ok(running) = Facts::find(Some(NAME)) {
        bail!("a cluster is up already, held by pid {}: `cargo xtask kube down` first", running.pid);
    }
    let log_file = env::temp_dir().join(format!("tartan-kube-{}.log", std::process::id()));
    let log = File::create_new(&log_file).with_context(|| format!("making {}", log_file.display()))?;
    let mut command = Command::new(this_program()?);
    command.args(["hold", network]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut holder = command.spawn().context("starting the holder")?;
    let said = || fs::read_to_string(&log_file).unwrap_or_default();
    let mut ended = None;
    let up = wait_for(UP_PATIENCE, "the cluster to be up", || {
        ended = holder.try_wait().ok().flatten();
        ended.is_some() || said().contains(cluster::IS_UP)
    });
    let said = said();
    fs::remove_file(&log_file)?;
    if let Some(status) = ended {
        bail!("the cluster did not come up: {status}\n{said}");
    }
    print!("{said}");
    up.map(drop)
}

fn hold(network: &str) -> Result<()> {
    let install = match network {
        "tartan" => tartan::install,
        "stock" => stock::install,
        "flannel" => |cluster: &Cluster| flannel::install(cluster, Backend::Vxlan),
        other => bail!("`{other}` is no network: tartan, stock, flannel"),
    };
    let signals = Signals::hold_back()?;
    let wants = Wants { proxy: Some(Proxy::Nftables), flannel: network == "flannel", ..Wants::default() };
    let cluster = Cluster::up(NAME, Programs::from_environment()?, wants)?;
    install(&cluster)?;
    cluster.wait_until_ready()?;
    println!("{}", cluster.introduction()?);
    signals.wait(false)?;
    Ok(())
}

fn down() -> Result<()> {
    match Facts::all()?.into_iter().find(|lab| lab.name == NAME) {
        Some(lab) => tartan_lab::down(&lab),
        None => bail!("no cluster is up"),
    }
}

/// What a node's processes are started from. A test's own program has its tests for commands, so the one that
/// `cargo build` puts beside it is taken.
fn this_program() -> Result<PathBuf> {
    let program = env::current_exe()?;
    Ok(if cfg!(test) { program.with_file_name("kube") } else { program })
}

// === impl Programs ===

impl Programs {
    /// As xtask says it: `TARTAN_KUBE_PATH=FOLDER:FOLDER`.
    fn from_environment() -> Result<Self> {
        let path = env::var_os("TARTAN_KUBE_PATH").context("TARTAN_KUBE_PATH is not set: run `cargo xtask kube`")?;
        Ok(Self(env::split_paths(&path).collect()))
    }

    /// What PATH is on a node.
    fn and_the_machines(mut self) -> Result<OsString> {
        self.0.extend(MACHINE_PATH.map(PathBuf::from));
        Ok(env::join_paths(self.0)?)
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let mut files = self.0.iter().map(|folder| folder.join(name));
        let found = files.find(|file| file.exists());
        found.with_context(|| format!("{name} is in none of {:?}: `cargo xtask kube up` builds it", self.0))
    }
}
