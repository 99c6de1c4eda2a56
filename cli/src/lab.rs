//! `tartan lab`: nodes and pods on this machine, to try things on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use tartan_lab::{Facts, Lab, Signals, probe};

use crate::output::say;

/// How long the first matrix may take to become whole.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be done with a lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start three nodes with two pods each, or what a scenario file says, and hold them until Ctrl-C
    Up {
        /// Scenario (YAML): name, nodes, podsPerNode, underlay, config
        scenario: Option<PathBuf>,
    },
    /// Run a command in a pod (a1, b2, …) or on a node (n1, …)
    Exec {
        /// Lab, where several run
        #[arg(long)]
        lab: Option<String>,
        member: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Ping and HTTP between all pods, IPv4 and IPv6
    Ping {
        #[arg(long)]
        lab: Option<String>,
    },
    /// End a lab and remove all that it made
    Down {
        #[arg(long)]
        lab: Option<String>,
    },
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up { scenario } => up(scenario),
        Command::Exec { lab, member, command } => {
            let status = Facts::find(lab.as_deref())?.exec(&member, &command)?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Command::Ping { lab } => {
            let matrix = probe::matrix(&Facts::find(lab.as_deref())?.pod_endpoints())?;
            say(format_args!("{matrix}"))?;
            Ok(if matrix.check().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Down { lab } => tartan_lab::down(&Facts::find(lab.as_deref())?).map(|()| ExitCode::SUCCESS),
    }
}

fn up(scenario: Option<PathBuf>) -> Result<ExitCode> {
    let signals = Signals::hold_back()?;
    let builder = match scenario {
        Some(file) => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            Lab::from_yaml(&text)?
        }
        None => Lab::builder("lab"),
    };
    let lab = builder.up()?;
    // What does not work is what a lab is there to look into.
    match lab.wait_for_matrix(PATIENCE) {
        Ok(matrix) => say(format_args!("{matrix}\n\nup; in another terminal: tartan lab exec a1 -- curl b2"))?,
        Err(error) => say(format_args!("{error:#}\n\nup, but not every pod reaches every other one"))?,
    }
    say(format_args!("Ctrl-C ends it and removes everything"))?;
    signals.wait(false)?;
    Ok(ExitCode::SUCCESS)
}
