//! Whose a range is, where claims of several nodes lie in each other: by whoever looks at them.

use tartan_model::{Block, Holder, Part};

use super::*;

const OWNER: Says =
    Says { name: "owner", underlay: &["192.0.2.3"], blocks: &["10.2.4.0/24"], accepts: &[VXLAN4, WIREGUARD] };
const TAKER: Says =
    Says { name: "taker", underlay: &["192.0.2.4"], blocks: &["10.2.4.64/28"], accepts: &[VXLAN4, WIREGUARD] };

/// All of them have what IPBlocks say; what the owner has of `part` is the taker's.
fn cluster(config: Config, me: Says, peers: &[Says], part: bool) -> Fixture {
    let mut fixture = Fixture::new(config, me, peers);
    let pool = Pool {
        name: "pods".into(),
        cidr: "10.2.0.0/16".parse().unwrap(),
        block_size: 24,
        nodes: Selector::all(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    fixture.world.pools.insert("pods".into(), Arc::new(pool));
    let holder = Holder::Node { name: TAKER.name.into(), uid: format!("{}-uid", TAKER.name).into() };
    let part = part.then(|| Part { cidr: TAKER.blocks[0].parse().unwrap(), holder });
    for says in [me].iter().chain(peers) {
        let node = Node { pod_cidrs: Vec::new(), ..node(says) };
        for block in says.blocks.iter().filter(|block| part.is_none() || **block != TAKER.blocks[0]) {
            let cidr = block.parse().unwrap();
            let parts = part.iter().filter(|_| says.name == OWNER.name).cloned().collect();
            let (name, node_uid) = (node.name.clone(), node.uid.clone());
            let block = Block { cidr, pool: "pods".into(), node: name, node_uid, parts };
            fixture.world.blocks.insert(cidr, Arc::new(block));
        }
        fixture.world.nodes.insert(says.name.into(), Arc::new(node));
    }
    fixture.at_rest();
    fixture
}

fn blocks(fixture: &Fixture, peer: Says) -> Vec<String> {
    fixture.plan().peers[peer.name].blocks.iter().map(ToString::to_string).collect()
}

#[test]
fn who_has_a_part_of_a_block_and_its_owner_reach_each_other_and_are_reached() {
    let third = cluster(vxlan(), ME, &[OWNER, TAKER], true);
    assert_eq!(
        (blocks(&third, OWNER), blocks(&third, TAKER)),
        (vec!["10.2.4.0/24".into()], vec!["10.2.4.64/28".into()])
    );
    assert_eq!(blocks(&cluster(vxlan(), OWNER, &[ME, TAKER], true), TAKER), ["10.2.4.64/28"]);
    assert_eq!(blocks(&cluster(vxlan(), TAKER, &[ME, OWNER], true), OWNER), ["10.2.4.0/24"]);
    // Without the owner's leave it is nobody's.
    for (me, others) in [(ME, [OWNER, TAKER]), (OWNER, [ME, TAKER])] {
        assert_eq!(blocks(&cluster(vxlan(), me, &others, false), TAKER), [] as [&str; 0]);
    }
}

#[test]
fn what_a_node_claims_beside_pools_takes_nothing_from_anybody() {
    let check = |claims: &'static [&'static str], left: &[&str]| {
        let liar = Says { blocks: claims, ..TAKER };
        let fixture = cluster(vxlan(), ME, &[OWNER, liar], false);
        assert_eq!(blocks(&fixture, liar), left, "{:?}", fixture.plan().conditions);
        assert_eq!(blocks(&fixture, OWNER), OWNER.blocks);
    };
    // A pod of another node, and nodes: one that is a peer, this one, and what is around them.
    check(&["10.2.4.7/32"], &[]);
    check(&["192.0.2.3/32"], &[]);
    check(&["192.0.2.1/32"], &[]);
    check(&["192.0.0.0/16", "2001:db8::/32"], &[]);
    // What a pool that is gone has left.
    check(&["10.7.0.0/26", "10.2.9.0/24"], &["10.7.0.0/26", "10.2.9.0/24"]);
    // Whatever is more specific stays whose it is.
    check(&["10.2.0.0/15"], &["10.2.0.0/15"]);
}

/// A node that no pool is for any more goes back to it.
#[test]
fn a_podcidr_around_blocks_of_others_takes_none_of_them() {
    let back = Says { name: "back", underlay: &["192.0.2.5"], blocks: &["10.2.0.0/16"], accepts: &[VXLAN4] };
    let liar = Says { blocks: &["10.2.9.1/32"], ..TAKER };
    let mut fixture = cluster(vxlan(), ME, &[OWNER, liar, back], false);
    fixture.world.blocks.remove(&"10.2.0.0/16".parse::<ipnet::IpNet>().unwrap());
    fixture.world.nodes.insert(back.name.into(), Arc::new(node(&back)));
    assert_eq!(
        (blocks(&fixture, OWNER), blocks(&fixture, back)),
        (vec!["10.2.4.0/24".into()], vec!["10.2.0.0/16".into()])
    );
    assert_eq!(blocks(&fixture, liar), [] as [&str; 0], "which is of no pool");
    // What pools there are is no peer's word.
    let mut memo = Memo::default();
    let mut at = |world: &World| plan(&mut memo, world, &fixture.owned, fixture.now).peers[OWNER.name].blocks.len();
    assert_eq!(at(&fixture.world), 1);
    let mut world = fixture.world.clone();
    world.pools.clear();
    assert_eq!(at(&world), 0);
    assert_eq!(at(&fixture.world), 1);
}

/// They come and go in any order; what is known of the peers is kept up to date for each.
#[test]
fn ranges_are_judged_again_when_what_is_around_them_or_in_them_changes() {
    let liar = Says { blocks: &["10.2.4.7/32", "192.0.2.9/32"], ..TAKER };
    let node_at = Says { name: "late", underlay: &["192.0.2.9"], blocks: &["10.2.5.0/24"], accepts: &[VXLAN4] };
    let all = cluster(vxlan(), ME, &[OWNER, liar, node_at], false);
    let mut memo = Memo::default();
    let mut world = all.world.clone();
    for gone in [&[OWNER.name][..], &[node_at.name], &[OWNER.name, node_at.name], &[], &[OWNER.name]] {
        world.nodes = all.world.nodes.clone();
        gone.iter().for_each(|name| drop(world.nodes.remove(*name)));
        let kept = plan(&mut memo, &world, &all.owned, all.now).peers[liar.name].blocks.clone();
        let anew = plan(&mut Memo::default(), &world, &all.owned, all.now).peers[liar.name].blocks.clone();
        assert_eq!((&kept, kept.len()), (&anew, gone.len()), "{gone:?}");
    }
}

#[test]
fn nobody_takes_a_pods_packets_by_calling_its_address_the_nodes_own() {
    let encrypted = Config { encryption: Encryption::Wireguard, ..vxlan() };
    let liar = Says { underlay: &["192.0.2.4", "10.2.4.7"], blocks: &["10.2.9.0/24"], ..TAKER };
    let mut fixture = cluster(encrypted, ME, &[OWNER, liar], false);
    let heard = fixture.world.adverts[liar.name].clone();
    let addresses = PerFamily::first_of(["10.2.4.7".parse().unwrap()]);
    let advert = Advert { addresses, ..Advert::clone(&heard.advert) }.into();
    fixture.world.adverts.insert(liar.name.into(), Heard { advert, ..heard });
    let link = WIREGUARD.parse::<Instance>().unwrap().device();
    let state = fixture.plan().state;
    let peer = WgPeer::of("192.0.2.4:51820".parse().unwrap(), 25, ["10.2.9.0/24".parse().unwrap()]);
    let key = Key::WgPeer { link, public_key: key_of(liar.name) };
    assert!(state.holds(&key, &Object::WgPeer(peer.into())), "{:?}", state.get(&key));
}
