//! Attachments: the pods on this node, as the CNI calls made them.

use std::net::IpAddr;
use std::sync::Arc;

use tartan_netstate::{Mac, PodNetns};

use crate::PerFamily;

/// A pod's interface on this node. The journal of these is the only truth about local pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CONTAINER/IFNAME`: what names it, see [`Attachment::id_of`].
    pub id: Arc<str>,
    pub container: Arc<str>,
    /// Interface name inside the pod.
    pub ifname: Arc<str>,
    pub netns: PodNetns,
    /// Kubernetes namespace and name, where the runtime said them.
    pub pod_namespace: Arc<str>,
    pub pod_name: Arc<str>,
    pub addresses: PerFamily<IpAddr>,
    pub mac: Mac,
    pub ports: Vec<PortMapping>,
    /// Few pods have any.
    pub limits: Option<Box<Limits>>,
    /// The CNI configuration's name that it was asked for by; none: the one that the agent itself writes.
    pub network: Option<Arc<str>>,
    /// The runtime was told that it worked.
    pub answered: bool,
}

/// How fast a pod may hear and send; none: as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub to_pod: Option<Limit>,
    pub from_pod: Option<Limit>,
}

/// A rate, and how much may go at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits a second.
    pub rate_bits: u64,
    /// 0: what suits the rate.
    pub burst_bits: u64,
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMapping {
    pub protocol: Protocol,
    /// Only this address of the node; none: all of them.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// What [`Attachment::pod`] is where the runtime said neither namespace nor name. No pod is called so.
pub const NAMELESS: &str = "/";

/// Transport protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Attachment {
    /// The id of a container's interface.
    pub fn id_of(container: &str, ifname: &str) -> Arc<str> {
        format!("{container}/{ifname}").into()
    }

    /// `NAMESPACE/NAME` of its pod, as World has pods; [`NAMELESS`] where the runtime knows of no pods.
    pub fn pod(&self) -> String {
        format!("{}/{}", self.pod_namespace, self.pod_name)
    }
}
