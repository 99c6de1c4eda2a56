//! What a cluster notices of upgrades and of an API server that is away, what a pod's start costs, and the same with the real
//! Flannel: beside Tartan, and on nodes that go over one by one.
//!
//! The measuring is the harness's, `lab/examples/kube/measure.rs`; a line `NAME VALUE` is a figure.

use super::figure::{Report, Value, number};
use crate::{command::Result, kube};

pub(super) const FIGURES: &[&str] = &[
    "kube.rss_idle",
    "kube.rss_idle_peak",
    "kube.cpu_idle",
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

/// What befalls both networks, and the figures that say what came of it; Flannel's have its name behind them.
const SURVIVED: [(&str, &str); 5] = [
    ("agents replaced: lost", "kube.upgrade.lost"),
    ("agents killed: lost", "kube.killed.lost"),
    ("no agents for a while: lost", "kube.agents_gone.lost"),
    ("a node rebooted: lost between the others", "kube.reboot.others_lost"),
    ("a node rebooted: seconds until its pod is reached", "kube.reboot.back"),
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let mut figures = Vec::new();
    let whole = kube::measure(|line| figures.extend(figure(line)))?;
    side_by_side(&figures).iter().for_each(|line| report.comment(line));
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

/// A line for each event: Tartan's figure and Flannel's.
fn side_by_side(figures: &[(&str, f64)]) -> Vec<String> {
    let row = |what: &str, tartan: &str, flannel: &str| format!("{what:<50} {tartan:>8} {flannel:>8}");
    let value = |name: &str| {
        let found = figures.iter().find(|(figure, _)| *figure == name);
        found.map_or_else(|| "-".to_owned(), |(_, value)| number(*value))
    };
    let rows = SURVIVED.map(|(what, name)| row(what, &value(name), &value(&format!("{name}.flannel"))));
    std::iter::once(row("", "tartan", "flannel")).chain(rows).collect()
}

fn unit(name: &str) -> &'static str {
    match name {
        "kube.rss_idle" | "kube.rss_idle_peak" | "kube.rss_20000" | "kube.rss_20000_peak" => "mib",
        "kube.first_packet_p99" => "ms",
        "kube.first_packet_p99.vs_stock" => "ratio",
        "kube.join_first_packet" | "kube.reboot.back" | "kube.reboot.back.flannel" => "s",
        "kube.cpu_idle" | "kube.cpu_20000" => "ratio",
        "kube.bytes_20000" => "bytes",
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
        assert_eq!(FIGURES.iter().map(|name| unit(name)).filter(|unit| *unit == "count").count(), 15);
    }

    #[test]
    fn both_networks_stand_side_by_side() {
        let flannels = SURVIVED.map(|(_, name)| format!("{name}.flannel"));
        let known = |name: &str| FIGURES.contains(&name);
        assert!(SURVIVED.iter().all(|(_, name)| known(name)) && flannels.iter().all(|name| known(name)));
        let lines = side_by_side(&[("kube.killed.lost", 0.0), ("kube.killed.lost.flannel", 12.0)]);
        let wanted = format!("{:<50} {:>8} {:>8}", "agents killed: lost", "0", "12.00");
        assert!(lines.contains(&wanted) && lines.iter().any(|line| line.ends_with("-        -")), "{lines:#?}");
    }
}
