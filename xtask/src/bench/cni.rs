//! CNI: what ADD and DEL take, beside the stock plugins called the same way on the same machine in the same run.
//!
//! Ratios are ours / theirs: less is better. Ours attaches both families, the stock plugins IPv4 alone (with IPv6 `ptp`
//! waits for duplicate address detection). Processor time is that of all processes of a call, and of our agent.

use super::{
    figure::{Arm, Report, Samples, interleave, number},
    program::Program,
};
use crate::command::{self, Result};
use std::{path::PathBuf, process::Command};

pub(super) const FIGURES: &[&str] = &[
    "cni.add_p50.vs_ptp",
    "cni.del_p50.vs_ptp",
    "cni.add16_p99.vs_ptp",
    "cni.add_hostport_p50.vs_portmap",
    "cni.add_p50.vs_ptp_today",
    "cni.del_p50.vs_ptp_today",
    "cni.add16_p99.vs_ptp_today",
    "cni.add_hostport_p50.vs_portmap_today",
    "cni.add_p99_relist.vs_quiet",
    "cni.noise",
];

/// The stock plugins of today, for Go to build from its module proxy. Debian's are years older.
const TODAY: &str = "github.com/containernetworking/plugins";
const TODAY_VERSION: &str = "v1.9.0";
const TODAY_PLUGINS: [&str; 3] = ["plugins/main/ptp", "plugins/ipam/host-local", "plugins/meta/portmap"];

/// Whose plugins, as the bench program calls them, and the end of the figures that compare with them.
const STOCK: [(&str, &str); 2] = [("debian", ""), ("today", "_today")];

const ROUNDS: usize = 10;

/// Places of the series in an answer.
const ADD: usize = 0;
const DEL: usize = 1;
const PROCESSOR: usize = 2;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let today = todays_plugins();
    let folder = today.as_ref().ok().map(|folder| folder.to_string_lossy().into_owned());
    let subject: Vec<&str> = std::iter::once("cni").chain(folder.as_deref()).collect();
    let program = Program::start(&subject)?;
    let stock = &STOCK[..if today.is_ok() { 2 } else { 1 }];
    sequential(report, &program, stock)?;
    parallel(report, &program, stock)?;
    with_port(report, &program, stock)?;
    if let Err(error) = today {
        for figure in FIGURES.iter().filter(|figure| figure.ends_with("_today")) {
            report.missing(figure, &format!("today's plugins could not be built: {error}"));
        }
    }
    during_relist(report, &program)?;
    report.noise("cni.noise");
    Ok(())
}

fn sequential(report: &mut Report, program: &Program, stock: &[(&str, &str)]) -> Result<()> {
    let arms = compared(report, program, stock, |plugins| format!("seq {plugins} 20"))?;
    say(report, "one after the other", stock, &arms);
    for ((_, end), theirs) in stock.iter().zip(&arms[1..]) {
        report.figure(figure("cni.add_p50.vs_ptp", end), arms[0].ratio(theirs, ADD, Samples::p50), "ratio");
        report.figure(figure("cni.del_p50.vs_ptp", end), arms[0].ratio(theirs, DEL, Samples::p50), "ratio");
    }
    Ok(())
}

fn parallel(report: &mut Report, program: &Program, stock: &[(&str, &str)]) -> Result<()> {
    let arms = compared(report, program, stock, |plugins| format!("par {plugins} 3"))?;
    say(report, "16 at once", stock, &arms);
    for ((_, end), theirs) in stock.iter().zip(&arms[1..]) {
        report.figure(figure("cni.add16_p99.vs_ptp", end), arms[0].ratio(theirs, ADD, Samples::p99), "ratio");
    }
    Ok(())
}

fn with_port(report: &mut Report, program: &Program, stock: &[(&str, &str)]) -> Result<()> {
    let arms = compared(report, program, stock, |plugins| format!("seq {plugins}+port 5"))?;
    say(report, "with a port mapping", stock, &arms);
    for ((_, end), theirs) in stock.iter().zip(&arms[1..]) {
        let name = figure("cni.add_hostport_p50.vs_portmap", end);
        report.figure(name, arms[0].ratio(theirs, ADD, Samples::p50), "ratio");
    }
    Ok(())
}

