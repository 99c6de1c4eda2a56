//! host-gw: no encapsulation; a peer's own address is the next hop, so both must be on one link.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_model::{Advert, Condition, Endpoint, Family, Features};
use tartan_netstate::{Key, Object, Owner, State};

use crate::{Fabric, Hop, Instance, LocalNode, Peer, Uplink};

pub(crate) struct HostGw;

impl Fabric for HostGw {
    fn needs(&self, _: &Features) -> Result<(), &'static str> {
        Ok(())
    }

    fn receive(&self, node: &LocalNode, at: &Instance) -> State {
        let loose = |uplink: &Uplink| {
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
        Some(at.heard_at(uplink.advertised()))
    }

    fn hop(&self, node: &LocalNode, _: &Instance, to: &Peer<'_>, family: Family) -> Result<Hop, Condition> {
        let (Some(uplink), Some(theirs)) = (node.uplinks.get(family), to.addresses.get(family)) else {
            return Err(other_family(node, to, family));
        };
        if !uplink.is_on_link(*theirs) {
            return Err(off_link(node, to.name, *theirs, uplink));
        }
        Ok(Hop { via: Some(*theirs), dev: uplink.link.clone(), onlink: false, encap: None })
    }

    fn reach(&self, _: &Instance, _: &Peer<'_>, _: Family, _: &[&IpNet]) -> Vec<(Key, Object)> {
        Vec::new()
    }

    fn endpoint_in_kernel(&self, _: &State, at: &Instance, to: &Advert, _: &[&IpNet]) -> Option<Endpoint> {
        to.addresses.iter().next().map(|(_, address)| at.heard_at(*address))
    }
}

fn condition(peer: &str, reason: &'static str, message: String, fix: &str) -> Condition {
    let about = format!("Node/{peer}");
    Condition { about, field: "NetworkConfig spec.fabric".into(), reason, message, fix: fix.into() }
}

fn off_link(node: &LocalNode, peer: &str, theirs: IpAddr, uplink: &Uplink) -> Condition {
    let subnets: Vec<String> = uplink.subnets.iter().map(ToString::to_string).collect();
    let message = format!(
        "host-gw cannot reach {peer} at {theirs}: {} is on {} by {}, and there is a router between",
        node.name,
        subnets.join(", "),
        uplink.link
    );
    let fix =
        "set spec.fabric to vxlan or ipip; with spec.crossSubnet peers on one link still go without encapsulation";
    condition(peer, "PeerOffLink", message, fix)
}

fn other_family(node: &LocalNode, to: &Peer<'_>, family: Family) -> Condition {
    let without = if node.uplinks.get(family).is_none() { &node.name } else { to.name };
    let message = format!(
        "host-gw cannot carry {family} between {} and {}: {without} has no {family} address",
        node.name, to.name
    );
    condition(
        to.name,
        "NoNextHop",
        message,
        "give both nodes an address of that family, or set spec.fabric to vxlan, which carries either family over either",
    )
}
