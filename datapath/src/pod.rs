//! Both ends of every pod of this node: links, addresses, routes, neighbours, sysctls, MTU, in two namespaces.
//!
//! Routed, no bridge: the pod has a /32 and a /128 and one gateway a family, link-local and the same for all pods; the
//! node has a host route to each address. Neighbours are permanent on both ends, so no packet waits for ARP or ND.
//!
//! What a pod may send is the MTU of its routes. Its link takes whatever the underlay carries, always: a veth drops what
//! is larger than its own MTU without a word, and while nodes change theirs one after the other, peers still send it.
//!
//! A pod may have several interfaces. All of them have a way out; which one is taken by what is bound to none is the
//! metric's affair, and `eth0`, the one Kubernetes knows of, has the lowest. What is sent from the address of a further
//! one, as answers are, leaves by it: a rule for that address leads to a table of its own.
//!
//! Invariant: `plan(memo, world) == plan(empty, world)`; one pod's entries depend on its attachment, [`Mtu`] and whether
//! the kernel has IPv6, and on no other pod.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use tartan_model::{Attachment, Family, Limit, Memo, World};
use tartan_netstate::claims::{
    FIRST_INTERFACE, FURTHER_METRICS, FURTHER_PRIORITIES, FURTHER_TABLES, MAIN_TABLE, POD_GATEWAY_V4, POD_GATEWAY_V6,
    POD_LINK_GROUP, POD_LINK_PREFIX, ROUTE_METRIC,
};
use tartan_netstate::{
    Key, Link, LinkKind, LinkName, Mac, Neigh, Netns, Object, Owner, Part, Route, Rule, Scope, State, Tbf, stable_hash,
};

/// How large packets of pods may be, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtu {
    /// What pod links take: the underlay's.
    pub link: u32,
    /// What pods send: what fits through every fabric in use.
    pub route: u32,
}

/// What all pods of a node have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Common {
    mtu: Mtu,
    /// The kernel has it. Where it has not, it knows neither the addresses nor the sysctls of it.
    ipv6: bool,
}

/// Entries of each pod, and all of them together.
#[derive(Default)]
pub struct Pods {
    memo: Memo<Arc<str>, Arc<Attachment>, Common, Part>,
    state: State,
}

impl Pods {
    /// What this node's pods want of the kernel.
    pub fn plan(&mut self, world: &World, mtu: Mtu) -> &State {
        let state = &mut self.state;
        let nothing = Part::default();
        self.memo.update(
            &world.attachments,
            Common { mtu, ipv6: world.features.ipv6 },
            |common, _, attachment| pod(attachment, *common),
            |_, before, after| state.replace_part(before.unwrap_or(&nothing), after.unwrap_or(&nothing)),
        );
        &self.state
    }
}

/// Name of a pod link's host end.
pub fn host_link(id: &str) -> LinkName {
    LinkName::hashed(POD_LINK_PREFIX, stable_hash(id))
}

/// MAC of a pod link's host end.
pub fn host_mac(id: &str) -> Mac {
    Mac::stable(stable_hash(&format!("{id} host end")))
}

/// MAC of a pod's end, unless the runtime asked for one.
pub fn pod_mac(id: &str) -> Mac {
    Mac::stable(stable_hash(&format!("{id} pod end")))
}

/// The gateway pods see.
pub fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => POD_GATEWAY_V4.into(),
        Family::V6 => POD_GATEWAY_V6.into(),
    }
}

fn pod(attachment: &Attachment, common: Common) -> Part {
    let mut objects = Vec::new();
    let mut add = |key: Key, object: Object| objects.push((key, object));
    host_end(attachment, common, &mut add);
    pod_end(attachment, common, &mut add);
    Part::of(&Owner::Pod(attachment.id.clone()), objects)
}

/// The pod's addresses, as far as the kernel can have them.
fn addresses(attachment: &Attachment, common: Common) -> impl Iterator<Item = (Family, &IpAddr)> {
    attachment.addresses.iter().filter(move |(family, _)| common.ipv6 || *family == Family::V4)
}

fn host_end(attachment: &Attachment, common: Common, add: &mut impl FnMut(Key, Object)) {
    let ns = Netns::Host;
    let link = host_link(&attachment.id);
    let made = Link {
        kind: LinkKind::Veth { peer: Netns::from(attachment.netns.clone()), peer_name: pod_link(attachment) },
        mac: Some(host_mac(&attachment.id)),
        mtu: common.mtu.link,
        group: POD_LINK_GROUP,
        up: true,
    };
    add(Key::Link { ns: ns.clone(), link: link.clone() }, Object::Link(made.into()));
    limit(&ns, &link, attachment.limits.as_ref().and_then(|it| it.to_pod), common, add);
    let ipv6 = common.ipv6.then_some(("ipv6/accept_ra", "0"));
    for (name, value) in [("ipv4/rp_filter", "1")].into_iter().chain(ipv6) {
        add(Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: name.into() }, Object::Sysctl(value.into()));
    }
    for (family, address) in addresses(attachment, common) {
        let neigh = Key::Neigh { ns: ns.clone(), link: link.clone(), address: *address };
        add(neigh, Object::Neigh(Neigh { mac: attachment.mac }));
        let dst = Family::host_net(*address);
        let key = Key::Route { ns: ns.clone(), table: MAIN_TABLE, dst, metric: ROUTE_METRIC };
        add(key, Object::Route(on_link(family, link.clone()).into()));
    }
}

