//! `--within MINUTES`: a run that is not done by then is ended, and its summary says in which group it was.
//!
//! Invariant: whoever hangs does not hang the run: all that this program has started is killed, and nobody is left who could
//! hold what the run reads from.

use crate::command::{as_root, capture};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, process,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Between two looks at what still runs, once time is up: a group may just have been about to start something.
const AGAIN: Duration = Duration::from_secs(1);

/// From now on.
pub(super) fn start(limit: Duration) {
    thread::spawn(move || {
        let (_nobody, never) = mpsc::channel::<()>();
        let _timeout = never.recv_timeout(limit);
        IS_OVER.store(true, Ordering::Relaxed);
        println!("\nNot done within {} minutes (--within): what still runs is killed.", limit.as_secs() / 60);
        loop {
            kill_below(process::id());
            let _timeout = never.recv_timeout(AGAIN);
        }
    });
}

/// Whether no group is to begin any more.
pub(super) fn is_over() -> bool {
    IS_OVER.load(Ordering::Relaxed)
}

/// Who is stopped starts nobody else, so in the end all are known. What nodes of a cluster or of a lab leave in the kernel,
/// the next lab removes.
fn kill_below(pid: u32) {
    let mut stopped = BTreeSet::new();
    loop {
        let all: BTreeSet<u32> = descendants(pid, &parents()).into_iter().collect();
        let new: Vec<u32> = all.difference(&stopped).copied().collect();
        if new.is_empty() {
            return signal("-KILL", stopped);
        }
        signal("-STOP", new.iter().copied());
        stopped.extend(new);
    }
}

fn signal(signal: &str, pids: impl IntoIterator<Item = u32>) {
    let pids: Vec<String> = pids.into_iter().map(|pid| pid.to_string()).collect();
    if !pids.is_empty() {
        // One that has ended meanwhile is an error and no matter.
        let _ = capture(as_root("kill").arg(signal).args(pids));
    }
}

fn descendants(of: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, its)| **its == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Of every process.
fn parents() -> BTreeMap<u32, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |process: fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(process.path().join("status")).ok()?;
        Some((pid, status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?))
    };
    processes.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    #[test]
    fn children_of_children_are_found_and_strangers_are_not() {
        let parents = [(2, 1), (3, 9), (4, 5), (5, 1), (6, 4), (7, 3)].into();
        assert_eq!(descendants(1, &parents), [2, 5, 4, 6]);
        assert_eq!(descendants(8, &parents), []);
    }

    /// Whoever reads what a group says is held up by a grandchild as well.
    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_has_started() {
        let script = "sh -c 'echo it runs; exec sleep 600' & wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh starts");
        let (mut said, mut first) = (child.stdout.take().expect("piped"), [0; 8]);
        said.read_exact(&mut first).expect("both run");
        kill_below(child.id());
        assert_eq!(said.read_to_end(&mut Vec::new()).expect("nobody has it open"), 0);
        child.wait().expect("it was started");
    }
}
