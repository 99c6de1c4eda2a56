//! What one node decides, as tables: which address, which refusal, which claim, which condition.

mod node;

use std::net::IpAddr;
use std::time::Duration;

use node::{Setup, advert, block, given, node, pool, reservation};
use tartan_ipam::{Claim, Memo, Request};
use tartan_model::{Block, Holder, Host, HostLink, Kind, Object, ObjectId, PerFamily, StoreEvent};

/// What a request comes to: the addresses, or the words of the refusal.
fn answer(setup: &Setup, namespace: &str, asked: &str) -> String {
    let addresses = PerFamily::first_of(asked.split_whitespace().map(|ip| ip.parse().expect("a table of addresses")));
    let request = Request { namespace, addresses, id: "asks-again" };
    match tartan_ipam::allocate(&mut Memo::default(), &setup.world, &request, setup.now) {
        Ok(addresses) => addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(" "),
        Err(refused) => refused.to_string(),
    }
}

fn check(setup: &Setup, namespace: &str, asked: &str, want: &str) {
    assert_eq!(answer(setup, namespace, asked), want, "for '{asked}' in '{namespace}'");
}

/// The claims of a plan, each as one line.
fn claims(setup: &Setup) -> Vec<String> {
    tartan_ipam::plan(&mut Memo::default(), &setup.world, setup.now).claims.iter().map(line).collect()
}

fn line(claim: &Claim) -> String {
    let expect = claim.expect.as_ref().map_or("new".to_owned(), |revision| format!("at {}", revision));
    let Some(Object::Block(block)) = &claim.object else { return format!("{expect}: delete {}", claim.id.name) };
    let parts: Vec<String> = block.parts.iter().map(|part| format!("{} {}", part.cidr, holder(&part.holder))).collect();
    format!("{expect}: {} of {}/{} [{}]", block.cidr, block.node, block.node_uid, parts.join(", "))
}

fn holder(holder: &Holder) -> String {
    match holder {
        Holder::Aside => "aside".into(),
        Holder::Offered => "offered".into(),
        Holder::Node { name, .. } => format!("to {name}"),
        Holder::Leaving { name, .. } => format!("from {name}"),
    }
}

/// Reasons of a plan's conditions, with what they are about.
fn conditions(setup: &Setup) -> Vec<String> {
    let mut memo = Memo::default();
    let conditions = &tartan_ipam::plan(&mut memo, &setup.world, setup.now).conditions;
    assert!(conditions.iter().all(|condition| !condition.message.is_empty() && !condition.fix.is_empty()));
    conditions.iter().map(|condition| format!("{} {}", condition.about, condition.reason)).collect()
}

fn blocks(setup: &Setup) -> String {
    let mut memo = Memo::default();
    let out = tartan_ipam::plan(&mut memo, &setup.world, setup.now);
    let own = out.fabric_addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(" ");
    let blocks = out.blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    format!("{blocks}; own {own}")
}

#[test]
fn a_pod_cidr_is_a_block() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/29 fd01::/64")]);
    assert_eq!(blocks(&setup), "10.1.0.0/29 fd01::/64; own 10.1.0.0 fd01::");
    check(&setup, "a", "", "10.1.0.1 fd01::1");
    setup.attach("p1", "10.1.0.1 fd01::1");
    check(&setup, "a", "", "10.1.0.2 fd01::2");
    setup.detach("p1");
    check(&setup, "a", "", "10.1.0.2 fd01::2");
    setup.put(advert("n1", "10.1.0.0/29 fd01::/64").own("10.1.0.0 fd01::"));
    setup.put(reservation("r", "10.1.0.2/31 fd01::/126"));
    check(&setup, "a", "", "10.1.0.4 fd01::4");
    for host in 4..7 {
        setup.attach(&format!("p{host}"), &format!("10.1.0.{host} fd01::{host}"));
    }
    check(
        &setup,
        "a",
        "",
        "ipv4: no address is free: podCIDR 10.1.0.0/29 (8 addresses: 3 used, 2 reserved, 1 resting after use); the next one has rested in 31 s; delete pods, or give the node a larger podCIDR or an IPPool",
    );
    assert_eq!(conditions(&setup), ["Node/n1 PodCidrExhausted"]);
    setup.now += Duration::from_secs(30);
    check(&setup, "a", "", "10.1.0.1 fd01::7");
    assert_eq!(conditions(&setup), [""; 0]);
    assert_eq!(claims(&setup), [""; 0]);
}

