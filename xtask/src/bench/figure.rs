//! Numbers one can believe: samples, rounds in turns, ratios with their spread.
//!
//! Invariant: things are compared only within one run, in interleaved rounds, so that whatever else the machine does
//! hits all of them. Beside a ratio stands the ratio of two identical yardsticks of the same run: the noise.

use crate::command::Result;
use std::collections::BTreeSet;

/// Measurements of one thing, sorted; at least one, all finite.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// # Errors
    /// There is no sample, or one is not a number: something was not measured.
    pub(crate) fn new(mut values: Vec<f64>) -> Result<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return Err(format!("{} samples, of which some are missing or not numbers", values.len()).into());
        }
        values.sort_by(f64::total_cmp);
        Ok(Self(values))
    }

    /// The smallest sample that at least `percent` of the samples do not exceed (nearest rank).
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// Half of the samples are no larger.
    pub(crate) fn p50(&self) -> f64 {
        self.percentile(50.0)
    }

    /// 99 of 100 samples are no larger.
    pub(crate) fn p99(&self) -> f64 {
        self.percentile(99.0)
    }

    /// The largest.
    pub(crate) fn most(&self) -> f64 {
        self.percentile(100.0)
    }
}

/// One of the things measured in turns. A round measures one or several series, e.g. ADD and DEL times; they are
/// named by their place.
pub(crate) struct Arm<'a> {
    measure: Box<dyn FnMut() -> Result<Vec<Vec<f64>>> + 'a>,
    rounds: Vec<Vec<Samples>>,
}

impl<'a> Arm<'a> {
    /// An arm that was not measured yet.
    pub(crate) fn new(measure: impl FnMut() -> Result<Vec<Vec<f64>>> + 'a) -> Self {
        Self { measure: Box::new(measure), rounds: Vec::new() }
    }

    fn pooled(&self, series: usize) -> Samples {
        let all = self.rounds.iter().flat_map(|round| round[series].0.clone()).collect();
        Samples::new(all).expect("rounds are not empty")
    }

    /// One statistic of a series over all rounds, and its range from round to round.
    pub(crate) fn value(&self, series: usize, statistic: fn(&Samples) -> f64) -> Value {
        Value::new(statistic(&self.pooled(series)), self.rounds.iter().map(|round| statistic(&round[series])))
    }

    /// This arm's statistic as a multiple of `yardstick`'s in the same round: the median of all rounds, and the range.
    pub(crate) fn ratio(&self, yardstick: &Arm<'_>, series: usize, statistic: fn(&Samples) -> f64) -> Value {
        let rounds = self.rounds.iter().zip(&yardstick.rounds);
        let ratios: Vec<f64> = rounds.map(|(a, b)| statistic(&a[series]) / statistic(&b[series])).collect();
        let sorted = Samples::new(ratios.clone()).expect("there are rounds, and what is measured is not 0");
        Value::new(sorted.p50(), ratios.into_iter())
    }
}

/// Measures all arms `rounds` times, each round in another order, so that no arm always follows the same one.
///
/// # Errors
/// The first measurement that fails.
pub(crate) fn interleave(rounds: usize, arms: &mut [Arm<'_>]) -> Result<()> {
    for round in 0..rounds {
        for index in order(round, arms.len()) {
            let arm = &mut arms[index];
            let round = (arm.measure)()?.into_iter().map(Samples::new).collect::<Result<_>>()?;
            arm.rounds.push(round);
        }
    }
    Ok(())
}

/// Starts with another arm each round, and every other round goes backwards.
fn order(round: usize, arms: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).map(|i| (i + round / 2) % arms).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// A figure's value and how far it moved from round to round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value {
    value: f64,
    rounds: usize,
    min: f64,
    max: f64,
}

impl Value {
    fn new(value: f64, rounds: impl Iterator<Item = f64>) -> Self {
        let rounds: Vec<f64> = rounds.collect();
        let (min, max) = rounds.iter().fold((value, value), |(min, max), x| (x.min(min), x.max(max)));
        Self { value, rounds: rounds.len(), min, max }
    }

