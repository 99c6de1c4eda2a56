//! Policy in the plan: the verdict tables of this node's pods, what is to be said of policies, and what a pod that comes
//! still lacks.
//!
//! Invariant: tables are planned from what was true at one moment, or not at all; see [`World::of_one_moment`].

use tartan_model::{Attachment, Condition, NAMELESS, PolicyMode, World};
use tartan_policy::verdicts::{self, Held, Out, Tables};

/// The planner, and whether it has planned.
#[derive(Default)]
pub(crate) struct Policy {
    memo: verdicts::Memo,
    used: bool,
}

/// What is said of policies at most: a namespace's owner must not fill everybody's status.
const SAID: usize = 50;

// === impl Policy ===

impl Policy {
    /// What policy wants; nothing while it is off, or while there is nothing to go by.
    pub(crate) fn plan(&mut self, world: &World) -> Option<Out> {
        if world.config.policy == PolicyMode::Off {
            if std::mem::take(&mut self.used) {
                self.memo = verdicts::Memo::default();
            }
            return None;
        }
        let world = world.of_one_moment()?;
        self.used = true;
        // No map of the kernel holds any number yet: those of what is gone are free.
        self.memo.held(&Held::default());
        Some(verdicts::plan(&mut self.memo, &world).clone())
    }
}

/// That policies are not in force must not go without a word.
pub(crate) fn not_enforced(world: &World) -> Option<Condition> {
    let policies = match world.policies.len() {
        0 => return None,
        1 => "1 policy is in the store".to_owned(),
        several => format!("{several} policies are in the store"),
    };
    let about = "NetworkConfig/default".to_owned();
    let field = "spec.policy".to_owned();
    let open = format!("all {} pods of this node are as open as without", world.attachments.len());
    Some(match world.config.policy {
        PolicyMode::Off => Condition {
            about,
            field,
            reason: "PolicyOff",
            message: format!("{policies} and policy is off: {open}"),
            fix: "set spec.policy to enforce".into(),
        },
        PolicyMode::Enforce | PolicyMode::Audit => Condition {
            about,
            field,
            reason: "PolicyNotEnforced",
            message: format!("{policies} and this version enforces none: {open}"),
            fix: "let something else enforce them, or keep what they protect out of this cluster".into(),
        },
    })
}

/// What is wrong with policies, each with its field and fix: for whoever looks at this node. It is the same on every
/// node, and no trouble of this one.
pub(crate) fn said(out: &Out) -> Vec<Condition> {
    let all = || out.said.values().flat_map(|said| said.iter());
    let mut shown: Vec<Condition> = all().take(SAID).cloned().collect();
    let more = all().count() - shown.len();
    shown.extend((more > 0).then(|| Condition {
        about: "policies".into(),
        field: String::new(),
        reason: "MoreToSay",
        message: format!("{more} more faults of policies are not shown"),
        fix: "mend those that are".into(),
    }));
    shown
}

/// What has to be known before this pod may have connections; none when it may, as soon as the kernel has its entries.
/// `planned` are the tables of the last plan.
pub(crate) fn lacks(world: &World, planned: Option<&Tables>, attachment: &Attachment) -> Option<String> {
    let pod = attachment.pod();
    let is_planned = planned.is_some_and(|tables| tables.subjects.contains_key(&*pod));
    if is_planned || world.config.policy != PolicyMode::Enforce {
        return None;
    }
    let unread = (!world.is_whole()).then(|| format!("; it has not read {}", crate::status::unread(world)));
    let unread = unread.unwrap_or_default();
    let namespace = &attachment.pod_namespace;
    Some(match world.pods.get(&*pod) {
        _ if pod == NAMELESS => "the next plan".into(),
        None => format!("this node has not heard of Pod {pod}{unread}"),
        Some(known) if known.node != world.local => {
            let node = if known.node.is_empty() { "no node" } else { &*known.node };
            format!("Pod {pod} is bound to {node}, as far as this node ({}) has heard{unread}", world.local)
        }
        Some(known) if known.host_network => format!("Pod {pod} is of the host network, and needs no address"),
        Some(known) if known.finished => format!("Pod {pod} has ended, as far as this node has heard{unread}"),
        Some(_) if !world.namespaces.contains_key(namespace) => {
            format!("this node has not heard of Namespace {namespace}{unread}")
        }
        Some(_) => format!("the policies of Pod {pod} are not known yet{unread}"),
    })
}

#[cfg(test)]
mod tests;
