//! The planner's values; what they do to packets is shown in kernel/tests/nat.rs.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tartan_model::{Config, Encryption, FabricMode, Features, IpsecConfig, PortMapping, Protocol, WireguardConfig};
use tartan_netstate::nft::Rule;
use tartan_netstate::{Key, Mac, Object, Owner, PodNetns, diff};
use tartan_policy::verdicts::Tables;

use super::*;

fn given() -> Given {
    Given {
        fabric_address: PerFamily::first_of(["10.244.1.0".parse().unwrap(), "fd00:1::".parse().unwrap()]),
        local_ranges: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()],
        non_masquerade: vec!["192.168.0.0/16".parse().unwrap()],
        masquerade: true,
        between_nodes: BTreeSet::from([8472, 8285]),
        unwraps_at: BTreeSet::from([8472, 8285]),
        by_ipsec: false,
        encrypted_at: BTreeSet::new(),
        encrypts_from: PerFamily::default(),
        strict: false,
        nodes_in_pools: BTreeSet::new(),
    }
}

fn mapping(text: &str) -> PortMapping {
    let [protocol, host_ip, host_port, container_port] = text.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    PortMapping {
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => Protocol::Sctp,
        },
        host_ip: host_ip.parse().ok(),
        host_port: host_port.parse().unwrap(),
        container_port: container_port.parse().unwrap(),
    }
}

fn pod(n: u8, mappings: &[&str]) -> Attachment {
    let addresses = [format!("10.244.1.{n}").parse().unwrap(), format!("fd00:1::{n:x}").parse().unwrap()];
    Attachment {
        id: format!("c{n}/eth0").into(),
        container: format!("c{n}").into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: u64::from(n), path: format!("/run/netns/c{n}").into() },
        pod_namespace: "default".into(),
        pod_name: format!("p{n}").into(),
        addresses: PerFamily::first_of(addresses),
        mac: Mac([2, 0, 0, 0, 0, n]),
        ports: mappings.iter().copied().map(mapping).collect(),
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

fn world(pods: &[Attachment]) -> World {
    let mut world = World::new("n1".into(), Features::default());
    pods.iter().cloned().for_each(|pod| world.attach(pod));
    world
}

/// The elements and sysctls pods own, as text.
fn pod_owned(state: &State) -> BTreeSet<String> {
    let text = |(key, entry): (&Key, &tartan_netstate::Entry)| match (&entry.owner, key, &entry.object) {
        (Owner::Pod(_), Key::NftElement { set, key }, Object::NftElement(data)) => {
            let data: String = data.0.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("{set} {key} {data}").trim_end().to_owned())
        }
        (Owner::Pod(_), Key::LinkSysctl { name, .. }, Object::Sysctl(value)) => Some(format!("{name}={value}")),
        _ => None,
    };
    state.iter().filter_map(text).collect()
}

#[test]
fn elements_of_a_pod() {
    let check = |mappings: &[&str], wanted: &[&str]| {
        let mut planner = Nftables::default();
        let found = pod_owned(planner.plan(&world(&[pod(5, mappings)]), &given()));
        assert_eq!(found, wanted.iter().map(|line| (*line).to_owned()).collect(), "{mappings:?}");
    };
    let (pod4, pod6) = ("0af40105", "fd000001000000000000000000000005");
    let hairpin4 = format!("hairpin4 {pod4}{pod4}");
    let hairpin6 = format!("hairpin6 {pod6}{pod6}");
    check(&[], &[]);
    check(
        &["tcp - 8080 80"],
        &[
            &hairpin4,
            &hairpin6,
            &format!("hostports4 060000001f900000 {pod4}00500000"),
            &format!("hostports6 060000001f900000 {pod6}00500000"),
            "ipv4/route_localnet=1",
        ],
    );
    check(&["udp 192.0.2.1 53 5353"], &[&hairpin4, &format!("hostports_at4 c00002011100000000350000 {pod4}14e90000")]);
    check(
        &["sctp 2001:db8::1 9 9"],
        &[&hairpin6, &format!("hostports_at6 20010db80000000000000000000000018400000000090000 {pod6}00090000")],
    );
    check(
        &["tcp 0.0.0.0 80 80"],
        &[&hairpin4, &format!("hostports4 0600000000500000 {pod4}00500000"), "ipv4/route_localnet=1"],
    );
    check(&["tcp :: 80 80"], &[&hairpin6, &format!("hostports6 0600000000500000 {pod6}00500000")]);
    check(
        &["tcp 127.0.0.1 80 80"],
        &[&hairpin4, &format!("hostports_at4 7f0000010600000000500000 {pod4}00500000"), "ipv4/route_localnet=1"],
    );
}

