//! The cluster: an underlay with a control plane and three nodes on one segment.
//!
//! ```text
//!     control eth0 ══╗
//!          n1 eth0 ══╬═ br0 of the underlay, 172.30.0.0/24 and fd30::/64
//!          n2 eth0 ══╣
//!          n3 eth0 ══╝
//! ```
//!
//! Invariant: dropped in any state, half built included, it leaves nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tartan_lab::{Facts, Hierarchy, Member, Netns, Seat, Underlay, UnderlayControl};

use crate::Programs;
use crate::control::{Control, Stack};
use crate::dns;
use crate::image;
use crate::init;
use crate::machine::{Machine, Proxy, Spec};
use crate::pki::{Pki, Subject};

/// Begins the line that a holder prints when all is up.
pub(crate) const IS_UP: &str = "The cluster is up.";
const NODES: u8 = 3;
/// Far from the nodes' numbers, which count up from 1.
const CONTROL_NUMBER: u8 = 100;
const PATIENCE_SECS: u32 = 120;
/// What each node says of itself, a line each.
const CONDITIONS: &str = r#"--output=jsonpath={range .items[*]}{.metadata.name}{range .status.conditions[*]}; {.type}={.status}, {.reason}: {.message}{end}{"\n"}{end}"#;

/// A running cluster. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Cluster {
    // In this order they go, then (in Drop) all that carries the lab's name.
    machines: Vec<Machine>,
    control: Option<Control>,
    control_netns: Netns,
    ground: Option<Ground>,
    facts: Facts,
    programs: Programs,
    wants: Wants,
}

/// What a node is made of, beside what it is called.
#[derive(Debug)]
struct Ground {
    underlay: UnderlayControl,
    pki: Pki,
    images: Vec<PathBuf>,
}

/// What a cluster has that not every cluster has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wants {
    /// kube-proxy, and CoreDNS, which is nothing without it.
    pub(crate) proxy: Option<Proxy>,
    /// Images with the tools that Kubernetes' own tests call.
    pub(crate) tools: bool,
    /// The image of the release before.
    pub(crate) previous: bool,
    /// Flannel's image.
    pub(crate) flannel: bool,
    pub(crate) stack: Stack,
    /// Nobody gives nodes podCIDRs: pods' addresses come from pools.
    pub(crate) pools: bool,
}

/// What a Node object says of its pods' addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeCidrs {
    pub(crate) name: String,
    pub(crate) pod_cidrs: Vec<String>,
}

impl Cluster {
    /// Control plane and nodes, without a pod network: nodes do not get ready by themselves.
    pub(crate) fn up(name: &str, programs: Programs, wants: Wants) -> Result<Self> {
        for leftover in tartan_lab::remove_leftovers()? {
            eprintln!("kube: removed the leftovers of lab {leftover}, whose process is gone");
        }
        let facts = Facts::claim(name)?;
        let control_netns = Netns::named(&format!("{}control", facts.prefix()));
        // From here on a failure drops the cluster, and that removes what there is of it.
        let mut cluster =
            Self { machines: Vec::new(), control: None, control_netns, ground: None, facts, programs, wants };
        cluster.build()?;
        if cluster.has_services() {
            dns::install(&cluster)?;
        }
        Ok(cluster)
    }

