//! What is wrong with an object, where its owner looks for it: in its status where the kind has one of ours, else in an
//! Event, which `kubectl describe` shows.
//!
//! Invariant: a status is written only when it differs; of an object nothing else is touched.

use std::hash::Hasher;
use std::time::SystemTime;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use siphasher::sip::SipHasher13;
use tartan_model::{Condition, Kind, ObjectId, rfc3339};

use super::client::{Client, MERGE, Trouble};
use super::write::{Done, TRIES, busy, path, read, settle};
use crate::WriteError;

/// `type` of the condition.
const ACCEPTED: &str = "Accepted";
/// Where Events about objects without a namespace are.
pub(super) const DEFAULT_NAMESPACE: &str = "default";
/// What an Event's message may be long.
const LONGEST: usize = 1000;

/// Tells what is wrong, or that nothing is.
pub(super) async fn tell(client: &Client, id: &ObjectId, conditions: &[Condition]) -> Result<(), WriteError> {
    for _ in 0..TRIES {
        // Gone meanwhile: the watch brings it.
        let Some(there) = read(client, id).await? else { return Ok(()) };
        let sent = match id.kind {
            Kind::NetworkConfig | Kind::IpPool | Kind::IpReservation => {
                let Some(patch) = status(&there, conditions, SystemTime::now()) else { return Ok(()) };
                client.patch(&path(id), MERGE, &patch).await
            }
            _ => {
                let Some(event) = event(id, &there, conditions, SystemTime::now()) else { return Ok(()) };
                let events = format!("/api/v1/namespaces/{}/events", namespace(id));
                match client.request(Method::POST, &events, Some(event.to_string())).await {
                    // The very same was told already.
                    Err(Trouble::Status { code: StatusCode::CONFLICT, .. }) => return Ok(()),
                    sent => sent,
                }
            }
        };
        match sent.map_err(|trouble| settle::<()>(id, trouble)) {
            Ok(_) | Err(Ok(Done::With(()))) => return Ok(()),
            Err(Ok(Done::LookAgain)) => {}
            Err(Err(error)) => return Err(error),
        }
    }
    Err(busy(id))
}

/// What makes the object's status say so; none: it does.
fn status(there: &Value, conditions: &[Condition], now: SystemTime) -> Option<Value> {
    let generation = &there["metadata"]["generation"];
    let none = Vec::new();
    let before = there["status"]["conditions"].as_array().unwrap_or(&none);
    let last = before.iter().find(|condition| condition["type"] == ACCEPTED);
    let (status, reason) = conditions.first().map_or(("True", "AllIsWell"), |first| ("False", first.reason));
    let message = text(conditions);
    let same = |last: &&Value| {
        (last["status"].as_str(), last["message"].as_str(), last["reason"].as_str())
            == (Some(status), Some(&*message), Some(reason))
    };
    if last.filter(same).is_some_and(|last| last["observedGeneration"] == *generation) {
        return None;
    }
    let since = last.filter(|last| last["status"] == status).map(|last| last["lastTransitionTime"].clone());
    let condition = json!({
        "type": ACCEPTED, "status": status, "reason": reason, "message": message, "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or_else(|| rfc3339(now).into()),
    });
    let others = before.iter().filter(|condition| condition["type"] != ACCEPTED).cloned();
    let all: Vec<Value> = others.chain([condition]).collect();
    let version = &there["metadata"]["resourceVersion"];
    Some(json!({"metadata": {"resourceVersion": version}, "status": {"conditions": all}}))
}

/// None: there is nothing to say. The same words about the same object have the same name.
fn event(id: &ObjectId, there: &Value, conditions: &[Condition], now: SystemTime) -> Option<Value> {
    let first = conditions.first()?;
    let (metadata, namespace, now) = (&there["metadata"], namespace(id), rfc3339(now));
    let message = shortened(text(conditions));
    let mut hasher = SipHasher13::new();
    hasher.write(message.as_bytes());
    hasher.write(metadata["resourceVersion"].as_str().unwrap_or_default().as_bytes());
    let name = metadata["name"].as_str()?;
    Some(json!({
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": first.reason, "message": message,
        "metadata": {"name": format!("{name}.{:016x}", hasher.finish()), "namespace": namespace},
        "involvedObject": {
            "apiVersion": there["apiVersion"], "kind": id.kind.as_str(), "name": name, "uid": metadata["uid"],
            "namespace": metadata["namespace"], "resourceVersion": metadata["resourceVersion"],
        },
        "source": {"component": "tartan-operator"}, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    }))
}

