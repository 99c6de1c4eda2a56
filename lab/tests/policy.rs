//! Policy through whole nodes: the store's files, real agents, real pods, both families, TCP and UDP.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, tartan};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, Pair, Talk, Transport, let_pass, wait_for};
use tartan_lab::{Attachment, Binaries, Family, Lab, NAMESPACE, Netns, Network, cni_args};

/// Far more than a file needs to be read, and the kernel to follow; far less than an ADD waits.
const SOON: Duration = Duration::from_secs(20);
/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_millis(400);

/// A NetworkPolicy for the pod of that name.
fn policy(name: &str, pod: &str, rules: &Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"name": pod}}});
    for (key, value) in rules.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    })
}

fn from(labels: Value) -> Value {
    json!({"podSelector": {"matchLabels": labels}})
}

/// Connections between two pods, of each family and transport.
fn talks(lab: &Lab, from: &str, to: &str) -> Result<Vec<Talk>> {
    let pair: Pair = (lab.endpoint(from)?, lab.endpoint(to)?);
    let open = |family, by| Talk::open(&pair, family, by, Duration::from_secs(2));
    Family::BOTH.into_iter().flat_map(|family| Transport::BOTH.map(|by| open(family, by))).collect()
}

/// Waits until every one of these is cut.
fn wait_until_cut(lab: &Lab, talks: &mut [Talk]) -> Result<()> {
    for talk in talks {
        let what = format!("{} to be cut", talk.name());
        wait_for(PATIENCE, &what, || !talk.carries(ANSWER)).with_context(|| lab.troubleshooting())?;
    }
    Ok(())
}

fn check_open(lab: &Lab, talks: &mut [Talk]) -> Result<()> {
    for talk in talks {
        ensure!(talk.carries(PATIENCE), "{} is cut\n{}", talk.name(), lab.troubleshooting());
    }
    Ok(())
}

/// Whether a new connection comes about, the same in each family and transport.
fn connects(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    let pair: Pair = (lab.endpoint(from)?, lab.endpoint(to)?);
    let mut all = Vec::new();
    for family in Family::BOTH {
        for by in Transport::BOTH {
            all.push(Talk::open(&pair, family, by, ANSWER).is_ok());
        }
    }
    ensure!(all.iter().all(|one| *one == all[0]), "{from} to {to}: not the same in all ways: {all:?}");
    Ok(all[0])
}

/// Waits until new connections come about, or until none does.
fn wait_until(lab: &Lab, from: &str, to: &str, open: bool) -> Result<()> {
    let what = format!("{from} to {to} to be {}", if open { "open" } else { "shut" });
    wait_for(PATIENCE, &what, || connects(lab, from, to).is_ok_and(|is| is == open))
        .map(drop)
        .with_context(|| lab.troubleshooting())
}

#[test]
fn a_policy_shuts_opens_and_cuts_and_its_end_opens_again() -> Result<()> {
    let lab = Lab::builder("policy").nodes(2).pods_per_node(2).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    // From the same node and from another one; and what the pod itself begins.
    let (mut near, mut far, mut own) = (talks(&lab, "a2", "a1")?, talks(&lab, "b1", "a1")?, talks(&lab, "a1", "b2")?);

    lab.put(&policy("p", "a1", &json!({"ingress": []})))?;
    wait_until_cut(&lab, &mut near)?;
    wait_until_cut(&lab, &mut far)?;
    ensure!(!connects(&lab, "a2", "a1")? && !connects(&lab, "b1", "a1")?, "new connections come about");
    check_open(&lab, &mut own)?;
    ensure!(connects(&lab, "a1", "a2")? && connects(&lab, "b1", "b2")?, "pods that no policy is about");

    lab.put(&policy("p", "a1", &json!({"ingress": [{"from": [from(json!({"role": "friend"}))]}]})))?;
    lab.label_pod("b1", &[("role", "friend")])?;
    wait_until(&lab, "b1", "a1", true)?;
    ensure!(!connects(&lab, "a2", "a1")?, "a2 is no friend");
    let mut friends = talks(&lab, "b1", "a1")?;
    lab.label_pod("b1", &[])?;
    wait_until_cut(&lab, &mut friends)?;
    ensure!(!connects(&lab, "b1", "a1")?, "b1 is no friend any more");
    check_open(&lab, &mut own)?;

    // Out of the pod, by address and port.
    let b2 = lab.endpoint("b2")?;
    let to = json!([{"ipBlock": {"cidr": format!("{}/32", b2.v4)}}, {"ipBlock": {"cidr": format!("{}/128", b2.v6)}}]);
    let rules = json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": 80}]}]});
    lab.put(&policy("p", "a1", &rules))?;
    wait_until_cut(&lab, &mut own)?;
    wait_until(&lab, "b1", "a1", true)?;

    lab.delete(&policy("p", "a1", &json!({})))?;
    wait_until(&lab, "a1", "b2", true)?;
    wait_until(&lab, "a2", "a1", true)?;
    lab.matrix()?.check()
}

