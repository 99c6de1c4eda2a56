//! A machine: links, addresses, and a kernel that takes changes one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_fabric::Instance;
use tartan_model::{DefaultRoute, EncryptionState, Family, Host, HostLink, PerFamily};
use tartan_netstate::claims::{MAIN_TABLE, NFT_STRICT_CHAIN, PSK_SUFFIX, ROUTE_METRIC};
use tartan_netstate::{
    Entry, EspPeer, Key, Link, LinkKind, LinkName, Mac, Netns, Object, Op, Owner, PublicKey, Socket, State, Step,
    VxlanParams, WgDevice, stable_hash,
};

/// See the module.
#[derive(Clone)]
pub(crate) struct Machine {
    pub name: Arc<str>,
    /// Machines of one site are on one link.
    pub site: u8,
    /// Addresses on the uplink, the one in use first.
    pub addresses: Vec<IpNet>,
    pub blocks: PerFamily<IpNet>,
    pub kernel: State,
    /// What its engine's remotes were before: they may still send from there.
    pub previous: BTreeMap<Key, IpAddr>,
    /// Its disk.
    pub keys: BTreeMap<Arc<str>, PublicKey>,
    /// Key pairs of IPsec that were ever in use.
    pub used: BTreeSet<PublicKey>,
    /// Associations of IPsec that its kernel holds, and all that there ever were.
    pub associations: BTreeSet<Association>,
    pub ever: BTreeSet<Association>,
    /// Peers that its WireGuard devices have a session with, or that have answered by IPsec.
    pub met: BTreeSet<(LinkName, PublicKey)>,
    /// Peers that its encrypting devices have just got: a device with a keepalive begins a handshake then.
    pub greets: Vec<(LinkName, PublicKey)>,
    pub on: bool,
    /// How many seconds its clock is ahead.
    pub ahead: i64,
    /// Number of the cluster's secret, where it has one.
    pub secret: Option<u32>,
    /// Key pairs, ever.
    pub made: u64,
}

/// One way, with what its key is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Association {
    link: LinkName,
    from: PublicKey,
    to: PublicKey,
    at: IpAddr,
}

impl Machine {
    /// What its kernel tells of what is not ours.
    pub(crate) fn host(&self) -> Host {
        let link = |name: &str, addresses: Vec<IpNet>, loopback| HostLink {
            name: name.into(),
            kind: "".into(),
            mtu: 1500,
            up: true,
            loopback,
            addresses,
            accept_ra: 0,
        };
        let route =
            |family: &Family| DefaultRoute { v6: *family == Family::V6, link: "eth0".into(), via: None, metric: 0 };
        let has = |family: &Family| self.addresses.iter().any(|net| Family::of_net(net) == *family);
        Host {
            links: vec![link("eth0", self.addresses.clone(), false), link("lo", Vec::new(), true)],
            encryption: EncryptionState {
                public_keys: self.keys.clone(),
                handshakes: self.encrypted_peers().map(|peer| (peer.clone(), self.met.contains(&peer))).collect(),
            },
            default_routes: Family::ALL.iter().filter(|family| has(family)).map(route).collect(),
            ..Host::default()
        }
    }

    /// Its address in use of each family.
    pub(crate) fn internal_ips(&self) -> Vec<IpAddr> {
        let first = PerFamily::first_of(self.addresses.iter().map(IpNet::addr));
        first.iter().map(|(_, ip)| *ip).collect()
    }

