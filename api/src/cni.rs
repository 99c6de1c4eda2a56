//! CNI: network configuration, results and errors, in every version of the spec from 0.1.0 to 1.1.0.
//!
//! Invariant: one [`Success`] holds what any version can say; [`Success::shape`] writes it exactly as that version
//! spells it, and leaves out what that version does not know.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

/// A version of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    #[serde(rename = "0.1.0")]
    V0_1_0,
    #[serde(rename = "0.2.0")]
    V0_2_0,
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// What a runtime asks of a plugin; VERSION never reaches the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

/// One call of the plugin, as the binary passes it to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniRequest {
    pub command: Command,
    pub version: Version,
    /// CNI_CONTAINERID; empty for GC and STATUS.
    #[serde(default)]
    pub container: String,
    /// CNI_IFNAME; empty for GC and STATUS.
    #[serde(default)]
    pub ifname: String,
    /// The pod's network namespace; none where DEL finds it gone.
    #[serde(default)]
    pub netns: Option<NetnsFile>,
    #[serde(default)]
    pub pod: PodName,
    pub netconf: NetConf,
    /// For ADD: what the plugin of `ipam.type` has given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Success>,
}

/// A file that stands for a network namespace, and which one it was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetnsFile {
    /// CNI_NETNS.
    pub path: String,
    pub dev: u64,
    pub ino: u64,
}

/// What Kubernetes calls the pod: from CNI_ARGS, empty where the runtime did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// The network configuration on stdin; keys of others are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, expecting = "a network configuration")]
pub struct NetConf {
    pub cni_version: String,
    pub name: String,
    /// The agent's socket.
    pub socket: Option<String>,
    /// Where a DEL waits for an agent that is down.
    pub state_dir: Option<String>,
    pub runtime_config: RuntimeConfig,
    /// Result of the plugin before us in the chain, or of the ADD that CHECK and DEL are about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<Value>,
    /// Passed on in the result.
    pub dns: Dns,
    /// With a `type`: another plugin, which chooses addresses in Tartan's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Value>,
    /// For GC: all that is to stay. libcni writes `null` for a list with nothing in it.
    #[serde(
        rename = "cni.dev/valid-attachments",
        deserialize_with = "list_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// Values for the capabilities that the configuration declares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, expecting = "values by capability")]
pub struct RuntimeConfig {
    pub port_mappings: Vec<PortMapping>,
    /// Requested addresses, with or without a prefix length.
    pub ips: Vec<String>,
    /// Requested MAC address.
    pub mac: Option<String>,
    /// How fast the pod may hear and send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Capabilities that Tartan does not have.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A port of the node for a port of the pod. containerd writes the keys with capitals: plugins in Go read either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a port mapping")]
pub struct PortMapping {
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`; absent: tcp.
    #[serde(alias = "Protocol", default)]
    pub protocol: String,
    /// Only this address of the node; `0.0.0.0` or `::`: all of that family; empty: all.
    #[serde(rename = "hostIP", alias = "HostIP", default)]
    pub host_ip: String,
}

/// Rates in bits a second, bursts in bits; ingress is what the pod hears. containerd writes the keys with capitals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, expecting = "a bandwidth")]
pub struct Bandwidth {
    /// 0: unlimited.
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

fn list_or_null<'a, T: Deserialize<'a>, D: Deserializer<'a>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    Option::deserialize(from).map(|list| Some(list.unwrap_or_default()))
}

/// An attachment that GC leaves alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an attachment: containerID and ifname")]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// The result of ADD, as the newest version has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, expecting = "a result")]
pub struct Success {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// An interface that a plugin made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, expecting = "an interface")]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// In bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of its network namespace; empty: the node's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0: socketPath, pciID.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// An address of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, expecting = "an address")]
pub struct Ip {
    /// With its prefix length.
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Index into `interfaces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route inside the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, expecting = "a route")]
pub struct Route {
    pub dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// Since 1.1.0: mtu, advmss, priority, table, scope.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Resolver settings, passed through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, expecting = "resolver settings")]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What is wrong, with the value.
    pub msg: String,
    /// What to do about it, or what the kernel said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Error codes: the spec's below 100, ours from there.
pub mod code {
    /// The configuration's cniVersion is none of ours, or too old for the command.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A key of the configuration asks for what Tartan does not do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// There is no such attachment.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// The environment is incomplete or wrong.
    pub const BAD_ENVIRONMENT: u32 = 4;
    /// Reading, writing or the kernel failed.
    pub const IO: u32 = 5;
    /// The configuration is not JSON of the right form.
    pub const DECODE: u32 = 6;
    /// The configuration says something that cannot be.
    pub const BAD_NETCONF: u32 = 7;
    /// Not now; the same call may work in a moment.
    pub const TRY_LATER: u32 = 11;
    /// STATUS: an ADD would fail now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: a pod added now would not work, and those that are there may not, either.
    pub const NOT_WORKING: u32 = 51;
    /// ADD: the interface is there already.
    pub const EXISTS: u32 = 100;
    /// ADD: another pod has the port of the node.
    pub const PORT_TAKEN: u32 = 101;
    /// ADD: no address can be given.
    pub const NO_ADDRESS: u32 = 102;
    /// CHECK: something is not as ADD left it.
    pub const NOT_AS_ADDED: u32 = 103;
}

// === impl Version ===

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// The one this code was written for.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As configurations spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that spelling.
    pub fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Command ===

impl Command {
    /// As CNI_COMMAND spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
        }
    }

