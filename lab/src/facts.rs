//! What a lab leaves for other processes to find: `/run/tartan-lab/NAME-PID/lab.json` and a hosts file.
//!
//! Written before the first namespace is made and replaced whole, so a lab that dies at any point can be found, entered
//! and removed by another process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::cleanup;
use crate::netns::{Endpoint, Netns, own_mounts};

/// Where labs keep their files.
pub const LAB_DIR: &str = "/run/tartan-lab";
/// Where labs keep what is too large for `/run`, which is in memory on most machines.
pub(crate) const DISK_DIR: &str = "/var/tmp/tartan-lab";

/// One lab, as another process sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The scenario's name.
    pub name: String,
    /// The process that holds the lab.
    pub pid: u32,
    /// When that process started, in clock ticks since boot: tells it from a later one with its pid.
    pub started: u64,
    /// The lab's directory.
    pub dir: PathBuf,
    /// Everything that has a namespace: nodes, pods, `underlay`.
    pub members: BTreeMap<String, Member>,
}

/// One namespace of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The namespace's name for `ip netns`.
    pub netns: String,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its addresses.
    pub v6: Ipv6Addr,
    /// The agent's socket, if this is a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The node it runs on, if this is a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Facts {
    /// Claims the name for this process and makes the lab's directory.
    pub fn claim(name: &str) -> Result<Self> {
        let pid = std::process::id();
        let dir = Path::new(LAB_DIR).join(format!("{name}-{pid}"));
        make_lab_dir(&dir).with_context(|| {
            format!("making {} (a lab needs root, and a name this process does not hold already)", dir.display())
        })?;
        let started = cleanup::start_time(pid).context("reading our own /proc/self/stat")?;
        let facts = Self { name: name.to_owned(), pid, started, dir, members: BTreeMap::new() };
        facts.write()?;
        Ok(facts)
    }

    /// Every lab on this machine, those whose holder died included.
    pub fn all() -> Result<Vec<Self>> {
        let entries = match fs::read_dir(LAB_DIR) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("listing {LAB_DIR}")),
        };
        let mut labs = Vec::new();
        for entry in entries {
            let file = entry?.path().join("lab.json");
            // A lab may be on its way up or down; one without its file has made nothing yet.
            if let Ok(text) = fs::read(&file) {
                labs.push(serde_json::from_slice(&text).with_context(|| {
                    format!("reading {} (written by another build? end that lab with it)", file.display())
                })?);
            }
        }
        Ok(labs)
    }

    /// The running lab of that name; without a name, the only one there is.
    pub fn find(name: Option<&str>) -> Result<Self> {
        let mut labs = Self::all()?;
        labs.retain(|lab| cleanup::start_time(lab.pid) == Some(lab.started));
        let running = labs.iter().map(|l| l.name.clone()).collect::<Vec<_>>().join(", ");
        labs.retain(|lab| name.is_none_or(|name| lab.name == name));
        match labs.len() {
            1 => Ok(labs.remove(0)),
            0 if running.is_empty() => bail!("no lab is running: start one with `tartan lab up` or `tartan demo`"),
            0 => bail!("no lab is called {}: running are {running}", name.unwrap_or_default()),
            _ => bail!("several labs are running ({running}): say which"),
        }
    }

    /// What all names of this lab's namespaces begin with.
    pub fn prefix(&self) -> String {
        format!("tt-{}-{}-", self.name, self.pid)
    }

    /// Where it keeps what is large. Not made by `claim`, but removed with the lab.
    pub fn disk(&self) -> PathBuf {
        Path::new(DISK_DIR).join(format!("{}-{}", self.name, self.pid))
    }

    /// The member of that name.
    pub fn member(&self, name: &str) -> Result<&Member> {
        let known = || self.members.keys().cloned().collect::<Vec<_>>().join(", ");
        self.members.get(name).ok_or_else(|| anyhow!("lab {} has no {name:?}: it has {}", self.name, known()))
    }

    /// Its pods, for a matrix.
    pub fn pod_endpoints(&self) -> Vec<Endpoint> {
        let pods = self.members.iter().filter(|(_, member)| member.node.is_some());
        pods.map(|(name, m)| Endpoint { name: name.clone(), netns: Netns::named(&m.netns), v4: m.v4, v6: m.v6 })
            .collect()
    }

    /// Runs a command inside a member, with the lab's names resolving, this program found as `tartan` wherever it lies, and, on
    /// a node, `TARTAN_SOCKET` set. Standard streams are the caller's.
    pub fn exec(&self, member: &str, argv: &[impl AsRef<OsStr>]) -> Result<ExitStatus> {
        let member = self.member(member)?;
        let (program, args) = argv.split_first().context("no command given")?;
        let mut command = Command::new(program);
        command.args(args);
        if let Some(socket) = &member.socket {
            command.env("TARTAN_SOCKET", socket);
        }
        command.env("PATH", path_to_ourselves());
        let hosts = self.hosts_file();
        let child = Netns::named(&member.netns).run(|| -> Result<_> {
            own_mounts()?;
            let none: Option<&str> = None;
            mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).context("mounting the lab's hosts file")?;
            command.spawn().context("starting it")
        })?;
        let mut child = child.with_context(|| format!("running {}", program.as_ref().display()))?;
        Ok(child.wait()?)
    }

    /// Replaces the file other processes read.
    pub fn write(&self) -> Result<()> {
        let local = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        let hosts =
            self.members.iter().fold(local, |text, (name, m)| format!("{text}{} {name}\n{} {name}\n", m.v4, m.v6));
        write_atomically(&self.hosts_file(), hosts.as_bytes())?;
        write_atomically(&self.dir.join("lab.json"), &serde_json::to_vec_pretty(self)?)
    }

    fn hosts_file(&self) -> PathBuf {
        self.dir.join("hosts")
    }
}

/// `PATH`, and behind it the folder that this program is in.
fn path_to_ourselves() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        path.push(":");
        path.push(folder);
    }
    path
}

/// Makes a lab's directory and, if need be, the one they are all in. A lab that goes takes an empty `LAB_DIR` with it,
/// maybe between our two steps.
fn make_lab_dir(dir: &Path) -> std::io::Result<()> {
    loop {
        fs::create_dir_all(LAB_DIR)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            made => return made,
        }
    }
}

/// Replaces a file: readers see the old text or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name =
        path.file_name().and_then(OsStr::to_str).with_context(|| format!("a file name in {}", path.display()))?;
    let new = path.with_file_name(format!(".{name}.new"));
    ensure!(new != path, "{} cannot be replaced", path.display());
    fs::write(&new, bytes).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))
}
