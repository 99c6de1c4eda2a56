//! What a trace says of every connection of random clusters: the verdict and the line that decides are those of the
//! tables and of the oracle, both ends are judged where the oracle judges them, and what is said to allow a denied
//! connection does.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::test_runner::{TestCaseError, TestError};
use serde_json::Value;
use tartan_api::explain::{Judged, Verdict};
use tartan_model::{ObjectId, PolicyText, World};
use tartan_policy::ends::{self, Who};
use tartan_policy::ir::{Direction, Program, protocol};
use tartan_policy::oracle::{Decision, Flow, Transport};
use tartan_policy::trace::{self, Asking, Side};
use tartan_policy::walk::{self, Packet};

use super::history::{History, State};
use super::{agree, generate, judged, runner, setting};

/// Histories of an everyday run.
const EVERYDAY: u64 = 40;
/// An unknown pod may be any: one change after another may be needed, but never more than there are rules.
const CHANGES: usize = 64;

#[test]
fn traces_agree_with_the_oracle() {
    let (seed, mut runner) = runner(setting("POLICY_CASES", EVERYDAY), 2_000);
    let (traced, changed) = (Cell::new(0u64), Cell::new(0u64));
    let result = runner.run(&generate::history(), |history| {
        let (sides, changes) = check(&history).map_err(TestCaseError::fail)?;
        traced.set(traced.get() + sides);
        changed.set(changed.get() + changes);
        Ok(())
    });
    match result {
        Ok(()) => assert!(traced.get() > 0 && changed.get() > 0, "nothing was traced, or nothing denied"),
        Err(TestError::Fail(reason, history)) => panic!("POLICY_SEED={seed}: {reason}\n{history:?}"),
        Err(TestError::Abort(reason)) => panic!("POLICY_SEED={seed}: {reason}"),
    }
    println!("{} sides traced, {} changes made and found to allow", traced.get(), changed.get());
    println!("figure policy.trace_wrong 0 count");
}

/// How many sides were traced, and how many changes tried.
fn check(history: &History) -> Result<(u64, u64), String> {
    let (mut sides, mut changes) = (0, 0);
    let state = history.states().last().expect("there is a first state");
    let program = trace::program(&state.world.policies);
    for flow in state.flows() {
        let judgement = state.cluster.judge(&flow);
        if flow.translated.is_none() && flow.masqueraded.is_none() {
            whole(&state, &program, &flow).map_err(|why| format!("{flow:?}: {why}"))?;
        }
        let (packet, ends) = judged(&flow, &judgement);
        for (direction, want, own, remote) in ends {
            let (pod, _) = state.pod_at(own).expect("only known pods are judged");
            let side = trace::side(&state.world, &program, direction, &pod, own, remote, &packet);
            let side = side.ok_or_else(|| format!("no side of {pod}"))?;
            let at = |why: String| format!("{direction:?} of {pod}, other end {remote}, {packet:?} of {flow:?}: {why}");
            agree(want, Some(&side.decision)).map_err(at)?;
            names_the_line(&side).map_err(at)?;
            changes += changes_allow(&state, &program, &side, (direction, &pod, own, remote, &packet)).map_err(at)?;
            sides += 1;
        }
    }
    Ok((sides, changes))
}

/// The line that decides is among those that were asked, is about the packet, and so says the document.
fn names_the_line(side: &Side<'_>) -> Result<(), String> {
    match (&side.decision.rule, side.decider()) {
        (None, None) => Ok(()),
        (Some(rule), Some(at)) => {
            let asked = &side.asked[at];
            let same = asked.rank.source == rule.source && *asked.path == rule.path;
            let about = asked.fit.whole() != tartan_policy::traits::Holds::No;
            (same && about).then_some(()).ok_or_else(|| format!("{asked:?} is not {rule:?}, or is not about it"))
        }
        (rule, at) => Err(format!("{rule:?} decides, and stands at {at:?}")),
    }
}

