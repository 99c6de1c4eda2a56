//! What users write through the agent: `tartan apply` and `tartan set`.
//!
//! Invariant: every document is checked before the first one is written; one bad document writes nothing.

use serde_yaml_ng::{Mapping, Value};
use tartan_model::{Condition, Config, Kind, ObjectId, Revision};
use tartan_store::decode::{self, Document};
use tartan_store::{Expect, Store};

/// Names the document that `tartan set` makes.
const SET: &str = "tartan set";

/// Writes all documents of a text. The names of the objects written, or what is wrong, for people.
pub async fn apply(store: &dyn Store, source: &str, text: &str) -> Result<Vec<String>, String> {
    write(store, check(source, text)?, &Expect::Any).await
}

/// Changes one key of the configuration that `seen` is; somebody else's change in between is refused, not overwritten.
pub async fn set(
    store: &dyn Store,
    seen: (&Config, Option<&Revision>),
    key: &str,
    value: &str,
) -> Result<Vec<String>, String> {
    let (config, revision) = seen;
    let id = ObjectId { kind: Kind::NetworkConfig, name: tartan_api::tartan::CONFIG_NAME.into() };
    let mut document = decode::encode(&id, &tartan_model::Object::Config(config.clone().into()));
    let value: Value = serde_yaml_ng::from_str(value).map_err(|error| format!("'{value}' is not YAML: {error}"))?;
    put_at(&mut document, &format!("spec.{key}"), value)?;
    let text = serde_yaml_ng::to_string(&document).map_err(|error| error.to_string())?;
    let expect = revision.map_or(Expect::Absent, |revision| Expect::At(revision.clone()));
    write(store, check(SET, &text)?, &expect).await
}

fn check(source: &str, text: &str) -> Result<Vec<Document>, String> {
    let (good, bad): (Vec<_>, Vec<_>) = decode::documents(source, text).into_iter().partition(Result::is_ok);
    let bad: Vec<String> = bad.into_iter().filter_map(Result::err).map(|refused| explain(&refused.condition)).collect();
    if !bad.is_empty() {
        return Err(format!("nothing was written:\n{}", bad.join("\n")));
    }
    if good.is_empty() {
        return Err(format!("{source} holds no document; nothing was written"));
    }
    Ok(good.into_iter().flatten().collect())
}

async fn write(store: &dyn Store, documents: Vec<Document>, expect: &Expect) -> Result<Vec<String>, String> {
    let mut written = Vec::new();
    for Document { id, object, .. } in documents {
        let name = id.to_string();
        store.put(id, object, expect.clone()).await.map_err(|error| match written.is_empty() {
            true => error.to_string(),
            false => format!("{error} (already written: {})", written.join(", ")),
        })?;
        written.push(name);
    }
    Ok(written)
}

/// A condition in one line, its fix in the next.
fn explain(condition: &Condition) -> String {
    let Condition { about, field, message, fix, .. } = condition;
    let field = if field.is_empty() { String::new() } else { format!(" {field}") };
    // The line of a document that the user has not written says nothing.
    let message = message.strip_prefix(SET).and_then(|rest| rest.split_once(": ")).map_or(&**message, |(_, said)| said);
    format!("{about}{field}: {message}\n  Fix: {fix}")
}

fn put_at(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let mut at = document;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        if at.is_null() {
            *at = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(map) = at else { return Err(format!("{path}: there is nothing below {key}")) };
        match (keys.peek(), value.is_null()) {
            (None, true) => {
                map.remove(key);
                return Ok(());
            }
            (None, false) => {
                map.insert(key.into(), value);
                return Ok(());
            }
            (Some(_), _) => at = map.entry(key.into()).or_insert(Value::Null),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_key_and_makes_what_is_missing() {
        let check = |before: &str, path: &str, value: &str, after: &str| {
            let mut document: Value = serde_yaml_ng::from_str(before).unwrap();
            put_at(&mut document, path, serde_yaml_ng::from_str(value).unwrap()).unwrap();
            assert_eq!(document, serde_yaml_ng::from_str::<Value>(after).unwrap(), "{path} {value}");
        };
        check("spec: {fabric: vxlan}", "spec.fabric", "host-gw", "spec: {fabric: host-gw}");
        check("{}", "spec.vxlan.vni", "7", "spec: {vxlan: {vni: 7}}");
        check("spec: {fabric: vxlan, vxlan: {vni: 7}}", "spec.vxlan.vni", "null", "spec: {fabric: vxlan, vxlan: {}}");
        assert!(put_at(&mut Value::from("text"), "spec.a", Value::Null).is_err());
    }
    #[tokio::test]
    async fn set_changes_what_was_seen_or_nothing() {
        let store = tartan_store::MemoryStore::new();
        let id = ObjectId { kind: Kind::NetworkConfig, name: "default".into() };
        let seen = Config::default();
        let refused = set(&store, (&seen, None), "fabric", "hostgw").await.unwrap_err();
        let text = "nothing was written:\n\
                    NetworkConfig/default spec.fabric: spec.fabric is `hostgw`: unknown\n  Fix: did you mean `host-gw`?";
        assert_eq!(refused, text);
        assert!(store.get(&id).is_none());

        set(&store, (&seen, None), "fabric", "host-gw").await.unwrap();
        let (_, revision) = store.get(&id).unwrap();
        let late = set(&store, (&seen, None), "fabric", "vxlan").await.unwrap_err();
        assert!(late.contains("changed by somebody else"), "{late}");
        assert_eq!(store.get(&id).unwrap().1, revision);
    }
}
