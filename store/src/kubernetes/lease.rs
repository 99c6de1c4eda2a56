//! One of several processes leads: the one that holds a Lease (coordination.k8s.io/v1).
//!
//! Invariant: clocks of two machines are never compared. A holder counts as gone when its Lease has not changed for its
//! whole length on our own clock; and it stops leading that much earlier by its own as a renewal may take.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tartan_model::rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::client::{Client, Trouble};

/// How long a Lease lasts that is not renewed.
const LENGTH: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long leads no more.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at it, or renewals.
const EVERY: Duration = Duration::from_secs(3);

/// Who wants to lead, where, and what it has seen.
pub(super) struct Candidate {
    pub(super) client: Arc<Client>,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Different for every process.
    pub(super) me: String,
}

/// What is to be done about a Lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Make(Value),
    /// Take it over, or renew it; it must still be the one that was looked at.
    Write(Value),
    /// It is another's.
    Wait,
}

/// The version of a Lease of another's, and since when it has been the latest.
type Seen = Option<(String, Instant)>;

/// What to do about what is there. A Lease whose holder let go of it is free at once.
fn step(me: &str, there: Option<&Value>, seen: &mut Seen, now: Instant, clock: SystemTime) -> Step {
    let Some(there) = there else { return Step::Make(json!({"spec": spec(me, 0, clock, None)})) };
    let holder = there["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let changes = there["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
    let version = there["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let mut lease = there.clone();
    if holder == me {
        lease["spec"] = spec(me, changes, clock, Some(&there["spec"]["acquireTime"]));
        return Step::Write(lease);
    }
    let since = match seen {
        Some((known, since)) if known == version => *since,
        _ => seen.insert((version.to_owned(), now)).1,
    };
    let length = there["spec"]["leaseDurationSeconds"].as_u64().map_or(LENGTH, Duration::from_secs);
    if !holder.is_empty() && now < since + length {
        return Step::Wait;
    }
    lease["spec"] = spec(me, changes + 1, clock, None);
    Step::Write(lease)
}

fn spec(me: &str, changes: u64, clock: SystemTime, acquired: Option<&Value>) -> Value {
    // A MicroTime has six digits.
    let now = rfc3339(clock).replace('Z', ".000000Z");
    json!({
        "holderIdentity": me, "leaseDurationSeconds": LENGTH.as_secs(), "leaseTransitions": changes,
        "acquireTime": acquired.cloned().unwrap_or_else(|| now.clone().into()), "renewTime": now,
    })
}

// === impl Candidate ===

impl Candidate {
    /// Says whether it leads, until nobody listens.
    pub(super) async fn run(self, leads: watch::Sender<bool>) {
        let mut seen = None;
        let mut until = None;
        loop {
            let began = Instant::now();
            let patience = until.map_or(DEADLINE, |until: Instant| until.saturating_duration_since(began));
            match tokio::time::timeout(patience.max(EVERY), self.hold(&mut seen, began)).await {
                Ok(Ok(true)) => until = Some(began + DEADLINE),
                Ok(Ok(false)) => until = None,
                Ok(Err(trouble)) => warn!("Lease {}/{}: {trouble}", self.namespace, self.name),
                Err(_) => warn!("Lease {}/{}: no answer", self.namespace, self.name),
            }
            until = until.filter(|until| Instant::now() < *until);
            leads.send_if_modified(|led| {
                let leads = until.is_some();
                if leads != *led {
                    info!("{} {}", self.me, if leads { "leads" } else { "does not lead any more" });
                }
                std::mem::replace(led, leads) != leads
            });
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = leads.closed() => return,
            }
        }
    }

    /// One look, and what follows from it; whether it is ours then.
    async fn hold(&self, seen: &mut Seen, now: Instant) -> Result<bool, Trouble> {
        let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        let path = format!("{collection}/{}", self.name);
        let there = match self.client.request(Method::GET, &path, None).await {
            Ok(body) => Some(serde_json::from_slice::<Value>(&body).map_err(|error| Trouble::Away(error.to_string()))?),
            Err(Trouble::Status { code: StatusCode::NOT_FOUND, .. }) => None,
            Err(trouble) => return Err(trouble),
        };
        let written = match step(&self.me, there.as_ref(), seen, now, SystemTime::now()) {
            Step::Wait => return Ok(false),
            Step::Make(mut lease) => {
                lease["metadata"] = json!({"name": self.name, "namespace": self.namespace});
                self.client.request(Method::POST, &collection, Some(lease.to_string())).await
            }
            Step::Write(lease) => self.client.request(Method::PUT, &path, Some(lease.to_string())).await,
        };
        match written {
            Ok(_) => Ok(true),
            // Another was faster.
            Err(Trouble::Status { code: StatusCode::CONFLICT, .. }) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn lease(holder: &str, version: &str) -> Value {
        json!({
            "metadata": {"name": "l", "resourceVersion": version, "labels": {"kept": "so"}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3, "acquireTime": "then"},
        })
    }

    /// What is done about each of these Leases, seen one after the other at these seconds.
    #[test]
    fn a_lease_is_taken_only_from_who_lets_it_run_out() {
        let check = |table: &[(u64, Option<Value>, &str)]| {
            let began = Instant::now();
            let mut seen = None;
            for (secs, there, wanted) in table {
                let now = began + Duration::from_secs(*secs);
                let step = step("me", there.as_ref(), &mut seen, now, UNIX_EPOCH);
                let (what, spec) = match &step {
                    Step::Make(lease) => ("make", lease["spec"].clone()),
                    Step::Write(lease) => {
                        assert_eq!(
                            lease["metadata"],
                            there.as_ref().unwrap()["metadata"],
                            "the version it was decided on"
                        );
                        ("write", lease["spec"].clone())
                    }
                    Step::Wait => ("wait", Value::Null),
                };
                let got = match spec["leaseTransitions"].as_u64() {
                    None => what.to_owned(),
                    Some(changes) => {
                        assert_eq!(
                            (spec["holderIdentity"].as_str(), spec["renewTime"].as_str()),
                            (Some("me"), Some("1970-01-01T00:00:00.000000Z"))
                        );
                        format!("{what} {changes} {}", if spec["acquireTime"] == "then" { "old" } else { "new" })
                    }
                };
                assert_eq!(got, *wanted, "at {secs} s");
            }
        };
        check(&[(0, None, "make 0 new"), (3, Some(lease("me", "1")), "write 3 old")]);
        check(&[(0, Some(lease("", "1")), "write 4 new")]);
        check(&[
            (0, Some(lease("other", "1")), "wait"),
            (14, Some(lease("other", "1")), "wait"),
            (15, Some(lease("other", "1")), "write 4 new"),
        ]);
        // It is renewed, if late: its holder's clock counts for nothing, ours does.
        check(&[
            (0, Some(lease("other", "1")), "wait"),
            (14, Some(lease("other", "2")), "wait"),
            (28, Some(lease("other", "2")), "wait"),
            (29, Some(lease("other", "2")), "write 4 new"),
        ]);
    }
}
