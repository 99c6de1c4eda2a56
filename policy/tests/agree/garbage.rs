//! Bad input never opens: wherever something that cannot be meant is put into a policy, nothing goes through that did not
//! go through before.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tartan_model::{ObjectId, PolicyText};
use tartan_policy::ir::Direction;
use tartan_policy::oracle::Transport;
use tartan_policy::verdicts::{self, Memo, Tables};
use tartan_policy::walk;

use super::history::{History, NODES, State};
use super::{generate, packet, setting};

/// Neither is a value that any field can have: an object of texts could be labels to select by.
fn garbage() -> impl Strategy<Value = Value> {
    select(vec![json!(-7), json!("no such thing"), json!(true), json!([["x"]]), json!({"no": 1}), json!(0.5)])
}

/// Puts it in place of the n-th part of a document, counted from the outside in.
fn put(document: &mut Value, at: usize, garbage: &Value) -> Option<String> {
    fn walk<'a>(value: &'a mut Value, path: String, left: &mut usize) -> Option<(&'a mut Value, String)> {
        if *left == 0 {
            return Some((value, path));
        }
        *left -= 1;
        match value {
            Value::Object(map) => map.iter_mut().find_map(|(key, value)| walk(value, format!("{path}.{key}"), left)),
            Value::Array(list) => {
                list.iter_mut().enumerate().find_map(|(i, value)| walk(value, format!("{path}[{i}]"), left))
            }
            _ => None,
        }
    }
    let mut left = at;
    let (part, path) = walk(document, String::new(), &mut left)?;
    *part = garbage.clone();
    Some(path)
}

fn parts(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(parts).sum(),
        Value::Array(list) => list.iter().map(parts).sum(),
        _ => 0,
    }
}

fn plan(state: &State) -> Vec<Tables> {
    NODES.iter().map(|node| verdicts::plan(&mut Memo::default(), &state.on(node)).tables.clone()).collect()
}

/// Everything that goes through in the second tables must in the first.
fn check(history: &History, which: Index, at: Index, garbage: &Value) -> Result<(), TestCaseError> {
    let before = history.states().last().expect("a history has an end");
    let ids: Vec<ObjectId> = before.world.policies.keys().cloned().collect();
    if ids.is_empty() {
        return Ok(());
    }
    let id = which.get(&ids);
    let text = &before.world.policies[id].json;
    let mut document: Value = serde_json::from_str(text).expect("JSON");
    // Past the document and `spec` themselves: without them the store refuses it, and what was known stays.
    let at = 2 + at.index(parts(&document) - 2);
    let path = put(&mut document, at, garbage).expect("there are so many parts");
    let mut after = before.clone();
    after.world.policies.insert(id.clone(), PolicyText { json: document.to_string().into() }.into());
    let (tables, spoiled) = (plan(&before), plan(&after));
    for flow in before.flows() {
        let port = if let Transport::Port(_, port) = flow.transport { port } else { 0 };
        let packet = packet(flow.transport, port, flow.destination);
        let ends =
            [(Direction::Egress, flow.source, flow.destination), (Direction::Ingress, flow.destination, flow.source)];
        for (direction, own, remote) in ends {
            let Some((pod, node)) = before.pod_at(own) else { continue };
            let node = NODES.iter().position(|name| *name == node).expect("a node of the cluster");
            let look = |tables: &[Tables]| tables[node].lookup(&pod, direction, own, remote, &packet);
            let (was, is) = (look(&tables), look(&spoiled));
            let passes =
                |decision: &Option<walk::Decision>| decision.as_ref().is_some_and(|it| walk::passes(it.verdict));
            prop_assert!(
                passes(&was) || !passes(&is),
                "{garbage} at {path} of {id} lets through {direction:?} of {pod} at {own}, other end {remote}, {packet:?}: {was:?} became {is:?}"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(u32::try_from(setting("POLICY_CASES", 60)).expect("a count"))
    })]

    #[test]
    fn garbage_opens_nothing(history in generate::history(), which: Index, at: Index, garbage in garbage()) {
        check(&history, which, at, &garbage)?;
    }
}
