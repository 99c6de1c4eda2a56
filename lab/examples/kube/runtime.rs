//! A node's container runtime that is killed, and what the plugin is asked then. containerd asks for STATUS, ADD and DEL only; so what
//! others ask besides, GC when they start and CHECK, is asked here in its place, out of what its own library has noted of each
//! attachment. And an ADD is asked by the library of the runtimes before this one.
//!
//! Invariant: what is asked is what such a runtime would ask: of the pods that containerd knows, with the results it was given.

use anyhow::{Context, Result, ensure};
use serde_json::{Deserializer, Value, json};
use tartan_lab::probe::{Running, wait_for};

use crate::cluster::Cluster;
use crate::life;
use crate::machine::Machine;
use crate::nodes::{CONTAINERD, metric};
use crate::pods::{self, PATIENCE};
use crate::tests::{TALKING, with_a_pod_a_node};

const PLUGINS: &str = "/opt/cni/bin";
const NETWORKS: &str = "/etc/cni/net.d";
/// Of libcni, which containerd is built with: a file for each attachment.
const NOTED: &str = "/var/lib/cni/results";
/// How its older version, which containerd 1.6 and 1.7 are built with, calls containers when it is a program by itself.
const BY_ITSELF: &str = "cnitool-";

#[test]
fn a_runtime_that_starts_again_finds_its_pods_and_clears_up() {
    let cluster = with_a_pod_a_node("kube-runtime");
    let machine = cluster.machine("n2").unwrap();
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    let pods_there = || metric(&cluster, "n2", "tartan_pods").unwrap().unwrap();
    let before = pods_there();
    leak(&cluster, machine).unwrap();
    assert_eq!(pods_there(), before + 1);

    let event = |_: &Running| {
        let asked = asked_for_status(&cluster)?;
        life::kill_process(&cluster, "n2", CONTAINERD)?;
        let again = || asked_for_status(&cluster).is_ok_and(|now| now > asked);
        wait_for(PATIENCE, "the runtime that starts again to ask whether there is a network", again)?;
        collected(machine)?;
        ensure!(pods_there() == before, "what no runtime knows is still there");
        checked(machine)
    };
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();
    pods::run(&cluster, vec![pods::pod("late-n2", "n2")]).unwrap();
    let late = &pods::endpoints(&cluster, &["late-n2"]).unwrap()[0];
    assert!(talking.iter().all(|pod| pods::answers(pod, late)));
}

fn asked_for_status(cluster: &Cluster) -> Result<u64> {
    let name = r#"tartan_cni_seconds_count{verb="STATUS",outcome="done"}"#;
    Ok(metric(cluster, "n2", name)?.unwrap_or_default())
}

/// An attachment that no runtime will take back, as one leaves it that is killed before it has noted what it was given.
fn leak(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let cnitool = cluster.programs().find("cnitool")?;
    let ask = |verb| {
        let ask =
            format!("NETCONFPATH={NETWORKS} CNI_PATH={PLUGINS} {} {verb} tartan /run/netns/leaked", cnitool.display());
        machine.run(&["sh", "-c", &ask])
    };
    machine.run(&["ip", "netns", "add", "leaked"])?;
    ask("add")?;
    ask("check").map(drop)
}

/// All attachments but those that the runtime knows.
fn collected(machine: &Machine) -> Result<()> {
    let [known, leaked] = noted(machine)?;
    ensure!(!known.is_empty() && leaked.len() == 1, "noted in {NOTED}: {known:#?}, {leaked:#?}");
    let valid = known.iter().map(|it| json!({"containerID": it["containerId"], "ifname": it["ifName"]}));
    let mut netconf = netconf(machine)?;
    netconf["cni.dev/valid-attachments"] = valid.collect::<Vec<Value>>().into();
    ask(machine, &[("COMMAND", "GC")], &netconf)
}

/// What containerd was given is there; and what is not there is said to be missing.
fn checked(machine: &Machine) -> Result<()> {
    let [known, leaked] = noted(machine)?;
    for (attachment, is_there) in known.iter().map(|it| (it, true)).chain(leaked.iter().map(|it| (it, false))) {
        let text = |key: &str| attachment[key].as_str().with_context(|| format!("{NOTED}: no {key}: {attachment:#}"));
        let mut netconf = netconf(machine)?;
        netconf["prevResult"] = attachment["result"].clone();
        let netns = if is_there { text("netns")? } else { "/run/netns/leaked" };
        let env = [
            ("COMMAND", "CHECK"),
            ("CONTAINERID", text("containerId")?),
            ("IFNAME", text("ifName")?),
            ("NETNS", netns),
        ];
        let said = ask(machine, &env, &netconf);
        ensure!(said.is_ok() == is_there, "CHECK of {attachment:#}: {said:?}");
    }
    Ok(())
}

/// Of our network, with the plugin's results: what containerd has noted, and the other program.
fn noted(machine: &Machine) -> Result<[Vec<Value>; 2]> {
    let text = machine.run(&["sh", "-c", &format!("cat {NOTED}/tartan-*")])?;
    let all = Deserializer::from_str(&text).into_iter().collect::<Result<Vec<Value>, _>>()?;
    let (others, own) =
        all.into_iter().partition(|it| it["containerId"].as_str().is_some_and(|id| id.starts_with(BY_ITSELF)));
    Ok([own, others])
}

/// What the library makes of a list of one plugin.
fn netconf(machine: &Machine) -> Result<Value> {
    let list: Value = serde_json::from_str(&machine.run(&["cat", &format!("{NETWORKS}/05-tartan.conflist")])?)?;
    let mut netconf = list["plugins"][0].clone();
    netconf["name"] = list["name"].clone();
    let versions = list["cniVersions"].as_array().and_then(|versions| versions.last());
    netconf["cniVersion"] = versions.context("cniVersions")?.clone();
    Ok(netconf)
}

/// Has the plugin do as a runtime would. What it says is for whom an error surprises.
fn ask(machine: &Machine, env: &[(&str, &str)], netconf: &Value) -> Result<()> {
    let env: Vec<String> = env.iter().map(|(name, value)| format!("CNI_{name}={value}")).collect();
    let script = format!("printf %s \"$0\" | env CNI_PATH={PLUGINS} {} {PLUGINS}/tartan-cni >&2", env.join(" "));
    machine.run(&["sh", "-c", &script, &netconf.to_string()]).map(drop)
}
