//! What one pod of this node adds: its links and addresses, and which policy set is theirs.
//!
//! Invariant: a pod that has no set adds nothing, so that nothing passes to it or from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tartan_model::{Attachment, Family};
use tartan_netstate::nft::{ElementData, Fields};
use tartan_netstate::{Key, Object, Owner, Part};

use super::Seen;
use super::maps::{self, SELF, SOURCES, SUBJECTS};
use crate::nftables::named;
use crate::pod::host_link;

/// Whether the elements of a set or map are pods'.
pub fn is_of_pods(set: &str) -> bool {
    let of_pods = |stem: &str| set.strip_prefix(stem).is_some_and(|rest| matches!(rest, "4" | "6"));
    [SUBJECTS, SOURCES, SELF].into_iter().any(of_pods)
}

/// What it adds; none without a set.
pub(super) fn part(attachment: &Attachment, subjects: &OrdMap<Arc<str>, u32>) -> Option<Part> {
    let set = *subjects.get(&*pod_of(attachment))?;
    let link = host_link(&attachment.id);
    let mut objects = Vec::new();
    let mut add = |stem: &str, family: Family, fields: Fields, data: ElementData| {
        let key = Key::NftElement { set: named(stem, family).into(), key: fields.key() };
        objects.push((key, Object::NftElement(data)));
    };
    for (family, address) in attachment.addresses.iter() {
        let ends = || Fields::new().ifname(link.as_str()).addr(*address);
        add(SUBJECTS, family, ends(), maps::number(set));
        add(SOURCES, family, ends(), ElementData::default());
        add(SELF, family, Fields::new().addr(*address).addr(*address), ElementData::default());
    }
    Some(Part::of(&Owner::Pod(attachment.id.clone()), objects))
}

/// Attachments whose part may differ.
pub(super) fn changed(before: &Seen, after: &Seen) -> BTreeSet<Arc<str>> {
    let mut ids: BTreeSet<Arc<str>> = BTreeSet::new();
    for item in before.attachments.diff(&after.attachments) {
        let (DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _)) = item;
        ids.insert(id.clone());
    }
    let pods: BTreeSet<&str> = before.tables.subjects.diff(&after.tables.subjects).map(|item| pod(&item)).collect();
    if !pods.is_empty() {
        let theirs = after.attachments.iter().filter(|(_, it)| pods.contains(&*pod_of(it)));
        ids.extend(theirs.map(|(id, _)| id.clone()));
    }
    ids
}

/// As policy names it.
pub(super) fn pod_of(attachment: &Attachment) -> String {
    format!("{}/{}", attachment.pod_namespace, attachment.pod_name)
}

fn pod<'a>(item: &DiffItem<'a, 'a, Arc<str>, u32>) -> &'a str {
    match item {
        DiffItem::Add(pod, _) | DiffItem::Update { new: (pod, _), .. } | DiffItem::Remove(pod, _) => pod,
    }
}
