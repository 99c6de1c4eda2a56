//! What the tests of whole nodes share: load that must not notice, the agent's own words, what a node holds.

#![allow(dead_code, reason = "each test binary compiles all of it and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, LoadReport, Running, around, wait_for};
use tartan_lab::{Binaries, Lab, NFT_LISTING, Node};

/// How long anything may take before a test gives it up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Probes of [`gentle_load`] answered before an event begins and after it has ended.
pub(crate) const GENTLE_PROBES: u64 = 3_000;

/// Three nodes with a pod each, talking.
pub(crate) fn lab(name: &str, fabric: &str) -> Result<Lab> {
    let lab = Lab::builder(name).nodes(3).pods_per_node(1).fabric(fabric).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    Ok(lab)
}

/// The same over that family of underlay.
pub(crate) fn lab_over(name: &str, fabric: &str, underlay: &str) -> Result<Lab> {
    let builder = Lab::builder(name).nodes(3).pods_per_node(1).fabric(fabric);
    let lab = builder.config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    Ok(lab)
}

// --- load ---

/// UDP small and MTU-sized, TCP busy and idle, between pods of different nodes, and from a node to a remote pod.
pub(crate) fn load(lab: &Lab, probes: u64) -> Result<Running> {
    let pairs = around(&lab.pod_endpoints());
    let from_node = (lab.node("n1")?.endpoint(), lab.pod("b1")?.endpoint());
    let load = Load::new()
        .interval(Duration::from_millis(2))
        .udp(pairs.clone())
        .udp_mtu_sized([pairs[0].clone()])
        .tcp_bulk([pairs[0].clone(), pairs[1].clone()])
        .tcp_idle(pairs.iter().cloned().chain([from_node]))
        .start()?;
    load.wait_for_answers(probes, PATIENCE)?;
    Ok(load)
}

/// Runs `event` under load, `probes` answered before it and `probes` after, and asserts that nobody noticed.
pub(crate) fn unnoticed(lab: &mut Lab, probes: u64, event: impl FnOnce(&mut Lab) -> Result<()>) -> Result<LoadReport> {
    let report = under_load(lab, probes, event)?;
    report.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    Ok(report)
}

/// The same, whoever noticed.
pub(crate) fn under_load(lab: &mut Lab, probes: u64, event: impl FnOnce(&mut Lab) -> Result<()>) -> Result<LoadReport> {
    let load = load(lab, probes)?;
    event(lab).with_context(|| lab.troubleshooting())?;
    load.wait_for_answers(probes, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()
}

/// As much as an emulated processor bears: bulk TCP fills its queues, and what they drop is not the change's doing.
pub(crate) fn gentle_load(lab: &Lab) -> Result<Running> {
    let pairs = around(&lab.pod_endpoints());
    let load = Load::new().interval(Duration::from_millis(10)).udp_mtu_sized([pairs[0].clone()]);
    let load = load.udp(pairs.clone()).tcp_idle(pairs).start()?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE)?;
    Ok(load)
}

/// From vxlan into each of these in turn, under load, each node hearing of it so much later than the one before.
pub(crate) fn check_changes(lab: Lab, fabrics: &[&str], apart: Duration) -> Result<()> {
    check_changes_under(lab, fabrics, apart, GENTLE_PROBES, gentle_load)
}

/// The same under another load, with so many probes answered after each change.
pub(crate) fn check_changes_under(
    mut lab: Lab,
    fabrics: &[&str],
    apart: Duration,
    probes: u64,
    load: impl Fn(&Lab) -> Result<Running>,
) -> Result<()> {
    lab.wait_for_matrix(PATIENCE)?;
    let mut from = "vxlan";
    for to in fabrics {
        let load = load(&lab)?;
        lab.set_fabric_apart(to, apart)?;
        wait_until_steady(&lab, to)?;
        load.wait_for_answers(probes, PATIENCE).with_context(|| lab.troubleshooting())?;
        let report = load.stop()?;
        report.check_nothing_lost().with_context(|| format!("from {from} to {to}, {apart:?} apart"))?;
        from = to;
    }
    Ok(())
}

// --- what the agent says ---

/// Runs `tartan ARGS` on the node, as a person with a shell there would.
pub(crate) fn tartan(node: &Node, args: &[&str]) -> Result<Output> {
    let program = Binaries::beside_this_program()?.tartan;
    let mut command = Command::new(program);
    command.args(args).env("TARTAN_SOCKET", node.socket()).env("RUST_BACKTRACE", "0");
    Ok(node.run(|| command.output())??)
}

/// The node's condition of that reason, if there is one.
pub(crate) fn condition(node: &Node, reason: &str) -> Option<Value> {
    let status = node.status().ok()?;
    status["conditions"].as_array()?.iter().find(|condition| condition["reason"] == reason).cloned()
}

/// Waits for the condition of that reason.
pub(crate) fn wait_for_condition(node: &Node, reason: &str) -> Result<Value> {
    let mut found = None;
    wait_for(PATIENCE, &format!("the condition {reason} on {}", node.name()), || {
        found = condition(node, reason);
        found.is_some()
    })
    .with_context(|| format!("{:#}\n{}", node.status().unwrap_or_default(), node.troubleshooting()))?;
    found.context("it was found a moment ago")
}

