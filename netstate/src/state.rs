//! `State`: one ordered map from key to object.
//!
//! Invariant: the variants of [`Key`] stand in dependency order. Ascending order is the order of creation, descending
//! order the order of deletion. The map is persistent: a clone costs nothing and shares what it does not change. Keys and
//! entries are shared between states too: a node of a large cluster has tens of thousands, in several states at once.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    EspEnd, EspPeer, Fdb, Link, LinkName, Mac, Neigh, Netns, PublicKey, Route, Rule, Scope, Socket, Tbf, WgDevice,
    WgPeer, nft,
};

/// What names an object in the kernel. One object a key; everything else about it is in [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A sysctl of a link that is not ours, e.g. accept_ra of the uplink. First: enabling IPv6 forwarding with
    /// accept_ra=1 on the uplink would take the node's default route away.
    UplinkSysctl { link: LinkName, name: Arc<str> },
    /// A sysctl of a whole namespace, as a path below `/proc/sys/net`.
    Sysctl { ns: Netns, name: Arc<str> },
    /// A key pair on this node's disk, by its name.
    KeyPair { name: Arc<str> },
    /// Our one nft table.
    NftTable,
    /// A set, map or counter map in it.
    NftSet { set: nft::SetName },
    /// A chain with all its rules. Before elements: the kernel loads a large map faster when its rules are there.
    NftChain { chain: Arc<str> },
    /// One element of a set or map, by its encoded key.
    NftElement { set: nft::SetName, key: nft::ElementKey },
    /// A device.
    Link { ns: Netns, link: LinkName },
    /// A sysctl of a device of ours, as a path below `/proc/sys/net/{ipv4,ipv6}/conf/LINK` with its family in
    /// front: `ipv4/rp_filter`.
    LinkSysctl { ns: Netns, link: LinkName, name: Arc<str> },
    /// What limits how fast a device of ours sends.
    Qdisc { ns: Netns, link: LinkName },
    /// An address on a device.
    Address { ns: Netns, link: LinkName, address: IpNet },
    /// A policy rule.
    Rule { ns: Netns, v6: bool, priority: u32 },
    /// A neighbour.
    Neigh { ns: Netns, link: LinkName, address: IpAddr },
    /// An address that the node answers for on a link that is not ours, where neighbours look for it. IPv6: for IPv4 one
    /// sysctl of the link will do.
    Proxied { link: LinkName, address: Ipv6Addr },
    /// A bridge that is not ours and has pods on it: it is in the group of pods' links, so that rules about these are about it
    /// too. After elements: once it is, what has none does not pass.
    PodBridge { link: LinkName },
    /// A forwarding entry of a VXLAN device.
    Fdb { link: LinkName, mac: Mac },
    /// What a device's engine hears peers by. It and all remotes are in the engine and not in the kernel.
    Socket { link: LinkName },
    /// Where a device's engine sends what is for these addresses, and from where alone it takes what comes from them.
    Remote { link: LinkName, dst: IpNet },
    /// What a WireGuard device is to its peers.
    WgDevice { link: LinkName },
    /// A peer of a WireGuard device.
    WgPeer { link: LinkName, public_key: PublicKey },
    /// What an IPsec device is to its peers.
    EspDevice { link: LinkName },
    /// A peer of an IPsec device.
    EspPeer { link: LinkName, public_key: PublicKey },
    /// A route.
    Route { ns: Netns, table: u32, dst: IpNet, metric: u32 },
    /// Rules of ours in somebody else's chain, which let pods' packets through. `family` is `ip`, `ip6` or `inet`, or
    /// `iptables` or `ip6tables` for the legacy tables.
    ForwardOpening { family: Arc<str>, table: Arc<str>, chain: Arc<str> },
}

