//! Kubernetes' own network tests against Tartan: what passes, what fails, what is left out and why.
//!
//! Invariant: each spec of a set is accounted for: passed, failed, or left out with a reason, which is ours or its own.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tartan_lab::Signals;

use crate::Programs;
use crate::cluster::{Cluster, Wants};
use crate::machine::Proxy;
use crate::tartan;

/// Begins the names of the network's specs; the program has others as well.
const NETWORK: &str = "[sig-network]";

/// What Tartan is held to: the network's specs whose names hold one of the texts.
const SETS: [Set; 4] = [
    Set { name: "conformance", texts: &["[Conformance]"] },
    Set { name: "granular", texts: &["Granular Checks", "NoSNAT", "should preserve source pod IP"] },
    Set { name: "dual_stack", texts: &["[Feature:IPv6DualStack]"] },
    Set { name: "netpol", texts: &["Netpol"] },
];

/// Texts in the names of specs that are not run, and why.
const LEFT_OUT: [(&str, &str); 1] =
    [("[Feature:SCTPConnectivity]", "it opens SCTP sockets; few kernels have them without loading a module")];

/// Begins what is called a spec here and is what ginkgo did around them.
const AROUND: &str = "around the specs: ";

/// Built of `kube/VERSION/e2e`.
pub(crate) const PROGRAM: &str = "e2e.test";

struct Set {
    name: &'static str,
    texts: &'static [&'static str],
}

/// One of upstream's tests, and what became of it.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    name: String,
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    /// It ran and found that it does not apply.
    DoesNotApply(String),
    NotRun,
}

/// Makes a cluster and runs the sets in it, or the specs that the regular expressions in `focus` match. Says what became
/// of each, then how many passed and failed.
pub(crate) fn run(focus: &[&str]) -> Result<()> {
    // Ctrl-C ends ginkgo; the cluster must still be taken down, and what has run is told.
    let _signals = Signals::hold_back()?;
    let wants = Wants { proxy: Some(Proxy::Nftables), tools: true, ..Wants::default() };
    let cluster = Cluster::up("kube-e2e", Programs::from_environment()?, wants)?;
    tartan::install(&cluster)?;
    cluster.wait_until_ready()?;
    let specs = ginkgo(&cluster, focus)?;
    let ran: Vec<&Spec> = specs.iter().filter(|spec| spec.outcome != Outcome::NotRun).collect();
    if focus.is_empty() {
        for set in &SETS {
            let specs = set.of(&specs);
            list(&specs);
            counts(set.name, &specs);
        }
    } else {
        ensure!(!ran.is_empty(), "no spec's name matches {}", focus.join(" or "));
        list(&ran);
    }
    // A spec may be in two sets.
    let failed = counts("all", &ran);
    ensure!(failed == 0, "{failed} specs failed");
    Ok(())
}

/// Runs what is in focus, all sets where nothing is; every spec there is.
fn ginkgo(cluster: &Cluster, focus: &[&str]) -> Result<Vec<Spec>> {
    let report = cluster.file("e2e.json", b"")?;
    let report = Path::new(&report);
    let programs = cluster.programs();
    let (ginkgo, suite) = (programs.find("ginkgo")?, programs.find(PROGRAM)?);
    // Specs mostly wait.
    let procs = 4 * available_parallelism()?.get();
    let own = SETS.iter().flat_map(|set| set.texts).map(|text| escape(text));
    let focus: Vec<String> = if focus.is_empty() { own.collect() } else { focus.iter().map(|&f| f.into()).collect() };
    let status = cluster.run_client(|kubectl, admin| {
        let mut command = Command::new(&ginkgo);
        command.args(["--succinct", "--silence-skips", "--no-color", "--timeout=1h", &format!("--procs={procs}")]);
        command.arg("--output-dir").args(report.parent()).arg("--json-report").args(report.file_name());
        command.args(focus.iter().map(|focus| format!("--focus={}.*({focus})", escape(NETWORK))));
        command.args(LEFT_OUT.iter().map(|(text, _)| format!("--skip={}", escape(text))));
        command.arg(&suite).args(["--", "--provider=skeleton", "--disable-log-dump", "--dump-logs-on-failure=false"]);
        command.arg(format!("--num-nodes={}", cluster.machines().len()));
        command.arg(format!("--kubeconfig={}", admin.display()));
        command.arg(format!("--kubectl-path={}", kubectl.display())).status()
    })?;
    let text = fs::read(report)?;
    ensure!(!text.is_empty(), "ginkgo has written no report: {status}");
    specs(&serde_json::from_slice(&text).context("parsing ginkgo's report")?)
}

/// A line for each spec.
fn list(specs: &[&Spec]) {
    let mut lines: Vec<String> = specs.iter().map(ToString::to_string).collect();
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
}

