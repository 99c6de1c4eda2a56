//! One node and its peers: what it wants for each, and what it says where it cannot.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fallback;
mod ipsec;
mod narrow;
mod nodes;
mod ranges;
mod word;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_fabric::{Instance, Memo, Out, Owned, plan};
use tartan_model::{
    Across, Advert, Config, Encapsulation, Encryption, EncryptionState, Endpoint, FabricMode, Family, Features, Heard,
    Host, HostLink, Node, Passing, PerFamily, Pool, Programmed, Said, Selector, VxlanConfig, World,
};
use tartan_netstate::claims::NFT_STRICT_CHAIN;
use tartan_netstate::{Key, LinkKind, LinkName, Mac, Netns, Object, Owner, PublicKey, State, WgDevice, WgPeer};

const HOST_GW: &str = "host-gw";
const VXLAN4: &str = "vxlan/ipv4/vni1/port8472";
const VXLAN6: &str = "vxlan/ipv6/vni1/port8472";
const IPIP4: &str = "ipip/ipv4";
const IPIP6: &str = "ipip/ipv6";
const WIREGUARD: &str = "wireguard/ipv4/port51820/key0";
/// There was no handshake with a peer of this name.
const SHY: &str = "shy";

/// A peer, or this node: underlay addresses, ranges of pods, instances it accepts.
#[derive(Clone, Copy)]
struct Says {
    name: &'static str,
    underlay: &'static [&'static str],
    blocks: &'static [&'static str],
    accepts: &'static [&'static str],
}

const ME: Says =
    Says { name: "me", underlay: &["192.0.2.1", "2001:db8::1"], blocks: &["10.1.0.0/24", "fd01::/64"], accepts: &[] };
const DUAL: Says = Says {
    name: "dual",
    underlay: &["192.0.2.2", "2001:db8::2"],
    blocks: &["10.2.0.0/24", "fd02::/64"],
    accepts: &[HOST_GW, VXLAN4, VXLAN6],
};

