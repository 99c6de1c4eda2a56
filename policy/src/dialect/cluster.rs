//! policy.networking.k8s.io: v1alpha2 ClusterNetworkPolicy, and the v1alpha1 kinds it came from.
//!
//! Where a rule cannot be honoured, the API's own words count: an Accept rule matches nothing, a Deny or Pass rule
//! denies everything. Where tier, priority or subject cannot, Accept rules go and the others deny what they match, of
//! every pod where it is unclear which, before all other policies of the tier.

use tartan_model::{ObjectId, Selector};

use super::blocks::united;
use super::read::{At, Fields, Read, Reader};
use super::{admin_tier, baseline_tier};
use crate::ir::{
    Action, Direction, Endpoints, Is, L4, L4Match, Mode, Namespaces, Nets, Order, Peer, Peers, Policy, Port, Ports,
    ProtocolIs, Ranges, Rank, Rule, Rules, Scope, Term, Tier, protocol,
};

/// What differs between the kinds.
pub(super) struct Version {
    keys: &'static [&'static str],
    actions: &'static [(&'static str, Action)],
    /// The key under which a rule says which packets it is about.
    l4_key: &'static str,
    l4: fn(&mut Reader, &At<'_>) -> Read<L4Match>,
    /// None: the object says it.
    tier: Option<MakeTier>,
    /// None: the object says it.
    order: Option<Order>,
    /// Where pods are said without their namespaces, those of all are meant.
    any_namespace: bool,
}

