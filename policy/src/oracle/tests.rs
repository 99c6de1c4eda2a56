//! The oracle itself, on cases whose answers are known from the documents and from the conformance tests of both APIs.
//!
//! One cluster: namespaces `x` and `y` (label `ns`), pods `a`, `b` and `c` in each (label `pod`), `a` on node `n1`, the
//! others on `n2`; each serves 80 and 81 by the names `serve-80` and `serve-81`, under TCP, UDP and SCTP.

use tartan_api::kinds::{
    Container, ContainerPort, Empty, Envelope, NodeAddress, NodeSpec, NodeStatus, ObjectMeta, PodIP, PodSpec, PodStatus,
};

use super::*;

fn object<Spec, Status: Default>(
    name: &str,
    namespace: &str,
    label: (&str, &str),
    spec: Spec,
) -> Envelope<Spec, Status> {
    let labels = [(label.0.to_owned(), label.1.to_owned())].into();
    let metadata =
        ObjectMeta { name: name.to_owned(), namespace: namespace.to_owned(), labels, ..ObjectMeta::default() };
    Envelope { api_version: String::new(), kind: String::new(), metadata, spec, status: Status::default() }
}

fn pod(namespace: &str, name: &str) -> Pod {
    let ports = [80u16, 81].into_iter().flat_map(|port| {
        ["TCP", "UDP", "SCTP"].map(|protocol| ContainerPort {
            name: format!("serve-{port}"),
            container_port: port,
            protocol: protocol.to_owned(),
        })
    });
    let spec = PodSpec {
        node_name: if name == "a" { "n1" } else { "n2" }.to_owned(),
        containers: vec![Container { ports: ports.collect(), ..Container::default() }],
        ..PodSpec::default()
    };
    let ip = address(&format!("{namespace}/{name}")).to_string();
    let status = PodStatus { pod_ips: vec![PodIP { ip }], ..PodStatus::default() };
    Envelope { status, ..object(name, namespace, ("pod", name), spec) }
}

fn cluster(documents: &str) -> Cluster {
    let node = |name: &str, ip: &str| {
        let address = |kind: &str, address: &str| NodeAddress { kind: kind.to_owned(), address: address.to_owned() };
        let addresses = vec![address("InternalIP", ip), address("ExternalIP", "192.0.2.3")];
        Envelope {
            status: NodeStatus { addresses, ..NodeStatus::default() },
            ..object(name, "", ("node", name), NodeSpec::default())
        }
    };
    let mut cluster = Cluster {
        namespaces: ["x", "y"].map(|name| object(name, "", ("ns", name), Empty {})).to_vec(),
        pods: ["x", "y"].into_iter().flat_map(|namespace| ["a", "b", "c"].map(|name| pod(namespace, name))).collect(),
        nodes: vec![node("n1", "192.0.2.1"), node("n2", "192.0.2.2")],
        pools: vec!["10.0.0.0/16".parse().expect("a range")],
        ..Cluster::default()
    };
    for text in documents.split("---\n").filter(|text| !text.trim().is_empty()) {
        let metadata = "metadata: {name: p, namespace: x}";
        let version = "apiVersion: v";
        let whole = format!("{version}\n{metadata}\n{text}");
        match text.lines().next().expect("not empty") {
            "kind: NetworkPolicy" => cluster.network_policies.push(serde_yaml_ng::from_str(&whole).expect(text)),
            "kind: ClusterNetworkPolicy" => cluster.cluster_policies.push(serde_yaml_ng::from_str(&whole).expect(text)),
            other => panic!("{other}"),
        }
    }
    cluster
}

fn address(end: &str) -> IpAddr {
    let text = match end {
        "n1" => "192.0.2.1",
        "n2" => "192.0.2.2",
        "both" => "192.0.2.3",
        "world" => "203.0.113.9",
        "cache" => "169.254.20.10",
        "unknown" => "10.0.0.99",
        pod => {
            let (namespace, name) = pod.split_once('/').expect("a pod");
            let last = 10 * u8::from(namespace == "y") + name.as_bytes()[0] - b'a' + 1;
            return IpAddr::from([10, 0, 0, last]);
        }
    };
    text.parse().expect("an address")
}

/// `x/a > y/b TCP:80 ok`, one a line: from, to, what, and whether it goes through. `via` is an address and port in between
/// that are not the receiver's: a Service's or the node's, whoever translates them. `as n2` is whose address the source has
/// become on the way.
fn check(policies: &str, flows: &str) {
    let cluster = cluster(policies);
    for line in flows.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, _, to, what, want, ..] = words.as_slice() else { panic!("{line}") };
        let transport = match what.split_once(':') {
            Some((protocol, port)) => {
                let protocol = ["TCP", "UDP", "SCTP"].into_iter().find(|known| known == &protocol).expect("a protocol");
                Transport::Port(protocol, port.parse().expect("a port"))
            }
            None => Transport::Other,
        };
        let plain =
            Flow { source: address(from), destination: address(to), transport, translated: None, masqueraded: None };
        let flow = match (words.contains(&"via"), transport) {
            (true, Transport::Port(protocol, port)) => Flow {
                destination: "10.96.0.1".parse().expect("an address"),
                transport: Transport::Port(protocol, 443),
                translated: Some((address(to), port)),
                ..plain
            },
            _ => plain,
        };
        let masqueraded = words.iter().position(|word| *word == "as").map(|at| address(words[at + 1]));
        let judgement = cluster.judge(&Flow { masqueraded, ..flow });
        assert_eq!(if judgement.allowed() { "ok" } else { "no" }, *want, "{line}\n{policies}\n{judgement:?}");
    }
}