    /// The value alone.
    pub(crate) fn get(&self) -> f64 {
        self.value
    }

    /// 1 / value: for ratios of times in which more is to mean better.
    pub(crate) fn inverse(&self) -> Self {
        Self { value: 1.0 / self.value, rounds: self.rounds, min: 1.0 / self.max, max: 1.0 / self.min }
    }

    /// Everything that was counted, over rounds.
    pub(crate) fn sum(counts: &[f64]) -> Self {
        Self::new_within(counts.iter().sum(), counts)
    }

    /// The largest of all.
    pub(crate) fn worst(values: &[f64]) -> Self {
        Self::new_within(values.iter().copied().fold(f64::NEG_INFINITY, f64::max), values)
    }

    fn new_within(value: f64, rounds: &[f64]) -> Self {
        let (min, max) =
            rounds.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (x.min(min), x.max(max)));
        Self { value, rounds: rounds.len(), min, max }
    }

    /// Something counted or measured once.
    pub(crate) fn once(value: f64) -> Self {
        Self::new(value, std::iter::once(value))
    }
}

/// Prints figures, and remembers which of the promised ones are still owed.
pub(crate) struct Report {
    owed: BTreeSet<&'static str>,
    missing: Vec<&'static str>,
    /// Of all ratios of one yardstick to its identical twin, the one farthest from 1, as ≤ 1.
    noise: f64,
}

/// What figures are in.
const UNITS: [&str; 7] = ["ratio", "count", "ms", "us", "s", "mib", "bytes"];

