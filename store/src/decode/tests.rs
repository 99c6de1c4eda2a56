//! Documents that are taken, documents that are refused and what a user then reads, and random bytes.

use std::time::Duration;

use ipnet::IpNet;
use tartan_model::{
    AddressChoice, Block, Config, Encryption, FabricMode, Family, Holder, HostFirewall, IpsecConfig, NodeCondition,
    NodeNetwork, Part, PerFamily, PolicyMode, VxlanConfig, WireguardConfig,
};

use super::*;

mod bad;
mod fuzz;

/// The head of a document, as the tables have it.
fn document(api_version: &str, kind: &str, name: &str, rest: &str) -> String {
    format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}}}\n{rest}\n")
}

fn config_document(rest: &str) -> String {
    document("tartan.dev/v1alpha1", "NetworkConfig", "default", rest)
}

fn decoded(text: &str) -> Object {
    match documents("test.yaml", text).as_slice() {
        [Ok(document)] => document.object.clone(),
        other => panic!("{text}\n{other:#?}"),
    }
}

fn check_config(rest: &str, want: Config) {
    let text = config_document(rest);
    assert_eq!(decoded(&text), Object::Config(want.into()), "{text}");
    fuzz::check(text.as_bytes());
}

/// What a document says, by how it is written back: one line a leaf, in order.
fn check(text: &str, want: &str) {
    let found = documents("test.yaml", text);
    let [Ok(found)] = found.as_slice() else { panic!("{text}\n{found:#?}") };
    let written = serde_json::to_value(encode(&found.id, &found.object)).unwrap();
    let want: serde_yaml_ng::Value = serde_yaml_ng::from_str(want).unwrap();
    let want = serde_json::to_value(want).unwrap();
    for part in ["spec", "status"] {
        assert_eq!(written.get(part).unwrap_or(&"".into()), want.get(part).unwrap_or(&"".into()), "{part} of\n{text}");
    }
    fuzz::check(text.as_bytes());
}

