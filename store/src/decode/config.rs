//! NetworkConfig and the checked, whole [`Config`] it stands for.
//!
//! Written back, only what differs from the defaults appears: a later version may choose better ones.

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tartan_api::kinds::{Empty, ObjectMeta};
use tartan_api::tartan::{self, IpsecSpec, NetworkConfigSpec, NodeAddressSpec, UdpSpec, VxlanSpec, WireguardSpec};
use tartan_model::{
    AddressChoice, Config, Encryption, FabricMode, Family, HostFirewall, IpsecConfig, PolicyMode, VxlanConfig,
    WireguardConfig,
};

use super::fault::{self, Fault};
use super::fields;

/// What IPv6 needs of every link (RFC 8200 §5).
const MIN_POD_MTU: u32 = 1280;
/// IFNAMSIZ without its final NUL.
const MAX_LINK_NAME: usize = 15;

const FABRICS: [(&str, FabricMode); 7] = [
    ("vxlan", FabricMode::Vxlan),
    ("ipip", FabricMode::Ipip),
    ("udp", FabricMode::Udp),
    ("wireguard", FabricMode::Wireguard),
    ("ipsec", FabricMode::Ipsec),
    ("host-gw", FabricMode::HostGw),
    ("none", FabricMode::None),
];
const FALLBACKS: [(&str, Option<FabricMode>); 2] = [("none", None), ("udp", Some(FabricMode::Udp))];
const ENCRYPTIONS: [(&str, Encryption); 3] =
    [("none", Encryption::None), ("wireguard", Encryption::Wireguard), ("ipsec", Encryption::Ipsec)];
const UNDERLAYS: [(&str, Option<Family>); 3] = [("auto", None), ("ipv4", Some(Family::V4)), ("ipv6", Some(Family::V6))];
const FIREWALLS: [(&str, HostFirewall); 2] = [("open", HostFirewall::Open), ("report", HostFirewall::Report)];
const POLICY: [(&str, PolicyMode); 3] =
    [("enforce", PolicyMode::Enforce), ("audit", PolicyMode::Audit), ("off", PolicyMode::Off)];

/// The keys of an object, so that a mistyped `spec` is not an absent one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "only which keys there are is of interest")]
struct Keys {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: IgnoredAny,
    #[serde(default)]
    spec: IgnoredAny,
    #[serde(default)]
    status: IgnoredAny,
}

pub(super) fn decode(body: &str) -> Result<Config, Fault> {
    fault::typed::<Keys>(body)?;
    let document: tartan::NetworkConfig = fault::typed(body)?;
    if document.metadata.name != tartan::CONFIG_NAME {
        let fix = format!("name it `{}`; a cluster has one network", tartan::CONFIG_NAME);
        return Err(Fault::value("metadata.name", &document.metadata.name, "not the configuration that counts", fix));
    }
    config(&document.spec)
}

pub(super) fn encode(name: &str, config: &Config) -> tartan::NetworkConfig {
    tartan::NetworkConfig {
        api_version: tartan::API_VERSION.to_owned(),
        kind: "NetworkConfig".to_owned(),
        metadata: ObjectMeta { name: name.to_owned(), ..ObjectMeta::default() },
        spec: spec(config),
        status: Empty {},
    }
}