    /// One step of a change. Panics where a real kernel would refuse.
    pub(crate) fn apply(&mut self, step: &Step) {
        // A key pair that wants something of a secret that is not there is what a real kernel thread is refused, too.
        if let Op::Create(Key::KeyPair { name }, _) = step.op()
            && let Some((_, secret)) = name.split_once(PSK_SUFFIX)
            && u32::from_str_radix(secret, 16).ok() != self.secret
        {
            return;
        }
        // So is a device by a key that was deleted since the plan was made; the next one knows of another key.
        if let Op::Create(_, Object::WgDevice(new)) | Op::Replace { new: Object::WgDevice(new), .. } = step.op()
            && !self.keys.values().any(|key| *key == new.public_key)
        {
            return;
        }
        if !self.associates(step) {
            return;
        }
        if let Op::Create(key, object) | Op::Replace { key, new: object, .. } = step.op() {
            self.accepts(key, object);
        }
        match step.op() {
            Op::Replace { key: key @ Key::Remote { .. }, old: Object::Remote(old), .. } => {
                self.previous.insert(key.clone(), *old);
            }
            op => drop(self.previous.remove(op.key())),
        }
        match step.op() {
            Op::Create(Key::KeyPair { name }, _) => {
                let fresh = self.keys.len() as u8 + 1;
                let mut key = [fresh; 32];
                let label = format!("{} {name} {}", self.name, self.made);
                key[..8].copy_from_slice(&stable_hash(&label).to_be_bytes());
                self.made += 1;
                self.keys.insert(name.clone(), PublicKey(key));
            }
            Op::Delete(Key::KeyPair { name }, _) => drop(self.keys.remove(name)),
            Op::Create(Key::WgPeer { link, public_key } | Key::EspPeer { link, public_key }, _) => {
                self.greets.push((link.clone(), *public_key))
            }
            // Another key ends all sessions.
            Op::Replace { key: Key::WgDevice { link }, .. } => self.met.retain(|(of, _)| of != link),
            _ => {}
        }
        step.apply_to(&mut self.kernel);
        self.end_sessions();
    }

    /// What a step means for associations. Whether a kernel thread would carry it out: it makes nothing with a key pair that is
    /// spent, and the next plan knows of another one.
    fn associates(&mut self, step: &Step) -> bool {
        let (old, new) = step.op().sides();
        match (step.key(), old, new) {
            (Key::EspDevice { link }, old, Some(Object::EspDevice(new))) => {
                let same = matches!(old, Some(Object::EspDevice(old)) if old.public_key == new.public_key);
                let is_there = self.keys.values().any(|key| *key == new.public_key);
                if !is_there || !same && self.used.contains(&new.public_key) {
                    return false;
                }
                self.used.insert(new.public_key);
                if !same {
                    self.associations.retain(|of| of.link != *link);
                    self.met.retain(|(of, _)| of != link);
                }
            }
            (Key::EspDevice { link }, Some(Object::EspDevice(old)), None) => {
                self.associations.retain(|of| of.link != *link);
                self.spend(old.public_key);
            }
            (Key::EspPeer { link, public_key }, _, Some(Object::EspPeer(new))) => {
                let device = self.kernel.get(&Key::EspDevice { link: link.clone() }).map(|entry| &entry.object);
                if !matches!(device, Some(Object::EspDevice(own)) if own.public_key == new.own.public_key) {
                    return false;
                }
                let own = new.own.public_key;
                let heard = Association { link: link.clone(), from: *public_key, to: own, at: new.own.address };
                let sent = Association { link: link.clone(), from: own, to: *public_key, at: new.address };
                for association in [heard, sent] {
                    let made = self.associations.insert(association.clone());
                    let is_first = !made || self.ever.insert(association.clone());
                    assert!(is_first, "{} uses a key for the second time: {association:?}", self.name);
                }
            }
            _ => {}
        }
        true
    }

    /// The kernel has lost what was made with that pair.
    fn spend(&mut self, public_key: PublicKey) {
        let spent: Vec<Arc<str>> =
            self.keys.iter().filter(|(_, key)| **key == public_key).map(|(name, _)| name.clone()).collect();
        for name in spent {
            self.keys.remove(&name);
            self.kernel.remove(&Key::KeyPair { name });
        }
    }

    /// Sessions end with the peer, and with the device's key.
    fn end_sessions(&mut self) {
        let kernel = &self.kernel;
        self.met.retain(|(link, public_key)| {
            let (link, public_key) = (|| link.clone(), *public_key);
            let is_there = |device: Key, peer: Key| kernel.get(&device).is_some() && kernel.get(&peer).is_some();
            is_there(Key::WgDevice { link: link() }, Key::WgPeer { link: link(), public_key })
                || is_there(Key::EspDevice { link: link() }, Key::EspPeer { link: link(), public_key })
        });
    }

    /// The kernel's state is gone; the disk is not.
    pub(crate) fn forget(&mut self) {
        self.used.clone().into_iter().for_each(|key| self.spend(key));
        self.associations.clear();
        let on_disk = self.keys.keys().map(|name| Key::KeyPair { name: name.clone() });
        let entry = || Entry { object: Object::KeyPair, owner: Owner::Read };
        self.kernel = on_disk.map(|key| (key, entry())).collect();
        self.previous.clear();
        self.met.clear();
    }

