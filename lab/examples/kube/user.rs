//! What a person types: the doctor before there is a network and after, the manifest of every distribution, how a node and the
//! cluster stand, and at the end all taken back.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tartan_lab::NFT_LISTING;
use tartan_lab::probe::wait_for;

use crate::Programs;
use crate::cluster::{Cluster, Wants};
use crate::machine::Machine;
use crate::pods::{self, PATIENCE};
use crate::tartan::{self, NAMESPACE};

const DISTRIBUTIONS: [&str; 6] = ["kubeadm", "k3s", "rke2", "microk8s", "k0s", "talos"];
/// What a kubelet may register its node with.
const TAINT: &str = "tartan.dev/agent-not-ready";
/// Where administrators have it on a node.
const ADMIN: &str = "/etc/kubernetes/admin.conf";
/// What a node's kernel and disk hold of a network, beside rules.
const HOLDS: &str = "{ ip -oneline link | sed 's/qlen.*//'; ip -oneline address | sed 's/valid_lft.*//'; \
    ip route show table all; ip -6 route show table all | sed 's/expires [^ ]*//'; ip rule; ip -6 rule; } \
    | sed 's/^[0-9]*: //' | sort; ls /opt/cni/bin /etc/cni/net.d; ls -A /var/lib/tartan 2>/dev/null; ls -A /run/tartan 2>/dev/null; \
    cd /proc/sys/net; grep -r . ipv4/conf ipv6/conf ipv4/ip_forward ipv4/neigh ipv6/neigh 2>/dev/null | sort";

#[test]
fn a_network_is_tried_installed_asked_and_taken_back() {
    let cluster = Cluster::up("kube-user", Programs::from_environment().unwrap(), Wants::default()).unwrap();
    cluster.wait_for_pod_cidrs().unwrap();
    let before = holdings(&cluster).unwrap();
    nothing_is_in_the_way(&doctor_on_the_node(&cluster, "n1").unwrap()).unwrap();

    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tartan-system"}});
    pods::apply(&cluster, "namespace.json", vec![namespace]).unwrap();
    for distribution in DISTRIBUTIONS {
        for command in ["install", "uninstall"] {
            would_be_taken(&cluster, &printed(&cluster, &[command, "--for", distribution]).unwrap()).unwrap();
        }
    }
    cluster.kubectl(&["taint", "nodes", "--all", &format!("{TAINT}=:NoSchedule")]).unwrap();
    let server = cluster.server().unwrap();
    let manifest = printed(&cluster, &["install", "--for", "kubeadm", "--api-server", server]).unwrap();
    cluster.kubectl(&["apply", "--filename", &manifest]).unwrap();
    cluster.wait_until_ready().unwrap();
    the_startup_taint_goes(&cluster).unwrap();
    pods::run(&cluster, pods::one_a_node(&["n1", "n2", "n3"])).unwrap();

    all_stand_well(&cluster).unwrap();
    the_operator_speaks(&cluster).unwrap();
    nothing_is_in_the_way(&tartan::said(&cluster, "n1", &["doctor"]).unwrap()).unwrap();
    nothing_is_in_the_way(&doctor_on_the_node(&cluster, "n1").unwrap()).unwrap();

    taken_back(&cluster, &manifest).unwrap();
    for (machine, before) in cluster.machines().iter().zip(&before) {
        holds_again(machine, before).unwrap();
    }
}

/// What `tartan` prints for `kubectl apply`, as a file.
fn printed(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let text = crate::image::run(Command::new(cluster.programs().find("tartan")?).args(args))?;
    cluster.file(&format!("{}.yaml", args[..3].join("-").replace("--", "")), text.as_bytes())
}

/// The API server takes it, and has nothing to say about it.
fn would_be_taken(cluster: &Cluster, manifest: &str) -> Result<()> {
    let said = cluster.run_client(|kubectl, admin| {
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(admin);
        command.args(["apply", "--dry-run=server", "--filename", manifest]).output()
    })?;
    let trouble = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && trouble.is_empty(), "{manifest}: {}: {trouble}", said.status);
    Ok(())
}