fn config(spec: &NetworkConfigSpec) -> Result<Config, Fault> {
    let default = Config::default();
    let fabric = word("spec.fabric", &spec.fabric, &FABRICS, default.fabric)?;
    let fallback = word("spec.fallback", &spec.fallback, &FALLBACKS, default.fallback)?;
    let encryption = encryption(spec, fabric)?;
    let udp_port = spec
        .udp
        .as_ref()
        .and_then(|udp| udp.port)
        .map_or(Ok(default.udp_port), |port| self::port("spec.udp.port", port))?;
    let vxlan = vxlan(&spec.vxlan.clone().unwrap_or_default(), default.vxlan)?;
    let wireguard = wireguard(&spec.wireguard.clone().unwrap_or_default(), default.wireguard)?;
    let ipsec = ipsec(&spec.ipsec.clone().unwrap_or_default(), default.ipsec)?;
    let others = wireguard.port..=wireguard.port + (WireguardConfig::PORTS - 1);
    if let Some(port) = ipsec.port.filter(|port| [vxlan.port, udp_port].contains(port) || others.contains(port)) {
        let fix = "write one that neither vxlan nor udp nor wireguard has, e.g. 4500";
        return Err(Fault::value("spec.ipsec.udpPort", port, "another fabric's port", fix));
    }
    let modes = [Some(fabric), fallback, encryption.mode()];
    // The larger of the two families.
    let overhead = |mode: FabricMode| mode.overhead(Family::V6, ipsec.port.is_some());
    let lowest_mtu = MIN_POD_MTU + modes.into_iter().flatten().map(overhead).max().unwrap_or(0);
    Ok(Config {
        fabric,
        vxlan,
        udp_port,
        fallback,
        encryption,
        strict_encryption: spec.strict_encryption.unwrap_or(default.strict_encryption),
        wireguard,
        ipsec,
        cross_subnet: spec.cross_subnet.unwrap_or(default.cross_subnet),
        underlay: word("spec.underlay", &spec.underlay, &UNDERLAYS, default.underlay)?,
        underlay_mtu: spec
            .underlay_mtu
            .map(|mtu| fields::number("spec.underlayMTU", mtu, lowest_mtu..=65535, " bytes"))
            .transpose()?,
        masquerade: spec.masquerade.unwrap_or(default.masquerade),
        non_masquerade: fields::cidrs("spec.nonMasqueradeCIDRs", spec.non_masquerade_cidrs.as_deref().unwrap_or(&[]))?,
        host_firewall: word("spec.hostFirewall", &spec.host_firewall, &FIREWALLS, default.host_firewall)?,
        policy: word("spec.policy", &spec.policy, &POLICY, default.policy)?,
        node_address: node_address(&spec.node_address.clone().unwrap_or_default())?,
        cooldown: seconds("spec.cooldownSeconds", spec.cooldown_seconds, 0..=86_400, default.cooldown)?,
        lease: seconds("spec.leaseSeconds", spec.lease_seconds, 3..=86_400, default.lease)?,
        drain: seconds("spec.drainSeconds", spec.drain_seconds, 0..=3_600, default.drain)?,
    })
}

fn encryption(spec: &NetworkConfigSpec, fabric: FabricMode) -> Result<Encryption, Fault> {
    let encryption = word("spec.encryption", &spec.encryption, &ENCRYPTIONS, Encryption::None)?;
    if fabric == FabricMode::None && encryption != Encryption::None {
        let wrong = "of no use with fabric `none`, which leaves the way between nodes to somebody else";
        return Err(Fault::value("spec.encryption", encryption, wrong, "set spec.fabric, or leave encryption to them"));
    }
    let encrypts = encryption != Encryption::None || fabric.encrypts();
    if spec.strict_encryption == Some(true) && !encrypts {
        let wrong = "without encryption: nothing could be sent";
        let fix = "set spec.encryption to `wireguard` or `ipsec` with it";
        return Err(Fault::value("spec.strictEncryption", true, wrong, fix));
    }
    Ok(encryption)
}

/// WireGuard's sessions have keys of their own, of two minutes.
const A_YEAR: u32 = 31_536_000;
/// An association of IPsec has its key as long as that; it runs out of numbers no sooner, however fast it is (docs/ipsec.md).
const A_WEEK: u32 = 604_800;

fn wireguard(spec: &WireguardSpec, default: WireguardConfig) -> Result<WireguardConfig, Fault> {
    let port = spec.port.unwrap_or(default.port);
    let last = u32::from(u16::MAX - (WireguardConfig::PORTS - 1));
    fields::number("spec.wireguard.port", u32::from(port), 1..=last, "")?;
    let rotate_after = |secs| rotate_after("spec.wireguard.rotateAfterSeconds", secs, A_YEAR);
    Ok(WireguardConfig {
        port,
        rotation: spec.rotation.unwrap_or(default.rotation),
        rotate_after: spec.rotate_after_seconds.map(rotate_after).transpose()?,
        nodes: spec.nodes.unwrap_or(default.nodes),
    })
}

