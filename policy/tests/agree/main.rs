//! Verdict tables and the oracle on random clusters that change step by step: after every step each node's tables must
//! say of every connection what the oracle says, and be the tables that an agent makes that starts anew.
//!
//! `POLICY_CASES` sets how many histories are played, `POLICY_SEED` from which seed. What was compared, and from which seed, is
//! printed. A failure prints the seed and the shortest history found that fails, as YAML.

#![allow(clippy::print_stdout, reason = "figures")]

use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tartan_model::workload::NAMESPACE_NAME_LABEL;
use tartan_policy::ir::{Direction, RuleRef, protocol};
use tartan_policy::oracle::{Cluster, Decision, Flow, Judgement, Transport};
use tartan_policy::verdicts::{self, Memo, Tables};
use tartan_policy::walk::{self, Packet};

use generate::Mix;
use history::{History, NODES, State};

mod canon;
mod compared;
mod garbage;
mod generate;
mod history;
mod misread;
mod traced;

/// Histories of each mix of an everyday run: some seconds, and 300,000 decisions.
const EVERYDAY: u64 = 80;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn tables_agree_with_the_oracle() {
    report(setting("POLICY_CASES", EVERYDAY), 1);
}

#[test]
#[ignore = "long: a million connections of each mix, minutes"]
fn tables_agree_with_the_oracle_on_a_million_connections() {
    report(setting("POLICY_CASES", 1_000), if std::env::var_os("POLICY_CASES").is_some() { 1 } else { 1_000_000 });
}

/// Plays so many histories of each mix of dialects, and says how many decisions were compared.
fn report(cases: u64, least: u64) {
    let (mut all, mut lines) = (0, String::new());
    for mix in [Mix::Kubernetes, Mix::Cluster, Mix::Both] {
        let (seed, [v4, v6]) = play(mix, cases);
        lines += &format!(
            "# policy.oracle_cases {mix:?}: {v4} of IPv4, {v6} of IPv6, in {cases} histories of POLICY_SEED={seed}\n"
        );
        assert!(v4 + v6 >= least && v6 > 0, "{mix:?}: only {v4} and {v6} connections");
        all += v4 + v6;
    }
    tell(&format!("\n{lines}figure policy.oracle_cases {all} count\nfigure policy.oracle_wrong 0 count\n"));
}

/// Past the harness, which shows to nobody what a test prints that passes.
fn tell(lines: &str) {
    std::io::stdout().write_all(lines.as_bytes()).expect("somebody reads it");
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

/// Decisions that were compared, of IPv4 and of IPv6.
type Compared = [u64; 2];

fn sum(one: Compared, other: Compared) -> Compared {
    [one[0] + other[0], one[1] + other[1]]
}

/// Plays so many histories, and says from which seed.
fn play(mix: Mix, cases: u64) -> (u64, Compared) {
    let (seed, mut runner) = runner(cases, 20_000);
    let compared = Cell::new([0; 2]);
    let result = runner.run(&generate::history_of(mix), |history| {
        compared.set(sum(compared.get(), check(&history).map_err(TestCaseError::fail)?));
        Ok(())
    });
    let which = || format!("{mix:?}, POLICY_SEED={seed} POLICY_CASES={cases}");
    match result {
        Ok(()) => (seed, compared.get()),
        Err(TestError::Fail(reason, history)) => panic!("{}: {reason}\n{history:?}", which()),
        Err(TestError::Abort(reason)) => panic!("{}: {reason}", which()),
    }
}

/// Plays a history.
fn check(history: &History) -> Result<Compared, String> {
    let mut memos: Vec<Memo> = NODES.iter().map(|_| Memo::default()).collect();
    let mut before: Vec<Tables> = NODES.iter().map(|_| Tables::default()).collect();
    let mut compared = [0; 2];
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
        let these = compare(&state, &state.cluster, &before).map_err(|why| format!("step {step}: {why}"))?;
        compared = sum(compared, these);
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

/// Compares what each node's tables say of every connection with what the oracle says.
fn compare(state: &State, cluster: &Cluster, tables: &[Tables]) -> Result<Compared, String> {
    let mut compared = [0; 2];
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
            compared[usize::from(own.is_ipv6())] += 1;
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
