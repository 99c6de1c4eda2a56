//! What a cluster goes through while its pods talk, and what that cost them.
//!
//! Invariant: an event has happened when its function returns, seen on the nodes and not concluded from what was asked
//! for; probes run before it, through it and after it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tartan_lab::probe::{Load, LoadReport, Running, pairs, wait_for};
use tartan_lab::{Echo, Endpoint};

use crate::agents::TARTAN;
use crate::cluster::Cluster;
use crate::machine::{inode, processes_of_pod};
use crate::pods::{self, PATIENCE};

/// A node comes back with all its images on disk; that, too, takes time on a busy machine.
const REBOOT_PATIENCE: Duration = Duration::from_secs(180);
/// Probes answered before the event, and after it.
pub(crate) const ANSWERS: u64 = 2_000;
/// Between two on one flow: what is lost in between is lost for this long.
const INTERVAL: Duration = Duration::from_millis(5);

/// Has all these pods talk to each other through the event.
pub(crate) fn through(pods: &[Endpoint], event: impl FnOnce(&Running) -> Result<()>) -> Result<LoadReport> {
    let echoes = pods.iter().map(|pod| Echo::serve(&pod.netns, &pod.name)).collect::<Result<Vec<_>>>()?;
    let load = Load::new().interval(INTERVAL).udp(pairs(pods)).udp_mtu_sized(pairs(pods));
    let load = load.tcp_bulk(pairs(pods)).tcp_idle(pairs(pods)).start()?;
    load.wait_for_answers(ANSWERS, PATIENCE)?;
    event(&load)?;
    load.wait_for_answers(ANSWERS, PATIENCE)?;
    let report = load.stop();
    drop(echoes);
    report
}

/// The API server is killed and away for `length`. Meanwhile an agent dies and starts again, and a pod of another node
/// loses its sandbox and gets a new one, at the beginning and once more at the end.
pub(crate) fn api_server_away(cluster: &mut Cluster, length: Duration, victim: &str, from: &Endpoint) -> Result<()> {
    let uid = pods::uid(cluster, victim)?;
    cluster.control_mut()?.kill_api_server()?;
    let since = Instant::now();
    kill_process(cluster, "n2", TARTAN.begins)?;
    lose_sandbox(victim, &uid, from)?;
    wait_for(length, "the time that the API server is to be away", || since.elapsed() >= length)?;
    lose_sandbox(victim, &uid, from)?;
    cluster.control_mut()?.start_api_server()
}

/// Kills a program of the node by how its command line begins, and waits until it runs again.
pub(crate) fn kill_process(cluster: &Cluster, node: &str, begins: &str) -> Result<()> {
    let machine = cluster.machine(node)?;
    let program = begins.replace('\0', " ");
    let process = || machine.process(begins.as_bytes());
    let killed = process().with_context(|| format!("{node} has no {program}"))?;
    kill(Pid::from_raw(killed), Signal::SIGKILL)?;
    wait_for(PATIENCE, &format!("another {program}on {node}"), || process().is_some_and(|now| now != killed)).map(drop)
}

/// Kills all of the pod, what holds its namespaces included, and waits until it has others, in which it is reached.
fn lose_sandbox(name: &str, uid: &str, from: &Endpoint) -> Result<()> {
    let network = |pod: &Endpoint| inode(&pod.netns.path());
    let before = pods::seen(name, uid).with_context(|| format!("pod {name} has no network"))?;
    // The number of a namespace that is gone is given to the next one; while this is open, it is not gone.
    let lost = File::open(before.netns.path()).with_context(|| format!("entering the network of {name}"))?;
    let number = lost.metadata()?.ino();
    for process in processes_of_pod(uid) {
        // One that goes with another is gone as well.
        kill(Pid::from_raw(process), Signal::SIGKILL)
            .or_else(|error| if error == Errno::ESRCH { Ok(()) } else { Err(error) })?;
    }
    let another = |pod: &Endpoint| network(pod).is_some_and(|network| network != number);
    let back = || pods::seen(name, uid).is_some_and(|pod| another(&pod) && pods::answers(from, &pod));
    wait_for(PATIENCE, &format!("{name} to be back in a network of its own"), back)?;
    drop(lost);
    Ok(())
}

/// The node's processes, network and kernel state go; it starts again from its disk, and the pod is back in a network of
/// its own. What the kernel calls the boot is the machine's and stays: pods of before are told by their namespaces only.
pub(crate) fn reboot(cluster: &mut Cluster, node: &str, pod: &str, from: &Endpoint) -> Result<()> {
    let uid = pods::uid(cluster, pod)?;
    cluster.reboot(node)?;
    let back = || pods::seen(pod, &uid).is_some_and(|pod| pods::answers(from, &pod));
    wait_for(REBOOT_PATIENCE, &format!("{pod} to be reached after {node} was rebooted"), back).map(drop)
}
