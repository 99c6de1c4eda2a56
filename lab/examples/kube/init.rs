//! PID 1 of a node: mounts, kernel settings, containerd, images, kubelet; then it reaps.
//!
//! Invariant: nothing here shows outside. Every mount is in the node's namespace, every write goes to its disk, and
//! settings the kubelet would change for the whole machine are covered by files of the node's own.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use serde_json::json;
use tartan_lab::Hierarchy;
use tartan_lab::probe::wait_for;

use crate::control::PODS;
use crate::machine::{Proxy, Spec};

const PROXY: &str = "kube-proxy";
const PROXY_CONFIG: &str = "/etc/kubernetes/kube-proxy.json";
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where a node finds its certificates.
pub(crate) const PKI: &str = "/var/lib/kubelet/pki";
const PATIENCE: Duration = Duration::from_secs(60);
/// Folders of the machine that a node sees and may write to without the machine noticing.
const OVERLAID: [&str; 5] = ["/etc", "/opt", "/var/lib", "/var/log", "/usr/libexec"];
/// Bind mounts of plain folders: overlays do not stack, and images are overlays.
const PLAIN: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];
/// The control group of what a node runs beside pods, as `system.slice` is. Were they beside the group of all pods, each thread
/// would weigh half as much as that.
const SYSTEM: &str = "system";
/// What the kubelet wants to see, and would else set on the whole machine.
const SETTINGS: [(&str, &str); 3] =
    [("vm/overcommit_memory", "1"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")];
/// Of the node's network namespace: what every guide asks for before a node joins.
const FORWARDING: [(&str, bool); 4] = [
    ("net/ipv4/ip_forward", true),
    ("net/ipv6/conf/all/forwarding", true),
    ("net/bridge/bridge-nf-call-iptables", false),
    ("net/bridge/bridge-nf-call-ip6tables", false),
];

/// Sets the node up and never ends while it works.
pub(crate) fn run(spec_file: &Path) -> Result<()> {
    ensure!(std::process::id() == 1, "init makes mounts for a node and must be its PID 1");
    let spec = Spec::read(spec_file)?;
    sethostname(&spec.name)?;
    mount_all(&spec)?;
    spec.hierarchies.iter().try_for_each(|hierarchy| hierarchy.enter(SYSTEM))?;
    write_files(&spec)?;
    let containerd = Vital::start("containerd", vec!["--config".into(), "/etc/containerd/config.toml".into()], &spec)?;
    wait_for(PATIENCE, "containerd to answer", || UnixStream::connect(SOCKET).is_ok())?;
    for image in &spec.images {
        let import = ["--address", SOCKET, "--namespace", "k8s.io", "images", "import"];
        let output = Command::new("ctr").args(import).arg(image).output().context("running ctr")?;
        ensure!(output.status.success(), "importing {image:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut vital = vec![containerd, Vital::start("kubelet", kubelet_flags(&spec), &spec)?];
    if spec.proxy.is_some() {
        vital.push(Vital::start(PROXY, vec![format!("--config={PROXY_CONFIG}")], &spec)?);
    }
    reap(&mut vital, &spec)
}

/// A program that a node cannot do without.
struct Vital {
    program: &'static str,
    args: Vec<String>,
    pid: Pid,
}

impl Vital {
    fn start(program: &'static str, args: Vec<String>, spec: &Spec) -> Result<Self> {
        let pid = spawn(program, &args, spec)?;
        Ok(Self { program, args, pid })
    }
}

/// One that was killed is started again, as a service manager does it; one that ends by itself is wrong.
fn reap(vital: &mut [Vital], spec: &Spec) -> Result<()> {
    loop {
        let (ended, killed) = match waitpid(None, None)? {
            WaitStatus::Exited(pid, _) => (pid, false),
            WaitStatus::Signaled(pid, ..) => (pid, true),
            _ => continue,
        };
        let Some(one) = vital.iter_mut().find(|one| one.pid == ended) else { continue };
        ensure!(killed, "{} has ended", one.program);
        one.pid = spawn(one.program, &one.args, spec)?;
    }
}

fn spawn(program: &str, args: &[String], spec: &Spec) -> Result<Pid> {
    let log = File::options().create(true).append(true).open(spec.log(program))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("starting {program}"))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

// --- mounts ---

fn mount_all(spec: &Spec) -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/sys/fs/cgroup"), ("bpf", "/sys/fs/bpf")] {
        mount_new(kind, Path::new(at), "")?;
    }
    for Hierarchy { at, kind, options } in &spec.hierarchies {
        fs::create_dir_all(at)?;
        mount_new(kind, at, options)?;
    }
    for folder in OVERLAID {
        let own = |layer: &str| own(&spec.disk, layer, folder);
        let (upper, work) = (own("upper")?, own("work")?);
        let options = format!("lowerdir={folder},upperdir={},workdir={}", upper.display(), work.display());
        mount_new("overlay", Path::new(folder), &options)?;
    }
    for folder in PLAIN {
        fs::create_dir_all(folder)?;
        bind(&own(&spec.disk, "plain", folder)?, Path::new(folder))?;
    }
    for (key, value) in SETTINGS {
        let file = spec.disk.join(key.replace('/', "."));
        fs::write(&file, value)?;
        bind(&file, &Path::new("/proc/sys").join(key))?;
    }
    mount_new("tmpfs", Path::new("/run"), "")?;
    // Volumes that a pod shares with its node spread from there.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).context("making mounts shared")
}

fn mount_new(kind: &str, at: &Path, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} ({options}) on {}", at.display()))
}

fn bind(from: &Path, at: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(from), at, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("mounting {} on {}", from.display(), at.display()))
}

