//! Fabrics that a program carries: how fast, beside a bare veth pair in the same run, at what cost, and what packets notice
//! when that program is upgraded or killed.

use super::{
    figure::{Arm, Report, Samples, Value, interleave, number},
    program::Program,
};
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &["fabric.udp_tcp.vs_veth", "fabric.engine_upgrade.lost"];

const ROUNDS: usize = 12;
/// Probes answered after each upgrade, beside those through it.
const PROBES: u64 = 20_000;
const REPEATS: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = Program::start(&["fabric", "udp"])?;
    let ask = |arm: &str| program.ask(&format!("{arm} tcp"));
    let mut arms = ["ours", "veth"].map(|arm| Arm::new(move || ask(arm)));
    interleave(ROUNDS, &mut arms)?;
    let [ours, veth] = &arms;
    report.comment(&format!(
        "fabric.udp_tcp ours={} veth={} Gbit/s; both engines together take {} s of processor time for each Gbit",
        number(ours.value(0, Samples::most).get()),
        number(veth.value(0, Samples::most).get()),
        number(ours.value(1, Samples::p50).get())
    ));
    report.figure("fabric.udp_tcp.vs_veth", ours.ratio(veth, 0, Samples::most), "ratio");
    drop(arms);
    // What an engine that is killed has in its hands goes with it; one that is upgraded has nothing there.
    let [_, killed, _] = ends(report, &program, "kill")?;
    report.comment(&format!("fabric: {killed} packets lost by engines that were killed"));
    let [_, upgraded, resets] = ends(report, &program, "upgrade")?;
    report.figure("fabric.engine_upgrade.lost", Value::sum(&[upgraded, resets]), "count");
    Ok(())
}

/// Probes, lost, resets of all repeats.
fn ends(report: &mut Report, program: &Program, event: &str) -> Result<[f64; 3]> {
    let mut all = [0.0; 3];
    for _ in 0..REPEATS {
        let counts: Vec<f64> = program.ask(&format!("{event} {PROBES}"))?.into_iter().flatten().collect();
        let counts: [f64; 3] =
            counts.try_into().map_err(|counts| format!("{event}: three counts were wanted, not {counts:?}"))?;
        all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    report.comment(&format!("fabric {event}: {REPEATS} times on both nodes, {} probes", all[0]));
    Ok(all)
}
