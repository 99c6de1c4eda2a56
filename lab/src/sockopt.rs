//! Socket options the standard library does not know.
//!
//! Path MTU discovery is what every MTU-sized probe rests on: with it on, the kernel never fragments what we send, and
//! says EMSGSIZE instead.

use std::net::UdpSocket;
use std::os::fd::AsFd;

use nix::sys::socket::{SetSockOpt, getsockopt, sockopt};
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};

use crate::netns::Family;

sockopt_impl!(
    /// How IPv4 path MTU discovery is used.
    IpMtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int);
sockopt_impl!(
    /// How IPv6 path MTU discovery is used.
    Ipv6MtuDiscover, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int);
sockopt_impl!(
    /// The path MTU of a connected IPv6 socket, in bytes.
    Ipv6Mtu, GetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::c_int);

/// Never fragment what this socket sends: DF on IPv4, no fragment header on IPv6.
pub(crate) fn dont_fragment(socket: &impl AsFd) -> std::io::Result<()> {
    // A UDP socket of IPv6 carries IPv4 too (mapped addresses) and takes both options; others take the one of their family.
    let set = [IpMtuDiscover.set(socket, &libc::IP_PMTUDISC_DO), Ipv6MtuDiscover.set(socket, &libc::IPV6_PMTUDISC_DO)];
    match set {
        [Err(error), Err(_)] => Err(error.into()),
        _ => Ok(()),
    }
}

/// Room for what arrives while busy cores keep the reading thread waiting: all flows of a lab for half a second. With
/// the default, some milliseconds of MTU-sized probes overflow it, and the lab would count its own losses.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Lets a UDP socket hold what a busy machine makes it wait for.
pub(crate) fn hold_bursts(socket: &UdpSocket) -> std::io::Result<()> {
    Ok(sockopt::RcvBufForce.set(socket, &RECEIVE_BUFFER)?)
}

/// The path MTU the kernel holds for a connected socket, in bytes.
pub(crate) fn path_mtu(socket: &UdpSocket, family: Family) -> std::io::Result<usize> {
    let mtu = match family {
        Family::V4 => getsockopt(socket, sockopt::IpMtu)?,
        Family::V6 => getsockopt(socket, Ipv6Mtu)?,
    };
    usize::try_from(mtu).map_err(std::io::Error::other)
}
