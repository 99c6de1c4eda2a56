//! What this node wants whoever its peers are: forwarding, its own addresses, dead ends for dead addresses, and the
//! receive side of every instance in use; and which of these are there already.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tartan_model::{Condition, Family, HostLink, World};
use tartan_netstate::claims::{
    FABRIC_LINK_PREFIX, IPV4_FORWARDING, IPV6_FORWARDING, MAIN_TABLE, NFT_STRICT_CHAIN, UNREACHABLE_METRIC,
};
use tartan_netstate::{Entry, Key, LinkName, Netns, Object, Owner, PublicKey, Route, Scope, State};

use crate::key::key_pair;
use crate::mtu::carried;
use crate::plan::Owned;
use crate::{Instance, LocalNode, fabric_of};

/// Links, addresses, routes and sysctls of the node itself.
pub(crate) fn state(
    world: &World,
    node: &LocalNode,
    receives: &BTreeSet<Instance>,
    called_for: &BTreeSet<Instance>,
) -> State {
    let mut state = State::new();
    // Before the device: peers are told of its key with it.
    let possible = called_for.iter().filter(|at| fabric_of(at).needs(&world.features).is_ok());
    for at in receives.iter().chain(possible) {
        let Some(name) = key_pair(at) else { continue };
        // With another secret than the one that there is none can be made.
        let is_there = world.host.encryption.public_keys.contains_key(&name);
        if at.psk().is_some_and(|psk| Some(psk) != world.secret) && !is_there {
            continue;
        }
        state.insert(Key::KeyPair { name }, Object::KeyPair, Owner::Node);
    }
    let mut sysctl = |key: Key, value: &str| state.insert(key, Object::Sysctl(value.into()), Owner::Node);
    let forwarding = [(Family::V4, IPV4_FORWARDING), (Family::V6, IPV6_FORWARDING)];
    for (_, name) in forwarding.into_iter().filter(|(family, _)| *family == Family::V4 || world.features.ipv6) {
        sysctl(Key::Sysctl { ns: Netns::Host, name: name.into() }, "1");
    }
    for link in world.host.links.iter().filter(|link| link.accept_ra == 1 && world.features.ipv6 && !link.loopback) {
        // A forwarding node takes no router advertisements with 1, and would lose its default route.
        if let Some(link) = LinkName::new(&link.name) {
            sysctl(Key::UplinkSysctl { link, name: "ipv6/accept_ra".into() }, "2");
        }
    }
    for link in world.bridges_from_before() {
        answer_for_pods(world, link, &mut state);
    }
    for (family, ip) in node.fabric_addresses.iter() {
        let key = fabric_address(*ip);
        // IPv6 leaves no choice: the kernel tells the scope from the address.
        let scope = if family == Family::V4 { Scope::Link } else { Scope::Global };
        state.insert(key, Object::Address(scope), Owner::Node);
    }
    for block in &node.blocks {
        let key = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: UNREACHABLE_METRIC };
        state.insert(key, Object::Route(Route::unreachable().into()), Owner::Node);
    }
    for at in receives {
        for (key, entry) in receive(world, node, at).iter() {
            state.insert(key.clone(), entry.object.clone(), entry.owner.clone());
        }
    }
    state
}

/// Pods on a bridge look for all of the node's range on it, and pods of ours are not there: the node answers for them. Rules
/// about pods' links are about the bridge.
fn answer_for_pods(world: &World, bridge: &HostLink, state: &mut State) {
    let Some(link) = LinkName::new(&bridge.name) else { return };
    state.insert(Key::PodBridge { link: link.clone() }, Object::PodBridge, Owner::Node);
    for (path, switch) in
        [("ipv4", "proxy_arp")].into_iter().chain(world.features.ipv6.then_some(("ipv6", "proxy_ndp")))
    {
        let on = Key::UplinkSysctl { link: link.clone(), name: format!("{path}/{switch}").into() };
        state.insert(on, Object::Sysctl("1".into()), Owner::Node);
        // Or whoever asks waits for up to 0.8 seconds, in case somebody else answers.
        let delay = Key::Sysctl { ns: Netns::Host, name: format!("{path}/neigh/{link}/proxy_delay").into() };
        state.insert(delay, Object::Sysctl("0".into()), Owner::Node);
    }
    // IPv6 has no such switch for all that is routed elsewhere: each address is told.
    for attachment in world.attachments.values().filter(|_| world.features.ipv6) {
        if let Some(IpAddr::V6(address)) = attachment.addresses.get(Family::V6)
            && bridge.is_on(IpAddr::V6(*address))
        {
            state.insert(Key::Proxied { link: link.clone(), address: *address }, Object::Proxied, Owner::Node);
        }
    }
}

