//! What one peer's word makes a node do, and what it does not.

use super::*;

/// What is wrapped is past all policy wherever it is unwrapped.
#[test]
fn ports_between_nodes_are_those_at_which_any_of_them_may_unwrap() {
    let changed = Config { vxlan: VxlanConfig { port: 4789, ..vxlan().vxlan }, ..vxlan() };
    let check = |config: &Config, peer: Says, ports: [&[u16]; 3]| {
        let mut fixture = Fixture::new(config.clone(), ME, &[peer]);
        let [live, silent, gone] = ports.map(|ports| ports.iter().copied().collect::<BTreeSet<_>>());
        assert_eq!(fixture.plan().between_nodes, live);
        fixture.now += Duration::from_secs(60);
        assert_eq!(fixture.plan().between_nodes, silent);
        fixture.world.nodes.remove(peer.name);
        assert_eq!(fixture.plan().between_nodes, gone);
    };
    check(&vxlan(), DUAL, [&[8285, 8472]; 3]);
    // One that still has the old port, alive or not.
    check(&changed, DUAL, [&[4789, 8285, 8472], &[4789, 8285, 8472], &[4789, 8285]]);
    let by_udp = Says { accepts: &["udp/ipv4/port9000", IPIP4, "quantum/port7"], ..DUAL };
    check(&changed, by_udp, [&[4789, 8285, 9000], &[4789, 8285, 9000], &[4789, 8285]]);
    check(&changed, Says { accepts: &[WIREGUARD, ipsec::IPSEC], ..DUAL }, [&[4789, 8285]; 3]);
    let at_dns = Says { accepts: &["vxlan/ipv4/vni1/port53", "udp/ipv4/port1023", "udp/ipv4/port1024"], ..DUAL };
    let by_its_word: &[u16] = &[1024, 4789, 8285];
    check(&changed, at_dns, [by_its_word, by_its_word, &[4789, 8285]]);
    let dns = Config { udp_port: 53, ..vxlan() };
    check(&dns, Says { accepts: &[VXLAN4], ..DUAL }, [&[53, 8472]; 3]);
    // And this node's own, as long as peers may send there.
    let mut fixture = Fixture::new(vxlan(), ME, &[Says { accepts: &[], ..DUAL }]);
    fixture.world.config = Arc::new(changed);
    assert_eq!(fixture.plan().between_nodes, BTreeSet::from([4789, 8285, 8472]));
    fixture.at_rest();
    assert_eq!(fixture.plan().between_nodes, BTreeSet::from([4789, 8285]));
}

impl Fixture {
    /// The peer says all that it said, and that it may send on these.
    fn sends(&mut self, peer: &Says, sends: &[String]) {
        self.hear(peer);
        let heard = &self.world.adverts[peer.name];
        let sends = sends.iter().map(|at| at.as_str().into()).collect();
        let advert = Advert { sends, ..Advert::clone(&heard.advert) }.into();
        self.world.adverts.insert(peer.name.into(), Heard { advert, ..heard.clone() });
    }
}