    /// Devices and the peers they have.
    pub(crate) fn encrypted_peers(&self) -> impl Iterator<Item = (LinkName, PublicKey)> {
        self.kernel.iter().filter_map(|(key, _)| match key {
            Key::WgPeer { link, public_key } | Key::EspPeer { link, public_key } => Some((link.clone(), *public_key)),
            _ => None,
        })
    }

    fn esp_peer(&self, link: &LinkName, is: impl Fn(PublicKey, &EspPeer) -> bool) -> Option<(PublicKey, &EspPeer)> {
        self.kernel.iter().find_map(|(key, entry)| match (key, &entry.object) {
            (Key::EspPeer { link: of, public_key }, Object::EspPeer(peer)) if of == link && is(*public_key, peer) => {
                Some((*public_key, &**peer))
            }
            _ => None,
        })
    }

    fn socket(&self, link: &LinkName) -> Option<Socket> {
        match &self.kernel.get(&Key::Socket { link: link.clone() })?.object {
            Object::Socket(socket) => Some(*socket),
            _ => None,
        }
    }

    fn wireguard(&self, link: &LinkName) -> Option<WgDevice> {
        match &self.kernel.get(&Key::WgDevice { link: link.clone() })?.object {
            Object::WgDevice(device) => Some(*device),
            _ => None,
        }
    }

    fn accepts(&self, key: &Key, object: &Object) {
        match (key, object) {
            (Key::Route { .. }, Object::Route(route)) => {
                if let Some(dev) = &route.dev {
                    assert!(
                        dev.as_str() == "eth0" || self.device(dev).is_some(),
                        "{}: {key} by no link {dev}",
                        self.name
                    );
                }
            }
            (
                Key::Neigh { .. }
                | Key::Fdb { .. }
                | Key::LinkSysctl { .. }
                | Key::Socket { .. }
                | Key::Remote { .. }
                | Key::WgDevice { .. }
                | Key::WgPeer { .. }
                | Key::EspDevice { .. }
                | Key::EspPeer { .. },
                _,
            ) => {
                let link = key.link().unwrap();
                assert!(self.device(link).is_some(), "{}: {key}, but there is no {link}", self.name);
            }
            (Key::Link { link, .. }, Object::Link(new)) => {
                let clash = self.devices().find(|(other, there)| *other != link && same_socket(there, new));
                assert!(clash.is_none(), "{}: {link} clashes with {clash:?}", self.name);
            }
            _ => {}
        }
        if let (Key::WgDevice { link }, Object::WgDevice(new)) = (key, object) {
            let at_port =
                |entry: &Entry| matches!(&entry.object, Object::WgDevice(old) if old.listen_port == new.listen_port);
            let clash = self.kernel.iter().find(|(other, entry)| other.link() != Some(link) && at_port(entry));
            assert!(clash.is_none(), "{}: {link} clashes with {clash:?}", self.name);
        }
    }

    /// Devices of fabrics.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&LinkName, &Link)> {
        self.kernel.iter().filter_map(|(key, entry)| match (key, &entry.object) {
            (Key::Link { link, .. }, Object::Link(device)) if !matches!(device.kind, LinkKind::VethPeer) => {
                Some((link, &**device))
            }
            _ => None,
        })
    }

    /// MTU of its pods.
    pub(crate) fn pod_mtu(&self) -> Option<u32> {
        match &self.kernel.get(&pod_link().0)?.object {
            Object::Link(link) => Some(link.mtu),
            _ => None,
        }
    }

    fn device(&self, name: &LinkName) -> Option<&Link> {
        match &self.kernel.get(&Key::Link { ns: Netns::Host, link: name.clone() })?.object {
            Object::Link(link) => Some(link),
            _ => None,
        }
    }

    fn holds(&self, key: Key, value: &str) -> bool {
        self.kernel.holds(&key, &Object::Sysctl(value.into()))
    }

    fn out_to(&self, block: &IpNet) -> Option<&tartan_netstate::Route> {
        let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: ROUTE_METRIC };
        match &self.kernel.get(&key)?.object {
            Object::Route(route) => Some(route),
            _ => None,
        }
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.on && self.addresses.iter().any(|net| net.addr() == address)
    }
}

