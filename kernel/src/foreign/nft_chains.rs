//! Forward chains of others in nf_tables; the chains of `iptables-nft` are of this kind.
//!
//! Our rules are plain interface matches with a counter, so that every tool, `iptables-nft` among them, lists them.

use std::collections::BTreeMap;

use tartan_netstate::claims::{FOREIGN_RULE_COMMENT, NFT_TABLE};

use super::{Chain, ForeignChain, ForeignRule, Ours, PLACES, Table, WAYS, opening};
use crate::KernelError;
use crate::nfnetlink::{
    Attrs, Message, NLM_F_DUMP, Nfnetlink, Refusal, Reply, attr, attr_str, attr_u32, attr_u64, attrs,
};
use crate::nft::wire;

const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// Name of an iptables match or target.
const NFTA_XT_NAME: u16 = 1;

/// Tables of others, with those chains that matter and their rules. Others may hold a hundred thousand rules, so only
/// the rules of these are asked for.
pub(super) fn read(netlink: &mut Nfnetlink) -> Result<Vec<Table>, KernelError> {
    let mut tables: BTreeMap<(u8, String), Table> = BTreeMap::new();
    let all = Message { kind: wire::subsystem(wire::GETCHAIN), flags: NLM_F_DUMP, family: 0, attrs: Attrs::new() };
    for reply in netlink.request(&all, "read the forward chains of other firewalls")? {
        let Some((family, table, name, mut chain)) = foreign_chain(&reply) else { continue };
        for reply in netlink.request(&rules_of(reply.family, &table, &name), "read the rules of other firewalls")? {
            chain.rules.push(rule(&reply));
        }
        let key = (reply.family, table.clone());
        let table = tables.entry(key).or_insert_with(|| Table { family, name: table, chains: BTreeMap::new() });
        table.chains.insert(name, chain);
    }
    Ok(tables.into_values().collect())
}

/// All chains that are not ours.
pub(super) fn names(netlink: &mut Nfnetlink) -> Result<Vec<ForeignChain>, KernelError> {
    let all = Message { kind: wire::subsystem(wire::GETCHAIN), flags: NLM_F_DUMP, family: 0, attrs: Attrs::new() };
    let replies = netlink.request(&all, "read the chains of other firewalls")?;
    Ok(replies.iter().filter_map(foreign_name).collect())
}

fn foreign_name(reply: &Reply) -> Option<ForeignChain> {
    let (_, family) = FAMILIES.iter().find(|(number, _)| *number == reply.family)?;
    let table = attr_str(&reply.attrs, wire::NFTA_TABLE)?;
    let name = attr_str(&reply.attrs, wire::NFTA_CHAIN_NAME)?;
    let drops_by_policy = attr_u32(&reply.attrs, wire::NFTA_CHAIN_POLICY) == Some(NF_DROP);
    let drops_input = drops_by_policy && hook(reply) == Some(NF_INET_LOCAL_IN);
    ((*family, table.as_str()) != ("inet", NFT_TABLE)).then_some(ForeignChain { family, table, name, drops_input })
}

fn hook(reply: &Reply) -> Option<u32> {
    attr(&reply.attrs, wire::NFTA_CHAIN_HOOK).and_then(|hook| attr_u32(hook, wire::NFTA_HOOK_NUM))
}

/// Family, table, name and chain without its rules, if it is somebody else's and matters.
fn foreign_chain(reply: &Reply) -> Option<(&'static str, String, String, Chain)> {
    let (_, family) = FAMILIES.iter().find(|(number, _)| *number == reply.family)?;
    let table = attr_str(&reply.attrs, wire::NFTA_TABLE)?;
    let name = attr_str(&reply.attrs, wire::NFTA_CHAIN_NAME)?;
    let forward = hook(reply) == Some(NF_INET_FORWARD);
    let is_ours = (*family, table.as_str()) == ("inet", NFT_TABLE);
    let matters = forward || PLACES.contains(&name.as_str()) || WAYS.contains(&name.as_str());
    let drops_by_policy = attr_u32(&reply.attrs, wire::NFTA_CHAIN_POLICY) == Some(NF_DROP);
    (matters && !is_ours).then(|| (*family, table, name, Chain { forward, drops_by_policy, rules: Vec::new() }))
}

fn rules_of(family: u8, table: &str, chain: &str) -> Message {
    let mut attrs = Attrs::new();
    attrs.str(wire::NFTA_TABLE, table).str(wire::NFTA_RULE_CHAIN, chain);
    Message { kind: wire::subsystem(wire::GETRULE), flags: NLM_F_DUMP, family, attrs }
}

