//! Requests and what becomes of them, on a node n1 that owns 10.244.1.0/26 and fd00:244:1::/122.

use std::collections::BTreeMap;

use serde_json::json;
use tartan_api::cni::{NetConf, NetnsFile, PodName, Version};
use tartan_datapath::nftables::{Given, Nftables};
use tartan_datapath::pod::{Mtu, Pods, host_mac, pod_mac};
use tartan_ipam::Memo;
use tartan_model::{
    Block, Features, Kind, Limit, Limits, Node, PerFamily, Pool, PortMapping, Protocol, Selector, StoreEvent,
};
use tartan_netstate::Mac;

use super::*;

mod bad;
mod spec;

/// Knows everything, and has an address for every pod.
pub(crate) fn whole(now: Instant) -> World {
    let mut world = World::new("n1".into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
    for kind in Kind::ALL {
        world.store(StoreEvent::Init(kind), now);
        world.store(StoreEvent::Synced(kind), now);
    }
    let node = Node {
        name: "n1".into(),
        uid: "uid-1".into(),
        internal_ips: vec!["192.0.2.1".parse().unwrap()],
        external_ips: Vec::new(),
        pod_cidrs: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        placement: Default::default(),
    };
    world.nodes.insert("n1".into(), Arc::new(node));
    for (name, pool, range, block_size) in
        [("v4", "10.244.0.0/16", "10.244.1.0/26", 26), ("v6", "fd00:244::/48", "fd00:244:0:1::/122", 122)]
    {
        let pool = Pool {
            name: name.into(),
            cidr: pool.parse().unwrap(),
            block_size,
            nodes: Selector::all(),
            namespaces: Selector::all(),
            disabled: false,
            encapsulation: None,
        };
        world.pools.insert(name.into(), Arc::new(pool));
        let cidr = range.parse().unwrap();
        let block = Block { cidr, pool: name.into(), node: "n1".into(), node_uid: "uid-1".into(), parts: Vec::new() };
        world.blocks.insert(cidr, Arc::new(block));
    }
    world.programmed.read = true;
    world
}

/// A runtime's call about container `container`, in the newest version.
pub(crate) fn request(command: Command, container: &str) -> CniRequest {
    CniRequest {
        command,
        version: Version::NEWEST,
        container: container.into(),
        ifname: "eth0".into(),
        netns: Some(NetnsFile { path: format!("/run/netns/{container}"), dev: 4, ino: container.len() as u64 }),
        pod: PodName { namespace: "shop".into(), name: container.into(), uid: String::new() },
        netconf: netconf(&json!({})),
        given: None,
    }
}

/// A usual configuration with these keys over it.
pub(crate) fn netconf(keys: &Value) -> NetConf {
    let mut netconf = json!({"cniVersion": "1.1.0", "name": "tartan", "type": "tartan-cni"});
    for (key, value) in keys.as_object().unwrap() {
        netconf[key] = value.clone();
    }
    serde_json::from_value(netconf).unwrap()
}

fn add_with(world: &World, container: &str, keys: &Value) -> Result<Attachment, CniError> {
    let request = CniRequest { netconf: netconf(keys), ..request(Command::Add, container) };
    match decide(world, &mut Memo::default(), &request, Instant::now())? {
        Decision::Attach(attachment) => Ok(attachment),
        other => panic!("ADD came to {other:?}"),
    }
}

/// Adds, as the loop does once the kernel has everything.
pub(crate) fn attached(world: &mut World, container: &str, keys: &Value) -> Attachment {
    let attachment = Attachment { answered: true, ..add_with(world, container, keys).unwrap() };
    world.attach(attachment.clone());
    let (mut pods, mut nftables) = (Pods::default(), Nftables::default());
    world.programmed.mirror = pods.plan(world, Mtu { link: 1500, route: 1450 }).clone();
    world.programmed.mirror.merge(nftables.plan(world, &Given::default()), &mut Vec::new());
    attachment
}

#[test]
fn another_plugins_addresses_are_taken_where_a_pod_can_have_them() {
    let mut world = whole(Instant::now());
    let used = attached(&mut world, "a", &json!({})).addresses.iter().next().unwrap().1.to_string();
    let keys = json!({"ipam": {"type": "host-local"}, "runtimeConfig": {"ips": ["10.244.1.9"], "ipRanges": []}});
    let given = |world: &World, ips: &[&str]| {
        let ip = |address: &&str| tartan_api::cni::Ip { address: (*address).into(), ..Default::default() };
        let given = Some(tartan_api::cni::Success { ips: ips.iter().map(ip).collect(), ..Default::default() });
        let request = CniRequest { netconf: netconf(&keys), given, ..request(Command::Add, "bb") };
        match decide(world, &mut Memo::default(), &request, Instant::now()) {
            Ok(Decision::Attach(it)) => it.addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(" "),
            Ok(other) => panic!("{other:?}"),
            Err(error) => format!("{} {}", error.code, error.msg),
        }
    };
    let there = format!("{used}/24");
    let taken = format!(
        "102 ipam.type host-local: the pod asks for {used}: pod shop/a on this node has it; delete that pod first, or ask for another address"
    );
    for (ips, expected) in [
        (&["10.244.1.5/24"][..], "10.244.1.5"),
        (&["10.244.1.5/24", "fd00:244:0:1::5/64"], "10.244.1.5 fd00:244:0:1::5"),
        (&[], "7 ipam.type host-local gave no address"),
        (&["10.244.1.5/24", "10.244.1.6/24"], "7 ipam.type host-local: 10.244.1.5 and 10.244.1.6 are both ipv4"),
        (&["much"], "7 ipam.type host-local: \"much\" is no IP address"),
        (&[&there], &taken),
        (
            &["198.51.100.7/24"],
            "102 ipam.type host-local: the pod asks for 198.51.100.7: it is not in a range of this node; ask for an address of 10.244.1.0/26",
        ),
    ] {
        assert_eq!(given(&world, ips), expected);
    }
    let config = tartan_model::Config { fabric: tartan_model::FabricMode::None, ..Default::default() };
    world.config = Arc::new(config);
    assert_eq!(given(&world, &["198.51.100.7/24"]), "198.51.100.7", "others carry packets to it");
    assert_eq!(given(&world, &[&there]), taken);
}

fn ports(keys: &Value) -> Value {
    json!({"runtimeConfig": {"portMappings": keys}})
}

#[test]
fn an_attachment_is_what_was_asked_for() {
    let world = whole(Instant::now());
    let found = add_with(
        &world,
        "a",
        &json!({"runtimeConfig": {
            "mac": "02:00:5e:10:00:01",
            "ips": ["10.244.1.9/24", "fd00:244:0:1::9"],
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
            ],
        }}),
    )
    .unwrap();
    let port = |protocol, host_ip: Option<&str>, host_port, container_port| PortMapping {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port,
    };
    let expected = Attachment {
        id: "a/eth0".into(),
        container: "a".into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: 1, path: "/run/netns/a".into() },
        pod_namespace: "shop".into(),
        pod_name: "a".into(),
        addresses: PerFamily::first_of(["10.244.1.9".parse().unwrap(), "fd00:244:0:1::9".parse().unwrap()]),
        mac: "02:00:5e:10:00:01".parse::<Mac>().unwrap(),
        ports: vec![port(Protocol::Tcp, None, 8080, 80), port(Protocol::Udp, Some("192.0.2.1"), 53, 5353)],
        limits: Default::default(),
        network: None,
        answered: false,
    };
    assert_eq!(found, expected);
}

