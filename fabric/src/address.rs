//! Which link and address this node uses towards its peers, and why.
//!
//! Order: what the Node's annotations say, else what NetworkConfig says, else the Node's InternalIP, else the link of
//! the default route with the lowest metric. An address on a link that other software made for itself (docker, a VPN,
//! a dummy) is refused unless it was asked for by name.
//!
//! Of a link's addresses it is the Node's InternalIP, else the lowest of the best [`Rank`] there is: one that moves to another node, or
//! is another one tomorrow, must not be what peers know this node by.
//!
//! Invariant: an address that is taken off and put on again within [`tartan_model::host::BRIEFLY`] changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{AddressChoice, Condition, Family, HostLink, Node, PerFamily, World};
use tartan_netstate::{LinkName, Mac, PublicKey};

use crate::Instance;

/// Annotation: the link to use, by name.
pub const ANNOTATION_INTERFACE: &str = "tartan.dev/node-address-interface";
/// Annotation: the link to use, by regular expression on its name.
pub const ANNOTATION_INTERFACE_REGEX: &str = "tartan.dev/node-address-interface-regex";
/// Annotation: comma-separated ranges, one of which holds the address to use.
pub const ANNOTATION_CIDRS: &str = "tartan.dev/node-address-cidrs";
/// Annotation: an address; the link that leads there is used.
pub const ANNOTATION_CAN_REACH: &str = "tartan.dev/node-address-can-reach";
/// Annotation: what peers are told instead, for a node behind one-to-one NAT; comma-separated, one per family.
pub const ANNOTATION_PUBLIC: &str = "tartan.dev/public-address";

const FOREIGN_KINDS: [&str; 9] = ["dummy", "tun", "wireguard", "ipip", "sit", "ip6tnl", "gre", "vxlan", "ifb"];
const FOREIGN_PREFIXES: [&str; 10] =
    ["docker", "br-", "virbr", "lxcbr", "lxdbr", "cni", "podman", "flannel", "cali", "weave"];

/// This node, as fabrics see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    pub name: Arc<str>,
    pub uid: Arc<str>,
    pub uplinks: PerFamily<Uplink>,
    /// Source address of the node's own packets to remote pods, whatever the fabric.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// Where packets come from that an engine carries, in each family of the underlay.
    pub engine_addresses: PerFamily<IpAddr>,
    /// Address ranges whose pods are here.
    pub blocks: Vec<IpNet>,
    /// The VNI and the MAC that peers on Flannel know its device by, in each underlay family.
    pub flannel_macs: PerFamily<(u32, Mac)>,
    /// Devices of vxlan learn from packets.
    pub learning: bool,
    /// The kernel has IPv6. Where it has not, it knows neither the devices nor the sysctls of it.
    pub ipv6: bool,
    /// The kernel has WireGuard. Where it has not, an engine encrypts.
    pub kernel_encrypts: bool,
    /// Own addresses under which what it sends to others' own ones is to be encrypted.
    pub encrypts_from: PerFamily<IpAddr>,
    /// The instance of WireGuard that is due, over each family of underlay.
    pub wireguard: PerFamily<Instance>,
    /// That of IPsec, if there is a secret of the cluster.
    pub ipsec: PerFamily<Instance>,
    /// The public halves of its key pairs, by name.
    pub public_keys: BTreeMap<Arc<str>, PublicKey>,
}

/// Where packets to peers leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub link: LinkName,
    /// The node's own address on it.
    pub address: IpAddr,
    /// What peers are told, where a NAT stands between.
    pub public: Option<IpAddr>,
    /// All of that family on the link, this one among them: packets still come for one that is about to go.
    pub addresses: Vec<IpAddr>,
    /// Ranges on the link itself, of the address's family.
    pub subnets: Vec<IpNet>,
    /// In bytes; as configured, else the link's.
    pub mtu: u32,
    /// Why this one, in words.
    pub why: String,
}

impl Uplink {
    /// Whether an address is on the uplink's link: no router stands between.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// Where peers find this node.
    pub fn advertised(&self) -> IpAddr {
        self.public.unwrap_or(self.address)
    }
}

/// What was chosen.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Of each family that has one.
    pub uplinks: PerFamily<Uplink>,
    /// What is wrong where one is missing.
    pub conditions: Vec<Condition>,
    /// Until then the choice counts on something that is missing, and comes back or not.
    pub until: Option<Instant>,
}

/// The uplink of each family. What has been missing for a moment only counts as there: all that stands on the node's
/// address would have to be made again.
pub fn choose(world: &World, now: Instant) -> Chosen {
    let (uplinks, conditions, until) = match world.host.with_missed(&world.missed, now) {
        Some((host, until)) => {
            let mut before = world.clone();
            before.host = Arc::new(host);
            let (uplinks, conditions) = choose_of(&before);
            (uplinks, conditions, Some(until))
        }
        None => {
            let (uplinks, conditions) = choose_of(world);
            (uplinks, conditions, None)
        }
    };
    Chosen { uplinks, conditions, until }
}

