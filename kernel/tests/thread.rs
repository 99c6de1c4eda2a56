//! The kernel thread on the real kernel: what is wanted comes, what others break is repaired, what is quiet stays so.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;
mod place;
#[path = "../../netstate/tests/states/mod.rs"]
mod states;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use netns::Netns;
use place::Place;
use states::state;
use tartan_kernel::linux::Linux;
use tartan_kernel::thread::{Applied, Handle, spawn};
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Waker};
use tartan_model::{EncryptionState, Features, Host};
use tartan_netstate::{Change, Key, LinkName, Object, Owner, PodNetns, State, claims};

/// A node with two pods, and the thread at work in it.
struct Node {
    // Dropped in this order: the thread leaves the namespace first.
    handle: Handle,
    reports: Receiver<Applied>,
    netns: Netns,
    _place: Place,
    wanted: State,
}

impl Node {
    fn new() -> Node {
        Node::counting(Arc::default())
    }

    fn counting(reads: Arc<AtomicUsize>) -> Node {
        let place = Place::new();
        // Both pods with both families, a bridge, fabric addresses, rules, dead blocks, both VXLAN devices.
        let mut choice = [1; 32];
        choice[8] = 1;
        let wanted = state(&place.pods, &choice);
        let netns = Netns::new();
        // Nobody's, so that others can break it.
        netns.sh("nft add table inet tartan");
        let (sender, reports) = channel();
        let handle = netns.run(move || {
            let report = move |applied| drop(sender.send(applied));
            spawn(Box::new(Counted { linux: Linux::open().unwrap(), reads }), report).unwrap()
        });
        handle.want(1, wanted.clone());
        let mut node = Node { handle, reports, netns, _place: place, wanted };
        node.wait("the first state", |applied| applied.generation == 1);
        node
    }

    /// The first report that is as asked.
    fn wait(&mut self, what: &str, is: impl Fn(&Applied) -> bool) -> Applied {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut last = None;
        loop {
            match self.reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(applied) if is(&applied) => return applied,
                Ok(applied) => last = Some(applied),
                Err(RecvTimeoutError::Timeout) => panic!("{what} did not come; last: {last:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the thread ended; last: {last:#?}"),
            }
        }
    }

    /// Somebody breaks something; the thread makes it whole again.
    fn repairs(&mut self, script: &str) {
        self.netns.sh(script);
        let wanted = self.wanted.clone();
        let whole =
            |applied: &Applied| applied.repaired > 0 && applied.failures.is_empty() && same(&applied.mirror, &wanted);
        self.wait(&format!("repair after `{script}`"), whole);
    }
}

fn same(is: &State, should: &State) -> bool {
    should.differing_keys(is).all(|key| match (is.get(key), should.get(key)) {
        (Some(is), Some(should)) => is.object == should.object,
        _ => false,
    })
}

#[test]
fn what_others_break_is_repaired() {
    let mut node = Node::new();
    for script in [
        "ip route del 10.1.0.2",
        "ip -6 route del fd00::2",
        "ip route del 10.2.0.0/24",
        "ip neigh del 10.1.0.2 dev ttp00000000010",
        "ip -6 neigh del fd00::2 dev ttp00000000010",
        "bridge fdb del 02:00:00:00:00:0a dev ttx4 self",
        "ip link del ttx4",
        "ip link set ttx4 down",
        "ip link set ttxbr down; ip link set ttxbr up",
        "ip link del ttp00000000010",
        "ip link set ttp00000000011 mtu 1300",
        "ip addr del 10.1.0.201/32 dev lo",
        "ip -6 addr del fd00::c9/128 dev lo",
        "ip rule del priority 5000",
        "nft flush chain inet tartan postrouting",
        "nft delete element inet tartan pods '{ 10.1.0.1 }'",
        "nft add element inet tartan pods '{ 10.1.0.99 }'",
        "ip -6 rule del priority 5000",
        "ip route del unreachable 10.2.31.0/24 metric 4294967294",
        // The last: from then on it is ours alone, where the kernel has that.
        "nft delete table inet tartan",
    ] {
        node.repairs(script);
    }
}