#[test]
fn a_port_two_pods_want_stays_with_the_first_and_goes_to_the_other_when_it_leaves() {
    let mut planner = Nftables::default();
    let mut world = world(&[pod(5, &["tcp - 80 80"]), pod(6, &["tcp - 80 8080"])]);
    planner.plan(&world, &given());
    let named: BTreeSet<_> = planner.conflicts().iter().map(|conflict| conflict.lost.to_string()).collect();
    assert_eq!(named, BTreeSet::from(["pod c6/eth0".to_owned()]));
    world.detach("c5/eth0", std::time::Instant::now());
    let owned = pod_owned(planner.plan(&world, &given()));
    assert!(owned.contains("hostports4 0600000000500000 0af401061f900000"), "{owned:?}");
    assert_eq!(planner.conflicts(), []);
}

#[test]
fn a_pod_adds_no_rule() {
    let (mut before, mut after) = (Nftables::default(), Nftables::default());
    let full = world(&[pod(5, &["tcp - 80 80", "udp 127.0.0.1 53 53"])]);
    let change = diff(before.plan(&world(&[]), &given()), after.plan(&full, &given()), |_| true);
    let elements = |key: &Key| matches!(key, Key::NftElement { .. } | Key::LinkSysctl { .. });
    assert!(change.steps.iter().all(|step| elements(step.key()) && *step.owner() == Owner::Pod("c5/eth0".into())));
}

fn rules_of(state: &State, chain: &str) -> Vec<Rule> {
    match state.get(&Key::NftChain { chain: chain.into() }).map(|entry| &entry.object) {
        Some(Object::NftChain(chain)) => chain.rules.clone(),
        other => panic!("{other:?}"),
    }
}

/// One node's word must not leave the pods of all others a few hundred ports to ask from.
#[test]
fn udp_leaves_from_ports_at_which_nothing_between_nodes_arrives_here() {
    let mut planner = Nftables::default();
    let mut check = |config: Config, given: &Given, first: u16, last: u16| {
        let mut world = world(&[]);
        world.config = config.into();
        let rules = rules_of(planner.plan(&world, given), "nat_postrouting");
        assert_eq!(rules, rules_of(Nftables::default().plan(&world, given), "nat_postrouting"), "the memo's law");
        let around = [first - 1].into_iter().chain(last.checked_add(1)).collect();
        let wanted = masquerade::rules_of(Family::V4, &around);
        assert!(wanted.iter().all(|rule| rules.contains(rule)), "{first} to {last}: {rules:?}");
    };
    let config = Config::default;
    check(config(), &given(), 8473, 65535);
    let named_by_others = (1..128).map(|n| 512 * n).collect();
    check(config(), &Given { between_nodes: named_by_others, ..given() }, 8473, 65535);
    // What is heard here is another matter, whoever wants it.
    check(config(), &Given { unwraps_at: BTreeSet::from([8472, 50000]), ..given() }, 8473, 49999);
    check(config(), &Given { encrypted_at: BTreeSet::from([50000]), ..given() }, 8473, 49999);
    // And what is going to be.
    check(config(), &Given { unwraps_at: BTreeSet::new(), ..given() }, 8473, 65535);
    check(Config { udp_port: 60000, ..config() }, &given(), 8473, 59999);
    let by_wireguard = Config { fabric: FabricMode::Wireguard, ..config() };
    check(by_wireguard.clone(), &given(), 8473, 51819);
    let at_the_end = WireguardConfig { port: 65533, ..config().wireguard };
    check(Config { wireguard: at_the_end, ..by_wireguard }, &given(), 8473, 65532);
    let ipsec = IpsecConfig { port: Some(45000), ..config().ipsec };
    check(Config { ipsec: ipsec.clone(), ..config() }, &given(), 8473, 65535);
    check(Config { encryption: Encryption::Ipsec, ipsec, ..config() }, &given(), 8473, 44999);
}

