//! The one place that turns YAML and JSON documents into objects of the model, and back.
//!
//! Invariants: never panics, whatever the bytes; a document is taken whole or refused with object, field, line, value,
//! cause and fix; `decode(encode(object)) == object`. Kinds of others (Node, Pod, IPPool …) may hold keys we do not know;
//! our NetworkConfig may not, because a typo must not pass for a default. Policies are taken as they are.

use std::ops::Range;

use serde::Deserialize;
use tartan_api::{kinds, policy as policies, tartan};
use tartan_model::{Condition, Kind, Object, ObjectId, Revision};

use self::fault::Fault;

mod config;
mod fault;
mod fields;
mod flannel;
mod json;
mod locate;
mod node;
mod policy;
mod pool;
mod split;
mod workload;

pub(crate) use self::flannel::is_flannels;
pub(crate) use self::json::from_json;
pub use self::node::encode_condition;

/// A document of a text, which was read without fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: ObjectId,
    pub object: Object,
    /// Where it stands in the text, in bytes, without the `---` lines around it.
    pub range: Range<usize>,
}

/// A document of a text, which was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The object it would have been, as far as can be told.
    pub id: Option<ObjectId>,
    /// The text may be cut off in it, or it may have been meant as any object of ours: nothing must be concluded from
    /// what the text does not hold.
    pub unsure: bool,
    pub condition: Condition,
    /// As in [`Document`].
    pub range: Range<usize>,
}

/// The kinds and the `apiVersion` each is read from.
const KINDS: [(Kind, &str); 13] = [
    (Kind::Node, "v1"),
    (Kind::NetworkConfig, tartan::API_VERSION),
    (Kind::NodeNetwork, tartan::API_VERSION),
    (Kind::IpPool, kinds::CALICO_API_VERSION),
    (Kind::IpReservation, kinds::CALICO_API_VERSION),
    (Kind::IpBlock, tartan::API_VERSION),
    (Kind::Namespace, "v1"),
    (Kind::Pod, "v1"),
    (Kind::ConfigMap, "v1"),
    (Kind::NetworkPolicy, policies::NETWORKING_API_VERSION),
    (Kind::ClusterNetworkPolicy, policies::CLUSTER_API_VERSION),
    (Kind::AdminNetworkPolicy, policies::ADMIN_API_VERSION),
    (Kind::BaselineAdminNetworkPolicy, policies::ADMIN_API_VERSION),
];

/// Where an object of a namespaced kind is that does not say.
const DEFAULT_NAMESPACE: &str = "default";

/// The part of a document that says what it is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Header {
    api_version: String,
    kind: String,
    metadata: Name,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Name {
    name: String,
    namespace: String,
}

/// Every document of a text, in its order; empty ones are left out. `origin` names the text in conditions.
pub fn documents(origin: &str, text: &str) -> Vec<Result<Document, Box<Refused>>> {
    let mut parts = split::parts(text).peekable();
    let mut found = Vec::new();
    while let Some(part) = parts.next() {
        found.push(document(origin, text, part, parts.peek().is_none()));
    }
    found
}

/// The line of a text, from 1, on which a field of one of its documents stands; of the nearest field around it where it is
/// absent itself.
pub fn line_of(text: &str, document: &Range<usize>, field: &str) -> usize {
    let before = text[..document.start].bytes().filter(|byte| *byte == b'\n').count();
    before + locate::line(&text[document.clone()], field)
}

/// One document that [`encode`] made and that was written as a line of JSON. `origin` names where it is from in conditions.
pub fn line(origin: &str, json: &str) -> Result<(ObjectId, Object), Condition> {
    let unknown = |fault: Fault| fault.condition(origin, None, json, 1);
    let header: Header = json::typed(json).map_err(unknown)?;
    let id = kind_of(&header)
        .map_err(|(fault, _)| fault)
        .and_then(|kind| check_version(kind, &header).and_then(|()| id_of(kind, &header.metadata)))
        .map_err(unknown)?;
    let object = from_json(&id, origin, json)?;
    Ok((id, object))
}

/// The document an object is written as.
pub fn encode(id: &ObjectId, object: &Object) -> serde_yaml_ng::Value {
    let document = match object {
        Object::Node(node) => serde_yaml_ng::to_value(node::encode(node)),
        Object::Config(config) => serde_yaml_ng::to_value(config::encode(&id.name, config)),
        Object::NodeNetwork(network) => serde_yaml_ng::to_value(node::encode_network(network)),
        Object::Pool(pool) => serde_yaml_ng::to_value(pool::encode(pool)),
        Object::Reservation(reservation) => serde_yaml_ng::to_value(pool::encode_reservation(reservation)),
        Object::Block(block) => serde_yaml_ng::to_value(pool::encode_block(block)),
        Object::Namespace(namespace) => serde_yaml_ng::to_value(workload::encode_namespace(namespace)),
        Object::Pod(pod) => serde_yaml_ng::to_value(workload::encode_pod(&id.name, pod)),
        Object::Flannel(flannel) => serde_yaml_ng::to_value(flannel::encode(&id.name, flannel)),
        Object::Policy(policy) => Ok(policy::encode(id, version(id.kind), policy)),
    };
    document.expect("the types of api are maps with text keys, lists and scalars")
}

