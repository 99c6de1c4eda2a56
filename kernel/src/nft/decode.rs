//! What the kernel says about our table, as objects.
//!
//! Invariant: what somebody else put into our table or changed in it never equals what a plan wants: a rule without
//! our fingerprint reads as fingerprint 0, a chain that is dormant, misplaced or drops by policy as one with such a rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use tartan_netstate::nft::{Chain, ChainKind, ElementData, ElementKey, Hook, HookPoint, Rule, Set, SetKind, Verdict};
use tartan_netstate::{Object, claims, policy};

use super::encode::{
    NF_ACCEPT, NFT_ELEM_CATCHALL, NFT_ELEM_INTERVAL_END, NFT_SET_ANONYMOUS, NFT_SET_EVAL, NFT_SET_INTERVAL,
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_ELEM_DATA, NFTA_ELEM_EXPR,
    NFTA_ELEM_FLAGS, NFTA_ELEM_KEY, NFTA_ELEMENTS, NFTA_HOOK_NUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
    NFTA_RULE_USERDATA, NFTA_SET_DATA_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_FLAGS, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE,
    NFTA_SET_NAME, NFTA_TABLE, UDATA_COMMENT, UDATA_FINGERPRINT, chain_type, hook_num,
};
use super::expr::{NFTA_COUNTER_PACKETS, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE};
use crate::nfnetlink::{Reply, attr, attr_str, attr_u32, attr_u64, attrs};

const NFTA_DATA_VALUE: u16 = 1;
/// Whether the object is in our table: not all dumps can be restricted to it.
pub(super) fn is_ours(reply: &Reply) -> bool {
    attr_str(&reply.attrs, NFTA_TABLE).as_deref() == Some(claims::NFT_TABLE)
}

/// A chain without its rules.
pub(super) fn chain(reply: &Reply) -> Option<(Arc<str>, Chain)> {
    let name = attr_str(&reply.attrs, NFTA_CHAIN_NAME)?;
    let hook = attr(&reply.attrs, NFTA_CHAIN_HOOK);
    let known = hook.and_then(|hook| decode_hook(hook, &attr_str(&reply.attrs, NFTA_CHAIN_TYPE)?));
    let accepts = attr_u32(&reply.attrs, NFTA_CHAIN_POLICY).is_none_or(|policy| policy == NF_ACCEPT);
    let as_we_make_it = accepts && known.is_some() == hook.is_some();
    Some((name.into(), Chain { hook: known, rules: if as_we_make_it { Vec::new() } else { vec![foreign_rule()] } }))
}

fn decode_hook(hook: &[u8], kind: &str) -> Option<Hook> {
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let num = attr_u32(hook, NFTA_HOOK_NUM)?;
    Some(Hook {
        kind: [ChainKind::Filter, ChainKind::Nat].into_iter().find(|each| chain_type(*each) == kind)?,
        point: [Prerouting, Input, Forward, Output, Postrouting].into_iter().find(|each| hook_num(*each) == num)?,
        priority: attr_u32(hook, NFTA_HOOK_PRIORITY)?.cast_signed(),
    })
}

/// A rule and the chain it is in.
pub(crate) fn rule(reply: &Reply) -> Option<(Arc<str>, Rule)> {
    let chain = attr_str(&reply.attrs, NFTA_RULE_CHAIN)?;
    let mut rule = foreign_rule();
    let mut userdata = attr(&reply.attrs, NFTA_RULE_USERDATA).unwrap_or_default();
    while let [kind, len, rest @ ..] = userdata
        && let Some((value, next)) = rest.split_at_checked(usize::from(*len))
    {
        match (*kind, value) {
            (UDATA_COMMENT, [text @ .., 0]) => rule.comment = String::from_utf8_lossy(text).into(),
            (UDATA_FINGERPRINT, value) => {
                rule.fingerprint = value.try_into().map(u64::from_be_bytes).unwrap_or(0);
            }
            _ => {}
        }
        userdata = next;
    }
    Some((chain.into(), rule))
}

fn foreign_rule() -> Rule {
    Rule { fingerprint: 0, expressions: Vec::new(), comment: "".into() }
}

/// A set, unless it is part of a rule.
pub(super) fn set(reply: &Reply) -> Option<(Arc<str>, Set)> {
    let number = |id| attr_u32(&reply.attrs, id).unwrap_or(0);
    let flags = number(NFTA_SET_FLAGS);
    if flags & NFT_SET_ANONYMOUS != 0 {
        return None;
    }
    let set = Set {
        key_len: number(NFTA_SET_KEY_LEN),
        key_type: number(NFTA_SET_KEY_TYPE),
        data_len: number(NFTA_SET_DATA_LEN),
        data_type: number(NFTA_SET_DATA_TYPE),
        kind: match flags {
            _ if flags & NFT_SET_INTERVAL != 0 => SetKind::Intervals,
            _ if flags & NFT_SET_EVAL != 0 => SetKind::Counts,
            _ => SetKind::Exact,
        },
    };
    Some((attr_str(&reply.attrs, NFTA_SET_NAME)?.into(), set))
}

