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
use tartan_model::{Block, Endpoint, Heard, Node, World};
use tartan_netstate::Mac;

use crate::Instance;

/// A peer that has said something about itself, checked. There may be thousands, so lists take no more room than they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: Arc<Node>,
    pub(crate) heard: Heard,
    /// Its lease has not run out.
    pub(crate) live: bool,
    /// What it accepts, as far as this version knows it.
    pub(crate) accepts: Box<[(Instance, Endpoint)]>,
    pub(crate) sends: Box<[Instance]>,
    /// Ranges that are its own by the word of the cluster, not only by its own.
    pub(crate) blocks: Box<[IpNet]>,
    /// Ranges it says are its own and nobody else says so.
    pub(crate) unproven: Box<[IpNet]>,
}

/// Something only one node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Block(IpNet),
    Address(IpAddr),
    Mac(Mac),
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
    claims: BTreeSet<Claimant>,
    expiry: BTreeSet<(Instant, Arc<str>)>,
    sends_changed: BTreeSet<(Instant, Arc<str>)>,
    seen: Seen,
}

/// How many members stand behind each instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<Instance, usize>);

#[derive(Default)]
struct Seen {
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    adverts: OrdMap<Arc<str>, Heard>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    lease: Duration,
    rest: bool,
    local: Arc<str>,
}

// === impl Census ===

impl Census {
    /// Takes in what differs from last time. Returns the peers whose own facts, or whose rivals', differ.
    pub(crate) fn update(&mut self, world: &World, now: Instant) -> BTreeSet<Arc<str>> {
        let mut changed = BTreeSet::new();
        for name in self.stale(world, now) {
            let member = (name != world.local).then(|| member(world, &name, now)).flatten();
            let before = self.peers.get(&name);
            if before.is_some_and(|before| member.as_ref().is_some_and(|after| same_but_heartbeat(before, after))) {
                self.renew(world, &name, member.expect("compared with just now"));
                continue;
            }
            self.count_out(&name, &mut changed);
            if let Some(member) = member {
                self.count_in(world, &name, member, &mut changed);
            }
            changed.insert(name);
        }
        self.seen = Seen {
            nodes: world.nodes.clone(),
            adverts: world.adverts.clone(),
            blocks: world.blocks.clone(),
            lease: world.config.lease,
            rest: world.leases_rest,
            local: world.local.clone(),
        };
        changed
    }

    /// Instances some live peer may still send on.
    pub(crate) fn sends(&self) -> impl Iterator<Item = &Instance> {
        self.sends.iter()
    }

    /// Instances some live peer receives on.
    pub(crate) fn accepts(&self) -> impl Iterator<Item = &Instance> {
        self.accepts.iter()
    }

    /// The first of those who claim it; it is theirs.
    pub(crate) fn holder(&self, claim: Claim) -> Option<&Arc<str>> {
        self.claimants(claim).next()
    }

    fn claimants(&self, claim: Claim) -> impl Iterator<Item = &Arc<str>> {
        let from = self.claims.range(Claimant { claim, not_live: false, name: Arc::default() }..);
        from.take_while(move |claimant| claimant.claim == claim).map(|claimant| &claimant.name)
    }

    /// When a live peer last changed what it sends on; nothing is torn down before the drain time after it.
    pub(crate) fn sends_changed(&self) -> Option<Instant> {
        self.sends_changed.last().map(|(at, _)| *at)
    }

