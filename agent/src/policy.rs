//! Policy in the plan: the verdict tables of this node's pods, what they want of the kernel, what is to be said of
//! policies, and what a pod that comes still lacks.
//!
//! Invariants: tables are planned from what was true at one moment, or not at all; see [`World::of_one_moment`]. While that
//! is not what the store says now, nothing that the kernel holds of policies goes or becomes another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use tartan_datapath::nftables::policy as nft;
use tartan_model::workload::uid_of;
use tartan_model::{Attachment, Condition, Family, NAMELESS, PolicyMode, World};
use tartan_netstate::{Key, State};
use tartan_policy::verdicts::{self, ANY, Class, Out, Rows, Tables, Word};
use tartan_policy::walk::{self, Verdict};

use crate::plan::Plan;

/// The planners, and how they went on from what an earlier life left in the kernel.
#[derive(Default)]
pub(crate) struct Policy {
    memo: verdicts::Memo,
    nft: nft::Policy,
    mirrored: nft::Mirrored,
    /// None before it is known what was found, or once that does not matter any more.
    start: Option<Start>,
    used: bool,
}

/// What was found, beside what an earlier moment of the store comes to.
enum Start {
    /// The same: what comes is added to it.
    AsPlanned,
    /// Something else, of which one cannot tell what is newer: it stays as it was found.
    AsFound(Found),
}

/// What stays, for the pods that there are.
struct Found {
    all: State,
    attachments: OrdMap<Arc<str>, Arc<Attachment>>,
    given: OrdMap<IpAddr, Arc<str>>,
    kept: State,
}

/// What policy wants.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Of the kernel.
    pub(crate) state: State,
    /// None while policy is off.
    pub(crate) out: Option<Out>,
    /// Pods of the network before.
    pub(crate) from_before: Arc<[nft::FromBefore]>,
}

/// What is said of policies at most: a namespace's owner must not fill everybody's status.
const SAID: usize = 50;
/// Names of pods in one message at most.
const NAMES: usize = 10;

// === impl Policy ===

impl Policy {
    /// What policy wants; nothing while there is nothing to go by. `between_nodes`: UDP ports at which nodes unwrap packets.
    pub(crate) fn plan(&mut self, world: &World, between_nodes: &BTreeSet<u16>) -> Wanted {
        let Some(moment) = world.of_one_moment() else { return Wanted::default() };
        let mode = moment.config.policy;
        if mode == PolicyMode::Off && std::mem::take(&mut self.used) {
            self.memo = verdicts::Memo::default();
        }
        let out = (mode != PolicyMode::Off).then(|| {
            self.used = true;
            // Before the kernel has done all that it was asked, it may still take up numbers of what is gone.
            if world.kernel_is_settled() {
                self.memo.held(self.mirrored.held(&world.programmed.mirror));
            }
            verdicts::plan(&mut self.memo, &moment).clone()
        });
        let nothing = Tables::default();
        let tables = out.as_ref().map_or(&nothing, |out| &out.tables);
        let state = self.state(world, tables, mode, between_nodes);
        Wanted { state, out, from_before: self.nft.from_before().clone() }
    }

    fn state(&mut self, world: &World, tables: &Tables, mode: PolicyMode, between_nodes: &BTreeSet<u16>) -> State {
        if world.inherited.is_empty() {
            self.start = None;
        }
        if let Some(Start::AsFound(found)) = &mut self.start {
            return found.kept(world).clone();
        }
        let planned = self.nft.plan(world, tables, mode, between_nodes).clone();
        if self.start.is_some() || world.inherited.is_empty() {
            return planned;
        }
        let all: State = entries_of_policy(&world.inherited).collect();
        if all.is_empty() || (all.len() == planned.len() && all.holds_all(&planned)) {
            self.start = Some(Start::AsPlanned);
            return planned;
        }
        // What is planned once World is whole is to be compared with what is there, not with this.
        self.nft = nft::Policy::default();
        let found = Found { all, attachments: OrdMap::new(), given: OrdMap::new(), kept: State::new() };
        let Start::AsFound(found) = self.start.insert(Start::AsFound(found)) else { return planned };
        found.kept(world).clone()
    }
}

