//! What nodes send each other under their own addresses, encrypted as well (`spec.wireguard.nodes`).
//!
//! A table before the main one leads to peers' own addresses by the device that encrypts what goes to their pods. It is asked for
//! what this node itself sends under the address that peers know it by; what comes through the node goes as ever. WireGuard's own
//! packets, which have the same two addresses, are told by the port that they leave from.
//!
//! To hear takes no option: a peer's own addresses are its own in every WireGuard device (`wireguard.rs`). So each node turns to
//! it and back by itself, one route for each peer, and nobody has to wait for anybody.
//!
//! Invariants: no key is learned by a way that needs it, so what goes to and from nodes of the control plane, where API servers
//! are, is left alone; there is no route before the kernel holds the rules that keep WireGuard's packets out of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use tartan_model::{Config, FabricMode, Family, Node, PerFamily, World};
use tartan_netstate::claims::{MAIN_TABLE, NODES_PRIORITIES, NODES_TABLE, ROUTE_METRIC, WIREGUARD_PORTS};
use tartan_netstate::{Key, LinkName, Netns, Object, Route, Rule, Scope};

use crate::census::Member;
use crate::choose::{Common, Ground};
use crate::peer::PeerState;
use crate::{Instance, LocalNode, Uplink};

/// Labels of nodes on which API servers run, whatever they say.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Own addresses under which this node talks to others so.
pub(crate) fn sources(world: &World, uplinks: &PerFamily<Uplink>) -> PerFamily<IpAddr> {
    let config = &world.config;
    let encrypts = config.encrypts_by() == Some(FabricMode::Wireguard);
    let takes_part = world.local_node().is_some_and(|node| !is_of_control_plane(node));
    let mut sources = PerFamily::default();
    // Behind a NAT peers know another address than its packets have inside.
    let known = uplinks.iter().filter(|(_, uplink)| uplink.public.is_none());
    for (family, uplink) in known.filter(|_| config.wireguard.nodes && encrypts && takes_part) {
        sources.set(family, uplink.address);
    }
    sources
}

fn is_of_control_plane(node: &Node) -> bool {
    CONTROL_PLANE.iter().any(|label| node.labels.contains_key(*label))
}

/// What leads to the table, and what goes past it; `at` are the instances that have devices here.
pub(crate) fn rules<'a>(
    config: &Config,
    node: &LocalNode,
    at: impl Iterator<Item = &'a Instance> + Clone,
) -> Vec<(Key, Object)> {
    node.encrypts_from.iter().flat_map(|(family, own)| of_family(config, node, family, *own, at.clone())).collect()
}

fn of_family<'a>(
    config: &Config,
    node: &LocalNode,
    family: Family,
    own: IpAddr,
    at: impl Iterator<Item = &'a Instance>,
) -> Vec<(Key, Object)> {
    let configured = config.wireguard.port..=config.wireguard.port + (WIREGUARD_PORTS - 1);
    let before: BTreeSet<u16> =
        at.filter_map(Instance::encrypted_at).filter(|port| !configured.contains(port)).collect();
    let mut priorities = NODES_PRIORITIES;
    let lookups = lookups(family, own);
    // Those from before the ports were changed come first: they are left out before the others take their place.
    let left_out = before.into_iter().map(|port| port..=port).chain([configured]).map(goes_past);
    let rules: Vec<Rule> = left_out.chain(lookups).collect();
    if rules.len() > NODES_PRIORITIES.len() {
        return Vec::new();
    }
    priorities.start = priorities.end - rules.len() as u32;
    let rule = |(priority, rule): (u32, Rule)| {
        (Key::Rule { ns: Netns::Host, v6: family == Family::V6, priority }, Object::Rule(rule.into()))
    };
    let loose = node.uplinks.get(family).filter(|_| family == Family::V4).map(|uplink| {
        // A peer that does not send so yet, or no more, comes in where our own route does not lead out.
        let key = Key::UplinkSysctl { link: uplink.link.clone(), name: "ipv4/rp_filter".into() };
        (key, Object::Sysctl("2".into()))
    });
    loose.into_iter().chain(priorities.zip(rules).map(rule)).collect()
}

