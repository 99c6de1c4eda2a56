//! The `filter` tables of ip_tables and ip6_tables (`iptables-legacy`).
//!
//! A table is one block of entries that refer to each other by byte offset. It is read whole, changed, and handed back
//! whole; then counters, which the kernel starts anew, are added back. The lock is the one the iptables tools take.
//!
//! Invariant: every entry that is not ours comes back byte for byte, with its jumps led to where they led before.

use std::collections::BTreeMap;
use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tartan_netstate::claims::{FOREIGN_RULE_COMMENT, POD_LINK_PREFIX};

use super::sockopt::Sockopt;
use super::{Chain, ForeignRule, Ours, Table};
use crate::KernelError;

const TABLE: &str = "filter";
const LOCK: &str = "/run/xtables.lock";
/// Someone else replaced the table between our reading and our writing.
const MAX_TRIES: usize = 8;

const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;
const SO_SET_REPLACE: i32 = 64;
const SO_SET_ADD_COUNTERS: i32 = 65;

const NAME_LEN: usize = 32;
const HOOKS: usize = 5;
const FORWARD: usize = 2;
const INFO_LEN: usize = 84;
/// `struct ipt_get_entries` and `struct xt_counters_info` without what follows: name, number, padding.
const LIST_HEADER: usize = 40;
/// `struct xt_entry_match` and `struct xt_entry_target` without their data: size, name, revision.
const EXTENSION_HEADER: usize = 32;
const EXTENSION_NAME: usize = 29;
const COMMENT_LEN: usize = 256;
const IFNAMSIZ: usize = 16;

const VERDICT_DROP: i32 = -1;
const VERDICT_ACCEPT: i32 = -2;

/// Which of the two, and how its entries are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// A table as the kernel gives it.
struct Blob {
    valid_hooks: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    /// In order, each with the offset it had.
    entries: Vec<(u32, Entry)>,
}

/// One entry: what it matches, then its matches, then its target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    ip: Ip,
    bytes: Vec<u8>,
}

/// Tables that exist; asking for one that does not would make it.
pub(super) fn read() -> Result<Vec<Table>, KernelError> {
    let mut tables = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        if ip.exists() {
            tables.push(Blob::read(ip)?.table(ip));
        }
    }
    Ok(tables)
}

/// Puts our rules first in a chain, or takes them away.
pub(super) fn set(ip: Ip, table: &str, chain: &str, wanted: bool) -> Result<(), KernelError> {
    let refused = |errno| KernelError::Refused {
        doing: format!("change chain {chain} of {} table {table}", ip.name()),
        errno,
        says: None,
    };
    if table != TABLE || !ip.exists() {
        return if wanted { Err(refused(Errno::ENOENT)) } else { Ok(()) };
    }
    // Whoever uses other tools than iptables takes no lock; the kernel's own check (EAGAIN) is what counts.
    let _lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(LOCK)
        .ok()
        .and_then(|file| Flock::lock(file, FlockArg::LockExclusive).ok());
    for tries in 1.. {
        let before = Blob::read(ip)?;
        let Some(after) = before.edited(ip, chain, wanted) else {
            return if wanted { Err(refused(Errno::ENOENT)) } else { Ok(()) };
        };
        match before.replace_by(ip, &after) {
            Err(Errno::EAGAIN) if tries < MAX_TRIES => {}
            result => return result.map_err(refused),
        }
    }
    Ok(())
}

// === impl Ip ===

impl Ip {
    /// From [`tartan_model::ForwardBlock::family`].
    pub(super) fn of(family: &str) -> Option<Ip> {
        [Ip::V4, Ip::V6].into_iter().find(|ip| ip.name() == family)
    }

    fn name(self) -> &'static str {
        match self {
            Ip::V4 => "iptables",
            Ip::V6 => "ip6tables",
        }
    }

    fn exists(self) -> bool {
        let names = match self {
            Ip::V4 => "/proc/thread-self/net/ip_tables_names",
            Ip::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == TABLE))
    }

    /// Offset of the input device's name in an entry; output device, input mask and output mask follow.
    fn devices(self) -> usize {
        match self {
            Ip::V4 => 16,
            Ip::V6 => 64,
        }
    }

    /// Length of what an entry matches by itself; all zero matches everything.
    fn match_len(self) -> usize {
        match self {
            Ip::V4 => 84,
            Ip::V6 => 136,
        }
    }

    /// Offset of `target_offset`, with `next_offset` behind it.
    fn offsets(self) -> usize {
        self.match_len() + 4
    }

    /// Length of an entry without matches and target; ends with its two counters.
    fn entry_len(self) -> usize {
        match self {
            Ip::V4 => 112,
            Ip::V6 => 168,
        }
    }
}

