//! What a network configuration asks for, typed; each fault with its key, its value and the fix.

use std::net::IpAddr;

use ipnet::IpNet;
use tartan_api::cni::{self, CniError, CniRequest, NetConf, Success, Version, code};
use tartan_model::{Family, Limit, Limits, PerFamily, PortMapping, Protocol};
use tartan_netstate::Mac;
use tartan_netstate::claims::SELFTEST_PORT;

/// Kubernetes allows no slower annotation.
const SLOWEST_BITS: u64 = 1000;

/// What the runtime wants of this pod beyond an address in every family.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) addresses: PerFamily<IpAddr>,
    /// Another plugin has chosen: these and no others.
    pub(super) given: Option<PerFamily<IpAddr>>,
    pub(super) mac: Option<Mac>,
    pub(super) ports: Vec<PortMapping>,
    pub(super) limits: Option<Box<Limits>>,
}

impl Wanted {
    pub(super) fn read(request: &CniRequest) -> Result<Wanted, CniError> {
        let netconf = &request.netconf;
        refuse_unsupported(netconf)?;
        let config = &netconf.runtime_config;
        let given = given(request)?;
        Ok(Wanted {
            // What is asked for was that plugin's to hear.
            addresses: if given.is_none() { addresses(&config.ips)? } else { PerFamily::default() },
            given,
            mac: mac(config.mac.as_deref())?,
            ports: ports(config)?,
            limits: limits(&config.bandwidth.unwrap_or_default())?,
        })
    }
}

/// The result of the plugin before us; configurations older than 0.3.0 know of none.
pub(super) fn previous(netconf: &NetConf) -> Result<Option<Success>, CniError> {
    let Some(value) = netconf.prev_result.as_ref().filter(|value| !value.is_null()) else { return Ok(None) };
    if Version::parse(&netconf.cni_version).is_none_or(|version| version < Version::V0_3_0) {
        return Ok(None);
    }
    let result = serde_json::from_value(value.clone());
    result
        .map(Some)
        .map_err(|error| bad(format!("prevResult: {error}"), "it is the result of the plugin before this one"))
}

fn refuse_unsupported(netconf: &NetConf) -> Result<(), CniError> {
    let unsupported = |key: String, value: &serde_json::Value, fix: String| {
        Err(CniError::new(code::UNSUPPORTED_FIELD, format!("{key} is not supported: {value}"), fix))
    };
    // For who chooses addresses.
    let is_theirs = |name: &str| name == "ipRanges" && netconf.ipam_type().is_some();
    match netconf.runtime_config.others.iter().find(|(name, _)| !is_theirs(name)) {
        Some((name, value)) => {
            unsupported(format!("runtimeConfig.{name}"), value, format!("take {name:?} out of `capabilities`"))
        }
        None => Ok(()),
    }
}

fn addresses(asked: &[String]) -> Result<PerFamily<IpAddr>, CniError> {
    one_a_family("runtimeConfig.ips", asked.iter().map(String::as_str))
}

/// What the plugin of `ipam.type` gave. Its routes and gateways are not a pod's here: see docs/decisions.md.
fn given(request: &CniRequest) -> Result<Option<PerFamily<IpAddr>>, CniError> {
    let Some(by) = request.netconf.ipam_type() else { return Ok(None) };
    let Some(given) = &request.given else {
        let msg = format!("ipam.type {by}: its addresses did not come with the request");
        return Err(CniError::new(code::UNSUPPORTED_FIELD, msg, "are tartan-cni and the agent of one release?"));
    };
    let addresses = one_a_family(&format!("ipam.type {by}"), given.ips.iter().map(|ip| ip.address.as_str()))?;
    if addresses == PerFamily::default() {
        return Err(bad(format!("ipam.type {by} gave no address"), "look at what `ipam` in the configuration says"));
    }
    Ok(Some(addresses))
}

