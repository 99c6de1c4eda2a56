//! A pod's first packet: a stand-in for the plugin that calls it and then, before the runtime hears of the result, has
//! the pod ask an echo server of another node. What that took, from the call to the answer, is a line in a file.
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

const PLUGIN: &str = "/opt/cni/bin/tartan-cni";
const REAL: &str = "/opt/cni/bin/tartan-cni.real";
/// On each node.
const TIMES: &str = "/var/log/first-packets";
/// Between two tries: what is not carried is not carried for this long.
const AGAIN: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts the stand-in on every node; what pods of each are to ask is in the nodes' order.
pub(crate) fn watch(cluster: &Cluster, targets: impl Iterator<Item = [IpAddr; 2]>) -> Result<()> {
    let program = this_program()?;
    for (machine, [v4, v6]) in cluster.machines().iter().zip(targets) {
        let script = format!("#!/bin/sh\nexec {} first-packet {v4} {v6}\n", program.display());
        machine.run(&["cp", PLUGIN, REAL])?;
        machine.write(PLUGIN, script.as_bytes(), "0755")?;
    }
    Ok(())
}

/// Takes the stand-in away again: all times it has written, in ms. A packet without an answer is an error.
pub(crate) fn times(cluster: &Cluster) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for machine in cluster.machines() {
        machine.run(&["mv", REAL, PLUGIN])?;
        let said = machine.run(&["cat", TIMES])?;
        let read = |line: &str| line.parse::<f64>().with_context(|| format!("{}: {line}", machine.name));
        times.extend(said.lines().map(read).collect::<Result<Vec<_>>>()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The stand-in itself.
pub(crate) fn run(targets: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let mut plugin = Command::new(REAL).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(REAL)?;
    plugin.stdin.take().context("piped")?.write_all(&input)?;
    let said = plugin.wait_with_output()?;
    if env::var("CNI_COMMAND").is_ok_and(|command| command == "ADD") && said.status.success() {
        let line = match targets.iter().try_for_each(|target| ask(target.parse()?)) {
            Ok(()) => format!("{:.3}\n", start.elapsed().as_secs_f64() * 1e3),
            Err(error) => format!("{error:#}\n"),
        };
        // One write a line: plugins run side by side.
        File::options().create(true).append(true).open(TIMES)?.write_all(line.as_bytes())?;
    }
    std::io::stdout().write_all(&said.stdout)?;
    ensure!(said.status.success(), "{REAL}: {}", said.status);
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
