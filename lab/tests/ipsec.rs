//! Packets that are encrypted by IPsec, under kernels that have ESP: `cargo xtask vm`.

mod common;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{
    PATIENCE, be_in_clear, capture, condition, ends, hex, lab, lab_over, set, sh, tartan, wait_for_condition,
    wait_until_sent_by, wait_until_steady, watch_and_be_strict,
};
use serde_json::json;
use tartan_lab::probe::{Load, Running, around, ping, wait_for};
use tartan_lab::{Family, Lab, Node};

const SECRET: &str = "a secret of the cluster that is long enough";

/// Of ESP in UDP.
const PORT: u16 = 4500;

/// Answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;

/// What an emulated processor bears that encrypts by AES: without instructions for it, that is its most expensive part.
fn small_load(lab: &Lab) -> Result<Running> {
    let pairs = around(&lab.pod_endpoints());
    let load = Load::new().interval(Duration::from_millis(40)).udp(pairs.clone()).tcp_idle(pairs).start()?;
    load.wait_for_answers(PROBES, PATIENCE)?;
    Ok(load)
}

/// Every node has the secret.
fn give_all(lab: &Lab) -> Result<()> {
    lab.nodes().iter().try_for_each(|node| node.give_secret(Some(SECRET)))
}

/// Nodes of that lab go over to IPsec, each with the secret.
fn with_ipsec(mut lab: Lab) -> Result<Lab> {
    give_all(&lab)?;
    set(&mut lab, "fabric", json!("ipsec"))?;
    wait_until_steady(&lab, "ipsec")?;
    // And nothing is left of what was before.
    let alone = |node: &Node| sh(node, "ip -o link show type vxlan").is_ok_and(|left| left.is_empty());
    wait_for(PATIENCE, "vxlan to be gone", || lab.nodes().iter().all(alone)).with_context(|| lab.troubleshooting())?;
    Ok(lab)
}

/// The instance by which a node sends to all its peers.
fn sends_by(node: &Node) -> Result<String> {
    let by = node.sends_by()?;
    ensure!(by.len() == 1, "{} sends by {by:?}", node.name());
    by.first().cloned().context("it sends")
}

/// The keys of a node's associations.
fn keys(node: &Node) -> Result<BTreeSet<String>> {
    let keys = sh(node, "ip xfrm state | grep -o '0x[0-9a-f]\\{72\\}'")?;
    Ok(keys.lines().map(str::to_owned).collect())
}

/// Nothing of ESP comes in at any node but in UDP.
const NO_ESP: &str = "nft 'table netdev noesp {
    chain came { type filter hook ingress device eth0 priority 0; ip protocol 50 counter drop; ip6 nexthdr 50 counter drop; }
}'";

