//! IPv4 routes that go another way while packets go by them, as the real kernel tells of it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use netns::Netns;
use tartan_kernel::Kernel;
use tartan_kernel::linux::Linux;
use tartan_netstate::claims::MAIN_TABLE;
use tartan_netstate::{Change, Key, LinkName, Netns as Ns, Object, Owner, Route, Step};

fn to(dst: &str, metric: u32) -> Key {
    Key::Route { ns: Ns::Host, table: MAIN_TABLE, dst: dst.parse().unwrap(), metric }
}

fn by(link: &str) -> Object {
    let scope = tartan_netstate::Scope::Link;
    Object::Route(Route { scope, ..Route::on_link(LinkName::new(link).unwrap()) }.into())
}

/// Who has found the old route when it dies finds the new one behind it, and nothing of that stays.
#[test]
fn each_has_an_understudy_while_it_changes_and_takes_away_no_route_that_is_there() {
    let node = Netns::new();
    for link in ["one", "two"] {
        node.sh(&format!("ip link add {link} type bridge; ip link set {link} up"));
    }
    let change = || {
        let mut kernel = Linux::open().unwrap();
        let there = [to("10.1.0.0/24", 10), to("10.2.0.0/24", 10), to("10.2.0.0/24", 11)];
        let steps = there.iter().map(|key| Step::create(key.clone(), by("one"), Owner::Node));
        assert_eq!(kernel.apply(&Change { steps: steps.collect() }), []);
        let steps = there[..2].iter().map(|key| Step::replace(key.clone(), by("one"), by("two"), Owner::Node));
        assert_eq!(kernel.apply(&Change { steps: steps.collect() }), []);
    };
    let work = || {
        node.run(change);
        node.sh("ip route add 192.0.2.2 dev one");
    };
    let stir = "ip route replace 192.0.2.1 dev one; ip route del 192.0.2.1";
    let told = node.told("route", stir, work, "192.0.2.2");
    let of_these = told.iter().filter(|line| line.contains("10.1.0.0/24") || line.contains("10.2.0.0/24"));
    let lines: Vec<String> =
        of_these.map(|line| line.replace("proto 84 scope link ", "").trim_end().to_owned()).collect();
    let wanted = [
        "10.1.0.0/24 dev one metric 10",
        "10.2.0.0/24 dev one metric 10",
        "10.2.0.0/24 dev one metric 11",
        "10.1.0.0/24 dev two metric 11",
        "10.1.0.0/24 dev two metric 10",
        "10.2.0.0/24 dev two metric 10",
        "Deleted 10.1.0.0/24 dev two metric 11",
    ];
    assert_eq!(lines, wanted);
    let left = node.sh("ip route show to root 10.0.0.0/8");
    assert_eq!(left.lines().count(), 3, "{left}");
}
