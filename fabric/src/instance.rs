//! An instance: one fabric with all the parameters both ends must agree on.
//!
//! Invariant: the name holds all of them. Two nodes that say the same name mean the same wire format; a changed
//! parameter is another instance, and the change from one to the other is a transition like any change of fabric.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use tartan_model::{Config, Endpoint, FabricMode, Family, WireguardConfig};
use tartan_netstate::claims::{ENCRYPTED_LINK_PREFIX, FABRIC_LINK_PREFIX};
use tartan_netstate::{Link, LinkKind, LinkName, VxlanParams, stable_hash};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Instance {
    /// Packets as they are, routed by the peer's own address.
    HostGw,
    /// VXLAN (RFC 7348).
    Vxlan {
        /// Family of the outer packet.
        underlay: Family,
        vni: u32,
        port: u16,
        /// With the group policy extension: who does not know it drops what has one.
        gbp: bool,
    },
    /// IP in IP.
    Ipip {
        /// Family of the outer packet.
        underlay: Family,
    },
    /// Packets in UDP, carried by an engine.
    Udp {
        /// Family of the outer packet.
        underlay: Family,
        port: u16,
    },
    /// WireGuard, with a key of each node that is of this instance alone.
    Wireguard {
        /// Family of the outer packet.
        underlay: Family,
        port: u16,
        /// How often keys have been made anew.
        rotation: u32,
        /// Number of the cluster's secret of which something goes into handshakes.
        psk: Option<u32>,
    },
    /// ESP in tunnel mode, with a key of each node that is of this instance alone.
    Ipsec {
        /// Family of the outer packet.
        underlay: Family,
        /// UDP port in which packets are wrapped (RFC 3948); none: they are not.
        port: Option<u16>,
        /// How often keys have been made anew.
        rotation: u32,
        /// Number of the cluster's secret that keys are made with.
        psk: u32,
    },
}

// === impl Instance ===

impl Instance {
    /// The mode it is an instance of.
    pub fn mode(&self) -> FabricMode {
        match self {
            Instance::HostGw => FabricMode::HostGw,
            Instance::Vxlan { .. } => FabricMode::Vxlan,
            Instance::Ipip { .. } => FabricMode::Ipip,
            Instance::Udp { .. } => FabricMode::Udp,
            Instance::Wireguard { .. } => FabricMode::Wireguard,
            Instance::Ipsec { .. } => FabricMode::Ipsec,
        }
    }

    /// Family of the outer packet; none where there is no outer packet.
    pub fn underlay(&self) -> Option<Family> {
        match self {
            Instance::HostGw => None,
            Instance::Vxlan { underlay, .. }
            | Instance::Ipip { underlay }
            | Instance::Udp { underlay, .. }
            | Instance::Wireguard { underlay, .. }
            | Instance::Ipsec { underlay, .. } => Some(*underlay),
        }
    }

    /// Bytes that it adds to a packet.
    pub(crate) fn overhead(&self) -> u32 {
        let in_udp = matches!(self, Instance::Ipsec { port: Some(_), .. });
        self.underlay().map_or(0, |underlay| self.mode().overhead(underlay, in_udp))
    }

