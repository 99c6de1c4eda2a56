//! A pod's first packet: a stand-in for the plugin that calls it and then, before the runtime hears of the result, has
//! the pod ask an echo server of another node. What the plugin took, and what it was from the call to the answer, is a
//! line in a file.
//!
//! Invariant: the runtime is told what the plugin said, whatever became of the packet; a packet that is not answered is a
//! line as well.

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tartan_lab::{ECHO_PORT, Netns};

use crate::cluster::Cluster;
use crate::this_program;

const PLUGINS: &str = "/opt/cni/bin";
/// On each node.
const TIMES: &str = "/var/log/first-packets";
/// Between two tries: what is not carried is not carried for this long.
const AGAIN: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts the stand-in for a plugin on every node; what pods of each are to ask is in the nodes' order.
pub(crate) fn watch(cluster: &Cluster, plugin: &str, targets: impl Iterator<Item = [IpAddr; 2]>) -> Result<()> {
    let (program, (plugin, real)) = (this_program()?, files(plugin));
    for (machine, [v4, v6]) in cluster.machines().iter().zip(targets) {
        let script = format!("#!/bin/sh\nexec {} first-packet {real} {v4} {v6}\n", program.display());
        machine.run(&["cp", &plugin, &real])?;
        machine.write(&plugin, script.as_bytes(), "0755")?;
    }
    Ok(())
}

/// Takes the stand-in away again. In ms, each sorted: what the plugin took, and until a packet was answered. A packet
/// without an answer is an error.
pub(crate) fn times(cluster: &Cluster, plugin: &str) -> Result<[Vec<f64>; 2]> {
    let (plugin, real) = files(plugin);
    let mut times = [Vec::new(), Vec::new()];
    for machine in cluster.machines() {
        machine.run(&["mv", &real, &plugin])?;
        let said = machine.run(&["cat", TIMES])?;
        machine.run(&["rm", TIMES])?;
        for line in said.lines() {
            let read = line.split_once(' ').and_then(|(add, answer)| Some([add.parse().ok()?, answer.parse().ok()?]));
            let read: [f64; 2] = read.with_context(|| format!("{}: {line}", machine.name))?;
            times.iter_mut().zip(read).for_each(|(times, time)| times.push(time));
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(times)
}

/// Where the runtime looks for a plugin, and where that one is meanwhile.
fn files(plugin: &str) -> (String, String) {
    (format!("{PLUGINS}/{plugin}"), format!("{PLUGINS}/{plugin}.real"))
}

/// The stand-in itself.
pub(crate) fn run(real: &str, targets: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let mut plugin =
        Command::new(real).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| real.to_owned())?;
    plugin.stdin.take().context("piped")?.write_all(&input)?;
    let said = plugin.wait_with_output()?;
    let since_start = || start.elapsed().as_secs_f64() * 1e3;
    let added = since_start();
    if env::var("CNI_COMMAND").is_ok_and(|command| command == "ADD") && said.status.success() {
        let line = match targets.iter().try_for_each(|target| ask(target.parse()?)) {
            Ok(()) => format!("{added:.3} {:.3}\n", since_start()),
            Err(error) => format!("{error:#}\n"),
        };
        // One write a line: plugins run side by side.
        File::options().create(true).append(true).open(TIMES)?.write_all(line.as_bytes())?;
    }
    std::io::stdout().write_all(&said.stdout)?;
    ensure!(said.status.success(), "{real}: {}", said.status);
    Ok(())
}

/// Has the pod ask until it is answered.
fn ask(target: IpAddr) -> Result<()> {
    let netns = env::var("CNI_NETNS")?;
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Netns::at(Path::new(&netns)).run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(AGAIN))?;
        let (start, mut answer) = (Instant::now(), [0; 16]);
        while start.elapsed() < PATIENCE {
            // No way yet is no answer yet.
            let _ = socket.send_to(&[1; 16], SocketAddr::new(target, ECHO_PORT));
            if socket.recv(&mut answer).is_ok() {
                ensure!(answer == [1; 16], "{target} answered something else");
                return Ok(());
            }
        }
        bail!("{target} did not answer in {} s", PATIENCE.as_secs())
    })?
}