    fn build(&mut self) -> Result<()> {
        let underlay = UnderlayControl::create(Underlay::L2, &format!("{}underlay", self.facts.prefix()))?;
        let seats = (1..=NODES).map(|number| self.seat(&underlay, number)).collect::<Result<Vec<_>>>()?;
        let control_netns = Netns::create(self.control_netns.name())?;
        let seat = self.plug_in(&underlay, "control", CONTROL_NUMBER, &control_netns)?;

        fs::create_dir_all(self.facts.disk())?;
        let pki = Pki::create(&self.facts.dir.join("pki"))?;
        // Images are packed while the API server starts.
        let (programs, disk, wants) = (&self.programs, self.facts.disk(), self.wants);
        let (control, images) = std::thread::scope(|scope| {
            let images = scope.spawn(|| image::archives(programs, wants, &pki, &disk));
            let control = Control::start(&control_netns, &seat, &pki, &self.facts.dir, (programs, wants));
            (control, images.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        self.control = Some(control?);
        self.ground = Some(Ground { underlay, pki, images: images? });
        seats.into_iter().try_for_each(|(name, netns, seat)| self.start_node(&name, &netns, seat))
    }

    /// A place on the segment: the node's name, its network namespace, its addresses.
    fn seat(&mut self, underlay: &UnderlayControl, number: u8) -> Result<(String, Netns, Seat)> {
        let name = format!("n{number}");
        let netns = Netns::create(&format!("{}{name}", self.facts.prefix()))?;
        let seat = self.plug_in(underlay, &name, number, &netns)?;
        Ok((name, netns, seat))
    }

    fn plug_in(&mut self, underlay: &UnderlayControl, name: &str, number: u8, netns: &Netns) -> Result<Seat> {
        let seat = underlay.plug_in(name, number, netns)?;
        if self.wants.stack == Stack::V6 {
            netns.ip_of("-4", "address flush dev eth0\n")?;
        }
        self.note(name, netns, &seat)?;
        Ok(seat)
    }

    fn start_node(&mut self, name: &str, netns: &Netns, seat: Seat) -> Result<()> {
        let ground = self.ground.as_ref().context("nodes come after what they are made of")?;
        let spec = node_spec(name, &self.facts, &self.programs, &ground.images, &seat, self.wants)?;
        let server = self.server()?;
        sign_kubelet(&ground.pki, &spec, &seat, server)?;
        sign_proxy(&ground.pki, &spec, server)?;
        put_loopback(&self.programs, &spec)?;
        self.machines.push(Machine::start(&spec, netns, seat)?);
        Ok(())
    }

    /// One node more; does not wait for anything on it.
    pub(crate) fn join(&mut self) -> Result<String> {
        let ground = self.ground.take().context("nodes come after what they are made of")?;
        let number = u8::try_from(self.machines.len() + 1)?;
        let joined = self.seat(&ground.underlay, number);
        self.ground = Some(ground);
        let (name, netns, seat) = joined?;
        self.start_node(&name, &netns, seat)?;
        Ok(name)
    }

    /// Ends all that runs on the node and its network, and starts it again from its disk.
    pub(crate) fn reboot(&mut self, name: &str) -> Result<()> {
        let node = self.shut_down(name)?;
        self.boot(&node)
    }

    /// Ends all that runs on the node, and its network: what it can be started from again.
    pub(crate) fn shut_down(&mut self, name: &str) -> Result<Spec> {
        let at = self.machines.iter().position(|machine| machine.name == name);
        let machine = self.machines.remove(at.with_context(|| format!("there is no node {name:?}"))?);
        let ground = self.ground.as_ref().context("nodes come after what they are made of")?;
        let (spec, netns) = machine.end()?;
        ground.underlay.netns().ip(&format!("link delete {name}\n"))?;
        netns.delete()?;
        Ok(spec)
    }

    /// Starts a node from its disk.
    pub(crate) fn boot(&mut self, spec: &Spec) -> Result<()> {
        let ground = self.ground.as_ref().context("nodes come after what they are made of")?;
        let netns = Netns::create(&format!("{}{}", self.facts.prefix(), spec.name))?;
        let number = spec.name.trim_start_matches('n').parse()?;
        let seat = ground.underlay.plug_in(&spec.name, number, &netns)?;
        self.machines.push(Machine::start(spec, &netns, seat)?);
        Ok(())
    }

    fn note(&mut self, name: &str, netns: &Netns, seat: &Seat) -> Result<()> {
        let member = Member { netns: netns.name().into(), v4: seat.v4.0, v6: seat.v6.0, socket: None, node: None };
        self.facts.members.insert(name.into(), member);
        self.facts.write()
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    pub(crate) fn machines(&self) -> &[Machine] {
        &self.machines
    }

    pub(crate) fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name == name).with_context(|| format!("there is no node {name:?}"))
    }

    /// Where clients find the API server.
    pub(crate) fn server(&self) -> Result<&str> {
        Ok(self.control()?.server())
    }

    /// The API server talks to pods, too.
    pub(crate) fn route_to_pods(&self, nodes: &[NodeCidrs]) -> Result<()> {
        self.control_netns.ip(&self.routes(nodes, None)?)
    }

    /// To the pods of all nodes but `local`.
    pub(crate) fn routes(&self, nodes: &[NodeCidrs], local: Option<&str>) -> Result<String> {
        let mut lines = String::new();
        for node in nodes.iter().filter(|node| Some(node.name.as_str()) != local) {
            let seat = &self.machine(&node.name)?.seat;
            for cidr in &node.pod_cidrs {
                let via = if cidr.contains(':') { seat.v6.0.to_string() } else { seat.v4.0.to_string() };
                lines += &format!("route replace {cidr} via {via}\n");
            }
        }
        Ok(lines)
    }

    /// Runs a client of the API server to its end, in the control plane's network; `run` gets kubectl and a kubeconfig.
    pub(crate) fn run_client<T: Send>(&self, run: impl FnOnce(&Path, &Path) -> io::Result<T> + Send) -> Result<T> {
        let control = self.control()?;
        let (kubectl, admin) = (control.kubectl_program(), control.admin());
        self.control_netns.run(|| run(kubectl, admin))?.context("running a client of the API server")
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control()?.kubectl(args)
    }

    pub(crate) fn get(&self, what: &[&str]) -> Result<Value> {
        let args: Vec<&str> = ["get", "--output=json"].iter().chain(what).copied().collect();
        serde_json::from_str(&self.kubectl(&args)?).with_context(|| format!("kubectl get {}", what.join(" ")))
    }

    /// Writes a file for `kubectl apply`; gives its path.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> Result<String> {
        let path = self.facts.dir.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// Waits until every node has registered. Of several that are to come kubectl waits for the first alone.
    pub(crate) fn wait_for_nodes(&self) -> Result<()> {
        self.machines.iter().try_for_each(|machine| self.wait_for("create", &[&format!("node/{}", machine.name)]))
    }

    /// Waits until every node has registered and was given its pod CIDRs, one a family.
    pub(crate) fn wait_for_pod_cidrs(&self) -> Result<Vec<NodeCidrs>> {
        self.wait_for_nodes()?;
        let last = self.wants.stack.families() - 1;
        for machine in &self.machines {
            let node = format!("node/{}", machine.name);
            self.wait_for(&format!("jsonpath={{.spec.podCIDRs[{last}]}}"), &[&node])?;
        }
        Ok(pod_cidrs(&self.get(&["nodes"])?))
    }

    /// Waits until every node says that it is ready, and names are answered if there are any.
    pub(crate) fn wait_until_ready(&self) -> Result<()> {
        self.wait_for("condition=Ready", &["nodes", "--all"])?;
        if self.has_services() { dns::wait_until_ready(self) } else { Ok(()) }
    }

    /// How many addresses a pod has.
    #[cfg(test)]
    pub(crate) fn families(&self) -> usize {
        self.wants.stack.families()
    }

    /// Whether somebody serves Services.
    pub(crate) fn has_services(&self) -> bool {
        self.wants.proxy.is_some()
    }

    /// Waits as `kubectl wait` does, by a watch: asking again and again would keep the machine from getting there. Says
    /// with a failure what the cluster looked like.
    pub(crate) fn wait_for(&self, condition: &str, of: &[&str]) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), format!("--timeout={PATIENCE_SECS}s"));
        let args: Vec<&str> = ["wait", &condition, &timeout].iter().chain(of).copied().collect();
        self.kubectl(&args).map(drop).map_err(|error| anyhow!("{error:#}\n{}", self.troubleshooting()))
    }

    /// Waits until a DaemonSet has on every node what it should have there.
    pub(crate) fn wait_for_rollout(&self, namespace: &str, set: &str, patience: Duration) -> Result<()> {
        let (set, timeout) = (format!("daemonset/{set}"), format!("--timeout={}s", patience.as_secs()));
        let done = self.kubectl(&["rollout", "status", &timeout, namespace, &set]);
        done.map(drop).map_err(|error| anyhow!("{error:#}\n{}", self.troubleshooting()))
    }

    /// What a person who has just got a cluster wants to see.
    pub(crate) fn introduction(&self) -> Result<String> {
        let nodes = self.kubectl(&["get", "nodes", "--output=wide"])?;
        let enter = self.machines.iter().map(|m| Ok(format!("enter {}: {}\n", m.name, m.enter_command()?)));
        let enter = enter.collect::<Result<String>>()?;
        let kubectl = self.control()?.kubectl_command();
        Ok(format!("{nodes}\nkubectl: {kubectl}\n{enter}{IS_UP} `cargo xtask kube down` removes it."))
    }

    /// A client that is no part of the cluster: the control plane's network, and its address in each family.
    #[cfg(test)]
    pub(crate) fn outside(&self) -> Result<(&Netns, [std::net::IpAddr; 2])> {
        let member = self.facts.member("control")?;
        Ok((&self.control_netns, [member.v4.into(), member.v6.into()]))
    }

    /// The control plane, to break it.
    pub(crate) fn control_mut(&mut self) -> Result<&mut Control> {
        self.control.as_mut().context("the control plane runs")
    }

    pub(crate) fn control(&self) -> Result<&Control> {
        self.control.as_ref().context("the control plane runs")
    }

    fn troubleshooting(&self) -> String {
        let said = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
        let pods = said(&["get", "nodes,pods,events", "--all-namespaces", "--output=wide"]);
        let conditions = said(&["get", "nodes", CONDITIONS]);
        let machines = self.machines.iter().map(Machine::troubleshooting).collect::<Vec<_>>().join("\n");
        let control = self.control.as_ref().map(Control::troubleshooting).unwrap_or_default();
        format!("{pods}\n{conditions}\n{control}\n{machines}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the cluster failed; what it looked like:\n{}", self.troubleshooting());
        }
        self.machines.clear();
        self.control = None;
        if let Err(error) = tartan_lab::remove(&self.facts) {
            eprintln!("kube: {error:#}");
        }
    }
}

