//! Policy on the real kernel, with packets: what the planner wants of the nft table, between two pods, a client and the
//! node.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use netns::judged::{CLIENT_TO_80, Judged, NOTHING_IN, NOTHING_OUT, OF_NOBODY, judged};
use netns::nflog::Reports;
use netns::node::given;
use netns::traffic::{Echo, Over, Persistent, Stream, ask_in_vain, pings, refused, sees, serve};
use tartan_datapath::nftables::policy::{Mode, Policy};
use tartan_kernel::linux::Linux;
use tartan_kernel::nft::Nft;
use tartan_kernel::{Kernel, Scope};
use tartan_model::Kind;
use tartan_netstate::claims::NFT_JUDGED_SET;
use tartan_netstate::nft::{ElementData, ElementKey};
use tartan_netstate::{Key, Object, Owner, State, diff};
use tartan_policy::ir::{Icmp, L4Match, ProtocolIs};
use tartan_policy::verdicts::{self, Classes, Rows, Word};
use tartan_policy::walk::Verdict;

const BOTH: [Over; 2] = [Over::Tcp, Over::Udp];

#[test]
fn without_policies_everything_passes() {
    let judged = judged(&[]);
    let [pod5, pod6] = &judged.lab.pods;
    for over in BOTH {
        sees(pod5, over, "10.244.1.6:80", "10.244.1.5");
        sees(pod6, over, "[fd00:1::5]:80", "fd00:1::6");
        sees(&judged.lab.client, over, "10.244.1.5:80", "192.0.2.2");
        sees(pod5, over, "192.0.2.2:8080", "192.0.2.1");
    }
}

#[test]
fn what_is_allowed_passes_and_nothing_else() {
    let mut judged = judged(&[("in", CLIENT_TO_80)]);
    let check = |judged: &Judged| {
        let [pod5, _] = &judged.lab.pods;
        for over in BOTH {
            sees(pod5, over, "10.244.1.6:80", "10.244.1.5");
            sees(pod5, over, "[fd00:1::6]:80", "fd00:1::5");
            refused(&judged.lab.client, over, "10.244.1.6:80");
            refused(&judged.lab.client, over, "[fd00:1::6]:80");
        }
    };
    check(&judged);
    judged.policies(&[("in", NOTHING_IN)]);
    for over in BOTH {
        refused(&judged.lab.pods[0], over, "10.244.1.6:80");
        refused(&judged.lab.pods[0], over, "[fd00:1::6]:80");
    }
    judged.policies(&[("in", CLIENT_TO_80)]);
    check(&judged);
    judged.policies(&[("out", NOTHING_OUT)]);
    for over in BOTH {
        refused(&judged.lab.pods[0], over, "10.244.1.6:80");
        sees(&judged.lab.client, over, "[fd00:1::6]:80", "2001:db8::2");
        sees(&judged.lab.client, over, "10.244.1.5:80", "192.0.2.2");
    }
}

#[test]
fn every_packet_that_is_judged_is_counted_once_by_the_word_that_decides() {
    let mut judged = judged(&[("in", CLIENT_TO_80)]);
    judged.policies(&[("in", CLIENT_TO_80)]);
    let counts = |judged: &Judged| {
        let mut counts = judged.lab.node.run(|| Nft::open().unwrap().counts(NFT_JUDGED_SET).unwrap());
        // What looked for a word of its own and found none.
        counts.remove(&0);
        counts
    };
    let passed = |counts: &BTreeMap<u32, u64>, by_rule: bool| -> u64 {
        let is = |word: Word| word.verdict() == Verdict::Allow && (word.rule() != 0) == by_rule;
        counts.iter().filter(|(word, _)| is(Word(**word))).map(|(_, packets)| packets).sum()
    };
    let before = counts(&judged);
    let [pod5, _] = &judged.lab.pods;
    for _ in 0..3 {
        sees(pod5, Over::Tcp, "10.244.1.6:80", "10.244.1.5");
        sees(pod5, Over::Tcp, "[fd00:1::6]:80", "fd00:1::5");
    }
    let after = counts(&judged);
    let more = |by_rule| passed(&after, by_rule) - passed(&before, by_rule);
    assert_eq!((more(true), more(false)), (6, 6), "{after:?}: let in by the rule, let out by none");
    refused(&judged.lab.client, Over::Tcp, "10.244.1.6:80");
    let denied = |counts: &BTreeMap<u32, u64>| -> u64 {
        counts.iter().filter(|(word, _)| Word(**word).verdict() == Verdict::Deny).map(|(_, packets)| packets).sum()
    };
    let end = counts(&judged);
    assert!(denied(&end) > denied(&after), "{end:?}");
    assert_eq!((passed(&end, true), passed(&end, false)), (passed(&after, true), passed(&after, false)));
    // Whoever reads the table whole forgets what was counted for rules that are gone, and nothing else.
    let read = |judged: &Judged| {
        judged.lab.node.run(|| Linux::open().unwrap().read(&Scope::Nft).unwrap());
        counts(judged)
    };
    assert_eq!(read(&judged), end);
    judged.policies(&[]);
    let kept = read(&judged);
    assert!(passed(&end, true) > 0 && denied(&end) > 0);
    assert_eq!((passed(&kept, true), denied(&kept)), (0, 0), "{kept:?}");
    assert!(passed(&kept, false) >= passed(&end, false), "{kept:?}");
}

