//! The noise of this machine: the same program started by two arms that differ in nothing.
//!
//! A ratio of another bench means something only where it is farther from 1 than these.

use super::figure::{Arm, Report, Samples, Value, interleave};
use crate::command::{self, Result};
use std::{fs, process::Command, time::Instant};

pub(super) const FIGURES: &[&str] =
    &["noise.start_p50", "noise.start_p50.vs_same", "noise.start_p99.vs_same", "noise.steal"];

const ROUNDS: usize = 10;
const STARTS: usize = 50;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let before = Ticks::read()?;
    let mut arms = [Arm::new(starts), Arm::new(starts)];
    interleave(ROUNDS, &mut arms)?;
    let [a, b] = &arms;
    report.figure("noise.start_p50", a.value(0, Samples::p50), "ms");
    report.figure("noise.start_p50.vs_same", a.ratio(b, 0, Samples::p50), "ratio");
    report.figure("noise.start_p99.vs_same", a.ratio(b, 0, Samples::p99), "ratio");
    report.figure("noise.steal", Value::once(Ticks::read()?.steal_since(&before)), "ratio");
    Ok(())
}

/// Milliseconds to start a process and see it end, as a CNI call does.
fn starts() -> Result<Vec<Vec<f64>>> {
    let start = |_| {
        let begin = Instant::now();
        command::capture(&mut Command::new("true"))?;
        Ok(begin.elapsed().as_secs_f64() * 1000.0)
    };
    Ok(vec![(0..STARTS).map(start).collect::<Result<_>>()?])
}

/// How the processors have spent their time since the machine started, in clock ticks.
#[derive(Debug, PartialEq)]
struct Ticks {
    all: f64,
    /// Wanted by this machine and given to another one by the host.
    steal: f64,
}

impl Ticks {
    fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).ok_or_else(|| "no `cpu` line in /proc/stat".into())
    }

    /// The first line: `cpu user nice system idle iowait irq softirq steal …`, see proc(5).
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks: Vec<f64> = fields.map_while(|field| field.parse().ok()).collect();
        Some(Self { all: ticks.iter().sum(), steal: *ticks.get(7)? })
    }

    fn steal_since(&self, before: &Self) -> f64 {
        (self.steal - before.steal) / (self.all - before.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = Ticks::parse("cpu  100 0 0 100 0 0 0 10 0 0\ncpu0 1").expect("eight fields");
        assert_eq!(before, Ticks { all: 210.0, steal: 10.0 });
        let after = Ticks { all: 310.0, steal: 15.0 };
        assert_eq!(after.steal_since(&before), 0.05);
        assert_eq!(Ticks::parse("cpu 1 2 3\n"), None);
    }
}
