//! The rows of the CNI spec (1.1.0) that the agent answers for.

use tartan_model::{Advert, Endpoint, Failed, Programmed, Said, Why};
use tartan_netstate::{Key, Netns, Owner};

use super::*;
use crate::attach;

/// What a request comes to, in a word.
fn verdict(world: &World, request: &CniRequest) -> String {
    match decide(world, &mut Memo::default(), request, Instant::now()) {
        Ok(Decision::Attach(attachment)) => format!("attach {}", attachment.id),
        Ok(Decision::Detach(ids)) => format!("detach {}", ids.join(" ")),
        Ok(Decision::Check(netns)) => match attach::check(world, request) {
            Ok(()) => format!("fine {}", netns.path),
            Err(error) => format!("{} {}", error.code, error.msg),
        },
        Ok(Decision::Answer(value)) => format!("answer {value}"),
        Err(error) => format!("{} {}", error.code, error.msg),
    }
}

#[track_caller]
fn check(world: &World, request: &CniRequest, expected: &str) {
    assert_eq!(verdict(world, request), expected);
}

#[test]
fn add_of_an_interface_that_exists_is_an_error() {
    let mut world = whole(Instant::now());
    attached(&mut world, "a", &json!({}));
    check(&world, &request(Command::Add, "a"), "100 /run/netns/a already has an interface eth0");
    let other = CniRequest { container: "b".into(), ..request(Command::Add, "a") };
    check(&world, &other, "100 /run/netns/a already has an interface eth0, of pod shop/a");
    let second = CniRequest { ifname: "net1".into(), ..request(Command::Add, "a") };
    check(&world, &second, "attach a/net1");
    check(&world, &request(Command::Add, "bb"), "attach bb/eth0");
    let previous = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/bb"}]});
    let chained = CniRequest { netconf: netconf(&json!({"prevResult": previous})), ..request(Command::Add, "bb") };
    let by = "100 /run/netns/bb already has an interface eth0, made by a plugin before this one in the chain";
    check(&world, &chained, by);
}

#[test]
fn del_is_a_success_whatever_is_left() {
    let mut world = whole(Instant::now());
    attached(&mut world, "a", &json!({}));
    check(&world, &request(Command::Del, "a"), "detach a/eth0");
    let bare = CniRequest { netns: None, pod: PodName::default(), ..request(Command::Del, "a") };
    check(&world, &bare, "detach a/eth0");
    check(&world, &request(Command::Del, "unheard-of"), "detach ");
    check(&World::default(), &request(Command::Del, "a"), "detach ");
    let nonsense =
        json!({"runtimeConfig": {"mac": "x", "bandwidth": {"ingressBurst": 1}}, "ipam": {"type": "host-local"}});
    check(&world, &CniRequest { netconf: netconf(&nonsense), ..bare }, "detach a/eth0");
}

#[test]
fn gc_removes_all_but_the_valid() {
    let mut world = whole(Instant::now());
    for container in ["a", "bb", "ccc"] {
        attached(&mut world, container, &json!({}));
    }
    let gc = |valid: &Value| CniRequest {
        container: String::new(),
        ifname: String::new(),
        netns: None,
        netconf: netconf(&json!({"cni.dev/valid-attachments": valid})),
        ..request(Command::Gc, "")
    };
    let valid = |container: &str, ifname: &str| json!({"containerID": container, "ifname": ifname});
    check(&world, &gc(&json!([valid("bb", "eth0"), valid("unheard-of", "eth0")])), "detach a/eth0 ccc/eth0");
    check(&world, &gc(&json!([valid("a", "net1")])), "detach a/eth0 bb/eth0 ccc/eth0");
    check(&world, &gc(&json!([])), "detach a/eth0 bb/eth0 ccc/eth0");

    // The list is of one network.
    attached(&mut world, "dddd", &json!({"name": "storage"}));
    check(&world, &gc(&json!([])), "detach a/eth0 bb/eth0 ccc/eth0");
    let mut of_storage = gc(&json!([]));
    of_storage.netconf.name = "storage".into();
    check(&world, &of_storage, "detach dddd/eth0");
    check(&world, &request(Command::Gc, ""), "7 cni.dev/valid-attachments is missing");
}

