//! The census: what all peers together say, kept up to date peer by peer.
//!
//! Invariant: every number here is the sum of the contributions in `peers`; taking a contribution back and counting
//! the new one is the only way it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::{Advert, Block, Condition, Endpoint, Family, Flannel, Heard, Node, Pool, World};
use tartan_netstate::{Mac, PublicKey};

use crate::{Instance, flannel};

/// A peer that has said something about itself, checked. There may be thousands: what follows from its word is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: Arc<Node>,
    pub(crate) advert: Arc<Advert>,
    /// Its lease has not run out.
    pub(crate) live: bool,
    /// When its last sign of life came, if its lease has not run out; see `annotated`.
    alive: Option<Instant>,
    sends_changed: Option<Instant>,
    /// Its word is what Flannel has annotated its Node with: it hears nobody's word, takes what it always took, and lives
    /// as long as its Node.
    pub(crate) annotated: bool,
    /// Why such a word is not understood.
    pub(crate) unclear: Option<Box<Condition>>,
    /// Ranges it says are its own and nobody else says so.
    pub(crate) unproven: Box<[IpNet]>,
}

/// Something only one node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Block(IpNet),
    Address(IpAddr),
    Mac(Mac),
    /// One half of a key tells it from all others, and the whole would make all claims larger: there are tens of thousands.
    PublicKey([u8; 16]),
}

/// One of those who claim something: who is not live comes after who is, then by name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    claim: Claim,
    not_live: bool,
    name: Arc<str>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Census {
    pub(crate) peers: BTreeMap<Arc<str>, Box<Member>>,
    sends: Counts,
    accepts: Counts,
    /// Peers that are not live, though their Node is there.
    pub(crate) not_live: BTreeSet<Arc<str>>,
    /// Peers that ask to be acknowledged.
    pub(crate) joining: BTreeSet<Arc<str>>,
    claims: BTreeSet<Claimant>,
    /// How many claimed ranges there are of each family, `true` for IPv6, and prefix length.
    lengths: Counts<(bool, u8)>,
    /// Addresses of nodes themselves, of all of them, by the word of the cluster and by their own.
    node_addresses: BTreeSet<(IpAddr, Arc<str>)>,
    /// Last signs of life of live peers. Not when their leases run out: that changes for all of them with each list.
    alive: BTreeSet<(Instant, Arc<str>)>,
    sends_changed: BTreeSet<(Instant, Arc<str>)>,
    seen: Seen,
}

/// How many members stand behind each instance, or whatever else is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counts<K = Instance>(BTreeMap<K, usize>);

#[derive(Default)]
struct Seen {
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    adverts: OrdMap<Arc<str>, Heard>,
    pools: OrdMap<Arc<str>, Arc<Pool>>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    lease: Duration,
    leases_from: Option<Instant>,
    flannel: Option<Arc<Flannel>>,
    rest: bool,
    local: Arc<str>,
}

// === impl Claim ===

impl Claim {
    pub(crate) fn key(key: &PublicKey) -> Claim {
        let (half, _) = key.0.split_first_chunk().expect("it is 32 bytes long");
        Claim::PublicKey(*half)
    }
}

// === impl Census ===

impl Census {
    /// Takes in what differs from last time. Returns the peers whose own facts, or whose rivals', differ.
    pub(crate) fn update(&mut self, world: &World, now: Instant) -> BTreeSet<Arc<str>> {
        let mut changed = BTreeSet::new();
        let stale = self.stale(world, now);
        let most_are_new = stale.len() > 2 * self.peers.len();
        // Then whoever has a rival is told of for its own sake.
        let all_are_new = self.peers.is_empty();
        for name in stale {
            self.count_addresses(world, &name, (!all_are_new).then_some(&mut changed));
            let member = (name != world.local).then(|| member(world, &name, now)).flatten();
            let before = self.peers.get(&name);
            if before.is_some_and(|before| member.as_ref().is_some_and(|after| before.same_but_heartbeat(after))) {
                self.renew(&name, member.expect("compared with just now"));
                continue;
            }
            self.count_out(&name, &mut changed);
            if let Some(member) = member {
                if !all_are_new {
                    changed.extend(member.claims().flat_map(|claim| self.concerned(claim)).cloned());
                }
                self.count_in(&name, member);
            }
            changed.insert(name);
        }
        if most_are_new {
            self.pack();
        }
        if self.seen.pools != world.pools {
            changed.extend(self.peers.keys().cloned());
        }
        self.seen = Seen {
            nodes: world.nodes.clone(),
            adverts: world.adverts.clone(),
            pools: world.pools.clone(),
            blocks: world.blocks.clone(),
            lease: world.config.lease,
            leases_from: world.leases_from,
            flannel: world.flannel().cloned(),
            rest: world.leases_rest,
            local: world.local.clone(),
        };
        changed
    }

