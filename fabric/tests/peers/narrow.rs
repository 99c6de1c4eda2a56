//! Ways that large packets do not pass.

use super::*;

/// The largest packet that the kernel takes for each of the peer's ranges.
fn mtus(out: &Out) -> Vec<(Family, Option<u32>)> {
    let mut mtus: Vec<_> = out
        .state
        .iter()
        .filter_map(|(key, entry)| match (key, &entry.object) {
            (Key::Route { dst, metric: 1024, .. }, Object::Route(route)) => Some((Family::of_net(dst), route.mtu)),
            _ => None,
        })
        .collect();
    mtus.sort();
    mtus
}

#[test]
fn who_sends_a_larger_packet_than_gets_to_a_peer_is_told_so_by_its_route() {
    let peer = Says { accepts: &[HOST_GW, VXLAN4], ..DUAL };
    let mut fixture = Fixture::new(vxlan(), ME, &[peer]);
    fixture.at_rest();
    let mut memo = Memo::default();
    let mut check = |is_heard: bool, at: &str, passing: Option<Passing>, mtu: Option<u32>| {
        if is_heard {
            fixture.hear(&peer);
        } else {
            fixture.now += fixture.world.config.lease;
        }
        fixture.world.passes =
            Arc::new(passing.into_iter().map(|passing| (("dual".into(), at.into()), passing)).collect());
        let out = fixture.plan();
        assert_eq!(out.peers["dual"].live, is_heard);
        assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &out);
        assert_eq!(mtus(&out), Family::ALL.map(|family| (family, mtu)), "{at} {passing:?}");
        fixture.at_rest();
        assert_eq!(mtus(&fixture.plan()), Family::ALL.map(|family| (family, mtu)), "{at} {passing:?}");
    };
    check(true, VXLAN4, None, None);
    check(true, VXLAN4, Some(Passing::UpTo(1349)), Some(1349));
    check(true, VXLAN4, Some(Passing::UpTo(1330)), Some(1330));
    // Nobody tests the way to who is silent, and it takes a while when it is heard again, or when this agent starts anew.
    check(false, VXLAN4, None, Some(1330));
    check(true, VXLAN4, None, Some(1330));
    // What IPv6 cannot do without, and what the kernel would refuse.
    check(true, VXLAN4, Some(Passing::UpTo(64)), Some(1280));
    check(true, VXLAN4, Some(Passing::Nothing), None);
    check(true, VXLAN4, Some(Passing::UpTo(1349)), Some(1349));
    check(true, VXLAN4, Some(Passing::All), None);
    check(false, VXLAN4, None, None);
    // Another way is another matter.
    check(true, HOST_GW, Some(Passing::UpTo(1349)), None);
}

/// The kernel's ipip devices note the MTU of each destination in IPv4 unless its route is held to one.
#[test]
fn a_route_by_ipip_is_held_to_what_the_device_passes() {
    for (underlay, at, carried) in [(Family::V4, IPIP4, 1480), (Family::V6, IPIP6, 1460)] {
        let peer = Says { accepts: &[IPIP4, IPIP6], ..DUAL };
        let ipip = Config { underlay: Some(underlay), ..config(FabricMode::Ipip, false) };
        let mut fixture = Fixture::new(ipip, ME, &[peer]);
        let mut check = |grown: u32, passing: Option<Passing>, held: u32, v6: Option<u32>| {
            let mut host = (*fixture.world.host).clone();
            host.links[0].mtu = 1500 + grown;
            fixture.world.host = Arc::new(host);
            fixture.world.passes =
                Arc::new(passing.into_iter().map(|passing| (("dual".into(), at.into()), passing)).collect());
            fixture.hear(&peer);
            fixture.at_rest();
            let out = fixture.plan();
            assert_eq!(mtus(&out), [(Family::V4, Some(held)), (Family::V6, v6)], "{at} {grown} {passing:?}");
            for (key, entry) in out.state.iter() {
                if let (Key::Route { dst, .. }, Object::Route(route)) = (key, &entry.object) {
                    assert_eq!(route.mtu_locked, dst.addr().is_ipv4() && route.mtu.is_some(), "{key}");
                }
            }
        };
        check(0, None, carried, None);
        check(0, Some(Passing::UpTo(1349)), 1349, Some(1349));
        check(0, None, 1349, Some(1349));
        check(0, Some(Passing::All), carried, None);
        // It is not taken for a hole that is known.
        check(100, None, carried + 100, None);
        check(0, None, carried, None);
    }
}
