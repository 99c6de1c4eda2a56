//! Our nft table: read back, and changed in atomic transactions, by netlink alone.
//!
//! Invariant: only table `inet tartan` is read and changed, and an answer that may be incomplete is no answer. The kernel
//! marks element dumps never as interrupted, so the generation is asked for before and after; and while it resizes a
//! hash set, some milliseconds after it grew, a dump misses elements. Each part of a dump passes over as many as the
//! parts before it gave, so whenever one is missed another comes twice: that is how it is noticed.

mod batch;
mod decode;
mod encode;
mod expr;
mod intervals;
mod phases;
mod table;

/// What it takes to read and write tables of others, see [`crate::foreign`].
pub(crate) mod wire {
    pub(crate) use super::decode::rule as decode_rule;
    pub(crate) use super::encode::{
        DELRULE, GETCHAIN, GETRULE, NEWRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_HOOK_NUM,
        NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_TABLE, put_rule,
    };
    pub(crate) use super::subsystem;
    pub(crate) use crate::nfnetlink::NLM_F_CREATE;
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::errno::Errno;
use tartan_netstate::claims::{NFT_EPOCH_MAP, NFT_JUDGED_SET};
use tartan_netstate::nft::{ElementData, ElementKey, Fields, Set, SetKind, SetName};
use tartan_netstate::policy::{Row, led_to};
use tartan_netstate::{Entry, Key, Object, Op, Owner, State, Step};

pub(crate) use batch::fail_together;
pub use phases::phases;

use crate::nfnetlink::{Attrs, Message, NLM_F_DUMP, Nfnetlink, Reply, attr_u32};
use crate::{Failure, KernelError};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFTA_GEN_ID: u16 = 1;

/// nf_tables of one network namespace.
pub struct Nft {
    netlink: Nfnetlink,
    /// See [`tartan_netstate::epoch`].
    epoch: u32,
}

impl Nft {
    /// nf_tables of the calling thread's network namespace.
    pub fn open() -> Result<Nft, KernelError> {
        // No packet that is under way has read the number that this begins with.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        Ok(Nft { netlink: Nfnetlink::open()?, epoch: (now & u128::from(u32::MAX)) as u32 })
    }

    /// The netlink port that notifications of our own transactions carry.
    pub fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// The number of the rule set's generation: it changes with every transaction, of anybody.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        let ask = Message { kind: subsystem(encode::GETGEN), flags: 0, family: 0, attrs: Attrs::new() };
        let replies = self.netlink.request(&ask, "read the nft generation")?;
        replies
            .first()
            .and_then(|reply| attr_u32(&reply.attrs, NFTA_GEN_ID))
            .ok_or(KernelError::Interrupted("the nft generation"))
    }

    /// Reads our table, once it is this socket's if it was another's that is closed: then nobody else can change it.
    pub fn adopt(&mut self) -> Result<State, KernelError> {
        let (before, flags) = (self.generation()?, self.table()?);
        if !flags.is_some_and(table::is_orphan) {
            return self.read_since(before, flags);
        }
        match self.netlink.transact([&encode::new_table(table::OWNED)].into_iter()).pop() {
            Some(refusal) => Err(batch::refused("take over the nft table of the agent before this one", &refusal)),
            None => self.read(),
        }
    }

    /// Our table as it is; empty if it is not there.
    pub fn read(&mut self) -> Result<State, KernelError> {
        let (before, flags) = (self.generation()?, self.table()?);
        self.read_since(before, flags)
    }

    fn read_since(&mut self, before: u32, flags: Option<u32>) -> Result<State, KernelError> {
        let read = self.read_unchecked(flags);
        if self.generation()? != before {
            return Err(KernelError::Interrupted("the nft table"));
        }
        read
    }

    /// Forgets what was counted for words that no row of this table holds: their rules are gone, and numbers of rules come to
    /// be others'. What cannot be forgotten now is the next time.
    pub fn forget_counts(&mut self, table: &State) {
        let Ok(counts) = self.counts(NFT_JUDGED_SET) else { return };
        let word = |(key, entry): (&Key, &Entry)| Row::of(key).and_then(|_| led_to(&entry.object));
        let held: BTreeSet<u32> = table.of_policy().filter_map(word).collect();
        // 0 is what looked for a word of its own and found none.
        let gone = counts.into_keys().filter(|word| *word != 0 && !held.contains(word));
        let forget = |word| {
            let key = Key::NftElement { set: NFT_JUDGED_SET.into(), key: Fields::new().number(word).key() };
            Step::delete(key, Object::NftElement(ElementData::default()), Owner::Read)
        };
        let steps: Vec<Step> = gone.map(forget).collect();
        if !steps.is_empty() {
            self.apply(&steps);
        }
    }

