//! What users write through the agent: `tartan apply` and `tartan set`.
//!
//! Invariant: every document is checked before the first one is written; one bad document writes nothing. A store that
//! does not answer is waited for once, not once a document.

use std::time::Duration;

use serde_yaml_ng::{Mapping, Value};
use tartan_model::{Condition, Config, Kind, ObjectId, Revision};
use tartan_store::decode::{self, Document};
use tartan_store::{Expect, Store};
use tokio::time::{Instant, timeout_at};

/// How long the store may take for all that one command writes.
pub const PATIENCE: Duration = Duration::from_secs(20);

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
    let until = Instant::now() + PATIENCE;
    let mut written = Vec::new();
    for Document { id, object, .. } in documents {
        let name = id.to_string();
        let put = match timeout_at(until, store.put(id, object, expect.clone())).await {
            Ok(put) => put.map(drop).map_err(|error| error.to_string()),
            Err(_late) => Err(unanswered(&name)),
        };
        put.map_err(|error| match written.is_empty() {
            true => error,
            false => format!("{error} (already written: {})", written.join(", ")),
        })?;
        written.push(name);
    }
    Ok(written)
}

fn unanswered(name: &str) -> String {
    let patience = PATIENCE.as_secs();
    format!(
        "{name}: the store gave no answer within {patience} s, so it may still be written or not\n  \
         Fix: see to the store (`tartan status` and the agent's log say what is wrong with it), then try again"
    )
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

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_named_with_what_was_written_before() {
        let store = tartan_store::MemoryStore::new();
        let hanging = crate::hanging::Hanging::at(&store, Kind::NetworkConfig);
        let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.9.0.0/16}\n";
        let config = "apiVersion: tartan.dev/v1alpha1\nkind: NetworkConfig\nmetadata: {name: default}\nspec: {}\n";
        let began = Instant::now();
        let said = apply(&hanging, "a.yaml", &format!("{pool}---\n{config}")).await.unwrap_err();
        assert!(began.elapsed() <= PATIENCE + Duration::from_secs(1), "{:?}", began.elapsed());
        let lines: Vec<&str> = said.lines().collect();
        let no_answer =
            "NetworkConfig/default: the store gave no answer within 20 s, so it may still be written or not";
        assert_eq!(lines[0], no_answer);
        assert!(lines[1].starts_with("  Fix: ") && lines[1].ends_with(" (already written: IPPool/a)"), "{said}");
        let said = set(&hanging, (&Config::default(), None), "fabric", "host-gw").await.unwrap_err();
        assert!(said.starts_with(no_answer), "{said}");
    }
}