#[test]
fn a_configuration_is_whole() {
    let default = Config::default;
    check_config("", default());
    check_config("spec:", default());
    check_config("spec: {}\nstatus: {anything: 1}", default());
    check_config("spec: {fabric: host-gw}", Config { fabric: FabricMode::HostGw, ..default() });
    check_config("spec: {masquerade: false, vxlan: }", Config { masquerade: false, ..default() });
    check_config("spec: {underlay: ipv6}", Config { underlay: Some(Family::V6), ..default() });
    check_config("spec: {underlay: auto, fabric: vxlan}", default());
    check_config(
        "spec: {fabric: host-gw, underlayMTU: 1280}",
        Config { fabric: FabricMode::HostGw, underlay_mtu: Some(1280), ..default() },
    );
    check_config(
        "spec: {crossSubnet: true, vxlan: {vni: 16777215, port: 65535}}",
        Config {
            cross_subnet: true,
            vxlan: VxlanConfig { vni: 16_777_215, port: 65535, ..default().vxlan },
            ..default()
        },
    );
    check_config(
        "spec: {vxlan: {learning: true, gbp: true}, udp: {port: 1}, fallback: udp}",
        Config {
            vxlan: VxlanConfig { learning: true, gbp: true, ..default().vxlan },
            udp_port: 1,
            fallback: Some(FabricMode::Udp),
            ..default()
        },
    );
    check_config("spec: {udp: , fallback: none}", default());
    check_config(
        "spec: {nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8', 192.0.2.1]}",
        Config {
            non_masquerade: ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"].map(|net| net.parse().unwrap()).to_vec(),
            ..default()
        },
    );
    check_config(
        "spec: {hostFirewall: report, cooldownSeconds: 0, leaseSeconds: 3, drainSeconds: 0}",
        Config {
            host_firewall: HostFirewall::Report,
            cooldown: Duration::ZERO,
            lease: Duration::from_secs(3),
            drain: Duration::ZERO,
            ..default()
        },
    );
    check_config(
        "spec: {fabric: wireguard, strictEncryption: true, \
         wireguard: {port: 65532, rotation: 4294967295, rotateAfterSeconds: 86400, nodes: true}}",
        Config {
            fabric: FabricMode::Wireguard,
            strict_encryption: true,
            wireguard: WireguardConfig {
                port: 65532,
                rotation: u32::MAX,
                rotate_after: Some(Duration::from_secs(86_400)),
                nodes: true,
            },
            ..default()
        },
    );
    check_config(
        "spec: {encryption: wireguard, strictEncryption: false, underlayMTU: 1360}",
        Config { encryption: Encryption::Wireguard, underlay_mtu: Some(1360), ..default() },
    );
    check_config(
        "spec: {encryption: ipsec, strictEncryption: true, ipsec: {udpPort: 4500, rotation: 3, rotateAfterSeconds: 3600}}",
        Config {
            encryption: Encryption::Ipsec,
            strict_encryption: true,
            ipsec: IpsecConfig { port: Some(4500), rotation: 3, rotate_after: Duration::from_secs(3_600) },
            ..default()
        },
    );
    for (word, policy) in [
        ("enforce", PolicyMode::Enforce),
        ("audit", PolicyMode::Audit),
        ("off", PolicyMode::Off),
        ("'off'", PolicyMode::Off),
    ] {
        check_config(&format!("spec: {{policy: {word}}}"), Config { policy, ..default() });
    }
    for (choice, want) in [
        ("", AddressChoice::Auto),
        ("interface: eth0", AddressChoice::Interface("eth0".into())),
        ("interfaceRegex: '^eth[0-9]+$'", AddressChoice::InterfaceRegex("^eth[0-9]+$".into())),
        ("cidrs: [192.0.2.0/24]", AddressChoice::Cidrs(vec!["192.0.2.0/24".parse().unwrap()])),
        ("canReach: '2001:db8::1'", AddressChoice::CanReach("2001:db8::1".parse().unwrap())),
    ] {
        check_config(&format!("spec: {{nodeAddress: {{{choice}}}}}"), Config { node_address: want, ..default() });
    }
}

