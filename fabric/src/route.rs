//! Routes to peers' ranges: where they stand in the kernel, and what they say.

use ipnet::IpNet;
use tartan_model::Family;
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_METRIC, STANDBY_METRIC};
use tartan_netstate::{Key, Netns, Object, Route, Scope, State};

use crate::{Hop, LocalNode};

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

/// The route by that next hop.
pub(crate) fn route_by(hop: &Hop, node: &LocalNode, family: Family) -> Route {
    let src = node.fabric_addresses.get(family).copied();
    // IPv4 calls a route with a next hop global, one without local to its link.
    let scope = if family == Family::V4 && hop.via.is_none() { Scope::Link } else { Scope::Global };
    Route { via: hop.via, src, onlink: hop.onlink, scope, encap: hop.encap, ..Route::on_link(hop.dev.clone()) }
}
