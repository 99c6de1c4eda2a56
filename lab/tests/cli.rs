//! The `tartan` program as a person meets it: what it prints, what it refuses and in which words, and that nothing is
//! left after `uninstall`.

mod common;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, census, lab, sh, tartan, wait_until_steady};
use serde_json::Value;
use tartan_lab::probe::{http_get, wait_for};
use tartan_lab::{Binaries, Lab, Node};

/// What a command printed, and whether it succeeded.
#[derive(Debug)]
struct Said {
    success: bool,
    stdout: String,
    stderr: String,
}

fn said(node: &Node, args: &[&str]) -> Result<Said> {
    let output = tartan(node, args)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok(Said { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

fn one_node(name: &str) -> Result<Lab> {
    Lab::builder(name).nodes(1).pods_per_node(1).fabric("vxlan").up()
}

fn config(lab: &Lab) -> Result<Value> {
    Ok(lab.get("NetworkConfig", "default")?.context("the configuration")?["spec"].clone())
}

#[test]
fn status_says_the_same_in_text_json_and_yaml() -> Result<()> {
    let lab = lab("cli-status", "vxlan")?;
    wait_until_steady(&lab, "vxlan")?;
    let node = lab.node("n1")?;
    let text = said(node, &["status"])?;
    for part in [
        "Node      n1 (ready), tartan ",
        "Fabric    vxlan, steady",
        "Address   172.30.0.1 on eth0 (MTU 1500): ",
        "Address   fd30::1 on eth0 (MTU 1500): ",
        "Blocks    10.244.1.0/24 (1 used), fd00:10:244:1::/64 (1 used)",
        "Pods      1, MTU 1450",
        "n2",
        "10.244.2.0/24",
    ] {
        ensure!(text.stdout.contains(part), "{part:?} is not in:\n{}", text.stdout);
    }
    let json: Value = serde_json::from_str(&said(node, &["status", "-o", "json"])?.stdout)?;
    let yaml: Value = serde_yaml_ng::from_str(&said(node, &["status", "-o", "yaml"])?.stdout)?;
    ensure!(json == yaml, "{json:#}\n{yaml:#}");
    ensure!(json["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["live"] == true)), "{json:#}");
    Ok(())
}

#[test]
fn set_changes_one_key_and_refuses_the_rest_in_words() -> Result<()> {
    let lab = one_node("cli-set")?;
    let node = lab.node("n1")?;
    let good = |key: &str, value: &str, at: &str, want: Value| -> Result<()> {
        let said = said(node, &["set", key, value])?;
        ensure!(said.success && said.stdout == "NetworkConfig/default written", "{said:?}");
        let is = config(&lab)?;
        ensure!(is.pointer(at) == Some(&want), "{key} {value}: {is:#}");
        // What was set is what the agent works by before the next command comes.
        wait_for(PATIENCE, "the agent to know it", || node.status().is_ok_and(|status| status["ready"] == true))
            .map(drop)
    };
    good("vxlan.port", "4789", "/vxlan/port", 4789.into())?;
    good("fabric", "host-gw", "/fabric", "host-gw".into())?;
    let before = config(&lab)?;
    for (key, value, want) in [
        ("fabrik", "vxlan", "tartan: nothing was written:\nNetworkConfig/default spec.fabrik"),
        ("fabric", "vxlna", "tartan: nothing was written:\nNetworkConfig/default spec.fabric"),
        ("vxlan.port", "65536", "tartan: nothing was written:\nNetworkConfig/default spec.vxlan.port"),
        ("vxlan.port", "[", "tartan: '[' is not YAML: "),
        ("fabric.name", "x", "tartan: spec.fabric.name: there is nothing below "),
        ("leaseSeconds", "0", "tartan: nothing was written:\nNetworkConfig/default spec.leaseSeconds"),
    ] {
        let said = said(node, &["set", key, value])?;
        ensure!(!said.success && said.stdout.is_empty() && said.stderr.contains(want), "{key} {value}: {said:?}");
    }
    ensure!(config(&lab)? == before, "{:#} became {:#}", before, config(&lab)?);
    Ok(())
}

#[test]
fn apply_writes_all_documents_or_none() -> Result<()> {
    let lab = one_node("cli-apply")?;
    let node = lab.node("n1")?;
    let file = lab.facts().dir.join("given.yaml");
    let pool = |name: &str, cidr: &str| {
        format!("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}}}\n")
    };
    let apply = |text: &str| -> Result<Said> {
        std::fs::write(&file, text)?;
        said(node, &["apply", "-f", &file.display().to_string()])
    };
    let good = apply(&format!("{}---\n{}", pool("one", "10.1.0.0/16"), pool("two", "fd01::/48")))?;
    ensure!(good.success && good.stdout == "IPPool/one written\nIPPool/two written", "{good:?}");
    ensure!(lab.get("IPPool", "two")?.is_some());

    for (second, want) in [
        (pool("four", "10.3.0.0/33"), "given.yaml"),
        ("kind: Unheard\n".into(), "given.yaml"),
        ("{".into(), "given.yaml"),
    ] {
        let bad = apply(&format!("{}---\n{second}", pool("three", "10.2.0.0/16")))?;
        ensure!(!bad.success && bad.stdout.is_empty(), "{bad:?}");
        ensure!(bad.stderr.starts_with("tartan: nothing was written:\n") && bad.stderr.contains(want), "{bad:?}");
        ensure!(bad.stderr.contains("\n  Fix: "), "{bad:?}");
        ensure!(lab.get("IPPool", "three")?.is_none(), "a part was written");
    }
    let empty = apply("")?;
    ensure!(!empty.success && empty.stderr.contains("holds no document; nothing was written"), "{empty:?}");
    let missing = said(node, &["apply", "-f", "/nowhere.yaml"])?;
    ensure!(!missing.success && missing.stderr.starts_with("tartan: reading /nowhere.yaml: "), "{missing:?}");

    let program = Binaries::beside_this_program()?.tartan;
    let mut command = Command::new(program);
    command.args(["apply", "-f", "-", "-o", "json"]).env("TARTAN_SOCKET", node.socket());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("its stdin")?, pool("five", "10.5.0.0/16").as_bytes())?;
    let written: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
    ensure!(written == serde_json::json!(["IPPool/five"]), "{written}");
    Ok(())
}

/// Sysctls of the node that an agent may change.
const SYSCTLS: &str = "cd /proc/sys/net; for f in $(find ipv4/conf ipv6/conf ipv4/ip_forward ipv4/neigh ipv6/neigh \
                       netfilter core -type f 2>/dev/null | sort); do echo $f $(cat $f 2>/dev/null | tr '\\n' ' '); done \
                       | grep -v 'nf_conntrack_count'";

#[test]
fn uninstall_gives_the_node_back_as_it_was_and_waits_for_the_agent_to_go() -> Result<()> {
    let mut lab = Lab::builder("cli-uninstall").nodes(2).pods_per_node(0).fabric("vxlan").build()?;
    let binaries = Binaries::beside_this_program()?;
    let before: Vec<(String, String)> =
        lab.nodes().iter().map(|node| Ok((census(node)?, sh(node, SYSCTLS)?))).collect::<Result<_>>()?;
    for node in lab.nodes() {
        node.set_program(&binaries.tartan);
        node.start_agent()?;
    }
    lab.nodes().iter().try_for_each(|node| node.wait_ready().map(drop))?;
    for (node, pod) in [("n1", "a1"), ("n2", "b1")] {
        let network = tartan_lab::Network::tartan(lab.node(node)?, &binaries.cni)?;
        let ports = serde_json::json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        lab.add_pod_by(network, node, pod, serde_json::Map::from_iter([("portMappings".to_owned(), ports)]))?;
    }
    lab.wait_for_matrix(PATIENCE)?;

    let boot = |node: &Node| node.state_dir().with_file_name("boot.yaml").display().to_string();
    let node = lab.node("n1")?;
    let held = census(node)?;
    let refused = said(node, &["uninstall", "--config", &boot(node)])?;
    ensure!(!refused.success && refused.stderr.contains("is in use by another agent"), "{refused:?}");
    ensure!(refused.stderr.contains("stop that one first") && census(node)? == held, "{refused:?}");

    for (node, (objects, sysctls)) in lab.nodes().iter().zip(&before) {
        node.stop_agent()?;
        let report = said(node, &["uninstall", "--config", &boot(node), "-o", "json"])?;
        ensure!(report.success, "{report:?}");
        let report: Value = serde_json::from_str(&report.stdout)?;
        ensure!(report["removed"].as_u64() > Some(10) && report["failures"] == serde_json::json!([]), "{report:#}");
        common::wait_until_holds(node, objects)?;
        let after = sh(node, SYSCTLS)?;
        let changed: Vec<_> = after.lines().filter(|line| !sysctls.lines().any(|was| was == *line)).collect();
        ensure!(changed.is_empty(), "sysctls not given back: {changed:#?}");
        ensure!(!node.state_dir().exists(), "its state is still there");
        ensure!(!node.socket().exists(), "its socket is still there");
        // Once more: nothing to do is no error.
        let again = said(node, &["uninstall", "--config", &boot(node)])?;
        ensure!(again.success && again.stdout == "removed 0 objects, gave 0 sysctls back", "{again:?}");
    }
    Ok(())
}

#[test]
fn the_whole_cluster_is_shown_from_its_store() -> Result<()> {
    let lab = Lab::builder("cli-cluster").nodes(3).pods_per_node(0).config("leaseSeconds", 4.into()).up()?;
    let node = lab.node("n1")?;
    lab.node("n3")?.kill_agent()?;
    let store = format!("file:{}", lab.store_dir().display());
    let agents = |args: &[&str]| -> Result<Vec<String>> {
        let said = said(node, &[&["status", "--cluster", "-o", "json"], args].concat())?;
        ensure!(said.success, "{said:?}");
        let cluster: Value = serde_json::from_str(&said.stdout)?;
        let nodes = cluster["nodes"].as_array().context("nodes")?.iter();
        Ok(nodes.map(|node| format!("{} {}", node["node"], node["agent"]).replace('"', "")).collect())
    };
    let boot = node.state_dir().with_file_name("boot.yaml").display().to_string();
    let mut found = Vec::new();
    // Nodes that are new to each other are joining, until they have acknowledged each other.
    wait_for(PATIENCE, "two agents alive and a silent one", || {
        found = agents(&["--store", &store]).unwrap_or_default();
        found == ["n1 alive", "n2 alive", "n3 silent"]
    })
    .with_context(|| format!("{found:?}"))?;
    ensure!(agents(&["--config", &boot])? == found, "the boot file names the same store");
    let said = said(node, &["status", "--cluster", "--store", &store])?;
    let row = said.stdout.lines().find(|line| line.starts_with("n2 ")).context("a row of n2")?;
    for part in ["alive", env!("CARGO_PKG_VERSION"), "True", "172.30.0.2, fd30::2", "vxlan/", "10.244.2.0/24"] {
        ensure!(row.contains(part), "{part} in {row}");
    }
    Ok(())
}

#[test]
fn health_readiness_and_metrics_are_served() -> Result<()> {
    let lab = one_node("cli-http")?;
    let node = lab.node("n1")?;
    let get = |path: &str| http_get(&node.endpoint(), "127.0.0.1:9470".parse().expect("an address"), path);
    for path in ["/healthz", "/readyz"] {
        ensure!(get(path)? == (200, "ok\n".into()), "{path}: {:?}", get(path)?);
    }
    ensure!(get("/")?.0 == 404, "{:?}", get("/")?);
    let metrics = get("/metrics")?.1;
    for line in [
        "tartan_ready 1",
        "tartan_pods 1",
        "tartan_pod_mtu_bytes 1450",
        "tartan_kernel_failures 0",
        "tartan_block_used_addresses{cidr=\"10.244.1.0/24\"} 1",
        "tartan_conntrack_insert_failed_total 0",
    ] {
        ensure!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        ensure!(value.is_some(), "no number at the end of {line:?}");
    }
    // The store is gone before this agent has read it, and nothing is known from before: alive, but not ready, and it says
    // for what it waits.
    node.stop_agent()?;
    let snapshot = node.state_dir().join("snapshot.json");
    if snapshot.exists() {
        std::fs::remove_file(snapshot)?;
    }
    lab.store_away()?;
    node.start_agent()?;
    let mut last = (0, String::new());
    wait_for(PATIENCE, "an agent that is alive and not ready", || {
        last = get("/readyz").unwrap_or_default();
        last.0 == 503 && get("/healthz").is_ok_and(|answer| answer.0 == 200)
    })?;
    ensure!(last.1.starts_with("waiting for "), "{last:?}");
    lab.store_back()?;
    node.wait_ready().map(drop)
}

/// A pod of the lab as the API server would have it, and what isolates it.
fn isolated(pod: &str, address: &str) -> String {
    let v1 = "apiVersion: v1";
    let namespace = format!("{v1}\nkind: Namespace\nmetadata: {{name: lab}}\n");
    let pod = format!(
        "{v1}\nkind: Pod\nmetadata: {{name: {pod}, namespace: lab, labels: {{app: {pod}}}}}\n\
         spec: {{nodeName: n1}}\nstatus: {{phase: Running, podIPs: [{{ip: {address}}}]}}\n"
    );
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: nobody, namespace: lab}\n\
                  spec: {podSelector: {}}\n";
    [namespace, pod, policy.to_owned()].join("---\n")
}

#[test]
fn policies_are_explained_by_a_live_agent_and_from_its_record_alike() -> Result<()> {
    let lab = one_node("cli-policy")?;
    let node = lab.node("n1")?;
    let (file, record) = (lab.facts().dir.join("given.yaml"), lab.facts().dir.join("n1.world"));
    let (file, record) = (file.display().to_string(), record.display().to_string());
    std::fs::write(&file, isolated("quiet", "10.244.1.200"))?;
    let applied = said(node, &["apply", "-f", &file])?;
    ensure!(applied.success, "{applied:?}");
    let trace = ["policy", "trace", "--from", "world", "--to", "lab/quiet", "--port", "80"];
    let want = "to lab/quiet (10.244.1.200), 80/tcp: denied";
    let mut live = said(node, &trace)?;
    wait_for(PATIENCE, "the agent to have read the policy", || {
        live = said(node, &trace).unwrap_or_else(|error| panic!("{error:#}"));
        live.success && live.stdout.contains(want)
    })?;
    ensure!(live.stdout.contains("NetworkPolicy/lab/nobody spec.podSelector"), "{live:?}");
    let recorded = said(node, &["record", "-o", &record])?;
    ensure!(recorded.success && recorded.stdout.contains("1 policies"), "{recorded:?}");
    let again = said(node, &[&trace[..], &["--world", &record]].concat())?;
    ensure!(again.success && again.stdout == live.stdout, "{again:?}\n{live:?}");
    let gone = said(node, &["policy", "diff", "--delete", "NetworkPolicy/lab/nobody", "--world", &record])?;
    ensure!(!gone.success && gone.stdout.contains("denied  allowed"), "{gone:?}");
    let cut = std::fs::read_to_string(&record)?;
    std::fs::write(&record, cut.replace("quiet", "noisy"))?;
    let damaged = said(node, &[&trace[..], &["--world", &record]].concat())?;
    ensure!(!damaged.success && damaged.stderr.contains("do not match its checksum"), "{damaged:?}");
    Ok(())
}

#[test]
fn without_an_agent_every_command_says_what_to_look_at() -> Result<()> {
    let lab = Lab::builder("cli-none").nodes(1).pods_per_node(0).build()?;
    let node = lab.node("n1")?;
    for args in [&["status"][..], &["set", "fabric", "vxlan"]] {
        let said = said(node, args)?;
        let want = format!("tartan: no agent answers at {}: is it running, and are you root?", node.socket().display());
        ensure!(!said.success && said.stderr.starts_with(&want), "{said:?}");
    }
    let bad = said(node, &["status", "-o", "xml"])?;
    ensure!(!bad.success && bad.stderr.contains("'xml' is no output format; there is text, json and yaml"), "{bad:?}");
    let typo = said(node, &["stauts"])?;
    ensure!(!typo.success && typo.stderr.contains("a similar subcommand exists: 'status'"), "{typo:?}");
    let version = said(node, &["--version"])?;
    ensure!(version.success && version.stdout.starts_with("tartan 0."), "{version:?}");
    Ok(())
}