#[test]
fn documents_of_others_are_taken_as_they_are() {
    let pool = |spec: &str| document("projectcalico.org/v3", "IPPool", "p", &format!("spec: {{{spec}}}"));
    let node = |rest: &str| document("v1", "Node", "n1", rest);
    let cidr = "cidr: 10.244.0.0/16";
    for (text, want) in [
        (pool(cidr), "spec: {cidr: 10.244.0.0/16}"),
        (pool("cidr: 'fd00:10::/64'"), "spec: {cidr: 'fd00:10::/64'}"),
        (pool(&format!("{cidr}, blockSize: 26, nodeSelector: all()")), "spec: {cidr: 10.244.0.0/16}"),
        (
            pool(&format!("{cidr}, blockSize: 32, disabled: true")),
            "spec: {cidr: 10.244.0.0/16, blockSize: 32, disabled: true}",
        ),
        (pool("cidr: 10.1.2.3/32, blockSize: 32"), "spec: {cidr: 10.1.2.3/32, blockSize: 32}"),
        (
            pool(&format!("{cidr}, nodeSelector: zone=='a'")),
            "spec: {cidr: 10.244.0.0/16, nodeSelector: 'zone == \"a\"'}",
        ),
        (
            pool(&format!("{cidr}, vxlanMode: Never, natOutgoing: true")),
            "spec: {cidr: 10.244.0.0/16, ipipMode: Never, vxlanMode: Never}",
        ),
        (
            pool(&format!("{cidr}, vxlanMode: Never, ipipMode: CrossSubnet")),
            "spec: {cidr: 10.244.0.0/16, ipipMode: CrossSubnet}",
        ),
        (pool(&format!("{cidr}, vxlanMode: Always")), "spec: {cidr: 10.244.0.0/16, vxlanMode: Always}"),
        (pool(&format!("{cidr}, allowedUses: [Workload, Tunnel]")), "spec: {cidr: 10.244.0.0/16}"),
        (pool(&format!("{cidr}, allowedUses: [LoadBalancer]")), "spec: {cidr: 10.244.0.0/16, disabled: true}"),
        (pool(&format!("{cidr}, assignmentMode: Manual")), "spec: {cidr: 10.244.0.0/16, disabled: true}"),
        (
            document("projectcalico.org/v3", "IPReservation", "r", "spec: {reservedCIDRs: [10.1.0.1, 10.2.0.0/24]}"),
            "spec: {reservedCIDRs: [10.1.0.1/32, 10.2.0.0/24]}",
        ),
        (node(""), "spec: {}"),
        (
            node(
                "spec: {podCIDR: 10.1.0.0/24, taints: []}\nstatus: {addresses: [{type: Hostname, address: n1}], phase: x}",
            ),
            "{spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24]}}",
        ),
        (
            node(
                "spec: {podCIDRs: [10.1.0.0/24, 'fd01::/64']}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}",
            ),
            "{spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd01::/64']},
              status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}",
        ),
        (
            node(
                "status: {addresses: [{type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 192.0.2.1}]}",
            ),
            "{spec: {}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: 203.0.113.1}]}}",
        ),
        (document("v1", "Namespace", "ns", "spec: {finalizers: [kubernetes]}"), "spec: {}"),
        (document("v1", "Pod", "p", "spec: {containers: [{name: a, image: b}]}"), "spec: {}"),
        (
            document(
                "v1",
                "Pod",
                "p",
                "spec:
  nodeName: n1
  serviceAccountName: sa
  hostNetwork: true
  initContainers:
  - {ports: [{name: once, containerPort: 1}]}
  - {restartPolicy: Always, ports: [{name: side, containerPort: 2, protocol: SCTP}, {name: web, containerPort: 3}]}
  containers:
  - {ports: [{name: web, containerPort: 80}, {containerPort: 81}]}
  - {ports: [{name: web, containerPort: 80, protocol: UDP}, {name: web, containerPort: 82, protocol: TCP}]}
status: {phase: Failed, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
            ),
            "{spec: {nodeName: n1, serviceAccountName: sa, hostNetwork: true, containers: [{ports: [
                {name: web, containerPort: 80, protocol: TCP}, {name: web, containerPort: 80, protocol: UDP},
                {name: side, containerPort: 2, protocol: SCTP}]}]},
              status: {phase: Succeeded, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}",
        ),
        (
            document("v1", "Pod", "p", "status: {phase: Running, podIP: 'fd00::1'}"),
            "{spec: {}, status: {podIP: 'fd00::1', podIPs: [{ip: 'fd00::1'}]}}",
        ),
        ("{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n1\"}}".to_owned(), "spec: {}"),
    ] {
        check(&text, want);
    }
}

#[test]
fn a_pod_is_told_from_the_one_that_had_its_name_before() {
    let number = 0x9b5f_4c3d_2e1f_0011_2233_4455_6677_8899_u128;
    for (metadata, want) in [
        ("{name: p}", 0),
        ("{name: p, uid: 9b5f4c3d-2e1f-0011-2233-445566778899}", number),
        // What a kubelet calls a pod of its own files.
        (
            "{name: p, uid: 00000000-0000-4000-8000-000000000001, \
              annotations: {kubernetes.io/config.hash: 9b5f4c3d2e1f00112233445566778899}}",
            number,
        ),
    ] {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {{}}\n");
        fuzz::check(text.as_bytes());
        let Object::Pod(pod) = decoded(&text) else { panic!("{text}") };
        assert_eq!(pod.uid, want, "{text}");
    }
}

