//! Echo servers and probes between plain namespaces: what they count is what the network did.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::time::Duration;

use tartan_lab::{ECHO_PORT, Echo, Endpoint, Lab, Underlay, probe};

/// A lab whose nodes themselves answer, as pods would.
struct Answering {
    lab: Lab,
    _echo: Vec<Echo>,
    nodes: Vec<Endpoint>,
}

fn answering(name: &str, nodes: u8) -> Answering {
    let lab = Lab::builder(name).nodes(nodes).underlay(Underlay::L2).build().unwrap();
    let serve = |n: &tartan_lab::Node| Echo::serve(n.netns(), n.name()).unwrap();
    let echo = lab.nodes().iter().map(serve).collect();
    let nodes: Vec<_> = lab.nodes().iter().map(|n| n.endpoint()).collect();
    // The bridge takes a cable for plugged in a while after it is.
    let all_answer = || probe::matrix(&nodes).is_ok_and(|matrix| matrix.check().is_ok());
    probe::wait_for(Duration::from_secs(10), "nodes that answer", all_answer).unwrap();
    Answering { lab, _echo: echo, nodes }
}

#[test]
fn the_matrix_sees_what_works_and_who_was_seen() {
    let Answering { lab, nodes, .. } = &answering("matrix", 3);
    let good = probe::matrix(nodes).unwrap();
    assert_eq!(good.reaches.len(), 3 * 2 * 2);
    good.check().unwrap();

    // Behind a NAT the pair answers, but the server sees another address.
    let outside = lab.underlay().outside();
    lab.node("n1").unwrap().netns().nft("table ip nat { chain post { type nat hook postrouting priority 100\n ip daddr 172.30.0.2 snat to 172.30.0.99\n}\n}\n").unwrap();
    lab.node("n1").unwrap().netns().ip("address add 172.30.0.99/24 dev eth0\n").unwrap();
    let natted = probe::matrix(nodes).unwrap();
    let bad: Vec<String> = natted.failures().map(ToString::to_string).collect();
    assert_eq!(bad.len(), 1, "{natted}");
    assert!(bad[0].contains("n1 → n2 v4") && bad[0].contains("saw 172.30.0.99 instead of 172.30.0.1"), "{bad:?}");
    assert!(natted.to_string().contains("nat/ok"), "{natted}");

    let (code, body) = probe::http_get(&nodes[0], (outside.v4, 80).into(), "/").unwrap();
    assert_eq!((code, body.as_str()), (200, "outside sees 172.30.0.1\n"));
    probe::matrix(&[]).unwrap().check().unwrap_err();
}

#[test]
fn nothing_is_lost_on_a_healthy_network() {
    let Answering { nodes, .. } = &answering("healthy", 3);
    let pairs = probe::pairs(nodes);
    assert_eq!(pairs.len(), 3);
    let load =
        probe::Load::new().udp(pairs.clone()).udp_mtu_sized(pairs.clone()).tcp_bulk(pairs.clone()).tcp_idle(pairs);
    let running = load.start().unwrap();
    running.wait_for_answers(2_000, Duration::from_secs(30)).unwrap();
    let report = running.stop().unwrap();
    report.check_nothing_lost().unwrap();
    assert!(report.udp.probes >= 2_000 && report.udp.flows == 12, "{report}");
    assert!(report.tcp.bytes > 0 && report.tcp.bulk == 3 && report.tcp.idle == 6, "{report}");
}

/// What nft dropped, by its own counter, is what the probes report as lost: neither more nor less.
#[test]
fn losses_are_exactly_what_the_network_dropped() {
    let Answering { lab, nodes, .. } = &answering("loss", 2);
    let underlay = lab.underlay().netns();
    underlay
        .nft(&format!(
            "table bridge loss {{ chain forward {{ type filter hook forward priority 0\n\
             udp dport {ECHO_PORT} numgen inc mod 50 0 counter drop\n\
             udp sport {ECHO_PORT} numgen inc mod 70 0 counter drop\n}}\n}}\n"
        ))
        .unwrap();
    let running = probe::Load::new().udp(probe::pairs(nodes)).start().unwrap();
    running.wait_for_answers(1_000, Duration::from_secs(30)).unwrap();
    let report = running.stop().unwrap();

    let rules = underlay.output(&["nft", "list", "table", "bridge", "loss"]).unwrap();
    let counted = |line: &str| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let dropped: u64 = rules.lines().filter_map(counted).sum();
    assert!(dropped >= 20, "{rules}");
    assert_eq!(report.udp.lost, dropped, "{report}\n{rules}");
    assert_eq!(report.udp.losses.len(), 2, "{report}");
    assert!(report.check_nothing_lost().is_err());
}

