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
    let mut check = |at: &str, passing: Option<Passing>, mtu: Option<u32>| {
        fixture.hear(&peer);
        fixture.world.passes =
            Arc::new(passing.into_iter().map(|passing| (("dual".into(), at.into()), passing)).collect());
        let out = fixture.plan();
        assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &out);
        assert_eq!(mtus(&out), Family::ALL.map(|family| (family, mtu)), "{at} {passing:?}");
        fixture.at_rest();
        assert_eq!(mtus(&fixture.plan()), Family::ALL.map(|family| (family, mtu)), "{at} {passing:?}");
    };
    check(VXLAN4, None, None);
    check(VXLAN4, Some(Passing::UpTo(1349)), Some(1349));
    check(VXLAN4, Some(Passing::UpTo(1330)), Some(1330));
    // What IPv6 cannot do without, and what the kernel would refuse.
    check(VXLAN4, Some(Passing::UpTo(64)), Some(1280));
    check(VXLAN4, Some(Passing::Nothing), None);
    check(VXLAN4, Some(Passing::All), None);
    // Another way is another matter.
    check(HOST_GW, Some(Passing::UpTo(1349)), None);
}