    /// The first version that has the command.
    pub fn since(self) -> Version {
        match self {
            Command::Add | Command::Del => Version::V0_1_0,
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl NetConf ===

impl NetConf {
    /// The plugin that chooses addresses; none: Tartan does.
    pub fn ipam_type(&self) -> Option<&str> {
        self.ipam.as_ref()?.get("type")?.as_str().filter(|name| !name.is_empty())
    }
}

// === impl Success ===

impl Success {
    /// The result as `version` spells it.
    pub fn shape(&self, version: Version) -> Value {
        if version < Version::V0_3_0 { self.before_interfaces(version) } else { self.with_interfaces(version) }
    }

    /// 0.1.0 and 0.2.0: one address a family and nothing of interfaces.
    fn before_interfaces(&self, version: Version) -> Value {
        let mut result = json!({"cniVersion": version, "dns": self.dns});
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            let Some(ip) = self.ips.iter().find(|ip| is_v6(&ip.address) == v6) else { continue };
            let routes = self.routes.iter().filter(|route| is_v6(&route.dst) == v6);
            let routes: Vec<Route> = routes.map(Route::without_novelties).collect();
            result[key] = json!({"ip": ip.address, "routes": routes});
            if let Some(gateway) = &ip.gateway {
                result[key]["gateway"] = json!(gateway);
            }
        }
        result
    }

    fn with_interfaces(&self, version: Version) -> Value {
        let mut result = if version < Version::V1_1_0 {
            let interfaces: Vec<Interface> = self.interfaces.iter().map(Interface::without_novelties).collect();
            let routes: Vec<Route> = self.routes.iter().map(Route::without_novelties).collect();
            json!({"interfaces": interfaces, "ips": self.ips, "routes": routes, "dns": self.dns})
        } else {
            json!(self)
        };
        result["cniVersion"] = json!(version);
        if version < Version::V1_0_0 {
            for (at, ip) in self.ips.iter().enumerate() {
                result["ips"][at]["version"] = json!(if is_v6(&ip.address) { "6" } else { "4" });
            }
        }
        result
    }
}

impl Interface {
    fn without_novelties(&self) -> Interface {
        Interface { mtu: None, others: Map::new(), ..self.clone() }
    }
}

impl Route {
    fn without_novelties(&self) -> Route {
        Route { others: Map::new(), ..self.clone() }
    }
}

fn is_v6(address: &str) -> bool {
    address.contains(':')
}

// === impl CniError ===

impl CniError {
    /// An error with what to do about it.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> CniError {
        CniError { code, msg: msg.into(), details: details.into() }
    }

    /// As a plugin prints it.
    pub fn shape(&self, version: Version) -> Value {
        let mut value = json!(self);
        value["cniVersion"] = json!(version);
        value
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

/// The answer to VERSION, which echoes the version it was asked in.
pub fn supported_versions(asked: &str) -> Value {
    json!({"cniVersion": asked, "supportedVersions": Version::ALL})
}

#[cfg(test)]
mod tests;
