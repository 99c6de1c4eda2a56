//! Flannel's annotations as its releases write them: what they say, what this node makes of them, and what it says itself.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tartan_fabric::flannel::{lower, raise};
use tartan_fabric::{Memo, Out, Owned, plan};
use tartan_model::{
    Advert, Attachment, Config, Endpoint, FabricMode, Family, Features, Flannel, FlannelBackend, Heard, Host, HostLink,
    Node, PerFamily, Programmed, Said, World,
};
use tartan_netstate::{Key, Mac, Netns, Object, Owner, PodNetns};

/// As flannel v0.28 annotates a dual-stack node.
const VXLAN: &[(&str, &str)] = &[
    ("backend-data", r#"{"VNI":1,"VtepMAC":"4a:1f:3e:0c:55:d2"}"#),
    ("backend-type", "vxlan"),
    ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"9e:77:00:ab:3c:01"}"#),
    ("kube-subnet-manager", "true"),
    ("public-ip", "192.0.2.2"),
    ("public-ipv6", "2001:db8::2"),
];
/// The same with host-gw.
const HOST_GW: &[(&str, &str)] = &[
    ("backend-data", "null"),
    ("backend-type", "host-gw"),
    ("backend-v6-data", "null"),
    ("kube-subnet-manager", "true"),
    ("public-ip", "192.0.2.2"),
    ("public-ipv6", "2001:db8::2"),
];
const CIDRS: [[&str; 2]; 2] = [["10.244.1.0/24", "fd00:10:244:1::/64"], ["10.244.2.0/24", "fd00:10:244:2::/64"]];

fn flannel(backend: FlannelBackend) -> Flannel {
    let networks =
        PerFamily { v4: Some("10.244.0.0/16".parse().unwrap()), v6: Some("fd00:10:244::/56".parse().unwrap()) };
    Flannel { networks, backend }
}

fn vxlan() -> Flannel {
    flannel(FlannelBackend::Vxlan { vni: 1, port: 8472, direct: false })
}

fn node(number: usize, annotations: &[(&str, &str)]) -> Node {
    let annotation = |(key, value): &(&str, &str)| (format!("flannel.alpha.coreos.com/{key}"), (*value).to_owned());
    Node {
        name: format!("n{number}").into(),
        uid: format!("uid-n{number}").into(),
        internal_ips: addresses(number).to_vec(),
        external_ips: Vec::new(),
        pod_cidrs: CIDRS[number - 1].iter().map(|cidr| cidr.parse().unwrap()).collect(),
        labels: BTreeMap::new(),
        annotations: annotations.iter().map(annotation).collect(),
        placement: Default::default(),
    }
}

fn addresses(number: usize) -> [IpAddr; 2] {
    [format!("192.0.2.{number}"), format!("2001:db8::{number}")].map(|ip| ip.parse().unwrap())
}

/// Recorded annotations with some of them changed, or taken away.
fn but(recorded: &[(&'static str, &'static str)], changes: &[(&'static str, Option<&'static str>)]) -> Node {
    let mut all: BTreeMap<&str, &str> = recorded.iter().copied().collect();
    for (key, value) in changes {
        match value {
            Some(value) => all.insert(key, value),
            None => all.remove(key),
        };
    }
    node(2, &all.into_iter().collect::<Vec<_>>())
}

/// What the Node says: where to send, or what is wrong.
fn check(flannel: &Flannel, node: &Node, want: Result<&[&str], &str>) {
    let said = lower(flannel, node).map(|lowered| match lowered.wrong {
        Some(wrong) => {
            assert!(lowered.advert.accepts.is_empty() && lowered.advert.sends.is_empty());
            Err(format!("{}: {}", wrong.field, wrong.message))
        }
        None => {
            let mac = |end: &Endpoint| end.mac.map(|mac| format!(" {mac}")).unwrap_or_default();
            let text = |end: &Endpoint| format!("{} {}{}", end.instance, end.address, mac(end));
            Ok(lowered.advert.accepts.iter().map(text).collect::<Vec<_>>())
        }
    });
    match (said, want) {
        (Some(Ok(said)), Ok(want)) => assert_eq!(said, want, "{:?}", node.annotations),
        (Some(Err(said)), Err(want)) => assert!(said.contains(want), "{said}\nwanted: {want}"),
        (said, want) => panic!("{said:?}, wanted {want:?}"),
    }
}

