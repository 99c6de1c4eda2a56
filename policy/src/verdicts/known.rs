//! Known addresses: who says that each is theirs, and the number of the identity that follows from it.
//!
//! Invariant: an address is here while anybody says so, or while it has an identity.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::ANY;

/// Somebody who says that an address is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claimant {
    Node(Arc<str>),
    Pod(Arc<str>),
}

/// All who say so. There may be a hundred thousand addresses, nearly all of them of one.
#[derive(Debug, Default)]
pub(super) enum Claimants {
    #[default]
    Nobody,
    One(Claimant),
    Several(Box<[Claimant]>),
}

/// What is known of one.
#[derive(Debug, Default)]
struct Known {
    claimants: Claimants,
    /// [`ANY`] while it has none.
    identity: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Addresses {
    all: BTreeMap<IpAddr, Known>,
    /// How many there were when the tree was packed last.
    packed: usize,
}

// === impl Addresses ===

impl Addresses {
    pub(super) fn claim(&mut self, address: IpAddr, claimant: Claimant) {
        let claimants = &mut self.all.entry(address).or_default().claimants;
        *claimants = match std::mem::take(claimants) {
            Claimants::Nobody => Claimants::One(claimant),
            Claimants::One(one) if one == claimant => Claimants::One(one),
            Claimants::One(one) => Claimants::Several([one, claimant].into()),
            Claimants::Several(several) => {
                let others = several.into_iter().filter(|other| *other != claimant);
                Claimants::Several(others.chain([claimant.clone()]).collect())
            }
        };
    }

    /// What has no claimant is forgotten when its identity is revised.
    pub(super) fn disclaim(&mut self, address: &IpAddr, claimant: &Claimant) {
        let Some(Known { claimants, .. }) = self.all.get_mut(address) else { return };
        *claimants = match std::mem::take(claimants) {
            Claimants::One(one) if one == *claimant => Claimants::Nobody,
            Claimants::Several(several) => {
                let mut others: Vec<Claimant> = several.into_iter().filter(|other| other != claimant).collect();
                match others.len() {
                    1 => others.pop().map_or(Claimants::Nobody, Claimants::One),
                    _ => Claimants::Several(others.into()),
                }
            }
            other => other,
        };
    }

    /// Finds out an address's identity anew, from who claims it; returns what it was, and what it is.
    pub(super) fn revise(
        &mut self,
        address: IpAddr,
        identity: impl FnOnce(&Claimants) -> Option<u32>,
    ) -> [Option<u32>; 2] {
        let known = self.all.entry(address).or_default();
        let is = identity(&known.claimants);
        let was = std::mem::replace(&mut known.identity, is.unwrap_or(ANY));
        if is.is_none() && matches!(known.claimants, Claimants::Nobody) {
            self.all.remove(&address);
        }
        [Some(was).filter(|was| *was != ANY), is]
    }

    pub(super) fn identity(&self, address: &IpAddr) -> Option<u32> {
        self.all.get(address).map(|known| known.identity).filter(|number| *number != ANY)
    }

    /// All that have an identity, with its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpAddr, u32)> {
        self.all.iter().map(|(address, known)| (address, known.identity)).filter(|(_, number)| *number != ANY)
    }

    pub(super) fn between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.all.range(first..=last).map(|(address, _)| *address)
    }

    /// Makes full nodes of the tree where most are new: what comes in order leaves them half empty.
    pub(super) fn pack(&mut self) {
        if self.all.len() > 2 * self.packed {
            self.all = std::mem::take(&mut self.all).into_iter().collect();
            self.packed = self.all.len();
        }
    }
}
