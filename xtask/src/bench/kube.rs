//! What a cluster notices of upgrades and of an API server that is away, what a pod's start costs, and the same with the real
//! Flannel: beside Tartan, and on nodes that go over one by one.
//!
//! The measuring is the harness's, `lab/examples/kube/measure.rs`; a line `NAME VALUE` is a figure.

use super::figure::{Report, Value};
use crate::{command::Result, kube};

pub(super) const FIGURES: &[&str] = &[
    "kube.rss_idle",
    "kube.downgrade.lost",
    "kube.upgrade.lost",
    "kube.first_packet_p99",
    "kube.first_packet_p99.vs_stock",
    "kube.api_requests_per_pod",
    "kube.apiserver_away.lost",
    "kube.apiserver_away.requests",
    "kube.killed.lost",
    "kube.agents_gone.lost",
    "kube.reboot.back",
    "kube.reboot.others_lost",
    "kube.join_first_packet",
    "kube.upgrade.lost.flannel",
    "kube.killed.lost.flannel",
    "kube.agents_gone.lost.flannel",
    "kube.reboot.back.flannel",
    "kube.reboot.others_lost.flannel",
    "kube.flannel_mixed.failed",
    "kube.flannel_mixed.lost",
    "kube.rss_20000",
    "kube.rss_20000_peak",
    "kube.cpu_20000",
    "kube.events_20000",
    "kube.bytes_20000",
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let mut figures = Vec::new();
    let whole = kube::measure(|line| figures.extend(figure(line)))?;
    for (name, value) in figures {
        report.figure(name, Value::once(value), unit(name));
    }
    if whole { Ok(()) } else { Err("the cluster ended before it: see what it said".into()) }
}

/// `kube.rss_idle 21.5`, among all that is said.
fn figure(line: &str) -> Option<(&'static str, f64)> {
    let (name, value) = line.split_once(' ')?;
    Some((FIGURES.iter().find(|figure| **figure == name)?, value.parse().ok()?))
}

fn unit(name: &str) -> &'static str {
    match name {
        "kube.rss_idle" | "kube.rss_20000" | "kube.rss_20000_peak" => "mib",
        "kube.first_packet_p99" => "ms",
        "kube.first_packet_p99.vs_stock" => "ratio",
        "kube.join_first_packet" | "kube.reboot.back" | "kube.reboot.back.flannel" => "s",
        "kube.cpu_20000" => "percent",
        "kube.events_20000" => "1/s",
        "kube.bytes_20000" => "kib/s",
        _ => "count",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_what_is_said() {
        assert_eq!(figure("kube.rss_idle 21.5"), Some(("kube.rss_idle", 21.5)));
        for line in ["kube.rss_idle", "kube.rss_idle much", "kube.other 1", "# kube.rss_idle 3"] {
            assert_eq!(figure(line), None, "{line}");
        }
        assert_eq!(FIGURES.iter().map(|name| unit(name)).filter(|unit| *unit == "count").count(), 14);
    }
}