/// What a key stands for. What is large is shared: steps of a change hold objects by the ten thousand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The sysctl's text, without the line end.
    Sysctl(Arc<str>),
    /// That it is there is all that is told of it; the public one is a fact of the host.
    KeyPair,
    /// Our table: that it is there is all there is to it.
    NftTable,
    /// See [`nft::Set`].
    NftSet(Arc<nft::Set>),
    /// See [`nft::Chain`].
    NftChain(Arc<nft::Chain>),
    /// The element's data; empty in a set.
    NftElement(nft::ElementData),
    /// The data of a verdict map's element.
    NftVerdict(nft::Verdict),
    /// See [`Link`].
    Link(Arc<Link>),
    /// See [`Tbf`].
    Tbf(Tbf),
    /// An address's scope.
    Address(Scope),
    /// See [`Rule`].
    Rule(Arc<Rule>),
    /// See [`Neigh`].
    Neigh(Neigh),
    /// That the node answers is all there is to it.
    Proxied,
    /// That it is in the group is all there is to it.
    PodBridge,
    /// See [`Fdb`].
    Fdb(Fdb),
    /// See [`Socket`].
    Socket(Socket),
    /// A remote's underlay address.
    Remote(IpAddr),
    /// See [`WgDevice`].
    WgDevice(WgDevice),
    /// See [`WgPeer`].
    WgPeer(Arc<WgPeer>),
    /// See [`EspEnd`].
    EspDevice(EspEnd),
    /// See [`EspPeer`].
    EspPeer(Arc<EspPeer>),
    /// See [`Route`].
    Route(Arc<Route>),
    /// How many of our rules are in that chain as we put them: wanted are all, [`crate::claims::FORWARD_OPENING_RULES`].
    ForwardOpening { intact: usize },
}

/// On whose behalf an object is there: whose condition a failure becomes, and how soon it is applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A pod's attachment, by its id. First: pods come before bulk.
    Pod(Arc<str>),
    /// The node itself.
    Node,
    /// A fabric's receive side, by the name of its instance.
    Fabric(Arc<str>),
    /// A peer node, by name.
    Peer(Arc<str>),
    /// Policy, all of it.
    Policy,
    /// Nobody's: it was read from the kernel and no plan wants it.
    Read,
}

/// An object and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object.
    pub object: Object,
    /// Not part of what the kernel holds; two entries with the same object are the same to [`crate::diff()`].
    pub owner: Owner,
}

/// Two parts of a plan wanted one key with different objects; the first one kept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What both wanted.
    pub key: Key,
    /// Who got it.
    pub kept: Owner,
    /// Who did not.
    pub lost: Owner,
}

/// Wanted or actual kernel objects.
#[derive(Clone, Debug, Default)]
pub struct State {
    entries: OrdMap<Arc<Key>, Arc<Entry>>,
    /// The routes over each link, which their keys do not tell; derived from `entries`.
    routes_over: OrdSet<(LinkName, Arc<Key>)>,
}

// === impl State ===

impl State {
    /// Nothing.
    pub fn new() -> State {
        State::default()
    }

    /// Puts an object under a key, whatever was there.
    pub fn insert(&mut self, key: Key, object: Object, owner: Owner) {
        self.share(Arc::new(key), Arc::new(Entry { object, owner }));
    }

    /// Puts an entry of another state under its key, whatever was there.
    pub fn share(&mut self, key: Arc<Key>, entry: Arc<Entry>) {
        let dev = entry.object.output_link().cloned();
        let before = self.entries.insert(key.clone(), entry);
        let left = before.as_ref().and_then(|before| before.object.output_link());
        if left != dev.as_ref() {
            left.and_then(|left| self.routes_over.remove(&(left.clone(), key.clone())));
            dev.map(|dev| self.routes_over.insert((dev, key)));
        }
    }