#[test]
fn annotations_say_where_to_send() {
    let (v4, v6) = (
        "vxlan/ipv4/vni1/port8472 192.0.2.2 4a:1f:3e:0c:55:d2",
        "vxlan/ipv6/vni1/port8472 2001:db8::2 9e:77:00:ab:3c:01",
    );
    check(&vxlan(), &but(VXLAN, &[]), Ok(&[v4, v6]));
    check(&vxlan(), &but(VXLAN, &[("public-ipv6", None), ("backend-v6-data", None)]), Ok(&[v4]));
    check(&vxlan(), &but(VXLAN, &[("public-ip", None), ("backend-data", None)]), Ok(&[v6]));
    let direct = flannel(FlannelBackend::Vxlan { vni: 1, port: 8472, direct: true });
    check(&direct, &but(VXLAN, &[]), Ok(&["host-gw 192.0.2.2", v4, v6]));
    let v4_only = Flannel { networks: PerFamily { v6: None, ..vxlan().networks }, ..vxlan() };
    check(&v4_only, &but(VXLAN, &[]), Ok(&[v4]));
    let host_gw = flannel(FlannelBackend::HostGw);
    check(&host_gw, &but(HOST_GW, &[]), Ok(&["host-gw 192.0.2.2"]));
    check(&host_gw, &but(HOST_GW, &[("public-ip", None)]), Ok(&["host-gw 2001:db8::2"]));

    check(
        &vxlan(),
        &but(VXLAN, &[("backend-type", Some("wireguard"))]),
        Err("'wireguard' is not the backend of net-conf"),
    );
    check(&vxlan(), &but(HOST_GW, &[]), Err("'host-gw' is not the backend of net-conf.json, vxlan"));
    check(
        &flannel(FlannelBackend::Other("udp".into())),
        &but(VXLAN, &[]),
        Err("has the backend udp, which Tartan does not"),
    );
    check(&vxlan(), &but(VXLAN, &[("public-ip", Some("here"))]), Err("/public-ip]: 'here' is no ipv4 address"));
    check(&vxlan(), &but(VXLAN, &[("public-ip", Some("2001:db8::2"))]), Err("is no ipv4 address"));
    check(&vxlan(), &but(VXLAN, &[("public-ip", None), ("public-ipv6", None)]), Err("there is none"));
    for (data, want) in [
        ("null", "/backend-data]: 'null'"),
        ("{", "/backend-data]: '{'"),
        (r#"{"VNI":1}"#, "missing field `VtepMAC`"),
        (r#"{"VNI":7,"VtepMAC":"4a:1f:3e:0c:55:d2"}"#, "VNI 7 is not that of net-conf.json"),
        (r#"{"VNI":1,"VtepMAC":"4a:1f"}"#, "is not a MAC address"),
        (r#"{"VNI":1,"VtepMAC":"01:1f:3e:0c:55:d2"}"#, "is no address of one device"),
        (r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#, "is no address of one device"),
    ] {
        check(&vxlan(), &but(VXLAN, &[("backend-data", Some(data))]), Err(want));
    }
    assert_eq!(lower(&vxlan(), &but(VXLAN, &[("kube-subnet-manager", None)])), None);
    assert_eq!(lower(&vxlan(), &but(VXLAN, &[("kube-subnet-manager", Some("false"))])), None);
    assert_eq!(lower(&vxlan(), &node(2, &[])), None);
}

/// Two nodes; this one at rest, with everything in its kernel and its word heard.
struct Fixture {
    world: World,
    owned: Owned,
    now: Instant,
}

impl Fixture {
    fn new(fabric: FabricMode, spoken: &Flannel, own: &[(&str, &str)], theirs: &[(&str, &str)]) -> Fixture {
        let mut world = World::new("n1".into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
        world.config = Arc::new(Config { fabric, ..Config::default() });
        let with_length = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 24 } else { 64 }).parse().unwrap();
        let link = HostLink {
            name: "eth0".into(),
            kind: "".into(),
            mtu: 1500,
            up: true,
            loopback: false,
            addresses: addresses(1).iter().map(with_length).collect(),
            accept_ra: 0,
        };
        world.host = Arc::new(Host { links: vec![link], ..Host::default() });
        world.flannels.insert("kube-flannel/kube-flannel-cfg".into(), Arc::new(spoken.clone()));
        world.nodes.insert("n1".into(), Arc::new(node(1, own)));
        world.nodes.insert("n2".into(), Arc::new(node(2, theirs)));
        let blocks = world.local_node().unwrap().pod_cidrs.clone();
        let fabric_addresses = PerFamily::first_of(blocks.iter().map(|block| block.network()));
        let owned = Owned { blocks, fabric_addresses, mtu_in_force: None };
        let mut fixture = Fixture { world, owned, now: Instant::now() };
        fixture.at_rest();
        fixture
    }

    fn plan(&self) -> Out {
        plan(&mut Memo::default(), &self.world, &self.owned, self.now).clone()
    }

    fn at_rest(&mut self) {
        for _ in 0..8 {
            let out = self.plan();
            self.world.asked = 1;
            self.world.programmed =
                Programmed { mirror: out.state, read: true, generation: 1, ..Programmed::default() };
            self.hear(out.advert.unwrap());
            self.now += Duration::from_secs(1);
        }
    }

    fn hear(&mut self, advert: Advert) {
        let (name, advert) = (advert.node.clone(), Arc::new(advert));
        if name == self.world.local {
            self.world.said = Some(Said::heard(advert.clone()));
        }
        self.world.adverts.insert(name, Heard { advert, at: self.now, sends_changed: self.now });
    }

    /// What n2 says when Tartan has taken it over, which knows its device by the MACs of its annotations.
    fn taken_over(&self, heartbeat: u64) -> Advert {
        let lowered = lower(self.world.flannel().unwrap(), &self.world.nodes["n2"]).unwrap();
        Advert { mtu: 1430, edition: 1, heartbeat, acknowledges: Some([].into()), ..lowered.advert }
    }

    /// What carries each family to n2, and how: neighbours, forwarding entries and routes there.
    fn way(&self) -> (Vec<String>, Vec<String>) {
        let out = self.plan();
        let said: Vec<&String> = out.conditions.iter().map(|condition| &condition.message).collect();
        assert!(said.is_empty(), "{said:#?}");
        let choice = |family| out.peers["n2"].choices.iter().find(|(of, _)| *of == family);
        let used = |family| choice(family)?.1.used.map(|at| at.to_string());
        let entries = out.state.iter().filter(|(_, entry)| entry.owner == Owner::Peer("n2".into()));
        let entry = |(key, entry): (&Key, &tartan_netstate::Entry)| match (key, &entry.object) {
            (Key::Neigh { ns: Netns::Host, address, .. }, Object::Neigh(neigh)) => {
                format!("{address} is {}", neigh.mac)
            }
            (Key::Fdb { mac, .. }, Object::Fdb(fdb)) => format!("{mac} is at {}", fdb.dst),
            (Key::Route { dst, .. }, Object::Route(route)) => format!("{dst} via {}", route.via.unwrap()),
            other => panic!("{other:?}"),
        };
        (Family::ALL.into_iter().filter_map(used).collect(), entries.map(entry).collect())
    }
}

#[test]
fn a_node_with_flannel_is_a_peer() {
    let (v4, mac) = ("vxlan/ipv4/vni1/port8472", "4a:1f:3e:0c:55:d2");
    let by_vxlan = [
        format!("10.244.2.0 is {mac}"),
        format!("fe80::481f:3eff:fe0c:55d2 is {mac}"),
        "10.244.2.0/24 via 10.244.2.0".to_owned(),
        "fd00:10:244:2::/64 via fe80::481f:3eff:fe0c:55d2".to_owned(),
        format!("{mac} is at 192.0.2.2"),
    ];
    let sorted = |lines: &[String]| {
        let mut lines = lines.to_vec();
        lines.sort();
        lines
    };
    // Whatever is configured among Tartan's own.
    for fabric in [FabricMode::Vxlan, FabricMode::HostGw, FabricMode::Ipip] {
        let fixture = Fixture::new(fabric, &vxlan(), &[], VXLAN);
        let (used, entries) = fixture.way();
        assert_eq!((used, sorted(&entries)), (vec![v4.to_owned(); 2], sorted(&by_vxlan)), "{fabric}");
        let told = fixture.plan().advert.unwrap();
        let accepts: Vec<&str> = told.accepts.iter().map(|end| &*end.instance).collect();
        assert!(accepts.contains(&v4) && accepts.contains(&"vxlan/ipv6/vni1/port8472"), "{fabric}: {accepts:?}");
    }
    for fabric in [FabricMode::Vxlan, FabricMode::HostGw, FabricMode::Ipip] {
        let (used, entries) = Fixture::new(fabric, &flannel(FlannelBackend::HostGw), &[], HOST_GW).way();
        let want = ["10.244.2.0/24 via 192.0.2.2", "fd00:10:244:2::/64 via 2001:db8::2"].map(str::to_owned);
        assert_eq!((used, entries), (vec!["host-gw".to_owned(); 2], want.to_vec()), "{fabric}");
    }
    // Without encapsulation where no router is between, if Flannel does so.
    let direct = flannel(FlannelBackend::Vxlan { vni: 1, port: 8472, direct: true });
    let mut far = VXLAN.to_vec();
    (far[4].1, far[5].1) = ("198.51.100.2", "2001:db8:f::2");
    for (theirs, want) in [(VXLAN, "host-gw"), (&*far, v4)] {
        assert_eq!(Fixture::new(FabricMode::Vxlan, &direct, &[], theirs).way().0, [want; 2]);
    }
    far[1].1 = "host-gw";
    let out = Fixture::new(FabricMode::Vxlan, &flannel(FlannelBackend::HostGw), &[], &far).plan();
    assert_eq!(out.conditions.iter().map(|it| it.reason).collect::<Vec<_>>(), ["PeerOffLink"; 2]);
    let bad = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], HOST_GW).plan();
    assert_eq!(bad.conditions.iter().map(|it| it.reason).collect::<Vec<_>>(), ["FlannelUnclear"]);
}

/// Pods of before look on their bridge for pods of ours, which are not on it.
#[test]
fn the_node_answers_for_its_pods_where_pods_of_before_look_for_them() {
    let mut fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], VXLAN);
    let net = |text: &str| text.parse().unwrap();
    let bridge = |name: &str, addresses: &[&str]| HostLink {
        name: name.into(),
        kind: "bridge".into(),
        addresses: addresses.iter().map(|text| net(text)).collect(),
        ..fixture.world.host.links[0].clone()
    };
    let links = vec![bridge("cni0", &["10.244.1.1/24", "fd00:10:244:1::1/64"]), bridge("docker0", &["172.17.0.1/16"])];
    fixture.world.host = Arc::new(Host { links, ..Host::clone(&fixture.world.host) });
    for (id, addresses) in
        [("a", &["10.244.1.9", "fd00:10:244:1::9"][..]), ("b", &["fd00:99::1"]), ("c", &["10.244.1.8"])]
    {
        fixture.world.attachments.insert(id.into(), pod(id, addresses).into());
    }
    let answered = |fixture: &Fixture| -> Vec<String> {
        let is_one = |key: &Key| match key {
            Key::UplinkSysctl { name, .. } => name.contains("proxy"),
            Key::Sysctl { name, .. } => name.contains("neigh"),
            key => matches!(key, Key::Proxied { .. } | Key::PodBridge { .. }),
        };
        fixture.plan().state.iter().map(|(key, _)| key).filter(|key| is_one(key)).map(Key::to_string).collect()
    };
    assert_eq!(answered(&fixture), [""; 0], "no pod of before is known");

    // A further network of pods, which has nothing to do with the cluster's.
    fixture.world.given.insert("172.17.0.2".parse().unwrap(), "further".into());
    assert_eq!(answered(&fixture), [""; 0]);
    fixture.world.given.insert("10.244.1.2".parse().unwrap(), "before".into());
    let (v4, v6) = (
        ["sysctl ipv4/proxy_arp of cni0", "sysctl ipv4/neigh/cni0/proxy_delay in host"],
        ["sysctl ipv6/proxy_ndp of cni0", "sysctl ipv6/neigh/cni0/proxy_delay in host"],
    );
    let with_pods = "cni0 among pods' links";
    assert_eq!(answered(&fixture), [v4[0], v6[0], v4[1], v6[1], "proxied fd00:10:244:1::9 on cni0", with_pods]);
    fixture.world.features.ipv6 = false;
    assert_eq!(answered(&fixture), [v4[0], v4[1], with_pods]);
}

