//! The verdict tables in the nft table: which packets of this node's pods pass, and which do not.
//!
//! ```text
//! policy_source   a pod sends under its own addresses only
//! policy_forward  ┐ judged since the last revocation? ──► passes at once
//! policy_input    ├ else egress of the pod it leaves, ingress of the pod it enters;
//! policy_output   ┘ what passes is stamped with the generation
//! ```
//!
//! All that depends on pods, addresses and policies is elements of maps ([`maps`]); the chains ([`chains`], [`judge`]) are
//! the same on every node, but for the generation, a constant in five small ones. A generation begins when something is
//! revoked ([`revoked`]): connections judged before are then judged again, whichever end sends. While there is no policy in
//! the whole cluster, the four chains above are not there, and no packet pays.
//!
//! Invariants: what changes is refused as a whole or not at all ([`Key::is_of_policy`]); while it comes into force, a packet
//! finds the old answer or the new one, and no third ([`maps::numbers`]); `plan(memo, world) == plan(empty, world)` where
//! the kernel holds what the memo planned.

mod chains;
mod held;
mod judge;
mod maps;
mod pods;
mod ranges;
mod revoked;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tartan_model::{Attachment, Family, HostLink, World};
use tartan_netstate::nft::{ElementData, ElementKey};
use tartan_netstate::policy::{Side, leads_to};
use tartan_netstate::{Entry, Generation, Key, Object, Owner, Part, State};
use tartan_policy::verdicts::{Class, Rows, Set, Tables};

pub use held::{Mirrored, held};
pub use pods::{
    FromBefore, all_from_before, is_judged, is_judged_on_its_bridge, is_of_pods, keys, keys_from_before, set_of,
};
pub use tartan_model::PolicyMode as Mode;

use pods::Here;

/// The link that kube-proxy makes for the addresses of Services, in the mode in which IPVS translates them.
const IPVS_LINK: &str = "kube-ipvs0";

/// What policy wants of the nft table, and what it was computed from.
#[derive(Default)]
pub struct Policy {
    seen: Seen,
    generation: Option<Generation>,
    state: State,
    /// Up to date where there are bridges of the network before.
    here: Here,
    /// By attachment.
    pods: BTreeMap<Arc<str>, Part>,
    /// Of pods of the network before.
    from_before: Part,
    /// Disjoint, by the elements they are.
    ranges: BTreeMap<Key, u32>,
    numbers: Numbers,
}

/// What was planned last.
#[derive(Clone, Default)]
struct Seen {
    mode: Mode,
    tables: Tables,
    attachments: OrdMap<Arc<str>, Arc<Attachment>>,
    /// kube-proxy translates by IPVS.
    ipvs: bool,
    between_nodes: BTreeSet<u16>,
    /// Pods of the network before, and what they were found in, beside [`Here`].
    from_before: Arc<[FromBefore]>,
    given: OrdMap<IpAddr, Arc<str>>,
    bridges: Vec<HostLink>,
}

/// Elements whose data is a number: tens of thousands, with few numbers, so that they share their entries.
#[derive(Default)]
struct Numbers {
    entries: BTreeMap<u32, Arc<Entry>>,
    /// Swept when there are so many.
    limit: usize,
}

// === impl Policy ===

