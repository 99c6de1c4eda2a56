//! Packets that are encrypted by WireGuard: by the kernel where it can (`cargo xtask vm`), by an engine where it cannot. All but
//! an engine's end is the same for both.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{
    GENTLE_PROBES, PATIENCE, be_in_clear, capture, census, check_changes, ends, gentle_load, hex, lab, lab_over, set,
    sh, tartan, wait_until_holds, wait_until_sent_by, wait_until_steady, watch_and_be_strict,
};
use serde_json::json;
use tartan_lab::probe::{Talk, Transport, ping, wait_for};
use tartan_lab::{Family, Lab, Node};

/// From the last answer before an engine was killed to the first one after. Handshakes that got no answer are tried again after
/// five seconds only (REKEY_TIMEOUT, section 6.1 of the WireGuard paper).
const AT_ONCE: Duration = Duration::from_secs(1);

/// Processes of the node's engine; none where the kernel encrypts.
fn engines(node: &Node) -> BTreeSet<i32> {
    node.processes("tartan-engine").unwrap_or_default().into_iter().collect()
}

/// The kernel if it can, and otherwise one engine.
fn check_who_encrypts(node: &Node) -> Result<()> {
    let kernel_can = sh(node, "ip link add try type wireguard && ip link del try").is_ok();
    let (engines, wanted) = (engines(node).len(), usize::from(!kernel_can));
    ensure!(engines == wanted, "{engines} engines, and the kernel can: {kernel_can}\n{}", node.troubleshooting());
    Ok(())
}