/// The object that stands for them, if they are as they should be: what is put in its place leaves nothing of others.
pub(super) fn epoch(elements: Vec<(ElementKey, Object)>) -> Vec<(ElementKey, Object)> {
    let data = |key: &ElementKey| Object::NftElement(ElementData((*key.bytes).into()));
    let is_pair =
        matches!(&*elements, [(from, to), (back, zero)] if from != back && data(from) == *zero && data(back) == *to);
    let zero = |(key, _): &(ElementKey, Object)| is_pair && *key.bytes == [0; 4];
    elements.into_iter().find(zero).map(|(key, _)| (key, policy::leads_to(0))).into_iter().collect()
}

/// An element as the kernel has it: an interval is two.
struct Half {
    bytes: Vec<u8>,
    is_end: bool,
    data: Object,
}

/// All elements of a set; none if one comes twice, because then others are missing.
pub(super) fn elements(replies: &[Reply], kind: SetKind) -> Option<Vec<(ElementKey, Object)>> {
    let lists = replies.iter().filter_map(|reply| attr(&reply.attrs, NFTA_ELEMENTS));
    let mut found: Vec<Half> = lists.flat_map(attrs).filter_map(|(_, elem)| element(elem)).collect();
    // Where two intervals touch, the end of the first comes before the start of the second.
    found.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(b.is_end.cmp(&a.is_end)));
    let once = found.windows(2).all(|pair| (&pair[0].bytes, pair[0].is_end) != (&pair[1].bytes, pair[1].is_end));
    let exact = |half: Half| (ElementKey { bytes: half.bytes.into(), end: None }, half.data);
    once.then(|| match kind {
        SetKind::Intervals => pair(found),
        SetKind::Exact | SetKind::Counts => found.into_iter().map(exact).collect(),
    })
}

/// Packets by key, where keys are numbers.
pub(super) fn counts(replies: &[Reply]) -> BTreeMap<u32, u64> {
    let lists = replies.iter().filter_map(|reply| attr(&reply.attrs, NFTA_ELEMENTS));
    let count = |elem: &[u8]| {
        let key = u32::from_ne_bytes(*attr(attr(elem, NFTA_ELEM_KEY)?, NFTA_DATA_VALUE)?.first_chunk()?);
        let counter = attr(attr(elem, NFTA_ELEM_EXPR)?, NFTA_EXPR_DATA)?;
        Some((key, attr_u64(counter, NFTA_COUNTER_PACKETS)?))
    };
    lists.flat_map(attrs).filter_map(|(_, elem)| count(elem)).collect()
}

fn pair(sorted: Vec<Half>) -> Vec<(ElementKey, Object)> {
    let mut intervals = Vec::new();
    let mut open: Option<(Vec<u8>, Object)> = None;
    for Half { bytes, is_end, data } in sorted {
        if bytes.is_empty() {
            intervals.push((ElementKey::catch_all(), data));
            continue;
        }
        let end = if is_end { bytes.as_slice().into() } else { Box::default() };
        if let Some((start, data)) = open.take() {
            intervals.push((ElementKey { bytes: start.into(), end: Some(end) }, data));
        }
        open = (!is_end).then_some((bytes, data));
    }
    intervals.extend(open.map(|(start, data)| (ElementKey { bytes: start.into(), end: Some(Box::default()) }, data)));
    intervals
}

fn element(elem: &[u8]) -> Option<Half> {
    let flags = attr_u32(elem, NFTA_ELEM_FLAGS).unwrap_or(0);
    let data = attr(elem, NFTA_ELEM_DATA).unwrap_or_default();
    let data = match attr(data, NFTA_DATA_VERDICT) {
        Some(of) => Object::NftVerdict(verdict(of)),
        None => Object::NftElement(ElementData(attr(data, NFTA_DATA_VALUE).unwrap_or_default().into())),
    };
    let key = attr(elem, NFTA_ELEM_KEY).and_then(|key| attr(key, NFTA_DATA_VALUE));
    let bytes = if flags & NFT_ELEM_CATCHALL != 0 { Vec::new() } else { key?.to_vec() };
    Some(Half { bytes, is_end: flags & NFT_ELEM_INTERVAL_END != 0, data })
}

/// One that we never make reads as `drop` of whatever key: it cannot be what a plan wants there, or does no harm.
fn verdict(of: &[u8]) -> Verdict {
    let chain = || attr_str(of, NFTA_VERDICT_CHAIN).unwrap_or_default().into();
    match attr_u32(of, NFTA_VERDICT_CODE).map(u32::cast_signed) {
        Some(1) => Verdict::Accept,
        Some(-1) => Verdict::Continue,
        Some(-3) => Verdict::Jump(chain()),
        Some(-4) => Verdict::Goto(chain()),
        Some(-5) => Verdict::Return,
        _ => Verdict::Drop,
    }
}
