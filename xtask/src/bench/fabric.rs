//! Fabrics that a program carries: how fast, beside a bare veth pair in the same run, at what cost, and what packets notice
//! when that program is upgraded or killed. And what they notice of changes from any fabric into any other.

use super::{
    figure::{Arm, Report, Samples, Value, interleave, number},
    program::Program,
};
use crate::command::{self, Result};

pub(super) const FIGURES: &[&str] = &[
    "fabric.udp_tcp.vs_veth",
    "fabric.engine_upgrade.lost",
    "fabric.wireguard_user_tcp.vs_veth",
    "fabric.wireguard_user_tcp.vs_boringtun",
    "fabric.switch.lost",
    "fabric.switch.resets",
    "fabric.clear_packets",
    "fabric.noise",
];

/// The program of the yardstick, built from crates.io when it is measured.
const BORINGTUN: [&str; 3] = ["boringtun-cli", "--version", "0.7.1"];

/// Fabrics that this machine's kernel carries; `bench vm` changes into ipip and out of it.
const FABRICS: [&str; 4] = ["vxlan", "host-gw", "udp", "wireguard"];
/// What happens to nodes that may send nothing in clear.
const TO_STRICT: [&str; 8] =
    ["fabric host-gw 0", "rotate", "fabric udp 3", "rotate", "restart", "kill", "fabric vxlan 3", "rotate"];
/// Seconds from one node's hearing of a change to the next one's.
const APART: [&str; 3] = ["0", "3", "10"];
/// Probes answered after each change, beside those through it.
const PROBES_OF_CHANGE: u64 = 3_000;

const ROUNDS: usize = 12;
/// Probes answered after each upgrade, beside those through it.
const PROBES: u64 = 20_000;
const REPEATS: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = Program::start(&["fabric", "udp"])?;
    let ask = |arm: &str| program.ask(&format!("{arm} tcp"));
    let mut arms = ["ours", "veth", "veth"].map(|arm| Arm::new(move || ask(arm)));
    interleave(ROUNDS, &mut arms)?;
    let [ours, veth, twin] = &arms;
    report.twins(twin.ratio(veth, 0, Samples::p50).get());
    report.comment(&format!(
        "fabric.udp_tcp ours={} veth={} Gbit/s; both engines together take {} s of processor time for each Gbit",
        number(ours.value(0, Samples::p50).get()),
        number(veth.value(0, Samples::p50).get()),
        number(ours.value(1, Samples::p50).get())
    ));
    report.figure("fabric.udp_tcp.vs_veth", ours.ratio(veth, 0, Samples::p50), "ratio");
    drop(arms);
    // What an engine that is killed has in its hands goes with it; one that is upgraded has nothing there.
    let [_, killed, _] = ends(report, &program, "kill")?;
    report.comment(&format!("fabric: {killed} packets lost by engines that were killed"));
    let [_, upgraded, resets] = ends(report, &program, "upgrade")?;
    drop(program);
    let encrypted = encrypted(report)?;
    let lost: Vec<f64> = [upgraded, resets].into_iter().chain(encrypted).collect();
    report.figure("fabric.engine_upgrade.lost", Value::sum(&lost), "count");
    report.noise("fabric.noise");
    changes(report)?;
    strict(report)
}

/// By WireGuard in user space, beside boringtun's own device, whose protocol it is. What upgrades lost, and reset.
fn encrypted(report: &mut Report) -> Result<[f64; 2]> {
    let folder = command::target_dir().join("boringtun");
    let mut install = command::cargo(&["install", "--quiet", "--locked"]);
    command::run(install.args(BORINGTUN).arg("--root").arg(&folder))?;
    let boringtun = folder.join("bin/boringtun-cli").display().to_string();
    let program = Program::start(&["fabric", "wireguard", &boringtun])?;
    let ask = |arm: &str| program.ask(&format!("{arm} tcp"));
    let mut arms = ["ours", "veth", "boringtun", "veth"].map(|arm| Arm::new(move || ask(arm)));
    interleave(ROUNDS, &mut arms)?;
    let [ours, veth, boringtun, twin] = &arms;
    report.twins(twin.ratio(veth, 0, Samples::p50).get());
    let rate = |arm: &Arm<'_>| number(arm.value(0, Samples::p50).get());
    report.comment(&format!(
        "fabric.wireguard_user_tcp ours={} veth={} boringtun={} Gbit/s; both engines together take {} s of processor time \
         for each Gbit",
        rate(ours),
        rate(veth),
        rate(boringtun),
        number(ours.value(1, Samples::p50).get())
    ));
    report.figure("fabric.wireguard_user_tcp.vs_veth", ours.ratio(veth, 0, Samples::p50), "ratio");
    report.figure("fabric.wireguard_user_tcp.vs_boringtun", ours.ratio(boringtun, 0, Samples::p50), "ratio");
    drop(arms);
    let [probes, killed, _] = ends(report, &program, "kill")?;
    report.comment(&format!("fabric wireguard: {killed} of {probes} packets lost by engines that were killed"));
    let [probes, upgraded, resets] = ends(report, &program, "upgrade")?;
    report.comment(&format!("fabric wireguard: {upgraded} of {probes} packets lost by upgrades, {resets} resets"));
    Ok([upgraded, resets])
}

