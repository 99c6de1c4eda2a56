//! Pods on the real kernel: found again by what they are, and reachable as soon as their objects are there.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;
mod place;
#[path = "../../netstate/tests/states/mod.rs"]
mod states;

use std::fs::File;
use std::net::UdpSocket;
use std::time::Duration;

use netns::Netns;
use place::{Place, pod_netns};
use states::{mac, name, state};
use tartan_kernel::linux::Linux;
use tartan_kernel::{Kernel, KernelError};
use tartan_netstate::{
    Change, Key, Link, LinkKind, Netns as Ns, Object, Owner, PodNetns, Scope, State, Step, claims, diff,
};

fn create(objects: impl IntoIterator<Item = (Key, Object)>) -> Change {
    Change { steps: objects.into_iter().map(|(key, object)| Step::create(key, object, Owner::Node)).collect() }
}

fn veth(pod: &PodNetns) -> (Key, Object) {
    let kind = LinkKind::Veth { peer: Ns::from(pod.clone()), peer_name: name("eth0") };
    let link = Link { kind, mac: Some(mac(2)), mtu: 1400, group: claims::POD_LINK_GROUP, up: true };
    (Key::Link { ns: Ns::Host, link: name("ttp0") }, Object::Link(link.into()))
}

fn inside(pod: &PodNetns) -> (Key, Object) {
    let key = Key::Address { ns: Ns::from(pod.clone()), link: name("eth0"), address: "10.0.0.2/32".parse().unwrap() };
    (key, Object::Address(Scope::Global))
}

/// Two pods with both families, without anything else.
fn two_pods(place: &Place) -> State {
    let mut choice = [0; 32];
    for pod in [0, 4] {
        // There as eth0, one look, an address of each family.
        choice[pod..pod + 4].copy_from_slice(&[1, 1, 1, 1]);
    }
    state(&place.pods, &choice)
}

#[test]
fn a_namespace_is_entered_by_the_descriptor_that_was_lent() {
    let pod = Netns::new();
    let real = pod_netns(&pod);
    let hidden = PodNetns { path: "/nowhere".into(), ..real.clone() };
    let node = Netns::new();
    node.run(move || {
        let mut kernel = Linux::open().unwrap();
        let objects = || [veth(&hidden), inside(&hidden)];
        let failures = kernel.apply(&create(objects()));
        assert!(failures.iter().all(|failure| failure.error == KernelError::NetnsGone(hidden.clone())));
        assert_eq!(failures.len(), 2);
        kernel.lend(&hidden, File::open(&*real.path).unwrap().into());
        assert_eq!(kernel.apply(&create(objects())), []);
        kernel.give_back(&hidden);
        let scope = tartan_kernel::Scope::Pod { ns: hidden.clone(), ends: [name("eth0")].into() };
        assert_eq!(kernel.read(&scope).unwrap_err(), KernelError::NetnsGone(hidden.clone()));
    });
}

#[test]
fn another_namespace_at_the_same_path_is_not_entered() {
    let (pod, other) = (Netns::new(), Netns::new());
    let confused = PodNetns { path: pod_netns(&other).path, ..pod_netns(&pod) };
    let node = Netns::new();
    node.run(move || {
        let mut kernel = Linux::open().unwrap();
        let failures = kernel.apply(&create([veth(&confused)]));
        assert_eq!(failures[0].error, KernelError::NetnsGone(confused.clone()));
        kernel.lend(&confused, File::open(&*confused.path).unwrap().into());
        let failures = kernel.apply(&create([veth(&confused)]));
        assert_eq!(failures[0].error, KernelError::NetnsGone(confused), "a descriptor may be wrong too");
    });
    assert!(!other.sh("ip -br link").contains("eth0"));
}

