//! Other networks for pods: those that are in charge, and what those that were have left behind.

use tartan_model::HostLink;

use super::Level::{Error, Warning};
use super::checks::Findings;
use super::found::{Found, Runtime};

/// A network that others make, by what it leaves on a node.
struct Network {
    name: &'static str,
    /// Programs of which one runs while it is in charge.
    programs: &'static [&'static str],
    /// Beginnings of the names of its links.
    links: &'static [&'static str],
    /// Beginnings of the names of its chains.
    chains: &'static [&'static str],
}

const FLANNEL: &str = "Flannel";

#[rustfmt::skip]
const NETWORKS: &[Network] = &[
    Network { name: FLANNEL,       programs: &["flanneld"],                  links: &["flannel", "cni0"],                chains: &["FLANNEL-"] },
    Network { name: "Calico",      programs: &["calico-node", "calico-felix"], links: &["cali", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali"], chains: &["cali"] },
    Network { name: "Cilium",      programs: &["cilium-agent"],              links: &["cilium_", "lxc_health"],          chains: &["CILIUM_", "OLD_CILIUM_"] },
    Network { name: "Weave Net",   programs: &["weaver"],                    links: &["weave", "vethwe", "datapath"],    chains: &["WEAVE"] },
    Network { name: "kube-router", programs: &["kube-router"],               links: &["kube-bridge", "kube-dummy-if"],   chains: &["KUBE-ROUTER", "KUBE-POD-FW-", "KUBE-NWPLCY-"] },
    Network { name: "Antrea",      programs: &["antrea-agent"],              links: &["antrea-"],                        chains: &["ANTREA-"] },
    Network { name: "OVN",         programs: &["ovnkube", "ovn-controller"], links: &["ovn-k8s", "ovn0"],                chains: &["OVN-"] },
];

const CONFLIST: &str = "05-tartan.conflist";
/// Where k3s has its runtime look as long as it runs its own network, which is Flannel and no program by itself.
const K3S_OWN: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";

/// Networks that the runtime asks before ours, and those that run beside it.
pub(super) fn others(found: &Found) -> Findings {
    let mut findings = elsewhere(found);
    let folder = &found.cni_conf;
    for file in found.cni_files.iter().filter(|file| file.as_str() < CONFLIST) {
        let message = format!("the runtime uses {folder}/{file}, which sorts before {CONFLIST}");
        findings.push((Error, message, format!("mv {folder}/{file} {folder}/{file}.off")));
    }
    for network in NETWORKS {
        if let Some(program) = network.programs.iter().find(|program| found.programs.contains(**program)) {
            let message = format!(
                "{} runs here ({program}): two networks would both give addresses and write rules",
                network.name
            );
            findings.push((
                Error,
                message,
                format!("remove {} from the cluster before or right after Tartan is installed", network.name),
            ));
        }
    }
    findings
}

/// A runtime that does not look where our file is.
fn elsewhere(found: &Found) -> Findings {
    let Some(Runtime { file, cni_conf }) = &found.runtime else { return Findings::new() };
    if cni_conf == K3S_OWN {
        let message = format!("k3s runs its own Flannel: {file} has the runtime look into {cni_conf}");
        let fix = "start its servers with --flannel-backend=none --disable-network-policy";
        return vec![(Error, message, fix.to_owned())];
    }
    if *cni_conf == found.cni_conf {
        return Findings::new();
    }
    let message = format!("the runtime looks into {cni_conf} ({file}), and Tartan writes into {}", found.cni_conf);
    let fix = "tartan install --for DISTRIBUTION has the right folders; else cniConf in the ConfigMap tartan-agent, and the mounts \
               of DaemonSet tartan-agent"
        .to_owned();
    vec![(Error, message, fix)]
}

/// What is left of networks that do not run any more.
pub(super) fn leftovers(found: &Found) -> Findings {
    let mut findings = Findings::new();
    let of_k3s = found.runtime.as_ref().is_some_and(|runtime| runtime.cni_conf == K3S_OWN);
    let runs = |network: &&Network| {
        network.programs.iter().any(|it| found.programs.contains(*it)) || of_k3s && network.name == FLANNEL
    };
    let gone = NETWORKS.iter().filter(|network| !runs(network));
    for network in gone {
        let begins = |name: &str, beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
        let links = found.host.iter().flat_map(|host| &host.links);
        let links: Vec<&HostLink> = links.filter(|link| begins(&link.name, network.links)).collect();
        if !links.is_empty() {
            let names: Vec<&str> = links.iter().map(|link| &*link.name).collect();
            let message = format!("links of {} are left: {}", network.name, some(&names));
            let fix = "once none of its pods runs here: ip link delete, for each";
            findings.push((Warning, message, fix.to_owned()));
        }
        let mut chains: Vec<&str> =
            found.chains.iter().map(|chain| &*chain.name).filter(|name| begins(name, network.chains)).collect();
        chains.sort_unstable();
        chains.dedup();
        if !chains.is_empty() {
            let message =
                format!("chains of {} are left, and may drop what they do not know: {}", network.name, some(&chains));
            let pattern = network.chains.join("\\|");
            let fix = format!(
                "for iptables and ip6tables: iptables-save | grep -v '{pattern}' | iptables-restore; or restart the node"
            );
            findings.push((Warning, message, fix));
        }
    }
    findings
}

fn some(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}
