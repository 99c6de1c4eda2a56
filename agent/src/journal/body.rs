//! The JSON in a record. Names and meanings here never change; what is new is a new format.
//!
//! Format 2 has pods with limits, format 3 pods of another network than the agent's own configuration names. Only a journal with
//! such a pod has it: builds that know less read all others.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tartan_model::{Attachment, Limit, Limits, PerFamily, PortMapping, Protocol};
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<PodLimits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<Arc<str>>,
    answered: bool,
}

/// Since format 2.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodLimits {
    to_pod: Option<PodLimit>,
    from_pod: Option<PodLimit>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodLimit {
    rate_bits: u64,
    burst_bits: u64,
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

    /// The first format that has such a record.
    pub(super) fn format(&self) -> u32 {
        match self {
            Body::Add(Pod { network: Some(_), .. }) => 3,
            Body::Add(Pod { limits: Some(_), .. }) => 2,
            _ => 1,
        }
    }
}

// === impl Pod ===

impl From<&Attachment> for Pod {
    fn from(attachment: &Attachment) -> Pod {
        // The id is derived: see `Attachment::id_of`.
        let Attachment {
            id: _,
            container,
            ifname,
            netns,
            pod_namespace,
            pod_name,
            addresses,
            mac,
            ports,
            limits,
            network,
            answered,
        } = attachment.clone();
        Pod {
            container,
            ifname,
            netns,
            pod_namespace,
            pod_name,
            addresses: addresses.iter().map(|(_, address)| *address).collect(),
            mac: mac.0,
            ports: ports.into_iter().map(Port::from).collect(),
            limits: limits.map(|limits| PodLimits::from(*limits)),
            network,
            answered,
        }
    }
}

impl From<Pod> for Attachment {
    fn from(pod: Pod) -> Attachment {
        let Pod { container, ifname, netns, pod_namespace, pod_name, addresses, mac, ports, limits, network, answered } =
            pod;
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
            limits: limits.map(|limits| Limits::from(limits).into()),
            network,
            answered,
        }
    }
}

// === impl PodLimits ===

impl From<Limits> for PodLimits {
    fn from(Limits { to_pod, from_pod }: Limits) -> PodLimits {
        let limit = |Limit { rate_bits, burst_bits }: Limit| PodLimit { rate_bits, burst_bits };
        PodLimits { to_pod: to_pod.map(limit), from_pod: from_pod.map(limit) }
    }
}

impl From<PodLimits> for Limits {
    fn from(PodLimits { to_pod, from_pod }: PodLimits) -> Limits {
        let limit = |PodLimit { rate_bits, burst_bits }: PodLimit| Limit { rate_bits, burst_bits };
        Limits { to_pod: to_pod.map(limit), from_pod: from_pod.map(limit) }
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
