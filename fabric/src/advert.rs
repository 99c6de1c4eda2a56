//! What this node tells its peers, and what of it they may believe already.
//!
//! Invariant: `accepts` is lengthened only after read-back and shortened before the receive side goes, and what peers have to know
//! is told until it has gone; `sends` is lengthened before the first packet and shortened only after read-back.

use std::collections::BTreeSet;
use std::sync::Arc;

use tartan_model::{Acknowledged, Advert, Endpoint, PerFamily, Said, World};

use crate::plan::Owned;
use crate::{Instance, LocalNode, fabric_of, flannel, own};

/// What the cluster may hold of this node's word. Between the word it was heard to hold and the one said last, it may
/// hold any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// What some peer may still believe to be accepted here.
    pub(crate) accepts: BTreeSet<Instance>,
    /// What every peer that has heard the latest of this node knows it to send on.
    pub(crate) sends: BTreeSet<Instance>,
    /// What was said last to be sent on.
    pub(crate) last_sends: BTreeSet<Instance>,
    /// Where the node comes over from Flannel and has said nothing yet, what its annotations say.
    of_flannel: Option<Advert>,
}

/// The Advert without its heartbeat. Its edition is the last one's as long as it says the same.
pub(crate) fn advert(
    world: &World,
    node: &LocalNode,
    mtu_in_force: u32,
    (accepts, leaving): (Vec<Endpoint>, Box<[Endpoint]>),
    sends: &BTreeSet<Instance>,
    (joining, acknowledges): (bool, Vec<Acknowledged>),
) -> Advert {
    let mut addresses = PerFamily { v4: None, v6: None };
    for (family, uplink) in node.uplinks.iter() {
        addresses.set(family, uplink.advertised());
    }
    let advert = Advert {
        node: world.local.clone(),
        node_uid: node.uid.clone(),
        addresses,
        fabric_addresses: node.fabric_addresses,
        blocks: node.blocks.clone(),
        mtu: mtu_in_force,
        accepts,
        leaving,
        sends: sends.iter().map(|at| Arc::from(at.to_string())).collect(),
        joining,
        acknowledges: Some(acknowledges.into()),
        edition: 0,
        heartbeat: 0,
    };
    let heard = world.adverts.get(&world.local).map_or(0, |heard| heard.advert.edition);
    let edition = match last(world) {
        Some(last) if last.same_but_heartbeat(&advert) => last.edition,
        Some(last) => last.edition.max(heard) + 1,
        None => 1,
    };
    Advert { edition, ..advert }
}

/// Where peers are to send on these instances: to a new address only once this kernel hears what comes for it.
pub(crate) fn endpoints(
    world: &World,
    node: &LocalNode,
    owned: &Owned,
    word: &Word,
    accepts: &BTreeSet<Instance>,
) -> Vec<Endpoint> {
    let told = |at: &str| match (last(world), &word.of_flannel) {
        (Some(last), _) => last.known_as(at),
        (None, of_flannel) => of_flannel.as_ref()?.known_as(at),
    };
    accepts.iter().filter_map(|at| endpoint(world, node, owned, at, told(&at.to_string()))).collect()
}

fn endpoint(
    world: &World,
    node: &LocalNode,
    owned: &Owned,
    at: &Instance,
    told: Option<&Endpoint>,
) -> Option<Endpoint> {
    let wanted = fabric_of(at).endpoint(node, at);
    let is_old = told.is_some() && wanted.as_ref() != told && !own::is_in_kernel(world, node, owned, at);
    if is_old { told.cloned() } else { wanted }
}

/// What peers have to go on knowing this node by, though they are not to begin to send there: they drop who they do not know, and a
/// session that one end has forgotten is none, though the other end goes on believing in it.
pub(crate) fn leaving(
    world: &World,
    node: &LocalNode,
    owned: &Owned,
    accepts: &[Endpoint],
    may_be_there: impl Fn(&Instance) -> bool,
) -> Box<[Endpoint]> {
    let stays = |told: &Endpoint| {
        let at: Instance = told.instance.parse().ok()?;
        let leaves = at.knows_senders() && accepts.iter().all(|end| end.instance != told.instance);
        let end = || endpoint(world, node, owned, &at, Some(told)).unwrap_or_else(|| told.clone());
        (leaves && may_be_there(&at)).then(end)
    };
    last(world).into_iter().flat_map(Advert::ends).filter_map(stays).collect()
}

/// What was said last, maybe by the agent before this one.
pub(crate) fn last(world: &World) -> Option<&Advert> {
    let heard = || world.adverts.get(&world.local).map(|heard| &*heard.advert);
    world.said.as_ref().map(|said| &*said.last).or_else(heard)
}

/// What peers know of a node that comes over from Flannel, as long as it has said nothing: they send to it, and hear it, as
/// its annotations say.
fn flannels(world: &World) -> Option<Advert> {
    let unheard = !world.adverts.contains_key(&world.local);
    let (flannel, node) = (world.flannel().filter(|_| unheard)?, world.local_node()?);
    let lowered = flannel::lower(flannel, node)?;
    lowered.wrong.is_none().then_some(lowered.advert)
}

/// See [`Word`].
pub(crate) fn word(world: &World) -> Word {
    let parse = |name: &Arc<str>| name.parse::<Instance>().ok();
    let instances = |names: &BTreeSet<Arc<str>>| names.iter().filter_map(parse).collect::<BTreeSet<_>>();
    let mut word = Word { of_flannel: flannels(world), ..Word::default() };
    let stored = world.adverts.get(&world.local).map(|heard| Said::heard(heard.advert.clone()));
    let heard = stored.or_else(|| Some(Said::heard(word.of_flannel.clone()?.into())));
    if let Some(said) = world.said.as_ref().or(heard.as_ref()) {
        word.accepts = instances(&said.ever_accepts);
        word.last_sends = said.last.sends.iter().filter_map(parse).collect();
        // Nobody can have heard what this node itself has not.
        word.sends = if word.of_flannel.is_some() {
            // Its own words began after that one, and have said nothing else.
            word.last_sends.clone()
        } else if heard.is_some() {
            instances(&said.always_sends)
        } else {
            BTreeSet::new()
        };
    }
    if let Some(heard) = &heard {
        word.accepts.extend(instances(&heard.ever_accepts));
        word.sends.retain(|at| heard.always_sends.contains(at.to_string().as_str()));
    }
    word
}
