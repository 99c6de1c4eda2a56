//! What is wrong with pools and reservations themselves, the same seen from every node; and blocks that are nobody's.

use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Condition, Pool, Reservation, World};

use crate::blocks::Claim;
use crate::{held, orphans, pools, range, say};

/// What is wrong with pools and reservations, each about its object.
pub fn diagnose(world: &World) -> Vec<Condition> {
    let overlaps = pools::overlapping(world).into_iter().map(|(pool, other)| say::overlap(pool, other));
    let enabled = world.pools.values().filter(|pool| !pool.disabled);
    let of_pool = |pool: &Pool| [for_no_node(world, pool), over_a_node(world, pool), full(world, pool)];
    let of_pools = enabled.flat_map(|pool| of_pool(pool)).flatten();
    let of_reservations = world.reservations.values().filter_map(|reservation| reserves_nothing(world, reservation));
    overlaps.chain(of_pools).chain(of_reservations).collect()
}

/// Blocks of nodes that are gone, that no node has freed or handed on though it was time to, and when to look again. Nodes
/// do this themselves; this is for a cluster in which none is left that could. `patience`: for how long they have the first
/// say.
pub fn abandoned(world: &World, patience: std::time::Duration, now: Instant) -> (Vec<Claim>, Option<Instant>) {
    let (mut claims, mut wake_at) = (Vec::new(), None::<Instant>);
    // Signs of life may have been missed.
    let Some(heard_since) = world.leases_from.filter(|_| !world.leases_rest) else { return (claims, None) };
    let nobodys = world.blocks.values().filter(|block| !held::is_there(world, &block.node, &block.node_uid));
    for block in nobodys {
        let over_at = orphans::over_at(world, &block.node, &block.node_uid, &block.cidr).unwrap_or(heard_since);
        let at = over_at + patience;
        if at <= now {
            claims.extend(orphans::dissolve(world, block, now));
        } else {
            wake_at = wake_at.into_iter().chain([at]).min();
        }
    }
    (claims, wake_at)
}

fn condition(pool: &Pool, field: &str, reason: &'static str, message: String, fix: &str) -> Condition {
    Condition { about: format!("IPPool/{}", pool.name), field: field.into(), reason, message, fix: fix.into() }
}

fn for_no_node(world: &World, pool: &Pool) -> Option<Condition> {
    let for_none = !world.nodes.is_empty() && !world.nodes.values().any(|node| pool.nodes.matches(&node.labels));
    for_none.then(|| {
        let message =
            format!("{} selects none of the {} nodes, so nobody claims from it", pool.nodes, world.nodes.len());
        condition(pool, "spec.nodeSelector", "NoNode", message, "label the nodes it is for, or change the selector")
    })
}

fn over_a_node(world: &World, pool: &Pool) -> Option<Condition> {
    let inside = |node: &&std::sync::Arc<tartan_model::Node>| node.internal_ips.iter().any(|ip| pool.cidr.contains(ip));
    let node = world.nodes.values().find(inside)?;
    let message = format!("{} holds the address of Node {}: packets to it would go to a pod", pool.cidr, node.name);
    Some(condition(pool, "spec.cidr", "OverNodes", message, "give pods a range that no node's address is in"))
}

fn full(world: &World, pool: &Pool) -> Option<Condition> {
    let claimed = pools::blocks_over(&world.blocks, &pool.cidr).map(|block| range::Span::of(&block.cidr).len());
    let (claimed, all) = (claimed.fold(0, u128::saturating_add), range::Span::of(&pool.cidr).len());
    (claimed >= all).then(|| {
        let message =
            format!("every block of {} is claimed; nodes that come now get parts of others' blocks", pool.cidr);
        condition(pool, "spec.cidr", "AllClaimed", message, "add an IPPool for the same nodes and namespaces in time")
    })
}

fn reserves_nothing(world: &World, reservation: &Reservation) -> Option<Condition> {
    let given_out = |cidr: &&IpNet| {
        world.pools.values().any(|pool| tartan_model::overlap(&pool.cidr, cidr))
            || world
                .nodes
                .values()
                .flat_map(|node| &node.pod_cidrs)
                .any(|pod_cidr| tartan_model::overlap(pod_cidr, cidr))
    };
    let idle = reservation.cidrs.iter().find(|cidr| !given_out(cidr))?;
    Some(Condition {
        about: format!("IPReservation/{}", reservation.name),
        field: "spec.reservedCIDRs".into(),
        reason: "ReservesNothing",
        message: format!("{idle} is in no IPPool and in no node's podCIDR, so nothing of it is ever given out"),
        fix: "take it out, or mend the range".into(),
    })
}
