//! Removing a lab, whoever made it, and proving that the machine is as it was.
//!
//! Invariant: only what carries a lab's prefix, or runs inside a namespace that does, is touched. Removal goes on after
//! a failure and can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroups;
use crate::facts::{DISK_DIR, Facts, LAB_DIR};
use crate::netns::{NETNS_DIR, Netns};
use crate::probe::wait_for;

const PATIENCE: Duration = Duration::from_secs(10);

/// Removes everything of a lab: processes in its namespaces, namespaces, files. Tells every failure at the end.
pub fn remove(lab: &Facts) -> Result<()> {
    let mut failures = Vec::new();
    let namespaces = namespaces_of(lab);
    let inodes: BTreeSet<u64> = namespaces.iter().filter_map(|n| Some(fs::metadata(n.path()).ok()?.ino())).collect();
    // Again and again: one may just have started another. What a process does at its end must find its namespace still there.
    let ended = || {
        let left = processes_in(&inodes);
        for pid in &left {
            // Gone by itself meanwhile is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        left.is_empty()
    };
    if let Err(error) = wait_for(PATIENCE, "the end of the lab's processes", ended) {
        failures.push(format!("{error:#}"));
    }
    for namespace in namespaces {
        if let Err(error) = namespace.delete() {
            failures.push(format!("{error:#}"));
        }
    }
    if let Err(error) = cgroups::remove(&lab.prefix()) {
        failures.push(format!("{error:#}"));
    }
    for (dir, parent) in [(lab.disk(), DISK_DIR), (lab.dir.clone(), LAB_DIR)] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failures.push(format!("removing {}: {error}", dir.display()));
            }
            _ => {
                // The last lab takes the directory with it; while others hold theirs this fails, rightly.
                let _ = fs::remove_dir(parent);
            }
        }
    }
    match failures.as_slice() {
        [] => Ok(()),
        _ => Err(anyhow!("removing lab {}: {}", lab.name, failures.join("; "))),
    }
}

/// Ends a lab of another process: its holder first (SIGTERM, then SIGKILL), then what it left.
pub fn down(lab: &Facts) -> Result<()> {
    let alive = || start_time(lab.pid) == Some(lab.started);
    let holder = Pid::from_raw(i32::try_from(lab.pid)?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if alive() && lab.pid != std::process::id() {
            kill(holder, signal)
                .with_context(|| format!("ending the holder of lab {}, pid {} (needs root)", lab.name, lab.pid))?;
            if wait_for(PATIENCE, "the end of the lab's holder", || !alive()).is_ok() {
                break;
            }
        }
    }
    remove(lab)
}

/// Removes the labs whose holder is gone. Their names.
pub fn remove_leftovers() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for lab in Facts::all()? {
        if start_time(lab.pid) != Some(lab.started) {
            remove(&lab)?;
            removed.push(lab.name);
        }
    }
    Ok(removed)
}

/// When a process started, in clock ticks since boot; `None` if there is no such process (or only its remains).
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may hold anything; the state is field 3, the start is field 22.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn namespaces_of(lab: &Facts) -> Vec<Netns> {
    let prefix = lab.prefix();
    names_in(Path::new(NETNS_DIR)).filter(|name| name.starts_with(&prefix)).map(|name| Netns::named(&name)).collect()
}

/// Processes other than this one whose network namespace is one of `inodes`.
pub(crate) fn processes_in(inodes: &BTreeSet<u64>) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    pids().filter(|&pid| pid != own && netns_of(pid).is_some_and(|inode| inodes.contains(&inode))).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    names_in(Path::new("/proc")).filter_map(|name| name.parse().ok())
}

fn netns_of(pid: i32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
}

/// The names in a directory; none if it does not exist.
fn names_in(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// What of ours could be on this machine, counted by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    objects: BTreeMap<&'static str, BTreeSet<String>>,
}

/// What came and what went between two censuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// By kind: objects there now and not before, and objects gone.
    pub kinds: BTreeMap<&'static str, (Vec<String>, Vec<String>)>,
}

