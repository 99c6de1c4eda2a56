//! The node's address: every way to choose it, and every way to get it wrong.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tartan_fabric::address::{
    ANNOTATION_CAN_REACH, ANNOTATION_CIDRS, ANNOTATION_INTERFACE, ANNOTATION_INTERFACE_REGEX, ANNOTATION_PUBLIC,
    Chosen, choose,
};
use tartan_model::host::BRIEFLY;
use tartan_model::{AddressChoice, Config, DefaultRoute, Features, Host, HostLink, Node, PerFamily, Programmed, World};

/// The links of a busy node. eth0 and wlan0 lead out, wlan0 at a worse metric; eth1 is a second network.
fn host() -> Host {
    let link = |name: &str, kind: &str, addresses: &[&str]| HostLink {
        name: name.into(),
        kind: kind.into(),
        mtu: 1500,
        up: true,
        loopback: name == "lo",
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        accept_ra: 0,
    };
    let out = |v6, link: &str, metric| DefaultRoute { v6, link: link.into(), via: None, metric };
    Host {
        links: vec![
            link("br-0a1b2c", "bridge", &["172.18.0.1/16"]),
            link("docker0", "bridge", &["172.17.0.1/16"]),
            link("dummy0", "dummy", &["198.51.100.9/32"]),
            link("eth0", "", &["192.0.2.10/24", "192.0.2.11/24", "2001:db8::10/64"]),
            link("eth1", "", &["10.1.0.5/16"]),
            link("lo", "", &["203.0.113.7/32"]),
            link("wg0", "wireguard", &["10.99.0.1/24"]),
            link("wlan0", "", &["192.168.7.3/24"]),
        ],
        default_routes: vec![out(false, "eth0", 100), out(false, "wlan0", 600), out(true, "eth0", 100)],
        ..Host::default()
    }
}

