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
    // And this node's own, as long as peers may send there.
    let mut fixture = Fixture::new(vxlan(), ME, &[Says { accepts: &[], ..DUAL }]);
    fixture.world.config = Arc::new(changed);
    assert_eq!(fixture.plan().between_nodes, BTreeSet::from([4789, 8285, 8472]));
    fixture.at_rest();
    assert_eq!(fixture.plan().between_nodes, BTreeSet::from([4789, 8285]));
}
