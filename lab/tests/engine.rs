//! Packets that a program carries: the udp fabric, and the end of each program that has a part in it.

mod common;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{
    GENTLE_PROBES, PATIENCE, census, gentle_load, lab, set, sh, tartan, under_load, unnoticed, wait_until_holds,
    wait_until_sent_by, wait_until_steady,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tartan_lab::probe::wait_for;
use tartan_lab::{Binaries, Lab, Node};

/// Probes answered before an event begins and after it has ended.
const PROBES: u64 = 3_000;
/// Packets that an engine has read and not sent yet when it is killed; where the machine is busy it may have some.
const IN_HAND: u64 = 16;
/// Of the udp fabric.
const PORT: u16 = 8285;

/// The only one of that name.
fn process(node: &Node, name: &str) -> Result<i32> {
    let all = node.processes(name)?;
    ensure!(all.len() == 1, "{} has {} of {name}\n{}", node.name(), all.len(), node.troubleshooting());
    Ok(all[0])
}

fn wait_for_another_engine(node: &Node, before: i32) -> Result<()> {
    wait_for(PATIENCE, "another engine", || process(node, "tartan-engine").is_ok_and(|now| now != before)).map(drop)
}

fn check_matrix(name: &str, underlay: &str, mtu: u32) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).pods_per_node(1).fabric("udp").config("underlay", json!(underlay)).up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "udp")?;
    let said = lab.node("n1")?.status()?;
    ensure!(said["podMtu"] == mtu && said["conditions"] == json!([]), "pods' packets may hold {mtu} bytes: {said}");
    Ok(())
}

#[test]
fn every_pod_reaches_every_other_one_by_udp() -> Result<()> {
    check_matrix("udp4", "ipv4", 1472)
}

#[test]
fn every_pod_reaches_every_other_one_by_udp_over_ipv6() -> Result<()> {
    check_matrix("udp6", "ipv6", 1452)
}

#[test]
fn the_end_of_an_agent_or_an_engine_is_not_noticed() -> Result<()> {
    let mut lab = lab("udpkill", "udp")?;
    wait_until_steady(&lab, "udp")?;
    unnoticed(&mut lab, PROBES, |lab| {
        let node = lab.node("n1")?;
        let engine = process(node, "tartan-engine")?;
        node.kill_agent()?;
        node.start_agent()?;
        node.wait_ready()?;
        ensure!(process(node, "tartan-engine")? == engine, "the agent took its engine along");
        Ok(())
    })?;
    let applied = lab.node("n1")?.status()?["kernel"]["applied"].clone();
    ensure!(applied == 0, "the new agent changed {applied} things\n{}", lab.troubleshooting());
    let report = under_load(&mut lab, PROBES, |lab| {
        let node = lab.node("n2")?;
        // While nobody is there who could tell it anything.
        node.kill_agent()?;
        let engine = process(node, "tartan-engine")?;
        sh(node, &format!("kill -9 {engine}"))?;
        wait_for_another_engine(node, engine)?;
        node.start_agent()?;
        node.wait_ready().map(drop)
    })?;
    let is_cut = report.tcp.resets > 0 || !report.tcp.broken.is_empty();
    ensure!(report.udp.lost <= IN_HAND && !is_cut, "{report}\n{}", lab.troubleshooting());
    Ok(())
}

/// A control group of this machine, gone with this.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|mount| mount.split(' ').collect::<Vec<_>>());
        let unified = mounts.find(|mount| mount[2] == "cgroup2").context("no cgroup2 is mounted on this machine")?;
        let root = unified[1];
        let group = Path::new(root).join(format!("tartan-lab-{}", std::process::id()));
        fs::create_dir(&group)?;
        Ok(Group(group))
    }

    fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _in_use = fs::remove_dir(&self.0);
    }
}

/// Whoever ends a service ends all that is in its control group.
#[test]
fn the_end_of_an_agents_control_group_is_not_noticed() -> Result<()> {
    let mut lab = lab("udpgroup", "vxlan")?;
    let group = Group::new()?;
    let agent = lab.node("n1")?.agent_pid()?.to_string();
    fs::write(group.processes(), &agent)?;
    // A service sees them; a lab's agent has a /sys of its own.
    let mut shows = Command::new("nsenter");
    shows.args(["-t", &agent, "-m", "mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"]);
    ensure!(shows.status()?.success(), "the agent is not shown control groups");
    lab.set_fabric("udp")?;
    wait_until_steady(&lab, "udp")?;
    unnoticed(&mut lab, PROBES, |lab| {
        let node = lab.node("n1")?;
        let engine = process(node, "tartan-engine")?;
        let all = fs::read_to_string(group.processes())?;
        ensure!(all.lines().any(|pid| pid == agent), "the agent is not in it");
        for pid in all.lines() {
            kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
        }
        node.kill_agent()?;
        node.start_agent()?;
        node.wait_ready()?;
        ensure!(process(node, "tartan-engine")? == engine, "the agent's group took its engine along");
        Ok(())
    })
    .map(drop)
}