fn pod(id: &str, addresses: &[&str]) -> Attachment {
    Attachment {
        id: id.into(),
        container: id.into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: 1, path: id.into() },
        pod_namespace: "default".into(),
        pod_name: id.into(),
        addresses: PerFamily::first_of(addresses.iter().map(|ip| ip.parse().unwrap())),
        mac: Mac([2; 6]),
        ports: Vec::new(),
        limits: None,
        network: None,
        answered: true,
    }
}

#[test]
fn without_the_config_map_annotations_say_nothing() {
    let mut fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], VXLAN);
    fixture.world.flannels.clear();
    let out = fixture.plan();
    assert!(out.peers.is_empty() && out.conditions.is_empty(), "{:?} {:?}", out.peers, out.conditions);
}

/// The device is made in Flannel's place, which takes all routes along: the first plan has them again, whether peers have gone
/// over or not, and whatever becomes known of it in the meantime.
#[test]
fn who_changes_over_reaches_all_from_the_first_plan_on() {
    let mine = [(0, r#"{"VNI":1,"VtepMAC":"4a:1f:3e:0c:55:d1"}"#), (2, r#"{"VNI":1,"VtepMAC":"9e:77:00:ab:3c:02"}"#)];
    let mut own = VXLAN.to_vec();
    mine.iter().for_each(|(at, data)| own[*at].1 = data);
    (own[4].1, own[5].1) = ("192.0.2.1", "2001:db8::1");
    let routes = |out: &Out| -> usize {
        let to_peer = |key: &Key| matches!(key, Key::Route { dst, .. } if CIDRS[1].contains(&&*dst.to_string()));
        out.state.iter().filter(|(key, _)| to_peer(key)).count()
    };
    for (own, listens, wanted) in [(&own[..], false, 2), (&own, true, 2), (&[], false, 0), (&[], true, 0)] {
        let mut fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), own, VXLAN);
        let taken_over = fixture.taken_over(1);
        (fixture.world.adverts, fixture.world.said) = Default::default();
        fixture.world.programmed = Programmed { read: true, ..Programmed::default() };
        if listens {
            fixture.hear(taken_over);
        }
        let (mut memo, mut told) = (Memo::default(), Vec::new());
        for step in 0..3 {
            let out = plan(&mut memo, &fixture.world, &fixture.owned, fixture.now).clone();
            assert_eq!(routes(&out), wanted, "annotated: {}, listens: {listens}, plan {step}", !own.is_empty());
            let advert = out.advert.unwrap();
            fixture.world.say(&advert);
            fixture.world.asked += 1;
            told.push(advert.accepts.clone());
        }
        // What is told is where peers send already.
        let lowered = lower(&vxlan(), fixture.world.local_node().unwrap()).map(|it| it.advert.accepts);
        assert!(told.iter().all(|told| *told == lowered.clone().unwrap_or_default()), "{told:?}");
    }
}

