//! networking.k8s.io/v1 NetworkPolicy: it isolates the pods it selects, and its rules allow.
//!
//! A bad peer or port matches nothing; a bad rule allows nothing; where it is unclear what a policy selects or isolates,
//! it isolates all that it may have meant, and allows nothing.

use tartan_model::{ObjectId, Selector};

use super::blocks::united;
use super::read::{At, Bad, Fields, Read, Reader};
use super::{NETWORK_POLICY_ORDER, default_tier};
use crate::ir::{
    Action, Direction, Endpoints, Is, L4, L4Match, Mode, Namespaces, Nets, Peer, Peers, Policy, Port, Ports,
    ProtocolIs, Rank, Rule, Rules, Scope, Term, protocol,
};

const PROTOCOLS: [(&str, u8); 3] = [("TCP", protocol::TCP), ("UDP", protocol::UDP), ("SCTP", protocol::SCTP)];
const TYPES: [(&str, Direction); 2] = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];

const NOTHING_ALLOWED: &str = "the policy isolates its pods in both directions and allows nothing";
const ALL_ISOLATED: &str = "the policy isolates every pod of its namespace and allows nothing";

pub(super) fn lower(reader: &mut Reader, id: &ObjectId, root: &At<'_>) -> Vec<(Rank, Policy)> {
    let namespace = id.name.split_once('/').map_or("", |(namespace, _)| namespace);
    let (spec, root_is_clean) = reader.or(NOTHING_ALLOWED, |reader| match reader.fields(root, &["spec"]) {
        Ok((fields, clean)) => (fields.get("spec"), clean),
        Err(bad) => (None, Err(bad)),
    });
    let policy = Spec::read(reader, namespace, spec.as_ref(), root_is_clean);
    let rank = Rank { tier: default_tier(), order: NETWORK_POLICY_ORDER, source: id.clone(), part: 0 };
    vec![(rank, policy)]
}

/// A `spec` on its way to a policy.
struct Spec<'a> {
    namespace: &'a str,
    subject: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl<'a> Spec<'a> {
    fn read(reader: &mut Reader, namespace: &'a str, spec: Option<&At<'_>>, clean: Read<()>) -> Policy {
        let closed =
            |subject: Selector| Spec { namespace, subject, ingress: Some(Vec::new()), egress: Some(Vec::new()) };
        // Without a spec, its every field has its default.
        let Some(at) = spec else {
            let ingress_only = Spec { egress: None, ..closed(Selector::all()) };
            return if clean.is_ok() { ingress_only } else { closed(Selector::all()) }.policy();
        };
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        let Ok((fields, keys)) = reader.or(ALL_ISOLATED, |reader| reader.fields(at, &known)) else {
            return closed(Selector::all()).policy();
        };
        let keys = match keys {
            Ok(()) => clean,
            Err(bad) => Err(bad),
        };
        let selector = reader.or(ALL_ISOLATED, |reader| optional(fields.get("podSelector"), |at| reader.selector(at)));
        let Ok(subject) = selector else { return closed(Selector::all()).policy() };
        let subject = subject.unwrap_or_else(Selector::all);
        let types = reader.or(NOTHING_ALLOWED, |reader| types(reader, &fields));
        match (keys, types) {
            (Ok(()), Ok(types)) => {
                let mut rules = |direction: Direction, key: &str| {
                    let wanted = types.contains(&direction);
                    wanted.then(|| rules(reader, namespace, direction, fields.get(key)))
                };
                let ingress = rules(Direction::Ingress, "ingress");
                let egress = rules(Direction::Egress, "egress");
                Spec { namespace, subject, ingress, egress }.policy()
            }
            _ => closed(subject).policy(),
        }
    }

    fn policy(self) -> Policy {
        let rules = |rules: Vec<Rule>| Rules { isolates: Some("spec.podSelector".into()), rules };
        Policy {
            subject: Endpoints::new(Namespaces::Named(self.namespace.into()), self.subject),
            ingress: self.ingress.map(rules),
            egress: self.egress.map(rules),
            mode: Mode::Enforced,
        }
    }
}

/// Where they are not given, every policy is about ingress, and one with egress rules about egress, too.
fn types(reader: &mut Reader, fields: &Fields<'_>) -> Read<Vec<Direction>> {
    let list = reader.list(fields.get("policyTypes"))?;
    let types = list.iter().map(|at| reader.word(at, &TYPES)).collect::<Read<Vec<Direction>>>()?;
    if !types.is_empty() {
        return Ok(types);
    }
    let has_egress = fields.get("egress").is_some_and(|at| !at.is_empty_list());
    Ok(if has_egress { Direction::ALL.to_vec() } else { vec![Direction::Ingress] })
}

fn rules(reader: &mut Reader, namespace: &str, direction: Direction, at: Option<At<'_>>) -> Vec<Rule> {
    let list = reader.or("nothing is allowed in this direction", |reader| reader.list(at)).unwrap_or_default();
    list.iter().filter_map(|at| rule(reader, namespace, direction, at).ok()).collect()
}