/// Every ordered pair at every distance; what the worst pair costs.
fn changes(report: &mut Report) -> Result<()> {
    let walk = circuit(&FABRICS);
    let program = Program::start(&["switch", walk[0]])?;
    let pairs: Vec<&[&str]> = walk.windows(2).collect();
    let mut of_pairs = vec![[0.0; 3]; pairs.len()];
    for apart in APART {
        for (pair, all) in pairs.iter().zip(&mut of_pairs) {
            let counts = counts(&program, &format!("{} {apart} {PROBES_OF_CHANGE}", pair[1]))?;
            all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
        }
    }
    for (pair, [probes, lost, resets]) in pairs.iter().zip(&of_pairs) {
        report
            .comment(&format!("fabric from {} to {}: {probes} probes, {lost} lost, {resets} resets", pair[0], pair[1]));
    }
    let [lost, resets] = [1, 2].map(|which| of_pairs.iter().map(|counts| counts[which]).collect::<Vec<_>>());
    report.figure("fabric.switch.lost", Value::worst(&lost), "count");
    report.figure("fabric.switch.resets", Value::worst(&resets), "count");
    Ok(())
}

/// Packets of pods that could be read on the wire.
fn strict(report: &mut Report) -> Result<()> {
    let program = Program::start(&["strict"])?;
    let mut all = Vec::new();
    for event in TO_STRICT {
        let counts: Vec<f64> = program.ask(&format!("{PROBES_OF_CHANGE} {event}"))?.into_iter().flatten().collect();
        let [clear, encrypted] = counts[..] else {
            return Err(format!("{event}: {counts:?} are not two counts").into());
        };
        report.comment(&format!("fabric strict, {event}: {clear} packets in clear beside {encrypted} encrypted"));
        all.push(clear);
    }
    report.figure("fabric.clear_packets", Value::sum(&all), "count");
    Ok(())
}

/// From the first back to the first, over every ordered pair once.
fn circuit<'a>(of: &[&'a str]) -> Vec<&'a str> {
    let [first, others @ ..] = of else { return Vec::new() };
    let within = circuit(others);
    let rest = others.iter().skip(1).flat_map(|other| [*first, *other]);
    std::iter::once(*first).chain(within).chain(rest).chain((!others.is_empty()).then_some(*first)).collect()
}

/// Probes, lost, resets.
fn counts(program: &Program, question: &str) -> Result<[f64; 3]> {
    let counts: Vec<f64> = program.ask(question)?.into_iter().flatten().collect();
    counts.try_into().map_err(|counts| format!("{question}: three counts were wanted, not {counts:?}").into())
}

/// Probes, lost, resets of all repeats.
fn ends(report: &mut Report, program: &Program, event: &str) -> Result<[f64; 3]> {
    let mut all = [0.0; 3];
    for _ in 0..REPEATS {
        all.iter_mut().zip(counts(program, &format!("{event} {PROBES}"))?).for_each(|(all, count)| *all += count);
    }
    report.comment(&format!("fabric {event}: {REPEATS} times on both nodes, {} probes", all[0]));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_has_every_ordered_pair_once() {
        for count in 1..=5 {
            let of = &["a", "b", "c", "d", "e"][..count];
            let walk = circuit(of);
            let mut pairs: Vec<_> = walk.windows(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(pairs.len(), count * (count - 1), "{walk:?}");
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), count * (count - 1), "{walk:?}");
            assert!(pairs.iter().all(|(from, to)| from != to), "{walk:?}");
        }
    }
}
