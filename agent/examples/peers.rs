//! A thousand peers into the kernel, for `cargo xtask bench peers`: the vxlan device, and of each peer its routes, neighbours
//! and forwarding entries, in a network namespace of this process's own.
//!
//! Prints two lines of milliseconds: from an empty kernel to all of them, what the node has to say to its peers first
//! included; and one peer that moves to another address, each from World being told to the report that the kernel has it.

#[path = "shared/cluster.rs"]
mod cluster;
#[path = "shared/small.rs"]
mod small;

use std::time::Instant;

use anyhow::{Result, ensure};
use cluster::{Peer, put};
use small::Small;
use tartan_model::{Features, Kind, Object, ObjectId, World};
use tartan_netstate::{Key, Object as InKernel};

const PEERS: u16 = 1_000;
const CHANGES: u16 = 200;
const ADDRESS: &str = "172.30.0.1/24";
/// Plans until all is used: what one announces, the next one uses.
const SETTLING: usize = 10;

fn main() -> Result<()> {
    small::isolate(ADDRESS)?;
    let mut small = Small::start(ADDRESS, |features| Ok(world(features)))?;
    let began = Instant::now();
    settle(&mut small)?;
    small::print(&[began.elapsed()]);
    let mut times = Vec::new();
    for number in 1..=CHANGES {
        let moved = Peer { number: number * (PEERS / CHANGES), generation: 1 };
        let began = Instant::now();
        small.world.store(put(moved.object_id(), Object::from(moved.advert())), began);
        small.plan_and_wait(true)?;
        times.push(began.elapsed());
        let there = small.world.programmed.mirror.iter().any(|(_, entry)| leads_to(&entry.object, &moved));
        ensure!(there, "p{} moved, and nothing in the kernel leads there", moved.number);
    }
    small::print(&times);
    Ok(())
}

fn leads_to(object: &InKernel, peer: &Peer) -> bool {
    matches!(object, InKernel::Fdb(fdb) if peer.advert().addresses.v4 == Some(fdb.dst))
}

/// Plans, and says to itself what it has to say, until every peer's ranges have their routes.
fn settle(small: &mut Small) -> Result<()> {
    for _ in 0..SETTLING {
        small.plan_and_wait(true)?;
        let is_route = |key: &Key| matches!(key, Key::Route { metric: tartan_netstate::claims::ROUTE_METRIC, .. });
        let routes = small.world.programmed.mirror.iter().filter(|(key, _)| is_route(key)).count();
        if routes == 2 * usize::from(PEERS) {
            return Ok(());
        }
        if let Some(advert) = small.planners.plan(&small.world, Instant::now()).advert {
            let id = ObjectId { kind: Kind::NodeNetwork, name: small.world.local.clone() };
            small.world.store(put(id, Object::from(advert)), Instant::now());
        }
    }
    anyhow::bail!("after {SETTLING} plans some peers have no route")
}

fn world(features: Features) -> World {
    let now = Instant::now();
    let mut world = World::new("local".into(), features);
    for kind in Kind::ALL {
        world.store(tartan_model::StoreEvent::Init(kind), now);
    }
    cluster::fill(&mut world, PEERS, now);
    for kind in Kind::ALL {
        world.store(tartan_model::StoreEvent::Synced(kind), now);
    }
    world
}
