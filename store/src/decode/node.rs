//! Node, and NodeNetwork with the Advert in it.

use std::net::IpAddr;
use std::sync::Arc;

use tartan_api::kinds::{self, Conditions, NETWORK_UNAVAILABLE, NodeSpec, NodeStatus, ObjectMeta, Taint};
use tartan_api::tartan::{self, NodeNetworkSpec};
use tartan_model::{Acknowledged, Advert, Endpoint, Family, Node, NodeCondition, NodeNetwork, PerFamily, Placement};

use super::fault::Fault;
use super::fields;

const INTERNAL_IP: &str = "InternalIP";
const EXTERNAL_IP: &str = "ExternalIP";

pub(super) fn decode(name: &Arc<str>, document: &kinds::Node) -> Result<Node, Fault> {
    let kinds::Node { metadata, spec, status, .. } = document;
    let of_kind = |kind: &str| {
        let addresses = status.addresses.iter().enumerate().filter(|(_, address)| address.kind == kind);
        addresses
            .map(|(i, address)| fields::address(&format!("status.addresses[{i}].address"), &address.address))
            .collect::<Result<Vec<IpAddr>, Fault>>()
    };
    let pod_cidrs = match (spec.pod_cidrs.as_slice(), spec.pod_cidr.as_str()) {
        ([], "") => Vec::new(),
        ([], one) => vec![fields::cidr("spec.podCIDR", one)?],
        (several, _) => fields::cidrs("spec.podCIDRs", several)?,
    };
    Ok(Node {
        name: name.clone(),
        uid: metadata.uid.as_str().into(),
        internal_ips: exactly(of_kind(INTERNAL_IP)?),
        external_ips: exactly(of_kind(EXTERNAL_IP)?),
        pod_cidrs: exactly(pod_cidrs),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        placement: Placement {
            unavailable: status
                .conditions
                .iter()
                .find(|it| it.kind == NETWORK_UNAVAILABLE)
                .map(|it| it.status != "False"),
            startup_taint: spec.taints.iter().any(|taint| taint.key == tartan::STARTUP_TAINT),
        },
    })
}

pub(super) fn encode(node: &Node) -> kinds::Node {
    let address = |(kind, ip): (&str, &IpAddr)| kinds::NodeAddress { kind: kind.to_owned(), address: ip.to_string() };
    let internal = node.internal_ips.iter().map(|ip| (INTERNAL_IP, ip));
    let external = node.external_ips.iter().map(|ip| (EXTERNAL_IP, ip));
    kinds::Node {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        metadata: ObjectMeta {
            name: node.name.to_string(),
            namespace: String::new(),
            uid: node.uid.to_string(),
            labels: node.labels.clone(),
            annotations: node.annotations.clone(),
        },
        spec: NodeSpec {
            pod_cidr: node.pod_cidrs.first().map(ToString::to_string).unwrap_or_default(),
            pod_cidrs: node.pod_cidrs.iter().map(ToString::to_string).collect(),
            taints: node.placement.startup_taint.then(startup_taint).into_iter().collect(),
        },
        status: NodeStatus {
            addresses: internal.chain(external).map(address).collect(),
            conditions: node.placement.unavailable.map(network_unavailable).into_iter().collect(),
        },
    }
}

fn startup_taint() -> Taint {
    Taint { key: tartan::STARTUP_TAINT.to_owned(), effect: "NoSchedule".to_owned() }
}

fn network_unavailable(unavailable: bool) -> kinds::NodeCondition {
    let status = if unavailable { "True" } else { "False" };
    kinds::NodeCondition { kind: NETWORK_UNAVAILABLE.to_owned(), status: status.to_owned() }
}

pub(super) fn decode_network(name: &Arc<str>, document: &tartan::NodeNetwork) -> Result<NodeNetwork, Fault> {
    let condition = |it: &kinds::Condition| NodeCondition {
        kind: it.kind.clone(),
        status: it.status.clone(),
        reason: it.reason.clone(),
        message: it.message.clone(),
        since: it.last_transition_time.clone(),
    };
    let conditions = document.status.conditions.iter().map(condition).collect();
    let version = document.spec.version.as_str().into();
    Ok(NodeNetwork { advert: decode_advert(name, document)?.into(), conditions, version })
}

fn decode_advert(name: &Arc<str>, document: &tartan::NodeNetwork) -> Result<Advert, Fault> {
    let spec = &document.spec;
    few("spec.accepts", spec.accepts.len(), tartan::MOST_ENDS)?;
    few("spec.leaving", spec.leaving.len(), tartan::MOST_ENDS)?;
    few("spec.sends", spec.sends.len(), tartan::MOST_SENDS)?;
    let ends = |field, of: &[tartan::Endpoint]| {
        let end = |(i, end): (usize, &tartan::Endpoint)| endpoint(&format!("spec.{field}[{i}]"), end);
        of.iter().enumerate().map(end).collect::<Result<Vec<Endpoint>, Fault>>()
    };
    let accepts = exactly(ends("accepts", &spec.accepts)?);
    // A node mostly sends on what it accepts.
    let instance = |name: &String| {
        let accepted = accepts.iter().map(|end| &end.instance).find(|instance| ***instance == **name);
        accepted.cloned().unwrap_or_else(|| name.as_str().into())
    };
    let sends = spec.sends.iter().map(instance).collect();
    Ok(Advert {
        node: name.clone(),
        node_uid: spec.node_uid.as_str().into(),
        addresses: one_per_family("spec.addresses", &spec.addresses)?,
        fabric_addresses: one_per_family("spec.fabricAddresses", &spec.fabric_addresses)?,
        blocks: exactly(fields::cidrs("spec.blocks", &spec.blocks)?),
        mtu: spec.mtu,
        accepts,
        leaving: ends("leaving", &spec.leaving)?.into(),
        sends,
        joining: spec.joining,
        acknowledges: spec.acknowledges.as_ref().map(|words| words.iter().map(acknowledged).collect()),
        edition: spec.edition,
        heartbeat: spec.heartbeat,
    })
}

