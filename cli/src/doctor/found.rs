//! What the doctor looks at, as one value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tartan_kernel::foreign::ForeignChain;
use tartan_model::{Config, Features, Host};

/// See the module. What could not be looked at is empty, and named in `unseen`.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// This node's name.
    pub(super) node: String,
    /// An agent answers here.
    pub(super) installed: bool,
    pub(super) features: Option<Features>,
    /// /dev/net/tun is there.
    pub(super) tun: bool,
    pub(super) modules: BTreeMap<&'static str, Module>,
    /// Values by name.
    pub(super) sysctls: BTreeMap<&'static str, String>,
    /// Lines of files that set any of them, in the order in which they are applied.
    pub(super) sysctl_lines: Vec<SysctlLine>,
    /// Names of programs that run.
    pub(super) programs: BTreeSet<String>,
    pub(super) host: Option<Host>,
    pub(super) chains: Vec<ForeignChain>,
    /// Ports that are taken here.
    pub(super) udp: BTreeSet<u16>,
    pub(super) tcp: BTreeSet<u16>,
    /// Where metrics are to be served.
    pub(super) listen: Option<u16>,
    /// The runtime's folder for networks, and the files that it reads there.
    pub(super) cni_conf: String,
    pub(super) cni_files: Vec<String>,
    /// Where the runtime's own configuration names a folder for networks.
    pub(super) runtime: Option<Runtime>,
    pub(super) cluster: Option<Cluster>,
    /// What could not be looked at, and why.
    pub(super) unseen: Vec<(&'static str, String)>,
}

/// Where a kernel module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// In the kernel.
    There,
    /// On the disk; the kernel loads it when it is asked for.
    OnDisk,
    Missing,
}

/// What a container runtime's configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runtime {
    pub(super) file: &'static str,
    pub(super) cni_conf: String,
}

/// `name = value` in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SysctlLine {
    /// File and line.
    pub(super) at: String,
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) config: Config,
    pub(super) nodes: Vec<Member>,
    /// Enabled pools, by name.
    pub(super) pools: Vec<(String, IpNet)>,
    /// Ranges of Services.
    pub(super) services: Vec<IpNet>,
    /// How many seconds this node's clock is ahead of the API server's.
    pub(super) ahead_secs: Option<i64>,
    pub(super) paths: Vec<Path>,
}

/// A node, this one among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNet>,
    /// None: not known.
    pub(super) machine_id: Option<String>,
}

/// The way to a peer, as far as an echo request shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) node: String,
    pub(super) address: IpAddr,
    /// What the link takes that leads there.
    pub(super) mtu: u32,
    /// A packet of that size gets there.
    pub(super) full: bool,
    /// The largest that gets there; none: not even the smallest.
    pub(super) largest: Option<u32>,
}