#[test]
fn the_mac_is_the_same_after_every_restart() {
    let world = whole(Instant::now());
    let mac = |container| add_with(&world, container, &json!({})).unwrap().mac;
    assert_eq!(mac("a"), mac("a"));
    assert_ne!(mac("a"), mac("b"));
    assert_eq!(mac("a"), pod_mac("a/eth0"));
}

#[test]
fn an_unfinished_attachment_keeps_its_addresses() {
    let now = Instant::now();
    let mut world = whole(now);
    let first = add_with(&world, "a", &json!({})).unwrap();
    world.attach(first.clone());
    world.attach(add_with(&world, "b", &json!({})).unwrap());
    assert_eq!(add_with(&world, "a", &json!({})).unwrap(), first);
    let other = add_with(&world, "a", &json!({"runtimeConfig": {"ips": ["10.244.1.33"]}})).unwrap();
    assert_eq!(other.addresses.v4, Some("10.244.1.33".parse().unwrap()), "another address was asked for");
}

/// Whether a second pod may have these ports beside a first one.
#[track_caller]
fn check_ports(first: &Value, second: &Value, refused: Option<&str>) {
    let mut world = whole(Instant::now());
    attached(&mut world, "first", &ports(first));
    let found = add_with(&world, "second", &ports(second));
    assert_eq!(found.err().map(|error| (error.code, error.msg)), refused.map(|msg| (code::PORT_TAKEN, msg.into())));
}

