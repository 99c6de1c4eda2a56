//! What this node tells its peers, derived from what the kernel was read to hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use tartan_model::{Advert, Endpoint, PerFamily, World};

use crate::{Instance, LocalNode, fabric_of};

/// This node's Advert without its heartbeat.
///
/// Invariant: `accepts` is shortened at once and lengthened only after read-back; `sends` is lengthened before the
/// first packet and shortened only after read-back.
pub(crate) fn advert(
    world: &World,
    node: &LocalNode,
    mtu_in_force: u32,
    ready: &BTreeSet<Instance>,
    sends: &BTreeSet<Instance>,
) -> Advert {
    let accepts: Vec<Endpoint> = ready.iter().filter_map(|at| fabric_of(at.mode()).endpoint(node, at)).collect();
    let mut addresses = PerFamily { v4: None, v6: None };
    for (family, uplink) in node.uplinks.iter() {
        addresses.set(family, uplink.advertised());
    }
    Advert {
        node: world.local.clone(),
        node_uid: node.uid.clone(),
        addresses,
        fabric_addresses: node.fabric_addresses,
        blocks: node.blocks.clone(),
        mtu: mtu_in_force,
        accepts,
        sends: sends.iter().map(|at| Arc::from(at.to_string())).collect(),
        edition: 0,
        heartbeat: 0,
    }
}

/// Instances this node said it accepts or sends on, in the Advert the cluster has of it.
pub(crate) fn announced(world: &World) -> (BTreeSet<Instance>, BTreeSet<Instance>) {
    let Some(heard) = world.adverts.get(&world.local) else { return Default::default() };
    let accepts = heard.advert.accepts.iter().filter_map(|end| end.instance.parse().ok()).collect();
    let sends = heard.advert.sends.iter().filter_map(|name| name.parse().ok()).collect();
    (accepts, sends)
}
