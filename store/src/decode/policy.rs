//! Policy objects of every kind, kept as they were written: their dialects say what they mean and what is wrong.
//!
//! Invariant: whatever `spec` holds, the object is taken. Were it refused, its last version would go on, or none, and what
//! it denies might be open. Only where nothing at all can be known of it that is better than any guess.

use serde_yaml_ng::{Mapping, Value};
use tartan_model::{Kind, ObjectId, PolicyText};

use super::fault::{self, Fault};

/// Keys that say what the object is, and those that others write.
const NOT_KEPT: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

pub(super) fn decode(kind: Kind, body: &str) -> Result<PolicyText, Fault> {
    // By way of YAML's own values, which know that a key can be there twice.
    let mut document: Mapping = fault::typed(body)?;
    for key in NOT_KEPT {
        document.shift_remove(key);
    }
    document.values_mut().for_each(spell_out);
    let value = serde_json::to_value(&document).map_err(|error| {
        let fix = "write texts as keys, and no tags";
        Fault::new("", "BadSyntax", format!("not what a policy is written in: {error}"), fix)
    })?;
    of_value(kind, value)
}

/// JSON has no numbers such as `.nan`, and writes null: what is left out of a rule is anything, and so it would be open.
fn spell_out(value: &mut Value) {
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|it| !it.is_finite()) => {
            *value = Value::String(number.to_string());
        }
        Value::Sequence(list) => list.iter_mut().for_each(spell_out),
        Value::Mapping(map) => map.values_mut().for_each(spell_out),
        Value::Tagged(tagged) => spell_out(&mut tagged.value),
        _ => {}
    }
}

/// Not by way of YAML, which refuses characters that JSON takes: a policy must not vanish for an odd annotation.
pub(super) fn decode_json(
    kind: Kind,
    mut document: serde_json::Map<String, serde_json::Value>,
) -> Result<PolicyText, Fault> {
    document.retain(|key, _| !NOT_KEPT.contains(&key.as_str()));
    of_value(kind, document.into())
}

fn of_value(kind: Kind, value: serde_json::Value) -> Result<PolicyText, Fault> {
    match value.get("spec") {
        Some(serde_json::Value::Object(_)) => {}
        // It isolates every pod of its namespace.
        None | Some(serde_json::Value::Null) if kind == Kind::NetworkPolicy => {}
        None | Some(serde_json::Value::Null) => {
            return Err(Fault::missing("spec", "say whom the policy is for, and its rules"));
        }
        Some(_) => {
            let wrong = "spec is not a block of keys and values";
            return Err(Fault::new("spec", "BadType", wrong, "write `key: value` lines under it"));
        }
    }
    Ok(PolicyText { json: value.to_string().into() })
}

pub(super) fn encode(id: &ObjectId, api_version: &str, policy: &PolicyText) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    let (namespace, name) = match id.name.split_once('/') {
        Some((namespace, name)) if id.kind.is_namespaced() => (Some(namespace), name),
        _ => (None, &*id.name),
    };
    let mut metadata = Mapping::new();
    metadata.insert(text("name"), text(name));
    if let Some(namespace) = namespace {
        metadata.insert(text("namespace"), text(namespace));
    }
    let mut document = Mapping::new();
    document.insert(text("apiVersion"), text(api_version));
    document.insert(text("kind"), text(Kind::as_str(id.kind)));
    document.insert(text("metadata"), Value::Mapping(metadata));
    let rest: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&policy.json).expect("it was written by us, from a mapping");
    for (key, value) in rest {
        let value = serde_yaml_ng::to_value(value).expect("JSON is YAML");
        document.insert(Value::String(key), value);
    }
    Value::Mapping(document)
}