/// Waits until every agent has programmed everything and uses `fabric` towards all its peers.
pub(crate) fn wait_until_steady(lab: &Lab, fabric: &str) -> Result<()> {
    wait_for(PATIENCE, &format!("every node to be steady on {fabric}"), || lab.is_steady(fabric))
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

/// Waits until every node sends to all its peers by this instance, and has nothing left to do.
pub(crate) fn wait_until_sent_by(lab: &Lab, instance: &str) -> Result<()> {
    wait_until_all_say(lab, instance, |status| status["phase"] == "steady")
}

/// The same, whatever is left to do.
pub(crate) fn wait_until_sent_first_by(lab: &Lab, instance: &str) -> Result<()> {
    wait_until_all_say(lab, instance, |_| true)
}

fn wait_until_all_say(lab: &Lab, instance: &str, as_well: impl Fn(&Value) -> bool) -> Result<()> {
    let by_it = |peer: &Value| peer["fabric"].as_str().is_some_and(|by| by.starts_with(instance));
    let says = |node: &Node| {
        let status = node.status().unwrap_or_default();
        status["peers"].as_array().is_some_and(|peers| peers.iter().all(by_it)) && as_well(&status)
    };
    wait_for(PATIENCE, &format!("every node to send by {instance}"), || lab.nodes().iter().all(says))
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

/// Changes one key of the configuration.
pub(crate) fn set(lab: &mut Lab, key: &str, value: Value) -> Result<()> {
    lab.set_config(&Map::from_iter([(key.to_owned(), value)]))
}

/// Counts what is on the wire from here on, where something is in clear; and then nothing is to be, over this encryption.
pub(crate) fn watch_and_be_strict(lab: &mut Lab, encryption: &str, instance: &str) -> Result<()> {
    lab.watch()?;
    wait_for(PATIENCE, "packets in clear", || lab.seen().is_ok_and(|seen| seen.clear > 0))?;
    be_strict(lab, json!(encryption), json!(true))?;
    wait_until_sent_by(lab, instance)?;
    let in_force = |node: &Node| sh(node, "nft list chain inet tartan encrypted_only").is_ok();
    wait_for(PATIENCE, "strictness to be in force", || lab.nodes().iter().all(in_force))
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

/// Takes that back.
pub(crate) fn be_in_clear(lab: &mut Lab) -> Result<()> {
    be_strict(lab, Value::Null, Value::Null)
}

fn be_strict(lab: &mut Lab, encryption: Value, strict: Value) -> Result<()> {
    let keys = [("encryption", encryption), ("strictEncryption", strict)];
    lab.set_config(&keys.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

// --- what is on the wire ---

/// What tshark reads of the first packets that match a filter, on any link of the underlay, while `act` is done again and
/// again: of each packet these fields, as it prints them.
pub(crate) fn capture(
    lab: &Lab,
    filter: &str,
    options: &[&str],
    fields: &[&str],
    mut act: impl FnMut(),
) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-i", "n1", "-f", filter, "-c", "24", "-a", "duration:20"]);
    command.args(["-T", "fields", "-E", "separator=;"]);
    command.args(options).args(fields.iter().flat_map(|field| ["-e", field]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tshark = lab.underlay().netns().run(|| command.spawn())?.context("starting tshark")?;
    while tshark.try_wait()?.is_none() {
        act();
    }
    let output = tshark.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {said}");
    let rows: Vec<Vec<String>> =
        String::from_utf8(output.stdout)?.lines().map(|line| line.split(';').map(str::to_owned).collect()).collect();
    ensure!(!rows.is_empty(), "nothing of {filter} went by: {said}");
    Ok(rows)
}

/// The addresses of n1 and n2, as tshark prints them.
pub(crate) fn ends(lab: &Lab) -> Result<BTreeSet<String>> {
    ["n1", "n2"].iter().map(|name| Ok(lab.node(name)?.endpoint().v4.to_string())).collect()
}

/// Bytes as tshark prints them, but for colons.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// --- what a node holds ---

/// Links, addresses, routes, rules, neighbours, forwarding entries and nft rules of a node. Counters, lifetimes, numbers
/// of links, whose the nft table is, and the order of what has none are left out; so is how often something was revoked.
pub(crate) fn census(node: &Node) -> Result<String> {
    sh(
        node,
        &format!(
            "{{ ip -o link | sed 's/qlen.*//'; ip -o addr | sed 's/valid_lft.*//'; ip route show table all; \
         ip -6 route show table all | sed 's/expires [^ ]*//'; ip rule; ip -6 rule; ip neigh show nud permanent; \
         ip -6 neigh show nud permanent; bridge fdb show; }} | sed 's/^[0-9]*: //' | sort; \
         {NFT_LISTING}"
        ),
    )
}

/// The output of a shell's command line on the node.
pub(crate) fn sh(node: &Node, line: &str) -> Result<String> {
    node.output(&["sh", "-c", line])
}

/// Waits until the node holds exactly `before`, and says what differs if it never does.
pub(crate) fn wait_until_holds(node: &Node, before: &str) -> Result<()> {
    let mut after = String::new();
    wait_for(PATIENCE, &format!("{} to be what it was before", node.name()), || {
        after = census(node).unwrap_or_default();
        after == before
    })
    .map(drop)
    .with_context(|| {
        let only = |here: &str, there: &str| -> String {
            here.lines().filter(|line| !there.lines().any(|other| other == *line)).map(|l| format!("  {l}\n")).collect()
        };
        format!("came:\n{}went:\n{}{}", only(&after, before), only(before, &after), node.troubleshooting())
    })
}