/// A message as an Event may have it.
pub(super) fn shortened(mut message: String) -> String {
    if message.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message += " …";
    }
    message
}

fn namespace(id: &ObjectId) -> &str {
    let named = id.name.split_once('/').filter(|_| id.kind.is_namespaced());
    named.map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
}

fn text(conditions: &[Condition]) -> String {
    let line = |condition: &Condition| {
        let Condition { field, message, fix, .. } = condition;
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        format!("{field}{message}. Fix: {fix}")
    };
    conditions.iter().map(line).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn fault(field: &str, message: &str) -> Condition {
        let [about, field, message, fix] = ["IPPool/p", field, message, "mend it"].map(str::to_owned);
        Condition { about, field, reason: "PoolsOverlap", message, fix }
    }

    #[test]
    fn a_status_is_written_when_it_differs_and_keeps_what_is_others() {
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let mut object = json!({
            "metadata": {"name": "p", "resourceVersion": "7", "generation": 2},
            "status": {"conditions": [{"type": "Other", "status": "True"}]},
        });
        let patch = status(&object, &[], at(0)).unwrap();
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        assert_eq!(patch["status"]["conditions"][0]["type"], "Other");
        let ours = &patch["status"]["conditions"][1];
        assert_eq!((&ours["status"], &ours["reason"]), (&json!("True"), &json!("AllIsWell")));
        object["status"] = patch["status"].clone();
        assert_eq!(status(&object, &[], at(60)), None, "it says so already");

        let patch = status(&object, &[fault("spec.cidr", "it is so")], at(60)).unwrap();
        let ours = &patch["status"]["conditions"][1];
        assert_eq!(ours["message"], "spec.cidr: it is so. Fix: mend it");
        assert_eq!((&ours["status"], &ours["lastTransitionTime"]), (&json!("False"), &json!("1970-01-01T00:01:00Z")));
        object["status"] = patch["status"].clone();
        let patch = status(&object, &[fault("", "worse"), fault("", "and more")], at(120)).unwrap();
        let ours = &patch["status"]["conditions"][1];
        assert_eq!(ours["message"], "worse. Fix: mend it; and more. Fix: mend it");
        assert_eq!(ours["lastTransitionTime"], "1970-01-01T00:01:00Z", "since when it is False");
        object["status"] = patch["status"].clone();
        object["metadata"]["generation"] = 3.into();
        assert!(status(&object, &[fault("", "worse"), fault("", "and more")], at(180)).is_some(), "another spec");
    }

    #[test]
    fn an_event_is_about_its_object_and_has_one_name_a_word() {
        let id = ObjectId { kind: Kind::NetworkPolicy, name: "shop/web".into() };
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
        });
        assert_eq!(event(&id, &object, &[], UNIX_EPOCH), None);
        let said = |message: &str| event(&id, &object, &[fault("spec", message)], UNIX_EPOCH).unwrap();
        let first = said("a");
        assert_eq!(first["metadata"]["namespace"], "shop");
        assert_eq!(
            (&first["involvedObject"]["uid"], &first["involvedObject"]["kind"]),
            (&json!("u"), &json!("NetworkPolicy"))
        );
        assert_eq!(first["metadata"]["name"], said("a")["metadata"]["name"]);
        assert_ne!(first["metadata"]["name"], said("b")["metadata"]["name"]);
        let long = said(&"ä".repeat(LONGEST));
        assert!(long["message"].as_str().unwrap().len() <= LONGEST + " …".len());
        let cluster = ObjectId { kind: Kind::ClusterNetworkPolicy, name: "c".into() };
        let word = event(&cluster, &json!({"metadata": {"name": "c"}}), &[fault("", "a")], UNIX_EPOCH).unwrap();
        assert_eq!(word["metadata"]["namespace"], "default");
    }
}
