//! What the kernel tells of its own accord: rtnetlink, nftables and XFRM notifications as [`Wake`]s.
//!
//! Invariant: whatever happens to what is ours becomes a wake, unless the kernel says that our own request caused it.
//! Lost notifications become [`Wake::Overrun`].
//!
//! The kernel does not tell all: IPv4 routes vanish in silence with their link, or with the address they name as
//! source. So an event of such a link or address wakes the routes too. Of sysctls it tells of a few.

use std::collections::BTreeMap;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tartan_model::Family;
use tartan_netstate::claims::NFT_TABLE;
use tartan_netstate::{Key, LinkName, Netns, Object};

use crate::netlink::{Part, Refusal, parts, receive};
use crate::nfnetlink::attr_str;
use crate::{KernelError, Scope, Wake, Waker, addr, link, neigh, netconf, route, rule, xfrm};

/// Bursts are long: a relist of thousands of nodes is told object by object.
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;
const GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NSID,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
];
const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `NFTA_*_TABLE` of every kind of object is the first attribute.
const NFTA_TABLE: u16 = 1;
const NFPROTO_INET: u8 = 1;
/// Firewalls are made of chains and rules; elements of others' sets come and go by the thousand.
const CHAINS_AND_RULES: std::ops::RangeInclusive<u16> = 3..=8;

/// A thread that listens. It ends when this is dropped.
pub(crate) struct Notifications {
    _stop: PipeWriter,
}

struct Listener {
    route: Socket,
    nft: Socket,
    /// None where the kernel has no XFRM.
    xfrm: Option<Socket>,
    /// Ports whose requests we make ourselves.
    ours: Vec<u32>,
    addresses_unmarked: bool,
    /// Names of all links, as far as they were told: a neighbour comes with a number.
    names: BTreeMap<u32, LinkName>,
    wake: Waker,
}

impl Notifications {
    /// Listens in the network namespace of the calling thread. Everything after this is told.
    pub(crate) fn start(
        ours: impl Into<Vec<u32>>,
        addresses_unmarked: bool,
        wake: Waker,
    ) -> Result<Notifications, KernelError> {
        let failed = |error: io::Error| Refusal::of(&error).doing("listen to the kernel's notifications");
        let (stopped, stop) = io::pipe().map_err(failed)?;
        let mut listener = Listener {
            route: socket(NETLINK_ROUTE, &GROUPS).map_err(failed)?,
            nft: socket(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).map_err(failed)?,
            xfrm: socket(NETLINK_XFRM, &xfrm::GROUPS).ok(),
            ours: ours.into(),
            addresses_unmarked,
            names: BTreeMap::new(),
            wake,
        };
        listener.learn_names()?;
        let thread = std::thread::Builder::new().name("kernel-news".into());
        thread.spawn(move || listener.listen(stopped.as_fd())).map_err(failed)?;
        Ok(Notifications { _stop: stop })
    }
}

fn socket(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok(socket)
}

