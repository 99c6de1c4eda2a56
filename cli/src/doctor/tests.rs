//! Findings, as tables: what was found, and what is said of it.

use std::convert::Infallible;

use tartan_kernel::foreign::ForeignChain;
use tartan_model::{Config, Encryption, FabricMode, Features, ForwardBlock, Host, HostLink};

use super::found::{Cluster, Found, Member, Module, Path, Runtime, SysctlLine};
use super::{Level, gather, report, text};

/// A node on which nothing is wrong, in a cluster of two.
fn well() -> Found {
    Found {
        node: "n1".into(),
        features: Some(Features { ipv6: true, vxlan: true, nft: true, wireguard: true }),
        tun: true,
        cni_conf: "/etc/cni/net.d".into(),
        cni_files: vec!["10-other.conflist".into()],
        cluster: Some(Cluster {
            nodes: vec![member("n1", "192.0.2.1", "10.1.0.0/24"), member("n2", "192.0.2.2", "10.2.0.0/24")],
            services: vec!["10.96.0.0/12".parse().unwrap()],
            ahead_secs: Some(1),
            ..Cluster::default()
        }),
        ..Found::default()
    }
}

fn member(name: &str, address: &str, pod_cidr: &str) -> Member {
    Member {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: vec![pod_cidr.parse().unwrap()],
        machine_id: Some(format!("id of {name}")),
    }
}

