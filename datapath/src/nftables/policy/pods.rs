//! What one pod of this node adds: its links and addresses, and which policy set is theirs.
//!
//! Invariant: a pod that has no set adds nothing, so that nothing passes to it or from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use tartan_model::Attachment;
use tartan_netstate::nft::{ElementData, Fields};
use tartan_netstate::{Key, Object, Owner, Part, State};

use super::Seen;
use super::maps::{self, SELF, SOURCES, SUBJECTS};
use crate::nftables::named;
use crate::pod::host_link;

/// Whether the elements of a set or map are pods'.
pub fn is_of_pods(set: &str) -> bool {
    let of_pods = |stem: &str| set.strip_prefix(stem).is_some_and(|rest| matches!(rest, "4" | "6"));
    [SUBJECTS, SOURCES, SELF].into_iter().any(of_pods)
}

/// Whether this state has a set for it: then packets from and to it are judged, and else dropped.
pub fn is_judged(state: &State, attachment: &Attachment) -> bool {
    elements(attachment, 0, false).all(|(key, _)| state.get(&key).is_some())
}

/// All elements that may be its.
pub fn keys(attachment: &Attachment) -> impl Iterator<Item = Key> {
    elements(attachment, 0, true).map(|(key, _)| key)
}

/// What it adds; none without a set.
pub(super) fn part(attachment: &Attachment, seen: &Seen) -> Option<Part> {
    let set = *seen.tables.subjects.get(&*attachment.pod())?;
    Some(Part::of(&Owner::Pod(attachment.id.clone()), elements(attachment, set, seen.ipvs).collect()))
}

fn elements(attachment: &Attachment, set: u32, ipvs: bool) -> impl Iterator<Item = (Key, Object)> {
    let link = host_link(&attachment.id);
    attachment.addresses.iter().flat_map(move |(family, address)| {
        let element = |stem: &str, fields: Fields, data: ElementData| {
            let key = Key::NftElement { set: named(stem, family).into(), key: fields.key() };
            (key, Object::NftElement(data))
        };
        let ends = |link: &str| Fields::new().ifname(link).addr(*address);
        let own = [
            element(SUBJECTS, ends(link.as_str()), maps::number(set)),
            element(SOURCES, ends(link.as_str()), ElementData::default()),
            element(SELF, Fields::new().addr(*address).addr(*address), ElementData::default()),
        ];
        // What IPVS passes on has come by no link; that its source is its own was seen when it came from the pod.
        let passed_on =
            [element(SUBJECTS, ends(""), maps::number(set)), element(SOURCES, ends(""), ElementData::default())];
        own.into_iter().chain(passed_on.into_iter().filter(move |_| ipvs))
    })
}

/// Attachments whose part may differ.
pub(super) fn changed(before: &Seen, after: &Seen) -> BTreeSet<Arc<str>> {
    if before.ipvs != after.ipvs {
        return before.attachments.keys().chain(after.attachments.keys()).cloned().collect();
    }
    let mut ids: BTreeSet<Arc<str>> = BTreeSet::new();
    for item in before.attachments.diff(&after.attachments) {
        let (DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _)) = item;
        ids.insert(id.clone());
    }
    let pods: BTreeSet<&str> = before.tables.subjects.diff(&after.tables.subjects).map(|item| pod(&item)).collect();
    if !pods.is_empty() {
        let theirs = after.attachments.iter().filter(|(_, it)| pods.contains(&*it.pod()));
        ids.extend(theirs.map(|(id, _)| id.clone()));
    }
    ids
}

fn pod<'a>(item: &DiffItem<'a, 'a, Arc<str>, u32>) -> &'a str {
    match item {
        DiffItem::Add(pod, _) | DiffItem::Update { new: (pod, _), .. } | DiffItem::Remove(pod, _) => pod,
    }
}