#[test]
fn without_policies_everything_goes() {
    check("", "x/a > y/b TCP:80 ok\n world > x/a UDP:53 ok\n unknown > x/a ICMP ok\n x/a > n2 TCP:22 ok");
}

#[test]
fn isolation_and_its_exceptions() {
    let deny = "kind: NetworkPolicy\nspec: {podSelector: {matchLabels: {pod: a}}}\n";
    check(
        deny,
        "x/b > x/a TCP:80 no
         x/a > x/b TCP:80 ok
         y/a > x/a TCP:80 no
         x/b > y/a TCP:80 ok
         world > x/a TCP:80 no
         unknown > x/a TCP:80 no
         n1 > x/a TCP:80 ok
         n2 > x/a TCP:80 no
         x/a > x/a TCP:80 ok
         x/a > x/a TCP:80 ok via
         x/b > x/a ICMP no",
    );
    let egress = "kind: NetworkPolicy\nspec: {podSelector: {}, policyTypes: [Egress]}\n";
    check(egress, "x/a > y/a TCP:80 no\n x/a > n1 TCP:80 no\n x/a > world TCP:80 no\n y/a > x/a TCP:80 ok");
}

#[test]
fn peers_and_ports() {
    let policy =
        |rest: &str| format!("kind: NetworkPolicy\nspec: {{podSelector: {{matchLabels: {{pod: a}}}}, {rest}}}\n");
    // Two items are an or, two selectors of one item are an and.
    check(
        &policy(
            "ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}]",
        ),
        "y/b > x/a TCP:80 ok\n x/b > x/a TCP:80 no\n y/c > x/a TCP:80 no",
    );
    check(
        &policy(
            "ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]}]",
        ),
        "y/c > x/a TCP:80 ok\n x/b > x/a TCP:80 ok\n x/c > x/a TCP:80 no",
    );
    // A port without protocol is TCP; an empty port is all of TCP; ICMP is none of them.
    check(
        &policy("ingress: [{ports: [{}]}]"),
        "x/b > x/a TCP:9 ok\n x/b > x/a UDP:9 no\n x/b > x/a SCTP:9 no\n x/b > x/a ICMP no",
    );
    check(&policy("ingress: [{}]"), "x/b > x/a UDP:9 ok\n x/b > x/a ICMP ok\n world > x/a SCTP:1 ok");
    check(
        &policy("ingress: [{ports: [{port: 80, endPort: 81, protocol: UDP}]}]"),
        "x/b > x/a UDP:80 ok\n x/b > x/a UDP:81 ok\n x/b > x/a UDP:82 no\n x/b > x/a UDP:79 no\n x/b > x/a TCP:80 no",
    );
    check(
        &policy("ingress: [{ports: [{port: serve-81}]}]"),
        "x/b > x/a TCP:81 ok\n x/b > x/a UDP:81 no\n x/b > x/a TCP:80 no",
    );
    // Behind a Service, the pod's port counts.
    check(&policy("ingress: [{ports: [{port: 80}]}]"), "x/b > x/a TCP:80 ok via\n x/b > x/a TCP:81 no via");
    check(
        &policy(
            "policyTypes: [Egress], egress: [{to: [{podSelector: {}}, {ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: serve-80}]}]",
        ),
        "x/a > x/b TCP:80 ok\n x/a > x/b TCP:81 no\n x/a > y/b TCP:80 no\n x/a > world TCP:80 no",
    );
    // What one block leaves out another may allow; blocks are about pods and nodes, too.
    check(
        &policy(
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/32]}}, {ipBlock: {cidr: 192.0.2.2/32}}]}]",
        ),
        "x/b > x/a TCP:80 no\n x/c > x/a TCP:80 ok\n unknown > x/a TCP:80 ok\n n2 > x/a TCP:80 ok\n world > x/a TCP:80 no",
    );
}

