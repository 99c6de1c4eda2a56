//! The programs that Kubernetes' own tests call in their images, taken from this machine with their libraries.
//!
//! Invariant: whatever a program is linked with comes along, so that it runs wherever its image does.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::MACHINE_PATH;
use crate::image::run;

/// The shell is bash: it runs these and not programs of its own by the same names.
#[rustfmt::skip]
const TOOLS: [&str; 31] = [
    "bash", "cat", "curl", "cut", "date", "dig", "dirname", "env", "getent", "grep", "head", "hostname", "ip", "ls", "mkdir",
    "nc", "nslookup", "rm", "sed", "seq", "sleep", "sort", "ss", "tail", "timeout", "touch", "tr", "true", "uname", "wc", "wget",
];

/// What Flannel writes its rules with.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"];
/// Where Debian keeps what iptables loads for each match and target.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Puts the tests' tools below `root`, where they are on this machine.
pub(crate) fn copy(root: &Path) -> Result<()> {
    let programs = copy_all(&TOOLS, root)?;
    std::fs::create_dir_all(root.join("bin"))?;
    let bash = &programs[0];
    symlink(bash, root.join("bin/sh")).with_context(|| format!("making {} the shell", bash.display()))
}

/// The same of iptables.
pub(crate) fn copy_iptables(root: &Path) -> Result<()> {
    copy_all(&IPTABLES, root)?;
    run(Command::new("cp").args(["--recursive", "--parents", XTABLES]).arg(root)).map(drop)
}

fn copy_all(tools: &[&str], root: &Path) -> Result<Vec<PathBuf>> {
    let programs = tools.iter().map(|tool| find(tool)).collect::<Result<Vec<_>>>()?;
    let linked = run(Command::new("ldd").args(&programs))?;
    let copy = ["--dereference", "--parents"];
    run(Command::new("cp").args(copy).args(&programs).args(libraries(&linked)).arg(root))?;
    Ok(programs)
}

fn find(tool: &str) -> Result<PathBuf> {
    let mut files = MACHINE_PATH.iter().map(|folder| Path::new(folder).join(tool));
    let found = files.find(|file| file.exists());
    found.with_context(|| format!("this machine has no {tool}: `cargo xtask kube e2e` installs its package"))
}

/// The files that `ldd` names, once each.
fn libraries(said: &str) -> BTreeSet<&str> {
    said.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':')).collect()
}

#[cfg(test)]
mod tests {
    use super::libraries;

    #[test]
    fn libraries_are_told_from_programs() {
        let said = "/usr/bin/a:\n\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\
                    \t/lib64/ld.so.2 (0x7f)\n/usr/bin/b:\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7e)\n";
        assert_eq!(libraries(said).into_iter().collect::<Vec<_>>(), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
    }
}
