//! What a node says of itself in its NodeNetwork: all that is wrong, in the shape that Kubernetes has for conditions.
//!
//! One condition of each type, as a list of them by type wants it: `Ready`, and one for each reason there is, with status
//! `True` for as long as it is so. A type that is not there is not so. Times are when a status began.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tartan_model::{Condition, NodeCondition, rfc3339};

/// Whether all that is wanted of this node is there.
const READY: &str = "Ready";
const TRUE: &str = "True";
const FALSE: &str = "False";

/// The conditions of these problems. `before` are those of the last time, so that what goes on keeps its time.
pub fn of_node(before: &[NodeCondition], problems: &[Condition], now: SystemTime) -> Vec<NodeCondition> {
    let mut by_reason: BTreeMap<&str, Vec<&Condition>> = BTreeMap::new();
    for problem in problems {
        by_reason.entry(problem.reason).or_default().push(problem);
    }
    let ready = match by_reason.first_key_value() {
        None => (READY, TRUE, "AllIsWell", String::new()),
        Some((reason, _)) => {
            let all: Vec<&str> = by_reason.keys().copied().collect();
            (READY, FALSE, *reason, format!("see the conditions {}", all.join(", ")))
        }
    };
    let others = by_reason.iter().map(|(reason, problems)| (*reason, TRUE, *reason, message(problems)));
    let condition = |(kind, status, reason, message): (&str, &str, &str, String)| {
        let last = before.iter().find(|last| last.kind == kind && last.status == status);
        NodeCondition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            since: last.map_or_else(|| rfc3339(now), |last| last.since.clone()),
        }
    };
    std::iter::once(ready).chain(others).map(condition).collect()
}

/// The first problem in full, and how many there are.
fn message(problems: &[&Condition]) -> String {
    let Condition { about, field, message, fix, .. } = problems.iter().min().expect("a reason has a problem");
    let field = if field.is_empty() { String::new() } else { format!(" {field}") };
    let more = match problems.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    format!("{about}{field}: {message}. Fix: {fix}{more}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn one_of_each_type_with_the_time_its_status_began() {
        let problem = |about: &str, reason: &'static str| Condition {
            about: about.into(),
            field: "spec.x".into(),
            reason,
            message: "it is so".into(),
            fix: "mend it".into(),
        };
        let words = |conditions: &[NodeCondition]| -> Vec<String> {
            let word =
                |it: &NodeCondition| format!("{}={} {} {} {}", it.kind, it.status, it.reason, it.since, it.message);
            conditions.iter().map(word).collect()
        };
        let well = of_node(&[], &[], at(0));
        assert_eq!(words(&well), ["Ready=True AllIsWell 1970-01-01T00:00:00Z "]);
        let ill = of_node(&well, &[problem("Node/b", "PeerOffLink"), problem("Node/a", "PeerOffLink")], at(60));
        let off_link = "PeerOffLink=True PeerOffLink 1970-01-01T00:01:00Z \
                        Node/a spec.x: it is so. Fix: mend it (and 1 more)";
        let ready = "Ready=False PeerOffLink 1970-01-01T00:01:00Z see the conditions PeerOffLink";
        assert_eq!(words(&ill), [ready, off_link]);
        // What is said of it may change; since when it is so does not.
        let still = of_node(&ill, &[problem("Node/b", "PeerOffLink"), problem("Pod/p", "KernelRefused")], at(120));
        assert_eq!(
            words(&still),
            [
                "Ready=False KernelRefused 1970-01-01T00:01:00Z see the conditions KernelRefused, PeerOffLink",
                "KernelRefused=True KernelRefused 1970-01-01T00:02:00Z Pod/p spec.x: it is so. Fix: mend it",
                "PeerOffLink=True PeerOffLink 1970-01-01T00:01:00Z Node/b spec.x: it is so. Fix: mend it",
            ]
        );
        assert_eq!(words(&of_node(&still, &[], at(180))), ["Ready=True AllIsWell 1970-01-01T00:03:00Z "]);
    }
}
