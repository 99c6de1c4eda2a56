//! IPv4 routes that go another way while packets go by them, as the real kernel tells of it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::time::{Duration, Instant};

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
    let told = node.sh("mktemp").trim().to_owned();
    let monitor = node.sh(&format!("ip -4 -o monitor route > {told} 2>/dev/null & echo $!")).trim().to_owned();
    // It listens once it has told of something.
    node.sh(&format!("until test -s {told}; do ip route replace 192.0.2.1 dev one; ip route del 192.0.2.1; done"));
    node.run(|| {
        let mut kernel = Linux::open().unwrap();
        let there = [to("10.1.0.0/24", 10), to("10.2.0.0/24", 10), to("10.2.0.0/24", 11)];
        let steps = there.iter().map(|key| Step::create(key.clone(), by("one"), Owner::Node));
        assert_eq!(kernel.apply(&Change { steps: steps.collect() }), []);
        let steps = there[..2].iter().map(|key| Step::replace(key.clone(), by("one"), by("two"), Owner::Node));
        assert_eq!(kernel.apply(&Change { steps: steps.collect() }), []);
    });
    node.sh("ip route add 192.0.2.2 dev one");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !node.sh(&format!("cat {told}")).contains("192.0.2.2") {
        assert!(Instant::now() < deadline, "the last route is not told of");
    }
    let lines =
        node.sh(&format!("kill {monitor}; grep -o -E '(Deleted )?10[.][12][.].* metric 1[01]' {told}; rm {told}"));
    let lines: Vec<String> = lines.lines().map(|line| line.replace("proto 84 scope link ", "")).collect();
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
    let left = node.sh("ip route show 10.0.0.0/8; ip route show to root 10.0.0.0/8 | wc -l");
    assert!(left.trim_end().ends_with('3'), "{left}");
}