    /// Carries out all nft steps among `steps` in one transaction, and goes on without those the kernel refuses.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Failure> {
        self.apply_these(&steps.iter().collect::<Vec<_>>())
    }

    /// The same: there may be hundreds of thousands, of which no second copy is made.
    pub(crate) fn apply_these(&mut self, steps: &[&Step]) -> Vec<Failure> {
        let makes_table = steps.iter().any(|step| matches!(step.op(), Op::Create(Key::NftTable, _)));
        // Whose table it is can be said only when it is made; where nobody answers, nobody will make it either.
        let flags = match makes_table.then(|| self.table()) {
            Some(Ok(Some(there))) => table::awake(there),
            Some(Ok(None)) if table::can_be_owned(&mut self.netlink) => table::OWNED,
            _ => 0,
        };
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        let given = batch::Given { table_flags: flags, epoch: self.epoch };
        batch::apply(steps, given, |messages| self.netlink.transact(messages.iter().copied()))
    }

    /// The `NFT_TABLE_F_*` of our table, if it is there.
    fn table(&mut self) -> Result<Option<u32>, KernelError> {
        match self.netlink.request(&encode::message(encode::GETTABLE, 0, |_| {}), "read the nft table") {
            Err(KernelError::Refused { errno: Errno::ENOENT, .. }) => Ok(None),
            replies => Ok(replies?.first().map(table::flags)),
        }
    }

    fn read_unchecked(&mut self, flags: Option<u32>) -> Result<State, KernelError> {
        let mut state = State::new();
        let Some(flags) = flags else { return Ok(state) };
        if flags == table::awake(flags) {
            state.insert(Key::NftTable, Object::NftTable, Owner::Read);
        }
        let mut chains: Vec<_> =
            self.dump(encode::GETCHAIN, |_| {}, "read nft chains")?.iter().filter_map(decode::chain).collect();
        for (chain, rule) in self.dump(encode::GETRULE, |_| {}, "read nft rules")?.iter().filter_map(decode::rule) {
            if let Some((_, found)) = chains.iter_mut().find(|(name, _)| *name == chain) {
                found.rules.push(rule);
            }
        }
        for (chain, object) in chains {
            state.insert(Key::NftChain { chain }, Object::NftChain(object.into()), Owner::Read);
        }
        for (set, object) in self.dump(encode::GETSET, |_| {}, "read nft sets")?.iter().filter_map(decode::set) {
            // There may be a hundred thousand elements, and few different data.
            let mut alike: BTreeMap<ElementData, Arc<Entry>> = BTreeMap::new();
            let name = SetName::from(&*set);
            let elements = match object.kind {
                SetKind::Counts => Vec::new(),
                _ if *set == *NFT_EPOCH_MAP => decode::epoch(self.elements(&set, &object)?),
                _ => self.elements(&set, &object)?,
            };
            for (key, object) in elements {
                let entry = |object| Arc::new(Entry { object, owner: Owner::Read });
                let entry = match object {
                    Object::NftElement(data) => {
                        let known = alike.entry(data.clone());
                        known.or_insert_with(|| entry(Object::NftElement(data))).clone()
                    }
                    other => entry(other),
                };
                state.share(Arc::new(Key::NftElement { set: name, key }), entry);
            }
            state.insert(Key::NftSet { set: name }, Object::NftSet(object.into()), Owner::Read);
        }
        Ok(state)
    }

    /// What has been counted in a set of [`SetKind::Counts`], whose keys are numbers; nothing if there is no such set.
    pub fn counts(&mut self, set: &str) -> Result<BTreeMap<u32, u64>, KernelError> {
        let of_set = |attrs: &mut Attrs| {
            attrs.str(encode::NFTA_ELEMENTS_SET, set);
        };
        match self.dump(encode::GETSETELEM, of_set, "read nft counts") {
            Err(KernelError::Refused { errno: Errno::ENOENT, .. }) => Ok(BTreeMap::new()),
            replies => Ok(decode::counts(&replies?)),
        }
    }

    fn elements(&mut self, name: &str, set: &Set) -> Result<Vec<(ElementKey, Object)>, KernelError> {
        let of_set = |attrs: &mut Attrs| {
            attrs.str(encode::NFTA_ELEMENTS_SET, name);
        };
        let replies = self.dump(encode::GETSETELEM, of_set, "read nft elements")?;
        decode::elements(&replies, set.kind).ok_or(KernelError::Interrupted("an nft set"))
    }

    fn dump(
        &mut self,
        kind: u16,
        attrs: impl FnOnce(&mut Attrs),
        doing: &'static str,
    ) -> Result<Vec<Reply>, KernelError> {
        let mut replies = self.netlink.request(&encode::message(kind, NLM_F_DUMP, attrs), doing)?;
        replies.retain(decode::is_ours);
        Ok(replies)
    }
}

/// The message type of an nf_tables message.
pub(crate) fn subsystem(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}