#[test]
fn an_upgrade_of_the_engine_is_not_noticed() -> Result<()> {
    let mut lab = lab("udpupgrade", "udp")?;
    wait_until_steady(&lab, "udp")?;
    let newer = lab.another_program("tartan-newer")?;
    unnoticed(&mut lab, PROBES, |lab| {
        for node in lab.nodes() {
            let engine = process(node, "tartan-engine")?;
            node.set_program(&newer);
            node.restart_agent()?;
            wait_for_another_engine(node, engine)?;
            let program = fs::read_link(format!("/proc/{}/exe", process(node, "tartan-engine")?))?;
            ensure!(program == newer, "{} runs", program.display());
        }
        Ok(())
    })
    .map(drop)
}

/// Answers to handshakes are lost on their way to that node.
const NO_ANSWERS: &str = "nft 'table netdev noanswers {
    chain came { type filter hook ingress device eth0 priority 0; udp dport 51820-51823 @th,64,8 2 counter drop; }
}'";

/// The next one would send if it had sessions: it is stopped before it has, and the keys change meanwhile.
#[test]
fn an_engine_that_hangs_before_it_takes_over_costs_nothing_and_what_came_meanwhile_is_done() -> Result<()> {
    let mut lab = lab("wghangs", "wireguard")?;
    wait_until_steady(&lab, "wireguard")?;
    let newer = lab.another_program("tartan-newer")?;
    let load = gentle_load(&lab)?;
    let node = lab.node("n1")?;
    let first = process(node, "tartan-engine")?;
    sh(node, NO_ANSWERS)?;
    node.set_program(&newer);
    node.restart_agent()?;
    let all = || node.processes("tartan-engine").unwrap_or_default();
    wait_for(PATIENCE, "the next engine", || all().len() == 2).with_context(|| node.troubleshooting())?;
    let next = all().into_iter().find(|one| *one != first).context("the next one")?;
    kill(Pid::from_raw(next), Signal::SIGSTOP)?;
    sh(node, "nft delete table netdev noanswers")?;
    set(&mut lab, "wireguard", json!({"rotation": 1}))?;
    let node = lab.node("n1")?;
    let all = || node.processes("tartan-engine").unwrap_or_default();
    wait_for(PATIENCE, "the first one to go on alone", || all() == [first]).with_context(|| node.troubleshooting())?;
    wait_until_sent_by(&lab, "wireguard/ipv4/port51822/key1")?;
    load.wait_for_answers(GENTLE_PROBES, PATIENCE).with_context(|| lab.troubleshooting())?;
    load.stop()?.check_nothing_lost().with_context(|| lab.troubleshooting())?;
    lab.wait_for_matrix(PATIENCE)?.check()
}

/// As the DaemonSet tartan-holder runs it.
fn hold(node: &Node, program: &Path) -> Result<Child> {
    let socket = node.socket().with_extension("engine.sock");
    // Whoever connects is given an engine, so that nobody does to see whether it listens.
    let _left_by_one_before = fs::remove_file(&socket);
    let mut command = Command::new(program);
    command.args(["hold", "--stay", "--socket"]).arg(&socket);
    let holder = node.run(|| command.spawn())?.context("starting a holder")?;
    wait_for(PATIENCE, "the holder to listen", || socket.exists())?;
    Ok(holder)
}

/// Agents are upgraded, the DaemonSet of holders is not: whenever a holder starts an engine, the agent's program goes on.
#[test]
fn the_engine_is_the_agents_program_whatever_the_holder_is() -> Result<()> {
    let mut lab = lab("udpolder", "vxlan")?;
    let older = lab.another_program("tartan-older")?;
    let program = fs::canonicalize(Binaries::beside_this_program()?.tartan)?;
    let mut holders: Vec<Child> = lab.nodes().iter().map(|node| hold(node, &older)).collect::<Result<_>>()?;
    lab.set_fabric("udp")?;
    let runs_ours = |node: &Node| {
        let runs = |engine| fs::read_link(format!("/proc/{engine}/exe")).is_ok_and(|runs| runs == program);
        wait_for(PATIENCE, "an engine of the agent's program", || process(node, "tartan-engine").is_ok_and(runs))
            .with_context(|| node.troubleshooting())
    };
    for (node, holder) in lab.nodes().iter().zip(&mut holders) {
        runs_ours(node)?;
        // The container's end is that of all in it.
        let engine = process(node, "tartan-engine")?;
        holder.kill()?;
        holder.wait()?;
        kill(Pid::from_raw(engine), Signal::SIGKILL)?;
        *holder = hold(node, &older)?;
        runs_ours(node)?;
    }
    wait_until_steady(&lab, "udp")?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    for mut holder in holders {
        kill(Pid::from_raw(i32::try_from(holder.id())?), Signal::SIGTERM)?;
        holder.wait()?;
    }
    Ok(())
}