/// ADD with 5,000 nodes in the store, quiet and while the agent lists and plans them again and again.
fn during_relist(report: &mut Report, program: &Program) -> Result<()> {
    program.ask("fill")?;
    let ask = |question: &'static str| Arm::new(move || program.ask(question));
    let mut arms = [ask("relist 20"), ask("seq ours 20"), ask("seq ours 20")];
    interleave(ROUNDS, &mut arms)?;
    let [relist, quiet, twin] = &arms;
    report.twins(twin.ratio(quiet, ADD, Samples::p99).get());
    let times = |arm: &Arm<'_>| {
        let value = |statistic| number(arm.value(ADD, statistic).get());
        format!("p50={} p99={}", value(Samples::p50), value(Samples::p99))
    };
    report.comment(&format!("cni ADD ms, 5,000 nodes: quiet {}; during relists {}", times(quiet), times(relist)));
    report.figure("cni.add_p99_relist.vs_quiet", relist.ratio(quiet, ADD, Samples::p99), "ratio");
    Ok(())
}

/// Ours first, then the stock ones in their order; the first of them has a twin.
fn compared<'a>(
    report: &mut Report,
    program: &'a Program,
    stock: &[(&str, &str)],
    question: impl Fn(&str) -> String,
) -> Result<Vec<Arm<'a>>> {
    let plugins = std::iter::once(&("ours", "")).chain(stock).chain(stock.first());
    let mut arms: Vec<Arm<'a>> = plugins
        .map(|(plugins, _)| {
            let question = question(plugins);
            Arm::new(move || program.ask(&question))
        })
        .collect();
    interleave(ROUNDS, &mut arms)?;
    let twin = arms.pop().ok_or("nothing was compared")?;
    report.twins(twin.ratio(&arms[1], ADD, Samples::p50).get());
    Ok(arms)
}

fn say(report: &Report, how: &str, stock: &[(&str, &str)], arms: &[Arm<'_>]) {
    let names = std::iter::once("ours").chain(stock.iter().map(|(plugins, _)| *plugins));
    for (name, arm) in names.zip(arms) {
        let value = |series, statistic: fn(&Samples) -> f64| number(arm.value(series, statistic).get());
        report.comment(&format!(
            "cni {how}, {name}: ms ADD p50={} p99={} DEL p50={} p99={}; processor, ADD and DEL={}",
            value(ADD, Samples::p50),
            value(ADD, Samples::p99),
            value(DEL, Samples::p50),
            value(DEL, Samples::p99),
            value(PROCESSOR, Samples::p50),
        ));
    }
}

fn figure(name: &str, end: &str) -> &'static str {
    FIGURES.iter().find(|figure| figure.strip_prefix(name) == Some(end)).expect("FIGURES holds both stock versions")
}

/// Builds today's stock plugins, unless an earlier run has; gives their folder.
fn todays_plugins() -> Result<PathBuf> {
    let folder = command::target_dir().join(format!("cni-plugins-{TODAY_VERSION}"));
    let built = |plugin: &str| folder.join(plugin.rsplit('/').next().unwrap_or(plugin)).exists();
    if TODAY_PLUGINS.iter().all(|plugin| built(plugin)) {
        return Ok(folder);
    }
    let mut go = Command::new("go");
    go.env("GOBIN", &folder).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").arg("install");
    // Their version says what was built; elsewhere than in a checkout, no go.mod of ours is looked for.
    go.current_dir("/").args(TODAY_PLUGINS.map(|plugin| format!("{TODAY}/{plugin}@{TODAY_VERSION}")));
    command::run(&mut go)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_both_stock_versions_are_told_apart() {
        assert_eq!(figure("cni.add_p50.vs_ptp", ""), "cni.add_p50.vs_ptp");
        assert_eq!(figure("cni.add_p50.vs_ptp", "_today"), "cni.add_p50.vs_ptp_today");
    }
}