/// One of the node's own among its pods' addresses, in its kernel.
pub(crate) fn fabric_address(ip: IpAddr) -> Key {
    let lo = LinkName::new("lo").expect("lo is a link name");
    Key::Address { ns: Netns::Host, link: lo, address: Family::host_net(ip) }
}

/// All it takes to hear an instance on this kernel.
fn receive(world: &World, node: &LocalNode, at: &Instance) -> State {
    let mut state = fabric_of(at).receive(node, at);
    if !world.features.ipv6 {
        let is_ipv6 = |key: &Key| matches!(key, Key::LinkSysctl { name, .. } if name.starts_with("ipv6/"));
        let without: Vec<Key> = state.iter().map(|(key, _)| key).filter(|key| is_ipv6(key)).cloned().collect();
        without.iter().for_each(|key| drop(state.remove(key)));
    }
    state
}

/// Whether this node has what the instance needs: a kernel that can, and an address of its family.
pub(crate) fn is_possible(world: &World, node: &LocalNode, at: &Instance) -> bool {
    let fabric = fabric_of(at);
    fabric.needs(&world.features).is_ok() && fabric.endpoint(node, at).is_some()
}

/// Whether this node can use an instance now: all that it needs is in the kernel with nothing under way that could
/// undo it, and no pod sends packets too large for it.
pub(crate) fn is_in_kernel(world: &World, node: &LocalNode, owned: &Owned, at: &Instance) -> bool {
    let fits = carried(node, at).is_some_and(|mtu| owned.mtu_in_force.unwrap_or(0) <= mtu);
    let held = || world.programmed.mirror.holds_all(&receive(world, node, at));
    // Before this life has asked for anything, there may be half of what an earlier one began: a device without its peers.
    world.asked > 0 && world.kernel_is_settled() && fits && held()
}

/// Devices of fabrics in the kernel.
pub(crate) fn devices(world: &World) -> BTreeMap<LinkName, Instance> {
    let first = LinkName::new(FABRIC_LINK_PREFIX).expect("the prefix is short");
    let first = Key::Link { ns: Netns::Host, link: first };
    let entries = world.programmed.mirror.entries_from(&first);
    let device = |(key, entry): (&Key, &Entry)| match (key, &entry.object) {
        (Key::Link { ns: Netns::Host, link }, Object::Link(device)) => {
            let ours = link.as_str().starts_with(FABRIC_LINK_PREFIX);
            ours.then(|| (link.clone(), Instance::of_device(device)))
        }
        _ => None,
    };
    entries.map_while(device).filter_map(|(link, instance)| Some((link, instance?))).collect()
}

/// This node's own keys. One that a device has stays the node's as long as there is no other, though somebody deleted its file: without the
/// device packets would take whatever way is left.
pub(crate) fn keys(world: &World, devices: &BTreeMap<LinkName, Instance>) -> BTreeMap<Arc<str>, PublicKey> {
    let mut keys = world.host.encryption.public_keys.clone();
    for (link, at) in devices {
        let device = world.programmed.mirror.get(&Key::WgDevice { link: link.clone() });
        if let (Some(pair), Some(Object::WgDevice(has))) = (key_pair(at), device.map(|entry| &entry.object)) {
            keys.entry(pair).or_insert(has.public_key);
        }
    }
    keys
}

/// Whether the kernel lets nothing go to peers' pods in clear.
pub(crate) fn is_strict(world: &World) -> bool {
    world.programmed.mirror.get(&Key::NftChain { chain: NFT_STRICT_CHAIN.into() }).is_some()
}

/// What peers say that they may send on, and there is no room for.
pub(crate) fn unheard(world: &World, unheard: &[Instance]) -> Option<Condition> {
    let names: Vec<String> = unheard.iter().take(3).map(Instance::to_string).collect();
    (!unheard.is_empty()).then(|| Condition {
        about: format!("Node/{}", world.local),
        field: "NodeNetwork spec.sends".into(),
        reason: "TooManyFabrics",
        message: format!(
            "{} does not hear {} instances that others say they may send on, {} among them: it hears too many for others' sake",
            world.local,
            unheard.len(),
            names.join(", ")
        ),
        fix: "see which NodeNetwork has these in spec.sends, and what else than that node's agent writes it".into(),
    })
}

/// A condition for each instance that is called for and that this kernel cannot do.
pub(crate) fn unsupported(world: &World, called_for: &BTreeSet<Instance>) -> Vec<Condition> {
    let missing = |at: &Instance| Some((*at, fabric_of(at).needs(&world.features).err()?));
    let condition = |(at, missing): (Instance, &str)| Condition {
        about: format!("Node/{}", world.local),
        field: "NetworkConfig spec.fabric".into(),
        reason: "FabricUnsupported",
        message: format!("{} cannot use {at}: {missing}", world.local),
        fix: "give the node that kernel feature, or set spec.fabric to one that every node can use".into(),
    };
    called_for.iter().filter_map(missing).map(condition).collect()
}
