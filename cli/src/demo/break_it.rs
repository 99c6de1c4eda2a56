//! Act two: what breaks other networks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tartan_api::status::Status;
use tartan_lab::probe::{Running, wait_for};
use tartan_lab::{Lab, Node};

use super::change::{load, show};
use crate::client;
use crate::output::say;

const PROBES: u64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills an agent, deletes a device, drops forwarded packets. Returns how many probes the first lost: nothing else
/// here can be without loss.
pub(super) fn act(lab: &mut Lab) -> Result<u64> {
    let lost = kill(lab)?;
    delete_device(lab)?;
    foreign_drop(lab)?;
    Ok(lost)
}

fn kill(lab: &Lab) -> Result<u64> {
    let node = &lab.nodes()[0];
    say(format_args!("kill -9 of the agent of {}", node.name()))?;
    let load = started(lab)?;
    node.kill_agent()?;
    load.wait_for_answers(PROBES, PATIENCE)?;
    let back = Instant::now();
    node.start_agent()?;
    node.wait_ready()?;
    let back = back.elapsed();
    load.wait_for_answers(PROBES, PATIENCE)?;
    let report = load.stop()?;
    show(&report)?;
    let changes = client::status(&node.socket())?.kernel.applied;
    say(format_args!(
        "  ready again {:.0} ms after its start; kernel changes it needed: {changes}",
        back.as_secs_f64() * 1e3
    ))?;
    Ok(report.udp.lost)
}

fn delete_device(lab: &Lab) -> Result<()> {
    let node = &lab.nodes()[1];
    let device = vxlan_device(node)?;
    say(format_args!("\nip link del {device} on {}", node.name()))?;
    let load = started(lab)?;
    let gone = Instant::now();
    node.output(&["ip", "link", "del", &device])?;
    let whole = |node: &Node| Ok::<_, anyhow::Error>(vxlan_device(node).is_ok() && carries(node, &device)?);
    wait_for(PATIENCE, "the device to be back with all that hung on it", || whole(node).unwrap_or(false))?;
    let repaired = gone.elapsed();
    load.wait_for_answers(PROBES, PATIENCE)?;
    show(&load.stop()?)?;
    say(format_args!(
        "  repaired in {:.0} ms, routes, neighbours and forwarding entries with it",
        repaired.as_secs_f64() * 1e3
    ))
}

fn foreign_drop(lab: &mut Lab) -> Result<()> {
    let node = lab.nodes()[2].name().to_owned();
    say(format_args!("\nSomebody's firewall on {node}: table ip filter, chain FORWARD, policy drop"))?;
    lab.set_config(&serde_json::Map::from_iter([("hostFirewall".into(), "report".into())]))?;
    let drop_all =
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    lab.node(&node)?.output(&["nft", drop_all])?;
    let status = blocked(lab.node(&node)?, true)?;
    for condition in status.conditions.iter().filter(|condition| condition.reason == "ForwardBlocked") {
        say(format_args!("  {}\n  Fix: {}", condition.message, condition.fix))?;
    }
    say(format_args!("  tartan set hostFirewall open"))?;
    lab.set_config(&serde_json::Map::from_iter([("hostFirewall".into(), "open".into())]))?;
    blocked(lab.node(&node)?, false)?;
    lab.wait_for_matrix(PATIENCE)?;
    say(format_args!("  every pod reaches every other one again"))?;
    lab.node(&node)?.output(&["nft", "delete table ip filter"])?;
    Ok(())
}

fn started(lab: &Lab) -> Result<Running> {
    let load = load(lab).start()?;
    load.wait_for_answers(PROBES, PATIENCE)?;
    Ok(load)
}

fn vxlan_device(node: &Node) -> Result<String> {
    let listing = node.output(&["ip", "-o", "link", "show", "type", "vxlan"])?;
    let name = listing.split_whitespace().nth(1).context("there is no vxlan device")?;
    Ok(name.trim_end_matches(':').to_owned())
}

/// Both peers' routes, neighbours and forwarding entries are on the device.
fn carries(node: &Node, device: &str) -> Result<bool> {
    let lines = |argv: &[&str]| Ok::<_, anyhow::Error>(node.output(argv)?.lines().count());
    Ok(lines(&["ip", "route", "show", "dev", device])? >= 2
        && lines(&["ip", "-6", "route", "show", "dev", device, "proto", "84"])? >= 2
        && lines(&["ip", "neigh", "show", "dev", device, "nud", "permanent"])? >= 4
        && lines(&["bridge", "fdb", "show", "dev", device])? >= 2)
}

fn blocked(node: &Node, wanted: bool) -> Result<Status> {
    let mut last = Status::default();
    wait_for(PATIENCE, "the agent to judge the firewall", || match client::status(&node.socket()) {
        Ok(status) => {
            last = status;
            last.conditions.iter().any(|condition| condition.reason == "ForwardBlocked") == wanted
        }
        Err(_) => false,
    })?;
    Ok(last)
}