fn choose_of(world: &World) -> (PerFamily<Uplink>, Vec<Condition>) {
    let mut uplinks = PerFamily { v4: None, v6: None };
    let mut conditions = Vec::new();
    let node = world.local_node();
    let choice = match node.map(|node| annotated(node)) {
        Some(Ok(Some(choice))) => choice,
        Some(Err(condition)) => {
            conditions.push(condition);
            world.config.node_address.clone()
        }
        _ => world.config.node_address.clone(),
    };
    conditions.extend(node.and_then(|node| public(node).err()));
    let mut failures = Vec::new();
    for family in Family::ALL {
        match pick(world, node.map(|node| &**node), &choice, family) {
            Ok((link, address, why)) => match uplink(world, link, address, why) {
                Some(uplink) => uplinks.set(family, uplink),
                None => continue,
            },
            Err(failure) => failures.push((family, failure)),
        }
    }
    // One family without an address is a single-stack node; both without is a node nobody can reach.
    let alone = uplinks.iter().next().is_none();
    conditions.extend(failures.into_iter().filter(|(_, failure)| alone || failure.loud).map(|(family, failure)| {
        Condition {
            about: format!("Node/{}", world.local),
            field: "NetworkConfig spec.nodeAddress".into(),
            reason: failure.reason,
            message: format!("no {family} address to reach peers from: {}", failure.message),
            fix: failure.fix,
        }
    }));
    (uplinks, conditions)
}

struct Failure {
    reason: &'static str,
    message: String,
    fix: String,
    /// Said even when the other family has an address.
    loud: bool,
}

type Picked<'a> = (&'a HostLink, IpAddr, String);

fn pick<'a>(
    world: &'a World,
    node: Option<&Node>,
    choice: &AddressChoice,
    family: Family,
) -> Result<Picked<'a>, Failure> {
    match choice {
        AddressChoice::Auto => auto(world, node, family),
        AddressChoice::Interface(name) => {
            by(world, family, &format!("nodeAddress.interface is {name}"), |link, _| *link.name == **name)
        }
        AddressChoice::InterfaceRegex(text) => {
            let why = format!("its link matches nodeAddress.interfaceRegex {text}");
            match regex_lite::Regex::new(text) {
                Ok(regex) => by(world, family, &why, |link, _| regex.is_match(&link.name)),
                Err(error) => Err(Failure {
                    reason: "BadRegex",
                    message: format!("interfaceRegex '{text}': {error}"),
                    fix: "correct the regular expression".into(),
                    loud: true,
                }),
            }
        }
        AddressChoice::Cidrs(ranges) => by(world, family, "it is in nodeAddress.cidrs", |_, address| {
            ranges.iter().any(|range| range.contains(&address))
        }),
        AddressChoice::CanReach(target) if Family::of(*target) == family => {
            let why = format!("its link leads to nodeAddress.canReach {target}");
            let direct = by(world, family, &why, |link, _| link.addresses.iter().any(|net| net.contains(target)));
            direct.or_else(|_| default_route(world, family, &why))
        }
        AddressChoice::CanReach(_) => auto(world, node, family),
    }
}

fn auto<'a>(world: &'a World, node: Option<&Node>, family: Family) -> Result<Picked<'a>, Failure> {
    let internal = node.and_then(|node| node.internal_ips.iter().find(|ip| Family::of(**ip) == family));
    if let Some(ip) = internal {
        let on = |link: &&HostLink| link.addresses.iter().any(|net| net.addr() == *ip);
        match world.host.links.iter().find(on) {
            Some(link) if is_foreign(link) => {
                return Err(Failure {
                    reason: "AddressOfOtherSoftware",
                    message: format!("the Node's InternalIP {ip} is on {}, which other software made for itself", link.name),
                    fix: "give the node another InternalIP (kubelet --node-ip), or name the link in spec.nodeAddress.interface if it is right".into(),
                    loud: true,
                });
            }
            Some(link) => return Ok((link, *ip, "it is the Node's InternalIP".into())),
            None => {}
        }
    }
    let why = match internal {
        Some(ip) => format!("it is on the link of the default route; the Node's InternalIP {ip} is on no link"),
        None => "it is on the link of the default route; the Node has no InternalIP".into(),
    };
    default_route(world, family, &why)
}

fn default_route<'a>(world: &'a World, family: Family, why: &str) -> Result<Picked<'a>, Failure> {
    let routes = world.host.default_routes.iter().filter(|route| route.v6 == (family == Family::V6));
    for route in routes {
        let is_it = |link: &HostLink, _| link.name == route.link && !is_foreign(link);
        if let Some((link, address)) = best(world, family, is_it) {
            return Ok((link, address, why.into()));
        }
    }
    Err(Failure {
        reason: "NoNodeAddress",
        message: "the Node has no InternalIP on one of this node's links, and no usable link has a default route"
            .into(),
        fix: "name the link in spec.nodeAddress.interface, or give the node an address and a default route".into(),
        loud: false,
    })
}