/// Whether full-sized packets of the machine's pods fit into every fabric device it sends by.
pub(crate) fn check_mtu(a: &Machine) {
    for (key, entry) in a.kernel.iter() {
        if let (Key::Route { .. }, Object::Route(route)) = (key, &entry.object)
            && let Some(device) = route.dev.as_ref().and_then(|dev| a.device(dev))
        {
            let mtu = a.pod_mtu();
            assert!(mtu.is_none_or(|mtu| mtu <= device.mtu), "{}: {mtu:?} does not fit into {key}", a.name);
        }
    }
}

/// What stands for a pod: its link, whose MTU is that of what it sends.
pub(crate) fn pod_link() -> (Key, impl Fn(u32) -> Object) {
    let link = |mtu| Link { kind: LinkKind::VethPeer, mac: Some(Mac([2, 0, 0, 0, 0, 1])), mtu, group: 0, up: true };
    let key = Key::Link { ns: Netns::Host, link: LinkName::new("ttp0").unwrap() };
    (key, move |mtu| Object::Link(link(mtu).into()))
}

/// Sends a packet of a family from a pod of `a` to a pod of `b`, by what their kernels hold. Returns what
/// carried it, or where it ended.
pub(crate) fn send(a: &Machine, b: &Machine, family: Family) -> Result<Instance, String> {
    let (theirs, ours) = (b.blocks.get(family).ok_or("b has no pods")?, a.blocks.get(family).ok_or("a has no pods")?);
    let route = a.out_to(theirs).ok_or("a has no route")?;
    let Some(dev) = &route.dev else { return Err("a's route leads nowhere".into()) };
    let instance = send_by(a, b, family, (route, dev), (ours, theirs))?;
    let strict = Key::NftChain { chain: NFT_STRICT_CHAIN.into() };
    match a.kernel.get(&strict) {
        Some(_) if !instance.is_encrypted() => Err("a sends nothing in clear".into()),
        _ => Ok(instance),
    }
}

fn send_by(
    a: &Machine,
    b: &Machine,
    family: Family,
    (route, dev): (&tartan_netstate::Route, &LinkName),
    (ours, theirs): (&IpNet, &IpNet),
) -> Result<Instance, String> {
    let back = b.out_to(ours).and_then(|route| route.dev.clone());
    if dev.as_str() == "eth0" {
        let via = route.via.ok_or("a's route has no next hop")?;
        let on_link = a.addresses.iter().any(|net| net.contains(&via));
        if !on_link || !b.has_address(via) || a.site != b.site {
            return Err(format!("nobody answers for {via}"));
        }
        let loose = Key::UplinkSysctl { link: dev.clone(), name: "ipv4/rp_filter".into() };
        if family == Family::V4 && !b.holds(loose, "2") && back.as_ref() != Some(dev) {
            return Err("b's reverse path filter drops it".into());
        }
        return Ok(Instance::HostGw);
    }
    let device = a.device(dev).ok_or("a has no such device")?;
    let (name, instance) = match &device.kind {
        LinkKind::Vxlan(params) => {
            let VxlanParams { vni, port, local, .. } = params;
            let at = Instance::Vxlan { underlay: Family::of(*local), vni: *vni, port: *port, gbp: false };
            (by_vxlan(a, b, dev, device, route.via.ok_or("no next hop")?)?, at)
        }
        LinkKind::Xfrm { label } => (by_esp(a, b, dev, (ours, theirs))?, label.parse()?),
        LinkKind::Wireguard { label } => (by_wireguard(a, b, dev, (ours, theirs))?, label.parse()?),
        LinkKind::Tun { label } => (by_engine(a, b, label, (ours, theirs))?, label.parse()?),
        _ => by_tunnel(b, device, route, family)?,
    };
    let loose = Key::LinkSysctl { ns: Netns::Host, link: name.clone(), name: "ipv4/rp_filter".into() };
    if family == Family::V4 && !b.holds(loose, "2") && back.as_ref() != Some(name) {
        return Err("b's reverse path filter drops it".into());
    }
    Ok(instance)
}

