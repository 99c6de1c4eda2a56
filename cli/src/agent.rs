//! `tartan agent`, `tartan operator` and `tartan uninstall`: the commands that read the boot file; and the two that carry
//! packets for an agent.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tartan_api::boot::Boot;
use tracing::level_filters::LevelFilter;

use crate::output::{self, Format};

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) fn run(config: &Path, node: Option<String>, holds: bool) -> Result<ExitCode> {
    let mut boot = read(config)?;
    if let Some(node) = node {
        boot.node = node;
    }
    ensure!(
        !boot.node.is_empty(),
        "boot file {}: node is missing; name this node there or with --node",
        config.display()
    );
    log(&boot.log)?;
    tartan_agent::run(&boot, holds).map(|()| ExitCode::SUCCESS)
}

/// Runs the operator until SIGTERM or SIGINT.
pub(crate) fn operate(config: &Path, listen: Option<SocketAddr>, namespace: &str, identity: &str) -> Result<ExitCode> {
    let boot = read(config)?;
    log(&boot.log)?;
    tartan_agent::operator::run(&boot, listen, namespace, identity).map(|()| ExitCode::SUCCESS)
}

/// Takes back what is ours.
pub(crate) fn uninstall(config: &Path, format: Format) -> Result<ExitCode> {
    let report = tartan_agent::take_back(&read(config)?)?;
    output::print(format, &report, |report| {
        let mut lines = vec![format!("removed {} objects, gave {} sysctls back", report.removed, report.restored)];
        lines.extend(report.failures.iter().cloned());
        lines.join("\n")
    })?;
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The boot file.
pub(crate) fn read(config: &Path) -> Result<Boot> {
    let text = std::fs::read_to_string(config)
        .with_context(|| format!("reading the boot file {}; name another with --config", config.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| {
        format!(
            "boot file {}: its keys are node, store, stateDir, socket, listen, cniBin, cniConf and log",
            config.display()
        )
    })
}

/// Human-readable on a terminal, JSON elsewhere: what is not read by a person is read by a program.
fn log(level: &str) -> Result<()> {
    let level: LevelFilter =
        level.parse().with_context(|| format!("log: '{level}' is not error, warn, info, debug or trace"))?;
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        builder.init();
    } else {
        builder.json().init();
    }
    Ok(())
}

/// How a holder is to run.
pub(crate) enum Hold {
    /// By itself, from here on.
    Start,
    /// As the one that was started so.
    Detached,
    /// Here, whether or not there is something to hold.
    Stay,
}

/// Starts a holder, or is one.
pub(crate) fn hold(socket: &Path, how: &Hold) -> Result<ExitCode> {
    let done = match how {
        Hold::Start => tartan_engine::holder::start(socket),
        Hold::Detached => tartan_engine::holder::detached(socket),
        Hold::Stay => tartan_engine::holder::stay(socket),
    };
    done.with_context(|| format!("holding an engine at {}", socket.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Carries packets until there is nothing left to carry.
pub(crate) fn engine() -> Result<ExitCode> {
    tartan_engine::program::run().context("carrying packets")?;
    Ok(ExitCode::SUCCESS)
}