fn pod_end(attachment: &Attachment, common: Common, add: &mut impl FnMut(Key, Object)) {
    let ns = Netns::from(attachment.netns.clone());
    let link = pod_link(attachment);
    let made = Link { kind: LinkKind::VethPeer, mac: Some(attachment.mac), mtu: common.mtu.link, group: 0, up: true };
    add(Key::Link { ns: ns.clone(), link: link.clone() }, Object::Link(made.into()));
    limit(&ns, &link, attachment.limits.as_ref().and_then(|it| it.from_pod), common, add);
    if *attachment.ifname != *FIRST_INTERFACE {
        // Loose: by its routes, the way back is the first interface's.
        let key = Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: "ipv4/rp_filter".into() };
        add(key, Object::Sysctl("2".into()));
    }
    for (family, address) in addresses(attachment, common) {
        if family == Family::V6 {
            // Some runtimes switch IPv6 off in every container; accept_ra off, or a neighbour could reroute the pod.
            for (name, value) in [("ipv6/disable_ipv6", "0"), ("ipv6/accept_ra", "0")] {
                let key = Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: name.into() };
                add(key, Object::Sysctl(value.into()));
            }
        }
        let own = Key::Address { ns: ns.clone(), link: link.clone(), address: Family::host_net(*address) };
        add(own, Object::Address(Scope::Global));
        let via = gateway(family);
        let neigh = Key::Neigh { ns: ns.clone(), link: link.clone(), address: via };
        add(neigh, Object::Neigh(Neigh { mac: host_mac(&attachment.id) }));
        let (dst, metric) = (Family::host_net(via), metric(&attachment.ifname));
        let to_gateway = Key::Route { ns: ns.clone(), table: MAIN_TABLE, dst, metric };
        add(to_gateway, Object::Route(on_link(family, link.clone()).into()));
        let everything = Route { mtu: Some(common.mtu.route), ..Route::via(via, link.clone()) };
        if *attachment.ifname != *FIRST_INTERFACE {
            let table = by_name(&attachment.ifname, FURTHER_TABLES);
            let priority = by_name(&attachment.ifname, FURTHER_PRIORITIES);
            let rule = Rule { src: Some(*address), finds_src: false, iif: None, udp_sport: None, table };
            add(Key::Rule { ns: ns.clone(), v6: family == Family::V6, priority }, Object::Rule(rule.into()));
            let key = Key::Route { ns: ns.clone(), table, dst: family.everything(), metric: ROUTE_METRIC };
            add(key, Object::Route(Route { onlink: true, ..everything.clone() }.into()));
        }
        add(default_route(attachment, family), Object::Route(everything.into()));
    }
}

/// Each end of the link limits what it sends.
fn limit(ns: &Netns, link: &LinkName, limit: Option<Limit>, common: Common, add: &mut impl FnMut(Key, Object)) {
    if let Some(Limit { rate_bits, burst_bits }) = limit {
        let tbf = Tbf::new(rate_bits, burst_bits, common.mtu.link);
        add(Key::Qdisc { ns: ns.clone(), link: link.clone() }, Object::Tbf(tbf));
    }
}

/// The route that all a pod sends takes, or all that is sent from this interface.
pub fn default_route(attachment: &Attachment, family: Family) -> Key {
    let ns = Netns::from(attachment.netns.clone());
    Key::Route { ns, table: MAIN_TABLE, dst: family.everything(), metric: metric(&attachment.ifname) }
}

/// Metric of the routes by an interface. By its name alone, so that none changes when another comes or goes.
pub fn metric(ifname: &str) -> u32 {
    if ifname == FIRST_INTERFACE { ROUTE_METRIC } else { by_name(ifname, FURTHER_METRICS) }
}

/// An interface's own number of these.
fn by_name(ifname: &str, of: Range<u32>) -> u32 {
    of.start + (stable_hash(ifname) % u64::from(of.end - of.start)) as u32
}

fn on_link(family: Family, link: LinkName) -> Route {
    let scope = if family == Family::V4 { Scope::Link } else { Scope::Global };
    Route { scope, ..Route::on_link(link) }
}

/// Attachments come from requests whose interface name was checked.
fn pod_link(attachment: &Attachment) -> LinkName {
    LinkName::new(&attachment.ifname).expect("checked when the attachment was decided")
}

#[cfg(test)]
mod tests;