fn world(choice: AddressChoice, internal: &[&str], annotations: &[(&str, &str)], host: Host) -> World {
    let mut world = World::new("n1".into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
    world.config = Arc::new(Config { node_address: choice, ..Config::default() });
    world.host = Arc::new(host);
    let node = Node {
        name: "n1".into(),
        uid: "u1".into(),
        internal_ips: internal.iter().map(|ip| ip.parse().unwrap()).collect(),
        external_ips: Vec::new(),
        pod_cidrs: Vec::new(),
        labels: BTreeMap::new(),
        annotations: annotations.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        placement: Default::default(),
    };
    world.nodes.insert("n1".into(), Arc::new(node));
    world
}

/// What is chosen, as `address@link why`, one a family, and the reasons and messages of conditions.
fn check(world: &World, want: &[&str], complaints: &[&str]) {
    let Chosen { uplinks, conditions, .. } = choose(world, Instant::now());
    let got: Vec<String> =
        uplinks.iter().map(|(_, uplink)| format!("{}@{} {}", uplink.advertised(), uplink.link, uplink.why)).collect();
    let matches = |got: &[String], want: &[&str]| {
        got.len() == want.len() && got.iter().zip(want).all(|(got, want)| got.starts_with(want))
    };
    assert!(matches(&got, want), "chosen {got:#?}, wanted {want:#?}");
    let said: Vec<String> = conditions.iter().map(|c| format!("{}: {}", c.reason, c.message)).collect();
    assert!(matches(&said, complaints), "said {said:#?}, wanted {complaints:#?}");
    assert!(conditions.iter().all(|condition| !condition.fix.is_empty() && !condition.about.is_empty()));
}

const OUT_V6: &str = "2001:db8::10@eth0 it is on the link of the default route";

#[test]
fn left_to_itself() {
    let auto = |internal: &[&str], host| world(AddressChoice::Auto, internal, &[], host);
    check(
        &auto(&["192.0.2.11", "2001:db8::10"], host()),
        &["192.0.2.11@eth0 it is the Node's InternalIP", "2001:db8::10@eth0 it is the Node's InternalIP"],
        &[],
    );
    check(&auto(&["10.1.0.5"], host()), &["10.1.0.5@eth1 it is the Node's InternalIP", OUT_V6], &[]);
    check(
        &auto(&[], host()),
        &["192.0.2.10@eth0 it is on the link of the default route; the Node has no", OUT_V6],
        &[],
    );
    check(
        &auto(&["192.0.2.99"], host()),
        &[
            "192.0.2.10@eth0 it is on the link of the default route; the Node's InternalIP 192.0.2.99 is on no link",
            OUT_V6,
        ],
        &[],
    );
    // The link of the best default route has no IPv4 address: the next one.
    let mut other = host();
    other.links.iter_mut().find(|link| &*link.name == "eth0").unwrap().addresses.retain(|net| net.addr().is_ipv6());
    check(&auto(&[], other), &["192.168.7.3@wlan0 it is on the link of the default route", OUT_V6], &[]);
    // One family alone is a single-stack node, and nothing to complain of.
    let mut single = host();
    single.default_routes.retain(|route| !route.v6);
    check(&auto(&[], single), &["192.0.2.10@eth0"], &[]);
    let none = "NoNodeAddress: no ipv4 address to reach peers from: the Node has no InternalIP on one of";
    check(&auto(&[], Host::default()), &[], &[none, &none.replace("v4", "v6")]);
}

#[test]
fn links_of_other_software_are_refused() {
    let auto = |internal: &str| world(AddressChoice::Auto, &[internal], &[], host());
    for (address, link) in
        [("172.17.0.1", "docker0"), ("172.18.0.1", "br-0a1b2c"), ("198.51.100.9", "dummy0"), ("10.99.0.1", "wg0")]
    {
        let said = format!(
            "AddressOfOtherSoftware: no ipv4 address to reach peers from: the Node's InternalIP {address} is on {link}"
        );
        check(&auto(address), &[OUT_V6], &[&said]);
    }
    check(&auto("203.0.113.7"), &[OUT_V6], &["AddressOfOtherSoftware"]);
    // A default route into a VPN is not the way to the peers.
    let mut vpn = host();
    vpn.default_routes.insert(0, DefaultRoute { v6: false, link: "wg0".into(), via: None, metric: 0 });
    check(&world(AddressChoice::Auto, &[], &[], vpn), &["192.0.2.10@eth0", OUT_V6], &[]);
    // Asked for by name it is right.
    let named = world(AddressChoice::Interface("wg0".into()), &[], &[], host());
    check(&named, &["10.99.0.1@wg0 nodeAddress.interface is wg0"], &[]);
}

#[test]
fn as_configured() {
    let with = |choice| world(choice, &["192.0.2.10"], &[], host());
    check(&with(AddressChoice::Interface("eth1".into())), &["10.1.0.5@eth1 nodeAddress.interface is eth1"], &[]);
    let regex = |text: &str| with(AddressChoice::InterfaceRegex(text.into()));
    check(&regex("^(wlan|eth1)"), &["10.1.0.5@eth1 its link matches nodeAddress.interfaceRegex ^(wlan|eth1)"], &[]);
    check(&regex("eth("), &[], &["BadRegex: no ipv4 address", "BadRegex: no ipv6 address"]);
    let cidrs =
        |ranges: &[&str]| with(AddressChoice::Cidrs(ranges.iter().map(|range| range.parse().unwrap()).collect()));
    check(&cidrs(&["10.1.0.0/16"]), &["10.1.0.5@eth1 it is in nodeAddress.cidrs"], &[]);
    check(&cidrs(&["192.0.2.11/32", "2001:db8::/32"]), &["192.0.2.11@eth0", "2001:db8::10@eth0"], &[]);
    let nothing = |family| {
        format!(
            "NoNodeAddress: no {family} address to reach peers from: nothing on this node fits \"it is in nodeAddress.cidrs\"; its links are br-0a1b2c, docker0"
        )
    };
    check(&cidrs(&["10.2.0.0/16"]), &[], &[&nothing("ipv4"), &nothing("ipv6")]);
    let reach = |target: &str| with(AddressChoice::CanReach(target.parse().unwrap()));
    check(&reach("10.1.200.1"), &["10.1.0.5@eth1 its link leads to nodeAddress.canReach 10.1.200.1", OUT_V6], &[]);
    check(&reach("8.8.8.8"), &["192.0.2.10@eth0 its link leads to nodeAddress.canReach 8.8.8.8", OUT_V6], &[]);
}

#[test]
fn as_annotated() {
    let with = |annotations| world(AddressChoice::Interface("wlan0".into()), &[], annotations, host());
    check(&with(&[]), &["192.168.7.3@wlan0"], &[]);
    check(&with(&[(ANNOTATION_INTERFACE, "eth1")]), &["10.1.0.5@eth1"], &[]);
    check(&with(&[(ANNOTATION_INTERFACE_REGEX, "^eth1$")]), &["10.1.0.5@eth1"], &[]);
    check(&with(&[(ANNOTATION_CIDRS, "10.1.0.0/16, 2001:db8::/64")]), &["10.1.0.5@eth1", "2001:db8::10@eth0"], &[]);
    check(&with(&[(ANNOTATION_CAN_REACH, "10.1.9.9")]), &["10.1.0.5@eth1", OUT_V6], &[]);
    let bad = "BadAnnotation: 'here' cannot be read; spec.nodeAddress is used instead";
    check(&with(&[(ANNOTATION_CIDRS, "here")]), &["192.168.7.3@wlan0"], &[bad]);
    check(&with(&[(ANNOTATION_CAN_REACH, "here")]), &["192.168.7.3@wlan0"], &[bad]);
    check(&with(&[(ANNOTATION_PUBLIC, "198.18.0.1, 2001:db8:1::1")]), &["198.18.0.1@wlan0"], &[]);
    let public = "BadAnnotation: 'everywhere' cannot be read; peers are told the node's own address instead";
    check(&with(&[(ANNOTATION_PUBLIC, "everywhere")]), &["192.168.7.3@wlan0"], &[public]);
}

/// Which of the addresses on a link, or on those that fit: addresses with `~` are there for a while, or beside others.
#[test]
fn the_address_that_is_the_nodes_own() {
    let eth0 = || AddressChoice::Interface("eth0".into());
    let reach = || AddressChoice::CanReach("192.168.1.1".parse().unwrap());
    let both = || AddressChoice::InterfaceRegex("^eth".into());
    let range = || AddressChoice::Cidrs(vec!["192.168.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    let check = |choices: &[AddressChoice], internal: &[&str], eth0: &[&str], eth1: &[&str], want: &[&str]| {
        let mut host = host();
        host.links.retain(|link| &*link.name != "wlan0");
        for (name, addresses) in [("eth0", eth0), ("eth1", eth1)] {
            let nets = addresses.iter().map(|net| net.trim_start_matches('~').parse::<ipnet::IpNet>().unwrap());
            let passing = nets.clone().zip(addresses).filter(|(_, text)| text.starts_with('~'));
            host.passing.extend(passing.map(|(net, _)| (name.into(), net.addr())));
            let link = host.links.iter_mut().find(|link| &*link.name == name).unwrap();
            link.addresses = nets.collect();
            link.addresses.sort();
        }
        for choice in choices {
            check(&world(choice.clone(), internal, &[], host.clone()), want, &[]);
        }
    };
    let all = &[AddressChoice::Auto, eth0(), both(), reach(), range()];
    // What kube-vip and keepalived have put there is not the node's, with a Node that says what is, and without.
    check(all, &["192.168.1.11"], &["192.168.1.2/32", "192.168.1.11/24"], &[], &["192.168.1.11@eth0"]);
    check(all, &[], &["192.168.1.2/32", "192.168.1.11/24"], &[], &["192.168.1.11@eth0"]);
    check(all, &[], &["~192.168.1.2/24", "192.168.1.11/24"], &[], &["192.168.1.11@eth0"]);
    check(all, &["192.168.1.11"], &["192.168.1.2/24", "~192.168.1.11/24"], &[], &["192.168.1.11@eth0"]);
    // Nor is what a host is another one by tomorrow.
    check(all, &[], &["~2001:db8::1/64", "2001:db8::b/64"], &[], &["2001:db8::b@eth0"]);
    check(all, &[], &["~2001:db8::1/64", "2001:db8::b/128"], &[], &["2001:db8::b@eth0"]);
    // Where there is nothing else it does.
    check(all, &[], &["192.168.1.9/32", "2001:db8::1/128"], &[], &["192.168.1.9@eth0", "2001:db8::1@eth0"]);
    check(all, &[], &["~2001:db8::1/64"], &[], &["2001:db8::1@eth0"]);
    check(all, &[], &["~192.168.1.2/24", "192.168.1.11/32"], &[], &["192.168.1.11@eth0"]);
    // Of several links that fit it is the InternalIP's, else the first, whatever its addresses are at the moment.
    let (here, there) = (&["192.168.1.2/24"], &["192.168.7.2/24"]);
    check(&[both(), range()], &["192.168.7.2"], here, there, &["192.168.7.2@eth1"]);
    check(&[both(), range()], &[], &["~2001:db8::1/64"], &["2001:db8:1::1/64"], &["2001:db8::1@eth0"]);
    check(&[both(), range()], &["10.9.9.9"], here, there, &["192.168.1.2@eth0"]);
    // On a link that does not fit it is of no use.
    check(&[eth0(), reach()], &["192.168.7.2"], here, there, &["192.168.1.2@eth0"]);
}

/// As a network manager does it: everything off, then back on.
#[test]
fn an_address_that_is_missing_for_a_moment_stays_chosen() {
    let before = world(AddressChoice::Auto, &["192.0.2.10"], &[], host());
    let now = Instant::now();
    let mut flushed = host();
    flushed.links.iter_mut().filter(|link| *link.name == *"eth0").for_each(|link| link.addresses.clear());
    flushed.default_routes.clear();
    let mut during = before.clone();
    during.programmed(Programmed::default(), Arc::new(flushed.clone()), now);
    let chosen = |world: &World, at| choose(world, at).uplinks;
    assert_eq!(chosen(&during, now), chosen(&before, now));
    assert_eq!(choose(&during, now).until, Some(now + BRIEFLY));
    assert_eq!(chosen(&during, now + BRIEFLY), PerFamily { v4: None, v6: None }, "it did not come back");
    let mut after = during.clone();
    after.programmed(Programmed::default(), Arc::new(host()), now + BRIEFLY / 2);
    assert_eq!(chosen(&after, now + BRIEFLY / 2), chosen(&before, now));
    assert_eq!(choose(&after, now + BRIEFLY / 2).until, None, "nothing is waited for");
    // A link that went down, or that has another address now, is no longer what it was.
    let mut down = flushed.clone();
    down.links.iter_mut().for_each(|link| link.up = false);
    let mut moved = flushed;
    moved
        .links
        .iter_mut()
        .filter(|link| *link.name == *"eth0")
        .for_each(|link| link.addresses = vec!["192.0.2.77/24".parse().unwrap()]);
    for (host, address) in [(down, None), (moved, Some("192.0.2.77"))] {
        let mut changed = before.clone();
        changed.programmed(Programmed::default(), Arc::new(host), now);
        let found = chosen(&changed, now).v4.map(|uplink| uplink.address.to_string());
        assert_eq!(found.as_deref(), address);
    }
}
