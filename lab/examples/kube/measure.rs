//! Figures of a cluster with Tartan: a line `NAME VALUE` each, and what is behind them.
//!
//! Invariant: a figure is printed when it was measured and not otherwise; `cargo xtask bench kube` says which are missing.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use tartan_lab::probe::{LoadReport, Talk, Transport, wait_for};
use tartan_lab::{Echo, Family, Signals, cpu_of};

use crate::Programs;
use crate::agents::TARTAN;
use crate::cluster::{Cluster, Wants};
use crate::machine::Machine;
use crate::{at_once, beside, life, mixed, pods, scale, tartan};

/// How long agents and API server are left alone before they are looked at.
const QUIET: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(60);
/// Seconds that the API server is away.
const AWAY: &str = "TARTAN_AWAY_SECS";
const AWAY_SECS: u64 = 30;
const LONGEST_AWAY_SECS: u64 = 1_200;
pub(crate) const TALKING: [&str; 3] = ["on-n1", "on-n2", "on-n3"];
const PATIENCE: Duration = Duration::from_secs(300);

type Part = (&'static str, fn() -> Result<()>);

/// What is measured by itself, on clusters of its own.
const PARTS: [Part; 5] = [
    ("tartan", whole_life),
    ("first", at_once::measure),
    ("flannel", beside::flannel),
    ("mixed", mixed::measure),
    ("scale", scale::run),
];

/// Takes all figures, or those of some parts.
pub(crate) fn run(parts: &[&str]) -> Result<()> {
    let _signals = Signals::hold_back()?;
    let unknown = parts.iter().find(|part| PARTS.iter().all(|(name, _)| name != *part));
    ensure!(unknown.is_none(), "`{}` is no part: {}", unknown.unwrap_or(&""), PARTS.map(|(name, _)| name).join(", "));
    PARTS.iter().filter(|(name, _)| parts.is_empty() || parts.contains(name)).try_for_each(|(_, measure)| measure())
}

/// A cluster through all that befalls it.
fn whole_life() -> Result<()> {
    let mut cluster =
        Cluster::up("kube-bench", Programs::from_environment()?, Wants { previous: true, ..Wants::default() })?;
    tartan::install(&cluster)?;
    cluster.wait_until_ready()?;
    pods::run(&cluster, pods::one_a_node(&["n1", "n2", "n3"]))?;
    let idle = idle(&cluster)?;
    rolls(&cluster)?;
    requests_per_pod(&cluster, &idle)?;
    away(&mut cluster)?;
    let manifest = tartan::manifest(&cluster)?;
    beside::survive(&mut cluster, TARTAN, &manifest, "")?;
    join(&mut cluster)
}

pub(crate) fn figure(name: &str, value: f64) {
    println!("kube.{name} {value}");
}

pub(crate) fn lost(name: &str, report: &LoadReport) {
    println!("# kube.{name}: {report}");
    figure(name, losses(report) as f64);
}

/// Packets, and connections: one that was reset or fell silent has lost what it carried.
pub(crate) fn losses(report: &LoadReport) -> u64 {
    report.udp.lost + report.tcp.resets + report.tcp.broken.len() as u64
}

/// Lets time pass.
fn quiet(length: Duration) -> Result<()> {
    let since = Instant::now();
    wait_for(length, "some quiet", || since.elapsed() >= length).map(drop)
}

/// A minute of agents with nothing to do: the memory they have and have had, the time they take, and what they ask the API
/// server: signs of life, and looks for kinds that are not there, each of which comes once in that time at least.
fn idle(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    quiet(QUIET)?;
    let agent = |machine: &Machine| machine.process(TARTAN.begins.as_bytes()).context("it has no agent");
    let agents = cluster.machines().iter().map(|machine| agent(machine).with_context(|| machine.name.clone()));
    let agents = agents.collect::<Result<Vec<i32>>>()?;
    let before = agents.iter().map(|agent| cpu_of(*agent)).collect::<Result<Vec<_>>>()?;
    let asked = requests_in(cluster, || quiet(IDLE))?;
    let mut largest = [0.0_f64; 3];
    for ((agent, before), machine) in agents.iter().zip(before).zip(cluster.machines()) {
        let status = fs::read_to_string(format!("/proc/{agent}/status"))?;
        let [now, peak] = ["VmRSS:", "VmHWM:"].map(|field| mib(&status, field));
        let (now, peak) = (now.context("VmRSS")?, peak.context("VmHWM")?);
        let cpu = (cpu_of(*agent)? - before).as_secs_f64() / IDLE.as_secs_f64();
        println!("# kube.rss_idle: {} {now:.1} MiB, at most {peak:.1}; {cpu:.4} of a core", machine.name);
        largest.iter_mut().zip([now, peak, cpu]).for_each(|(most, value)| *most = most.max(value));
    }
    ["rss_idle", "rss_idle_peak", "cpu_idle"].into_iter().zip(largest).for_each(|(name, value)| figure(name, value));
    Ok(asked)
}

/// Of a line such as `VmRSS:     12345 kB`.
pub(crate) fn mib(status: &str, field: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix(field))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<f64>().ok()? / 1024.0)
}

