//! Act one: the fabric changes while packets flow.

use std::time::Duration;

use anyhow::Result;
use tartan_lab::Lab;
use tartan_lab::probe::{Load, LoadReport, around, pairs, wait_for};

use crate::client;
use crate::output::say;

/// Probes answered before, between and after the changes.
const PROBES: u64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// vxlan → host-gw → vxlan under load. Returns how many probes were lost.
pub(super) fn act(lab: &mut Lab) -> Result<u64> {
    let node = lab.nodes()[0].name().to_owned();
    let routes = |lab: &Lab| -> Result<String> { lab.node(&node)?.output(&["ip", "route", "show", "proto", "84"]) };
    say(format_args!("{node}: ip route show, before\n{}", indent(&routes(lab)?)))?;
    let load = load(lab).start()?;
    load.wait_for_answers(PROBES, PATIENCE)?;
    for fabric in ["host-gw", "vxlan"] {
        lab.set_fabric(fabric)?;
        let took = wait_for(PATIENCE, &format!("every node to be steady on {fabric}"), || is_steady(lab, fabric))?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        say(format_args!("→ {fabric}: all nodes steady after {:.1} s", took.as_secs_f64()))?;
        if fabric == "host-gw" {
            say(format_args!("{node}: ip route show, after\n{}", indent(&routes(lab)?)))?;
        }
    }
    let report = load.stop()?;
    show(&report)?;
    Ok(report.udp.lost)
}

/// Six TCP streams around the pods, and a UDP probe a millisecond between every two pods.
pub(super) fn load(lab: &Lab) -> Load {
    let pods = lab.pod_endpoints();
    Load::new().udp(pairs(&pods)).tcp_bulk(around(&pods))
}

/// What the probes counted.
pub(super) fn show(report: &LoadReport) -> Result<()> {
    let (udp, tcp) = (&report.udp, &report.tcp);
    say(format_args!(
        "  lost {} of {} probes, longest gap {:.1} ms ({}); TCP: {} streams, {} resets, {} retransmits",
        udp.lost,
        udp.probes,
        udp.longest_gap.as_secs_f64() * 1e3,
        udp.gap_on,
        tcp.bulk,
        tcp.resets,
        tcp.retransmits
    ))?;
    tcp.broken.iter().try_for_each(|line| say(format_args!("  {line}")))
}

/// Whether every agent says that all packets go by this fabric and nothing of another is left.
pub(super) fn is_steady(lab: &Lab, fabric: &str) -> bool {
    lab.nodes().iter().all(|node| {
        client::status(&node.socket()).is_ok_and(|status| {
            let by_it = |peer: &tartan_api::status::Peer| peer.live && peer.fabric.starts_with(fabric);
            status.phase == "steady" && status.fabric == fabric && status.peers.iter().all(by_it)
        })
    })
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
