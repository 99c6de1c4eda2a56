//! SCTP on a kernel that has it: policy tells its ports from those of other protocols, and it leaves under the node's address.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use netns::Netns;
use netns::judged::{NOTHING_IN, judged};
use netns::traffic::{Over, ask_sctp, refused, serve_sctp};

const CLIENT_TO_80: &str = r#"{"podSelector":{"matchLabels":{"app":"server"}},
    "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"client"}}}],"ports":[{"port":80,"protocol":"SCTP"}]}]}"#;

#[track_caller]
fn check(from: &Netns, to: &str, seen: Option<&str>) {
    assert_eq!(ask_sctp(from, to, seen.is_some()).ok().as_deref(), seen, "{to}");
}

#[test]
#[ignore = "wants the kernel module sctp: `cargo xtask vm`"]
fn vm_sctp_is_judged_by_its_own_ports_and_masqueraded() {
    let mut judged = judged(&[("in", CLIENT_TO_80)]);
    for at in ["[::]:80", "[::]:81"] {
        serve_sctp(&judged.lab.pods[1], at);
    }
    serve_sctp(&judged.lab.client, "[::]:8080");
    let [pod5, _] = &judged.lab.pods;
    for (to, own) in [("10.244.1.6", "10.244.1.5"), ("[fd00:1::6]", "fd00:1::5")] {
        check(pod5, &format!("{to}:80"), Some(own));
        check(pod5, &format!("{to}:81"), None);
        refused(pod5, Over::Tcp, &format!("{to}:80"));
        check(&judged.lab.client, &format!("{to}:80"), None);
    }
    check(pod5, "192.0.2.2:8080", Some("192.0.2.1"));
    check(pod5, "[2001:db8::2]:8080", Some("2001:db8::1"));
    judged.policies(&[("in", NOTHING_IN)]);
    for to in ["10.244.1.6:80", "[fd00:1::6]:80"] {
        check(&judged.lab.pods[0], to, None);
    }
}
