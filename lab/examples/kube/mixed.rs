//! Nodes that go over from Flannel to Tartan one by one while their pods talk; and one that goes back.
//!
//! Invariant: pods of before run on as they are, told by their network namespaces and processes, and are under policy as
//! those are that come; these are Tartan's, told by their gateway. What is typed is what `docs/flannel.md` says.

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tartan_lab::probe::{Load, LoadReport, matrix, pairs, wait_for};
use tartan_lab::{Echo, Endpoint};

use crate::agents::{FLANNEL, TARTAN};
use crate::cluster::{Cluster, Wants};
use crate::flannel::{self, Backend, LABEL, NETWORK};
use crate::life::ANSWERS;
use crate::machine::{inode, processes_of_pod};
use crate::pods::{self, PATIENCE, SERVER_PORT, in_, policy};
use crate::{Programs, image, measure, tartan};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const INTERVAL: Duration = Duration::from_millis(5);
const OURS: &str = "tartan";
/// A node of no network, on its way back.
const NOBODYS: &str = "none";
const GOES_BACK: &str = "n3";
/// Pods of before on the bridge of `old-n2`.
const BESIDE: [&str; 2] = ["friend", "stranger"];
/// The gateway that pods of Tartan's see.
const OUR_GATEWAY: &str = "169.254.1.1";

/// What a change of all nodes came to.
pub(crate) struct Outcome {
    /// Of all matrices, one before and one after each node went over.
    pub(crate) failed: usize,
    /// What pods of before lost while nodes went over.
    pub(crate) lost: LoadReport,
}

/// Figures of both backends together.
pub(crate) fn measure() -> Result<()> {
    let (mut failed, mut lost) = (0, 0);
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let outcome = swap(backend)?;
        println!("# kube.flannel_mixed.lost: {}: {}", backend.as_str(), outcome.lost);
        failed += outcome.failed;
        lost += measure::losses(&outcome.lost);
    }
    measure::figure("flannel_mixed.failed", failed as f64);
    measure::figure("flannel_mixed.lost", lost as f64);
    Ok(())
}

/// Makes a cluster with Flannel and has its nodes go over. Says of each matrix what failed.
pub(crate) fn swap(backend: Backend) -> Result<Outcome> {
    let cluster =
        Cluster::up("kube-mixed", Programs::from_environment()?, Wants { flannel: true, ..Wants::default() })?;
    flannel::install(&cluster, backend)?;
    cluster.wait_until_ready()?;
    let name = |kind: &str, node: &str| format!("{kind}-{node}");
    let old = NODES.map(|node| name("old", node));
    let old_pods = NODES.iter().map(|node| named(&name("old", node), node));
    pods::run(&cluster, old_pods.chain(BESIDE.map(|name| named(name, "n2"))).collect())?;
    // Of nobody: but packets are asked from then on, and none may be lost by that.
    pods::apply(&cluster, "nobody.json", vec![policy("nobody", &["nobody"], json!({"policyTypes": ["Ingress"]}))])?;
    let all_old: Vec<String> = old.iter().cloned().chain(BESIDE.map(str::to_owned)).collect();
    let before = lives(&cluster, &all_old)?;

    let mut talking = pods::endpoints(&cluster, &old.each_ref().map(String::as_str))?;
    let mut echoes = talking.iter().map(serve).collect::<Result<Vec<_>>>()?;
    let load = Load::new().interval(INTERVAL).udp(pairs(&talking)).tcp_bulk(pairs(&talking));
    let load = load.tcp_idle(pairs(&talking)).start()?;
    load.wait_for_answers(ANSWERS, PATIENCE)?;
    let mut failed = told(backend, "before", &talking)?;
    cluster.kubectl(&["apply", "--filename", &manifest(&cluster)?])?;
    for node in NODES {
        go_over(&cluster, node)?;
        let new = name("new", node);
        pods::run(&cluster, vec![named(&new, node)])?;
        let new = pods::endpoint(&new, &pods::uid(&cluster, &new)?)?;
        let routes = new.netns.output(&["ip", "route"])?;
        ensure!(routes.contains(OUR_GATEWAY), "{} is no pod of Tartan's; its routes:\n{routes}", new.name);
        echoes.push(serve(&new)?);
        talking.push(new);
        failed += told(backend, &format!("{node} has gone over"), &talking)?;
    }
    load.wait_for_answers(ANSWERS, PATIENCE)?;
    let lost = load.stop()?;
    policy_holds(&cluster, &talking)?;
    ensure!(lives(&cluster, &all_old)? == before, "pods of before are others now");
    talking.retain(|pod| !pod.name.ends_with(GOES_BACK));
    cluster.kubectl(&["delete", "networkpolicies", "--all"])?;
    let back = go_back(&cluster, GOES_BACK)?;
    echoes.push(serve(&back)?);
    talking.push(back);
    // Peers go by what the node's agent has said until that is over.
    let _never = wait_for(PATIENCE, "all to be reached", || matrix(&talking).is_ok_and(|all| all.check().is_ok()));
    failed += told(backend, &format!("{GOES_BACK} has gone back"), &talking)?;
    drop(echoes);
    Ok(Outcome { failed, lost })
}

