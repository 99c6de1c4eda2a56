//! The part of a policy that a path leads to, as it was written.

use std::sync::Arc;

use serde_json::{Value, json};
use tartan_model::PolicyText;

/// What stands at a path, e.g. `spec.ingress[0]`, under its last key; null where nothing does.
pub(super) fn part(policy: Option<&Arc<PolicyText>>, path: &str) -> Value {
    let Some(policy) = policy else { return Value::Null };
    let Ok(document) = serde_json::from_str::<Value>(&policy.json) else { return Value::Null };
    let mut at = &document;
    for step in path.split(['.', '[']) {
        let next = match step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => at.get(index),
            None => at.get(step),
        };
        let Some(next) = next else { return Value::Null };
        at = next;
    }
    match path.rsplit('.').next() {
        // An item of a list says enough by itself.
        Some(last) if !last.ends_with(']') => json!({ last: at }),
        _ => at.clone(),
    }
}