    /// Makes full nodes of the trees: a cluster that comes in order leaves them half empty.
    fn pack(&mut self) {
        self.peers = std::mem::take(&mut self.peers).into_iter().collect();
        self.claims = std::mem::take(&mut self.claims).into_iter().collect();
        self.alive = std::mem::take(&mut self.alive).into_iter().collect();
        self.sends_changed = std::mem::take(&mut self.sends_changed).into_iter().collect();
    }

    /// Instances some live peer may still send on.
    pub(crate) fn sends(&self) -> impl Iterator<Item = &Instance> {
        self.sends.iter()
    }

    /// The same, those first that most of them may send on.
    pub(crate) fn sends_by_number(&self) -> Vec<Instance> {
        let mut all: Vec<(&Instance, &usize)> = self.sends.0.iter().collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        all.into_iter().map(|(at, _)| *at).collect()
    }

    /// Instances some live peer receives on.
    pub(crate) fn accepts(&self) -> impl Iterator<Item = &Instance> {
        self.accepts.iter()
    }

    /// Instances some peer says it receives on, whether it is live or not.
    pub(crate) fn hears(&self) -> impl Iterator<Item = Instance> {
        let silent = self.not_live.iter().filter_map(|name| self.peers.get(name));
        self.accepts.iter().copied().chain(silent.flat_map(|member| member.accepts().map(|(at, _)| at)))
    }

    /// The first of those who claim it; it is theirs.
    pub(crate) fn holder(&self, claim: Claim) -> Option<&Arc<str>> {
        self.claimants(claim).next()
    }

    fn claimants(&self, claim: Claim) -> impl Iterator<Item = &Arc<str>> {
        let from = self.claims.range(Claimant { claim, not_live: false, name: Arc::default() }..);
        from.take_while(move |claimant| claimant.claim == claim).map(|claimant| &claimant.name)
    }

    /// Whose claims are to be judged anew when one comes or goes: those to the same, and for a range those to what is in it.
    fn concerned(&self, claim: Claim) -> impl Iterator<Item = &Arc<str>> {
        let inside = match claim {
            Claim::Block(range) => {
                let ranges = self.between(Claim::Block(range), Claim::Block(Family::host_net(range.broadcast())));
                let addresses = self.between(Claim::Address(range.network()), Claim::Address(range.broadcast()));
                Some(ranges.chain(addresses))
            }
            _ => None,
        };
        self.claimants(claim).chain(inside.into_iter().flatten())
    }

    fn between(&self, first: Claim, last: Claim) -> impl Iterator<Item = &Arc<str>> {
        let from = self.claims.range(Claimant { claim: first, not_live: false, name: Arc::default() }..);
        from.take_while(move |claimant| claimant.claim <= last).map(|claimant| &claimant.name)
    }

    /// The claimed ranges that hold all of this one, it among them, each with whose it is.
    pub(crate) fn around(&self, range: IpNet) -> impl Iterator<Item = (IpNet, &Arc<str>)> {
        let is_v6 = matches!(range, IpNet::V6(_));
        let lengths = self.lengths.0.range((is_v6, 0)..=(is_v6, range.prefix_len()));
        lengths.filter_map(move |((_, length), _)| {
            let wider = IpNet::new(range.addr(), *length).expect("no longer than the range's").trunc();
            Some((wider, self.holder(Claim::Block(wider))?))
        })
    }

    /// A node whose own address is in the range.
    pub(crate) fn node_in(&self, range: &IpNet) -> Option<(IpAddr, &Arc<str>)> {
        let (address, name) = self.node_addresses.range((range.network(), Arc::default())..).next()?;
        range.contains(address).then_some((*address, name))
    }