/// Whatever a policy says: what is wrong in it is its dialect's to diagnose.
#[test]
fn policies_are_taken_as_they_are() {
    let kept = |text: &str| match decoded(text) {
        Object::Policy(policy) => policy.json.to_string(),
        other => panic!("{text}\n{other:?}"),
    };
    let check = |kind: &str, version: &str, rest: &str, want: &str| {
        let text = document(version, kind, "p", rest);
        fuzz::check(text.as_bytes());
        assert_eq!(kept(&text), want, "{text}");
    };
    check("NetworkPolicy", "networking.k8s.io/v1", "", "{}");
    check("NetworkPolicy", "networking.k8s.io/v1", "spec:", r#"{"spec":null}"#);
    for (kind, version) in [
        ("NetworkPolicy", "networking.k8s.io/v1"),
        ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
        ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
        ("BaselineAdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
    ] {
        check(kind, version, "spec: {}", r#"{"spec":{}}"#);
        check(
            kind,
            version,
            "sepc: 1\nspec: {b: [1, -2, 0.1, 1.7976931348623157e308, 'no', yes], a: {}}\nstatus: {c: d}",
            r#"{"sepc":1,"spec":{"a":{},"b":[1,-2,0.1,1.7976931348623157e+308,"no","yes"]}}"#,
        );
    }
}

#[test]
fn objects_of_namespaces_have_theirs_in_their_name() {
    for (kind, version) in [("NetworkPolicy", "networking.k8s.io/v1"), ("Pod", "v1")] {
        for (metadata, want) in [("name: a.b", "default/a.b"), ("name: a, namespace: x", "x/a")] {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n");
            let found = documents("test.yaml", &text);
            let id = found[0].as_ref().map(|document| document.id.to_string());
            assert_eq!(id, Ok(format!("{kind}/{want}")), "{text}");
            fuzz::check(text.as_bytes());
        }
    }
    let namespace = document("v1", "Namespace", "x", "");
    let Object::Namespace(namespace) = decoded(&namespace) else { panic!("{namespace}") };
    assert_eq!(namespace.labels.iter().collect::<Vec<_>>(), [("kubernetes.io/metadata.name", "x")]);
}

/// As Flannel reads it, down to the case of keys.
#[test]
fn flannels_config_map_is_read_as_flannel_reads_it() {
    use tartan_model::FlannelBackend::{HostGw, Other, Vxlan};
    let text = |conf: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}\n\
             data:\n  cni-conf.json: '{{}}'\n  net-conf.json: |\n    {conf}\n"
        )
    };
    let check = |conf: &str, networks: [Option<&str>; 2], backend: tartan_model::FlannelBackend| {
        let text = text(conf);
        fuzz::check(text.as_bytes());
        let [v4, v6] = networks.map(|network| network.map(|network| network.parse().unwrap()));
        let want = tartan_model::Flannel { networks: PerFamily { v4, v6 }, backend };
        assert_eq!(decoded(&text), Object::Flannel(want.into()), "{text}");
    };
    let (v4, v6) = (Some("10.244.0.0/16"), Some("fd00:10:244::/56"));
    let vxlan = |vni, port, direct| Vxlan { vni, port, direct };
    check(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#, [v4, None], vxlan(1, 8472, false));
    check(
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56", "SubnetLen": 24,
            "Backend": {"Type": "VXLAN", "VNI": 4096, "Port": 4789, "DirectRouting": true, "MTU": 1400}}"#,
        [v4, v6],
        vxlan(4096, 4789, true),
    );
    check(r#"{"network": "10.244.0.0/16", "backend": {"type": "host-gw", "vni": 0}}"#, [v4, None], HostGw);
    check(r#"{"IPv6Network": "fd00:10:244::/56", "enableIPv4": false}"#, [None, None], Other("udp".into()));
    check(
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": "secret"}}"#,
        [v4, None],
        Other("wireguard".into()),
    );
    check(
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 0}}"#,
        [v4, None],
        vxlan(1, 8472, false),
    );

    let wrong = |text: &str, want: &str| {
        let refused = documents("test.yaml", text).remove(0).unwrap_err();
        let said = format!("{}: {}", refused.condition.field, refused.condition.message);
        assert!(said.contains(want), "{said}\nwanted: {want}");
    };
    wrong(&text("{"), "data.net-conf.json: test.yaml:5: data.net-conf.json: EOF");
    wrong(&text(r#"{"Network": "10.244.0.1/16"}"#), "data.net-conf.json.Network is `10.244.0.1/16`: bits are set");
    wrong(
        &text(r#"{"Backend": {"Type": "vxlan", "VNI": 16777216}}"#),
        "net-conf.json.Backend.VNI is `16777216`: out of bounds",
    );
    wrong(&text(r#"{"Backend": {"Type": 7}}"#), "data.net-conf.json.backend.type");
    let other = text("{}").replace("kube-flannel-cfg", "kube-proxy");
    wrong(&other, "metadata.name is `kube-flannel/kube-proxy`: not a ConfigMap of the network");
    let elsewhere = text("{}").replace("namespace: kube-flannel", "namespace: web");
    wrong(&elsewhere, "metadata.name is `web/kube-flannel-cfg`: not a ConfigMap of the network");
    wrong(&text("{}").replace("net-conf.json", "x"), "data.net-conf.json is missing");
}

/// As null it would be no port at all, which is every port.
#[test]
fn a_number_that_is_none_stands_in_a_policy_as_it_was_written() {
    for number in [".nan", ".inf", "-.inf"] {
        let spec = format!("podSelector: {{}}\n  ingress: [{{ports: [{{port: {number}}}]}}]");
        let text = document("networking.k8s.io/v1", "NetworkPolicy", "web", &format!("spec:\n  {spec}\n"));
        let Object::Policy(policy) = decoded(&text) else { panic!("{text}") };
        assert!(policy.json.contains(&format!(r#"{{"port":"{number}"}}"#)), "{}", policy.json);
    }
}

#[test]
fn our_own_come_back_as_they_were() {
    let advert = tartan_model::Advert {
        node: "n1".into(),
        node_uid: "u".into(),
        addresses: PerFamily { v4: Some("192.0.2.1".parse().unwrap()), v6: Some("2001:db8::1".parse().unwrap()) },
        fabric_addresses: PerFamily { v4: Some("10.244.0.1".parse().unwrap()), v6: None },
        blocks: vec!["10.244.0.0/26".parse().unwrap()],
        mtu: 1450,
        accepts: vec![tartan_model::Endpoint {
            instance: "vxlan/ipv4/vni1/port8472".into(),
            address: "192.0.2.1".parse().unwrap(),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            public_key: Some(format!("{}Bwc=", "BwcH".repeat(10)).parse().unwrap()),
        }],
        leaving: [tartan_model::Endpoint {
            instance: "udp/ipv4/port8285".into(),
            address: "192.0.2.3".parse().unwrap(),
            mac: None,
            public_key: None,
        }]
        .into(),
        sends: vec!["host-gw".into()],
        joining: true,
        acknowledges: Some([tartan_model::Acknowledged { node: "n2".into(), edition: 7 }].into()),
        edition: 3,
        heartbeat: u64::MAX,
    };
    let [kind, status, reason, message, since] =
        ["Ready", "False", "PeerOffLink", "see: \"it\"", "2026-01-01T00:00:00Z"].map(str::to_owned);
    let conditions = vec![NodeCondition { kind, status, reason, message, since }];
    let network = NodeNetwork { advert: advert.clone().into(), conditions, version: "1.2.3".into() };
    let cidr: IpNet = "10.244.0.0/26".parse().unwrap();
    let block = Block {
        cidr,
        pool: "p".into(),
        node: "n1".into(),
        node_uid: "u".into(),
        parts: [
            ("10.244.0.0/28", Holder::Aside),
            ("10.244.0.16/28", Holder::Offered),
            ("10.244.0.32/28", Holder::Node { name: "n2".into(), uid: "u2".into() }),
            ("10.244.0.48/28", Holder::Leaving { name: "n3".into(), uid: "u3".into() }),
        ]
        .map(|(cidr, holder)| Part { cidr: cidr.parse().unwrap(), holder })
        .into(),
    };
    for (kind, name, object) in [
        (Kind::NodeNetwork, "n1".to_owned(), Object::from(advert)),
        (Kind::NodeNetwork, "n1".to_owned(), Object::NodeNetwork(network)),
        (Kind::IpBlock, Block::name_of(&cidr), Object::Block(block.into())),
    ] {
        let id = ObjectId { kind, name: name.into() };
        let text = serde_yaml_ng::to_string(&encode(&id, &object)).unwrap();
        assert_eq!(decoded(&text), object, "{text}");
        assert_eq!(revision(&id, &object), revision(&id, &decoded(&text)));
    }
}

#[test]
fn texts_hold_several_documents() {
    let one = document("v1", "Node", "a", "");
    let two = document("v1", "Node", "b", "");
    // text, the documents' names and where they begin
    let table: &[(String, &[&str])] = &[
        (String::new(), &[]),
        ("# nothing\n---\n---\n...\n".to_owned(), &[]),
        (format!("{one}---\n{two}"), &["Node/a", "Node/b"]),
        (format!("%YAML 1.2\n---\r\n{one}--- # second\n{two}...\n---"), &["Node/a", "Node/b"]),
        (format!("{one}---\nkind: [\n---\n{two}"), &["Node/a", "test.yaml", "Node/b"]),
        (format!("{one}---\nkind: Node\nmetadata:\n  name: c\n  {{\n---\n{two}"), &["Node/a", "Node/c", "Node/b"]),
        (format!("{one}a: |\n  x\n --- not a separator\n---not\n"), &["test.yaml"]),
        (one.replace('\n', "\r\n"), &["Node/a"]),
        (one.trim_end().to_owned(), &["Node/a"]),
    ];
    for (text, want) in table {
        let found: Vec<String> = documents("test.yaml", text)
            .into_iter()
            .map(|document| document.map_or_else(|refused| refused.condition.about, |document| document.id.to_string()))
            .collect();
        assert_eq!(found, *want, "{text}");
    }
}

#[test]
fn revisions_tell_contents_apart() {
    let pool = |spec: &str| document("projectcalico.org/v3", "IPPool", "p", &format!("spec: {{{spec}}}"));
    let id = ObjectId { kind: Kind::IpPool, name: "p".into() };
    let revision = |spec: &str| revision(&id, &decoded(&pool(spec)));
    assert_eq!(revision("cidr: 10.0.0.0/16, blockSize: 26"), revision("blockSize: 0x1a, cidr: '10.0.0.0/16', more: 1"));
    assert_ne!(revision("cidr: 10.0.0.0/16"), revision("cidr: 10.0.0.0/16, blockSize: 27"));
    // Stable: other processes, of other builds, compare with it.
    assert_eq!(revision("cidr: 10.0.0.0/16").to_string(), "b508f77322c151597c148ee01becd932");
}

/// A text of a kilobyte that stands for a thousand million words.
#[test]
fn aliases_do_not_explode() {
    let head = document("v1", "Node", "n", "spec:");
    let level = |i: usize| format!("  l{}: &l{} [{}]\n", i + 1, i + 1, vec![format!("*l{i}"); 10].join(", "));
    let text = format!("{head}  l0: &l0 [lol]\n{}", (0..9).map(level).collect::<String>());
    let start = std::time::Instant::now();
    fuzz::check(text.as_bytes());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
