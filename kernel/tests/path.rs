//! What an echo request shows of a path, on real links: a router between that takes less than both ends.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::IpAddr;
use std::time::Duration;

use netns::Netns;
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
