//! One network namespace, the node's or a pod's: steps carried out in it, in as few sends as their order allows.
//!
//! Invariant: steps keep their order, a failed step stops no other, and to find gone what is to be deleted is success.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use tartan_model::Family;
use tartan_netstate::claims::{DYING_LINK_GROUP, FLANNEL_LINK_PREFIX};
use tartan_netstate::{Key, Link, LinkKind, LinkName, Netns, Object, Op, Route, Scope, Step};

use crate::ipsec::Ipsec;
use crate::netlink::{Netlink, Refusal, Request};
use crate::netns::PodNetnses;
use crate::under_way::wait_for_packets;
use crate::wireguard::Wireguard;
use crate::{Failure, KernelError, addr, link, neigh, qdisc, route, rule, sysctl};

/// For what the kernel does on its own time; mostly it takes much less than a millisecond.
const PATIENCE: Duration = Duration::from_millis(20);

/// A socket inside, and what was learned of links by it.
pub(crate) struct Namespace {
    pub(crate) ns: Netns,
    pub(crate) netlink: Netlink,
    /// Kernels before 5.18 do not keep whose address it is.
    pub(crate) addresses_unmarked: bool,
    /// Of the node's namespace alone.
    pub(crate) wireguard: Option<Wireguard>,
    /// As well.
    pub(crate) ipsec: Option<Ipsec>,
}

/// Steps on their way.
struct Run<'a> {
    inside: &'a mut Namespace,
    pods: &'a PodNetnses,
    steps: &'a [&'a Step],
    /// Links looked up in this run; they may be others the next time.
    indexes: BTreeMap<LinkName, Option<u32>>,
    /// Requests not sent yet, and the step each belongs to.
    requests: Vec<Request>,
    about: Vec<usize>,
    /// Steps that were done in another way after they were refused: the rest of their requests came too early.
    done: BTreeSet<usize>,
    failures: Vec<Failure>,
}

impl Namespace {
    /// In the namespace of the calling thread, which `ns` must name.
    pub(crate) fn open(ns: Netns, addresses_unmarked: bool) -> Result<Namespace, KernelError> {
        Ok(Namespace { ns, netlink: Netlink::open()?, addresses_unmarked, wireguard: None, ipsec: None })
    }

    /// Carries out steps of this namespace. The calling thread must be in it.
    pub(crate) fn apply(&mut self, steps: &[&Step], pods: &PodNetnses) -> Vec<Failure> {
        let mut run = Run {
            inside: self,
            pods,
            steps,
            indexes: BTreeMap::new(),
            requests: Vec::new(),
            about: Vec::new(),
            done: BTreeSet::new(),
            failures: Vec::new(),
        };
        run.all();
        run.failures
    }
}

/// What the kernel does on its own time after it has said yes. Until then it drops packets, so the first ones of a pod.
impl Namespace {
    /// Waits until a link that came up sends what it is given: the kernel has to notice its carrier. To ask for the link
    /// makes newer kernels (6.8) notice at once.
    pub(crate) fn wait_for_carrier(&mut self, name: &LinkName) {
        wait_until(|| match self.netlink.get("a link", link::look_up(name)) {
            Ok(Some(RouteNetlinkMessage::NewLink(found))) => link::has_carrier(&found),
            _ => true,
        });
    }

    /// Waits until an IPv6 address that was added receives: even without duplicate address detection the kernel puts its
    /// local route in by a worker.
    pub(crate) fn wait_for_address(&mut self, address: IpAddr) {
        wait_until(|| match self.netlink.get("a route", route::look_up(address)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(found))) => route::is_local(&found),
            _ => false,
        });
    }
}