impl Listener {
    fn listen(mut self, stopped: std::os::fd::BorrowedFd<'_>) {
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            // Without XFRM its place is the stop's, which ends all of it anyway.
            let xfrm = self.xfrm.as_ref().map_or(stopped, Socket::as_fd);
            let mut ready =
                [stopped, self.route.as_fd(), self.nft.as_fd(), xfrm].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(_) => return (self.wake)(Wake::Overrun),
                Ok(_) => {}
            }
            let [stop, route, nft, xfrm] = ready.map(|fd| fd.any().unwrap_or(false));
            if stop {
                return;
            }
            if route {
                match receive(&self.route, &mut buffer, libc::MSG_DONTWAIT) {
                    Ok(()) => parts(&buffer).for_each(|part| self.hear(&part)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => (self.wake)(Wake::Overrun),
                }
            }
            if nft {
                self.hear_nft(&mut buffer);
            }
            if xfrm {
                self.hear_xfrm(&mut buffer);
            }
        }
    }

    fn hear_xfrm(&mut self, buffer: &mut Vec<u8>) {
        let Some(socket) = &self.xfrm else { return };
        let others = |part: &Part<'_>| !self.ours.contains(&part.port) && xfrm::tells_of_loss(part.kind);
        match receive(socket, buffer, libc::MSG_DONTWAIT) {
            Ok(()) if !parts(buffer).any(|part| others(&part)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => (self.wake)(Wake::Changed(Scope::Encryption)),
        }
    }

    fn hear_nft(&mut self, buffer: &mut Vec<u8>) {
        let (mut table, mut foreign) = (false, false);
        match receive(&self.nft, buffer, libc::MSG_DONTWAIT) {
            Ok(()) => {
                for part in parts(buffer).filter(|part| !self.ours.contains(&part.port)) {
                    table |= is_about_our_table(&part);
                    foreign |= is_about_rules(&part);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => (table, foreign) = (true, true),
        }
        if table {
            (self.wake)(Wake::Changed(Scope::Nft));
        }
        if foreign {
            (self.wake)(Wake::Changed(Scope::Foreign));
            (self.wake)(Wake::Host);
        }
    }

    fn hear(&mut self, part: &Part<'_>) {
        if netconf::MESSAGES.contains(&part.kind) {
            let named = |index| self.names.get(&index).cloned();
            if let Some((sysctl, value)) = netconf::decode(part.payload(), named) {
                (self.wake)(Wake::Now(sysctl, Some(value)));
            }
            return;
        }
        let echo = self.ours.contains(&part.port);
        match part.decode("a notification") {
            Ok(message) => self.told(message, echo),
            Err(_) if echo => {}
            Err(_) => (self.wake)(Wake::Overrun),
        }
    }

    fn told(&mut self, message: RouteNetlinkMessage, echo: bool) {
        use RouteNetlinkMessage as M;
        match message {
            M::NewLink(message) => self.link(&message, true, echo),
            M::DelLink(message) => self.link(&message, false, echo),
            _ if echo => {}
            M::NewAddress(message) => self.address(addr::decode(&message), true),
            M::DelAddress(message) => self.address(addr::decode(&message), false),
            M::NewNeighbour(message) => {
                let ours = neigh::decode(&message).is_some();
                self.neighbour(neigh::decode_any(&message), ours);
            }
            M::DelNeighbour(message) => self.neighbour(neigh::decode_any(&message), false),
            M::NewRoute(message) => self.route(&message, true),
            M::DelRoute(message) => self.route(&message, false),
            M::NewRule(message) => self.rule(rule::decode(&message), true),
            M::DelRule(message) => self.rule(rule::decode(&message), false),
            _ => {}
        }
    }

    fn link(&mut self, message: &LinkMessage, there: bool, echo: bool) {
        let Some(name) = link::name(message) else { return };
        let index = message.header.index;
        let before = match there {
            true => self.names.insert(index, name.clone()),
            false => self.names.remove(&index),
        };
        let is_known = there && before.is_some();
        if let Some(before) = before.filter(|before| *before != name) {
            (self.wake)(Wake::Changed(Scope::Link(before)));
        }
        if echo {
            return;
        }
        if link::is_ours(name.as_str()) {
            let on = link::bound_to(message).and_then(|index| self.names.get(&index).cloned());
            let object = link::decode(message, false, on).filter(|_| there).map(|link| Object::Link(link.into()));
            (self.wake)(Wake::Now(Key::Link { ns: Netns::Host, link: name }, object));
        } else {
            // Our routes by way of it may be gone.
            (self.wake)(Wake::Changed(Scope::Link(name)));
            (self.wake)(Wake::Host);
            // What is bound to one of that name is bound to the one that was there then.
            if !is_known {
                (self.wake)(Wake::Changed(Scope::Links));
            }
        }
    }

    fn address(&mut self, found: Option<addr::Found>, there: bool) {
        let Some(found) = found else { return (self.wake)(Wake::Overrun) };
        let name = self.names.get(&found.ifindex).cloned();
        let ours =
            found.marked || (self.addresses_unmarked && name.as_ref().is_some_and(|name| link::is_ours(name.as_str())));
        match name {
            None => {}
            Some(link) if ours || self.addresses_unmarked => {
                let key = Key::Address { ns: Netns::Host, link, address: found.address };
                (self.wake)(Wake::Now(key, (ours && there).then_some(Object::Address(found.scope))));
            }
            // Ours may have been replaced by one that is not marked.
            Some(link) => {
                (self.wake)(Wake::Now(Key::Address { ns: Netns::Host, link, address: found.address }, None));
            }
        }
        if !ours {
            (self.wake)(Wake::Host);
        }
        if !there {
            (self.wake)(Wake::Changed(Scope::Routes(Family::of_net(&found.address))));
        }
    }

    fn neighbour(&mut self, found: Option<neigh::Found>, there: bool) {
        let Some(found) = found else { return };
        let ours = |index| self.names.get(&index).filter(|name| link::is_ours(name.as_str())).cloned();
        let (key, object) = match found {
            neigh::Found::Neigh { ifindex, address, neigh } => {
                let Some(link) = ours(ifindex) else { return };
                (Key::Neigh { ns: Netns::Host, link, address }, Object::Neigh(neigh))
            }
            // Nobody tells of these.
            neigh::Found::Proxied { .. } => return,
            neigh::Found::Fdb { ifindex, mac, fdb } => {
                let Some(link) = ours(ifindex) else { return };
                (Key::Fdb { link, mac }, Object::Fdb(fdb))
            }
        };
        (self.wake)(Wake::Now(key, there.then_some(object)));
    }

    fn route(&mut self, message: &RouteMessage, there: bool) {
        if message.header.destination_prefix_length == 0 {
            (self.wake)(Wake::Host);
        }
        let Some(mut found) = route::decode(message) else { return };
        let route::Place { table, dst, metric } = found.place;
        let key = Key::Route { ns: Netns::Host, table, dst, metric };
        found.route.dev = found.oif.and_then(|oif| self.names.get(&oif).cloned());
        if !found.ours && there {
            // IPv4 tells of a replacement by what came, not by what went.
            return (self.wake)(Wake::Now(key, None));
        }
        if found.ours {
            (self.wake)(Wake::Now(key, there.then_some(Object::Route(found.route.into()))));
        }
    }

    fn rule(&mut self, found: Option<(bool, u32, tartan_netstate::Rule)>, there: bool) {
        if let Some((v6, priority, rule)) = found {
            let key = Key::Rule { ns: Netns::Host, v6, priority };
            (self.wake)(Wake::Now(key, there.then_some(Object::Rule(rule.into()))));
        }
    }

    fn learn_names(&mut self) -> Result<(), KernelError> {
        for message in crate::netlink::Netlink::open()?.dump("links", link::list())? {
            if let RouteNetlinkMessage::NewLink(message) = message
                && let Some(name) = link::name(&message)
            {
                self.names.insert(message.header.index, name);
            }
        }
        Ok(())
    }
}

/// `nfgenmsg` is family, version and a resource; attributes follow.
fn is_about_our_table(part: &Part<'_>) -> bool {
    let Some((header, attrs)) = part.payload().split_at_checked(4) else { return false };
    header[0] == NFPROTO_INET && attr_str(attrs, NFTA_TABLE).as_deref() == Some(NFT_TABLE)
}

fn is_about_rules(part: &Part<'_>) -> bool {
    part.kind >> 8 == NFNL_SUBSYS_NFTABLES
        && CHAINS_AND_RULES.contains(&(part.kind & 0xff))
        && !is_about_our_table(part)
}