/// A pod that policies know by its name.
fn named(name: &str, node: &str) -> Value {
    let mut pod = pods::pod(name, node);
    pod["metadata"]["labels"] = json!({"name": name});
    pod
}

/// Pods of before are judged: by what they let in, wherever it comes from, and by what they may send.
fn policy_holds(cluster: &Cluster, talking: &[Endpoint]) -> Result<()> {
    let mut all = pods::endpoints(cluster, &BESIDE)?;
    all.extend(talking.iter().cloned());
    let friends = ["friend", "old-n1", "new-n1"];
    let from = json!({"from": [{"podSelector": in_(&friends)}], "ports": [{"port": SERVER_PORT}]});
    let to = json!({"to": [{"podSelector": in_(&["old-n2"])}]});
    let policies = vec![
        policy("in", &["old-n2"], json!({"policyTypes": ["Ingress"], "ingress": [from]})),
        policy("out", &["friend"], json!({"policyTypes": ["Egress"], "egress": [to]})),
    ];
    let asked =
        |from: &&Endpoint, to: &&Endpoint| from.name != to.name && (to.name == "old-n2" || from.name == "friend");
    let pairs: Vec<_> = all.iter().flat_map(|from| all.iter().map(move |to| (from, to))).collect();
    let wrong = |is: &(dyn Fn(&Endpoint, &Endpoint) -> bool + Sync)| -> Vec<String> {
        let ask = |(from, to): &(&Endpoint, &Endpoint)| {
            (pods::answers(from, to) != is(from, to)).then(|| format!("{} to {}", from.name, to.name))
        };
        thread::scope(|scope| {
            let asked = pairs.iter().filter(|(from, to)| asked(from, to)).map(|pair| scope.spawn(move || ask(pair)));
            let asked: Vec<_> = asked.collect();
            asked.into_iter().filter_map(|asked| asked.join().expect("a question does not panic")).collect()
        })
    };
    let open = wrong(&|_, _| true);
    ensure!(open.is_empty(), "no answer before there is a policy: {open:?}");
    pods::apply(cluster, "policies.json", policies)?;
    let may = |from: &Endpoint, to: &Endpoint| match from.name.as_str() {
        "friend" => to.name == "old-n2",
        from => friends.contains(&from),
    };
    let mut last = Vec::new();
    let holds = wait_for(PATIENCE, "policies of pods of before to hold", || {
        last = wrong(&may);
        last.is_empty()
    });
    holds.with_context(|| format!("{last:?}"))?;
    let said = tartan::said(cluster, "n2", &["status"])?;
    let adopted = said["adopted"].as_array().map_or(&[][..], Vec::as_slice);
    let shown = adopted.len() == BESIDE.len() + 1 && adopted.iter().all(|pod| pod["underPolicy"] == true);
    ensure!(shown, "all pods of before are under policy, and status says: {:#}", said["adopted"]);
    let status = cluster.get(&["nodenetworks.tartan.dev", "n2"])?["status"].to_string();
    let unjudged = ["BridgeNotFiltered", "AddressWithoutPod"].into_iter().find(|reason| status.contains(reason));
    ensure!(unjudged.is_none(), "{status}");
    Ok(())
}

fn serve(pod: &Endpoint) -> Result<Echo> {
    Echo::serve(&pod.netns, &pod.name)
}

