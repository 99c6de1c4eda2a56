//! Prometheus metrics, in its text format, derived from World and the last plan at each scrape.

use std::collections::BTreeMap;
use std::fmt::Write;

use tartan_api::explain::{Count, Verdict};
use tartan_api::status::{Path, Peer, Status};
use tartan_model::Kind;

use crate::status::{Counters, Outcome, Seen, Times};
use crate::waiting::Waited;

/// What `/metrics` serves.
pub fn render(seen: &Seen, counts: &[Count], conntrack: Option<&tartan_kernel::conntrack::Stats>) -> String {
    let Seen { status, counters, .. } = seen;
    let mut text = Text::default();
    text.one(
        "tartan_ready",
        "gauge",
        "The first full pass is done and nothing failed",
        f64::from(u8::from(status.ready)),
    );
    text.one("tartan_pods", "gauge", "Pods on this node", status.pods.len() as f64);
    let mut adopted = BTreeMap::new();
    for pod in &status.adopted {
        let judged = pod.under_policy.to_string();
        *adopted.entry(labels(&[("bridge", &pod.bridge), ("under_policy", &judged)])).or_insert(0.0) += 1.0;
    }
    text.many("tartan_adopted_pods", "gauge", "Pods of the network before, on its bridge", adopted);
    text.one("tartan_pod_mtu_bytes", "gauge", "MTU of this node's pods", f64::from(status.pod_mtu));
    text.one("tartan_kernel_objects", "gauge", "Objects of ours in the kernel", status.kernel.objects as f64);
    text.one("tartan_kernel_failures", "gauge", "Objects the kernel refuses now", status.kernel.failures.len() as f64);
    text.one("tartan_kernel_changes_total", "counter", "Kernel changes made", counters.applied as f64);
    let applying = counters.applying.as_secs_f64();
    text.one("tartan_kernel_applying_seconds_total", "counter", "Time that kernel changes took", applying);
    let repaired = "Kernel changes made because somebody else changed what is ours";
    text.one("tartan_kernel_repairs_total", "counter", repaired, counters.repaired as f64);
    of_every_loop(&mut text, counters, seen.store_away);
    let (count, oldest) = counters.kernel_waiting;
    let help = "News and wanted states that the kernel thread has not come to";
    text.one("tartan_kernel_inbox_waiting", "gauge", help, count as f64);
    let help = "How long the oldest of them has waited";
    text.one("tartan_kernel_inbox_oldest_seconds", "gauge", help, oldest.as_secs_f64());
    calls(&mut text, counters);
    let help = "What has become of pods and is not in the journal yet: the disk does not take it";
    text.one("tartan_journal_owed_records", "gauge", help, counters.owed as f64);
    text.many(
        "tartan_peer_live",
        "gauge",
        "The peer gave a sign of life within its lease",
        status
            .peers
            .iter()
            .map(|peer| (labels(&[("node", &peer.node), ("fabric", &peer.fabric)]), f64::from(u8::from(peer.live)))),
    );
    text.many(
        "tartan_block_used_addresses",
        "gauge",
        "Addresses of the block that pods have",
        status.blocks.iter().map(|block| (labels(&[("cidr", &block.cidr)]), block.used as f64)),
    );
    paths(&mut text, status);
    let policy = &status.policy;
    text.many("tartan_policy_mode", "gauge", "What is done about policies", [(labels(&[("mode", &policy.mode)]), 1.0)]);
    for (name, help, value) in [
        ("tartan_policies", "Policy objects of all kinds", policy.policies),
        ("tartan_policy_subjects", "Pods of this node whose policies are known", policy.subjects),
        ("tartan_policy_sets", "Different sets of policies that they have", policy.sets),
        ("tartan_policy_rows", "Verdicts of these sets", policy.rows),
        ("tartan_policy_identities", "What addresses are to any policy", policy.identities),
        ("tartan_policy_addresses", "Addresses that policy tells apart from the range around them", policy.addresses),
        ("tartan_policy_ranges", "Ranges of all other addresses", policy.ranges),
    ] {
        text.one(name, "gauge", help, value as f64);
    }
    let decided =
        "Packets that each rule decided: of a connection that is allowed the first, and one after each revocation";
    let by_rule = |it: &Count| {
        let labels = labels(&[("policy", &it.object), ("field", &it.field), ("verdict", name(it.verdict))]);
        (labels, it.packets as f64)
    };
    text.many("tartan_policy_judged_packets_total", "counter", decided, counts.iter().map(by_rule));
    let mut conditions = BTreeMap::new();
    for condition in &status.conditions {
        *conditions.entry(labels(&[("reason", &condition.reason), ("about", &condition.about)])).or_insert(0.0) += 1.0;
    }
    text.many("tartan_condition", "gauge", "Conditions to act on, see tartan status", conditions);
    if let Some(stats) = conntrack {
        text.one("tartan_conntrack_entries", "gauge", "Connections the node tracks", stats.entries as f64);
        text.one("tartan_conntrack_max", "gauge", "Connections the node can track", stats.max as f64);
        let failed = "Connections that could not be tracked";
        text.one("tartan_conntrack_insert_failed_total", "counter", failed, stats.insert_failed as f64);
        text.one(
            "tartan_conntrack_drop_total",
            "counter",
            "Packets dropped because the table was full",
            stats.drop as f64,
        );
    }
    text.0
}