#[test]
fn without_masquerade_nothing_masquerades() {
    let counts = |given: &Given| {
        let mut planner = Nftables::default();
        let state = planner.plan(&world(&[]), given);
        ["nat_postrouting", "towards_pods"].map(|chain| rules_of(state, chain).len())
    };
    assert_eq!(counts(&given()), [5, 4]);
    assert_eq!(counts(&Given { masquerade: false, ..given() }), [1, 4]);
    assert_eq!(counts(&Given { masquerade: false, fabric_address: PerFamily::default(), ..given() }), [1, 0]);
}

#[test]
fn overlapping_ranges_become_disjoint_intervals() {
    let check = |ranges: &[&str], wanted: &[&str]| {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut planner = Nftables::default();
        let given = Given { cluster_ranges: ranges, ..Given::default() };
        let of_inside = |key: &Key| match key {
            Key::NftElement { set, key } if set.starts_with("inside") => Some(key.to_string()),
            _ => None,
        };
        let found: Vec<_> = planner.plan(&world(&[]), &given).iter().filter_map(|(key, _)| of_inside(key)).collect();
        assert_eq!(found, wanted, "{given:?}");
    };
    let multicast6 = "ff000000000000000000000000000000-";
    check(&[], &["e0000000-f0000000", multicast6]);
    check(
        &["10.0.0.0/8", "10.244.0.0/16", "10.244.3.0/24", "11.0.0.0/8"],
        &["0a000000-0c000000", "e0000000-f0000000", multicast6],
    );
    check(&["0.0.0.0/0", "::/0"], &["00000000-", "00000000000000000000000000000000-"]);
}

#[test]
fn the_head_names_every_chain_that_hangs_on_a_hook() {
    let given = Given { encrypted_at: BTreeSet::from([51820]), strict: true, ..given() };
    let tables = Tables { judged: true, ..Tables::default() };
    let mut state = Nftables::default().plan(&world(&[]), &given).clone();
    let enforce = policy::Mode::Enforce;
    let of_policy = policy::Policy::default().plan(&world(&[]), &tables, enforce, &given.between_nodes).clone();
    state.merge(&of_policy, &mut Vec::new());
    let hung = |(key, entry): (&Key, &tartan_netstate::Entry)| {
        let (Key::NftChain { chain }, Object::NftChain(it)) = (key, &entry.object) else { return None };
        let hook = it.hook?;
        Some([chain.to_string(), format!("{:?}", hook.point).to_lowercase(), hook.priority.to_string()])
    };
    let head = include_str!("mod.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().take(3).map(str::to_owned).collect();
        <[String; 3]>::try_from(words).ok().filter(|[.., priority]| priority.parse::<i32>().is_ok())
    };
    let told: BTreeSet<_> = head.filter_map(row).collect();
    assert_eq!(told, state.iter().filter_map(hung).collect());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The memo's law.
    #[test]
    fn planning_with_a_memo_equals_planning_anew(
        steps in prop::collection::vec((1..6_u8, 0..4_u16, any::<bool>()), 1..12)
    ) {
        let mut planner = Nftables::default();
        let mut world = world(&[]);
        let mut given = given();
        for (n, port, flip) in steps {
            let text = format!("tcp - {port} 80");
            match (flip, port) {
                (true, 0) => given.masquerade = !given.masquerade,
                (true, _) => world.detach(&format!("c{n}/eth0"), std::time::Instant::now()),
                (false, 0) => world.attach(pod(n, &[])),
                (false, _) => world.attach(pod(n, &[&text])),
            }
            let mut anew = Nftables::default();
            prop_assert_eq!(planner.plan(&world, &given), anew.plan(&world, &given));
            prop_assert_eq!(planner.conflicts(), anew.conflicts());
        }
    }
}
