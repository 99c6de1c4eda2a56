//! What is on the node and is not ours, as far as Tartan has to know it.
//!
//! The kernel door reports it as one value; address choice, MTU, "is this peer on my link" and the foreign-firewall
//! conditions are derived from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_netstate::{LinkName, PublicKey};

use crate::Family;

/// How long an address or a default route that went may still come back: a network manager that reads its configuration
/// again takes them off and puts them on within a second or two.
pub const BRIEFLY: Duration = Duration::from_secs(10);

/// Links, addresses, default routes and firewalls of others, each list sorted; and what of ours is not wanted but found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Links in the node's namespace that are not ours.
    pub links: Vec<HostLink>,
    /// Default routes, lowest metric first.
    pub default_routes: Vec<DefaultRoute>,
    /// Chains of others that drop what pods send through this node.
    pub forward_blocks: Vec<ForwardBlock>,
    pub encryption: EncryptionState,
    /// Bridges of others on which packets of a family go from port to port past all rules about forwarded ones.
    pub unfiltered: BTreeSet<(Arc<str>, Family)>,
    /// Addresses, by their links, that are there for a while, or for somebody else's sake: temporary, deprecated and tentative ones of
    /// IPv6, secondary ones of IPv4.
    pub passing: BTreeSet<(Arc<str>, IpAddr)>,
}

/// What of WireGuard and IPsec only comes about by what is wanted: no plan can say it before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionState {
    /// The public halves of this node's key pairs, by name.
    pub public_keys: BTreeMap<Arc<str>, PublicKey>,
    /// Every peer of a device, and whether there was a handshake with it; by IPsec, whether it has answered.
    pub handshakes: BTreeMap<(LinkName, PublicKey), bool>,
}

/// A link of somebody else, with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    pub name: Arc<str>,
    /// `IFLA_INFO_KIND`, e.g. `bridge`; empty for a NIC.
    pub kind: Arc<str>,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
    /// `lo`.
    pub loopback: bool,
    /// With prefix length, global scope only.
    pub addresses: Vec<IpNet>,
    /// `net.ipv6.conf.LINK.accept_ra`; 0 where IPv6 is off.
    pub accept_ra: u8,
}

/// Something that may be missing for a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Address {
        link: Arc<str>,
        net: IpNet,
        /// It was one of [`Host::passing`].
        passing: bool,
    },
    DefaultRoute(DefaultRoute),
}

/// Where packets to nowhere in particular leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    pub v6: bool,
    pub link: Arc<str>,
    pub via: Option<IpAddr>,
    pub metric: u32,
}

/// A base chain on the forward hook that is not ours and ends in a drop for pod traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardBlock {
    /// `ip`, `ip6`, `inet`, or `iptables` / `ip6tables` for the legacy tables.
    pub family: Arc<str>,
    pub table: Arc<str>,
    pub chain: Arc<str>,
    /// The rule's handle and text, or `policy drop`.
    pub rule: Arc<str>,
    /// The chain of that table where rules of ours belong; it may be `chain` itself.
    pub place: Arc<str>,
    /// Rules of ours in front of it let pod traffic pass.
    pub opened: bool,
}

// === impl HostLink ===

impl HostLink {
    /// Whether the address is in one of the link's own ranges.
    pub fn is_on(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&address))
    }
}

// === impl Host ===

impl Host {
    /// Whether that address of the link of that name is one of those that pass.
    pub fn is_passing(&self, link: &Arc<str>, address: IpAddr) -> bool {
        !self.passing.is_empty() && self.passing.contains(&(link.clone(), address))
    }

    /// With what is missing at `now` and may come back, and until when that may be; none where nothing is.
    pub fn with_missed(&self, missed: &OrdMap<Part, Instant>, now: Instant) -> Option<(Host, Instant)> {
        let mut until = None;
        let mut host = self.clone();
        for (part, since) in missed.iter().filter(|(_, since)| **since + BRIEFLY > now) {
            match part {
                Part::Address { link: name, net, passing } => {
                    let link = host.links.iter_mut().find(|link| link.name == *name);
                    link.into_iter().for_each(|link| link.addresses.push(*net));
                    host.passing.extend(passing.then(|| (name.clone(), net.addr())));
                }
                Part::DefaultRoute(route) => host.default_routes.push(route.clone()),
            }
            until = until.min(Some(*since + BRIEFLY)).or(Some(*since + BRIEFLY));
        }
        host.links.iter_mut().for_each(|link| link.addresses.sort());
        host.default_routes.sort_by(|a, b| (a.metric, a).cmp(&(b.metric, b)));
        until.map(|until| (host, until))
    }

