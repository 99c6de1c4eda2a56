//! Verdict tables: for every pod of this node and every address, what becomes of each packet, found by a few exact
//! lookups however many policies there are.
//!
//! ```text
//! pod ──subjects──► set ┐
//! address ──addresses, else the smallest of ranges──► identity ┼──► words[(identity, class)], else words[(ANY, class)]
//! protocol, destination ──classes of set and direction──► class ┘      but first what residual asks of the packet
//! ```
//!
//! Invariants: `plan(memo, world) == plan(empty, world)`, numbers aside and but for sets that ask for too much, which stay
//! closed until they surely do not; the tables of all others agree with [`walk`](crate::walk) and
//! with [`oracle`](crate::oracle) on every packet. What is planned again is what a change can reach: an identity's column,
//! a policy's subjects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::{Condition, Memo as Cache, ObjectId, PolicyText, World};

mod budget;
mod classes;
mod flatten;
pub(crate) mod identities;
mod known;
mod listed;
mod mentions;
mod merged;
mod numbers;
mod places;
mod rows;
mod secret;
mod selections;
mod sets;
mod treatments;
mod word;
mod zones;

pub use budget::ROWS;
pub use classes::{Cell, Class, Classes};
pub use flatten::{Ask, Residual};
pub use identities::{ANY, Identity, reserved};
pub use rows::Rows;
pub use sets::Set;
pub use word::Word;

use crate::dialect::{self, Lowered};
use crate::ir::{Direction, Policy, Program, Rank, RuleRef};
use crate::walk::{Decision, Packet, Verdict};
use identities::{Changed, Identities};
use listed::Listed;
use mentions::Mentions;
use numbers::Numbers;
use selections::Selections;
use sets::Sets;

/// What policy wants of a datapath.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// There is a policy, of whatever pods. Without one all that the rest says is that everything passes.
    pub judged: bool,
    /// Pods of this node, by `NAMESPACE/NAME`: the number of their set. A pod that is not here has no connections.
    /// Attachments of no pod are [`NAMELESS`](tartan_model::NAMELESS).
    pub subjects: OrdMap<Arc<str>, u32>,
    pub sets: OrdMap<u32, Arc<Set>>,
    /// Addresses of known pods and nodes, if any rule of a set tells them apart from the range around them.
    pub addresses: OrdMap<IpAddr, u32>,
    /// All others, by the smallest range around them; of these, too, only what is told apart from the next wider one.
    pub ranges: OrdMap<IpNet, u32>,
    /// What identities stand for, those of addresses and ranges that are not listed, too.
    pub identities: OrdMap<u32, Arc<Identity>>,
    /// What the rule numbers in words stand for.
    pub rules: OrdMap<u32, Arc<RuleRef>>,
}

/// What is planned.
#[derive(Clone, Debug, Default)]
pub struct Out {
    pub tables: Tables,
    pub program: Program,
    /// What is to be said of policy objects; those of which there is nothing to say are left out.
    pub said: OrdMap<ObjectId, Arc<[Condition]>>,
}

/// Numbers that maps of the kernel hold.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub identities: BTreeSet<u32>,
    pub sets: BTreeSet<u32>,
    pub rules: BTreeSet<u32>,
}

/// Last inputs and outputs.
pub struct Memo {
    lowered: Cache<ObjectId, Arc<PolicyText>, (), Arc<Lowered>>,
    mentions: Mentions,
    rules: Numbers<RuleRef>,
    identities: Identities,
    selections: Selections,
    sets: Sets,
    listed: Listed,
    nobody: World,
    out: Out,
}

/// The tables for a world.
pub fn plan<'a>(memo: &'a mut Memo, world: &World) -> &'a Out {
    memo.lower(world);
    let Memo { mentions, rules, identities, selections, sets, listed, nobody, out, .. } = memo;
    // Without a policy nobody is told apart from anybody, and a large cluster need not be known twice.
    let of = if out.program.is_empty() { &*nobody } else { world };
    let (mut selected, mut changed) = (sets.select(world, &out.program), Changed::default());
    let treated = loop {
        let others = std::mem::take(&mut selected.others);
        mentions.update(others.into_iter().map(|side| (side, sets.policies(side, &out.program))));
        let now = identities.update(of, mentions);
        mentions.settle();
        selections.update(identities.live(), &now.identities);
        let treated = sets.compile(&mut selected, &out.program, rules, identities, selections, &now.identities);
        changed.extend(now);
        if let Some(treated) = treated {
            break treated;
        }
    };
    changed.identities.extend(treated);
    listed.update(identities, sets.treatments(), &changed);
    out.tables = Tables {
        judged: !world.policies.is_empty(),
        subjects: sets.subjects().clone(),
        sets: sets.sets().clone(),
        addresses: listed.addresses().clone(),
        ranges: listed.ranges().clone(),
        identities: identities.live().clone(),
        rules: rules.known().clone(),
    };
    &memo.out
}

// === impl Memo ===

impl Default for Memo {
    fn default() -> Memo {
        Memo {
            lowered: Cache::default(),
            mentions: Mentions::default(),
            rules: Numbers::new(1, Word::RULE_BITS),
            identities: Identities::new(),
            selections: Selections::default(),
            sets: Sets::default(),
            listed: Listed::default(),
            nobody: World::default(),
            out: Out::default(),
        }
    }
}

impl Memo {
    /// What was planned last.
    pub fn last(&self) -> &Out {
        &self.out
    }