/// Every pod asks every other one in both families: how many fail.
fn told(backend: Backend, when: &str, pods: &[Endpoint]) -> Result<usize> {
    let matrix = matrix(pods)?;
    let failures: Vec<String> = matrix.failures().map(|reach| format!("\n# {reach}")).collect();
    let (backend, count, asked) = (backend.as_str(), failures.len(), matrix.reaches.len());
    ensure!(asked > 0, "nobody was asked");
    println!("# kube.flannel_mixed.failed: {backend}, {when}: {count} of {asked}{}", failures.concat());
    Ok(count)
}

/// Tartan's manifest for nodes of its own label.
fn manifest(cluster: &Cluster) -> Result<String> {
    let manifest = std::fs::read_to_string(tartan::manifest(cluster)?)?;
    cluster.file("tartan-by-label.yaml", labelled(&manifest, OURS)?.as_bytes())
}

/// A manifest whose first DaemonSet is for nodes with that label.
fn labelled(manifest: &str, label: &str) -> Result<String> {
    let selector = "      nodeSelector:\n";
    let at = manifest.find("kind: DaemonSet").context("the manifest has a DaemonSet")?;
    let at = at + manifest[at..].find(selector).context("the DaemonSet has a nodeSelector")? + selector.len();
    let (head, tail) = manifest.split_at(at);
    Ok(format!("{head}        {LABEL}: {label}\n{tail}"))
}

/// The node's pods go, all of Tartan's is taken back there, and Flannel's first pod comes.
fn go_back(cluster: &Cluster, node: &str) -> Result<Endpoint> {
    cluster.kubectl(&["drain", node, "--ignore-daemonsets", "--force"])?;
    belong_to(cluster, node, NOBODYS, [false, false])?;
    let take_back =
        image::run(Command::new(cluster.programs().find("tartan")?).args(["uninstall", "--for", "kubeadm"]))?;
    let take_back = cluster.file("take-back.yaml", labelled(&take_back, NOBODYS)?.as_bytes())?;
    cluster.kubectl(&["apply", "--filename", &take_back])?;
    cluster.wait_for_rollout(tartan::NAMESPACE, "tartan-uninstall", PATIENCE)?;
    belong_to(cluster, node, NETWORK, [false, true])?;
    cluster.kubectl(&["uncordon", node])?;
    let name = format!("back-{node}");
    pods::run(cluster, vec![named(&name, node)])?;
    let back = pods::endpoint(&name, &pods::uid(cluster, &name)?)?;
    let routes = back.netns.output(&["ip", "route"])?;
    ensure!(!routes.contains(OUR_GATEWAY), "{name} is still a pod of Tartan's; its routes:\n{routes}");
    Ok(back)
}

/// Moves the label, and waits until of Tartan's agent and Flannel's those run that should.
fn belong_to(cluster: &Cluster, node: &str, network: &str, runs: [bool; 2]) -> Result<()> {
    cluster.kubectl(&["label", "node", node, &format!("{LABEL}={network}"), "--overwrite"])?;
    let machine = cluster.machine(node)?;
    let run = || [TARTAN, FLANNEL].map(|agents| machine.process(agents.begins.as_bytes()).is_some());
    wait_for(PATIENCE, &format!("{node} to be of the network {network}"), || run() == runs).map(drop)
}

/// Moves the label, and waits until the node is Tartan's.
fn go_over(cluster: &Cluster, node: &str) -> Result<()> {
    belong_to(cluster, node, OURS, [true, false])?;
    let of_node = format!("--field-selector=spec.nodeName={node}");
    let agent = ["--namespace=tartan-system", "pods", "--selector=app.kubernetes.io/name=tartan-agent", &of_node];
    cluster.wait_for("condition=Ready", &agent)
}

/// What a pod that was made anew would not have: its namespace and its processes.
fn lives(cluster: &Cluster, names: &[String]) -> Result<Vec<(Option<u64>, Vec<i32>)>> {
    let life = |name: &String| {
        let mut processes = processes_of_pod(&pods::uid(cluster, name)?);
        processes.sort_unstable();
        let first = *processes.first().with_context(|| format!("{name} has no process"))?;
        Ok((inode(&pods::network_of(first).path()), processes))
    };
    names.iter().map(life).collect()
}
