//! Flannel's dialect: what its annotations on a Node say, lowered into an Advert; and this node's own word, raised into
//! annotations. Planners know peers by Adverts alone: one that runs Flannel is a peer like any other.
//!
//! Flannel is spoken where its ConfigMap is. A node's own word, as long as it is alive, comes before its annotations.
//!
//! Invariants: `lower(raise(word))` is what `word` says of Flannel's instances. Annotations are anybody's text: what of
//! them cannot be meant is a condition, and nothing is sent there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_api::flannel::{BACKEND_DATA, BACKEND_TYPE, MANAGED, PUBLIC_IP, VxlanData};
use tartan_model::{Advert, Annotations, Condition, Endpoint, Family, Flannel, FlannelBackend, Node, PerFamily};
use tartan_netstate::Mac;

use crate::Instance;

/// A Node's annotations in the words of an Advert.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// With nothing in `accepts` where something is wrong.
    pub advert: Advert,
    pub wrong: Option<Condition>,
}

/// The instances that Flannel's nodes send on and receive on.
pub fn instances(flannel: &Flannel) -> BTreeSet<Instance> {
    match &flannel.backend {
        FlannelBackend::HostGw => BTreeSet::from([Instance::HostGw]),
        FlannelBackend::Vxlan { vni, port, direct } => {
            let (vni, port) = (*vni, *port);
            let on = flannel.networks.iter().map(|(underlay, _)| Instance::Vxlan { underlay, vni, port, gbp: false });
            on.chain(direct.then_some(Instance::HostGw)).collect()
        }
        FlannelBackend::Other(_) => BTreeSet::new(),
    }
}

/// What the Node says by its annotations; none where it says nothing.
pub fn lower(flannel: &Flannel, node: &Node) -> Option<Lowered> {
    if get(node, MANAGED)? != "true" {
        return None;
    }
    let mut advert = Advert {
        node: node.name.clone(),
        node_uid: node.uid.clone(),
        // Flannel's nodes have the first address of their subnet for themselves.
        fabric_addresses: PerFamily::first_of(node.pod_cidrs.iter().map(IpNet::network)),
        blocks: node.pod_cidrs.clone(),
        ..Advert::default()
    };
    let said = addresses(node).and_then(|addresses| Ok((addresses, endpoints(flannel, node, &addresses)?)));
    let wrong = match said {
        Ok((addresses, endpoints)) => {
            advert.addresses = addresses;
            advert.sends = endpoints.iter().map(|end| end.instance.clone()).collect();
            advert.accepts = endpoints;
            None
        }
        Err(wrong) => Some(wrong),
    };
    Some(Lowered { advert, wrong })
}

/// What this node's word is in annotations, as far as its Node does not say so; none where it says so already, or while the
/// word says nothing of Flannel's instances.
pub fn raise(flannel: &Flannel, node: &Node, word: &Advert) -> Option<Annotations> {
    let spoken = instances(flannel);
    let accepted = |end: &&Endpoint| end.instance.parse().is_ok_and(|at| spoken.contains(&at));
    let accepts: Vec<&Endpoint> = word.accepts.iter().filter(accepted).collect();
    let mut values: BTreeMap<&'static str, Option<String>> =
        BTreeMap::from([(MANAGED, Some("true".to_owned())), (BACKEND_TYPE, Some(flannel.backend.as_str().to_owned()))]);
    for (at, family) in Family::ALL.into_iter().enumerate() {
        let (address, data) = match &flannel.backend {
            FlannelBackend::Vxlan { vni, port, .. } => {
                let instance = Instance::Vxlan { underlay: family, vni: *vni, port: *port, gbp: false }.to_string();
                let end = accepts.iter().find(|end| *end.instance == *instance);
                let data = end.and_then(|end| end.mac).map(|mac| VxlanData { vni: *vni, vtep_mac: mac.to_string() });
                let data = data.map(|data| serde_json::to_string(&data).expect("a number and a text"));
                (end.map(|end| end.address), data)
            }
            _ => (word.addresses.get(family).copied().filter(|_| !accepts.is_empty()), Some("null".to_owned())),
        };
        values.insert(PUBLIC_IP[at], address.map(|address| address.to_string()));
        values.insert(BACKEND_DATA[at], address.and(data));
    }
    if PUBLIC_IP.iter().all(|key| values[key].is_none()) {
        return None;
    }
    let news = |(key, value): &(&&str, &Option<String>)| get(node, key) != value.as_deref();
    values.iter().any(|pair| news(&pair)).then(|| Annotations { node_uid: node.uid.clone(), values })
}

