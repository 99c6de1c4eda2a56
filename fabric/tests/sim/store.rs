//! A store that all nodes share, and the slow wires to it.
//!
//! Invariant: what a wire delivers of one kind comes in the order of the writes, each as late as it likes; kinds do not
//! wait for each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tartan_model::{Advert, Config, Kind, Node, Object, ObjectId, Pool, StoreEvent};

use super::Rng;

/// What is in the store.
#[derive(Default)]
pub(crate) struct Store {
    pub config: Config,
    pub nodes: BTreeMap<Arc<str>, Node>,
    pub adverts: BTreeMap<Arc<str>, Advert>,
    pub pools: BTreeMap<Arc<str>, Pool>,
}

/// One agent's watch.
#[derive(Default)]
pub(crate) struct Wire {
    /// When each kind is listed; kinds that are listed are not here.
    lists: BTreeMap<Kind, u64>,
    queues: BTreeMap<Kind, VecDeque<(u64, StoreEvent)>>,
}

/// Something is written or deleted.
#[derive(Clone)]
pub(crate) enum Write {
    Config(Config),
    Node(Node),
    NodeGone(Arc<str>),
    Advert(Advert),
    Pool(Pool),
}

impl Store {
    /// Takes a write, and returns what watchers are told.
    pub(crate) fn write(&mut self, write: Write) -> StoreEvent {
        match write {
            Write::Config(config) => {
                self.config = config.clone();
                put(Kind::NetworkConfig, "default".into(), Object::Config(config.into()))
            }
            Write::Node(node) => {
                self.nodes.insert(node.name.clone(), node.clone());
                put(Kind::Node, node.name.clone(), Object::Node(node.into()))
            }
            Write::NodeGone(name) => {
                self.nodes.remove(&name);
                StoreEvent::Delete(ObjectId { kind: Kind::Node, name })
            }
            Write::Advert(advert) => {
                self.adverts.insert(advert.node.clone(), advert.clone());
                put(Kind::NodeNetwork, advert.node.clone(), Object::from(advert))
            }
            Write::Pool(pool) => {
                self.pools.insert(pool.name.clone(), pool.clone());
                put(Kind::IpPool, pool.name.clone(), Object::Pool(pool.into()))
            }
        }
    }

    fn list(&self, kind: Kind) -> Vec<StoreEvent> {
        let objects: Vec<StoreEvent> = match kind {
            Kind::NetworkConfig => vec![put(kind, "default".into(), Object::Config(self.config.clone().into()))],
            Kind::Node => {
                self.nodes.iter().map(|(name, n)| put(kind, name.clone(), Object::Node(n.clone().into()))).collect()
            }
            Kind::NodeNetwork => {
                self.adverts.iter().map(|(name, a)| put(kind, name.clone(), Object::from(a.clone()))).collect()
            }
            Kind::IpPool => {
                self.pools.iter().map(|(name, p)| put(kind, name.clone(), Object::Pool(p.clone().into()))).collect()
            }
            _ => Vec::new(),
        };
        [vec![StoreEvent::Init(kind)], objects, vec![StoreEvent::Synced(kind)]].concat()
    }
}

impl Wire {
    /// A new connection: every kind is listed, some time from now.
    pub(crate) fn connect(now: u64, lag: u64, rng: &mut Rng) -> Wire {
        Wire {
            lists: Kind::ALL.into_iter().map(|kind| (kind, now + rng.below(lag))).collect(),
            queues: BTreeMap::new(),
        }
    }

    /// Something was written at `now`; it is delivered at most `lag` later, and after what was written before.
    pub(crate) fn carry(&mut self, event: &StoreEvent, now: u64, lag: u64, rng: &mut Rng) {
        let kind = match event {
            StoreEvent::Put(id, ..) | StoreEvent::Delete(id) => id.kind,
            _ => unreachable!("only writes are carried"),
        };
        if self.lists.contains_key(&kind) {
            return;
        }
        let queue = self.queues.entry(kind).or_default();
        let after = queue.back().map_or(0, |(at, _)| *at);
        queue.push_back((after.max(now + rng.below(lag)), event.clone()));
    }

    /// What arrives by `now`.
    pub(crate) fn arrivals(&mut self, store: &Store, now: u64) -> Vec<StoreEvent> {
        let mut arrived = Vec::new();
        let due: Vec<Kind> = self.lists.iter().filter(|(_, at)| **at <= now).map(|(kind, _)| *kind).collect();
        for kind in due {
            self.lists.remove(&kind);
            arrived.extend(store.list(kind));
        }
        for queue in self.queues.values_mut() {
            while queue.front().is_some_and(|(at, _)| *at <= now) {
                arrived.extend(queue.pop_front().map(|(_, event)| event));
            }
        }
        arrived
    }
}

fn put(kind: Kind, name: Arc<str>, object: Object) -> StoreEvent {
    StoreEvent::Put(ObjectId { kind, name }, object, 0.into())
}
