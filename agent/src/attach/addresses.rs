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
    let own = unfinished.map_or("", |unfinished| &*unfinished.id);
    if let Some(given) = wanted.given {
        let by = request.netconf.ipam_type().unwrap_or_default();
        let refused = |refused: Refused| CniError::new(code::NO_ADDRESS, format!("ipam.type {by}: {refused}"), "");
        return tartan_ipam::may_have(ipam, world, own, &given, now).map(|()| given).map_err(refused);
    }
    let as_asked = |has: &Attachment| wanted.addresses.iter().all(|(family, ip)| has.addresses.get(family) == Some(ip));
    if let Some(unfinished) = unfinished.filter(|unfinished| as_asked(unfinished)) {
        return Ok(unfinished.addresses);
    }
    let asked = tartan_ipam::Request { namespace: &request.pod.namespace, addresses: wanted.addresses, id: own };
    tartan_ipam::allocate(ipam, world, &asked, now).map_err(|refused| {
        let soon = matches!(refused, Refused::NoBlockYet { .. } | Refused::StoreAway { .. });
        let code = if soon { code::TRY_LATER } else { code::NO_ADDRESS };
        CniError::new(code, refused.to_string(), "")
    })
}

/// Whether this node has addresses to give. That all are used is a matter of the pod that wants one: a node that is out of
/// service for it would have its pods evicted, and they would fill up the next one.
pub(super) fn has_some(world: &World, ipam: &mut Memo, now: Instant) -> Result<(), CniError> {
    match tartan_ipam::any_left(ipam, world, now) {
        Ok(()) | Err(Refused::Exhausted(_)) => Ok(()),
        Err(refused) => Err(CniError::new(code::NOT_AVAILABLE, refused.to_string(), "")),
    }
}