/// A folder of the disk that stands for one of the machine's.
pub(crate) fn own(disk: &Path, layer: &str, folder: &str) -> Result<PathBuf> {
    let own = disk.join(layer).join(folder.trim_start_matches('/').replace('/', "."));
    fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
    Ok(own)
}

// --- files ---

fn write_files(spec: &Spec) -> Result<()> {
    for (key, needed) in FORWARDING {
        let file = Path::new("/proc/sys").join(key);
        if needed || file.exists() {
            fs::write(&file, "1").with_context(|| format!("setting {key}"))?;
        }
    }
    // It may be a link into the machine's /run.
    let _ = fs::remove_file("/etc/resolv.conf");
    fs::write("/etc/resolv.conf", "")?;
    fs::write("/etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", spec.name))?;
    for folder in ["/etc/containerd", "/etc/kubernetes", "/etc/cni/net.d", "/opt/cni/bin", "/run/lock"] {
        fs::create_dir_all(folder)?;
    }
    if !Path::new("/var/run").exists() {
        symlink("/run", "/var/run")?;
    }
    fs::write("/etc/containerd/config.toml", CONTAINERD)?;
    fs::write("/etc/kubernetes/kubelet.json", kubelet_config(spec).to_string())?;
    if let Some(mode) = spec.proxy {
        fs::write(PROXY_CONFIG, proxy_config(spec, mode).to_string())?;
    }
    Ok(())
}

/// Without CAP_SYS_RESOURCE no oom_score_adj can be lowered; containerd then restricts itself to what it has.
const CONTAINERD: &str = "version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'registry.k8s.io/pause:3.10.2'
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/cni/bin']
conf_dir = '/etc/cni/net.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = 'runc'
SystemdCgroup = false
";

fn kubelet_flags(spec: &Spec) -> Vec<String> {
    vec![
        "--config=/etc/kubernetes/kubelet.json".into(),
        format!("--kubeconfig={PKI}/kubelet.conf"),
        format!("--hostname-override={}", spec.name),
        format!("--node-ip={}", spec.addresses),
    ]
}

fn kubelet_config(spec: &Spec) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{PKI}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{PKI}/{}.crt", spec.name),
        "tlsPrivateKeyFile": format!("{PKI}/{}.key", spec.name),
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        "resolvConf": "/etc/resolv.conf",
        // The machine's disk is not the node's: how full it is must not evict pods.
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
    })
}

fn proxy_config(spec: &Spec, mode: Proxy) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clientConnection": {"kubeconfig": format!("{PKI}/{PROXY}.conf")},
        "hostnameOverride": spec.name,
        "clusterCIDR": PODS.join(","),
        // Zeros: the size of the connection table is the whole machine's.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s", "udpStreamTimeout": "0s",
        },
    })
}