/// On each node.
#[test]
fn a_holder_that_stays_is_used_and_outlives_what_it_holds() -> Result<()> {
    let mut lab = lab("udpstay", "vxlan")?;
    let program = Binaries::beside_this_program()?.tartan;
    let holders: Vec<Child> = lab.nodes().iter().map(|node| hold(node, &program)).collect::<Result<_>>()?;
    for fabric in ["udp", "vxlan", "udp", "vxlan"] {
        lab.set_fabric(fabric)?;
        wait_until_steady(&lab, fabric)?;
        for (node, holder) in lab.nodes().iter().zip(&holders) {
            ensure!(process(node, "tartan-holder")? == i32::try_from(holder.id())?, "{} has another", node.name());
            let engines = || node.processes("tartan-engine").map_or(0, |all| all.len());
            let wanted = usize::from(fabric == "udp");
            wait_for(PATIENCE, &format!("{wanted} engines with {fabric}"), || engines() == wanted)?;
        }
    }
    for (node, mut holder) in lab.nodes().iter().zip(holders) {
        kill(Pid::from_raw(i32::try_from(holder.id())?), Signal::SIGTERM)?;
        ensure!(holder.wait()?.success(), "the holder of {} does not end well", node.name());
        ensure!(!node.socket().with_extension("engine.sock").exists(), "its socket is still there");
    }
    Ok(())
}

#[test]
fn what_is_lost_by_hand_is_made_again() -> Result<()> {
    let lab = Lab::builder("udprepair").nodes(2).pods_per_node(1).fabric("udp").up()?;
    lab.wait_for_matrix(PATIENCE)?.check()?;
    wait_until_steady(&lab, "udp")?;
    let node = lab.node("n1")?;
    let before = census(node)?;
    let holder = process(node, "tartan-holder")?;
    let engine = process(node, "tartan-engine")?;
    for damage in [
        "for l in $(ip -o link show type tun | grep -o 'ttx[^@:]*'); do ip link del $l; done",
        &format!("kill -9 {holder} {engine}"),
    ] {
        sh(node, damage).with_context(|| damage.to_owned())?;
        wait_until_holds(node, &before).with_context(|| damage.to_owned())?;
        lab.wait_for_matrix(PATIENCE).with_context(|| damage.to_owned())?.check()?;
    }
    node.stop_agent()?;
    let boot = node.state_dir().with_file_name("boot.yaml");
    let output = tartan(node, &["uninstall", "--config", &boot.display().to_string()])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for(PATIENCE, "the end of the engine", || node.processes("tartan-engine").is_ok_and(|all| all.is_empty()))
        .map(drop)
}

/// A UDP packet to a port.
fn packet(src: Ipv4Addr, dst: Ipv4Addr, port: u16, payload: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(src.octets().into_iter().chain(dst.octets()));
    let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend([4, 0]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 9, 0, 0, payload]);
    packet
}

#[test]
fn nobody_speaks_for_another_nodes_pods() -> Result<()> {
    let lab = lab("udpspoof", "udp")?;
    wait_until_steady(&lab, "udp")?;
    let pod = |name: &str| lab.pod(name).map(|pod| pod.endpoint());
    let (a1, b1, c1) = (pod("a1")?, pod("b1")?, pod("c1")?);
    let hears = a1.netns.run(|| UdpSocket::bind((a1.v4, 0)))??;
    hears.set_read_timeout(Some(PATIENCE))?;
    let (port, n1) = (hears.local_addr()?.port(), lab.node("n1")?.endpoint().v4);
    let outside = lab.underlay().outside().netns;
    let send = |from: &tartan_lab::Netns, src: Ipv4Addr, payload: u8| -> Result<()> {
        let packet = packet(src, a1.v4, port, payload);
        from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&packet, (n1, PORT)))??;
        Ok(())
    };
    let heard = |wanted: u8| -> Result<()> {
        let mut payload = [0];
        let (_, from) = hears.recv_from(&mut payload)?;
        ensure!(payload == [wanted], "a packet of {from} that says {}, and not {wanted}", payload[0]);
        Ok(())
    };
    for socket in 0..20 {
        // n3 for a pod of n2, for one of n1, and for one of nobody; somebody who is no node; and a pod, to its own node.
        send(lab.node("n3")?.netns(), b1.v4, 100 + socket)?;
        send(lab.node("n3")?.netns(), a1.v4, 100 + socket)?;
        send(lab.node("n3")?.netns(), Ipv4Addr::new(192, 0, 2, 1), 100 + socket)?;
        send(&outside, c1.v4, 100 + socket)?;
        send(&a1.netns, c1.v4, 100 + socket)?;
    }
    // What is right gets through, however often it is tried, and only that.
    for socket in 0..20 {
        send(lab.node("n3")?.netns(), c1.v4, socket)?;
        heard(socket)?;
    }
    hears.set_read_timeout(Some(Duration::from_millis(1)))?;
    ensure!(hears.recv(&mut [0]).is_err(), "something came that nobody was to send");
    Ok(())
}