    /// Whether what it carries cannot be read on the way.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Instance::Wireguard { .. } | Instance::Ipsec { .. })
    }

    /// The UDP port at which it hears and that it sends from, if it is one that encrypts.
    pub fn encrypted_at(&self) -> Option<u16> {
        match self {
            Instance::Wireguard { port, .. } => Some(*port),
            Instance::Ipsec { port, .. } => *port,
            _ => None,
        }
    }

    /// The UDP port that no other instance can have as long as this one does.
    pub(crate) fn port_alone(&self) -> Option<u16> {
        match self {
            Instance::Wireguard { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// The UDP port at which it hears what anybody could have sent.
    pub fn unwraps_at(&self) -> Option<u16> {
        match self {
            Instance::Vxlan { port, .. } | Instance::Udp { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// Whether it hears at one of the ports of everybody's services, which is so only where somebody has configured that.
    pub(crate) fn is_at_well_known_port(&self) -> bool {
        self.unwraps_at().or(self.encrypted_at()).is_some_and(|port| port < 1024)
    }

    /// Whether the configuration has something else at its UDP port.
    pub(crate) fn is_in_the_way(&self, config: &Config) -> bool {
        let Some(port) = self.unwraps_at().or(self.encrypted_at()) else { return false };
        let of_wireguard = config.wireguard.port..=config.wireguard.port + (WireguardConfig::PORTS - 1);
        let at_port = [
            (FabricMode::Vxlan, port == config.vxlan.port),
            (FabricMode::Udp, port == config.udp_port),
            (FabricMode::Wireguard, of_wireguard.contains(&port)),
            (FabricMode::Ipsec, config.ipsec.port == Some(port)),
        ];
        let mut at_port = at_port.into_iter().filter(|(_, is_there)| *is_there).map(|(mode, _)| mode).peekable();
        // One socket of the kernel's is with the extension or without it.
        let other_kind =
            matches!(self, Instance::Vxlan { gbp, .. } if port == config.vxlan.port && *gbp != config.vxlan.gbp);
        other_kind || at_port.peek().is_some() && at_port.all(|mode| mode != self.mode())
    }

    /// Number of the cluster's secret that its keys have something of.
    pub(crate) fn psk(&self) -> Option<u32> {
        match self {
            Instance::Wireguard { psk, .. } => *psk,
            Instance::Ipsec { psk, .. } => Some(*psk),
            _ => None,
        }
    }

    /// Whether it takes in only what it knows the sender of, so that every peer has to stand in it.
    pub(crate) fn knows_senders(&self) -> bool {
        matches!(self, Instance::Udp { .. } | Instance::Wireguard { .. } | Instance::Ipsec { .. })
    }

    /// What its packets are to those on the way.
    pub(crate) fn envelope(&self) -> String {
        match self {
            Instance::HostGw => "packets under pods' own addresses".into(),
            Instance::Vxlan { port, .. }
            | Instance::Udp { port, .. }
            | Instance::Wireguard { port, .. }
            | Instance::Ipsec { port: Some(port), .. } => {
                format!("packets to UDP port {port}")
            }
            Instance::Ipip { .. } => "packets of IP protocols 4 and 41".into(),
            Instance::Ipsec { port: None, .. } => "packets of IP protocol 50 (ESP)".into(),
        }
    }

    /// What a node that hears it at that address says, where there is no more to say.
    pub(crate) fn heard_at(&self, address: IpAddr) -> Endpoint {
        Endpoint { instance: self.to_string().into(), address, mac: None, public_key: None }
    }

    /// The instance whose device this is.
    pub fn of_device(device: &Link) -> Option<Instance> {
        match &device.kind {
            LinkKind::Vxlan(VxlanParams { vni, port, local, gbp, .. }) => {
                Some(Instance::Vxlan { underlay: Family::of(*local), vni: *vni, port: *port, gbp: *gbp })
            }
            LinkKind::Ipip { .. } | LinkKind::Sit { .. } => Some(Instance::Ipip { underlay: Family::V4 }),
            LinkKind::Ip6Tnl => Some(Instance::Ipip { underlay: Family::V6 }),
            LinkKind::Tun { label } | LinkKind::Wireguard { label } | LinkKind::Xfrm { label } => label.parse().ok(),
            _ => None,
        }
    }

    /// Name of its device on every node, for instances that have one. It differs per instance, because during a
    /// transition two of them exist side by side.
    pub fn device(&self) -> LinkName {
        thread_local! {
            /// Thousands of peers ask for the same, one after the other, each several times.
            static LAST: RefCell<Option<(Instance, LinkName)>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some((of, device)) if of == self => device.clone(),
            _ => {
                let prefix = if self.is_encrypted() { ENCRYPTED_LINK_PREFIX } else { FABRIC_LINK_PREFIX };
                let device = LinkName::hashed(prefix, stable_hash(&self.to_string()));
                last.insert((*self, device)).1.clone()
            }
        })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instance::HostGw => f.write_str("host-gw"),
            Instance::Vxlan { underlay, vni, port, gbp } => {
                write!(f, "vxlan/{underlay}/vni{vni}/port{port}{}", if *gbp { "/gbp" } else { "" })
            }
            Instance::Ipip { underlay } => write!(f, "ipip/{underlay}"),
            Instance::Udp { underlay, port } => write!(f, "udp/{underlay}/port{port}"),
            Instance::Wireguard { underlay, port, rotation, psk } => {
                write!(f, "wireguard/{underlay}/port{port}/key{rotation}")?;
                psk.map_or(Ok(()), |psk| write!(f, "/psk{psk:08x}"))
            }
            Instance::Ipsec { underlay, port, rotation, psk } => {
                write!(f, "ipsec/{underlay}/")?;
                port.map_or(Ok(()), |port| write!(f, "port{port}/"))?;
                write!(f, "key{rotation}/psk{psk:08x}")
            }
        }
    }
}

impl FromStr for Instance {
    type Err = String;

    /// An instance has one name: with a plus sign, zeros or capitals that are not in it, it is none.
    fn from_str(name: &str) -> Result<Instance, String> {
        let instance = Instance::parse(name)?;
        let mut rest = Rest(name);
        match fmt::write(&mut rest, format_args!("{instance}")) {
            Ok(()) if rest.0.is_empty() => Ok(instance),
            _ => Err(unknown(name)),
        }
    }
}

/// What is left of a name while that is written which it is compared with.
struct Rest<'a>(&'a str);

impl fmt::Write for Rest<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn unknown(name: &str) -> String {
    format!("'{name}' is not a fabric this version of Tartan knows")
}

impl Instance {
    fn parse(name: &str) -> Result<Instance, String> {
        let unknown = || unknown(name);
        let family = |name: &str| Family::ALL.into_iter().find(|family| family.as_str() == name).ok_or_else(unknown);
        let parts: Vec<&str> = name.split('/').collect();
        let port_of = |port: &str| port.strip_prefix("port").and_then(|port| port.parse().ok());
        let key_of = |key: &str| key.strip_prefix("key").and_then(|key| key.parse().ok());
        let psk_of = |psk: &str| u32::from_str_radix(psk.strip_prefix("psk")?, 16).ok();
        let (underlay, vni, port, gbp) = match parts.as_slice() {
            ["host-gw"] => return Ok(Instance::HostGw),
            ["ipip", underlay] => return Ok(Instance::Ipip { underlay: family(underlay)? }),
            ["udp", underlay, port] => {
                return Ok(Instance::Udp { underlay: family(underlay)?, port: port_of(port).ok_or_else(unknown)? });
            }
            ["wireguard", underlay, port, key, secret @ ..] => {
                return Ok(Instance::Wireguard {
                    underlay: family(underlay)?,
                    port: port_of(port).ok_or_else(unknown)?,
                    rotation: key_of(key).ok_or_else(unknown)?,
                    psk: match secret {
                        [] => None,
                        [secret] => Some(psk_of(secret).ok_or_else(unknown)?),
                        _ => return Err(unknown()),
                    },
                });
            }
            ["ipsec", underlay, in_udp @ .., key, secret] => {
                return Ok(Instance::Ipsec {
                    underlay: family(underlay)?,
                    port: match in_udp {
                        [] => None,
                        [port] => Some(port_of(port).ok_or_else(unknown)?),
                        _ => return Err(unknown()),
                    },
                    rotation: key_of(key).ok_or_else(unknown)?,
                    psk: psk_of(secret).ok_or_else(unknown)?,
                });
            }
            ["vxlan", underlay, vni, port] => (family(underlay)?, vni, port, false),
            ["vxlan", underlay, vni, port, "gbp"] => (family(underlay)?, vni, port, true),
            _ => return Err(unknown()),
        };
        let vni = vni.strip_prefix("vni").and_then(|vni| vni.parse().ok()).filter(|vni| *vni < 1 << 24);
        match (vni, port_of(port)) {
            (Some(vni), Some(port)) => Ok(Instance::Vxlan { underlay, vni, port, gbp }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_it_all() {
        for instance in [
            Instance::HostGw,
            Instance::Vxlan { underlay: Family::V4, vni: 1, port: 8472, gbp: false },
            Instance::Vxlan { underlay: Family::V6, vni: 0xff_ffff, port: 4789, gbp: true },
            Instance::Ipip { underlay: Family::V4 },
            Instance::Ipip { underlay: Family::V6 },
            Instance::Udp { underlay: Family::V4, port: 8285 },
            Instance::Udp { underlay: Family::V6, port: 65535 },
            Instance::Wireguard { underlay: Family::V4, port: 51820, rotation: 0, psk: None },
            Instance::Wireguard { underlay: Family::V6, port: 51823, rotation: u32::MAX, psk: Some(7) },
            Instance::Ipsec { underlay: Family::V6, port: None, rotation: 20_000, psk: u32::MAX },
            Instance::Ipsec { underlay: Family::V4, port: Some(4500), rotation: 1, psk: 0 },
        ] {
            assert_eq!(instance.to_string().parse(), Ok(instance));
        }
        for name in [
            "",
            "vxlan",
            "vxlan/ipv4/vni1",
            "vxlan/ipv5/vni1/port1",
            "vxlan/ipv4/vni16777216/port1",
            "vxlan/ipv4/vni1/port1/gpb",
            "ipip",
            "ipip/ipv4/",
            "udp/ipv4",
            "udp/ipv4/port65536",
            "wireguard/ipv4/port51820",
            "wireguard/ipv4/port51820/key-1",
            "wireguard/ipv4/port51820/key1/psk",
            "wireguard/ipv4/port51820/key1/psk1ffffffff",
            "wireguard/ipv4/port51820/key1/psk1/psk2",
            "ipsec/ipv4/key1",
            "ipsec/ipv4/key1/psk",
            "ipsec/ipv4/key1/psk1/port1",
            "ipsec/ipv4/port65536/key1/psk1",
            "ipsec/ipv4/port1/port1/key1/psk1",
            // Nor has one a second name.
            "vxlan/ipv4/vni01/port8472",
            "vxlan/ipv4/vni1/port+8472",
            "udp/ipv4/port08285",
            "wireguard/ipv4/port51820/key+0",
            "wireguard/ipv4/port51820/key0/psk7",
            "wireguard/ipv4/port51820/key0/psk0000000A",
            "ipsec/ipv4/key1/psk000000007",
        ] {
            assert!(name.parse::<Instance>().is_err(), "{name}");
        }
    }

    #[test]
    fn devices_of_two_instances_differ() {
        let a = Instance::Vxlan { underlay: Family::V4, vni: 1, port: 8472, gbp: false };
        let b = Instance::Vxlan { underlay: Family::V4, vni: 2, port: 8472, gbp: false };
        let c = Instance::Wireguard { underlay: Family::V4, port: 51820, rotation: 0, psk: None };
        assert_ne!(a.device(), b.device());
        assert!([a, c].iter().all(|at| at.device().as_str().len() <= LinkName::MAX));
        assert!(
            c.device().as_str().starts_with(ENCRYPTED_LINK_PREFIX)
                && !a.device().as_str().starts_with(ENCRYPTED_LINK_PREFIX)
        );
    }
}
