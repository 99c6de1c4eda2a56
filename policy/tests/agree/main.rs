//! Verdict tables and the oracle on random clusters that change step by step: after every step each node's tables must
//! say of every connection what the oracle says, and be the tables that an agent makes that starts anew.
//!
//! `POLICY_CASES` sets how many histories are played, `POLICY_SEED` from which seed. A failure prints the seed and the
//! shortest history found that fails, as YAML.

use std::cell::Cell;
use std::net::IpAddr;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tartan_model::workload::NAMESPACE_NAME_LABEL;
use tartan_policy::ir::{Direction, RuleRef, protocol};
use tartan_policy::oracle::{Cluster, Decision, Flow, Judgement, Transport};
use tartan_policy::verdicts::{self, Memo, Tables};
use tartan_policy::walk::{self, Packet};

use history::{History, NODES, State};

mod canon;
mod compared;
mod garbage;
mod generate;
mod history;
mod misread;
mod traced;

/// Histories of an everyday run: about five seconds, and 130,000 decisions.
const EVERYDAY: u64 = 100;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn tables_agree_with_the_oracle() {
    let judged = play(setting("POLICY_CASES", EVERYDAY));
    println!("figure policy.oracle_cases {judged} cases\nfigure policy.oracle_wrong 0 cases");
}

#[test]
#[ignore = "long: a million connections, a minute"]
fn tables_agree_with_the_oracle_on_a_million_connections() {
    let judged = play(setting("POLICY_CASES", 1_000));
    assert!(judged >= 1_000_000 || std::env::var_os("POLICY_CASES").is_some(), "only {judged} connections");
    println!("figure policy.oracle_cases {judged} cases\nfigure policy.oracle_wrong 0 cases");
}

/// A seed of its own for each run, unless `POLICY_SEED` says which, and who plays so many histories from it.
fn runner(cases: u64, max_shrink_iters: u32) -> (u64, TestRunner) {
    let now = std::time::UNIX_EPOCH.elapsed().expect("the clock is later than 1970");
    let seed = setting("POLICY_SEED", now.as_secs() ^ u64::from(now.subsec_nanos()) << 32);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let cases = u32::try_from(cases).expect("a count");
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    (seed, TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)))
}

/// Plays so many histories; returns how many decisions were compared.
fn play(cases: u64) -> u64 {
    let (seed, mut runner) = runner(cases, 20_000);
    let judged = Cell::new(0);
    let result = runner.run(&generate::history(), |history| {
        judged.set(judged.get() + check(&history).map_err(TestCaseError::fail)?);
        Ok(())
    });
    match result {
        Ok(()) => judged.get(),
        Err(TestError::Fail(reason, history)) => {
            panic!("POLICY_SEED={seed} POLICY_CASES={cases}: {reason}\n{history:?}")
        }
        Err(TestError::Abort(reason)) => panic!("POLICY_SEED={seed} POLICY_CASES={cases}: {reason}"),
    }
}

/// Plays a history; returns how many decisions were compared.
fn check(history: &History) -> Result<u64, String> {
    let mut memos: Vec<Memo> = NODES.iter().map(|_| Memo::default()).collect();
    let mut before: Vec<Tables> = NODES.iter().map(|_| Tables::default()).collect();
    let mut compared = 0;
    for (step, state) in history.states().enumerate() {
        assert!(state.world.namespaces.values().all(|it| it.labels.iter().any(|(key, _)| key == NAMESPACE_NAME_LABEL)));
        for ((node, memo), before) in NODES.iter().zip(&mut memos).zip(&mut before) {
            let world = state.on(node);
            let tables = verdicts::plan(memo, &world).tables.clone();
            let mut anew = Memo::default();
            let fresh = &verdicts::plan(&mut anew, &world).tables;
            canon::same(&tables, fresh).map_err(|why| format!("step {step} on {node}: planned anew, {why}"))?;
            canon::numbers_stay(before, &tables).map_err(|why| format!("step {step} on {node}: {why}"))?;
            canon::numbers_stay(&tables, fresh).map_err(|why| format!("step {step} on {node}: anew, {why}"))?;
            *before = tables;
        }
        compared += compare(&state, &state.cluster, &before).map_err(|why| format!("step {step}: {why}"))?;
    }
    Ok(compared)
}

