//! The JSON in a record. Format 1: names and meanings here never change; what is new is a new format.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tartan_model::{Attachment, PerFamily, PortMapping, Protocol};
use tartan_netstate::{Mac, PodNetns};

use super::Record;

/// One record. Times are milliseconds since the epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Body {
    Add(Pod),
    Answered {
        id: Arc<str>,
    },
    Del {
        id: Arc<str>,
        at: u64,
    },
    /// Takes the place of an ADD and its DEL when the journal is rewritten.
    Released {
        address: IpAddr,
        at: u64,
    },
}

/// An attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pod {
    container: Arc<str>,
    ifname: Arc<str>,
    netns: PodNetns,
    pod_namespace: Arc<str>,
    pod_name: Arc<str>,
    addresses: Vec<IpAddr>,
    mac: [u8; 6],
    ports: Vec<Port>,
    answered: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Port {
    protocol: Transport,
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

// === impl Body ===

impl Body {
    pub(super) fn from_record(record: &Record, at: u64) -> Body {
        match record {
            Record::Add(attachment) => Body::Add(attachment.into()),
            Record::Answered { id } => Body::Answered { id: id.clone() },
            Record::Del { id } => Body::Del { id: id.clone(), at },
        }
    }
}

// === impl Pod ===

impl From<&Attachment> for Pod {
    fn from(attachment: &Attachment) -> Pod {
        // The id is derived: see `Attachment::id_of`.
        let Attachment { id: _, container, ifname, netns, pod_namespace, pod_name, addresses, mac, ports, answered } =
            attachment.clone();
        Pod {
            container,
            ifname,
            netns,
            pod_namespace,
            pod_name,
            addresses: addresses.iter().map(|(_, address)| *address).collect(),
            mac: mac.0,
            ports: ports.into_iter().map(Port::from).collect(),
            answered,
        }
    }
}

impl From<Pod> for Attachment {
    fn from(pod: Pod) -> Attachment {
        let Pod { container, ifname, netns, pod_namespace, pod_name, addresses, mac, ports, answered } = pod;
        Attachment {
            id: Attachment::id_of(&container, &ifname),
            container,
            ifname,
            netns,
            pod_namespace,
            pod_name,
            addresses: PerFamily::first_of(addresses),
            mac: Mac(mac),
            ports: ports.into_iter().map(PortMapping::from).collect(),
            answered,
        }
    }
}

// === impl Port ===

impl From<PortMapping> for Port {
    fn from(mapping: PortMapping) -> Port {
        let PortMapping { protocol, host_ip, host_port, container_port } = mapping;
        let protocol = match protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        };
        Port { protocol, host_ip, host_port, container_port }
    }
}

impl From<Port> for PortMapping {
    fn from(port: Port) -> PortMapping {
        let Port { protocol, host_ip, host_port, container_port } = port;
        let protocol = match protocol {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Sctp => Protocol::Sctp,
        };
        PortMapping { protocol, host_ip, host_port, container_port }
    }
}