#[test]
fn nft_lists_it_so_that_a_person_can_read_it() {
    let mut judged = judged(&[("in", CLIENT_TO_80)]);
    judged.lab.world.detach("c6/eth0", std::time::Instant::now());
    judged.apply();
    let chains = [
        "source",
        "forward",
        "input",
        "output",
        "through",
        "through_back",
        "to_node",
        "from_node",
        "judged_here",
        "judged_by_all",
        "stamp",
        "stamp_of_both",
        "denied",
        "rejected",
        "egress",
        "egress4",
        "ingress_back6_icmp",
    ];
    let maps = ["addresses4", "ranges4", "egress_classes", "egress_words", "pass", "final"];
    let listing = |kind: &str, names: &[&str]| {
        let list = |name: &&str| judged.lab.node.sh(&format!("nft -s list {kind} inet tartan policy_{name}"));
        names.iter().map(list).collect::<String>()
    };
    let listed = listing("map", &maps) + &listing("chain", &chains);
    assert_eq!(listed, include_str!("policy/listing.txt"), "{listed}");
    let whole = judged.lab.node.sh("nft list ruleset");
    assert!(whole.contains("comment \"judged in this generation\""), "{whole}");
}

#[test]
fn what_is_revoked_is_cut_in_both_directions() {
    for policy in [("in", NOTHING_IN), ("out", NOTHING_OUT)] {
        let mut judged = judged(&[]);
        let [pod5, pod6] = &judged.lab.pods;
        let mut streams = Vec::new();
        for (over, port) in BOTH.into_iter().zip([81, 82]) {
            for host in ["10.244.1.6", "[fd00:1::6]"] {
                streams.push(Stream::down(pod5, over, pod6, &format!("{host}:{port}")));
                streams.push(Stream::up(pod5, over, pod6, &format!("{host}:{}", port + 2)));
            }
        }
        let mut bystander = Stream::down(&judged.lab.client, Over::Tcp, pod5, "10.244.1.5:90");
        assert!(streams.iter_mut().all(Stream::flows));
        let before = judged.generation();
        judged.policies(&[policy]);
        assert_ne!(judged.generation(), before);
        for (at, stream) in streams.iter_mut().enumerate() {
            assert!(!stream.flows(), "stream {at} after {}", policy.0);
        }
        assert!(bystander.flows(), "{}", policy.0);
        // What is allowed again goes on, TCP when it tries again.
        judged.policies(&[]);
        streams.iter_mut().for_each(Stream::goes_on);
    }
}