impl Report {
    /// A report that owes these figures.
    pub(crate) fn owing(figures: &[&'static str]) -> Self {
        Self { owed: figures.iter().copied().collect(), missing: Vec::new(), noise: 1.0 }
    }

    /// Prints a line that explains figures and is none.
    pub(crate) fn comment(&self, text: &str) {
        println!("# {text}");
    }

    /// Prints a figure. A figure that is not finite is missing.
    pub(crate) fn figure(&mut self, name: &'static str, value: Value, unit: &str) {
        if !value.value.is_finite() {
            return self.missing(name, "the value is not a number");
        }
        assert!(UNITS.contains(&unit), "{name}: {unit} is not one of {UNITS:?}");
        self.settle(name);
        print!("{}", lines(name, value, unit));
    }

    /// Takes note of what one yardstick is to its identical twin.
    pub(crate) fn twins(&mut self, ratio: f64) {
        self.noise = self.noise.min(ratio).min(1.0 / ratio);
    }

    /// Prints how far twins were from alike: ratios nearer to 1 say nothing.
    pub(crate) fn noise(&mut self, name: &'static str) {
        self.comment(&format!("{name}: of all ratios of one yardstick to its twin, the one farthest from 1, as ≤ 1"));
        self.figure(name, Value::once(self.noise), "ratio");
    }

    /// Says why a figure could not be measured; the run then fails.
    pub(crate) fn missing(&mut self, name: &'static str, reason: &str) {
        self.settle(name);
        self.missing.push(name);
        println!("missing {name} {reason}");
    }

    fn settle(&mut self, name: &'static str) {
        assert!(self.owed.remove(name), "{name} is not in its group's list of figures, or was printed twice");
    }

    /// Those of these that are still owed are missing for `reason`.
    pub(crate) fn give_up(&mut self, names: &[&'static str], reason: &str) {
        for name in names {
            if self.owed.contains(name) {
                self.missing(name, reason);
            }
        }
    }

    /// Every figure still owed is missing for `reason`; gives the names of all that are missing.
    pub(crate) fn close(mut self, reason: &str) -> Vec<&'static str> {
        let owed: Vec<&'static str> = self.owed.iter().copied().collect();
        self.give_up(&owed, reason);
        self.missing
    }
}

fn lines(name: &str, value: Value, unit: &str) -> String {
    let Value { value, rounds, min, max } = value;
    let (value, min, max) = (number(value), number(min), number(max));
    format!("# {name} rounds={rounds} min={min} max={max}\nfigure {name} {value} {unit}\n")
}

/// Four significant digits, never an exponent.
pub(crate) fn number(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { 3 - value.abs().log10().floor() as i32 };
    format!("{value:.*}", digits.clamp(0, 9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).expect("numbers")
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (values, percent, want) in [
            (&hundred[..], 50.0, 50.0),
            (&hundred, 99.0, 99.0),
            (&hundred, 100.0, 100.0),
            (&hundred, 0.0, 1.0),
            (&[3.0, 1.0], 50.0, 1.0),
            (&[3.0, 1.0], 51.0, 3.0),
            (&[7.0], 99.0, 7.0),
        ] {
            assert_eq!(samples(values).percentile(percent), want, "p{percent} of {} samples", values.len());
        }
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        for values in [vec![], vec![1.0, f64::NAN], vec![f64::INFINITY]] {
            assert!(Samples::new(values.clone()).is_err(), "{values:?}");
        }
    }

    #[test]
    fn arms_take_turns_in_changing_order() {
        let log = std::cell::RefCell::new(String::new());
        let arm = |name: char| {
            let log = &log;
            Arm::new(move || {
                log.borrow_mut().push(name);
                Ok(vec![vec![1.0]])
            })
        };
        let mut arms = [arm('a'), arm('b'), arm('c')];
        interleave(4, &mut arms).expect("never fails");
        assert_eq!(*log.borrow(), "abccbabcaacb");
        assert!(arms.iter().all(|arm| arm.rounds.len() == 4));
    }

    #[test]
    fn a_ratio_is_of_one_round_and_the_median_is_told() {
        let (mut a, mut b) =
            ([vec![2.0, 4.0], vec![6.0], vec![4.0]].into_iter(), [vec![2.0], vec![2.0], vec![2.0]].into_iter());
        let mut round = || Ok(vec![vec![9.0], a.next().expect("three rounds")]);
        let mut yardstick = || Ok(vec![vec![3.0], b.next().expect("three rounds")]);
        let mut arms = [Arm::new(&mut round), Arm::new(&mut yardstick)];
        interleave(3, &mut arms).expect("never fails");
        let want = Value { value: 2.0, rounds: 3, min: 1.0, max: 3.0 };
        assert_eq!(arms[0].ratio(&arms[1], 1, Samples::p50), want);
        assert_eq!(want.inverse(), Value { value: 0.5, rounds: 3, min: 1.0 / 3.0, max: 1.0 });
        assert_eq!(arms[0].value(1, Samples::p99), Value { value: 6.0, rounds: 3, min: 4.0, max: 6.0 });
        assert_eq!(arms[0].ratio(&arms[1], 0, Samples::most).get(), 3.0);
    }

    #[test]
    fn a_failed_measurement_stops_the_run() {
        let mut arms = [Arm::new(|| Ok(vec![vec![1.0]])), Arm::new(|| Err("the plugin said no".into()))];
        assert_eq!(interleave(3, &mut arms).expect_err("second arm").to_string(), "the plugin said no");
    }

    #[test]
    fn figures_are_printed_in_the_agreed_form() {
        let value = Value { value: 0.25, rounds: 5, min: 0.2, max: 1234.56 };
        let want = "# cni.add_p50.vs_ptp rounds=5 min=0.2000 max=1235\nfigure cni.add_p50.vs_ptp 0.2500 ratio\n";
        assert_eq!(lines("cni.add_p50.vs_ptp", value, "ratio"), want);
        for (value, want) in [(0.0, "0"), (12.346, "12.35"), (0.000_123_46, "0.0001235"), (-2.0, "-2.000")] {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_figure_that_was_promised_and_not_printed_is_missing() {
        let mut report = Report::owing(&["x.a", "x.b", "x.c"]);
        report.figure("x.a", Value::once(1.0), "ms");
        report.figure("x.b", Value::once(f64::NAN), "ms");
        assert_eq!(report.close("the bench ended before it"), ["x.b", "x.c"]);
    }
}