#[test]
fn gc_goes_on_after_an_error_with_one_attachment_and_reports_all_errors() {
    let full = || crate::journal::JournalError::Io {
        path: "/j".into(),
        what: "append to it",
        error: std::io::ErrorKind::StorageFull.into(),
    };
    let ids: Vec<Arc<str>> = ["a/eth0", "b/eth0", "c/eth0", "d/eth0"].map(Arc::from).to_vec();
    let mut gone = Vec::new();
    let said = let_go_of_each(&ids, |id| {
        if matches!(&**id, "a/eth0" | "c/eth0") {
            return Err(full());
        }
        gone.push(id.clone());
        Ok(())
    });
    assert_eq!(gone, ["b/eth0", "d/eth0"].map(Arc::from));
    let said = said.unwrap_err();
    assert_eq!(said.code, code::TRY_LATER);
    assert_eq!(said.details, format!("a/eth0: {}; c/eth0: {}", full(), full()));
    assert_eq!(let_go_of_each(&ids, |_| Ok(())), Ok(()));
}

#[test]
fn status_tells_what_is_wrong_with_all_pods_from_what_is_wrong_with_some() {
    let status = request(Command::Status, "");
    let after = |owner: Owner, expected: &str| {
        let mut world = whole(Instant::now());
        let key = Key::NftTable;
        world.programmed.failures =
            [Failed { key, owner, error: "Operation not supported".into(), why: Why::Refused }].into();
        check(&world, &status, expected);
    };
    let refused = "51 the kernel refuses what all pods of this node need: nft table";
    after(Owner::Node, refused);
    after(Owner::Fabric("vxlan".into()), refused);
    after(Owner::Peer("n2".into()), "answer null");

    // What packets go by, and what was only asked for.
    let by = |told: &str, expected: &str| {
        let mut world = whole(Instant::now());
        let address = "192.0.2.1".parse().unwrap();
        let end = Endpoint { instance: told.into(), address, mac: None, public_key: None };
        world.said = Some(Said::heard(Advert { accepts: vec![end], ..Advert::default() }.into()));
        let (key, owner) = (Key::NftTable, Owner::Fabric("ipip/ipv4".into()));
        world.programmed.failures =
            [Failed { key, owner, error: "Unknown device type".into(), why: Why::Refused }].into();
        check(&world, &status, expected);
    };
    by("ipip/ipv4", refused);
    by("vxlan/ipv4/vni1/port8472", "answer null");
    after(Owner::Pod("a/eth0".into()), "answer null");
    let cannot = "51 what is in the kernel cannot be read, so nothing in it is kept as it should be";
    for set in [
        |to: &mut Programmed| to.unknown = Some("read links: EPERM".into()),
        |to: &mut Programmed| to.left_out = Some("the engine at /run/e.sock: EAGAIN".into()),
    ] {
        let mut unread = World::default();
        set(&mut unread.programmed);
        check(&unread, &status, cannot);
        // A part of it: pods are taken on with what is known of the rest.
        let mut world = whole(Instant::now());
        set(&mut world.programmed);
        check(&world, &status, "answer null");
    }
}

#[test]
fn status_says_whether_an_add_could_work() {
    let now = Instant::now();
    let status = request(Command::Status, "");
    let mut world = whole(now);
    check(&world, &status, "answer null");
    world.programmed.read = false;
    check(&world, &status, "50 the agent is not ready: it waits for the first full read of the kernel");
    check(
        &world,
        &request(Command::Add, "a"),
        "11 the agent is not ready: it waits for the first full read of the kernel",
    );
    let mut unsynced = World::default();
    unsynced.programmed.read = true;
    check(&unsynced, &status, "50 the agent is not ready: it waits for the store's first list");
    unsynced.store(StoreEvent::Away(None, "no route to it".into()), Instant::now());
    check(&unsynced, &status, "50 the agent is not ready: it waits for the store: no route to it");
}

#[test]
fn where_addresses_are_used_up_the_pod_is_refused_and_the_node_stays_in_service() {
    let now = Instant::now();
    let mut world = whole(now);
    for number in 0..64 {
        if let Ok(attachment) = add_with(&world, &format!("c{number}"), &json!({})) {
            world.attach(attachment);
        }
    }
    let add = decide(&world, &mut Memo::default(), &request(Command::Add, "last"), now).unwrap_err();
    assert_eq!(add.code, code::NO_ADDRESS);
    assert!(add.msg.contains("v4") || add.msg.contains("10.244"), "names no pool: {add}");
    check(&world, &request(Command::Status, ""), "answer null");
}