fn own_packets(table: u32) -> Rule {
    let lo = LinkName::new("lo").expect("lo is a link name");
    Rule { src: None, finds_src: false, iif: Some(lo), udp_sport: None, table }
}

fn goes_past(ports: RangeInclusive<u16>) -> Rule {
    Rule { udp_sport: Some((*ports.start(), *ports.end())), ..own_packets(MAIN_TABLE) }
}

/// Of packets under that address, and of those that have none yet: it is the route that gives them one.
fn lookups(family: Family, own: IpAddr) -> Vec<Rule> {
    let from = |src| Rule { src: Some(src), ..own_packets(NODES_TABLE) };
    match family {
        Family::V4 => vec![from(own), from(Ipv4Addr::UNSPECIFIED.into())],
        Family::V6 => vec![Rule { finds_src: true, ..from(own) }],
    }
}

/// Of the addresses under which this node would send so those for which the kernel holds all the rules. A sysctl is read once it is
/// wanted: that of rules from an earlier life, not read yet, is taken to be as that life left it.
pub(crate) fn in_force(world: &World, node: &LocalNode, ground: &Ground) -> PerFamily<IpAddr> {
    let mut in_force = PerFamily::default();
    for (family, own) in node.encrypts_from.iter() {
        let rules = of_family(&world.config, node, family, *own, ground.devices.values());
        let mirror = &world.programmed.mirror;
        let is_held = |(key, object): &(Key, Object)| match key {
            Key::UplinkSysctl { .. } => mirror.get(key).is_none_or(|entry| entry.object == *object),
            _ => mirror.holds(key, object),
        };
        if !rules.is_empty() && rules.iter().all(is_held) {
            in_force.set(family, *own);
        }
    }
    in_force
}

/// What encrypts packets to the peer's own addresses: what does its pods', once that and nothing else does.
pub(crate) fn carrier(common: &Common, member: &Member, peer: &PeerState) -> Option<Instance> {
    let at = peer.used().next().filter(|at| matches!(at, Instance::Wireguard { .. }))?;
    let is_all = peer.sends().all(|at| at.is_encrypted());
    (is_all && !is_of_control_plane(&member.node) && common.ground.encrypts_from.iter().next().is_some()).then_some(at)
}

/// The routes to the peer's own addresses, as far as its Node has them, too: another one may be one that a NAT gives it.
/// `its_own` are those that packets may come from and go to.
pub(crate) fn routes(common: &Common, member: &Member, its_own: &[IpAddr], at: &Instance) -> Vec<(Key, Object)> {
    let to = |(family, own): (Family, &IpAddr)| {
        let dst = member.advert.addresses.get(family).filter(|address| member.node.internal_ips.contains(address))?;
        its_own.contains(dst).then_some(())?;
        let key = Key::Route { ns: Netns::Host, table: NODES_TABLE, dst: Family::host_net(*dst), metric: ROUTE_METRIC };
        let scope = if family == Family::V4 { Scope::Link } else { Scope::Global };
        Some((key, Object::Route(Route { src: Some(*own), scope, ..Route::on_link(at.device()) }.into())))
    };
    common.ground.encrypts_from.iter().filter_map(to).collect()
}

#[cfg(test)]
mod tests {
    use tartan_netstate::Owner;

    use super::*;

    fn node(v4: Option<&str>, v6: Option<&str>) -> LocalNode {
        let mut node = LocalNode::default();
        for (family, address) in [(Family::V4, v4), (Family::V6, v6)] {
            let Some(address) = address.map(|address| address.parse::<IpAddr>().unwrap()) else { continue };
            node.encrypts_from.set(family, address);
            node.uplinks.set(
                family,
                Uplink {
                    link: LinkName::new("eth0").unwrap(),
                    address,
                    public: None,
                    addresses: vec![address],
                    subnets: Vec::new(),
                    mtu: 1500,
                    why: String::new(),
                },
            );
        }
        node
    }

