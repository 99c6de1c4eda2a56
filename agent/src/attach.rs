//! What becomes of a CNI request: pure, from World and the request to a record, a removal or an answer.
//!
//! Invariants: nothing is decided before World is known; an answered attachment is never changed by an ADD; a DEL of
//! what is not there is a success.
//!
//! ADD with a prevResult (we are not the first of the chain) adds our interface to it. ADD of an attachment that was
//! decided but never answered, e.g. because the agent died, is finished with the addresses it has, unless it asks for others now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tartan_api::cni::{CniError, CniRequest, Command, code};
use tartan_model::{Attachment, Failed, World};
use tartan_netstate::{Key, LinkName, Owner, PodNetns};

use crate::cni_files::NETWORK;
use crate::journal::{JournalError, Record};
use crate::plan::is_known;
use crate::status::waiting_for;

mod addresses;
mod check;
mod outcome;
mod ports;
mod wanted;

pub use check::check;
pub use outcome::result;

/// What a request comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// A pod is to be attached like this; the caller waits until the kernel has it.
    Attach(Attachment),
    /// These are to go; the caller waits until the kernel let go of them.
    Detach(Vec<Arc<str>>),
    /// The kernel is to look into this pod; the caller waits for what [`check`] then says.
    Check(PodNetns),
    /// Nothing changes.
    Answer(Value),
}

/// Decides on a request.
pub fn decide(
    world: &World,
    ipam: &mut tartan_ipam::Memo,
    request: &CniRequest,
    now: Instant,
) -> Result<Decision, CniError> {
    match request.command {
        Command::Add => add(world, ipam, request, now).map(Decision::Attach),
        Command::Del => Ok(Decision::Detach(del(world, request))),
        Command::Gc => Ok(Decision::Detach(gc(world, request)?)),
        Command::Check => check::look(world, request).map(Decision::Check),
        Command::Status => status(world, ipam, request, now).map(|()| Decision::Answer(Value::Null)),
    }
}

/// The journal's record of a new attachment.
pub fn record(attachment: &Attachment) -> Record {
    Record::Add(attachment.clone())
}

/// The unfinished attachment in whose place this one comes with other addresses: those it had are to rest.
pub fn gives_up<'a>(world: &World, instead: &'a Attachment) -> Option<&'a Arc<str>> {
    let unfinished = world.attachments.get(&instead.id)?;
    (unfinished.addresses != instead.addresses).then_some(&instead.id)
}

/// What the caller is told when the journal cannot be written.
pub fn not_written(error: &JournalError) -> CniError {
    journal_refused(error.to_string())
}

/// Lets go of each of these. One of which `let_go` fails holds up no other, and the caller is told of all that did.
pub fn let_go_of_each(
    ids: &[Arc<str>],
    mut let_go: impl FnMut(&Arc<str>) -> Result<(), JournalError>,
) -> Result<(), CniError> {
    let failed: Vec<String> = ids.iter().filter_map(|id| Some(format!("{id}: {}", let_go(id).err()?))).collect();
    if failed.is_empty() { Ok(()) } else { Err(journal_refused(failed.join("; "))) }
}

fn journal_refused(details: String) -> CniError {
    CniError::new(code::TRY_LATER, "the agent's journal cannot be written", details)
}

fn add(
    world: &World,
    ipam: &mut tartan_ipam::Memo,
    request: &CniRequest,
    now: Instant,
) -> Result<Attachment, CniError> {
    ready(world, code::TRY_LATER)?;
    let wanted = wanted::Wanted::read(request)?;
    let netns = netns(request)?;
    let id = Attachment::id_of(&request.container, &request.ifname);
    let unfinished = world.attachments.get(&id);
    refuse_existing(world, request, &id, &netns)?;
    ports::refuse_taken(world, &id, &wanted.ports)?;
    let addresses = addresses::of(world, ipam, request, &wanted, unfinished.map(|it| &**it), now)?;
    ports::refuse_unreachable(&wanted.ports, &addresses)?;
    Ok(Attachment {
        mac: wanted.mac.unwrap_or_else(|| tartan_datapath::pod::pod_mac(&id)),
        id,
        container: request.container.as_str().into(),
        ifname: request.ifname.as_str().into(),
        netns,
        pod_namespace: request.pod.namespace.as_str().into(),
        pod_name: request.pod.name.as_str().into(),
        addresses,
        ports: wanted.ports,
        limits: wanted.limits,
        network: network(request),
        answered: false,
    })
}