fn by<'a>(
    world: &'a World,
    family: Family,
    why: &str,
    wanted: impl Fn(&HostLink, IpAddr) -> bool,
) -> Result<Picked<'a>, Failure> {
    if let Some((link, address)) = best(world, family, wanted) {
        return Ok((link, address, why.into()));
    }
    let links: Vec<&str> = world.host.links.iter().map(|link| &*link.name).collect();
    Err(Failure {
        reason: "NoNodeAddress",
        message: format!("nothing on this node fits \"{why}\"; its links are {}", links.join(", ")),
        fix: "correct spec.nodeAddress, or override it for this node by annotation".into(),
        loud: false,
    })
}

fn uplink(world: &World, link: &HostLink, address: IpAddr, why: String) -> Option<Uplink> {
    let family = Family::of(address);
    let public = world.local_node().and_then(|node| public(node).ok()?.get(family).copied());
    let of_family = link.addresses.iter().filter(|net| Family::of_net(net) == family);
    Some(Uplink {
        link: LinkName::new(&link.name)?,
        addresses: of_family.clone().map(IpNet::addr).collect(),
        address,
        public,
        subnets: of_family.map(IpNet::trunc).collect(),
        mtu: world.config.underlay_mtu.unwrap_or(link.mtu),
        why,
    })
}

/// What peers are told instead of the node's own addresses.
fn public(node: &Node) -> Result<PerFamily<IpAddr>, Condition> {
    let Some(text) = node.annotations.get(ANNOTATION_PUBLIC) else { return Ok(PerFamily::default()) };
    let addresses: Result<Vec<IpAddr>, _> = text.split(',').map(|ip| ip.trim().parse()).collect();
    let instead = "peers are told the node's own address instead";
    addresses.map(PerFamily::first_of).map_err(|_| unreadable(node, ANNOTATION_PUBLIC, text, instead))
}

fn annotated(node: &Node) -> Result<Option<AddressChoice>, Condition> {
    let get = |name| node.annotations.get(name).map(|text| (name, text.trim()));
    let wrong = |name, value| unreadable(node, name, value, "spec.nodeAddress is used instead");
    if let Some((_, name)) = get(ANNOTATION_INTERFACE) {
        return Ok(Some(AddressChoice::Interface(name.into())));
    }
    if let Some((_, regex)) = get(ANNOTATION_INTERFACE_REGEX) {
        return Ok(Some(AddressChoice::InterfaceRegex(regex.into())));
    }
    if let Some((name, text)) = get(ANNOTATION_CIDRS) {
        let ranges: Result<Vec<IpNet>, _> = text.split(',').map(|range| range.trim().parse()).collect();
        return ranges.map(|ranges| Some(AddressChoice::Cidrs(ranges))).map_err(|_| wrong(name, text));
    }
    if let Some((name, text)) = get(ANNOTATION_CAN_REACH) {
        return text.parse().map(|ip| Some(AddressChoice::CanReach(ip))).map_err(|_| wrong(name, text));
    }
    Ok(None)
}

fn unreadable(node: &Node, name: &str, value: &str, instead: &str) -> Condition {
    Condition {
        about: format!("Node/{}", node.name),
        field: format!("metadata.annotations[{name}]"),
        reason: "BadAnnotation",
        message: format!("'{value}' cannot be read; {instead}"),
        fix: "write addresses, or address ranges, separated by commas".into(),
    }
}

/// How much can be counted on an address, the most first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The Node's InternalIP.
    Internal,
    /// It has a range on its link.
    Ranged,
    /// It has none: mostly somebody's that moves from node to node (keepalived, kube-vip), but some clouds and DHCPv6 give no other.
    Alone,
    /// [`tartan_model::Host::passing`]
    Passing,
}

fn rank(world: &World, link: &HostLink, net: &IpNet) -> Rank {
    if world.local_node().is_some_and(|node| node.internal_ips.contains(&net.addr())) {
        Rank::Internal
    } else if world.host.is_passing(&link.name, net.addr()) {
        Rank::Passing
    } else if net.prefix_len() == net.max_prefix_len() {
        Rank::Alone
    } else {
        Rank::Ranged
    }
}

/// Of what fits: the InternalIP on whatever link, else the best of the first link. Which link it is must not hang on what an address
/// of it is at the moment.
fn best(world: &World, family: Family, fits: impl Fn(&HostLink, IpAddr) -> bool) -> Option<(&HostLink, IpAddr)> {
    let links = world.host.links.iter().filter(|link| !link.loopback).enumerate();
    let all = links.flat_map(|(at, link)| link.addresses.iter().map(move |net| (at, link, net)));
    let fitting = all.filter(|(_, link, net)| Family::of_net(net) == family && fits(link, net.addr()));
    let ranked = fitting.map(|(at, link, net)| (rank(world, link, net), at, link, net.addr()));
    let best = ranked.min_by_key(|(rank, at, _, address)| (*rank > Rank::Internal, *at, *rank, *address))?;
    Some((best.2, best.3))
}

fn is_foreign(link: &HostLink) -> bool {
    link.loopback
        || FOREIGN_KINDS.contains(&&*link.kind)
        || FOREIGN_PREFIXES.iter().any(|prefix| link.name.starts_with(prefix))
}
