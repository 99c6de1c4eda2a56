//! Namespace and Pod, trimmed to what policy looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tartan_api::kinds::{self, Container, ContainerPort, Empty, ObjectMeta, PodIP, PodSpec, PodStatus};
use tartan_model::workload::{NAMESPACE_NAME_LABEL, uid_of};
use tartan_model::{Labels, NamedPort, Namespace, Pod, Protocol};

use super::fault::Fault;
use super::fields;

const PROTOCOLS: [(&str, Protocol); 3] = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
/// A pod in one of these phases never runs again.
const FINISHED: [&str; 2] = ["Succeeded", "Failed"];
/// On what the API server shows of a static pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// What makes an init container a sidecar.
const ALWAYS: &str = "Always";
/// So many different texts are shared before those that nobody holds are looked for.
const SHARED: usize = 16_384;

pub(super) fn decode_namespace(document: &kinds::Namespace) -> Result<Namespace, Fault> {
    let mut all = document.metadata.labels.clone();
    all.insert(NAMESPACE_NAME_LABEL.to_owned(), document.metadata.name.clone());
    Ok(Namespace { name: document.metadata.name.as_str().into(), labels: labels(&all)? })
}

pub(super) fn encode_namespace(namespace: &Namespace) -> kinds::Namespace {
    let labels = namespace.labels.to_map();
    kinds::Namespace {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        metadata: ObjectMeta { name: namespace.name.to_string(), labels, ..ObjectMeta::default() },
        spec: Empty {},
        status: Empty {},
    }
}

pub(super) fn decode_pod(document: &kinds::Pod) -> Result<Pod, Fault> {
    let kinds::Pod { metadata, spec, status, .. } = document;
    let addresses = match (status.pod_ips.as_slice(), status.pod_ip.as_str()) {
        ([], "") => Vec::new(),
        ([], one) => vec![fields::address("status.podIP", one)?],
        (several, _) => several
            .iter()
            .enumerate()
            .map(|(i, address)| fields::address(&format!("status.podIPs[{i}].ip"), &address.ip))
            .collect::<Result<Vec<IpAddr>, Fault>>()?,
    };
    // A kubelet knows a pod of its own files by this, and what the API server shows of it has another UID.
    let uid = metadata.annotations.get(STATIC_UID).unwrap_or(&metadata.uid);
    Ok(Pod {
        uid: uid_of(uid),
        node: shared(&spec.node_name),
        labels: labels(&metadata.labels)?,
        service_account: shared(&spec.service_account_name),
        addresses: addresses.into(),
        ports: named_ports(spec)?,
        host_network: spec.host_network,
        finished: FINISHED.contains(&status.phase.as_str()),
    })
}

/// The pod with its `NAMESPACE/NAME`.
pub(super) fn encode_pod(id: &str, pod: &Pod) -> kinds::Pod {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    let ports: Vec<ContainerPort> = pod.ports.iter().map(encode_port).collect();
    let containers = if ports.is_empty() { Vec::new() } else { vec![Container { ports, ..Container::default() }] };
    kinds::Pod {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        metadata: ObjectMeta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            uid: if pod.uid == 0 { String::new() } else { format!("{:032x}", pod.uid) },
            labels: pod.labels.to_map(),
            ..ObjectMeta::default()
        },
        spec: PodSpec {
            node_name: pod.node.to_string(),
            service_account_name: pod.service_account.to_string(),
            host_network: pod.host_network,
            init_containers: Vec::new(),
            containers,
        },
        status: PodStatus {
            phase: if pod.finished { FINISHED[0].to_owned() } else { String::new() },
            pod_ip: pod.addresses.first().map(ToString::to_string).unwrap_or_default(),
            pod_ips: pod.addresses.iter().map(|address| PodIP { ip: address.to_string() }).collect(),
        },
    }
}

/// Containers come before sidecars, and the first of a name counts, as when Kubernetes looks for a Service's port.
fn named_ports(spec: &PodSpec) -> Result<Box<[NamedPort]>, Fault> {
    let containers =
        spec.containers.iter().enumerate().map(|(i, container)| (format!("spec.containers[{i}]"), container));
    let sidecars = spec.init_containers.iter().enumerate().filter(|(_, container)| container.restart_policy == ALWAYS);
    let sidecars = sidecars.map(|(i, container)| (format!("spec.initContainers[{i}]"), container));
    let mut found: Vec<NamedPort> = Vec::new();
    for (field, container) in containers.chain(sidecars) {
        for (j, port) in container.ports.iter().enumerate().filter(|(_, port)| !port.name.is_empty()) {
            let protocol = protocol(&format!("{field}.ports[{j}].protocol"), &port.protocol)?;
            if !found.iter().any(|there| *there.name == *port.name && there.protocol == protocol) {
                found.push(NamedPort { name: shared(&port.name), protocol, port: port.container_port });
            }
        }
    }
    Ok(found.into())
}

/// One copy of what thousands of pods say: names of nodes, service accounts and ports.
fn shared(text: &str) -> Arc<str> {
    static TEXTS: Mutex<BTreeSet<Arc<str>>> = Mutex::new(BTreeSet::new());
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = texts.get(text) {
        return there.clone();
    }
    if texts.len() >= SHARED {
        texts.retain(|text| Arc::strong_count(text) > 1);
    }
    let new: Arc<str> = text.into();
    texts.insert(new.clone());
    new
}

fn protocol(field: &str, text: &str) -> Result<Protocol, Fault> {
    if text.is_empty() { Ok(Protocol::Tcp) } else { fields::word(field, text, &PROTOCOLS) }
}

fn encode_port(port: &NamedPort) -> ContainerPort {
    let (protocol, _) =
        PROTOCOLS.into_iter().find(|(_, protocol)| *protocol == port.protocol).expect("the table has every value");
    ContainerPort { name: port.name.to_string(), container_port: port.port, protocol: protocol.to_owned() }
}

fn labels(map: &BTreeMap<String, String>) -> Result<Labels, Fault> {
    Labels::of(map).map_err(|bad| {
        let field = format!("metadata.labels.{}", bad.key.replace('\0', ""));
        Fault::value(field, bad.key.escape_debug(), bad.to_string(), "take the NUL out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_have_in_common_is_held_once_and_not_for_ever() {
        let one = shared("a node of this test");
        assert!(Arc::ptr_eq(&one, &shared("a node of this test")));
        let gone = Arc::downgrade(&one);
        drop(one);
        let texts: Vec<Arc<str>> = (0..SHARED).map(|number| shared(&format!("of this test {number}"))).collect();
        assert!(gone.upgrade().is_none(), "nobody holds it any more");
        assert!(texts.iter().enumerate().all(|(number, text)| **text == *format!("of this test {number}")));
    }
}
