//! Reports of rules on the real kernel: what they say of packets, and that who does not keep up is told.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Duration;

use netns::Netns;
use netns::nflog::listen;
use netns::traffic::{Over, refused};
use tartan_kernel::nflog::{Listener, Report, Told};

/// Not the one of our own rules.
const GROUP: u16 = 7001;
const PATIENCE: Duration = Duration::from_secs(5);

/// A namespace in which every packet to port 7000 is marked, reported and dropped.
fn reporting() -> Netns {
    let netns = Netns::new();
    netns.sh(&format!(
        "nft 'table inet t {{ chain c {{ type filter hook output priority 0; \
         meta l4proto {{ tcp, udp }} th dport 7000 meta mark set 0x02000007 log group {GROUP} drop; }}; }}'"
    ));
    netns
}

#[test]
fn packets_are_told_with_their_mark_and_ports() {
    let netns = reporting();
    let (listener, reports) = listen(&netns, GROUP);
    let next = || match reports.recv_timeout(PATIENCE) {
        Ok(Told::Packet(report)) => report,
        other => panic!("{other:?}"),
    };
    for (over, to, protocol) in
        [(Over::Tcp, "127.0.0.1:7000", 6), (Over::Udp, "127.0.0.1:7000", 17), (Over::Tcp, "[::1]:7000", 6)]
    {
        refused(&netns, over, to);
        let Report { mark, source, destination, source_port, destination_port, .. } = next();
        let at: std::net::SocketAddr = to.parse().unwrap();
        assert_eq!((mark, source, destination, destination_port), (0x0200_0007, at.ip(), at.ip(), at.port()), "{to}");
        assert!(source_port > 1023, "{source_port}");
        // A client tries again.
        while reports.try_recv().is_ok_and(|it| matches!(it, Told::Packet(it) if it.protocol == protocol)) {}
    }
    drop(listener);
    // Its group is free again once its thread has seen that it ended.
    let again = std::iter::repeat_with(|| netns.run(|| Listener::start(GROUP, |_| {}).is_ok()));
    assert!(again.take(1000).any(|started| started));
}

#[test]
fn of_two_who_listen_the_second_is_refused() {
    let netns = reporting();
    let (_listener, _reports) = listen(&netns, GROUP);
    let error = netns.run(|| Listener::start(GROUP, |_| {}).map(drop).unwrap_err().to_string());
    assert!(
        error.starts_with("listen to NFLOG group 7001: EPERM") && error.ends_with("(somebody else listens to it)"),
        "{error}"
    );
}

#[test]
fn who_does_not_keep_up_is_told() {
    let netns = reporting();
    let (told, reports) = mpsc::channel();
    // Holds the reader up until all has been sent.
    let (go_on, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let _listener = netns.run(move || {
        Listener::start(GROUP, move |it| {
            let _sent_all = held.lock().unwrap().recv_timeout(PATIENCE);
            let _ended = told.send(it);
        })
        .unwrap()
    });
    netns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..20_000 {
            // The rule drops it, which is an error to the sender.
            let _dropped = socket.send_to(b"x", "127.0.0.1:7000");
        }
    });
    drop(go_on);
    let lost = std::iter::from_fn(|| reports.recv_timeout(PATIENCE).ok()).any(|it| it == Told::Lost);
    assert!(lost, "20,000 reports fit into a megabyte, and none was lost");
}