fn node(says: &Says) -> Node {
    Node {
        name: says.name.into(),
        uid: format!("{}-uid", says.name).into(),
        internal_ips: says.underlay.iter().map(|ip| ip.parse().unwrap()).collect(),
        external_ips: Vec::new(),
        pod_cidrs: says.blocks.iter().map(|block| block.parse().unwrap()).collect(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        placement: Default::default(),
    }
}

/// A key for each first letter.
fn key_of(name: &str) -> PublicKey {
    PublicKey([name.as_bytes()[0]; 32])
}

fn advert(says: &Says) -> Advert {
    let node = node(says);
    let address = |instance: &str| {
        let family = if [VXLAN6, IPIP6].contains(&instance) { Family::V6 } else { Family::V4 };
        let of_family = node.internal_ips.iter().find(|ip| Family::of(**ip) == family);
        *of_family.unwrap_or(&node.internal_ips[0])
    };
    let mac = |instance: &str| instance.starts_with("vxlan").then(|| Mac([2, 0, 0, 0, says.name.as_bytes()[0], 1]));
    let endpoint = |at: &&str| Endpoint {
        instance: (*at).into(),
        address: address(at),
        mac: mac(at),
        public_key: (at.starts_with("wireguard") || at.starts_with("ipsec")).then(|| key_of(says.name)),
    };
    Advert {
        node: node.name.clone(),
        node_uid: node.uid.clone(),
        addresses: PerFamily::first_of(node.internal_ips.iter().copied()),
        fabric_addresses: PerFamily::first_of(node.pod_cidrs.iter().map(|block| block.network())),
        blocks: node.pod_cidrs,
        mtu: 1500,
        accepts: says.accepts.iter().map(endpoint).collect(),
        sends: Vec::new(),
        joining: false,
        leaving: [].into(),
        acknowledges: None,
        edition: 1,
        heartbeat: 1,
    }
}

/// This node at rest, with everything in its kernel and its word heard; and these peers.
struct Fixture {
    world: World,
    owned: Owned,
    now: Instant,
}

impl Fixture {
    fn new(config: Config, me: Says, peers: &[Says]) -> Fixture {
        let mut world = World::new(me.name.into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
        world.config = Arc::new(config);
        let link = HostLink {
            name: "eth0".into(),
            kind: "".into(),
            mtu: 1500,
            up: true,
            loopback: false,
            addresses: me.underlay.iter().map(|ip| with_length(ip)).collect(),
            accept_ra: 0,
        };
        let device = WIREGUARD.parse::<Instance>().unwrap().device();
        let esp = ipsec::IPSEC.parse::<Instance>().unwrap().device();
        let devices = [device, esp];
        let met = |peer: &Says| devices.clone().map(|device| ((device, key_of(peer.name)), peer.name != SHY));
        let encryption = EncryptionState {
            public_keys: BTreeMap::from([
                ("wireguard-0".into(), key_of(me.name)),
                (ipsec::PAIR.into(), key_of(me.name)),
                (ipsec::PAIR_IN_UDP.into(), key_of(me.name)),
            ]),
            handshakes: peers.iter().flat_map(met).collect(),
        };
        world.host = Arc::new(Host { links: vec![link], encryption, ..Host::default() });
        world.nodes.insert(me.name.into(), Arc::new(node(&me)));
        let own = advert(&me);
        let owned = Owned { blocks: own.blocks, fabric_addresses: own.fabric_addresses, mtu_in_force: None };
        let mut fixture = Fixture { world, owned, now: Instant::now() };
        for peer in peers {
            fixture.hear(peer);
        }
        fixture.at_rest();
        fixture
    }

    fn hear(&mut self, says: &Says) {
        let (at, name) = (self.now, Arc::<str>::from(says.name));
        self.world.nodes.insert(name.clone(), Arc::new(node(says)));
        self.world.adverts.insert(name, Heard { advert: Arc::new(advert(says)), at, sends_changed: at });
    }

    fn plan(&self) -> Out {
        plan(&mut Memo::default(), &self.world, &self.owned, self.now).clone()
    }

    /// Kernel and cluster take what is planned, as often as it takes.
    fn at_rest(&mut self) {
        for _ in 0..8 {
            let out = self.plan();
            self.world.asked = 1;
            self.world.programmed =
                Programmed { mirror: out.state, read: true, generation: 1, ..Programmed::default() };
            let advert = Arc::new(out.advert.unwrap());
            self.world.said = Some(Said::heard(advert.clone()));
            let heard = Heard { advert, at: self.now, sends_changed: self.now };
            self.world.adverts.insert(self.world.local.clone(), heard);
            self.now += Duration::from_secs(1);
        }
    }
}

fn with_length(ip: &str) -> ipnet::IpNet {
    format!("{ip}/{}", if ip.contains(':') { 64 } else { 24 }).parse().unwrap()
}

fn config(fabric: FabricMode, cross_subnet: bool) -> Config {
    Config { fabric, cross_subnet, ..Config::default() }
}

fn host_gw() -> Config {
    config(FabricMode::HostGw, false)
}

fn vxlan() -> Config {
    config(FabricMode::Vxlan, false)
}

fn over_v6() -> Config {
    Config { underlay: Some(Family::V6), ..vxlan() }
}

/// What carries IPv4 and IPv6 packets from `me` to a peer, and what is said of it.
fn check(config: Config, me: Says, peer: Says, v4: Option<&str>, v6: Option<&str>, complaints: &[&str]) {
    let fixture = Fixture::new(config, me, &[peer]);
    let out = fixture.plan();
    let choice = |family| out.peers[peer.name].choices.iter().find(|(of, _)| *of == family);
    let used = |family| Some(choice(family)?.1.used?.to_string());
    let said: Vec<String> = out.conditions.iter().map(|c| format!("{}: {}", c.reason, c.message)).collect();
    assert_eq!((used(Family::V4).as_deref(), used(Family::V6).as_deref()), (v4, v6), "to {}: {said:#?}", peer.name);
    let fits = said.len() == complaints.len() && said.iter().zip(complaints).all(|(said, want)| said.contains(want));
    assert!(fits, "of {}: {said:#?}, wanted {complaints:#?}", peer.name);
    for family in Family::ALL {
        let routed = out.state.iter().any(|(key, entry)| {
            matches!(key, Key::Route { dst, .. } if Family::of_net(dst) == family)
                && entry.owner == Owner::Peer(peer.name.into())
        });
        assert_eq!(routed, used(family).is_some(), "{family} to {}", peer.name);
    }
}

#[test]
fn each_family_goes_its_own_way() {
    let v4 = Says { name: "v4", underlay: &["192.0.2.3"], accepts: &[HOST_GW, VXLAN4], ..DUAL };
    let v6 = Says { name: "v6", underlay: &["2001:db8::3"], accepts: &[HOST_GW, VXLAN6], ..DUAL };
    let direct = || config(FabricMode::Vxlan, true);
    check(vxlan(), ME, DUAL, Some(VXLAN4), Some(VXLAN4), &[]);
    check(over_v6(), ME, DUAL, Some(VXLAN6), Some(VXLAN6), &[]);
    check(vxlan(), ME, v4, Some(VXLAN4), Some(VXLAN4), &[]);
    check(vxlan(), ME, v6, Some(VXLAN6), Some(VXLAN6), &[]);
    check(host_gw(), ME, DUAL, Some(HOST_GW), Some(HOST_GW), &[]);
    check(direct(), ME, DUAL, Some(HOST_GW), Some(HOST_GW), &[]);
    check(direct(), ME, v4, Some(HOST_GW), Some(VXLAN4), &[]);
    check(direct(), ME, v6, Some(VXLAN6), Some(HOST_GW), &[]);
    let no_v6 = "host-gw cannot carry ipv6 between me and v4: v4 has no ipv6 address; no route leads there";
    let only_host_gw = |says| Says { accepts: &[HOST_GW], ..says };
    check(host_gw(), ME, only_host_gw(v4), Some(HOST_GW), None, &[no_v6]);
    let no_v4 = "host-gw cannot carry ipv4 between me and v6: v6 has no ipv4 address; no route leads there";
    check(host_gw(), ME, only_host_gw(v6), None, Some(HOST_GW), &[no_v4]);
    // A node without pods of a family misses none of them.
    let single = Says { underlay: &["192.0.2.1"], blocks: &["10.1.0.0/24"], ..ME };
    check(host_gw(), single, only_host_gw(DUAL), Some(HOST_GW), None, &[]);
    // Pods of one family over nodes of the other.
    let v6_only = Says { underlay: &["2001:db8::1"], blocks: &["10.1.0.0/24"], ..ME };
    check(vxlan(), v6_only, Says { blocks: &["10.2.0.0/24"], ..v6 }, Some(VXLAN6), None, &[]);
}

/// What carries packets to each range of a peer with two of each family, when pools of the second ones say this.
fn check_pools(config: Config, says: Encapsulation, first: [&str; 2], second: [&str; 2]) {
    let blocks = &["10.2.0.0/24", "fd02::/64", "10.3.0.0/24", "fd03::/64"];
    let peer = Says { blocks, accepts: &[HOST_GW, VXLAN4, IPIP4], ..DUAL };
    let mut fixture = Fixture::new(config, ME, &[peer]);
    for (name, cidr) in [("four", "10.3.0.0/16"), ("six", "fd03::/32")] {
        let pool = Pool {
            name: name.into(),
            cidr: cidr.parse().unwrap(),
            block_size: 26,
            nodes: Selector::all(),
            namespaces: Selector::all(),
            disabled: false,
            encapsulation: Some(says),
        };
        fixture.world.pools.insert(name.into(), Arc::new(pool));
    }
    fixture.at_rest();
    let out = fixture.plan();
    let by: Vec<(Family, String)> =
        out.peers["dual"].choices.iter().map(|(family, choice)| (*family, choice.used.unwrap().to_string())).collect();
    let mut want: Vec<(Family, String)> = [first, second]
        .iter()
        .flat_map(|[v4, v6]| [(Family::V4, (*v4).to_owned()), (Family::V6, (*v6).to_owned())])
        .collect();
    let mut sorted = by.clone();
    sorted.sort();
    want.sort();
    assert_eq!(sorted, want, "{says:?}");
    let device = |range: &str| {
        let is =
            |key: &Key| matches!(key, Key::Route { dst, metric, .. } if dst.to_string() == range && *metric == 1024);
        let (_, entry) = out.state.iter().find(|(key, _)| is(key)).unwrap();
        let Object::Route(route) = &entry.object else { panic!("{entry:?}") };
        route.dev.clone().unwrap()
    };
    let same = first[0] == second[0];
    assert_eq!(device("10.2.0.0/24") == device("10.3.0.0/24"), same, "{says:?}");
}

#[test]
fn a_pool_says_for_its_own_ranges_how_they_are_reached() {
    let across = [Across::Nodes, Across::Subnets];
    let [vxlan_always, vxlan_cross] = across.map(Encapsulation::Vxlan);
    let [ipip_always, ipip_cross] = across.map(Encapsulation::Ipip);
    let of = |at| [at, at];
    check_pools(vxlan(), Encapsulation::Never, of(VXLAN4), of(HOST_GW));
    check_pools(vxlan(), vxlan_cross, of(VXLAN4), of(HOST_GW));
    check_pools(vxlan(), ipip_always, of(VXLAN4), of(IPIP4));
    check_pools(host_gw(), vxlan_always, of(HOST_GW), of(VXLAN4));
    check_pools(host_gw(), ipip_always, of(HOST_GW), of(IPIP4));
    check_pools(vxlan(), ipip_cross, of(VXLAN4), of(HOST_GW));
}

/// The kernel sends what goes by a `sit` device the way that the packet before went, whoever that was for.
#[test]
fn no_device_of_ipip_leads_to_peers_on_the_link_and_behind_routers() {
    let here = Says { accepts: &[IPIP4], ..DUAL };
    let (underlay, blocks) = (&["198.51.100.2", "2001:db8:1::2"], &["10.3.0.0/24", "fd03::/64"]);
    let far = Says { name: "far", underlay, blocks, accepts: &[IPIP4] };
    let out = Fixture::new(config(FabricMode::Ipip, false), ME, &[here, far]).plan();
    let kind = |block: &str| {
        let block: ipnet::IpNet = block.parse().unwrap();
        let dev = out.state.iter().find_map(|(key, entry)| match (key, &entry.object) {
            (Key::Route { dst, metric: 1024, .. }, Object::Route(route)) if *dst == block => route.dev.clone(),
            _ => None,
        });
        let key = Key::Link { ns: Netns::Host, link: dev.unwrap() };
        let Object::Link(link) = &out.state.get(&key).unwrap().object else { panic!("{key} is a link") };
        link.kind.clone()
    };
    let local = std::net::Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(kind("fd02::/64"), LinkKind::Sit { local, on: LinkName::new("eth0") });
    assert_eq!(kind("fd03::/64"), LinkKind::Sit { local, on: None });
    assert_eq!(["10.2.0.0/24", "10.3.0.0/24"].map(kind), [LinkKind::Ipip { local }, LinkKind::Ipip { local }]);
}

#[test]
fn ipip_leads_to_the_address_that_the_peer_says() {
    let peer = Says { accepts: &[HOST_GW, IPIP4, IPIP6], ..DUAL };
    let ipip = |underlay| Config { underlay, ..config(FabricMode::Ipip, false) };
    check(ipip(None), ME, peer, Some(IPIP4), Some(IPIP4), &[]);
    check(ipip(Some(Family::V6)), ME, peer, Some(IPIP6), Some(IPIP6), &[]);
    check(config(FabricMode::Ipip, true), ME, peer, Some(HOST_GW), Some(HOST_GW), &[]);
}

#[test]
fn none_leaves_the_way_to_somebody_else() {
    check(config(FabricMode::None, false), ME, DUAL, None, None, &[]);
    // On the way there: routes go at once, and the door stays open for who still sends.
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    fixture.world.config = Arc::new(config(FabricMode::None, false));
    let out = fixture.plan();
    assert!(!out.state.iter().any(|(_, entry)| entry.owner == Owner::Peer("dual".into())));
    assert_eq!(out.receives.iter().map(ToString::to_string).collect::<Vec<_>>(), [VXLAN4]);
    fixture.hear(&Says { accepts: &[], ..DUAL });
    fixture.at_rest();
    let out = fixture.plan();
    assert!(out.receives.is_empty() && out.conditions.is_empty(), "{:?} {:?}", out.receives, out.conditions);
    assert_eq!(out.pod_mtu, out.underlay_mtu);
}

#[test]
fn what_cannot_be_is_said() {
    let far = Says { name: "far", underlay: &["198.51.100.2", "2001:db8:f::2"], accepts: &[HOST_GW], ..DUAL };
    check(
        host_gw(),
        ME,
        far,
        None,
        None,
        &[
            "PeerOffLink: host-gw cannot reach far at 198.51.100.2: me is on 192.0.2.0/24 by eth0, and there is a router between; no route leads there",
            "PeerOffLink: host-gw cannot reach far at 2001:db8:f::2: me is on 2001:db8::/64 by eth0",
        ],
    );
    check(
        config(FabricMode::Vxlan, true),
        ME,
        Says { accepts: &[HOST_GW, VXLAN4], ..far },
        Some(VXLAN4),
        Some(VXLAN4),
        &[],
    );
    let v4 = Says { underlay: &["192.0.2.3"], accepts: &[VXLAN4], ..DUAL };
    let none = "NoCommonFabric: dual and me have no address family in common that spec.underlay allows";
    check(over_v6(), ME, v4, None, None, &[none]);
    let stuck = Says { accepts: &["vxlan/ipv4/vni7/port8472"], ..DUAL };
    check(
        vxlan(),
        ME,
        stuck,
        None,
        None,
        &["me sends by vxlan/ipv4/vni1/port8472, but dual hears only vxlan/ipv4/vni7/port8472"],
    );
    // Of a newer Tartan we understand what we know.
    let newer = Says { accepts: &["quantum/1", VXLAN4], ..DUAL };
    check(vxlan(), ME, newer, Some(VXLAN4), Some(VXLAN4), &[]);
    // About to come up.
    check(vxlan(), ME, Says { accepts: &[], ..DUAL }, None, None, &[]);
    let thief = Says { underlay: &["192.0.2.1"], ..DUAL };
    check(vxlan(), ME, thief, None, None, &["TwoNodesOneAddress: dual and me both say their address is 192.0.2.1"]);
    let mine = Says { blocks: &["10.1.0.128/25", "fd02::/64"], ..DUAL };
    check(
        vxlan(),
        ME,
        mine,
        None,
        Some(VXLAN4),
        &["dual says 10.1.0.128/25 is its own, but it overlaps this node's 10.1.0.0/24"],
    );
    let around = Says { blocks: &["192.0.2.0/24", "fd02::/64"], ..DUAL };
    check(
        vxlan(),
        ME,
        around,
        None,
        Some(VXLAN4),
        &["192.0.2.0/24 is its own, but it holds the node address 192.0.2.2"],
    );
}

#[test]
fn a_pair_is_encrypted_where_both_can_and_have_shaken_hands() {
    let encrypted = || Config { encryption: Encryption::Wireguard, ..vxlan() };
    let strict = || Config { strict_encryption: true, ..encrypted() };
    let both = Says { accepts: &[HOST_GW, VXLAN4, WIREGUARD], ..DUAL };
    let shy = Says { name: SHY, ..both };
    for config in [encrypted(), strict(), config(FabricMode::Wireguard, true)] {
        check(config, ME, both, Some(WIREGUARD), Some(WIREGUARD), &[]);
    }
    let clear =
        "Unencrypted: packets to pods of shy go in clear: there was no handshake by wireguard/ipv4/port51820/key0 yet";
    check(encrypted(), ME, shy, Some(VXLAN4), Some(VXLAN4), &[clear]);
    // Packets wait for the handshake where there is no other way.
    check(strict(), ME, shy, Some(WIREGUARD), Some(WIREGUARD), &[]);
    let clear = "Unencrypted: packets to pods of dual go in clear: dual does not hear wireguard/ipv4/port51820/key0";
    check(encrypted(), ME, DUAL, Some(VXLAN4), Some(VXLAN4), &[clear]);
    let unheard = "me sends by wireguard/ipv4/port51820/key0, but dual hears only host-gw, vxlan/ipv4/vni1/port8472";
    check(strict(), ME, DUAL, None, None, &[unheard]);
    let thief = Says { name: "mallory", ..both };
    let stolen = format!("TwoNodesOneAddress: mallory and me both say their key is {}", key_of("me"));
    check(encrypted(), ME, thief, None, None, &[&stolen]);
}

#[test]
fn a_device_has_every_peer_that_may_send_and_the_key_comes_first() {
    let encrypted = Config { encryption: Encryption::Wireguard, ..vxlan() };
    let shy = Says { name: SHY, accepts: &[VXLAN4, WIREGUARD], ..DUAL };
    let fixture = Fixture::new(encrypted.clone(), ME, &[shy]);
    let link = WIREGUARD.parse::<Instance>().unwrap().device();
    let state = fixture.plan().state;
    // And its own addresses.
    let itself = shy.underlay.iter().map(|ip| Family::host_net(ip.parse().unwrap()));
    let ranges = shy.blocks.iter().map(|block| block.parse().unwrap()).chain(itself);
    let peer = WgPeer::of("192.0.2.2:51820".parse().unwrap(), 25, ranges);
    let key = Key::WgPeer { link: link.clone(), public_key: key_of(SHY) };
    assert!(state.holds(&key, &Object::WgPeer(peer.into())), "{state:?}");

    let mut keyless = Fixture::new(encrypted, ME, &[shy]);
    keyless.world.programmed = Programmed { read: true, ..Programmed::default() };
    keyless.world.host = Arc::new(Host { encryption: EncryptionState::default(), ..Host::clone(&keyless.world.host) });
    let out = keyless.plan();
    let is_device = |key: &Key| key.as_link().is_some_and(|(_, name)| name == link) || key.is_wireguard();
    assert!(out.state.holds(&Key::KeyPair { name: "wireguard-0".into() }, &Object::KeyPair));
    assert!(!out.state.iter().any(|(key, _)| is_device(key)), "no device before there is a key: {:?}", out.state);
}

#[test]
fn a_device_goes_on_with_the_key_that_it_has_until_there_is_another() {
    let encrypted = Config { encryption: Encryption::Wireguard, ..vxlan() };
    let mut fixture = Fixture::new(encrypted, ME, &[Says { accepts: &[VXLAN4, WIREGUARD], ..DUAL }]);
    let with_key = |key: Option<PublicKey>, fixture: &mut Fixture| {
        let mut host = Host::clone(&fixture.world.host);
        host.encryption.public_keys.retain(|name, _| **name != *"wireguard-0");
        host.encryption.public_keys.extend(key.map(|key| ("wireguard-0".into(), key)));
        fixture.world.host = Arc::new(host);
        fixture.plan()
    };
    let before = fixture.plan();
    // Somebody deleted the file.
    fixture.world.programmed.mirror.remove(&Key::KeyPair { name: "wireguard-0".into() });
    let without = with_key(None, &mut fixture);
    assert_eq!((&without.state, &without.advert), (&before.state, &before.advert));
    let made = with_key(Some(key_of("new")), &mut fixture).state;
    let link = WIREGUARD.parse::<Instance>().unwrap().device();
    let device = WgDevice { listen_port: 51820, public_key: key_of("new") };
    assert!(made.holds(&Key::WgDevice { link }, &Object::WgDevice(device)), "{made:?}");
}

#[test]
fn where_the_kernel_has_no_wireguard_only_the_device_is_another() {
    let both = Says { accepts: &[HOST_GW, VXLAN4, WIREGUARD], ..DUAL };
    let plan = |wireguard: bool| {
        let mut fixture = Fixture::new(config(FabricMode::Wireguard, false), ME, &[both]);
        fixture.world.features.wireguard = wireguard;
        let out = fixture.plan();
        (out.state.clone(), out.conditions.clone())
    };
    let ((kernel, said), (engine, also)) = (plan(true), plan(false));
    let link = WIREGUARD.parse::<Instance>().unwrap().device();
    let others = |a: &State, b: &State| -> Vec<Key> {
        a.iter().filter(|(key, entry)| !b.holds(key, &entry.object)).map(|(key, _)| key.clone()).collect()
    };
    let device = Key::Link { ns: Netns::Host, link };
    assert_eq!((others(&kernel, &engine), others(&engine, &kernel)), (vec![device.clone()], vec![device.clone()]));
    let kind = |state: &State| match &state.get(&device).unwrap().object {
        Object::Link(link) => link.kind.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(&engine), LinkKind::Tun { label: WIREGUARD.into() });
    assert_eq!(kind(&kernel), LinkKind::Wireguard { label: WIREGUARD.into() });
    assert_eq!(said, also);
}

#[test]
fn of_two_that_claim_the_same_the_live_one_has_it() {
    let rival = Says { name: "a-rival", ..DUAL };
    let mut fixture = Fixture::new(vxlan(), ME, &[rival, DUAL]);
    let out = fixture.plan();
    assert_eq!(out.peers["dual"].used().count(), 0);
    assert_eq!(out.peers["a-rival"].used().count(), 1);
    assert!(out.conditions.iter().any(|c| c.message.contains("dual and a-rival both say their address is 192.0.2.2")));
    // The one that was replaced says nothing any more.
    fixture.now += Duration::from_secs(60);
    fixture.hear(&DUAL);
    fixture.at_rest();
    let out = fixture.plan();
    assert_eq!(out.peers["dual"].used().count(), 1);
    assert_eq!(out.peers["a-rival"].used().count(), 0);
    assert_eq!(out.conditions, []);
}

#[test]
fn a_range_that_nobody_vouches_for_gets_no_route() {
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    let mut alone = node(&DUAL);
    alone.pod_cidrs.truncate(1);
    fixture.world.nodes.insert("dual".into(), Arc::new(alone));
    let out = fixture.plan();
    assert_eq!(out.peers["dual"].blocks, ["10.2.0.0/24".parse().unwrap()]);
    assert!(out.conditions[0].message.contains("fd02::/64 is its own, but neither its Node's podCIDRs nor an IPBlock"));
}

#[test]
fn nothing_is_left_of_a_node_that_is_gone() {
    let other = Says { name: "other", underlay: &["192.0.2.9"], blocks: &["10.9.0.0/24"], accepts: &[VXLAN4] };
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL, other]);
    let mut memo = Memo::default();
    let of =
        |state: &State, name: &str| state.iter().filter(|(_, entry)| entry.owner == Owner::Peer(name.into())).count();
    let before = plan(&mut memo, &fixture.world, &fixture.owned, fixture.now).state.clone();
    assert_eq!((of(&before, "dual"), of(&before, "other")), (5, 3), "routes, neighbours, one forwarding entry");
    fixture.world.nodes.remove("dual");
    let after = plan(&mut memo, &fixture.world, &fixture.owned, fixture.now).state.clone();
    assert_eq!((of(&after, "dual"), of(&after, "other")), (0, 3));
    // Gone while nobody looked.
    assert_eq!(fixture.plan().state, after);
}

