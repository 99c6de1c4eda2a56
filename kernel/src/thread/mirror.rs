//! The mirror: what the kernel was last read or acknowledged to hold.
//!
//! Invariant: after a clean apply it shares its structure with the wanted state, so the next diff visits only what
//! changed.

use std::collections::{BTreeMap, BTreeSet};

use tartan_netstate::claims::{DYING_LINK_GROUPS, POD_LINK_PREFIX};
use tartan_netstate::{Entry, Key, Link, LinkKind, LinkName, Netns, Object, Op, Owner, State, Step};

use crate::link::dying_group;
use crate::{Failure, Scope};

/// Puts what was read in place of what the scope covers. Says whether it was anything else.
pub(super) fn take_read(mirror: &mut State, scope: &Scope, read: &State) -> bool {
    let lost = lost(mirror, scope, read);
    for key in &lost {
        match key.as_link() {
            Some((ns, link)) => forget_link(mirror, &ns, &link),
            None => drop(mirror.remove(key)),
        }
    }
    let mut changed = !lost.is_empty();
    for (key, entry) in read.iter_shared() {
        if !mirror.holds(key, &entry.object) {
            mirror.share(key.clone(), entry.clone());
            changed = true;
        }
    }
    changed
}

/// What the scope covers and the kernel no longer has. One link or pod is not looked for among all there are.
fn lost(mirror: &State, scope: &Scope, read: &State) -> Vec<Key> {
    let is_lost = |key: &&Key| {
        let covered = mirror.get(key).is_some_and(|entry| scope.covers(key, &entry.object));
        covered && read.get(key).is_none()
    };
    match scope {
        Scope::Link(link) => mirror.on_link(&Netns::Host, link).filter(is_lost).cloned().collect(),
        Scope::Pod { ns, .. } => mirror.in_netns(&ns.clone().into()).filter(is_lost).cloned().collect(),
        Scope::Sysctls(keys) => keys.iter().filter(is_lost).cloned().collect(),
        _ => {
            let covered = mirror.iter().filter(|(key, entry)| scope.covers(key, &entry.object));
            covered.map(|(key, _)| key).filter(|key| read.get(key).is_none()).cloned().collect()
        }
    }
}

/// Takes in what was carried out of these steps. Their entries are those of the wanted state.
pub(super) fn take_applied(mirror: &mut State, steps: &[Step], failures: &[Failure]) {
    let failed: BTreeSet<&Key> = failures.iter().map(|failure| &failure.key).collect();
    let policy_failed = failures.iter().any(|failure| failure.key.is_of_policy());
    let has_failed = |key: &Key| failed.contains(key) || policy_failed && key.is_of_policy();
    for step in steps.iter().filter(|step| !has_failed(step.key())) {
        step.apply_to(mirror);
        if let Op::Replace { key, new, .. } = step.op()
            && is_dying(new)
        {
            forget_far_end(mirror, key, new);
        }
    }
}

/// Shares with `wanted` all that is equal; what differs in its object stays as it is.
pub(super) fn share(mirror: &mut State, wanted: &State) {
    let mut shared = wanted.clone();
    let differing: Vec<Key> = wanted.differing_keys(mirror).cloned().collect();
    for key in &differing {
        match (mirror.get_shared(key), wanted.get(key)) {
            (Some((_, is)), Some(should)) if is.object == should.object => {}
            (Some((key, is)), _) => shared.share(key.clone(), is.clone()),
            (None, _) => drop(shared.remove(key)),
        }
    }
    *mirror = shared;
}

/// What is inside a pod on a condemned link is nobody's any more: the next link of that name begins with nothing.
fn forget_far_end(mirror: &mut State, key: &Key, condemned: &Object) {
    if let Some((ns, link)) = key.as_link() {
        forget_link(mirror, &ns, &link);
        mirror.insert(key.clone(), condemned.clone(), Owner::Read);
    }
}

/// Takes out a link, with what goes when it goes.
pub(super) fn forget_link(mirror: &mut State, ns: &Netns, link: &LinkName) {
    for key in tartan_netstate::diff::hanging_on(mirror, &BTreeSet::from([(ns.clone(), link.clone())])) {
        mirror.remove(&key);
    }
}

/// Our links of the node's namespace.
pub(super) fn node_links(mirror: &State) -> impl Iterator<Item = (&Key, &Entry)> {
    let first = LinkName::new(POD_LINK_PREFIX).expect("a prefix is a name");
    let first = Key::Link { ns: Netns::Host, link: first };
    mirror.entries_from(&first).take_while(|(key, _)| matches!(key, Key::Link { ns: Netns::Host, .. }))
}

/// Those of them that are on their way out.
pub(super) fn dying(mirror: &State) -> BTreeMap<Key, Object> {
    let dying = node_links(mirror).filter(|(_, entry)| is_dying(&entry.object));
    dying.map(|(key, entry)| (key.clone(), entry.object.clone())).collect()
}

pub(super) fn is_dying(object: &Object) -> bool {
    matches!(object, Object::Link(link) if DYING_LINK_GROUPS.contains(&link.group) && !link.up)
}

/// Deletes first what stands in the way of a new link: one whose far end has the same name in the same namespace. The
/// kernel deletes all condemned links with it, so what was to be changed of those is to be made. So it is where they are
/// being deleted already.
pub(super) fn out_of_the_way(mirror: &State, being_buried: bool, steps: Vec<Step>) -> Vec<Step> {
    let new_ends: BTreeSet<(&Netns, &LinkName)> = steps
        .iter()
        .filter_map(|step| if let Op::Create(_, object) = step.op() { far_end(object) } else { None })
        .collect();
    let stands = |object: &Object| far_end(object).is_some_and(|end| new_ends.contains(&end));
    let raised = |step: &Step| matches!(step.op(), Op::Replace { old, .. } if is_dying(old));
    let too_late = being_buried && steps.iter().any(raised);
    if !too_late && (new_ends.is_empty() || !node_links(mirror).any(|(_, entry)| stands(&entry.object))) {
        return steps;
    }
    let going = node_links(mirror).filter(|(_, entry)| stands(&entry.object) || is_dying(&entry.object));
    let going: BTreeMap<Key, Object> = going.map(|(key, entry)| (key.clone(), entry.object.clone())).collect();
    let rest = steps.into_iter().filter_map(|step| match step {
        Step::Replace { key, new, .. } if going.contains_key(&*key) => {
            (!is_dying(&new.object)).then_some(Step::Create(key, new))
        }
        Step::Delete(key, _) if going.contains_key(&*key) => None,
        step => Some(step),
    });
    let rest: Vec<_> = rest.collect();
    going.into_iter().map(|(key, object)| Step::delete(key, object, Owner::Read)).chain(rest).collect()
}

/// Where the other end of a pod's link is.
fn far_end(object: &Object) -> Option<(&Netns, &LinkName)> {
    let Object::Link(link) = object else { return None };
    let LinkKind::Veth { peer, peer_name } = &link.kind else { return None };
    Some((peer, peer_name))
}

/// Makes the deletion of a link of the node its condemnation. False where that leaves nothing to do.
pub(super) fn condemn(step: &mut Step) -> bool {
    let Op::Delete(key @ Key::Link { ns: Netns::Host, .. }, old) = step.op() else { return true };
    let Object::Link(link) = old else { return true };
    let new = Link { group: dying_group(link.group), up: false, ..(**link).clone() };
    let is_news = !is_dying(old);
    *step = Step::replace(key.clone(), old.clone(), Object::Link(new.into()), step.owner().clone());
    is_news
}