#[test]
fn what_is_denied_is_told_as_it_happens_and_counted() -> Result<()> {
    let lab = Lab::builder("denied").nodes(1).pods_per_node(2).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    lab.put(&policy("p", "a1", &json!({"ingress": []})))?;
    wait_until(&lab, "a2", "a1", false)?;
    let node = lab.node("n1")?;
    let mut watch = Command::new(Binaries::beside_this_program()?.tartan)
        .args(["flows", "--denied", "-o", "text", "--socket"])
        .arg(node.socket())
        .stdout(Stdio::piped())
        .spawn()?;
    let (told, lines) = mpsc::channel();
    let output = watch.stdout.take().context("it is piped")?;
    let reader =
        std::thread::spawn(move || BufReader::new(output).lines().try_for_each(|line| told.send(line.ok()?).ok()));
    let policy = format!("NetworkPolicy/{NAMESPACE}/p spec.podSelector");
    let tells = || {
        connects(&lab, "a2", "a1").is_ok_and(|open| !open)
            && lines
                .try_iter()
                .any(|line| line.contains(&format!("denied by {policy}")) && line.contains("/a2 (10.244."))
    };
    let heard = wait_for(PATIENCE, "the line of a denied packet", tells);
    watch.kill()?;
    watch.wait()?;
    drop(reader.join());
    heard?;
    let counts = tartan(node, &["policy", "counts"])?;
    let counts = String::from_utf8(counts.stdout)?;
    let counted = |line: &str| line.contains("denied") && line.contains(&policy) && !line.starts_with("0 ");
    ensure!(counts.lines().any(counted), "{counts}");
    Ok(())
}

/// Each pod lets in just those that talk to it; then whatever may happen to agents and store happens.
#[test]
fn nobody_is_cut_who_is_let_in_whatever_happens_to_agents_and_store() -> Result<()> {
    let lab = Lab::builder("policy-calm").nodes(2).pods_per_node(2).up()?;
    lab.wait_for_matrix(PATIENCE)?;
    let pairs: Vec<Pair> = [("a1", "b1"), ("b1", "a2"), ("a2", "a1")]
        .into_iter()
        .map(|(from, to)| Ok((lab.endpoint(from)?, lab.endpoint(to)?)))
        .collect::<Result<_>>()?;
    for (number, (from, to)) in pairs.iter().enumerate() {
        let rules = json!({"ingress": [{"from": [self::from(json!({"name": from.name}))]}]});
        lab.put(&policy(&format!("p{number}"), &to.name, &rules))?;
    }
    wait_until(&lab, "b2", "a1", false)?;
    wait_until(&lab, "a1", "b1", true)?;
    let load = Load::new()
        .interval(Duration::from_millis(2))
        .udp(pairs.clone())
        .tcp_bulk(pairs.clone())
        .tcp_idle(pairs.clone())
        .start()?;
    load.wait_for_answers(1_000, PATIENCE)?;
    for node in lab.nodes() {
        node.kill_agent()?;
        load.wait_for_answers(500, PATIENCE)?;
        node.start_agent()?;
        node.wait_ready()?;
        load.wait_for_answers(500, PATIENCE)?;
    }
    lab.store_away()?;
    load.wait_for_answers(500, PATIENCE)?;
    for node in lab.nodes() {
        node.kill_agent()?;
        node.start_agent()?;
        node.wait_ready()?;
    }
    load.wait_for_answers(1_000, PATIENCE)?;
    ensure!(!connects(&lab, "b2", "a1")?, "what was shut is open while the store is away");
    lab.store_back()?;
    load.wait_for_answers(1_000, PATIENCE)?;
    let report = load.stop()?;
    report.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    ensure!(!connects(&lab, "b2", "a1")?, "what was shut is open");
    Ok(())
}

#[test]
fn off_opens_what_policies_shut_and_says_so() -> Result<()> {
    let mut lab = Lab::builder("policy-off").nodes(1).pods_per_node(2).up()?;
    lab.put(&policy("p", "a1", &json!({"ingress": []})))?;
    wait_until(&lab, "a2", "a1", false)?;
    for mode in ["off", "audit"] {
        lab.set_config(&Map::from_iter([("policy".to_owned(), mode.into())]))?;
        wait_until(&lab, "a2", "a1", true)?;
        let reason = if mode == "off" { "PolicyOff" } else { "PolicyAudit" };
        let said = common::wait_for_condition(lab.node("n1")?, reason)?;
        ensure!(said["field"] == "spec.policy", "{said}");
        let mut talks = talks(&lab, "a2", "a1")?;
        lab.set_config(&Map::from_iter([("policy".to_owned(), "enforce".into())]))?;
        wait_until_cut(&lab, &mut talks)?;
        wait_until(&lab, "a2", "a1", false)?;
    }
    Ok(())
}

#[test]
fn a_pod_starts_when_its_object_is_there() -> Result<()> {
    let lab = Lab::builder("policy-late").nodes(1).pods_per_node(0).up()?;
    let node = lab.node("n1")?;
    let network = Network::tartan(node, &Binaries::beside_this_program()?.cni)?;
    for late in [0, 1, 5].map(Duration::from_secs) {
        let pod = format!("late{}", late.as_secs());
        let netns = Netns::create(&format!("{}{pod}", lab.facts().prefix()))?;
        let at = Attachment {
            container: pod.clone(),
            netns: netns.path(),
            ifname: "eth0".into(),
            args: cni_args(&pod),
            runtime_config: Map::new(),
        };
        let began = Instant::now();
        let answered = std::thread::scope(|scope| -> Result<Duration> {
            let adding = scope.spawn(|| network.add(node, &at).map(|_| began.elapsed()));
            let_pass(late)?;
            lab.announce_pod("n1", &pod)?;
            adding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let answered = answered.with_context(|| node.troubleshooting())?;
        eprintln!("an object {late:?} late: ADD answered after {answered:?}");
        ensure!(answered >= late && answered < late + SOON, "{answered:?} for {late:?}");
    }
    let status = node.status()?;
    ensure!(status["pods"].as_array().is_some_and(|pods| pods.len() == 3), "{status:#}");
    ensure!(status["policy"]["subjects"] == 3, "{status:#}");
    Ok(())
}
