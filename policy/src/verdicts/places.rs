//! Where to look for the identities that a list of peers may match, and for the lists that may match an identity, so that
//! not each of thousands is asked of each of thousands.
//!
//! An identity is at several places: its namespace, each of its labels, its zone. Whatever a peer matches is at
//! one of the places that the peer looks at: those of one label that it wants, of its namespace, or of its ranges,
//! whichever hold fewest when it is first asked.
//!
//! Invariant: who may match is found; who is found may not match.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Labels, Selector};

use super::identities::Identity;
use crate::ir::{Endpoints, Is, Namespaces, Peer, Term};

/// One place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// All identities are here.
    Anywhere,
    /// Pods of which no labels are known: whoever asks for labels may match them.
    Unknown,
    Namespace(Arc<str>),
    NamespaceLabel(Arc<str>, Arc<str>),
    Label(Arc<str>, Arc<str>),
    /// The range that an identity's zone goes by; of a peer, any range.
    Range(IpNet),
}

/// What is at each place.
#[derive(Default)]
pub(super) struct Places<T>(BTreeMap<Place, BTreeSet<T>>);

// === impl Places ===

impl<T: Ord + Copy> Places<T> {
    pub(super) fn insert(&mut self, what: T, places: impl IntoIterator<Item = Place>) {
        for place in places {
            self.0.entry(place).or_default().insert(what);
        }
    }

    pub(super) fn remove(&mut self, what: T, places: impl IntoIterator<Item = Place>) {
        for place in places {
            let Some(there) = self.0.get_mut(&place) else { continue };
            there.remove(&what);
            if there.is_empty() {
                self.0.remove(&place);
            }
        }
    }

    pub(super) fn at(&self, place: &Place) -> impl Iterator<Item = T> {
        self.0.get(place).into_iter().flatten().copied()
    }
}

impl Places<u32> {
    /// Identities at a place that a peer looks at.
    pub(super) fn inside(&self, place: &Place) -> impl Iterator<Item = u32> {
        self.sets_inside(place).flatten().copied()
    }

    fn count_inside(&self, place: &Place) -> usize {
        self.sets_inside(place).map(BTreeSet::len).sum()
    }

    fn sets_inside(&self, place: &Place) -> impl Iterator<Item = &BTreeSet<u32>> {
        let whole = |address, length| Place::Range(IpNet::new(address, length).expect("a length of its family"));
        let (first, last) = match place {
            Place::Range(range) => {
                (whole(range.network(), range.prefix_len()), whole(range.broadcast(), range.max_prefix_len()))
            }
            place => (place.clone(), place.clone()),
        };
        self.0.range(first..=last).map(|(_, there)| there)
    }

    /// Where to look for what a peer matches.
    pub(super) fn of_peer(&self, peer: &Peer) -> Vec<Place> {
        let that = peer.0.iter().filter(|term| !term.negated);
        let ways = that.flat_map(ways);
        ways.min_by_key(|places| places.iter().map(|place| self.count_inside(place)).sum::<usize>())
            .unwrap_or_else(|| vec![Place::Anywhere])
    }
}

/// Places at one of which everything is that a statement holds for: several such lists.
fn ways(term: &Term) -> Vec<Vec<Place>> {
    match &term.is {
        Is::Endpoint(endpoints) => ways_to(endpoints),
        Is::In(nets) => vec![nets.ranges.iter().copied().map(Place::Range).collect()],
        Is::Entity(_) | Is::Node(_) => Vec::new(),
    }
}

fn ways_to(endpoints: &Endpoints) -> Vec<Vec<Place>> {
    let by_labels = |selector: &Selector, place: fn(Arc<str>, Arc<str>) -> Place| {
        let wanted = selector.wanted_values().into_iter();
        let each =
            wanted.map(|(label, values)| values.into_iter().map(|value| place(label.into(), value.into())).collect());
        each.collect::<Vec<Vec<Place>>>()
    };
    let mut ways = by_labels(&endpoints.labels, Place::Label);
    match &endpoints.namespaces {
        Namespaces::Any => {}
        Namespaces::Named(name) => ways.push(vec![Place::Namespace(name.clone())]),
        Namespaces::Labelled(selector) => ways.extend(by_labels(selector, Place::NamespaceLabel)),
    }
    ways.iter_mut().for_each(|way| way.push(Place::Unknown));
    ways
}

/// Where an identity is.
pub(super) fn of_identity(identity: &Identity) -> impl Iterator<Item = Place> {
    let unknown = identity.traits.entity.may_be_any_pod().then_some(Place::Unknown);
    let workload = identity.traits.workload.iter();
    let of_workload = workload.flat_map(|workload| {
        let of = |labels: &Labels, place: fn(Arc<str>, Arc<str>) -> Place| {
            labels.iter().map(|(label, value)| place(label.into(), value.into())).collect::<Vec<_>>()
        };
        let labels = of(&workload.labels, Place::Label);
        let of_namespace = of(&workload.namespace_labels, Place::NamespaceLabel);
        [Place::Namespace(workload.namespace.clone())].into_iter().chain(labels).chain(of_namespace)
    });
    let zone = identity.zone.map(Place::Range);
    [Place::Anywhere].into_iter().chain(unknown).chain(of_workload).chain(zone)
}

/// Where peers may look that match an identity; the ranges that they look at have these prefix lengths.
pub(super) fn looked_at<'a>(
    identity: &'a Identity,
    lengths: impl Iterator<Item = &'a u8>,
) -> impl Iterator<Item = Place> {
    let around = |length: &u8| IpNet::new(identity.zone?.addr(), *length).ok();
    let ranges = lengths.filter_map(around).map(|range| Place::Range(range.trunc()));
    of_identity(identity).chain(ranges)
}
