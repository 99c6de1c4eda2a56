//! IPPool and IPReservation, Calico's as they are, and IPBlock, our claim on a part of a pool.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_api::kinds::{self, Empty, IPPoolSpec, IPReservationSpec, ObjectMeta};
use tartan_api::tartan::{self, IPBlockPart, IPBlockSpec};
use tartan_model::{Across, Block, Encapsulation, Family, Holder, Part, Pool, Reservation, Selector};

use super::fault::Fault;
use super::fields;

const WORKLOAD: &str = "Workload";
const AUTOMATIC: &str = "Automatic";
const NEVER: &str = "Never";
const ALWAYS: &str = "Always";
const CROSS_SUBNET: &str = "CrossSubnet";

/// Words for a [`Holder`].
#[derive(Clone, Copy)]
enum PartState {
    Aside,
    Offered,
    Given,
    Leaving,
}

const PART_STATES: [(&str, PartState); 4] = [
    ("aside", PartState::Aside),
    ("offered", PartState::Offered),
    ("given", PartState::Given),
    ("leaving", PartState::Leaving),
];

pub(super) fn decode(document: &kinds::IPPool) -> Result<Pool, Fault> {
    let spec = &document.spec;
    if spec.cidr.is_empty() {
        return Err(Fault::missing("spec.cidr", "say which range pods get addresses from, e.g. 10.244.0.0/16"));
    }
    let cidr = fields::cidr("spec.cidr", &spec.cidr)?;
    check_usable(&cidr)?;
    let for_pods = spec.allowed_uses.is_empty() || spec.allowed_uses.iter().any(|for_what| for_what == WORKLOAD);
    let automatic = matches!(spec.assignment_mode.as_str(), "" | AUTOMATIC);
    Ok(Pool {
        name: document.metadata.name.as_str().into(),
        cidr,
        block_size: block_size(&cidr, spec.block_size)?,
        nodes: selector("spec.nodeSelector", &spec.node_selector)?,
        namespaces: selector("spec.namespaceSelector", &spec.namespace_selector)?,
        disabled: spec.disabled || !for_pods || !automatic,
        encapsulation: encapsulation(spec)?,
    })
}

pub(super) fn encode(pool: &Pool) -> kinds::IPPool {
    let text = |selector: &Selector| if *selector == Selector::all() { String::new() } else { selector.to_string() };
    let (default, _) = block_sizes(Family::of_net(&pool.cidr));
    let (ipip_mode, vxlan_mode) = modes(pool.encapsulation);
    kinds::IPPool {
        api_version: kinds::CALICO_API_VERSION.to_owned(),
        kind: "IPPool".to_owned(),
        metadata: ObjectMeta { name: pool.name.to_string(), ..ObjectMeta::default() },
        spec: IPPoolSpec {
            cidr: pool.cidr.to_string(),
            block_size: (pool.block_size != default).then_some(pool.block_size),
            node_selector: text(&pool.nodes),
            namespace_selector: text(&pool.namespaces),
            disabled: pool.disabled,
            ipip_mode,
            vxlan_mode,
            ..IPPoolSpec::default()
        },
        status: Empty {},
    }
}

/// What the two fields say together; none where there is neither.
fn encapsulation(spec: &IPPoolSpec) -> Result<Option<Encapsulation>, Fault> {
    let across = |field: &str, value: &str| match value {
        "" | NEVER => Ok(None),
        ALWAYS => Ok(Some(Across::Nodes)),
        CROSS_SUBNET => Ok(Some(Across::Subnets)),
        other => {
            let what = format!("it is none of {NEVER}, {ALWAYS} and {CROSS_SUBNET}");
            Err(Fault::value(field, other, what, format!("write {NEVER}, {ALWAYS} or {CROSS_SUBNET}")))
        }
    };
    match (across("spec.ipipMode", &spec.ipip_mode)?, across("spec.vxlanMode", &spec.vxlan_mode)?) {
        (Some(_), Some(_)) => Err(Fault::value(
            "spec.vxlanMode",
            &spec.vxlan_mode,
            "packets cannot be wrapped both ways",
            format!("set it or spec.ipipMode to {NEVER}"),
        )),
        (Some(across), None) => Ok(Some(Encapsulation::Ipip(across))),
        (None, Some(across)) => Ok(Some(Encapsulation::Vxlan(across))),
        (None, None) if spec.ipip_mode.is_empty() && spec.vxlan_mode.is_empty() => Ok(None),
        (None, None) => Ok(Some(Encapsulation::Never)),
    }
}

/// The fields `ipipMode` and `vxlanMode`.
fn modes(encapsulation: Option<Encapsulation>) -> (String, String) {
    let word = |across| match across {
        Across::Nodes => ALWAYS.to_owned(),
        Across::Subnets => CROSS_SUBNET.to_owned(),
    };
    match encapsulation {
        None => (String::new(), String::new()),
        Some(Encapsulation::Never) => (NEVER.to_owned(), NEVER.to_owned()),
        Some(Encapsulation::Ipip(across)) => (word(across), String::new()),
        Some(Encapsulation::Vxlan(across)) => (String::new(), word(across)),
    }
}

pub(super) fn decode_reservation(document: &kinds::IPReservation) -> Result<Reservation, Fault> {
    let cidrs = fields::cidrs("spec.reservedCIDRs", &document.spec.reserved_cidrs)?;
    Ok(Reservation { name: document.metadata.name.as_str().into(), cidrs })
}

