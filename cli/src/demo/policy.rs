//! Act three: a policy, and a connection that was open before it.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tartan_lab::probe::{Pair, Talk, Transport, wait_for};
use tartan_lab::{ECHO_PORT, Family, Lab, NAMESPACE};

use crate::output::say;

const PATIENCE: Duration = Duration::from_secs(30);
/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_millis(200);

const SERVER: &str = "a1";
const STRANGER: &str = "b1";
const FRIEND: &str = "c1";

/// Lets only the friend in.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends-only, namespace: lab}
spec:
  podSelector: {matchLabels: {name: a1}}
  ingress:
    - from: [{podSelector: {matchLabels: {name: c1}}}]";

/// Applies a policy under open connections, shows whom it cuts, and why; then takes it back.
pub(super) fn act(lab: &Lab) -> Result<()> {
    let (mut strangers, mut friends) = (talks(lab, STRANGER)?, talks(lab, FRIEND)?);
    say(format_args!(
        "{STRANGER} and {FRIEND} talk to {SERVER}: TCP and UDP, IPv4 and IPv6\n\ntartan apply -f -\n{POLICY}\n"
    ))?;
    let policy = serde_yaml_ng::from_str(POLICY).context("the policy above")?;
    lab.put(&policy)?;
    let written = Instant::now();
    for talk in &mut strangers {
        let last = last_answer(talk, written)?;
        say(format_args!("  {}: cut; its last answer came {:.0} ms after", talk.name(), last.as_secs_f64() * 1e3))?;
    }
    for talk in &mut friends {
        ensure!(talk.carries(PATIENCE), "{} was cut, too\n{}", talk.name(), lab.troubleshooting());
    }
    say(format_args!("  {FRIEND} → {SERVER}: not one of its connections was\n"))?;
    explain(lab)?;
    lab.delete(&policy)?;
    let open = || talks(lab, STRANGER).is_ok();
    wait_for(PATIENCE, "the policy's end", open).with_context(|| lab.troubleshooting())?;
    say(format_args!("The policy is deleted: {STRANGER} is let in again"))
}

fn talks(lab: &Lab, from: &str) -> Result<Vec<Talk>> {
    let pair: Pair = (lab.endpoint(from)?, lab.endpoint(SERVER)?);
    let ways = Transport::BOTH.into_iter().flat_map(|by| Family::BOTH.map(|family| (by, family)));
    ways.map(|(by, family)| Talk::open(&pair, family, by, ANSWER)).collect()
}

/// When it answered last.
fn last_answer(talk: &mut Talk, since: Instant) -> Result<Duration> {
    let mut last = Duration::ZERO;
    while talk.carries(ANSWER) {
        last = since.elapsed();
        ensure!(last < PATIENCE, "{} goes on, as if there were no policy", talk.name());
    }
    Ok(last)
}

/// Asks the agent of the server's node, as a person would.
fn explain(lab: &Lab) -> Result<()> {
    let (from, to) = (format!("{NAMESPACE}/{STRANGER}"), format!("{NAMESPACE}/{SERVER}"));
    let port = format!("{ECHO_PORT}/tcp");
    let args = ["policy", "trace", "--from", &from, "--to", &to, "--port", &port];
    say(format_args!("tartan {}", args.join(" ")))?;
    let node = lab.node(lab.pod(SERVER)?.node())?;
    let mut tartan = Command::new(std::env::current_exe()?);
    tartan.args(args).env("TARTAN_SOCKET", node.socket());
    let said = node.run(|| tartan.output())??;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    say(format_args!("{}", String::from_utf8_lossy(&said.stdout)))
}