/// Each change, made as it is written, does it by itself between known ends; where the other end is an unknown pod, the
/// first change of each turn does it in the end.
fn changes_allow(
    state: &State,
    program: &Program,
    side: &Side<'_>,
    ends: (Direction, &str, IpAddr, IpAddr, &Packet),
) -> Result<u64, String> {
    let (direction, pod, own, remote, packet) = ends;
    if walk::passes(side.decision.verdict) {
        return if side.changes.is_empty() { Ok(0) } else { Err("it passes, and changes are named".into()) };
    }
    let turns =
        if matches!(ends::who(&state.world, remote), Who::UnknownPod(_) | Who::Disputed(_)) { CHANGES } else { 1 };
    let mut count = 0;
    for change in &side.changes {
        let (mut world, mut program, mut change) = (state.world.clone(), program.clone(), change.clone());
        for turn in 1.. {
            let document = change.document(&world, direction, remote);
            // ClusterNetworkPolicy has no words for it.
            if document.add.is_null() {
                break;
            }
            let before = make(&mut world, &change.rank.source, &document.field, document.add.clone());
            for (rank, _) in trace::program(&before) {
                program.remove(&rank);
            }
            let policy = world.policies[&change.rank.source].clone();
            program.extend(trace::program(&imbl::OrdMap::unit(change.rank.source.clone(), policy)));
            let side = trace::side(&world, &program, direction, pod, own, remote, packet).expect("it was there");
            count += 1;
            if walk::passes(side.decision.verdict) {
                break;
            }
            match side.changes.into_iter().next() {
                Some(next) if turn < turns => change = next,
                next => return Err(format!("{document:?} is made, and it is denied still; next: {next:?}")),
            }
        }
    }
    if side.changes.is_empty() { Err("it is denied, and no change is named".into()) } else { Ok(count) }
}

/// Adds an item at the end of a list of a policy, or at its place in it; returns the policy as it was.
fn make(world: &mut World, id: &ObjectId, field: &str, add: Value) -> imbl::OrdMap<ObjectId, Arc<PolicyText>> {
    let before = world.policies[id].clone();
    let mut document: Value = serde_json::from_str(&before.json).expect("it was read as JSON");
    let (list, place) = match field.strip_suffix(']').and_then(|field| field.rsplit_once('[')) {
        Some((list, place)) => (list, place.parse().expect("a number")),
        None => (field, usize::MAX),
    };
    let at = list.split(['.', '[']).fold(&mut document, |at, step| match step.strip_suffix(']') {
        Some(index) => &mut at[index.parse::<usize>().expect("a number")],
        None => &mut at[step],
    });
    if at.is_null() {
        *at = Value::Array(Vec::new());
    }
    let items = at.as_array_mut().expect("a list");
    items.insert(place.min(items.len()), add);
    world.policies.insert(id.clone(), Arc::new(PolicyText { json: document.to_string().into() }));
    imbl::OrdMap::unit(id.clone(), before)
}

/// As a user asks: both ends by address.
fn whole(state: &State, program: &Program, flow: &Flow) -> Result<(), String> {
    let judgement = state.cluster.judge(flow);
    let asking = match flow.transport {
        Transport::Port(name, destination) => {
            let protocol = match name {
                "TCP" => protocol::TCP,
                "UDP" => protocol::UDP,
                _ => protocol::SCTP,
            };
            Asking::Ports { protocol, source: 40_000, destination }
        }
        Transport::Other => Asking::Icmp(None),
    };
    let find = |address: IpAddr| ends::find(&state.world, program, &address.to_string()).map_err(|it| it.to_string());
    let (from, to) = (find(flow.source)?, find(flow.destination)?);
    let traces = trace::trace(&state.world, program, &from, &to, asking).map_err(|it| it.to_string())?;
    let [trace] = traces.as_slice() else { return Err(format!("not one trace: {traces:?}")) };
    if trace.allowed != judgement.allowed() {
        return Err(format!("the trace says {trace:?}, the oracle {judgement:?}"));
    }
    same(&trace.egress, judgement.egress.as_ref())?;
    same(&trace.ingress, judgement.ingress.as_ref())
}

fn same(is: &Judged, want: Option<&Decision>) -> Result<(), String> {
    let agrees = match (is.verdict, want) {
        (Verdict::NotJudged, want) => want.is_none() && !is.why.is_empty(),
        (verdict, Some(want)) => {
            (verdict == Verdict::Allowed) == want.allowed && is.rule.is_some() != want.because.is_empty()
        }
        (_, None) => false,
    };
    agrees.then_some(()).ok_or_else(|| format!("the trace says {is:?}, the oracle {want:?}"))
}
