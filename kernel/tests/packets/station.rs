//! A place where packets are sent and seen: the sockets of one namespace, all used from the test's own thread.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, recvfrom, sendto,
    setsockopt, socket,
};

use super::craft::{Kind, Packet};
use crate::netns::Netns;

/// Room for all packets of a batch, and then some.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The sockets.
pub(crate) struct Station {
    send: [OwnedFd; 2],
    receive: Vec<(OwnedFd, Sees)>,
}

/// What a receiving socket gives.
#[derive(Clone, Copy)]
enum Sees {
    /// From the IP header on.
    Ip,
    /// IPv6 without its header.
    Inner(Kind),
}

impl Station {
    /// Sees what arrives at the namespace's links, whatever its own stack does with it.
    pub(crate) fn at_the_links(netns: &Netns) -> Station {
        Station::open(netns, || {
            [SockProtocol::EthIp, SockProtocol::EthIpv6]
                .map(|protocol| (open(AddressFamily::Packet, SockType::Datagram, protocol), Sees::Ip))
                .into()
        })
    }

    /// Sees what the namespace's own stack takes in, after its filters.
    pub(crate) fn in_the_stack(netns: &Netns) -> Station {
        Station::open(netns, || {
            let protocols = [
                (Kind::Tcp, SockProtocol::Tcp, SockProtocol::Tcp),
                (Kind::Udp, SockProtocol::Udp, SockProtocol::Udp),
                (Kind::Sctp, SockProtocol::Sctp, SockProtocol::Sctp),
                (Kind::Icmp, SockProtocol::Icmp, SockProtocol::IcmpV6),
            ];
            let both = protocols.map(|(kind, v4, v6)| {
                let raw = |family, protocol| open(family, SockType::Raw, protocol);
                [(raw(AddressFamily::Inet, v4), Sees::Ip), (raw(AddressFamily::Inet6, v6), Sees::Inner(kind))]
            });
            both.into_iter().flatten().collect()
        })
    }

    fn open(netns: &Netns, receive: impl FnOnce() -> Vec<(OwnedFd, Sees)> + Send + 'static) -> Station {
        netns.run(|| {
            // Headers come from us.
            let send = [AddressFamily::Inet, AddressFamily::Inet6]
                .map(|family| open(family, SockType::Raw, SockProtocol::Raw));
            let receive = receive();
            for (fd, _) in &receive {
                setsockopt(fd, RcvBufForce, &RECEIVE_BUFFER).unwrap();
            }
            Station { send, receive }
        })
    }

    /// Sends. A namespace without a way to there sends nothing.
    pub(crate) fn send(&self, packet: &Packet) {
        let [v4, v6] = &self.send;
        let sent = match packet.destination {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
                sendto(v4.as_raw_fd(), &packet.bytes(), &to, MsgFlags::empty())
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
                sendto(v6.as_raw_fd(), &packet.bytes(), &to, MsgFlags::empty())
            }
        };
        match sent {
            Ok(_) | Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::ENODEV | Errno::EPERM) => {}
            Err(errno) => panic!("sending {packet:?}: {errno}"),
        }
    }

    /// Everything of ours that came since.
    pub(crate) fn drain(&self, mut each: impl FnMut(Packet)) {
        let mut buffer = [0; 2048];
        for (fd, sees) in &self.receive {
            loop {
                let read = match sees {
                    Sees::Ip => recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
                        .map(|length| Packet::read(&buffer[..length])),
                    Sees::Inner(kind) => {
                        recvfrom::<SockaddrIn6>(fd.as_raw_fd(), &mut buffer).map(|(length, source)| {
                            let source = source.map_or(Ipv6Addr::UNSPECIFIED, |source| source.ip());
                            // Which of its addresses it was sent to, the socket does not say.
                            Packet::read_inner(*kind, source.into(), Ipv6Addr::UNSPECIFIED.into(), &buffer[..length])
                        })
                    }
                };
                match read {
                    Ok(packet) => packet.into_iter().for_each(&mut each),
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::ENETDOWN | Errno::EINTR) => {}
                    Err(errno) => panic!("receiving: {errno}"),
                }
            }
        }
    }
}

fn open(family: AddressFamily, kind: SockType, protocol: SockProtocol) -> OwnedFd {
    socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}