const ACCEPT: &[(&str, Action)] = &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)];
const ALLOW: &[(&str, Action)] = &[("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)];
/// How a tier is made.
type MakeTier = fn() -> Tier;
const TIERS: [(&str, MakeTier); 2] = [("Admin", admin_tier), ("Baseline", baseline_tier)];
const PROTOCOLS: [(&str, u8); 3] = [("TCP", protocol::TCP), ("UDP", protocol::UDP), ("SCTP", protocol::SCTP)];
const MAX_PRIORITY: u16 = 1000;

pub(super) const V1ALPHA2: Version = Version {
    keys: &["tier", "priority", "subject", "ingress", "egress"],
    actions: ACCEPT,
    l4_key: "protocols",
    l4: cluster_protocol,
    tier: None,
    order: None,
    any_namespace: true,
};

pub(super) const ADMIN: Version = Version {
    keys: &["priority", "subject", "ingress", "egress"],
    actions: ALLOW,
    l4_key: "ports",
    l4: admin_port,
    tier: Some(admin_tier),
    order: None,
    any_namespace: false,
};

/// There is one of it, which comes after what has a priority.
pub(super) const BASELINE: Version = Version {
    keys: &["subject", "ingress", "egress"],
    actions: ALLOW.split_at(2).0,
    tier: Some(baseline_tier),
    order: Some(Order(MAX_PRIORITY as f64 + 1.0)),
    ..ADMIN
};

const ONLY_DENIALS: &str = "its Accept rules count for nothing, its others deny what they match, before other policies";
const EVERY_POD: &str = "its Accept rules count for nothing, its others deny what they match, of every pod";
const CLOSED: &str = "this rule matches nothing if it accepts, else it denies everything";

pub(super) fn lower(reader: &mut Reader, id: &ObjectId, root: &At<'_>, version: &Version) -> Vec<(Rank, Policy)> {
    let (head, rules) = reader.or(ONLY_DENIALS, |reader| Head::read(reader, root, version));
    let mut policy = Policy {
        subject: head.subject.unwrap_or_else(|| Endpoints::new(Namespaces::Any, Selector::all())),
        ingress: None,
        egress: None,
        mode: Mode::Enforced,
    };
    for (direction, at) in rules {
        let list =
            reader.or("nothing is known of its rules, so it denies everything", |reader| reader.list(Some(at.clone())));
        let mut rules: Vec<Rule> = match list {
            Ok(list) => list.iter().filter_map(|at| rule(reader, direction, at, version)).collect(),
            Err(_) => vec![deny_all(&at)],
        };
        if !head.whole {
            rules.retain(|rule| rule.action != Action::Allow);
            rules.iter_mut().for_each(|rule| rule.action = Action::Deny);
        }
        let rules = (!rules.is_empty()).then_some(Rules { isolates: None, rules });
        match direction {
            Direction::Ingress => policy.ingress = rules,
            Direction::Egress => policy.egress = rules,
        }
    }
    let rank = Rank { tier: head.tier, order: head.order, source: id.clone(), part: 0 };
    vec![(rank, policy)]
}

/// What a policy says before its rules.
struct Head {
    tier: Tier,
    order: Order,
    /// None: unclear.
    subject: Option<Endpoints>,
    /// All of it could be read.
    whole: bool,
}

impl Head {
    fn read<'a>(reader: &mut Reader, root: &At<'a>, version: &Version) -> (Head, Vec<(Direction, At<'a>)>) {
        let fixed_tier = version.tier.map(|tier| tier());
        let mut head = Head {
            tier: fixed_tier.clone().unwrap_or_else(admin_tier),
            order: Order::FIRST,
            subject: None,
            whole: true,
        };
        let Ok((root_fields, mut keys)) = reader.fields(root, &["spec"]) else {
            return (Head { whole: false, ..head }, Vec::new());
        };
        let spec = reader.required(&root_fields, "spec", "say whom the policy is for, and its rules");
        let Ok((fields, more_keys)) = spec.and_then(|spec| reader.fields(&spec, version.keys)) else {
            return (Head { whole: false, ..head }, Vec::new());
        };
        keys = keys.and(more_keys);
        let tier = fixed_tier.map_or_else(|| tier(reader, &fields), Ok);
        let order = version.order.map_or_else(|| order(reader, &fields), Ok);
        let subject = reader.or(EVERY_POD, |reader| {
            let at =
                reader.required(&fields, "subject", "say which pods it is for: `namespaces: {}` is all of them")?;
            endpoints(reader, &at, version)
        });
        head.whole = keys.is_ok() && tier.is_ok() && order.is_ok() && subject.is_ok();
        head.tier = tier.unwrap_or(head.tier);
        head.order = order.ok().filter(|_| head.whole).unwrap_or(Order::FIRST);
        head.subject = subject.ok();
        let of = |direction: Direction, key: &str| Some((direction, fields.get(key)?));
        let rules = [of(Direction::Ingress, "ingress"), of(Direction::Egress, "egress")];
        (head, rules.into_iter().flatten().collect())
    }
}

fn tier(reader: &mut Reader, fields: &Fields<'_>) -> Read<Tier> {
    let at = reader.required(fields, "tier", "write Admin or Baseline")?;
    reader.word(&at, &TIERS).map(|tier| tier())
}

fn order(reader: &mut Reader, fields: &Fields<'_>) -> Read<Order> {
    let at = reader.required(fields, "priority", "write a number from 0, which comes first, to 1000")?;
    reader.number(&at, 0..=MAX_PRIORITY).map(|priority| Order(f64::from(priority)))
}

/// The rule, if it is there to decide anything.
fn rule(reader: &mut Reader, direction: Direction, at: &At<'_>, version: &Version) -> Option<Rule> {
    reader.or(CLOSED, |reader| {
        let Ok((fields, keys)) = reader.fields(at, &["name", "action", peers_key(direction), version.l4_key]) else {
            return Some(deny_all(at));
        };
        let action = reader.required(&fields, "action", "say what becomes of what matches");
        let action = action.and_then(|at| reader.word(&at, version.actions));
        let matches = keys.and_then(|()| {
            let peers = peers(reader, direction, &fields, version)?;
            let l4 = l4(reader, &fields, version)?;
            check_named_ports(reader, &peers, &l4, at)?;
            Ok((Peers::OneOf(united(peers)), l4))
        });
        match (action, matches) {
            (Ok(action), Ok((remote, l4))) => {
                Some(Rule { action, remote, local: Vec::new(), l4, path: at.path.as_str().into() })
            }
            (Ok(Action::Allow), Err(_)) => None,
            _ => Some(deny_all(at)),
        }
    })
}

fn deny_all(at: &At<'_>) -> Rule {
    let path = at.path.as_str().into();
    Rule { action: Action::Deny, remote: Peers::Any, local: Vec::new(), l4: L4::Any, path }
}

fn peers(reader: &mut Reader, direction: Direction, fields: &Fields<'_>, version: &Version) -> Read<Vec<Peer>> {
    let key = peers_key(direction);
    let at = reader.required(fields, key, "list at least one peer: `namespaces: {}` is all pods")?;
    let list = reader.list(Some(at.clone()))?;
    if list.is_empty() {
        return Err(reader.bad_value(&at, "empty", "list at least one peer: `namespaces: {}` is all pods"));
    }
    list.iter().map(|at| peer(reader, direction, at, version)).collect()
}

fn peers_key(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn peer(reader: &mut Reader, direction: Direction, at: &At<'_>, version: &Version) -> Read<Peer> {
    const WORKLOADS: [&str; 2] = ["namespaces", "pods"];
    const ALL: [&str; 5] = ["namespaces", "pods", "nodes", "networks", "domainNames"];
    let known = if direction == Direction::Ingress { &WORKLOADS[..] } else { &ALL[..] };
    let (key, value) = reader.one_of(at, known)?;
    let is = match key {
        "nodes" => Is::Node(reader.selector(&value)?),
        "networks" => Is::In(networks(reader, &value)?),
        "domainNames" => {
            return Err(reader.bad_value(&value, "domain names are not resolved yet", "write networks instead"));
        }
        _ => Is::Endpoint(endpoints(reader, at, version)?),
    };
    Ok(Peer(vec![Term::that(is)]))
}

/// Pods by namespace, or by namespace and labels.
fn endpoints(reader: &mut Reader, at: &At<'_>, version: &Version) -> Read<Endpoints> {
    let (key, value) = reader.one_of(at, &["namespaces", "pods"])?;
    if key == "namespaces" {
        return Ok(Endpoints::new(Namespaces::Labelled(reader.selector(&value)?), Selector::all()));
    }
    let fields = reader.known_fields(&value, &["namespaceSelector", "podSelector"])?;
    let mut selector = |key: &str| {
        let at = reader.required(&fields, key, "write `{}` if it is to select everything")?;
        reader.selector(&at)
    };
    let namespaces = match fields.get("namespaceSelector") {
        None if version.any_namespace => Selector::all(),
        _ => selector("namespaceSelector")?,
    };
    Ok(Endpoints::new(Namespaces::Labelled(namespaces), selector("podSelector")?))
}

fn networks(reader: &mut Reader, at: &At<'_>) -> Read<Nets> {
    let list = reader.list(Some(at.clone()))?;
    if list.is_empty() {
        return Err(reader.bad_value(at, "empty", "list at least one address range"));
    }
    let ranges = list.iter().map(|at| reader.cidr(at)).collect::<Read<Ranges>>()?;
    Ok(Nets { ranges, except: Ranges::default(), scope: Scope::Anyone })
}

fn l4(reader: &mut Reader, fields: &Fields<'_>, version: &Version) -> Read<L4> {
    let Some(at) = fields.get(version.l4_key) else { return Ok(L4::Any) };
    let list = reader.list(Some(at.clone()))?;
    if list.is_empty() {
        return Err(reader.bad_value(&at, "empty", format!("list at least one, or take {} out", version.l4_key)));
    }
    Ok(L4::OneOf(list.iter().map(|at| (version.l4)(reader, at)).collect::<Read<Vec<L4Match>>>()?))
}

/// v1alpha2 ClusterNetworkPolicyProtocol.
fn cluster_protocol(reader: &mut Reader, at: &At<'_>) -> Read<L4Match> {
    let (key, value) = reader.one_of(at, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    let protocol = match key {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        _ => return named_port(reader, &value),
    };
    let fields = reader.known_fields(&value, &["destinationPort"])?;
    let at = reader.required(&fields, "destinationPort", "say which ports")?;
    let (key, value) = reader.one_of(&at, &["number", "range"])?;
    let port = if key == "number" { number(reader, &value)? } else { range(reader, &value, &["start", "end"])? };
    Ok(with_port(ProtocolIs::Is(protocol), port))
}

/// v1alpha1 AdminNetworkPolicyPort.
fn admin_port(reader: &mut Reader, at: &At<'_>) -> Read<L4Match> {
    let (key, value) = reader.one_of(at, &["portNumber", "portRange", "namedPort"])?;
    if key == "namedPort" {
        return named_port(reader, &value);
    }
    let known: &[&str] = if key == "portNumber" { &["protocol", "port"] } else { &["protocol", "start", "end"] };
    let fields = reader.known_fields(&value, known)?;
    let protocol = match fields.get("protocol") {
        Some(at) => reader.word(&at, &PROTOCOLS)?,
        None => protocol::TCP,
    };
    let port = if key == "portNumber" {
        let at = reader.required(&fields, "port", "say which port")?;
        number(reader, &at)?
    } else {
        range(reader, &value, known)?
    };
    Ok(with_port(ProtocolIs::Is(protocol), port))
}

/// A port's name counts for every protocol under which the pod has it.
fn named_port(reader: &mut Reader, at: &At<'_>) -> Read<L4Match> {
    Ok(with_port(ProtocolIs::Any, Port::Named(reader.port_name(at)?.into())))
}

fn number(reader: &mut Reader, at: &At<'_>) -> Read<Port> {
    let number = reader.number(at, 1..=65535)?;
    Ok(Port::Range(number, number))
}

fn range(reader: &mut Reader, at: &At<'_>, known: &[&str]) -> Read<Port> {
    let fields = reader.known_fields(at, known)?;
    let start = reader.required(&fields, "start", "say at which port the range begins")?;
    let end = reader.required(&fields, "end", "say at which port the range ends")?;
    let (low, high) = (reader.number(&start, 1..=65535)?, reader.number(&end, 1..=65535)?);
    if low >= high {
        return Err(reader.bad_value(
            &end,
            &format!("not above start, which is {low}"),
            "write a larger number, or one port",
        ));
    }
    Ok(Port::Range(low, high))
}

fn with_port(protocol: ProtocolIs, port: Port) -> L4Match {
    let destination = Ports { one_of: Some(vec![port]), none_of: Vec::new() };
    L4Match { destination, ..L4Match::protocol(protocol) }
}

/// Nodes and networks give their ports no names.
fn check_named_ports(reader: &mut Reader, peers: &[Peer], l4: &L4, at: &At<'_>) -> Read<()> {
    let names = matches!(l4, L4::OneOf(all) if all.iter().any(|each| {
        each.destination.one_of.iter().flatten().any(|port| matches!(port, Port::Named(_)))
    }));
    let without = |term: &Term| matches!(term.is, Is::Node(_) | Is::In(_));
    if names && peers.iter().any(|peer| peer.0.iter().any(without)) {
        let wrong = format!("{} asks nodes or networks for a port by its name, and they have none", at.path);
        return Err(reader.wrong(&at.path, "BadValue", &wrong, "write the port's number, or make it two rules"));
    }
    Ok(())
}