/// Two nodes with a pod each that talk by IPsec over a family of underlay; in UDP at that port.
fn check_both_families(name: &str, underlay: &str, port: Option<u16>, mtu: u32) -> Result<()> {
    let builder = Lab::builder(name).nodes(2).pods_per_node(1).config("underlay", json!(underlay));
    let lab = builder.config("ipsec", json!({"udpPort": port})).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    if port.is_some() {
        lab.nodes().iter().try_for_each(|node| sh(node, NO_ESP).map(drop))?;
    }
    let lab = with_ipsec(lab)?;
    let node = lab.node("n1")?;
    let said = node.status()?;
    ensure!(said["podMtu"] == mtu && said["conditions"] == json!([]), "pods' packets may hold {mtu} bytes: {said}");
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let [a, b] = [lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint()];
    for family in Family::BOTH {
        for bytes in [84, mtu - 1, mtu] {
            ping(&a, b.address(family), bytes as usize, PATIENCE)
                .with_context(|| format!("{family}: {bytes} bytes of {mtu}"))?;
        }
    }
    // Nobody is told of a key.
    let told = std::fs::read_to_string(node.log_file())? + &node.status()?.to_string();
    let shown = keys(node)?.into_iter().find(|key| told.contains(&key[2..]));
    ensure!(shown.is_none() && !told.contains(SECRET), "{} tells of a key", node.name());
    let modes = sh(node, &format!("stat -c %a {0} {0}/*", node.state_dir().join("keys").display()))?;
    ensure!(modes == "700\n600\n600\n", "keys are for root alone: {modes}");
    // What is taken away comes back.
    for damage in [
        "for l in $(ip -o link show group default | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        "ip route flush table main proto 84; ip -6 route flush table main proto 84",
        "ip xfrm policy flush",
    ] {
        sh(node, damage).with_context(|| damage)?;
        let mended = || ping(&a, b.v4.into(), 84, Duration::from_millis(500)).is_ok();
        wait_for(PATIENCE, "packets again", mended).with_context(|| format!("{damage}\n{}", node.troubleshooting()))?;
    }
    lab.wait_for_matrix(PATIENCE)?.check()
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_carries_both_families_over_ipv4() -> Result<()> {
    check_both_families("esp4", "ipv4", None, 1443)
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp6: `cargo xtask vm`"]
fn vm_carries_both_families_over_ipv6() -> Result<()> {
    check_both_families("esp6", "ipv6", None, 1423)
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_in_udp_carries_both_families_over_ipv4() -> Result<()> {
    check_both_families("espudp4", "ipv4", Some(PORT), 1435)
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp6: `cargo xtask vm`"]
fn vm_in_udp_carries_both_families_over_ipv6() -> Result<()> {
    check_both_families("espudp6", "ipv6", Some(PORT), 1415)
}

/// Nobody has to take packets out of UDP but the kernel: somebody has to keep the socket.
#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_changes_into_udp_and_the_end_of_who_keeps_its_socket_are_not_noticed() -> Result<()> {
    let mut lab = with_ipsec(lab("espudp", "vxlan")?)?;
    let load = small_load(&lab)?;
    set(&mut lab, "ipsec", json!({"udpPort": PORT}))?;
    wait_until_sent_by(&lab, "ipsec/ipv4/port4500/key")?;
    let node = lab.node("n1")?;
    let before = node.processes("tartan-engine")?;
    ensure!(before.len() == 1, "{} has {} engines", node.name(), before.len());
    // While nobody is there who could tell another one anything.
    node.kill_agent()?;
    sh(node, &format!("kill -9 {}", before[0]))?;
    let again = || node.processes("tartan-engine").is_ok_and(|now| now.len() == 1 && now != before);
    wait_for(PATIENCE, "another engine", again)?;
    load.wait_for_answers(PROBES / 10, PATIENCE)?;
    node.start_agent()?;
    node.wait_ready()?;
    let first = sends_by(lab.node("n2")?)?;
    set(&mut lab, "ipsec", json!({"udpPort": PORT, "rotation": 1}))?;
    wait_for(PATIENCE, "new keys", || lab.node("n2").and_then(sends_by).is_ok_and(|by| by != first))
        .with_context(|| lab.troubleshooting())?;
    wait_until_sent_by(&lab, "ipsec/ipv4/port4500/key")?;
    set(&mut lab, "ipsec", json!({}))?;
    wait_until_sent_by(&lab, "ipsec/ipv4/key")?;
    let gone = |node: &Node| node.processes("tartan-holder").is_ok_and(|all| all.is_empty());
    wait_for(PATIENCE, "the end of the socket", || lab.nodes().iter().all(gone))
        .with_context(|| lab.troubleshooting())?;
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_encryption_that_comes_changes_and_goes_is_not_noticed() -> Result<()> {
    let mut lab = lab("espchanges", "vxlan")?;
    give_all(&lab)?;
    let load = small_load(&lab)?;
    for (encryption, instance) in [
        ("ipsec", "ipsec/ipv4/key"),
        ("wireguard", "wireguard/ipv4/port51820"),
        ("ipsec", "ipsec/ipv4/key"),
        ("none", "vxlan"),
    ] {
        set(&mut lab, "encryption", json!(encryption))?;
        wait_until_sent_by(&lab, instance)?;
    }
    let gone = |node: &Node| sh(node, "ip xfrm state; ip xfrm policy").is_ok_and(|left| left.is_empty());
    wait_for(PATIENCE, "nothing of it to be left", || lab.nodes().iter().all(gone))
        .with_context(|| lab.troubleshooting())?;
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

/// Every ordered pair with ipsec in it: ipip is a fabric here, too.
const OF_IPSEC: [&str; 10] =
    ["ipsec", "host-gw", "ipsec", "udp", "ipsec", "wireguard", "ipsec", "ipip", "ipsec", "vxlan"];

/// From vxlan into each of these in turn, each node hearing of it so much later than the one before.
fn check_changes(name: &str, fabrics: &[&str], apart: Duration) -> Result<()> {
    let lab = lab(name, "vxlan")?;
    give_all(&lab)?;
    common::check_changes_under(lab, fabrics, apart, PROBES, small_load)
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_changes_into_it_and_out_of_it_are_not_noticed() -> Result<()> {
    check_changes("espthere", &OF_IPSEC, Duration::ZERO)
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_changes_into_it_and_out_of_it_are_not_noticed_where_nodes_hear_3_seconds_apart() -> Result<()> {
    check_changes("espthere3", &OF_IPSEC, Duration::from_secs(3))
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_changes_into_it_and_out_of_it_are_not_noticed_where_nodes_hear_10_seconds_apart() -> Result<()> {
    check_changes("espthere10", &OF_IPSEC, Duration::from_secs(10))
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_new_keys_are_not_noticed() -> Result<()> {
    let mut lab = with_ipsec(lab("espkeys", "vxlan")?)?;
    let load = small_load(&lab)?;
    let node = || lab.node("n1");
    let (mut seen, mut instances) = (keys(node()?)?, BTreeSet::from([sends_by(node()?)?]));
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        let begin = Instant::now();
        let said = tartan(lab.node("n2")?, &["rotate"])?;
        ensure!(said.status.success(), "tartan rotate: {}", String::from_utf8_lossy(&said.stderr));
        let mut another = || sends_by(node()?).map(|by| instances.insert(by));
        wait_for(PATIENCE, "another instance", || another().unwrap_or(false)).with_context(|| lab.troubleshooting())?;
        wait_until_steady(&lab, "ipsec")?;
        let now = keys(lab.node("n1")?)?;
        ensure!(now.is_disjoint(&seen), "a key is there again");
        seen.extend(now);
        slowest = slowest.max(begin.elapsed());
    }
    // A pair goes over to the newest keys alone: a clock that counts faster than this machine changes keys keeps it waiting.
    let every = slowest.as_secs().max(5) * 3;
    eprintln!("new keys by hand took {slowest:.1?}, by the clock they come every {every} s");
    set(&mut lab, "ipsec", json!({"rotateAfterSeconds": every}))?;
    for _ in 0..2 {
        let mut another = || {
            let now = lab.node("n1")?.sends_by()?;
            let is_new = !now.is_subset(&instances);
            instances.extend(now);
            anyhow::Ok(is_new)
        };
        let patience = Duration::from_secs(every) + PATIENCE;
        wait_for(patience, "another instance by the clock", || another().unwrap_or(false))
            .with_context(|| lab.troubleshooting())?;
    }
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_the_end_of_an_agent_is_not_noticed_and_that_of_associations_not_for_long() -> Result<()> {
    let lab = with_ipsec(lab("espkill", "vxlan")?)?;
    let node = lab.node("n1")?;
    let load = small_load(&lab)?;
    let before = keys(node)?;
    node.kill_agent()?;
    load.wait_for_answers(PROBES / 10, PATIENCE)?;
    node.start_agent()?;
    node.wait_ready()?;
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    let applied = node.status()?["kernel"]["applied"].clone();
    ensure!(applied == 0 && keys(node)? == before, "the new agent changed {applied} things");
    // As a reboot would, but for the device.
    for damage in ["ip xfrm state flush", "ip xfrm state flush; ip xfrm policy flush"] {
        let before = keys(node)?;
        sh(node, damage)?;
        let [a, b] = [lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint()];
        for (from, to) in [(&a, &b), (&b, &a)] {
            let answers = || ping(from, to.v4.into(), 84, Duration::from_millis(500)).is_ok();
            wait_for(PATIENCE, "packets again", answers)
                .with_context(|| format!("{damage}: {}", lab.troubleshooting()))?;
        }
        let now = keys(node)?;
        ensure!(now.is_disjoint(&before) && !now.is_empty(), "{damage}: a key was used again");
    }
    wait_until_steady(&lab, "ipsec")?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_strict_lets_nothing_out_in_clear() -> Result<()> {
    check_strict("espstrict", "ipv4")
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp6: `cargo xtask vm`"]
fn vm_strict_lets_nothing_out_in_clear_over_ipv6() -> Result<()> {
    check_strict("espstrict6", "ipv6")
}

fn check_strict(name: &str, underlay: &str) -> Result<()> {
    let mut lab = lab_over(name, "vxlan", underlay)?;
    give_all(&lab)?;
    let load = small_load(&lab)?;
    let by_ipsec = format!("ipsec/{underlay}/key");
    watch_and_be_strict(&mut lab, "ipsec", &by_ipsec)?;
    let before = lab.seen()?;
    let first = sends_by(lab.node("n1")?)?;
    set(&mut lab, "ipsec", json!({"rotation": 1}))?;
    wait_for(PATIENCE, "new keys", || lab.node("n1").and_then(sends_by).is_ok_and(|by| by != first))
        .with_context(|| lab.troubleshooting())?;
    wait_until_sent_by(&lab, &by_ipsec)?;
    set(&mut lab, "encryption", json!("wireguard"))?;
    wait_until_sent_by(&lab, "wireguard")?;
    set(&mut lab, "encryption", json!("ipsec"))?;
    wait_until_sent_by(&lab, "ipsec")?;
    let after = lab.seen()?;
    ensure!(after.clear == before.clear, "{before:?} {after:?}\n{}", lab.troubleshooting());
    ensure!(after.encrypted > before.encrypted + PROBES / 10, "nothing was seen that was encrypted");
    load.wait_for_answers(PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    // With its associations a node loses the way, and finds none in clear.
    let node = lab.node("n1")?;
    let before = lab.seen()?;
    sh(node, "ip xfrm state flush; ip xfrm policy flush")?;
    let [a, b] = [lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint()];
    let answers = || ping(&a, b.v4.into(), 84, Duration::from_millis(200)).is_ok();
    wait_for(PATIENCE, "packets again", answers).with_context(|| lab.troubleshooting())?;
    let after = lab.seen()?;
    ensure!(after.clear == before.clear, "{before:?} {after:?}\n{}", lab.troubleshooting());
    be_in_clear(&mut lab)?;
    wait_until_sent_by(&lab, "vxlan")
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_without_a_secret_there_is_no_ipsec_and_a_condition_says_so() -> Result<()> {
    let mut lab = lab("espsecret", "vxlan")?;
    lab.node("n1")?.give_secret(Some(SECRET))?;
    set(&mut lab, "encryption", json!("ipsec"))?;
    let said = wait_for_condition(lab.node("n2")?, "SecretMissing")?;
    ensure!(said["fix"].as_str().is_some_and(|fix| fix.contains("secret")), "{said}");
    wait_for_condition(lab.node("n1")?, "Unencrypted")?;
    wait_until_sent_by(&lab, "vxlan").or_else(|_| lab.wait_for_matrix(PATIENCE)?.check())?;
    give_all(&lab)?;
    wait_until_sent_by(&lab, "ipsec")?;
    ensure!(condition(lab.node("n2")?, "SecretMissing").is_none(), "it has one");
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// What is in a pod's packet.
const CLEAR: &[u8] = b"what nobody else is to read";

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_the_wire_shows_esp_and_nothing_of_what_is_in_it() -> Result<()> {
    check_wire("espwire", None, "ip proto 50")
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface and esp4: `cargo xtask vm`"]
fn vm_the_wire_shows_esp_in_udp_and_nothing_of_what_is_in_it() -> Result<()> {
    check_wire("espudpwire", Some(PORT), "udp src port 4500 and udp dst port 4500")
}

fn check_wire(name: &str, port: Option<u16>, filter: &str) -> Result<()> {
    let builder = Lab::builder(name).nodes(2).pods_per_node(1);
    let lab = builder.config("ipsec", json!({"udpPort": port})).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let lab = with_ipsec(lab)?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    let says = a.netns.run(|| UdpSocket::bind((a.v4, 0)))??;
    let fields = ["ip.src", "ip.dst", "ip.proto", "esp.spi", "esp.sequence", "data.data", "udp.payload"];
    let rows = capture(&lab, filter, &[], &fields, || {
        // Nobody hears it there.
        let _refused = says.send_to(CLEAR, (b.v4, 9));
        drop(ping(&a, b.v4.into(), 84, PATIENCE));
    })?;
    let (ends, in_clear) = (ends(&lab)?, hex(CLEAR));
    for row in &rows {
        let [src, dst, proto, spi, sequence, data, payload] = &row[..] else { panic!("{row:?}") };
        let (all, wanted) = (format!("{data}{payload}"), if port.is_some() { "17" } else { "50" });
        ensure!(BTreeSet::from([src.clone(), dst.clone()]) == ends && proto == wanted, "{row:?}");
        ensure!(!spi.is_empty() && !sequence.is_empty(), "RFC 4303 section 2: {row:?}");
        ensure!(!all.replace(':', "").contains(&in_clear), "{row:?}");
    }
    Ok(())
}