/// How many passed and failed; the latter.
fn counts(name: &str, specs: &[&Spec]) -> usize {
    let count = |is: fn(&Outcome) -> bool| specs.iter().filter(|spec| is(&spec.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    println!("e2e.{name}.passed {}", count(|outcome| *outcome == Outcome::Passed));
    println!("e2e.{name}.failed {failed}");
    failed
}

/// A text as a regular expression that matches it alone.
fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() || c == ' ' { c.to_string() } else { format!("\\{c}") }).collect()
}

/// The tests in ginkgo's report. What it does around them is there only if it failed.
fn specs(report: &Value) -> Result<Vec<Spec>> {
    let reports = report[0]["SpecReports"].as_array().context("ginkgo's report has no SpecReports")?;
    reports.iter().filter_map(|report| spec(report).transpose()).collect()
}

fn spec(report: &Value) -> Result<Option<Spec>> {
    let texts = report["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&report["LeafNodeText"]]);
    let mut name = texts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
    let message = report["Failure"]["Message"].as_str().unwrap_or_default();
    let message = || message.lines().next().unwrap_or_default().to_owned();
    let kind = report["LeafNodeType"].as_str().unwrap_or_default();
    let outcome = match report["State"].as_str().context("a spec in ginkgo's report has no State")? {
        "passed" => Outcome::Passed,
        "skipped" | "pending" if message().is_empty() => Outcome::NotRun,
        "skipped" => Outcome::DoesNotApply(message()),
        "failed" | "panicked" | "timedout" | "interrupted" | "aborted" => Outcome::Failed(message()),
        other => bail!("ginkgo's report says that {name} is `{other}`"),
    };
    match (kind, &outcome) {
        ("It", _) => {}
        (_, Outcome::Failed(_)) => name = format!("{AROUND}{kind}{name}"),
        _ => return Ok(None),
    }
    Ok(Some(Spec { name, outcome }))
}

// === impl Set ===

impl Set {
    /// What fails around specs fails every set.
    fn of<'a>(&self, specs: &'a [Spec]) -> Vec<&'a Spec> {
        let holds = |spec: &&Spec| {
            let named = self.texts.iter().any(|text| spec.name.contains(text));
            named && spec.name.starts_with(NETWORK) || spec.name.starts_with(AROUND)
        };
        specs.iter().filter(holds).collect()
    }
}

// === impl Spec ===

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome } = self;
        match outcome {
            Outcome::Passed => write!(f, "passed    {name}"),
            Outcome::Failed(why) => write!(f, "failed    {name}: {why}"),
            Outcome::DoesNotApply(why) => write!(f, "left out  {name}: {why}"),
            Outcome::NotRun => {
                let why =
                    LEFT_OUT.iter().find(|(text, _)| name.contains(text)).map_or("it was not run", |(_, why)| why);
                write!(f, "left out  {name}: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(kind: &str, container: &str, text: &str, state: &str, message: &str) -> Value {
        json!({
            "ContainerHierarchyTexts": [container], "LeafNodeType": kind, "LeafNodeText": text, "State": state,
            "Failure": {"Message": message},
        })
    }

    #[test]
    fn every_spec_of_a_set_is_accounted_for() {
        let reports = [
            report("SynchronizedBeforeSuite", "", "", "passed", ""),
            report("It", "[sig-network] DNS", "answers [Conformance]", "passed", ""),
            report("It", "[sig-network] DNS", "answers fast [Conformance]", "timedout", "too slow\nby far"),
            report("It", "[sig-network] DNS", "on Windows [Conformance]", "skipped", "no Windows here"),
            report("It", "[sig-network] Granular Checks", "sctp [Feature:SCTPConnectivity]", "skipped", ""),
            report("It", "[sig-node] Pods", "run [Conformance]", "passed", ""),
            report("SynchronizedAfterSuite", "", "", "panicked", "nil"),
        ];
        let specs = specs(&json!([{"SpecReports": reports}])).unwrap();
        let told = |set: &Set| set.of(&specs).iter().map(ToString::to_string).collect::<Vec<_>>();
        let around = "failed    around the specs: SynchronizedAfterSuite : nil";
        assert_eq!(
            told(&SETS[0]),
            [
                "passed    [sig-network] DNS answers [Conformance]",
                "failed    [sig-network] DNS answers fast [Conformance]: too slow",
                "left out  [sig-network] DNS on Windows [Conformance]: no Windows here",
                around,
            ]
        );
        let sctp = format!("left out  [sig-network] Granular Checks sctp {}: {}", LEFT_OUT[0].0, LEFT_OUT[0].1);
        assert_eq!(told(&SETS[1]), [sctp.as_str(), around]);
    }

    #[test]
    fn a_report_that_is_not_understood_is_no_success() {
        assert!(specs(&json!([])).is_err());
        assert!(specs(&json!([{"SpecReports": [report("It", "x", "y", "sideways", "")]}])).is_err());
    }

    #[test]
    fn a_text_matches_itself_alone() {
        assert_eq!(escape("[sig-network] a.b"), "\\[sig\\-network\\] a\\.b");
    }
}
