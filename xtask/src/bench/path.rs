//! Packets: what our path costs beside the same chain of devices and namespaces made by hand (`lab/yardstick.sh`).
//!
//! Every ratio is oriented so that 1 is "as the twin" and more is better: rates are ours / twin's, the time of a round
//! trip is twin's / ours.

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

/// What is measured between two pods.
pub(super) struct Measure {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    is_time: bool,
}

const fn measure(name: &'static str, unit: &'static str, is_time: bool) -> Measure {
    Measure { name, unit, is_time }
}

pub(super) const MEASURES: [Measure; 4] = [
    measure("tcp", "Gbit/s", false),
    measure("rr", "µs", true),
    measure("crr", "1/s", false),
    measure("pps", "1/s", false),
];

/// Ours, two identical yardsticks, and the bare devices.
const ARMS: [&str; 4] = ["ours", "twin1", "twin2", "bare"];

const ROUNDS: usize = 20;

pub(super) fn run(report: &mut Report) -> Result<()> {
    for (path, fabric, pair) in PATHS {
        let program = Program::start(&["path", fabric])?;
        for measure in MEASURES {
            one(report, &program, (path, pair), &measure)?;
        }
    }
    report.noise("path.noise");
    Ok(())
}

/// Measures one thing on one path.
fn one(report: &mut Report, program: &Program, (path, pair): (&str, &str), measure: &Measure) -> Result<()> {
    let Measure { name, unit, .. } = measure;
    let mut arms = ARMS.map(|arm| Arm::new(move || program.ask(&format!("{arm} {name} {pair}"))));
    interleave(ROUNDS, &mut arms)?;
    let [ours, twin, other_twin, bare] = &arms;
    let noise = measure.against(other_twin, twin).get();
    let values: Vec<String> = ARMS
        .iter()
        .zip(&arms)
        .map(|(name, arm)| format!("{name}={}", number(arm.value(0, Samples::p50).get())))
        .collect();
    report.comment(&format!(
        "path.{path}.{name} {} {unit}; twin2/twin1={} ours/bare={}",
        values.join(" "),
        number(noise),
        number(measure.against(ours, bare).get())
    ));
    if *name == "tcp" {
        let of = |(name, arm): (&&str, &Arm<'_>)| format!("{name}={}", number(arm.value(1, Samples::p50).get()));
        let all: Vec<String> = ARMS.iter().zip(&arms).map(of).collect();
        report.comment(&format!(
            "path.{path}.tcp {} s of processor time for each Gbit, both ends' included",
            all.join(" ")
        ));
    }
    report.figure(figure(path, name), measure.against(ours, twin), "ratio");
    report.twins(noise);
    Ok(())
}

// === impl Measure ===

impl Measure {
    /// The arm against the yardstick: more is better.
    pub(super) fn against(&self, arm: &Arm<'_>, yardstick: &Arm<'_>) -> Value {
        let ratio = arm.ratio(yardstick, 0, Samples::p50);
        if self.is_time { ratio.inverse() } else { ratio }
    }
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
            for measure in MEASURES {
                assert!(figure(path, measure.name).contains(path));
            }
        }
        assert_eq!(FIGURES.len(), PATHS.len() * MEASURES.len() + 1);
    }
}
