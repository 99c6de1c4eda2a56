//! Who has an address, and what a user means by a pod, an address or a node: asked of World itself, one by one.
//!
//! Invariant: an address is here what the identities of the verdict tables take it for.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Family, Pod, World};

use crate::dialect::nearest;
use crate::ir::{Entity, Is, Nets, Program};
use crate::traits::Traits;
use crate::verdicts::identities::{is_workload, node_addresses, pod_addresses, workload};
use crate::walk::End;
use crate::words::first_of;

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A known pod, by `NAMESPACE/NAME`.
    Pod(Arc<str>),
    /// A pod's, but it is not known whose, or not what is written on it; why.
    UnknownPod(String),
    /// Of several, as they say, a node among them; why.
    Disputed(String),
    Node(Arc<str>),
    World,
}

/// What a user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    /// The pod whose policies count at this end.
    pub pod: Option<Arc<str>>,
    pub addresses: Vec<IpAddr>,
    /// What a user may not expect.
    pub notes: Vec<String>,
}

/// Why nothing can be meant; with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound(pub String);

/// Stands for every address outside.
pub const WORLD: &str = "world";

/// Who has the address.
pub fn who(world: &World, address: IpAddr) -> Who {
    let attached = world.attachments.values().find(|it| it.addresses.iter().any(|(_, own)| *own == address));
    if let Some(it) = attached {
        return known(world, it.pod().into());
    }
    let pods = world.pods.iter().filter(|(_, pod)| pod_addresses(pod).any(|own| own == address));
    let pods: Vec<&Arc<str>> = pods.map(|(key, _)| key).collect();
    let is_its = |name: &&Arc<str>| node_addresses(name, &world.nodes, &world.adverts).contains(&address);
    let names: BTreeSet<&Arc<str>> = world.nodes.keys().chain(world.adverts.keys()).collect();
    let nodes: Vec<&Arc<str>> = names.into_iter().filter(is_its).collect();
    match (pods.as_slice(), nodes.as_slice()) {
        ([pod], []) => known(world, (*pod).clone()),
        ([], [node]) => Who::Node((*node).clone()),
        ([], []) if pools(world).any(|pool| pool.contains(&address)) => {
            Who::UnknownPod(format!("{address} is in a range of pods, but no known pod has it"))
        }
        ([], []) => Who::World,
        _ => {
            let all: Vec<&str> = pods.iter().chain(&nodes).map(|name| &***name).collect();
            let why = format!("{address} is said to be of {}: one of them is late", all.join(" and of "));
            if nodes.is_empty() { Who::UnknownPod(why) } else { Who::Disputed(why) }
        }
    }
}

fn known(world: &World, key: Arc<str>) -> Who {
    match world.pods.get(&key).filter(|pod| is_workload(pod)) {
        Some(pod) if workload(world, &key, pod).is_some() => Who::Pod(key),
        Some(_) => Who::UnknownPod(format!("the namespace of {key} is not known, and so not all of its labels")),
        None => Who::UnknownPod(format!("the object of the pod {key} is not known")),
    }
}

/// Ranges that only pods have addresses of.
fn pools(world: &World) -> impl Iterator<Item = IpNet> {
    let of_nodes = world.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
    let left = world.blocks.iter().filter(|(_, block)| !world.pools.contains_key(&block.pool)).map(|(range, _)| *range);
    world.pools.values().map(|pool| pool.cidr).chain(of_nodes).chain(left)
}

