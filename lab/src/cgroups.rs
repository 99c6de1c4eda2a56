//! Control groups of a lab's nodes, in every hierarchy the machine has.
//!
//! Invariant: only groups whose name carries the lab's prefix are made or removed; the machine's own are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::probe::wait_for;

/// How long the kernel may take over the last exits in a group.
const PATIENCE: Duration = Duration::from_secs(10);
/// Options of any mount, which say nothing of a hierarchy.
const OF_ANY_MOUNT: [&str; 7] = ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime"];

/// One hierarchy of control groups, as the machine has it mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub at: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// What mounts the same hierarchy again: the controllers of a version 1 one.
    pub options: String,
}

impl Hierarchy {
    /// All that are mounted.
    pub fn all() -> Result<Vec<Self>> {
        Ok(parse(&fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?))
    }

    /// Makes a group and puts the calling process into it.
    pub fn enter(&self, group: &str) -> Result<()> {
        let dir = self.at.join(group);
        let entered = fs::create_dir(&dir).and_then(|()| {
            // A new group of cpuset version 1 may use nothing, and takes nobody in.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| self.kind == "cgroup") {
                if self.at.join(file).exists() {
                    fs::write(dir.join(file), fs::read(self.at.join(file))?)?;
                }
            }
            fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
        });
        entered.with_context(|| format!("entering control group {}", dir.display()))
    }

    /// Removes a group and all within. Its processes must be on their way out.
    pub fn remove(&self, group: &str) -> Result<()> {
        remove_group(&self.at.join(group))
    }
}

/// Every group at the top of a hierarchy.
pub(crate) fn top_groups() -> Result<BTreeSet<PathBuf>> {
    let hierarchies = Hierarchy::all()?.into_iter();
    let entries = hierarchies.flat_map(|hierarchy| fs::read_dir(hierarchy.at).into_iter().flatten().flatten());
    Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// Removes the groups whose name begins with `prefix`, and all within. Their processes must be on their way out.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    ensure!(!prefix.is_empty(), "every group begins with nothing");
    let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    top_groups()?.iter().filter(|path| ours(path)).try_for_each(|group| remove_group(group))
}

fn remove_group(group: &Path) -> Result<()> {
    let mut left = Ok(());
    wait_for(PATIENCE, &format!("control group {} to be empty", group.display()), || {
        left = remove_tree(group);
        left.is_ok()
    })
    .with_context(|| format!("{left:?}"))?;
    Ok(())
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parse(mounts: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let [_, at, kind, options] = line.split(' ').take(4).collect::<Vec<_>>().try_into().ok()?;
        let options: Vec<&str> = options.split(',').filter(|option| !OF_ANY_MOUNT.contains(option)).collect();
        let options = match (kind, options.as_slice()) {
            ("cgroup2", _) => String::new(),
            // A named hierarchy has no controllers, and must say so.
            ("cgroup", [name]) if name.starts_with("name=") => format!("none,{name}"),
            ("cgroup", options) => options.join(","),
            _ => return None,
        };
        Some(Hierarchy { at: at.into(), kind: kind.into(), options })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_from_other_mounts() {
        let mounts = "proc /proc proc rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,nosuid,relatime,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0\n";
        let hierarchy = |at: &str, kind: &str, options: &str| Hierarchy {
            at: at.into(),
            kind: kind.into(),
            options: options.into(),
        };
        let wanted = [
            hierarchy("/sys/fs/cgroup/cpu", "cgroup", "cpu,cpuacct"),
            hierarchy("/sys/fs/cgroup/systemd", "cgroup", "none,name=systemd"),
            hierarchy("/sys/fs/cgroup/unified", "cgroup2", ""),
        ];
        assert_eq!(parse(mounts), wanted);
    }
}