/// A node goes over to Tartan and back to Flannel: packets to it take the same way all the time.
#[test]
fn who_changes_over_is_reached_as_before() {
    let mut fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], VXLAN);
    let before = fixture.way();
    fixture.hear(fixture.taken_over(1));
    assert_eq!(fixture.way(), before, "Tartan speaks for it");
    fixture.at_rest();
    assert_eq!(fixture.way(), before);
    fixture.now += Config::default().lease * 2;
    fixture.hear(fixture.plan().advert.unwrap());
    assert_eq!(fixture.way(), before, "it is Flannel's again");
    assert!(fixture.plan().peers["n2"].live);
}

/// Where the configured fabric is not Flannel's, who goes back to Flannel is not waited for.
#[test]
fn who_goes_back_is_not_sent_what_flannel_does_not_take() {
    let mut fixture = Fixture::new(FabricMode::Ipip, &vxlan(), &[], VXLAN);
    let mut taken_over = fixture.taken_over(1);
    taken_over.accepts.push(Endpoint {
        instance: "ipip/ipv4".into(),
        address: addresses(2)[0],
        mac: None,
        public_key: None,
    });
    fixture.hear(taken_over);
    fixture.at_rest();
    assert_eq!(fixture.way().0, ["ipip/ipv4"; 2]);
    fixture.now += Config::default().lease * 2;
    fixture.hear(fixture.plan().advert.unwrap());
    assert_eq!(fixture.way().0, ["vxlan/ipv4/vni1/port8472"; 2]);
}