/// What every loop does: plans, of what the store says, and writes to it.
pub(crate) fn of_every_loop(text: &mut Text, counters: &Counters, is_away: bool) {
    text.one("tartan_plans_total", "counter", "Plans made", counters.plans as f64);
    text.one("tartan_planning_seconds_total", "counter", "Time spent planning", counters.planning.as_secs_f64());
    let by_kind = |(kind, count): (&Kind, &u64)| (labels(&[("kind", kind.as_str())]), *count as f64);
    let events = counters.events.iter().map(by_kind);
    text.many("tartan_store_events_total", "counter", "What the store has said of objects", events);
    let lists = counters.lists.iter().map(by_kind);
    text.many("tartan_store_lists_total", "counter", "How often a kind was listed as a whole", lists);
    let writes = counters.writes.map(|(outcome, count)| (labels(&[("outcome", outcome)]), count as f64));
    text.many("tartan_store_writes_total", "counter", "What writes to the store came to", writes);
    let away = f64::from(u8::from(is_away));
    text.one("tartan_store_away", "gauge", "The store, or a part of it, cannot be reached", away);
    text.one("tartan_inbox_waiting", "gauge", "Inputs that the loop found waiting", counters.waiting as f64);
}

fn calls(text: &mut Text, counters: &Counters) {
    let by_outcome = |(verb, outcome): &(&'static str, Outcome)| {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Unheard => "unheard",
        };
        labels(&[("verb", verb), ("outcome", outcome)])
    };
    let calls = counters.calls.iter().map(|(call, times)| (by_outcome(call), times));
    text.times("tartan_cni_seconds", "Calls of the CNI plugin, from the request to the answer", calls);
    let Waited { plan, kernel } = counters.waited;
    let waited =
        [("plan", plan), ("kernel", kernel)].map(|(what, time)| (labels(&[("for", what)]), time.as_secs_f64()));
    let help = "Time that ADDs waited for a plan, and for what it needs of the store, and for the kernel";
    text.many("tartan_cni_add_waited_seconds_total", "counter", help, waited);
    text.one("tartan_cni_waiting", "gauge", "Calls of the CNI plugin that wait now", counters.callers as f64);
}

fn paths(text: &mut Text, status: &Status) {
    type Number = fn(&Path) -> Option<f64>;
    let numbers: [(&str, &str, &str, Number); 5] = [
        ("tartan_path_fault", "gauge", "The path self-test found a fault, see tartan status", |path| {
            Some(f64::from(u8::from(!path.fault.is_empty())))
        }),
        ("tartan_path_round_trip_seconds", "gauge", "Of the last small packet through the fabric", |path| {
            path.round_trip_micros.map(|micros| micros as f64 / 1e6)
        }),
        ("tartan_path_mtu_bytes", "gauge", "Largest packet known to pass", |path| Some(f64::from(path.largest))),
        ("tartan_path_probes_total", "counter", "Probes sent", |path| Some(path.asked as f64)),
        ("tartan_path_probes_lost_total", "counter", "Probes not answered", |path| Some(path.lost as f64)),
    ];
    let all = || status.peers.iter().flat_map(|peer| peer.paths.iter().map(move |path| (peer, path)));
    for (name, kind, help, number) in numbers {
        let of = |(peer, path): (&Peer, &Path)| {
            Some((labels(&[("node", &peer.node), ("family", &path.family)]), number(path)?))
        };
        text.many(name, kind, help, all().filter_map(of));
    }
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotJudged => "not-judged",
        Verdict::Allowed => "allowed",
        Verdict::Audited => "audited",
        Verdict::Denied => "denied",
        Verdict::Rejected => "rejected",
    }
}

/// Labels as the text format has them. What a user named may hold anything.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    pairs.join(",")
}