#[test]
fn an_outage_shows_as_loss_and_gap_and_tcp_outlives_it() {
    let Answering { lab, nodes, .. } = &answering("outage", 2);
    let pairs = probe::pairs(nodes);
    let running = probe::Load::new().udp(pairs.clone()).tcp_bulk(pairs.clone()).tcp_idle(pairs).start().unwrap();
    running.wait_for_answers(400, Duration::from_secs(10)).unwrap();
    lab.underlay().partition(&["n1"], &["n2"]).unwrap();
    let dropped = || lab.underlay().dropped("n1", "n2").unwrap();
    probe::wait_for(Duration::from_secs(10), "200 packets to be dropped", || dropped() >= 200).unwrap();
    lab.underlay().heal().unwrap();
    running.wait_for_answers(400, Duration::from_secs(10)).unwrap();
    let report = running.stop().unwrap();
    assert!(report.udp.lost >= 100, "{report}");
    // Two flows lost a probe a millisecond each, so the gap is about half the losses, in ms.
    assert!(report.udp.longest_gap.as_millis() >= 90, "{report}");
    assert!(report.tcp.retransmits >= 1, "{report}");
    assert_eq!((report.tcp.resets, report.tcp.broken.len()), (0, 0), "{report}");
}

#[test]
fn a_reset_is_counted() {
    let Answering { lab, nodes, .. } = &answering("reset", 2);
    let running = probe::Load::new().tcp_bulk(probe::pairs(nodes)).start().unwrap();
    lab.node("n2").unwrap().netns().nft("table inet cut { chain input { type filter hook input priority 0\n tcp dport 7 tcp flags & (syn | ack) == ack limit rate 1/hour burst 1 packets reject with tcp reset\n}\n}\n").unwrap();
    let resets = || lab.node("n1").unwrap().netns().output(&["cat", "/proc/net/snmp"]).unwrap();
    let established_resets = |snmp: &str| -> u64 {
        let mut tcp = snmp.lines().filter(|l| l.starts_with("Tcp: ")).map(|l| l.split(' ').collect::<Vec<_>>());
        let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
        values[names.iter().position(|n| *n == "EstabResets").unwrap()].parse().unwrap()
    };
    probe::wait_for(Duration::from_secs(10), "a connection to be reset", || established_resets(&resets()) > 0).unwrap();
    let report = running.stop().unwrap();
    assert_eq!(report.tcp.resets, 1, "{report}");
    assert!(report.check_nothing_lost().is_err());
}

/// MTU-sized probes follow a path that narrows, and lose nothing when it is told before it is narrowed. It is told by
/// routes: a veth whose own MTU is lowered drops what peers still send it.
#[test]
fn mtu_sized_probes_follow_the_mtu() {
    let Answering { lab, nodes, .. } = &answering("follow-mtu", 2);
    let running = probe::Load::new().udp_mtu_sized(probe::pairs(nodes)).start().unwrap();
    running.wait_for_answers(200, Duration::from_secs(10)).unwrap();
    for node in nodes {
        let routes = format!(
            "route change 172.30.0.0/24 dev eth0 proto kernel src {} mtu 1300\n\
             route change fd30::/64 dev eth0 proto kernel metric 256 mtu 1300\n",
            node.v4
        );
        node.netns.ip(&routes).unwrap();
    }
    running.wait_for_answers(200, Duration::from_secs(10)).unwrap();
    lab.underlay().set_path_mtu(Some(1300)).unwrap();
    running.wait_for_answers(200, Duration::from_secs(10)).unwrap();
    let path = lab.underlay().netns().output(&["nft", "list", "table", "bridge", "path"]).unwrap();
    let report = running.stop().unwrap();
    report.check_nothing_lost().unwrap();
    assert!(path.contains("counter packets 0 "), "a probe was larger than the MTU: {path}");
}
