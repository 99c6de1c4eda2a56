//! The underlay, proven by real pings between nodes: it carries what it should, and each control breaks exactly what
//! it says.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::net::IpAddr;
use std::time::Duration;

use tartan_lab::{Family, Lab, Underlay, probe};

/// Longer than any ping here takes, short enough that a test of drops stays quick.
const PATIENCE: Duration = Duration::from_millis(300);

fn lab(name: &str, kind: Underlay) -> Lab {
    Lab::builder(name).nodes(3).underlay(kind).build().unwrap()
}

fn address(lab: &Lab, node: &str, family: Family) -> IpAddr {
    lab.endpoint(node).unwrap().address(family)
}

/// One ping from node to node, `bytes` long with its IP header.
fn pings(lab: &Lab, from: &str, to: &str, family: Family, bytes: usize) -> bool {
    probe::ping(&lab.endpoint(from).unwrap(), address(lab, to, family), bytes, PATIENCE).is_ok()
}

/// Which ordered pairs of the three nodes answer a ping, as `n1>n2` words.
fn answering_in(lab: &Lab, family: Family) -> Vec<String> {
    let nodes = ["n1", "n2", "n3"];
    let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
    std::thread::scope(|scope| {
        let asked: Vec<_> = pairs.map(|(a, b)| (a, b, scope.spawn(move || pings(lab, a, b, family, 84)))).collect();
        let answered = |(a, b, ping): (&str, &str, std::thread::ScopedJoinHandle<'_, bool>)| {
            ping.join().unwrap().then(|| format!("{a}>{b}"))
        };
        asked.into_iter().filter_map(answered).collect()
    })
}

/// The same, where both families must agree.
fn answering(lab: &Lab) -> Vec<String> {
    let [v4, v6] = Family::BOTH.map(|family| answering_in(lab, family));
    assert_eq!(v4, v6, "the families differ");
    v4
}

const ALL: [&str; 6] = ["n1>n2", "n1>n3", "n2>n1", "n2>n3", "n3>n1", "n3>n2"];

#[test]
fn every_node_reaches_every_other_and_the_outside() {
    for (name, kind) in
        [("reach-l2", Underlay::L2), ("reach-routed", Underlay::Routed), ("reach-racks", Underlay::Racks)]
    {
        let lab = lab(name, kind);
        assert_eq!(answering(&lab), ALL, "{kind:?}");
        for family in Family::BOTH {
            assert!(pings(&lab, "n1", "outside", family, 84), "{kind:?} {family}");
        }
    }
}

#[test]
fn nodes_on_one_segment_are_on_link_and_others_behind_the_router() {
    for (name, kind, n2_on_link, n3_on_link) in [
        ("hop-l2", Underlay::L2, true, true),
        ("hop-routed", Underlay::Routed, false, false),
        ("hop-racks", Underlay::Racks, true, false),
    ] {
        let lab = lab(name, kind);
        for family in Family::BOTH {
            for (node, on_link) in [("n2", n2_on_link), ("n3", n3_on_link)] {
                let to = address(&lab, node, family).to_string();
                let route = lab.node("n1").unwrap().output(&["ip", "route", "get", &to]).unwrap();
                assert_eq!(!route.contains(" via "), on_link, "{kind:?} {node}: {route}");
            }
        }
    }
}

#[test]
fn drops_and_partitions_cut_what_they_name_and_heal() {
    for (name, kind) in [("cut-l2", Underlay::L2), ("cut-routed", Underlay::Routed), ("cut-racks", Underlay::Racks)] {
        let lab = lab(name, kind);
        let underlay = lab.underlay();
        assert_eq!(answering(&lab), ALL);

        // A ping needs both ways, so one cut direction silences both; the counter tells which one was cut.
        underlay.drop_one_way("n1", "n2").unwrap();
        assert_eq!(answering(&lab), ["n1>n3", "n2>n3", "n3>n1", "n3>n2"], "{kind:?}");
        assert!(underlay.dropped("n1", "n2").unwrap() >= 2, "{kind:?}");
        assert!(underlay.dropped("n2", "n1").is_err(), "{kind:?}: nothing is dropped that way");

        underlay.heal().unwrap();
        assert_eq!(answering(&lab), ALL, "{kind:?}");

        underlay.partition(&["n1"], &["n2", "n3"]).unwrap();
        assert_eq!(answering(&lab), ["n2>n3", "n3>n2"], "{kind:?}");
        underlay.heal().unwrap();
        assert_eq!(answering(&lab), ALL, "{kind:?}");
    }
}

#[test]
fn a_pulled_cable_takes_the_carrier_and_comes_back() {
    let lab = lab("cable", Underlay::L2);
    let carrier = || lab.node("n2").unwrap().output(&["cat", "/sys/class/net/eth0/carrier"]).unwrap();
    assert_eq!(carrier().trim(), "1");
    lab.underlay().unplug("n2").unwrap();
    assert_eq!(carrier().trim(), "0");
    assert_eq!(answering(&lab), ["n1>n3", "n3>n1"]);
    lab.underlay().replug("n2").unwrap();
    probe::wait_for(Duration::from_secs(5), "the cable to work again", || {
        Family::BOTH.iter().all(|&family| answering_in(&lab, family) == ALL)
    })
    .unwrap();
}

#[test]
fn an_uplink_mtu_limits_that_node_only() {
    let lab = lab("uplink-mtu", Underlay::L2);
    lab.underlay().set_uplink_mtu("n1", lab.node("n1").unwrap().netns(), 1400).unwrap();
    for family in Family::BOTH {
        assert!(pings(&lab, "n1", "n2", family, 1400), "{family}");
        assert!(!pings(&lab, "n1", "n2", family, 1401), "{family}");
        assert!(pings(&lab, "n2", "n3", family, 1500), "{family}");
        assert!(!pings(&lab, "n2", "n3", family, 1501), "{family}");
    }
}

#[test]
fn a_narrow_path_is_silent_on_a_switch_and_told_by_a_router() {
    for (name, kind) in [("path-l2", Underlay::L2), ("path-routed", Underlay::Routed)] {
        let lab = lab(name, kind);
        for family in Family::BOTH {
            assert!(pings(&lab, "n1", "n2", family, 1500), "{kind:?} {family}");
        }
        lab.underlay().set_path_mtu(Some(1300)).unwrap();
        for family in Family::BOTH {
            assert!(pings(&lab, "n1", "n2", family, 1300), "{kind:?} {family}");
            assert!(!pings(&lab, "n1", "n2", family, 1301), "{kind:?} {family}");
            let to = address(&lab, "n2", family);
            let learned = lab.node("n1").unwrap().output(&["ip", "route", "get", &to.to_string()]).unwrap();
            assert_eq!(learned.contains("mtu 1300"), kind == Underlay::Routed, "{kind:?}: {learned}");
        }
        lab.underlay().set_path_mtu(None).unwrap();
        // From n3, which has learned nothing of the narrow path.
        for family in Family::BOTH {
            assert!(pings(&lab, "n3", "n1", family, 1500), "{kind:?} {family}");
        }
    }
}