/// What does not come in time comes later: packets are late then, and nothing is wrong.
fn wait_until(mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

impl Run<'_> {
    fn all(&mut self) {
        let mut at = 0;
        while let Some(step) = self.steps.get(at) {
            if matches!(step.op(), Op::Delete(Key::Link { .. }, _)) {
                at = self.delete_links(at);
                continue;
            }
            if step.key().is_wireguard() {
                at = self.wireguard(at);
                continue;
            }
            if step.key().is_esp() {
                at = self.ipsec(at);
                continue;
            }
            if goes_another_way(step) {
                at = self.reroute(at);
                continue;
            }
            self.take(at);
            at += 1;
        }
        self.flush();
    }

    fn take(&mut self, at: usize) {
        if let Err(error) = self.step(at, self.steps[at].op()) {
            self.fail(at, error);
        }
    }

    fn step(&mut self, at: usize, op: Op<'_>) -> Result<(), KernelError> {
        let (old, new) = op.sides();
        match (op.key(), old, new) {
            (key @ (Key::Sysctl { .. } | Key::UplinkSysctl { .. } | Key::LinkSysctl { .. }), _, new) => {
                self.flush();
                // Nothing to put in its place: the last value stays.
                if let Some(Object::Sysctl(value)) = new { sysctl::write(key, value) } else { Ok(()) }
            }
            (Key::Link { link: name, .. }, old, Some(Object::Link(new))) => {
                let old = if let Some(Object::Link(old)) = old { Some(&**old) } else { None };
                self.put_link(at, name, old, new)
            }
            (Key::Qdisc { link, .. }, _, new) => self.on_link(at, link, new.is_some(), |index| match new {
                Some(Object::Tbf(tbf)) => vec![qdisc::put(index, *tbf)],
                _ => vec![qdisc::delete(index)],
            }),
            (Key::Address { link, address, .. }, old, new) => self.on_link(at, link, new.is_some(), |index| {
                match (old, new) {
                    (old, Some(Object::Address(scope))) => {
                        // A scope cannot be changed in place.
                        let out =
                            matches!(old, Some(Object::Address(_))).then(|| addr::delete(index, *address, *scope));
                        out.into_iter().chain([addr::create(index, *address, *scope)]).collect()
                    }
                    (Some(Object::Address(scope)), None) => vec![addr::delete(index, *address, *scope)],
                    _ => Vec::new(),
                }
            }),
            (Key::Neigh { link, address, .. }, _, new) => self.on_link(at, link, new.is_some(), |index| match new {
                Some(Object::Neigh(neigh)) => vec![neigh::put(index, *address, *neigh)],
                _ => vec![neigh::delete(index, *address)],
            }),
            (Key::Proxied { link, address }, _, new) => self.on_link(at, link, new.is_some(), |index| {
                let request = if new.is_some() { neigh::put_proxied } else { neigh::delete_proxied };
                vec![request(index, *address)]
            }),
            (Key::PodBridge { link }, _, new) => {
                self.on_link(at, link, new.is_some(), |index| vec![link::group_with_pods(index, new.is_some())])
            }
            (Key::Fdb { link, mac }, old, new) => self.on_link(at, link, new.is_some(), |index| match (old, new) {
                (_, Some(Object::Fdb(fdb))) => vec![neigh::put_fdb(index, *mac, *fdb)],
                (Some(Object::Fdb(fdb)), _) => vec![neigh::delete_fdb(index, *mac, *fdb)],
                _ => Vec::new(),
            }),
            (Key::Rule { v6, priority, .. }, old, new) => {
                // The new one first: packets never meet neither.
                if let Some(Object::Rule(new)) = new {
                    let create = if old.is_none() { rule::create } else { rule::create_beside };
                    self.send(at, [create(*v6, *priority, new)]);
                }
                if let Some(Object::Rule(old)) = old {
                    self.send(at, [rule::delete(*v6, *priority, old)]);
                }
                Ok(())
            }
            (Key::Route { table, dst, metric, .. }, old, new) => {
                let place = route::Place { table: *table, dst: *dst, metric: *metric };
                let Some(Object::Route(new)) = new else {
                    self.send(at, [route::delete(place)]);
                    return Ok(());
                };
                let oif = self.output(new)?;
                self.send(at, [if old.is_none() { route::create } else { route::replace }(place, new, oif)]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn put_link(&mut self, at: usize, name: &LinkName, old: Option<&Link>, new: &Link) -> Result<(), KernelError> {
        match &new.kind {
            // The pod's end came with the host's.
            LinkKind::VethPeer => self.send(at, link::set(name, old, new)),
            _ if old.is_some() => self.send(at, link::set(name, old, new)),
            LinkKind::Veth { peer: Netns::Pod(pod), .. } => {
                self.indexes.remove(name);
                let fd = self.pods.open(pod)?;
                self.send(at, link::create(name, new, Some(fd.as_fd()), None));
                // The descriptor must live until the kernel has seen its number.
                self.flush();
            }
            LinkKind::Tun { .. } => {
                self.flush();
                self.indexes.remove(name);
                crate::tun::create(name)?;
                self.send(at, link::describe(name, new));
            }
            kind => {
                let on = match kind {
                    LinkKind::Sit { on: Some(on), .. } => {
                        Some(self.index(on).ok_or_else(|| no_link(self.steps[at].key(), on))?)
                    }
                    _ => None,
                };
                self.indexes.remove(name);
                self.send(at, link::create(name, new, None, on));
            }
        }
        Ok(())
    }

    /// Deletes all links of a row of deletions at once; says where the row ends.
    fn delete_links(&mut self, first: usize) -> usize {
        let is_link = |step: &&Step| matches!(step.op(), Op::Delete(Key::Link { .. }, _));
        let end = first + self.steps[first..].iter().take_while(|step| is_link(step)).count();
        let mut groups = BTreeSet::new();
        for at in first..end {
            // A pod's end goes with the host's.
            if let Op::Delete(Key::Link { ns: Netns::Host, link }, Object::Link(old)) = self.steps[at].op() {
                if let (LinkKind::Xfrm { .. }, Some(ipsec)) = (&old.kind, &mut self.inside.ipsec)
                    && let Err(error) = ipsec.link_goes(link)
                {
                    self.fail(at, error);
                    continue;
                }
                let group = link::dying_group(old.group);
                groups.insert(group);
                self.indexes.remove(link);
                self.send(at, [link::condemn(link, group)]);
            }
        }
        self.send(first, groups.into_iter().map(link::bury));
        self.flush();
        end
    }

    /// Carries out a row of IPv4 routes that go another way, with an understudy behind each until no packet can be at the old
    /// one any more; says where the row ends. The kernel marks the old route as dead after it has put the new one in its
    /// place, and who has found it by then looks on behind it, not at the new one: without an understudy that packet is lost.
    fn reroute(&mut self, first: usize) -> usize {
        self.flush();
        let end = first + self.steps[first..].iter().take_while(|step| goes_another_way(step)).count();
        let (understudies, requests): (Vec<_>, Vec<_>) =
            (first..end).filter_map(|at| self.understudy(self.steps[at].op())).unzip();
        let results = self.inside.netlink.batch(&requests);
        (first..end).for_each(|at| self.take(at));
        self.flush();
        // Where one was refused, there is a route already.
        let made = understudies.into_iter().zip(results).filter(|(_, result)| result.is_ok());
        let deletions: Vec<Request> = made.map(|(place, _)| route::delete(place)).collect();
        if !deletions.is_empty() {
            wait_for_packets();
            // What is gone with its link is gone.
            let _refused = self.inside.netlink.batch(&deletions);
        }
        end
    }

    /// The new route once more, behind itself.
    fn understudy(&mut self, op: Op<'_>) -> Option<(route::Place, Request)> {
        let Op::Replace { key: Key::Route { table, dst, metric, .. }, new: Object::Route(new), .. } = op else {
            return None;
        };
        let place = route::Place { table: *table, dst: *dst, metric: metric.checked_add(1)? };
        let oif = self.output(new).ok()?;
        Some((place, route::create(place, new, oif)))
    }

    /// Carries out a row of steps about WireGuard at once; says where the row ends.
    fn wireguard(&mut self, first: usize) -> usize {
        // Devices must be there before.
        self.flush();
        let row = self.steps[first..].iter().take_while(|step| step.key().is_wireguard()).count();
        if let Some(wireguard) = &mut self.inside.wireguard {
            self.failures.extend(wireguard.apply(&self.steps[first..first + row]));
        }
        first + row
    }

    /// The same of IPsec.
    fn ipsec(&mut self, first: usize) -> usize {
        self.flush();
        let row = self.steps[first..].iter().take_while(|step| step.key().is_esp()).count();
        if let Some(ipsec) = &mut self.inside.ipsec {
            self.failures.extend(ipsec.apply(&self.steps[first..first + row]));
        }
        first + row
    }

    fn on_link(
        &mut self,
        at: usize,
        name: &LinkName,
        needed: bool,
        requests: impl FnOnce(u32) -> Vec<Request>,
    ) -> Result<(), KernelError> {
        match self.index(name) {
            Some(index) => self.send(at, requests(index)),
            None if needed => return Err(no_link(self.steps[at].key(), name)),
            None => {}
        }
        Ok(())
    }

    fn output(&mut self, new: &Route) -> Result<Option<u32>, KernelError> {
        let Some(name) = &new.dev else { return Ok(None) };
        match self.index(name) {
            Some(index) => Ok(Some(index)),
            None => Err(KernelError::Refused { doing: format!("find link {name}"), errno: Errno::ENODEV, says: None }),
        }
    }

    /// Number of a link, in the namespace of the calling thread; none if there is no link of that name.
    fn index(&mut self, name: &LinkName) -> Option<u32> {
        if let Some(known) = self.indexes.get(name) {
            return *known;
        }
        self.flush();
        let found = if_nametoindex(name.as_str()).ok();
        self.indexes.insert(name.clone(), found);
        found
    }

    fn send(&mut self, at: usize, requests: impl IntoIterator<Item = Request>) {
        for request in requests {
            self.requests.push(request);
            self.about.push(at);
        }
    }

    fn flush(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let results = self.inside.netlink.batch(&std::mem::take(&mut self.requests));
        for (at, result) in std::mem::take(&mut self.about).into_iter().zip(results) {
            if let Err(refusal) = result {
                self.refused(at, refusal);
            }
        }
    }

    fn refused(&mut self, at: usize, refusal: Refusal) {
        if self.done.contains(&at) {
            return;
        }
        let op = self.steps[at].op();
        let gone =
            matches!(refusal.errno, Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO);
        match (op, refusal.errno) {
            (Op::Delete(..), _) if gone => {}
            // The root is another one's, or nobody's.
            (Op::Delete(Key::Qdisc { .. }, _), Errno::EINVAL) => {}
            // Of a kind that it does not know the kernel says that there is no such thing.
            (op, Errno::ENOENT | Errno::EOPNOTSUPP) if matches!(op.key(), Key::Qdisc { .. }) => {
                let says = "this kernel has no tbf: load the module sch_tbf (CONFIG_NET_SCH_TBF), or take the bandwidth annotations off the pod";
                let refusal = Refusal { says: Some(says.into()), ..refusal };
                self.fail(at, refusal.doing(doing(op)));
            }
            // The old rule or address of a replacement is gone already.
            (Op::Replace { key: Key::Rule { .. } | Key::Address { .. }, .. }, _) if gone => {}
            (Op::Create(key @ Key::Address { link, address, .. }, Object::Address(scope)), Errno::EEXIST) => {
                if let Err(error) = self.address_taken(key, link, *address, *scope) {
                    self.fail(at, error);
                }
            }
            (Op::Create(Key::Route { table, dst, metric, .. }, Object::Route(route)), Errno::EEXIST) => {
                let place = route::Place { table: *table, dst: *dst, metric: *metric };
                if let Err(error) = self.route_taken(op.key(), place, route) {
                    self.fail(at, error);
                }
            }
            (Op::Create(key @ Key::Link { link, .. }, Object::Link(new)), Errno::EEXIST)
                if matches!(new.kind, LinkKind::Vxlan(_)) =>
            {
                match self.device_taken(key, link, new) {
                    Ok(()) => drop(self.done.insert(at)),
                    Err(error) => self.fail(at, error),
                }
            }
            _ => self.fail(at, refusal.doing(doing(op))),
        }
    }

    /// Another device has the VNI at that port. Flannel's goes, with its routes, in the moment in which ours comes.
    fn device_taken(&mut self, key: &Key, name: &LinkName, wanted: &Link) -> Result<(), KernelError> {
        let links = self.inside.netlink.dump("links", link::list())?;
        let theirs = links.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => {
                let same = link::decode(message, false, None).is_some_and(|there| link::is_rival(&there, wanted));
                link::name(message).filter(|theirs| same && theirs != name)
            }
            _ => None,
        });
        let what = key.to_string();
        let Some(theirs) = theirs else {
            return Err(KernelError::Conflict { what, theirs: format!("see `ip -details link show {name}`") });
        };
        if !theirs.as_str().starts_with(FLANNEL_LINK_PREFIX) {
            let theirs = format!("{theirs} has that VNI at that port: see `ip -details link show {theirs}`");
            return Err(KernelError::Conflict { what, theirs });
        }
        let mut requests = vec![link::condemn(&theirs, DYING_LINK_GROUP), link::bury(DYING_LINK_GROUP)];
        requests.extend(link::create(name, wanted, None, None));
        match self.inside.netlink.batch(&requests).into_iter().find_map(Result::err) {
            Some(refusal) => Err(refusal.doing(format!("put {name} in the place of {theirs}"))),
            None => Ok(()),
        }
    }

    /// The address is there: ours, which the mirror did not know, or another program's.
    fn address_taken(&mut self, key: &Key, link: &LinkName, address: IpNet, scope: Scope) -> Result<(), KernelError> {
        let index = self.index(link).unwrap_or(0);
        let there = self.inside.netlink.dump("addresses", addr::list(Family::of_net(&address), index))?;
        let ours = there.iter().any(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => addr::decode(message).is_some_and(|found| {
                let ours = found.marked || self.inside.addresses_unmarked;
                ours && found.address == address && found.scope == scope
            }),
            _ => false,
        });
        if ours {
            return Ok(());
        }
        Err(KernelError::Conflict { what: key.to_string(), theirs: format!("see `ip address show dev {link}`") })
    }

    /// Something is where a route should be made: our own, which the mirror did not know, or another program's. One by which
    /// packets go where ours sends them is as good as ours, and becomes it: Flannel's IPv6 routes have our metric.
    fn route_taken(&mut self, key: &Key, place: route::Place, wanted: &Route) -> Result<(), KernelError> {
        let oif = self.output(wanted)?;
        let next_hop = |route: &Route, oif| route.via.map(|via| (route.kind, via, oif));
        let family = Family::of_net(&place.dst);
        let mut there = self.inside.netlink.dump("routes", route::list(family, None))?;
        there.extend(self.inside.netlink.dump("routes", route::list_main(family))?);
        let as_good = there.iter().any(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => route::decode(message).is_some_and(|found| {
                let same = || next_hop(wanted, oif).is_some_and(|hop| next_hop(&found.route, found.oif) == Some(hop));
                found.place == place && (found.ours || same())
            }),
            _ => false,
        });
        if !as_good {
            return Err(KernelError::Conflict {
                what: key.to_string(),
                theirs: format!("see `ip route show exact {} table {}`", place.dst, place.table),
            });
        }
        match self.inside.netlink.batch(&[route::replace(place, wanted, oif)]).pop() {
            Some(Err(refusal)) => Err(refusal.doing(format!("replace {key}"))),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, at: usize, error: KernelError) {
        let step = self.steps[at];
        if self.failures.iter().any(|failure| failure.key == *step.key()) {
            return;
        }
        self.failures.push(Failure::of(step, error));
    }
}

/// Only IPv4's are lost sight of on the way.
fn goes_another_way(step: &Step) -> bool {
    matches!(step.op(), Op::Replace { key: Key::Route { dst: IpNet::V4(_), .. }, .. })
}

/// A step in words, for errors.
pub(crate) fn doing(op: Op<'_>) -> String {
    let verb = match op {
        Op::Create(..) => "add",
        Op::Replace { .. } => "change",
        Op::Delete(..) => "delete",
    };
    format!("{verb} {}", op.key())
}

fn no_link(key: &Key, name: &LinkName) -> KernelError {
    KernelError::Refused { doing: format!("add {key}"), errno: Errno::ENODEV, says: Some(format!("no link {name}")) }
}