fn ipsec(spec: &IpsecSpec, default: IpsecConfig) -> Result<IpsecConfig, Fault> {
    let after = spec.rotate_after_seconds.map(|secs| rotate_after("spec.ipsec.rotateAfterSeconds", secs, A_WEEK));
    Ok(IpsecConfig {
        port: spec.udp_port.map(|udp_port| port("spec.ipsec.udpPort", udp_port)).transpose()?,
        rotation: spec.rotation.unwrap_or(default.rotation),
        rotate_after: after.transpose()?.unwrap_or(default.rotate_after),
    })
}

fn rotate_after(field: &str, secs: u32, at_most: u32) -> Result<Duration, Fault> {
    let secs = fields::number(field, secs, 10..=at_most, " seconds")?;
    Ok(Duration::from_secs(u64::from(secs)))
}

fn vxlan(spec: &VxlanSpec, default: VxlanConfig) -> Result<VxlanConfig, Fault> {
    let vni = spec.vni.unwrap_or(default.vni);
    Ok(VxlanConfig {
        vni: fields::number("spec.vxlan.vni", vni, 1..=(1 << 24) - 1, "")?,
        port: port("spec.vxlan.port", spec.port.unwrap_or(default.port))?,
        learning: spec.learning.unwrap_or(default.learning),
        gbp: spec.gbp.unwrap_or(default.gbp),
    })
}

fn port(field: &str, port: u16) -> Result<u16, Fault> {
    fields::number(field, u32::from(port), 1..=65535, "").map(|_| port)
}

fn node_address(spec: &NodeAddressSpec) -> Result<AddressChoice, Fault> {
    let NodeAddressSpec { interface, interface_regex, cidrs, can_reach } = spec;
    let given = [
        ("interface", interface.is_some()),
        ("interfaceRegex", interface_regex.is_some()),
        ("cidrs", cidrs.is_some()),
        ("canReach", can_reach.is_some()),
    ];
    let given: Vec<&str> = given.into_iter().filter_map(|(key, is)| is.then_some(key)).collect();
    if given.len() > 1 {
        let message = format!("spec.nodeAddress has {}: only one of them can choose", given.join(" and "));
        return Err(Fault::new("spec.nodeAddress", "BadValue", message, format!("keep one, e.g. {}", given[0])));
    }
    if let Some(name) = interface {
        return interface_name(name).map(AddressChoice::Interface);
    }
    if let Some(regex) = interface_regex {
        return interface_pattern(regex).map(AddressChoice::InterfaceRegex);
    }
    if let Some(cidrs) = cidrs {
        return fields::cidrs("spec.nodeAddress.cidrs", cidrs).map(AddressChoice::Cidrs);
    }
    if let Some(target) = can_reach {
        return fields::address("spec.nodeAddress.canReach", target).map(AddressChoice::CanReach);
    }
    Ok(AddressChoice::Auto)
}

fn interface_name(name: &str) -> Result<String, Fault> {
    if (1..=MAX_LINK_NAME).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_whitespace()) {
        return Ok(name.to_owned());
    }
    let wrong = format!("an interface name is 1 to {MAX_LINK_NAME} bytes without `/` and blanks");
    Err(Fault::value("spec.nodeAddress.interface", name, wrong, "write a name that `ip link` shows"))
}

fn interface_pattern(regex: &str) -> Result<String, Fault> {
    match regex_lite::Regex::new(regex) {
        Ok(_) => Ok(regex.to_owned()),
        Err(error) => Err(Fault::value(
            "spec.nodeAddress.interfaceRegex",
            regex,
            error,
            "write a regular expression, e.g. ^eth[0-9]+$",
        )),
    }
}

