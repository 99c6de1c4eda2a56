//! What is ours in one network namespace.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use tartan_model::Family;
use tartan_netstate::{Key, LinkKind, LinkName, Netns, Object, Owner, State};

use crate::namespace::Namespace;
use crate::{KernelError, addr, link, neigh, qdisc, route, rule};

/// The links of a namespace, with their numbers.
#[derive(Default)]
pub(crate) struct Links {
    /// Every link's name by its number.
    names: BTreeMap<u32, LinkName>,
    /// Ours among them.
    ours: BTreeMap<u32, (LinkName, tartan_netstate::Link)>,
    /// Others', in the group of pods' links.
    with_pods: Vec<LinkName>,
}

impl Namespace {
    /// All links; in a pod those in `far` are ours.
    pub(crate) fn links(&mut self, far: &BTreeSet<LinkName>) -> Result<Links, KernelError> {
        let answers = self.netlink.dump("links", link::list())?;
        let messages = || {
            answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(message),
                _ => None,
            })
        };
        let names = messages().filter_map(|message| Some((message.header.index, link::name(message)?))).collect();
        let mut links = Links { names, ..Links::default() };
        for message in messages() {
            let on = link::bound_to(message).and_then(|index| links.names.get(&index).cloned());
            links.add(&self.ns, message, far, on);
        }
        Ok(links)
    }

    /// One link, ours or not, if it is there.
    pub(crate) fn one_link(&mut self, name: &LinkName) -> Result<Links, KernelError> {
        let mut links = Links::default();
        if let Some(RouteNetlinkMessage::NewLink(message)) = self.netlink.get("a link", link::look_up(name))? {
            links.names.extend(link::name(&message).map(|name| (message.header.index, name)));
            let on = match link::bound_to(&message).map(link::look_up_index) {
                Some(bound_to) => self.netlink.get("a link", bound_to)?,
                None => None,
            };
            let on = on.and_then(|answer| match answer {
                RouteNetlinkMessage::NewLink(on) => link::name(&on),
                _ => None,
            });
            links.add(&self.ns, &message, &BTreeSet::new(), on);
        }
        Ok(links)
    }

    /// The links themselves.
    pub(crate) fn put_links(&self, links: &Links, state: &mut State) {
        for (name, link) in links.ours.values() {
            let key = Key::Link { ns: self.ns.clone(), link: name.clone() };
            state.insert(key, Object::Link(link.clone().into()), Owner::Read);
        }
        for link in &links.with_pods {
            state.insert(Key::PodBridge { link: link.clone() }, Object::PodBridge, Owner::Read);
        }
    }

    /// Addresses of ours on these links, or on `only` one of them.
    pub(crate) fn put_addresses(
        &mut self,
        links: &Links,
        only: Option<u32>,
        state: &mut State,
    ) -> Result<(), KernelError> {
        for family in Family::ALL {
            for message in self.netlink.dump("addresses", addr::list(family, only.unwrap_or(0)))? {
                let RouteNetlinkMessage::NewAddress(message) = message else { continue };
                let Some(found) = addr::decode(&message) else { continue };
                let Some(link) = links.names.get(&found.ifindex) else { continue };
                let unmarked = if links.ours.contains_key(&found.ifindex) {
                    found.global || found.scope == tartan_netstate::Scope::Link
                } else {
                    found.shaped && link.as_str() == "lo"
                };
                if found.marked || (self.addresses_unmarked && unmarked) {
                    let key = Key::Address { ns: self.ns.clone(), link: link.clone(), address: found.address };
                    state.insert(key, Object::Address(found.scope), Owner::Read);
                }
            }
        }
        Ok(())
    }

    /// Neighbours of a family on our links among these, or on `only` one of them; and what the node answers for there.
    pub(crate) fn put_neighbours(
        &mut self,
        links: &Links,
        family: Family,
        only: Option<u32>,
        state: &mut State,
    ) -> Result<(), KernelError> {
        self.put_of("neighbours", neigh::list(family, only), links, state)?;
        if family == Family::V6 && self.ns == Netns::Host {
            self.put_of("addresses that are answered for", neigh::list_proxied(only), links, state)?;
        }
        Ok(())
    }

    /// Forwarding entries of our links among these.
    pub(crate) fn put_fdb(&mut self, links: &Links, state: &mut State) -> Result<(), KernelError> {
        let is_vxlan = |link: &tartan_netstate::Link| matches!(link.kind, LinkKind::Vxlan(_));
        for index in links.ours.iter().filter(|(_, (_, link))| is_vxlan(link)).map(|(index, _)| *index) {
            self.put_of("forwarding entries", neigh::list_fdb(index), links, state)?;
        }
        Ok(())
    }

    /// Our routes of a family, or those of ours that leave by `only` one link.
    pub(crate) fn put_routes(
        &mut self,
        links: &Links,
        family: Family,
        only: Option<u32>,
        state: &mut State,
    ) -> Result<(), KernelError> {
        self.put_of("routes", route::list(family, only), links, state)
    }

    /// Our policy rules of a family.
    pub(crate) fn put_rules(&mut self, family: Family, state: &mut State) -> Result<(), KernelError> {
        for message in self.netlink.dump("rules", rule::list(family))? {
            let RouteNetlinkMessage::NewRule(message) = message else { continue };
            let Some((v6, priority, rule)) = rule::decode(&message) else { continue };
            let key = Key::Rule { ns: self.ns.clone(), v6, priority };
            state.insert(key, Object::Rule(rule.into()), Owner::Read);
        }
        Ok(())
    }

    /// What limits our links among these.
    pub(crate) fn put_limits(&mut self, links: &Links, state: &mut State) -> Result<(), KernelError> {
        for message in self.netlink.dump("qdiscs", qdisc::list())? {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { continue };
            let Some((index, tbf)) = qdisc::decode(&message) else { continue };
            if let Some((link, _)) = links.ours.get(&index) {
                state.insert(Key::Qdisc { ns: self.ns.clone(), link: link.clone() }, Object::Tbf(tbf), Owner::Read);
            }
        }
        Ok(())
    }

    /// What is ours among the neighbours, forwarding entries or routes that the kernel lists.
    fn put_of(
        &mut self,
        what: &'static str,
        list: RouteNetlinkMessage,
        links: &Links,
        state: &mut State,
    ) -> Result<(), KernelError> {
        let Namespace { netlink, ns, .. } = self;
        let found = netlink.dump_of(what, list, |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => links.neighbour(ns, &neigh::decode(&message)?),
            RouteNetlinkMessage::NewRoute(message) => links.route(ns, &message),
            _ => None,
        })?;
        found.into_iter().for_each(|(key, object)| state.insert(key, object, Owner::Read));
        Ok(())
    }
}