#[test]
fn pods_talk_as_soon_as_their_objects_are_there() {
    let place = Place::new();
    let wanted = two_pods(&place);
    let node = Netns::new();
    node.sh("sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let forward = Key::Sysctl { ns: Ns::Host, name: "ipv4/ip_forward".into() };
    let mut wanted = wanted;
    wanted.remove(&forward);
    let change = diff(&State::new(), &wanted, |_| true);
    let kernel = node.run(move || {
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.apply(&change), []);
        kernel
    });
    let addresses = |pod: usize| {
        let ns = Ns::from(place.pods[pod].clone());
        let own = |key: &Key| match key {
            Key::Address { ns: of, address, .. } if *of == ns => Some(address.addr()),
            _ => None,
        };
        wanted.iter().filter_map(|(key, _)| own(key)).collect::<Vec<_>>()
    };
    assert_eq!(addresses(1).len(), 2);
    for (from, to) in addresses(0).into_iter().zip(addresses(1)) {
        // A socket stays in the namespace it was made in.
        let server = place.held[1].run(move || UdpSocket::bind((to, 7000)).unwrap());
        let client = place.held[0].run(move || UdpSocket::bind((from, 0)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // The first packet must pass: nothing is resolved, no address is tentative.
        client.send_to(b"hello", (to, 7000)).unwrap();
        let (_, seen) = server.recv_from(&mut [0; 5]).unwrap();
        assert_eq!(seen, client.local_addr().unwrap());
    }
    let neighbours = node.sh(&format!("nsenter --net={} ip neigh; ip neigh", place.pods[0].path));
    assert!(neighbours.lines().all(|line| line.contains("PERMANENT") || line.starts_with("fe80::")), "{neighbours}");
    drop(kernel);
}

#[test]
fn our_links_have_no_address_that_nobody_wanted() {
    let place = Place::new();
    let mut choice = [1; 32];
    choice[8] = 1;
    let wanted = state(&place.pods, &choice);
    let node = Netns::new();
    node.run(move || {
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.apply(&diff(&State::new(), &wanted, |_| true)), []);
    });
    let addresses = node.sh("ip -o -6 addr show scope link");
    assert_eq!(addresses.trim(), "", "link-local addresses");
}

#[test]
fn an_address_of_others_is_left_alone() {
    let node = Netns::new();
    node.sh("ip addr add 10.0.0.2/32 dev lo; ip -6 addr add fd00::2/128 dev lo nodad");
    let before = node.sh("ip -d addr show dev lo");
    node.run(|| {
        let mut kernel = Linux::open().unwrap();
        for address in ["10.0.0.2/32", "fd00::2/128"] {
            let key = Key::Address { ns: Ns::Host, link: name("lo"), address: address.parse().unwrap() };
            let scope = if address.contains(':') { Scope::Global } else { Scope::Link };
            let failures = kernel.apply(&create([(key, Object::Address(scope))]));
            assert!(matches!(failures[0].error, KernelError::Conflict { .. }), "{}", failures[0].error);
        }
        assert!(kernel.read(&tartan_kernel::Scope::Links).unwrap().is_empty());
    });
    assert_eq!(node.sh("ip -d addr show dev lo"), before);
}

#[test]
fn the_node_is_described_without_what_is_ours() {
    let place = Place::new();
    let wanted = two_pods(&place);
    let node = Netns::new();
    node.sh("ip link add eth0 mtu 1460 type bridge; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; \
         ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; \
         ip addr add 2001:db8::2/64 dev eth0 nodad preferred_lft 0; sysctl -qw net.ipv6.conf.eth0.accept_ra=2; \
         ip route add default via 192.0.2.254 dev eth0 metric 100; ip -6 route add default via 2001:db8::fe dev eth0");
    let host = node.run(move || {
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.apply(&diff(&State::new(), &wanted, |_| true)), []);
        kernel.host().unwrap()
    });
    let names: Vec<&str> = host.links.iter().map(|link| &*link.name).collect();
    assert_eq!(names, ["eth0", "lo"]);
    let eth0 = &host.links[0];
    assert_eq!((&*eth0.kind, eth0.mtu, eth0.up, eth0.loopback, eth0.accept_ra), ("bridge", 1460, true, false, 2));
    let addresses: Vec<String> = eth0.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64"]);
    let passing: Vec<String> = host.passing.iter().map(|(link, address)| format!("{address}@{link}")).collect();
    assert_eq!(passing, ["192.0.2.2@eth0", "2001:db8::2@eth0"], "a secondary one, and a deprecated one");
    let routes: Vec<String> = host
        .default_routes
        .iter()
        .map(|route| format!("{} {} {:?} {}", route.v6, route.link, route.via, route.metric))
        .collect();
    assert_eq!(routes, ["false eth0 Some(192.0.2.254) 100", "true eth0 Some(2001:db8::fe) 1024"]);
}