impl Census {
    /// Counts links, routes and nft objects of the machine's own namespace; namespaces; control groups; processes called
    /// tartan or living in a namespace of their own; files where Tartan and labs keep theirs. Other processes' labs do
    /// not count.
    pub fn take() -> Result<Self> {
        let others = others()?;
        let objects = BTreeMap::from([
            ("links", names_in(Path::new("/sys/class/net")).collect()),
            ("routes", routes()?),
            ("nft objects", nft_objects()?),
            ("namespaces", names_in(Path::new(NETNS_DIR)).collect()),
            ("processes", processes(&others)),
            ("files", files()),
            ("control groups", cgroups::top_groups()?.into_iter().map(|path| path.display().to_string()).collect()),
        ]);
        let not_theirs = |object: &String| !others.iter().any(|lab| object.contains(lab));
        let objects = objects.into_iter().map(|(kind, names)| (kind, names.into_iter().filter(not_theirs).collect()));
        Ok(Self { objects: objects.collect() })
    }

    /// What changed since `before`.
    pub fn since(&self, before: &Census) -> Difference {
        let missing = |from: &BTreeSet<String>, other: &BTreeSet<String>| from.difference(other).cloned().collect();
        let kinds = self.objects.iter().map(|(kind, now)| {
            let then = before.objects.get(kind).cloned().unwrap_or_default();
            (*kind, (missing(now, &then), missing(&then, now)))
        });
        Difference { kinds: kinds.collect() }
    }
}

impl Difference {
    /// Nothing came and nothing went.
    pub fn is_nothing(&self) -> bool {
        self.kinds.values().all(|(came, went)| came.is_empty() && went.is_empty())
    }
}

/// `links +0, routes +0, …`, then a line for each object that came or went.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self
            .kinds
            .iter()
            .map(|(kind, (came, went))| match went.len() {
                0 => format!("{kind} +{}", came.len()),
                gone => format!("{kind} +{} -{gone}", came.len()),
            })
            .collect();
        f.write_str(&counts.join(", "))?;
        for (kind, (came, went)) in &self.kinds {
            for (sign, objects) in [('+', came), ('-', went)] {
                for object in objects {
                    write!(f, "\n  {sign} {kind}: {object}")?;
                }
            }
        }
        Ok(())
    }
}

fn output_of(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the names of other processes' labs contain: they come and go as they like.
fn others() -> Result<Vec<String>> {
    let labs = Facts::all()?.into_iter().filter(|lab| lab.pid != std::process::id());
    Ok(labs.map(|lab| format!("{}-{}", lab.name, lab.pid)).collect())
}

fn routes() -> Result<BTreeSet<String>> {
    let mut routes = BTreeSet::new();
    for family in ["-4", "-6"] {
        let listing = output_of("ip", &[family, "-o", "route", "show", "table", "all"])?;
        // A lifetime counts down by itself.
        routes.extend(listing.lines().map(|line| line.split(" expires ").next().unwrap_or(line).trim().to_owned()));
    }
    Ok(routes)
}

fn nft_objects() -> Result<BTreeSet<String>> {
    let ruleset: Value = serde_json::from_str(&output_of("nft", &["-j", "-s", "list", "ruleset"])?)
        .context("reading `nft -j list ruleset` (package nftables, as root)")?;
    let objects = ruleset["nftables"].as_array().context("an nft rule set")?;
    Ok(objects.iter().filter(|o| o.get("metainfo").is_none()).map(Value::to_string).collect())
}

fn processes(others: &[String]) -> BTreeSet<String> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let machine = netns_of(own);
    let theirs: BTreeSet<u64> = names_in(Path::new(NETNS_DIR))
        .filter(|name| others.iter().any(|lab| name.contains(lab)))
        .filter_map(|name| Some(fs::metadata(Path::new(NETNS_DIR).join(name)).ok()?.ino()))
        .collect();
    let ours = |pid: &i32, command: &str| {
        let program = command.split(' ').next().unwrap_or_default();
        let called_tartan = Path::new(program).file_name().is_some_and(|n| n.to_string_lossy().starts_with("tartan"));
        let netns = netns_of(*pid).filter(|netns| Some(*netns) != machine);
        *pid != own && (called_tartan || netns.is_some()) && !netns.is_some_and(|netns| theirs.contains(&netns))
    };
    let described = pids().filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        ours(&pid, &command).then(|| format!("{pid} {command}"))
    });
    described.collect()
}

fn files() -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut directories: Vec<PathBuf> =
        [LAB_DIR, DISK_DIR, "/run/tartan", "/var/lib/tartan", "/etc/cni/net.d"].map(PathBuf::from).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            files.insert(path.display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            }
        }
    }
    files
}