#[test]
fn a_port_of_the_node_belongs_to_one_pod() {
    let port = |protocol: &str, host_ip: &str, host_port: u16| json!([{"hostPort": host_port, "containerPort": 80, "protocol": protocol, "hostIP": host_ip}]);
    let taken = "port 80/tcp of this node belongs to pod shop/first";
    let taken_at = "port 80/tcp at 192.0.2.1 of this node belongs to pod shop/first";
    check_ports(&port("tcp", "", 80), &port("tcp", "", 80), Some(taken));
    check_ports(&port("tcp", "", 80), &port("TCP", "192.0.2.1", 80), Some(taken));
    check_ports(&port("tcp", "192.0.2.1", 80), &port("tcp", "", 80), Some(taken_at));
    check_ports(&port("tcp", "192.0.2.1", 80), &port("tcp", "0.0.0.0", 80), Some(taken_at));
    check_ports(&port("tcp", "192.0.2.1", 80), &port("tcp", "192.0.2.1", 80), Some(taken_at));
    check_ports(&port("tcp", "192.0.2.1", 80), &port("tcp", "192.0.2.2", 80), None);
    check_ports(&port("tcp", "192.0.2.1", 80), &port("tcp", "::", 80), None);
    check_ports(&port("tcp", "", 80), &port("udp", "", 80), None);
    check_ports(&port("tcp", "", 80), &port("sctp", "", 80), None);
    check_ports(&port("tcp", "", 80), &port("tcp", "", 81), None);
}

#[test]
fn a_pod_that_comes_back_may_have_its_port_again() {
    let mut world = whole(Instant::now());
    let keys = ports(&json!([{"hostPort": 80, "containerPort": 80}]));
    let unfinished = add_with(&world, "a", &keys).unwrap();
    world.attach(unfinished.clone());
    assert_eq!(add_with(&world, "a", &keys).unwrap(), unfinished);
    world.detach("a/eth0", Instant::now());
    assert!(add_with(&world, "b", &keys).is_ok());
}

#[test]
fn a_result_shows_both_ends_as_the_kernel_has_them() {
    let mut world = whole(Instant::now());
    let attachment = attached(&mut world, "a", &json!({"runtimeConfig": {"ips": ["10.244.1.9", "fd00:244:0:1::9"]}}));
    let asked = CniRequest { netconf: netconf(&json!({"dns": {"search": ["shop"]}})), ..request(Command::Add, "a") };
    let host = tartan_datapath::pod::host_link("a/eth0").to_string();
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": host, "mac": host_mac("a/eth0").to_string(), "mtu": 1500},
            {"name": "eth0", "mac": pod_mac("a/eth0").to_string(), "mtu": 1500, "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"address": "10.244.1.9/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00:244:0:1::9/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450},
            {"dst": "::/0", "gw": "fe80::1", "mtu": 1450},
        ],
        "dns": {"search": ["shop"]},
    });
    assert_eq!(result(&world, &attachment, &asked).unwrap(), expected);
}

#[test]
fn a_result_goes_on_from_the_one_before_in_the_chain() {
    let mut world = whole(Instant::now());
    let attachment = attached(&mut world, "a", &json!({}));
    let before = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:09", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "198.51.100.7/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["198.51.100.1"]},
    });
    let keys = json!({"cniVersion": "1.0.0", "prevResult": before, "dns": {"search": ["shop"]}});
    let asked = CniRequest { version: Version::V1_0_0, netconf: netconf(&keys), ..request(Command::Add, "a") };
    let found = result(&world, &attachment, &asked).unwrap();
    assert_eq!(found["interfaces"][0], before["interfaces"][0]);
    assert_eq!(found["interfaces"][2]["name"], "eth0");
    assert_eq!(found["ips"][0], before["ips"][0]);
    assert_eq!(found["ips"][1]["interface"], 2);
    assert_eq!(found["routes"].as_array().map(Vec::len), Some(3));
    assert_eq!(found["dns"], before["dns"]);
}

#[test]
fn a_pod_is_limited_as_its_runtime_says() {
    let limit = |rate_bits, burst_bits| Some(Limit { rate_bits, burst_bits });
    for (asked, to_pod, from_pod) in [
        (json!({}), None, None),
        (json!({"ingressRate": 0, "ingressBurst": 0}), None, None),
        (json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 1000}), limit(8000, 80), limit(1000, 0)),
        (json!({"EgressRate": 10_000_000, "EgressBurst": u32::MAX}), None, limit(10_000_000, u32::MAX.into())),
    ] {
        let netconf = json!({"runtimeConfig": {"bandwidth": asked}});
        let attachment = add_with(&whole(Instant::now()), "a", &netconf).unwrap();
        assert_eq!(attachment.limits.as_deref().copied().unwrap_or_default(), Limits { to_pod, from_pod }, "{netconf}");
    }
}
