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
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::prctl::set_child_subreaper;
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
    parent_and_start(pid).map(|(_, start)| start)
}

fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may hold anything; the state is field 3, the parent field 4, the start field 22.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    Some((fields.next()?.parse().ok()?, fields.nth(17)?.parse().ok()?))
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

fn pids<T: FromStr>() -> impl Iterator<Item = T> {
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
    /// Counts links, routes and nft objects of the machine's own namespace; namespaces; control groups; what this process
    /// has started, however it was left behind; files where Tartan and labs keep theirs. Other processes' labs do not
    /// count.
    pub fn take() -> Result<Self> {
        // From here on a process whose parent ends becomes our child: it is known by its ancestors.
        set_child_subreaper(true).context("becoming the parent of what our children leave behind")?;
        let own = std::process::id().to_string();
        let not_theirs = |object: &String| !is_of_another_lab(object, &own);
        let groups = cgroups::top_groups()?.into_iter().map(|path| path.display().to_string());
        let objects = BTreeMap::from([
            ("links", names_in(Path::new("/sys/class/net")).collect()),
            ("routes", routes()?),
            ("nft objects", nft_objects()?),
            ("namespaces", names_in(Path::new(NETNS_DIR)).filter(not_theirs).collect()),
            ("processes", processes()),
            ("files", files().into_iter().filter(not_theirs).collect()),
            ("control groups", groups.filter(not_theirs).collect()),
        ]);
        Ok(Self { objects })
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

/// Labs of other processes come and go as they like; all that is theirs has a lab's name and its holder's pid in its own.
fn is_of_another_lab(object: &str, own_pid: &str) -> bool {
    let of_a_lab = object.split('/').any(|part| part.starts_with("tt-"))
        || [LAB_DIR, DISK_DIR].iter().any(|dir| Path::new(object).starts_with(dir));
    of_a_lab && object.split(['/', '-']).all(|part| part != own_pid)
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

/// Those below this process, at whatever depth.
fn processes() -> BTreeSet<String> {
    let parents: BTreeMap<u32, u32> = pids().filter_map(|pid| Some((pid, parent_and_start(pid)?.0))).collect();
    let described = parents.keys().filter(|pid| is_below(**pid, std::process::id(), &parents)).filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " ").trim()))
    });
    described.collect()
}

fn is_below(pid: u32, ancestor: u32, parents: &BTreeMap<u32, u32>) -> bool {
    let above = std::iter::successors(parents.get(&pid), |pid| parents.get(pid));
    // A pid that is given out again while they are read could close a circle.
    above.take(parents.len()).any(|pid| *pid == ancestor)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_made_is_told_by_its_name() {
        let check = |object: &str, theirs: bool| assert_eq!(is_of_another_lab(object, "77"), theirs, "{object}");
        for (pid, theirs) in [(77, false), (177, true), (770, true)] {
            check(&format!("tt-kube-nft-{pid}-n1"), theirs);
            check(&format!("/sys/fs/cgroup/cpu/tt-kube-nft-{pid}-n1"), theirs);
            check(&format!("/run/tartan-lab/kube-nft-{pid}"), theirs);
            check(&format!("/var/tmp/tartan-lab/kube-nft-{pid}/n1/upper"), theirs);
        }
        for of_nobodys_lab in ["cni-1234", "/run/tartan/agent.sock", "/sys/fs/cgroup/cpu/system.slice"] {
            check(of_nobodys_lab, false);
        }
    }

    #[test]
    fn what_is_below_a_process_is_what_it_started() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (8, 9), (9, 8)]);
        let check = |pid: u32, is_it: bool| assert_eq!(is_below(pid, 2, &parents), is_it, "{pid}");
        [3, 4].into_iter().for_each(|pid| check(pid, true));
        [1, 2, 5, 6, 8].into_iter().for_each(|pid| check(pid, false));
    }
}