/// However many it names, and however often it names others.
#[test]
fn one_nodes_word_does_not_have_all_others_make_things_without_end() {
    let honest = Says { name: "honest", underlay: &["192.0.2.9"], blocks: &["10.9.0.0/24"], accepts: &[VXLAN4] };
    let other = Says { name: "another", underlay: &["192.0.2.8"], blocks: &["10.8.0.0/24"], accepts: &[VXLAN4] };
    let check = |instance: fn(usize) -> String, most: usize| {
        let mut fixture = Fixture::new(vxlan(), ME, &[DUAL, honest, other]);
        let made = |state: &State| {
            let is_made = |key: &Key| matches!(key, Key::KeyPair { .. } | Key::Link { .. });
            state.iter().filter(|(key, _)| is_made(key)).count()
        };
        let before = made(&fixture.plan().state);
        for round in 0..10 {
            let names: Vec<String> = (round * 20..round * 20 + 20).map(instance).collect();
            fixture.sends(&DUAL, &names);
            for peer in [honest, other] {
                fixture.sends(&peer, &[VXLAN4.into()]);
            }
            let out = fixture.plan();
            assert!(made(&out.state) <= before + most, "{}", names[0]);
            let said: Vec<_> = out.conditions.iter().filter(|said| said.reason == "TooManyFabrics").collect();
            assert!(said.len() == 1 && said[0].message.contains("instances that others say"), "{:?}", out.conditions);
            fixture.at_rest();
            assert!(made(&fixture.plan().state) <= before + most, "{}", names[0]);
        }
        // What the node itself is to hear comes all the same.
        fixture.world.config = Arc::new(config(FabricMode::Ipip, false));
        assert!(fixture.plan().receives.contains(&IPIP4.parse().unwrap()));
    };
    check(|n| format!("vxlan/ipv4/vni{n}/port5353"), 8);
    check(|n| format!("udp/ipv4/port{}", n + 1024), 8);
    check(|n| format!("wireguard/ipv4/port51820/key{n}"), 9);
    // First what most of them may send on.
    let mut fixture = Fixture::new(vxlan(), ME, &[DUAL, honest, other]);
    let names: Vec<String> = (0..20).map(|n| format!("udp/ipv4/port{}", n + 1024)).collect();
    fixture.sends(&DUAL, &names);
    fixture.sends(&honest, &[VXLAN6.into()]);
    fixture.sends(&other, &[VXLAN6.into()]);
    assert!(fixture.plan().receives.contains(&VXLAN6.parse().unwrap()));
    // And none at the port of everybody's services, which may be another's here, or at one that something else of ours is to have.
    let before = fixture.plan().receives.clone();
    let at_dns =
        ["vxlan/ipv4/vni7/port53", "udp/ipv4/port53", "wireguard/ipv4/port53/key1", "ipsec/ipv4/key1/psk1/port500"];
    let in_the_way = [
        "vxlan/ipv4/vni7/port51822",
        "vxlan/ipv4/vni7/port8285",
        "vxlan/ipv4/vni7/port8472/gbp",
        "udp/ipv4/port8472",
        "udp/ipv6/port51820",
        "wireguard/ipv4/port8285/key1",
        "ipsec/ipv4/key1/psk1/port8472",
    ];
    for names in [&at_dns[..], &in_the_way] {
        fixture.sends(&DUAL, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        fixture.sends(&honest, &[]);
        fixture.sends(&other, &[]);
        assert!(fixture.plan().receives.is_subset(&before), "{names:?}: {:?}", fixture.plan().receives);
    }
    let apart = ["vxlan/ipv4/vni7/port8472", "wireguard/ipv4/port51822/key1"].map(str::to_owned);
    fixture.sends(&DUAL, &apart);
    let out = fixture.plan();
    assert!(out.receives.contains(&apart[0].parse().unwrap()), "{:?}", out.receives);
    assert!(out.state.holds(&Key::KeyPair { name: "wireguard-1".into() }, &Object::KeyPair));
}

/// Anybody on the underlay could send as any pod there.
#[test]
fn strict_no_peers_word_opens_a_door_in_clear() {
    let peer = Says { accepts: &[VXLAN4, WIREGUARD], ..DUAL };
    let strict = Config { encryption: Encryption::Wireguard, strict_encryption: true, ..vxlan() };
    let check = |config: &Config, is_strict: bool, was_told: bool, hears: bool| {
        let mut fixture = Fixture::new(config.clone(), ME, &[peer]);
        let theirs = "vxlan/ipv4/vni7/port5353";
        fixture.sends(&peer, &[theirs.into(), "wireguard/ipv4/port51822/key1".into()]);
        if is_strict {
            let chain = Key::NftChain { chain: NFT_STRICT_CHAIN.into() };
            fixture.world.programmed.mirror.insert(chain, Object::NftTable, Owner::Node);
        }
        if was_told {
            let own = Arc::clone(&fixture.world.said.as_ref().unwrap().last);
            let end = Endpoint { instance: theirs.into(), ..advert(&DUAL).accepts[1].clone() };
            let accepts = own.accepts.iter().cloned().chain([end]).collect();
            fixture.world.said = Some(Said::heard(Advert { accepts, ..Advert::clone(&own) }.into()));
        }
        let out = fixture.plan();
        assert_eq!(out.receives.contains(&theirs.parse().unwrap()), hears, "{is_strict} {was_told}");
        assert!(out.state.holds(&Key::KeyPair { name: "wireguard-1".into() }, &Object::KeyPair), "{:?}", out.state);
    };
    check(&strict, true, false, false);
    // What it may be sent already it hears until nobody does.
    check(&strict, true, true, true);
    // Some pair still goes over: those that are not strict yet lose nothing.
    check(&strict, false, false, true);
    check(&vxlan(), false, false, true);
}