    /// Takes an object away, if it is there.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let (key, entry) = self.entries.remove_with_key(key)?;
        if let Some(dev) = entry.object.output_link() {
            self.routes_over.remove(&(dev.clone(), key));
        }
        Some(entry)
    }

    /// The entry under a key.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key).map(|entry| &**entry)
    }

    /// The entry under a key, with that key, to be shared with another state.
    pub fn get_shared(&self, key: &Key) -> Option<(&Arc<Key>, &Arc<Entry>)> {
        self.entries.get_key_value(key)
    }

    /// Whether the very object is there.
    pub fn holds(&self, key: &Key, object: &Object) -> bool {
        self.get(key).is_some_and(|entry| entry.object == *object)
    }

    /// Whether everything in `part` is there, object for object.
    pub fn holds_all(&self, part: &State) -> bool {
        part.iter().all(|(key, entry)| self.holds(key, &entry.object))
    }

    /// Entries in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, &Entry)> {
        self.iter_shared().map(|(key, entry)| (&**key, &**entry))
    }

    /// Entries in key order, to be shared with another state.
    pub fn iter_shared(&self) -> impl DoubleEndedIterator<Item = (&Arc<Key>, &Arc<Entry>)> {
        self.entries.iter()
    }

    /// Entries from `first` on, in key order.
    pub fn entries_from<'a>(&'a self, first: &Key) -> impl Iterator<Item = (&'a Key, &'a Entry)> + use<'a> {
        self.entries.range::<_, Key>((Bound::Included(first), Bound::Unbounded)).map(|(key, entry)| (&**key, &**entry))
    }

    /// Entries of policy's part of the nft table, see [`Key::is_of_policy`].
    pub fn of_policy(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        let prefix = crate::claims::NFT_POLICY_PREFIX;
        let first = [
            Key::NftSet { set: prefix.into() },
            Key::NftChain { chain: prefix.into() },
            Key::NftElement { set: prefix.into(), key: nft::ElementKey::catch_all() },
        ];
        first.into_iter().flat_map(|from| {
            let kind = std::mem::discriminant(&from);
            let is_of_policy = move |key: &Key| std::mem::discriminant(key) == kind && key.is_of_policy();
            self.entries_from(&from).take_while(move |(key, _)| is_of_policy(key))
        })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes `before` out and puts `after` in, leaving alone what is the same in both.
    pub fn replace(&mut self, before: &State, after: &State) {
        for key in before.differing_keys(after) {
            match after.get_shared(key) {
                Some((key, entry)) => self.share(key.clone(), entry.clone()),
                None => drop(self.remove(key)),
            }
        }
    }

    /// Keys under which the two differ; visits only what they do not share.
    pub fn differing_keys<'a>(&'a self, other: &'a State) -> impl Iterator<Item = &'a Key> {
        self.entries.diff(&other.entries).map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => &**key,
        })
    }

    /// Adds all of `part`. A key that is taken by a different object stays with who came first, and is reported.
    pub fn merge(&mut self, part: &State, conflicts: &mut Vec<Conflict>) {
        for (key, entry) in part.iter_shared() {
            match self.get(key) {
                None => self.share(key.clone(), entry.clone()),
                Some(first) if first.object == entry.object => {}
                Some(first) => conflicts.push(Conflict {
                    key: Key::clone(key),
                    kept: first.owner.clone(),
                    lost: entry.owner.clone(),
                }),
            }
        }
    }

    /// The keys of a link and of what is on it by its own key: everything but routes.
    pub(crate) fn directly_on<'a>(&'a self, ns: &'a Netns, link: &'a LinkName) -> impl Iterator<Item = &'a Key> {
        let first = [
            Key::Link { ns: ns.clone(), link: link.clone() },
            Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: "".into() },
            Key::Qdisc { ns: ns.clone(), link: link.clone() },
            Key::Address { ns: ns.clone(), link: link.clone(), address: IpNet::default() },
            Key::Neigh { ns: ns.clone(), link: link.clone(), address: Ipv4Addr::UNSPECIFIED.into() },
            Key::Proxied { link: link.clone(), address: Ipv6Addr::UNSPECIFIED },
            Key::PodBridge { link: link.clone() },
            Key::Fdb { link: link.clone(), mac: Mac([0; 6]) },
            Key::Socket { link: link.clone() },
            Key::Remote { link: link.clone(), dst: IpNet::default() },
            Key::WgDevice { link: link.clone() },
            Key::WgPeer { link: link.clone(), public_key: PublicKey([0; 32]) },
            Key::EspDevice { link: link.clone() },
            Key::EspPeer { link: link.clone(), public_key: PublicKey([0; 32]) },
        ];
        let on_it = move |key: &Key| {
            *key.netns() == *ns && (key.link() == Some(link) || key.as_link().is_some_and(|(_, name)| name == *link))
        };
        first.into_iter().flat_map(move |from| self.keys_from(from).take_while(move |key| on_it(key)))
    }

    /// The keys of the routes over a link.
    pub(crate) fn routes_over<'a>(&'a self, ns: &'a Netns, link: &'a LinkName) -> impl Iterator<Item = &'a Key> {
        let first = Key::Route { ns: ns.clone(), table: 0, dst: IpNet::default(), metric: 0 };
        let over = self.routes_over.range((link.clone(), Arc::new(first))..);
        over.take_while(move |(dev, key)| dev == link && key.netns() == ns).map(|(_, key)| &**key)
    }

    /// The keys of a link, and of all that goes when it goes.
    pub fn on_link<'a>(&'a self, ns: &'a Netns, link: &'a LinkName) -> impl Iterator<Item = &'a Key> {
        self.directly_on(ns, link).chain(self.routes_over(ns, link))
    }

    /// The keys of all that is in a pod's namespace.
    pub fn in_netns<'a>(&'a self, ns: &'a Netns) -> impl Iterator<Item = &'a Key> {
        let (name, link) = (|| Arc::<str>::from(""), LinkName::FIRST);
        let first = [
            Key::Sysctl { ns: ns.clone(), name: name() },
            Key::Link { ns: ns.clone(), link: link.clone() },
            Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: name() },
            Key::Qdisc { ns: ns.clone(), link: link.clone() },
            Key::Address { ns: ns.clone(), link: link.clone(), address: IpNet::default() },
            Key::Rule { ns: ns.clone(), v6: false, priority: 0 },
            Key::Neigh { ns: ns.clone(), link, address: Ipv4Addr::UNSPECIFIED.into() },
            Key::Route { ns: ns.clone(), table: 0, dst: IpNet::default(), metric: 0 },
        ];
        first.into_iter().flat_map(move |from| {
            let kind = std::mem::discriminant(&from);
            let within = move |key: &&Key| std::mem::discriminant(*key) == kind && key.netns() == ns;
            self.keys_from(from).take_while(within)
        })
    }

    /// Takes all elements of an nft set away.
    pub fn remove_elements(&mut self, of: &str) {
        let first = Key::NftElement { set: of.into(), key: nft::ElementKey::catch_all() };
        let is_element = |key: &&Key| matches!(key, Key::NftElement { set, .. } if **set == *of);
        let keys: Vec<Key> = self.keys_from(first).take_while(is_element).cloned().collect();
        keys.iter().for_each(|key| {
            self.remove(key);
        });
    }

    /// The keys of a link's neighbours.
    pub(crate) fn neighbours_on<'a>(&'a self, ns: &'a Netns, link: &'a LinkName) -> impl Iterator<Item = &'a Key> {
        let first = Key::Neigh { ns: ns.clone(), link: link.clone(), address: Ipv4Addr::UNSPECIFIED.into() };
        self.keys_from(first)
            .take_while(move |key| matches!(key, Key::Neigh { .. }) && key.netns() == ns && key.link() == Some(link))
    }

    fn keys_from(&self, first: Key) -> impl Iterator<Item = &Key> {
        self.entries.range::<_, Key>((Bound::Included(first), Bound::Unbounded)).map(|(key, _)| &**key)
    }

    /// The map itself, for comparing two states without walking what they share.
    pub(crate) fn map(&self) -> &OrdMap<Arc<Key>, Arc<Entry>> {
        &self.entries
    }
}

