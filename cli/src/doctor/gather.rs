//! Looks at the node and its cluster. Everything here only reads, but for echo requests to other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::poll_fn;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path as FilePath;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;
use tartan_api::boot::Boot;
use tartan_kernel::Kernel as _;
use tartan_kernel::foreign::Foreign;
use tartan_kernel::linux::Linux;
use tartan_kernel::path::carries;
use tartan_model::{Features, Host, Kind, World};
use tartan_store::{KubernetesStore, Store};

use crate::client::SOCKET;

use super::checks::{GC_THRESH, NEEDS, NEEDS_OF_IPIP, NEEDS_OF_IPSEC, SYSCTLS};
use super::found::{Cluster, Found, Member, Module, Path, Runtime, SysctlLine};

const CNI_CONF: &str = "/etc/cni/net.d";
/// Of containerd as distributions write it, then as administrators do.
const RUNTIMES: [&str; 5] = [
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "/var/snap/microk8s/current/args/containerd.toml",
    "/run/k0s/containerd-cri.toml",
    "/etc/containerd/config.toml",
];
/// In the order in which systemd-sysctl applies them; of files with one name the first folder's counts.
const SYSCTL_FOLDERS: [&str; 4] = ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"];
const SYSCTL_FILE: &str = "/etc/sysctl.conf";
/// How long the cluster may take to be told.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an echo may take, how many nodes are asked, and what every link takes (RFC 8200 §5).
const ECHO: Duration = Duration::from_millis(700);
const ASKED: usize = 8;
const SMALLEST: u32 = 1280;
/// `st` of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// All there is to see from here.
///
/// # Errors
/// No runtime can be had to ask the cluster with.
pub(super) fn gather(boot: Option<Boot>, store: Option<&str>) -> Result<Found> {
    let runtime = RUNTIMES.into_iter().find_map(runtime);
    let cni_conf = runtime.as_ref().map_or(CNI_CONF.into(), |runtime| runtime.cni_conf.clone());
    let mut found = Found { cni_conf, runtime, ..Found::default() };
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let node = boot.as_ref().map(|boot| boot.node.clone()).filter(|node| !node.is_empty());
    found.node = node.or_else(|| std::env::var("NODE_NAME").ok()).unwrap_or(hostname);
    // An agent in a container has its boot file there, and its socket on the node.
    let socket = boot.as_ref().map_or(FilePath::new(SOCKET), |boot| &boot.socket);
    found.installed = UnixStream::connect(socket).is_ok();
    if let Some(boot) = &boot {
        found.listen = boot.listen.map(|listen| listen.port());
        found.cni_conf = boot.cni_conf.as_ref().map_or(CNI_CONF.into(), |folder| folder.display().to_string());
    }
    kernel(&mut found);
    found.tun = FilePath::new("/dev/net/tun").exists();
    modules(&mut found);
    sysctls(&mut found);
    (found.udp, found.tcp) = (ports("udp", None), ports("tcp", Some(LISTENS)));
    found.programs = programs();
    if is_agents_container() {
        let why = "this is the agent's container; run `tartan doctor` on the node itself for them".to_owned();
        found.unseen.push(("other programs of the node, and files that set sysctls", why));
    }
    cni_files(&mut found);
    match store.map(str::to_owned).or(boot.map(|boot| boot.store)) {
        Some(store) => cluster(&mut found, &store)?,
        None => {
            let why = "there is no boot file; name the cluster with --store kubernetes:/path/of/kubeconfig";
            found.unseen.push(("the cluster", why.into()));
        }
    }
    Ok(found)
}