impl Policy {
    /// What these tables want, for this node's attachments, where nodes unwrap packets at these UDP ports. Nothing if policy is off.
    pub fn plan(&mut self, world: &World, tables: &Tables, mode: Mode, between_nodes: &BTreeSet<u16>) -> &State {
        if mode == Mode::Off {
            // Connections may carry its stamp until the next one begins.
            *self = Policy { generation: self.generation, seen: Seen { mode, ..Seen::default() }, ..Policy::default() };
            return &self.state;
        }
        let first = self.state.is_empty();
        let ipvs = world.host.links.iter().any(|link| &*link.name == IPVS_LINK);
        let bridges = pods::bridges(world);
        let are_others = (!bridges.is_empty() && self.here.learn(world))
            || self.seen.bridges != bridges
            || !self.seen.given.ptr_eq(&world.given)
            || !self.seen.attachments.ptr_eq(&world.attachments);
        let from_before = match are_others {
            true => pods::from_before(world, &self.here, &bridges).into(),
            false => self.seen.from_before.clone(),
        };
        let next = Seen {
            mode,
            tables: tables.clone(),
            attachments: world.attachments.clone(),
            ipvs,
            between_nodes: between_nodes.clone(),
            from_before,
            given: world.given.clone(),
            bridges,
        };
        let before = std::mem::replace(&mut self.seen, next);
        if first || before.mode != mode {
            chains::fixed(mode).into_iter().for_each(|(key, object)| self.state.insert(key, object, Owner::Policy));
        }
        self.addresses(&before.tables.addresses, &tables.addresses);
        if before.tables.ranges != tables.ranges || first {
            self.ranges(tables);
        }
        self.sets(&before.tables.sets, &tables.sets);
        self.pods(&before);
        if first || before.mode != mode || before.between_nodes != *between_nodes {
            self.judging();
        }
        let in_force = generation_in(&world.programmed.mirror);
        if first {
            self.first_generation(&world.programmed.mirror, in_force);
        } else if revoked::is_anything(&before, &self.seen) {
            self.begin(self.generation.unwrap_or(Generation(0)).next(in_force));
        } else if before.mode != mode || before.ipvs != ipvs || before.tables.judged != tables.judged {
            self.hooks();
        }
        &self.state
    }

    /// Pods of the network before, as planned last.
    pub fn from_before(&self) -> &Arc<[FromBefore]> {
        &self.seen.from_before
    }

    /// Goes on with the generation in force if all that the kernel holds is what is planned: then nothing can have been
    /// revoked while nobody looked.
    fn first_generation(&mut self, mirror: &State, in_force: Option<Generation>) {
        match (self.generation, in_force) {
            (Some(last), _) => self.begin(last.next(in_force)),
            (None, None) => self.begin(Generation(0)),
            (None, Some(there)) => {
                self.begin(there);
                if mirror.of_policy().count() != self.state.len() || !mirror.holds_all(&self.state) {
                    self.begin(there.next(None));
                }
            }
        }
    }

    /// Without any policy, no packet is held up to find that it passes, and no pod asked for its name.
    fn hooks(&mut self) {
        let Some(generation) = self.generation else { return };
        for (key, object) in chains::hooks(self.seen.mode, self.seen.ipvs, generation) {
            match self.seen.tables.judged {
                true => self.state.insert(key, object, Owner::Policy),
                false => drop(self.state.remove(&key)),
            }
        }
    }

    fn begin(&mut self, generation: Generation) {
        if let Some(last) = self.generation.replace(generation) {
            self.state.remove(&last.key());
        }
        let element = Object::NftElement(ElementData::default());
        self.state.insert(generation.key(), element, Owner::Policy);
        for (key, object) in chains::generation(generation) {
            self.state.insert(key, object, Owner::Policy);
        }
        self.hooks();
    }

    fn judging(&mut self) {
        for (key, object) in chains::judging(self.seen.mode, &self.seen.between_nodes) {
            self.state.insert(key, object, Owner::Policy);
        }
    }

    fn addresses(&mut self, before: &OrdMap<IpAddr, u32>, after: &OrdMap<IpAddr, u32>) {
        for item in before.diff(after) {
            match item {
                DiffItem::Add(address, number) | DiffItem::Update { new: (address, number), .. } => {
                    self.put(maps::address(*address), *number);
                }
                DiffItem::Remove(address, _) => drop(self.state.remove(&maps::address(*address))),
            }
        }
    }

    /// All of them again: a range that comes cuts others, and there are few.
    fn ranges(&mut self, tables: &Tables) {
        let of = |family| ranges::disjoint(&tables.ranges, family);
        let all: BTreeMap<Key, u32> = Family::ALL.into_iter().flat_map(of).collect();
        let before = std::mem::replace(&mut self.ranges, all.clone());
        for key in before.keys().filter(|key| !all.contains_key(*key)) {
            self.state.remove(key);
        }
        for (key, number) in all.into_iter().filter(|(key, number)| before.get(key) != Some(number)) {
            self.put(key, number);
        }
    }

