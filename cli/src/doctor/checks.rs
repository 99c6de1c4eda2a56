//! Checks of this node by itself.

use std::ops::RangeInclusive;

use tartan_model::{Config, FabricMode, WireguardConfig};

use super::Level::{self, Error, Note, Warning};
use super::found::{Found, Module};

pub(super) type Findings = Vec<(Level, String, String)>;

/// A kernel module: its name, what needs it, whether nothing works without it.
pub(super) struct Need {
    pub(super) module: &'static str,
    what: &'static str,
    always: bool,
}

const fn need(module: &'static str, always: bool, what: &'static str) -> Need {
    Need { module, what, always }
}

#[rustfmt::skip]
pub(super) const NEEDS: &[Need] = &[
    need("nf_tables",            true,  "masquerading, host ports and policy"),
    need("nft_ct",               true,  "policy, which looks at connections"),
    need("nft_chain_nat",        true,  "masquerading and host ports"),
    need("nf_conntrack",         true,  "masquerading and policy"),
    need("nf_conntrack_netlink", true,  "forgetting the connections of pods that are gone"),
    need("veth",                 true,  "pods' links"),
    need("vxlan",                false, "the fabric vxlan"),
    need("tun",                  false, "the fabric udp"),
    need("nfnetlink_log",        false, "`tartan flows`"),
    need("nft_log",              false, "`tartan flows`"),
];

/// Needed where the fabric is ipip, and nowhere else. Whether the kernel has them is not asked of it: that would load them.
#[rustfmt::skip]
pub(super) const NEEDS_OF_IPIP: &[Need] = &[
    need("ipip",       true, "the fabric ipip, for IPv4 over IPv4"),
    need("sit",        true, "the fabric ipip, for IPv6 over IPv4"),
    need("ip6_tunnel", true, "the fabric ipip over IPv6"),
];

/// Needed by nodes that encrypt by IPsec, and by no others.
#[rustfmt::skip]
pub(super) const NEEDS_OF_IPSEC: &[Need] = &[
    need("xfrm_user",      true, "encryption by ipsec, which tells the kernel of keys"),
    need("xfrm_interface", true, "encryption by ipsec, which has its devices from there"),
    need("esp4",           true, "encryption by ipsec over IPv4"),
    need("esp6",           true, "encryption by ipsec over IPv6"),
];

/// A sysctl: its name, what it has to be, whether the agent sees to that itself, why.
pub(super) struct Wanted {
    pub(super) name: &'static str,
    fits: fn(&str) -> bool,
    value: &'static str,
    by_agent: bool,
    why: &'static str,
}

const fn wanted(
    name: &'static str,
    fits: fn(&str) -> bool,
    value: &'static str,
    by_agent: bool,
    why: &'static str,
) -> Wanted {
    Wanted { name, fits, value, by_agent, why }
}

#[rustfmt::skip]
pub(super) const SYSCTLS: &[Wanted] = &[
    wanted("net.ipv4.ip_forward",             is_one,    "1",     true,  "pods' packets do not get through this node"),
    wanted("net.ipv4.conf.all.forwarding",    is_one,    "1",     true,  "pods' packets do not get through this node"),
    wanted("net.ipv6.conf.all.forwarding",    is_one,    "1",     true,  "pods' IPv6 packets do not get through this node"),
    wanted("net.ipv6.conf.all.disable_ipv6",  is_zero,   "0",     false, "the node has no IPv6"),
    wanted("net.netfilter.nf_conntrack_max",  is_enough, "262144", false, "connections beyond that many are dropped"),
];

/// The neighbour tables' sizes.
pub(super) const GC_THRESH: [&str; 2] = ["net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"];

/// Programs that set sysctls or links' settings on their own.
const REWRITERS: [&str; 6] = ["NetworkManager", "systemd-network", "tuned", "connmand", "dhcpcd", "wicked"];
/// Below this a busy node runs out of connections.
const ENOUGH_CONNECTIONS: u64 = 65_536;

fn is_one(value: &str) -> bool {
    value == "1"
}

fn is_zero(value: &str) -> bool {
    value == "0"
}

fn is_enough(value: &str) -> bool {
    value.parse::<u64>().is_ok_and(|entries| entries >= ENOUGH_CONNECTIONS)
}

fn config(found: &Found) -> Config {
    found.cluster.as_ref().map_or_else(Config::default, |cluster| cluster.config.clone())
}

/// The fabric, and what carries packets where that is blocked.
fn uses(config: &Config, mode: FabricMode) -> bool {
    config.fabric == mode || config.fallback == Some(mode)
}

fn encrypts_by(config: &Config, mode: FabricMode) -> bool {
    config.encrypts_by() == Some(mode)
}