#[test]
fn what_stays_allowed_goes_on_whoever_sends() {
    let ports = (81..=84).map(|port| format!(r#"{{"port":{port}}},{{"port":{port},"protocol":"UDP"}}"#));
    let peer = r#""podSelector":{"matchLabels":{"app":"#;
    let ports = ports.collect::<Vec<_>>().join(",");
    let into = format!(r#"{{{peer}"server"}}}},"ingress":[{{"from":[{{{peer}"client"}}}}}}],"ports":[{ports}]}}]}}"#);
    let out = format!(
        r#"{{{peer}"client"}}}},"policyTypes":["Egress"],"egress":[{{"to":[{{{peer}"server"}}}}}}],"ports":[{ports}]}}]}}"#
    );
    let mut judged = judged(&[("in", &into), ("out", &out)]);
    let [pod5, pod6] = &judged.lab.pods;
    let mut streams = Vec::new();
    for (over, port) in BOTH.into_iter().zip([81, 82]) {
        for host in ["10.244.1.6", "[fd00:1::6]"] {
            streams.push(Stream::down(pod5, over, pod6, &format!("{host}:{port}")));
            streams.push(Stream::up(pod5, over, pod6, &format!("{host}:{}", port + 2)));
        }
    }
    assert!(streams.iter_mut().all(Stream::flows));
    let before = judged.generation();
    let to_client = NOTHING_IN.replace("server", "client");
    judged.policies(&[("in", &into), ("out", &out), ("revoked", &to_client)]);
    assert_ne!(judged.generation(), before);
    assert!(streams.iter_mut().all(Stream::flows));
}

#[test]
fn the_node_reaches_its_pods_and_is_reached_where_policy_lets() {
    let mut judged = judged(&[]);
    serve(&judged.lab.node, "[::]:9000");
    let mut answers = Stream::down(&judged.lab.pods[0], Over::Udp, &judged.lab.node, "192.0.2.1:9001");
    assert!(answers.flows());
    let everything_in = r#"{"podSelector":{},"policyTypes":["Ingress","Egress"]}"#;
    judged.policies(&[("all", everything_in)]);
    let (node, pod5) = (&judged.lab.node, &judged.lab.pods[0]);
    for over in BOTH {
        sees(node, over, "10.244.1.5:80", "192.0.2.1");
        sees(node, over, "[fd00:1::5]:80", "fd00:1::");
        refused(pod5, over, "192.0.2.1:9000");
        refused(pod5, over, "[2001:db8::1]:9000");
        refused(pod5, over, "10.244.1.0:9000");
    }
    assert!(pings(node, "10.244.1.5") && pings(node, "fd00:1::5"));
    assert!(!answers.flows(), "what the node answers is part of what the pod began");
    judged.policies(&[(
        "out",
        r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"192.0.2.0/24"}}]}]}"#,
    )]);
    for over in BOTH {
        sees(&judged.lab.pods[0], over, "192.0.2.1:9000", "10.244.1.5");
        refused(&judged.lab.pods[0], over, "[2001:db8::1]:9000");
    }
    assert!(answers.flows());
}

#[test]
fn a_pod_that_is_not_known_has_no_connections() {
    let mut judged = judged(&[OF_NOBODY]);
    let mut open = Stream::down(&judged.lab.client, Over::Udp, &judged.lab.pods[1], "10.244.1.6:81");
    assert!(open.flows());
    judged.store_nothing(Kind::Pod, "default/p6");
    judged.apply();
    assert!(!open.flows());
    let [pod5, pod6] = &judged.lab.pods;
    for over in BOTH {
        refused(pod5, over, "10.244.1.6:80");
        refused(&judged.lab.node, over, "[fd00:1::6]:80");
        refused(pod6, over, "10.244.1.5:80");
        refused(pod6, over, "[2001:db8::2]:8080");
        sees(pod5, over, "192.0.2.2:8080", "192.0.2.1");
    }
}