    /// When the next lease runs out.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    fn stale(&self, world: &World, now: Instant) -> BTreeSet<Arc<str>> {
        let seen = &self.seen;
        if seen.lease != world.config.lease || seen.rest != world.leases_rest || seen.local != world.local {
            return seen.nodes.keys().chain(world.nodes.keys()).cloned().collect();
        }
        let mut names: BTreeSet<Arc<str>> = seen.nodes.diff(&world.nodes).map(|item| key_of(item).clone()).collect();
        names.extend(seen.adverts.diff(&world.adverts).map(|item| key_of(item).clone()));
        for item in seen.blocks.diff(&world.blocks) {
            let range = key_of(item);
            let blocks = [&seen.blocks, &world.blocks].into_iter().filter_map(|blocks| blocks.get(range));
            names.extend(blocks.flat_map(|block| block.nodes()).cloned());
        }
        names.extend(self.expiry.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()));
        names
    }

    /// A peer gave a sign of life and said nothing new.
    fn renew(&mut self, world: &World, name: &Arc<str>, member: Member) {
        if let Some(before) = self.peers.get(name) {
            self.expiry.remove(&(before.heard.at + self.seen.lease, name.clone()));
        }
        self.expect_sign_of_life(world, name, &member);
        self.peers.insert(name.clone(), Box::new(member));
    }

    fn expect_sign_of_life(&mut self, world: &World, name: &Arc<str>, member: &Member) {
        if member.live && !world.leases_rest {
            self.expiry.insert((member.heard.at + world.config.lease, name.clone()));
        }
    }

    fn count_in(&mut self, world: &World, name: &Arc<str>, member: Member, changed: &mut BTreeSet<Arc<str>>) {
        if member.live {
            self.sends.add(member.sends.iter().copied());
            self.accepts.add(member.accepts.iter().map(|(instance, _)| *instance));
            self.sends_changed.insert((member.heard.sends_changed, name.clone()));
        } else {
            self.not_live.insert(name.clone());
        }
        self.expect_sign_of_life(world, name, &member);
        for claim in member.claims() {
            changed.extend(self.claimants(claim).cloned());
            self.claims.insert(Claimant { claim, not_live: !member.live, name: name.clone() });
        }
        self.peers.insert(name.clone(), Box::new(member));
    }

    fn count_out(&mut self, name: &Arc<str>, changed: &mut BTreeSet<Arc<str>>) {
        let Some(member) = self.peers.remove(name) else { return };
        if member.live {
            self.sends.sub(member.sends.iter().copied());
            self.accepts.sub(member.accepts.iter().map(|(instance, _)| *instance));
            self.sends_changed.remove(&(member.heard.sends_changed, name.clone()));
            self.expiry.remove(&(member.heard.at + self.seen.lease, name.clone()));
        } else {
            self.not_live.remove(name);
        }
        for claim in member.claims() {
            self.claims.remove(&Claimant { claim, not_live: !member.live, name: name.clone() });
            changed.extend(self.claimants(claim).cloned());
        }
    }
}

/// A peer counts once it has a Node and an Advert that was written for this very Node.
fn member(world: &World, name: &Arc<str>, now: Instant) -> Option<Member> {
    let node = world.nodes.get(name)?;
    let heard = world.adverts.get(name)?;
    let advert = &heard.advert;
    if !advert.node_uid.is_empty() && !node.uid.is_empty() && advert.node_uid != node.uid {
        return None;
    }
    let proven = |range: &&IpNet| {
        node.pod_cidrs.iter().any(|cidr| cidr.contains(*range)) || world.is_claimed(range, name, &node.uid)
    };
    let (blocks, unproven): (Vec<IpNet>, Vec<IpNet>) = advert.blocks.iter().partition(proven);
    // With the store away nobody can give a sign of life: nobody is declared dead for it.
    let live = world.leases_rest || heard.at + world.config.lease > now;
    Some(Member {
        node: node.clone(),
        heard: heard.clone(),
        live,
        accepts: advert.accepts.iter().filter_map(|end| Some((end.instance.parse().ok()?, end.clone()))).collect(),
        sends: advert.sends.iter().filter_map(|name| name.parse().ok()).collect(),
        blocks: blocks.into(),
        unproven: unproven.into(),
    })
}

fn same_but_heartbeat(before: &Member, after: &Member) -> bool {
    let heard = Heard { at: before.heard.at, advert: before.heard.advert.clone(), ..after.heard.clone() };
    let said = before.heard.advert.same_but_heartbeat(&after.heard.advert);
    said && Member { heard, ..after.clone() } == *before
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
    /// Each once, whatever the peer says twice.
    fn claims(&self) -> BTreeSet<Claim> {
        let advert = &self.heard.advert;
        let addresses = advert.addresses.iter().chain(advert.fabric_addresses.iter());
        let addresses = addresses.map(|(_, ip)| Claim::Address(*ip));
        let macs = advert.accepts.iter().filter_map(|end| end.mac.map(Claim::Mac));
        self.blocks.iter().copied().map(Claim::Block).chain(addresses).chain(macs).collect()
    }
}

// === impl Counts ===

impl Counts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.0.keys()
    }

    pub(crate) fn add(&mut self, instances: impl IntoIterator<Item = Instance>) {
        for instance in instances {
            *self.0.entry(instance).or_default() += 1;
        }
    }

    pub(crate) fn sub(&mut self, instances: impl IntoIterator<Item = Instance>) {
        for instance in instances {
            if let Some(count) = self.0.get_mut(&instance) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&instance);
                }
            }
        }
    }
}
