//! Packets: what our path costs beside the same chain of devices and namespaces made by hand (`lab/yardstick.sh`).
//!
//! Every ratio is oriented so that 1 is "as the twin" and more is better: rates are ours / twin's, the time of a round
//! trip is twin's / ours. Each is of the best round of either: what else the machine does only ever slows a round down.

use super::{
    figure::{Arm, Report, Samples, Value, interleave, number},
    program::Program,
};
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &[
    "path.hostgw.tcp.vs_twin",
    "path.hostgw.rr.vs_twin",
    "path.hostgw.crr.vs_twin",
    "path.hostgw.pps.vs_twin",
    "path.vxlan.tcp.vs_twin",
    "path.vxlan.rr.vs_twin",
    "path.vxlan.crr.vs_twin",
    "path.vxlan.pps.vs_twin",
    "path.local.tcp.vs_twin",
    "path.local.rr.vs_twin",
    "path.local.crr.vs_twin",
    "path.local.pps.vs_twin",
    "path.noise",
];

/// The name in figures, the fabric of the lab, the pair of pods.
const PATHS: [(&str, &str, &str); 3] =
    [("hostgw", "host-gw", "across"), ("local", "host-gw", "local"), ("vxlan", "vxlan", "across")];

/// What is measured, in what unit, and whether it is a time.
const MEASURES: [(&str, &str, bool); 4] =
    [("tcp", "Gbit/s", false), ("rr", "µs", true), ("crr", "1/s", false), ("pps", "1/s", false)];

/// Ours, two identical yardsticks, and the bare devices.
const ARMS: [&str; 4] = ["ours", "twin1", "twin2", "bare"];

const ROUNDS: usize = 12;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let mut worst: f64 = 1.0;
    for (path, fabric, pair) in PATHS {
        let program = Program::start(&["path", fabric])?;
        for measure in MEASURES {
            worst = worst.min(one(report, &program, (path, pair), measure)?);
        }
    }
    report.comment("path.noise: of all ratios of one yardstick to its identical twin, the one farthest from 1, as ≤ 1");
    report.figure("path.noise", Value::once(worst), "ratio");
    Ok(())
}

/// Measures one thing on one path; gives how alike the two yardsticks were.
fn one(
    report: &mut Report,
    program: &Program,
    (path, pair): (&str, &str),
    (measure, unit, is_time): (&str, &str, bool),
) -> Result<f64> {
    let mut arms = ARMS.map(|arm| Arm::new(move || program.ask(&format!("{arm} {measure} {pair}"))));
    interleave(ROUNDS, &mut arms)?;
    let [ours, twin, other_twin, bare] = &arms;
    let best: fn(&Samples) -> f64 = if is_time { Samples::least } else { Samples::most };
    let against = |arm: &Arm<'_>, yardstick: &Arm<'_>| {
        let ratio = arm.ratio(yardstick, 0, best);
        if is_time { ratio.inverse() } else { ratio }
    };
    let noise = against(other_twin, twin).get();
    let values: Vec<String> =
        ARMS.iter().zip(&arms).map(|(name, arm)| format!("{name}={}", number(arm.value(0, best).get()))).collect();
    report.comment(&format!(
        "path.{path}.{measure} {} {unit}; twin2/twin1={} ours/bare={}",
        values.join(" "),
        number(noise),
        number(against(ours, bare).get())
    ));
    report.figure(figure(path, measure), against(ours, twin), "ratio");
    Ok(noise.min(1.0 / noise))
}

fn figure(path: &str, measure: &str) -> &'static str {
    let name = format!("path.{path}.{measure}.vs_twin");
    FIGURES.iter().find(|figure| **figure == name).expect("FIGURES holds every path and measure")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_and_measure_has_its_figure() {
        for (path, _, _) in PATHS {
            for (measure, _, _) in MEASURES {
                assert!(figure(path, measure).contains(path));
            }
        }
        assert_eq!(FIGURES.len(), PATHS.len() * MEASURES.len() + 1);
    }
}