fn word<T: Copy>(field: &str, text: &Option<String>, words: &[(&'static str, T)], default: T) -> Result<T, Fault> {
    text.as_deref().map_or(Ok(default), |text| fields::word(field, text, words))
}

fn seconds(
    field: &str,
    value: Option<u32>,
    bounds: std::ops::RangeInclusive<u32>,
    default: Duration,
) -> Result<Duration, Fault> {
    let Some(value) = value else { return Ok(default) };
    fields::number(field, value, bounds, " seconds").map(|value| Duration::from_secs(u64::from(value)))
}

fn spec(config: &Config) -> NetworkConfigSpec {
    let default = Config::default();
    NetworkConfigSpec {
        fabric: (config.fabric != default.fabric).then(|| name_of(config.fabric, &FABRICS)),
        vxlan: (config.vxlan != default.vxlan).then(|| vxlan_spec(&config.vxlan, &default.vxlan)),
        udp: differing(&config.udp_port, &default.udp_port).map(|port| UdpSpec { port: Some(port) }),
        fallback: (config.fallback != default.fallback).then(|| name_of(config.fallback, &FALLBACKS)),
        encryption: (config.encryption != default.encryption).then(|| name_of(config.encryption, &ENCRYPTIONS)),
        strict_encryption: differing(&config.strict_encryption, &default.strict_encryption),
        wireguard: (config.wireguard != default.wireguard)
            .then(|| wireguard_spec(&config.wireguard, &default.wireguard)),
        ipsec: (config.ipsec != default.ipsec).then(|| IpsecSpec {
            udp_port: config.ipsec.port,
            rotation: differing(&config.ipsec.rotation, &default.ipsec.rotation),
            rotate_after_seconds: differing(&config.ipsec.rotate_after, &default.ipsec.rotate_after).map(whole_seconds),
        }),
        cross_subnet: differing(&config.cross_subnet, &default.cross_subnet),
        underlay: (config.underlay != default.underlay).then(|| name_of(config.underlay, &UNDERLAYS)),
        underlay_mtu: config.underlay_mtu,
        masquerade: differing(&config.masquerade, &default.masquerade),
        non_masquerade_cidrs: differing(&config.non_masquerade, &default.non_masquerade)
            .map(|cidrs| cidrs.iter().map(ToString::to_string).collect()),
        host_firewall: (config.host_firewall != default.host_firewall)
            .then(|| name_of(config.host_firewall, &FIREWALLS)),
        policy: (config.policy != default.policy).then(|| name_of(config.policy, &POLICY)),
        node_address: node_address_spec(&config.node_address),
        cooldown_seconds: differing(&config.cooldown, &default.cooldown).map(whole_seconds),
        lease_seconds: differing(&config.lease, &default.lease).map(whole_seconds),
        drain_seconds: differing(&config.drain, &default.drain).map(whole_seconds),
    }
}

fn vxlan_spec(vxlan: &VxlanConfig, default: &VxlanConfig) -> VxlanSpec {
    VxlanSpec {
        vni: differing(&vxlan.vni, &default.vni),
        port: differing(&vxlan.port, &default.port),
        learning: differing(&vxlan.learning, &default.learning),
        gbp: differing(&vxlan.gbp, &default.gbp),
    }
}

fn wireguard_spec(wireguard: &WireguardConfig, default: &WireguardConfig) -> WireguardSpec {
    WireguardSpec {
        port: differing(&wireguard.port, &default.port),
        rotation: differing(&wireguard.rotation, &default.rotation),
        rotate_after_seconds: wireguard.rotate_after.map(whole_seconds),
        nodes: differing(&wireguard.nodes, &default.nodes),
    }
}

fn node_address_spec(choice: &AddressChoice) -> Option<NodeAddressSpec> {
    let mut spec = NodeAddressSpec::default();
    match choice {
        AddressChoice::Auto => return None,
        AddressChoice::Interface(name) => spec.interface = Some(name.clone()),
        AddressChoice::InterfaceRegex(regex) => spec.interface_regex = Some(regex.clone()),
        AddressChoice::Cidrs(cidrs) => spec.cidrs = Some(cidrs.iter().map(ToString::to_string).collect()),
        AddressChoice::CanReach(target) => spec.can_reach = Some(target.to_string()),
    }
    Some(spec)
}

fn differing<T: Clone + PartialEq>(value: &T, default: &T) -> Option<T> {
    (value != default).then(|| value.clone())
}

fn name_of<T: Copy + PartialEq>(value: T, words: &[(&'static str, T)]) -> String {
    let (name, _) = words.iter().find(|(_, word)| *word == value).expect("the table has every value");
    (*name).to_owned()
}

fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