/// What the kernel can do, as it was asked.
pub(super) fn kernel(found: &Found) -> Findings {
    let Some(features) = &found.features else { return Vec::new() };
    let config = config(found);
    let fabric = config.fabric;
    let mut findings = Findings::new();
    if uses(&config, FabricMode::Udp) && !found.tun {
        let level = if fabric == FabricMode::Udp { Error } else { Warning };
        let fix =
            "load it: modprobe tun; a container needs the node's /dev/net, as deploy/tartan.yaml mounts it".to_owned();
        findings.push((level, "there is no /dev/net/tun, so the fabric udp has no device here".into(), fix));
    }
    if !features.nft {
        let fix = "load it: modprobe nf_tables; or run a kernel with CONFIG_NF_TABLES".to_owned();
        findings.push((Error, "the kernel has no nf_tables: no masquerading, no host ports, no policy".into(), fix));
    }
    if !features.vxlan {
        let level = if fabric == FabricMode::Vxlan { Error } else { Note };
        let fix = "load it: modprobe vxlan; or set NetworkConfig spec.fabric: host-gw".to_owned();
        findings.push((level, "the kernel has no vxlan, so this node cannot use that fabric".into(), fix));
    }
    if !features.ipv6 {
        let has_v6 = found
            .cluster
            .iter()
            .flat_map(|cluster| &cluster.nodes)
            .any(|node| node.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()));
        let fix = "take ipv6.disable=1 off the kernel's command line".to_owned();
        findings.push((if has_v6 { Error } else { Note }, "the kernel has no IPv6, so pods get IPv4 only".into(), fix));
    }
    findings
}

/// Where the modules are that will be asked for.
pub(super) fn modules(found: &Found) -> Findings {
    let missing = |need: &&Need| found.modules.get(need.module) == Some(&Module::Missing);
    let finding = |need: &Need| {
        let message =
            format!("module {} is neither in the kernel nor on the disk; it is for {}", need.module, need.what);
        let fix = "install the rest of the kernel's modules (linux-modules-extra-$(uname -r), kernel-modules-extra), or a kernel that has it";
        (if need.always { Error } else { Warning }, message, fix.to_owned())
    };
    let config = config(found);
    let of_ipip = if uses(&config, FabricMode::Ipip) { NEEDS_OF_IPIP } else { &[] };
    let of_ipsec = if encrypts_by(&config, FabricMode::Ipsec) { NEEDS_OF_IPSEC } else { &[] };
    NEEDS.iter().chain(of_ipip).chain(of_ipsec).filter(missing).map(finding).collect()
}

/// Values that are wrong now, and files that will make them so.
pub(super) fn sysctls(found: &Found) -> Findings {
    let mut findings = Findings::new();
    for wanted in SYSCTLS {
        let Wanted { name, value: right, why, .. } = wanted;
        // The last line wins.
        let line = found.sysctl_lines.iter().rfind(|line| line.name == *name);
        if let Some(line) = line.filter(|line| !(wanted.fits)(&line.value)) {
            let by = match rewriters(found).as_slice() {
                [] => String::new(),
                programs => format!("; {} may do so at any time", programs.join(", ")),
            };
            let message =
                format!("{} sets {name} to {}: whoever applies it again{by} has it that {why}", line.at, line.value);
            findings.push((Warning, message, format!("write {name} = {right} there")));
        } else if let Some(value) = found.sysctls.get(name).filter(|value| !(wanted.fits)(value)) {
            let fix = format!("sysctl -w {name}={right}, and the same in a file of /etc/sysctl.d");
            match (wanted.by_agent, found.installed) {
                (true, false) => {}
                (true, true) => {
                    let message = format!("{name} is {value} though the agent keeps it at {right}: {why}");
                    findings.push((Error, message, "look for what else sets it, and at `tartan status`".into()));
                }
                (false, _) => findings.push((Warning, format!("{name} is {value}: {why}"), fix)),
            }
        }
    }
    findings
}

fn rewriters(found: &Found) -> Vec<&str> {
    let running = |program: &&&str| found.programs.contains(**program);
    REWRITERS.iter().filter(running).copied().collect()
}

/// Whether the table of neighbours takes all nodes of a link.
pub(super) fn neighbours(found: &Found) -> Findings {
    let nodes = found.cluster.as_ref().map_or(0, |cluster| cluster.nodes.len());
    let small = |name: &&&str| {
        let most = found.sysctls.get(**name).and_then(|value| value.parse::<usize>().ok());
        // Half of it is for whoever else is on the link.
        most.is_some_and(|most| nodes > most / 2)
    };
    let finding = |name: &&str| {
        let most = &found.sysctls[*name];
        let message =
            format!("{name} is {most}, and there are {nodes} nodes: packets are dropped when the table is full");
        (
            Warning,
            message,
            format!("sysctl -w {name}={}, and the same in a file of /etc/sysctl.d", (nodes * 4).next_power_of_two()),
        )
    };
    GC_THRESH.iter().filter(small).map(finding).collect()
}