/// A node with pod `a`, and the CHECK of it as a runtime asks after ADD.
fn added() -> (World, CniRequest) {
    let mut world = whole(Instant::now());
    let keys = json!({"runtimeConfig": {
        "ips": ["10.244.1.9", "fd00:244:0:1::9"],
        "portMappings": [{"hostPort": 80, "containerPort": 80}],
    }});
    let attachment = attached(&mut world, "a", &keys);
    let added = result(&world, &attachment, &request(Command::Add, "a")).unwrap();
    let check = CniRequest { netconf: netconf(&json!({"prevResult": added})), ..request(Command::Check, "a") };
    (world, check)
}

/// CHECK of pod `a` after `spoil` had its way with the node and with what the runtime says.
#[track_caller]
fn check_after(spoil: impl FnOnce(&mut World, &mut CniRequest), expected: &str) {
    let (mut world, mut request) = added();
    spoil(&mut world, &mut request);
    check(&world, &request, expected);
}

fn previous(request: &mut CniRequest) -> &mut Value {
    request.netconf.prev_result.as_mut().unwrap()
}

#[test]
fn check_is_fine_right_after_add() {
    check_after(|_, _| {}, "fine /run/netns/a");
}

#[test]
fn check_tolerates_what_plugins_later_in_the_chain_do() {
    let later = |_: &mut World, request: &mut CniRequest| {
        let result = previous(request);
        result["interfaces"][1]["mac"] = json!("02:00:00:00:00:77");
        result["interfaces"].as_array_mut().unwrap().push(json!({"name": "ifb0"}));
        result["ips"].as_array_mut().unwrap().push(json!({"address": "198.51.100.7/24", "interface": 2}));
        result["routes"] = json!([]);
    };
    check_after(later, "fine /run/netns/a");
}

#[test]
fn check_finds_every_object_that_is_missing() {
    let (world, request) = added();
    let objects: Vec<(Key, Owner)> =
        world.programmed.mirror.iter().map(|(key, entry)| (key.clone(), entry.owner.clone())).collect();
    let mut missed = 0;
    for (key, owner) in objects {
        let ours = matches!(owner, Owner::Pod(_)) && !matches!(key, Key::LinkSysctl { .. });
        missed += usize::from(ours);
        let mut world = world.clone();
        world.programmed.mirror.remove(&key);
        let found = format!("103 pod shop/a: {key} is missing");
        check(&world, &request, if ours { &found } else { "fine /run/netns/a" });
    }
    // Two links, and in each family: an address, two neighbours, three routes, a port and its hairpin.
    assert_eq!(missed, 2 + 2 * 8);
}

#[test]
fn check_finds_what_the_kernel_refused() {
    let refuse = |world: &mut World, _: &mut CniRequest| {
        let key = Key::Link { ns: Netns::Host, link: LinkName::new("ttp1").unwrap() };
        let owner = Owner::Pod("a/eth0".into());
        world.programmed.failures = [Failed { key, owner, error: "EPERM".into(), why: Why::Refused }].into();
    };
    check_after(refuse, "103 pod shop/a: the kernel refused link ttp1 in host: EPERM");
}

#[test]
fn check_compares_with_what_was_promised() {
    check_after(|world, _| world.detach("a/eth0", Instant::now()), "3 a/eth0 is not attached");
    let moved = "103 pod shop/a: it was attached to /run/netns/a (nsfs 4:1), which is another namespace";
    check_after(|_, request| request.netns.as_mut().unwrap().ino += 1, moved);
    check_after(|_, request| request.netns = None, moved);
    let no_interface = "103 pod shop/a: prevResult has no interface eth0";
    check_after(|_, request| previous(request)["interfaces"] = json!([]), no_interface);
    check_after(|_, request| previous(request)["interfaces"][1]["sandbox"] = json!("/run/netns/b"), no_interface);
    let no_address = "103 pod shop/a: prevResult does not give 10.244.1.9/32 to eth0";
    check_after(|_, request| previous(request)["ips"] = json!([]), no_address);
    check_after(|_, request| previous(request)["ips"][0]["interface"] = json!(0), no_address);
    check_after(|_, request| previous(request)["ips"][0]["address"] = json!("10.244.1.10/32"), no_address);
    check_after(|_, request| request.netconf.prev_result = None, "7 prevResult is missing");
}
