//! What policies cost packets and memory: nodes in a cluster of 50,000 pods, each with two pods that one in a hundred of the
//! policies selects, with 30,000 rows at most, and two that none does, in `lab/examples/bench/policies.rs`.
//!
//! Ratios are oriented as those of paths: 1 is "as a pod that no policy selects, on the node with 10,000 policies".

use super::super::figure::{Arm, Report, Samples, Value, interleave, number};
use super::super::path::{MEASURES, Measure};
use super::super::program::Program;
use crate::command::Result;

const ROUNDS: usize = 10;

/// Arms: their names in comments, which program, and which pair of its pods. The yardstick is the first one.
const ARMS: [(&str, usize, &str); 7] = [
    ("0", 0, "free"),
    ("0_too", 1, "free"),
    ("10000", 0, "judged"),
    ("1000", 1, "judged"),
    ("100", 2, "judged"),
    ("linear_10000", 3, "judged"),
    ("linear_10000_behind_established", 3, "free"),
];
const TWIN: usize = 1;
const OURS: usize = 2;
const LINEAR: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let programs = [["policies", "10000"], ["policies", "1000"], ["policies", "100"], ["policies", "linear"]];
    let programs: Vec<Program> = programs.iter().map(|subject| Program::start(subject)).collect::<Result<_>>()?;
    memory(report, &programs[0])?;
    report
        .comment("no policy selects the pods of arm 0, on the node with 10,000; 0_too: the same where there are 1,000");
    report.comment(
        "linear: the same rules as a list, asked of every packet, which is what it takes to cut what is revoked",
    );
    for measure in MEASURES {
        one(report, &programs, &measure)?;
    }
    report.noise("policy.noise");
    Ok(())
}

fn one(report: &mut Report, programs: &[Program], measure: &Measure) -> Result<()> {
    let of_linear = || figure("linear_10000", measure);
    let count = if of_linear().is_some() { ARMS.len() } else { LINEAR };
    let arms = ARMS[..count].iter();
    let mut arms: Vec<Arm<'_>> = arms
        .map(|(_, program, pair)| Arm::new(move || programs[*program].ask(&format!("{pair} {}", measure.name))))
        .collect();
    interleave(ROUNDS, &mut arms)?;
    let values = ARMS.iter().zip(&arms).map(|((name, ..), arm)| {
        let ratio = number(measure.against(arm, &arms[0]).get());
        format!("{name}={} ({ratio})", number(arm.value(0, Samples::p50).get()))
    });
    let values: Vec<String> = values.collect();
    report.comment(&format!("policy.{} {} {}", measure.name, values.join(" "), measure.unit));
    report.twins(measure.against(&arms[TWIN], &arms[0]).get());
    let ours = figure("10000", measure).ok_or("every measure has its figure")?;
    report.figure(ours, measure.against(&arms[OURS], &arms[0]), "ratio");
    if let Some(linear) = of_linear() {
        report.figure(linear, measure.against(&arms[LINEAR], &arms[0]), "ratio");
    }
    Ok(())
}

fn figure(arm: &str, measure: &Measure) -> Option<&'static str> {
    let name = format!("policy.{arm}_{}.vs_0", measure.name);
    super::FIGURES.iter().find(|figure| **figure == name).copied()
}

/// Bytes of the whole agent, divided by what made the difference.
fn memory(report: &mut Report, program: &Program) -> Result<()> {
    let answer = program.ask("memory")?;
    let [bytes, counts] = answer.as_slice() else { return Err("two series were wanted".into()) };
    let [policies, alike, peak, listed, apart, judged] = bytes[..] else {
        return Err("six amounts were wanted".into());
    };
    let [pods, identities, rows] = counts[..] else { return Err("three counts were wanted".into()) };
    report.comment(&format!(
        "policy.bytes_per_pod: {:.0} at rest, {:.0} at most while all are listed once more; {:.0} more for each of {identities} \
         identities, {:.0} for each of {rows} rows of the kernel's maps, addresses with them",
        (alike - policies) / pods,
        (peak - policies) / pods,
        (apart - listed) / identities,
        (judged - apart) / rows,
    ));
    let per_pod = [alike, peak, listed].map(|bytes| (bytes - policies) / pods);
    report.figure("policy.bytes_per_pod", Value::worst(&per_pod), "bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_its_figure_and_the_list_has_two() {
        assert!(MEASURES.iter().all(|measure| figure("10000", measure).is_some()));
        assert_eq!(MEASURES.iter().filter(|measure| figure("linear_10000", measure).is_some()).count(), 2);
    }
}
