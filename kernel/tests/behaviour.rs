//! How the kernel behaves where it surprises: each case on the real kernel and on the fake, by the same test.
//!
//! What is planned and what is repaired rests on these; a fake that behaved otherwise would prove nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;
mod place;
#[path = "../../netstate/tests/states/mod.rs"]
mod states;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netns::{Netns, shell};
use place::pod_netns;
use states::{mac, name};
use tartan_kernel::fake::Fake;
use tartan_kernel::linux::Linux;
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Wake};
use tartan_model::Family;
use tartan_netstate::{
    Change, Fdb, Key, Link, LinkKind, Neigh, Netns as Ns, Object, Owner, PodNetns, Route, Rule, State, Step,
    VxlanParams, claims,
};

/// A kernel and the hands of others in it.
trait Machine {
    fn kernel(&mut self) -> &mut dyn Kernel;
    /// Another program's route with this destination and metric.
    fn foreign_route(&mut self, key: &Key);
    /// Somebody deletes it.
    fn delete(&mut self, key: &Key);
    /// Somebody deletes the link and makes it again with the same parameters.
    fn recreate(&mut self, link: &str);
    fn pod(&self) -> PodNetns;
    fn end_pod(&mut self);
}

struct Real {
    kernel: Linux,
    pod: Option<Netns>,
    ns: PodNetns,
}

struct InMemory {
    fake: Fake,
    kernel: Fake,
    ns: PodNetns,
}

impl Machine for Real {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.kernel
    }

    fn foreign_route(&mut self, key: &Key) {
        let Key::Route { dst, metric, .. } = key else { panic!("{key} is no route") };
        sh(&format!("ip link set lo up; ip route add {dst} metric {metric} dev lo proto static"));
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::Link { link, .. } => sh(&format!("ip link del {link}")),
            Key::Route { dst, .. } => sh(&format!("ip route del {dst}")),
            _ => panic!("not needed for {key}"),
        }
    }

    fn recreate(&mut self, link: &str) {
        sh(&format!(
            "ip link del {link}; ip link add {link} address 02:00:00:00:00:01 mtu 1400 type vxlan id 1 dstport 8472 \
             local 192.0.2.1 nolearning; ip link set {link} up"
        ));
    }

    fn pod(&self) -> PodNetns {
        self.ns.clone()
    }

    fn end_pod(&mut self) {
        self.pod = None;
        // The kernel tears a namespace down some time after its last user left.
        wait_for("the pod's link to go", || !shell("ip -br link").contains("ttp"));
    }
}

impl Machine for InMemory {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.kernel
    }

    fn foreign_route(&mut self, key: &Key) {
        self.fake.put_foreign_route(key.clone());
    }

    fn delete(&mut self, key: &Key) {
        self.fake.remove(key);
    }

    fn recreate(&mut self, link: &str) {
        self.fake.recreate(&name(link));
    }

    fn pod(&self) -> PodNetns {
        self.ns.clone()
    }

    fn end_pod(&mut self) {
        self.fake.remove_pod(&self.ns);
    }
}

/// One test on both.
fn on_both(test: fn(&mut dyn Machine)) {
    let ns = PodNetns { dev: 4, ino: 4, path: "/run/netns/pod".into() };
    let fake = Fake::new();
    test(&mut InMemory { kernel: fake.clone(), fake, ns });

    let pod = Netns::new();
    let node = Netns::new();
    node.run(move || test(&mut Real { kernel: Linux::open().unwrap(), ns: pod_netns(&pod), pod: Some(pod) }));
}

fn sh(script: &str) {
    shell(script);
}

