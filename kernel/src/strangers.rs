//! Links in a pod that have the name of an end of ours and are somebody else's.
//!
//! Invariant: a step inside a pod is about the far end of a pair of ours, or it is not taken. That the pair was to be
//! made a moment ago proves nothing: the kernel may have refused, because the name was taken. That it was made does.

use std::collections::BTreeSet;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use tartan_netstate::{Key, LinkName, Netns, Object, Op, PodNetns, Step};

use crate::namespace::Namespace;
use crate::{Failure, KernelError, link};

/// The links that these steps are about and that are somebody else's; `made` are ours. The calling thread is in the pod.
pub(crate) fn among(
    host: &mut Namespace,
    inside: &mut Namespace,
    pod: &PodNetns,
    steps: &[&Step],
    made: &BTreeSet<&LinkName>,
) -> Result<BTreeSet<LinkName>, KernelError> {
    let mut strangers = BTreeSet::new();
    let about: BTreeSet<&LinkName> = steps.iter().filter_map(|step| link_of(step)).collect();
    for name in about.difference(made) {
        let Some(RouteNetlinkMessage::NewLink(message)) = inside.netlink.get("a link", link::look_up(name))? else {
            continue;
        };
        let far = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        });
        let leads_here = match far {
            Some(index) => host
                .netlink
                .get("a link", link::look_up_index(index))?
                .is_some_and(|far| link::leads_to(&far).is_some_and(|(ns, end)| is_same(&ns, pod) && end == **name)),
            None => false,
        };
        if !leads_here {
            strangers.insert(LinkName::clone(name));
        }
    }
    Ok(strangers)
}

/// What becomes of a step on a link that is somebody else's; none if the step is about no such link, or takes away
/// what cannot be there.
pub(crate) fn refusal(step: &Step, strangers: &BTreeSet<LinkName>) -> Option<Failure> {
    let name = link_of(step).filter(|name| strangers.contains(*name))?;
    let what = format!("{name} in {}", step.key().netns());
    let theirs = "it is not the far end of a link of Tartan's".to_owned();
    let error = KernelError::Conflict { what, theirs };
    (!step.deletes()).then(|| Failure::of(step, error))
}

/// Whether the step is not to be taken.
pub(crate) fn is_about(step: &Step, strangers: &BTreeSet<LinkName>) -> bool {
    link_of(step).is_some_and(|name| strangers.contains(name))
}

fn link_of(step: &Step) -> Option<&LinkName> {
    match (step.key(), step.op()) {
        (Key::Link { link, .. }, _) => Some(link),
        (
            Key::Route { .. },
            Op::Create(_, Object::Route(route))
            | Op::Delete(_, Object::Route(route))
            | Op::Replace { new: Object::Route(route), .. },
        ) => route.dev.as_ref(),
        (key, _) => key.link(),
    }
}

/// Whatever path it is known by.
fn is_same(ns: &Netns, pod: &PodNetns) -> bool {
    matches!(ns, Netns::Pod(found) if (found.dev, found.ino) == (pod.dev, pod.ino))
}