#[test]
fn a_pod_sends_under_its_own_addresses_only() {
    let mut judged = judged(&[OF_NOBODY]);
    judged.lab.client.sh("nft 'add table inet watch
        add chain inet watch input { type filter hook input priority 0; }
        add rule inet watch input ip6 saddr fd00:1::6 udp dport 80 counter
        add rule inet watch input ip saddr 10.244.1.6 udp dport 80 counter'");
    let arrived =
        |judged: &Judged| judged.lab.client.sh("nft list chain inet watch input").matches("packets 1 ").count();
    judged.lab.pods[0].sh("ip addr add fd00:1::6/128 dev lo nodad; ip addr add 10.244.1.6/32 dev lo");
    let forge = |judged: &Judged| {
        for (from, to) in [("[fd00:1::6]:0", "[fd00:9::9]:80"), ("10.244.1.6:0", "10.244.9.9:80")] {
            let send = move || UdpSocket::bind(from).unwrap().send_to(b"I am another", to).unwrap();
            judged.lab.pods[0].run(send);
        }
        // They have gone by when this has come back.
        sees(&judged.lab.pods[0], Over::Udp, "[fd00:9::9]:80", "fd00:1::5");
    };
    judged.lab.node.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0; for it in /proc/sys/net/ipv4/conf/ttp*; do echo 0 > $it/rp_filter; done");
    forge(&judged);
    assert_eq!(arrived(&judged), 0);
    // The same without, to know that it is this that stops them.
    judged.mode = Mode::Audit;
    judged.apply();
    forge(&judged);
    assert_eq!(arrived(&judged), 2);
    // Where there is no policy, there is nothing that a false name gets round, and nobody is asked for his.
    judged.mode = Mode::Enforce;
    judged.policies(&[]);
    assert!(!judged.lab.node.sh("nft list table inet tartan").contains("chain policy_source"));
}

#[test]
fn ports_of_the_node_are_judged_as_ports_of_the_pod() {
    let from_client = |port: u16| {
        format!(
            r#"{{"podSelector":{{"matchLabels":{{"app":"client"}}}},"ingress":[{{"from":[{{"ipBlock":{{"cidr":"192.0.2.2/32"}}}},{{"ipBlock":{{"cidr":"2001:db8::2/128"}}}}],"ports":[{{"port":{port}}},{{"port":{port},"protocol":"UDP"}}]}}]}}"#
        )
    };
    let mut judged = judged(&[("in", &from_client(80))]);
    for over in BOTH {
        sees(&judged.lab.client, over, "192.0.2.1:8080", "192.0.2.2");
        sees(&judged.lab.client, over, "[2001:db8::1]:8080", "2001:db8::2");
        refused(&judged.lab.pods[1], over, "192.0.2.1:8080");
        sees(&judged.lab.node, over, "192.0.2.1:8080", "10.244.1.0");
        // A pod through the node to itself, which is nobody's business.
        sees(&judged.lab.pods[0], over, "192.0.2.1:8080", "10.244.1.0");
        sees(&judged.lab.pods[0], over, "[2001:db8::1]:8080", "fd00:1::");
    }
    judged.policies(&[("in", &from_client(8080)), ("out", NOTHING_OUT)]);
    for over in BOTH {
        refused(&judged.lab.client, over, "192.0.2.1:8080");
        refused(&judged.lab.client, over, "[2001:db8::1]:8080");
        sees(&judged.lab.pods[0], over, "192.0.2.1:8080", "10.244.1.0");
    }
}

#[test]
fn icmp_is_judged_and_errors_belong_to_their_connections() {
    let mut judged = judged(&[]);
    let [pod5, _] = &judged.lab.pods;
    assert!(pings(pod5, "10.244.1.6") && pings(pod5, "fd00:1::6"));
    // Nobody serves there: the pod says so.
    let unreachable = |judged: &Judged, to: &'static str| ask_in_vain(&judged.lab.pods[0], to).kind();
    assert_eq!(unreachable(&judged, "10.244.1.6:7"), ErrorKind::ConnectionRefused);
    assert_eq!(unreachable(&judged, "[fd00:1::6]:7"), ErrorKind::ConnectionRefused);
    judged.policies(&[("in", CLIENT_TO_80)]);
    let [pod5, pod6] = &judged.lab.pods;
    assert!(!pings(pod5, "10.244.1.6") && !pings(pod5, "fd00:1::6"));
    assert!(pings(pod6, "10.244.1.5") && pings(pod6, "fd00:1::5"), "the answers are let in");
    assert_eq!(unreachable(&judged, "10.244.1.6:7"), ErrorKind::WouldBlock);
    // An error about what is allowed passes, whoever may send what by himself.
    let both_ways = r#"{"podSelector":{},"policyTypes":["Ingress","Egress"],"egress":[{"ports":[{"port":7,"protocol":"UDP"}]}],"ingress":[{"ports":[{"port":7,"protocol":"UDP"}]}]}"#;
    judged.policies(&[("all", both_ways)]);
    assert_eq!(unreachable(&judged, "10.244.1.6:7"), ErrorKind::ConnectionRefused);
    assert_eq!(unreachable(&judged, "[fd00:1::6]:7"), ErrorKind::ConnectionRefused);
}

/// Of what comes in only these kinds of ICMP.
fn only_icmp(rows: &mut Rows, kinds: [u8; 2]) {
    let of = |(protocol, kind)| L4Match {
        icmp: Some(Icmp { kind, code: None }),
        ..L4Match::protocol(ProtocolIs::Is(protocol))
    };
    let wanted = [(1, kinds[0]), (58, kinds[1])].map(of);
    let classes = Classes::of(&wanted.iter().collect::<Vec<_>>(), &BTreeSet::new());
    let allowed =
        [classes.class(1, u16::from_be_bytes([kinds[0], 0])), classes.class(58, u16::from_be_bytes([kinds[1], 0]))];
    let word = |class| Word::new(if allowed.contains(&class) { Verdict::Allow } else { Verdict::Deny }, 0);
    let count = u32::try_from(classes.count()).unwrap();
    *rows = Rows {
        words: (0..count).map(|class| ((verdicts::ANY, class), word(class))).collect(),
        classes: classes.into(),
        ..Rows::default()
    };
}

#[test]
fn kinds_of_icmp_are_told_apart_also_by_their_answers() {
    let mut judged = judged(&[OF_NOBODY]);
    judged.remade = Some(requests);
    judged.apply();
    for to in ["10.244.1.6", "fd00:1::6"] {
        assert!(pings(&judged.lab.pods[0], to), "{to}");
    }
    refused(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:80");
    // An answer that comes after a revocation is judged by what it answers.
    judged.lab.pods[1].sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1 net.ipv6.icmp.echo_ignore_all=1");
    let [pod5, pod6] = &judged.lab.pods;
    let ends = [("10.244.1.5", "10.244.1.6"), ("fd00:1::5", "fd00:1::6")];
    let echoes = ends.map(|(from, to)| [Echo::between(pod5, to), Echo::between(pod6, from)]);
    for (allowed, passes) in [(requests as fn(&mut Rows), true), (answers, false)] {
        judged.remade = Some(requests);
        judged.policies(&[OF_NOBODY]);
        echoes.iter().for_each(|[asking, _]| asking.send(false));
        let before = judged.generation();
        judged.remade = Some(allowed);
        judged.policies(&[
            OF_NOBODY,
            ("out", r#"{"podSelector":{"matchLabels":{"app":"server"}},"policyTypes":["Egress"]}"#),
        ]);
        assert_ne!(judged.generation(), before);
        for [asking, answering] in &echoes {
            answering.send(true);
            assert_eq!(asking.is_answered(), passes);
        }
    }
}

fn requests(rows: &mut Rows) {
    only_icmp(rows, [8, 128]);
}

fn answers(rows: &mut Rows) {
    only_icmp(rows, [0, 129]);
}

#[test]
fn marks_of_others_survive() {
    let mut judged = judged(&[("in", CLIENT_TO_80)]);
    serve(&judged.lab.node, "[::]:9000");
    judged.lab.node.sh("nft 'add table inet foreign
        add chain inet foreign pre { type filter hook prerouting priority -150; }
        add rule inet foreign pre meta mark set 0x4001 ct mark set ct mark or 0x80
        add chain inet foreign forward { type filter hook forward priority 10; }
        add rule inet foreign forward meta mark 0x4001 ct mark and 0x00ffffff == 0x80 counter accept
        add rule inet foreign forward counter
        add chain inet foreign input { type filter hook input priority 10; }
        add rule inet foreign input iifgroup 29812 meta mark 0x4001 ct mark and 0x00ffffff == 0x80 counter accept
        add rule inet foreign input iifgroup 29812 meta l4proto != ipv6-icmp counter'");
    let counted = |judged: &Judged| {
        let listing = judged.lab.node.sh("nft list table inet foreign");
        let packets = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        listing.lines().filter_map(packets).collect::<Vec<u64>>()
    };
    let kept = Persistent::new(&judged.lab.pods[0], "10.244.1.6:80");
    // Discovery of neighbours goes on beside it, and is part of no connection.
    let traffic = |judged: &Judged| {
        let [pod5, pod6] = &judged.lab.pods;
        for over in BOTH {
            // By an own row, by anyone's, of a range, and to the node.
            sees(pod5, over, "10.244.1.6:80", "10.244.1.5");
            sees(pod6, over, "[fd00:1::5]:80", "fd00:1::6");
            sees(pod6, over, "192.0.2.2:8080", "192.0.2.1");
            sees(pod5, over, "192.0.2.1:9000", "10.244.1.5");
        }
        assert!(kept.is_answered());
    };
    traffic(&judged);
    // Judged again, and reported and passed.
    judged.policies(&[("in", CLIENT_TO_80), ("out", r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{}]}"#)]);
    traffic(&judged);
    judged.mode = Mode::Audit;
    judged.policies(&[("in", NOTHING_IN), ("out", NOTHING_OUT)]);
    traffic(&judged);
    // Of a pod that nobody knows.
    judged.store_nothing(Kind::Pod, "default/p5");
    judged.apply();
    traffic(&judged);
    let [forwarded, lost, to_node, lost_to_node] = counted(&judged)[..] else { panic!("{:?}", counted(&judged)) };
    assert!(forwarded > 50 && to_node > 10, "{forwarded} {to_node}");
    assert_eq!([lost, lost_to_node], [0, 0]);
}

#[test]
fn audit_lets_everything_pass_and_off_leaves_nothing() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    refused(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:80");
    judged.mode = Mode::Audit;
    judged.store_nothing(Kind::Pod, "default/p5");
    judged.apply();
    for over in BOTH {
        sees(&judged.lab.pods[0], over, "10.244.1.6:80", "10.244.1.5");
        sees(&judged.lab.client, over, "[fd00:1::5]:80", "2001:db8::2");
    }
    judged.mode = Mode::Off;
    judged.apply();
    assert!(!judged.lab.node.sh("nft list ruleset").contains("policy_"));
    sees(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:80", "10.244.1.5");
}

#[test]
fn who_is_rejected_is_told() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    judged.remade = Some(|rows| {
        let reject = |word: Word| match word.verdict() {
            Verdict::Deny => Word::new(Verdict::Reject, word.rule()),
            _ => word,
        };
        rows.words = rows.words.iter().map(|(place, word)| (*place, reject(*word))).collect();
    });
    judged.apply();
    let connect = |judged: &Judged, to: &'static str| {
        let patience = Duration::from_millis(300);
        judged.lab.pods[0].run(move || TcpStream::connect_timeout(&to.parse().unwrap(), patience).unwrap_err().kind())
    };
    assert_eq!(connect(&judged, "10.244.1.6:80"), ErrorKind::ConnectionRefused);
    assert_eq!(connect(&judged, "[fd00:1::6]:80"), ErrorKind::ConnectionRefused);
    let ask = |judged: &Judged, to: &'static str| ask_in_vain(&judged.lab.pods[0], to).raw_os_error();
    assert_eq!(ask(&judged, "10.244.1.6:80"), Some(nix::libc::EHOSTUNREACH));
    assert_eq!(ask(&judged, "[fd00:1::6]:80"), Some(nix::libc::EACCES));
}

#[test]
fn what_is_denied_or_audited_is_reported_with_its_word() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    let reports = Reports::of(&judged.lab.node);
    let wanted = |judged: &Judged| {
        let tables = &judged.tables_now;
        let set = &tables.sets[&tables.subjects["default/p6"]];
        set.ingress.words.values().next().unwrap().0
    };
    refused(&judged.lab.pods[0], Over::Udp, "10.244.1.6:80");
    assert_eq!(reports.next(), Some(wanted(&judged)));
    sees(&judged.lab.pods[1], Over::Udp, "10.244.1.5:80", "10.244.1.6");
    judged.mode = Mode::Audit;
    judged.apply();
    sees(&judged.lab.pods[0], Over::Udp, "10.244.1.6:80", "10.244.1.5");
    assert_eq!(reports.next(), Some(wanted(&judged)));
    assert_eq!(reports.next(), None, "one for a connection");
    // What a rule lets pass and wants to be reported: no dialect has such rules yet.
    judged.mode = Mode::Enforce;
    judged.remade = Some(|rows| {
        let logged = |word: Word| if word.verdict() == Verdict::Allow { Word(word.0 | Word::LOGGED) } else { word };
        rows.words = rows.words.iter().map(|(place, word)| (*place, logged(*word))).collect();
    });
    judged.policies(&[("in", CLIENT_TO_80)]);
    sees(&judged.lab.pods[0], Over::Udp, "10.244.1.6:80", "10.244.1.5");
    let told = reports.next().map(Word);
    let rule = told.and_then(|word| judged.tables_now.rules.get(&word.rule()).cloned());
    assert!(told.is_some_and(|word| word.verdict() == Verdict::Allow && word.is_logged()), "{told:?}");
    assert_eq!(rule.map(|rule| rule.path.to_string()).as_deref(), Some("spec.ingress[0]"));
    assert_eq!(reports.next(), None, "one for a connection");
}

#[test]
fn packets_of_no_connection_are_judged_one_by_one() {
    let mut judged = judged(&[]);
    judged.lab.node.sh("ip addr add 169.254.20.10/32 dev lo
        nft 'add table ip untracked
        add chain ip untracked pre { type filter hook prerouting priority raw; }
        add rule ip untracked pre ip daddr 169.254.20.10 notrack
        add chain ip untracked out { type filter hook output priority raw; }
        add rule ip untracked out ip saddr 169.254.20.10 notrack'");
    serve(&judged.lab.node, "169.254.20.10:53");
    let out = |port: u16| {
        format!(
            r#"{{"podSelector":{{}},"policyTypes":["Egress"],"egress":[{{"to":[{{"ipBlock":{{"cidr":"169.254.20.10/32"}}}}],"ports":[{{"port":{port}}},{{"port":{port},"protocol":"UDP"}}]}}]}}"#
        )
    };
    for (policies, passes) in [(vec![], true), (vec![("out", out(54))], false), (vec![("out", out(53))], true)] {
        judged.policies(&policies.iter().map(|(name, spec)| (*name, spec.as_str())).collect::<Vec<_>>());
        for over in BOTH {
            match passes {
                true => sees(&judged.lab.pods[0], over, "169.254.20.10:53", "10.244.1.5"),
                false => refused(&judged.lab.pods[0], over, "169.254.20.10:53"),
            }
        }
    }
}

#[test]
fn no_stamp_of_another_life_is_taken_for_ours() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    judged.mode = Mode::Off;
    judged.apply();
    // What somebody else marks connections with, or a life that nobody remembers.
    judged.lab.node.sh("nft 'add table inet foreign
        add chain inet foreign pre { type filter hook prerouting priority -150; }
        add rule inet foreign pre ct mark 0 ct mark set 0x02000080'");
    let mut open = Stream::down(&judged.lab.pods[0], Over::Udp, &judged.lab.pods[1], "10.244.1.6:81");
    assert!(open.flows());
    judged.lab.node.sh("nft delete table inet foreign");
    judged.policy = Policy::default();
    judged.mode = Mode::Enforce;
    judged.apply();
    assert_eq!(judged.generation().stamp(), 0x0200_0000);
    assert!(!open.flows());
    let marks = judged.lab.node.sh("cat /proc/net/nf_conntrack");
    let of_stream = marks.lines().find(|line| line.contains("dport=81")).unwrap();
    assert!(of_stream.contains("mark=128 "), "the bits of others stay: {of_stream}");
}

#[test]
fn what_the_kernel_refuses_in_part_it_refuses_whole() {
    let mut judged = judged(&[("in", NOTHING_IN)]);
    judged.lab.world.policies.clear();
    let tables = verdicts::plan(&mut judged.tables, &judged.lab.world).tables.clone();
    let mut wanted = judged.nftables.plan(&judged.lab.world, &given()).clone();
    wanted
        .merge(judged.policy.plan(&judged.lab.world, &tables, Mode::Enforce, &given().between_nodes), &mut Vec::new());
    let good = wanted.clone();
    let bad = ElementKey { bytes: [1; 99].into(), end: None };
    let bad = Key::NftElement { set: "policy_ingress_words".into(), key: bad };
    wanted.insert(bad, Object::NftElement(ElementData([0, 0, 0, 1].into())), Owner::Policy);
    let try_it = |judged: &Judged, wanted: &State| {
        let change = diff(&judged.applied, wanted, |_| true);
        let failures = judged.lab.node.change(move || Linux::open().unwrap().apply(&change));
        failures.into_iter().map(|failure| failure.owner).collect::<Vec<_>>()
    };
    let table = |judged: &Judged| judged.lab.node.run(|| Nft::open().unwrap().read().unwrap());
    let before = table(&judged);
    let told = try_it(&judged, &wanted);
    let owners: BTreeSet<&Owner> = told.iter().collect();
    assert!(owners.contains(&Owner::Policy) && owners.len() == told.len(), "one for each owner: {told:?}");
    assert_eq!(table(&judged), before, "a part of it went in");
    refused(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:80");
    assert_eq!(try_it(&judged, &good), []);
    sees(&judged.lab.pods[0], Over::Tcp, "10.244.1.6:80", "10.244.1.5");
}