/// Of what every other node makes something: devices, keys, names to compare.
fn few(field: &str, count: usize, most: usize) -> Result<(), Fault> {
    if count <= most {
        return Ok(());
    }
    let message = format!("{field} has {count} entries, and {most} at most are taken");
    Err(Fault::new(field, "TooMany", message, "the node's agent writes it: see what else writes NodeNetwork objects"))
}

/// What a node says of itself, as its document has it.
pub fn encode_condition(it: &NodeCondition) -> kinds::Condition {
    kinds::Condition {
        kind: it.kind.clone(),
        status: it.status.clone(),
        reason: it.reason.clone(),
        message: it.message.clone(),
        last_transition_time: it.since.clone(),
        observed_generation: None,
    }
}

pub(super) fn encode_network(network: &NodeNetwork) -> tartan::NodeNetwork {
    let conditions = network.conditions.iter().map(encode_condition).collect();
    let mut document = encode_advert(&network.advert);
    document.spec.version = network.version.to_string();
    document.status = Conditions { conditions };
    document
}

fn encode_advert(advert: &Advert) -> tartan::NodeNetwork {
    let texts = |addresses: &PerFamily<IpAddr>| addresses.iter().map(|(_, ip)| ip.to_string()).collect();
    tartan::NodeNetwork {
        api_version: tartan::API_VERSION.to_owned(),
        kind: "NodeNetwork".to_owned(),
        metadata: ObjectMeta { name: advert.node.to_string(), ..ObjectMeta::default() },
        spec: NodeNetworkSpec {
            node_uid: advert.node_uid.to_string(),
            addresses: texts(&advert.addresses),
            fabric_addresses: texts(&advert.fabric_addresses),
            blocks: advert.blocks.iter().map(ToString::to_string).collect(),
            mtu: advert.mtu,
            accepts: advert.accepts.iter().map(encode_endpoint).collect(),
            leaving: advert.leaving.iter().map(encode_endpoint).collect(),
            sends: advert.sends.iter().map(ToString::to_string).collect(),
            joining: advert.joining,
            acknowledges: advert.acknowledges.as_ref().map(|words| words.iter().map(encode_acknowledged).collect()),
            edition: advert.edition,
            heartbeat: advert.heartbeat,
            version: String::new(),
        },
        status: Conditions::default(),
    }
}

/// Without room to grow: there may be thousands of nodes.
fn exactly<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

fn acknowledged(word: &tartan::Acknowledged) -> Acknowledged {
    Acknowledged { node: word.node.as_str().into(), edition: word.edition }
}

fn encode_acknowledged(word: &Acknowledged) -> tartan::Acknowledged {
    tartan::Acknowledged { node: word.node.to_string(), edition: word.edition }
}

fn one_per_family(field: &str, texts: &[String]) -> Result<PerFamily<IpAddr>, Fault> {
    let mut found = PerFamily::default();
    for (i, address) in fields::addresses(field, texts)?.into_iter().enumerate() {
        let family = Family::of(address);
        if found.get(family).is_some() {
            let wrong = format!("the second {family} address");
            return Err(Fault::value(format!("{field}[{i}]"), address, wrong, "keep at most one of each family"));
        }
        found.set(family, address);
    }
    Ok(found)
}

fn endpoint(of: &str, endpoint: &tartan::Endpoint) -> Result<Endpoint, Fault> {
    let field = |name: &str| format!("{of}.{name}");
    let mac = match endpoint.mac.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Fault::value(field("mac"), text, "not a MAC address", "write six bytes in hex, e.g. 02:00:00:00:00:01")
        })?),
    };
    let public_key = match endpoint.public_key.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let fix = "the node's agent writes it: see what else writes NodeNetwork objects";
            Fault::value(field("publicKey"), text, "not a WireGuard key, which is 32 bytes in base64", fix)
        })?),
    };
    Ok(Endpoint {
        instance: Arc::from(endpoint.instance.as_str()),
        address: fields::address(&field("address"), &endpoint.address)?,
        mac,
        public_key,
    })
}

fn encode_endpoint(endpoint: &Endpoint) -> tartan::Endpoint {
    tartan::Endpoint {
        instance: endpoint.instance.to_string(),
        address: endpoint.address.to_string(),
        mac: endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        public_key: endpoint.public_key.map(|key| key.to_string()).unwrap_or_default(),
    }
}
