//! A network card whose driver leaves checksums inside vxlan undone, as some do: what a node sends passes through this
//! program, and so as bytes, without the kernel's note that a checksum is still to be computed.
//!
//! ```text
//! node eth0 ══ port ──► relay ──► inside ══ outside ── bridge
//!                ◄──────────────────────────────────────┘
//! ```
//!
//! The outer checksum is made zero, which over IPv4 says "none": a card that gets it wrong is no use to anybody, and not
//! what is to be shown. Frames larger than a link takes, which a card would cut up, are lost.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket};

use crate::netns::Netns;

/// UDP port of vxlan, unless a cluster says otherwise.
const VXLAN_PORT: [u8; 2] = 8472_u16.to_be_bytes();
const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const UDP: u8 = 17;
/// Of a packet that this machine sends, not receives (`sll_pkttype`).
const PACKET_OUTGOING: u8 = 4;
/// How soon it sees that it is to end, in milliseconds.
const LOOK: u16 = 50;

/// The card; the cable is whole again when this is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    netns: Netns,
    inside: String,
}

/// One end of the relay.
fn end(name: &str) -> Result<LinkAddr> {
    let mut of_name = getifaddrs()?.filter(|it| it.interface_name == name);
    let address = of_name.find_map(|it| it.address?.as_link_addr().copied());
    address.with_context(|| format!("no link {name}"))
}

// === impl Relay ===

impl Relay {
    /// Puts it between a port of the underlay and its bridge, for what the node sends.
    pub(crate) fn start(netns: &Netns, port: &str, bridge: &str) -> Result<Relay> {
        let (inside, outside) = (format!("{port}-in"), format!("{port}-out"));
        netns.ip(&format!(
            "link add {inside} type veth peer name {outside}\n\
             link set {outside} master {bridge}\n\
             link set {outside} type bridge_slave learning off\n\
             link set {outside} up\n\
             link set {inside} up\n"
        ))?;
        // Who captures a frame sees it before this.
        netns.nft(&format!(
            "table bridge relay {{ chain enter {{ type filter hook prerouting priority -300\niifname \"{port}\" drop\n}}\n}}\n"
        ))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, port_name) = (stop.clone(), port.to_owned());
        let (socket, ends) = netns.run(|| -> Result<(OwnedFd, [LinkAddr; 2])> {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            Ok((socket, [end(&port_name)?, end(&inside)?]))
        })??;
        let thread = std::thread::spawn(move || relay(&socket, &ends, &stopped));
        Ok(Relay { stop, thread: Some(thread), netns: netns.clone(), inside })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A relay that panicked carries nothing any more, which is what is wanted.
            let _ = thread.join();
        }
        // Where the namespace has gone already there is nothing to mend.
        let _ = self.netns.nft("delete table bridge relay\n");
        let _ = self.netns.ip(&format!("link del {}\n", self.inside));
    }
}

/// Passes on what comes in at the port by the inside until told to stop.
fn relay(socket: &OwnedFd, [port, inside]: &[LinkAddr; 2], stop: &AtomicBool) {
    let mut frame = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut polled, PollTimeout::from(LOOK)), Ok(ready) if ready > 0) {
            continue;
        }
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((len, Some(from))) if from.pkttype() != PACKET_OUTGOING && from.ifindex() == port.ifindex() => {
                forget_outer_checksum(&mut frame[..len]);
                // What the link does not take is lost.
                let _ = sendto(socket.as_raw_fd(), &frame[..len], inside, MsgFlags::empty());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn forget_outer_checksum(frame: &mut [u8]) {
    let is = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
    let Some(header) = frame.get(ETHERNET).map(|first| usize::from(first & 0xf) * 4) else { return };
    let udp = ETHERNET + header;
    if is(12, &ETHERTYPE_IPV4) && is(ETHERNET + 9, &[UDP]) && is(udp + 2, &VXLAN_PORT) && frame.len() >= udp + 8 {
        frame[udp + 6..udp + 8].fill(0);
    }
}
