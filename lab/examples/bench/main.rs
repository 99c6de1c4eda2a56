//! What `cargo xtask bench` measures: a lab or another subject, held up while it is asked.
//!
//! One question a line on standard input, one answer a line on standard output: `ok`, then series of numbers separated
//! by `|`, or `err` and why. Rounds, statistics and figures are xtask's. The end of standard input takes all down.
#![allow(clippy::print_stdout, reason = "its output is its product")]

mod boringtun;
mod cni;
mod fabric;
mod load;
mod path;
mod policies;
mod policy;
mod repair;
mod restart;
mod scale;
mod selftest;
mod strict;
mod switch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tartan_lab::probe::LoadReport;
use tartan_lab::{Binaries, Lab};

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// One answer: series of samples.
type Series = Vec<Vec<f64>>;

/// Something that can be measured.
trait Subject {
    fn measure(&mut self, question: &[&str]) -> Result<Series>;
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut subject = subject(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    println!("ok");
    for line in std::io::stdin().lines() {
        let line = line?;
        match subject.measure(&line.split_whitespace().collect::<Vec<_>>()) {
            Ok(series) => println!("ok {}", series.iter().map(|s| numbers(s)).collect::<Vec<_>>().join("|")),
            Err(error) => println!("err {}", format!("{error:#}").replace('\n', "; ")),
        }
    }
    Ok(())
}

fn subject(args: &[&str]) -> Result<Box<dyn Subject>> {
    Ok(match args {
        ["path", fabric] => Box::new(path::Path::up(fabric)?),
        ["cni"] => Box::new(cni::Cni::up(None)?),
        ["cni", plugins] => Box::new(cni::Cni::up(Some(PathBuf::from(plugins)))?),
        ["fabric", fabric] => Box::new(fabric::Fabric::up(fabric, None)?),
        ["fabric", fabric, boringtun] => Box::new(fabric::Fabric::up(fabric, Some(Path::new(boringtun)))?),
        ["switch", fabric] => Box::new(switch::Switch::up(fabric)?),
        ["scale"] => Box::new(scale::Scale::up()?),
        ["restart"] => Box::new(restart::Restart::up()?),
        ["policy"] => Box::new(policy::Policy::up()?),
        ["policies", "linear"] => Box::new(policies::Linear::up()?),
        ["policies", count] => Box::new(policies::Policies::up(count.parse()?)?),
        ["strict"] => Box::new(strict::Strict::up()?),
        ["selftest"] => Box::new(selftest::SelfTest::up()?),
        ["repair"] => Box::new(repair::Repair::up()?),
        other => bail!("`{}` is nothing to measure", other.join(" ")),
    })
}

fn unknown(question: &[&str]) -> anyhow::Error {
    anyhow::anyhow!("`{}` is no question here", question.join(" "))
}

fn numbers(series: &[f64]) -> String {
    series.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
}

/// Probes in all, lost, and resets, broken connections too; what was lost is told on standard error.
fn losses(event: &str, report: &LoadReport) -> Series {
    if report.check_nothing_lost().is_err() {
        eprintln!("{event}: {report}");
    }
    let broken = report.tcp.resets + report.tcp.broken.len() as u64;
    [report.udp.probes, report.udp.lost, broken].map(|count| vec![count as f64]).into()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The programs that ship: static ones, of the profile in whose folder this one is.
fn binaries() -> Result<Binaries> {
    let program = std::env::current_exe()?;
    let profile = program.parent().and_then(Path::parent).context("an example is in TARGET/PROFILE/examples")?;
    let name = profile.file_name().context("a profile has a name")?;
    let folder = profile.with_file_name("x86_64-unknown-linux-musl").join(name);
    Ok(Binaries { tartan: folder.join("tartan"), cni: folder.join("tartan-cni") })
}

/// A lab with everything up and every pod reaching every other one.
fn lab(name: &str, nodes: u8, pods_per_node: u8, fabric: &str) -> Result<Lab> {
    let builder = Lab::builder(name).nodes(nodes).pods_per_node(pods_per_node).fabric(fabric);
    let lab = builder.binaries(binaries()?).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    Ok(lab)
}