/// By which device of `b` it comes in, if both hold the association and `b` has a policy that lets it in.
fn by_esp<'b>(
    a: &Machine,
    b: &'b Machine,
    link: &LinkName,
    (from, to): (&IpNet, &IpNet),
) -> Result<&'b LinkName, String> {
    let (theirs, peer) = a.esp_peer(link, |_, peer| peer.allowed.contains(to)).ok_or("a has no policy for it")?;
    let by = Association { link: link.clone(), from: peer.own.public_key, to: theirs, at: peer.address };
    if !a.has_address(peer.own.address) || !b.has_address(peer.address) {
        return Err(format!("nobody is at {} or {}", peer.own.address, peer.address));
    }
    if let Some(lacks) = [a, b].into_iter().find(|machine| !machine.associations.contains(&by)) {
        return Err(format!("{} has no association", lacks.name));
    }
    // Whoever takes packets out of UDP takes no others.
    let heard_at = b.socket(link).filter(|socket| socket.esp && socket.source.is_ipv6() == peer.address.is_ipv6());
    if heard_at.map(|socket| socket.port) != peer.own.port {
        return Err(format!("b hears ESP by {heard_at:?}, and a sends by {:?}", peer.own.port));
    }
    let lets_in = b.esp_peer(link, |key, peer| key == by.from && peer.allowed.contains(from)).is_some();
    let name = b.devices().map(|(name, _)| name).find(|name| *name == link).filter(|_| lets_in);
    name.ok_or_else(|| "b has no policy for it".into())
}

/// Whether the peer of that key answers what `a` asks through its device.
pub(crate) fn answers(a: &Machine, b: &Machine, link: &LinkName, key: PublicKey) -> bool {
    let Some((_, peer)) = a.esp_peer(link, |of, _| of == key) else { return false };
    let own = |of: &Machine| match of.kernel.get(&Key::EspDevice { link: link.clone() })?.object {
        Object::EspDevice(own) => Some(own.public_key),
        _ => None,
    };
    let comes_and_goes = |family: Family| {
        let (Some(ours), Some(theirs)) = (a.blocks.get(family), b.blocks.get(family)) else { return false };
        let asks = peer.allowed.contains(&Family::host_net(theirs.network()));
        asks && by_esp(a, b, link, (ours, theirs)).is_ok() && send(b, a, family).is_ok()
    };
    // Over IPv4, if that is possible.
    let first =
        Family::ALL.into_iter().find(|family| a.blocks.get(*family).is_some() && b.blocks.get(*family).is_some());
    own(b) == Some(key) && first.is_some_and(comes_and_goes)
}

/// By which device of `b` it comes in, if both have a session and each knows the other's ranges.
fn by_wireguard<'b>(
    a: &Machine,
    b: &'b Machine,
    link: &LinkName,
    (from, to): (&IpNet, &IpNet),
) -> Result<&'b LinkName, String> {
    let whose = |of: &Machine, block: &IpNet| {
        let has = |(key, entry): (&Key, &Entry)| match (key, &entry.object) {
            (Key::WgPeer { link: of, public_key }, Object::WgPeer(peer)) if of == link => {
                peer.allowed.contains(block).then_some(*public_key)
            }
            _ => None,
        };
        of.kernel.iter().find_map(has).ok_or_else(|| format!("{} does not know whose {block} is", of.name))
    };
    let (theirs, ours) = (whose(a, to)?, whose(b, from)?);
    if !may_shake_hands(a, b, link, theirs) || a.wireguard(link).map(|device| device.public_key) != Some(ours) {
        return Err(format!("{} and {} do not know each other's keys", a.name, b.name));
    }
    if !a.met.contains(&(link.clone(), theirs)) || !b.met.contains(&(link.clone(), ours)) {
        return Err(format!("{} and {} have no session", a.name, b.name));
    }
    let (name, _) = b.devices().find(|(name, _)| *name == link).ok_or("b has no such device")?;
    Ok(name)
}

/// Whether the peer of that key is `b`, where it is said to be, and `b` knows `a`. Devices of one instance have one name.
pub(crate) fn may_shake_hands(a: &Machine, b: &Machine, link: &LinkName, key: PublicKey) -> bool {
    let peer = |of: &Machine, public_key| match &of.kernel.get(&Key::WgPeer { link: link.clone(), public_key })?.object
    {
        Object::WgPeer(peer) => Some(peer.endpoint),
        _ => None,
    };
    let (Some(ours), Some(theirs)) = (a.wireguard(link), b.wireguard(link)) else { return false };
    let reached = peer(a, key).is_some_and(|at| b.has_address(at.ip()) && at.port() == theirs.listen_port);
    reached && theirs.public_key == key && peer(b, ours.public_key).is_some()
}

