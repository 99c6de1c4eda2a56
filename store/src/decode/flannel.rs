//! Flannel's ConfigMap, and in it the `net-conf.json` that Flannel itself reads.

use std::collections::BTreeMap;

use serde_json::Value;
use tartan_api::flannel::{Backend, CONFIG_MAP, ConfigMap, NAMESPACES, NET_CONF, NetConf};
use tartan_api::kinds::ObjectMeta;
use tartan_model::{Config, Family, Flannel, FlannelBackend, PerFamily};

use super::fault::{self, Fault};
use super::fields;

/// What Flannel takes where no backend is named.
const DEFAULT_BACKEND: &str = "udp";

/// Whether the ConfigMap of that name, NAMESPACE/NAME, is Flannel's.
pub(crate) fn is_flannels(name: &str) -> bool {
    name.split_once('/').is_some_and(|(namespace, name)| NAMESPACES.contains(&namespace) && name == CONFIG_MAP)
}

pub(super) fn decode(name: &str, document: &ConfigMap) -> Result<Flannel, Fault> {
    if !is_flannels(name) {
        let fix = format!(
            "take it out: of ConfigMaps Tartan reads Flannel's only, {CONFIG_MAP} in {}",
            NAMESPACES.join(" or ")
        );
        return Err(Fault::value("metadata.name", name, "not a ConfigMap of the network", fix));
    }
    let field = format!("data.{NET_CONF}");
    let text =
        document.data.get(NET_CONF).ok_or_else(|| Fault::missing(&field, "put Flannel's configuration there"))?;
    let json: Value = serde_json::from_str(text).map_err(|error| wrong(&field, &error.to_string()))?;
    let conf: NetConf = serde_path_to_error::deserialize(lower_case(json)).map_err(|error| {
        let fault = fault::from_json(error);
        wrong(&format!("{field}.{}", fault.field), &fault.message)
    })?;
    flannel(&field, &conf)
}

pub(super) fn encode(id: &str, flannel: &Flannel) -> ConfigMap {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    let Flannel { networks, backend } = flannel;
    let (vni, port, direct_routing) = match backend {
        FlannelBackend::Vxlan { vni, port, direct } => (Some(*vni), Some(*port), Some(*direct)),
        FlannelBackend::HostGw | FlannelBackend::Other(_) => (None, None, None),
    };
    let conf = NetConf {
        network: networks.v4.map(|net| net.to_string()),
        ipv6_network: networks.v6.map(|net| net.to_string()),
        enable_ipv4: Some(networks.v4.is_some()),
        enable_ipv6: Some(networks.v6.is_some()),
        backend: Backend { kind: backend.as_str().to_owned(), vni, port, direct_routing },
    };
    let text = serde_json::to_string(&conf).expect("texts, numbers and booleans");
    ConfigMap {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        metadata: ObjectMeta { name: name.to_owned(), namespace: namespace.to_owned(), ..ObjectMeta::default() },
        data: BTreeMap::from([(NET_CONF.to_owned(), text)]),
    }
}

fn flannel(field: &str, conf: &NetConf) -> Result<Flannel, Fault> {
    let network = |key: &str, text: &Option<String>, on: bool| match text.as_deref() {
        Some(text) if on => fields::cidr(&format!("{field}.{key}"), text).map(Some),
        _ => Ok(None),
    };
    let mut networks = PerFamily::default();
    let v4 = network("Network", &conf.network, conf.enable_ipv4.unwrap_or(true))?;
    let v6 = network("IPv6Network", &conf.ipv6_network, conf.enable_ipv6.unwrap_or(false))?;
    for net in v4.into_iter().chain(v6) {
        networks.set(Family::of_net(&net), net);
    }
    Ok(Flannel { networks, backend: backend(field, &conf.backend)? })
}

fn backend(field: &str, backend: &Backend) -> Result<FlannelBackend, Fault> {
    let Backend { kind, vni, port, direct_routing } = backend;
    // Flannel's own defaults, too.
    let default = Config::default().vxlan;
    Ok(match kind.to_lowercase().as_str() {
        "host-gw" => FlannelBackend::HostGw,
        "vxlan" => FlannelBackend::Vxlan {
            vni: fields::number(&format!("{field}.Backend.VNI"), vni.unwrap_or(default.vni), 1..=0xff_ffff, "")?,
            // 0 is the kernel's own, which is Flannel's.
            port: port.filter(|port| *port != 0).unwrap_or(default.port),
            direct: direct_routing.unwrap_or(false),
        },
        "" => FlannelBackend::Other(DEFAULT_BACKEND.into()),
        other => FlannelBackend::Other(other.into()),
    })
}

fn lower_case(json: Value) -> Value {
    match json {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key.to_lowercase(), lower_case(value))).collect(),
        other => other,
    }
}

fn wrong(field: &str, message: &str) -> Fault {
    Fault::new(
        field,
        "BadValue",
        format!("{field}: {message}"),
        "write it as Flannel reads it, or take the ConfigMap out",
    )
}
