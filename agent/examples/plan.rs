//! Times of planning for `cargo xtask bench plan`: a World of 5,000 nodes and 250 local pods, nothing else running.
//!
//! Prints two lines of milliseconds: full plans (every planner from nothing, and the diff to a kernel that holds it all),
//! and plans after another node said something new (planning and diff).
#![allow(clippy::print_stdout, reason = "its output is its product")]

#[path = "shared/cluster.rs"]
mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster::{Peer, ip, put};
use tartan_agent::plan::{Plan, Planners};
use tartan_model::{
    Attachment, DefaultRoute, Features, Host, HostLink, Kind, Labels, Namespace, Object, ObjectId, PerFamily, Pod,
    Programmed, StoreEvent, World,
};
use tartan_netstate::{Mac, PodNetns, State, diff};

const PEERS: u16 = 5_000;
const PODS: u8 = 250;
const FULL: usize = 10;
const CHANGES: u16 = 200;
/// Plans until nothing changes any more: what one announces, the next one uses.
const SETTLING: usize = 10;

fn main() -> Result<()> {
    let now = Instant::now();
    let mut world = world(now);
    let mut planners = Planners::default();
    settle(&mut world, &mut planners, now)?;
    print(&(0..FULL).map(|_| full(&world, now)).collect::<Result<Vec<_>>>()?);
    print(&(1..=CHANGES).map(|number| one_change(&mut world, &mut planners, number, now)).collect::<Result<Vec<_>>>()?);
    Ok(())
}

fn print(times: &[Duration]) {
    println!("{}", times.iter().map(|time| (time.as_secs_f64() * 1e3).to_string()).collect::<Vec<_>>().join(" "));
}

fn full(world: &World, now: Instant) -> Result<Duration> {
    let mut planners = Planners::default();
    let start = Instant::now();
    // Planners end with the agent: to take them down is no part of a plan.
    let (_state, changes) = plan(world, &mut planners, now)?;
    let took = start.elapsed();
    ensure!(changes == 0, "a full plan differs by {changes} from what was planned step by step");
    Ok(took)
}

/// A peer's range moves to another address: its route, neighbour and forwarding entry change.
fn one_change(world: &mut World, planners: &mut Planners, number: u16, now: Instant) -> Result<Duration> {
    let moved = Peer { number: number * 20, generation: 1 };
    world.store(put(moved.object_id(), Object::from(moved.advert())), now);
    let start = Instant::now();
    let (state, changes) = plan(world, planners, now)?;
    let took = start.elapsed();
    ensure!(changes > 0, "p{} moved, and nothing changes in the kernel", moved.number);
    hold(world, state);
    // The next plan sees that the kernel has it.
    plan(world, planners, now)?;
    Ok(took)
}

/// The wanted state, and by how many changes the kernel is away from it.
fn plan(world: &World, planners: &mut Planners, now: Instant) -> Result<(State, usize)> {
    let Plan { state: Some(state), .. } = planners.plan(world, now) else {
        anyhow::bail!("the World is whole, and there is no plan")
    };
    let changes = diff(&world.programmed.mirror, &state, |_| true).steps.len();
    Ok((state, changes))
}

fn settle(world: &mut World, planners: &mut Planners, now: Instant) -> Result<()> {
    for _ in 0..SETTLING {
        let own = planners.plan(world, now).advert;
        if let Some(advert) = own {
            let id = ObjectId { kind: Kind::NodeNetwork, name: world.local.clone() };
            world.store(put(id, Object::from(advert)), now);
        }
        let (state, changes) = plan(world, planners, now)?;
        hold(world, state);
        if changes == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("after {SETTLING} plans there is still something to change")
}

/// The kernel has done as it was told.
fn hold(world: &mut World, state: State) {
    let generation = world.programmed.generation + 1;
    world.asked = generation;
    world.programmed =
        Programmed { generation, pods_generation: generation, mirror: state, read: true, ..Programmed::default() };
}

fn world(now: Instant) -> World {
    let mut world = World::new("local".into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
    world.programmed(Programmed { read: true, ..Programmed::default() }, Arc::new(host()), Instant::now());
    for kind in Kind::ALL {
        world.store(StoreEvent::Init(kind), now);
    }
    cluster::fill(&mut world, PEERS, now);
    let namespace = Namespace { name: "bench".into(), labels: Labels::default() };
    world
        .store(put(ObjectId { kind: Kind::Namespace, name: "bench".into() }, Object::Namespace(namespace.into())), now);
    for number in 1..=PODS {
        let attachment = attachment(number);
        let id = ObjectId { kind: Kind::Pod, name: attachment.pod().into() };
        world.store(put(id, Object::Pod(pod(&attachment).into())), now);
        world.attach(attachment);
    }
    for kind in Kind::ALL {
        world.store(StoreEvent::Synced(kind), now);
    }
    world
}

fn host() -> Host {
    let uplink = HostLink {
        name: "eth0".into(),
        kind: "veth".into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec!["172.30.0.1/24".parse().expect("a prefix")],
        accept_ra: 0,
    };
    let default = DefaultRoute { v6: false, link: "eth0".into(), via: Some(ip(172, 30, 0, 254)), metric: 0 };
    Host { links: vec![uplink], default_routes: vec![default], ..Host::default() }
}

fn attachment(number: u8) -> Attachment {
    let container = format!("c{number}");
    Attachment {
        id: Attachment::id_of(&container, "eth0"),
        container: container.into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: number.into(), path: format!("/run/netns/c{number}").into() },
        pod_namespace: "bench".into(),
        pod_name: format!("p{number}").into(),
        addresses: PerFamily {
            v4: Some(ip(10, 127, 0, number)),
            v6: Some(format!("fd00:10:244:1::{number:x}").parse().expect("an address")),
        },
        mac: Mac([2, 0, 0, 0, 0, number]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: true,
    }
}

fn pod(attachment: &Attachment) -> Pod {
    Pod {
        uid: 0,
        node: "local".into(),
        labels: [("app", "bench")].into_iter().collect(),
        service_account: "default".into(),
        addresses: attachment.addresses.iter().map(|(_, address)| *address).collect(),
        ports: Box::default(),
        host_network: false,
        finished: false,
    }
}
