//! The loop in small: planners, kernel thread and kernel are the real ones, in a network namespace of this process's own,
//! and nothing else is there.
#![allow(dead_code, unreachable_pub, reason = "each example uses its own part")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use tartan_agent::plan::{Plan, Planners};
use tartan_kernel::linux::Linux;
use tartan_kernel::thread::{Applied, Handle, spawn};
use tartan_kernel::{Failure, Kernel as _};
use tartan_model::{Features, Programmed, World};

/// See the module.
pub struct Small {
    pub world: World,
    pub planners: Planners,
    kernel: Handle,
    reports: mpsc::Receiver<Applied>,
    generation: u64,
}

impl Small {
    /// In a namespace of its own, whose only link has this address. Needs root.
    pub fn start(address: &str, world: impl FnOnce(Features) -> Result<World>) -> Result<Small> {
        let mut linux = Linux::open()?;
        let world = world(linux.features())?;
        let (report, reports) = mpsc::channel();
        let kernel = spawn(Box::new(linux), move |applied| {
            // Nobody listens any more once this ends.
            let _ended = report.send(applied);
        })?;
        let mut small = Small { world, planners: Planners::default(), kernel, reports, generation: 0 };
        let first = small.reports.recv()?;
        small.hear(first);
        let known =
            small.world.host.links.iter().any(|link| link.addresses.iter().any(|net| net.to_string() == address));
        ensure!(known, "{address} is on no link of this namespace");
        Ok(small)
    }

    /// Plans, and waits until the kernel has what pods need of it, or all of it.
    pub fn plan_and_wait(&mut self, all: bool) -> Result<()> {
        let Plan { state, .. } = self.planners.plan(&self.world, Instant::now());
        self.generation += 1;
        self.kernel.want(self.generation, state.context("the World is whole")?);
        self.world.asked = self.generation;
        while self.done(all) < self.generation {
            let applied = self.reports.recv_timeout(Duration::from_secs(60)).context("the kernel thread is silent")?;
            self.hear(applied);
        }
        ensure!(self.world.programmed.failures.is_empty(), "refused: {:?}", self.world.programmed.failures);
        Ok(())
    }

    fn done(&self, all: bool) -> u64 {
        if all { self.world.programmed.generation } else { self.world.programmed.pods_generation }
    }

    fn hear(&mut self, applied: Applied) {
        let programmed = Programmed {
            generation: applied.generation,
            pods_generation: applied.pods_generation,
            mirror: applied.mirror,
            failures: applied.failures.iter().map(Failure::told).collect(),
            read: true,
            ..Programmed::default()
        };
        self.world.programmed(programmed, applied.host, Instant::now());
    }
}

/// Takes this process into a namespace with one link, which has this address.
pub fn isolate(address: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of its own (this needs root)")?;
    let on_link = format!("addr add {address} dev eth0");
    for line in ["link add eth0 type veth peer name far", &on_link, "link set far up", "link set eth0 up"] {
        let status = std::process::Command::new("ip").args(line.split(' ')).status()?;
        ensure!(status.success(), "ip {line}: {status}");
    }
    Ok(())
}

/// One line of milliseconds.
#[allow(clippy::print_stdout, reason = "an example's output is its product")]
pub fn print(times: &[Duration]) {
    println!("{}", times.iter().map(|time| (time.as_secs_f64() * 1e3).to_string()).collect::<Vec<_>>().join(" "));
}
