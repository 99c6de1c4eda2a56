//! `tartan status`: this node, its peers, what is wrong and what to do about it.

use std::collections::BTreeSet;
use std::fmt::Write;

use tartan_api::status::Status;

use crate::output::table;

/// As a person reads it.
pub(crate) fn text(status: &Status) -> String {
    let mut text = String::new();
    let _infallible = write_all(&mut text, status);
    text
}

fn write_all(text: &mut String, status: &Status) -> std::fmt::Result {
    let state = match (&*status.waiting_for, status.ready) {
        ("", true) => "ready".to_owned(),
        ("", false) => "not all is programmed, see below".to_owned(),
        (waiting_for, _) => format!("waiting for {waiting_for}"),
    };
    writeln!(text, "Node      {} ({state}), tartan {}", status.node, status.version)?;
    writeln!(text, "Fabric    {}, {}", status.fabric, status.phase)?;
    writeln!(text, "Receives  {}", list(&status.receives))?;
    for address in &status.addresses {
        writeln!(text, "Address   {} on {} (MTU {}): {}", address.address, address.link, address.mtu, address.why)?;
    }
    writeln!(text, "Source    {}", list(&status.fabric_addresses))?;
    let blocks: Vec<String> =
        status.blocks.iter().map(|block| format!("{} ({} used)", block.cidr, block.used)).collect();
    writeln!(text, "Blocks    {}", list(&blocks))?;
    writeln!(text, "Pods      {}, MTU {}", status.pods.len(), status.pod_mtu)?;
    for bridge in status.adopted.iter().map(|pod| &*pod.bridge).collect::<BTreeSet<_>>() {
        writeln!(text, "Adopted   {}", adopted(status, bridge))?;
    }
    let kernel = &status.kernel;
    writeln!(
        text,
        "Kernel    {} objects, {} changes made, {} of them repairs, {} refused",
        kernel.objects,
        kernel.applied,
        kernel.repaired,
        kernel.failures.len()
    )?;
    writeln!(text, "Policy    {}", policy(&status.policy))?;
    if !status.peers.is_empty() {
        let rows: Vec<Vec<String>> = status.peers.iter().map(peer).collect();
        writeln!(text, "\n{}", table(&["PEER", "LIVE", "BY", "PATH", "BLOCKS"], &rows))?;
    }
    let own = status.pods.iter().map(|pod| vec![pod.pod.clone(), list(&pod.addresses), pod.link.clone()]);
    let rows: Vec<Vec<String>> = own.chain(status.adopted.iter().map(row_of_adopted)).collect();
    if !rows.is_empty() {
        writeln!(text, "\n{}", table(&["POD", "ADDRESSES", "LINK"], &rows))?;
    }
    for condition in &status.conditions {
        writeln!(text, "\n{}", format!("{}: {} {}", condition.reason, condition.about, condition.field).trim_end())?;
        writeln!(text, "  {}\n  Fix: {}", condition.message, condition.fix)?;
    }
    Ok(())
}

/// Those on one bridge.
fn adopted(status: &Status, bridge: &str) -> String {
    let here = || status.adopted.iter().filter(|pod| pod.bridge == bridge);
    let (count, judged) = (here().count(), here().filter(|pod| pod.under_policy).count());
    let policy = match count - judged {
        0 => "under policy".to_owned(),
        open if open == count => "not under policy".to_owned(),
        open => format!("{open} of them not under policy"),
    };
    format!("{count} on {bridge}, {policy}")
}

fn row_of_adopted(pod: &tartan_api::status::Adopted) -> Vec<String> {
    let name = if pod.pod.is_empty() { "-" } else { &pod.pod };
    let policy = if pod.under_policy { "" } else { ", not under policy" };
    vec![name.into(), list(&pod.addresses), format!("{} (adopted{policy})", pod.bridge)]
}

fn policy(policy: &tartan_api::status::Policy) -> String {
    let tartan_api::status::Policy { mode, policies, subjects, sets, rows, identities, .. } = policy;
    match mode.as_str() {
        "off" => format!("off (policies {policies}, none of which counts)"),
        mode => format!(
            "{mode} (policies {policies}, pods {subjects}, sets {sets}, verdicts {rows}, identities {identities})"
        ),
    }
}

fn peer(peer: &tartan_api::status::Peer) -> Vec<String> {
    let live = if peer.live { "yes" } else { "no" };
    let itself = if peer.to_itself.is_empty() { "" } else { ", itself too" };
    let fabric = if peer.fabric.is_empty() { "-".into() } else { format!("{}{itself}", peer.fabric) };
    let paths = peer.paths.iter().map(path).collect::<Vec<_>>().join(", ");
    let paths = if paths.is_empty() { "-".into() } else { paths };
    vec![peer.node.clone(), live.into(), fabric, paths, list(&peer.blocks)]
}

