//! The path self-test: paths broken on purpose, until they are named for what they are; and what else was said.

use super::{
    figure::{Report, Value},
    program::Program,
};
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &["selftest.detect_worst", "selftest.wrong"];

const FAULTS: [&str; 5] = ["none", "mtu-hole", "port-blocked", "one-way-loss", "bad-checksums"];
const REPEATS: usize = 3;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let program = Program::start(&["selftest"])?;
    let (mut took, mut wrong) = (Vec::new(), Vec::new());
    for fault in FAULTS {
        let mut of_fault = Vec::new();
        for _ in 0..REPEATS {
            let answer: Vec<f64> = program.ask(fault)?.into_iter().flatten().collect();
            let [secs, said] = answer[..] else {
                return Err(format!("{fault}: {answer:?} are not two numbers").into());
            };
            of_fault.push(secs);
            wrong.push(said);
        }
        report.comment(&format!("selftest {fault}: named after {of_fault:.1?} s"));
        took.extend(of_fault);
    }
    report.figure("selftest.detect_worst", Value::worst(&took), "s");
    report.figure("selftest.wrong", Value::sum(&wrong), "count");
    Ok(())
}
