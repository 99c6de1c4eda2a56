//! The control plane: etcd and the three Kubernetes servers, in a network namespace of their own.
//!
//! Invariant: they are killed, never asked to end: an API server whose etcd has gone takes a minute over its goodbye.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tartan_lab::probe::wait_for;
use tartan_lab::{Netns, Seat};

use crate::Programs;
use crate::cluster::Wants;
use crate::pki::{Pki, Subject};

/// Addresses of Services; the API server's own is the first of each.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// What nodes get their pod CIDRs from.
pub(crate) const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const API_SERVER: &str = "kube-apiserver";
const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(60);
const AUDIT_POLICY: &str = "audit.json";
const AUDIT_LOG: &str = "audit.log";
/// Requests of Tartan's agents, as they come in; nobody else's.
const AUDITED: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [
  {"level": "Metadata", "users": ["system:serviceaccount:tartan-system:tartan-agent"],
   "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"]},
  {"level": "None"}]}"#;

/// The families of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stack {
    #[default]
    Both,
    #[cfg_attr(not(test), allow(dead_code, reason = "only a test makes such a cluster"))]
    V6,
}

/// The running control plane.
#[derive(Debug)]
pub(crate) struct Control {
    netns: Netns,
    kubectl: PathBuf,
    admin: PathBuf,
    logs: PathBuf,
    server: String,
    /// The program of the API server and its arguments, to start it again.
    api_server: (PathBuf, Vec<String>),
    children: BTreeMap<String, Child>,
}

impl Stack {
    /// Of something of each family what a cluster has, as Kubernetes takes lists.
    pub(crate) fn of<T: ToString>(self, [v4, v6]: [T; 2]) -> String {
        match self {
            Stack::Both => format!("{},{}", v4.to_string(), v6.to_string()),
            Stack::V6 => v6.to_string(),
        }
    }

    pub(crate) fn families(self) -> usize {
        if self == Stack::Both { 2 } else { 1 }
    }

    fn first(self, seat: &Seat) -> IpAddr {
        if self == Stack::Both { seat.v4.0.into() } else { seat.v6.0.into() }
    }
}

impl Control {
    /// Starts all four and waits until the API server is ready.
    pub(crate) fn start(netns: &Netns, seat: &Seat, pki: &Pki, dir: &Path, run: (&Programs, Wants)) -> Result<Self> {
        let (programs, wants) = run;
        let mut control = Self::bare(netns, seat, pki, dir, (programs, wants.stack))?;
        let manager = control.user(pki, "manager", "system:kube-controller-manager")?;
        let scheduler = control.user(pki, "scheduler", "system:kube-scheduler")?;
        control.spawn(&programs.find("kube-controller-manager")?, &controller_manager(pki, wants, &manager))?;
        let scheduler =
            [format!("--kubeconfig={}", scheduler.display()), "--leader-elect=false".into(), LOOPBACK.into()];
        control.spawn(&programs.find("kube-scheduler")?, &scheduler)?;
        Ok(control)
    }

    /// etcd and a ready API server, and nobody who looks after what is in it.
    pub(crate) fn bare(netns: &Netns, seat: &Seat, pki: &Pki, dir: &Path, run: (&Programs, Stack)) -> Result<Self> {
        let (programs, stack) = run;
        let server = format!("https://{}", SocketAddr::new(stack.first(seat), PORT));
        let admin = Subject { file: "admin", common_name: "admin", organisation: "system:masters", serves: &[] };
        let mut control = Self {
            netns: netns.clone(),
            kubectl: programs.find("kubectl")?,
            admin: pki.user(&admin, &server)?,
            logs: dir.to_owned(),
            server: server.clone(),
            api_server: (programs.find(API_SERVER)?, api_server(pki, stack, seat, dir)),
            children: BTreeMap::new(),
        };
        sign_servers(pki, seat)?;

        fs::write(dir.join(AUDIT_POLICY), AUDITED)?;
        control.spawn(&programs.find("server")?, &etcd(dir))?;
        control.start_api_server()?;
        Ok(control)
    }

    fn user(&self, pki: &Pki, file: &str, name: &str) -> Result<PathBuf> {
        pki.user(&Subject { file, common_name: name, organisation: name, serves: &[] }, &self.server)
    }

    /// Kills the API server; etcd and the others run on.
    pub(crate) fn kill_api_server(&mut self) -> Result<()> {
        let mut child = self.children.remove(API_SERVER).context("the API server runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start_api_server(&mut self) -> Result<()> {
        let (program, args) = self.api_server.clone();
        self.spawn(&program, &args)?;
        self.wait_until_ready()
    }

    /// What agents have asked the API server since it was first started: verb and path of each request.
    pub(crate) fn asked_by_agents(&self) -> Result<Vec<(String, String)>> {
        let log = fs::read_to_string(self.logs.join(AUDIT_LOG)).context("reading the API server's audit log")?;
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(asked).collect()
    }

    /// Where clients find the API server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Where the program is.
    pub(crate) fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// The kubeconfig of somebody who may do everything.
    pub(crate) fn admin(&self) -> &Path {
        &self.admin
    }

    /// What kubectl prints.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        let kubectl = [self.kubectl.display().to_string(), format!("--kubeconfig={}", self.admin.display())];
        let argv: Vec<&str> = kubectl.iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.netns.output(&argv)
    }

