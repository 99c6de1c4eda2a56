//! Key pairs of nodes for the instances that encrypt, and hops to peers by theirs.

use std::sync::Arc;

use tartan_model::{Condition, Family};
use tartan_netstate::PublicKey;
use tartan_netstate::claims::{ESP_KEY_PREFIX, PSK_SUFFIX};

use crate::{Hop, Instance, LocalNode, Peer};

/// The name of the key pair that every node makes for an instance.
pub(crate) fn key_pair(at: &Instance) -> Option<Arc<str>> {
    match at {
        Instance::Wireguard { rotation, psk, .. } => {
            let psk = psk.map(|psk| format!("{PSK_SUFFIX}{psk:08x}")).unwrap_or_default();
            Some(format!("wireguard-{rotation}{psk}").into())
        }
        // One for each, since what it is for is that its keys are new.
        Instance::Ipsec { underlay, port, rotation, psk } => {
            let port = port.map(|port| format!("-port{port}")).unwrap_or_default();
            Some(format!("{ESP_KEY_PREFIX}{underlay}{port}-{rotation}{PSK_SUFFIX}{psk:08x}").into())
        }
        _ => None,
    }
}

/// This node's own for an instance, once there is one.
pub(crate) fn own_key(node: &LocalNode, at: &Instance) -> Option<PublicKey> {
    node.public_keys.get(&key_pair(at)?).copied()
}

/// The next hop to a peer by a device in which peers stand with their keys.
pub(crate) fn to_key_holder(at: &Instance, to: &Peer<'_>) -> Result<Hop, Condition> {
    if Some(Family::of(to.endpoint.address)) != at.underlay() {
        return Err(crate::ipip::of_other_family(at, to));
    }
    if to.endpoint.public_key.is_none() {
        return Err(without_key(at, to));
    }
    Ok(Hop { via: None, dev: at.device(), onlink: false, encap: None })
}

fn without_key(at: &Instance, to: &Peer<'_>) -> Condition {
    Condition {
        about: format!("NodeNetwork/{}", to.name),
        field: "spec.accepts".into(),
        reason: "EndpointWithoutKey",
        message: format!("{} says it hears {at}, and not by which key", to.name),
        fix: format!("look at the agent of {}: its NodeNetwork object is written by it alone", to.name),
    }
}
