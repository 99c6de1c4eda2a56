//! What the operator wants of the store, from what it knows of the cluster: one more small compiler.
//!
//! Invariant: pure; whatever it wants could as well never happen, as long as the nodes' agents do their part. While the
//! store is away it wants nothing, and before everything was read only to say what cannot be.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use tartan_api::tartan::CONFIG_NAME;
use tartan_ipam::Claim;
use tartan_model::{Condition, Family, Kind, Object, ObjectId, PolicyText, Pool, Selector, World, overlap};
use tartan_store::Word;

/// For how long nodes may take care of blocks that are nobody's, and clusters of their own addresses.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// What is over sooner, as when an agent starts, needs nobody.
const LASTING: Duration = Duration::from_secs(30);
/// Of how many nodes the same is told: what all have is no trouble of one.
const OF_ONE_KIND: usize = 20;
/// Ranges for pods where nobody has said one; the first that nothing is in.
const RANGES: [(Family, &str, u8); 5] = [
    (Family::V4, "10.244.0.0/16", 26),
    (Family::V4, "10.42.0.0/16", 26),
    (Family::V4, "172.20.0.0/16", 26),
    (Family::V6, "fd00:10:244::/56", 122),
    (Family::V6, "fd00:10:42::/56", 122),
];

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) claims: Vec<Claim>,
    /// What is to be said of each object.
    pub(super) words: BTreeSet<(ObjectId, Word)>,
    /// No node has addresses for pods of this family, and no pool says whence they should come.
    pub(super) without: Vec<Family>,
    /// Look again then, if nothing happens before.
    pub(super) wake_at: Option<Instant>,
}

/// What is remembered of policies: their faults.
#[derive(Default)]
pub(super) struct Memo {
    policies: OrdMap<ObjectId, Arc<PolicyText>>,
    said: BTreeMap<ObjectId, Vec<Condition>>,
}

/// The plan for this world. `without_since`: since when a family has been in [`Plan::without`]. `service`: an address of
/// a Service, as far as one is known.
pub(super) fn plan(
    memo: &mut Memo,
    world: &World,
    without_since: &BTreeMap<Family, Instant>,
    service: Option<IpAddr>,
    now: Instant,
) -> Plan {
    if world.store_away().is_some() {
        return Plan::default();
    }
    if !world.is_whole() {
        let unread = world.invalid.iter().map(|(id, condition)| (id.clone(), vec![(**condition).clone()]));
        return Plan { words: diagnoses(unread).collect(), ..Plan::default() };
    }
    let (mut claims, next_block) = tartan_ipam::abandoned(world, PATIENCE, now);
    let (leftovers, next_leftover) = leftovers(world, now);
    claims.extend(leftovers);
    let without: Vec<Family> = Family::ALL.into_iter().filter(|family| is_without(world, *family)).collect();
    let mut wake_at: Vec<Instant> = [next_block, next_leftover].into_iter().flatten().collect();
    for family in &without {
        match without_since.get(family).map(|since| *since + PATIENCE) {
            Some(at) if at <= now => claims.extend(default_pool(world, *family, service)),
            at => wake_at.push(at.unwrap_or(now + PATIENCE)),
        }
    }
    let (troubles, next_trouble) = troubles(world, now);
    wake_at.extend(next_trouble);
    let words = words(memo, world).chain(troubles).collect();
    Plan { claims, words, without, wake_at: wake_at.into_iter().min() }
}

/// NodeNetworks of Nodes that are gone, once nothing is left that they prove.
fn leftovers(world: &World, now: Instant) -> (Vec<Claim>, Option<Instant>) {
    let (mut claims, mut wake_at) = (Vec::new(), None::<Instant>);
    let holders = LazyCell::new(|| world.blocks.values().flat_map(|block| block.holders()).collect::<HashSet<_>>());
    let gone = world.adverts.iter().filter(|(name, _)| !world.nodes.contains_key(*name));
    for (name, heard) in gone.filter(|_| !world.leases_rest) {
        let at = world.lease_until(heard.at) + world.config.cooldown;
        if at > now {
            wake_at = wake_at.into_iter().chain([at]).min();
        } else if !holders.contains(&(name, &heard.advert.node_uid)) {
            let id = ObjectId { kind: Kind::NodeNetwork, name: name.clone() };
            let expect = world.revisions.get(&id).cloned();
            claims.push(Claim { id, object: None, expect });
        }
    }
    (claims, wake_at)
}

/// Whether the cluster's nodes would have pods of this family, and nobody has said which addresses.
fn is_without(world: &World, family: Family) -> bool {
    let has_pool = world.pools.values().any(|pool| Family::of_net(&pool.cidr) == family);
    let unreadable = world.invalid.keys().any(|id| id.kind == Kind::IpPool);
    let has_pod_cidr = world.nodes.values().flat_map(|node| &node.pod_cidrs).any(|cidr| Family::of_net(cidr) == family);
    let has_address = world.nodes.values().flat_map(|node| &node.internal_ips).any(|ip| Family::of(*ip) == family);
    has_address && !has_pool && !unreadable && !has_pod_cidr
}