    /// The tables with all addresses of known pods and nodes and all ranges, whether anything tells them apart or not.
    pub(crate) fn unabridged(&self) -> Tables {
        let addresses = self.identities.addresses().iter().map(|(address, number)| (*address, number));
        let ranges = self.identities.ranges().iter().map(|(range, number)| (*range, *number));
        Tables { addresses: addresses.collect(), ranges: ranges.collect(), ..self.out.tables.clone() }
    }

    /// Notes what the kernel's maps hold, after each read and each acknowledged change: numbers of what is gone are free
    /// once no map holds them, and rest until this is called.
    pub fn held(&mut self, held: &Held) {
        self.identities.held(&held.identities);
        self.sets.held(&held.sets);
        self.rules.held(&held.rules);
    }

    fn lower(&mut self, world: &World) {
        let Memo { lowered, rules, out, .. } = self;
        let compute = |_: &(), id: &ObjectId, text: &Arc<PolicyText>| Arc::new(dialect::lower(id, text));
        lowered.update(&world.policies, (), compute, |id, before, after| {
            let nothing = Arc::default();
            let (before, after) = (before.unwrap_or(&nothing), after.unwrap_or(&nothing));
            exchange(&mut out.program, rules, &before.policies, &after.policies);
            match after.said.is_empty() {
                false => drop(out.said.insert(id.clone(), after.said.as_slice().into())),
                true if out.said.contains_key(id) => drop(out.said.remove(id)),
                true => {}
            }
        });
    }
}

/// Puts what an object means now in place of what it meant before. What stays is never gone in between.
fn exchange(
    program: &mut Program,
    rules: &mut Numbers<RuleRef>,
    before: &[(Rank, Arc<Policy>)],
    after: &[(Rank, Arc<Policy>)],
) {
    let kept: BTreeSet<RuleRef> = after.iter().flat_map(|(rank, policy)| refs(rank, policy)).collect();
    for (rank, policy) in before {
        program.remove(rank);
        for rule in refs(rank, policy).filter(|rule| !kept.contains(rule)) {
            rules.get(&rule).into_iter().for_each(|number| rules.give_back(number));
        }
    }
    for rule in kept {
        rules.take(rule);
    }
    program.extend(after.iter().cloned());
}

/// All lines of a policy that can decide.
fn refs<'a>(rank: &'a Rank, policy: &'a Policy) -> impl Iterator<Item = RuleRef> + 'a {
    let isolations = policy.ingress.iter().chain(&policy.egress).filter_map(|rules| rules.isolates.as_ref());
    let paths = policy.all_rules().map(|rule| &rule.path).chain(isolations);
    paths.map(|path| RuleRef { source: rank.source.clone(), path: path.clone() })
}

// === impl Tables ===

impl Tables {
    /// What a datapath finds for a packet between a pod of this node and an address: none where the pod has no set, so
    /// that the packet is dropped. `own` is the pod's address that is in the packet.
    pub fn lookup(
        &self,
        pod: &str,
        direction: Direction,
        own: IpAddr,
        remote: IpAddr,
        packet: &Packet,
    ) -> Option<Decision> {
        let set = self.sets.get(self.subjects.get(pod)?)?;
        let rows = match direction {
            Direction::Ingress => &set.ingress,
            Direction::Egress => &set.egress,
        };
        let word = rows.word(self.identity(remote), own, packet);
        let rule = self.rules.get(&word.rule()).map(|rule| RuleRef::clone(rule));
        Some(Decision { verdict: word.verdict(), rule, logged: word.is_logged() })
    }

    /// The number of an address's identity.
    pub fn identity(&self, address: IpAddr) -> u32 {
        let listed = self.addresses.get(&address).copied();
        listed.or_else(|| self.around(address)).unwrap_or(ANY)
    }

    fn around(&self, address: IpAddr) -> Option<u32> {
        self.identity_around(&IpNet::from(address))
    }

    /// The number of the identity of what is in a range, and neither listed by itself nor in a smaller one.
    pub fn identity_around(&self, range: &IpNet) -> Option<u32> {
        (0..=range.prefix_len()).rev().find_map(|length| {
            let range = IpNet::new(range.addr(), length).expect("no longer than an address").trunc();
            self.ranges.get(&range).copied()
        })
    }
}

// === impl Rows ===

impl Rows {
    /// The word for a packet between the pod's own address and an identity.
    pub fn word(&self, identity: u32, own: IpAddr, packet: &Packet) -> Word {
        let class = self.classes.class(packet.protocol, packet.destination);
        let own_row = self.words.get(&(identity, class)).map(|word| ((identity, class), *word));
        let any_row = || self.words.get(&(ANY, class)).map(|word| ((ANY, class), *word));
        let Some((place, word)) = own_row.or_else(any_row) else { return Word::new(Verdict::Deny, 0) };
        let residual = self.residual.get(&place);
        let first = residual.and_then(|list| list.iter().find(|way| way.asks.iter().all(|ask| ask.holds(own, packet))));
        first.map_or(word, |way| way.word)
    }
}

impl Ask {
    /// Whether it holds for a packet of the pod's own address.
    pub fn holds(&self, own: IpAddr, packet: &Packet) -> bool {
        match self {
            Ask::SourcePort(ports) => ports.hold(packet.protocol, packet.source_port),
            Ask::Local { nets, negated } => nets.contain(&IpNet::from(own)) != *negated,
        }
    }
}

#[cfg(test)]
mod tests;