/// The state of an object: a hash of the document it is written as.
pub fn revision(id: &ObjectId, object: &Object) -> Revision {
    let canonical = serde_json::to_vec(&encode(id, object)).expect("keys of documents are texts");
    siphasher::sip128::SipHasher13::new().hash(&canonical).as_u128().into()
}

/// Whether a text can name an object: letters in lower case, digits, `-` and `.`, as in Kubernetes.
pub(crate) fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.starts_with(inner)
        && name.ends_with(inner)
        && name.chars().all(|c| inner(c) || matches!(c, '-' | '.'))
}

fn document(origin: &str, text: &str, part: split::Part, last: bool) -> Result<Document, Box<Refused>> {
    let body = &text[part.range.clone()];
    let refused = |id: Option<ObjectId>, unsure: bool, fault: Fault| {
        let condition = fault.condition(origin, id.as_ref(), body, part.line);
        Box::new(Refused { unsure, id, condition, range: part.range.clone() })
    };
    let header: Header = fault::typed(body).map_err(|fault| {
        let id = split::salvage(body);
        refused(id.clone(), last || id.is_none(), fault)
    })?;
    let kind = kind_of(&header).map_err(|(fault, unsure)| refused(None, unsure, fault))?;
    let id = id_of(kind, &header.metadata).map_err(|fault| refused(None, true, fault))?;
    check_version(kind, &header)
        .and_then(|()| decode(&id, body))
        .map(|object| Document { id: id.clone(), object, range: part.range.clone() })
        .map_err(|fault| refused(Some(id), last && !text.ends_with('\n'), fault))
}

/// All kinds on one screen.
fn decode(ObjectId { kind, name }: &ObjectId, body: &str) -> Result<Object, Fault> {
    match kind {
        Kind::Node => node::decode(name, &fault::typed(body)?).map(|read| Object::Node(read.into())),
        Kind::NetworkConfig => config::decode(body).map(|read| Object::Config(read.into())),
        Kind::NodeNetwork => node::decode_network(name, &fault::typed(body)?).map(Object::NodeNetwork),
        Kind::IpPool => pool::decode(&fault::typed(body)?).map(|read| Object::Pool(read.into())),
        Kind::IpReservation => {
            pool::decode_reservation(&fault::typed(body)?).map(|read| Object::Reservation(read.into()))
        }
        Kind::IpBlock => pool::decode_block(&fault::typed(body)?).map(|read| Object::Block(read.into())),
        Kind::Namespace => workload::decode_namespace(&fault::typed(body)?).map(|read| Object::Namespace(read.into())),
        Kind::Pod => workload::decode_pod(&fault::typed(body)?).map(|read| Object::Pod(read.into())),
        Kind::ConfigMap => flannel::decode(name, &fault::typed(body)?).map(|read| Object::Flannel(read.into())),
        Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy => policy::decode(*kind, body).map(|read| Object::Policy(read.into())),
    }
}

fn id_of(kind: Kind, metadata: &Name) -> Result<ObjectId, Fault> {
    let Name { name, namespace } = metadata;
    if !is_name(name) {
        return Err(Fault::name(name));
    }
    if !kind.is_namespaced() {
        return Ok(ObjectId { kind, name: name.as_str().into() });
    }
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    if !is_name(namespace) || namespace.contains('.') {
        return Err(Fault::namespace(namespace));
    }
    Ok(ObjectId { kind, name: format!("{namespace}/{name}").into() })
}

/// The kind, or why not and whether one of ours may have been meant.
fn kind_of(header: &Header) -> Result<Kind, (Fault, bool)> {
    if header.kind.is_empty() {
        // With neither, it is the beginning of no object, but something else that is YAML.
        let unsure = !header.api_version.is_empty() || !header.metadata.name.is_empty();
        return Err((Fault::missing("kind", "say what the document is, e.g. `kind: IPPool`"), unsure));
    }
    Kind::ALL.into_iter().find(|kind| kind.as_str() == header.kind).ok_or_else(|| {
        let nearest = fault::nearest(&header.kind, Kind::ALL.map(Kind::as_str));
        let fix = match nearest {
            Some(kind) => format!("write `kind: {kind}`, if that is what it should be"),
            None => format!("take it out; Tartan reads {}", Kind::ALL.map(Kind::as_str).join(", ")),
        };
        (
            Fault::new("kind", "UnknownKind", format!("Tartan does not read objects of kind {}", header.kind), fix),
            nearest.is_some(),
        )
    })
}

fn version(kind: Kind) -> &'static str {
    let (_, version) = KINDS.into_iter().find(|(of, _)| *of == kind).expect("the table has every kind");
    version
}

fn check_version(kind: Kind, header: &Header) -> Result<(), Fault> {
    let version = version(kind);
    if header.api_version == version {
        return Ok(());
    }
    Err(Fault::value(
        "apiVersion",
        &header.api_version,
        format!("{kind} is read as {version}"),
        format!("write `apiVersion: {version}`"),
    ))
}

#[cfg(test)]
mod tests;