impl Found {
    fn kept(&mut self, world: &World) -> &State {
        let same = self.attachments.ptr_eq(&world.attachments) && self.given.ptr_eq(&world.given);
        if self.kept.is_empty() || !same {
            let own = world.attachments.values().flat_map(|it| nft::keys(it));
            let there: BTreeSet<Key> = own.chain(nft::keys_from_before(world)).collect();
            let is_gone = |key: &Key| match key {
                Key::NftElement { set, .. } => nft::is_of_pods(set) && !there.contains(key),
                _ => false,
            };
            let stays = self.all.iter().filter(|(key, _)| !is_gone(key));
            self.kept = stays.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            (self.attachments, self.given) = (world.attachments.clone(), world.given.clone());
        }
        &self.kept
    }
}

fn entries_of_policy(state: &State) -> impl Iterator<Item = (Key, tartan_netstate::Entry)> + '_ {
    state.of_policy().map(|(key, entry)| (key.clone(), entry.clone()))
}

/// That policies are not in force must not go without a word.
pub(crate) fn not_enforced(world: &World, out: Option<&Out>) -> Option<Condition> {
    let policies = match world.policies.len() {
        0 => return None,
        1 => "1 policy is in the store".to_owned(),
        several => format!("{several} policies are in the store"),
    };
    let pods = world.attachments.len();
    let (reason, message) = match world.config.policy {
        PolicyMode::Enforce => return None,
        PolicyMode::Off => {
            ("PolicyOff", format!("{policies} and policy is off: all {pods} pods of this node are open"))
        }
        PolicyMode::Audit => {
            let open: Vec<&str> = out.map(|out| isolated(&out.tables).collect()).unwrap_or_default();
            let said = format!(
                "{policies} and policy is audit: what they deny is reported, and passes; {} of {pods} pods of this node are open that they isolate",
                open.len()
            );
            ("PolicyAudit", if open.is_empty() { said } else { format!("{said}: {}", some(&open)) })
        }
    };
    Some(Condition {
        about: "NetworkConfig/default".into(),
        field: "spec.policy".into(),
        reason,
        message,
        fix: "set spec.policy to enforce".into(),
    })
}

/// Pods of this node of which some packets pass only if a rule says so.
fn isolated(tables: &Tables) -> impl Iterator<Item = &str> {
    let denies = |rows: &Rows| {
        let anyone = rows.words.range((ANY, Class::MIN)..=(ANY, Class::MAX));
        anyone.into_iter().any(|(_, word)| !walk::passes(word.verdict()))
    };
    let is_isolated =
        move |number: &u32| tables.sets.get(number).is_some_and(|set| denies(&set.ingress) || denies(&set.egress));
    tables.subjects.iter().filter(move |(_, number)| is_isolated(number)).map(|(pod, _)| &**pod)
}

fn some(names: &[&str]) -> String {
    match names.len().saturating_sub(NAMES) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..NAMES].join(", ")),
    }
}

/// Pods that run here and of which it is not known which policies are for them.
pub(crate) fn cut_off(world: &World, tables: &Tables) -> impl Iterator<Item = Condition> {
    let matters = tables.judged && world.is_whole() && world.config.policy == PolicyMode::Enforce;
    let running = world.attachments.values().filter(move |attachment| matters && attachment.answered);
    // One that has ended needs no connections; its sandbox goes in a moment.
    let has_ended = |pod: &str| world.pods.get(pod).is_some_and(|pod| pod.finished);
    let is_cut_off = move |pod: &str| !tables.subjects.contains_key(pod) && !has_ended(pod);
    running.filter(move |attachment| is_cut_off(&attachment.pod())).map(|attachment| Condition {
        about: format!("Pod/{}", attachment.pod()),
        field: String::new(),
        reason: "PodWithoutPolicy",
        message: format!("nothing passes to it or from it: {}", lacking(world, attachment)),
        fix: "if nobody needs it any more, have the runtime remove it; else see what the API server knows of it".into(),
    })
}

