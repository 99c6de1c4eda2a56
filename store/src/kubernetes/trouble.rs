//! What a node says is wrong with it, as an Event of its Node, where `kubectl describe node` shows it.
//!
//! Invariant: the same trouble of a node is one Event in [`WINDOW`], however often it comes and goes and whoever tells it.

use std::hash::Hasher;
use std::time::SystemTime;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use siphasher::sip::SipHasher13;
use tartan_model::{ObjectId, rfc3339};

use super::client::{Client, Trouble};
use super::diagnosis::{DEFAULT_NAMESPACE, shortened};
use super::write::{read, refused};
use crate::WriteError;

/// How much of a time as RFC 3339 has it says when: up to the tens of minutes.
const WINDOW: usize = "2026-01-02T03:4".len();

/// Tells of the condition of that type, which is the same since then.
pub(super) async fn tell(client: &Client, id: &ObjectId, reason: &str, since: &str) -> Result<(), WriteError> {
    // Gone meanwhile: the watch brings it.
    let Some(there) = read(client, id).await? else { return Ok(()) };
    let Some(event) = event(&there, reason, since, SystemTime::now()) else { return Ok(()) };
    let events = format!("/api/v1/namespaces/{DEFAULT_NAMESPACE}/events");
    match client.request(Method::POST, &events, Some(event.to_string())).await {
        // That was told already.
        Ok(_) | Err(Trouble::Status { code: StatusCode::CONFLICT, .. }) => Ok(()),
        Err(trouble) => Err(refused(id, trouble)),
    }
}

/// None: it says so no more.
fn event(network: &Value, reason: &str, since: &str, now: SystemTime) -> Option<Value> {
    let conditions = network["status"]["conditions"].as_array()?;
    let said = conditions.iter().find(|it| it["type"] == reason && it["lastTransitionTime"] == since)?;
    let (node, uid) = (network["metadata"]["name"].as_str()?, &network["spec"]["nodeUid"]);
    let mut hasher = SipHasher13::new();
    for part in [uid.as_str().unwrap_or_default(), reason, since.get(..WINDOW).unwrap_or(since)] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    let (message, now) = (shortened(said["message"].as_str().unwrap_or_default().to_owned()), rfc3339(now));
    Some(json!({
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message,
        "metadata": {"name": format!("{node}.{:016x}", hasher.finish()), "namespace": DEFAULT_NAMESPACE},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        "source": {"component": "tartan-operator", "host": node},
        "firstTimestamp": since, "lastTimestamp": now, "count": 1,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_trouble_that_comes_and_goes_is_one_event_in_ten_minutes() {
        let said = |since: &str| {
            json!({
                "metadata": {"name": "n1"}, "spec": {"nodeUid": "u"},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": since, "message": "see"},
                    {"type": "Blocked", "status": "True", "lastTransitionTime": since, "message": "a port is"},
                ]},
            })
        };
        let [first, again, later] = ["2026-01-02T03:41:59Z", "2026-01-02T03:49:00Z", "2026-01-02T03:50:00Z"];
        let event = |since: &str| event(&said(since), "Blocked", since, UNIX_EPOCH).unwrap();
        let name = |since: &str| event(since)["metadata"]["name"].clone();
        assert_eq!(name(first), name(again));
        assert_ne!(name(first), name(later));
        let told = event(first);
        assert_eq!(told["involvedObject"], json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}));
        assert_eq!((&told["message"], &told["firstTimestamp"]), (&json!("a port is"), &json!(first)));
    }

    #[test]
    fn what_is_not_so_any_more_is_not_told() {
        let network = json!({"metadata": {"name": "n1"}, "status": {"conditions": [
            {"type": "Blocked", "status": "True", "lastTransitionTime": "2026-01-02T03:41:59Z", "message": "m"},
        ]}});
        assert_eq!(event(&network, "Blocked", "2026-01-02T03:40:00Z", UNIX_EPOCH), None, "it is another one");
        assert_eq!(event(&network, "Lost", "2026-01-02T03:41:59Z", UNIX_EPOCH), None);
        assert_eq!(event(&json!({}), "Blocked", "", UNIX_EPOCH), None);
    }
}
