//! What users should know about addresses, with what to do.

use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Attachment, Condition, Family, Pool, World};

use crate::held::{self, Concerns, Source};
use crate::pools;
use crate::steps::Counted;

/// All that is wrong with this node's ranges but for pools that have no more.
pub(crate) fn conditions(world: &World, concerns: &Concerns, counted: &[Counted]) -> Vec<Condition> {
    let mut conditions: Vec<Condition> =
        pools::overlapping(world).iter().map(|(pool, other)| overlap(pool, other)).collect();
    conditions.extend(Family::ALL.iter().filter_map(|family| fenced(world, concerns, *family)));
    conditions.extend(no_range(world, counted));
    conditions.extend(counted.iter().filter_map(|counted| full_pod_cidr(world, counted)));
    conditions.extend(no_ipv6(world));
    conditions.extend(fenced_blocks(world, concerns, counted));
    conditions.extend(world.attachments.values().filter_map(|pod| stranded(world, pod, counted)));
    conditions
}

/// The pools have no more for this node, of which that much is left.
pub(crate) fn exhausted(group: &[&Arc<Pool>], ranges: &[&Counted], room: u128) -> Condition {
    let names: Vec<String> = group.iter().map(|pool| format!("{} ({})", pool.name, pool.cidr)).collect();
    let names = names.join(", ");
    let sum = |count: fn(&Counted) -> u128| ranges.iter().map(|counted| count(counted)).fold(0, u128::saturating_add);
    let (used, resting) = (sum(|counted| counted.usage.used), sum(|counted| counted.usage.resting));
    Condition {
        about: format!("IPPool/{}", group[0].name),
        field: "spec.cidr".into(),
        reason: "PoolExhausted",
        message: format!(
            "IPPool {names}: every block is claimed and no node has a part to spare; on this node {used} addresses are used, {resting} rest after use, {room} are left"
        ),
        fix: "add an IPPool for the same nodes and namespaces, or make room in this one by deleting pods or nodes"
            .into(),
    }
}

pub(crate) fn overlap(pool: &Pool, other: &Pool) -> Condition {
    Condition {
        about: format!("IPPool/{}", pool.name),
        field: "spec.cidr".into(),
        reason: "PoolsOverlap",
        message: format!(
            "{} overlaps {} of IPPool {}; nothing new is claimed from it",
            pool.cidr, other.cidr, other.name
        ),
        fix: "disable one of the two, or change its range".into(),
    }
}

fn fenced(world: &World, concerns: &Concerns, family: Family) -> Option<Condition> {
    let by = held::fenced_by(world, concerns, family)?;
    let cidr = held::own_pod_cidr(world, family)?;
    Some(Condition {
        about: format!("Node/{}", world.local),
        field: "spec.podCIDRs".into(),
        reason: "SamePodCidr",
        message: format!("podCIDR {cidr} overlaps one of Node {}, which was first; this node does not use it", by.name),
        fix: "give each Node its own podCIDR".into(),
    })
}

fn no_range(world: &World, counted: &[Counted]) -> Option<Condition> {
    let node = world.local_node()?;
    let has = |family| held::own_pod_cidr(world, family).is_some() || !pools::for_node(world, node, family).is_empty();
    if !counted.is_empty() || Family::ALL.into_iter().any(has) {
        return None;
    }
    Some(Condition {
        about: format!("Node/{}", world.local),
        field: "spec.podCIDRs".into(),
        reason: "NoRange",
        message: "this node has no range for pods: its Node has no podCIDR and no enabled IPPool selects it".into(),
        fix: "give the Node a podCIDR, or create an IPPool whose nodeSelector matches it; deploy/pool-crds.yaml defines that kind where Calico has not".into(),
    })
}

fn full_pod_cidr(world: &World, counted: &Counted) -> Option<Condition> {
    let Counted { held, usage } = counted;
    if held.source != Source::PodCidr || !held.open || usage.free() > 0 {
        return None;
    }
    Some(Condition {
        about: format!("Node/{}", world.local),
        field: "spec.podCIDRs".into(),
        reason: "PodCidrExhausted",
        message: format!(
            "podCIDR {} has no free address: of {}, {} are used, {} reserved, {} rest after use",
            held.cidr, usage.size, usage.used, usage.reserved, usage.resting
        ),
        fix: "delete pods, or give the node a larger podCIDR or an IPPool".into(),
    })
}

fn no_ipv6(world: &World) -> Option<Condition> {
    let cidr = held::own_pod_cidr(world, Family::V6).filter(|_| !world.features.ipv6)?;
    Some(Condition {
        about: format!("Node/{}", world.local),
        field: "spec.podCIDRs".into(),
        reason: "NoIpv6",
        message: format!("podCIDR {cidr} is not used: IPv6 is switched off in this node's kernel"),
        fix: "boot the node without ipv6.disable, or take the range off the Node".into(),
    })
}

fn fenced_blocks(world: &World, concerns: &Concerns, counted: &[Counted]) -> Vec<Condition> {
    let ours =
        |node: &str, uid: &str| *node == *world.local && world.local_node().is_some_and(|node| *node.uid == *uid);
    let lost = concerns.mine.values().filter(|block| {
        ours(&block.node, &block.node_uid) && !counted.iter().any(|counted| counted.held.cidr == block.cidr)
    });
    lost.map(|block| Condition {
        about: format!("IPBlock/{}", tartan_model::Block::name_of(&block.cidr)),
        field: "spec.cidr".into(),
        reason: "BlocksOverlap",
        message: format!("{} lies in a wider block of another node; this node does not use it", block.cidr),
        fix: "delete the narrower IPBlock; change the blockSize of a pool only while no block of it is claimed".into(),
    })
    .collect()
}

fn stranded(world: &World, pod: &Attachment, counted: &[Counted]) -> Option<Condition> {
    let is_held = |address: &std::net::IpAddr| {
        counted.iter().any(|Counted { held, .. }| {
            let elsewhere = |part: &&IpNet| part.contains(address) && !is_own_part(world, held, part);
            held.cidr.contains(address) && !held.without.iter().any(|part| elsewhere(&part))
        })
    };
    let (_, address) = pod.addresses.iter().find(|(_, address)| !is_held(address))?;
    Some(Condition {
        about: format!("Pod/{}/{}", pod.pod_namespace, pod.pod_name),
        field: "status.podIPs".into(),
        reason: "NotOurAddress",
        message: format!(
            "{address} is in no range of node {} any more: nobody on another node reaches it",
            world.local
        ),
        fix: "delete the pod; it gets a new address when it is made again".into(),
    })
}

/// A part that is the owner's still, though no new address is given out of it.
fn is_own_part(world: &World, held: &held::Held, part: &IpNet) -> bool {
    use tartan_model::Holder;
    let block = held.block(world);
    block.is_some_and(|block| block.parts.iter().any(|it| it.cidr == *part && it.holder == Holder::Aside))
}
