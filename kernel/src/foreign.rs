//! Firewalls of others that drop what pods send through this node, and rules of ours in them that let it pass.
//!
//! Seen are base chains on the forward hook, in nf_tables of every IP family and in the legacy iptables tables, that drop
//! by policy or end in a rule that drops or rejects everything. An accept in our own table cannot overrule them. Not seen
//! are: a drop inside a chain they jump to, one behind conditions, other hooks (prerouting, raw), bridge filters and
//! eBPF programs.
//!
//! The legacy tables are read and replaced by the socket options their own tool uses, so no binary is needed. They tell
//! nobody when they change.
//!
//! Invariant: only rules that carry our comment are deleted, and others' rules are never reordered.

mod legacy;
mod nft_chains;
mod sockopt;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tartan_model::ForwardBlock;
use tartan_netstate::claims::{FOREIGN_RULE_COMMENT, FORWARD_OPENING_RULES, POD_LINK_PREFIX};
use tartan_netstate::nft::{Rule, rule};
use tartan_netstate::{Key, Object, Owner, State, Step};

use crate::nfnetlink::Nfnetlink;
use crate::{Failure, KernelError};

/// Chains where a firewall wants its users' rules, best first; the base chain itself where there is none of them.
const PLACES: [&str; 3] = ["DOCKER-USER", "ufw-user-forward", "ufw6-user-forward"];

/// Chains on the way from a base chain to one of those.
const WAYS: [&str; 2] = ["ufw-before-forward", "ufw6-before-forward"];

/// Firewalls of others in one network namespace.
pub struct Foreign {
    netlink: Nfnetlink,
}

/// One table of others, as far as it matters here.
#[derive(Debug, Default)]
struct Table {
    /// As in [`ForwardBlock::family`].
    family: &'static str,
    name: String,
    chains: BTreeMap<String, Chain>,
}

/// One chain.
#[derive(Debug, Default)]
struct Chain {
    /// The forward hook calls it.
    forward: bool,
    drops_by_policy: bool,
    rules: Vec<ForeignRule>,
}

/// One rule.
#[derive(Debug, Default)]
struct ForeignRule {
    /// In nf_tables the rule's handle, in legacy tables its number in the chain from 1.
    handle: u64,
    ours: Ours,
    /// The chain it jumps or goes to, whatever its conditions.
    jump: Option<String>,
    /// What it does to every packet, if that is to drop or reject it.
    drops_all: Option<&'static str>,
}

/// Whether a rule is one we put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ours {
    #[default]
    No,
    /// It carries our comment, but somebody or an older build made it otherwise.
    Changed,
    /// Just as we make it.
    Intact,
}

/// A chain of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// It sees what is sent to the node itself, and drops what none of its rules lets in.
    pub drops_input: bool,
}

impl Foreign {
    /// Firewalls in the network namespace of the calling thread.
    pub fn open() -> Result<Foreign, KernelError> {
        Ok(Foreign { netlink: Nfnetlink::open()? })
    }

    /// Chains that drop what pods send through this node, opened ones among them, sorted.
    pub fn blocks(&mut self) -> Result<Vec<ForwardBlock>, KernelError> {
        let mut blocks: Vec<ForwardBlock> = self.tables()?.iter().flat_map(Table::blocks).collect();
        blocks.sort();
        Ok(blocks)
    }

    /// Every chain in nf_tables that is not ours, sorted; those of `iptables-nft` among them.
    pub fn chains(&mut self) -> Result<Vec<ForeignChain>, KernelError> {
        let mut chains = nft_chains::names(&mut self.netlink)?;
        chains.sort();
        Ok(chains)
    }

    /// Our rules in chains of others.
    pub fn read(&mut self) -> Result<State, KernelError> {
        let mut state = State::new();
        for table in self.tables()? {
            for (chain, found) in &table.chains {
                if found.rules.iter().any(|rule| rule.ours != Ours::No) {
                    let intact = found.rules.iter().filter(|rule| rule.ours == Ours::Intact).count();
                    state.insert(table.key(chain), Object::ForwardOpening { intact }, Owner::Read);
                }
            }
        }
        Ok(state)
    }

    /// Puts our rules where `steps` want them, and takes them away from where they do not.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Failure> {
        let apply = |step: &Step| {
            let wanted = !step.deletes();
            let Key::ForwardOpening { family, table, chain } = step.key() else { return None };
            let error = self.set(family, table, chain, wanted).err()?;
            Some(Failure::of(step, error))
        };
        steps.iter().filter_map(apply).collect()
    }

    fn set(&mut self, family: &str, table: &str, chain: &str, wanted: bool) -> Result<(), KernelError> {
        match legacy::Ip::of(family) {
            Some(ip) => legacy::set(ip, table, chain, wanted),
            None => nft_chains::set(&mut self.netlink, family, table, chain, wanted),
        }
    }

    fn tables(&mut self) -> Result<Vec<Table>, KernelError> {
        let mut tables = nft_chains::read(&mut self.netlink)?;
        tables.extend(legacy::read()?);
        Ok(tables)
    }
}

/// The interface names that pod links begin with, as the two rules match them: packets from pods, packets to pods.
fn opening() -> [Rule; FORWARD_OPENING_RULES] {
    let commented = || rule(FOREIGN_RULE_COMMENT);
    [
        commented().iifname_prefix(POD_LINK_PREFIX).counter().accept(),
        commented().oifname_prefix(POD_LINK_PREFIX).counter().accept(),
    ]
}

