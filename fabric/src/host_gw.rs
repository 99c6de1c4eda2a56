//! host-gw: no encapsulation; a peer's own address is the next hop, so both must be on one link.

use std::net::IpAddr;
use std::sync::Arc;

use tartan_model::{Condition, Endpoint, Family, Features};
use tartan_netstate::{Key, Object, Owner, State};

use crate::{Fabric, Hop, Instance, LocalNode, Peer, Sending};

pub(crate) struct HostGw;

impl Fabric for HostGw {
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn overhead(&self, _: Family) -> u32 {
        0
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let loose = |uplink: &crate::Uplink| {
            // Strict (1) would drop what still comes in here while our own route already, or still, points elsewhere.
            let key = Key::UplinkSysctl { link: uplink.link.clone(), name: "ipv4/rp_filter".into() };
            (key, Object::Sysctl("2".into()))
        };
        let owner = Owner::Fabric(at.to_string().into());
        let mut state = State::new();
        if let Some(uplink) = node.uplinks.get(Family::V4) {
            let (key, object) = loose(uplink);
            state.insert(key, object, owner);
        }
        state
    }

    fn endpoint(&self, node: &LocalNode, at: &Instance) -> Option<Endpoint> {
        let (_, uplink) = node.uplinks.iter().next()?;
        Some(Endpoint { instance: Arc::from(at.to_string()), address: uplink.advertised(), mac: None })
    }

    fn send(&self, node: &LocalNode, _: &Instance, to: &Peer<'_>) -> Sending {
        let mut sending = Sending::default();
        for family in Family::ALL {
            let (Some(uplink), Some(theirs)) = (node.uplinks.get(family), to.addresses.get(family)) else { continue };
            if uplink.subnets.iter().any(|subnet| subnet.contains(theirs)) {
                sending.hops.set(family, Hop { via: *theirs, dev: uplink.link.clone(), onlink: false });
            } else {
                sending.conditions.push(off_link(node, to.name, *theirs, uplink));
            }
        }
        sending
    }
}

fn off_link(node: &LocalNode, peer: &str, theirs: IpAddr, uplink: &crate::Uplink) -> Condition {
    let subnets: Vec<String> = uplink.subnets.iter().map(ToString::to_string).collect();
    Condition {
        about: format!("Node/{peer}"),
        field: "NetworkConfig spec.fabric".into(),
        reason: "PeerOffLink",
        message: format!(
            "host-gw cannot reach {peer} at {theirs}: {} is on {} by {}, and there is a router between",
            node.name,
            subnets.join(", "),
            uplink.link
        ),
        fix: "set spec.fabric to vxlan; with spec.vxlan.directRouting peers on one link still go without encapsulation"
            .into(),
    }
}