/// By which device of `b` it comes in, if its engine takes it.
fn by_engine<'b>(
    a: &Machine,
    b: &'b Machine,
    label: &str,
    (from, to): (&IpNet, &IpNet),
) -> Result<&'b LinkName, String> {
    let at: Instance = label.parse()?;
    let listens = |of: &Machine| of.socket(&at.device()).filter(|socket| !socket.esp);
    let remote = |of: &Machine, block: &IpNet| {
        let key = Key::Remote { link: at.device(), dst: *block };
        match of.kernel.get(&key).map(|entry| &entry.object) {
            Some(Object::Remote(address)) => Ok((*address, of.previous.get(&key).copied())),
            _ => Err(format!("{} does not know whose {block} is", of.name)),
        }
    };
    let (dst, _) = remote(a, to)?;
    if !b.has_address(dst) {
        return Err(format!("nobody answers at {dst}"));
    }
    let (Some(ours), Some(theirs)) = (listens(a), listens(b)) else { return Err("b does not hear it".into()) };
    let src = ours.source;
    if (src.is_ipv6(), ours.port) != (theirs.source.is_ipv6(), theirs.port) || !a.has_address(src) {
        return Err("b does not hear it".into());
    }
    let (current, previous) = remote(b, from)?;
    if src != current && Some(src) != previous {
        return Err(format!("b takes {from} from {current} or {previous:?}, not from {src}"));
    }
    let (name, _) = b.devices().find(|(name, _)| **name == at.device()).ok_or("b has no such device")?;
    Ok(name)
}

/// By which device of `b` it comes in.
fn by_tunnel<'b>(
    b: &'b Machine,
    device: &Link,
    route: &tartan_netstate::Route,
    family: Family,
) -> Result<(&'b LinkName, Instance), String> {
    let (dst, underlay): (IpAddr, _) = match (&device.kind, family, route.via, route.encap) {
        (LinkKind::Ipip { .. }, Family::V4, Some(via), None) => (via, Family::V4),
        (LinkKind::Sit { .. }, Family::V6, Some(IpAddr::V6(via)), None) => {
            (via.to_ipv4().ok_or("no IPv4 address in its next hop")?.into(), Family::V4)
        }
        (LinkKind::Ip6Tnl, _, None, Some(encap)) => (encap.dst.into(), Family::V6),
        other => return Err(format!("no kernel carries {other:?}")),
    };
    if !b.has_address(dst) {
        return Err(format!("nobody answers at {dst}"));
    }
    let hears = |there: &Link| match (&device.kind, &there.kind) {
        (LinkKind::Ipip { .. }, LinkKind::Ipip { local }) | (LinkKind::Sit { .. }, LinkKind::Sit { local, .. }) => {
            IpAddr::from(*local) == dst
        }
        (LinkKind::Ip6Tnl, LinkKind::Ip6Tnl) => true,
        _ => false,
    };
    let (name, _) = b.devices().find(|(_, there)| hears(there)).ok_or("b does not hear it")?;
    Ok((name, Instance::Ipip { underlay }))
}

/// By which device of `b` it comes in.
fn by_vxlan<'b>(
    a: &Machine,
    b: &'b Machine,
    dev: &LinkName,
    device: &Link,
    via: IpAddr,
) -> Result<&'b LinkName, String> {
    let neigh = Key::Neigh { ns: Netns::Host, link: dev.clone(), address: via };
    let Some(Object::Neigh(neigh)) = a.kernel.get(&neigh).map(|entry| &entry.object) else {
        return Err(format!("a has no neighbour {via}"));
    };
    let fdb = Key::Fdb { link: dev.clone(), mac: neigh.mac };
    let Some(Object::Fdb(fdb)) = a.kernel.get(&fdb).map(|entry| &entry.object) else {
        return Err(format!("a has no forwarding entry for {}", neigh.mac));
    };
    if !b.has_address(fdb.dst) {
        return Err(format!("nobody answers at {}", fdb.dst));
    }
    let (name, door) = b.devices().find(|(_, there)| same_socket(there, device)).ok_or("b does not hear it")?;
    if door.mac != Some(neigh.mac) {
        return Err(format!("b is {:?} and a says {}", door.mac, neigh.mac));
    }
    Ok(name)
}

fn same_socket(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
            (a.vni, a.port, a.local.is_ipv4()) == (b.vni, b.port, b.local.is_ipv4())
        }
        _ => false,
    }
}