#[test]
fn tiers() {
    let cluster = |tier: &str, rules: &str| {
        format!(
            "kind: ClusterNetworkPolicy\nspec: {{tier: {tier}, priority: 1, subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, {rules}}}\n"
        )
    };
    let isolate = "---\nkind: NetworkPolicy\nspec: {podSelector: {}}\n";
    let from_y = "from: [{namespaces: {matchLabels: {ns: y}}}]";
    // It decides what it matches, and isolates from nothing else.
    check(
        &cluster("Admin", &format!("ingress: [{{action: Deny, {from_y}}}]")),
        "y/a > x/a TCP:80 no\n x/b > x/a TCP:80 ok\n world > x/a TCP:80 ok",
    );
    check(
        &(cluster("Admin", &format!("ingress: [{{action: Accept, {from_y}}}]")) + isolate),
        "y/a > x/a TCP:80 ok\n x/b > x/a TCP:80 no",
    );
    check(
        &(cluster("Admin", &format!("ingress: [{{action: Pass, {from_y}}}, {{action: Deny, {from_y}}}]")) + isolate),
        "y/a > x/a TCP:80 no",
    );
    check(
        &cluster("Admin", &format!("ingress: [{{action: Pass, {from_y}}}, {{action: Deny, {from_y}}}]")),
        "y/a > x/a TCP:80 ok",
    );
    // NetworkPolicies are final for what they select; Baseline is for the rest.
    check(&(cluster("Baseline", &format!("ingress: [{{action: Accept, {from_y}}}]")) + isolate), "y/a > x/a TCP:80 no");
    check(
        &cluster("Baseline", &format!("ingress: [{{action: Deny, {from_y}}}]")),
        "y/a > x/a TCP:80 no\n world > x/a TCP:80 ok",
    );
    // An unknown pod may have the labels that are denied, or not those that are accepted.
    check(&cluster("Admin", &format!("ingress: [{{action: Deny, {from_y}}}]")), "unknown > x/a TCP:80 no");
    check(
        &(cluster("Admin", &format!("ingress: [{{action: Accept, {from_y}}}]")) + isolate),
        "unknown > x/a TCP:80 no",
    );
    // Pods that are said without a namespace are those of all.
    check(
        "kind: ClusterNetworkPolicy\nspec: {tier: Admin, priority: 1, subject: {pods: {podSelector: {matchLabels: {pod: a}}}}, ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {pod: b}}}}]}]}\n",
        "x/b > x/a TCP:80 no\n y/b > x/a TCP:80 no\n x/b > y/a TCP:80 no\n x/c > x/a TCP:80 ok\n x/b > x/c TCP:80 ok",
    );
    // Nodes and networks; accepted going out, it must still be let in.
    let egress = cluster(
        "Admin",
        "egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}]}, {action: Deny, to: [{nodes: {}}, {networks: [0.0.0.0/0]}]}]",
    );
    check(
        &egress,
        "x/a > y/a TCP:80 ok\n x/a > n1 TCP:80 no\n x/a > n2 TCP:80 no\n x/a > world TCP:80 no\n world > x/a TCP:80 ok",
    );
    // Of two nodes, as they say: it may be either or none.
    check(&egress, "x/a > both TCP:80 no");
    let nodes = |action: &str| format!("{{action: {action}, to: [{{nodes: {{matchLabels: {{node: n1}}}}}}]}}");
    let outside = "{action: Deny, to: [{networks: [0.0.0.0/0]}]}";
    check(&cluster("Admin", &format!("egress: [{}]", nodes("Deny"))), "x/a > both TCP:80 no");
    check(
        &cluster("Admin", &format!("egress: [{}, {outside}]", nodes("Accept"))),
        "x/a > both TCP:80 no\n x/a > n1 TCP:80 ok",
    );
    check(&(egress.clone() + isolate), "x/a > x/b TCP:80 no\n x/a > y/b TCP:80 ok");
    check(&(egress.replace("ns: x", "ns: y") + isolate), "y/a > x/b TCP:80 no");
}

#[test]
fn addresses_that_stand_for_others() {
    let policy =
        |rest: &str| format!("kind: NetworkPolicy\nspec: {{podSelector: {{matchLabels: {{pod: a}}}}, {rest}}}\n");
    // A ClusterIP, a NodePort or a hostPort: the pod behind it and its port count, and who asks, as the pod's node gets it.
    let from_b = policy("ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]");
    check(
        &from_b,
        "x/b > x/a TCP:80 ok via
         x/c > x/a TCP:80 no via
         x/b > x/a TCP:443 no via
         world > x/a TCP:80 no via
         x/b > x/a TCP:80 no via as n2",
    );
    let from_n2 = policy("ingress: [{from: [{ipBlock: {cidr: 192.0.2.2/32}}], ports: [{port: 80}]}]");
    check(
        &from_n2,
        "world > x/a TCP:80 no via
         world > x/a TCP:80 ok via as n2
         x/b > x/a TCP:80 ok via as n2
         n1 > x/a TCP:80 ok via",
    );
    // A pod by way of any of them to itself is nobody's business.
    let shut = policy("policyTypes: [Ingress, Egress]");
    check(&shut, "x/a > x/a TCP:80 ok via\n x/a > x/b TCP:80 no via\n x/b > x/a TCP:80 no via");
    // A cache on the node, at an address of its own, is no pod and no node that objects tell of: a range says it.
    check(&shut, "x/a > cache UDP:53 no\n x/b > cache UDP:53 ok");
    let out = policy(
        "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [{port: 53, protocol: UDP}]}]",
    );
    check(&out, "x/a > cache UDP:53 ok\n x/a > cache TCP:53 no\n x/a > n1 UDP:53 no");
}