#[test]
fn this_node_says_of_itself_what_flannel_reads() {
    let fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], VXLAN);
    let word = fixture.plan().advert.unwrap();
    let own = fixture.world.local_node().unwrap();
    let told = raise(&vxlan(), own, &word).unwrap();
    assert_eq!(&*told.node_uid, "uid-n1");
    let mut annotated = (**own).clone();
    annotated.annotations.extend(told.values.into_iter().map(|(key, value)| (key.to_owned(), value.unwrap())));
    assert_eq!(raise(&vxlan(), &annotated, &word), None, "once is enough");
    let lowered = lower(&vxlan(), &annotated).unwrap().advert;
    let of_flannel: Vec<&Endpoint> = word.accepts.iter().filter(|end| end.instance.starts_with("vxlan")).collect();
    assert_eq!(lowered.accepts.iter().collect::<Vec<_>>(), of_flannel);
    assert_eq!((lowered.addresses, lowered.blocks), (word.addresses, word.blocks.clone()));
    assert_eq!(lowered.fabric_addresses, word.fabric_addresses);

    // A word of no use to Flannel is not told.
    assert_eq!(raise(&vxlan(), own, &Advert { accepts: Vec::new(), ..word.clone() }), None);
    // What is no longer so is taken back.
    let v4_only = Advert { accepts: vec![word.accepts[0].clone()], ..word };
    let taken_back = raise(&vxlan(), &annotated, &v4_only).unwrap().values;
    assert_eq!(taken_back.values().filter(|value| value.is_none()).count(), 2, "{taken_back:?}");

    // By the MACs that Flannel's peers know already.
    let mut mine: Vec<(&str, &str)> = VXLAN.to_vec();
    (mine[4].1, mine[5].1) = ("192.0.2.1", "2001:db8::1");
    let fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &mine, &[]);
    let word = fixture.plan().advert.unwrap();
    let macs: Vec<Option<Mac>> = word.accepts.iter().map(|end| end.mac).collect();
    assert_eq!(macs, ["4a:1f:3e:0c:55:d2", "9e:77:00:ab:3c:01"].map(|mac| Some(mac.parse().unwrap())));
    assert_eq!(raise(&vxlan(), fixture.world.local_node().unwrap(), &word), None);

    let host_gw = flannel(FlannelBackend::HostGw);
    let fixture = Fixture::new(FabricMode::Vxlan, &host_gw, &[], HOST_GW);
    let told = raise(&host_gw, fixture.world.local_node().unwrap(), &fixture.plan().advert.unwrap()).unwrap().values;
    let want = [Some("null"), Some("host-gw"), Some("null"), Some("true"), Some("192.0.2.1"), Some("2001:db8::1")];
    assert_eq!(told.values().map(Option::as_deref).collect::<Vec<_>>(), want);
}