impl FromIterator<(Key, Entry)> for State {
    fn from_iter<I: IntoIterator<Item = (Key, Entry)>>(entries: I) -> State {
        let mut state = State::new();
        entries.into_iter().for_each(|(key, entry)| state.share(Arc::new(key), Arc::new(entry)));
        state
    }
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.entries == other.entries
    }
}

impl Eq for State {}

// === impl Object ===

impl Object {
    /// The peer of a WireGuard device, if it is one.
    pub fn as_wg_peer(&self) -> Option<&WgPeer> {
        match self {
            Object::WgPeer(peer) => Some(peer),
            _ => None,
        }
    }

    /// The peer of an IPsec device, if it is one.
    pub fn as_esp_peer(&self) -> Option<&EspPeer> {
        match self {
            Object::EspPeer(peer) => Some(peer),
            _ => None,
        }
    }

    /// The ranges that are a peer's own, where no other peer of the device can have them.
    pub(crate) fn allowed(&self) -> Option<&[IpNet]> {
        match self {
            Object::WgPeer(peer) => Some(&peer.allowed),
            Object::EspPeer(peer) => Some(&peer.allowed),
            _ => None,
        }
    }

    /// The same peer with these ranges.
    pub(crate) fn allowing(&self, ranges: Arc<[IpNet]>) -> Object {
        match self {
            Object::WgPeer(peer) => Object::WgPeer(WgPeer { allowed: ranges, ..WgPeer::clone(peer) }.into()),
            Object::EspPeer(peer) => Object::EspPeer(EspPeer { allowed: ranges, ..EspPeer::clone(peer) }.into()),
            other => other.clone(),
        }
    }

    /// The link that a route leads to.
    fn output_link(&self) -> Option<&LinkName> {
        match self {
            Object::Route(route) => route.dev.as_ref(),
            _ => None,
        }
    }
}

// === impl Key ===

impl Key {
    /// The namespace the object lives in.
    pub fn netns(&self) -> &Netns {
        match self {
            Key::Sysctl { ns, .. }
            | Key::Link { ns, .. }
            | Key::LinkSysctl { ns, .. }
            | Key::Qdisc { ns, .. }
            | Key::Address { ns, .. }
            | Key::Rule { ns, .. }
            | Key::Neigh { ns, .. }
            | Key::Route { ns, .. } => ns,
            _ => &Netns::Host,
        }
    }