/// Of these the kernel tells; others are looked for by and by.
#[test]
fn a_sysctl_that_others_set_is_set_back() {
    let mut node = Node::new();
    let host = tartan_netstate::Netns::Host;
    let link = || LinkName::new("ttx4").unwrap();
    for key in [
        Key::Sysctl { ns: host.clone(), name: claims::IPV4_FORWARDING.into() },
        Key::Sysctl { ns: host.clone(), name: claims::IPV6_FORWARDING.into() },
        Key::LinkSysctl { ns: host.clone(), link: link(), name: "ipv4/rp_filter".into() },
        Key::LinkSysctl { ns: host.clone(), link: link(), name: "ipv4/proxy_arp".into() },
    ] {
        node.wanted.insert(key, Object::Sysctl("1".into()), Owner::Node);
    }
    node.handle.want(2, node.wanted.clone());
    node.wait("the sysctls", |applied| applied.generation == 2);
    for name in ["ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv4.conf.ttx4.rp_filter", "ipv4.conf.ttx4.proxy_arp"]
    {
        let began = Instant::now();
        node.repairs(&format!("sysctl -qw net.{name}=0"));
        assert_eq!(node.netns.sh(&format!("sysctl -n net.{name}")).trim(), "1", "{name}");
        assert!(began.elapsed() < Duration::from_secs(3), "{name} took {:?}", began.elapsed());
    }
}

/// Linux, whose reads of pods' links one by one are counted.
struct Counted {
    linux: Linux,
    reads: Arc<AtomicUsize>,
}

impl Kernel for Counted {
    fn features(&mut self) -> Features {
        self.linux.features()
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        self.linux.subscribe(wake)
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        let of_pod = matches!(scope, Scope::Link(link) if link.as_str().starts_with("ttp"));
        self.reads.fetch_add(usize::from(of_pod), Ordering::Relaxed);
        self.linux.read(scope)
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        self.linux.host()
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        self.linux.encryption()
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        self.linux.apply(change)
    }

    fn wait_for_carrier(&mut self, link: &LinkName) {
        self.linux.wait_for_carrier(link);
    }

    fn bury(&mut self) {
        self.linux.bury();
    }

    fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.linux.lend(ns, fd);
    }

    fn give_back(&mut self, ns: &PodNetns) {
        self.linux.give_back(ns);
    }
}

/// The kernel tells of each step of making a link, and never of whose step it was.
#[test]
fn links_it_made_itself_are_not_read_again() {
    let reads = Arc::new(AtomicUsize::new(0));
    let mut node = Node::counting(reads.clone());
    let pods = node.wanted.clone();
    let mut none = pods.clone();
    for (key, _) in pods.iter().filter(|(_, entry)| matches!(entry.owner, Owner::Pod(_))) {
        none.remove(key);
    }
    node.handle.want(2, none);
    node.wait("no pods", |applied| applied.generation == 2);
    node.handle.want(3, pods);
    let there = node.wait("the pods", |applied| applied.generation == 3);
    assert!(there.failures.is_empty(), "{:?}", there.failures);
    // What was told of the pods comes before what is told now; and what was to be told in time is overdue.
    let before = reads.load(Ordering::Relaxed);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        node.repairs("ip route del unreachable 10.2.31.0/24 metric 4294967294");
    }
    assert_eq!(reads.load(Ordering::Relaxed), before);
    node.repairs("ip link set ttp00000000011 mtu 1300");
    assert!(reads.load(Ordering::Relaxed) > before, "what others do is");
}

#[test]
fn a_quiet_node_does_nothing() {
    let node = Node::new();
    // Echoes of the first state may still be under way; a sysctl that is nobody's proves nothing, so nothing is done.
    let later = node.reports.recv_timeout(Duration::from_secs(2));
    if let Ok(applied) = later {
        assert_eq!((applied.applied, applied.repaired), (0, 0), "{applied:#?}");
    }
}

#[test]
fn what_is_no_longer_wanted_goes() {
    let mut node = Node::new();
    node.handle.want(2, State::new());
    node.wait("the empty state", |applied| applied.generation == 2 && applied.mirror.is_empty());
    assert_eq!(node.netns.sh("ip -br link | grep -c tt || true").trim(), "0");
    assert_eq!(node.netns.sh("ip route; ip -6 route; ip rule | grep 5000 || true").trim(), "");
}

#[test]
fn a_pod_is_looked_into_when_asked() {
    let mut node = Node::new();
    let pod = node
        .wanted
        .iter()
        .find_map(|(key, entry)| match (key.netns(), &entry.object) {
            (tartan_netstate::Netns::Pod(pod), Object::Link(_)) => Some(pod.clone()),
            _ => None,
        })
        .unwrap();
    node.netns.sh(&format!("nsenter --net={} ip addr flush dev eth0", pod.path));
    node.handle.check_pod(1, (*pod).clone());
    let wanted = node.wanted.clone();
    node.wait("the pod's addresses", |applied| applied.repaired > 0 && same(&applied.mirror, &wanted));
}
