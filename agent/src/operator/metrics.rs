//! What an operator says of itself: to Prometheus, and to the kubelet.

use std::collections::BTreeMap;

use tartan_model::{Kind, World};
use tartan_store::Word;

use super::plan::Plan;
use crate::metrics::{Text, labels, of_every_loop};
use crate::status::{Counters, unread};

/// How it stands, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What of the store it has not read yet; nothing once it could lead.
    pub(super) waiting_for: String,
    leads: bool,
    store_away: bool,
    counters: Counters,
    claims: usize,
    /// Objects with something wrong, by kind.
    faults: BTreeMap<Kind, usize>,
    /// Conditions of nodes that are told as Events.
    troubles: usize,
}

impl Seen {
    /// Of one that leads, or not, and has planned that.
    pub(super) fn of(world: &World, plan: &Plan, leads: bool, counters: Counters) -> Seen {
        let (mut faults, mut troubles) = (BTreeMap::new(), 0);
        for (id, word) in &plan.words {
            match word {
                Word::Diagnosis(conditions) if !conditions.is_empty() => *faults.entry(id.kind).or_default() += 1,
                Word::Trouble { .. } => troubles += 1,
                _ => {}
            }
        }
        Seen {
            waiting_for: if world.is_whole() { String::new() } else { unread(world) },
            leads,
            store_away: world.store_away().is_some(),
            counters,
            claims: plan.claims.len(),
            faults,
            troubles,
        }
    }

    /// What `/metrics` serves.
    pub(super) fn metrics(&self) -> String {
        let mut text = Text::default();
        let is = |is: bool| f64::from(u8::from(is));
        text.one("tartan_operator_ready", "gauge", "The store was read", is(self.waiting_for.is_empty()));
        text.one("tartan_operator_leads", "gauge", "This one of the operators does the work", is(self.leads));
        let help = "Objects that are to be freed, removed or made";
        text.one("tartan_operator_claims", "gauge", help, self.claims as f64);
        let faults = self.faults.iter().map(|(kind, count)| (labels(&[("kind", kind.as_str())]), *count as f64));
        text.many("tartan_operator_objects_at_fault", "gauge", "Objects of users with something wrong", faults);
        let help = "Conditions of nodes that are told as Events";
        text.one("tartan_operator_node_troubles", "gauge", help, self.troubles as f64);
        of_every_loop(&mut text, &self.counters, self.store_away);
        text.0
    }
}