proptest! {
    /// The memo's twin: planning from nothing. The world changes by annotations, ConfigMaps, words and time.
    #[test]
    fn a_memo_changes_nothing(steps in prop::collection::vec((0..7_u8, 0..VXLAN.len()), 1..40)) {
        let mut fixture = Fixture::new(FabricMode::Vxlan, &vxlan(), &[], VXLAN);
        let mut memo = Memo::default();
        for (beat, (step, which)) in steps.into_iter().enumerate() {
            let mut there = (*fixture.world.nodes["n2"]).clone();
            let key = format!("flannel.alpha.coreos.com/{}", VXLAN[which].0);
            match step {
                0 => drop(there.annotations.remove(&key)),
                1 => drop(there.annotations.insert(key, HOST_GW[which].1.to_owned())),
                2 => drop(there.annotations.insert(key, VXLAN[which].1.to_owned())),
                3 => drop(fixture.world.flannels.remove("kube-flannel/kube-flannel-cfg")),
                4 => drop(fixture.world.flannels.insert("kube-flannel/kube-flannel-cfg".into(), vxlan().into())),
                5 => fixture.now += Duration::from_secs(15),
                _ if fixture.world.flannel().is_some() && there.annotations.len() == VXLAN.len() => {
                    fixture.hear(fixture.taken_over(beat as u64));
                }
                _ => {}
            }
            fixture.world.nodes.insert("n2".into(), Arc::new(there));
            let own = fixture.plan().advert.unwrap();
            fixture.hear(own);
            let kept = plan(&mut memo, &fixture.world, &fixture.owned, fixture.now).clone();
            prop_assert_eq!(&kept, &fixture.plan());
            fixture.world.programmed.mirror = kept.state;
        }
    }
}