/// A bridge of before has pods, and its own address; what it let go of is given out.
#[test]
fn what_the_network_before_gave_out_is_kept_clear_of() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/29 fd01::/125")]);
    let with = |setup: &mut Setup, addresses: &str| {
        let given = addresses
            .split_whitespace()
            .map(|ip| (ip.parse::<IpAddr>().expect("an address"), std::sync::Arc::from("c1")));
        setup.world.given = given.collect();
    };
    check(&setup, "shop", "", "10.1.0.1 fd01::1");
    with(&mut setup, "10.1.0.1 10.1.0.3 fd01::1");
    check(&setup, "shop", "", "10.1.0.2 fd01::2");
    setup.attach("a", "10.1.0.2 fd01::2");
    check(&setup, "shop", "", "10.1.0.4 fd01::3");
    with(&mut setup, "10.1.0.3 192.0.2.1");
    check(&setup, "shop", "", "10.1.0.1 fd01::1");
    let link = |name: &str, address: &str| HostLink {
        name: name.into(),
        kind: "bridge".into(),
        mtu: 1450,
        up: true,
        loopback: false,
        addresses: vec![address.parse().expect("an address")],
        accept_ra: 0,
    };
    let links = vec![link("cni0", "10.1.0.1/29"), link("flannel.1", "10.1.0.0/32")];
    setup.world.host = std::sync::Arc::new(Host { links, ..Host::default() });
    check(&setup, "shop", "", "10.1.0.4 fd01::1");
    assert_eq!(blocks(&setup), "10.1.0.0/29 fd01::/125; own 10.1.0.0 fd01::", "Flannel had it for the node, too");
    with(&mut setup, "10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6");
    let refused = answer(&setup, "shop", "");
    assert!(refused.contains("podCIDR 10.1.0.0/29 (8 addresses: 5 used"), "{refused}");
    // Nor are they had by name.
    for (address, why) in [("10.1.0.3", "on this node has it"), ("10.1.0.1", "it is the node's own address")] {
        let refused = answer(&setup, "shop", address);
        assert!(refused.contains(&format!("the pod asks for {address}:")) && refused.contains(why), "{refused}");
    }
}

#[test]
fn an_address_by_name_is_had_or_refused_with_the_cause() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24 fd02::/64")]);
    setup.attach("web", "10.1.0.9");
    setup.attach("asks-again", "10.1.0.11");
    setup.attach("gone", "10.1.0.10");
    setup.detach("gone");
    setup.put(reservation("printers", "10.1.0.64/28"));
    setup.put(pool("other", "10.9.0.0/24", 26).nodes("nobody == 'here'"));
    setup.put(block("10.9.0.0/26", "other", "n2"));
    let here = "ask for an address of 10.1.0.0/24";
    for (asked, want) in [
        ("10.1.0.200", "10.1.0.200".to_owned()),
        ("10.1.0.10", "10.1.0.10".to_owned()),
        ("10.1.0.11", "10.1.0.11".to_owned()),
        ("10.1.0.9", "the pod asks for 10.1.0.9: pod ns/web on this node has it; delete that pod first, or ask for another address".to_owned()),
        ("10.1.0.70", "the pod asks for 10.1.0.70: IPReservation printers keeps 10.1.0.64/28; change the reservation, or ask for another address".to_owned()),
        ("10.1.0.0", "the pod asks for 10.1.0.0: it is the node's own address, or the broadcast address of 10.1.0.0/24; ask for another one".to_owned()),
        ("10.1.0.255", "the pod asks for 10.1.0.255: it is the node's own address, or the broadcast address of 10.1.0.0/24; ask for another one".to_owned()),
        ("10.2.0.7", format!("the pod asks for 10.2.0.7: node n2 has 10.2.0.0/24; run the pod there, or {here}")),
        ("10.9.0.7", format!("the pod asks for 10.9.0.7: node n2 has 10.9.0.0/26; run the pod there, or {here}")),
        ("192.0.2.1", format!("the pod asks for 192.0.2.1: it is not in a range of this node; {here}")),
        ("fd02::1", "ipv6: the pod asks for fd02::1, but this node gives no ipv6 addresses; take it out of the request, or give the node a podCIDR or an IPPool of that family".to_owned()),
    ] {
        check(&setup, "a", asked, &want);
    }
}