/// The end that an address is to a node that judges.
pub fn remote(world: &World, judge: &str, address: IpAddr) -> End {
    let traits = match who(world, address) {
        Who::Pod(key) => subject(world, &key).unwrap_or_else(|| Traits::of(Entity::UnknownPod)),
        Who::UnknownPod(_) => Traits::of(Entity::UnknownPod),
        Who::Disputed(_) => Traits::of(Entity::Disputed),
        Who::Node(name) => {
            let entity = if *name == *judge { Entity::Host } else { Entity::RemoteNode };
            let labels = world.nodes.get(&name).map(|node| node.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            Traits { node_labels: labels.into_iter().flatten().collect(), ..Traits::of(entity) }
        }
        Who::World => Traits::of(Entity::World),
    };
    End { traits, address }
}

/// A pod as its own policies see it; none where it is not known which they are.
pub fn subject(world: &World, key: &str) -> Option<Traits> {
    let pod = world.pods.get(key).filter(|pod| is_workload(pod))?;
    Some(Traits { workload: Some(workload(world, key, pod)?), ..Traits::of(Entity::Pod) })
}

/// A pod's addresses; where it is of this node, those that it was given here.
pub fn addresses_of(world: &World, key: &str) -> Vec<IpAddr> {
    let own = world.attachments.values().filter(|it| it.pod() == key);
    let own: Vec<IpAddr> = own.flat_map(|it| it.addresses.iter().map(|(_, address)| *address)).collect();
    let listed = || world.pods.get(key).into_iter().flat_map(|pod| pod_addresses(pod)).collect();
    if own.is_empty() { listed() } else { own }
}

/// What a user means: `NAMESPACE/POD`, an address, a node, or `world`.
pub fn find(world: &World, program: &Program, text: &str) -> Result<Named, NotFound> {
    if text == WORLD {
        let addresses = Family::ALL.map(|family| outside(world, program, family)).to_vec();
        return Ok(Named { name: WORLD.into(), pod: None, addresses, notes: Vec::new() });
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(at(world, address));
    }
    match text.split_once('/') {
        Some((namespace, name)) => pod(world, namespace, name),
        None => node(world, text),
    }
}

/// Whose an address is.
pub fn at(world: &World, address: IpAddr) -> Named {
    let (name, pod, notes) = match who(world, address) {
        Who::Pod(key) => (key.to_string(), Some(key), vec![]),
        Who::UnknownPod(why) => ("an unknown pod".into(), None, vec![format!("{why}; it may carry any labels")]),
        Who::Disputed(why) => ("an address of several".into(), None, vec![format!("{why}; it may be any of them")]),
        Who::Node(name) => (name.to_string(), None, vec![]),
        Who::World => (WORLD.into(), None, vec![]),
    };
    Named { name, pod, addresses: vec![address], notes }
}

fn pod(world: &World, namespace: &str, name: &str) -> Result<Named, NotFound> {
    let key = format!("{namespace}/{name}");
    let Some((key, pod)) = world.pods.get_key_value(key.as_str()) else {
        return Err(no_such_pod(world, namespace, name));
    };
    if pod.host_network {
        return on_the_host(world, key, pod);
    }
    if pod.finished {
        return Err(NotFound(format!("the pod {key} has ended, and its address may be another's; name one that runs")));
    }
    let addresses = addresses_of(world, key);
    if addresses.is_empty() {
        let wait = "wait until it runs, or see its events (`kubectl describe pod`)";
        return Err(NotFound(format!("the pod {key} has no address yet; {wait}")));
    }
    let unknown = addresses.iter().filter_map(|address| match who(world, *address) {
        Who::UnknownPod(why) => Some(format!("{why}; to others it is an unknown pod, which may carry any labels")),
        Who::Disputed(why) => Some(format!("{why}; to others it may be a node, or a pod with any labels")),
        _ => None,
    });
    let notes = unknown.collect();
    Ok(Named { name: key.to_string(), pod: Some(key.clone()), addresses, notes })
}

fn on_the_host(world: &World, key: &str, pod: &Pod) -> Result<Named, NotFound> {
    let note = format!("{key} is on the host network: to policy it is its node {}, and no policy selects it", pod.node);
    match node(world, &pod.node) {
        Ok(node) => Ok(Named { notes: vec![note], ..node }),
        Err(NotFound(why)) => Err(NotFound(format!("{note}; {why}"))),
    }
}

fn node(world: &World, name: &str) -> Result<Named, NotFound> {
    let addresses = node_addresses(name, &world.nodes, &world.adverts);
    // What its own packets carry comes first.
    let internal = world.nodes.get(name).into_iter().flat_map(|node| node.internal_ips.clone());
    let addresses: Vec<IpAddr> = internal.chain(addresses).collect();
    if !addresses.is_empty() {
        return Ok(Named { name: name.to_owned(), pod: None, addresses, notes: Vec::new() });
    }
    let known: Vec<&str> = world.nodes.keys().map(|name| &**name).collect();
    let instead = match (nearest(name, &known), known.len()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, 0) => "no node is known; write a pod as NAMESPACE/NAME, an address, or `world`".into(),
        (None, _) => format!("nodes are {}; a pod is written NAMESPACE/NAME", first_of(&known)),
    };
    Err(NotFound(format!("there is no node {name}; {instead}")))
}

fn no_such_pod(world: &World, namespace: &str, name: &str) -> NotFound {
    let namespaces: BTreeSet<&str> = world
        .pods
        .keys()
        .filter_map(|key| Some(key.split_once('/')?.0))
        .chain(world.namespaces.keys().map(|it| &**it))
        .collect();
    if !namespaces.contains(namespace) {
        let known: Vec<&str> = namespaces.into_iter().collect();
        let instead = match nearest(namespace, &known) {
            Some(near) => format!("did you mean {near}/{name}?"),
            None if known.is_empty() => "this world has no pods at all".into(),
            None => format!("there is {}", first_of(&known)),
        };
        return NotFound(format!("there is no namespace {namespace}; {instead}"));
    }
    let pods: Vec<(&str, &str)> = world.pods.keys().filter_map(|key| key.split_once('/')).collect();
    let here: Vec<&str> = pods.iter().filter(|(of, _)| *of == namespace).map(|(_, name)| *name).collect();
    // A Deployment's name is what people remember.
    let begins = here.iter().find(|pod| pod.starts_with(&format!("{name}-"))).copied();
    let elsewhere = pods.iter().find(|(_, pod)| *pod == name);
    let instead = match (begins.or_else(|| nearest(name, &here)), elsewhere) {
        (Some(near), _) => format!("did you mean {namespace}/{near}?"),
        (None, Some((of, name))) => format!("did you mean {of}/{name}?"),
        (None, None) if here.is_empty() => "there are no pods in that namespace".into(),
        (None, None) => format!("in that namespace there is {}", first_of(&here)),
    };
    NotFound(format!("there is no pod {namespace}/{name}; {instead}"))
}

/// An address outside that no rule names: in none of their ranges but those that hold every address.
fn outside(world: &World, program: &Program, family: Family) -> IpAddr {
    let terms = program.values().flat_map(|policy| policy.all_rules()).flat_map(|rule| rule.remote.terms());
    let nets = terms.filter_map(|term| match &term.is {
        Is::In(nets) => Some(nets),
        _ => None,
    });
    let named: Vec<IpNet> = nets.flat_map(Nets::all).filter(|net| net.prefix_len() > 0).copied().collect();
    let taken: Vec<IpNet> = named.into_iter().chain(pools(world)).collect();
    let first: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let mut address = first;
    // Each turn leaves one of the ranges behind.
    for _ in 0..=taken.len() {
        match taken.iter().find(|net| net.contains(&address)) {
            Some(net) => address = after(net.broadcast()),
            None if who(world, address) == Who::World => return address,
            None => address = after(address),
        }
    }
    first
}

fn after(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().wrapping_add(1)).into(),
    }
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}
