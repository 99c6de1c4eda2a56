//! IPsec: where there is none, what a device has of a peer, and when packets go by it.

use tartan_model::{Condition, IpsecConfig};
use tartan_netstate::{EspEnd, EspPeer, Socket};

use super::*;

pub(crate) const IPSEC: &str = "ipsec/ipv4/key3/psk00000007";
const IN_UDP: &str = "ipsec/ipv4/port4500/key3/psk00000007";
pub(crate) const PAIR: &str = "ipsec-ipv4-3-psk00000007";
pub(crate) const PAIR_IN_UDP: &str = "ipsec-ipv4-port4500-3-psk00000007";

/// Encrypting over vxlan, by the third keys.
fn encrypted() -> Config {
    let ipsec = IpsecConfig { rotation: 3, ..vxlan().ipsec };
    Config { encryption: Encryption::Ipsec, ipsec, ..vxlan() }
}

fn fixture(config: Config, secret: Option<u32>, peer: Says) -> Fixture {
    let mut fixture = Fixture::new(config, ME, &[]);
    fixture.world.secret = secret;
    let device = IPSEC.parse::<Instance>().unwrap().device();
    let mut host = Host::clone(&fixture.world.host);
    host.encryption.handshakes.insert((device, key_of(peer.name)), peer.name != SHY);
    fixture.world.host = Arc::new(host);
    fixture.hear(&peer);
    fixture.at_rest();
    fixture
}

/// By what packets go, and of what reasons there are conditions.
fn check(config: Config, secret: Option<u32>, peer: Says, used: Option<&str>, reasons: &[&str]) {
    let out = fixture(config, secret, peer).plan();
    let by: Vec<String> = out.peers[peer.name].used().map(|at| at.to_string()).collect();
    assert_eq!(by, used.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{:?}", out.conditions);
    let said: Vec<&str> = out.conditions.iter().map(|Condition { reason, .. }| *reason).collect();
    assert_eq!(said, reasons, "{:?}", out.conditions);
}

#[test]
fn a_pair_goes_by_ipsec_once_it_was_answered_and_never_without_a_secret() {
    let strict = || Config { strict_encryption: true, ..encrypted() };
    let alone = || Config { fabric: FabricMode::Ipsec, encryption: Encryption::None, ..encrypted() };
    let both = Says { accepts: &[HOST_GW, VXLAN4, IPSEC], ..DUAL };
    let shy = Says { name: SHY, ..both };
    for config in [encrypted(), strict(), alone()] {
        check(config, Some(7), both, Some(IPSEC), &[]);
    }
    check(encrypted(), Some(7), shy, Some(VXLAN4), &["Unencrypted"]);
    check(strict(), Some(7), shy, Some(IPSEC), &[]);
    // Another secret is another instance.
    check(encrypted(), Some(8), both, Some(VXLAN4), &["Unencrypted"]);
    check(encrypted(), None, DUAL, Some(VXLAN4), &["SecretMissing", "Unencrypted"]);
    check(strict(), None, DUAL, None, &["SecretMissing", "NoCommonFabric"]);
}

/// What a node wants that goes by this instance, with this key pair.
fn check_device(port: Option<u16>, name: &'static str, pair: &str, mtu: u32) {
    let ipsec = IpsecConfig { port, ..encrypted().ipsec };
    let shy = Says { name: SHY, accepts: if port.is_some() { &[VXLAN4, IN_UDP] } else { &[VXLAN4, IPSEC] }, ..DUAL };
    let state = fixture(Config { ipsec, ..encrypted() }, Some(7), shy).plan().state;
    let link = name.parse::<Instance>().unwrap().device();
    let own = EspEnd { address: "192.0.2.1".parse().unwrap(), public_key: key_of("me"), port };
    assert!(state.holds(&Key::KeyPair { name: pair.into() }, &Object::KeyPair));
    let socket = state.get(&Key::Socket { link: link.clone() }).map(|entry| entry.object.clone());
    let wanted = port.map(|port| Object::Socket(Socket { source: own.address, port, esp: true }));
    assert_eq!(socket, wanted);
    let device = &state.get(&Key::Link { ns: Netns::Host, link: link.clone() }).unwrap().object;
    assert!(matches!(device, Object::Link(link) if link.mtu == mtu), "{device:?}");
    assert!(state.holds(&Key::EspDevice { link: link.clone() }, &Object::EspDevice(own)), "{state:?}");
    let ranges = ["10.2.0.0/24", "10.2.0.0/32", "fd02::/64", "fd02::/128"].map(|range| range.parse().unwrap());
    let peer = EspPeer::of("192.0.2.2".parse().unwrap(), own, ranges);
    let key = Key::EspPeer { link, public_key: key_of(SHY) };
    assert!(state.holds(&key, &Object::EspPeer(peer.into())), "{:?}", state.get(&key));
}

#[test]
fn a_device_has_every_peer_with_its_ranges_and_where_its_kernel_answers() {
    check_device(None, IPSEC, PAIR, 1443);
    check_device(Some(4500), IN_UDP, PAIR_IN_UDP, 1435);
}

#[test]
fn a_node_without_the_pair_or_behind_a_nat_is_told_to_nobody() {
    let both = Says { accepts: &[VXLAN4, IPSEC], ..DUAL };
    let told = |fixture: &Fixture| {
        let advert = fixture.plan().advert.unwrap();
        advert.accepts.iter().any(|end| *end.instance == *IPSEC)
    };
    let mut node = fixture(encrypted(), Some(7), both);
    assert!(told(&node));
    // The kernel has lost what was made with it. The device stays, and drops what it is given.
    let mut host = Host::clone(&node.world.host);
    host.encryption.public_keys.remove(PAIR);
    node.world.host = Arc::new(host);
    assert!(!told(&node));
    let link = IPSEC.parse::<Instance>().unwrap().device();
    let state = node.plan().state;
    assert!(state.get(&Key::Link { ns: Netns::Host, link: link.clone() }).is_some());
    assert!(state.get(&Key::EspDevice { link }).is_none());

    let mut hidden = fixture(encrypted(), Some(7), both);
    let me = hidden.world.nodes["me"].clone();
    let annotations = BTreeMap::from([("tartan.dev/public-address".into(), "198.51.100.1".into())]);
    hidden.world.nodes.insert("me".into(), Arc::new(Node { annotations, ..Node::clone(&me) }));
    assert!(!told(&hidden));
}
