//! Which addresses a pod gets.

use std::net::IpAddr;
use std::time::Instant;

use tartan_api::cni::{CniError, CniRequest, code};
use tartan_ipam::{Memo, Refused};
use tartan_model::{Attachment, PerFamily, World};

use super::wanted::Wanted;

/// One address a family: those of an unfinished ADD again unless others are asked for, else new ones.
pub(super) fn of(
    world: &World,
    ipam: &mut Memo,
    request: &CniRequest,
    wanted: &Wanted,
    unfinished: Option<&Attachment>,
    now: Instant,
) -> Result<PerFamily<IpAddr>, CniError> {
    if let Some(given) = wanted.given {
        let by = request.netconf.ipam_type().unwrap_or_default();
        let own = unfinished.map_or("", |unfinished| &*unfinished.id);
        let refused = |refused: Refused| CniError::new(code::NO_ADDRESS, format!("ipam.type {by}: {refused}"), "");
        return tartan_ipam::may_have(ipam, world, own, &given, now).map(|()| given).map_err(refused);
    }
    let as_asked = |has: &Attachment| wanted.addresses.iter().all(|(family, ip)| has.addresses.get(family) == Some(ip));
    if let Some(unfinished) = unfinished.filter(|unfinished| as_asked(unfinished)) {
        return Ok(unfinished.addresses);
    }
    let asked = tartan_ipam::Request { namespace: &request.pod.namespace, addresses: wanted.addresses };
    tartan_ipam::allocate(ipam, world, &asked, now).map_err(|refused| {
        let soon = matches!(refused, Refused::NoBlockYet { .. });
        let code = if soon { code::TRY_LATER } else { code::NO_ADDRESS };
        CniError::new(code, refused.to_string(), "")
    })
}

/// Whether a pod that asks for nothing in particular could get its addresses.
pub(super) fn any_left(world: &World, ipam: &mut Memo, now: Instant) -> Result<(), CniError> {
    tartan_ipam::any_left(ipam, world, now)
        .map_err(|refused| CniError::new(code::NOT_AVAILABLE, refused.to_string(), ""))
}
