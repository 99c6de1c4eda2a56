//! `tartan policy …` and `tartan record`: questions about policies, asked of one World wherever it comes from.
//!
//! Invariant: nothing is changed by asking. Exit codes are those of diff(1): 0 nothing to say, 1 something, 2 trouble;
//! a trace that is answered is 0.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::client;
use crate::output::{self, Format};

mod check;
mod counts;
mod diff;
mod list;
mod source;
mod trace;

use source::Source;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Why a connection is allowed or denied: the line that decides, and what would allow it
    Trace {
        #[command(flatten)]
        asked: trace::Asked,
        #[command(flatten)]
        source: Source,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Which connections would be allowed or denied if files were applied, by groups of pods; exit code 1 if any
    Diff {
        #[command(flatten)]
        change: diff::Change,
        #[command(flatten)]
        source: Source,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// What the policies of one pod come to, in both directions
    List {
        /// NAMESPACE/NAME
        #[arg(long)]
        pod: String,
        #[command(flatten)]
        source: Source,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// How often each rule has decided on a node: of a connection that is allowed the first packet, of others every one
    Counts {
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// What is wrong with policies in files; exit code 1 if anything is
    Check {
        /// File of YAML documents; - for standard input
        #[arg(short, long, required = true)]
        file: Vec<PathBuf>,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
}

/// What a command has to say.
struct Answer {
    text: String,
    code: u8,
}

/// Exit code where a question cannot be answered.
const TROUBLE: u8 = 2;

/// Runs one of the commands.
pub(crate) fn run(command: Command) -> ExitCode {
    let said = answer(command).and_then(|answer| {
        output::say(format_args!("{}", answer.text))?;
        Ok(answer.code)
    });
    match said {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("tartan: {error:#}");
            TROUBLE.into()
        }
    }
}

fn answer(command: Command) -> Result<Answer> {
    match command {
        Command::Trace { asked, source, output } => trace::answer(&asked, &source.open()?, output),
        Command::Diff { change, source, output } => diff::answer(&change, &source.open()?, output),
        Command::List { pod, source, output } => list::answer(&pod, &source.open()?, output),
        Command::Counts { at, output } => counts::answer(&at, output),
        Command::Check { file, output } => check::answer(&file, output),
    }
}

/// Which rule decides, and where it stands as far as that is known.
fn rule(object: &str, field: &str, place: &str) -> String {
    match (object, place) {
        ("", _) => "no policy".to_owned(),
        (object, "") => format!("{object} {field}"),
        (object, place) => format!("{object} {field} ({place})"),
    }
}

/// The first few; a program gets them all.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first}; {more} more"),
    }
}

/// `tartan record`
pub(crate) fn record(at: &client::At, out: &Path) -> Result<ExitCode> {
    let record = client::record(&at.socket()?)?;
    let known = source::Known::of_record(&record, Path::new("the agent's answer"))?;
    if out == Path::new("-") {
        output::say(format_args!("{}", record.trim_end()))?;
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(out, &record).with_context(|| format!("writing {}", out.display()))?;
    let world = &known.world;
    let (pods, policies) = (world.pods.len(), world.policies.len());
    output::say(format_args!("{}: what {} knows of {pods} pods, {policies} policies", out.display(), world.local))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