fn default_pool(world: &World, family: Family, service: Option<IpAddr>) -> Option<Claim> {
    let taken = |range: &IpNet| {
        let nodes = world.nodes.values().flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
        nodes.chain(&service).any(|ip| range.contains(ip))
            || world.nodes.values().flat_map(|node| &node.pod_cidrs).any(|cidr| overlap(cidr, range))
    };
    let ranges = RANGES.iter().filter(|(of, ..)| *of == family);
    let mut ranges = ranges.map(|(_, text, size)| (text.parse::<IpNet>().expect("ranges of ours are ranges"), *size));
    let (cidr, block_size) = ranges.find(|(range, _)| !taken(range))?;
    let name: Arc<str> = match family {
        Family::V4 => "default-ipv4".into(),
        Family::V6 => "default-ipv6".into(),
    };
    let pool = Pool {
        name: name.clone(),
        cidr,
        block_size,
        nodes: Selector::all(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    let id = ObjectId { kind: Kind::IpPool, name };
    Some(Claim { id, object: Some(Object::Pool(pool.into())), expect: None })
}

/// What is wrong with each object: of kinds that have a status also that nothing is.
fn words(memo: &mut Memo, world: &World) -> impl Iterator<Item = (ObjectId, Word)> {
    let id = |kind, name: &Arc<str>| ObjectId { kind, name: name.clone() };
    let config = ObjectId { kind: Kind::NetworkConfig, name: CONFIG_NAME.into() };
    let config = world.revisions.contains_key(&config).then_some(config);
    let pools = world.pools.keys().map(|name| id(Kind::IpPool, name));
    let reservations = world.reservations.keys().map(|name| id(Kind::IpReservation, name));
    let mut said: BTreeMap<ObjectId, Vec<Condition>> =
        config.into_iter().chain(pools).chain(reservations).map(|id| (id, Vec::new())).collect();
    for (id, condition) in &world.invalid {
        said.entry(id.clone()).or_default().push((**condition).clone());
    }
    for condition in tartan_ipam::diagnose(world) {
        if let Some(id) = about(&condition) {
            said.entry(id).or_default().push(condition);
        }
    }
    for (id, faults) in memo.policies(world) {
        said.entry(id.clone()).or_default().extend(faults.iter().cloned());
    }
    diagnoses(said)
}

/// What is wrong with nodes their own agents say, blocks are not for people.
fn diagnoses(said: impl IntoIterator<Item = (ObjectId, Vec<Condition>)>) -> impl Iterator<Item = (ObjectId, Word)> {
    let told = said.into_iter().filter(|(id, _)| !matches!(id.kind, Kind::Node | Kind::NodeNetwork | Kind::IpBlock));
    told.map(|(id, conditions)| (id, Word::Diagnosis(conditions)))
}

/// What nodes that there are have said for a while.
fn troubles(world: &World, now: Instant) -> (Vec<(ObjectId, Word)>, Option<Instant>) {
    let (mut words, mut wake_at) = (Vec::new(), None::<Instant>);
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    let here = world.troubles.iter().filter(|(node, _)| world.nodes.contains_key(*node));
    for (node, trouble) in here.flat_map(|(node, troubles)| troubles.iter().map(move |trouble| (node, trouble))) {
        let at = trouble.heard + LASTING;
        if at > now {
            wake_at = wake_at.into_iter().chain([at]).min();
            continue;
        }
        let told = told.entry(&trouble.reason).or_default();
        *told += 1;
        if *told <= OF_ONE_KIND {
            let id = ObjectId { kind: Kind::NodeNetwork, name: node.clone() };
            words.push((id, Word::Trouble { reason: trouble.reason.clone(), since: trouble.since.clone() }));
        }
    }
    (words, wake_at)
}

fn about(condition: &Condition) -> Option<ObjectId> {
    let (kind, name) = condition.about.split_once('/')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some(ObjectId { kind, name: name.into() })
}

// === impl Memo ===

impl Memo {
    fn policies(&mut self, world: &World) -> &BTreeMap<ObjectId, Vec<Condition>> {
        for item in self.policies.diff(&world.policies) {
            match item {
                DiffItem::Add(id, text) | DiffItem::Update { new: (id, text), .. } => {
                    let said = tartan_policy::dialect::lower(id, text).said;
                    match said.is_empty() {
                        true => drop(self.said.remove(id)),
                        false => drop(self.said.insert(id.clone(), said)),
                    }
                }
                DiffItem::Remove(id, _) => drop(self.said.remove(id)),
            }
        }
        self.policies = world.policies.clone();
        &self.said
    }
}