#[test]
fn pools_are_for_namespaces_and_nodes() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/24")]);
    setup.put(pool("all", "10.8.0.0/24", 26));
    setup.put(pool("blue", "10.9.0.0/24", 26).namespaces("projectcalico.org/name == 'blue'"));
    assert_eq!(
        answer(&setup, "a", ""),
        "ipv4: this node is claiming its first block of IPPool all (10.8.0.0/24); the runtime will try again, and should get one within seconds"
    );
    assert_eq!(claims(&setup).len(), 2, "one of each pool: {:?}", claims(&setup));
    setup.put(block("10.8.0.64/26", "all", "n1"));
    setup.put(block("10.9.0.64/26", "blue", "n1"));
    assert_eq!(blocks(&setup), "10.8.0.64/26 10.9.0.64/26; own 10.8.0.64");
    check(&setup, "a", "", "10.8.0.65");
    check(&setup, "blue", "", "10.9.0.64");
    check(
        &setup,
        "a",
        "10.9.0.70",
        "the pod asks for 10.9.0.70: IPPool blue is not for this pod's namespace; change its namespaceSelector, or ask for another address",
    );
    setup.put(pool("all", "10.8.0.0/24", 26).disabled());
    check(
        &setup,
        "a",
        "",
        "ipv4: no IPPool of this node is for pods of namespace 'a' (there are IPPool blue (10.9.0.0/24)); change the namespaceSelector of one, or create another",
    );
    tartan_ipam::any_left(&mut Memo::default(), &setup.world, setup.now)
        .expect("a pod of namespace blue would get one");
    setup.put(pool("blue", "10.9.0.0/24", 26).nodes("gpu == 'yes'"));
    check(&setup, "a", "", "10.1.0.1");
    check(
        &setup,
        "a",
        "10.8.0.70",
        "the pod asks for 10.8.0.70: 10.8.0.64/26 gives out no new addresses: its IPPool is disabled, gone or does not select this node any more; ask for an address of 10.1.0.0/24",
    );
    setup.attach("old", "10.1.0.1");
    setup.put(pool("all", "10.8.0.0/24", 26));
    check(
        &setup,
        "a",
        "10.1.0.2",
        "the pod asks for 10.1.0.2: 10.1.0.0/24 gives out no new addresses: it is the node's podCIDR, and pools select the node; ask for an address of 10.8.0.64/26",
    );
}

const NONE_FOR_A: &str = "ipv6: no IPPool of this node is for pods of namespace 'a' (there are IPPool blue (fd09::/64)); change the namespaceSelector of one, or create another";

#[test]
fn a_pool_for_one_namespace_leaves_others_as_they_were() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/24")]);
    setup.put(pool("blue", "fd09::/64", 122).namespaces("projectcalico.org/name == 'blue'"));
    setup.put(block("fd09::40/122", "blue", "n1"));
    check(&setup, "a", "", "10.1.0.1");
    check(&setup, "blue", "", "10.1.0.1 fd09::41");
    check(
        &setup,
        "a",
        "fd09::42",
        "the pod asks for fd09::42: IPPool blue is not for this pod's namespace; change its namespaceSelector, or ask for another address",
    );
    let name = Block::name_of(&"fd09::40/122".parse().unwrap()).into();
    setup.world.store(StoreEvent::Delete(ObjectId { kind: Kind::IpBlock, name }), setup.now);
    tartan_ipam::any_left(&mut Memo::default(), &setup.world, setup.now).expect("it is not for everybody");
    setup.put(node("n1", ""));
    check(&setup, "a", "", NONE_FOR_A);
}