fn path(path: &tartan_api::status::Path) -> String {
    let says = match path.round_trip_micros {
        _ if !path.fault.is_empty() => path.fault.clone(),
        Some(micros) => format!("{:.1} ms", micros as f64 / 1e3),
        None => "not tested yet".into(),
    };
    format!("{} {says}", path.family)
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with a bit of everything, as the agent answers it.
    const ANSWER: &str = r#"{
        "node": "n1", "version": "0.1.0", "ready": false,
        "fabric": "host-gw", "phase": "changing: n3 still to switch",
        "receives": ["host-gw", "vxlan/ipv4/vni1/port8472"],
        "addresses": [{"address": "172.30.0.1", "link": "eth0", "mtu": 1500, "why": "it is the Node's InternalIP"}],
        "fabricAddresses": ["10.244.1.0", "fd00:10:244:1::"],
        "podMtu": 1450,
        "blocks": [{"cidr": "10.244.1.0/24", "used": 1}],
        "pods": [{"pod": "shop/web", "addresses": ["10.244.1.7"], "link": "ttp9e3c6bb5d94"}],
        "adopted": [
            {"pod": "shop/old", "addresses": ["10.244.1.2", "fd00:10:244:1::2"], "bridge": "cni0", "underPolicy": true},
            {"addresses": ["10.244.1.3"], "bridge": "cni0"}
        ],
        "peers": [
            {"node": "n2", "live": true, "fabric": "host-gw", "blocks": ["10.244.2.0/24"], "paths": [
                {"family": "ipv4", "roundTripMicros": 1234, "largest": 1450, "asked": 90, "lost": 1},
                {"family": "ipv6", "fault": "FabricBlocked", "largest": 0, "asked": 90, "lost": 80}
            ]},
            {"node": "n3", "live": false, "fabric": "", "blocks": []}
        ],
        "kernel": {"objects": 80, "applied": 91, "repaired": 2, "failures": [
            {"object": "link ttp9e3c6bb5d94 in host", "owner": "pod p/eth0", "error": "EBUSY"}
        ]},
        "policy": {"mode": "enforce", "policies": 3, "subjects": 1, "sets": 1, "rows": 12, "identities": 7},
        "conditions": [
            {"about": "Pod/shop/web", "reason": "KernelRefused", "message": "the kernel refuses it", "fix": "wait"},
            {"about": "Node/n3", "field": "spec.podCIDR", "reason": "SamePodCidr", "message": "two", "fix": "one"}
        ]
    }"#;

    const TEXT: &str = "\
Node      n1 (not all is programmed, see below), tartan 0.1.0
Fabric    host-gw, changing: n3 still to switch
Receives  host-gw, vxlan/ipv4/vni1/port8472
Address   172.30.0.1 on eth0 (MTU 1500): it is the Node's InternalIP
Source    10.244.1.0, fd00:10:244:1::
Blocks    10.244.1.0/24 (1 used)
Pods      1, MTU 1450
Adopted   2 on cni0, 1 of them not under policy
Kernel    80 objects, 91 changes made, 2 of them repairs, 1 refused
Policy    enforce (policies 3, pods 1, sets 1, verdicts 12, identities 7)

PEER  LIVE  BY       PATH                             BLOCKS
n2    yes   host-gw  ipv4 1.2 ms, ipv6 FabricBlocked  10.244.2.0/24
n3    no    -        -                                none

POD       ADDRESSES                     LINK
shop/web  10.244.1.7                    ttp9e3c6bb5d94
shop/old  10.244.1.2, fd00:10:244:1::2  cni0 (adopted)
-         10.244.1.3                    cni0 (adopted, not under policy)

KernelRefused: Pod/shop/web
  the kernel refuses it
  Fix: wait

SamePodCidr: Node/n3 spec.podCIDR
  two
  Fix: one
";

    #[test]
    fn all_of_it_is_there_and_what_is_wrong_comes_with_what_to_do() {
        assert_eq!(text(&serde_json::from_str(ANSWER).unwrap()), TEXT);
    }

    #[test]
    fn what_it_waits_for_comes_first() {
        let status = Status { node: "n1".into(), waiting_for: "the store's first list".into(), ..Status::default() };
        assert!(text(&status).starts_with("Node      n1 (waiting for the store's first list)"), "{}", text(&status));
    }
}