// === impl Table ===

impl Table {
    fn key(&self, chain: &str) -> Key {
        Key::ForwardOpening { family: self.family.into(), table: self.name.as_str().into(), chain: chain.into() }
    }

    fn blocks(&self) -> impl Iterator<Item = ForwardBlock> {
        self.chains.iter().filter(|(_, chain)| chain.forward).filter_map(|(name, chain)| {
            let rule = chain.blocked_by()?;
            let place = self.place(name);
            let intact = |rule: &&ForeignRule| rule.ours == Ours::Intact;
            let opened = self
                .chains
                .get(place)
                .is_some_and(|chain| chain.rules.iter().filter(intact).count() == FORWARD_OPENING_RULES);
            Some(ForwardBlock {
                family: self.family.into(),
                table: self.name.as_str().into(),
                chain: name.as_str().into(),
                rule,
                place: place.into(),
                opened,
            })
        })
    }

    /// Where rules for the users of this base chain belong.
    fn place<'a>(&'a self, base: &'a str) -> &'a str {
        let mut reached = BTreeSet::from([base]);
        let mut next = vec![base];
        while let Some(name) = next.pop() {
            let rules = self.chains.get(name).into_iter().flat_map(|chain| &chain.rules);
            next.extend(rules.filter_map(|rule| rule.jump.as_deref()).filter(|to| reached.insert(to)));
        }
        PLACES.into_iter().find(|place| reached.contains(place)).unwrap_or(base)
    }
}

// === impl Chain ===

impl Chain {
    /// The policy or the last rule, if it drops whatever came that far.
    fn blocked_by(&self) -> Option<Arc<str>> {
        let last = self.rules.last().and_then(|rule| Some(format!("rule {}: {}", rule.handle, rule.drops_all?)));
        let policy = self.drops_by_policy.then(|| "policy drop".to_owned());
        Some(last.or(policy)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jump(to: &str) -> ForeignRule {
        ForeignRule { jump: Some(to.into()), ..ForeignRule::default() }
    }

    fn table(chains: &[(&str, bool, Vec<ForeignRule>)]) -> Table {
        let mut table = Table { family: "ip", name: "filter".into(), chains: BTreeMap::new() };
        for (name, drops_by_policy, rules) in chains {
            let rules = rules.iter().map(|rule| ForeignRule {
                jump: rule.jump.clone(),
                ..ForeignRule { handle: rule.handle, ours: rule.ours, drops_all: rule.drops_all, jump: None }
            });
            let chain =
                Chain { forward: *name == "FORWARD", drops_by_policy: *drops_by_policy, rules: rules.collect() };
            table.chains.insert((*name).to_owned(), chain);
        }
        table
    }

    #[test]
    fn what_blocks_and_where_it_is_opened() {
        let check = |chains: &[(&str, bool, Vec<ForeignRule>)], wanted: &[(&str, &str)]| {
            let table = table(chains);
            let found: Vec<_> = table.blocks().map(|block| (block.rule.to_string(), block.place.to_string())).collect();
            let wanted: Vec<_> = wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert_eq!(found, wanted, "{table:?}");
        };
        let reject = || ForeignRule { handle: 7, drops_all: Some("reject"), ..ForeignRule::default() };
        let plain = ForeignRule::default;
        check(&[("FORWARD", false, vec![])], &[]);
        check(&[("FORWARD", true, vec![])], &[("policy drop", "FORWARD")]);
        check(&[("INPUT", true, vec![])], &[]);
        check(&[("FORWARD", false, vec![plain(), reject()])], &[("rule 7: reject", "FORWARD")]);
        check(&[("FORWARD", false, vec![reject(), plain()])], &[]);
        check(&[("FORWARD", true, vec![reject(), plain()])], &[("policy drop", "FORWARD")]);
        // A place counts only where the chain comes by.
        check(&[("FORWARD", true, vec![]), ("DOCKER-USER", false, vec![])], &[("policy drop", "FORWARD")]);
        check(
            &[("FORWARD", true, vec![plain(), jump("DOCKER-USER")]), ("DOCKER-USER", false, vec![])],
            &[("policy drop", "DOCKER-USER")],
        );
        check(
            &[
                ("FORWARD", true, vec![jump("ufw-before-forward"), jump("elsewhere")]),
                ("ufw-before-forward", false, vec![jump("ufw-user-forward"), jump("FORWARD")]),
                ("ufw-user-forward", false, vec![]),
            ],
            &[("policy drop", "ufw-user-forward")],
        );
    }

    #[test]
    fn opened_when_all_rules_are_intact() {
        let check = |ours: &[Ours], wanted: bool| {
            let rules = ours.iter().map(|ours| ForeignRule { ours: *ours, ..ForeignRule::default() }).collect();
            let opened: Vec<_> = table(&[("FORWARD", true, rules)]).blocks().map(|block| block.opened).collect();
            assert_eq!(opened, [wanted], "{ours:?}");
        };
        check(&[], false);
        check(&[Ours::Intact], false);
        check(&[Ours::Intact, Ours::Changed, Ours::No], false);
        check(&[Ours::Intact, Ours::Intact, Ours::No], true);
    }
}