fn kernel(found: &mut Found) {
    let looked = Linux::open().and_then(|mut kernel| Ok((kernel.features(), kernel.host()?)));
    match looked {
        Ok((features, host)) => (found.features, found.host) = (Some(features), Some(host)),
        Err(error) => found.unseen.push(("links, addresses and firewalls", format!("{error}; this needs root"))),
    }
    match Foreign::open().and_then(|mut foreign| foreign.chains()) {
        Ok(chains) => found.chains = chains,
        Err(error) if found.features.as_ref().is_some_and(|features| features.nft) => {
            found.unseen.push(("chains of other firewalls", error.to_string()));
        }
        Err(_) => {}
    }
}

/// In /proc/modules, built in, or below /lib/modules; where none of that can be read nothing is said of a module.
fn modules(found: &mut Found) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let folder = FilePath::new("/lib/modules").join(&release);
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let loaded: BTreeSet<&str> = loaded.lines().filter_map(|line| line.split(' ').next()).collect();
    let listed = |file: &str| -> Option<BTreeSet<String>> {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        Some(text.lines().filter_map(module_name).collect())
    };
    let (built_in, on_disk) = (listed("modules.builtin"), listed("modules.dep"));
    if built_in.is_none() || on_disk.is_none() {
        found.unseen.push(("kernel modules on the disk", format!("{} is not there", folder.display())));
    }
    for need in NEEDS.iter().chain(NEEDS_OF_IPIP).chain(NEEDS_OF_IPSEC) {
        let is_there = loaded.contains(need.module) || FilePath::new("/sys/module").join(need.module).exists();
        let state = match (&built_in, &on_disk) {
            _ if is_there => Module::There,
            (Some(built_in), _) if built_in.contains(need.module) => Module::There,
            (Some(_), Some(on_disk)) if on_disk.contains(need.module) => Module::OnDisk,
            (Some(_), Some(_)) => Module::Missing,
            _ => continue,
        };
        found.modules.insert(need.module, state);
    }
}

/// `kernel/net/netfilter/nft-ct.ko.xz: …` is `nft_ct`.
pub(super) fn module_name(line: &str) -> Option<String> {
    let path = line.split(':').next()?;
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn sysctls(found: &mut Found) {
    let names = || SYSCTLS.iter().map(|wanted| wanted.name).chain(GC_THRESH);
    for name in names() {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if let Ok(value) = fs::read_to_string(path) {
            found.sysctls.insert(name, value.trim().to_owned());
        }
    }
    // Files by name, whatever folder they are in; the first folder's counts.
    let mut files = BTreeMap::new();
    for folder in SYSCTL_FOLDERS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".conf") {
                files.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    for path in files.into_values().chain([SYSCTL_FILE.into()]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        found.sysctl_lines.extend(sysctl_lines(&path.display().to_string(), &text, names()));
    }
}

/// Lines that set one of these. `/` and `.` are the same in names, and a `-` before one only silences errors.
pub(super) fn sysctl_lines(
    file: &str,
    text: &str,
    names: impl Iterator<Item = &'static str> + Clone,
) -> Vec<SysctlLine> {
    let line = |(at, line): (usize, &str)| {
        let line = line.trim();
        let (name, value) = line.strip_prefix('-').unwrap_or(line).split_once('=')?;
        let name = name.trim().replace('/', ".");
        let name = names.clone().find(|known| *known == name)?;
        Some(SysctlLine { at: format!("{file}:{}", at + 1), name, value: value.trim().to_owned() })
    };
    let is_comment = |line: &str| line.trim_start().starts_with(['#', ';']);
    text.lines().enumerate().filter(|(_, line)| !is_comment(line)).filter_map(line).collect()
}

/// Local ports in /proc/net, of both families.
fn ports(protocol: &str, state: Option<&str>) -> BTreeSet<u16> {
    let tables = [format!("/proc/net/{protocol}"), format!("/proc/net/{protocol}6")];
    tables.iter().flat_map(|table| local_ports(&fs::read_to_string(table).unwrap_or_default(), state)).collect()
}

/// Second column `ADDRESS:PORT` in hex; the fourth is the state.
pub(super) fn local_ports(table: &str, state: Option<&str>) -> BTreeSet<u16> {
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (_, port) = words.next()?.rsplit_once(':')?;
        let is = words.nth(1)?;
        state.is_none_or(|state| state == is).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

fn programs() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).ok();
    processes.filter_map(name).map(|name| name.trim().to_owned()).collect()
}