fn wait_for(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

// === objects ===

const VXLAN: &str = "ttx0";
const POD: &str = "ttp0";

fn link_key(link: &str) -> Key {
    Key::Link { ns: Ns::Host, link: name(link) }
}

fn vxlan() -> (Key, Object) {
    let params = VxlanParams { vni: 1, port: 8472, local: "192.0.2.1".parse().unwrap(), learning: false, gbp: false };
    let link = Link { kind: LinkKind::Vxlan(params), mac: Some(mac(1)), mtu: 1400, group: 0, up: true };
    (link_key(VXLAN), Object::Link(link.into()))
}

fn veth(pod: &PodNetns) -> (Key, Object) {
    let kind = LinkKind::Veth { peer: Ns::from(pod.clone()), peer_name: name("eth0") };
    let link = Link { kind, mac: Some(mac(2)), mtu: 1400, group: claims::POD_LINK_GROUP, up: true };
    (link_key(POD), Object::Link(link.into()))
}

fn route(dev: &str) -> (Key, Object) {
    let dst = "10.2.0.0/24".parse().unwrap();
    let key = Key::Route { ns: Ns::Host, table: claims::MAIN_TABLE, dst, metric: 1024 };
    let scope = tartan_netstate::Scope::Link;
    (key, Object::Route(Route { scope, ..Route::on_link(name(dev)) }.into()))
}

fn neigh(dev: &str) -> (Key, Object) {
    let key = Key::Neigh { ns: Ns::Host, link: name(dev), address: "10.2.0.1".parse().unwrap() };
    (key, Object::Neigh(Neigh { mac: mac(9) }))
}

fn fdb() -> (Key, Object) {
    (Key::Fdb { link: name(VXLAN), mac: mac(9) }, Object::Fdb(Fdb { dst: "192.0.2.9".parse().unwrap() }))
}

/// On a link of others.
fn proxied() -> (Key, Object) {
    (Key::Proxied { link: name("lo"), address: "2001:db8::9".parse().unwrap() }, Object::Proxied)
}

/// A link of others, too.
fn pod_bridge() -> (Key, Object) {
    (Key::PodBridge { link: name("lo") }, Object::PodBridge)
}

fn create(objects: impl IntoIterator<Item = (Key, Object)>) -> Change {
    Change { steps: objects.into_iter().map(|(key, object)| Step::create(key, object, Owner::Node)).collect() }
}

fn delete((key, object): (Key, Object)) -> Change {
    Change { steps: vec![Step::delete(key, object, Owner::Node)] }
}

fn made(machine: &mut dyn Machine, objects: impl IntoIterator<Item = (Key, Object)>) {
    let failures = machine.kernel().apply(&create(objects));
    assert_eq!(failures, []);
}

fn read(machine: &mut dyn Machine, scope: Scope) -> BTreeSet<String> {
    machine.kernel().read(&scope).unwrap().iter().map(|(key, _)| key.to_string()).collect()
}

fn keys<const N: usize>(objects: [(Key, Object); N]) -> BTreeSet<String> {
    objects.into_iter().map(|(key, _)| key.to_string()).collect()
}

fn only_error(failures: Vec<Failure>) -> KernelError {
    let [failure] = <[Failure; 1]>::try_from(failures).unwrap();
    failure.error
}

// === cases ===

#[test]
fn what_is_deleted_twice_is_deleted() {
    on_both(|machine| {
        made(machine, [vxlan(), neigh(VXLAN), fdb(), route(VXLAN), proxied(), pod_bridge()]);
        assert_eq!(read(machine, Scope::Neighbours(Family::V6)), keys([proxied()]));
        assert_eq!(read(machine, Scope::Link(name("lo"))), keys([proxied(), pod_bridge()]));
        for object in [pod_bridge(), proxied(), route(VXLAN), fdb(), neigh(VXLAN), vxlan()] {
            for _ in 0..2 {
                assert_eq!(machine.kernel().apply(&delete(object.clone())), []);
            }
        }
        assert_eq!(read(machine, Scope::Links), BTreeSet::new());
        assert_eq!(read(machine, Scope::Neighbours(Family::V6)), BTreeSet::new());
    });
}

#[test]
fn a_link_takes_along_what_hangs_on_it() {
    on_both(|machine| {
        made(machine, [vxlan(), neigh(VXLAN), fdb(), route(VXLAN)]);
        machine.delete(&link_key(VXLAN));
        let of_rtnetlink = Scope::of_node().filter(|scope| !matches!(scope, Scope::Nft | Scope::Foreign));
        for scope in of_rtnetlink.chain([Scope::Link(name(VXLAN))]) {
            assert_eq!(read(machine, scope), BTreeSet::new());
        }
    });
}

#[test]
fn a_recreated_link_is_bare() {
    on_both(|machine| {
        made(machine, [vxlan(), neigh(VXLAN), fdb(), route(VXLAN)]);
        machine.recreate(VXLAN);
        assert_eq!(read(machine, Scope::Link(name(VXLAN))), keys([vxlan()]));
        let state = machine.kernel().read(&Scope::Links).unwrap();
        assert!(state.holds(&vxlan().0, &vxlan().1), "{state:#?}");
    });
}

#[test]
fn a_link_goes_and_tells_of_itself_but_not_of_its_ipv4_routes() {
    on_both(|machine| {
        made(machine, [vxlan(), route(VXLAN)]);
        let told = Arc::new(Mutex::new(Vec::new()));
        let ear = told.clone();
        machine.kernel().subscribe(Box::new(move |wake| ear.lock().unwrap().push(wake))).unwrap();
        machine.delete(&link_key(VXLAN));
        let gone = Wake::Now(link_key(VXLAN), None);
        wait_for("the link's own notification", || told.lock().unwrap().contains(&gone));
        let told = told.lock().unwrap();
        assert!(!told.iter().any(|wake| matches!(wake, Wake::Now(Key::Route { .. }, _))), "{told:?}");
    });
}

/// The kernel has one device of a VNI at a port.
#[test]
fn flannels_device_makes_room_and_others_do_not() {
    Netns::new().run(|| {
        let mut kernel = Linux::open().unwrap();
        let theirs = |name: &str| format!("ip link add {name} type vxlan id 1 local 192.0.2.1 dstport 8472 nolearning");
        sh(&theirs("flannel.1"));
        sh("ip link set flannel.1 up; ip address add 10.244.1.0/32 dev flannel.1");
        sh("ip route add 10.2.0.0/24 via 10.2.0.0 dev flannel.1 onlink");
        sh("ip link add flannel-v6.1 type vxlan id 1 local 2001:db8::1 dstport 8472 nolearning");
        assert_eq!(kernel.apply(&create([vxlan(), neigh(VXLAN), fdb(), route(VXLAN)])), []);
        let state = kernel.read(&Scope::Link(name(VXLAN))).unwrap();
        for (key, object) in [vxlan(), neigh(VXLAN), fdb(), route(VXLAN)] {
            assert!(state.holds(&key, &object), "{key}: {state:#?}");
        }
        let links = shell("ip -brief link");
        assert!(!links.contains("flannel.1") && links.contains("flannel-v6.1"), "{links}");

        assert_eq!(kernel.apply(&delete(vxlan())), []);
        sh(&theirs("other0"));
        let error = only_error(kernel.apply(&create([vxlan()])));
        assert!(
            matches!(&error, KernelError::Conflict { theirs, .. } if theirs.contains("other0 has that VNI")),
            "{error}"
        );
        assert!(shell("ip -brief link").contains("other0"));
    });
}

#[test]
fn a_route_of_others_is_left_alone() {
    on_both(|machine| {
        made(machine, [vxlan()]);
        machine.foreign_route(&route(VXLAN).0);
        let failures = machine.kernel().apply(&create([route(VXLAN)]));
        assert!(matches!(only_error(failures), KernelError::Conflict { .. }));
        assert_eq!(read(machine, Scope::Routes(Family::V4)), BTreeSet::new());
        assert_eq!(machine.kernel().apply(&delete(route(VXLAN))), []);
        let failures = machine.kernel().apply(&create([route(VXLAN)]));
        assert!(matches!(only_error(failures), KernelError::Conflict { .. }), "theirs is still there");
    });
}

/// The same way to the same place, in whosever name.
#[test]
fn a_route_of_others_that_is_as_ours_is_taken_over() {
    Netns::new().run(|| {
        let mut kernel = Linux::open().unwrap();
        assert_eq!(kernel.apply(&create([vxlan()])), []);
        sh(&format!("ip address add 2001:db8::1/64 dev {VXLAN} nodad; ip address add 192.0.2.1/24 dev {VXLAN}"));
        for (dst, via, another) in
            [("fd02::/64", "2001:db8::2", "2001:db8::3"), ("10.2.0.0/24", "192.0.2.2", "192.0.2.3")]
        {
            let key = Key::Route {
                ns: Ns::Host,
                table: claims::MAIN_TABLE,
                dst: dst.parse().unwrap(),
                metric: claims::ROUTE_METRIC,
            };
            let to = |via: &str| Route { via: Some(via.parse().unwrap()), ..Route::on_link(name(VXLAN)) };
            sh(&format!("ip route add {dst} via {via} metric 1024 dev {VXLAN}"));
            let failures = kernel.apply(&create([(key.clone(), Object::Route(to(another).into()))]));
            assert!(matches!(only_error(failures), KernelError::Conflict { .. }), "{dst} leads elsewhere");
            let ours = Object::Route(to(via).into());
            assert_eq!(kernel.apply(&create([(key.clone(), ours.clone())])), []);
            let scope = Scope::Routes(Family::of_net(&dst.parse().unwrap()));
            assert!(kernel.read(&scope).unwrap().holds(&key, &ours), "{dst}");
        }
    });
}

#[test]
fn a_route_of_ours_that_was_not_known_is_taken_over() {
    on_both(|machine| {
        made(machine, [vxlan(), route(VXLAN)]);
        let (key, object) = route(VXLAN);
        let Object::Route(other) = object else { panic!("a route") };
        let other = Object::Route(Route { scope: tartan_netstate::Scope::Global, ..(*other).clone() }.into());
        made(machine, [(key.clone(), other.clone())]);
        assert!(machine.kernel().read(&Scope::Routes(Family::V4)).unwrap().holds(&key, &other));
    });
}

/// Asked whether it has a rule, the kernel takes one with a source for the same one without.
#[test]
fn a_rule_loses_its_source() {
    on_both(|machine| {
        for (v6, src) in [(false, "0.0.0.0"), (true, "fd00::1")] {
            let key = Key::Rule { ns: Ns::Host, v6, priority: 7480 };
            let narrow =
                Rule { src: Some(src.parse().unwrap()), finds_src: v6, iif: None, udp_sport: None, table: 1000 };
            let wide = Rule { src: None, finds_src: false, ..narrow.clone() };
            let [narrow, wide] = [narrow, wide].map(|rule| Object::Rule(rule.into()));
            made(machine, [(key.clone(), narrow.clone())]);
            for (old, new) in [(&narrow, &wide), (&wide, &narrow)] {
                let step = Step::replace(key.clone(), old.clone(), new.clone(), Owner::Node);
                assert_eq!(machine.kernel().apply(&Change { steps: vec![step] }), []);
                let family = if v6 { Family::V6 } else { Family::V4 };
                assert!(machine.kernel().read(&Scope::Routes(family)).unwrap().holds(&key, new), "{new:?}");
            }
        }
    });
}

#[test]
fn nothing_hangs_on_a_link_that_is_not_there() {
    on_both(|machine| {
        for object in [neigh(VXLAN), fdb(), route(VXLAN)] {
            let error = only_error(machine.kernel().apply(&create([object])));
            let enodev = matches!(error, KernelError::Refused { errno: nix::errno::Errno::ENODEV, .. });
            assert!(enodev, "{error}");
        }
    });
}

#[test]
fn one_failure_stops_no_other_step() {
    on_both(|machine| {
        let failures = machine.kernel().apply(&create([neigh("ttx9"), vxlan(), fdb()]));
        assert_eq!(failures.len(), 1);
        assert_eq!(read(machine, Scope::Link(name(VXLAN))), keys([vxlan(), fdb()]));
    });
}

#[test]
fn another_mac_costs_a_link_its_neighbours() {
    on_both(|machine| {
        made(machine, [vxlan(), neigh(VXLAN), fdb()]);
        let (key, old) = vxlan();
        let Object::Link(link) = old.clone() else { panic!("a link") };
        let new = Object::Link(Link { mac: Some(mac(7)), ..(*link).clone() }.into());
        let failures = machine.kernel().apply(&Change { steps: vec![Step::replace(key, old, new, Owner::Node)] });
        assert_eq!(failures, []);
        let neighbours = [Scope::Fdb, Scope::Neighbours(Family::V4), Scope::Neighbours(Family::V6)];
        let left: BTreeSet<String> = neighbours.into_iter().flat_map(|scope| read(machine, scope)).collect();
        assert_eq!(left, keys([fdb()]));
    });
}

#[test]
fn a_pods_end_comes_and_goes_with_the_hosts() {
    on_both(|machine| {
        let pod = machine.pod();
        let scope = Scope::Pod { ns: pod.clone(), ends: BTreeSet::from([name("eth0")]) };
        made(machine, [veth(&pod)]);
        let end = Key::Link { ns: Ns::from(pod.clone()), link: name("eth0") };
        assert_eq!(read(machine, scope.clone()), BTreeSet::from([end.to_string()]));
        assert_eq!(machine.kernel().apply(&delete(veth(&pod))), []);
        assert_eq!(read(machine, scope), BTreeSet::new());
    });
}

#[test]
fn a_pod_that_ended_takes_its_link_along_and_is_not_mistaken() {
    on_both(|machine| {
        let pod = machine.pod();
        made(machine, [veth(&pod)]);
        machine.end_pod();
        assert_eq!(read(machine, Scope::Links), BTreeSet::new());
        let gone = KernelError::NetnsGone(pod.clone());
        let scope = Scope::Pod { ns: pod.clone(), ends: BTreeSet::new() };
        assert_eq!(machine.kernel().read(&scope).unwrap_err(), gone);
        assert_eq!(only_error(machine.kernel().apply(&create([veth(&pod)]))), gone);
        let inside = Key::Neigh { ns: Ns::from(pod), link: name("eth0"), address: "10.0.0.1".parse().unwrap() };
        assert_eq!(machine.kernel().apply(&delete((inside, neigh(POD).1))), []);
    });
}

#[test]
fn a_read_of_nothing_is_nothing() {
    on_both(|machine| {
        for scope in Scope::of_node() {
            assert_eq!(machine.kernel().read(&scope).unwrap(), State::new());
        }
    });
}