fn node_spec(
    name: &str,
    facts: &Facts,
    programs: &Programs,
    images: &[PathBuf],
    seat: &Seat,
    wants: Wants,
) -> Result<Spec> {
    let hierarchies = Hierarchy::all()?;
    if !hierarchies.iter().any(|hierarchy| hierarchy.options == "memory") {
        bail!("this machine has no cgroup v1 hierarchy for memory; nodes on cgroup v2 alone are not built yet");
    }
    let disk = facts.disk().join(name);
    fs::create_dir(&disk)?;
    Ok(Spec {
        name: name.into(),
        group: format!("{}{name}", facts.prefix()),
        disk,
        images: images.to_vec(),
        path: programs.0.clone(),
        addresses: wants.stack.of([seat.v4.0.to_string(), seat.v6.0.to_string()]),
        proxy: wants.proxy,
        hierarchies,
    })
}

/// The kubelet is a client of the API server, and serves logs and commands to it.
fn sign_kubelet(pki: &Pki, spec: &Spec, seat: &Seat, server: &str) -> Result<()> {
    let (name, common_name) = (&spec.name, format!("system:node:{}", spec.name));
    let serves = [format!("DNS:{name}"), format!("IP:{}", seat.v4.0), format!("IP:{}", seat.v6.0)];
    let subject = Subject { file: name, common_name: &common_name, organisation: "system:nodes", serves: &serves };
    put_credentials(pki, spec, &subject, server, "kubelet.conf")
}

