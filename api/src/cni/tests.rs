//! What each version of the spec calls a result, to the byte.

use super::*;

fn success() -> Success {
    let ip = |address: &str, gateway: &str| Ip {
        address: address.into(),
        gateway: Some(gateway.into()),
        interface: Some(1),
    };
    let route = |dst: &str, gw: &str| Route { dst: dst.into(), gw: Some(gw.into()), others: Map::new() };
    Success {
        interfaces: vec![
            Interface { name: "ttp1".into(), mac: "02:00:00:00:00:01".into(), mtu: Some(1450), ..Interface::default() },
            Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:02".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/a".into(),
                others: Map::new(),
            },
        ],
        ips: vec![ip("10.244.0.2/32", "169.254.1.1"), ip("fd00::2/128", "fe80::1")],
        routes: vec![route("0.0.0.0/0", "169.254.1.1"), route("::/0", "fe80::1")],
        dns: Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() },
    }
}

#[track_caller]
fn check(version: Version, expected: Value) {
    assert_eq!(success().shape(version), expected);
}

#[test]
fn the_oldest_have_one_address_a_family() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        check(
            version,
            json!({
                "cniVersion": version.as_str(),
                "ip4": {
                    "ip": "10.244.0.2/32",
                    "gateway": "169.254.1.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]
                },
                "ip6": {"ip": "fd00::2/128", "gateway": "fe80::1", "routes": [{"dst": "::/0", "gw": "fe80::1"}]},
                "dns": {"nameservers": ["10.96.0.10"]},
            }),
        );
    }
}

#[test]
fn the_middle_ones_say_the_family_of_an_address() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
        check(
            version,
            json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    {"name": "ttp1", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
                ],
                "ips": [
                    {"version": "4", "address": "10.244.0.2/32", "gateway": "169.254.1.1", "interface": 1},
                    {"version": "6", "address": "fd00::2/128", "gateway": "fe80::1", "interface": 1},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
                "dns": {"nameservers": ["10.96.0.10"]},
            }),
        );
    }
}

#[test]
fn the_newest_differ_in_the_mtu() {
    for (version, mtu) in [(Version::V1_0_0, None), (Version::V1_1_0, Some(1450))] {
        let mut expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "ttp1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"address": "10.244.0.2/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        if let Some(mtu) = mtu {
            for interface in 0..2 {
                expected["interfaces"][interface]["mtu"] = json!(mtu);
            }
        }
        check(version, expected);
    }
}

#[test]
fn a_result_of_any_version_with_interfaces_can_be_read_back() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::V0_3_0) {
        let read: Success = serde_json::from_value(success().shape(version)).unwrap();
        assert_eq!(read.ips, success().ips, "{version}");
        assert_eq!(read.shape(version), success().shape(version), "{version}");
    }
}

#[test]
fn what_a_newer_chain_says_of_its_interfaces_is_kept() {
    let said = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "vf0", "mac": "02:00:00:00:00:03", "pciID": "0000:00:1f.6"}],
        "ips": [],
        "routes": [{"dst": "10.0.0.0/8", "mtu": 1400, "scope": 253}],
        "dns": {},
    });
    let read: Success = serde_json::from_value(said.clone()).unwrap();
    assert_eq!(read.shape(Version::V1_1_0), said);
    assert_eq!(read.shape(Version::V1_0_0)["routes"], json!([{"dst": "10.0.0.0/8"}]));
}

#[test]
fn a_version_is_spelled_one_way() {
    for version in Version::ALL {
        assert_eq!(Version::parse(version.as_str()), Some(version));
        assert_eq!(json!(version), json!(version.as_str()));
    }
    for wrong in ["", "1", "1.1", "v1.1.0", "1.1.0 ", "9.9.9"] {
        assert_eq!(Version::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn a_configuration_may_hold_what_others_put_there() {
    let netconf: NetConf = serde_json::from_value(json!({
        "cniVersion": "1.1.0", "name": "tartan", "type": "tartan-cni", "plugins": [], "unheard-of": {"a": 1},
        "args": {"labels": []},
        "runtimeConfig": {
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 1}, "ipRanges": [],
        },
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
    }))
    .unwrap();
    assert_eq!(netconf.runtime_config.port_mappings.len(), 1);
    assert_eq!(netconf.runtime_config.others.keys().collect::<Vec<_>>(), ["ipRanges"]);
    assert_eq!(netconf.runtime_config.bandwidth.map(|limits| limits.ingress_rate), Some(1));
    assert_eq!(netconf.valid_attachments.map(|all| all.len()), Some(1));
    let none: NetConf = serde_json::from_value(json!({"cni.dev/valid-attachments": null})).unwrap();
    assert_eq!(none.valid_attachments, Some(Vec::new()));
    let sent = serde_json::to_string(&serde_json::from_str::<NetConf>("{}").unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<NetConf>(&sent).unwrap(), NetConf::default());
}

#[test]
fn port_mappings_are_read_as_containerd_and_as_cri_o_write_them() {
    let read = |mapping| serde_json::from_value::<PortMapping>(mapping).unwrap();
    let wanted =
        PortMapping { host_port: 80, container_port: 8080, protocol: "udp".into(), host_ip: "10.0.0.1".into() };
    let containerd = json!({"HostPort": 80, "ContainerPort": 8080, "Protocol": "udp", "HostIP": "10.0.0.1"});
    let cri_o = json!({"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": "10.0.0.1"});
    assert_eq!([read(containerd), read(cri_o)], [wanted.clone(), wanted]);
}

#[test]
fn a_bandwidth_is_read_as_the_spec_and_as_containerd_write_it() {
    let read = |value| serde_json::from_value::<Bandwidth>(value).unwrap();
    let wanted = Bandwidth { ingress_rate: 1, ingress_burst: 2, egress_rate: 3, egress_burst: 4 };
    let spec = json!({"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4});
    let containerd = json!({"IngressRate": 1, "IngressBurst": 2, "EgressRate": 3, "EgressBurst": 4});
    assert_eq!([read(spec), read(containerd)], [wanted, wanted]);
    assert_eq!(read(json!({"egressRate": 3})), Bandwidth { egress_rate: 3, ..Bandwidth::default() });
}