#[test]
fn a_device_that_somebody_deleted_is_wanted_with_all_that_hung_on_it() {
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    let before = fixture.plan();
    fixture.world.programmed.mirror = State::new();
    let after = fixture.plan();
    assert_eq!(before.state, after.state);
    assert_eq!(before.advert, after.advert, "peers go on sending");
}

/// Killed between making a device and giving it its peers, an agent starts with a device that hears nobody.
#[test]
fn what_an_earlier_life_left_is_told_to_nobody_before_this_one_has_asked_for_all_of_it() {
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    let accepted = |fixture: &Fixture| fixture.plan().advert.unwrap().accepts.len();
    (fixture.world.said, fixture.world.adverts) = (None, fixture.world.adverts.without(ME.name));
    assert!(accepted(&fixture) > 0);
    fixture.world.asked = 0;
    assert_eq!(accepted(&fixture), 0);
}

#[test]
fn a_node_is_asked_at_the_addresses_that_its_kernel_has() {
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    let asked_at = |fixture: &Fixture| tartan_fabric::selftest::asked_at(&fixture.plan(), &fixture.world);
    assert_eq!(asked_at(&fixture), fixture.owned.fabric_addresses);
    fixture.world.programmed.mirror = State::new();
    assert_eq!(asked_at(&fixture), PerFamily::default());
}

