//! Routes to peers' ranges: where they stand in the kernel, what they say, and what carries packets that take them.

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::claims::{FABRIC_LINK_PREFIX, MAIN_TABLE, ROUTE_METRIC, STANDBY_METRIC};
use tartan_netstate::{Key, LinkName, Netns, Object, Route, Scope, State};

use crate::{Hop, Instance, LocalNode};

/// Where the route stands that packets take.
pub(crate) fn route_to(block: &IpNet) -> Key {
    Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: ROUTE_METRIC }
}

/// Where the way stands that is blocked, while a fallback carries packets.
pub(crate) fn standby_route(block: &IpNet) -> Key {
    Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst: *block, metric: STANDBY_METRIC }
}

/// What stands there in the kernel, as far as it was read or acknowledged.
pub(crate) fn route_at<'a>(kernel: &'a State, place: &Key) -> Option<&'a Route> {
    match &kernel.get(place)?.object {
        Object::Route(route) => Some(route),
        _ => None,
    }
}

/// What carries packets that take this route; `of_device` says whose device one of ours is.
pub(crate) fn carrier(route: &Route, of_device: impl Fn(&LinkName) -> Option<Instance>) -> Option<Instance> {
    match route.dev.as_ref()? {
        dev if is_ours(dev) => of_device(dev),
        _ => route.via.is_some().then_some(Instance::HostGw),
    }
}

/// Whether it is a device of some fabric.
pub(crate) fn is_ours(device: &LinkName) -> bool {
    device.as_str().starts_with(FABRIC_LINK_PREFIX)
}

/// The route by that next hop.
pub(crate) fn route_by(hop: &Hop, node: &LocalNode, family: Family) -> Route {
    let src = node.fabric_addresses.get(family).copied();
    // IPv4 calls a route with a next hop global, one without local to its link.
    let scope = if family == Family::V4 && hop.via.is_none() { Scope::Link } else { Scope::Global };
    Route { via: hop.via, src, onlink: hop.onlink, scope, encap: hop.encap, ..Route::on_link(hop.dev.clone()) }
}