/// The spec: ADD of an interface that exists is an error.
fn refuse_existing(world: &World, request: &CniRequest, id: &str, netns: &PodNetns) -> Result<(), CniError> {
    let exists = |by: String| {
        let msg = format!("{} already has an interface {}{by}", netns.path, request.ifname);
        CniError::new(code::EXISTS, msg, "call DEL before another ADD, or choose another CNI_IFNAME")
    };
    let here = |other: &Attachment| other.netns == *netns && *other.ifname == *request.ifname;
    for other in world.attachments.values() {
        if *other.id == *id && other.answered {
            return Err(exists(String::new()));
        }
        if *other.id != *id && here(other) {
            return Err(exists(format!(", of {}", who(other))));
        }
    }
    let previous = wanted::previous(&request.netconf)?.unwrap_or_default();
    let taken = previous.interfaces.iter().any(|at| at.name == request.ifname && at.sandbox == *netns.path);
    if taken { Err(exists(", made by a plugin before this one in the chain".into())) } else { Ok(()) }
}

fn netns(request: &CniRequest) -> Result<PodNetns, CniError> {
    let missing = |what: &str| CniError::new(code::BAD_ENVIRONMENT, format!("{what} is missing or wrong"), "");
    LinkName::new(&request.ifname).ok_or_else(|| missing("CNI_IFNAME"))?;
    let netns = request.netns.as_ref().ok_or_else(|| missing("CNI_NETNS"))?;
    Ok(PodNetns { dev: netns.dev, ino: netns.ino, path: netns.path.as_str().into() })
}

fn del(world: &World, request: &CniRequest) -> Vec<Arc<str>> {
    let id = Attachment::id_of(&request.container, &request.ifname);
    if world.attachments.contains_key(&id) { vec![id] } else { Vec::new() }
}

fn gc(world: &World, request: &CniRequest) -> Result<Vec<Arc<str>>, CniError> {
    let Some(valid) = &request.netconf.valid_attachments else {
        let fix = "without it GC would remove every pod; an empty list says that none is to stay";
        return Err(CniError::new(code::BAD_NETCONF, "cni.dev/valid-attachments is missing", fix));
    };
    let valid: BTreeSet<Arc<str>> = valid.iter().map(|at| Attachment::id_of(&at.container_id, &at.ifname)).collect();
    let network = network(request);
    let of_network = world.attachments.values().filter(|at| at.network == network);
    Ok(of_network.filter(|at| !valid.contains(&at.id)).map(|at| at.id.clone()).collect())
}

/// As [`Attachment::network`] has it. The spec: GC is of one network; others' attachments are none of its list.
fn network(request: &CniRequest) -> Option<Arc<str>> {
    let name = &*request.netconf.name;
    (name != NETWORK).then(|| name.into())
}

/// Whether an ADD could work now, and the pod then. A failure of one peer's or one pod's objects is theirs alone: the
/// node can take pods. A runtime takes a node whose STATUS fails out of service.
fn status(world: &World, ipam: &mut tartan_ipam::Memo, request: &CniRequest, now: Instant) -> Result<(), CniError> {
    // What is left out later on holds up nothing, and the first read all the same.
    let unread = world.programmed.unknown.as_ref().or(world.programmed.left_out.as_ref());
    if let (false, Some(why)) = (world.programmed.read, unread) {
        let msg = "what is in the kernel cannot be read, so nothing in it is kept as it should be";
        return Err(CniError::new(code::NOT_WORKING, msg, why.to_string()));
    }
    ready(world, code::NOT_AVAILABLE)?;
    if let Some(failed) = world.programmed.failures.iter().find(|failed| is_of_all_pods(world, failed)) {
        let msg = format!("the kernel refuses what all pods of this node need: {}", failed.key);
        return Err(CniError::new(code::NOT_WORKING, msg, failed.error.to_string()));
    }
    match request.netconf.ipam_type() {
        // That one is asked by the plugin.
        Some(_) => Ok(()),
        None => addresses::has_some(world, ipam, now),
    }
}

/// Whether all pods stand on it. An instance that peers were never told of carries nothing yet: as long as there is another
/// one, packets go by that, whatever the configuration asks for.
fn is_of_all_pods(world: &World, failed: &Failed) -> bool {
    match (&failed.owner, &failed.key) {
        // For pods of before alone.
        (_, Key::Proxied { .. } | Key::PodBridge { .. }) => false,
        (Owner::Node, _) => true,
        (Owner::Fabric(instance), _) => {
            let heard = || world.adverts.get(&world.local).map(|heard| &*heard.advert);
            let word = world.said.as_ref().map(|said| &*said.last).or_else(heard);
            let told = word.map_or(&[][..], |word| &word.accepts);
            told.is_empty() || told.iter().any(|end| end.instance == *instance)
        }
        _ => false,
    }
}

fn ready(world: &World, code: u32) -> Result<(), CniError> {
    if is_known(world) {
        return Ok(());
    }
    let msg = format!("the agent is not ready: it waits for {}", waiting_for(world));
    Err(CniError::new(code, msg, "it retries by itself; `tartan status` on this node shows how far it is"))
}

/// How a user knows a pod.
fn who(attachment: &Attachment) -> String {
    if attachment.pod_name.is_empty() {
        format!("container {}", attachment.container)
    } else {
        format!("pod {}/{}", attachment.pod_namespace, attachment.pod_name)
    }
}

#[cfg(test)]
pub(crate) mod tests;