fn rule(reader: &mut Reader, namespace: &str, direction: Direction, at: &At<'_>) -> Read<Rule> {
    let peers_key = if direction == Direction::Ingress { "from" } else { "to" };
    let (peers, ports) = reader.or("this rule allows nothing", |reader| {
        let fields = reader.known_fields(at, &[peers_key, "ports"])?;
        Ok((reader.list(fields.get(peers_key))?, reader.list(fields.get("ports"))?))
    })?;
    let remote = if peers.is_empty() {
        Peers::Any
    } else {
        let read = |at: &At<'_>| reader.or("this peer matches nothing", |reader| peer(reader, namespace, at)).ok();
        Peers::OneOf(united(peers.iter().filter_map(read)))
    };
    let l4 = if ports.is_empty() {
        L4::Any
    } else {
        let read = |at: &At<'_>| reader.or("this port matches nothing", |reader| port(reader, at)).ok();
        L4::OneOf(ports.iter().filter_map(read).collect())
    };
    Ok(Rule { action: Action::Allow, remote, local: Vec::new(), l4, path: at.path.as_str().into() })
}

fn peer(reader: &mut Reader, namespace: &str, at: &At<'_>) -> Read<Peer> {
    let fields = reader.known_fields(at, &["podSelector", "namespaceSelector", "ipBlock"])?;
    let pods = optional(fields.get("podSelector"), |at| reader.selector(at))?;
    let namespaces = optional(fields.get("namespaceSelector"), |at| reader.selector(at))?;
    let block = optional(fields.get("ipBlock"), |at| ip_block(reader, at))?;
    let is = match (pods, namespaces, block) {
        (None, None, Some(nets)) => Is::In(nets),
        (_, _, Some(_)) => {
            return Err(reader.bad_value(at, "ipBlock stands beside a selector", "write them as two items"));
        }
        (None, None, None) => {
            return Err(reader.bad_value(at, "empty", "write podSelector, namespaceSelector or ipBlock"));
        }
        (Some(pods), None, None) => Is::Endpoint(Endpoints::new(Namespaces::Named(namespace.into()), pods)),
        (pods, Some(namespaces), None) => {
            let pods = pods.unwrap_or_else(Selector::all);
            Is::Endpoint(Endpoints::new(Namespaces::Labelled(namespaces), pods))
        }
    };
    Ok(Peer(vec![Term::that(is)]))
}

fn ip_block(reader: &mut Reader, at: &At<'_>) -> Read<Nets> {
    let fields = reader.known_fields(at, &["cidr", "except"])?;
    let cidr_at = reader.required(&fields, "cidr", "write an address range, e.g. 10.0.0.0/8")?;
    let cidr = reader.cidr(&cidr_at)?;
    let mut except = Vec::new();
    for at in reader.list(fields.get("except"))? {
        let net = reader.cidr(&at)?;
        if !cidr.contains(&net) || net == cidr {
            let wrong = format!("not a part of {cidr}");
            return Err(reader.bad_value(&at, &wrong, format!("write a smaller range inside {cidr}")));
        }
        except.push(net);
    }
    Ok(Nets { ranges: [cidr].into_iter().collect(), except: except.into_iter().collect(), scope: Scope::Anyone })
}

fn port(reader: &mut Reader, at: &At<'_>) -> Read<L4Match> {
    let fields = reader.known_fields(at, &["protocol", "port", "endPort"])?;
    let protocol = optional(fields.get("protocol"), |at| reader.word(at, &PROTOCOLS))?.unwrap_or(protocol::TCP);
    let number = |reader: &mut Reader, at: &At<'_>| reader.number(at, 1..=65535);
    let port = match (fields.get("port"), fields.get("endPort")) {
        (None, None) => None,
        (None, Some(end)) => return Err(reader.bad_value(&end, "without a port to begin at", "write port, too")),
        (Some(at), None) if at.value.is_string() => Some(Port::Named(reader.port_name(&at)?.into())),
        (Some(at), Some(end)) if at.value.is_string() => {
            return Err(reader.bad_value(&end, "a range cannot begin at a port's name", "write port as a number"));
        }
        (Some(at), None) => {
            let low = number(reader, &at)?;
            Some(Port::Range(low, low))
        }
        (Some(at), Some(end)) => {
            let (low, high) = (number(reader, &at)?, number(reader, &end)?);
            if high < low {
                return Err(reader.bad_value(&end, &format!("less than port {low}"), "swap the two"));
            }
            Some(Port::Range(low, high))
        }
    };
    let destination = Ports { one_of: port.map(|port| vec![port]), none_of: Vec::new() };
    Ok(L4Match { destination, ..L4Match::protocol(ProtocolIs::Is(protocol)) })
}

fn optional<'a, T>(at: Option<At<'a>>, read: impl FnOnce(&At<'a>) -> Result<T, Bad>) -> Read<Option<T>> {
    at.map(|at| read(&at)).transpose()
}
