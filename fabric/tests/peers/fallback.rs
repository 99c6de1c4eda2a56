//! Pairs whose fabric is blocked, and what carries their packets then.

use super::*;

/// What carries packets to the peer, what stands behind that, as the devices' instances, and whether ways can be probed.
fn ways(fixture: &Fixture, out: &Out) -> (String, Option<String>, usize) {
    let instance = |metric: u32| {
        let routes = out.state.iter().filter_map(|(key, entry)| match (key, &entry.object) {
            (Key::Route { metric: of, .. }, Object::Route(route)) if *of == metric => route.dev.clone(),
            _ => None,
        });
        let devices: std::collections::BTreeSet<_> = routes.collect();
        assert!(devices.len() <= 1, "both families go the same way: {devices:?}");
        let names = out.receives.iter().map(|at| (at.device(), at.to_string())).collect::<BTreeMap<_, _>>();
        devices.first().map(|dev| names.get(dev).cloned().unwrap_or_else(|| HOST_GW.into()))
    };
    let standbys = tartan_fabric::selftest::standbys(out, &fixture.world).len();
    (instance(1024).unwrap(), instance(2048), standbys)
}

#[test]
fn where_the_fabric_is_blocked_the_fallback_carries_packets_until_it_is_not() {
    const UDP4: &str = "udp/ipv4/port8285";
    let encrypted = Config { encryption: Encryption::Wireguard, ..vxlan() };
    for (config, at) in [(vxlan(), VXLAN4), (host_gw(), HOST_GW), (encrypted, WIREGUARD)] {
        let peer = Says { accepts: &[HOST_GW, VXLAN4, UDP4, WIREGUARD], ..DUAL };
        let mut fixture = Fixture::new(Config { fallback: Some(FabricMode::Udp), ..config }, ME, &[peer]);
        let mut memo = Memo::default();
        let mut check = |is_heard: bool, passes: Option<Passing>, want: (&str, Option<&str>, usize)| {
            let key = ("dual".into(), at.into());
            if is_heard {
                fixture.hear(&peer);
            } else {
                fixture.now += fixture.world.config.lease;
            }
            fixture.world.passes = Arc::new(passes.into_iter().map(|passes| (key.clone(), passes)).collect());
            let next = fixture.plan();
            assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &next);
            fixture.at_rest();
            let out = fixture.plan();
            assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &out);
            let (used, behind, standbys) = ways(&fixture, &out);
            assert_eq!((used.as_str(), behind.as_deref(), standbys), want, "{at} {passes:?}");
            assert_eq!(out.peers["dual"].live, is_heard);
            // Of who is silent nothing is said.
            let in_clear = is_heard && at == WIREGUARD && used != WIREGUARD;
            let said: Vec<&str> = out.conditions.iter().map(|condition| condition.reason).collect();
            assert_eq!(said, if in_clear { &["Unencrypted"][..] } else { &[] }, "{at} {passes:?}");
            ways(&fixture, &next).0
        };
        check(true, None, (at, None, 0));
        check(true, Some(Passing::All), (at, None, 0));
        // No packet goes another way before the way back is in the kernel.
        let next = check(true, Some(Passing::Nothing), (UDP4, Some(at), 2));
        assert_eq!(next, at);
        // An agent that starts anew knows it from the kernel.
        check(true, None, (UDP4, Some(at), 2));
        // Who is silent is not tested, and its kernel forwards on.
        check(false, None, (UDP4, Some(at), 0));
        check(false, None, (UDP4, Some(at), 0));
        check(true, None, (UDP4, Some(at), 2));
        check(true, Some(Passing::All), (at, None, 0));
        check(true, None, (at, None, 0));
        // Open again, and narrow.
        check(true, Some(Passing::Nothing), (UDP4, Some(at), 2));
        check(true, Some(Passing::UpTo(1349)), (at, None, 0));
    }
}

#[test]
fn there_is_no_fallback_where_none_is_configured_or_allowed_or_the_peer_does_not_hear_it() {
    const UDP4: &str = "udp/ipv4/port8285";
    let check = |config: Config, accepts: &'static [&'static str], at: &str| {
        let mut fixture = Fixture::new(config.clone(), ME, &[Says { accepts, ..DUAL }]);
        fixture.world.passes = Arc::new(BTreeMap::from([(("dual".into(), at.into()), Passing::Nothing)]));
        fixture.at_rest();
        let out = fixture.plan();
        assert_eq!(ways(&fixture, &out), (at.into(), None, 0), "{config:?}");
    };
    let falls_back = |config: Config| Config { fallback: Some(FabricMode::Udp), ..config };
    check(vxlan(), &[VXLAN4, UDP4], VXLAN4);
    check(falls_back(vxlan()), &[VXLAN4], VXLAN4);
    // It would go in clear.
    let strict = Config { encryption: Encryption::Wireguard, strict_encryption: true, ..vxlan() };
    check(falls_back(strict), &[VXLAN4, UDP4, WIREGUARD], WIREGUARD);

    // Nor does what is blocked stand behind it before there is a device.
    let mut fixture = Fixture::new(falls_back(host_gw()), ME, &[Says { accepts: &[HOST_GW, UDP4, WIREGUARD], ..DUAL }]);
    fixture.world.config = Config { encryption: Encryption::Wireguard, ..falls_back(host_gw()) }.into();
    fixture.world.passes = Arc::new(BTreeMap::from([(("dual".into(), WIREGUARD.into()), Passing::Nothing)]));
    let (used, behind, _) = ways(&fixture, &fixture.plan());
    assert_eq!((used.as_str(), behind), (HOST_GW, None));
    fixture.at_rest();
    let (used, behind, _) = ways(&fixture, &fixture.plan());
    assert_eq!((used.as_str(), behind.as_deref()), (UDP4, Some(WIREGUARD)));
}