/// Two nodes with a pod each that talk by WireGuard over a family of underlay.
fn check_both_families(name: &str, underlay: &str, mtu: u32) -> Result<()> {
    let lab =
        Lab::builder(name).nodes(2).pods_per_node(1).fabric("wireguard").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    let node = lab.node("n1")?;
    check_who_encrypts(node)?;
    let said = node.status()?;
    ensure!(said["podMtu"] == mtu && said["conditions"] == json!([]), "pods' packets may hold {mtu} bytes: {said}");
    check_wg_shows_the_peer(node)?;
    let before = census(node)?;
    let shown =
        "wg show all allowed-ips; wg show all public-key; wg show all listen-port; wg show all persistent-keepalive";
    let peers = sh(node, shown)?;
    for damage in [
        "for l in $(ip -o link show group default | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        "ip route flush table main proto 84; ip -6 route flush table main proto 84",
    ] {
        sh(node, damage).with_context(|| damage)?;
        wait_until_holds(node, &before).with_context(|| damage)?;
        wait_for(PATIENCE, "the peers to be back", || sh(node, shown).is_ok_and(|now| now == peers))
            .with_context(|| node.troubleshooting())?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// The program that everybody knows finds our device, its peer, and that both have shaken hands; no key of ours is in what
/// the agent writes.
fn check_wg_shows_the_peer(node: &Node) -> Result<()> {
    let handshakes = sh(node, "wg show all latest-handshakes")?;
    let met = |line: &str| line.split_whitespace().last().is_some_and(|at| at != "0");
    ensure!(handshakes.lines().count() == 1 && handshakes.lines().all(met), "{handshakes}");
    let private = sh(node, "wg show all private-key | cut -f2")?;
    let private = private.trim();
    ensure!(private.len() == 44, "a key is 44 letters long, and not {}", private.len());
    let told = std::fs::read_to_string(node.log_file())? + &node.status()?.to_string();
    ensure!(!told.contains(private), "the private key of {} is told to others", node.name());
    let keys = node.state_dir().join("keys");
    let modes = sh(node, &format!("stat -c %a {0} {0}/*", keys.display()))?;
    ensure!(modes == "700\n600\n", "keys are for root alone: {modes}");
    Ok(())
}

#[test]
fn carries_both_families_over_ipv4() -> Result<()> {
    check_both_families("wg4", "ipv4", 1440)
}

#[test]
fn carries_both_families_over_ipv6() -> Result<()> {
    check_both_families("wg6", "ipv6", 1420)
}

#[test]
fn changes_into_it_and_out_of_it_are_not_noticed() -> Result<()> {
    check_changes(lab("wgthere", "vxlan")?, &["wireguard", "host-gw", "wireguard", "vxlan"], Duration::ZERO)
}

#[test]
fn encryption_and_new_keys_are_not_noticed() -> Result<()> {
    let mut lab = lab("wgkeys", "vxlan")?;
    lab.wait_for_matrix(PATIENCE)?;
    let load = gentle_load(&lab)?;
    set(&mut lab, "encryption", json!("wireguard"))?;
    wait_until_sent_by(&lab, "wireguard/ipv4/port51820/key0")?;
    let mut keys = BTreeSet::from([public_key(lab.node("n1")?)?]);
    for (rotation, instance) in [(1, "wireguard/ipv4/port51822/key1"), (2, "wireguard/ipv4/port51820/key2")] {
        let said = tartan(lab.node("n2")?, &["rotate"])?;
        ensure!(said.status.success(), "tartan rotate: {}", String::from_utf8_lossy(&said.stderr));
        wait_until_sent_by(&lab, instance)?;
        wait_for(PATIENCE, "the old key to be gone", || {
            let files =
                lab.node("n1").and_then(|node| sh(node, &format!("ls {}", node.state_dir().join("keys").display())));
            files.is_ok_and(|files| files == format!("wireguard-{rotation}.key\n"))
        })
        .with_context(|| lab.troubleshooting())?;
        ensure!(keys.insert(public_key(lab.node("n1")?)?), "the key is not new: {keys:?}");
    }
    set(&mut lab, "encryption", json!("none"))?;
    wait_until_sent_by(&lab, "vxlan")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

/// Of the node's one WireGuard device.
fn public_key(node: &Node) -> Result<String> {
    let keys = sh(node, "wg show all public-key | cut -f2")?;
    ensure!(keys.lines().count() == 1, "{} has the keys {keys}", node.name());
    Ok(keys)
}

#[test]
fn new_keys_by_the_clock_are_not_noticed() -> Result<()> {
    let mut lab = lab("wgclock", "wireguard")?;
    wait_until_steady(&lab, "wireguard")?;
    let load = gentle_load(&lab)?;
    let mut keys = BTreeSet::from([public_key(lab.node("n1")?)?]);
    set(&mut lab, "wireguard", json!({"rotateAfterSeconds": 15}))?;
    // The clock's count is a number far away, of whichever port; after that it goes up by one.
    for wanted in 2..=4 {
        let another = || {
            keys.extend(lab.node("n1").and_then(public_key));
            keys.len() >= wanted
        };
        wait_for(PATIENCE, "another key", another).with_context(|| lab.troubleshooting())?;
    }
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

#[test]
fn a_cluster_secret_given_changed_and_taken_away_is_not_noticed() -> Result<()> {
    let lab = lab("wgsecret", "wireguard")?;
    wait_until_steady(&lab, "wireguard")?;
    let load = gentle_load(&lab)?;
    let [first, second] = ["f", "s"].map(|letter| letter.repeat(40));
    let mut seen = BTreeSet::new();
    for secret in [Some(first.as_str()), Some(&second), None] {
        for node in lab.nodes() {
            node.give_secret(secret)?;
        }
        let is_so = |node: &Node| -> Result<bool> {
            let status = node.status()?;
            let by = status["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["fabric"].as_str());
            let mixed_in = sh(node, "wg show all preshared-keys | cut -f3")?;
            let mixed_in: BTreeSet<&str> = mixed_in.lines().collect();
            let as_wanted = by.clone().all(|by| by.contains("/key0") && by.contains("/psk") == secret.is_some());
            let one_more = mixed_in.len() == 1 && mixed_in.iter().all(|it| !seen.contains(*it));
            let has_it = mixed_in.contains("(none)") == secret.is_none();
            Ok(status["phase"] == "steady" && by.count() == 2 && as_wanted && one_more && has_it)
        };
        let all = || lab.nodes().iter().all(|node| is_so(node).unwrap_or(false));
        wait_for(PATIENCE, &format!("all to go by {secret:?}"), all).with_context(|| lab.troubleshooting())?;
        seen.insert(sh(lab.node("n1")?, "wg show all preshared-keys | cut -f3 | sort -u")?.trim().to_owned());
    }
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    for node in lab.nodes() {
        let told = std::fs::read_to_string(node.log_file())? + &node.status()?.to_string();
        let shown = [&first, &second].into_iter().chain(&seen).find(|secret| told.contains(*secret));
        ensure!(shown.is_none_or(|shown| shown == "(none)"), "{} tells of the secret", node.name());
    }
    Ok(())
}

#[test]
fn strict_lets_nothing_out_in_clear() -> Result<()> {
    check_strict("wgstrict", "ipv4", [51820, 51822])
}

#[test]
fn strict_lets_nothing_out_in_clear_over_ipv6() -> Result<()> {
    check_strict("wgstrict6", "ipv6", [51821, 51823])
}

/// `ports`: of the first key and of the next.
fn check_strict(name: &str, underlay: &str, ports: [u16; 2]) -> Result<()> {
    let [first, next] = ports;
    let mut lab = lab_over(name, "vxlan", underlay)?;
    let load = gentle_load(&lab)?;
    watch_and_be_strict(&mut lab, "wireguard", &format!("wireguard/{underlay}/port{first}/key0"))?;

    let before = lab.seen()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let [n1, b1] = ["n1", "b1"].map(|name| lab.node(name).map(Node::endpoint).or_else(|_| lab.endpoint(name)));
    let from_node = (n1?, b1?);
    for family in Family::BOTH {
        Talk::open(&from_node, family, Transport::Tcp, PATIENCE).context("from a node to a pod")?;
    }
    set(&mut lab, "wireguard", json!({"rotation": 1}))?;
    wait_until_sent_by(&lab, &format!("wireguard/{underlay}/port{next}/key1"))?;
    // Somebody's own way to an address of the other node's pods, and an address that nobody routes.
    let node = lab.node("n1")?;
    let peer = lab.node("n2")?.endpoint();
    let hosts = [
        ("10.244.2.250", "10.244.2.250", peer.v4.to_string()),
        ("fd00:10:244:2::fa", "[fd00:10:244:2::fa]", peer.v6.to_string()),
    ];
    for (dst, host, via) in hosts {
        sh(node, &format!("ip route add {dst} via {via} dev eth0 && ! curl --silent --max-time 2 http://{host}/"))?;
    }
    let after = lab.seen()?;
    ensure!(after.clear == before.clear, "{before:?} {after:?}\n{}", lab.troubleshooting());
    ensure!(after.encrypted > before.encrypted + GENTLE_PROBES / 10, "nothing was seen that was encrypted");

    be_in_clear(&mut lab)?;
    wait_until_sent_by(&lab, "vxlan")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

/// What is in a pod's packet.
const CLEAR: &[u8] = b"what nobody else is to read";

#[test]
fn the_wire_shows_data_messages_and_nothing_of_what_is_in_them() -> Result<()> {
    let lab = Lab::builder("wgwire").nodes(2).pods_per_node(1).fabric("wireguard").up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    let says = a.netns.run(|| UdpSocket::bind((a.v4, 0)))??;
    let fields = ["ip.src", "ip.dst", "wg.type", "wg.reserved", "wg.receiver", "wg.encrypted_packet", "udp.payload"];
    let rows = capture(&lab, "udp portrange 51820-51823", &["-d", "udp.port==51820,wg"], &fields, || {
        // Nobody hears it there.
        let _refused = says.send_to(CLEAR, (b.v4, 9));
        drop(ping(&a, b.v4.into(), 84, PATIENCE));
    })?;
    let (ends, in_clear) = (ends(&lab)?, hex(CLEAR));
    for row in &rows {
        let [src, dst, kind, reserved, receiver, encrypted, all] = &row[..] else { panic!("{row:?}") };
        ensure!(BTreeSet::from([src.clone(), dst.clone()]) == ends, "{row:?}");
        // Handshakes are made anew every two minutes.
        let is_data = kind == "4" && !receiver.is_empty() && !encrypted.is_empty();
        ensure!(is_data || ["1", "2"].contains(&kind.as_str()), "section 5.4: {row:?}");
        ensure!(reserved.chars().all(|digit| "0x:".contains(digit)), "{row:?}");
        ensure!(!all.replace(':', "").contains(&in_clear), "{row:?}");
    }
    ensure!(rows.iter().any(|row| row[2] == "4"), "no data went by: {rows:?}");
    Ok(())
}

#[test]
fn the_end_of_an_agent_is_not_noticed_and_that_of_an_engine_not_for_long() -> Result<()> {
    let lab = lab("wgkill", "wireguard")?;
    wait_until_steady(&lab, "wireguard")?;
    let node = lab.node("n1")?;
    let load = gentle_load(&lab)?;
    let before = engines(node);
    node.kill_agent()?;
    load.wait_for_answers(GENTLE_PROBES / 10, PATIENCE)?;
    node.start_agent()?;
    node.wait_ready()?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    let applied = node.status()?["kernel"]["applied"].clone();
    ensure!(applied == 0 && engines(node) == before, "the new agent changed {applied} things");
    // While nobody is there who could tell it anything.
    node.kill_agent()?;
    let load = gentle_load(&lab)?;
    for engine in &before {
        sh(node, &format!("kill -9 {engine}"))?;
    }
    let again = || engines(node).len() == before.len() && engines(node).is_disjoint(&before);
    wait_for(PATIENCE, "another engine", again).with_context(|| node.troubleshooting())?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    let report = load.stop()?;
    eprintln!("after the end of n1's engines:\n{report}");
    let is_short = before.is_empty() || report.udp.longest_gap < AT_ONCE;
    ensure!(is_short && report.tcp.resets == 0, "{report}\n{}", lab.troubleshooting());
    node.start_agent()?;
    node.wait_ready()?;
    wait_until_steady(&lab, "wireguard")?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// One node after the other, and then all at once.
#[test]
fn an_upgrade_of_the_engine_is_not_noticed() -> Result<()> {
    let lab = lab("wgupgrade", "wireguard")?;
    wait_until_steady(&lab, "wireguard")?;
    let load = gentle_load(&lab)?;
    let upgrade = |node: &Node, to: &Path| {
        node.set_program(to);
        node.restart_agent().map(drop)
    };
    let runs = |node: &Node, program: &Path| {
        let runs = |engine: &i32| fs::read_link(format!("/proc/{engine}/exe")).is_ok_and(|runs| runs == program);
        let engines = engines(node);
        // None where the kernel encrypts.
        engines.len() < 2 && engines.iter().all(runs)
    };
    let newer = lab.another_program("tartan-newer")?;
    for node in lab.nodes() {
        upgrade(node, &newer)?;
        wait_for(PATIENCE, "the newer engine", || runs(node, &newer)).with_context(|| node.troubleshooting())?;
    }
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    let newest = lab.another_program("tartan-newest")?;
    lab.nodes().iter().try_for_each(|node| upgrade(node, &newest))?;
    let all_run = || lab.nodes().iter().all(|node| runs(node, &newest));
    wait_for(PATIENCE, "the newest engines", all_run).with_context(|| lab.troubleshooting())?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

#[test]
fn nothing_leaves_in_clear_while_nobody_encrypts() -> Result<()> {
    let builder = Lab::builder("wgnobody").nodes(2).pods_per_node(1).fabric("wireguard");
    let lab = builder.config("strictEncryption", json!(true)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    lab.watch()?;
    let node = lab.node("n1")?;
    node.kill_agent()?;
    for process in node.processes("tartan-holder")?.into_iter().chain(engines(node)) {
        sh(node, &format!("kill -9 {process}"))?;
    }
    wait_for(PATIENCE, "the end of the engine", || engines(node).is_empty())?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    for family in Family::BOTH {
        drop(ping(&a, b.address(family), 84, Duration::from_millis(500)));
    }
    ensure!(lab.seen()?.clear == 0, "{}", lab.troubleshooting());
    node.start_agent()?;
    node.wait_ready()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let seen = lab.seen()?;
    ensure!(seen.clear == 0 && seen.encrypted > 0, "{seen:?}\n{}", lab.troubleshooting());
    Ok(())
}

/// On the machine itself.
fn on_the_machine(line: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", line]).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Agents that are started while the kernel cannot have engines; one that is started when it can has the kernel take over.
#[test]
#[ignore = "takes the kernel module wireguard out and in: `cargo xtask vm`"]
fn vm_an_engine_and_a_kernels_device_are_peers() -> Result<()> {
    on_the_machine("modprobe -r wireguard && sysctl -qw kernel.modprobe=/bin/false")?;
    let lab = Lab::builder("wgpeers").nodes(2).pods_per_node(1).fabric("wireguard").up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    let [n1, n2] = [lab.node("n1")?, lab.node("n2")?];
    ensure!(engines(n1).len() == 1 && engines(n2).len() == 1, "the kernel cannot, and nobody else does");
    on_the_machine("modprobe wireguard && sysctl -qw kernel.modprobe=/sbin/modprobe")?;
    n2.restart_agent()?;
    wait_for(PATIENCE, "the end of the engine", || engines(n2).is_empty()).with_context(|| n2.troubleshooting())?;
    let is_the_kernels = |node: &Node| sh(node, "ip -o link show type wireguard").is_ok_and(|it| it.contains("ttxs"));
    wait_for(PATIENCE, "the kernel to encrypt", || is_the_kernels(n2)).with_context(|| n2.troubleshooting())?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "wireguard")?;
    ensure!(engines(n1).len() == 1 && !is_the_kernels(n1), "n1 has changed, too");
    [n1, n2].into_iter().try_for_each(check_wg_shows_the_peer)
}
