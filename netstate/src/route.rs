//! Routes and policy rules. A rule's and a route's protocol is always ours ([`crate::claims::ROUTE_PROTOCOL`]).

use std::net::{IpAddr, Ipv6Addr};

use crate::LinkName;

/// A route without its destination, table and metric, which are its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Forward, or refuse.
    pub kind: RouteKind,
    /// Next hop; none for what is on the link itself.
    pub via: Option<IpAddr>,
    /// Output link; none for an `unreachable` route.
    pub dev: Option<LinkName>,
    /// Preferred source of packets that this node itself sends there.
    pub src: Option<IpAddr>,
    /// Take the next hop as being on the link, whatever the addresses say.
    pub onlink: bool,
    /// Always [`Scope::Global`] for IPv6, which has none.
    pub scope: Scope,
    /// Largest packet this node sends or forwards there, in bytes (`RTAX_MTU`); none: what the link takes.
    pub mtu: Option<u32>,
    /// The kernel notes no smaller one by itself (`RTAX_LOCK`); with `mtu`, of IPv4 alone.
    pub mtu_locked: bool,
    /// Header that the device is to put in front.
    pub encap: Option<Encap>,
}

/// Addresses of an outer IPv6 header (`LWTUNNEL_ENCAP_IP6`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
}

/// `rtm_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Forward to the next hop.
    Unicast,
    /// Answer "host unreachable".
    Unreachable,
}

/// `rtm_scope` and `ifa_scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere.
    Global,
    /// Valid on one link.
    Link,
}

/// A policy rule without its family and priority, which are its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Match packets from this address; of IPv4, from 0.0.0.0 are those of this node that have no source yet.
    pub src: Option<IpAddr>,
    /// And those that have none yet, if it would be this one (`FIB_RULE_FIND_SADDR`). IPv6 alone knows it.
    pub finds_src: bool,
    /// Match packets that came in on this link.
    pub iif: Option<LinkName>,
    /// Match UDP packets that leave from a port of these, the first and the last.
    pub udp_sport: Option<(u16, u16)>,
    /// Table to look up.
    pub table: u32,
}

impl Route {
    /// What sits on `dev` itself.
    pub fn on_link(dev: LinkName) -> Route {
        Route { kind: RouteKind::Unicast, dev: Some(dev), ..Route::unreachable() }
    }

    /// Through the next hop `via` on `dev`.
    pub fn via(via: IpAddr, dev: LinkName) -> Route {
        Route { via: Some(via), ..Route::on_link(dev) }
    }

    /// Refused with "host unreachable".
    pub fn unreachable() -> Route {
        let (via, dev, src, mtu, encap) = (None, None, None, None, None);
        let (onlink, mtu_locked) = (false, false);
        Route { kind: RouteKind::Unreachable, via, dev, src, onlink, scope: Scope::Global, mtu, mtu_locked, encap }
    }
}