/// Puts our rules first in a chain, or takes them away, in one transaction.
pub(super) fn set(
    netlink: &mut Nfnetlink,
    family: &str,
    table: &str,
    chain: &str,
    wanted: bool,
) -> Result<(), KernelError> {
    let doing = if wanted { "let pods through" } else { "take our rules out of" };
    let doing = format!("{doing} chain {chain} of {family} table {table}");
    let Some((number, _)) = FAMILIES.iter().find(|(_, name)| *name == family) else {
        return Err(KernelError::Refused { doing, errno: nix::errno::Errno::EAFNOSUPPORT, says: None });
    };
    let there = read(netlink)?;
    let found = there.iter().find(|found| found.family == family && found.name == table);
    let ours = found.and_then(|found| found.chains.get(chain)).into_iter().flat_map(|chain| &chain.rules);
    let message = |kind, flags, attrs: &dyn Fn(&mut Attrs)| {
        let mut written = Attrs::new();
        written.str(wire::NFTA_TABLE, table);
        attrs(&mut written);
        Message { kind: wire::subsystem(kind), flags, family: *number, attrs: written }
    };
    let mut steps: Vec<Message> = ours
        .filter(|rule| rule.ours != Ours::No)
        .map(|rule| {
            message(wire::DELRULE, 0, &|attrs| {
                attrs.str(wire::NFTA_RULE_CHAIN, chain).u64(wire::NFTA_RULE_HANDLE, rule.handle);
            })
        })
        .collect();
    if wanted {
        // Without NLM_F_APPEND a rule goes to the front; so the last one first.
        steps.extend(
            opening()
                .iter()
                .rev()
                .map(|rule| message(wire::NEWRULE, wire::NLM_F_CREATE, &|attrs| wire::put_rule(attrs, chain, rule))),
        );
    }
    match netlink.transact(steps.iter()).into_iter().next() {
        None => Ok(()),
        Some(Refusal { errno, says, .. }) => Err(KernelError::Refused { doing, errno, says }),
    }
}

fn rule(reply: &Reply) -> ForeignRule {
    let expressions: Vec<(String, &[u8])> = attr(&reply.attrs, wire::NFTA_RULE_EXPRESSIONS)
        .into_iter()
        .flat_map(attrs)
        .filter_map(|(_, elem)| Some((attr_str(elem, NFTA_EXPR_NAME)?, attr(elem, NFTA_EXPR_DATA).unwrap_or_default())))
        .collect();
    let drops = expressions.iter().find_map(|(name, data)| drops(name, data));
    let always = expressions.iter().all(|(name, data)| drops_or_only_watches(name, data));
    let immediate = expressions.iter().filter(|(name, _)| name == "immediate");
    let jump = immediate.map(|(_, data)| *data).find_map(|data| attr_str(verdict(data)?, NFTA_VERDICT_CHAIN));
    ForeignRule {
        handle: attr_u64(&reply.attrs, wire::NFTA_RULE_HANDLE).unwrap_or(0),
        ours: ours(reply),
        jump,
        drops_all: drops.filter(|_| always),
    }
}

fn verdict(immediate: &[u8]) -> Option<&[u8]> {
    attr(attr(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)
}

fn drops(name: &str, data: &[u8]) -> Option<&'static str> {
    let target = || attr_str(data, NFTA_XT_NAME).unwrap_or_default();
    match name {
        "immediate" if attr_u32(verdict(data)?, NFTA_VERDICT_CODE) == Some(NF_DROP) => Some("drop"),
        "reject" => Some("reject"),
        "target" if target() == "REJECT" => Some("reject"),
        _ => None,
    }
}

/// Whether the expression lets every packet get to the rule's end.
fn drops_or_only_watches(name: &str, data: &[u8]) -> bool {
    let is_comment = || attr_str(data, NFTA_XT_NAME).as_deref() == Some("comment");
    drops(name, data).is_some() || matches!(name, "counter" | "log") || (name == "match" && is_comment())
}

fn ours(reply: &Reply) -> Ours {
    let Some((_, found)) = wire::decode_rule(reply) else { return Ours::No };
    if *found.comment != *FOREIGN_RULE_COMMENT {
        Ours::No
    } else if opening().contains(&found) {
        Ours::Intact
    } else {
        Ours::Changed
    }
}