    /// Whether the range is where the cluster's configuration has ranges of that node: of a pool, or in its Node's podCIDRs.
    /// What a pool that is gone has left is not, and neither is what a node has made up.
    pub(crate) fn is_regular(&self, range: &IpNet, name: &str) -> bool {
        let node = self.seen.nodes.get(name);
        self.is_of_pool(range, name) || node.is_some_and(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(range)))
    }

    /// Whether the range is a block of the size that a pool has, or a part of one that is that node's.
    pub(crate) fn is_of_pool(&self, range: &IpNet, name: &str) -> bool {
        // Of pools that overlap the first by name counts, as where blocks are claimed.
        let is_block = |range: &IpNet| {
            let pool = self.seen.pools.values().find(|pool| pool.cidr.contains(range));
            pool.is_some_and(|pool| pool.block_size == range.prefix_len())
        };
        is_block(range) || self.around(*range).any(|(block, _)| is_block(&block) && self.is_part(&block, range, name))
    }

    /// Whether a range is a part of a block that the block's owner leaves to that node.
    pub(crate) fn is_part(&self, block: &IpNet, range: &IpNet, name: &str) -> bool {
        let Some((block, node)) = self.seen.blocks.get(block).zip(self.seen.nodes.get(name)) else { return false };
        block.parts.iter().any(|part| part.cidr == *range && part.holder.is(name, &node.uid))
    }

    /// Takes in what a node's own addresses are now; whose ranges hold one that came or went is told.
    fn count_addresses(&mut self, world: &World, name: &Arc<str>, changed: Option<&mut BTreeSet<Arc<str>>>) {
        let before = own_addresses(self.seen.nodes.get(name), self.seen.adverts.get(name));
        let after = own_addresses(world.nodes.get(name), world.adverts.get(name));
        if before == after {
            return;
        }
        for ip in &before {
            self.node_addresses.remove(&(*ip, name.clone()));
        }
        self.node_addresses.extend(after.iter().map(|ip| (*ip, name.clone())));
        if let Some(changed) = changed {
            let around = before.symmetric_difference(&after).flat_map(|ip| self.around(Family::host_net(*ip)));
            changed.extend(around.map(|(_, holder)| holder.clone()));
        }
    }

    /// When a live peer last changed what it sends on; nothing is torn down before the drain time after it.
    pub(crate) fn sends_changed(&self) -> Option<Instant> {
        self.sends_changed.last().map(|(at, _)| *at)
    }

    /// When the next lease runs out.
    pub(crate) fn next_expiry(&self, world: &World) -> Option<Instant> {
        self.alive.first().filter(|_| !world.leases_rest).map(|(at, _)| world.lease_until(*at))
    }

    fn stale(&self, world: &World, now: Instant) -> BTreeSet<Arc<str>> {
        let seen = &self.seen;
        if (&seen.local, seen.flannel.as_ref()) != (&world.local, world.flannel()) {
            return seen.nodes.keys().chain(world.nodes.keys()).cloned().collect();
        }
        let mut names: BTreeSet<Arc<str>> = seen.nodes.diff(&world.nodes).map(|item| key_of(item).clone()).collect();
        names.extend(seen.adverts.diff(&world.adverts).map(|item| key_of(item).clone()));
        for item in seen.blocks.diff(&world.blocks) {
            let range = key_of(item);
            let blocks = [&seen.blocks, &world.blocks].into_iter().filter_map(|blocks| blocks.get(range));
            names.extend(blocks.flat_map(|block| block.nodes()).cloned());
        }
        if (seen.lease, seen.leases_from, seen.rest) != (world.config.lease, world.leases_from, world.leases_rest) {
            let lease_is_out = self.peers.iter().filter(|(_, member)| !member.live || member.annotated);
            names.extend(lease_is_out.map(|(name, _)| name.clone()));
        }
        if !world.leases_rest {
            let runs_out = self.alive.iter().take_while(|(at, _)| world.lease_until(*at) <= now);
            names.extend(runs_out.map(|(_, name)| name.clone()));
        }
        names
    }

    /// A peer gave a sign of life and said nothing new.
    fn renew(&mut self, name: &Arc<str>, member: Member) {
        if let Some(at) = self.peers.get(name).and_then(|before| before.alive) {
            self.alive.remove(&(at, name.clone()));
        }
        self.alive.extend(member.alive.map(|at| (at, name.clone())));
        self.peers.insert(name.clone(), Box::new(member));
    }

    fn count_in(&mut self, name: &Arc<str>, member: Member) {
        if member.live {
            self.alive.extend(member.alive.map(|at| (at, name.clone())));
            self.sends.add(member.sends());
            self.accepts.add(member.accepts().map(|(instance, _)| instance));
            self.sends_changed.extend(member.sends_changed.map(|at| (at, name.clone())));
        } else {
            self.not_live.insert(name.clone());
        }
        if member.live && member.advert.joining {
            self.joining.insert(name.clone());
        }
        for claim in member.claims() {
            self.claims.insert(Claimant { claim, not_live: !member.live, name: name.clone() });
        }
        self.lengths.add(member.lengths());
        self.peers.insert(name.clone(), Box::new(member));
    }

    fn count_out(&mut self, name: &Arc<str>, changed: &mut BTreeSet<Arc<str>>) {
        let Some(member) = self.peers.remove(name) else { return };
        if member.live {
            self.sends.sub(member.sends());
            self.accepts.sub(member.accepts().map(|(instance, _)| instance));
            member.sends_changed.map(|at| self.sends_changed.remove(&(at, name.clone())));
            member.alive.map(|at| self.alive.remove(&(at, name.clone())));
        } else {
            self.not_live.remove(name);
        }
        self.joining.remove(name);
        for claim in member.claims() {
            self.claims.remove(&Claimant { claim, not_live: !member.live, name: name.clone() });
            changed.extend(self.concerned(claim).cloned());
        }
        self.lengths.sub(member.lengths());
    }
}