/// Of the first process here, as of us.
fn is_agents_container() -> bool {
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm")).ok();
    name("1").is_some_and(|first| name("self").is_some_and(|own| own == first))
}

fn runtime(file: &'static str) -> Option<Runtime> {
    Some(Runtime { file, cni_conf: conf_dir(&fs::read_to_string(file).ok()?)? })
}

/// The folder in `conf_dir = "/etc/cni/net.d"`.
pub(super) fn conf_dir(config: &str) -> Option<String> {
    let value = |line: &str| line.trim().strip_prefix("conf_dir")?.trim_start().strip_prefix('=').map(str::to_owned);
    let folder = config.lines().find_map(value)?;
    let folder = folder.trim().trim_matches(['"', '\'']).trim_end_matches('/');
    folder.starts_with('/').then(|| folder.to_owned())
}

fn cni_files(found: &mut Found) {
    match fs::read_dir(&found.cni_conf) {
        Ok(entries) => {
            // One that others have put in front of ours with our plugin in it is as good as ours.
            let is_other = |entry: &fs::DirEntry| {
                !fs::read(entry.path()).is_ok_and(|list| tartan_agent::cni_files::has_ours(&list))
            };
            let names =
                entries.flatten().filter(is_other).map(|entry| entry.file_name().to_string_lossy().into_owned());
            let read = |name: &String| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
            found.cni_files = names.filter(read).collect();
            found.cni_files.sort();
        }
        Err(error) => found.unseen.push(("the runtime's networks", format!("{}: {error}", found.cni_conf))),
    }
}

fn cluster(found: &mut Found, url: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = match tartan_agent::open_store(url) {
            Ok(store) => store,
            Err(error) => return found.unseen.push(("the cluster", format!("{error:#}"))),
        };
        let world = match world(&*store).await {
            Ok(world) => world,
            Err(why) => {
                let why = format!("{url} did not tell all of it within {} s{why}", PATIENCE.as_secs());
                return found.unseen.push(("the cluster", why));
            }
        };
        let mut cluster = from_world(&world);
        if let Some(place) = url.strip_prefix("kubernetes:") {
            from_kubernetes(&mut cluster, place, &mut found.unseen).await;
        }
        found.cluster = Some(cluster);
    });
    if let (Some(cluster), Some(host)) = (&mut found.cluster, &found.host) {
        cluster.paths = paths(cluster, host, &found.node, &mut found.unseen);
    }
    Ok(())
}

/// What is there; or why not, if the store said so.
async fn world(store: &dyn Store) -> Result<World, String> {
    let kinds = [Kind::Node, Kind::NetworkConfig, Kind::IpPool];
    let mut events = store.watch(&kinds);
    let mut world = World::new("".into(), Features::default());
    let reading = async {
        while !kinds.iter().all(|kind| world.is_synced(*kind)) {
            let event = poll_fn(|context| events.as_mut().poll_next(context)).await?;
            world.store(event, Instant::now());
        }
        Some(())
    };
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Some(())) => Ok(world),
        _ => Err(world.store_away().map(|why| format!(": {why}")).unwrap_or_default()),
    }
}

fn from_world(world: &World) -> Cluster {
    let member = |node: &tartan_model::Node| Member {
        name: node.name.to_string(),
        addresses: node.internal_ips.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        machine_id: None,
    };
    let pools = world.pools.values().filter(|pool| !pool.disabled);
    Cluster {
        config: (*world.config).clone(),
        nodes: world.nodes.values().map(|node| member(node)).collect(),
        pools: pools.map(|pool| (pool.name.to_string(), pool.cidr)).collect(),
        ..Cluster::default()
    }
}

