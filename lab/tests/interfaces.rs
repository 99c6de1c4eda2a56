//! Pods and nodes that are not like others: a second interface, a kernel without IPv6, namespaces that the agent does
//! not see.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tartan_lab::{Attachment, Binaries, Lab, NETNS_DIR, Netns, Network, Node, Pod, probe};

use common::{PATIENCE, condition, lab, load, wait_for_condition};

/// As Multus asks for it: the same container and namespace, another name.
fn second(pod: &Pod) -> Attachment {
    Attachment { ifname: "net1".into(), ..pod.attachment().clone() }
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// Which link and which source a packet from the pod takes, unbound or bound to a link.
fn way(pod: &Pod, to: IpAddr, bound: Option<&str>) -> (String, String) {
    let to = to.to_string();
    let mut command = vec!["ip", "route", "get", &to];
    command.extend(bound.iter().flat_map(|link| ["oif", link]));
    let said = pod.netns().output(&command).unwrap();
    let after = |word: &str| said.split_once(&format!(" {word} ")).unwrap().1.split(' ').next().unwrap().to_owned();
    (after("dev"), after("src"))
}

/// HTTP from that link of the pod.
fn asks(pod: &Pod, link: &str, to: IpAddr) -> Result<String> {
    let url = format!("http://{}/", std::net::SocketAddr::new(to, tartan_lab::HTTP_PORT));
    pod.netns().output(&["curl", "-sS", "--max-time", "5", "--interface", link, &url])
}

#[test]
fn a_second_interface_is_used_by_who_asks_for_it_and_eth0_by_all_others() {
    let lab = lab("second", "vxlan").unwrap();
    let (node, pod) = (lab.node("n1").unwrap(), lab.pod("a1").unwrap());
    let remote = lab.pod("b1").unwrap().endpoint();
    let remote: [IpAddr; 2] = [remote.v4.into(), remote.v6.into()];
    let at = second(pod);
    let result = pod.network().add(node, &at).unwrap();
    let given = addresses(&result);
    assert_eq!(given.len(), 2, "{result}");
    let routes = result["routes"].as_array().unwrap();
    assert!(routes.iter().all(|route| route["priority"].as_u64().unwrap() > 1024), "{result}");

    for (to, ours) in remote.into_iter().zip(&given) {
        let (link, source) = way(pod, to, None);
        assert_eq!(link, "eth0", "{to}");
        assert_ne!(source, ours.to_string());
        assert_eq!(way(pod, to, Some("net1")), ("net1".into(), ours.to_string()));
        asks(pod, "eth0", to).unwrap();
        let seen = asks(pod, "net1", to).unwrap();
        assert!(seen.contains(&ours.to_string()), "{seen}");
    }
    assert_eq!(node.status().unwrap()["conditions"], json!([]));
    pod.check(node).unwrap();
    pod.network().check(node, &at, &result).unwrap();

    // Either goes without the other.
    pod.network().del(node, &at, Some(&result)).unwrap();
    let gone = || pod.netns().output(&["ip", "link", "show", "net1"]).is_err();
    probe::wait_for(PATIENCE, "net1 to be gone", gone).unwrap();
    lab.wait_for_matrix(PATIENCE).unwrap();
    pod.check(node).unwrap();
    let again = pod.network().add(node, &at).unwrap();
    pod.network().del(node, pod.attachment(), Some(pod.result())).unwrap();
    let gone = || pod.netns().output(&["ip", "link", "show", "eth0"]).is_err();
    probe::wait_for(PATIENCE, "eth0 to be gone", gone).unwrap();
    for (to, ours) in remote.into_iter().zip(addresses(&again)) {
        assert_eq!(way(pod, to, None), ("net1".into(), ours.to_string()), "the only one is the way out");
        asks(pod, "net1", to).unwrap();
    }
    pod.network().del(node, &at, Some(&again)).unwrap();
}

/// Whoever asks; and by the link that the question came by.
fn answers_on_its_own_address(lab: &Lab, pod: &Pod, given: &[IpAddr]) {
    for address in given {
        for from in ["n1", "b1"] {
            let endpoint = lab.endpoint(from).unwrap();
            probe::ping(&endpoint, *address, 84, Duration::from_secs(2)).unwrap_or_else(|error| {
                let script = "ip rule; ip route show table all; ip -6 rule; ip -6 route show table all";
                panic!("{from} to {address}: {error:#}\n{}", pod.netns().output(&["sh", "-c", script]).unwrap())
            });
        }
    }
}

#[test]
fn a_second_interface_answers_on_its_own_address() {
    let lab = lab("second-answers", "vxlan").unwrap();
    let (node, pod) = (lab.node("n1").unwrap(), lab.pod("a1").unwrap());
    let at = second(pod);
    let result = pod.network().add(node, &at).unwrap();
    answers_on_its_own_address(&lab, pod, &addresses(&result));
    // What somebody takes away inside is noticed and put back by CHECK.
    for family in ["-4", "-6"] {
        let rules = pod.netns().output(&["ip", family, "rule"]).unwrap();
        let ours = rules.lines().find(|rule| rule.contains("proto 84")).unwrap_or_else(|| panic!("{rules}"));
        let priority = ours.split(':').next().unwrap();
        pod.netns().output(&["ip", family, "rule", "del", "priority", priority]).unwrap();
    }
    pod.network().check(node, &at, &result).unwrap();
    answers_on_its_own_address(&lab, pod, &addresses(&result));
    pod.network().del(node, &at, Some(&result)).unwrap();
    for family in ["-4", "-6"] {
        let none = || !pod.netns().output(&["ip", family, "rule"]).unwrap().contains("proto 84");
        probe::wait_for(PATIENCE, "no rule to be left", none).unwrap();
    }
    lab.wait_for_matrix(PATIENCE).unwrap();
}

/// Who chains the stock plugin for that after us, as was needed once, loses nothing.
#[test]
fn a_second_interface_with_source_based_routing_answers_on_its_own_address() {
    let lab = lab("sbr", "vxlan").unwrap();
    let (node, pod) = (lab.node("n1").unwrap(), lab.pod("a1").unwrap());
    let mut network = pod.network().clone();
    network.path.push("/usr/lib/cni".into());
    network.plugins.push(json!({"type": "sbr", "cniVersion": "1.0.0"}));
    network.plugins[0]["cniVersion"] = "1.0.0".into();
    let result = network.add(node, &second(pod)).unwrap();
    answers_on_its_own_address(&lab, pod, &addresses(&result));
    lab.wait_for_matrix(PATIENCE).unwrap();
    network.del(node, &second(pod), Some(&result)).unwrap();
    lab.wait_for_matrix(PATIENCE).unwrap();
}

/// Hides IPv6 of the node's own namespace from the agent, as `ipv6.disable=1` does: no such sysctl is there.
fn without_ipv6(node: &Node) {
    node.output(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).unwrap();
    node.output(&["mount", "-t", "tmpfs", "none", "/proc/sys/net/ipv6"]).unwrap();
}

#[test]
fn a_node_without_ipv6_has_ipv4_pods_and_no_failure() {
    let lab = Lab::builder("no-ipv6").nodes(2).fabric("vxlan").build().unwrap();
    lab.nodes().iter().for_each(without_ipv6);
    let binaries = Binaries::beside_this_program().unwrap();
    for node in lab.nodes() {
        node.set_program(&binaries.tartan);
        node.start_agent().unwrap();
    }
    for node in lab.nodes() {
        node.wait_ready().unwrap();
        let name = format!("{}pod-{}", lab.facts().prefix(), node.name());
        let netns = Netns::create(&name).unwrap();
        let at = Attachment {
            container: name,
            netns: netns.path(),
            ifname: "eth0".into(),
            args: String::new(),
            runtime_config: serde_json::Map::new(),
        };
        let network = Network::tartan(node, &binaries.cni).unwrap();
        let result = network.add(node, &at).unwrap();
        let given = addresses(&result);
        assert!(matches!(given.as_slice(), [IpAddr::V4(_)]), "{result}");
        network.check(node, &at, &result).unwrap();
        let other = lab.nodes().iter().find(|other| other.name() != node.name()).unwrap();
        let reached = || probe::ping(&other.endpoint(), given[0], 84, Duration::from_secs(1)).is_ok();
        probe::wait_for(PATIENCE, "the other node to reach the pod", reached).unwrap();
    }
    for node in lab.nodes() {
        let status = node.status().unwrap();
        assert_eq!(status["kernel"]["failures"], json!([]), "{status:#}");
        assert!(condition(node, "NoIpv6").is_some(), "{status:#}");
    }
}

/// An agent as a container has it that mounts nothing of the runtime's.
fn short_sighted(node: &Node) -> PathBuf {
    let program = Binaries::beside_this_program().unwrap().tartan;
    let file = node.log_file().with_file_name("short-sighted");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none {NETNS_DIR} && exec {} \"$@\"' sh \"$@\"\n",
        program.display()
    );
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn pods_that_the_agent_cannot_look_into_work_on() {
    let mut lab = lab("hidden", "vxlan").unwrap();
    let node = lab.node("n1").unwrap();
    let load = load(&lab, 500).unwrap();
    node.set_program(&short_sighted(node));
    node.restart_agent().unwrap();
    let said = wait_for_condition(node, "PodHidden").unwrap();
    assert_eq!(said["about"], "Pod/lab/a1", "{said:#}");
    load.wait_for_answers(500, PATIENCE).unwrap();
    load.stop().unwrap().check_nothing_lost().unwrap();
    assert_eq!(node.status().unwrap()["kernel"]["failures"], json!([]));

    // CHECK comes with the namespace, so it sees and mends what is wrong inside.
    let pod = lab.pod("a1").unwrap();
    pod.check(node).unwrap();
    pod.netns().output(&["ip", "route", "del", "default"]).unwrap();
    pod.check(node).unwrap();
    assert!(pod.netns().output(&["ip", "route", "show", "default"]).unwrap().contains("eth0"));
    // New pods come, old ones go.
    lab.add_pod("n1", "a2").unwrap();
    lab.wait_for_matrix(PATIENCE).unwrap();
    lab.remove_pod("a1").unwrap();
    let node = lab.node("n1").unwrap();
    probe::wait_for(PATIENCE, "nothing to be left of it", || condition(node, "PodHidden").is_none()).unwrap();
    lab.pod("a2").unwrap().check(node).unwrap();
}