    fn at(port: u16) -> Instance {
        Instance::Wireguard { underlay: Family::V4, port, rotation: 0, psk: None }
    }

    /// In the order in which a kernel asks them, each as `ip rule` would say it.
    fn check(v4: Option<&str>, v6: Option<&str>, devices: &[Instance], wanted: &[&str]) {
        let rules = rules(&Config::default(), &node(v4, v6), devices.iter());
        let text = |(key, object): &(Key, Object)| match (key, object) {
            (Key::Rule { v6, .. }, Object::Rule(rule)) => {
                let from = rule.src.map_or("all".into(), |src| src.to_string());
                let ports = rule.udp_sport.map(|(first, last)| format!(" sport {first}-{last}")).unwrap_or_default();
                let iif = rule.iif.as_ref().map_or("all", LinkName::as_str);
                let finds = if rule.finds_src { " or none yet" } else { "" };
                format!("{} from {from}{finds} iif {iif}{ports} table {}", if *v6 { 6 } else { 4 }, rule.table)
            }
            (key, Object::Sysctl(value)) => format!("{key} {value}"),
            other => panic!("{other:?}"),
        };
        let is: Vec<String> = rules.iter().map(text).filter(|line| line.contains(" iif ")).collect();
        assert_eq!(is, wanted);
        let keys: BTreeSet<&Key> = rules.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), rules.len(), "no two have one place: {rules:?}");
    }

    #[test]
    fn wireguards_own_packets_go_past_the_table_by_every_port_they_may_leave_from() {
        check(None, None, &[at(51820)], &[]);
        let v4 = [
            "4 from all iif lo sport 51820-51823 table 254",
            "4 from 192.0.2.1 iif lo table 7474",
            "4 from 0.0.0.0 iif lo table 7474",
        ];
        let v6 = ["6 from all iif lo sport 51820-51823 table 254", "6 from 2001:db8::1 or none yet iif lo table 7474"];
        check(Some("192.0.2.1"), None, &[], &v4);
        check(Some("192.0.2.1"), None, &[at(51820), at(51823), Instance::HostGw], &v4);
        check(Some("192.0.2.1"), Some("2001:db8::1"), &[at(51821)], &[v4.as_slice(), &v6].concat());
        // While the port is changed both are in use.
        let changed = [
            "6 from all iif lo sport 40000-40000 table 254",
            "6 from all iif lo sport 40002-40002 table 254",
            v6[0],
            v6[1],
        ];
        check(None, Some("2001:db8::1"), &[at(40002), at(51820), at(40000)], &changed);
        // More than there is room for: then nobody's own packets are encrypted.
        let many: Vec<Instance> = (0..20).map(|number| at(40000 + number)).collect();
        check(None, Some("2001:db8::1"), &many, &[]);
    }

    #[test]
    fn rules_of_an_earlier_life_are_in_force_before_their_sysctl_is_read() {
        let own = node(Some("192.0.2.1"), None);
        let mut world = World::default();
        let is_in_force = |world: &World| in_force(world, &own, &Ground::default()).iter().next().is_some();
        assert!(!is_in_force(&world));
        let wanted = rules(&world.config, &own, std::iter::empty());
        let (sysctls, wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(key, _)| matches!(key, Key::UplinkSysctl { .. }));
        for (key, object) in wanted {
            assert!(!is_in_force(&world), "{key} is missing");
            world.programmed.mirror.insert(key, object, Owner::Node);
        }
        assert!(is_in_force(&world));
        let (key, object) = sysctls.into_iter().next().unwrap();
        world.programmed.mirror.insert(key.clone(), Object::Sysctl("1".into()), Owner::Node);
        assert!(!is_in_force(&world), "what a peer sends may be dropped");
        world.programmed.mirror.insert(key, object, Owner::Node);
        assert!(is_in_force(&world));
    }
}