/// Half a pod is no pod of a cluster of both families.
#[test]
fn a_pool_in_place_of_a_pod_cidr_is_to_be_for_all() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/24 fd01::/64")]);
    check(&setup, "a", "", "10.1.0.1 fd01::1");
    setup.put(pool("blue", "fd09::/64", 122).namespaces("projectcalico.org/name == 'blue'"));
    check(&setup, "a", "", NONE_FOR_A);
}

#[test]
fn an_exhausted_pool_is_named() {
    let mut setup = Setup::new([node("n1", ""), node("n2", "")]);
    check(
        &setup,
        "a",
        "",
        "node n1 has no range for pods: its Node has no podCIDR and no enabled IPPool selects it; give the Node a podCIDR, or create an IPPool whose nodeSelector matches it",
    );
    assert_eq!(conditions(&setup), ["Node/n1 NoRange"]);
    setup.put(pool("p", "10.8.0.0/29", 30));
    setup.put(block("10.8.0.0/30", "p", "n1"));
    for host in 1..4 {
        setup.attach(&format!("p{host}"), &format!("10.8.0.{host}"));
    }
    assert_eq!(claims(&setup), ["new: 10.8.0.4/30 of n1/uid-n1 []"]);
    let numbers =
        "ipv4: no address is free: 10.8.0.0/30 of IPPool p (4 addresses: 3 used, 0 reserved, 0 resting after use)";
    check(&setup, "a", "", &format!("{numbers}; another block is being claimed, the runtime will try again"));
    setup.world.store(StoreEvent::Away(None, "connection refused".into()), setup.now);
    check(
        &setup,
        "a",
        "",
        &format!("{numbers}; another block is claimed once the store is back, which is away (connection refused)"),
    );
    setup.world.store(StoreEvent::Synced(Kind::IpBlock), setup.now);
    setup.put(block("10.8.0.4/30", "p", "n2"));
    check(
        &setup,
        "a",
        "",
        &format!(
            "{numbers}; every block of the pool is claimed and no node has a part to spare: add an IPPool, or make room in this one by deleting pods or nodes"
        ),
    );
    assert_eq!((claims(&setup), conditions(&setup)), (vec![], vec!["IPPool/p PoolExhausted".to_owned()]));
    setup.put(given(block("10.8.0.4/30", "p", "n2"), "10.8.0.6/31", Holder::Offered));
    assert_eq!(claims(&setup), ["at 5: 10.8.0.4/30 of n2/uid-n2 [10.8.0.6/31 to n1]"]);
}