    /// The link the object hangs on and vanishes with; for a route that is its object's `dev`.
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Key::LinkSysctl { link, .. }
            | Key::Qdisc { link, .. }
            | Key::Address { link, .. }
            | Key::Neigh { link, .. }
            | Key::Proxied { link, .. }
            | Key::PodBridge { link }
            | Key::Fdb { link, .. }
            | Key::Socket { link }
            | Key::Remote { link, .. }
            | Key::WgDevice { link }
            | Key::WgPeer { link, .. }
            | Key::EspDevice { link }
            | Key::EspPeer { link, .. } => Some(link),
            _ => None,
        }
    }

    /// Namespace and name, if the key is a link's.
    pub fn as_link(&self) -> Option<(Netns, LinkName)> {
        match self {
            Key::Link { ns, link } => Some((ns.clone(), link.clone())),
            _ => None,
        }
    }

    /// Whether the object lives in an engine.
    pub fn is_in_engine(&self) -> bool {
        matches!(self, Key::Socket { .. } | Key::Remote { .. })
    }

    /// Whether it is what a WireGuard device has.
    pub fn is_wireguard(&self) -> bool {
        matches!(self, Key::WgDevice { .. } | Key::WgPeer { .. })
    }

    /// Whether it is what an IPsec device has.
    pub fn is_esp(&self) -> bool {
        matches!(self, Key::EspDevice { .. } | Key::EspPeer { .. })
    }

    /// Whether the object lives in our nft table.
    pub fn is_nft(&self) -> bool {
        matches!(self, Key::NftTable | Key::NftSet { .. } | Key::NftChain { .. } | Key::NftElement { .. })
    }

    /// Whether it is policy's, by its name, whoever owns it. These make sense together only: what changes of them goes in as
    /// one, or not at all.
    pub fn is_of_policy(&self) -> bool {
        let name: &str = match self {
            Key::NftSet { set } | Key::NftElement { set, .. } => set,
            Key::NftChain { chain } => chain,
            _ => return false,
        };
        name.starts_with(crate::claims::NFT_POLICY_PREFIX)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::UplinkSysctl { link, name } => write!(f, "sysctl {name} of {link}"),
            Key::Sysctl { ns, name } => write!(f, "sysctl {name} in {ns}"),
            Key::KeyPair { name } => write!(f, "key pair {name}"),
            Key::NftTable => f.write_str("nft table"),
            Key::NftSet { set } => write!(f, "nft set {set}"),
            Key::NftChain { chain } => write!(f, "nft chain {chain}"),
            Key::NftElement { set, key } => write!(f, "nft element {key} of {set}"),
            Key::Link { ns, link } => write!(f, "link {link} in {ns}"),
            Key::LinkSysctl { ns, link, name } => write!(f, "sysctl {name} of {link} in {ns}"),
            Key::Qdisc { ns, link } => write!(f, "limit of {link} in {ns}"),
            Key::Address { ns, link, address } => write!(f, "address {address} on {link} in {ns}"),
            Key::Rule { ns, v6, priority } => {
                write!(f, "{} rule {priority} in {ns}", if *v6 { "IPv6" } else { "IPv4" })
            }
            Key::Neigh { ns, link, address } => write!(f, "neighbour {address} on {link} in {ns}"),
            Key::Proxied { link, address } => write!(f, "proxied {address} on {link}"),
            Key::PodBridge { link } => write!(f, "{link} among pods' links"),
            Key::Fdb { link, mac } => write!(f, "fdb entry {mac} on {link}"),
            Key::Socket { link } => write!(f, "socket of {link}"),
            Key::Remote { link, dst } => write!(f, "remote {dst} of {link}"),
            Key::WgDevice { link } => write!(f, "key and port of {link}"),
            Key::WgPeer { link, public_key } => write!(f, "peer {public_key} of {link}"),
            Key::EspDevice { link } => write!(f, "key and address of {link}"),
            Key::EspPeer { link, public_key } => write!(f, "peer {public_key} of {link}"),
            Key::Route { ns, table, dst, metric } => write!(f, "route {dst} table {table} metric {metric} in {ns}"),
            Key::ForwardOpening { family, table, chain } => {
                write!(f, "rules for pods in chain {chain} of {family} table {table}")
            }
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Pod(id) => write!(f, "pod {id}"),
            Owner::Node => f.write_str("this node"),
            Owner::Fabric(instance) => write!(f, "fabric {instance}"),
            Owner::Peer(node) => write!(f, "peer {node}"),
            Owner::Policy => f.write_str("policy"),
            Owner::Read => f.write_str("nobody"),
        }
    }
}