/// As root on the node, with the program and what administrators have.
fn doctor_on_the_node(cluster: &Cluster, node: &str) -> Result<Value> {
    let machine = cluster.machine(node)?;
    machine.write(ADMIN, &std::fs::read(cluster.control()?.admin())?, "0600")?;
    let tartan = cluster.programs().find("tartan")?;
    let line = format!("{} doctor --store kubernetes:{ADMIN} --output=json || [ $? = 1 ]", tartan.display());
    let said = machine.run(&["sh", "-c", &line])?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

/// Three nodes on one machine have one machine id, and the kernel's modules are the machine's: of all else nothing may be
/// wrong, and all must have been looked at.
fn nothing_is_in_the_way(report: &Value) -> Result<()> {
    let of_the_machine = ["machine-ids", "modules"];
    let findings = report["findings"].as_array().context("findings")?.iter();
    let wrong: Vec<&Value> = findings
        .filter(|finding| finding["level"] != "note")
        .filter(|finding| !of_the_machine.iter().any(|check| finding["check"] == *check))
        .collect();
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

fn all_stand_well(cluster: &Cluster) -> Result<()> {
    let status = tartan::said(cluster, "n2", &["status"])?;
    ensure!(status["ready"] == true && status["pods"][0]["pod"] == "default/on-n2", "{status:#}");
    let mut said = Value::Null;
    let alive = wait_for(PATIENCE, "all agents to be alive", || {
        said = tartan::said(cluster, "n3", &["status", "--cluster"]).unwrap_or_default();
        let nodes = said["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        nodes.len() == cluster.machines().len() && nodes.iter().all(|node| node["agent"] == "alive")
    });
    alive.map(drop).with_context(|| format!("{said:#}"))
}

fn the_startup_taint_goes(cluster: &Cluster) -> Result<()> {
    let mut taints = String::new();
    let gone = wait_for(PATIENCE, "the startup taint to be gone", || {
        taints =
            cluster.kubectl(&["get", "nodes", "--output=jsonpath={.items[*].spec.taints}"]).unwrap_or(TAINT.into());
        !taints.contains(TAINT)
    });
    gone.map(drop).with_context(|| taints)
}

/// One leads, and may write what it has to: here what is wrong with a pool that is for no node.
fn the_operator_speaks(cluster: &Cluster) -> Result<()> {
    cluster.wait_for("jsonpath={.spec.holderIdentity}", &[NAMESPACE, "lease/tartan-operator"])?;
    tartan::define_pools(cluster)?;
    let pool = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "nowhere"},
        "spec": {"cidr": "10.99.0.0/16", "nodeSelector": "zone == 'nowhere'"},
    });
    pods::apply(cluster, "pool.json", vec![pool])?;
    let told = r#"jsonpath={.status.conditions[?(@.type=="Accepted")].reason}=NoNode"#;
    cluster.wait_for(told, &["ippools.projectcalico.org/nowhere"])
}

/// As `deploy/uninstall.yaml` says it.
fn taken_back(cluster: &Cluster, manifest: &str) -> Result<()> {
    cluster.kubectl(&["delete", NAMESPACE, "daemonset/tartan-agent", "deployment/tartan-operator"])?;
    cluster.kubectl(&["apply", "--filename", &printed(cluster, &["uninstall", "--for", "kubeadm"])?])?;
    cluster.wait_for_rollout(NAMESPACE, "tartan-uninstall", PATIENCE)?;
    cluster.kubectl(&["delete", "--wait=false", "--ignore-not-found", "--filename", manifest]).map(drop)
}

fn holdings(cluster: &Cluster) -> Result<Vec<String>> {
    cluster.machines().iter().map(holding).collect()
}

fn holding(machine: &Machine) -> Result<String> {
    machine.run(&["sh", "-c", &format!("{NFT_LISTING}; {HOLDS}")])
}

fn holds_again(machine: &Machine, before: &str) -> Result<()> {
    let mut differs = Vec::new();
    let is_so = wait_for(PATIENCE, &format!("{} to hold what it did before", machine.name), || {
        let now = holding(machine).unwrap_or_default();
        let only = |one: &str, other: &str, sign| {
            let lines = one.lines().filter(|line| !other.lines().any(|it| it == *line));
            lines.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
        };
        differs = [only(before, &now, '-'), only(&now, before, '+')].concat();
        differs.is_empty()
    });
    is_so.map(drop).with_context(|| differs.join("\n"))
}