/// Where a connection is judged: what the oracle says there, the pod's address and the other end's.
type Side<'a> = (Direction, &'a Decision, IpAddr, IpAddr);

/// A connection as it is judged, destinations translated and sources not yet, and where that is.
fn judged<'a>(flow: &Flow, judgement: &'a Judgement) -> (Packet, impl Iterator<Item = Side<'a>>) {
    let sent = match flow.transport {
        Transport::Port(_, port) => (flow.destination, port),
        Transport::Other => (flow.destination, 0),
    };
    let (to, port) = flow.translated.unwrap_or(sent);
    let source = flow.masqueraded.unwrap_or(flow.source);
    let sides =
        [(Direction::Egress, &judgement.egress, flow.source, to), (Direction::Ingress, &judgement.ingress, to, source)];
    let sides =
        sides.into_iter().filter_map(|(direction, want, own, remote)| Some((direction, want.as_ref()?, own, remote)));
    (packet(flow.transport, port, to), sides)
}

/// Compares what each node's tables say of every connection with what the oracle says; returns how many decisions.
fn compare(state: &State, cluster: &Cluster, tables: &[Tables]) -> Result<u64, String> {
    let mut compared = 0;
    for flow in state.flows() {
        let judgement = cluster.judge(&flow);
        let (packet, sides) = judged(&flow, &judgement);
        for (direction, want, own, remote) in sides {
            let (pod, node) = state.pod_at(own).expect("only known pods are judged");
            let tables = &tables[NODES.iter().position(|name| *name == node).expect("a node of the cluster")];
            let got = tables.lookup(&pod, direction, own, remote, &packet);
            agree(want, got.as_ref()).map_err(|why| {
                format!("{direction:?} of {pod} at {own}, other end {remote}, {packet:?} of {flow:?}: {why}")
            })?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// Whether tables made from one history disagree with the oracle on the other, at the end.
fn verdicts_differ(right: &History, read: &History) -> bool {
    let (Some(right), Some(read)) = (right.states().last(), read.states().last()) else { return false };
    let plan = |node: &&str| verdicts::plan(&mut Memo::default(), &read.on(node)).tables.clone();
    let tables: Vec<Tables> = NODES.iter().map(plan).collect();
    compare(&right, &right.cluster, &tables).is_err()
}

fn packet(transport: Transport, port: u16, to: IpAddr) -> Packet {
    match transport {
        Transport::Port(name, _) => {
            let protocol = match name {
                "TCP" => protocol::TCP,
                "UDP" => protocol::UDP,
                _ => protocol::SCTP,
            };
            Packet { protocol, source_port: 40_000, destination: port }
        }
        // An echo request.
        Transport::Other if to.is_ipv4() => Packet { protocol: protocol::ICMP, source_port: 0, destination: 8 << 8 },
        Transport::Other => Packet { protocol: protocol::ICMPV6, source_port: 0, destination: 128 << 8 },
    }
}

/// The verdict, and that the line it rests on is among those that the oracle knows.
fn agree(want: &Decision, got: Option<&walk::Decision>) -> Result<(), String> {
    let Some(got) = got else { return Err(format!("the pod has no set, the oracle says {want:?}")) };
    let line = |rule: &RuleRef| (rule.source.to_string(), rule.path.to_string());
    let because = match &got.rule {
        None => want.because.is_empty(),
        Some(rule) => want.because.contains(&line(rule)),
    };
    if walk::passes(got.verdict) == want.allowed && because {
        return Ok(());
    }
    Err(format!("the tables say {got:?}, the oracle {want:?}"))
}

#[test]
fn what_no_pod_takes_part_in_is_not_judged() {
    let nobody: IpAddr = "203.0.113.1".parse().expect("an address");
    let (transport, translated, masqueraded) = (Transport::Other, None, None);
    let flow = Flow { source: nobody, destination: nobody, transport, translated, masqueraded };
    let judgement = Cluster::default().judge(&flow);
    assert!(judgement.allowed() && judgement.egress.is_none() && judgement.ingress.is_none());
}
