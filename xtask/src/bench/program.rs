//! The programs that measure, and how they are asked.
//!
//! What a bench needs of the lab is not for a program without dependencies, so `lab/examples/bench` builds the subject
//! of a bench (a lab, its yardsticks, stock plugins) and keeps it up while it is asked: one question a line on its
//! standard input, one answer a line on its standard output. Rounds, order, statistics and figures stay here.
//!
//!     ours rr across                     →  a question; the first word often names an arm
//!     ok 21.5 22.0|3.1                   ←  two series of samples
//!     err ptp: exit status 1: no space   ←  or why there are none

use crate::command::{self, Result};
use crate::image::Platform;
use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What ships is what is measured: programs without libraries, which start in a third of the time.
const PROFILE: &str = "release";

/// A program that measures, up and ready to be asked.
pub(super) struct Program {
    child: Child,
    ends: RefCell<Ends>,
}

struct Ends {
    /// Closed to tell the program to take its subject down.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Builds, as the user, what is measured and what measures.
///
/// # Errors
/// The build fails.
pub(super) fn build() -> Result<()> {
    Platform::of_this_machine()?.programs(PROFILE)?;
    let measuring = ["build", "--profile", PROFILE, "--examples", "-p", "tartan-lab", "-p", "tartan-agent"];
    command::run(&mut command::cargo(&measuring))
}

/// A built example, to run as root and before everything else on this machine: noise only ever adds.
pub(super) fn undisturbed(example: &str) -> Command {
    let mut command = command::as_root("nice");
    command.args(["-n", "-20"]).arg(command::target_dir().join(PROFILE).join("examples").join(example));
    command
}

impl Program {
    /// Builds everything, starts the bench program as root on `subject` and waits until that is up.
    ///
    /// # Errors
    /// The build fails, or the subject cannot be made: the program then has said why on standard error.
    pub(super) fn start(subject: &[&str]) -> Result<Self> {
        build()?;
        let mut command = undisturbed("bench");
        let mut child = command.args(subject).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped two lines above"));
        let program = Self { child, ends: RefCell::new(Ends { questions, answers }) };
        program.ends.borrow_mut().answer().map_err(|error| format!("bench {}: {error}", subject.join(" ")))?;
        Ok(program)
    }

    /// Asks, and waits for the samples.
    ///
    /// # Errors
    /// The program's own, or its end.
    pub(super) fn ask(&self, question: &str) -> Result<Vec<Vec<f64>>> {
        let mut ends = self.ends.borrow_mut();
        let Ends { questions: Some(questions), .. } = &mut *ends else { return Err("the program has ended".into()) };
        writeln!(questions, "{question}")?;
        ends.answer().map_err(|error| format!("{question}: {error}").into())
    }

    /// Asks for one number.
    ///
    /// # Errors
    /// As `ask`, or the answer is something else.
    pub(super) fn number(&self, question: &str) -> Result<f64> {
        match self.ask(question)?.as_slice() {
            [series] if series.len() == 1 => Ok(series[0]),
            other => Err(format!("{question}: one number was wanted, not {other:?}").into()),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.ends.borrow_mut().questions.take());
        // What it could not take down it has said itself.
        let _ = self.child.wait();
    }
}

impl Ends {
    fn answer(&mut self) -> Result<Vec<Vec<f64>>> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("the program has ended; what it said stands above".into());
        }
        parse(line.trim_end())
    }
}

fn parse(line: &str) -> Result<Vec<Vec<f64>>> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("ok", series) => series.split('|').map(numbers).collect(),
        ("err", why) => Err(why.into()),
        _ => Err(format!("`{line}` is no answer").into()),
    }
}

/// Numbers separated by blanks.
pub(super) fn numbers(series: &str) -> Result<Vec<f64>> {
    series.split_whitespace().map(|word| word.parse().map_err(|_| format!("`{word}` is no number").into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_series_or_a_reason() {
        let check = |line: &str, want: std::result::Result<Vec<Vec<f64>>, &str>| {
            let got = parse(line);
            assert_eq!(got.as_ref().map_err(ToString::to_string), want.as_ref().map_err(ToString::to_string), "{line}");
        };
        check("ok 1 2.5|3", Ok(vec![vec![1.0, 2.5], vec![3.0]]));
        check("ok", Ok(vec![vec![]]));
        check("err no such plugin", Err("no such plugin"));
        check("ok 1 x", Err("`x` is no number"));
        check("hello", Err("`hello` is no answer"));
    }
}
