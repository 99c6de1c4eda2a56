//! The cluster's network configuration, typed and checked.
//!
//! Invariant: a `Config` is always whole and usable. A bad document is refused with the key, the value and the fix,
//! and the last good one goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tartan_netstate::claims::{UDP_PORT, VXLAN_PORT, VXLAN_VNI, WIREGUARD_PORT, WIREGUARD_PORTS};

use crate::Family;

/// What NetworkConfig says, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub fabric: FabricMode,
    pub vxlan: VxlanConfig,
    /// At which the udp fabric hears.
    pub udp_port: u16,
    /// What carries packets to a peer to which the fabric is blocked.
    pub fallback: Option<FabricMode>,
    /// What takes the fabric's place between two nodes that both can.
    pub encryption: Encryption,
    /// Nothing goes to other nodes' pods in clear.
    pub strict_encryption: bool,
    pub wireguard: WireguardConfig,
    pub ipsec: IpsecConfig,
    /// Packets to peers on one link with this node go as they are, whatever the fabric.
    pub cross_subnet: bool,
    /// Family of packets between nodes; none: IPv4 where both ends have it, else IPv6.
    pub underlay: Option<Family>,
    /// In bytes; none: the uplink's.
    pub underlay_mtu: Option<u32>,
    /// Packets from pods to outside the cluster leave under the node's address.
    pub masquerade: bool,
    /// Destinations outside the cluster that see pods' own addresses.
    pub non_masquerade: Vec<IpNet>,
    pub host_firewall: HostFirewall,
    pub policy: PolicyMode,
    pub node_address: AddressChoice,
    /// How long a released address stays unused.
    pub cooldown: Duration,
    /// How long after its last sign of life a node counts as live.
    pub lease: Duration,
    /// How long the receive side of a fabric outlives its last sender.
    pub drain: Duration,
}

/// The configured way across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FabricMode {
    HostGw,
    Vxlan,
    Ipip,
    /// Carried by an engine, which is a program.
    Udp,
    /// Encrypted whatever [`Config::encryption`] says.
    Wireguard,
    /// As for WireGuard.
    Ipsec,
    /// Somebody else's: no routes to peers, no devices, nothing heard.
    None,
}

/// See `NetworkConfig.spec.vxlan`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    pub vni: u32,
    pub port: u16,
    pub learning: bool,
    pub gbp: bool,
}

/// How packets between two nodes are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    #[default]
    None,
    Wireguard,
    Ipsec,
}

/// See `NetworkConfig.spec.wireguard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardConfig {
    /// The first port.
    pub port: u16,
    /// Keys are made anew with each.
    pub rotation: u32,
    /// And whenever so much time has passed, in whole seconds; none: only then.
    pub rotate_after: Option<Duration>,
    /// What nodes send each other under their own addresses is encrypted as well.
    pub nodes: bool,
}

/// See `NetworkConfig.spec.ipsec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecConfig {
    /// UDP port in which packets are wrapped (RFC 3948); none: they are not.
    pub port: Option<u16>,
    /// Keys are made anew with each.
    pub rotation: u32,
    /// And whenever so much time has passed, in whole seconds: keys are not for ever.
    pub rotate_after: Duration,
}

/// What to do about somebody else's firewall that drops what pods send through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFirewall {
    /// Put one commented rule where that firewall wants it.
    Open,
    /// Only say so.
    Report,
}

/// What is done about policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyMode {
    /// What they deny is denied.
    #[default]
    Enforce,
    /// What they deny is said, and passes.
    Audit,
    /// Nothing.
    Off,
}

/// How a node finds its own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressChoice {
    /// The Node's InternalIP, else the lowest-metric default route.
    Auto,
    Interface(String),
    InterfaceRegex(String),
    Cidrs(Vec<IpNet>),
    CanReach(IpAddr),
}

