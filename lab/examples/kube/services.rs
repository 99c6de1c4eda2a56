//! Services and names with kube-proxy in each of its modes: from pods of the same node and of another, from the server
//! itself, from nodes and from outside; both families; then the same under policies.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Census, Netns};

use crate::cluster::{Cluster, Wants};
use crate::machine::Proxy;
use crate::pods::{self, PATIENCE, SERVER_PORT};
use crate::tests::{addresses, ask};
use crate::{Programs, policies, tartan};

pub(crate) const PORT: u16 = 80;
/// Of its node, for the pod `near`.
const HOST_PORT: u16 = 8081;
/// Where the server is that Services lead to.
pub(crate) const SERVER: &str = "on-n2";

#[test]
fn services_with_nftables() {
    services("kube-nft", Proxy::Nftables);
}

#[test]
fn services_with_iptables() {
    services("kube-ipt", Proxy::Iptables);
}

/// One of these, and what must be answered.
struct Question<'a> {
    what: String,
    ask: Box<dyn Fn() -> Result<String> + 'a>,
    wanted: String,
}

fn services(name: &str, proxy: Proxy) {
    let before = Census::take().unwrap();
    let wants = Wants { proxy: Some(proxy), ..Wants::default() };
    let cluster = Cluster::up(name, Programs::from_environment().unwrap(), wants).unwrap();
    tartan::install(&cluster).unwrap();
    cluster.wait_until_ready().unwrap();
    let mut near = server("near", "n2");
    near["spec"]["containers"][0]["ports"] = json!([{"containerPort": SERVER_PORT, "hostPort": HOST_PORT}]);
    let on_each = ["n1", "n2", "n3"].map(|node| server(&format!("on-{node}"), node));
    pods::run(&cluster, on_each.into_iter().chain([near, server("stranger", "n2")]).collect()).unwrap();
    let pods = addresses(&cluster);
    let services =
        [service("web", SERVER, "Cluster"), service("local", SERVER, "Local"), service("other", "on-n3", "Cluster")];
    pods::apply(&cluster, "services.json", services.into_iter().chain([headless()]).collect()).unwrap();

    let mut failed = Vec::new();
    let questions = from_pods(&cluster, &pods).into_iter().chain(by_name(&cluster)).chain(from_outside(&cluster));
    for Question { what, ask, wanted } in questions {
        let mut answer = Ok(String::new());
        let right = wait_for(PATIENCE, &what, || {
            answer = ask();
            answer.as_ref().is_ok_and(|answer| *answer == wanted)
        });
        if right.is_err() {
            failed.push(format!("{what}: wanted {wanted}, got {answer:?}"));
        }
    }
    assert_eq!(failed, [""; 0]);
    only_the_servers_node_answers(&cluster);
    policies::hold(&cluster);

    drop(cluster);
    let difference = Census::take().unwrap().since(&before);
    assert!(difference.is_nothing(), "{difference}");
}

/// The source address is kept, but for a server that asks itself: it would answer itself.
fn from_pods<'a>(cluster: &'a Cluster, pods: &'a [(String, Vec<String>)]) -> Vec<Question<'a>> {
    let mut questions = Vec::new();
    for (family, to) in cluster_ips(cluster, "web").into_iter().enumerate() {
        for (from, addresses) in pods.iter().filter(|(name, _)| name != SERVER) {
            let to = to.clone();
            let seen = move || ip_of(&ask(cluster, from, &to, PORT, "clientip")?);
            questions.push(question(format!("{from} to web, family {family}"), seen, &addresses[family]));
        }
        let hairpin = move || ask(cluster, SERVER, &to, PORT, "hostname");
        questions.push(question(format!("{SERVER} to itself by web, family {family}"), hairpin, SERVER));
    }
    questions
}

fn by_name(cluster: &Cluster) -> Vec<Question<'_>> {
    let mut questions = Vec::new();
    for name in ["web", "web.default", "web.default.svc.cluster.local"] {
        let asked = move || ask(cluster, "near", name, PORT, "hostname");
        questions.push(question(format!("{name} by name"), asked, SERVER));
    }
    for pod in ["on-n1", "on-n2", "on-n3"] {
        let name = format!("{pod}.headless.default.svc.cluster.local");
        let asked = move || ask(cluster, "near", &name, SERVER_PORT, "hostname");
        questions.push(question(format!("{pod} by its name below headless"), asked, pod));
    }
    questions
}