    fn sets(&mut self, before: &OrdMap<u32, Arc<Set>>, after: &OrdMap<u32, Arc<Set>>) {
        let nothing = Arc::default();
        for item in before.diff(after) {
            let (number, old, new) = match item {
                DiffItem::Add(number, new) => (*number, &nothing, new),
                DiffItem::Update { old: (_, old), new: (number, new) } => (*number, old, new),
                DiffItem::Remove(number, old) => (*number, old, &nothing),
            };
            for side in Side::BOTH {
                self.rows(side, number, maps::rows(side, old), maps::rows(side, new));
            }
        }
    }

    fn rows(&mut self, side: Side, set: u32, before: &Rows, after: &Rows) {
        if before.classes != after.classes {
            for (key, _) in maps::classes(side, set, &before.classes) {
                self.state.remove(&key);
            }
            for (key, class) in maps::classes(side, set, &after.classes) {
                self.put(key, class);
            }
        }
        let (old, new) = (maps::numbers(&before.classes), maps::numbers(&after.classes));
        let row = |numbers: &[u32], (identity, class): (u32, Class)| {
            maps::row(side, set, (identity, numbers[class as usize]))
        };
        if old == new {
            for place in maps::differing(before, after) {
                match maps::word(after, place) {
                    Some(word) => self.put(row(&new, place), word.0),
                    None => drop(self.state.remove(&row(&old, place))),
                }
            }
            return;
        }
        // Of a large set most classes have the packets they had, and their rows stay.
        let translated = |from: &[u32], to: &[u32]| -> Vec<Option<Class>> {
            let places: BTreeMap<u32, Class> = to.iter().copied().zip(0..).collect();
            from.iter().map(|number| places.get(number).copied()).collect()
        };
        let (to_new, to_old) = (translated(&old, &new), translated(&new, &old));
        let word = |rows: &Rows, classes: &[Option<Class>], (identity, class): (u32, Class)| {
            classes[class as usize].and_then(|class| maps::word(rows, (identity, class)))
        };
        for place in before.words.keys().filter(|place| word(after, &to_new, **place).is_none()) {
            self.state.remove(&row(&old, *place));
        }
        for place in after.words.keys() {
            let is = maps::word(after, *place);
            if let Some(is) = is.filter(|is| word(before, &to_old, *place) != Some(*is)) {
                self.put(row(&new, *place), is.0);
            }
        }
    }

    fn pods(&mut self, before: &Seen) {
        let nothing = Part::default();
        for id in pods::changed(before, &self.seen) {
            let after = self.seen.attachments.get(&id).and_then(|it| pods::part(it, &self.seen));
            let last = match &after {
                Some(part) => self.pods.insert(id, part.clone()),
                None => self.pods.remove(&id),
            };
            self.state.replace_part(last.as_ref().unwrap_or(&nothing), after.as_ref().unwrap_or(&nothing));
        }
        let seen = &self.seen;
        if !Arc::ptr_eq(&before.from_before, &seen.from_before)
            || !before.tables.subjects.ptr_eq(&seen.tables.subjects)
            || before.ipvs != seen.ipvs
        {
            let after = pods::part_from_before(&self.seen);
            let last = std::mem::replace(&mut self.from_before, after);
            self.state.replace_part(&last, &self.from_before);
        }
    }

    fn put(&mut self, key: Key, number: u32) {
        let entry = self.numbers.entry(number);
        self.state.share(Arc::new(key), entry);
    }
}

// === impl Numbers ===

impl Numbers {
    fn entry(&mut self, number: u32) -> Arc<Entry> {
        if let Some(entry) = self.entries.get(&number) {
            return entry.clone();
        }
        if self.entries.len() >= self.limit {
            self.entries.retain(|_, entry| Arc::strong_count(entry) > 1);
            self.limit = (self.entries.len() * 2).max(1024);
        }
        let entry = Arc::new(Entry { object: leads_to(number), owner: Owner::Policy });
        self.entries.insert(number, entry.clone());
        entry
    }
}

/// The generation that the rules in the kernel compare with.
fn generation_in(mirror: &State) -> Option<Generation> {
    let first = Key::NftElement { set: maps::GENERATION.into(), key: ElementKey::catch_all() };
    mirror.entries_from(&first).next().and_then(|(key, _)| Generation::of(key))
}

#[cfg(test)]
mod tests;
