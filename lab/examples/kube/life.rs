//! What a cluster goes through while its pods talk, and what that cost them.
//!
//! Invariant: an event has happened when its function returns, seen on the nodes and not concluded from what was asked
//! for; probes run before it, through it and after it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tartan_lab::probe::{Load, LoadReport, Running, pairs, wait_for};
use tartan_lab::{Echo, Endpoint};

use crate::cluster::Cluster;
use crate::machine::{Machine, inode, processes_of_pod};
use crate::pods::{self, PATIENCE};

/// A node comes back with all its images on disk; that, too, takes time on a busy machine.
const REBOOT_PATIENCE: Duration = Duration::from_secs(180);
/// Three agents one after another, each until it is ready.
const ROLL_PATIENCE: Duration = Duration::from_secs(180);
const AGENTS: [&str; 2] = ["--namespace=tartan-system", "daemonset/tartan-agent"];
/// Probes answered before the event, and after it.
const ANSWERS: u64 = 2_000;
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
/// loses its sandbox and gets a new one.
pub(crate) fn api_server_away(cluster: &mut Cluster, length: Duration, victim: &str, from: &Endpoint) -> Result<()> {
    let uid = pods::uid(cluster, victim)?;
    cluster.control_mut()?.kill_api_server()?;
    let since = Instant::now();
    kill_agent(cluster, "n2")?;
    lose_sandbox(victim, &uid, from)?;
    wait_for(length, "the time that the API server is to be away", || since.elapsed() >= length)?;
    cluster.control_mut()?.start_api_server()
}

/// Kills the node's agent and waits for another one.
pub(crate) fn kill_agent(cluster: &Cluster, node: &str) -> Result<()> {
    kill_process(cluster, node, "/tartan\0agent\0")
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
    let lost =
        pods::seen(name, uid).as_ref().and_then(network).with_context(|| format!("pod {name} has no network"))?;
    for process in processes_of_pod(uid) {
        // One that goes with another is gone as well.
        kill(Pid::from_raw(process), Signal::SIGKILL)
            .or_else(|error| if error == Errno::ESRCH { Ok(()) } else { Err(error) })?;
    }
    let another = |pod: &Endpoint| network(pod).is_some_and(|network| network != lost);
    let back = || pods::seen(name, uid).is_some_and(|pod| another(&pod) && pods::answers(from, &pod));
    wait_for(PATIENCE, &format!("{name} to be back in a network of its own"), back).map(drop)
}

/// Has kubectl replace the agents, node by node: how many nodes went out of service meanwhile.
pub(crate) fn roll(cluster: &Cluster, how: &[&str]) -> Result<usize> {
    let before = ready_since(cluster)?;
    replace(cluster, how)?;
    let after = ready_since(cluster)?;
    ensure!(before.len() == after.len(), "there were other nodes before: {before:?}, {after:?}");
    Ok(before.iter().zip(&after).filter(|(before, after)| before != after).count())
}

fn replace(cluster: &Cluster, how: &[&str]) -> Result<()> {
    let before = agents(cluster);
    cluster.kubectl(how)?;
    let timeout = format!("--timeout={}s", ROLL_PATIENCE.as_secs());
    cluster.kubectl(&["rollout", "status", &timeout, AGENTS[0], AGENTS[1]])?;
    let after = agents(cluster);
    let kept = before.iter().zip(&after).any(|(before, after)| before == after || after.is_none());
    ensure!(!kept, "the agents were {before:?} and are {after:?}: not each was replaced");
    Ok(())
}

/// When each node last became ready, or ceased to be.
fn ready_since(cluster: &Cluster) -> Result<Vec<String>> {
    let since = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    Ok(cluster.kubectl(&["get", "nodes", "--output", since])?.lines().map(str::to_owned).collect())
}

/// Takes the agents away, leaves the pods to themselves for some answers, and brings the agents back.
pub(crate) fn without_agents(cluster: &Cluster, load: &Running, manifest: &str) -> Result<()> {
    cluster.kubectl(&["delete", "--wait", AGENTS[0], AGENTS[1]])?;
    wait_for(PATIENCE, "the end of all agents", || agents(cluster).iter().all(Option::is_none))?;
    load.wait_for_answers(10 * ANSWERS, PATIENCE)?;
    replace(cluster, &["apply", "--filename", manifest])
}

fn agents(cluster: &Cluster) -> Vec<Option<i32>> {
    cluster.machines().iter().map(Machine::agent).collect()
}

/// The node's processes, network and kernel state go; it starts again from its disk, and the pod is back in a network of
/// its own. What the kernel calls the boot is the machine's and stays: pods of before are told by their namespaces only.
pub(crate) fn reboot(cluster: &mut Cluster, node: &str, pod: &str, from: &Endpoint) -> Result<()> {
    let uid = pods::uid(cluster, pod)?;
    cluster.reboot(node)?;
    let back = || pods::seen(pod, &uid).is_some_and(|pod| pods::answers(from, &pod));
    wait_for(REBOOT_PATIENCE, &format!("{pod} to be reached after {node} was rebooted"), back).map(drop)
}