pub(super) fn encode_reservation(reservation: &Reservation) -> kinds::IPReservation {
    kinds::IPReservation {
        api_version: kinds::CALICO_API_VERSION.to_owned(),
        kind: "IPReservation".to_owned(),
        metadata: ObjectMeta { name: reservation.name.to_string(), ..ObjectMeta::default() },
        spec: IPReservationSpec { reserved_cidrs: reservation.cidrs.iter().map(ToString::to_string).collect() },
        status: Empty {},
    }
}

pub(super) fn decode_block(document: &tartan::IPBlock) -> Result<Block, Fault> {
    let spec = &document.spec;
    let cidr = fields::cidr("spec.cidr", &spec.cidr)?;
    let name = Block::name_of(&cidr);
    if document.metadata.name != name {
        let wrong = format!("a claim on {cidr} is named {name}, so that two claims on it meet");
        return Err(Fault::value("metadata.name", &document.metadata.name, wrong, format!("name it {name}")));
    }
    if spec.node.is_empty() {
        return Err(Fault::missing("spec.node", "say which node claims it, or delete the claim"));
    }
    let parts: Vec<Part> =
        spec.parts.iter().enumerate().map(|(i, part)| decode_part(&cidr, i, part)).collect::<Result<_, _>>()?;
    check_disjoint(&parts)?;
    Ok(Block {
        cidr,
        pool: spec.pool.as_str().into(),
        node: spec.node.as_str().into(),
        node_uid: spec.node_uid.as_str().into(),
        parts,
    })
}

fn decode_part(block: &IpNet, i: usize, part: &IPBlockPart) -> Result<Part, Fault> {
    let field = |name: &str| format!("spec.parts[{i}].{name}");
    let cidr = fields::cidr(&field("cidr"), &part.cidr)?;
    if !block.contains(&cidr) {
        let fix = "only a part of the block can be given away";
        return Err(Fault::value(field("cidr"), cidr, format!("not inside {block}"), fix));
    }
    let state = fields::word(&field("state"), &part.state, &PART_STATES)?;
    if matches!(state, PartState::Given | PartState::Leaving) && part.node.is_empty() {
        return Err(Fault::missing(&field("node"), "say which node has it"));
    }
    let (name, uid) = (Arc::from(part.node.as_str()), Arc::from(part.node_uid.as_str()));
    let holder = match state {
        PartState::Aside => Holder::Aside,
        PartState::Offered => Holder::Offered,
        PartState::Given => Holder::Node { name, uid },
        PartState::Leaving => Holder::Leaving { name, uid },
    };
    Ok(Part { cidr, holder })
}

/// Two holders of one address would both give it out.
fn check_disjoint(parts: &[Part]) -> Result<(), Fault> {
    let meet = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    for (i, part) in parts.iter().enumerate() {
        if let Some(other) = parts[..i].iter().find(|other| meet(&other.cidr, &part.cidr)) {
            let wrong = format!("{} is a part of its own already", other.cidr);
            return Err(Fault::value(format!("spec.parts[{i}].cidr"), part.cidr, wrong, "keep one of the two"));
        }
    }
    Ok(())
}

fn encode_part(part: &Part) -> IPBlockPart {
    let (state, node) = match &part.holder {
        Holder::Aside => ("aside", None),
        Holder::Offered => ("offered", None),
        Holder::Node { name, uid } => ("given", Some((name, uid))),
        Holder::Leaving { name, uid } => ("leaving", Some((name, uid))),
    };
    let (node, node_uid) = node.map(|(name, uid)| (name.to_string(), uid.to_string())).unwrap_or_default();
    IPBlockPart { cidr: part.cidr.to_string(), state: state.to_owned(), node, node_uid }
}

pub(super) fn encode_block(block: &Block) -> tartan::IPBlock {
    tartan::IPBlock {
        api_version: tartan::API_VERSION.to_owned(),
        kind: "IPBlock".to_owned(),
        metadata: ObjectMeta { name: Block::name_of(&block.cidr), ..ObjectMeta::default() },
        spec: IPBlockSpec {
            cidr: block.cidr.to_string(),
            pool: block.pool.to_string(),
            node: block.node.to_string(),
            node_uid: block.node_uid.to_string(),
            parts: block.parts.iter().map(encode_part).collect(),
        },
        status: Empty {},
    }
}

/// Default prefix length of a block, and the lowest, as in Calico; the highest holds one address.
fn block_sizes(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (26, 20),
        Family::V6 => (122, 116),
    }
}

fn block_size(cidr: &IpNet, given: Option<u8>) -> Result<u8, Fault> {
    let family = Family::of_net(cidr);
    let (default, lowest) = block_sizes(family);
    let size = given.unwrap_or(default);
    let lowest = lowest.max(cidr.prefix_len());
    if (lowest..=family.bits()).contains(&size) {
        return Ok(size);
    }
    let field = "spec.blockSize";
    let wrong = format!("no prefix length of blocks in the {family} pool {cidr}");
    let fix = format!("write a number from {lowest} to {}", family.bits());
    let mut fault = Fault::value(field, size, wrong, fix);
    if given.is_none() {
        fault.message = format!("{cidr} is smaller than one block of the default {field}, {default}");
    }
    Err(fault)
}

fn check_usable(cidr: &IpNet) -> Result<(), Fault> {
    let special = match cidr.addr() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_link_local() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local() || ip.is_unspecified(),
    };
    if !special {
        return Ok(());
    }
    let wrong = "loopback, link-local, multicast and unspecified addresses cannot be a pod's";
    Err(Fault::value("spec.cidr", cidr, wrong, "choose a private range, e.g. 10.244.0.0/16 or fd00:10:244::/64"))
}

fn selector(field: &str, text: &str) -> Result<Selector, Fault> {
    Selector::parse(text).map_err(|error| {
        Fault::value(field, text, error, "write it as in `zone == \"a\" && !has(gpu)`; all() is everything")
    })
}