#[test]
fn the_uplink_is_followed() {
    let mut fixture = Fixture::new(vxlan(), ME, &[Says { accepts: &[VXLAN4], ..DUAL }]);
    let device = |out: &Out| {
        let mut links = out.state.iter().filter_map(|(_, entry)| match &entry.object {
            Object::Link(link) => Some(link.clone()),
            _ => None,
        });
        let link = links.next().unwrap();
        let LinkKind::Vxlan(params) = &link.kind else { panic!("{link:?}") };
        (link.mac, link.mtu, params.local.to_string())
    };
    let before = fixture.plan();
    let (mac, mtu, local) = device(&before);
    assert_eq!((mtu, &*local, before.pod_mtu), (1450, "192.0.2.1", 1450));
    // Another address, another MTU, another incarnation of the Node: the device is the same one, and so is its MAC.
    let moved = Says { underlay: &["192.0.2.77", "2001:db8::1"], ..ME };
    let mut host = (*fixture.world.host).clone();
    host.links[0].mtu = 9000;
    host.links[0].addresses = moved.underlay.iter().map(|ip| with_length(ip)).collect();
    fixture.world.host = Arc::new(host);
    fixture.world.nodes.insert("me".into(), Arc::new(Node { uid: "another".into(), ..node(&moved) }));
    let after = fixture.plan();
    assert_eq!((device(&after), after.pod_mtu), ((mac, 8950, "192.0.2.77".into()), 8950));
    let told = |out: &Out| out.advert.as_ref().unwrap().accepts[0].address.to_string();
    assert_eq!(told(&after), "192.0.2.1", "the kernel has yet to hear it");
    fixture.world.programmed.mirror = after.state;
    let heard = fixture.plan();
    assert_eq!(told(&heard), "192.0.2.77");
    assert_eq!(heard.advert.unwrap().edition, before.advert.unwrap().edition + 1);
}

#[test]
fn a_kernel_without_vxlan_says_so_and_accepts_none() {
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL]);
    fixture.world.features.vxlan = false;
    fixture.world.programmed.mirror = State::new();
    let out = fixture.plan();
    let at: Instance = VXLAN4.parse().unwrap();
    assert!(!out.receives.contains(&at));
    assert_eq!(out.advert.unwrap().accepts, []);
    assert!(out.conditions.iter().any(|c| c.reason == "FabricUnsupported" && c.message.contains(VXLAN4)));
}