impl WireguardConfig {
    /// How many ports it takes from the first one on.
    pub const PORTS: u16 = WIREGUARD_PORTS;
}

impl std::fmt::Display for FabricMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FabricMode::HostGw => "host-gw",
            FabricMode::Vxlan => "vxlan",
            FabricMode::Ipip => "ipip",
            FabricMode::Udp => "udp",
            FabricMode::Wireguard => "wireguard",
            FabricMode::Ipsec => "ipsec",
            FabricMode::None => "none",
        })
    }
}

impl std::fmt::Display for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Encryption::None => "none",
            Encryption::Wireguard => "wireguard",
            Encryption::Ipsec => "ipsec",
        })
    }
}

impl std::fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PolicyMode::Enforce => "enforce",
            PolicyMode::Audit => "audit",
            PolicyMode::Off => "off",
        })
    }
}

impl FabricMode {
    /// Whether it encrypts whatever [`Config::encryption`] says.
    pub fn encrypts(self) -> bool {
        matches!(self, FabricMode::Wireguard | FabricMode::Ipsec)
    }

    /// Bytes that it adds to a packet on an underlay of that family. IPsec's own can be wrapped in UDP.
    pub fn overhead(self, underlay: Family, in_udp: bool) -> u32 {
        const UDP: u32 = 8;
        let ip = match underlay {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self {
            FabricMode::HostGw | FabricMode::None => 0,
            FabricMode::Ipip => ip,
            FabricMode::Udp => ip + UDP,
            // VXLAN's own header, and the inner Ethernet one.
            FabricMode::Vxlan => ip + UDP + 8 + 14,
            // A data message's header and tag.
            FabricMode::Wireguard => ip + UDP + 16 + 16,
            // ESP's header 8, the IV 8, at most 3 bytes to fill up with, their length and the next header 2, the tag 16 (RFC 4106
            // section 6), and UDP's header if there is one (RFC 3948).
            FabricMode::Ipsec => ip + 8 + 8 + 3 + 2 + 16 + if in_udp { UDP } else { 0 },
        }
    }
}

impl Encryption {
    /// What it takes in a fabric's place.
    pub fn mode(self) -> Option<FabricMode> {
        match self {
            Encryption::None => None,
            Encryption::Wireguard => Some(FabricMode::Wireguard),
            Encryption::Ipsec => Some(FabricMode::Ipsec),
        }
    }
}

impl Config {
    /// What encrypts packets between nodes, in the fabric's place or as the fabric.
    pub fn encrypts_by(&self) -> Option<FabricMode> {
        let in_its_place = self.encryption.mode().filter(|_| self.fabric != FabricMode::None);
        in_its_place.or(Some(self.fabric).filter(|mode| mode.encrypts()))
    }

    /// UDP ports at which packets between nodes are to arrive that anybody could have sent: those of fabrics that do not encrypt.
    pub fn ports_between_nodes(&self) -> BTreeSet<u16> {
        BTreeSet::from([self.vxlan.port, self.udp_port])
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            fabric: FabricMode::Vxlan,
            vxlan: VxlanConfig { vni: VXLAN_VNI, port: VXLAN_PORT, learning: false, gbp: false },
            udp_port: UDP_PORT,
            fallback: None,
            encryption: Encryption::None,
            strict_encryption: false,
            wireguard: WireguardConfig { port: WIREGUARD_PORT, rotation: 0, rotate_after: None, nodes: false },
            ipsec: IpsecConfig { port: None, rotation: 0, rotate_after: Duration::from_secs(86_400) },
            cross_subnet: false,
            underlay: None,
            underlay_mtu: None,
            masquerade: true,
            non_masquerade: Vec::new(),
            host_firewall: HostFirewall::Open,
            policy: PolicyMode::default(),
            node_address: AddressChoice::Auto,
            cooldown: Duration::from_secs(30),
            lease: Duration::from_secs(40),
            drain: Duration::from_secs(5),
        }
    }
}