async fn from_kubernetes(cluster: &mut Cluster, place: &str, unseen: &mut Vec<(&'static str, String)>) {
    let Ok(store) = KubernetesStore::open(place) else { return };
    match store.look("/api/v1/nodes").await {
        Ok((nodes, date)) => {
            let ids = items(&nodes).filter_map(|node| {
                let id = node["status"]["nodeInfo"]["machineID"].as_str().filter(|id| !id.is_empty())?;
                Some((node["metadata"]["name"].as_str()?, id))
            });
            let ids: BTreeMap<&str, &str> = ids.collect();
            for node in &mut cluster.nodes {
                node.machine_id = ids.get(&*node.name).map(|id| (*id).to_owned());
            }
            cluster.ahead_secs = date.map(|theirs| ahead(SystemTime::now(), theirs));
        }
        Err(error) => unseen.push(("machine ids and the clock", error.to_string())),
    }
    match store.look("/apis/networking.k8s.io/v1/servicecidrs").await {
        Ok((ranges, _)) => {
            let cidrs = items(&ranges).filter_map(|range| range["spec"]["cidrs"].as_array()).flatten();
            cluster.services = cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
        }
        // Before 1.33, or without the right to: the one address that every pod is told.
        Err(error) => {
            let api_server = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse::<IpAddr>().ok());
            cluster.services = api_server.into_iter().map(IpNet::from).collect();
            unseen.push(("the Services' range", error.to_string()));
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn ahead(ours: SystemTime, theirs: SystemTime) -> i64 {
    let secs = |length: Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    match ours.duration_since(theirs) {
        Ok(ahead) => secs(ahead),
        Err(behind) => -secs(behind.duration()),
    }
}

/// Asks a few other nodes by echo: packets as large as the link takes, and if those do not get there how large may.
fn paths(cluster: &Cluster, host: &Host, local: &str, unseen: &mut Vec<(&'static str, String)>) -> Vec<Path> {
    let others = cluster.nodes.iter().filter(|node| node.name != local);
    let address = |node: &Member| Some((node.name.clone(), *node.addresses.first()?));
    let mut paths = Vec::new();
    for (node, address) in others.filter_map(address).take(ASKED) {
        let Some(mtu) = mtu_towards(host, address) else { continue };
        match path(mtu, |bytes| carries(address, bytes, ECHO)) {
            Ok((full, largest)) => paths.push(Path { node, address, mtu, full, largest }),
            Err(error) => {
                unseen.push(("the MTU on the way to other nodes", format!("{address}: {error}")));
                break;
            }
        }
    }
    paths
}

/// Whether a packet of `mtu` bytes gets there, and the largest that does.
pub(super) fn path<E>(mtu: u32, mut carries: impl FnMut(u32) -> Result<bool, E>) -> Result<(bool, Option<u32>), E> {
    if carries(mtu)? {
        return Ok((true, Some(mtu)));
    }
    if mtu <= SMALLEST || !carries(SMALLEST)? {
        return Ok((false, None));
    }
    let (mut gets_there, mut too_large) = (SMALLEST, mtu);
    while too_large - gets_there > 1 {
        let middle = gets_there.midpoint(too_large);
        if carries(middle)? { gets_there = middle } else { too_large = middle }
    }
    Ok((false, Some(gets_there)))
}

/// Of the link in whose network the address is, else of the one that the default route takes.
fn mtu_towards(host: &Host, address: IpAddr) -> Option<u32> {
    let on_link = host.links.iter().find(|link| link.addresses.iter().any(|net| net.contains(&address)));
    let default = || {
        let route = host.default_routes.iter().find(|route| route.v6 == address.is_ipv6())?;
        host.links.iter().find(|link| link.name == route.link)
    };
    on_link.or_else(default).map(|link| link.mtu)
}
