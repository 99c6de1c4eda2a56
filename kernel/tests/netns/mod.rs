//! Network namespaces for tests: each is held by a thread that lives in it and runs what it is given.
//!
//! A namespace has no name and goes with its thread, so a test that panics leaves nothing behind.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test")]

pub mod judged;
pub mod nflog;
pub mod node;
pub mod traffic;

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use tartan_kernel::{Failure, KernelError};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own.
pub struct Netns {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// `ip link set … netns TID` puts a link here.
    pub tid: i32,
}

impl Netns {
    /// A new namespace with `lo` up. Its IPv6 addresses are good at once: nobody checks for duplicates.
    pub fn new() -> Netns {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace: run this test as root");
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        let netns = Netns { jobs: Some(jobs), thread: Some(thread), tid: tid.recv().unwrap() };
        netns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0; ip link set lo up");
        netns
    }

    /// Runs `work` inside and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            done.send(outcome).unwrap();
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Changes the nft table by a socket of its own. A program that another test has just started has the last socket,
    /// too, until it runs: so long the table is still that one's.
    pub fn change(&self, apply: impl Fn() -> Vec<Failure> + Clone + Send + 'static) -> Vec<Failure> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let failures = self.run(apply.clone());
            let theirs = |failure: &Failure| matches!(failure.error, KernelError::Refused { errno: Errno::EPERM, .. });
            if !failures.iter().any(theirs) || Instant::now() > deadline {
                return failures;
            }
        }
    }

    /// Runs a shell script inside; it must succeed. Gives its output back.
    pub fn sh(&self, script: &str) -> String {
        let (succeeded, output) = self.try_sh(script);
        assert!(succeeded, "failed: {script}\n{output}");
        output
    }

    /// What `ip -o monitor OBJECT` tells while `work` is done, until a line of it matches `last`; `stir` makes it tell of something.
    pub fn told(&self, object: &str, stir: &str, work: impl FnOnce(), last: &str) -> Vec<String> {
        let file = self.sh("mktemp").trim().to_owned();
        let monitor = self.sh(&format!("ip -o monitor {object} > {file} 2>/dev/null & echo $!")).trim().to_owned();
        // It listens once it has told of something.
        self.sh(&format!("until test -s {file}; do {stir}; done"));
        work();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.try_sh(&format!("grep -q '{last}' {file}")).0 {
            assert!(Instant::now() < deadline, "{last} is not told of: {}", self.sh(&format!("cat {file}")));
        }
        self.sh(&format!("kill {monitor}; cat {file}; rm {file}")).lines().map(str::to_owned).collect()
    }

    /// What nft says of our table, but for whose it is: the program that has it, and that somebody has it.
    pub fn listing(&self) -> String {
        self.sh(r"nft -s list table inet tartan | sed -E '1s/ # progname .*//; /^\tflags (owner)?$/{N;d}'")
    }

    /// Runs a shell script inside. Gives back whether it succeeded, and its output, errors included.
    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &script]).output().expect("run sh");
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
    }
}

/// Runs a shell script in the calling thread's namespace; it must succeed. Gives its output back.
pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
