//! Tables, chains, rules, sets and elements as nf_tables messages.
//!
//! Creations do not ask for exclusiveness: all in our table is ours, and what is there already is overwritten.

use tartan_netstate::nft::{Chain, ChainKind, ElementKey, Fields, Hook, HookPoint, Rule, Set, SetKind, Type};
use tartan_netstate::{Object, claims, policy};

use super::expr;
use crate::nfnetlink::{Attrs, Message, NLM_F_APPEND, NLM_F_CREATE};

pub(super) const NFPROTO_INET: u8 = 1;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
pub(crate) const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
pub(crate) const NEWRULE: u16 = 6;
pub(crate) const GETRULE: u16 = 7;
pub(crate) const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
pub(super) const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
pub(super) const GETGEN: u16 = 16;

const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
/// The same number for chains, rules, sets and element lists.
pub(crate) const NFTA_TABLE: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;

pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(crate) const NFTA_HOOK_NUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NF_ACCEPT: u32 = 1;

pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_HANDLE: u16 = 3;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
/// nft's own, in a rule's userdata: a comment with its NUL.
pub(super) const UDATA_COMMENT: u8 = 0;
/// Ours, in a rule's userdata: the fingerprint, eight bytes. nft passes over what it does not know.
pub(super) const UDATA_FINGERPRINT: u8 = 84;

pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;
/// nft's own, in a set's userdata.
const UDATA_KEY_BYTEORDER: u8 = 0;
const UDATA_DATA_BYTEORDER: u8 = 1;
const UDATA_HOST_ENDIAN: u32 = 1;
pub(super) const NFT_SET_ANONYMOUS: u32 = 1;
pub(super) const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_MAP: u32 = 8;
pub(super) const NFT_SET_EVAL: u32 = 32;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
/// Words are fewer. The kernel needs a bound, and takes memory for what is there only.
const MAX_COUNTS: u32 = 1 << 24;

pub(super) const NFTA_ELEMENTS_SET: u16 = 2;
pub(super) const NFTA_ELEMENTS: u16 = 3;
pub(super) const NFTA_ELEM_KEY: u16 = 1;
pub(super) const NFTA_ELEM_DATA: u16 = 2;
pub(super) const NFTA_ELEM_FLAGS: u16 = 3;
pub(super) const NFTA_ELEM_EXPR: u16 = 7;
pub(super) const NFT_ELEM_INTERVAL_END: u32 = 1;
pub(super) const NFT_ELEM_CATCHALL: u32 = 2;
/// An attribute's length is 16 bits; this leaves room for one more element.
const ELEMENT_LIST_BYTES: usize = 60_000;

/// An nf_tables message about our table.
pub(super) fn message(kind: u16, flags: u16, attrs: impl FnOnce(&mut Attrs)) -> Message {
    let mut written = Attrs::new();
    written.str(NFTA_TABLE, claims::NFT_TABLE);
    attrs(&mut written);
    Message { kind: super::subsystem(kind), flags, family: NFPROTO_INET, attrs: written }
}

/// Makes our table with these `NFT_TABLE_F_*`, or gives them to the one that is there.
pub(super) fn new_table(flags: u32) -> Message {
    table(claims::NFT_TABLE, flags)
}

/// Makes a table of any name.
pub(super) fn table(name: &str, flags: u32) -> Message {
    let mut attrs = Attrs::new();
    attrs.str(NFTA_TABLE_NAME, name).u32(NFTA_TABLE_FLAGS, flags);
    Message { kind: super::subsystem(NEWTABLE), flags: NLM_F_CREATE, family: NFPROTO_INET, attrs }
}

/// Is refused: there is no table without a name.
pub(super) fn nothing() -> Message {
    Message { kind: super::subsystem(NEWCHAIN), flags: 0, family: NFPROTO_INET, attrs: Attrs::new() }
}

/// Deletes our table with all that is in it.
pub(super) fn del_table() -> Message {
    message(DELTABLE, 0, |_| {})
}

/// Makes a chain, or corrects the policy of one that is there.
pub(super) fn new_chain(name: &str, chain: &Chain) -> Message {
    message(NEWCHAIN, NLM_F_CREATE, |attrs| {
        attrs.str(NFTA_CHAIN_NAME, name);
        if let Some(Hook { kind, point, priority }) = chain.hook {
            attrs.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.u32(NFTA_HOOK_NUM, hook_num(point)).u32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            attrs.u32(NFTA_CHAIN_POLICY, NF_ACCEPT).str(NFTA_CHAIN_TYPE, chain_type(kind));
        }
    })
}

/// Deletes an empty chain.
pub(super) fn del_chain(name: &str) -> Message {
    message(DELCHAIN, 0, |attrs| {
        attrs.str(NFTA_CHAIN_NAME, name);
    })
}

/// Deletes all rules of a chain.
pub(super) fn flush_chain(name: &str) -> Message {
    message(DELRULE, 0, |attrs| {
        attrs.str(NFTA_RULE_CHAIN, name);
    })
}

/// Appends a rule.
pub(super) fn new_rule(chain: &str, rule: &Rule) -> Message {
    message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |attrs| put_rule(attrs, chain, rule))
}

/// A rule, but for the table it belongs to.
pub(crate) fn put_rule(attrs: &mut Attrs, chain: &str, rule: &Rule) {
    attrs.str(NFTA_RULE_CHAIN, chain);
    attrs.nest(NFTA_RULE_EXPRESSIONS, |list| {
        for expression in &rule.expressions {
            expr::write(list, expression);
        }
    });
    attrs.bytes(NFTA_RULE_USERDATA, &userdata(rule));
}