// === impl Blob ===

impl Blob {
    fn read(ip: Ip) -> Result<Blob, KernelError> {
        let read = || {
            let socket = Sockopt::open(ip == Ip::V6)?;
            let mut info = vec![0; INFO_LEN];
            info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
            socket.get(SO_GET_INFO, &mut info)?;
            let size = u32_at(&info, INFO_LEN - 4);
            let mut list = vec![0; LIST_HEADER + size as usize];
            list[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
            list[NAME_LEN..NAME_LEN + 4].copy_from_slice(&size.to_ne_bytes());
            socket.get(SO_GET_ENTRIES, &mut list)?;
            let hooks = |at: usize| std::array::from_fn(|hook| u32_at(&info, at + 4 * hook));
            Ok(Blob {
                valid_hooks: u32_at(&info, NAME_LEN),
                hook_entry: hooks(NAME_LEN + 4),
                underflow: hooks(NAME_LEN + 4 + 4 * HOOKS),
                entries: split(ip, &list[LIST_HEADER..]),
            })
        };
        read().map_err(|errno| match errno {
            Errno::EAGAIN => KernelError::Interrupted("an iptables table"),
            errno => KernelError::Refused { doing: format!("read the {} filter table", ip.name()), errno, says: None },
        })
    }

    /// The chains, for finding what drops and where our rules are.
    fn table(&self, ip: Ip) -> Table {
        let chains = self.chains();
        let head_names: BTreeMap<u32, &String> = chains.iter().map(|(name, found)| (found.head, name)).collect();
        let mut table = Table { family: ip.name(), name: TABLE.to_owned(), chains: BTreeMap::new() };
        for (name, found) in &chains {
            let mut chain = Chain { forward: name == "FORWARD", ..Chain::default() };
            let rules = self.entries.iter().filter(|(at, _)| (found.head..found.policy).contains(at));
            for ((_, entry), number) in rules.zip(1..) {
                let target = entry.target_name();
                let verdict = entry.verdict();
                let drops = match (target.as_str(), verdict) {
                    ("REJECT", _) => Some("reject"),
                    (_, Some(VERDICT_DROP)) => Some("drop"),
                    _ => None,
                };
                let to = verdict.and_then(|verdict| u32::try_from(verdict).ok());
                chain.rules.push(ForeignRule {
                    handle: number,
                    ours: entry.ours(),
                    jump: to.and_then(|to| head_names.get(&to)).map(|name| (*name).clone()),
                    drops_all: drops.filter(|_| entry.matches_all()),
                });
            }
            let policy = self.entries.iter().find(|(at, _)| *at == found.policy);
            chain.drops_by_policy = policy.is_some_and(|(_, entry)| entry.verdict() == Some(VERDICT_DROP));
            table.chains.insert(name.clone(), chain);
        }
        table
    }

    /// Offset of each chain's first entry and of the one after its last rule.
    fn chains(&self) -> BTreeMap<String, Span> {
        let mut chains: BTreeMap<String, Span> = BTreeMap::new();
        let base = Span { head: self.hook_entry[FORWARD], policy: self.underflow[FORWARD] };
        chains.insert("FORWARD".to_owned(), base);
        let mut open: Option<String> = None;
        for (index, (at, entry)) in self.entries.iter().enumerate() {
            if entry.target_name() != "ERROR" {
                continue;
            }
            // A user's chain begins behind an entry with its name and ends with an entry that returns.
            if let Some(span) = open.take().and_then(|name| chains.get_mut(&name)) {
                span.policy = self.entries[index - 1].0;
            }
            let name = entry.error_name();
            chains.insert(name.clone(), Span { head: at + entry.len(), policy: at + entry.len() });
            open = Some(name);
        }
        // The last such entry ends the table and is no chain.
        chains.retain(|name, _| Some(name) != open.as_ref());
        chains
    }

    /// The table with our rules first in a chain and nowhere else in it, or without them; none without the chain.
    fn edited(&self, ip: Ip, chain: &str, wanted: bool) -> Option<Vec<Placed>> {
        let span = *self.chains().get(chain)?;
        let mut entries = Vec::new();
        for (at, entry) in &self.entries {
            let in_chain = (span.head..span.policy).contains(at);
            let ours = in_chain && entry.ours() != Ours::No;
            let mut slot = Placed { old: Some(*at), before: Vec::new(), entry: (!ours).then(|| entry.clone()) };
            if wanted && *at == span.head {
                slot.before = Entry::opening(ip);
            }
            entries.push(slot);
        }
        Some(entries)
    }

    fn replace_by(&self, ip: Ip, after: &[Placed]) -> Result<(), Errno> {
        let layout = Layout::of(after);
        let entries = layout.entries(after);
        let socket = Sockopt::open(ip == Ip::V6)?;
        let replacement = |counters: u64| {
            let mut bytes = vec![0; NAME_LEN];
            bytes[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
            let mut put = |value: u32| bytes.extend_from_slice(&value.to_ne_bytes());
            put(self.valid_hooks);
            put(u32::try_from(entries.len()).expect("fewer entries than bytes"));
            put(layout.size);
            for hook in 0..HOOKS {
                put(if self.has(hook) { layout.slot[&self.hook_entry[hook]] } else { 0 });
            }
            for hook in 0..HOOKS {
                put(if self.has(hook) { layout.own[&self.underflow[hook]] } else { 0 });
            }
            put(u32::try_from(self.entries.len()).expect("fewer entries than bytes"));
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend_from_slice(&counters.to_ne_bytes());
            bytes.extend(entries.iter().flat_map(|(_, entry)| &entry.bytes));
            bytes
        };
        let old = socket.replace(SO_SET_REPLACE, replacement, self.entries.len())?;
        let kept: BTreeMap<u32, [u64; 2]> = self.entries.iter().map(|(at, _)| *at).zip(old).collect();
        let mut counters = vec![0; LIST_HEADER];
        counters[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        let count = u32::try_from(entries.len()).expect("fewer entries than bytes");
        counters[NAME_LEN..NAME_LEN + 4].copy_from_slice(&count.to_ne_bytes());
        for (old, _) in &entries {
            let values = old.and_then(|old| kept.get(&old)).copied().unwrap_or_default();
            counters.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        }
        socket.set(SO_SET_ADD_COUNTERS, &counters)
    }

    fn has(&self, hook: usize) -> bool {
        self.valid_hooks & 1 << hook != 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    head: u32,
    policy: u32,
}

/// An entry of the old table, with what goes in front of it, or without it.
struct Placed {
    old: Option<u32>,
    before: Vec<Entry>,
    entry: Option<Entry>,
}

/// Where the entries of the old table are in the new one.
struct Layout {
    /// Where what was in front of the entry, or the entry itself, or what comes after it now begins: what jumped to the
    /// head of a chain goes through what was put there.
    slot: BTreeMap<u32, u32>,
    /// Where the entry itself is.
    own: BTreeMap<u32, u32>,
    size: u32,
}

// === impl Layout ===

impl Layout {
    fn of(after: &[Placed]) -> Layout {
        let mut layout = Layout { slot: BTreeMap::new(), own: BTreeMap::new(), size: 0 };
        for Placed { old, before, entry } in after {
            if let Some(old) = old {
                layout.slot.insert(*old, layout.size);
                layout.own.insert(*old, layout.size + before.iter().map(Entry::len).sum::<u32>());
            }
            layout.size += before.iter().chain(entry).map(Entry::len).sum::<u32>();
        }
        layout
    }

    /// The entries in order with their jumps led right, each with its old offset if it had one.
    fn entries(&self, after: &[Placed]) -> Vec<(Option<u32>, Entry)> {
        let mut entries = Vec::new();
        for Placed { old, before, entry } in after {
            entries.extend(before.iter().map(|entry| (None, entry.clone())));
            let Some(mut entry) = entry.clone() else { continue };
            let to = entry.verdict().and_then(|verdict| u32::try_from(verdict).ok());
            if let Some(to) = to.and_then(|to| self.slot.get(&to)) {
                entry.set_verdict(i32::try_from(*to).expect("a table is far below 2 GiB"));
            }
            entries.push((*old, entry));
        }
        entries
    }
}

// === impl Entry ===

impl Entry {
    /// Our rules: `-i ttp+` and `-o ttp+`, with the comment, accepted.
    fn opening(ip: Ip) -> Vec<Entry> {
        [0, IFNAMSIZ]
            .map(|direction| {
                let mut bytes = vec![0; ip.entry_len()];
                let device = ip.devices() + direction;
                let prefix = POD_LINK_PREFIX.as_bytes();
                bytes[device..device + prefix.len()].copy_from_slice(prefix);
                let mask = device + 2 * IFNAMSIZ;
                bytes[mask..mask + prefix.len()].fill(0xff);
                let mut comment = vec![0; COMMENT_LEN];
                comment[..FOREIGN_RULE_COMMENT.len()].copy_from_slice(FOREIGN_RULE_COMMENT.as_bytes());
                bytes.extend(extension("comment", &comment));
                let target_offset = bytes.len();
                bytes.extend(extension("", &VERDICT_ACCEPT.to_ne_bytes()));
                let next_offset = bytes.len();
                for (at, value) in [(ip.offsets(), target_offset), (ip.offsets() + 2, next_offset)] {
                    let value = u16::try_from(value).expect("two extensions of known length");
                    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
                }
                Entry { ip, bytes }
            })
            .into()
    }

    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("next_offset is 16 bits")
    }

    fn target(&self) -> &[u8] {
        let at = usize::from(u16_at(&self.bytes, self.ip.offsets()));
        self.bytes.get(at..).unwrap_or_default()
    }

    fn target_name(&self) -> String {
        name_of(self.target())
    }

    /// A chain's name in the entry in front of it.
    fn error_name(&self) -> String {
        text(self.target().get(EXTENSION_HEADER..).unwrap_or_default())
    }

    /// The standard target's: negative for a verdict, else the offset to go on at.
    fn verdict(&self) -> Option<i32> {
        let value = self.target().get(EXTENSION_HEADER..)?.first_chunk()?;
        self.target_name().is_empty().then(|| i32::from_ne_bytes(*value))
    }

    fn set_verdict(&mut self, verdict: i32) {
        let at = usize::from(u16_at(&self.bytes, self.ip.offsets())) + EXTENSION_HEADER;
        self.bytes[at..at + 4].copy_from_slice(&verdict.to_ne_bytes());
    }

    /// Comments match everything.
    fn matches_all(&self) -> bool {
        let by_itself = self.bytes[..self.ip.match_len()].iter().all(|byte| *byte == 0);
        by_itself && self.matches().iter().all(|extension| name_of(extension) == "comment")
    }

    fn matches(&self) -> Vec<&[u8]> {
        let end = usize::from(u16_at(&self.bytes, self.ip.offsets()));
        let mut rest = self.bytes.get(self.ip.entry_len()..end).unwrap_or_default();
        let mut matches = Vec::new();
        while let Some((extension, more)) = rest.split_at_checked(usize::from(u16_at(rest, 0)))
            && !extension.is_empty()
        {
            matches.push(extension);
            rest = more;
        }
        matches
    }

    fn ours(&self) -> Ours {
        let commented = self.matches().into_iter().any(|extension| {
            let comment = extension.get(EXTENSION_HEADER..).map(text);
            name_of(extension) == "comment" && comment.as_deref() == Some(FOREIGN_RULE_COMMENT)
        });
        if !commented {
            return Ours::No;
        }
        let same = |made: &Entry| made.without_counters() == self.without_counters();
        if Entry::opening(self.ip).iter().any(same) { Ours::Intact } else { Ours::Changed }
    }

    /// What a rule is, without what the kernel counts and notes in it.
    fn without_counters(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        // nfcache, then behind the offsets comefrom, padding and the counters.
        bytes[self.ip.match_len()..self.ip.offsets()].fill(0);
        bytes[self.ip.offsets() + 4..self.ip.entry_len()].fill(0);
        bytes
    }
}

/// A match or a target: length, name, data, padded to eight.
fn extension(name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; EXTENSION_HEADER];
    bytes[2..2 + name.len()].copy_from_slice(name.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = u16::try_from(bytes.len()).expect("a few hundred bytes");
    bytes[..2].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// A match's or a target's name.
fn name_of(extension: &[u8]) -> String {
    text(extension.get(2..2 + EXTENSION_NAME).unwrap_or_default())
}

fn split(ip: Ip, mut bytes: &[u8]) -> Vec<(u32, Entry)> {
    let mut entries = Vec::new();
    let mut at = 0;
    while bytes.len() >= ip.entry_len() {
        let len = u16_at(bytes, ip.offsets() + 2);
        // The kernel checks its tables; this only keeps a surprise from looping.
        let Some((entry, rest)) = bytes.split_at_checked(usize::from(len)).filter(|_| len > 0) else { break };
        entries.push((at, Entry { ip, bytes: entry.to_vec() }));
        at += u32::from(len);
        bytes = rest;
    }
    entries
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u16::from_ne_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_ne_bytes(*chunk))
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