// === impl Links ===

impl Links {
    /// Our WireGuard devices among them.
    pub(crate) fn of_wireguard(&self) -> impl Iterator<Item = LinkName> {
        let ours = self.ours.values().filter(|(_, link)| matches!(link.kind, LinkKind::Wireguard { .. }));
        ours.map(|(name, _)| name.clone()).collect::<Vec<_>>().into_iter()
    }

    /// Our IPsec devices among them.
    pub(crate) fn of_ipsec(&self) -> BTreeSet<LinkName> {
        let ours = self.ours.values().filter(|(_, link)| matches!(link.kind, LinkKind::Xfrm { .. }));
        ours.map(|(name, _)| name.clone()).collect()
    }

    /// Number of the only link that was asked for.
    pub(crate) fn only(&self) -> Option<u32> {
        self.names.keys().next().copied()
    }

    /// Of a link whose name is known: what it is to us.
    fn add(&mut self, ns: &Netns, message: &LinkMessage, far: &BTreeSet<LinkName>, on: Option<LinkName>) {
        let Some(name) = self.names.get(&message.header.index).cloned() else { return };
        let ours = match ns {
            Netns::Host => link::is_ours(name.as_str()),
            Netns::Pod(_) => far.contains(&name),
        };
        if let Some(link) = ours.then(|| link::decode(message, *ns != Netns::Host, on)).flatten() {
            self.ours.insert(message.header.index, (name.clone(), link));
        }
        if *ns == Netns::Host && !ours && link::is_with_pods(message) {
            self.with_pods.push(name);
        }
    }

    fn neighbour(&self, ns: &Netns, found: &neigh::Found) -> Option<(Key, Object)> {
        Some(match *found {
            neigh::Found::Neigh { ifindex, address, neigh } => {
                let (link, _) = self.ours.get(&ifindex)?;
                (Key::Neigh { ns: ns.clone(), link: link.clone(), address }, Object::Neigh(neigh))
            }
            neigh::Found::Proxied { ifindex, address } => {
                let link = self.names.get(&ifindex)?;
                (Key::Proxied { link: link.clone(), address }, Object::Proxied)
            }
            neigh::Found::Fdb { ifindex, mac, fdb } => {
                let (link, _) = self.ours.get(&ifindex)?;
                (Key::Fdb { link: link.clone(), mac }, Object::Fdb(fdb))
            }
        })
    }

    fn route(&self, ns: &Netns, message: &RouteMessage) -> Option<(Key, Object)> {
        let found = route::decode(message).filter(|found| found.ours)?;
        let mut route = found.route;
        if let Some(oif) = found.oif {
            route.dev = Some(self.names.get(&oif)?.clone());
        }
        let route::Place { table, dst, metric } = found.place;
        Some((Key::Route { ns: ns.clone(), table, dst, metric }, Object::Route(route.into())))
    }
}
