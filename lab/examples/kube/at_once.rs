//! A hundred pods that start at once: on a cluster with Tartan and on one with the stock network, both of which are up, in
//! turn.
//!
//! Invariant: what is compared was measured within the same few minutes on the same machine, each as often first as the
//! other.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tartan_lab::{Echo, Endpoint};

use crate::Programs;
use crate::cluster::{Cluster, Wants};
use crate::measure::{TALKING, figure};
use crate::{first, pods, stock, tartan};

pub(crate) const PODS: usize = 100;
/// An even number: whoever starts second may have it easier, or harder.
const ROUNDS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);

/// How long a pod waits for its first packet: 99 of 100, the median of all rounds, and of its ratio to the stock network's.
pub(crate) fn measure() -> Result<()> {
    let tartan = up("kube-bench", tartan::install)?;
    let stock = up("kube-stock", stock::install)?;
    let ours = || round(&tartan, "tartan-cni");
    let theirs = || round(&stock, "ptp");
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        let (ours, theirs) = if number % 2 == 0 {
            let ours = ours()?;
            (ours, theirs()?)
        } else {
            let theirs = theirs()?;
            (ours()?, theirs)
        };
        rounds.push((ours, ours / theirs));
    }
    let ratios: Vec<String> = rounds.iter().map(|(_, ratio)| format!("{ratio:.2}")).collect();
    println!("# kube.first_packet_p99.vs_stock: in each round {}", ratios.join(" "));
    figure("first_packet_p99", median(rounds.iter().map(|(ours, _)| *ours)));
    figure("first_packet_p99.vs_stock", median(rounds.iter().map(|(_, ratio)| *ratio)));
    Ok(())
}

fn up(name: &str, install: impl Fn(&Cluster) -> Result<()>) -> Result<Cluster> {
    let cluster = Cluster::up(name, Programs::from_environment()?, Wants::default())?;
    install(&cluster)?;
    cluster.wait_until_ready()?;
    pods::run(&cluster, pods::one_a_node(&TALKING.map(|name| name.trim_start_matches("on-"))))?;
    Ok(cluster)
}

fn round(cluster: &Cluster, plugin: &str) -> Result<f64> {
    let p99 = start(cluster, plugin)?;
    end(cluster)?;
    Ok(p99)
}

/// Starts pods on all nodes and waits until all are ready: 99 of 100 first packets in ms.
pub(crate) fn start(cluster: &Cluster, plugin: &str) -> Result<f64> {
    let talking = pods::endpoints(cluster, &TALKING)?;
    let _echoes = talking.iter().map(|pod| Echo::serve(&pod.netns, &pod.name)).collect::<Result<Vec<_>>>()?;
    // Each node's pods ask the next node's.
    let addresses = |pod: &Endpoint| [IpAddr::from(pod.v4), pod.v6.into()];
    first::watch(cluster, plugin, talking.iter().cycle().skip(1).map(addresses))?;
    let paused = |number: usize| pods::paused(&format!("many-{number}"), &format!("n{}", number % 3 + 1), "many");
    let start = Instant::now();
    pods::apply(cluster, "many.json", (0..PODS).map(paused).collect())?;
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    cluster.kubectl(&["wait", "--for=condition=Ready", &timeout, "pods", "--selector=many"])?;
    let took = start.elapsed().as_secs_f64();
    let times = first::times(cluster, plugin)?;
    println!("# kube.first_packet: {plugin}: all {PODS} pods were ready after {took:.1} s");
    for (what, times) in ["in the plugin", "until an answer"].into_iter().zip(&times) {
        ensure!(times.len() == PODS, "{} pods of {PODS} had a first packet", times.len());
        let [half, most, slowest] = [50, 99, 100].map(|percent| rank(times, percent));
        println!("# kube.first_packet: {plugin}: {what} p50 {half:.1} ms, p99 {most:.1}, slowest {slowest:.1}");
    }
    Ok(rank(&times[1], 99))
}

/// Deletes them; their nodes have let go of them then.
pub(crate) fn end(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "pods", "--selector=many", "--wait"]).map(drop)
}

/// The smallest that so many percent do not exceed; of sorted values.
fn rank(values: &[f64], percent: usize) -> f64 {
    values[(percent * values.len()).div_ceil(100).max(1) - 1]
}

/// Of an even number of values, the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

#[cfg(test)]
mod tests {
    use super::{median, rank};

    #[test]
    fn a_rank_is_a_value_that_was_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|percent| rank(&hundred, percent)), [50.0, 99.0, 100.0]);
        assert_eq!([1, 50, 51].map(|percent| rank(&[1.0, 3.0], percent)), [1.0, 1.0, 3.0]);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0].into_iter()), 3.0);
    }
}