    /// What is missing once this host is `next`: what went, now or before, while its link stayed up and nothing took its
    /// place. With each part, since when.
    pub(crate) fn missed(&self, before: &OrdMap<Part, Instant>, next: &Host, now: Instant) -> OrdMap<Part, Instant> {
        let went = self.parts().map(|part| (part, now));
        let mut missed = OrdMap::new();
        // What went before comes last: the earlier time stands.
        for (part, since) in went.chain(before.iter().map(|(part, since)| (part.clone(), *since))) {
            if since + BRIEFLY > now && next.misses(&part) {
                missed.insert(part, since);
            }
        }
        missed
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let of_link = move |link: &HostLink| {
            let name = link.name.clone();
            link.addresses.clone().into_iter().map(move |net| Part::Address {
                passing: self.is_passing(&name, net.addr()),
                link: name.clone(),
                net,
            })
        };
        self.links.iter().flat_map(of_link).chain(self.default_routes.iter().cloned().map(Part::DefaultRoute))
    }

    fn misses(&self, part: &Part) -> bool {
        let up = |name: &str| self.links.iter().find(|link| *link.name == *name && link.up);
        match part {
            Part::Address { link, net, passing } => {
                // An address that moves from node to node, or changes by itself, is no successor of one that stays.
                let stays = |net: &IpNet, passing: bool| net.prefix_len() < net.max_prefix_len() && !passing;
                let stayed = stays(net, *passing);
                let succeeds = |link: &HostLink, other: &IpNet| {
                    let is_as_good = !stayed || stays(other, self.is_passing(&link.name, other.addr()));
                    Family::of_net(other) == Family::of_net(net) && is_as_good
                };
                up(link).is_some_and(|link| !link.addresses.iter().any(|other| succeeds(link, other)))
            }
            Part::DefaultRoute(route) => {
                up(&route.link).is_some() && !self.default_routes.iter().any(|other| other.v6 == route.v6)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(up: bool, addresses: &[&str], ways_out: &[(bool, &str)]) -> Host {
        let link = HostLink {
            name: "eth0".into(),
            kind: "".into(),
            mtu: 1500,
            up,
            loopback: false,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            accept_ra: 0,
        };
        let out = |(v6, link): &(bool, &str)| DefaultRoute { v6: *v6, link: (*link).into(), via: None, metric: 0 };
        Host { links: vec![link], default_routes: ways_out.iter().map(out).collect(), ..Host::default() }
    }

    /// What is found of `was` right after it became `is`, and after the time in which it may come back.
    fn check(was: &Host, is: &Host, found: Option<&Host>) {
        let now = Instant::now();
        let missed = was.missed(&OrdMap::new(), is, now);
        let seen = is.with_missed(&missed, now);
        assert_eq!(seen.as_ref().map(|(host, _)| host), found, "{missed:?}");
        assert!(seen.is_none_or(|(_, until)| until == now + BRIEFLY));
        assert_eq!(is.with_missed(&missed, now + BRIEFLY), None, "it does not come back");
        // Seen again, nothing is younger than it was; back, nothing is missed.
        let later = now + BRIEFLY / 2;
        assert_eq!(is.missed(&missed, is, later), missed);
        assert!(is.missed(&missed, was, later).is_empty() || !was.links[0].up);
    }

    #[test]
    fn what_went_for_a_moment_is_still_known() {
        let whole = host(true, &["192.0.2.1/24", "2001:db8::1/64"], &[(false, "eth0"), (true, "eth0")]);
        check(&whole, &host(true, &[], &[]), Some(&whole));
        check(&whole, &host(true, &["2001:db8::1/64"], &[(true, "eth0")]), Some(&whole));
        check(&whole, &host(true, &["192.0.2.1/24", "2001:db8::1/64"], &[]), Some(&whole));
        check(&whole, &whole, None);
        // As what it was.
        let mut two = host(true, &["192.0.2.1/24", "192.0.2.2/24"], &[]);
        two.passing.insert(("eth0".into(), "192.0.2.1".parse().unwrap()));
        check(&two, &host(true, &[], &[]), Some(&two));
    }

    #[test]
    fn what_goes_from_node_to_node_is_no_successor_of_what_stays() {
        let vip = host(true, &["192.0.2.2/32", "192.0.2.11/24"], &[]);
        check(&vip, &host(true, &["192.0.2.2/32"], &[]), Some(&vip));
        check(&vip, &host(true, &["192.0.2.2/32", "192.0.2.12/24"], &[]), None);
        check(&vip, &host(true, &["192.0.2.11/24"], &[]), None);
        let single = host(true, &["192.0.2.2/32"], &[]);
        check(&single, &host(true, &["192.0.2.3/32"], &[]), None);
    }

    #[test]
    fn what_is_gone_or_has_a_successor_is_not() {
        let whole = host(true, &["192.0.2.1/24"], &[(false, "eth0")]);
        check(&whole, &host(false, &[], &[]), None);
        check(&whole, &host(true, &["192.0.2.2/24"], &[(false, "wlan0")]), None);
        check(&whole, &Host::default(), None);
    }
}
