//! Files that this node shares with the network it had before, as Flannel and the standard plugins keep them.
//!
//! ```text
//! /var/lib/cni/networks/NETWORK/ADDRESS   `host-local`: given out, to the container in its first line    read
//! /run/flannel/subnet.env                 what Flannel's plugin goes by, as long as Flannel is spoken    written
//! ```
//!
//! Invariant: an address that was given out is known before the first pod asks for one, and is no other pod's for as long as
//! its file is there. Files are never deleted here: the plugin does that at DEL.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_model::{Family, World};
use tokio::sync::mpsc;
use tracing::warn;

use crate::http::ask;
use crate::run::Input;

/// Where `host-local` keeps a folder for each network.
const GIVEN: &str = "/var/lib/cni/networks";
const SUBNET_ENV: &str = "/run/flannel/subnet.env";
/// Nobody tells of files; those of others change only when the runtime still calls the plugin of before.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Addresses that were given out on this node before, with the container that has each.
pub type Given = OrdMap<IpAddr, Arc<str>>;

/// Keeps both up to date for as long as the loop runs. What cannot be read is as it was: the containers are there.
pub async fn keep(inbox: mpsc::Sender<Input>, mut known: Given) {
    while !inbox.is_closed() {
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Some(given) = given()
            && given != known
        {
            known = given.clone();
            if inbox.send(Input::Given(given)).await.is_err() {
                return;
            }
        }
        if let Some(Some(text)) = ask(&inbox, Input::SubnetEnv).await
            && let Err(error) = put(Path::new(SUBNET_ENV), &text)
        {
            warn!("{SUBNET_ENV}: {error}; plugins of Flannel cannot go by it. Is /run/flannel writable?");
        }
    }
}

/// What `host-local` has given out, of whatever network; none where that cannot be read.
pub fn given() -> Option<Given> {
    match given_in(Path::new(GIVEN)) {
        Ok(given) => Some(given),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Given::new()),
        Err(error) => {
            warn!("{GIVEN}: {error}; addresses given out to pods from before since it was read may be given out again");
            None
        }
    }
}

fn given_in(folder: &Path) -> io::Result<Given> {
    let mut given = Given::new();
    for network in fs::read_dir(folder)? {
        let files = match fs::read_dir(network?.path()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => continue,
            files => files?,
        };
        for file in files {
            let file = file?;
            // Beside addresses there are a lock and the last address given; `_` stands for `:` on some systems.
            let Ok(address) = file.file_name().to_string_lossy().replace('_', ":").parse() else { continue };
            let container = fs::read_to_string(file.path()).unwrap_or_default();
            given.insert(address, container.lines().next().unwrap_or_default().into());
        }
    }
    Ok(given)
}

/// What Flannel would write on this node; none while Flannel is not spoken.
pub fn subnet_env(world: &World, mtu: u32) -> Option<String> {
    let (flannel, node) = (world.flannel()?, world.local_node()?);
    let mut lines = BTreeMap::new();
    for (family, network) in flannel.networks.iter() {
        let (of_all, own) = match family {
            Family::V4 => ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
            Family::V6 => ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
        };
        let Some(cidr) = node.pod_cidrs.iter().find(|cidr| Family::of_net(cidr) == family) else { continue };
        lines.insert(of_all, network.to_string());
        lines.insert(own, format!("{}/{}", first_host(cidr), cidr.prefix_len()));
    }
    if lines.is_empty() {
        return None;
    }
    lines.insert("FLANNEL_MTU", mtu.to_string());
    // That is done by Tartan; a bridge need not.
    lines.insert("FLANNEL_IPMASQ", "true".into());
    Some(lines.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect())
}

/// The address that Flannel's bridge has.
fn first_host(cidr: &IpNet) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(first) => std::net::Ipv4Addr::from_bits(first.to_bits().saturating_add(1)).into(),
        IpAddr::V6(first) => std::net::Ipv6Addr::from_bits(first.to_bits().saturating_add(1)).into(),
    }
}

/// Replaces the file unless it says just that.
fn put(file: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
    let next = file.with_extension("env.next");
    fs::write(&next, text)?;
    fs::rename(&next, file)
}

#[cfg(test)]
mod tests {
    use tartan_model::{Features, Flannel, FlannelBackend, Node, PerFamily};

    use super::*;

    #[test]
    fn what_host_local_gave_out_is_read() {
        let dir = std::env::temp_dir().join(format!("tartan-given-{}", std::process::id()));
        let network = dir.join("cbr0");
        fs::create_dir_all(&network).unwrap();
        for (file, text) in [
            ("10.244.1.7", "c7\r\neth0"),
            ("fd00:10:244:1::7", "c7\r\neth0"),
            ("fd00_10_244_1__8", "c8"),
            ("10.244.1.9", ""),
            ("last_reserved_ip.0", "10.244.1.9"),
            ("lock", ""),
        ] {
            fs::write(network.join(file), text).unwrap();
        }
        let found: Vec<String> =
            given_in(&dir).unwrap().iter().map(|(address, container)| format!("{address} {container}")).collect();
        assert_eq!(found, ["10.244.1.7 c7", "10.244.1.9 ", "fd00:10:244:1::7 c7", "fd00:10:244:1::8 c8"]);
        put(&dir.join("run/subnet.env"), "a\n").unwrap();
        put(&dir.join("run/subnet.env"), "b\n").unwrap();
        assert_eq!(fs::read_to_string(dir.join("run/subnet.env")).unwrap(), "b\n");
        fs::remove_dir_all(&dir).unwrap();
        assert!(given_in(&dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn subnet_env_is_as_flannel_writes_it() {
        let mut world = World::new("n1".into(), Features::default());
        assert_eq!(subnet_env(&world, 1430), None);
        let node = Node {
            name: "n1".into(),
            uid: "u1".into(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).to_vec(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            placement: Default::default(),
        };
        world.nodes.insert("n1".into(), node.into());
        assert_eq!(subnet_env(&world, 1430), None, "no Flannel is spoken");
        let networks =
            PerFamily { v4: Some("10.244.0.0/16".parse().unwrap()), v6: Some("fd00:10:244::/56".parse().unwrap()) };
        world.flannels.insert("f".into(), Flannel { networks, backend: FlannelBackend::HostGw }.into());
        let want = "FLANNEL_IPMASQ=true\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\n\
                    FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_NETWORK=10.244.0.0/16\n\
                    FLANNEL_SUBNET=10.244.1.1/24\n";
        assert_eq!(subnet_env(&world, 1430).as_deref(), Some(want));
    }
}
