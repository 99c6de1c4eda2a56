//! What an echo request shows of a path, on real links: a router between that takes less than both ends.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netns::Netns;
use tartan_kernel::echo::{Echo, Heard};
use tartan_kernel::path::carries;

/// Far more than a packet between namespaces takes; and for packets that do not come, which are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(100);

/// Connects `a` to `b` by a link of that MTU.
fn link(a: &Netns, b: &Netns, name: &str, mtu: u32) {
    let to = b.tid;
    a.sh(&format!(
        "ip link add {name} mtu {mtu} type veth peer name {name} mtu {mtu} netns {to}; ip link set {name} up"
    ));
    b.sh(&format!("ip link set {name} up"));
}

#[test]
fn the_smallest_link_on_the_way_decides() {
    let (near, router, far) = (Netns::new(), Netns::new(), Netns::new());
    link(&near, &router, "one", 1500);
    link(&router, &far, "two", 1400);
    router.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    for (netns, own, via, link) in [(&near, 1, 1, "one"), (&far, 2, 2, "two")] {
        netns.sh(&format!("ip address add 10.0.{own}.2/24 dev {link}; ip route add default via 10.0.{via}.1"));
        netns.sh(&format!("ip address add fd00:{own}::2/64 dev {link} nodad; ip route add default via fd00:{via}::1"));
        router.sh(&format!(
            "ip address add 10.0.{own}.1/24 dev {link}; ip address add fd00:{own}::1/64 dev {link} nodad"
        ));
    }
    let check = |to: &str, bytes: u32, patience: Duration, wanted: bool| {
        let address: IpAddr = to.parse().unwrap();
        let got = near.run(move || carries(address, bytes, patience)).unwrap();
        assert_eq!(got, wanted, "{bytes} bytes to {to}");
    };
    for (router, far, nobody) in [("10.0.1.1", "10.0.2.2", "10.0.2.3"), ("fd00:1::1", "fd00:2::2", "fd00:2::3")] {
        check(router, 1500, PATIENCE, true);
        check(router, 1501, PATIENCE, false);
        check(far, 1280, PATIENCE, true);
        check(far, 1400, PATIENCE, true);
        check(far, 1401, SHORT, false);
        // The kernel has been told of the smaller link by now, and it is asked all the same.
        check(far, 1400, PATIENCE, true);
        check(far, 1500, SHORT, false);
        check(nobody, 1280, SHORT, false);
    }
}

/// As a node that has just got thousands of peers asks them: it looks again only seconds later.
#[test]
fn answers_of_thousands_are_heard_at_one_look() {
    const PEERS: u16 = 5_000;
    let netns = Netns::new();
    netns.sh("ip link set lo up; ip route add local 10.9.0.0/16 dev lo; ip route add local fd09::/64 dev lo");
    let address = |v6: bool, n: u16| -> IpAddr {
        let [high, low] = n.to_be_bytes();
        if v6 { format!("fd09::{n:x}").parse().unwrap() } else { [10, 9, high, low].into() }
    };
    netns.run(move || {
        let mut echo = Echo::open(7).unwrap();
        for n in 1..=PEERS {
            [false, true].into_iter().for_each(|v6| echo.request(address(v6, n), 64, n.into(), None));
        }
        // What is asked last is answered last.
        assert!([false, true].into_iter().all(|v6| carries(address(v6, 1), 64, PATIENCE).unwrap()));
        let (stop, _goes_on) = std::io::pipe().unwrap();
        let heard = echo.wait(Instant::now() + PATIENCE, stop.as_fd(), |_| true).unwrap().unwrap();
        let answers = |v6: bool| {
            let is_one = |n: u16| heard.contains(&Heard::Answer { nonce: n.into(), from: address(v6, n) });
            heard.iter().filter(|it| matches!(it, Heard::Answer { from, .. } if from.is_ipv6() == v6)).count()
                + usize::from(is_one(1) && is_one(PEERS))
        };
        assert_eq!([false, true].map(answers), [usize::from(PEERS) + 1; 2]);
    });
}