#[test]
fn a_node_made_anew_adopts_what_its_pods_use_and_nothing_else() {
    let mut setup = Setup::new([node("n1", "").uid("new"), node("n2", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    setup.put(block("10.8.0.0/26", "p", "n1").uid("old"));
    setup.put(block("10.8.0.64/26", "p", "n1").uid("old"));
    assert_eq!(blocks(&setup), "; own ");
    setup.attach("p1", "10.8.0.3");
    assert_eq!(blocks(&setup), "10.8.0.0/26; own 10.8.0.0", "kept for its pod");
    assert!(answer(&setup, "a", "").contains("this node is claiming its first block"), "but nothing new out of it");
    let claims = claims(&setup);
    assert!(claims.contains(&"at 3: 10.8.0.0/26 of n1/new []".to_owned()), "{claims:?}");
    assert!(claims.contains(&"at 4: delete 10-8-0-64-26".to_owned()), "{claims:?}");
    setup.put(block("10.8.0.0/26", "p", "n2"));
    assert_eq!(blocks(&setup), "; own ", "lost while it was away");
    assert_eq!(conditions(&setup), ["Pod/ns/p1 NotOurAddress"]);
}

/// Others hear of its new UID before it has written that into its blocks.
#[test]
fn what_the_pods_of_a_node_made_anew_are_in_is_freed_by_no_other() {
    let mut setup = Setup::new([node("n1", ""), node("n9", "").uid("new")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    let n9 = || Holder::Node { name: "n9".into(), uid: "uid-n9".into() };
    setup.put(block("10.8.0.0/26", "p", "n9"));
    setup.put(block("10.8.0.64/26", "p", "n9"));
    setup.put(given(block("10.8.0.128/26", "p", "n1"), "10.8.0.128/28", n9()));
    setup.put(given(block("10.8.0.192/26", "p", "n8"), "10.8.0.192/28", n9()));
    setup.put(advert("n9", "10.8.0.0/26 10.8.0.64/26 10.8.0.128/28 10.8.0.192/28").uid("new"));
    let said = claims(&setup);
    let is_taken =
        |claim: &String| claim.contains("delete") || claim.contains("10.8.0.128/26") && !claim.contains("n9");
    assert!(!said.iter().any(is_taken), "what it says that it has is its own: {said:?}");
    setup.now += Duration::from_secs(40 + 30);
    let said = claims(&setup);
    for freed in ["10-8-0-0-26", "10-8-0-64-26", "10-8-0-192-26", "10.8.0.128/26"] {
        assert!(said.iter().any(|claim| claim.contains(freed) && is_taken(claim)), "{freed}, it is silent: {said:?}");
    }
}

#[test]
fn blocks_of_a_node_that_is_gone_are_freed_or_inherited() {
    let mut setup = Setup::new([node("n1", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    setup.put(block("10.8.0.0/26", "p", "n9"));
    setup.put(given(
        block("10.8.0.64/26", "p", "n9"),
        "10.8.0.96/27",
        Holder::Node { name: "n1".into(), uid: "uid-n1".into() },
    ));
    setup.put(advert("n9", ""));
    let lease_and_cooldown = Duration::from_secs(40 + 30);
    assert_eq!(claims(&setup), [""; 0], "its lease runs");
    let wake_at = tartan_ipam::plan(&mut Memo::default(), &setup.world, setup.now).wake_at;
    assert_eq!(wake_at, Some(setup.now + lease_and_cooldown));
    setup.now += lease_and_cooldown;
    let freed = ["at 3: delete 10-8-0-0-26", "at 4: 10.8.0.64/26 of n1/uid-n1 []"];
    let claims_now = claims(&setup);
    assert!(freed.iter().all(|claim| claims_now.contains(&(*claim).to_owned())), "{claims_now:?}");
    setup.world.leases_rest = true;
    assert!(!claims(&setup).iter().any(|claim| claim.contains("delete")), "signs of life may have been missed");
}

#[test]
fn nothing_is_written_before_all_is_read_or_while_the_store_is_away() {
    let mut setup = Setup::new([node("n1", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    assert_eq!(claims(&setup).len(), 1);
    setup.world.store(StoreEvent::Away(None, "gone".into()), setup.now);
    assert_eq!(claims(&setup), [""; 0]);
    check(
        &setup,
        "a",
        "",
        "ipv4: this node has no block of IPPool p (10.8.0.0/24) yet, and claims none while the store is away (gone); the runtime will try again",
    );
    let unsynced = Setup::unsynced([node("n1", "")]);
    assert_eq!(claims(&unsynced), [""; 0]);
}

#[test]
fn overlaps_are_fenced_off() {
    let mut setup = Setup::new([node("n1", "10.1.0.0/24"), node("n0", "10.1.0.0/25")]);
    check(
        &setup,
        "a",
        "",
        "ipv4: podCIDR 10.1.0.0/24 of this node is used by node n0, too; give each node its own podCIDR and delete the pods of the node that had the wrong one",
    );
    assert_eq!(conditions(&setup), ["Node/n1 SamePodCidr"]);
    setup.put(advert("n1", "10.1.0.0/24"));
    check(&setup, "a", "", "10.1.0.1");
    setup.put(block("10.1.0.0/16", "wide", "n2"));
    check(
        &setup,
        "a",
        "",
        "ipv4: podCIDR 10.1.0.0/24 of this node lies in 10.1.0.0/16 of IPPool wide, which node n2 has; give the Node a podCIDR outside of the pool, or make the pool smaller",
    );

    let mut setup = Setup::new([node("n1", ""), node("n2", "")]);
    setup.put(pool("p1", "10.8.0.0/24", 26));
    setup.put(pool("p2", "10.8.0.0/16", 24));
    setup.put(block("10.8.0.0/26", "p1", "n1"));
    assert_eq!(conditions(&setup), ["IPPool/p2 PoolsOverlap"]);
    check(&setup, "a", "", "10.8.0.1");
    setup.put(block("10.8.0.0/24", "p2", "n2"));
    assert!(answer(&setup, "a", "").contains("no block of IPPool p1"), "{}", answer(&setup, "a", ""));
    assert_eq!(conditions(&setup)[1], "IPBlock/10-8-0-0-26 BlocksOverlap");
}

#[test]
fn claims_keep_clear_of_pod_cidrs_reservations_and_what_cannot_be_read() {
    let mut setup = Setup::new([node("n1", ""), node("n2", "10.8.0.0/26").label("zone", "b")]);
    setup.put(pool("p", "10.8.0.0/24", 26).nodes("!has(zone)"));
    setup.put(reservation("r", "10.8.0.64/26"));
    setup.invalid_block("10.8.0.128/26");
    assert_eq!(claims(&setup), ["new: 10.8.0.192/26 of n1/uid-n1 []"]);
    setup.put(block("10.8.0.192/26", "p", "n2"));
    assert_eq!(claims(&setup), [""; 0]);
    // Once the pool is for n2, too, and n2 has no pods left from before, its podCIDR is free.
    setup.put(pool("p", "10.8.0.0/24", 26));
    assert_eq!(claims(&setup), ["new: 10.8.0.0/26 of n1/uid-n1 []"]);
    setup.put(advert("n2", "10.8.0.0/26"));
    assert_eq!(claims(&setup), [""; 0]);
}

#[test]
fn the_nodes_own_address_stays_what_peers_were_told() {
    let mut setup = Setup::new([node("n1", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    setup.put(block("10.8.0.64/26", "p", "n1"));
    assert_eq!(blocks(&setup), "10.8.0.64/26; own 10.8.0.64");
    setup.put(block("10.8.0.0/26", "p", "n1"));
    assert_eq!(blocks(&setup), "10.8.0.0/26 10.8.0.64/26; own 10.8.0.0");
    // A new one is none that is reserved.
    setup.put(reservation("router", "10.8.0.0/30"));
    assert_eq!(blocks(&setup), "10.8.0.0/26 10.8.0.64/26; own 10.8.0.4");
    setup.put(reservation("router", "10.8.0.64/30"));
    setup.put(advert("n1", "10.8.0.64/26").own("10.8.0.64"));
    assert_eq!(blocks(&setup), "10.8.0.0/26 10.8.0.64/26; own 10.8.0.64");
    setup.put(reservation("router", "10.8.0.128/30"));
    check(&setup, "a", "", "10.8.0.0");
    assert_eq!(claims(&setup), ["at 4: 10.8.0.0/26 of n1/uid-n1 [10.8.0.0/26 aside]"], "the other one is spare");
    setup.put(given(block("10.8.0.0/26", "p", "n1"), "10.8.0.0/26", Holder::Aside));
    check(&setup, "a", "", "10.8.0.65");
    assert_eq!(claims(&setup), ["at 9: delete 10-8-0-0-26"]);
    setup.attach("late", "10.8.0.5");
    assert_eq!(claims(&setup), ["at 9: 10.8.0.0/26 of n1/uid-n1 []"], "a pod had slipped in");
}

#[test]
fn a_part_is_left_in_two_steps() {
    let mut setup = Setup::new([node("n1", ""), node("n2", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    setup.put(block("10.8.0.64/26", "p", "n1"));
    let ours = || Holder::Node { name: "n1".into(), uid: "uid-n1".into() };
    let leaving = Holder::Leaving { name: "n1".into(), uid: "uid-n1".into() };
    let part = |holder| given(block("10.8.0.0/26", "p", "n2"), "10.8.0.0/27", holder);
    setup.put(advert("n1", "10.8.0.64/26").own("10.8.0.64"));
    setup.put(part(ours()));
    assert_eq!(blocks(&setup), "10.8.0.0/27 10.8.0.64/26; own 10.8.0.64");
    check(&setup, "a", "", "10.8.0.0");
    assert_eq!(claims(&setup), ["at 5: 10.8.0.0/26 of n2/uid-n2 [10.8.0.0/27 from n1]"]);
    setup.put(part(leaving));
    check(&setup, "a", "", "10.8.0.65");
    check(
        &setup,
        "a",
        "10.8.0.9",
        "the pod asks for 10.8.0.9: this node is giving 10.8.0.0/27 up; ask for another address of 10.8.0.64/26",
    );
    assert_eq!(claims(&setup), ["at 6: 10.8.0.0/26 of n2/uid-n2 []"]);
    setup.attach("late", "10.8.0.9");
    assert_eq!(claims(&setup), ["at 6: 10.8.0.0/26 of n2/uid-n2 [10.8.0.0/27 to n1]"], "a pod had slipped in");
}

#[test]
fn a_shared_block_is_handed_on_in_two_steps() {
    let mut setup = Setup::new([node("n1", ""), node("n2", "")]);
    setup.put(pool("p", "10.8.0.0/24", 26));
    setup.put(block("10.8.0.64/26", "p", "n1"));
    setup.put(advert("n1", "10.8.0.64/26").own("10.8.0.64"));
    let theirs = Holder::Node { name: "n2".into(), uid: "uid-n2".into() };
    let shared = || given(block("10.8.0.0/26", "p", "n1"), "10.8.0.16/28", theirs.clone());
    setup.put(shared());
    check(&setup, "a", "", "10.8.0.0");
    assert_eq!(
        claims(&setup),
        ["at 5: 10.8.0.0/26 of n1/uid-n1 [10.8.0.16/28 to n2, 10.8.0.0/28 aside, 10.8.0.32/27 aside]"]
    );
    setup.put(given(given(shared(), "10.8.0.0/28", Holder::Aside), "10.8.0.32/27", Holder::Aside));
    check(&setup, "a", "", "10.8.0.65");
    check(
        &setup,
        "a",
        "10.8.0.33",
        "the pod asks for 10.8.0.33: this node is giving 10.8.0.32/27 up; ask for another address of 10.8.0.0/26, 10.8.0.64/26",
    );
    assert_eq!(claims(&setup), ["at 6: 10.8.0.0/26 of n2/uid-n2 []"]);
}

#[test]
fn a_node_that_lost_its_block_while_it_could_not_see_gives_nothing_more_out_of_it() {
    let block = |node: &str| block("10.0.0.0/30", "p", node);
    let mut setup = Setup::recalled([node("n1", ""), pool("p", "10.0.0.0/28", 30), block("n1")]);
    let first = |setup: &Setup| {
        tartan_ipam::allocate(&mut Memo::default(), &setup.world, &Request::default(), setup.now).map(|it| it.v4)
    };
    assert!(tartan_ipam::plan(&mut Memo::default(), &setup.world, setup.now).claims.is_empty());
    assert_eq!(first(&setup).unwrap(), Some("10.0.0.1".parse().unwrap()), "what it knew is its own");
    setup.attach("a", "10.0.0.1");
    // The Node was made anew, and the block is another node's.
    setup.list([node("n1", "").uid("another"), node("n2", ""), pool("p", "10.0.0.0/28", 30), block("n2")]);
    assert!(first(&setup).is_err(), "{:?}", first(&setup));
    let out = tartan_ipam::plan(&mut Memo::default(), &setup.world, setup.now).clone();
    assert!(out.gives.is_empty() && out.blocks.is_empty(), "{out:?}");
    assert!(out.conditions.iter().any(|it| it.about.contains("ns/a")), "{:?}", out.conditions);
}