/// The MACs that peers on Flannel know the Node by, with the VNI. A node that changes over keeps them, and nobody has to
/// learn anything.
pub(crate) fn macs(node: &Node) -> PerFamily<(u32, Mac)> {
    let mut macs = PerFamily::default();
    for family in Family::ALL {
        if let Some(Ok(known)) = get(node, BACKEND_DATA[at(family)]).map(vxlan_data) {
            macs.set(family, known);
        }
    }
    macs
}

fn addresses(node: &Node) -> Result<PerFamily<IpAddr>, Condition> {
    let mut addresses = PerFamily::default();
    for family in Family::ALL {
        let key = PUBLIC_IP[at(family)];
        let Some(text) = get(node, key) else { continue };
        let address = text.parse::<IpAddr>().ok().filter(|ip| Family::of(*ip) == family);
        let address = address.ok_or_else(|| wrong(node, key, &format!("'{text}' is no {family} address")))?;
        addresses.set(family, address);
    }
    Ok(addresses)
}

fn endpoints(flannel: &Flannel, node: &Node, addresses: &PerFamily<IpAddr>) -> Result<Vec<Endpoint>, Condition> {
    let backend = get(node, BACKEND_TYPE).unwrap_or_default();
    if let FlannelBackend::Other(name) = &flannel.backend {
        let message = format!("the cluster's Flannel has the backend {name}, which Tartan does not speak");
        return Err(wrong(node, BACKEND_TYPE, &message));
    }
    if backend != flannel.backend.as_str() {
        let message = format!("'{backend}' is not the backend of net-conf.json, {}", flannel.backend.as_str());
        return Err(wrong(node, BACKEND_TYPE, &message));
    }
    let mut endpoints = Vec::new();
    for instance in instances(flannel) {
        let name: Arc<str> = instance.to_string().into();
        match instance.underlay() {
            None => {
                let first = addresses.iter().next().map(|(_, address)| *address);
                endpoints.extend(first.map(|address| Endpoint {
                    instance: name,
                    address,
                    mac: None,
                    public_key: None,
                }));
            }
            Some(family) => {
                let key = BACKEND_DATA[at(family)];
                let (Some(address), Some(data)) = (addresses.get(family), get(node, key)) else { continue };
                let (vni, mac) = vxlan_data(data).map_err(|message| wrong(node, key, &message))?;
                if !matches!(instance, Instance::Vxlan { vni: of_all, .. } if of_all == vni) {
                    return Err(wrong(node, key, &format!("VNI {vni} is not that of net-conf.json")));
                }
                endpoints.push(Endpoint { instance: name, address: *address, mac: Some(mac), public_key: None });
            }
        }
    }
    if endpoints.is_empty() { Err(wrong(node, PUBLIC_IP[0], "there is none")) } else { Ok(endpoints) }
}

/// VNI and MAC; the MAC is one that a single device can have.
fn vxlan_data(text: &str) -> Result<(u32, Mac), String> {
    let data: VxlanData = serde_json::from_str(text).map_err(|error| format!("'{text}': {error}"))?;
    let mac: Mac = data.vtep_mac.parse()?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(format!("{mac} is no address of one device"));
    }
    Ok((data.vni, mac))
}

fn at(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn get<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.annotations.get(key).map(String::as_str)
}

fn wrong(node: &Node, key: &str, message: &str) -> Condition {
    Condition {
        about: format!("Node/{}", node.name),
        field: format!("metadata.annotations[{key}]"),
        reason: "FlannelUnclear",
        message: format!("{message}; {} is not reached by its annotations", node.name),
        fix: format!("look at the log of Flannel on {}: it writes them when it starts", node.name),
    }
}
