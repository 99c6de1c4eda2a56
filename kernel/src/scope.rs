//! Parts of the kernel's state.

use std::collections::BTreeSet;

use tartan_model::Family;
use tartan_netstate::{Key, LinkName, Netns, Object, PodNetns};

/// A part of the kernel's state that is read at once. A node may have thousands of peers, and a pod that comes waits for the
/// read that is under way: so what is of two families is two parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All our links of the node's namespace with what limits them, bridges among them, and our addresses, on whatever link.
    Links,
    /// All our neighbours of a family in the node's namespace, and what the node answers for.
    Neighbours(Family),
    /// All our forwarding entries.
    Fdb,
    /// All our routes and rules of a family in the node's namespace.
    Routes(Family),
    /// One link of the node's namespace, ours or not, with what hangs on it: addresses, neighbours, FDB, routes.
    Link(LinkName),
    /// Our nft table.
    Nft,
    /// Our rules in forward chains of others.
    Foreign,
    /// All that is in engines.
    Engines,
    /// What our WireGuard and IPsec devices have, and this node's key pairs.
    Encryption,
    /// The values of these sysctls.
    Sysctls(Vec<Key>),
    /// What is ours inside a pod: these ends of our links, and what hangs on them.
    Pod { ns: PodNetns, ends: BTreeSet<LinkName> },
}

impl Scope {
    /// Everything that is not inside pods and no sysctl.
    pub fn of_node() -> impl Iterator<Item = Scope> {
        let of_family = |of| [Scope::Neighbours(of), Scope::Routes(of)];
        [Scope::Links, Scope::Fdb, Scope::Nft, Scope::Foreign, Scope::Engines, Scope::Encryption]
            .into_iter()
            .chain(Family::ALL.into_iter().flat_map(of_family))
    }

    /// Whether a read of this scope tells about such an object.
    pub fn covers(&self, key: &Key, object: &Object) -> bool {
        let in_host = *key.netns() == Netns::Host;
        match self {
            Scope::Links => match key {
                Key::Link { .. } | Key::Qdisc { .. } | Key::Address { .. } => in_host,
                _ => matches!(key, Key::PodBridge { .. }),
            },
            Scope::Neighbours(of) => match key {
                Key::Neigh { address, .. } => in_host && Family::of(*address) == *of,
                Key::Proxied { .. } => *of == Family::V6,
                _ => false,
            },
            Scope::Fdb => matches!(key, Key::Fdb { .. }),
            Scope::Routes(of) => match key {
                Key::Route { dst, .. } => in_host && Family::of_net(dst) == *of,
                Key::Rule { v6, .. } => in_host && *v6 == (*of == Family::V6),
                _ => false,
            },
            Scope::Nft => key.is_nft(),
            Scope::Foreign => matches!(key, Key::ForwardOpening { .. }),
            Scope::Engines => key.is_in_engine(),
            Scope::Encryption => key.is_wireguard() || key.is_esp() || matches!(key, Key::KeyPair { .. }),
            Scope::Sysctls(keys) => keys.contains(key),
            Scope::Link(name) => in_host && !is_sysctl(key) && !key.is_in_engine() && is_on(key, object, name),
            Scope::Pod { ns, .. } => matches!(key.netns(), Netns::Pod(of) if **of == *ns) && !is_sysctl(key),
        }
    }
}

/// Whether it is a sysctl of any sort.
pub(crate) fn is_sysctl(key: &Key) -> bool {
    matches!(key, Key::Sysctl { .. } | Key::UplinkSysctl { .. } | Key::LinkSysctl { .. })
}

/// Whether it is the link, or hangs on it.
fn is_on(key: &Key, object: &Object, name: &LinkName) -> bool {
    let routed = matches!(object, Object::Route(route) if route.dev.as_ref() == Some(name));
    routed || key.link() == Some(name) || matches!(key, Key::Link { link, .. } if link == name)
}
