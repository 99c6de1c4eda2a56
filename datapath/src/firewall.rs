//! Firewalls of others that drop what pods send through this node: opened, or reported.
//!
//! Invariant: rules of ours are wanted exactly where somebody's chain blocks and the configuration says to open it.

use std::sync::Arc;

use tartan_model::{Condition, ForwardBlock, HostFirewall, World};
use tartan_netstate::claims::{FORWARD_OPENING_RULES, POD_LINK_PREFIX};
use tartan_netstate::{Key, Object, Owner, State};

/// Openings, and what is said about chains that are not open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    last: Option<(Vec<ForwardBlock>, HostFirewall)>,
    /// For the kernel.
    pub state: State,
    pub conditions: Vec<Condition>,
}

impl Firewall {
    /// What this node's foreign firewalls call for.
    pub fn plan(&mut self, world: &World) -> &Firewall {
        let (blocks, setting) = (&world.host.forward_blocks, world.config.host_firewall);
        if self.last.as_ref().is_none_or(|last| (&last.0, last.1) != (blocks, setting)) {
            let open = setting == HostFirewall::Open;
            self.state = blocks.iter().filter(|_| open).map(opening).collect();
            let closed = blocks.iter().filter(|block| !block.opened);
            self.conditions = closed.map(|block| condition(&world.local, block, open)).collect();
            self.last = Some((blocks.clone(), setting));
        }
        self
    }
}

fn opening(block: &ForwardBlock) -> (Key, tartan_netstate::Entry) {
    let (family, table, chain) = (block.family.clone(), block.table.clone(), block.place.clone());
    let object = Object::ForwardOpening { intact: FORWARD_OPENING_RULES };
    (Key::ForwardOpening { family, table, chain }, tartan_netstate::Entry { object, owner: Owner::Node })
}

fn condition(node: &Arc<str>, block: &ForwardBlock, open: bool) -> Condition {
    let ForwardBlock { family, table, chain, rule, place, .. } = block;
    let fix = if open {
        format!("Tartan is about to put two rules into chain {place}; nothing to do, unless this stays")
    } else {
        format!("set spec.hostFirewall to open, or by hand: {}", by_hand(block))
    };
    Condition {
        about: format!("Node/{node}"),
        field: "spec.hostFirewall".into(),
        reason: "ForwardBlocked",
        message: format!(
            "somebody's firewall drops what pods send through this node: {family} table {table}, chain {chain}, {rule}"
        ),
        fix,
    }
}

fn by_hand(block: &ForwardBlock) -> String {
    let ForwardBlock { family, table, place, .. } = block;
    let commands = ["i", "o"].map(|direction| match &**family {
        "iptables" | "ip6tables" => format!("{family} -I {place} -{direction} {POD_LINK_PREFIX}+ -j ACCEPT"),
        _ => format!("nft insert rule {family} {table} {place} {direction}ifname '\"{POD_LINK_PREFIX}*\"' accept"),
    });
    commands.join(" && ")
}

#[cfg(test)]
mod tests {
    use tartan_model::{Config, Features, Host};

    use super::*;

    fn block(family: &str, place: &str, opened: bool) -> ForwardBlock {
        ForwardBlock {
            family: family.into(),
            table: "filter".into(),
            chain: "FORWARD".into(),
            rule: "policy drop".into(),
            place: place.into(),
            opened,
        }
    }

    #[test]
    fn opened_or_reported() {
        let check = |setting, blocks: &[ForwardBlock], openings: &[&str], fixes: &[&str]| {
            let mut world = World::new("n1".into(), Features::default());
            world.config = Arc::new(Config { host_firewall: setting, ..Config::default() });
            world.host = Arc::new(Host { forward_blocks: blocks.to_vec(), ..Host::default() });
            let mut firewall = Firewall::default();
            let planned = firewall.plan(&world).clone();
            let keys: Vec<_> = planned.state.iter().map(|(key, _)| key.to_string()).collect();
            assert_eq!(keys, openings);
            assert_eq!(planned.conditions.len(), fixes.len(), "{:?}", planned.conditions);
            for (condition, fix) in planned.conditions.iter().zip(fixes) {
                assert!(condition.message.contains("table filter, chain FORWARD, policy drop"), "{condition:?}");
                assert!(condition.fix.contains(fix), "{condition:?}");
            }
            // The memo's law.
            firewall.plan(&World::new("n1".into(), Features::default()));
            assert_eq!(*firewall.plan(&world), planned);
        };
        use HostFirewall::{Open, Report};
        check(Open, &[], &[], &[]);
        check(
            Open,
            &[block("ip", "DOCKER-USER", false)],
            &["rules for pods in chain DOCKER-USER of ip table filter"],
            &["two rules into chain DOCKER-USER"],
        );
        // What is open stays wanted.
        check(Open, &[block("ip", "FORWARD", true)], &["rules for pods in chain FORWARD of ip table filter"], &[]);
        check(
            Report,
            &[block("ip6", "FORWARD", false), block("iptables", "DOCKER-USER", false)],
            &[],
            &[
                "nft insert rule ip6 filter FORWARD iifname '\"ttp*\"' accept && nft insert",
                "iptables -I DOCKER-USER -i ttp+ -j ACCEPT && iptables -I DOCKER-USER -o ttp+ -j ACCEPT",
            ],
        );
    }
}
