//! What a cluster's Flannel is configured to do, as far as others have to know it to be its peers.

use std::sync::Arc;

use ipnet::IpNet;

use crate::PerFamily;

/// `net-conf.json` with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flannel {
    /// Ranges of all pods, in the families that are on.
    pub networks: PerFamily<IpNet>,
    pub backend: FlannelBackend,
}

/// How its nodes reach each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlannelBackend {
    HostGw,
    Vxlan {
        vni: u32,
        port: u16,
        /// Nodes on one link send packets as they are.
        direct: bool,
    },
    /// One that Tartan does not speak.
    Other(Arc<str>),
}

impl FlannelBackend {
    /// As `net-conf.json` and annotations have it.
    pub fn as_str(&self) -> &str {
        match self {
            FlannelBackend::HostGw => "host-gw",
            FlannelBackend::Vxlan { .. } => "vxlan",
            FlannelBackend::Other(name) => name,
        }
    }
}