/// Metrics text under construction.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl Text {
    pub(crate) fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.many(name, kind, help, [(String::new(), value)]);
    }

    /// A histogram.
    fn times<'a>(&mut self, name: &str, help: &str, all: impl IntoIterator<Item = (String, &'a Times)>) {
        let _infallible = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (labels, times) in all {
            let mut so_far = 0;
            for (bound, count) in Times::BOUNDS.iter().zip(times.up_to) {
                so_far += count;
                let bound = *bound as f64 / 1e3;
                let _infallible = writeln!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {so_far}");
            }
            let Times { count, all, .. } = times;
            let _infallible = writeln!(self.0, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _infallible =
                writeln!(self.0, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", all.as_secs_f64());
        }
    }

    pub(crate) fn many(&mut self, name: &str, kind: &str, help: &str, values: impl IntoIterator<Item = (String, f64)>) {
        let _infallible = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _infallible = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tartan_api::cni::Command;
    use tartan_api::status::{Adopted, Policy};
    use tartan_api::tartan::Condition;
    use tartan_model::StoreEvent;

    use super::*;

    #[test]
    fn every_series_is_there_once_and_any_name_can_be_read_back() {
        let said = |about: &str| Condition { about: about.into(), reason: "BadSyntax".into(), ..Condition::default() };
        let status = Status {
            ready: true,
            pod_mtu: 1450,
            peers: vec![Peer {
                node: "n2".into(),
                live: true,
                fabric: "host-gw".into(),
                paths: vec![Path { family: "ipv6".into(), round_trip_micros: Some(1500), asked: 8, ..Path::default() }],
                ..Peer::default()
            }],
            adopted: [true, true, false]
                .map(|under_policy| Adopted { bridge: "cni0".into(), under_policy, ..Adopted::default() })
                .into(),
            policy: Policy { mode: "audit".into(), subjects: 3, rows: 12, ..Policy::default() },
            conditions: vec![said("a \"b\"\\"), said("c"), said("c")],
            ..Status::default()
        };
        let counts = [Count {
            object: "NetworkPolicy/shop/web".into(),
            field: "spec.ingress[0]".into(),
            verdict: Verdict::Denied,
            packets: 7,
        }];
        let mut counters = Counters::default();
        counters.cni(Command::Add, Outcome::Done, Duration::from_millis(1500));
        counters.cni(Command::Add, Outcome::Done, Duration::from_millis(500));
        counters.cni(Command::Add, Outcome::Done, Duration::from_secs(60));
        counters.waited.kernel = Duration::from_millis(1500);
        counters.callers = 4;
        counters.kernel_waiting = (3, Duration::from_millis(2500));
        counters.writes = [("done", 1), ("refused", 0), ("away", 5)];
        counters.event(&StoreEvent::Init(Kind::Pod));
        let seen = Seen { status, counters, store_away: true, ..Seen::default() };
        let text = render(&seen, &counts, None);
        for line in [
            "tartan_ready 1",
            "tartan_pod_mtu_bytes 1450",
            r#"tartan_peer_live{node="n2",fabric="host-gw"} 1"#,
            r#"tartan_path_fault{node="n2",family="ipv6"} 0"#,
            r#"tartan_path_round_trip_seconds{node="n2",family="ipv6"} 0.0015"#,
            r#"tartan_path_probes_total{node="n2",family="ipv6"} 8"#,
            r#"tartan_condition{reason="BadSyntax",about="a \"b\"\\"} 1"#,
            r#"tartan_condition{reason="BadSyntax",about="c"} 2"#,
            r#"tartan_adopted_pods{bridge="cni0",under_policy="true"} 2"#,
            r#"tartan_adopted_pods{bridge="cni0",under_policy="false"} 1"#,
            r#"tartan_policy_mode{mode="audit"} 1"#,
            "tartan_policy_subjects 3",
            "tartan_store_away 1",
            r#"tartan_store_lists_total{kind="Pod"} 1"#,
            r#"tartan_cni_seconds_bucket{verb="ADD",outcome="done",le="1"} 1"#,
            r#"tartan_cni_seconds_bucket{verb="ADD",outcome="done",le="5"} 2"#,
            r#"tartan_cni_seconds_bucket{verb="ADD",outcome="done",le="+Inf"} 3"#,
            r#"tartan_cni_seconds_sum{verb="ADD",outcome="done"} 62"#,
            r#"tartan_cni_add_waited_seconds_total{for="kernel"} 1.5"#,
            "tartan_cni_waiting 4",
            "tartan_kernel_inbox_waiting 3",
            "tartan_kernel_inbox_oldest_seconds 2.5",
            r#"tartan_store_writes_total{outcome="away"} 5"#,
            "tartan_policy_rows 12",
            r#"tartan_policy_judged_packets_total{policy="NetworkPolicy/shop/web",field="spec.ingress[0]",verdict="denied"} 7"#,
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line} in\n{text}");
        }
        let series: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name)
            .collect();
        let once: std::collections::BTreeSet<&str> = series.iter().copied().collect();
        assert_eq!(series.len(), once.len(), "{text}");
    }
}
