//! CHECK: is everything of an attachment where ADD left it?
//!
//! What ADD promised is compared with the record, and what the record wants with what the kernel holds when it has just
//! been looked at: the kernel says nothing of what happens inside a pod. What was missing and could be put back by then
//! is no error any more.
//!
//! A plugin later in the chain may change what is ours (MTU, MAC, sysctls) and add to it; that something is there is
//! what counts.

use tartan_api::cni::{CniError, CniRequest, code};
use tartan_datapath::nftables::{Given, Nftables};
use tartan_datapath::pod::{Mtu, Pods};
use tartan_model::{Attachment, Family, World};
use tartan_netstate::{Key, Owner, PodNetns};

use super::wanted::previous;

/// The pod to look into, unless it is plain without that what the answer is.
pub(super) fn look(world: &World, request: &CniRequest) -> Result<PodNetns, CniError> {
    super::ready(world, code::TRY_LATER)?;
    let attachment = attachment(world, request)?;
    as_promised(attachment, request)?;
    Ok(attachment.netns.clone())
}

/// The answer, once the kernel has been looked at.
pub fn check(world: &World, request: &CniRequest) -> Result<(), CniError> {
    let attachment = attachment(world, request)?;
    as_promised(attachment, request)?;
    as_wanted(world, attachment)
}

fn attachment<'a>(world: &'a World, request: &CniRequest) -> Result<&'a Attachment, CniError> {
    let id = Attachment::id_of(&request.container, &request.ifname);
    let attached = world.attachments.get(&id).map(|attachment| &**attachment);
    attached.ok_or_else(|| CniError::new(code::UNKNOWN_CONTAINER, format!("{id} is not attached"), "call ADD"))
}

fn as_promised(attachment: &Attachment, request: &CniRequest) -> Result<(), CniError> {
    let asked = request.netns.as_ref().map(|netns| (netns.dev, netns.ino));
    if asked != Some((attachment.netns.dev, attachment.netns.ino)) {
        return Err(differs(
            attachment,
            format!("it was attached to {}, which is another namespace", attachment.netns),
        ));
    }
    let Some(promised) = previous(&request.netconf)? else {
        let fix = "CHECK compares with the result of ADD, which the runtime keeps";
        return Err(CniError::new(code::BAD_NETCONF, "prevResult is missing", fix));
    };
    let at =
        promised.interfaces.iter().position(|at| at.name == request.ifname && at.sandbox == *attachment.netns.path);
    let Some(at) = at else {
        return Err(differs(attachment, format!("prevResult has no interface {}", request.ifname)));
    };
    for (_, address) in attachment.addresses.iter() {
        let ours = Family::host_net(*address).to_string();
        if !promised.ips.iter().any(|ip| ip.address == ours && ip.interface.is_none_or(|index| index == at)) {
            return Err(differs(attachment, format!("prevResult does not give {ours} to {}", request.ifname)));
        }
    }
    Ok(())
}

fn as_wanted(world: &World, attachment: &Attachment) -> Result<(), CniError> {
    let owner = Owner::Pod(attachment.id.clone());
    if let Some(failed) = world.programmed.failures.iter().find(|failed| failed.owner == owner) {
        return Err(differs(attachment, format!("the kernel refused {}: {}", failed.key, failed.error)));
    }
    match wanted(world, attachment).into_iter().find(|key| world.programmed.mirror.get(key).is_none()) {
        Some(key) => Err(differs(attachment, format!("{key} is missing"))),
        None => Ok(()),
    }
}

/// What is the pod's own, of all that is planned for a node with only this pod; no key depends on MTU or ranges.
/// Without sysctls: those are others' to change.
fn wanted(world: &World, attachment: &Attachment) -> Vec<Key> {
    let mut alone = World::new(world.local.clone(), world.features.clone());
    alone.attach(attachment.clone());
    let (mut pods, mut nftables) = (Pods::default(), Nftables::default());
    let all = pods.plan(&alone, Mtu::default()).iter().chain(nftables.plan(&alone, &Given::default()).iter());
    let own = all.filter(|(key, entry)| matches!(entry.owner, Owner::Pod(_)) && !matches!(key, Key::LinkSysctl { .. }));
    own.map(|(key, _)| key.clone()).collect()
}

fn differs(attachment: &Attachment, how: String) -> CniError {
    let fix = "Tartan repairs what it sees to be missing; if this stays, delete the pod, which makes it anew";
    CniError::new(code::NOT_AS_ADDED, format!("{}: {how}", super::who(attachment)), fix)
}