#[test]
fn a_node_that_never_had_a_route_has_none() {
    let host = Netns::new().run(|| Linux::open().unwrap().host().unwrap());
    assert_eq!(host.default_routes, []);
}

#[test]
fn a_limited_pod_is_sent_no_more_than_that() {
    let place = Place::new();
    let node = Netns::new();
    let state = two_pods(&place);
    let (key, limit) = state.iter().find(|(key, _)| matches!(key, Key::Qdisc { ns: Ns::Host, .. })).unwrap();
    let (link, limit) = (key.link().unwrap().clone(), limit.object.clone());
    let (key, wanted) = (key.clone(), state.clone());
    node.run(move || {
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.apply(&diff(&State::new(), &wanted, |_| true)), []);
        let read = |kernel: &mut Linux| kernel.read(&tartan_kernel::Scope::Links).unwrap();
        assert_eq!(read(&mut kernel).get(&key).map(|entry| entry.object.clone()), Some(limit.clone()));
        let Object::Tbf(tbf) = limit else { panic!() };
        // Far more than may wait, in far less than a second.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let all = u64::from(tbf.limit) + 2 * tbf.rate;
        for _ in 0..all / 1000 {
            // A full queue is told to who sends.
            let _full = socket.send_to(&[0; 1000], "10.1.0.2:9");
        }
        let faster = Object::Tbf(tartan_netstate::Tbf { rate: tbf.rate * 2, ..tbf });
        let change = |step| Change { steps: vec![step] };
        let replace = Step::replace(key.clone(), Object::Tbf(tbf), faster.clone(), Owner::Node);
        assert_eq!(kernel.apply(&change(replace)), []);
        assert!(read(&mut kernel).holds(&key, &faster));
    });
    let shown = node.sh(&format!("tc -s qdisc show dev {link}"));
    assert!(shown.contains("qdisc tbf 7474:") && !shown.contains("dropped 0,"), "{shown}");
    node.run(move || {
        let mut kernel = Linux::open().unwrap();
        let key = Key::Qdisc { ns: Ns::Host, link };
        let links = kernel.read(&tartan_kernel::Scope::Links).unwrap();
        let gone = Step::delete(key.clone(), links.get(&key).unwrap().object.clone(), Owner::Node);
        for _ in 0..2 {
            assert_eq!(kernel.apply(&Change { steps: vec![gone.clone()] }), [], "gone is gone");
            assert!(kernel.read(&tartan_kernel::Scope::Links).unwrap().get(&key).is_none());
        }
    });
}

/// In the way of another it goes at once, and is a pod's all the time: what it still brings is judged.
#[test]
fn a_pods_link_that_is_deleted_at_once_leaves_the_groups_of_pods_links_at_no_time() {
    let (pod, node) = (Netns::new(), Netns::new());
    let link = veth(&pod_netns(&pod));
    let other = (Key::Link { ns: Ns::Host, link: name("ttx0") }, {
        let link = Link { kind: LinkKind::Bridge, mac: Some(mac(3)), mtu: 1400, group: 0, up: true };
        Object::Link(link.into())
    });
    let both = [link, other];
    let work = || {
        node.run(move || {
            let mut kernel = Linux::open().unwrap();
            assert_eq!(kernel.apply(&create(both.clone())), []);
            let steps = both.map(|(key, object)| Step::delete(key, object, Owner::Node));
            assert_eq!(kernel.apply(&Change { steps: steps.into() }), []);
        })
    };
    let told = node.told("link", "ip link set lo alias $(date +%N)", work, "^Deleted.*ttp0");
    let lines: Vec<String> = told.into_iter().filter(|line| line.contains("ttp0")).collect();
    let [living, dying] = [claims::POD_LINK_GROUP, claims::DYING_POD_LINK_GROUP].map(|group| format!("group {group} "));
    assert!(lines.iter().any(|line| line.contains(&dying)), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains(&living) || line.contains(&dying)), "{lines:?}");
}