/// Makes a set or map; `id` is unique in its transaction.
pub(super) fn new_set(name: &str, set: &Set, id: u32) -> Message {
    message(NEWSET, NLM_F_CREATE, |attrs| {
        let kind = match set.kind {
            SetKind::Exact => 0,
            SetKind::Intervals => NFT_SET_INTERVAL,
            SetKind::Counts => NFT_SET_EVAL,
        };
        let map = if set.data_len > 0 { NFT_SET_MAP } else { 0 };
        attrs.str(NFTA_SET_NAME, name).u32(NFTA_SET_FLAGS, kind | map).u32(NFTA_SET_ID, id);
        attrs.u32(NFTA_SET_KEY_TYPE, set.key_type).u32(NFTA_SET_KEY_LEN, set.key_len);
        if set.data_len > 0 {
            attrs.u32(NFTA_SET_DATA_TYPE, set.data_type).u32(NFTA_SET_DATA_LEN, set.data_len);
        }
        if set.kind == SetKind::Counts {
            attrs.nest(NFTA_SET_DESC, |desc| {
                desc.u32(NFTA_SET_DESC_SIZE, MAX_COUNTS);
            });
        }
        // Only so does nft print numbers in the machine's order, and not backwards. The kernel does not care.
        let types = [(UDATA_KEY_BYTEORDER, set.key_type), (UDATA_DATA_BYTEORDER, set.data_type)];
        let marks = types.into_iter().filter(|(_, number)| *number == Type::Mark.number());
        let order = marks.flat_map(|(which, _)| [vec![which, 4], UDATA_HOST_ENDIAN.to_ne_bytes().to_vec()].concat());
        let order: Vec<u8> = order.collect();
        if !order.is_empty() {
            attrs.bytes(NFTA_SET_USERDATA, &order);
        }
    })
}

/// Deletes a set with its elements.
pub(super) fn del_set(name: &str) -> Message {
    message(DELSET, 0, |attrs| {
        attrs.str(NFTA_SET_NAME, name);
    })
}

/// Takes all elements out of a set.
pub(super) fn flush_set(name: &str) -> Message {
    message(DELSETELEM, 0, |attrs| {
        attrs.str(NFTA_ELEMENTS_SET, name);
    })
}

/// Both elements of [`tartan_netstate::epoch`].
pub(super) fn epoch(number: u32) -> Message {
    let mut both = ElementList::new();
    for (from, to) in [(0, number), (number, 0)] {
        both.push(&Fields::new().number(from).key(), &policy::leads_to(to));
    }
    both.add_to(claims::NFT_EPOCH_MAP)
}

/// One message's worth of elements of one set: collects until it is full.
pub(super) struct ElementList {
    list: Attrs,
}

// === impl ElementList ===

impl ElementList {
    pub(super) fn new() -> ElementList {
        ElementList { list: Attrs::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.list.0.len() > ELEMENT_LIST_BYTES
    }

    /// An interval is two elements to the kernel: its start, and an end that is not part of it.
    pub(super) fn push(&mut self, key: &ElementKey, data: &Object) {
        let flags = if key.is_catch_all() { NFT_ELEM_CATCHALL } else { 0 };
        self.push_one(&key.bytes, Some(data), flags);
        if let Some(end) = key.end.as_ref().filter(|end| !end.is_empty()) {
            self.push_one(end, None, NFT_ELEM_INTERVAL_END);
        }
    }

    pub(super) fn add_to(self, set: &str) -> Message {
        self.message(NEWSETELEM, NLM_F_CREATE, set)
    }

    pub(super) fn delete_from(self, set: &str) -> Message {
        self.message(DELSETELEM, 0, set)
    }

    fn push_one(&mut self, key: &[u8], data: Option<&Object>, flags: u32) {
        self.list.nest(NFTA_LIST_ELEM, |elem| {
            if !key.is_empty() {
                expr::value(elem, NFTA_ELEM_KEY, key);
            }
            match data {
                Some(Object::NftElement(data)) if !data.0.is_empty() => expr::value(elem, NFTA_ELEM_DATA, &data.0),
                Some(Object::NftVerdict(verdict)) => {
                    elem.nest(NFTA_ELEM_DATA, |data| expr::write_verdict(data, verdict));
                }
                _ => {}
            }
            if flags != 0 {
                elem.u32(NFTA_ELEM_FLAGS, flags);
            }
        });
    }

    fn message(self, kind: u16, flags: u16, set: &str) -> Message {
        message(kind, flags, |attrs| {
            attrs.str(NFTA_ELEMENTS_SET, set);
            attrs.nest(NFTA_ELEMENTS, |list| *list = self.list);
        })
    }
}

/// Comment and fingerprint as type, length, value.
fn userdata(rule: &Rule) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |kind: u8, value: &[u8]| {
        let len = u8::try_from(value.len()).expect("cut to fit");
        bytes.extend_from_slice(&[kind, len]);
        bytes.extend_from_slice(value);
    };
    if !rule.comment.is_empty() {
        let fits = rule.comment.floor_char_boundary(COMMENT_BYTES);
        put(UDATA_COMMENT, &[rule.comment[..fits].as_bytes(), &[0]].concat());
    }
    put(UDATA_FINGERPRINT, &rule.fingerprint.to_be_bytes());
    bytes
}

/// What nft itself allows.
const COMMENT_BYTES: usize = 127;

pub(super) fn hook_num(point: HookPoint) -> u32 {
    match point {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    }
}

pub(super) fn chain_type(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}
