//! Which addresses a pod gets.

use std::net::IpAddr;
use std::time::Instant;

use tartan_api::cni::{CniError, CniRequest, code};
use tartan_model::{Attachment, PerFamily, World};

use super::wanted::Wanted;

/// One address a family: those of an unfinished ADD again unless others are asked for, else new ones.
pub(super) fn of(
    world: &World,
    request: &CniRequest,
    wanted: &Wanted,
    unfinished: Option<&Attachment>,
    now: Instant,
) -> Result<PerFamily<IpAddr>, CniError> {
    let as_asked = |has: &Attachment| wanted.addresses.iter().all(|(family, ip)| has.addresses.get(family) == Some(ip));
    if let Some(unfinished) = unfinished.filter(|unfinished| as_asked(unfinished)) {
        return Ok(unfinished.addresses);
    }
    let asked = tartan_ipam::Request { namespace: &request.pod.namespace, addresses: wanted.addresses };
    tartan_ipam::allocate(world, &asked, now).map_err(|error| CniError::new(code::NO_ADDRESS, error.to_string(), ""))
}

/// Whether a pod that asks for nothing in particular would get its addresses.
pub(super) fn any_left(world: &World, now: Instant) -> Result<(), CniError> {
    let any = tartan_ipam::Request::default();
    let allocated = tartan_ipam::allocate(world, &any, now);
    allocated.map(drop).map_err(|error| CniError::new(code::NOT_AVAILABLE, error.to_string(), ""))
}