/// From nodes, which are clients of cluster addresses as well, and from beside the cluster through its nodes' ports.
fn from_outside(cluster: &Cluster) -> Vec<Question<'_>> {
    let mut questions = Vec::new();
    let (outside, own) = cluster.outside().unwrap();
    let (web, local) = (node_port(cluster, "web"), node_port(cluster, "local"));
    let cluster_ips = cluster_ips(cluster, "web");
    for machine in cluster.machines() {
        let name = &machine.name;
        for (to, address) in cluster_ips.iter().zip([IpAddr::from(machine.seat.v4.0), machine.seat.v6.0.into()]) {
            let to = SocketAddr::new(to.parse().unwrap(), PORT);
            let asked = move || curl(&machine.netns, to, "hostname");
            questions.push(question(format!("{name} to web at {to}"), asked, SERVER));
            let to = SocketAddr::new(address, web);
            let asked = move || curl(outside, to, "hostname");
            questions.push(question(format!("outside to web at {name}, {to}"), asked, SERVER));
        }
    }
    let machine = cluster.machine("n2").unwrap();
    for address in [IpAddr::from(machine.seat.v4.0), machine.seat.v6.0.into()] {
        let to = SocketAddr::new(address, HOST_PORT);
        let asked = move || curl(outside, to, "hostname");
        questions.push(question(format!("outside to near's port of n2, {to}"), asked, "near"));
    }
    for (own, address) in own.into_iter().zip([IpAddr::from(machine.seat.v4.0), machine.seat.v6.0.into()]) {
        let to = SocketAddr::new(address, local);
        let seen = move || ip_of(&curl(outside, to, "clientip")?);
        questions.push(question(format!("outside to local at n2, {to}"), seen, &own.to_string()));
    }
    questions
}

/// Asked after the server's own node has answered, so that it is not for want of time that the others do not.
fn only_the_servers_node_answers(cluster: &Cluster) {
    let (outside, _) = cluster.outside().unwrap();
    let port = node_port(cluster, "local");
    for machine in cluster.machines().iter().filter(|machine| machine.name != "n2") {
        for address in [IpAddr::from(machine.seat.v4.0), machine.seat.v6.0.into()] {
            let answer = curl(outside, SocketAddr::new(address, port), "hostname");
            assert!(answer.is_err(), "{address} has no server, and yet answered {answer:?}");
        }
    }
}

fn question<'a>(what: String, ask: impl Fn() -> Result<String> + 'a, wanted: &str) -> Question<'a> {
    Question { what, ask: Box::new(ask), wanted: wanted.into() }
}

pub(crate) fn curl(netns: &Netns, to: SocketAddr, path: &str) -> Result<String> {
    netns.output(&["curl", "--silent", "--show-error", "--max-time", "2", "--globoff", &format!("http://{to}/{path}")])
}

fn ip_of(socket: &str) -> Result<String> {
    Ok(socket.parse::<SocketAddr>().with_context(|| format!("parsing {socket:?}"))?.ip().to_string())
}

fn server(name: &str, node: &str) -> Value {
    let mut pod = pods::pod(name, node);
    pod["metadata"]["labels"] = json!({"name": name, "app": "server"});
    pod["spec"]["hostname"] = json!(name);
    pod["spec"]["subdomain"] = json!("headless");
    pod
}

/// To one server, on a port of the nodes as well.
fn service(name: &str, server: &str, external_traffic_policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": external_traffic_policy, "ipFamilyPolicy": "RequireDualStack",
            "selector": {"name": server}, "ports": [{"port": PORT, "targetPort": SERVER_PORT}],
        },
    })
}

fn headless() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless"},
        "spec": {
            "clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "server"},
            "ports": [{"port": SERVER_PORT}],
        },
    })
}

pub(crate) fn cluster_ips(cluster: &Cluster, service: &str) -> Vec<String> {
    let service = cluster.get(&["service", service]).unwrap();
    let listed = service["spec"]["clusterIPs"].as_array().unwrap();
    listed.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

pub(crate) fn node_port(cluster: &Cluster, service: &str) -> u16 {
    let service = cluster.get(&["service", service]).unwrap();
    service["spec"]["ports"][0]["nodePort"].as_u64().unwrap().try_into().unwrap()
}
