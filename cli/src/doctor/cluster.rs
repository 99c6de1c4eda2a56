//! Checks that need to know the cluster.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Level::{Error, Note, Warning};
use super::checks::Findings;
use super::found::Found;

/// Seconds of difference at which leases and logs are hard to read, and at which certificates and tokens fail.
const ODD: i64 = 2;
const WRONG: i64 = 60;

/// A range, and whose it is.
struct Range {
    cidr: IpNet,
    what: String,
}

/// Whether packets as large as the link takes get to the other nodes.
pub(super) fn path(found: &Found) -> Findings {
    let configured = found.cluster.as_ref().and_then(|cluster| cluster.config.underlay_mtu);
    let paths = found.cluster.iter().flat_map(|cluster| &cluster.paths);
    let finding = |path: &super::found::Path| {
        let super::found::Path { node, address, mtu, full, largest } = path;
        match largest {
            _ if *full => None,
            Some(largest) if configured.is_some_and(|configured| configured <= *largest) => None,
            Some(largest) => {
                let message = format!(
                    "the link to {node} ({address}) takes {mtu} bytes, but on the way are at most {largest}: large packets of pods are lost"
                );
                let fix = format!(
                    "mend the MTU of what is between the nodes, or set NetworkConfig spec.underlayMTU: {largest}"
                );
                Some((Warning, message, fix))
            }
            None => {
                let message = format!("{node} ({address}) answers no ping, so the MTU on the way is not known");
                Some((
                    Note,
                    message,
                    "see that the nodes reach each other; that ICMP is dropped is no harm by itself".into(),
                ))
            }
        }
    };
    paths.filter_map(finding).collect()
}

/// Whether any two of pods, services, nodes and this node's links share addresses.
pub(super) fn ranges(found: &Found) -> Findings {
    let Some(cluster) = &found.cluster else { return Findings::new() };
    let range = |cidr: &IpNet, what: String| Range { cidr: *cidr, what };
    let of_node = |node: &super::found::Member| {
        let what = format!("the podCIDR of {}", node.name);
        node.pod_cidrs.iter().map(move |cidr| range(cidr, what.clone())).collect::<Vec<_>>()
    };
    let pods: Vec<Range> = cluster.nodes.iter().flat_map(of_node).collect();
    let pools: Vec<Range> = cluster.pools.iter().map(|(name, cidr)| range(cidr, format!("IPPool {name}"))).collect();
    let services: Vec<Range> = cluster.services.iter().map(|cidr| range(cidr, "the Services' range".into())).collect();
    let nodes = cluster.nodes.iter().flat_map(|node| {
        node.addresses.iter().map(|ip| Range { cidr: IpNet::from(*ip), what: format!("the address of {}", node.name) })
    });
    let links = found.host.iter().flat_map(|host| &host.links).filter(|link| !link.loopback);
    let links = links.flat_map(|link| {
        link.addresses.iter().map(|net| range(&net.trunc(), format!("the network on link {}", link.name)))
    });
    let others: Vec<Range> = nodes.chain(links).collect();

    let mut findings = Findings::new();
    let mut both = |a: &Range, b: &Range| {
        if tartan_model::overlap(&a.cidr, &b.cidr) {
            let message = format!("{} ({}) and {} ({}) have addresses in common", a.what, a.cidr, b.what, b.cidr);
            let fix = "change one of the two ranges; packets to what they share get to one of them only".to_owned();
            findings.push((Error, message, fix));
        }
    };
    for (at, pod) in pods.iter().enumerate() {
        pods[at + 1..].iter().for_each(|other| both(pod, other));
    }
    for range in pods.iter().chain(&pools) {
        services.iter().chain(&others).for_each(|other| both(range, other));
    }
    for service in &services {
        others.iter().for_each(|other| both(service, other));
    }
    findings
}

/// Machines that were copied with their id: DHCP gives them one address, and their links one MAC.
pub(super) fn machine_ids(found: &Found) -> Findings {
    let mut by_id: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in found.cluster.iter().flat_map(|cluster| &cluster.nodes) {
        if let Some(id) = &node.machine_id {
            by_id.entry(id).or_default().push(&node.name);
        }
    }
    let finding = |(id, names): (&str, Vec<&str>)| {
        let message = format!(
            "{} have one machine id ({id}): they may get one address by DHCP, or links with one MAC",
            names.join(", ")
        );
        let fix =
            "on all but one: rm /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; then restart it";
        (Warning, message, fix.to_owned())
    };
    by_id.into_iter().filter(|(_, names)| names.len() > 1).map(finding).collect()
}

/// This node's clock against the API server's.
pub(super) fn clock(found: &Found) -> Findings {
    let ahead = found.cluster.as_ref().and_then(|cluster| cluster.ahead_secs);
    let Some(ahead) = ahead.filter(|ahead| ahead.abs() > ODD) else { return Findings::new() };
    let (secs, way) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
    let what =
        if ahead.abs() > WRONG { "certificates and tokens fail" } else { "times in logs and conditions mislead" };
    let level = if ahead.abs() > WRONG { Error } else { Warning };
    let message = format!("this node's clock is {secs} s {way} the API server's: {what}");
    vec![(level, message, "see that both keep time by NTP: `timedatectl`, `chronyc tracking`".into())]
}