/// Chains of others that drop what should pass.
pub(super) fn firewall(found: &Found) -> Findings {
    let mut findings = Findings::new();
    for block in found.host.iter().flat_map(|host| &host.forward_blocks).filter(|block| !block.opened) {
        let message = format!(
            "{} table {} chain {} drops what pods send through this node: {}",
            block.family, block.table, block.chain, block.rule
        );
        let fix = "leave NetworkConfig spec.hostFirewall: open, and the agent puts one rule before it; or let pods' links (ttp*) pass there";
        findings.push((if found.installed { Error } else { Note }, message, fix.to_owned()));
    }
    let to_be_let_in = to_be_let_in(&config(found));
    for chain in found.chains.iter().filter(|chain| chain.drops_input) {
        findings.extend(to_be_let_in.iter().map(|(what, how)| {
            let message = format!(
                "{} table {} chain {} drops what it does not let in: see that {what} of the other nodes is let in",
                chain.family, chain.table, chain.name
            );
            (Note, message, format!("e.g. {how}, or a rule of your own"))
        }));
    }
    findings
}

/// What nodes send each other, and how it is let in.
fn to_be_let_in(config: &Config) -> Vec<(String, String)> {
    let udp = |(_, ports, _): (FabricMode, RangeInclusive<u16>, &str)| {
        let (first, last) = (ports.start(), ports.end());
        let [ufw, firewalld, said] = match first == last {
            true => [first.to_string(), first.to_string(), format!("UDP port {first}")],
            false => [format!("{first}:{last}"), format!("{first}-{last}"), format!("UDP ports {first} to {last}")],
        };
        let ufw = format!("`ufw allow proto udp from NODES to any port {ufw}`");
        (said, format!("{ufw}, `firewall-cmd --permanent --add-port={firewalld}/udp`"))
    };
    let ipip = (
        "IP protocols 4 and 41 (ipip)".to_owned(),
        "`firewall-cmd --permanent --add-protocol=ipencap --add-protocol=ipv6`, `iptables -I INPUT -p 4 -s NODES -j ACCEPT` and the \
         same of -p 41"
            .to_owned(),
    );
    let esp = (
        "IP protocol 50 (ESP)".to_owned(),
        "`ufw allow proto esp from NODES`, `firewall-cmd --permanent --add-protocol=esp`".to_owned(),
    );
    let by_esp = encrypts_by(config, FabricMode::Ipsec) && config.ipsec.port.is_none();
    let in_ip = [(uses(config, FabricMode::Ipip), ipip), (by_esp, esp)];
    let in_ip = in_ip.into_iter().filter_map(|(is_used, how)| is_used.then_some(how));
    ports_of(config).into_iter().map(udp).chain(in_ip).collect()
}

/// UDP ports that the fabric, its fallback and encryption need: whose, which, and the key that changes them.
fn ports_of(config: &Config) -> Vec<(FabricMode, RangeInclusive<u16>, &'static str)> {
    let wireguard = config.wireguard.port;
    let all = [
        (FabricMode::Vxlan, config.vxlan.port..=config.vxlan.port, "spec.vxlan.port"),
        (FabricMode::Udp, config.udp_port..=config.udp_port, "spec.udp.port"),
        (FabricMode::Wireguard, wireguard..=wireguard + (WireguardConfig::PORTS - 1), "spec.wireguard.port"),
    ];
    let is_used = |mode: FabricMode| uses(config, mode) || encrypts_by(config, mode);
    let of_ipsec = config.ipsec.port.filter(|_| encrypts_by(config, FabricMode::Ipsec));
    let of_ipsec = of_ipsec.map(|port| (FabricMode::Ipsec, port..=port, "spec.ipsec.udpPort"));
    all.into_iter().filter(|(mode, ..)| is_used(*mode)).chain(of_ipsec).collect()
}

/// Ports of ours that somebody has.
pub(super) fn ports(found: &Found) -> Findings {
    let mut findings = Findings::new();
    if found.installed {
        return findings;
    }
    let taken = |ports: RangeInclusive<u16>| found.udp.range(ports).next().copied();
    let needed = ports_of(&config(found)).into_iter();
    for (mode, port, key) in needed.filter_map(|(mode, ports, key)| Some((mode, taken(ports)?, key))) {
        let mut links = found.host.iter().flat_map(|host| &host.links);
        let device = links.find(|link| *link.kind == *mode.to_string());
        let who = device.map_or_else(|| "a program".to_owned(), |link| format!("the device {}", link.name));
        let message = format!("UDP port {port}, which the fabric {mode} needs, is taken by {who}");
        let fix = format!(
            "take it away (`ss -lunp 'sport = {port}'` shows a program, `ip link delete` takes a device), or set NetworkConfig {key}"
        );
        findings.push((Warning, message, fix));
    }
    if let Some(port) = found.listen.filter(|port| found.tcp.contains(port)) {
        let message = format!("TCP port {port}, on which the agent serves metrics and probes, is taken");
        findings.push((
            Error,
            message,
            format!("see `ss -ltnp 'sport = {port}'`; stop that, or change `listen` in the boot file"),
        ));
    }
    findings
}

/// What could not be looked at.
pub(super) fn unseen(found: &Found) -> Findings {
    let note = |(what, why): &(&str, String)| (Note, format!("not looked at: {what}: {why}"), String::new());
    found.unseen.iter().map(note).collect()
}