/// Pods whose policies ask for more than a node can hold.
pub(crate) fn too_many(world: &World, tables: &Tables) -> Vec<Condition> {
    let mut pods: BTreeMap<(Word, &str), Vec<&str>> = BTreeMap::new();
    for (pod, number) in &tables.subjects {
        let Some(set) = tables.sets.get(number) else { continue };
        for (rows, way) in [(&set.ingress, "to"), (&set.egress, "from")].into_iter().filter(|(rows, _)| rows.too_many) {
            let word = rows.words.get(&(ANY, 0)).copied().unwrap_or(Word::new(Verdict::Deny, 0));
            pods.entry((word, way)).or_default().push(pod);
        }
    }
    let condition = |((word, way), pods): ((Word, &str), Vec<&str>)| {
        let rule = tables.rules.get(&word.rule());
        Condition {
            about: rule.map_or_else(|| format!("Node/{}", world.local), |rule| rule.source.to_string()),
            field: rule.map(|rule| rule.path.to_string()).unwrap_or_default(),
            reason: "TooManyVerdicts",
            message: format!(
                "nothing passes {way} {}: their policies tell apart more ports of more other ends than a node holds, {} at most; \
                 of their rules this one names most ports",
                some(&pods),
                verdicts::ROWS
            ),
            fix: "name ranges of ports in place of single ones, or fewer other ends, in the policies of these pods"
                .into(),
        }
    };
    pods.into_iter().map(condition).collect()
}

/// What does not hold for pods of the network before, these.
pub(crate) fn from_before(world: &World, tables: &Tables, pods: &[nft::FromBefore]) -> Vec<Condition> {
    if !tables.judged || !world.is_whole() || world.config.policy != PolicyMode::Enforce {
        return Vec::new();
    }
    let unknown = pods.iter().filter(|pod| nft::set_of(pod, tables).is_none());
    let unknown: Vec<String> = unknown.map(|pod| pod.address.to_string()).collect();
    let unknown = (!unknown.is_empty()).then(|| Condition {
        about: format!("Node/{}", world.local),
        field: String::new(),
        reason: "AddressWithoutPod",
        message: format!(
            "nothing passes to {} or from there: the network before has given that out, and no one Pod of this node has it",
            some(&unknown.iter().map(String::as_str).collect::<Vec<_>>())
        ),
        fix: "if the container in the first line of /var/lib/cni/networks/NETWORK/ADDRESS is gone, delete that file".into(),
    });
    let past = |(bridge, family): &(Arc<str>, Family)| {
        let on_it = pods.iter().filter(|pod| pod.bridge.as_str() == &**bridge && Family::of(pod.address) == *family);
        (on_it.count() > 1).then(|| past_rules(world, bridge, *family))
    };
    world.host.unfiltered.iter().filter_map(past).chain(unknown).collect()
}

fn past_rules(world: &World, bridge: &str, family: Family) -> Condition {
    let (name, sysctl) = match family {
        Family::V4 => ("IPv4", "bridge-nf-call-iptables"),
        Family::V6 => ("IPv6", "bridge-nf-call-ip6tables"),
    };
    Condition {
        about: format!("Node/{}", world.local),
        field: format!("sysctl net.bridge.{sysctl}"),
        reason: "BridgeNotFiltered",
        message: format!(
            "what pods from before on {bridge} send each other by {name} passes, whatever policies say: br_netfilter is off"
        ),
        fix: format!("modprobe br_netfilter; sysctl -w net.bridge.{sysctl}=1; or make these pods anew"),
    }
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

/// What has to be known before this pod, of that UID if one is said, may have connections; none when it may, as soon as the
/// kernel has what is planned.
pub(crate) fn lacks(world: &World, plan: &Plan, attachment: &Attachment, uid: &str) -> Option<String> {
    if world.config.policy != PolicyMode::Enforce {
        return None;
    }
    let (uid, pod) = (uid_of(uid), attachment.pod());
    let known = world.pods.get(&*pod).map_or(0, |known| known.uid);
    if uid != 0 && known != 0 && uid != known {
        return Some(format!(
            "what this node has heard of Pod {pod} is of another one that had this name{}",
            unread(world)
        ));
    }
    let is_planned = plan.state.as_ref().is_some_and(|state| nft::is_judged(state, attachment));
    (!is_planned).then(|| lacking(world, attachment))
}

fn unread(world: &World) -> String {
    match world.is_whole() {
        true => String::new(),
        false => format!("; it has not read {}", crate::status::unread(world)),
    }
}

fn lacking(world: &World, attachment: &Attachment) -> String {
    let pod = attachment.pod();
    let unread = unread(world);
    let namespace = &attachment.pod_namespace;
    match world.pods.get(&*pod) {
        _ if pod == NAMELESS => format!("there is no plan with it yet{unread}"),
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
    }
}

#[cfg(test)]
mod tests;