    /// The same, as a person types it.
    pub(crate) fn kubectl_command(&self) -> String {
        let (enter, kubectl) = (self.netns.enter_command(), self.kubectl.display());
        format!("{enter} {kubectl} --kubeconfig={}", self.admin.display())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut ready = false;
        let waited = wait_for(PATIENCE, "the API server to be ready", || {
            ready = self.kubectl(&["get", "--raw", "/readyz"]).is_ok();
            ready || self.children.values_mut().any(|child| !matches!(child.try_wait(), Ok(None)))
        });
        let waited = waited.and_then(|_| ready.then_some(()).context("a part of the control plane has ended"));
        waited.map_err(|error| anyhow!("{error:#}\n{}", self.troubleshooting()))
    }

    /// The ends of its logs.
    pub(crate) fn troubleshooting(&self) -> String {
        ["server", "kube-apiserver", "kube-controller-manager"].map(|name| log_tail(&self.log(name))).join("\n")
    }

    fn log(&self, program: &str) -> PathBuf {
        self.logs.join(format!("{program}.log"))
    }

    fn spawn(&mut self, program: &Path, args: &[String]) -> Result<()> {
        let name = program.file_name().context("a program's name")?.to_string_lossy().into_owned();
        let log = File::options().create(true).append(true).open(self.log(&name))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.netns.run(|| command.spawn())?.with_context(|| format!("starting {name}"))?;
        self.children.insert(name, child);
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
        }
        for child in self.children.values_mut() {
            let _ = child.wait();
        }
    }
}

fn asked(line: &str) -> Result<(String, String)> {
    let event: Value = serde_json::from_str(line).with_context(|| format!("parsing the audit log's {line}"))?;
    let text = |field: &str| event[field].as_str().map(str::to_owned).with_context(|| format!("{field} in {line}"));
    let uri = text("requestURI")?;
    let (path, query) = uri.split_once('?').unwrap_or((&uri, ""));
    // A list of one object is how an agent asks whether it can go on where it was.
    let verb = if query.starts_with("limit=1&") { "probe".into() } else { text("verb")? };
    Ok((verb, path.to_owned()))
}

/// The last lines of a log, under its name.
pub(crate) fn log_tail(file: &Path) -> String {
    let log = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    format!("{}, its last lines:\n{}", file.display(), lines[lines.len().saturating_sub(10)..].join("\n"))
}

const LOOPBACK: &str = "--bind-address=127.0.0.1";

fn sign_servers(pki: &Pki, seat: &Seat) -> Result<()> {
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(|name| format!("DNS:{name}"));
    let addresses = ["127.0.0.1".to_owned(), "10.96.0.1".into(), "fd00:10:96::1".into(), seat.v4.0.to_string()];
    let addresses = addresses.into_iter().chain([seat.v6.0.to_string()]).map(|address| format!("IP:{address}"));
    let serves: Vec<String> = names.into_iter().chain(addresses).collect();
    pki.sign(&Subject {
        file: "apiserver",
        common_name: "kube-apiserver",
        organisation: "kubernetes",
        serves: &serves,
    })?;
    // As whom the API server asks kubelets for logs and commands.
    pki.sign(&Subject {
        file: "to-kubelet",
        common_name: "kube-apiserver",
        organisation: "system:masters",
        serves: &[],
    })
}

fn etcd(dir: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server(pki: &Pki, stack: Stack, seat: &Seat, dir: &Path) -> Vec<String> {
    let file = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--secure-port={PORT}"),
        "--bind-address=::".into(),
        format!("--advertise-address={}", stack.first(seat)),
        format!("--service-cluster-ip-range={}", stack.of(SERVICES)),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        file("service-account-key-file", pki.key("sa")),
        file("service-account-signing-key-file", pki.key("sa")),
        file("client-ca-file", pki.cert("ca")),
        file("tls-cert-file", pki.cert("apiserver")),
        file("tls-private-key-file", pki.key("apiserver")),
        // Nobody here resolves the names of nodes.
        "--kubelet-preferred-address-types=InternalIP".into(),
        file("kubelet-certificate-authority", pki.cert("ca")),
        file("kubelet-client-certificate", pki.cert("to-kubelet")),
        file("kubelet-client-key", pki.key("to-kubelet")),
        file("audit-policy-file", dir.join(AUDIT_POLICY)),
        file("audit-log-path", dir.join(AUDIT_LOG)),
    ]
}

fn controller_manager(pki: &Pki, wants: Wants, kubeconfig: &Path) -> Vec<String> {
    let stack = wants.stack;
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    vec![
        file("kubeconfig", kubeconfig),
        "--leader-elect=false".into(),
        LOOPBACK.into(),
        format!("--allocate-node-cidrs={}", !wants.pools),
        format!("--cluster-cidr={}", stack.of(PODS)),
        format!("--service-cluster-ip-range={}", stack.of(SERVICES)),
        "--use-service-account-credentials".into(),
        file("root-ca-file", &pki.cert("ca")),
        file("service-account-private-key-file", &pki.key("sa")),
        file("cluster-signing-cert-file", &pki.cert("ca")),
        file("cluster-signing-key-file", &pki.key("ca")),
    ]
}

#[cfg(test)]
mod tests {
    use super::asked;

    #[test]
    fn a_request_is_read_without_its_query() {
        let line = r#"{"verb": "watch", "requestURI": "/api/v1/pods?watch=true", "stage": "RequestReceived"}"#;
        assert_eq!(asked(line).unwrap(), ("watch".into(), "/api/v1/pods".into()));
        let list =
            |limit| format!(r#"{{"verb": "list", "requestURI": "/api/v1/pods?limit={limit}&resourceVersion=7"}}"#);
        assert_eq!([1, 10].map(|limit| asked(&list(limit)).unwrap().0), ["probe", "list"]);
        assert!(asked(r#"{"verb": "watch"}"#).is_err());
        assert!(asked("half a li").is_err());
    }
}
