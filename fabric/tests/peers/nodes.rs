//! What nodes send each other under their own addresses, and whether it is encrypted.

use tartan_model::WireguardConfig;

use super::*;

/// Where what this node itself sends goes before the main table is asked.
fn to_nodes(out: &Out) -> Vec<String> {
    let of_nodes = |(key, _): (&Key, &tartan_netstate::Entry)| match key {
        Key::Route { table: 7474, dst, .. } => Some(dst.addr().to_string()),
        _ => None,
    };
    out.state.iter().filter_map(of_nodes).collect()
}

#[test]
fn nodes_own_packets_are_encrypted_behind_rules_that_the_kernel_holds_and_not_to_the_control_plane() {
    let wireguard = WireguardConfig { nodes: true, ..vxlan().wireguard };
    let asked = Config { encryption: Encryption::Wireguard, wireguard, ..vxlan() };
    let peer = Says { accepts: &[HOST_GW, VXLAN4, WIREGUARD], ..DUAL };
    let check = |config: &Config, peer: Says, change: fn(&mut World), wanted: &[&str]| {
        let mut fixture = Fixture::new(config.clone(), ME, &[peer]);
        change(&mut fixture.world);
        let mut memo = Memo::default();
        for _ in 0..3 {
            let out = fixture.plan();
            assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &out);
            fixture.hear(&peer);
            change(&mut fixture.world);
            fixture.at_rest();
        }
        let out = fixture.plan();
        assert_eq!(to_nodes(&out), wanted);
        assert_eq!(out.peers[peer.name].to_itself.is_some(), !wanted.is_empty());
        // What is to keep WireGuard's own packets out has gone.
        let mirror = &mut fixture.world.programmed.mirror;
        let rules: Vec<Key> =
            mirror.iter().map(|(key, _)| key.clone()).filter(|key| matches!(key, Key::Rule { .. })).collect();
        rules.iter().for_each(|rule| drop(mirror.remove(rule)));
        let out = fixture.plan();
        assert_eq!(plan(&mut memo, &fixture.world, &fixture.owned, fixture.now), &out);
        assert_eq!(to_nodes(&out), [""; 0]);
    };
    fn labelled(world: &mut World, name: &str) {
        let mut node = tartan_model::Node::clone(&world.nodes[name]);
        node.labels.insert("node-role.kubernetes.io/control-plane".into(), String::new());
        world.nodes.insert(name.into(), Arc::new(node));
    }
    let both = ["192.0.2.2", "2001:db8::2"];
    check(&asked, peer, |_| {}, &both);
    check(&asked, peer, |world| labelled(world, "dual"), &[]);
    check(&asked, peer, |world| labelled(world, "me"), &[]);
    // An address that its Node does not have is what a NAT gives it.
    let behind = |world: &mut World| {
        let mut node = tartan_model::Node::clone(&world.nodes["dual"]);
        node.internal_ips.retain(|ip| ip.is_ipv6());
        world.nodes.insert("dual".into(), Arc::new(node));
    };
    check(&asked, peer, behind, &both[1..]);
    check(&asked, Says { name: SHY, ..peer }, |_| {}, &[]);
    check(&asked, DUAL, |_| {}, &[]);
    check(&Config { encryption: Encryption::None, ..asked.clone() }, peer, |_| {}, &[]);
}