fn link(name: &str, kind: &str, address: &str) -> HostLink {
    HostLink {
        name: name.into(),
        kind: kind.into(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: (!address.is_empty()).then(|| address.parse().unwrap()).into_iter().collect(),
        accept_ra: 0,
    }
}

fn chain(name: &str, drops_input: bool) -> ForeignChain {
    ForeignChain { family: "ip", table: "filter".into(), name: name.into(), drops_input }
}

/// What is said once this is so, each as level, check and a part of the words; nothing else is said.
fn check(what: &str, change: impl FnOnce(&mut Found, &mut Cluster), wanted: &[&str]) {
    let mut found = well();
    let mut cluster = found.cluster.take().unwrap();
    change(&mut found, &mut cluster);
    found.cluster = Some(cluster);
    let said = report(&found);
    let words: Vec<String> =
        said.findings.iter().map(|it| format!("{:?} {}: {} → {}", it.level, it.check, it.message, it.fix)).collect();
    assert_eq!(words.len(), wanted.len(), "{what}: {words:#?}");
    for (words, wanted) in words.iter().zip(wanted) {
        for part in wanted.split('|') {
            assert!(words.contains(part), "{what}: {part:?} is not in {words:?}");
        }
    }
    let ill = said.findings.iter().any(|it| it.level != Level::Note);
    let end = text(&said);
    assert_eq!(end.ends_with("nothing to see to"), !ill, "{end}");
}

#[test]
fn a_node_by_itself() {
    check("nothing is wrong", |_, _| {}, &[]);
    check(
        "no nf_tables",
        |it, _| it.features = Some(Features { nft: false, ipv6: true, vxlan: true, wireguard: true }),
        &["Error kernel: the kernel has no nf_tables|modprobe nf_tables"],
    );
    let no_vxlan = || Some(Features { ipv6: true, vxlan: false, nft: true, wireguard: true });
    check(
        "no vxlan",
        |it, _| it.features = no_vxlan(),
        &["Error kernel: the kernel has no vxlan|spec.fabric: host-gw"],
    );
    check(
        "no vxlan under host-gw",
        |it, cluster| (it.features, cluster.config.fabric) = (no_vxlan(), FabricMode::HostGw),
        &["Note kernel: the kernel has no vxlan"],
    );
    for (fabric, fallback, level) in
        [(FabricMode::Udp, None, "Error"), (FabricMode::Vxlan, Some(FabricMode::Udp), "Warning")]
    {
        check(
            "no tun",
            |it, cluster| (it.tun, cluster.config.fabric, cluster.config.fallback) = (false, fabric, fallback),
            &[&format!("{level} kernel: there is no /dev/net/tun|modprobe tun")],
        );
    }
    check("no tun, and nobody needs it", |it, _| it.tun = false, &[]);
    let no_ipv6 = || Some(Features { ipv6: false, vxlan: true, nft: true, wireguard: true });
    check("no IPv6", |it, _| it.features = no_ipv6(), &["Note kernel: the kernel has no IPv6"]);
    check(
        "no IPv6 where pods have it",
        |it, cluster| {
            it.features = no_ipv6();
            cluster.nodes[1].pod_cidrs.push("fd00:1::/64".parse().unwrap());
        },
        &["Error kernel: the kernel has no IPv6"],
    );
    check(
        "modules",
        |it, _| {
            it.modules = [
                ("nf_tables", Module::OnDisk),
                ("nft_ct", Module::Missing),
                ("vxlan", Module::Missing),
                ("veth", Module::There),
            ]
            .into()
        },
        &["Error modules: module nft_ct|policy|linux-modules-extra", "Warning modules: module vxlan"],
    );
    for (encryption, port, wanted) in [
        (
            Encryption::Ipsec,
            None,
            &["Error modules: module esp6|ipsec over IPv6", "Note firewall: |IP protocol 50"][..],
        ),
        (
            Encryption::Ipsec,
            Some(4500),
            &["Error modules: module esp6|ipsec over IPv6", "Note firewall: |UDP port 4500"],
        ),
        (
            Encryption::Wireguard,
            Some(4500),
            &["Note firewall: |UDP ports 51820 to 51823|to any port 51820:51823|--add-port=51820-51823/udp"],
        ),
    ] {
        check(
            "what ipsec needs",
            |it, cluster| {
                it.modules = [("esp6", Module::Missing), ("xfrm_user", Module::OnDisk)].into();
                it.chains = vec![chain("INPUT", true)];
                (cluster.config.fabric, cluster.config.encryption) = (FabricMode::HostGw, encryption);
                cluster.config.ipsec.port = port;
            },
            wanted,
        );
    }
    for (fabric, wanted) in [
        (
            FabricMode::Ipip,
            &["Error modules: module ip6_tunnel|the fabric ipip over IPv6", "Note firewall: |IP protocols 4 and 41"][..],
        ),
        (FabricMode::None, &[]),
    ] {
        check(
            "what ipip needs",
            |it, cluster| {
                it.modules = [("ip6_tunnel", Module::Missing), ("sit", Module::OnDisk)].into();
                it.chains = vec![chain("INPUT", true)];
                cluster.config.fabric = fabric;
            },
            wanted,
        );
    }
    check(
        "the table of neighbours",
        |it, cluster| {
            it.sysctls = [
                ("net.ipv4.neigh.default.gc_thresh3", "1024".into()),
                ("net.ipv6.neigh.default.gc_thresh3", "4096".into()),
            ]
            .into();
            cluster.nodes = (0..600)
                .map(|n| {
                    member(
                        &format!("n{n}"),
                        &format!("192.0.{}.{}", n / 250, n % 250 + 1),
                        &format!("10.{}.{}.0/24", n / 250, n % 250),
                    )
                })
                .collect();
            cluster.services.clear();
        },
        &["Warning neighbours: net.ipv4.neigh.default.gc_thresh3 is 1024, and there are 600 nodes|gc_thresh3=4096"],
    );
    check(
        "what was not seen",
        |it, _| it.unseen.push(("links", "no root".into())),
        &["Note unseen: not looked at: links: no root"],
    );
}

#[test]
fn sysctls_and_who_writes_them() {
    let line = |name, value: &str| SysctlLine { at: "/etc/sysctl.d/10-x.conf:3".into(), name, value: value.into() };
    check("the agent will see to it", |it, _| it.sysctls = [("net.ipv4.ip_forward", "0".into())].into(), &[]);
    check(
        "the agent should have",
        |it, _| (it.installed, it.sysctls) = (true, [("net.ipv4.ip_forward", "0".into())].into()),
        &["Error sysctls: net.ipv4.ip_forward is 0 though the agent keeps it at 1"],
    );
    check(
        "somebody else will undo it",
        |it, _| {
            it.sysctl_lines = vec![
                line("net.ipv4.ip_forward", "1"),
                line("net.ipv4.ip_forward", "0"),
                line("net.ipv6.conf.all.forwarding", "1"),
            ];
            it.programs = ["NetworkManager".into()].into();
        },
        &[
            "Warning sysctls: /etc/sysctl.d/10-x.conf:3 sets net.ipv4.ip_forward to 0|NetworkManager may do so|write net.ipv4.ip_forward = 1 there",
        ],
    );
    check(
        "few connections",
        |it, _| it.sysctls = [("net.netfilter.nf_conntrack_max", "8192".into())].into(),
        &["Warning sysctls: net.netfilter.nf_conntrack_max is 8192|sysctl -w"],
    );
}

#[test]
fn firewalls_and_ports() {
    let block = ForwardBlock {
        family: "ip".into(),
        table: "filter".into(),
        chain: "FORWARD".into(),
        rule: "policy drop".into(),
        place: "DOCKER-USER".into(),
        opened: false,
    };
    let host =
        |opened| Some(Host { forward_blocks: vec![ForwardBlock { opened, ..block.clone() }], ..Host::default() });
    check("it will be opened", |it, _| it.host = host(false), &["Note firewall: ip table filter chain FORWARD drops"]);
    check(
        "it should be open",
        |it, _| (it.host, it.installed) = (host(false), true),
        &["Error firewall: ip table filter"],
    );
    check("it is open", |it, _| it.host = host(true), &[]);
    check(
        "what is let in",
        |it, _| it.chains = vec![chain("INPUT", true)],
        &["Note firewall: ip table filter chain INPUT|UDP port 8472|8472/udp"],
    );
    check(
        "a program",
        |it, _| it.udp = [8472].into(),
        &["Warning ports: UDP port 8472|taken by a program|spec.vxlan.port"],
    );
    check(
        "a program at one of wireguard's ports",
        |it, cluster| (it.udp, cluster.config.encryption) = ([51_822].into(), Encryption::Wireguard),
        &["Warning ports: UDP port 51822, which the fabric wireguard needs|taken by a program|spec.wireguard.port"],
    );
    check(
        "a program, where two ports are needed",
        |it, cluster| (it.udp, cluster.config.fallback) = ([8285].into(), Some(FabricMode::Udp)),
        &["Warning ports: UDP port 8285, which the fabric udp needs|taken by a program|spec.udp.port"],
    );
    check(
        "a device",
        |it, _| {
            it.udp = [8472].into();
            it.host = Some(Host { links: vec![link("vx0", "vxlan", "")], ..Host::default() });
        },
        &["Warning ports: UDP port 8472|taken by the device vx0"],
    );
    check(
        "it is ours",
        |it, _| (it.udp, it.tcp, it.listen, it.installed) = ([8472].into(), [9470].into(), Some(9470), true),
        &[],
    );
    check("metrics", |it, _| (it.tcp, it.listen) = ([9470].into(), Some(9470)), &["Error ports: TCP port 9470"]);
}

#[test]
fn other_networks() {
    check(
        "one that comes first",
        |it, _| it.cni_files = vec!["00-x.conf".into(), "05-tartan.conflist".into(), "10-y.conf".into()],
        &[
            "Error networks: the runtime uses /etc/cni/net.d/00-x.conf|mv /etc/cni/net.d/00-x.conf /etc/cni/net.d/00-x.conf.off",
        ],
    );
    let flannel =
        || Some(Host { links: vec![link("flannel.1", "vxlan", ""), link("cni0", "bridge", "")], ..Host::default() });
    check(
        "one that runs",
        |it, _| (it.host, it.programs) = (flannel(), ["flanneld".into()].into()),
        &["Error networks: Flannel runs here (flanneld)"],
    );
    check(
        "one that ran",
        |it, _| {
            it.host = flannel();
            it.chains = vec![chain("FLANNEL-FWD", false), chain("cali-FORWARD", false), chain("KUBE-SERVICES", false)];
        },
        &[
            "Warning leftovers: chains of Calico are left|cali-FORWARD|grep -v 'cali'",
            "Warning leftovers: chains of Flannel are left|FLANNEL-FWD",
            "Warning leftovers: links of Flannel are left: flannel.1, cni0|ip link delete",
        ],
    );
}

#[test]
fn where_the_runtime_looks() {
    let runtime = |cni_conf: &str| Some(Runtime { file: "/c.toml", cni_conf: cni_conf.into() });
    check("where our file is", |it, _| it.runtime = runtime("/etc/cni/net.d"), &[]);
    check(
        "elsewhere",
        |it, _| it.runtime = runtime("/elsewhere"),
        &[
            "Error networks: the runtime looks into /elsewhere (/c.toml), and Tartan writes into /etc/cni/net.d|install --for",
        ],
    );
    check(
        "k3s with its own network, whose links are not left over",
        |it, _| {
            it.runtime = runtime("/var/lib/rancher/k3s/agent/etc/cni/net.d");
            it.host = Some(Host { links: vec![link("cni0", "bridge", "")], ..Host::default() });
        },
        &["Error networks: k3s runs its own Flannel|--flannel-backend=none"],
    );
    for (config, folder) in [
        ("[plugins.cri.cni]\n  bin_dir = \"/b\"\n  conf_dir = \"/etc/x\"\n", Some("/etc/x")),
        ("conf_dir='/etc/x/' \n", Some("/etc/x")),
        ("# conf_dir = '/etc/x'\nconf_directory = '/y'\n", None),
        ("conf_dir = ''", None),
        ("", None),
    ] {
        assert_eq!(gather::conf_dir(config).as_deref(), folder, "{config}");
    }
}

#[test]
fn the_cluster() {
    let path = |full, largest| Path { node: "n2".into(), address: [192, 0, 2, 2].into(), mtu: 1500, full, largest };
    check("a path that carries", |_, it| it.paths = vec![path(true, Some(1500))], &[]);
    check(
        "one that carries less",
        |_, it| it.paths = vec![path(false, Some(1400))],
        &["Warning path: the link to n2 (192.0.2.2) takes 1500 bytes|at most 1400|spec.underlayMTU: 1400"],
    );
    check(
        "less, and that is known",
        |_, it| {
            it.paths = vec![path(false, Some(1400))];
            it.config = Config { underlay_mtu: Some(1400), ..Config::default() };
        },
        &[],
    );
    check(
        "one that says nothing",
        |_, it| it.paths = vec![path(false, None)],
        &["Note path: n2 (192.0.2.2) answers no ping"],
    );

    check(
        "two nodes, one range",
        |_, it| it.nodes[1].pod_cidrs = vec!["10.1.0.128/25".parse().unwrap()],
        &["Error ranges: the podCIDR of n1 (10.1.0.0/24) and the podCIDR of n2 (10.1.0.128/25)"],
    );
    check(
        "pods among nodes",
        |_, it| it.pools = vec![("p".into(), "192.0.2.0/24".parse().unwrap())],
        &["Error ranges: IPPool p|the address of n1", "Error ranges: IPPool p|the address of n2"],
    );
    check(
        "pods among services",
        |_, it| it.services = vec!["10.2.0.0/16".parse().unwrap()],
        &["Error ranges: the podCIDR of n2|the Services' range (10.2.0.0/16)"],
    );
    check(
        "pods on a link",
        |it, _| it.host = Some(Host { links: vec![link("docker0", "bridge", "10.2.0.1/16")], ..Host::default() }),
        &["Error ranges: the podCIDR of n2|the network on link docker0 (10.2.0.0/16)"],
    );
    check(
        "two of one id",
        |_, it| it.nodes[1].machine_id = it.nodes[0].machine_id.clone(),
        &["Warning machine-ids: n1, n2 have one machine id|systemd-machine-id-setup"],
    );
    check("ids that are not known", |_, it| it.nodes.iter_mut().for_each(|node| node.machine_id = None), &[]);
    check("a clock", |_, it| it.ahead_secs = Some(-3), &["Warning clock: this node's clock is 3 s behind"]);
    check(
        "a clock far off",
        |_, it| it.ahead_secs = Some(3600),
        &["Error clock: this node's clock is 3600 s ahead of"],
    );
}

#[test]
fn what_files_say_is_read() {
    let names = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    let text =
        "# net.ipv4.ip_forward=0\n-net/ipv4/ip_forward = 0\n;x\n\nnet.ipv6.conf.all.forwarding=1\nother=2\nnonsense\n";
    let lines = gather::sysctl_lines("f", text, names.into_iter());
    let lines: Vec<String> = lines.iter().map(|line| format!("{} {}={}", line.at, line.name, line.value)).collect();
    assert_eq!(lines, ["f:2 net.ipv4.ip_forward=0", "f:5 net.ipv6.conf.all.forwarding=1"]);
    for (line, name) in [
        ("kernel/net/netfilter/nft-ct.ko.xz: kernel/net/nf_tables.ko", Some("nft_ct")),
        ("kernel/drivers/net/vxlan/vxlan.ko", Some("vxlan")),
        ("nonsense", None),
    ] {
        assert_eq!(gather::module_name(line).as_deref(), name, "{line}");
    }
    let tcp = "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:24FE 00000000:0000 0A 0\n   1: 00000000000000000000000000000000:0016 0:0 01 0\nbad\n";
    assert_eq!(gather::local_ports(tcp, Some("0A")), [9470].into());
    assert_eq!(gather::local_ports(tcp, None), [22, 9470].into());
}

#[test]
fn the_largest_packet_is_found() {
    for (link, limit, wanted) in [
        (1500, 1500, (true, Some(1500))),
        (1500, 9000, (true, Some(1500))),
        (1500, 1499, (false, Some(1499))),
        (9000, 1280, (false, Some(1280))),
        (9000, 1450, (false, Some(1450))),
        (1500, 0, (false, None)),
        (1280, 0, (false, None)),
    ] {
        let mut asked = 0;
        let found = gather::path(link, |bytes| {
            asked += 1;
            Ok::<bool, Infallible>(bytes <= limit)
        });
        assert_eq!(found, Ok(wanted), "{link} {limit}");
        assert!(asked <= 16, "{asked} packets for {link} {limit}");
    }
}
