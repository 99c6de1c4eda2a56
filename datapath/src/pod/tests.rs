//! What is wanted for pods with one interface and with more, on kernels with IPv6 and without.

use std::net::Ipv6Addr;

use tartan_model::{Features, Limits, PerFamily};
use tartan_netstate::PodNetns;

use super::*;

fn attachment(ifname: &str, number: u8) -> Attachment {
    let id = Attachment::id_of("pod", ifname);
    Attachment {
        mac: pod_mac(&id),
        id,
        container: "pod".into(),
        ifname: ifname.into(),
        netns: PodNetns { dev: 4, ino: 7, path: "/run/netns/pod".into() },
        pod_namespace: "shop".into(),
        pod_name: "pod".into(),
        addresses: PerFamily::first_of([
            [10, 244, 1, number].into(),
            Ipv6Addr::from(0xfd00 << 112 | u128::from(number)).into(),
        ]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

fn world(ifnames: &[&str], ipv6: bool) -> World {
    let mut world = World::new("n1".into(), Features { ipv6, vxlan: true, nft: true, wireguard: true });
    (2..).zip(ifnames).for_each(|(number, ifname)| world.attach(attachment(ifname, number)));
    world
}

fn wanted(world: &World) -> State {
    Pods::default().plan(world, Mtu { link: 1500, route: 1450 }).clone()
}

/// Metric and link of the ways out, the one that is taken first.
fn ways_out(state: &State, family: Family) -> Vec<(u32, String)> {
    let way = |(key, entry): (&Key, &tartan_netstate::Entry)| match (key, &entry.object) {
        (Key::Route { table: MAIN_TABLE, dst, metric, .. }, Object::Route(route)) if *dst == family.everything() => {
            Some((*metric, route.dev.as_ref()?.to_string()))
        }
        _ => None,
    };
    let mut ways: Vec<_> = state.iter().filter_map(way).collect();
    ways.sort();
    ways
}

#[test]
fn every_interface_has_a_way_out_and_eth0_comes_first() {
    for family in Family::ALL {
        let first = |ifnames: &[&str]| {
            let ways = ways_out(&wanted(&world(ifnames, true)), family);
            assert_eq!(ways.len(), ifnames.len(), "{ways:?}");
            ways[0].1.clone()
        };
        for ifnames in [&["eth0"][..], &["eth0", "net1"], &["a0", "eth0", "eth1", "net1", "net2"]] {
            assert_eq!(first(ifnames), "eth0");
        }
        assert_eq!(first(&["net1"]), "net1");
    }
}

/// What is sent from a further interface's address takes that interface, whatever the main table says.
#[test]
fn a_further_interface_answers_for_its_own_address() {
    for family in Family::ALL {
        let state = wanted(&world(&["eth0", "net1", "net2"], true));
        let mut ways = Vec::new();
        for (key, entry) in state.iter() {
            let (Key::Rule { ns, v6, .. }, Object::Rule(rule)) = (key, &entry.object) else { continue };
            if *v6 == (family == Family::V6) {
                let way =
                    Key::Route { ns: ns.clone(), table: rule.table, dst: family.everything(), metric: ROUTE_METRIC };
                let Object::Route(route) = &state.get(&way).unwrap().object else { panic!("{way} is a route") };
                ways.push((rule.src.unwrap(), route.dev.clone().unwrap().to_string()));
            }
        }
        ways.sort();
        let own = |ifname, number| (*attachment(ifname, number).addresses.get(family).unwrap(), ifname.to_owned());
        assert_eq!(ways, [own("net1", 3), own("net2", 4)]);
    }
}

/// What one interface has does not change when another comes or goes.
#[test]
fn interfaces_of_a_pod_do_not_depend_on_each_other() {
    let two = wanted(&world(&["eth0", "net1"], true));
    let mut conflicts = Vec::new();
    let mut apart = wanted(&world(&["eth0"], true));
    let mut second = world(&[], true);
    second.attach(attachment("net1", 3));
    apart.merge(&wanted(&second), &mut conflicts);
    assert_eq!((apart, conflicts), (two, Vec::new()));
}

#[test]
fn without_ipv6_nothing_of_it_is_wanted() {
    let is_ipv6 = |key: &Key| match key {
        Key::LinkSysctl { name, .. } => name.starts_with("ipv6/"),
        Key::Address { address, .. } => address.addr().is_ipv6(),
        Key::Neigh { address, .. } => address.is_ipv6(),
        Key::Route { dst, .. } => dst.addr().is_ipv6(),
        Key::Rule { v6, .. } => *v6,
        _ => false,
    };
    let with = wanted(&world(&["eth0", "net1"], true));
    let mut ipv4: Vec<&Key> = with.iter().map(|(key, _)| key).collect();
    ipv4.retain(|key| !is_ipv6(key));
    assert!(ipv4.len() < with.len());
    assert_eq!(wanted(&world(&["eth0", "net1"], false)).iter().map(|(key, _)| key).collect::<Vec<_>>(), ipv4);
}

#[test]
fn a_plan_after_another_is_the_plan_anew() {
    let mut memo = Pods::default();
    for (ifnames, ipv6) in [(&["eth0"][..], true), (&["eth0", "net1"], true), (&["net1"], true), (&["net1"], false)] {
        let world = world(ifnames, ipv6);
        assert_eq!(*memo.plan(&world, Mtu { link: 1500, route: 1450 }), wanted(&world), "{ifnames:?}");
    }
}

#[test]
fn each_end_limits_what_it_sends() {
    let (to_pod, from_pod) = (Limit { rate_bits: 8_000_000, burst_bits: 0 }, Limit { rate_bits: 1000, burst_bits: 8 });
    for (limits, wanted) in [
        (Limits::default(), vec![]),
        (Limits { to_pod: Some(to_pod), from_pod: None }, vec![(false, to_pod)]),
        (Limits { to_pod: Some(to_pod), from_pod: Some(from_pod) }, vec![(false, to_pod), (true, from_pod)]),
    ] {
        let mut world = world(&[], true);
        world.attach(Attachment { limits: Some(limits.into()), ..attachment("eth0", 2) });
        let state = self::wanted(&world);
        let found: Vec<_> = state.iter().filter(|(key, _)| matches!(key, Key::Qdisc { .. })).collect();
        assert_eq!(found.len(), wanted.len());
        for ((key, entry), (inside, limit)) in found.into_iter().zip(wanted) {
            assert_eq!(*key.netns() != Netns::Host, inside, "{key}");
            assert_eq!(entry.object, Object::Tbf(Tbf::new(limit.rate_bits, limit.burst_bits, 1500)), "{key}");
        }
    }
}