/// On every node the same user, as kubeadm has it; its rights are built into the API server.
fn sign_proxy(pki: &Pki, spec: &Spec, server: &str) -> Result<()> {
    let file = format!("{}-proxy", spec.name);
    let subject =
        Subject { file: &file, common_name: "system:kube-proxy", organisation: "system:node-proxier", serves: &[] };
    put_credentials(pki, spec, &subject, server, "kube-proxy.conf")
}

/// Signs, and puts on the node what the subject needs to be a client of the API server.
fn put_credentials(pki: &Pki, spec: &Spec, subject: &Subject<'_>, server: &str, config: &str) -> Result<()> {
    let kubeconfig = pki.kubeconfig(subject, server, init::PKI.as_ref())?;
    let on_node = init::own(&spec.disk, "plain", "/var/lib/kubelet")?.join("pki");
    fs::create_dir_all(&on_node)?;
    let name = subject.file;
    for (from, to) in [
        (pki.cert("ca"), "ca.crt".to_owned()),
        (pki.cert(name), format!("{name}.crt")),
        (pki.key(name), format!("{name}.key")),
        (kubeconfig, config.to_owned()),
    ] {
        fs::copy(&from, on_node.join(to)).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

/// The one plugin that containerd runs itself; nodes have it from the package that brings the kubelet.
fn put_loopback(programs: &Programs, spec: &Spec) -> Result<()> {
    let plugins = init::own(&spec.disk, "upper", "/opt")?.join("cni").join("bin");
    fs::create_dir_all(&plugins)?;
    fs::copy(programs.find("loopback")?, plugins.join("loopback")).context("copying the plugin loopback")?;
    Ok(())
}

/// The items of a list that kubectl printed.
pub(crate) fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn pod_cidrs(nodes: &Value) -> Vec<NodeCidrs> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let node = |node: &Value| {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        NodeCidrs { name, pod_cidrs: texts(&node["spec"]["podCIDRs"]) }
    };
    items(nodes).iter().map(node).collect()
}