fn one_a_family<'a>(whose: &str, texts: impl Iterator<Item = &'a str>) -> Result<PerFamily<IpAddr>, CniError> {
    let mut addresses = PerFamily::default();
    for text in texts {
        let address = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
        let wrong = || bad(format!("{whose}: {text:?} is no IP address"), "write it as in 10.244.0.7 or fd00::7");
        let address = address.map_err(|_| wrong())?;
        let family = Family::of(address);
        if let Some(first) = addresses.get(family) {
            let msg = format!("{whose}: {first} and {address} are both {family}");
            return Err(bad(msg, "a pod has one address a family"));
        }
        addresses.set(family, address);
    }
    Ok(addresses)
}

fn mac(asked: Option<&str>) -> Result<Option<Mac>, CniError> {
    let Some(text) = asked.filter(|text| !text.is_empty()) else { return Ok(None) };
    let six = "write six hex pairs, as in 02:00:5e:10:00:01";
    let mac: Mac = text.parse().map_err(|_| bad(format!("runtimeConfig.mac: {text:?} is no MAC address"), six))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        let msg = format!("runtimeConfig.mac: {text} is no address of one interface");
        return Err(bad(msg, "the first pair is to be even, as in 02:…, and not all are 00"));
    }
    Ok(Some(mac))
}

fn limits(asked: &cni::Bandwidth) -> Result<Option<Box<Limits>>, CniError> {
    let limit = |way: &str, rate_bits: u64, burst_bits: u64| match (rate_bits, burst_bits) {
        (0, 0) => Ok(None),
        (0, burst) => {
            let msg = format!("runtimeConfig.bandwidth: {way}Burst is {burst}, and there is no {way}Rate");
            Err(bad(msg, "say how many bits a second, or leave both out"))
        }
        (rate, _) if rate < SLOWEST_BITS => {
            let msg = format!("runtimeConfig.bandwidth.{way}Rate: {rate} bits a second let no packet through");
            Err(bad(msg, "write it in bits, as in 10000000 for 10 Mbit/s; the slowest is 1000"))
        }
        _ => Ok(Some(Limit { rate_bits, burst_bits })),
    };
    let limits = Limits {
        to_pod: limit("ingress", asked.ingress_rate, asked.ingress_burst)?,
        from_pod: limit("egress", asked.egress_rate, asked.egress_burst)?,
    };
    Ok((limits != Limits::default()).then(|| limits.into()))
}

fn ports(config: &cni::RuntimeConfig) -> Result<Vec<PortMapping>, CniError> {
    let mut ports = Vec::with_capacity(config.port_mappings.len());
    for (at, mapping) in config.port_mappings.iter().enumerate() {
        let port = port(mapping)
            .map_err(|(field, why, fix)| bad(format!("runtimeConfig.portMappings[{at}].{field}: {why}"), fix))?;
        if let Some(same) = ports.iter().position(|other| super::ports::overlap(other, &port)) {
            let msg = format!("runtimeConfig.portMappings[{at}]: {} again, as in [{same}]", super::ports::name(&port));
            return Err(bad(msg, "each port of the node leads to one port of the pod"));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn port(mapping: &cni::PortMapping) -> Result<PortMapping, (&'static str, String, &'static str)> {
    let range = "a port is 1 to 65535";
    if mapping.host_port == 0 {
        return Err(("hostPort", "0 is no port".into(), range));
    }
    if mapping.container_port == 0 {
        return Err(("containerPort", "0 is no port".into(), range));
    }
    let protocol = match &*mapping.protocol.to_ascii_lowercase() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(("protocol", format!("{:?} has no ports", mapping.protocol), "it is tcp, udp or sctp")),
    };
    if (protocol, mapping.host_port) == (Protocol::Udp, SELFTEST_PORT) {
        return Err(("hostPort", format!("at {SELFTEST_PORT} nodes hear how their paths are"), "choose another"));
    }
    let host_ip = match &*mapping.host_ip {
        "" => None,
        text => {
            let wrong =
                |_| ("hostIP", format!("{text:?} is no IP address"), "an address of this node, or leave it out");
            Some(text.parse::<IpAddr>().map_err(wrong)?)
        }
    };
    Ok(PortMapping { protocol, host_ip, host_port: mapping.host_port, container_port: mapping.container_port })
}

fn bad(msg: String, fix: &str) -> CniError {
    CniError::new(code::BAD_NETCONF, msg, fix)
}