/// To the release before and back. Each must have pods that come then reached by those of before.
fn rolls(cluster: &Cluster) -> Result<()> {
    let talking = pods::endpoints(cluster, &TALKING)?;
    let (now, before) = (tartan::manifest(cluster)?, tartan::previous_manifest(cluster)?);
    for (name, manifest, pod) in [("downgrade.lost", before, "downgraded"), ("upgrade.lost", now, "upgraded")] {
        let mut out_of_service = Vec::new();
        let report = life::through(&talking, |_| {
            out_of_service = TARTAN.roll(cluster, &["apply", "--filename", &manifest])?;
            Ok(())
        })?;
        println!("# kube.{name}: {} nodes went out of service meanwhile", out_of_service.len());
        out_of_service.iter().for_each(|why| println!("# kube.{name}: {why}"));
        pods::run(cluster, vec![pods::pod(pod, "n2")])?;
        let [new] = &pods::endpoints(cluster, &[pod])?[..] else { bail!("one pod was asked for") };
        ensure!(talking.iter().all(|pod| pods::answers(pod, new)), "pod {pod} is not reached by all");
        lost(name, &report);
    }
    Ok(())
}

/// `idle` is what agents ask in a minute in which no pod starts.
fn requests_per_pod(cluster: &Cluster, idle: &BTreeMap<String, usize>) -> Result<()> {
    let start = Instant::now();
    let many = requests_in(cluster, || at_once::start(cluster, "tartan-cni").map(drop))?;
    let share = start.elapsed().as_secs_f64() / IDLE.as_secs_f64();
    // What comes at intervals may fall into that time once more, of each agent.
    let once_more = cluster.machines().len() as f64;
    let beside = |kind: &String| idle.get(kind).map_or(0.0, |count| *count as f64 * share + once_more);
    let more: f64 = many.iter().map(|(kind, count)| (*count as f64 - beside(kind)).max(0.0)).sum();
    println!("# kube.api_requests_per_pod: while pods started: {many:?}; in an idle minute: {idle:?}");
    figure("api_requests_per_pod", more / at_once::PODS as f64);
    at_once::end(cluster)
}

/// What agents ask the API server meanwhile: how often, by verb and path.
fn requests_in(cluster: &Cluster, event: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, usize>> {
    let before = cluster.control()?.asked_by_agents()?.len();
    event()?;
    Ok(by_kind(&cluster.control()?.asked_by_agents()?[before..]))
}

fn by_kind(requests: &[(String, String)]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (verb, path) in requests {
        let mut parts = path.split('/').skip(1);
        let kind = match parts.next() {
            Some("api") => parts.nth(1),
            Some("apis") => parts.nth(2),
            _ => None,
        };
        *counts.entry(format!("{verb} {}", kind.unwrap_or(path))).or_default() += 1;
    }
    counts
}

fn away(cluster: &mut Cluster) -> Result<()> {
    let said = env::var(AWAY).ok();
    let secs = said.as_deref().map_or(Ok(AWAY_SECS), str::parse).with_context(|| format!("{AWAY}={said:?}"))?;
    ensure!(secs <= LONGEST_AWAY_SECS, "{AWAY}={secs}: at most {LONGEST_AWAY_SECS}");
    pods::run(cluster, vec![pods::pod("victim", "n3")])?;
    let talking = pods::endpoints(cluster, &TALKING)?;
    let before = cluster.control()?.asked_by_agents()?.len();
    let away = Duration::from_secs(secs);
    let report = life::through(&talking, |_| life::api_server_away(cluster, away, "victim", &talking[0]))?;
    // Until the longest back-off is over.
    quiet(IDLE)?;
    let asked = cluster.control()?.asked_by_agents()?;
    println!(
        "# kube.apiserver_away: {secs} s; requests of all agents in the minute when it was back: {:?}",
        by_kind(&asked[before..])
    );
    figure("apiserver_away.requests", (asked.len() - before) as f64);
    lost("apiserver_away.lost", &report);
    Ok(())
}

/// From the start of the kubelet of one more node to the answers that its first pod has from pods of all others.
fn join(cluster: &mut Cluster) -> Result<()> {
    let others = pods::endpoints(cluster, &TALKING)?;
    let _echoes = others.iter().map(|pod| Echo::serve(&pod.netns, &pod.name)).collect::<Result<Vec<_>>>()?;
    let node = cluster.join()?;
    cluster.wait_for("create", &[&format!("node/{node}")])?;
    let name = format!("on-{node}");
    pods::apply(cluster, "joined.json", pods::one_a_node(&[&node]))?;
    let pod = pods::endpoint(&name, &pods::uid(cluster, &name)?)?;
    for other in &others {
        for family in Family::BOTH {
            let pair = (pod.clone(), other.clone());
            let answered = || Talk::open(&pair, family, Transport::Udp, Duration::from_millis(20)).is_ok();
            wait_for(PATIENCE, &format!("{name} to reach {} by {family}", other.name), answered)?;
        }
    }
    let took = SystemTime::now().duration_since(cluster.machine(&node)?.started("kubelet")?)?;
    figure("join_first_packet", took.as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{by_kind, mib};

    #[test]
    fn memory_is_read_by_its_field() {
        assert_eq!(mib("VmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2.0));
        assert_eq!(mib("VmHWM:\t  4096 kB\n", "VmRSS:"), None);
        assert_eq!(mib("VmRSS:\t  many kB\n", "VmRSS:"), None);
    }

    #[test]
    fn requests_are_counted_by_kind() {
        let asked = |verb: &str, path: &str| (verb.to_owned(), path.to_owned());
        let counts = by_kind(&[
            asked("update", "/apis/tartan.dev/v1alpha1/nodenetworks/n1"),
            asked("update", "/apis/tartan.dev/v1alpha1/nodenetworks/n2"),
            asked("watch", "/api/v1/pods"),
        ]);
        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [("update nodenetworks".into(), 2), ("watch pods".into(), 1)]
        );
    }
}
