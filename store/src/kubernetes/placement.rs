//! What a Node says of its network: its condition, which the scheduler reads, the taint a kubelet may have registered it
//! with, and annotations that other systems read.
//!
//! Invariant: of a Node, which is the kubelet's to write, nothing else is touched; and no other Node of the same name.

use std::time::SystemTime;

use hyper::Method;
use serde_json::{Value, json};
use tartan_api::kinds::NETWORK_UNAVAILABLE;
use tartan_api::tartan::STARTUP_TAINT;
use tartan_model::{Annotations, Availability, ObjectId, rfc3339};

use super::client::{Client, MERGE, MERGE_ITEMS};
use super::write::{Done, TRIES, busy, document, path, refused, settle};
use crate::WriteError;

/// The condition first: with the taint gone it is all that keeps pods away.
pub(super) async fn tell(client: &Client, node: &ObjectId, word: &Availability) -> Result<(), WriteError> {
    let patch = json!({"metadata": {"uid": word.node_uid}, "status": {"conditions": [condition(node, word)]}});
    let told = client.patch(&format!("{}/status", path(node)), MERGE_ITEMS, &patch).await;
    told.map_err(|trouble| refused(node, trouble))?;
    if word.available { untaint(client, node, word).await } else { Ok(()) }
}

pub(super) async fn annotate(client: &Client, node: &ObjectId, word: &Annotations) -> Result<(), WriteError> {
    let patch = json!({"metadata": {"uid": word.node_uid, "annotations": word.values}});
    client.patch(&path(node), MERGE, &patch).await.map(drop).map_err(|trouble| refused(node, trouble))
}

fn condition(node: &ObjectId, word: &Availability) -> Value {
    let now = rfc3339(SystemTime::now());
    let (status, reason, message) = match word.available {
        true => ("False", "TartanIsUp", "packets get to the other nodes and back"),
        false => ("True", "TartanJoins", "the other nodes do not know yet how to reach this one"),
    };
    let message = format!("{message}; see NodeNetwork/{}", node.name);
    json!({
        "type": NETWORK_UNAVAILABLE, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    })
}

/// A list of taints is replaced as a whole, so it must be the one that was looked at.
async fn untaint(client: &Client, id: &ObjectId, word: &Availability) -> Result<(), WriteError> {
    for _ in 0..TRIES {
        let there = client.request(Method::GET, &path(id), None).await.map_err(|trouble| refused(id, trouble))?;
        let there: Value = document(id, &there)?;
        let none = Vec::new();
        let taints = there["spec"]["taints"].as_array().unwrap_or(&none);
        let others: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != STARTUP_TAINT).collect();
        if others.len() == taints.len() {
            return Ok(());
        }
        let version = &there["metadata"]["resourceVersion"];
        let patch = json!({
            "metadata": {"uid": word.node_uid, "resourceVersion": version}, "spec": {"taints": others},
        });
        match client.patch(&path(id), MERGE_ITEMS, &patch).await {
            Ok(_) => return Ok(()),
            Err(trouble) => match settle(id, trouble)? {
                Done::With(()) => return Ok(()),
                Done::LookAgain => {}
            },
        }
    }
    Err(busy(id))
}