/// Where a node itself is found, as the cluster says and as it says.
fn own_addresses(node: Option<&Arc<Node>>, heard: Option<&Heard>) -> BTreeSet<IpAddr> {
    let of_node = node.into_iter().flat_map(|node| node.internal_ips.iter().copied());
    let heard = heard.filter(|_| node.is_some());
    of_node.chain(heard.into_iter().flat_map(|heard| heard.advert.addresses.iter().map(|(_, ip)| *ip))).collect()
}

/// A peer counts once it has a Node and an Advert that was written for this very Node, or Flannel's annotations.
fn member(world: &World, name: &Arc<str>, now: Instant) -> Option<Member> {
    let node = world.nodes.get(name)?;
    let of_node = |heard: &&Heard| {
        let of = &heard.advert.node_uid;
        of.is_empty() || node.uid.is_empty() || *of == node.uid
    };
    let heard = world.adverts.get(name).filter(of_node);
    // With the store away nobody can give a sign of life: nobody is declared dead for it.
    let live = heard.is_some_and(|heard| world.leases_rest || world.lease_until(heard.at) > now);
    let lowered = world.flannel().filter(|_| !live).and_then(|flannel| flannel::lower(flannel, node));
    let annotated = lowered.is_some();
    let (advert, unclear) = match lowered {
        Some(lowered) => (Arc::new(lowered.advert), lowered.wrong.map(Box::new)),
        None => (heard?.advert.clone(), None),
    };
    let proven = |range: &IpNet| {
        node.pod_cidrs.iter().any(|cidr| cidr.contains(range)) || world.is_claimed(range, name, &node.uid)
    };
    Some(Member {
        unproven: advert.blocks.iter().filter(|range| !proven(range)).copied().collect(),
        node: node.clone(),
        advert,
        live: live || annotated,
        alive: heard.filter(|_| live).map(|heard| heard.at),
        sends_changed: heard.filter(|_| !annotated).map(|heard| heard.sends_changed),
        annotated,
        unclear,
    })
}

fn key_of<'a, K, V>(item: imbl::ordmap::DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        imbl::ordmap::DiffItem::Add(key, _) => key,
        imbl::ordmap::DiffItem::Update { new: (key, _), .. } => key,
        imbl::ordmap::DiffItem::Remove(key, _) => key,
    }
}

// === impl Member ===

impl Member {
    /// What it accepts, as far as this version knows it.
    pub(crate) fn accepts(&self) -> impl Iterator<Item = (Instance, &Endpoint)> {
        self.advert.accepts.iter().filter_map(|end| Some((end.instance.parse().ok()?, end)))
    }

    /// What it may send on, as far as this version knows it.
    fn sends(&self) -> impl Iterator<Item = Instance> {
        self.advert.sends.iter().filter_map(|name| name.parse().ok())
    }

    /// Ranges that are its own by the word of the cluster, not only by its own.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &IpNet> {
        self.advert.blocks.iter().filter(|range| !self.unproven.contains(range))
    }

    /// Family, `true` for IPv6, and prefix length of each of them.
    fn lengths(&self) -> impl Iterator<Item = (bool, u8)> {
        self.blocks().map(|range| (matches!(range, IpNet::V6(_)), range.prefix_len()))
    }

    fn same_but_heartbeat(&self, after: &Member) -> bool {
        let Member { node, advert, live, alive: _, sends_changed, annotated, unclear, unproven } = self;
        advert.same_but_heartbeat(&after.advert)
            && (node, live, sends_changed, annotated, unclear, unproven)
                == (&after.node, &after.live, &after.sends_changed, &after.annotated, &after.unclear, &after.unproven)
    }

    /// As often as the peer says so.
    fn claims(&self) -> impl Iterator<Item = Claim> {
        let advert = &self.advert;
        let addresses = advert.addresses.iter().chain(advert.fabric_addresses.iter());
        let addresses = addresses.map(|(_, ip)| Claim::Address(*ip));
        let macs = advert.ends().filter_map(|end| end.mac.map(Claim::Mac));
        let keys = advert.ends().filter_map(|end| end.public_key.as_ref().map(Claim::key));
        self.blocks().copied().map(Claim::Block).chain(addresses).chain(macs).chain(keys)
    }
}

// === impl Counts ===

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts(BTreeMap::new())
    }
}

impl<K: Ord> Counts<K> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub(crate) fn add(&mut self, keys: impl IntoIterator<Item = K>) {
        for key in keys {
            *self.0.entry(key).or_default() += 1;
        }
    }

    pub(crate) fn sub(&mut self, keys: impl IntoIterator<Item = K>) {
        for key in keys {
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }
}
